"""The options verbs share, and how a verb speaks: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from nnunet_ext import settings
from nnunet_ext.errors import Usage
from nnunet_ext.host import HERE
from nnunet_ext.layout import ROOTS, Layout
from nnunet_ext.naming import Name
from nnunet_ext.settings import TRAINING, Known, yes

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Voice:
    """How loud nnx is, and its two mouths."""

    verbose: bool = False
    quiet: bool = False

    def answer(self, text: str) -> None:
        """What was asked for, on stdout."""
        click.echo(text)

    def answer_json(self, value: object) -> None:
        """Exactly one JSON document on stdout. NaN and infinity, which JSON lacks, must be None already."""
        click.echo(json.dumps(value, indent=2, allow_nan=False))

    def say(self, text: str) -> None:
        """Progress and notes, on stderr; silenced by -q."""
        if not self.quiet:
            click.echo(text, err=True)

    def trouble(self, text: str) -> None:
        """Warnings and errors, on stderr, always."""
        click.echo(text, err=True)


def speaking(function: F) -> F:
    """-v and -q, understood before and after the verb."""
    quiet = click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="Say only what matters."
    )
    verbose = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_set_verbose,
        help="Say more, tracebacks too.",
    )
    return verbose(quiet(function))


def as_json(function: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def folder_options(function: F) -> F:
    """--raw, --preprocessed and --results; the verb is given what was typed as `folders`."""

    @click.option("--raw", metavar="DIR", help=f"Instead of ${ROOTS[0]}.")
    @click.option("--preprocessed", metavar="DIR", help=f"Instead of ${ROOTS[1]}.")
    @click.option("--results", metavar="DIR", help=f"Instead of ${ROOTS[2]}.")
    def with_folders(*args: Any, raw: str | None, preprocessed: str | None, results: str | None, **kwargs: Any) -> Any:
        return function(*args, folders={"raw": raw, "preprocessed": preprocessed, "results": results}, **kwargs)

    return _dressed(function, with_folders)


def in_layout(function: F) -> F:
    """The folder options; the verb is given a Layout as `layout`."""

    def with_layout(*args: Any, folders: dict[str, str | None], **kwargs: Any) -> Any:
        return function(*args, layout=layout_from(folders), **kwargs)

    return folder_options(_dressed(function, with_layout))


def training_settings(function: F) -> F:
    """An option for every setting of a training; the verb is given what was said, with origins, as `asked`."""

    def with_settings(*args: Any, **kwargs: Any) -> Any:
        typed = {name: kwargs.pop(name) for name in [known.name for known in TRAINING]}
        return function(*args, asked=load_settings(typed), **kwargs)

    for known in reversed(TRAINING):
        with_settings = _setting_option(known)(with_settings)
    return _dressed(function, with_settings)


def _setting_option(known: Known) -> Callable[[F], F]:
    if known.kind is yes:
        return click.option(known.option, known.name, flag_value="yes", default=None, help=known.help)
    return click.option(known.option, known.name, metavar="N", help=known.help)


def dry_run(function: F) -> F:
    """--dry-run."""
    return click.option("--dry-run", is_flag=True, help="Print the commands this would run, and do nothing.")(function)


def naming_a_run(function: F) -> F:
    """RUN and the folders it lies in; the verb is given a Name as `name` and a Layout as `layout`."""
    return in_layout(run_words(function))


def run_words(function: F) -> F:
    """RUN, -tr and -p; the verb is given a Name as `name`."""

    @click.argument("words", metavar="[RUN]", nargs=-1, shell_complete=_complete)
    @click.option("-tr", "trainer", metavar="TRAINER", help="Trainer class, as for nnUNetv2_train.")
    @click.option("-p", "plans", metavar="PLANS", help="Plans identifier, as for nnUNetv2_train.")
    def with_name(*args: Any, words: tuple[str, ...], trainer: str | None, plans: str | None, **kwargs: Any) -> Any:
        return function(*args, name=Name(words, trainer, plans), **kwargs)

    return _dressed(function, with_name)


def layout_from(typed: dict[str, str | None]) -> Layout[Path]:
    """nnU-Net's three folders from options, environment and file. Raises Usage naming those that are not set."""
    known = load_settings(typed)
    folders = [known[name].value for name in ("raw", "preprocessed", "results")]
    missing = [root for root, folder in zip(ROOTS, folders, strict=True) if folder is None]
    if missing:
        raise Usage(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set.",
            "\n".join(f"export {root}=/path/to/{root}" for root in missing),
        )
    raw, preprocessed, results = (Path(folder).expanduser().absolute() for folder in folders)
    return Layout(raw, preprocessed, results)


def load_settings(typed: dict[str, str | None]) -> dict[str, settings.Value]:
    """Every setting as this process sees it."""
    return settings.load(typed, os.environ, settings.find_file(Path.cwd(), Path.home()))


def _dressed(function: F, wrapper: Callable[..., Any]) -> F:
    """Carry a verb's name, help and earlier options over to its wrapper."""
    wrapper.__name__, wrapper.__doc__ = function.__name__, function.__doc__
    earlier = getattr(function, "__click_params__", [])
    own = getattr(wrapper, "__click_params__", [])
    wrapper.__click_params__ = earlier + own  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def _set_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj.quiet = True


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj.verbose = True


def _complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The next word of a run's name, from the runs that are there."""
    given = tuple(ctx.params.get("words") or ())
    names = ((str(run.dataset_id), run.configuration, str(run.fold)) for run in layout_from({}).runs(HERE))
    words = dict.fromkeys(name[len(given)] for name in names if len(given) < 3 and name[: len(given)] == given)
    return [word for word in words if word.startswith(incomplete)]
