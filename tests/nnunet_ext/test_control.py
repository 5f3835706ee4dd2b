from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ext.control import Control, Moved
from nnunet_ext.errors import Damaged, Exit, Refused
from nnunet_ext.run import Run

RUN = Run("Dataset004_Hippocampus", "2d", 0)
HOLD = """
import sys, time
from pathlib import Path
from nnunet_ext.control import Control
with Control(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""
GLANCE = """
import sys
from pathlib import Path
from nnunet_ext.control import Control
for _ in range(3000):
    Control(Path(sys.argv[1])).is_locked()
"""


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return Control(tmp_path / "fold_0 'ü'" / ".nnx", clock=lambda: 1_800_000_000.25)


def test_looking_at_a_run_writes_nothing(control: Control) -> None:
    assert (control.run_id(), control.pending_stop(), control.moved(), list(control.events())) == (None, None, None, [])
    assert not control.is_locked()
    assert not Path(control.folder).exists()


def test_a_run_keeps_the_identity_it_was_given_first(control: Control) -> None:
    first = control.identify(RUN)
    assert control.identify(RUN) == first == control.run_id()
    assert len(first) == 16


def test_a_run_that_moved_here_keeps_the_identity_it_had(control: Control) -> None:
    assert control.identify(RUN, "0123456789abcdef") == "0123456789abcdef"
    assert control.identify(RUN, "another") == "0123456789abcdef"


def test_a_stop_request_waits_until_it_is_consumed(control: Control) -> None:
    run_id = control.identify(RUN)
    request = control.request_stop("epoch", "pause", "going home", by="zoë@mac")
    assert (request.run_id, request.at) == (run_id, "2027-01-15T08:00:00.250+00:00")
    assert control.pending_stop() == request
    control.consume_stop(request)
    assert control.pending_stop() is None


def test_consuming_an_old_request_leaves_a_newer_one(control: Control) -> None:
    control.identify(RUN)
    old = control.request_stop("epoch", "pause", "first", by="a")
    new = control.request_stop("now", "finish", "second", by="b")
    control.consume_stop(old)
    assert control.pending_stop() == new


def test_a_request_meant_for_another_training_of_the_folder_is_ignored(control: Control) -> None:
    control.identify(RUN)
    control.request_stop("epoch", "pause", "the old training", by="a")
    (Path(control.folder) / "run.json").unlink()
    control.identify(RUN)
    assert control.pending_stop() is None


def test_a_request_from_before_the_run_had_an_identity_counts(control: Control) -> None:
    request = control.request_stop("epoch", "pause", "early", by="a")
    control.identify(RUN)
    assert control.pending_stop() == request


def test_the_moved_marker_says_where_and_when(control: Control) -> None:
    control.mark_moved("gpu-box", 5)
    assert control.moved() == Moved("gpu-box", 5, "2027-01-15T08:00:00.250+00:00")
    control.unmark_moved()
    assert control.moved() is None


def test_events_are_read_back_in_order_and_a_cut_line_is_left_out(control: Control) -> None:
    control.log("started", device="cpu")
    control.log("epoch", epoch=0, ema=0.25)
    with (Path(control.folder) / "events.jsonl").open("a") as file:
        file.write('{"at": "2027-01-15T08:')
    assert [(event["event"], event.get("ema")) for event in control.events()] == [("started", None), ("epoch", 0.25)]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"what": 1}', "\x00\x00"])
@pytest.mark.parametrize("name", ["stop.json", "moved.json"])
def test_a_damaged_file_is_named(control: Control, name: str, text: str) -> None:
    control.identify(RUN)
    (Path(control.folder) / name).write_text(text)
    with pytest.raises(Damaged, match=name) as damaged:
        control.pending_stop() if name == "stop.json" else control.moved()
    assert damaged.value.exit_code == Exit.DAMAGED


def test_a_second_trainer_is_refused_and_told_who_holds_the_fold(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_ext.control.LOCK_PATIENCE_S", 0.2)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, control.folder], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert control.is_locked()
        with (
            pytest.raises(Refused, match=f"by process {holder.pid} on {os.uname().nodename}") as refused,
            control.lock(),
        ):
            pytest.fail("two trainers hold one fold")
        assert refused.value.exit_code == Exit.REFUSED
    finally:
        holder.kill()
        holder.communicate()
    assert not control.is_locked()
    with control.lock():
        assert control.is_locked()
    assert not control.is_locked()


def test_a_glance_at_the_lock_never_keeps_a_trainer_from_starting(control: Control) -> None:
    with control.lock():
        pass
    looker = subprocess.Popen([sys.executable, "-c", GLANCE, control.folder])
    while looker.poll() is None:
        with control.lock():
            pass
    assert looker.returncode == 0
