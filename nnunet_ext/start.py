"""How a training starts: anew, or from its newest checkpoint, or not at all; and the child process that trains."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from nnunet_ext import training
from nnunet_ext.control import Control
from nnunet_ext.errors import Refused, Usage
from nnunet_ext.export_workers import VARIABLE, choose_workers
from nnunet_ext.host import Host
from nnunet_ext.layout import CHECKPOINT_KINDS, ROOTS, Layout
from nnunet_ext.naming import Name, near, run_of_words
from nnunet_ext.plans import Plans
from nnunet_ext.promote import newest_checkpoint
from nnunet_ext.run import Run
from nnunet_ext.running import is_running, stock_trainings
from nnunet_ext.settings import Value

How = Literal["new", "continue", "fresh"]

_QUICK = "the EMA pseudo Dice of fold all is computed on training data and says nothing about new cases"


@dataclass(frozen=True)
class Start:
    """A decision to start. `aside` is the folder that a fresh start moves the old fold folder to."""

    run: Run
    how: How
    epoch: int = 0
    checkpoint: Path | None = None
    aside: Path | None = None


def find_new_run(name: Name, layout: Layout[Path], host: Host) -> Run:
    """The run that is meant, whether it has a fold folder already or not: its dataset is preprocessed and its plans
    have the configuration. Raises NoSuchRun, Usage."""
    run = run_of_words(name, layout, host)
    plans = layout.plans_file(run.dataset, run.plans)
    if not plans.is_file():
        known = layout.plans_names(run.dataset, host) if plans.parent.is_dir() else []
        raise Usage(
            f"{run.dataset} has no plans '{run.plans}' ({plans}).",
            near(run.plans, known) or f"Plan and preprocess it: nnUNetv2_plan_and_preprocess -d {run.dataset_id}",
        )
    Plans.read(plans).configuration(run.configuration)
    return run


def decide(run: Run, layout: Layout[Path], *, go_on: bool, fresh: bool, force: bool, now: datetime) -> Start:
    """Whether and how `run` may start. Raises Refused when it would overwrite, restart, or run twice."""
    control = Control(layout.control_folder(run))
    if is_running(run, layout, stock_trainings()):
        raise Refused(f"{run} is running already.", "Two trainers on one fold folder destroy its checkpoints.")
    moved = control.moved()
    if moved is not None and not force:
        raise Refused(
            f"{run} moved to {moved.to} after epoch {moved.epoch} ({moved.at}).",
            "Continue it there, or here with --force: then two machines train the same run.",
        )
    if fresh:
        return _fresh(run, layout, now)
    if go_on:
        newest = newest_checkpoint(layout.fold_folder(run))
        return Start(run, "continue", newest.current_epoch, newest.path)
    there = [kind for kind in CHECKPOINT_KINDS if layout.checkpoint(run, kind).exists()]
    if there:
        raise Refused(
            f"{run} has been trained already ({', '.join(f'checkpoint_{kind}' for kind in there)} in "
            f"{layout.fold_folder(run)}).",
            "Continue it: --c\nStart anew and keep the old folder under another name: --fresh",
        )
    return Start(run, "new")


def check_settings(run: Run, asked: Mapping[str, Value], force: bool) -> None:
    """Raises Usage for settings that make no sense, Refused for an early stop on fold `all`."""
    policy = training.resolve(asked, {}).policy
    if run.fold == "all" and not force and (policy.target is not None or policy.patience is not None):
        raise Refused(f"No early stop on fold all: {_QUICK}.", "Leave --target and --patience out, or insist: --force")


def command(start: Start, device: str, npz: bool) -> list[str]:
    """The child process that trains: nnUNetv2_train's arguments behind our launcher."""
    argv = [sys.executable, "-m", "nnunet_ext.trainers.launch", *start.run.words(), "-device", device]
    return argv + (["--c"] if start.how == "continue" else []) + (["--npz"] if npz else [])


def environment(
    start: Start, layout: Layout[Path], asked: Mapping[str, Value], workers: int | None, npz: bool
) -> dict[str, str]:
    """What the child process is told besides its arguments."""
    roots = zip(ROOTS, (layout.raw, layout.preprocessed, layout.results), strict=True)
    told = {root: str(folder) for root, folder in roots} | training.environment(asked)
    told["NNX_FOLD_FOLDER"] = str(layout.fold_folder(start.run))
    told["PYTHONUNBUFFERED"] = "1"  # whoever follows the output in a file or a pipe sees each line when it is written
    told["PYTHONSAFEPATH"] = "1"  # a stray folder of the working directory is no module of ours
    if start.checkpoint is not None:
        told["NNX_CHECKPOINT"] = str(start.checkpoint)
    if workers is not None:
        told["nnUNet_n_proc_DA"] = str(workers)
    told[VARIABLE] = str(choose_workers(start.run, layout, npz, None, os.environ).count)
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # it counts only before CUDA starts
        limit = training.resolve(asked, {}).memory_limit
        told["PYTORCH_CUDA_ALLOC_CONF"] = f"expandable_segments:True,garbage_collection_threshold:{limit:g}"
    return told


def _fresh(run: Run, layout: Layout[Path], now: datetime) -> Start:
    folder = layout.fold_folder(run)
    aside = folder.with_name(f"{folder.name}.before_{now:%Y-%m-%d_%H%M%S}")
    return Start(run, "fresh", aside=aside) if folder.exists() else Start(run, "new")
