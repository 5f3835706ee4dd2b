from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest

from nnunet_ext.control import Control
from nnunet_ext.layout import Layout
from nnunet_ext.survey import survey

REAL = Path(__file__).parents[1] / "data" / "checkpoints" / "nnunet-2.8.1_numpy2_2d.pth"  # three epochs
STOCK = "nnUNetv2_train"


def set_epochs(path: Path, epochs: int) -> None:
    """Let a copy of the real checkpoint say that it was saved after so many epochs."""
    with zipfile.ZipFile(path) as real:
        members = {name: real.read(name) for name in real.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    before, key, after = members[pickled].partition(b"current_epoch")
    members[pickled] = before + key + after.replace(b"K\x03", b"K" + bytes([epochs]), 1)
    with zipfile.ZipFile(path, "w") as changed:
        for name, data in members.items():
            changed.writestr(name, data)


@pytest.fixture
def saved(layout: Layout[Path], make_run):
    """A run with checkpoints: saved("latest", "best")."""

    def save(*kinds: str, **names):
        run = make_run(**names)
        for kind in kinds:
            shutil.copy(REAL, layout.checkpoint(run, kind))
        return run

    return save


def test_a_run_without_checkpoints_is_new_and_nothing_is_known_of_it(layout: Layout[Path], make_run) -> None:
    make_run()
    (status,) = survey(layout)
    assert (status.state, status.epoch, status.num_epochs, status.ema, status.best_ema) == (
        "new",
        None,
        None,
        None,
        None,
    )
    assert status.checkpoints == ()


def test_the_facts_are_those_of_the_newest_checkpoint(layout: Layout[Path], saved) -> None:
    run = saved("latest", "best")
    layout.debug_json(run).write_text('{"num_epochs": "80"}')
    (status,) = survey(layout)
    assert (status.state, status.epoch, status.num_epochs) == ("stopped", 3, 80)
    assert status.ema is not None
    assert status.best_ema is not None
    assert [(one.kind, one.epoch, one.valid, one.size_bytes) for one in status.checkpoints] == [
        ("latest", 3, True, REAL.stat().st_size),
        ("best", 3, True, REAL.stat().st_size),
    ]


def test_a_final_checkpoint_makes_a_run_finished(layout: Layout[Path], saved) -> None:
    saved("final", "best")
    assert [status.state for status in survey(layout)] == ["finished"]


def test_a_run_continued_from_its_final_checkpoint_is_no_longer_finished(layout: Layout[Path], saved) -> None:
    run = saved("latest", "final")
    final = layout.checkpoint(run, "final")
    set_epochs(final, 1)
    assert [status.state for status in survey(layout)] == ["stopped"]


def test_a_damaged_checkpoint_is_shown_as_such_and_never_counts_as_final(layout: Layout[Path], saved) -> None:
    run = saved("final", "best")
    final = layout.checkpoint(run, "final")
    final.write_bytes(final.read_bytes()[: final.stat().st_size // 2])
    (status,) = survey(layout)
    assert (status.state, status.epoch) == ("stopped", 3)
    assert [one.valid for one in status.checkpoints] == [False, True]
    assert "checkpoint_final" in status.trouble


def test_a_run_that_moved_says_so(layout: Layout[Path], saved) -> None:
    run = saved("latest")
    Control(layout.control_folder(run)).mark_moved("gpu-box", 3)
    assert [status.state for status in survey(layout)] == ["moved"]


def test_damage_in_one_run_does_not_hide_the_others(layout: Layout[Path], saved) -> None:
    run, _ = saved("latest"), saved("latest", fold=1)
    layout.control_folder(run).mkdir()
    (layout.control_folder(run) / "moved.json").write_text("{")
    assert [(status.state, bool(status.trouble)) for status in survey(layout)] == [
        ("stopped", True),
        ("stopped", False),
    ]


def test_a_fold_that_is_locked_is_running(layout: Layout[Path], saved) -> None:
    control = Control(layout.control_folder(saved("latest")))
    with control.lock():
        assert [status.state for status in survey(layout)] == ["running"]
    assert [status.state for status in survey(layout)] == ["stopped"]


@pytest.mark.parametrize(
    ("words", "states"),
    [
        (["4", "2d", "0"], ["running", "stopped"]),
        (["Dataset004_Hippocampus", "2d", "1", "-device", "cpu", "--c"], ["stopped", "running"]),
        (["-tr", "Other", "4", "2d", "0"], ["stopped", "stopped"]),
        (["4", "3d_fullres", "0"], ["stopped", "stopped"]),
    ],
)
def test_a_stock_training_is_known_by_its_command_line(layout: Layout[Path], saved, tmp_path, words, states) -> None:
    saved("latest")
    saved("latest", fold=1)
    program = tmp_path / STOCK
    program.write_text("import time; print('up', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, program, *words], stdout=subprocess.PIPE, text=True) as stock:
        try:
            assert stock.stdout.readline() == "up\n"
            assert [status.state for status in survey(layout)] == states
        finally:
            stock.kill()


def test_workers_that_outlived_a_killed_training_are_no_training(layout: Layout[Path], saved, tmp_path) -> None:
    saved("latest")
    program = tmp_path / STOCK
    program.write_text("import os, time\nif worker := os.fork(): print(worker, flush=True)\ntime.sleep(60)")
    with subprocess.Popen([sys.executable, program, "4", "2d", "0"], stdout=subprocess.PIPE, text=True) as stock:
        worker = int(stock.stdout.readline())
        try:
            assert [status.state for status in survey(layout)] == ["running"]
            stock.kill()
            stock.wait()
            assert psutil.Process(worker).cmdline()[1:] == [str(program), "4", "2d", "0"]
            assert [status.state for status in survey(layout)] == ["stopped"]
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_stock_training_for_other_results_is_not_this_run(layout: Layout[Path], saved, tmp_path, monkeypatch) -> None:
    saved("latest")
    program = tmp_path / STOCK
    program.write_text("import time; print('up', flush=True); time.sleep(60)")
    monkeypatch.setenv("nnUNet_results", "/somewhere/else")
    with subprocess.Popen([sys.executable, program, "4", "2d", "0"], stdout=subprocess.PIPE, text=True) as stock:
        try:
            assert stock.stdout.readline() == "up\n"
            assert [status.state for status in survey(layout)] == ["stopped"]
        finally:
            stock.kill()
