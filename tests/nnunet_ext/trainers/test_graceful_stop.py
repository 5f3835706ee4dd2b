"""Real trainings in processes of their own, stopped in every way there is."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_data
import pytest
from failpoint import Failpoint
from fold import Fold
from lives import LAUNCH, Life, Lives, living, until

from nnunet_ext.checkpoint import Checkpoint
from nnunet_ext.errors import Exit
from nnunet_ext.layout import Layout
from nnunet_ext.run import Run

pytestmark = pytest.mark.nnunet

BEGUN = "Current learning rate"  # once for each epoch that begins
DONE = "Epoch time"  # once for each that is completed
HAS_HANDLERS = "This split has"  # said while the loaders are built

TROUBLED = """
import multiprocessing, os
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

if os.environ["TROUBLE"] == "spawn":
    multiprocessing.set_start_method("spawn", force=True)

class nnUNetTrainerTroubled(nnUNetTrainer):
    def train_step(self, batch):
        if os.environ["TROUBLE"] == "nan" and self.current_epoch > 0:
            batch["data"] = batch["data"] * torch.nan
        if os.environ["TROUBLE"] == "crash" and self.current_epoch > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().train_step(batch)
"""


@dataclass
class Trained(Fold):
    """One fold and the trainings of it."""

    lives: Lives
    layout: Layout[Path]
    run: Run

    def start(self, failpoint: Failpoint | None = None, **settings: Any) -> Life:
        """Goes on when there is something to go on with."""
        env = self.environment(**settings)
        return self.lives.start(env, *self.arguments(), failpoint=failpoint)

    def environment(self, **settings: Any) -> dict[str, str]:
        asked = {"NNX_EPOCHS": 200, "NNX_ITERATIONS": 4, "NNX_VAL_ITERATIONS": 2, **settings}
        return made_data.environment(self.layout, **{name: str(value) for name, value in asked.items()})

    def arguments(self) -> list[str]:
        go_on = ["--c"] if list(self.folder.glob("*.pth")) else []
        return [*self.run.words(), "-device", "cpu", *go_on]

    def is_finished(self) -> bool:
        kinds = {path.name for path in self.folder.glob("*.pth")}
        validated = self.layout.validation_summary(self.run).exists()
        assert validated == ("checkpoint_final.pth" in kinds and "checkpoint_latest.pth" not in kinds)
        return validated


@pytest.fixture(scope="module")
def lives(made: Layout[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lives, Layout[Path]]]:
    folder = tmp_path_factory.mktemp("stopped 'gracefully' ö")
    layout = made_data.copy_of(made, folder)
    with living(made_data.environment(layout), folder / "lives") as lives:
        yield lives, layout


@pytest.fixture(scope="module")
def trained(lives: tuple[Lives, Layout[Path]]) -> Trained:
    """A run that many tests stop and continue."""
    return Trained(*lives, Run(made_data.DATASET, "2d", 0))


@pytest.fixture
def untrained(lives: tuple[Lives, Layout[Path]]) -> Iterator[Trained]:
    """A run of its own for one test."""
    fold = next(fold for fold in range(1, 5) if not lives[1].fold_folder(Run(made_data.DATASET, "2d", fold)).exists())
    trained = Trained(*lives, Run(made_data.DATASET, "2d", fold))
    yield trained
    trained.folder.rename(trained.folder.with_name(f"done with {time.monotonic_ns()}"))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_signal_pauses_at_the_end_of_the_epoch(trained: Trained, number: signal.Signals) -> None:
    before = trained.epoch
    life = trained.start(NNX_ITERATIONS=20)
    life.wait_for(BEGUN)
    life.signal(number)
    assert life.code() == Exit.REQUEUE
    assert life.output.count(DONE) == 1
    assert trained.epoch == before + 1
    assert not trained.is_finished()
    assert life.left_over() == []


@pytest.mark.parametrize("group", [False, True], ids=["the trainer", "all its processes"])
def test_sigterm_pauses_at_the_next_batch_and_drops_the_begun_epoch(trained: Trained, group: bool) -> None:
    before = trained.epoch
    life = trained.start(NNX_ITERATIONS=30)
    life.wait_for(BEGUN, times=2)
    (life.signal_group if group else life.signal)(signal.SIGTERM)
    assert life.code() == Exit.REQUEUE
    assert (life.output.count(BEGUN), life.output.count(DONE)) == (2, 1)
    assert trained.epoch == before + 1
    assert trained.events("stopped")[-1]["mid_epoch"]
    assert "Traceback" not in life.output
    assert life.left_over() == []


def test_one_ctrl_c_finishes_the_epoch_although_all_processes_get_it_and_some_twice(trained: Trained) -> None:
    before = trained.epoch
    life = trained.start(NNX_ITERATIONS=20)
    life.wait_for(BEGUN)
    life.signal_group(signal.SIGINT)
    time.sleep(0.1)
    life.signal_group(signal.SIGINT)
    assert life.code() == Exit.INTERRUPTED
    assert life.output.count("Ctrl-C again stops now") == 1
    assert "Traceback" not in life.output
    assert trained.epoch == before + 1
    assert life.left_over() == []


def test_a_second_ctrl_c_stops_now(trained: Trained) -> None:
    before = trained.epoch
    life = trained.start(NNX_ITERATIONS=60)
    life.wait_for(BEGUN)
    life.signal_group(signal.SIGINT)
    time.sleep(0.6)
    life.signal_group(signal.SIGINT)
    assert life.code() == Exit.INTERRUPTED
    assert "Traceback" not in life.output
    assert life.output.count(DONE) == 0
    assert trained.epoch == before


def test_a_signal_before_the_first_epoch_does_not_wait_for_its_end(trained: Trained) -> None:
    before = trained.epoch
    life = trained.start()
    life.wait_for(HAS_HANDLERS)
    life.signal(signal.SIGUSR1)
    assert life.code() == Exit.REQUEUE
    assert BEGUN not in life.output
    assert trained.epoch == before
    assert life.left_over() == []


def test_a_request_to_pause_is_obeyed_and_consumed_and_a_stale_one_and_a_second_trainer_do_not_disturb(
    trained: Trained,
) -> None:
    trained.control.request_stop("now", "finish", "it came too late", by="a test")
    before = trained.epoch
    life = trained.start()
    life.wait_for(DONE)
    assert [event["reason"] for event in trained.events("stale_request")] == ["it came too late"]
    second = trained.start()
    assert second.code() == Exit.REFUSED
    assert f"already being trained by process {life.pid}" in second.output
    so_far = life.output.count(DONE)
    life.wait_for(DONE, times=so_far + 1)
    trained.control.request_stop("epoch", "pause", "the test is done", by="a test")
    assert life.code() == Exit.STOP_REQUESTED
    assert trained.epoch == before + life.output.count(DONE)
    assert "the test is done, by a test" in trained.events("stopped")[-1]["reason"]
    assert trained.control.pending_stop() is None
    assert not trained.is_finished()


def test_an_unreadable_request_is_told_once_and_one_to_stop_now_drops_the_epoch(trained: Trained) -> None:
    before = trained.epoch
    life = trained.start(NNX_ITERATIONS=5000)
    life.wait_for(BEGUN)
    (trained.folder / ".nnx" / "stop.json").write_text('{"run_id": ')
    life.wait_for("a stop request is not obeyed")
    time.sleep(1.2)
    trained.control.request_stop("now", "pause", "enough", by="a test")
    assert life.code() == Exit.STOP_REQUESTED
    assert life.output.count("is not obeyed") == 1
    assert life.output.count(DONE) == 0
    assert trained.epoch == before
    assert life.left_over() == []


def test_nothing_outlives_a_trainer_that_was_killed(trained: Trained) -> None:
    before = trained.epoch
    life = trained.start(NNX_CHECKPOINT_MINUTES=0)
    life.wait_for(BEGUN, times=3)
    assert len(life.processes()) >= 3  # itself and a worker for training and validation each
    life.signal(signal.SIGKILL)
    assert life.code() == -signal.SIGKILL
    assert life.left_over(patience_s=3) == []
    assert trained.epoch in (before + 1, before + 2)


@pytest.mark.parametrize("mode", ["epoch", "now"])
def test_a_request_to_finish_ends_with_a_final_checkpoint_and_its_validation(untrained: Trained, mode: Any) -> None:
    life = untrained.start(NNX_ITERATIONS=20)
    life.wait_for(BEGUN, times=2)
    untrained.control.request_stop(mode, "finish", "good enough", by="a test")
    assert life.code(180) == Exit.STOP_REQUESTED
    assert untrained.is_finished()
    final = Checkpoint.read(untrained.folder / "checkpoint_final.pth")
    assert final.inconsistency() is None
    assert final.current_epoch == life.output.count(DONE)
    assert life.left_over() == []


def test_a_signal_during_the_last_save_ends_before_the_validation_which_the_next_start_makes(
    untrained: Trained,
) -> None:
    only_epoch = {"NNX_EPOCHS": 1}
    life = untrained.start(Failpoint(step=3, save=1, number=signal.SIGTERM), **only_epoch)
    assert life.code() == Exit.REQUEUE
    assert (untrained.folder / "checkpoint_final.pth").exists()
    assert "predicting" not in life.output
    again = untrained.start(**only_epoch)
    assert again.code(180) == Exit.DONE
    assert again.output.count(BEGUN) == 0
    assert untrained.is_finished()


class TestTroubledTrainers:
    """Trainer classes of a user's own, found through nnUNet_extTrainer."""

    @pytest.fixture
    def troubled(self, untrained: Trained, tmp_path: Path) -> Trained:
        (tmp_path / "troubled.py").write_text(TROUBLED)
        untrained.run = Run(made_data.DATASET, "2d", untrained.run.fold, "nnUNetTrainerTroubled")
        return untrained

    def test_nan_losses_end_with_their_own_code_and_the_good_checkpoint(
        self, troubled: Trained, tmp_path: Path
    ) -> None:
        life = troubled.start(nnUNet_extTrainer=tmp_path, TROUBLE="nan", NNX_CHECKPOINT_MINUTES=0)
        assert life.code() == Exit.NAN
        assert life.output.count(DONE) == 3
        assert troubled.epoch == 1
        assert troubled.events("stopped")[-1]["kind"] == "nan"
        assert life.left_over() == []

    def test_an_exception_costs_no_completed_epoch(self, troubled: Trained, tmp_path: Path) -> None:
        life = troubled.start(nnUNet_extTrainer=tmp_path, TROUBLE="crash")
        assert life.code() == Exit.CRASHED
        assert "illegal memory access" in life.output
        assert Checkpoint.read(troubled.folder / "checkpoint_latest.pth").current_epoch == 2
        assert troubled.epoch == 2
        assert life.left_over() == []

    def test_spawned_workers_live_through_a_ctrl_c_too(self, troubled: Trained, tmp_path: Path) -> None:
        """As on macOS."""
        life = troubled.start(nnUNet_extTrainer=tmp_path, TROUBLE="spawn", NNX_ITERATIONS=20, PYTHONPATH=tmp_path)
        life.wait_for(BEGUN, 120)
        life.signal_group(signal.SIGINT)
        assert life.code() == Exit.INTERRUPTED
        assert "Traceback" not in life.output
        assert troubled.epoch == life.output.count(DONE) == 1
        assert life.left_over() == []


