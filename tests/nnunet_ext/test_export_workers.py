"""The number of export processes fits the RAM that is free, and what was asked for wins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_ext.export_workers import (
    GIB,
    VARIABLE,
    WORKER_BYTES,
    Volume,
    choose_workers,
    decide,
    export_bytes,
    largest_export_bytes,
)
from nnunet_ext.layout import Layout
from nnunet_ext.run import Run

PLANS = {
    "plans_name": "nnUNetPlans",
    "dataset_name": "Dataset004_Hippocampus",
    "transpose_forward": [2, 0, 1],
    "configurations": {
        "3d_fullres": {"batch_size": 2, "patch_size": [32, 64, 64], "spacing": [2.0, 1.0, 1.0]},
        "2d": {"batch_size": 2, "patch_size": [64, 64], "spacing": [1.0, 1.0]},
    },
}
DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
FINGERPRINT = {
    "shapes_after_crop": [[300, 300, 100], [10, 10, 10]],
    "spacings": [[1.0, 1.0, 4.0], [1.0, 1.0, 1.0]],
    "median_relative_size_after_cropping": 0.5,
}


@pytest.fixture
def run(layout: Layout[Path]) -> Run:
    run = Run("Dataset004_Hippocampus", "3d_fullres", 0)
    layout.preprocessed_dataset(run.dataset).mkdir()
    layout.plans_file(run.dataset, run.plans).write_text(json.dumps(PLANS))
    layout.dataset_json(run.dataset).write_text(json.dumps(DATASET))
    layout.fingerprint(run.dataset).write_text(json.dumps(FINGERPRINT))
    return run


@pytest.mark.parametrize(
    ("need_gib", "free_gib", "cores", "count"),
    [
        (1, 100, 16, 8),  # never more than nnU-Net's own default
        (1, 100, 2, 2),
        (2, 10, 16, 3),  # 0.8 x 10 / 2, one of them for the process that predicts
        (50, 10, 16, 1),
        (1, 100, 0.5, 1),
        (None, 100, 16, 2),
    ],
)
def test_as_many_as_fit_and_at_least_one(need_gib: float | None, free_gib: float, cores: float, count: int) -> None:
    need = None if need_gib is None else int(need_gib * GIB)
    assert decide(need, int(free_gib * GIB), cores).count == count


def test_one_that_may_not_fit_is_announced() -> None:
    assert "may not fit" in decide(50 * GIB, 10 * GIB, 16).reason


# classes, predicted and original shape, image voxels, anisotropic, probabilities, MiB measured above an idle worker
MEASURED = [
    (3, (200, 220, 220), (240, 260, 260), 21_600_000, False, False, 534),
    (3, (200, 250, 250), (80, 350, 350), 9_800_000, True, False, 1372),
    (12, (120, 160, 160), (140, 200, 200), 5_600_000, False, False, 561),
    (12, (120, 160, 160), (60, 240, 240), 3_456_000, True, False, 783),
    (3, (60, 400, 400), (60, 512, 512), 15_728_640, False, False, 527),
    (3, (200, 220, 220), (240, 260, 260), 21_600_000, False, True, 681),
    (12, (120, 160, 160), (140, 200, 200), 5_600_000, False, True, 793),
    (12, (120, 160, 160), (120, 160, 160), 3_072_000, False, True, 413),
    (3, (60, 400, 400), (60, 512, 512), 15_728_640, False, True, 666),
]


@pytest.mark.parametrize("case", MEASURED)
def test_the_need_is_at_least_what_was_measured_and_not_far_above(case) -> None:
    classes, predicted, cropped, image_voxels, anisotropic, probabilities, measured_mib = case
    volume = Volume(predicted, cropped, image_voxels, anisotropic)
    need_mib = (export_bytes(classes, volume, probabilities) - WORKER_BYTES) / 2**20
    assert measured_mib <= need_mib <= 1.2 * measured_mib


def test_the_largest_case_decides_with_axes_in_the_order_of_the_plans(layout: Layout[Path], run: Run) -> None:
    # transposed: 100 x 300 x 300 voxels of 4 x 1 x 1 mm, predicted at 2 x 1 x 1 mm: slices are resampled on their own
    volume = Volume((200, 300, 300), (100, 300, 300), 2 * 9_000_000, True)
    assert largest_export_bytes(run, layout, True) == export_bytes(3, volume, True)
    flat = Run(run.dataset, "2d", 0)
    volume = Volume((100, 300, 300), (100, 300, 300), 2 * 9_000_000, False)
    assert largest_export_bytes(flat, layout, False) == export_bytes(3, volume, False)


@pytest.mark.parametrize("text", [None, "{", "{}", '{"shapes_after_crop": [[1, 2]], "spacings": [[0, 0, 0]]}'])
def test_a_fingerprint_that_says_nothing_leaves_the_need_unknown(layout: Layout[Path], run: Run, text) -> None:
    path = layout.fingerprint(run.dataset)
    path.unlink() if text is None else path.write_text(text)
    assert largest_export_bytes(run, layout, False) is None


def test_what_was_asked_for_wins_over_the_environment_and_that_over_the_ram(layout: Layout[Path], run: Run) -> None:
    assert choose_workers(run, layout, False, 5, {VARIABLE: "3"}).count == 5
    assert choose_workers(run, layout, False, None, {VARIABLE: "3"}).count == 3
    chosen = choose_workers(run, layout, False, None, {})
    assert 1 <= chosen.count <= 8
    assert "GiB of RAM are free" in chosen.reason
