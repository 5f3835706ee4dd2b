"""Every error nnx can raise on purpose: a sentence, a hint, an exit code.

NnxError                  1   failed
├── Usage                 2   the words typed do not make a command
├── NoSuchRun             3   nothing, or more than one thing, goes by that name
├── HostError             4   a host was not reached, not trusted, or refused us
├── Damaged               5   a pack, archive, checkpoint or other file is not what it should be
├── Unfit                 6   this machine or host cannot do it (versions, disk, device)
└── Refused               7   it would overwrite, restart at epoch 0, or run twice
"""

from __future__ import annotations

import signal
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes scripts may rely on; the first block are errors, the second ways a run can stop."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_SUCH_RUN = 3
    HOST = 4
    DAMAGED = 5
    UNFIT = 6
    REFUSED = 7

    TARGET = 10
    PLATEAU = 11
    BUDGET = 12
    STOP_REQUESTED = 13
    NAN = 20
    STALLED = 21
    CRASHED = 22
    REQUEUE = 75
    INTERRUPTED = 130


def exit_of_child(code: int) -> int:
    """What nnx ends with when its child ended with `code`: a scheduler's signal asks to be requeued also outside the
    epochs, where it ends the child at once (128 + n)."""
    scheduler = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    return Exit.REQUEUE if code - 128 in scheduler else code


class NnxError(Exception):
    """A failure that has a sentence for the user (what happened, with the value and the path) and,
    where there is one, a hint (what to do or type next)."""

    exit_code: Exit = Exit.FAILED

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint


class Usage(NnxError):
    """The words typed, or a setting, do not make a command."""

    exit_code = Exit.USAGE


class NoSuchRun(NnxError):
    """No dataset, configuration, plans, fold or run goes by that name, or more than one does."""

    exit_code = Exit.NO_SUCH_RUN


class HostError(NnxError):
    """A host was not reached, not trusted, or refused what was asked."""

    exit_code = Exit.HOST


class Damaged(NnxError):
    """A file is cut short, altered, hostile, or not the kind of file it should be."""

    exit_code = Exit.DAMAGED


class Unfit(NnxError):
    """This machine or host lacks something: a version, a program, disk, memory, a device."""

    exit_code = Exit.UNFIT


class Refused(NnxError):
    """Doing it would overwrite, restart at epoch 0, or run the same training twice."""

    exit_code = Exit.REFUSED


class StopTraining(BaseException):
    """No error: how a trainer leaves nnU-Net's epoch loop, whose length is fixed before the first epoch.

    A BaseException, so that a trainer's own `except Exception` does not swallow it.
    """
