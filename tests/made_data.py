"""A small dataset made for tests, in nnU-Net's raw format, planned and preprocessed by nnU-Net itself.

The stories and the equivalence test can run on a real one instead, preprocessed for 2d with a small batch:

    NNX_TEST_DATA=/folder/with/nnUNet_raw/and/so/on NNX_TEST_DATASET=Dataset004_Hippocampus bin/test tests/stories
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from nnunet_ext.layout import ROOTS, Layout
from nnunet_ext.plans import Plans

DATASET = os.environ.get("NNX_TEST_DATASET", "Dataset042_Made")
CASES = 10
QUIET = {
    "nnUNet_n_proc_DA": "1",
    "nnUNet_def_n_proc": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",  # tests wait for lines
    "PYTHONWARNINGS": "ignore",
}


def prepared(folder: Path) -> Layout[Path]:
    """The dataset, made in `folder`, or the real one that the environment names."""
    real = os.environ.get("NNX_TEST_DATA")
    return make(folder) if real is None else layout_in(Path(real))


def layout_in(folder: Path) -> Layout[Path]:
    return Layout(*(folder / root for root in ROOTS))


def environment(layout: Layout[Path], **more: str) -> dict[str, str]:
    """The environment a user has, without any setting of nnx that the developer may have."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("NNX_", "nnUNet_"))}
    roots = dict(zip(ROOTS, map(str, (layout.raw, layout.preprocessed, layout.results)), strict=True))
    return {**own, **QUIET, **roots, **more}


def make(folder: Path) -> Layout[Path]:
    """Two touching balls in noise, 10 cases of about 12 x 24 x 20 voxels; preprocessed for 2d with a small network."""
    layout = layout_in(folder)
    for root in (layout.raw, layout.preprocessed, layout.results):
        root.mkdir(parents=True)
    _write_raw(layout.raw_dataset(DATASET))
    argv = [program("nnUNetv2_plan_and_preprocess"), "-d", "42", "-c", "2d", "-np", "1", "-npfp", "1"]
    subprocess.run(argv, env=environment(layout), check=True, capture_output=True)
    plans = Plans.read(layout.plans_file(DATASET, "nnUNetPlans"))
    shrink = '.configurations["2d"] |= (.batch_size = 4 | .architecture.arch_kwargs.features_per_stage |= map(. / 8))'
    plans.patch(shrink, "tests want seconds", when=datetime.now(timezone.utc))
    return layout


def copy_of(made: Layout[Path], folder: Path) -> Layout[Path]:
    """The same dataset elsewhere, with results of its own."""
    layout = layout_in(folder)
    shutil.copytree(made.raw, layout.raw)
    shutil.copytree(made.preprocessed, layout.preprocessed)
    layout.results.mkdir()
    return layout


def program(name: str) -> str:
    """nnU-Net's command of the environment the tests run in."""
    return str(Path(sys.executable).with_name(name))


def _write_raw(folder: Path) -> None:
    import numpy as np
    import SimpleITK

    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    random = np.random.default_rng(42)
    for case in range(CASES):
        shape = (12, 24 + case % 3, 20)
        grid = np.moveaxis(np.indices(shape), 0, -1)
        centre = np.array(shape) / 2 + random.uniform(-2, 2, 3)
        labels = np.zeros(shape, np.uint8)
        labels[np.linalg.norm((grid - centre) * (1.5, 1, 1), axis=-1) < 7] = 1
        labels[np.linalg.norm((grid - centre - (0, 6, 0)) * (1.5, 1, 1), axis=-1) < 5] = 2
        image = random.normal(0, 0.4, shape) + labels
        name = f"made_{case:03d}"
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(image.astype(np.float32)), folder / "imagesTr" / f"{name}_0000.nii.gz"
        )
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), folder / "labelsTr" / f"{name}.nii.gz")
    about = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))
