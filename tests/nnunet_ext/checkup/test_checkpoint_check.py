"""Whether a checkpoint goes on with plans and dataset: a real checkpoint of nnU-Net's, and made shapes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_ext.checkpoint import Checkpoint
from nnunet_ext.checkup.checkpoint_check import check_checkpoint, misfits
from nnunet_ext.configuration import Configuration
from nnunet_ext.dataset import Dataset
from nnunet_ext.layout import Layout
from nnunet_ext.plans import Plans
from nnunet_ext.run import Run

REAL = next(Path(__file__).parents[2].glob("data/checkpoints/*_2d.pth"))
DATASET = Dataset(1, (0, 1, 2), None, ".nii.gz")


@pytest.fixture
def trained(tmp_path: Path) -> Configuration:
    """The configuration that the real checkpoint was trained with."""
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(Checkpoint.read(REAL).init_args["plans"]))
    return Plans.read(path).configuration("2d")


def findings(
    layout: Layout[Path], run: Run, configuration: Configuration, dataset: Dataset = DATASET
) -> list[tuple[str, str]]:
    return [(f.level, f.finding) for f in check_checkpoint(run, layout, configuration, dataset)]


@pytest.fixture
def run(layout: Layout[Path], make_run: Callable[..., Run]) -> Run:
    run = make_run()
    shutil.copy(REAL, layout.checkpoint(run, "latest"))
    return run


def test_a_run_without_checkpoints_has_no_finding(
    layout: Layout[Path], make_run: Callable[..., Run], trained: Configuration
) -> None:
    assert findings(layout, make_run(), trained) == []


def test_a_checkpoint_fits_what_it_was_trained_with(layout: Layout[Path], run: Run, trained: Configuration) -> None:
    assert findings(layout, run, trained) == [
        ("ok", f"{layout.checkpoint(run, 'latest').name} (after 3 epochs) fits the plans and the dataset.")
    ]


def test_another_batch_size_is_a_note(layout: Layout[Path], run: Run, trained: Configuration) -> None:
    other = dataclasses.replace(trained, batch_size=7)
    (level, sentence), fits = findings(layout, run, other)
    assert (level, fits[0]) == ("note", "ok")
    assert f"batch_size was {trained.batch_size}, is 7" in sentence


@pytest.mark.parametrize("change", [{"features_per_stage": (2, 4, 8)}, {"spacing": (2.0, 2.0)}, {"strides": None}])
def test_another_network_or_spacing_is_unfit(
    layout: Layout[Path], run: Run, trained: Configuration, change: dict[str, object]
) -> None:
    ((level, sentence),) = findings(layout, run, dataclasses.replace(trained, **change))  # type: ignore[arg-type]
    assert level == "unfit"
    assert next(iter(change)) in sentence


@pytest.mark.parametrize(
    ("dataset", "word"),
    [
        (Dataset(2, (0, 1, 2), None, ".nii.gz"), "takes 1 input channel, the dataset gives 2"),
        (Dataset(1, (0, 1, 2, 3), None, ".nii.gz"), "has 3 outputs, the dataset's labels make 4"),
    ],
)
def test_other_channels_or_labels_are_unfit(
    layout: Layout[Path], run: Run, trained: Configuration, dataset: Dataset, word: str
) -> None:
    ((level, sentence),) = findings(layout, run, trained, dataset)
    assert level == "unfit"
    assert word in sentence


def test_a_damaged_checkpoint_beside_a_whole_one_is_a_note(
    layout: Layout[Path], run: Run, trained: Configuration
) -> None:
    layout.checkpoint(run, "best").write_bytes(REAL.read_bytes()[:5000])
    assert [level for level, _ in findings(layout, run, trained)] == ["note", "ok"]


def test_only_damaged_checkpoints_are_unfit(layout: Layout[Path], run: Run, trained: Configuration) -> None:
    layout.checkpoint(run, "latest").write_bytes(b"")
    assert [level for level, _ in findings(layout, run, trained)] == ["unfit"]


def test_a_second_stage_takes_one_channel_per_foreground_label_more(trained: Configuration) -> None:
    second = dataclasses.replace(trained, previous_stage="3d_lowres", patch_size=(40, 56, 40))
    shapes = {
        "encoder.stages.0.0.convs.0.conv.weight": (32, 3, 3, 3, 3),
        "decoder.seg_layers.1.weight": (3, 32, 1, 1, 1),
    }
    assert list(misfits(shapes, second, DATASET)) == []
    first = dataclasses.replace(second, previous_stage=None)
    assert list(misfits(shapes, first, DATASET)) == ["its network takes 3 input channels, the dataset gives 1"]


def test_a_2d_network_does_not_fit_a_3d_configuration(trained: Configuration) -> None:
    shapes = {"encoder.stem.conv.weight": (32, 1, 3, 3)}
    in_3d = dataclasses.replace(trained, patch_size=(40, 56, 40))
    assert list(misfits(shapes, in_3d, DATASET)) == ["its network is 2D, the configuration 3D"]
