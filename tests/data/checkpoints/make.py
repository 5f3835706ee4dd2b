"""Makes the real nnU-Net checkpoints that the tests read, and the facts torch itself reads from them.

    python tests/data/checkpoints/make.py            the pair that is kept beside this file
    python tests/data/checkpoints/make.py FOLDER     the same pair and three harder ones, into FOLDER

Needs nnunetv2 and torch. Trains nnU-Net's own nnUNetTrainer on the CPU for three epochs of two iterations on four
made images, with a network of at most four feature maps, and keeps checkpoint_final.pth as it was written. The names
of the two files say which nnU-Net and which numpy wrote them. The harder ones are saved by the same trainer: with the
state of a gradient scaler, with NaN in the history, and 280 MB with a history of 1000 epochs. Takes about 10 s.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

DATASET = "Dataset999_Made"
HERE = Path(__file__).parent


def main(folder: Path, harder: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        prepare_environment(Path(scratch))
        trainer = train(Path(scratch), epochs=3)
        name = f"nnunet-{version('nnunetv2')}_numpy{version('numpy').split('.')[0]}_2d"
        shutil.copyfile(Path(trainer.output_folder) / "checkpoint_final.pth", folder / f"{name}.pth")
        if harder:
            save_harder_ones(trainer, folder)
    for path in folder.glob("*.pth"):
        facts = json.dumps(facts_by_torch(path), indent=1, sort_keys=True)
        path.with_suffix(".json").write_text(facts + "\n", encoding="utf-8")


def version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


def prepare_environment(folder: Path) -> None:
    """Point nnU-Net at a scratch folder; must run before nnunetv2 is imported."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir()
        os.environ[name] = str(folder / name)
    os.environ["nnUNet_n_proc_DA"] = "0"
    os.environ["nnUNet_compile"] = "f"


def train(folder: Path, epochs: int) -> Any:
    """Run nnU-Net's own training loop on the made dataset and return the trainer."""
    import torch

    torch.manual_seed(0)
    write_dataset(folder / "nnUNet_preprocessed" / DATASET)
    trainer = new_trainer(plans())
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, 2, 1
    trainer.run_training()
    return trainer


def new_trainer(plans: dict[str, Any]) -> Any:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return nnUNetTrainer({**plans, "continue_training": False}, "2d", 0, dataset_json(), torch.device("cpu"))


def save_harder_ones(trainer: Any, folder: Path) -> None:
    import numpy as np
    import torch

    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    trainer.current_epoch -= 1  # as nnU-Net itself does before it saves at the end
    trainer.save_checkpoint(str(folder / "scaler.pth"))
    trainer.current_epoch += 1
    log_epoch(trainer, [np.float32("nan"), np.float32("nan")])
    trainer.save_checkpoint(str(folder / "nan.pth"))
    large = new_trainer(large_plans())
    large.initialize()
    for parameter in large.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    large.optimizer.step()
    for large.current_epoch in range(1000):
        log_epoch(large, list(np.random.default_rng(large.current_epoch).random(3).astype(np.float32)))
    large._best_ema = max(large.logger.get_value("ema_fg_dice", None))
    large.save_checkpoint(str(folder / "large.pth"))


def log_epoch(trainer: Any, dice: list[Any]) -> None:
    """What nnUNetTrainer logs in one epoch, in the types it logs."""
    import numpy as np

    epoch, loss = trainer.current_epoch, np.mean(np.float32([-0.1, -0.25]))
    values = {"epoch_start_timestamps": 1.75e9 + epoch, "lrs": 0.01, "train_losses": loss, "val_losses": loss}
    mean = np.nan if np.isnan(dice).all() else np.nanmean(dice)
    values |= {"mean_fg_dice": mean, "dice_per_class_or_region": dice, "epoch_end_timestamps": 1.75e9 + epoch + 0.5}
    for name, value in values.items():
        trainer.logger.log(name, value, epoch)


def write_dataset(folder: Path) -> None:
    import numpy as np
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    cases = [f"made_{i}" for i in range(4)]
    (folder / "nnUNetPlans_2d").mkdir(parents=True)
    (folder / "dataset_fingerprint.json").write_text("{}")
    splits = [{"train": cases[:3], "val": cases[3:]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    rng = np.random.default_rng(0)
    for case in cases:
        seg = (rng.random((1, 4, 20, 20)) > 0.6).astype(np.int8)
        data = (seg + 0.1 * rng.standard_normal(seg.shape)).astype(np.float32)
        places = np.argwhere(seg == 1)[:50]
        nnUNetDatasetBlosc2.save_case(
            data, seg, {"class_locations": {1: places, 2: places[:0]}}, str(folder / "nnUNetPlans_2d" / case)
        )


def plans() -> dict[str, Any]:
    """Plans of nnU-Net's planner with the smallest network it accepts."""
    resample = "resample_data_or_seg_to_shape"
    order = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [4, 20, 20],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": {
                "data_identifier": "nnUNetPlans_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [16, 16],
                "median_image_size_in_voxels": [20.0, 20.0],
                "spacing": [1.0, 1.0],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": resample,
                "resampling_fn_seg": resample,
                "resampling_fn_data_kwargs": order,
                "resampling_fn_seg_kwargs": {**order, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": resample,
                "resampling_fn_probabilities_kwargs": {**order, "order": 1},
                "architecture": architecture(),
                "batch_dice": True,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"max": 1.4, "mean": 0.5, "std": 0.3}},
    }


def large_plans() -> dict[str, Any]:
    """A network of 36 million weights, somewhat more than nnU-Net's default in 3d."""
    made = plans()
    layers = made["configurations"]["2d"]["architecture"]["arch_kwargs"]
    layers |= {"n_stages": 6, "features_per_stage": [32, 64, 128, 256, 384, 384], "strides": [[1, 1]] + [[2, 2]] * 5}
    layers |= {"kernel_sizes": [[5, 5]] * 6, "n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5}
    return made


def architecture() -> dict[str, Any]:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [2, 4, 4],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3]] * 3,
            "strides": [[1, 1], [2, 2], [2, 2]],
            "n_conv_per_stage": [2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def dataset_json() -> dict[str, Any]:
    return {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "made": 1, "häufig nie": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }


def facts_by_torch(path: Path) -> dict[str, Any]:
    """What torch.load says of a checkpoint, as plain values; the truth the tests compare with."""
    import torch

    stored = torch.load(path, map_location="cpu", weights_only=False)
    weights = stored["network_weights"]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in weights.values()}
    return {
        "size_bytes": path.stat().st_size,
        "current_epoch": stored["current_epoch"],
        "best_ema": plain(stored["_best_ema"]),
        "trainer_name": stored["trainer_name"],
        "init_args": plain(stored["init_args"]),
        "logging": plain(stored["logging"]),
        "tensors": {
            name: [list(t.shape), str(t.dtype).removeprefix("torch."), t.numel() * t.element_size()]
            for name, t in weights.items()
        },
        "weights_bytes": sum(storages.values()),
        "has_optimizer": bool(stored["optimizer_state"]),
        "has_grad_scaler": bool(stored["grad_scaler_state"]),
        "mirroring_axes": plain(stored["inference_allowed_mirroring_axes"]),
    }


def plain(value: Any) -> Any:
    """The value in JSON's types: numpy scalars as numbers, NaN as the text "nan", a device as its name."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE, harder=len(sys.argv) > 1)
