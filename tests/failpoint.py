"""A signal at an exact moment of a save: before, in or after the k-th file operation of whoever writes a checkpoint.

Only for tests and bench/kill.py, which call `arm` in a child process before it trains; the product has no such hook.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext import promote

_OPERATIONS = (
    (os, "fsync"),
    (os, "link"),
    (os, "replace"),
    (os, "rename"),
    (os, "unlink"),
    (shutil, "copyfile"),
)


@dataclass(frozen=True)
class Failpoint:
    """At `step` of the save number `save` (both from 0) send this process (or its group) `number`.

    Each file operation has three steps: before it, in it (the file is there by half; only SIGKILL and only for the
    operations that write bytes, else the same as after it), and after it.
    """

    step: int
    save: int = 0
    number: int = signal.SIGKILL
    group: bool = False


class _Counter:
    def __init__(self, failpoint: Failpoint) -> None:
        self.failpoint = failpoint
        self.saves = -1
        self.step = 0
        self.writer: int | None = None

    def begin(self) -> None:
        self.saves += 1
        self.step = 0
        self.writer = threading.get_ident()

    def is_saving(self) -> bool:
        return self.saves == self.failpoint.save and threading.get_ident() == self.writer

    def tick(self, half: Path | None = None) -> None:
        if self.is_saving():
            if self.step == self.failpoint.step:
                self._fire(half)
            self.step += 1

    def _fire(self, half: Path | None) -> None:
        if half is not None and self.failpoint.number == signal.SIGKILL and half.exists():
            os.truncate(half, half.stat().st_size // 2)
        if self.failpoint.group:
            os.killpg(0, self.failpoint.number)
        else:
            os.kill(os.getpid(), self.failpoint.number)


def arm(failpoint: Failpoint, with_torch: bool = True) -> None:
    """Put the failpoint under the writers of this process."""
    counter = _Counter(failpoint)
    operations: list[tuple[Any, str]] = [*_OPERATIONS]
    modules: list[Any] = [promote]
    if with_torch:
        import torch

        from nnunet_ext.trainers import safe_checkpoint

        operations.append((torch, "save"))
        modules.append(safe_checkpoint)
    for module, name in operations:
        setattr(module, name, _counted(getattr(module, name), counter, writes=name in ("save", "copyfile")))
    place = promote.writing_place

    def writing_place(target: Path) -> Path:
        counter.begin()
        return place(target)

    for module in modules:
        module.writing_place = writing_place


def _counted(operation: Callable[..., Any], counter: _Counter, writes: bool) -> Callable[..., Any]:
    def counted(*words: Any, **named: Any) -> Any:
        counter.tick()
        result = operation(*words, **named)
        counter.tick(Path(words[1]) if writes and len(words) > 1 and isinstance(words[1], str | Path) else None)
        counter.tick()
        return result

    return counted