@dataclass
class Terminal:
    """A program on a terminal of its own."""

    pid: int
    keyboard: int
    screen: str = ""

    @classmethod
    def open(cls, argv: list[str], env: dict[str, str]) -> Terminal:
        pid, keyboard = pty.fork()
        if pid == 0:
            os.execve(argv[0], argv, env)
        return cls(pid, keyboard)

    def wait_for(self, text: str) -> None:
        def seen() -> bool:
            self.screen += os.read(self.keyboard, 65536).decode(errors="replace")
            return text in self.screen

        until(seen, 90, text)

    def code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # a fork that execs at once
@pytest.mark.parametrize("end", ["ctrl-c", "closed"])
def test_on_a_real_terminal_ctrl_c_and_a_lost_connection_lose_no_epoch(trained: Trained, end: str) -> None:
    argv = [sys.executable, "-m", LAUNCH, *trained.arguments()]
    before = trained.epoch
    terminal = Terminal.open(argv, trained.environment(NNX_ITERATIONS=20))
    terminal.wait_for(BEGUN)
    if end == "ctrl-c":
        os.write(terminal.keyboard, b"\x03")
        terminal.wait_for("nnx: Stopping (pause)")
        assert "Traceback" not in terminal.screen
    else:
        terminal.wait_for(DONE)
        os.close(terminal.keyboard)
    assert terminal.code() == Exit.INTERRUPTED
    assert trained.epoch == before + 1
    stopped = trained.events("stopped")[-1]
    assert ("SIGINT" if end == "ctrl-c" else "SIGHUP") in stopped["reason"]
