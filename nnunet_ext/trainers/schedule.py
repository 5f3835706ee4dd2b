"""The schedule: epochs and iterations by option, and no resume under another learning rate unless it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ext.checkpoint import Checkpoint
from nnunet_ext.errors import Refused
from nnunet_ext.trainers.power import Power

SAME_RATE = 1e-3  # relative; 0.9 % of an epoch's step of a 1000-epoch poly schedule


class Schedule(Power):
    """Sets `num_epochs`, `num_iterations_per_epoch` and `num_val_iterations_per_epoch` before nnU-Net builds its
    learning rate scheduler from them, and keeps the number of epochs a run was started with."""

    def initialize(self) -> None:
        asked = self.nnx_training
        for name, number in (
            ("num_epochs", asked.epochs),
            ("num_iterations_per_epoch", asked.iterations),
            ("num_val_iterations_per_epoch", asked.val_iterations),
        ):
            if number is not None:
                setattr(self, name, number)
        super().initialize()

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        if isinstance(filename_or_checkpoint, str) and not self.was_initialized:
            # what the run was asked to do decides how the trainer is initialized, which comes before the loading
            self.nnx_store(**Checkpoint.read(Path(filename_or_checkpoint)).init_args.get("nnx", {}))
        super().load_checkpoint(filename_or_checkpoint)

    def on_train_start(self) -> None:
        self._nnx_refuse_a_jump()
        super().on_train_start()
        self.nnx_store(num_epochs=self.num_epochs)

    def _nnx_refuse_a_jump(self) -> None:
        """The learning rate of the last epoch, as it was and as the schedule of now would have had it.

        Raises Refused when they differ; `--allow-lr-jump` accepts it.
        """
        rates = self.logger.get_checkpoint()["lrs"]
        last = self.current_epoch - 1
        if last < 0 or len(rates) <= last or self.nnx_training.allow_lr_jump:
            return
        was = float(rates[last])
        self.lr_scheduler.step(last)
        would_be = float(self.optimizer.param_groups[0]["lr"])
        before = self.nnx_state.get("num_epochs")
        if abs(would_be - was) <= SAME_RATE * max(was, would_be) and before in (None, self.num_epochs):
            return
        planned = f"{before} epochs" if before is not None else "the schedule it was trained with"
        raise Refused(
            f"This run has completed {self.current_epoch} epochs under {planned}, at a learning rate of {was:.6g} in "
            f"the last one; under {self.num_epochs} epochs it would have been {would_be:.6g}.",
            f"Keep the number of epochs{f' (--epochs {before})' if before else ''}, or accept it: --allow-lr-jump",
        )
