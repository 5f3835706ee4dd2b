"""Where nnU-Net keeps things: the only speaker of its file and folder names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Generic, TypeVar

from nnunet_ext.host import Host
from nnunet_ext.run import ALL, Run, dataset_id

P = TypeVar("P", bound=PurePath)

CHECKPOINT_KINDS = ("final", "latest", "best")  # in the order nnU-Net's --c looks for them
ROOTS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
DATA_ENDINGS = (".b2nd", ".npz")  # what nnU-Net 2.6+ and older versions write, one file per case

_FOLD = re.compile(r"fold_(\d+|all)")
_LOG = re.compile(r"training_log_(\d+)_(\d+)_(\d+)_(\d+)_(\d+)_(\d+)\.txt")


@dataclass(frozen=True)
class Layout(Generic[P]):
    """nnU-Net's three folders and every path below them.

    Paths are pure names: `Layout[Path]` for this machine, `Layout[PurePosixPath]` for a host. Only `datasets`,
    `runs` and `logs` look at a disk, and they do it through a Host.
    """

    raw: P
    preprocessed: P
    results: P

    # a dataset

    def raw_dataset(self, dataset: str) -> P:
        return self.raw / dataset

    def raw_labels(self, dataset: str) -> P:
        return self.raw_dataset(dataset) / "labelsTr"

    def preprocessed_dataset(self, dataset: str) -> P:
        return self.preprocessed / dataset

    def dataset_json(self, dataset: str) -> P:
        return self.preprocessed_dataset(dataset) / "dataset.json"

    def fingerprint(self, dataset: str) -> P:
        return self.preprocessed_dataset(dataset) / "dataset_fingerprint.json"

    def splits(self, dataset: str) -> P:
        return self.preprocessed_dataset(dataset) / "splits_final.json"

    def gt_segmentations(self, dataset: str) -> P:
        return self.preprocessed_dataset(dataset) / "gt_segmentations"

    def plans_file(self, dataset: str, plans: str) -> P:
        return self.preprocessed_dataset(dataset) / f"{plans}.json"

    def data_folder(self, dataset: str, data_identifier: str) -> P:
        """The preprocessed cases of a configuration; several configurations may share one `data_identifier`."""
        return self.preprocessed_dataset(dataset) / data_identifier

    # a run

    def trained_folder(self, run: Run) -> P:
        return self.results / run.dataset / f"{run.trainer}__{run.plans}__{run.configuration}"

    def fold_folder(self, run: Run) -> P:
        return self.trained_folder(run) / f"fold_{run.fold}"

    def control_folder(self, run: Run) -> P:
        """nnx's own folder beside a fold's files."""
        return control_in(self.fold_folder(run))

    def checkpoint(self, run: Run, kind: str) -> P:
        """`kind` is one of CHECKPOINT_KINDS."""
        return checkpoint_in(self.fold_folder(run), kind)

    def previous_checkpoint(self, run: Run, kind: str) -> P:
        """The generation before, which nnx keeps out of nnU-Net's sight."""
        return previous_of(self.checkpoint(run, kind))

    def debug_json(self, run: Run) -> P:
        return self.fold_folder(run) / "debug.json"

    def validation_folder(self, run: Run) -> P:
        return self.fold_folder(run) / "validation"

    def validation_summary(self, run: Run) -> P:
        return self.validation_folder(run) / "summary.json"

    def validation_record(self, run: Run) -> P:
        """What nnx remembers of the results in the validation folder."""
        return self.control_folder(run) / "validation.json"

    def validation_aside(self, run: Run, when: str) -> P:
        """Where results that belong to another checkpoint are kept."""
        return self.control_folder(run) / "previous" / f"validation_{when}"

    def stage_predictions(self, run: Run, next_stage: str) -> P:
        """What `run`'s final validation predicts for the cascade's `next_stage`, all folds in one folder."""
        return self.trained_folder(run) / "predicted_next_stage" / next_stage

    def previous_stage_predictions(self, run: Run, previous_stage: str) -> P:
        """What a cascade's second stage is fed: `previous_stage`'s predictions by the same trainer and plans
        (nnUNetTrainer.__init__, folder_with_segs_from_previous_stage)."""
        first = Run(run.dataset, previous_stage, run.fold, run.trainer, run.plans)
        return self.stage_predictions(first, run.configuration)

    # what is there

    def datasets(self, host: Host) -> list[str]:
        """Every dataset's name in any of the three folders, as nnU-Net's own look-up by number sees them."""
        names = {name for root in (self.raw, self.preprocessed, self.results) for name in _folders(host, root)}
        return sorted(name for name in names if dataset_id(name) is not None)

    def plans_names(self, dataset: str, host: Host) -> list[str]:
        """The identifiers of the plans a preprocessed dataset has (`nnUNetPlans`, ...)."""
        names = (e.name for e in host.list(self.preprocessed_dataset(dataset)) if e.kind == "file")
        return sorted(n.removesuffix(".json") for n in names if n.endswith("Plans.json"))

    def runs(self, host: Host) -> Iterator[Run]:
        """Every fold folder under nnUNet_results, sorted; folders that cannot be read raise OSError."""
        for dataset in _folders(host, self.results):
            if dataset_id(dataset) is None:
                continue
            for trained in _folders(host, self.results / dataset):
                for fold in _folders(host, self.results / dataset / trained):
                    run = run_of_fold_folder(PurePosixPath(dataset, trained, fold))
                    if run is not None:
                        yield run

    def logs(self, run: Run, host: Host) -> list[P]:
        """The training logs of a fold, oldest start first (month and day are not padded: sorted as numbers)."""
        folder = self.fold_folder(run)
        if host.stat(folder) is None:
            return []
        names = [entry.name for entry in host.list(folder) if _LOG.fullmatch(entry.name)]
        return [folder / name for name in sorted(names, key=_started)]


