"""What a preprocessed dataset says of itself: dataset.json (channels, labels) and its splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import Damaged, NoSuchRun


@dataclass(frozen=True)
class Dataset:
    """`labels` are the sorted values without "ignore"; `regions` counts the regions of region-based training, None
    when the labels are plain."""

    channels: int
    labels: tuple[int, ...]
    regions: int | None
    file_ending: str

    @property
    def heads(self) -> int:
        """Output channels of the network (LabelManager.num_segmentation_heads)."""
        return len(self.labels) if self.regions is None else self.regions

    @property
    def foreground_labels(self) -> int:
        """One-hot input channels a cascade's second stage gets besides the image's (determine_num_input_channels)."""
        return sum(label != 0 for label in self.labels)


@dataclass(frozen=True)
class Split:
    """The cases of one fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def read_dataset(path: Path) -> Dataset:
    """Read a dataset.json; NoSuchRun if it is not there, Damaged if it is something else, OSError if unreadable."""
    said = _read_json(path)
    try:
        channels = said["modality"] if "modality" in said else said["channel_names"]
        return Dataset(len(channels), *_labels(said["labels"]), str(said["file_ending"]))
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise Damaged(
            f"{path} is no dataset.json of nnU-Net v2: {_lacking(wrong)}.",
            "It needs channel_names, labels ({name: number}) and file_ending. Copy it from the raw dataset.",
        ) from wrong


def read_splits(path: Path) -> tuple[Split, ...] | None:
    """Read a splits file; None if it is not there, Damaged if it is something else, OSError if unreadable."""
    try:
        said = _read_json(path)
    except NoSuchRun:
        return None
    try:
        return tuple(Split(_cases(fold["train"]), _cases(fold["val"])) for fold in said)
    except (KeyError, TypeError) as wrong:
        raise Damaged(
            f"{path} is no list of folds with 'train' and 'val' in each.",
            "Copy it from where the training began; a new one mixes validation cases into the training.",
        ) from wrong


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoSuchRun(f"There is no {path}.", "Copy it from where the data was preprocessed.") from None
    except (ValueError, RecursionError) as wrong:
        raise Damaged(f"{path} is not readable JSON: {wrong}.", "Copy it again from where it is whole.") from wrong


def _labels(said: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """The labels and the number of regions (LabelManager._get_all_labels, ._get_regions); a region that is only
    background is none."""
    spoken = {name: _numbers(value) for name, value in said.items() if name != "ignore"}
    labels = tuple(sorted({label for values in spoken.values() for label in values}))
    is_region_based = any(isinstance(value, list) and len(value) > 1 for value in said.values())
    return labels, sum(set(values) != {0} for values in spoken.values()) if is_region_based else None


def _numbers(value: Any) -> list[int]:
    return [int(label) for label in value] if isinstance(value, list) else [int(value)]


def _cases(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(case, str) for case in value):
        raise TypeError("not a list of names")
    return tuple(value)


def _lacking(wrong: Exception) -> str:
    return f"it has no {wrong.args[0]}" if isinstance(wrong, KeyError) else str(wrong)
