"""The child process: nnU-Net's own entry, third-party trainers, refusals, exit codes."""

from __future__ import annotations

import subprocess
import sys

import made_data
import pytest

from nnunet_ext.checkpoint import Checkpoint
from nnunet_ext.control import Control
from nnunet_ext.errors import Exit
from nnunet_ext.layout import Layout
from nnunet_ext.run import Run

pytestmark = pytest.mark.nnunet

THIRD_PARTY = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class TheirTrainer(nnUNetTrainer):
    def on_epoch_end(self):
        super().on_epoch_end()
        self.print_to_log_file("their own line")
"""
SHORT = {"NNX_EPOCHS": "2", "NNX_ITERATIONS": "2", "NNX_VAL_ITERATIONS": "1", "nnUNet_n_proc_DA": "0"}


def launch(layout: Layout, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nnunet_ext.trainers.launch", "42", "2d", "0", "-device", "cpu", *words]
    environment = made_data.environment(layout, **{**SHORT, **more})
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def test_a_third_partys_trainer_gets_the_powers_and_keeps_its_name(made, tmp_path) -> None:
    layout = made_data.copy_of(made, tmp_path)
    theirs = tmp_path / "their trainers"
    theirs.mkdir()
    (theirs / "their_module.py").write_text(THIRD_PARTY)
    done = launch(layout, "-tr", "TheirTrainer", nnUNet_extTrainer=str(theirs), NNX_TARGET="1e-9")
    assert done.returncode == Exit.TARGET, done.stderr
    run = Run(made_data.DATASET, "2d", 0, "TheirTrainer")
    final = Checkpoint.read(layout.checkpoint(run, "final"))
    assert (final.trainer_name, final.current_epoch) == ("TheirTrainer", 1)
    assert "their own line" in done.stdout
    assert layout.validation_summary(run).exists()


def test_a_crash_keeps_its_traceback_and_gets_a_sentence_an_event_and_its_own_code(made, tmp_path) -> None:
    layout = made_data.copy_of(made, tmp_path)
    theirs = tmp_path / "their trainers"
    theirs.mkdir()
    (theirs / "their_module.py").write_text(THIRD_PARTY + "        raise RuntimeError('their own mistake')\n")
    folder = layout.fold_folder(Run(made_data.DATASET, "2d", 0, "TheirTrainer"))
    done = launch(layout, "-tr", "TheirTrainer", nnUNet_extTrainer=str(theirs), NNX_FOLD_FOLDER=str(folder))
    assert done.returncode == Exit.CRASHED
    assert "nnx: The training crashed: RuntimeError: their own mistake." in done.stderr
    assert "their_module.py" in done.stderr
    assert [e["cause"] for e in Control(folder / ".nnx").events() if e["event"] == "crashed"] == [
        "RuntimeError: their own mistake"
    ]


def test_continuing_where_nothing_is_refused_instead_of_started_at_epoch_0(made, tmp_path) -> None:
    layout = made_data.copy_of(made, tmp_path)
    done = launch(layout, "--c")
    assert done.returncode == Exit.REFUSED
    assert "epoch 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(layout.fold_folder(Run(made_data.DATASET, "2d", 0)).glob("*.pth"))


def test_the_shelf_serves_plain_nnunet(made, tmp_path) -> None:
    import nnunet_ext

    layout = made_data.copy_of(made, tmp_path)
    shelf = f"{nnunet_ext.__path__[0]}/shelf"
    argv = [made_data.program("nnUNetv2_train"), "42", "2d", "0", "-tr", "nnUNetTrainerNNX", "-device", "cpu"]
    environment = made_data.environment(layout, **SHORT, nnUNet_extTrainer=shelf, NNX_TARGET="1e-9")
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == Exit.TARGET, done.stderr
    final = Checkpoint.read(layout.checkpoint(Run(made_data.DATASET, "2d", 0, "nnUNetTrainerNNX"), "final"))
    assert (final.trainer_name, final.current_epoch) == ("nnUNetTrainerNNX", 1)
