"""Stopping on request without losing an epoch: signals, request files, and workers that die with their trainer."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from nnunet_ext.control import StopRequest
from nnunet_ext.errors import Exit
from nnunet_ext.trainers.stoppable import Asked, Stoppable

LOOK_EVERY_S = 1.0  # at the request file, between two batches

# Slurm signals USR2, because NCCL catches USR1; a second Ctrl-C and SIGTERM do not wait for the epoch's end.
_AT_THE_EPOCHS_END = (signal.SIGUSR1, signal.SIGUSR2)
_CAUGHT = (signal.SIGINT, signal.SIGTERM, *_AT_THE_EPOCHS_END)


class Signals:
    """Which signals have come in. The handlers set flags and nothing else: saving inside one hangs."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.asked: Asked | None = None

    def take(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if os.getpid() != self.owner:  # a worker forked before it could forget this handler
            return
        if number in _AT_THE_EPOCHS_END:
            if self.asked is None:
                self.asked = Asked("epoch", "pause", name, Exit.REQUEUE)
        elif number == signal.SIGTERM:
            self.asked = Asked("now", "pause", name, Exit.REQUEUE)
        elif self.asked is None:
            self.asked = Asked("epoch", "pause", name, Exit.INTERRUPTED)
            print("\nnnx: stopping at the end of this epoch; Ctrl-C again stops now and drops it.", file=sys.stderr)  # noqa: T201
        elif self.asked.mode == "epoch":
            self.asked = Asked("now", "pause", name, Exit.INTERRUPTED)
        else:
            raise KeyboardInterrupt  # the third Ctrl-C


class GracefulStop(Stoppable):
    """SIGUSR1, SIGUSR2 and the first SIGINT pause at the end of the epoch; SIGTERM and a second SIGINT pause at the
    next batch. `.nnx/stop.json` asks for either, and to pause or to finish; rank 0 reads and consumes it."""

    _nnx_signals: Signals | None = None
    _nnx_request: StopRequest | None = None
    _nnx_looked_at: float = 0.0

    def nnx_asked(self) -> Asked | None:
        if self._nnx_signals is not None and self._nnx_signals.asked is not None:
            return self._nnx_signals.asked
        if self._nnx_request is None:
            self._nnx_request = self.nnx_control.pending_stop()
        request = self._nnx_request
        if request is None:
            return None
        return Asked(request.mode, request.action, f"{request.reason}, by {request.by}", Exit.STOP_REQUESTED)

    def run_training(self) -> None:
        with _caught_signals() as self._nnx_signals:
            try:
                super().run_training()
            finally:
                self._nnx_consume_request()

    def on_train_start(self) -> None:
        self._nnx_forget_stale_request()
        super().on_train_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._nnx_leave_when_told()
        return super().train_step(batch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._nnx_leave_when_told()
        return super().validation_step(batch)

    def _nnx_leave_when_told(self) -> None:
        """Between two batches: the ranks of a DDP training agree, or one would wait for the others for ever."""
        asked = self._nnx_asked_now()
        if not self.is_ddp:
            if asked is not None:
                self.nnx_stop_now(asked)
            return
        told = torch.tensor([asked is not None], dtype=torch.int32, device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        if told.item():
            self.nnx_stop_now(self._nnx_agreed(asked))

    def _nnx_asked_now(self) -> Asked | None:
        signalled = self._nnx_signals.asked if self._nnx_signals is not None else None
        if signalled is not None:
            return signalled if signalled.mode == "now" else None
        now = time.monotonic()
        if self.local_rank != 0 or now - self._nnx_looked_at < LOOK_EVERY_S:
            return None
        self._nnx_looked_at = now
        asked = self.nnx_asked()
        return asked if asked is not None and asked.mode == "now" else None

    def _nnx_agreed(self, asked: Asked | None) -> Asked:
        every: list[Asked | None] = [None] * dist.get_world_size()
        dist.all_gather_object(every, asked)
        return next(one for one in every if one is not None)

    def _nnx_forget_stale_request(self) -> None:
        """A request that waited for a trainer that is gone does not stop the next one."""
        if self.local_rank == 0:
            stale = self.nnx_control.pending_stop()
            if stale is not None:
                self.nnx_control.consume_stop(stale)
                self.nnx_event("stale_request", reason=stale.reason, by=stale.by, at_request=stale.at)

    def _nnx_consume_request(self) -> None:
        if self.local_rank == 0 and self._nnx_request is not None:
            self.nnx_control.consume_stop(self._nnx_request)


@contextlib.contextmanager
def _caught_signals() -> Iterator[Signals]:
    """Our handlers for as long as the training runs, and what was there before after it."""
    signals = Signals()
    _prepare_children()
    before = {number: signal.signal(number, signals.take) for number in _CAUGHT}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare_children() -> None:
    """Augmentation workers are forked: they must neither react to a signal meant for their trainer (Ctrl-C reaches
    the whole terminal, a scheduler's signal the whole job) nor outlive it."""
    global _prepared
    if not _prepared:
        trainer = os.getpid()
        os.register_at_fork(after_in_child=lambda: _become_worker(trainer))
        _prepared = True


_prepared = False


def _become_worker(trainer: int) -> None:
    if os.getppid() != trainer:
        return
    for number in (signal.SIGINT, *_AT_THE_EPOCHS_END):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
