"""Checkpoints that a crash cannot destroy, written while the next epoch already trains."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ext.checkpoint import PER_EPOCH, Checkpoint
from nnunet_ext.errors import NnxError, StopTraining
from nnunet_ext.promote import install, writing_place
from nnunet_ext.trainers.power import Power


@dataclass(frozen=True)
class Snapshot:
    """What nnU-Net (or the trainer's own save_checkpoint) would have saved after `epochs` completed epochs, copied to
    host memory."""

    epochs: int
    content: Any
    is_finite: bool


class SafeCheckpoint(Power):
    """Every checkpoint is written beside, fsynced, read back with its checksums, and only then given its name; the
    generation before is kept in `.nnx/previous`.

    After each epoch the state is copied to host memory; a thread writes it: always for a new best, for
    checkpoint_latest as often as `checkpoint_minutes` asks. A stop in the middle of an epoch writes that copy, and so
    does an exception, so the last completed epoch is not lost. What is saved is what the trainer's own
    `save_checkpoint` saves.

    A save in the background that fails (a full disk) is reported and tried again after the next epoch; the save that
    ends a training raises its error.
    """

    _nnx_snapshot: Snapshot | None = None
    _nnx_copies_only = False
    _nnx_writer: ThreadPoolExecutor | None = None
    _nnx_pending: tuple[Future[None], ...] = ()
    _nnx_on_disk: tuple[int, float] = (-1, -math.inf)  # epochs in the newest checkpoint_latest, and when it was taken

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with _captured(filename) as captured:
            super().save_checkpoint(filename)
        for content in captured:
            snapshot = _snapshot(content, self.current_epoch + 1)
            self._nnx_remember(snapshot)
            if not self._nnx_copies_only:
                self._nnx_write(snapshot, Path(filename))
        if Path(filename) == self.nnx_checkpoint("final"):
            self._nnx_wait(strictly=True)  # nnU-Net deletes checkpoint_latest next

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        self._nnx_agree_with_history()
        self._nnx_keep_better_best()

    def run_training(self) -> None:
        self._nnx_on_disk = (self.current_epoch, time.monotonic())
        self._nnx_forgive_the_plot()
        try:
            super().run_training()
        except StopTraining:  # Stoppable decides what is kept
            raise
        except BaseException:
            self._nnx_keep_last_completed(strictly=False)
            raise
        finally:
            self._nnx_wait(strictly=False)

    def on_epoch_end(self) -> None:
        self.save_every = self.current_epoch + 2  # never a divisor of current_epoch + 1: nnU-Net's own saves are ours
        self._nnx_wait(strictly=False)
        try:
            super().on_epoch_end()
        except StopTraining:
            self._nnx_after_epoch()
            raise
        self._nnx_after_epoch()

    def nnx_keep(self, is_spoilt: bool) -> None:
        self._nnx_keep_last_completed(strictly=True)

    def _nnx_keep_last_completed(self, strictly: bool) -> None:
        """Write the copy in memory, when the disk has none as new."""
        self._nnx_wait(strictly=False)
        snapshot = self._nnx_snapshot
        if snapshot is not None and snapshot.epochs > self._nnx_on_disk[0]:
            self._nnx_write_latest(snapshot)
            self._nnx_wait(strictly)

    def _nnx_after_epoch(self) -> None:
        """`current_epoch` counts the epoch that has just ended as completed."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        if self._nnx_snapshot is None or self._nnx_snapshot.epochs != self.current_epoch:
            self._nnx_take_snapshot()
        snapshot = self._nnx_snapshot
        if snapshot is not None and snapshot.epochs == self.current_epoch < self.num_epochs and self._nnx_is_due():
            self._nnx_write_latest(snapshot)

    def _nnx_take_snapshot(self) -> None:
        self.current_epoch -= 1  # save_checkpoint stores current_epoch + 1
        self._nnx_copies_only = True
        try:
            self.save_checkpoint(str(self.nnx_checkpoint("latest")))  # through every power: they add to what is saved
        finally:
            self._nnx_copies_only = False
            self.current_epoch += 1

    def _nnx_remember(self, snapshot: Snapshot) -> None:
        """Weights of NaN are worth no copy: the one before stays."""
        if snapshot.is_finite:
            self._nnx_snapshot = snapshot

    def _nnx_is_due(self) -> bool:
        """Whether one more epoch like the last would put more training at risk than is allowed."""
        times = self.logger.get_checkpoint()
        last_epoch_s = times["epoch_end_timestamps"][-1] - times["epoch_start_timestamps"][-1]
        at_risk_s = time.monotonic() - self._nnx_on_disk[1]
        return bool(at_risk_s + last_epoch_s > 60 * self.nnx_training.checkpoint_minutes)

    def _nnx_write_latest(self, snapshot: Snapshot) -> None:
        self._nnx_write(snapshot, self.nnx_checkpoint("latest"))
        self._nnx_on_disk = (snapshot.epochs, time.monotonic())

    def _nnx_write(self, snapshot: Snapshot, target: Path) -> None:
        if self._nnx_writer is None:
            self._nnx_writer = ThreadPoolExecutor(1, thread_name_prefix="nnx-checkpoint")
        self._nnx_pending += (self._nnx_writer.submit(_write, snapshot.content, target),)

    def _nnx_wait(self, strictly: bool) -> None:
        """Wait for every save that was begun. A failed one raises when `strictly`, else it is said and due again."""
        pending, self._nnx_pending = self._nnx_pending, ()
        for save in pending:
            try:
                save.result()
            except (OSError, RuntimeError, NnxError) as trouble:  # torch reports a full disk as RuntimeError
                self._nnx_on_disk = (-1, -math.inf)
                if strictly:
                    raise
                self.nnx_say(f"WARNING: a checkpoint could not be written, the one before is kept: {trouble}")
                self.nnx_event("save_failed", trouble=str(trouble))

    def _nnx_forgive_the_plot(self) -> None:
        """nnU-Net's on_epoch_end plots unconditionally: on a full disk that would end the training."""
        plot = self.logger.plot_progress_png

        def plot_if_possible(output_folder: str) -> None:
            try:
                plot(output_folder)
            except OSError as trouble:
                self.nnx_say(f"WARNING: the progress plot could not be written: {trouble}")

        self.logger.plot_progress_png = plot_if_possible

    def _nnx_agree_with_history(self) -> None:
        """Stored epoch and history lengths agree from here on. A checkpoint saved in the middle of an epoch has
        entries of an epoch that never ended; one that was saved too early is as far as its history is."""
        histories = _per_epoch(self.logger.get_checkpoint())
        shortest = min(map(len, histories), default=self.current_epoch)
        if shortest < self.current_epoch:
            self.nnx_say(
                f"The checkpoint says {self.current_epoch} epochs, its history {shortest}: going on at {shortest}."
            )
            self.current_epoch = shortest
        for values in histories:
            del values[self.current_epoch :]

    def _nnx_keep_better_best(self) -> None:
        """nnU-Net overwrites checkpoint_best when the EMA passes `_best_ema`, which after a resume from an older
        checkpoint_latest is lower than what the file checkpoint_best has."""
        try:
            best = Checkpoint.read(self.nnx_checkpoint("best")).best_ema
        except (NnxError, OSError):
            return
        if best is not None and math.isfinite(best) and (self._best_ema is None or best > self._best_ema):
            self._best_ema = best


def _write(content: Any, target: Path) -> None:
    beside = writing_place(target)
    try:
        torch.save(content, beside)
        install(beside, target)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _captured(filename: str) -> Iterator[list[Any]]:
    """Catch what is saved to `filename` meanwhile, by whatever save_checkpoint the trainer class has."""
    captured: list[Any] = []
    save = torch.save

    def catch(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(f, str | Path) and str(f) == filename:
            captured.append(obj)
        else:
            save(obj, f, *args, **kwargs)

    torch.save = catch
    try:
        yield captured
    finally:
        torch.save = save


def _snapshot(content: Any, epochs: int) -> Snapshot:
    host = _on_host(content, {})
    finite = True
    logging = host.get("logging") if isinstance(host, dict) else None
    if isinstance(logging, dict):
        for values in _per_epoch(logging):
            del values[epochs:]
        finite = all(math.isfinite(logging[key][-1]) for key in ("train_losses", "val_losses") if logging.get(key))
    return Snapshot(epochs, host, finite or _weights_are_finite(host))


def _weights_are_finite(content: dict[str, Any]) -> bool:
    """Asked only after a loss that was not: with a gradient scaler the weights can have survived it."""
    return all(
        bool(torch.isfinite(tensor).all())
        for tensor in content.get("network_weights", {}).values()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    )


def _per_epoch(logging: dict[str, Any]) -> list[list[Any]]:
    """The histories with one entry per epoch. A trainer class may log other things, as often as it likes."""
    return [logging[name] for name in PER_EPOCH if name in logging]


def _on_host(value: Any, seen: dict[Any, torch.Tensor]) -> Any:
    """A copy in host memory. A tensor that nnU-Net stores under several names (the decoder repeats the encoder's)
    stays one tensor, so that the file does not grow."""
    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in seen or value.numel() == 0:
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(value, dict):
        copied = copy.copy(value)  # an OrderedDict keeps the `_metadata` that load_state_dict reads
        for name in value:
            copied[name] = _on_host(value[name], seen)
        return copied
    if type(value) in (list, tuple):
        return type(value)(_on_host(item, seen) for item in value)
    if isinstance(value, torch.device | np.generic | str | int | float | bytes | type(None)):
        return value
    return copy.deepcopy(value)
