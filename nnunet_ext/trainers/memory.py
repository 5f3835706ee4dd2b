"""Memory kept clean and accounted for: one clean-up an epoch, more when it is needed, a line of figures an epoch."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from nnunet_ext.cgroup import cgroup_limits
from nnunet_ext.trainers.power import Power

GIB = 2**30
CACHED_WORTH_FREEING = 1.5 * GIB
LOOK_EVERY_STEPS = 10
RAM_EVERY_S = 15.0


@dataclass
class Figures:
    """One epoch's sums and peaks, in seconds and bytes."""

    step_s: float = 0.0
    data_wait_s: float = 0.0
    cleanup_s: float = 0.0
    cleanups: int = 0
    steps: int = 0


class MemoryCare(Power):
    """Frees cached memory once an epoch, and in between when more than `memory_limit` of the GPU is in use while over
    1.5 GiB of it is only cached; `cleanup_every` N does it every N steps, and the figures say what that costs.

    After each epoch a line goes to events.jsonl: GPU and RAM peaks (workers included), time waited for data, time in
    steps, time in clean-ups. When a peak passes the limit, the log gets a warning with the numbers.
    """

    _nnx_figures: Figures | None = None
    _nnx_step_ended_at: float | None = None
    _nnx_ram: RamWatch | None = None
    _nnx_warned: tuple[str, ...] = ()

    def run_training(self) -> None:
        try:
            super().run_training()
        finally:
            gc.unfreeze()
            if self._nnx_ram is not None:
                self._nnx_ram.ended.set()

    def on_train_start(self) -> None:
        if self.device.type == "cuda":
            # without a fraction torch ignores the garbage_collection_threshold that the launcher set
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
        super().on_train_start()
        gc.collect()
        gc.freeze()  # nnU-Net's and torch's own objects stay for ever: looking at them again takes 0.2 s an epoch
        self._nnx_ram = RamWatch()
        self._nnx_ram.start()

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self._nnx_figures = Figures()
        self._nnx_step_ended_at = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        figures = self._nnx_figures or Figures()
        begun = time.perf_counter()
        figures.data_wait_s += begun - (self._nnx_step_ended_at or begun)
        result = super().train_step(batch)
        figures.step_s += time.perf_counter() - begun
        figures.steps += 1
        self._nnx_clean_between_steps(figures)
        self._nnx_step_ended_at = time.perf_counter()
        return result

    def on_epoch_end(self) -> None:
        epoch = self.current_epoch
        super().on_epoch_end()
        figures = self._nnx_figures or Figures()
        gpu = _gpu_peaks(self.device)
        figures.cleanup_s += clean_up(self.device)
        figures.cleanups += 1
        self._nnx_account(epoch, figures, gpu)

    def _nnx_clean_between_steps(self, figures: Figures) -> None:
        training = self.nnx_training
        every = training.cleanup_every
        forced = every > 0 and figures.steps % every == 0
        if forced or (figures.steps % LOOK_EVERY_STEPS == 0 and _is_short(self.device, training.memory_limit)):
            figures.cleanup_s += clean_up(self.device)
            figures.cleanups += 1

    def _nnx_account(self, epoch: int, figures: Figures, gpu: dict[str, int]) -> None:
        ram_bytes = 0 if self._nnx_ram is None else self._nnx_ram.peak_bytes()
        rounded = {name: round(value, 4) for name, value in figures.__dict__.items()}
        self.nnx_event("epoch", epoch=epoch, **rounded, ram_peak_bytes=ram_bytes, **gpu)
        limit = self.nnx_training.memory_limit
        for what, used, total in (
            ("GPU", gpu.get("gpu_peak_reserved_bytes", 0), gpu.get("gpu_total_bytes", 0)),
            ("RAM", ram_bytes, ram_total()),
        ):
            if total and used > limit * total and what not in self._nnx_warned:
                self._nnx_warned += (what,)
                self.nnx_say(
                    f"WARNING: {what} use peaked at {used / GIB:.1f} of {total / GIB:.1f} GiB "
                    f"({used / total:.0%}, the limit is {limit:.0%})."
                )


class RamWatch(threading.Thread):
    """Looks at the memory of this process and its workers every 15 s, beside the training: asking the kernel takes
    10 ms and more per process."""

    def __init__(self) -> None:
        super().__init__(name="nnx-ram", daemon=True)
        self.ended = threading.Event()
        self._peak_bytes = self._last_bytes = ram_in_use()

    def run(self) -> None:
        while not self.ended.wait(RAM_EVERY_S):
            self._last_bytes = ram_in_use()
            self._peak_bytes = max(self._peak_bytes, self._last_bytes)

    def peak_bytes(self) -> int:
        """The most that was seen since it was last asked for; with no look since, what the last look saw."""
        peak, self._peak_bytes = self._peak_bytes, self._last_bytes
        return peak


def clean_up(device: torch.device) -> float:
    """Collect garbage and give cached device memory back; the seconds it took."""
    begun = time.perf_counter()
    if device.type == "mps":
        torch.mps.synchronize()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    return time.perf_counter() - begun


def ram_in_use() -> int:
    """Bytes of memory that this process and its workers use; what they share is counted once where the system can
    tell (Linux: proportional set size), otherwise what is theirs alone."""
    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            memory = process.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(memory, "pss", 0) or memory.uss
    return total


def ram_total() -> int:
    """Bytes of memory that this process may use: the machine's, or what its control group leaves of it."""
    limit = cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")).memory_bytes
    total = psutil.virtual_memory().total
    return total if limit is None else min(total, limit)


def _is_short(device: torch.device, limit: float) -> bool:
    if device.type != "cuda":
        return False
    reserved = torch.cuda.memory_reserved(device)
    unused = reserved - torch.cuda.memory_allocated(device)
    return unused > CACHED_WORTH_FREEING and reserved > limit * torch.cuda.get_device_properties(device).total_memory


def _gpu_peaks(device: torch.device) -> dict[str, int]:
    if device.type == "cuda":
        return {
            "gpu_peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
            "gpu_peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
            "gpu_total_bytes": torch.cuda.get_device_properties(device).total_memory,
        }
    if device.type == "mps":  # no peaks there: what the driver holds now
        return {
            "gpu_peak_reserved_bytes": torch.mps.driver_allocated_memory(),
            "gpu_total_bytes": torch.mps.recommended_max_memory(),
        }
    return {}
