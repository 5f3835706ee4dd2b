"""Whether a run's preprocessed dataset is fit: a small made one, damaged in every way that was met."""

from __future__ import annotations

import json
import pickle
import shlex
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunet_ext.checkup.dataset_check import check_dataset
from nnunet_ext.checkup.finding import Finding, is_fit
from nnunet_ext.layout import Layout, case_files
from nnunet_ext.run import Run

CASES = [f"hippo_{number:03}" for number in range(6)]
NETWORK = {"network_class_name": "PlainConvUNet", "arch_kwargs": {"features_per_stage": [2, 4]}}
PLANS = {
    "dataset_name": "Dataset004_Hippocampus",
    "plans_name": "nnUNetPlans",
    "configurations": {
        "2d": {"data_identifier": "flat", "batch_size": 8, "patch_size": [56, 40], "architecture": NETWORK},
        "3d_lowres": {"data_identifier": "low", "batch_size": 2, "patch_size": [40, 56, 40], "next_stage": "second"},
        "second": {"inherits_from": "2d", "previous_stage": "3d_lowres"},
    },
}
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}


@dataclass(frozen=True)
class Made:
    """A made dataset: its layout, and where its cases and ground truth lie."""

    layout: Layout[Path]
    run: Run
    data: Path
    gt: Path

    def check(self, **change: object) -> dict[str, Finding]:
        """The findings that are not ok, by topic."""
        run = Run(**{**vars(self.run), **change})  # type: ignore[arg-type]
        found = list(check_dataset(run, self.layout, lambda what, done, total: None))
        assert all(finding.fix or finding.level != "unfit" for finding in found)
        return {finding.topic: finding for finding in found if finding.level != "ok"}


def frame(size_bytes: int) -> bytes:
    """A file with a Blosc2 frame's header, as long as it says."""
    header = b"\x9e\xa8b2frame\0\xd2" + (203).to_bytes(4, "big") + b"\xcf" + size_bytes.to_bytes(8, "big")
    return header.ljust(size_bytes, b"x")


def write_case(folder: Path, case: str, ending: str) -> None:
    for name in case_files(case, ending):
        path = folder / name
        if path.suffix == ".b2nd":
            path.write_bytes(frame(300))
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("data.npy", b"0" * 64)
        else:
            path.write_bytes(pickle.dumps({"spacing": [1.0]}))


