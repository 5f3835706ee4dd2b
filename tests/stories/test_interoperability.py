"""A run goes from plain nnU-Net to nnx and back, and is used where nnx is not installed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import made_data
import pytest

from nnunet_ext.checkpoint import Checkpoint
from nnunet_ext.control import Control
from nnunet_ext.errors import Exit
from nnunet_ext.history import History
from nnunet_ext.host import HERE
from nnunet_ext.layout import Layout
from nnunet_ext.run import Run

pytestmark = pytest.mark.nnunet

RUN = Run(made_data.DATASET, "2d", 0, "TrainerOfNineEpochs")
THEIR_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class TrainerOfNineEpochs(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 9, 2, 1
        self.save_every = 1
"""


class Folders:
    """One user's nnU-Net folders, external trainers, and a Python with nnU-Net but without nnx."""

    def __init__(self, made: Layout[Path], folder: Path) -> None:
        self.folder = folder  # python -c looks for modules in the working directory, too
        self.layout = made_data.copy_of(made, folder)
        theirs = folder / "their trainers"
        theirs.mkdir()
        (theirs / "of_nine.py").write_text(THEIR_TRAINER)
        self.environment = made_data.environment(self.layout, nnUNet_n_proc_DA="0", nnUNet_extTrainer=str(theirs))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "plain"], check=True)
        self.plain = str(folder / "plain" / "bin" / "python")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        # a .pth file's folder is added to the path, but the .pth files in that folder (nnx's own) are not read
        site = folder / "plain" / "lib" / version / "site-packages" / "nnunet.pth"
        site.write_text(sysconfig.get_path("purelib") + "\n")

    @property
    def control(self) -> Control:
        return Control(self.layout.control_folder(RUN))

    def stock(self, entry: str, *words: str) -> list[str]:
        """A command of nnU-Net in the Python without nnx."""
        module, function = entry.split(":")
        return [self.plain, "-c", f"from {module} import {function}; {function}()", *words]

    def epochs_logged(self) -> list[int]:
        text = "".join(log.read_text() for log in self.layout.logs(RUN, HERE))
        return [int(number) for number in re.findall(r": Epoch (\d+) *$", text, re.MULTILINE)]


TRAIN = "nnunetv2.run.run_training:run_training_entry"
PREDICT = "nnunetv2.inference.predict_from_raw_data:predict_entry_point"


def wait_until(true, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folders(made: Layout[Path], tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(made, tmp_path_factory.mktemp("plain & nnx"))


def test_nnx_is_really_missing_in_the_plain_python(folders: Folders) -> None:
    done = subprocess.run(
        [folders.plain, "-c", "import nnunetv2; import nnunet_ext"], cwd=folders.folder, capture_output=True, text=True
    )
    assert "No module named 'nnunet_ext'" in done.stderr


def test_a_run_goes_from_plain_nnunet_to_nnx_and_back_with_an_unbroken_history(folders: Folders) -> None:
    layout, words = folders.layout, [*RUN.words(), "-device", "cpu"]
    latest = layout.checkpoint(RUN, "latest")

    first = folders.stock(TRAIN, *words)
    where = {"env": folders.environment, "cwd": folders.folder, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(first, **where) as plain:
        wait_until(lambda: 3 in folders.epochs_logged(), plain)
        os.kill(plain.pid, signal.SIGKILL)
    stock = Checkpoint.read(latest)
    assert stock.current_epoch == 3
    assert "nnx" not in stock.init_args

    nnx = [made_data.program("nnx"), "train", *words[:5], "--device", "cpu", "--c"]
    with subprocess.Popen(nnx, **where) as ours:
        wait_until(lambda: 5 in folders.epochs_logged(), ours)
        folders.control.request_stop("epoch", "pause", "back to plain nnU-Net", by="test")
    assert ours.returncode == Exit.STOP_REQUESTED
    paused = Checkpoint.read(latest)
    assert paused.current_epoch in (6, 7)
    assert (paused.trainer_name, paused.inconsistency()) == (RUN.trainer, None)

    subprocess.run(folders.stock(TRAIN, *words, "--c"), **where, check=True)
    final = Checkpoint.read(layout.checkpoint(RUN, "final"))
    assert (final.current_epoch, final.trainer_name, final.inconsistency()) == (9, RUN.trainer, None)
    assert sorted(set(folders.epochs_logged())) == list(range(9))
    history = History.from_logging(final.logging)
    earlier = [History.from_logging(one.logging).rows for one in (stock, paused)]
    assert history.rows[:3] == earlier[0]
    assert history.rows[: paused.current_epoch] == earlier[1]
    assert [row.learning_rate for row in history.rows] == pytest.approx([0.01 * (1 - e / 9) ** 0.9 for e in range(9)])
    assert [folder.name for folder in (layout.results / RUN.dataset).iterdir()] == [layout.trained_folder(RUN).name]
    assert layout.validation_summary(RUN).exists()


def test_plain_nnunet_predicts_with_it_where_nnx_is_not_installed(folders: Folders, tmp_path: Path) -> None:
    images = folders.layout.raw_dataset(RUN.dataset) / "imagesTr"
    image = min(images.iterdir())
    case = tmp_path / "one case"
    case.mkdir()
    (case / image.name).write_bytes(image.read_bytes())
    number = str(RUN.dataset_id)
    words = ["-i", str(case), "-o", str(tmp_path / "out"), "-d", number, "-c", "2d", "-f", "0", "-tr", RUN.trainer]
    argv = folders.stock(PREDICT, *words, "-device", "cpu", "-npp", "1", "-nps", "1")
    subprocess.run(argv, env=folders.environment, cwd=folders.folder, check=True, capture_output=True)
    assert (tmp_path / "out" / image.name.replace("_0000", "")).stat().st_size > 0
