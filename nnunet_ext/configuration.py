"""Configuration: what one configuration of a plan says, read as nnU-Net reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnunet_ext.errors import Damaged
from nnunet_ext.jsontext import Json


@dataclass(frozen=True)
class Configuration:
    """One configuration of a plan, with everything it inherits; None means the plan does not say.

    Sizes are in voxels, spacing in mm, both in the order of the preprocessed axes; the per-stage values
    are the encoder's, from the full resolution down.
    """

    name: str
    data_identifier: str
    batch_size: int
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...] | None
    batch_dice: bool | None
    previous_stage: str | None
    next_stages: tuple[str, ...]
    network_class_name: str | None
    features_per_stage: tuple[int, ...] | None
    kernel_sizes: tuple[tuple[int, ...], ...] | None
    strides: tuple[tuple[int, ...], ...] | None

    @property
    def dimension(self) -> int:
        """2 or 3: what the network convolves over."""
        return len(self.patch_size)

    @classmethod
    def parse(cls, plans_name: str, name: str, entry: Mapping[str, Json]) -> Configuration:
        """Read an entry whose inheritance is resolved; Damaged if batch or patch size are missing.

        nnU-Net cannot train without a data identifier; where it is missing, it is the one that nnU-Net's
        planner would have written (ExperimentPlanner.generate_data_identifier).
        """
        batch_size, patch_size = entry.get("batch_size"), _whole_numbers(entry.get("patch_size"))
        if type(batch_size) is not int or batch_size < 1:
            raise Damaged(f"Configuration {name} has no usable batch_size, but {batch_size!r}")
        if not patch_size:
            raise Damaged(f"Configuration {name} has no usable patch_size, but {entry.get('patch_size')!r}")
        batch_dice, stages = entry.get("batch_dice"), entry.get("next_stage")
        stages = stages if isinstance(stages, list) else [stages]
        class_name, network = _network(entry)
        return cls(
            name=name,
            data_identifier=_word(entry.get("data_identifier")) or f"{plans_name}_{name}",
            batch_size=batch_size,
            patch_size=patch_size,
            spacing=_numbers(entry.get("spacing")),
            batch_dice=batch_dice if isinstance(batch_dice, bool) else None,
            previous_stage=_word(entry.get("previous_stage")),
            next_stages=tuple(str(stage) for stage in stages if stage),
            network_class_name=class_name,
            features_per_stage=_whole_numbers(network.get("features_per_stage")),
            kernel_sizes=_rows(network.get("kernel_sizes")),
            strides=_rows(network.get("strides")),
        )


_OLD_NETWORKS = {
    "PlainConvUNet": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "ResidualEncoderUNet": "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet",
}


def _network(entry: Mapping[str, Json]) -> tuple[str | None, Mapping[str, Json]]:
    """The network's class and arguments; plans without them are read as nnU-Net's ConfigurationManager does."""
    architecture = entry.get("architecture")
    if isinstance(architecture, dict):
        arguments = architecture.get("arch_kwargs")
        return _word(architecture.get("network_class_name")), arguments if isinstance(arguments, dict) else {}
    stages, base = entry.get("n_conv_per_stage_encoder"), entry.get("UNet_base_num_features")
    most, old_name = entry.get("unet_max_num_features"), _word(entry.get("UNet_class_name"))
    features: Json = None
    if isinstance(stages, list) and isinstance(base, int) and isinstance(most, int):
        features = [min(base * 2**stage, most) for stage in range(len(stages))]
    network = {
        "features_per_stage": features,
        "kernel_sizes": entry.get("conv_kernel_sizes"),
        "strides": entry.get("pool_op_kernel_sizes"),
    }
    return _OLD_NETWORKS.get(old_name or "", old_name), network


def _word(value: Json) -> str | None:
    return value if isinstance(value, str) else None


def _numbers(value: Json) -> tuple[float, ...] | None:
    numbers = [n for n in value if isinstance(n, (int, float))] if isinstance(value, list) else []
    return tuple(map(float, numbers)) if numbers and numbers == value else None


def _whole_numbers(value: Json) -> tuple[int, ...] | None:
    numbers = [n for n in value if type(n) is int] if isinstance(value, list) else []
    return tuple(numbers) if numbers and numbers == value else None


def _rows(value: Json) -> tuple[tuple[int, ...], ...] | None:
    rows = [_whole_numbers(row) for row in value] if isinstance(value, list) else []
    known = tuple(row for row in rows if row is not None)
    return known if known and len(known) == len(rows) else None
