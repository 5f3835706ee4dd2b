"""The front door: which verbs there are, where each one lives, and the one place where errors become words."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import click

from nnunet_ext import __version__
from nnunet_ext.errors import Exit, NnxError, Usage
from nnunet_ext.options import Voice, speaking


@dataclass(frozen=True)
class Verb:
    """A line of the table: the verb, the module whose function of the same name is its click command, its help."""

    name: str
    module: str
    section: str
    help: str


VERBS = (
    Verb("train", "nnunet_ext.commands.train", "Train", "Train with nnU-Net and nnx's powers, or continue."),
    Verb("finish", "nnunet_ext.commands.finish", "Train", "Close a run: choose its final checkpoint, validate it."),
    Verb("runs", "nnunet_ext.commands.runs", "Look", "Every run: epoch, EMA, checkpoints, running or not."),
    Verb("doctor", "nnunet_ext.commands.doctor", "Look", "Is this machine, or a run's dataset, fit to train?"),
)

SHELLS = ("bash", "zsh", "fish")


class FrontDoor(click.Group):
    """A click group that imports a verb's module only when the verb is called, and shows verbs by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for verb in VERBS:
            if verb.name == name:
                command = getattr(importlib.import_module(verb.module), name)
                return command if isinstance(command, click.Command) else None
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"Did you mean: nnx {close[0]}" if close else "The verbs: nnx --help"
            raise Usage(f"There is no verb '{args[0]}'.", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(verb.section for verb in VERBS):
            with formatter.section(section):
                formatter.write_dl([(verb.name, verb.help) for verb in VERBS if verb.section == section])


@click.group(cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="nnx")
@click.option(
    "--completion",
    type=click.Choice(SHELLS),
    expose_value=False,
    is_eager=True,
    callback=lambda ctx, _, shell: _show_completion(ctx, shell),
    help="Print the shell's completion script and end.",
)
@speaking
def front_door() -> None:
    """Move nnU-Net v2 trainings between machines, keep them alive, stop them when they are good enough."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run nnx and end the process with the exit code the contract names."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run nnx and give its exit code; whatever went wrong has been said on stderr."""
    voice = Voice()
    try:
        if "_NNX_COMPLETE" in os.environ:
            front_door.main(prog_name="nnx")  # answers the shell and ends the process
        with front_door.make_context("nnx", list(sys.argv[1:] if argv is None else argv), obj=voice) as context:
            code = front_door.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else Exit.DONE
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as no_verb:
        no_verb.show()
        return Exit.USAGE
    except click.ClickException as wrong_words:
        usage = getattr(wrong_words, "ctx", None)
        return _fail(
            voice,
            wrong_words.format_message(),
            f"See: {usage.command_path} --help" if usage else "",
            Exit.USAGE,
        )
    except NnxError as known:
        return _fail(voice, known.sentence, known.hint, known.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail(voice, "Interrupted.", "", Exit.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as in `nnx runs | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        return Exit.DONE
    except OSError as system:
        return _fail(voice, _system_sentence(system), "", Exit.FAILED)
    except Exception as unexpected:  # noqa: BLE001 - the boundary: a bug must not look like a traceback to the user
        sentence = f"nnx itself failed: {type(unexpected).__name__}: {unexpected}."
        hint = "This is a bug in nnx. Run the same with -v for the traceback, and please report it."
        return _fail(voice, sentence, hint, Exit.FAILED)


def _fail(voice: Voice, sentence: str, hint: str, code: Exit) -> int:
    if voice.verbose:
        voice.trouble(traceback.format_exc().rstrip())
    voice.trouble(f"nnx: {_sentence(sentence)}")
    if hint:
        voice.trouble("\n".join(f"     {line}" for line in hint.splitlines()))
    return code


def _sentence(words: str) -> str:
    return words if words.endswith((".", "?", "!")) else f"{words}."


def _system_sentence(system: OSError) -> str:
    what = (system.strerror or str(system)).rstrip(".")
    return f"{what}: {system.filename}." if system.filename else f"{what}."


def _show_completion(ctx: click.Context, shell: str | None) -> None:
    if shell is None:
        return
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    if completer is None:
        raise Usage(f"click cannot complete for {shell}.")
    click.echo(completer(front_door, {}, "nnx", "_NNX_COMPLETE").source())
    ctx.exit()
