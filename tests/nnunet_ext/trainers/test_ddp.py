"""Two ranks that train together: nnU-Net's own DDP, on CPU (tests/gloo.py). What would hang fails after a minute."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_data
import psutil
import pytest
from fold import Fold
from lives import Life

from nnunet_ext.checkpoint import Checkpoint
from nnunet_ext.errors import Exit
from nnunet_ext.layout import Layout
from nnunet_ext.run import Run

pytestmark = pytest.mark.nnunet

GLOO = Path(__file__).parents[2] / "gloo.py"
BEGUN, DONE = ": Current learning rate", ": Epoch time"  # with rank 0's time before; rank 1 says the same without it
ENDS_WITHIN_S = 180


class Together(Fold):
    """One fold, trained by two ranks."""

    def __init__(self, layout: Layout[Path], folder: Path) -> None:
        self.layout = layout
        self.scratch = folder
        self.run = Run(made_data.DATASET, "2d", 0)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **settings: Any) -> Life:
        asked = {"NNX_EPOCHS": 100, "NNX_ITERATIONS": 10, "NNX_VAL_ITERATIONS": 2, "nnUNet_n_proc_DA": 0, **settings}
        told = {name: str(value) for name, value in asked.items()}
        told |= {"NNX_FOLD_FOLDER": str(self.folder), "OMP_WAIT_POLICY": "passive"}
        argv = [sys.executable, str(GLOO), *self.run.words(), "-num_gpus", "2", "-device", "cuda"]
        if self.epoch:
            argv.append("--c")
        output = self.scratch / f"together{len(self.processes)}.out"
        with output.open("wb") as file:
            process = subprocess.Popen(
                argv,
                env=made_data.environment(self.layout, **told),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return Life(process.pid, output, process.poll)

    def stopped(self) -> dict[str, Any]:
        return [event for event in self.control.events() if event["event"] == "stopped"][-1]


def rank(number: int, life: Life) -> psutil.Process:
    spawned = [child for child in psutil.Process(life.pid).children() if "--multiprocessing-fork" in child.cmdline()]
    return sorted(spawned, key=lambda child: child.pid)[number]


@pytest.fixture(scope="module")
def together(made: Layout[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    folder = tmp_path_factory.mktemp("two 'ranks' ö")
    together = Together(made_data.copy_of(made, folder), folder)
    yield together
    for process in together.processes:
        process.kill()
        process.wait()


def test_a_signal_to_one_rank_alone_stops_both_at_the_next_batch(together: Together) -> None:
    before = together.epoch
    life = together.start()
    life.wait_for(BEGUN, ENDS_WITHIN_S, times=2)
    rank(1, life).send_signal(signal.SIGTERM)
    assert life.code(ENDS_WITHIN_S) == Exit.REQUEUE
    assert together.epoch == before + life.output.count(DONE)
    assert together.stopped()["reason"] == "SIGTERM"
    assert life.left_over() == []


@pytest.mark.parametrize("mode", ["epoch", "now"])
def test_a_request_that_only_rank_0_sees_pauses_both(together: Together, mode: Any) -> None:
    before = together.epoch
    life = together.start(NNX_ITERATIONS=40)
    life.wait_for(BEGUN, ENDS_WITHIN_S)
    together.control.request_stop(mode, "pause", "enough", by="a test")
    assert life.code(ENDS_WITHIN_S) == Exit.STOP_REQUESTED
    assert together.epoch == before + life.output.count(DONE)
    assert together.control.pending_stop() is None
    assert "enough, by a test" in together.stopped()["reason"]
    assert life.left_over() == []


def test_ctrl_c_which_reaches_the_ranks_twice_ends_both_after_the_epoch(together: Together) -> None:
    before = together.epoch
    life = together.start(NNX_ITERATIONS=40, nnUNet_n_proc_DA=1)
    life.wait_for(BEGUN, ENDS_WITHIN_S)
    life.signal_group(signal.SIGINT)
    assert life.code(ENDS_WITHIN_S) == Exit.INTERRUPTED
    assert life.output.count(DONE) == 1
    assert together.epoch == before + 1
    assert "Traceback" not in life.output
    assert life.left_over() == []


def test_a_rank_that_dies_takes_the_other_with_it_and_no_completed_epoch(together: Together) -> None:
    before = together.epoch
    life = together.start(NNX_ITERATIONS=20, nnUNet_n_proc_DA=1)
    life.wait_for(BEGUN, ENDS_WITHIN_S, times=2)
    rank(1, life).send_signal(signal.SIGKILL)
    assert life.code(ENDS_WITHIN_S) == Exit.CRASHED
    assert life.output.count(DONE) >= 1
    assert together.epoch == before + life.output.count(DONE)
    assert life.left_over() == []


def test_a_target_that_rank_0_sees_reached_finishes_both_with_one_final_checkpoint(together: Together) -> None:
    before = together.epoch
    life = together.start(NNX_TARGET=0.0001, NNX_MIN_EPOCHS=before + 2)
    assert life.code(2 * ENDS_WITHIN_S) == Exit.TARGET
    assert life.output.count(DONE) == 2
    assert {path.name for path in together.folder.glob("*.pth")} == {"checkpoint_best.pth", "checkpoint_final.pth"}
    assert Checkpoint.read(together.folder / "checkpoint_final.pth").current_epoch == before + 2
    assert together.layout.validation_summary(together.run).exists()
    assert [event["event"] for event in together.control.events()].count("stopped") == len(together.processes) - 1
    assert life.left_over() == []
