"""What many tests share: nnU-Net folders with an awkward path, and nnx called as a user calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import made_data
import pytest

from nnunet_ext.layout import ROOTS, Layout
from nnunet_ext.run import Run


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout[Path]:
    """Empty nnU-Net folders, named by the environment; the working directory and home are empty, too."""
    home = tmp_path / "home of 'Zoë'"
    folders = [home / root for root in ROOTS]
    for root, folder in zip(ROOTS, folders, strict=True):
        folder.mkdir(parents=True)
        monkeypatch.setenv(root, str(folder))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return Layout(*folders)


@pytest.fixture
def make_run(layout: Layout[Path]) -> Callable[..., Run]:
    """Makes a run's fold folder: make_run("Dataset004_Hippocampus", "2d", 0)."""

    def make(
        dataset: str = "Dataset004_Hippocampus", configuration: str = "2d", fold: int | str = 0, **rest: str
    ) -> Run:
        run = Run(dataset, configuration, fold, **rest)
        layout.fold_folder(run).mkdir(parents=True)
        return run

    return make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Layout[Path]:
    """A small dataset, planned and preprocessed by the real nnU-Net. Do not train in it: take a copy."""
    pytest.importorskip("nnunetv2")
    return made_data.prepared(tmp_path_factory.mktemp("a 'made' dataset"))