@pytest.fixture
def make(layout: Layout[Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Made]:
    monkeypatch.setattr("nnunet_ext.checkup.dataset_check.has_blosc2", lambda: False)  # the frames are only headers

    def make(ending: str) -> Made:
        run = Run("Dataset004_Hippocampus", "2d", 0)
        data, gt = layout.data_folder(run.dataset, "flat"), layout.gt_segmentations(run.dataset)
        data.mkdir(parents=True)
        gt.mkdir()
        for case in CASES:
            write_case(data, case, ending)
            (gt / f"{case}.nii.gz").write_bytes(b"1")
        described = {"channel_names": {"0": "MRI"}, "labels": LABELS, "file_ending": ".nii.gz"}
        layout.dataset_json(run.dataset).write_text(json.dumps(described))
        layout.fingerprint(run.dataset).write_text("{}")
        layout.plans_file(run.dataset, run.plans).write_text(json.dumps(PLANS))
        splits = [{"train": CASES[:4], "val": CASES[4:]}, {"train": CASES[2:], "val": CASES[:2]}]
        layout.splits(run.dataset).write_text(json.dumps(splits))
        return Made(layout, run, data, gt)

    return make


@pytest.fixture
def made(make: Callable[[str], Made]) -> Made:
    return make(".b2nd")


@pytest.mark.parametrize("ending", [".b2nd", ".npz"])
def test_a_whole_dataset_is_fit_before_its_run_has_begun(make: Callable[[str], Made], ending: str) -> None:
    made = make(ending)
    assert made.check() == {}
    assert made.check(fold="all") == {}


def test_unpacked_npy_twins_and_folders_do_no_harm(make: Callable[[str], Made]) -> None:
    made = make(".npz")
    (made.data / f"{CASES[0]}.npy").write_bytes(b"1")
    (made.data / f"{CASES[0]}_seg.npy").write_bytes(b"1")
    (made.data / "notes").mkdir()
    assert made.check() == {}


def test_the_command_offered_against_macos_junk_removes_it_and_nothing_else(made: Made) -> None:
    for name in (".DS_Store", f"._{CASES[0]}.b2nd", f"._{CASES[0]}.pkl"):
        (made.data / name).write_bytes(b"Mac OS X")
    before = sorted(path.name for path in made.data.iterdir())
    found = made.check()
    assert {topic: finding.level for topic, finding in found.items()} == {"junk": "unfit"}
    subprocess.run(["sh", "-c", found["junk"].fix], check=True)
    assert sorted(path.name for path in made.data.iterdir()) == [name for name in before if not name.startswith(".")]
    assert made.check() == {}


def test_the_command_offered_against_another_ending_removes_it(made: Made) -> None:
    odd = made.data / f".{CASES[0]}.b2nd.Xa3k"
    odd.write_bytes(b"half an rsync")
    found = made.check()["cases"]
    assert (found.level, found.fix) == ("unfit", f"rm {shlex.quote(str(odd))}")
    subprocess.run(["sh", "-c", found.fix], check=True)
    assert made.check() == {}


def test_two_kinds_of_cases_are_unfit(made: Made) -> None:
    write_case(made.data, "older", ".npz")
    assert "both .b2nd and .npz" in made.check()["cases"].finding


def test_a_folder_without_cases_is_unfit(made: Made) -> None:
    for path in made.data.iterdir():
        path.unlink()
    found = made.check()["cases"]
    assert "holds no preprocessed cases" in found.finding
    assert found.fix == "nnUNetv2_preprocess -d 4 -plans_name nnUNetPlans -c 2d"


def test_a_configuration_that_was_not_preprocessed_is_unfit(made: Made) -> None:
    assert "is not preprocessed" in made.check(configuration="3d_lowres")["cases"].finding


def test_damaged_files_are_named_and_counted(made: Made) -> None:
    paths = [made.data / name for case in CASES[:2] for name in case_files(case, ".b2nd")]
    for path in paths[:5]:
        path.write_bytes(path.read_bytes()[:-1])
    found = made.check()["files"]
    assert found.finding.startswith("5 of 18 files are not as they should be: hippo_000.b2nd is cut short (299 of 300")
    assert found.finding.endswith("and 2 more.")


def test_a_missing_companion_is_unfit_and_a_missing_case_too(made: Made) -> None:
    seg = made.data / case_files(CASES[0], ".b2nd")[1]
    seg.unlink()
    for name in case_files(CASES[1], ".b2nd"):
        (made.data / name).unlink()
    found = made.check()
    assert f"{seg.name} is not there" in found["files"].finding
    assert f"1 case ({CASES[1]})" in found["split"].finding


def test_damage_in_a_case_that_the_fold_does_not_use_is_not_its_trouble(made: Made) -> None:
    write_case(made.data, "extra", ".b2nd")
    (made.data / "extra.pkl").write_bytes(b"")
    assert {topic: finding.level for topic, finding in made.check().items()} == {"split": "note"}


def test_missing_ground_truth_of_validation_cases_is_unfit_of_others_a_note(made: Made) -> None:
    (made.gt / f"{CASES[0]}.nii.gz").unlink()
    assert made.check()["ground truth"].level == "note"
    assert made.check(fold=1)["ground truth"].level == "unfit"
    for path in made.gt.iterdir():
        path.unlink()
    made.gt.rmdir()
    assert "lacks 6 cases (hippo_000, hippo_001, hippo_002, ...)" in made.check()["ground truth"].finding


def test_a_lost_split_is_unfit_once_a_checkpoint_exists(made: Made) -> None:
    made.layout.splits(made.run.dataset).unlink()
    assert made.check()["split"].level == "note"
    made.layout.fold_folder(made.run).mkdir(parents=True)
    made.layout.checkpoint(made.run, "latest").write_bytes(b"")
    assert made.check()["split"].level == "unfit"


def test_a_second_stage_needs_the_predictions_of_the_first(made: Made) -> None:
    found = made.check(configuration="second")["previous stage"]
    assert "6 of 6 predictions of 3d_lowres" in found.finding
    assert "nnUNetv2_train 4 3d_lowres 0" in found.fix
    second = Run("Dataset004_Hippocampus", "second", 0)
    folder = made.layout.previous_stage_predictions(second, "3d_lowres")
    folder.mkdir(parents=True)
    for case in CASES:
        (folder / f"{case}.b2nd").write_bytes(frame(100))
    assert made.check(configuration="second") == {}
    (folder / f"{CASES[5]}.b2nd").write_bytes(b"")
    assert "1 of 6 predictions" in made.check(configuration="second")["previous stage"].finding


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]"])
@pytest.mark.parametrize("name", ["dataset_json", "splits", "plans_file"])
def test_broken_json_is_one_unfit_finding(made: Made, name: str, content: bytes) -> None:
    if name == "splits" and content == b"[]":
        content = b"{}1"
    words = [made.run.dataset, made.run.plans] if name == "plans_file" else [made.run.dataset]
    path: Path = getattr(made.layout, name)(*words)
    path.write_bytes(content)
    found = made.check()
    assert [finding.level for finding in found.values()] == ["unfit"]
    assert str(path) in found["dataset"].finding


