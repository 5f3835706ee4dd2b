"""What nnx's powers cost an epoch: the stock trainer and the extended one train in turns, in one process.

    bench/overhead.py DATASET CONFIGURATION [--iterations 50] [--rounds 8] [--device cpu]

Needs nnU-Net's folders and a preprocessed dataset. The extended trainer saves checkpoint_latest after every epoch;
what its thread still writes when its turn is over is waited for and counted. Both skip nnU-Net's progress plot, which
takes the same second of each. The order of the two changes from round to round.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["nnUNet_results"] = tempfile.mkdtemp()
os.environ.setdefault("nnUNet_n_proc_DA", "1")
os.environ["NNX_CHECKPOINT_MINUTES"] = "0"

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_ext.trainers.extend import extend

EPOCHS_A_TURN = 2


def build(cls: type[Any], arguments: argparse.Namespace) -> Any:
    folder = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(arguments.dataset)
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads((folder / "dataset.json").read_text())
    trainer = cls(plans, arguments.configuration, 0 if cls is nnUNetTrainer else 1, dataset, arguments.device)
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = arguments.iterations, 5
    trainer.on_train_start()
    return trainer


def turn(trainer: Any) -> float:
    """Seconds per epoch: nnUNetTrainer.run_training's loop body, and the waiting for what is still being written."""
    begun = time.perf_counter()
    for _ in range(EPOCHS_A_TURN):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        steps = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(trainer.num_iterations_per_epoch)]
        trainer.on_train_epoch_end(steps)
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            count = trainer.num_val_iterations_per_epoch
            trainer.on_validation_epoch_end(
                [trainer.validation_step(next(trainer.dataloader_val)) for _ in range(count)]
            )
        trainer.on_epoch_end()
    if not isinstance(trainer, nnUNetTrainer) or hasattr(trainer, "_nnx_wait"):
        trainer._nnx_wait(strictly=True)
    return (time.perf_counter() - begun) / EPOCHS_A_TURN


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    LocalLogger.plot_progress_png = lambda self, folder: None
    trainers = {"stock": build(nnUNetTrainer, arguments), "nnx": build(extend(nnUNetTrainer), arguments)}
    for trainer in trainers.values():
        turn(trainer)  # the first epochs are slow
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(arguments.rounds):
        for name in sorted(trainers, reverse=bool(number % 2)):
            seconds[name].append(turn(trainers[name]))
    for trainer in trainers.values():
        trainer.on_train_end()
    gc.unfreeze()  # as run_training does, which is not used here
    stock, nnx = (statistics.median(seconds[name]) for name in ("stock", "nnx"))
    ratios = [ours / theirs for ours, theirs in zip(seconds["nnx"], seconds["stock"], strict=True)]
    print("\nseconds an epoch:", {name: [round(one, 3) for one in values] for name, values in seconds.items()})
    print(f"median: stock {stock:.3f} s, nnx {nnx:.3f} s; nnx - stock = {1000 * (nnx - stock):.0f} ms an epoch")
    print(f"median of the rounds' ratios: {statistics.median(ratios):.4f} (promised <= 1.01)")


if __name__ == "__main__":
    main()
