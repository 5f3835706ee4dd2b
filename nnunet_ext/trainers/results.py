"""What lies in a run's validation folder: which cases are whole, and by which checkpoint they were predicted."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_ext.checkup.case_files import trouble_of
from nnunet_ext.errors import Damaged, Unfit
from nnunet_ext.finish import sha256_of
from nnunet_ext.host import write_whole
from nnunet_ext.layout import DATA_ENDINGS, Layout, prediction_files
from nnunet_ext.run import Run

MISSING = "is not there"  # as trouble_of says it

# What nnU-Net's readers raise for a file that is cut short (SyntaxError is Pillow's).
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    SyntaxError,
    zlib.error,
    ImageFileError,
)


@dataclass(frozen=True)
class Record:
    """Whose results lie in the validation folder: the SHA-256 of the checkpoint that predicts them (None: of weights
    that are in no file), and once all of them were there the SHA-256 of each segmentation, by case."""

    checkpoint: str | None
    segmentations: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """None when there is none; raises Damaged when the file is something else."""
        try:
            said = json.loads(path.read_bytes())
            return cls(said["checkpoint"], dict(said["segmentations"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as wrong:
            raise Damaged(f"{path} is not what nnx writes there.", "Remove that file and try again.") from wrong

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(self), indent=1).encode() + b"\n")


def why_not_ours(record: Record | None, checkpoint: str | None, changed: Sequence[str], is_newer: bool) -> str | None:
    """Why results are not those of `checkpoint` (a SHA-256), as the end of a sentence; None when they are.

    changed: cases whose segmentation is whole, but not the one that was recorded. is_newer: no result is older than
    checkpoint_final, which is all there is to judge by when stock nnU-Net wrote them.
    """
    if checkpoint is None:
        return "the weights to validate are in no checkpoint"
    if record is None:
        return None if is_newer else "they are older than the checkpoint"
    if record.checkpoint != checkpoint:
        return "another checkpoint predicted them"
    return f"another program has written {changed[0]} since" if changed else None


@dataclass(frozen=True)
class Results:
    """The results of one run's validation, as nnU-Net writes and reads them."""

    layout: Layout[Path]
    run: Run
    plans_manager: Any
    file_ending: str
    next_stages: tuple[str, ...]  # of the cascade

    @property
    def folder(self) -> Path:
        return self.layout.validation_folder(self.run)

    def exist(self) -> bool:
        """Whether anything was predicted yet."""
        return any(self.folder.glob("*"))

    def segmentation(self, case: str) -> Path:
        return self.folder / prediction_files(case, self.file_ending, False)[0]

    def truth(self, case: str) -> Path:
        return self.layout.gt_segmentations(self.run.dataset) / self.segmentation(case).name

    def check_truth(self, cases: Sequence[str]) -> None:
        """nnU-Net would find out after the last prediction. Raises Unfit."""
        missing = [self.truth(case) for case in cases if not self.truth(case).exists()]
        if missing:
            raise Unfit(
                f"{len(missing)} of {len(cases)} cases have no ground truth, such as {missing[0]}.",
                f"Copy them from the raw dataset: {self.layout.raw_labels(self.run.dataset)}",
            )

    def trouble(self, case: str, with_probabilities: bool) -> str:
        """Why a case must be predicted (again); empty when all its files are whole."""
        for name in prediction_files(case, self.file_ending, with_probabilities)[1:]:
            if trouble := trouble_of(self.folder / name):
                return trouble if trouble == MISSING else f"{name} {trouble}"
        reader = self.plans_manager.image_reader_writer_class()
        troubles = [segmentation_trouble(reader, self.segmentation(case), self.truth(case))]
        return next(filter(None, (*troubles, *(self._stage_trouble(case, stage) for stage in self.next_stages))), "")

    def changed(self, cases: Iterable[str], record: Record) -> list[str]:
        """The cases whose segmentation is another one than was recorded."""
        recorded = record.segmentations
        return [case for case in cases if case in recorded and recorded[case] != sha256_of(self.segmentation(case))]

    def are_newer_than(self, checkpoint: Path) -> bool:
        written = checkpoint.stat().st_mtime_ns
        return all(file.stat().st_mtime_ns >= written for file in self.folder.glob("*"))

    def digests(self, cases: Iterable[str]) -> dict[str, str]:
        """The SHA-256 of every segmentation that is there."""
        return {case: sha256_of(self.segmentation(case)) for case in cases if self.segmentation(case).exists()}

    def move_aside(self, cases: Iterable[str], when: str) -> Path:
        """Keep the results, what the cascade's next stages are fed among them, under another name."""
        aside = self.layout.validation_aside(self.run, when)
        aside.parent.mkdir(parents=True, exist_ok=True)
        self.folder.rename(aside)
        names = [f"{case}{ending}" for case in cases for ending in DATA_ENDINGS]
        for stage in self.next_stages:
            folder = self.layout.stage_predictions(self.run, stage)
            for file in [folder / name for name in names if (folder / name).exists()]:
                (aside / stage).mkdir(exist_ok=True)
                file.rename(aside / stage / file.name)
        return aside

    def _stage_trouble(self, case: str, stage: str) -> str:
        """The same for what a cascade's next stage is fed. nnU-Net leaves a case out that this stage lacks."""
        identifier = self.plans_manager.get_configuration(stage).data_identifier
        data = str(self.layout.data_folder(self.run.dataset, identifier))
        predicted = self.layout.stage_predictions(self.run, stage)
        try:
            dataset_class = infer_dataset_class(data)
            shape = dataset_class(data, [case]).load_case(case)[0].shape[1:]
        except FileNotFoundError:
            return ""
        files = [predicted / f"{case}{ending}" for ending in DATA_ENDINGS if (predicted / f"{case}{ending}").exists()]
        if not files:
            return MISSING
        if trouble := trouble_of(files[0]):  # a memory map of a cut file would end this process
            return f"{files[0]} {trouble}"
        try:
            found = np.asarray(dataset_class(data, [case], str(predicted)).load_case(case)[2][:]).shape
        except UNREADABLE as wrong:
            return f"{files[0]} cannot be read ({_one_line(wrong)})"
        return "" if found == shape else f"{files[0]} has the shape {found} instead of {shape}"


def segmentation_trouble(reader: Any, predicted: Path, truth: Path) -> str:
    """Why a predicted segmentation is not whole; empty when it can be read and has the ground truth's shape.

    SimpleITK reads a .nii.gz that is cut short without a word and fills it up, so its checksum is read as well.
    """
    if not predicted.exists():
        return MISSING
    try:
        if predicted.suffix == ".gz":
            _check_gzip(predicted)
        found = reader.read_seg(str(predicted))[0].shape
    except UNREADABLE as wrong:
        return f"{predicted.name} cannot be read ({_one_line(wrong)})"
    expected = reader.read_seg(str(truth))[0].shape
    return "" if found == expected else f"{predicted.name} has the shape {found} instead of {expected}"


def _check_gzip(path: Path) -> None:
    """Read to the end, where gzip compares length and CRC-32."""
    with gzip.open(path) as file:
        while file.read(2**20):
            pass


def _one_line(wrong: BaseException) -> str:
    return " ".join(str(wrong).split())
