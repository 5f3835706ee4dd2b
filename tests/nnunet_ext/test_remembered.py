from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nnunet_ext import checkpoint
from nnunet_ext.remembered import Remembered

REAL = Path(__file__).parents[1] / "data" / "checkpoints" / "nnunet-2.8.1_numpy2_2d.pth"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return Path(shutil.copy(REAL, tmp_path / "checkpoint.pth"))


def remembered(tmp_path: Path) -> Remembered:
    return Remembered(tmp_path / "a cache" / "facts.json")


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = remembered(tmp_path)
    facts = first.facts(saved)
    first.keep()
    assert facts.epoch == 3
    monkeypatch.setattr(checkpoint.Checkpoint, "read", lambda path: pytest.fail("it was read again"))
    assert remembered(tmp_path).facts(saved) == facts


def test_a_change_is_seen_though_size_and_time_are_as_before(tmp_path: Path, saved: Path) -> None:
    first = remembered(tmp_path)
    first.facts(saved)
    first.keep()
    before = saved.stat()
    data = bytearray(saved.read_bytes())
    data[100:2000] = bytes(1900)
    saved.write_bytes(data)
    os.utime(saved, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (saved.stat().st_size, saved.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert remembered(tmp_path).facts(saved).trouble


def test_a_replaced_file_is_read(tmp_path: Path, saved: Path) -> None:
    first = remembered(tmp_path)
    first.facts(saved)
    first.keep()
    new = tmp_path / "new"
    new.write_bytes(REAL.read_bytes()[:9000])
    new.replace(saved)
    assert remembered(tmp_path).facts(saved).epoch is None


@pytest.mark.parametrize("text", ["", "[]", '{"1": 2}', '{"1": {"what": 3}}', "\x00"])
def test_a_damaged_memory_is_begun_anew(tmp_path: Path, saved: Path, text: str) -> None:
    (tmp_path / "a cache").mkdir()
    (tmp_path / "a cache" / "facts.json").write_text(text)
    assert remembered(tmp_path).facts(saved).epoch == 3


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "a cache").write_text("a file where the folder would be")
    memory = remembered(tmp_path)
    assert memory.facts(saved).epoch == 3
    memory.keep()


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        remembered(tmp_path).facts(tmp_path / "nothing")
