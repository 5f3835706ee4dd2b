"""`nnx finish`: close a run, with the checkpoint you choose as its final one, and validate it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nnunet_ext.errors import Exit, NnxError, exit_of_child
from nnunet_ext.host import HERE
from nnunet_ext.layout import Layout
from nnunet_ext.naming import Name
from nnunet_ext.options import Voice, as_json, dry_run, naming_a_run, speaking
from nnunet_ext.run import Run

if TYPE_CHECKING:
    from nnunet_ext.export_workers import Workers
    from nnunet_ext.finish import Candidate, Choice, Origin, Outcome

_KILLED = 128 + signal.SIGKILL


@click.command()
@naming_a_run
@click.option("--checkpoint", type=click.Choice(["best", "latest"]), help="The one to become final.")
@click.option("--npz", is_flag=True, help="Keep probabilities, for ensembling.")
@click.option("--workers", type=click.IntRange(1), help="Export processes. Default: what the free RAM allows.")
@click.option("--device", type=click.Choice(["cuda", "mps", "cpu"]), help="Default: the best there is.")
@as_json
@dry_run
@speaking
@click.pass_obj
def finish(
    voice: Voice,
    layout: Layout[Path],
    name: Name,
    checkpoint: str | None,
    npz: bool,
    workers: int | None,
    device: str | None,
    as_json: bool,
    dry_run: bool,
) -> int:
    """Close a run, also one that was stopped by hand or trained without nnx: make a checkpoint its checkpoint_final,
    and run nnU-Net's validation. Cases that are predicted already are skipped, so it can be stopped and called again.

    Without --checkpoint an existing checkpoint_final is taken, else the newest readable checkpoint. A checkpoint_final
    that is replaced is kept in .nnx/previous. Afterwards nnUNetv2_find_best_configuration and nnUNetv2_train --val
    accept the fold.
    """
    from nnunet_ext import finish as finishing
    from nnunet_ext.export_workers import choose_workers
    from nnunet_ext.naming import find_run
    from nnunet_ext.training import default_device

    found = find_run(name, layout, HERE)
    run, layout = found.run, found.layout
    finishing.check_may_finish(run, layout)
    candidates = finishing.candidates(run, layout)
    choice = finishing.choose(candidates, checkpoint)
    count = choose_workers(run, layout, npz, workers, os.environ)
    argv = finishing.validation_command(run, device or default_device(HERE), npz)
    env = finishing.validation_environment(run, layout, count.count)
    if dry_run:
        voice.answer(_as_typed(finishing.commands(choice, run, layout), argv, env))
        return Exit.DONE
    _tell_choice(voice, run, choice, candidates)
    origin = finishing.make_final(choice, run, layout)
    _tell_workers(voice, count, argv)
    launch = secrets.token_hex(8)
    with _stdout_is_for_the_answer():
        code = exit_of_child(HERE.run_attached(argv, {**env, "NNX_LAUNCH": launch}))
    if code != Exit.DONE:
        return _stopped(voice, code, f"nnx finish {shlex.join(run.words())}{' --npz' if npz else ''}")
    outcome = finishing.outcome(run, layout, launch)
    _answer(voice, run, choice, origin, outcome, as_json)
    return Exit.DONE


def _as_typed(steps: list[list[str]], argv: list[str], env: dict[str, str]) -> str:
    words = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in env.items()), shlex.join(argv)])
    return "\n".join([*map(shlex.join, steps), words])


def _tell_choice(voice: Voice, run: Run, choice: Choice, candidates: list[Candidate]) -> None:
    source = choice.source
    voice.say(f"Finishing {run} with {_called(source.kind)} of epoch {source.epoch}: {choice.reason}.")
    for other in candidates:
        if other.trouble:
            voice.trouble(f"{_called(other.kind)} is damaged: {other.trouble}")
        elif other is not source and not other.kind.startswith("previous"):
            voice.say(f"  {_called(other.kind)}: epoch {other.epoch}, EMA pseudo Dice {_dice(other.ema)}")


def _tell_workers(voice: Voice, workers: Workers, argv: list[str]) -> None:
    voice.say(f"Exporting with {workers.count} process{'es' if workers.count > 1 else ''}: {workers.reason}.")
    voice.say(f"  {shlex.join(argv)}")


@contextlib.contextmanager
def _stdout_is_for_the_answer() -> Iterator[None]:
    """What a child process prints goes to stderr."""
    sys.stdout.flush()
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(answer, 1)
        os.close(answer)


def _stopped(voice: Voice, code: int, again: str) -> int:
    """The validation did not come to its end; its own words were on stderr."""
    kept = f"What it has predicted is kept. Go on with: {again}"
    if code in (Exit.INTERRUPTED, Exit.REQUEUE):
        voice.trouble(f"nnx: The validation was stopped. {kept}")
        return code
    if code in (Exit.DAMAGED, Exit.UNFIT, Exit.REFUSED):
        return code
    if code == _KILLED:
        raise NnxError("The validation was killed, as the system does when memory runs out.", f"{kept} --workers 1")
    raise NnxError(f"The validation failed (exit code {code}); its last lines say why.", kept)


def _answer(voice: Voice, run: Run, choice: Choice, origin: Origin, outcome: Outcome, as_json: bool) -> None:
    source = choice.source
    if as_json:
        voice.answer_json(
            {
                "run": " ".join(run.words()),
                "checkpoint": origin.kind,
                "promoted_at": origin.promoted_at,
                "epoch": source.epoch,
                "ema": source.ema,
                "cases": outcome.cases,
                "skipped": outcome.skipped,
                "mean_validation_dice": outcome.mean_dice,
                "summary": str(outcome.summary),
            }
        )
        return
    copied = "" if origin.kind == "final" else f", a copy of {_called(origin.kind)} made at {origin.promoted_at}"
    voice.answer(f"checkpoint_final: epoch {source.epoch}{copied}")
    voice.answer(f"mean validation Dice: {_dice(outcome.mean_dice)} ({outcome.cases} cases, {outcome.skipped} skipped)")
    voice.answer(f"EMA pseudo Dice: {_dice(source.ema)} (pseudo Dice overstates real Dice)")
    voice.answer(f"summary: {outcome.summary}")


def _called(kind: str) -> str:
    """`previous best` is the generation before checkpoint_best."""
    generation, _, name = kind.rpartition(" ")
    return f"the {generation} checkpoint_{name}" if generation else f"checkpoint_{name}"


def _dice(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
