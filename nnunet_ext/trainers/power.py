"""What nnx's powers stand on: the part of nnUNetTrainer they use, and where each finds its settings and state."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext import settings, training
from nnunet_ext.control import Control
from nnunet_ext.history import History
from nnunet_ext.layout import checkpoint_in, control_in
from nnunet_ext.run import Run
from nnunet_ext.training import Training

if TYPE_CHECKING:
    import torch


class Power:
    """The root of every power: a mixin, leftmost over any nnUNetTrainer class, and without an `__init__` (nnU-Net
    inspects the signature and looks its names up in its own locals).

    State that must survive a move lies in `my_init_kwargs["nnx"]`, which nnU-Net stores in every checkpoint and
    restores from it; it holds plain values only, so that a machine without nnx can unpickle the checkpoint.
    """

    if TYPE_CHECKING:  # nnUNetTrainer, as far as the powers use it
        my_init_kwargs: dict[str, Any]
        dataset_json: dict[str, Any]
        plans_manager: Any
        configuration_name: str
        fold: int | str
        output_folder: str
        device: torch.device
        is_ddp: bool
        local_rank: int
        was_initialized: bool
        disable_checkpointing: bool
        network: Any
        optimizer: torch.optim.Optimizer
        lr_scheduler: Any
        initial_lr: float
        num_epochs: int
        num_iterations_per_epoch: int
        num_val_iterations_per_epoch: int
        current_epoch: int
        save_every: int
        _best_ema: float | None
        logger: Any
        dataloader_train: Any
        dataloader_val: Any

        def initialize(self) -> None: ...
        def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None: ...
        def save_checkpoint(self, filename: str) -> None: ...
        def run_training(self) -> None: ...
        def on_train_start(self) -> None: ...
        def on_train_end(self) -> None: ...
        def on_epoch_start(self) -> None: ...
        def on_epoch_end(self) -> None: ...
        def on_train_epoch_start(self) -> None: ...
        def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None: ...
        def train_step(self, batch: dict[str, Any]) -> dict[str, Any]: ...
        def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]: ...
        def get_dataloaders(self) -> tuple[Any, Any]: ...
        def do_split(self) -> tuple[list[str], list[str]]: ...
        def perform_actual_validation(self, save_probabilities: bool = False) -> None: ...
        def print_to_log_file(self, *words: object, **options: bool) -> None: ...

    @property
    def nnx_state(self) -> Mapping[str, Any]:
        """What nnx keeps inside the checkpoints of this run."""
        state: Mapping[str, Any] = self.my_init_kwargs.get("nnx", {})
        return state

    def nnx_store(self, **facts: Any) -> None:
        """Keep plain values in the checkpoints of this run."""
        self.my_init_kwargs.setdefault("nnx", {}).update(facts)

    def nnx_forget(self, fact: str) -> None:
        """Keep it no longer."""
        self.my_init_kwargs.get("nnx", {}).pop(fact, None)

    @property
    def nnx_training(self) -> Training:
        """What this training is asked to do: by the launcher, the environment or a file now, else as it was asked
        to when the checkpoint was written."""
        return training.resolve(_asked(), self.nnx_state.get("settings", {}))

    def nnx_remember_settings(self) -> None:
        """Let the run's checkpoints carry what it was asked to do."""
        self.nnx_store(settings=training.remembered(_asked(), self.nnx_state.get("settings", {})))

    @property
    def nnx_control(self) -> Control:
        """The control folder beside this fold's files."""
        return Control(control_in(Path(self.output_folder)))

    @property
    def nnx_run(self) -> Run:
        plans = self.plans_manager
        name = self.__class__.__name__
        return Run(plans.dataset_name, self.configuration_name, self.fold, name, plans.plans_name)

    @property
    def nnx_history(self) -> History:
        """The epochs whose losses and pseudo Dice are logged so far."""
        return History.from_logging(self.logger.get_checkpoint())

    def nnx_keep(self, is_spoilt: bool) -> None:
        """Leave checkpoint_latest at the last completed epoch. Weights that have moved on since, or are NaN, are
        spoilt: then what the disk holds already is all there is; SafeCheckpoint knows better."""
        if not is_spoilt:
            self.current_epoch -= 1  # save_checkpoint stores current_epoch + 1, as inside nnU-Net's on_epoch_end
            self.save_checkpoint(str(self.nnx_checkpoint("latest")))
            self.current_epoch += 1

    def nnx_checkpoint(self, kind: str) -> Path:
        """The path of checkpoint_<kind>.pth."""
        return checkpoint_in(Path(self.output_folder), kind)

    def nnx_say(self, text: str) -> None:
        """A line in the training log and on the console, from rank 0."""
        self.print_to_log_file(f"nnx: {text}")

    def nnx_event(self, event: str, **facts: object) -> None:
        """A line in events.jsonl, from rank 0. A full disk does not end a training for want of it."""
        if self.local_rank == 0:
            with contextlib.suppress(OSError):
                self.nnx_control.log(event, **facts)


def _asked() -> dict[str, settings.Value]:
    return settings.load({}, os.environ, settings.find_file(Path.cwd(), Path.home()))
