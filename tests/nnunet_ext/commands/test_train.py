"""`nnx train` up to the child process it starts; the training itself is in trainers/ and stories/."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from nnunet_ext.cli import run
from nnunet_ext.control import Control
from nnunet_ext.errors import Exit
from nnunet_ext.host import LocalHost
from nnunet_ext.layout import Layout, previous_of
from nnunet_ext.run import Run

DATA = Path(__file__).parents[2] / "data"
REAL = DATA / "checkpoints" / "nnunet-2.8.1_numpy2_2d.pth"
RUN = Run("Dataset004_Hippocampus", "3d_fullres", 0)


@pytest.fixture
def planned(layout: Layout[Path]) -> Layout[Path]:
    plans = layout.plans_file(RUN.dataset, RUN.plans)
    plans.parent.mkdir()
    shutil.copy(DATA / "plans" / "old_2.0_hippocampus.json", plans)
    return layout


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The child processes that would have been started."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def attach(self, argv, env) -> int:
        calls.append((list(argv), dict(env)))
        return 10

    monkeypatch.setattr(LocalHost, "run_attached", attach)
    return calls


def save(layout: Layout[Path], *kinds: str) -> None:
    for kind in kinds:
        path = layout.checkpoint(RUN, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REAL, path)


def test_the_child_gets_nnunets_words_its_settings_and_its_exit_code_is_ours(planned, started, capsys) -> None:
    words = ["train", "4", "3d_fullres", "0", "--device", "cpu", "--target", "0.7", "--epochs", "80", "--workers", "3"]
    assert run(words) == 10
    ((argv, env),) = started
    assert argv == [sys.executable, "-m", "nnunet_ext.trainers.launch", "4", "3d_fullres", "0", "-device", "cpu"]
    assert (env["NNX_TARGET"], env["NNX_EPOCHS"], env["nnUNet_n_proc_DA"]) == ("0.7", "80", "3")
    assert env["nnUNet_results"] == str(planned.results)
    assert "garbage_collection_threshold:0.8" in env["PYTORCH_CUDA_ALLOC_CONF"]
    said = capsys.readouterr()
    assert "target = 0.7  (--target)" in said.err
    assert "nnunet_ext.trainers.launch 4 3d_fullres 0" in said.err
    assert said.out == ""


@pytest.mark.parametrize(("child", "ours"), [(0, 0), (13, 13), (128 + 15, 75), (128 + 12, 75), (130, 130), (137, 137)])
def test_a_scheduler_is_asked_to_requeue_whatever_its_signal_met(planned, monkeypatch, child: int, ours: int) -> None:
    monkeypatch.setattr(LocalHost, "run_attached", lambda self, argv, env: child)
    assert run(["train", "4", "3d_fullres", "0", "--device", "cpu"]) == ours


def test_a_stop_says_how_to_go_on_or_that_there_is_nothing(planned, monkeypatch, capsys) -> None:
    monkeypatch.setattr(LocalHost, "run_attached", lambda self, argv, env: 130)
    run(["train", "4", "3d_fullres", "0", "--device", "cpu"])
    assert "No epoch was completed" in capsys.readouterr().err
    save(planned, "latest")
    run(["train", "4", "3d_fullres", "0", "--device", "cpu", "--c"])
    assert "Go on with: nnx train 4 3d_fullres 0 --c" in capsys.readouterr().err


def test_settings_of_the_file_and_the_environment_reach_the_child(planned, started, monkeypatch) -> None:
    Path("nnx.toml").write_text("target = 0.8\npatience = 50\n")
    monkeypatch.setenv("NNX_PATIENCE", "none")
    run(["train", "4", "3d_fullres", "0", "--device", "cpu"])
    assert (started[0][1]["NNX_TARGET"], started[0][1]["NNX_PATIENCE"]) == ("0.8", "none")


def test_a_run_that_was_trained_is_not_started_over(planned, started, capsys) -> None:
    save(planned, "best")
    assert run(["train", "4", "3d_fullres", "0", "--device", "cpu"]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert "--c" in said
    assert "--fresh" in said
    assert not started


def test_c_continues_from_the_checkpoint_with_the_most_epochs(planned, started) -> None:
    save(planned, "latest", "best")
    latest = planned.checkpoint(RUN, "latest")
    latest.write_bytes(latest.read_bytes()[:9000])
    assert run(["train", "4", "3d_fullres", "0", "--device", "cpu", "--c"]) == 10
    assert "--c" in started[0][0]
    assert started[0][1]["NNX_CHECKPOINT"] == str(planned.checkpoint(RUN, "best"))


def test_c_falls_back_to_the_generation_before(planned, started) -> None:
    save(planned, "latest")
    latest = planned.checkpoint(RUN, "latest")
    previous_of(latest).parent.mkdir(parents=True)
    shutil.move(latest, previous_of(latest))
    latest.write_bytes(b"")
    assert run(["train", "4", "3d_fullres", "0", "--device", "cpu", "--c"]) == 10
    assert started[0][1]["NNX_CHECKPOINT"] == str(previous_of(latest))


def test_c_without_a_readable_checkpoint_never_starts_at_epoch_0(planned, started, capsys) -> None:
    assert run(["train", "4", "3d_fullres", "0", "--device", "cpu", "--c"]) == Exit.REFUSED
    assert "epoch 0" in capsys.readouterr().err
    assert not started


def test_fresh_moves_the_old_folder_aside_and_says_where(planned, started, capsys) -> None:
    save(planned, "final")
    assert run(["train", "4", "3d_fullres", "0", "--device", "cpu", "--fresh"]) == 10
    (aside,) = planned.trained_folder(RUN).glob("fold_0.before_*")
    assert (aside / "checkpoint_final.pth").exists()
    assert str(aside) in capsys.readouterr().err
    assert "--c" not in started[0][0]


def test_a_dry_run_prints_commands_and_does_nothing(planned, started, capsys) -> None:
    save(planned, "final")
    assert run(["train", "4", "3d_fullres", "0", "--device", "cpu", "--fresh", "--dry-run"]) == Exit.DONE
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("mv ")
    assert "nnunet_ext.trainers.launch 4 3d_fullres 0 -device cpu" in second
    assert planned.checkpoint(RUN, "final").exists()
    assert not started


def test_a_run_that_moved_away_is_refused_until_forced(planned, started, capsys) -> None:
    save(planned, "latest")
    Control(planned.control_folder(RUN)).mark_moved("gpu-box", 3)
    assert run(["train", "4", "3d_fullres", "0", "--device", "cpu", "--c"]) == Exit.REFUSED
    assert "gpu-box after epoch 3" in capsys.readouterr().err
    assert run(["train", "4", "3d_fullres", "0", "--device", "cpu", "--c", "--force"]) == 10


def test_a_run_that_is_running_is_refused(planned, started, capsys) -> None:
    save(planned, "latest")
    with Control(planned.control_folder(RUN)).lock():
        assert run(["train", "4", "3d_fullres", "0", "--device", "cpu", "--c"]) == Exit.REFUSED
    assert "running already" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [["--target", "0.5"], ["--patience", "9"]])
def test_early_stopping_on_fold_all_is_refused_until_forced(planned, started, stop, capsys) -> None:
    assert run(["train", "4", "3d_fullres", "all", "--device", "cpu", *stop]) == Exit.REFUSED
    assert "training data" in capsys.readouterr().err
    assert run(["train", "4", "3d_fullres", "all", "--device", "cpu", *stop, "--force"]) == 10


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["4", "3d_fullres", "five"], Exit.USAGE, "'five' is not a fold"),
        (["4", "3d_fullres"], Exit.USAGE, "DATASET CONFIGURATION FOLD"),
        (["9", "3d_fullres", "0"], Exit.NO_SUCH_RUN, "Dataset004_Hippocampus"),
        (["4", "3d_fulres", "0"], Exit.NO_SUCH_RUN, "3d_fullres"),
        (["4", "3d_fullres", "0", "-p", "nnUNetPlan"], Exit.USAGE, "nnUNetPlans"),
        (["4", "3d_fullres", "0", "--target", "70"], Exit.USAGE, "0.70"),
        (["4", "3d_fullres", "0", "--target", "high"], Exit.USAGE, "--target"),
        (["4", "3d_fullres", "0", "--epochs", "0"], Exit.USAGE, "--epochs"),
        (["4", "3d_fullres", "0", "--memory-limit", "80"], Exit.USAGE, "at most 1"),
        (["4", "3d_fullres", "0", "--checkpoint-minutes", "-1"], Exit.USAGE, "number of minutes"),
        (["4", "3d_fullres", "0", "--c", "--fresh"], Exit.USAGE, "Choose one"),
        (["4", "3d_fullres", "0", "--device", "tpu"], Exit.USAGE, "cuda"),
    ],
)
def test_bad_words_are_answered_with_the_right_ones(planned, started, capsys, words, code, said) -> None:
    assert run(["train", *words]) == code
    assert said in capsys.readouterr().err
    assert not started


def test_a_file_that_is_no_plan_is_named(planned, started, capsys) -> None:
    planned.plans_file(RUN.dataset, RUN.plans).write_text(json.dumps({"hello": 1}))
    assert run(["train", "4", "3d_fullres", "0"]) == Exit.DAMAGED
    assert "nnUNetPlans.json" in capsys.readouterr().err
