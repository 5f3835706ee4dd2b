"""The end of a learning rate schedule, brought forward: the rate annealed to 0 over a few epochs."""

from __future__ import annotations

from typing import Any


class Cooldown:
    """Takes over from `schedule` at epoch `start`: `rate * (1 - k / epochs) ** 0.9` in its k-th epoch, the poly
    formula of nnU-Net's PolyLRScheduler with the cooldown's own length."""

    def __init__(self, schedule: Any, rate: float, start: int, epochs: int) -> None:
        self.schedule = schedule
        self.rate = rate
        self.start = start
        self.epochs = epochs

    def step(self, current_step: int) -> None:
        """Set the optimizer's learning rate for epoch `current_step`."""
        self.schedule.step(current_step)
        if current_step >= self.start:
            left = max(0.0, 1 - (current_step - self.start) / self.epochs)
            for group in self.schedule.optimizer.param_groups:
                group["lr"] = self.rate * left**0.9
