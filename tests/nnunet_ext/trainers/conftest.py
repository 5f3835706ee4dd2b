"""Real nnU-Net trainers on the made dataset, in this process, with short epochs and without the progress plot."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_data
import pytest
from fold import Fold

from nnunet_ext.layout import Layout
from nnunet_ext.run import Run


@dataclass
class Bench(Fold):
    """A copy of the made dataset's folders and a way to train in them."""

    layout: Layout[Path]
    run: Run  # of the trainer made last

    def trainer(self, cls: type[Any] | None = None, resume: str | None = None, **settings: object) -> Any:
        """A trainer with every power (or of the class given), its settings in the environment; `resume` names the
        kind of checkpoint to continue from."""
        import torch
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from nnunet_ext.trainers.extend import extend

        for name in [name for name in os.environ if name.startswith("NNX_")]:
            del os.environ[name]
        os.environ.update({f"NNX_{name.upper()}": str(value) for name, value in settings.items()})
        plans = json.loads(self.layout.plans_file(self.run.dataset, "nnUNetPlans").read_text())
        plans["continue_training"] = resume is not None
        dataset = json.loads(self.layout.dataset_json(self.run.dataset).read_text())
        made = (cls or extend(nnUNetTrainer))(plans, "2d", 0, dataset, torch.device("cpu"))
        self.run = Run(self.run.dataset, "2d", 0, made.__class__.__name__)
        if resume is not None:
            made.load_checkpoint(str(self.layout.checkpoint(self.run, resume)))
        return made

    def train(self, cls: type[Any] | None = None, resume: str | None = None, **settings: object) -> tuple[Any, int]:
        """Train to the end or to a stop; the trainer and the exit code (0 when validation would follow)."""
        trainer = self.trainer(cls, resume, **{"iterations": 2, "val_iterations": 1, **settings})
        try:
            trainer.run_training()
        except SystemExit as left:
            return trainer, int(left.code or 0)
        return trainer, 0


@pytest.fixture
def bench(made: Layout[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    layout = made_data.copy_of(made, tmp_path / "folders of 'Zoë'")
    environment = made_data.environment(layout, nnUNet_n_proc_DA="0")
    for name in [*os.environ]:
        if name.startswith(("NNX_", "nnUNet_")):
            monkeypatch.delenv(name)
    for name in environment:
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, environment[name])
    monkeypatch.setenv("NNX_EPOCHS", "1")  # so that what `trainer` sets is undone after the test
    monkeypatch.chdir(tmp_path)
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
    return Bench(layout, Run(made_data.DATASET, "2d", 0))


@pytest.fixture
def scripted() -> Callable[..., type[Any]]:
    """A third-party trainer class, with nnx's powers, whose pseudo Dice follow a script: scripted([0.1, 0.2])."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_ext.trainers.extend import extend

    def make(dice: list[float], losses: list[float] | None = None) -> type[Any]:
        class nnUNetTrainerScripted(nnUNetTrainer):  # noqa: N801 - nnU-Net's way of naming
            def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
                value = dice[min(self.current_epoch, len(dice) - 1)]
                loss = 0.5 if losses is None else losses[min(self.current_epoch, len(losses) - 1)]
                self.logger.log("mean_fg_dice", value, self.current_epoch)
                self.logger.log("dice_per_class_or_region", [value, value], self.current_epoch)
                self.logger.log("val_losses", loss, self.current_epoch)

        return extend(nnUNetTrainerScripted)

    return make
