"""Stopping on request without losing an epoch: signals and request files."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from nnunet_ext.control import StopRequest
from nnunet_ext.errors import Exit, NnxError
from nnunet_ext.trainers.stoppable import Asked, Stoppable
from nnunet_ext.trainers.workers import lasting_workers

LOOK_EVERY_S = 1.0  # at the request file, between two batches
SAME_CTRL_C_S = 0.5  # a Ctrl-C reaches a rank twice: from the terminal, and handed on by its launcher

# Slurm signals USR2, because NCCL catches USR1; SIGTERM, a second Ctrl-C and a closed terminal do not wait.
_AT_THE_EPOCHS_END = (signal.SIGUSR1, signal.SIGUSR2)
_AGAIN = b"\nnnx: stopping at the end of this epoch; Ctrl-C again stops now and drops it.\n"


class Signals:
    """Which signals have come in. The handlers set flags and nothing else: saving inside one hangs."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.asked: Asked | None = None
        self.interrupted_at = -math.inf
        self.terminal = [output for output in (1, 2) if os.isatty(output)]

    def take(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if os.getpid() != self.owner:
            _in_a_forked_child(number)
            return
        if number in _AT_THE_EPOCHS_END:
            if self.asked is None:
                self.asked = Asked("epoch", "pause", name, Exit.REQUEUE)
        elif number == signal.SIGTERM:
            self.asked = Asked("now", "pause", name, Exit.REQUEUE)
        elif number == signal.SIGHUP:
            self.asked = Asked("now", "pause", name, Exit.INTERRUPTED)
            self._forget_terminal()
        elif time.monotonic() - self.interrupted_at > SAME_CTRL_C_S:
            self.interrupted_at = time.monotonic()
            self._interrupt(name)

    def _interrupt(self, name: str) -> None:
        if self.asked is None:
            self.asked = Asked("epoch", "pause", name, Exit.INTERRUPTED)
            with contextlib.suppress(OSError):
                os.write(2, _AGAIN)  # print would fail when it interrupts another print
        elif self.asked.mode == "epoch":
            self.asked = Asked("now", "pause", name, Exit.INTERRUPTED)
        else:
            raise KeyboardInterrupt  # the third Ctrl-C

    def _forget_terminal(self) -> None:
        """It is closed: every further print would raise, and end the training before it has saved."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in self.terminal:
            os.dup2(nowhere, output)
        os.close(nowhere)


def _in_a_forked_child(number: int) -> None:
    """Any process that the trainer has forked, other than its augmentation workers: only Process.terminate counts."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class GracefulStop(Stoppable):
    """SIGUSR1, SIGUSR2 and the first SIGINT pause at the end of the epoch; SIGTERM, SIGHUP and a second SIGINT pause
    at the next batch. `.nnx/stop.json` asks for either, and to pause or to finish; rank 0 reads and consumes it.

    What is asked while no epoch is under way does not wait for the end of one: the training ends before it begins the
    next epoch, or the final validation.
    """

    _nnx_signals: Signals | None = None
    _nnx_request: StopRequest | None = None
    _nnx_looked_at: float = -math.inf
    _nnx_request_trouble: str | None = None

    def nnx_asked(self) -> Asked | None:
        signalled = self._nnx_signalled()
        if signalled is not None:
            return signalled
        if self._nnx_request is None:
            self._nnx_request = self._nnx_pending_request()
        request = self._nnx_request
        if request is None:
            return None
        return Asked(request.mode, request.action, f"{request.reason}, by {request.by}", Exit.STOP_REQUESTED)

    def run_training(self) -> None:
        with _caught_signals() as self._nnx_signals:
            try:
                super().run_training()
            finally:
                self._nnx_shut_down_loaders()
                self._nnx_consume_request()
            late = self._nnx_agree(self._nnx_signalled())
            if late is not None:
                self.nnx_leave_before_validation(late)

    def on_train_start(self) -> None:
        self._nnx_forget_stale_request()
        super().on_train_start()

    def get_dataloaders(self) -> tuple[Any, Any]:
        with lasting_workers():
            return super().get_dataloaders()

    def on_epoch_start(self) -> None:
        self._nnx_leave_when_told(mid_epoch=False)
        super().on_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._nnx_leave_when_told(mid_epoch=True)
        return super().train_step(batch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._nnx_leave_when_told(mid_epoch=True)
        return super().validation_step(batch)

    def _nnx_leave_when_told(self, mid_epoch: bool) -> None:
        asked = self._nnx_agree(self._nnx_noticed(mid_epoch))
        if asked is not None:
            self.nnx_stop_now(asked)

    def _nnx_noticed(self, mid_epoch: bool) -> Asked | None:
        """What this rank is asked to do at once; in mid-epoch the request file is not looked at for every batch."""
        asked = self._nnx_signalled()
        now = time.monotonic()
        if asked is None and self.local_rank == 0 and not (mid_epoch and now - self._nnx_looked_at < LOOK_EVERY_S):
            self._nnx_looked_at = now
            asked = self.nnx_asked()
        return asked if asked is not None and (asked.mode == "now" or not mid_epoch) else None

    def _nnx_agree(self, asked: Asked | None) -> Asked | None:
        """The ranks of a DDP training do what one of them is asked, or one would wait for the others for ever."""
        if not self.is_ddp:
            return asked
        told = torch.tensor([asked is not None], dtype=torch.int32, device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        if not told.item():
            return None
        every: list[Asked | None] = [None] * dist.get_world_size()
        dist.all_gather_object(every, asked)
        return next(one for one in every if one is not None)

    def _nnx_signalled(self) -> Asked | None:
        return self._nnx_signals.asked if self._nnx_signals is not None else None

    def _nnx_pending_request(self) -> StopRequest | None:
        """A request that cannot be read, for a moment or for good, is no reason to lose a training."""
        try:
            return self.nnx_control.pending_stop()
        except (NnxError, OSError) as trouble:
            if str(trouble) != self._nnx_request_trouble:
                self._nnx_request_trouble = str(trouble)
                self.nnx_say(f"WARNING: a stop request is not obeyed: {trouble}")
            return None

    def _nnx_forget_stale_request(self) -> None:
        """A request that waited for a trainer that is gone does not stop the next one."""
        if self.local_rank == 0:
            stale = self._nnx_pending_request()
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
    caught = [signal.SIGINT, signal.SIGTERM, *_AT_THE_EPOCHS_END]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        caught.append(signal.SIGHUP)
    before = {number: signal.signal(number, signals.take) for number in caught}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