@pytest.mark.parametrize("name", ["dataset_json", "splits", "fingerprint", "data_folder", "gt_segmentations"])
def test_what_cannot_be_read_is_an_unfit_finding(made: Made, name: str) -> None:
    """A link to itself cannot be opened by root either."""
    path = made.data if name == "data_folder" else getattr(made.layout, name)(made.run.dataset)
    path.rename(path.with_name("away"))
    path.symlink_to(path)
    assert not is_fit(made.check().values())


def test_a_missing_fingerprint_is_unfit(made: Made) -> None:
    made.layout.fingerprint(made.run.dataset).unlink()
    assert {topic: finding.level for topic, finding in made.check().items()} == {"fingerprint": "unfit"}


def test_an_unknown_configuration_and_unknown_plans_are_findings(made: Made) -> None:
    assert "has no configuration 2D" in made.check(configuration="2D")["dataset"].finding
    assert "ResEnc" in made.check(plans="nnUNetResEncUNetLPlans")["dataset"].finding
    assert "does not exist" in made.check(dataset="Dataset009_Gone")["dataset"].finding


@pytest.mark.nnunet
def test_real_cases_are_opened_and_damage_inside_is_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    blosc2, numpy = pytest.importorskip("blosc2"), pytest.importorskip("numpy")
    monkeypatch.setattr("nnunet_ext.checkup.dataset_check.has_blosc2", lambda: True)
    random = numpy.random.default_rng(0)
    for case in CASES:
        for name, channels in zip(case_files(case, ".b2nd")[:2], (1, 1), strict=True):
            (made.data / name).unlink()
            blosc2.asarray(random.random((channels, 20, 30, 40)), urlpath=str(made.data / name))
    assert made.check() == {}
    hit = made.data / case_files(CASES[0], ".b2nd")[0]
    data = bytearray(hit.read_bytes())
    data[40:4000] = bytes(3960)
    hit.write_bytes(data)
    two, other = (made.data / case_files(case, ".b2nd")[0] for case in CASES[1:3])
    two.unlink()
    blosc2.asarray(random.random((2, 20, 30, 40)), urlpath=str(two))
    other.unlink()
    blosc2.asarray(random.random((1, 20, 30, 41)), urlpath=str(other))
    found = made.check()["files"].finding
    assert "3 of 18" in found
    assert f"{hit.name} does not open" in found
    assert f"{two.name} has 2 channel(s), but dataset.json names 1" in found
    assert f"{case_files(CASES[2], '.b2nd')[1]} has the shape (20, 30, 40), but its image (20, 30, 41)" in found
