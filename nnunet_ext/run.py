"""What a run is: one training of one fold, named as nnU-Net names it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nnunet_ext.errors import Usage

DEFAULT_TRAINER = "nnUNetTrainer"
DEFAULT_PLANS = "nnUNetPlans"
ALL = "all"

Fold = int | str  # 0, 1, 2, ... or "all"


@dataclass(frozen=True)
class Run:
    """One training: dataset (`Dataset004_Hippocampus`), configuration (`3d_lowres`), fold (0, 1, ... or "all"),
    trainer class and plans identifier. Two runs are the same training exactly when all five are equal."""

    dataset: str
    configuration: str
    fold: Fold
    trainer: str = DEFAULT_TRAINER
    plans: str = DEFAULT_PLANS

    @property
    def dataset_id(self) -> int:
        """The number nnU-Net knows the dataset by: 4 for `Dataset004_Hippocampus`."""
        found = dataset_id(self.dataset)
        if found is None:
            raise Usage(f"'{self.dataset}' is not a dataset name.", "nnU-Net names datasets DatasetXXX_Name.")
        return found

    def words(self) -> list[str]:
        """The arguments that name this run to `nnUNetv2_train` and to every verb of nnx; defaults left out."""
        words = [str(self.dataset_id), self.configuration, str(self.fold)]
        if self.trainer != DEFAULT_TRAINER:
            words += ["-tr", self.trainer]
        if self.plans != DEFAULT_PLANS:
            words += ["-p", self.plans]
        return words

    def __str__(self) -> str:
        own = [word for word in (self.trainer, self.plans) if word not in (DEFAULT_TRAINER, DEFAULT_PLANS)]
        return f"{self.dataset} {self.configuration} fold {self.fold}" + (f" ({', '.join(own)})" if own else "")


def dataset_id(name: str) -> int | None:
    """The number in a dataset's name (`Dataset004_Hippocampus` -> 4), None when it is no dataset name."""
    found = re.match(r"Dataset(\d{3,})_", name)
    return int(found[1]) if found else None


def parse_fold(word: str) -> Fold:
    """A fold as nnU-Net takes it: a number from 0, or `all`. Raises Usage."""
    if word == ALL:
        return ALL
    if not word.isascii() or not word.isdigit():
        raise Usage(f"'{word}' is not a fold.", "A fold is 0, 1, 2, 3, 4 or all.")
    return int(word)
