"""Augmentation workers that neither die before their trainer has stopped nor outlive it, be they forked or spawned."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

from batchgenerators.dataloading import multi_threaded_augmenter, nondet_multi_threaded_augmenter

GRACE_S = 30  # after a SIGTERM to all processes, until the trainer has come to its next batch

# Ctrl-C and a lost connection reach the whole terminal, a scheduler's signal the whole job: the trainer acts on them.
_FOR_THE_TRAINER = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_MODULES = (multi_threaded_augmenter, nondet_multi_threaded_augmenter)


@contextlib.contextmanager
def lasting_workers() -> Iterator[None]:
    """The augmenters of batchgenerators that start meanwhile have such workers.

    Blocked signals stay blocked in a child from its first moment on, and reach this process afterwards.
    """
    if multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()  # its start, which comes with the first worker's, would unblock SIGINT
    processes = [module.Process for module in _MODULES]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_TRAINER)
    try:
        for module in _MODULES:
            module.Process = Worker
        yield
    finally:
        for module, process in zip(_MODULES, processes, strict=True):
            module.Process = process
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class Worker(multiprocessing.Process):
    """A process for an augmenter of batchgenerators."""

    def run(self) -> None:
        signal.signal(signal.SIGTERM, _end_soon)
        trainer = multiprocessing.parent_process()
        threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()
        super().run()


def _end_soon(*_: object) -> None:
    """SIGTERM. A scheduler sends it to all processes, and a trainer whose worker is gone crashes instead of pausing
    at its next batch. A second one ends the worker at once, as does the end of the grace."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(GRACE_S)


def _end_with(trainer: BaseProcess) -> None:
    """Also when it was killed."""
    trainer.join()
    os._exit(1)
