"""`nnx train`: an nnU-Net training with nnx's powers, in a child process on this terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nnunet_ext.layout import Layout
from nnunet_ext.naming import Name
from nnunet_ext.options import Voice, dry_run, naming_a_run, speaking, training_settings
from nnunet_ext.settings import DEFAULT, TRAINING, Value

if TYPE_CHECKING:
    from nnunet_ext.start import Start


@click.command()
@naming_a_run
@click.option("--device", type=click.Choice(["cuda", "mps", "cpu"]), help="Default: the best there is.")
@training_settings
@click.option("--workers", type=click.IntRange(0), help="Augmentation processes (nnUNet_n_proc_DA).")
@click.option("--npz", is_flag=True, help="Keep probabilities of the final validation, for ensembling.")
@click.option("--c", "go_on", is_flag=True, help="Continue from the newest checkpoint.")
@click.option("--fresh", is_flag=True, help="Start anew; the old fold folder is moved aside.")
@click.option("--force", is_flag=True, help="Train a run that moved away, or stop early on fold all.")
@dry_run
@speaking
@click.pass_obj
def train(
    voice: Voice,
    layout: Layout[Path],
    name: Name,
    asked: Mapping[str, Value],
    device: str | None,
    workers: int | None,
    npz: bool,
    go_on: bool,
    fresh: bool,
    force: bool,
    dry_run: bool,
) -> int:
    """Train DATASET CONFIGURATION FOLD with nnU-Net, and with nnx's powers: early stopping, safe checkpoints, a
    graceful stop on Ctrl-C (once: at the end of the epoch; twice: now), memory care.

    The results are nnU-Net's own, in nnU-Net's folders. Exit codes: 0 trained to the last epoch, 10 target reached,
    11 plateau, 12 budget, 13 stop requested, 20 NaN losses, 75 stopped by a scheduler's signal, 130 by Ctrl-C.
    """
    from datetime import datetime

    from nnunet_ext import start as starting
    from nnunet_ext.errors import Exit, Usage, exit_of_child
    from nnunet_ext.host import HERE
    from nnunet_ext.training import default_device

    if go_on and fresh:
        raise Usage("--c continues and --fresh starts anew.", "Choose one of them.")
    run = starting.find_new_run(name, layout, HERE)
    starting.check_settings(run, asked, force)
    start = starting.decide(run, layout, go_on=go_on, fresh=fresh, force=force, now=datetime.now())
    argv = starting.command(start, device or default_device(HERE), npz)
    env = starting.environment(start, layout, asked, workers, npz)
    if dry_run:
        voice.answer(_as_typed(start, layout, argv, env))
        return 0
    _tell(voice, start, asked, argv)
    if start.aside is not None:
        layout.fold_folder(run).rename(start.aside)
    code = exit_of_child(HERE.run_attached(argv, env))
    if code in (Exit.STOP_REQUESTED, Exit.REQUEUE, Exit.INTERRUPTED):
        again = shlex.join(["nnx", "train", *run.words(), "--c"])
        there = layout.checkpoint(run, "latest").exists() or layout.checkpoint(run, "final").exists()
        voice.say(f"Go on with: {again}" if there else "No epoch was completed, so nothing was saved.")
    return code


def _tell(voice: Voice, start: Start, asked: Mapping[str, Value], argv: list[str]) -> None:
    what = f"Continuing {start.run} after {start.epoch} epochs" if start.checkpoint else f"Training {start.run}"
    voice.say(what + (f" from {start.checkpoint.name}." if start.checkpoint else "."))
    if start.aside is not None:
        voice.say(f"The old folder is kept as {start.aside}.")
    for known in TRAINING:
        value = asked[known.name]
        if value.origin != DEFAULT:
            voice.say(f"  {known.name} = {value.value}  ({value.origin})")
    voice.say(f"  {shlex.join(argv)}")


def _as_typed(start: Start, layout: Layout[Path], argv: list[str], env: Mapping[str, str]) -> str:
    lines = []
    if start.aside is not None:
        lines.append(shlex.join(["mv", str(layout.fold_folder(start.run)), str(start.aside)]))
    words = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
    return "\n".join([*lines, " ".join([*words, shlex.join(argv)])])