def run_of_fold_folder(folder: PurePath) -> Run | None:
    """The run whose fold folder this is, judged by the last three names; None when it is not one."""
    if len(folder.parts) < 3:
        return None
    dataset, trained, fold_name = folder.parts[-3:]
    parts, fold = trained.split("__"), _FOLD.fullmatch(fold_name)
    if dataset_id(dataset) is None or len(parts) != 3 or not all(parts) or fold is None:
        return None
    return Run(dataset, parts[2], ALL if fold[1] == ALL else int(fold[1]), parts[0], parts[1])


def checkpoint_in(fold_folder: P, kind: str) -> P:
    """A fold folder's checkpoint_<kind>.pth."""
    return fold_folder / f"checkpoint_{kind}.pth"


def control_in(fold_folder: P) -> P:
    """A fold folder's control folder."""
    return fold_folder / ".nnx"


def previous_of(checkpoint: P) -> P:
    """Where the generation before a checkpoint is kept."""
    return control_in(checkpoint.parent) / "previous" / checkpoint.name


def is_junk(name: str) -> bool:
    """Whether a file is what macOS scatters (`.DS_Store`, `._case.b2nd`); inside a data folder it breaks nnU-Net's
    infer_dataset_class or becomes a case of its own."""
    return name == ".DS_Store" or name.startswith("._")


def case_files(case: str, ending: str) -> tuple[str, ...]:
    """The files of one preprocessed case in a data folder, by the ending (one of DATA_ENDINGS) of the first
    (save_case in nnunetv2/training/dataloading/nnunet_dataset.py)."""
    return (f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.pkl") if ending == ".b2nd" else (f"{case}.npz", f"{case}.pkl")


def prediction_files(case: str, file_ending: str, with_probabilities: bool) -> tuple[str, ...]:
    """The files of one predicted case in a validation folder, the segmentation first (export_prediction_from_logits
    in nnunetv2/inference/export_prediction.py writes it last)."""
    return (f"{case}{file_ending}", *((f"{case}.npz", f"{case}.pkl") if with_probabilities else ()))


def layout_of_fold_folder(folder: Path, layout: Layout[Path]) -> Layout[Path]:
    """The same layout with nnUNet_results where `folder` (a fold folder named by its path) really lies."""
    return Layout(layout.raw, layout.preprocessed, folder.parents[2])


def _started(log_name: str) -> tuple[int, ...]:
    found = _LOG.fullmatch(log_name)
    return tuple(int(number) for number in found.groups()) if found else ()


def _folders(host: Host, folder: PurePath) -> list[str]:
    """The folders in a folder, sorted; none when it is not there."""
    try:
        return sorted(entry.name for entry in host.list(folder) if entry.kind == "folder")
    except (FileNotFoundError, NotADirectoryError):
        return []
