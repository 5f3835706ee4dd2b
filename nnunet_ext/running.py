"""Which trainings run on this machine: nnx's own by their lock, stock ones by their command line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from nnunet_ext.control import Control
from nnunet_ext.errors import Usage
from nnunet_ext.layout import ROOTS, Layout
from nnunet_ext.run import DEFAULT_PLANS, DEFAULT_TRAINER, Run, dataset_id, parse_fold

_TAKES_A_VALUE = ("-tr", "-p", "-pretrained_weights", "-num_gpus", "-device")


@dataclass(frozen=True)
class StockTraining:
    """A `nnUNetv2_train` process: what it was asked to train, and its nnUNet_results (None when hidden from us)."""

    pid: int
    dataset: str  # as typed: a number or a name
    configuration: str
    fold: str
    trainer: str
    plans: str
    results: Path | None

    def trains(self, run: Run, layout: Layout[Path]) -> bool:
        """Whether this process trains `run` in `layout`."""
        named = self.dataset == run.dataset or (self.dataset.isdigit() and int(self.dataset) == dataset_id(run.dataset))
        here = self.results is None or self.results == layout.results
        rest = (self.configuration, self.fold, self.trainer, self.plans)
        return named and here and rest == (run.configuration, str(run.fold), run.trainer, run.plans)


def is_running(run: Run, layout: Layout[Path], stock: Sequence[StockTraining]) -> bool:
    """Whether some process of this machine trains `run`."""
    if Control(layout.control_folder(run)).is_locked():
        return True
    return any(training.trains(run, layout) for training in stock)


def stock_trainings() -> list[StockTraining]:
    """Every `nnUNetv2_train` on this machine. Its augmentation workers have its command line, too, and outlive it when
    it is killed; they train nothing."""
    found = [_training(process) for process in psutil.process_iter(["pid", "cmdline"])]
    return [training for training in found if training is not None and not _was_forked(training.pid)]


def _training(process: psutil.Process) -> StockTraining | None:
    argv: list[str] = process.info["cmdline"] or []
    start = next((i for i, word in enumerate(argv[:3]) if Path(word).name == "nnUNetv2_train"), None)
    if start is None:
        return None
    words = list(_positional(argv[start + 1 :]))
    if len(words) != 3:
        return None
    try:
        fold = str(parse_fold(words[2]))
    except Usage:
        return None
    options = dict(itertools.pairwise(argv))
    return StockTraining(
        process.info["pid"],
        words[0],
        words[1],
        fold,
        options.get("-tr", DEFAULT_TRAINER),
        options.get("-p", DEFAULT_PLANS),
        _results(process),
    )


def _was_forked(pid: int) -> bool:
    """Whether the process is a copy of the one that started the program (PF_FORKNOEXEC in the flags, the 9th field of
    /proc/PID/stat). Only Linux forks workers; elsewhere they are spawned and have a command line of their own."""
    forked_without_exec = 0x40
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return bool(int(fields[6]) & forked_without_exec)
    except (OSError, ValueError, IndexError):
        return False


def _positional(argv: Sequence[str]) -> Iterator[str]:
    skip = False
    for word in argv:
        if not skip and not word.startswith("-"):
            yield word
        skip = word in _TAKES_A_VALUE


def _results(process: psutil.Process) -> Path | None:
    try:
        folder = process.environ().get(ROOTS[2])
    except (psutil.Error, OSError):
        return None
    return Path(folder).absolute() if folder else None
