"""Facts about this machine, asked for real."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nnunet_ext.checkup.inspection import OUR_FOLDER
from nnunet_ext.checkup.machine import Gpu, Stranger, parse_gpus, read_folders, read_machine, read_program, strangers
from nnunet_ext.layout import ROOTS, Layout
from nnunet_ext.settings import KNOWN, Value


def settings(**folders: str | None) -> dict[str, Value]:
    return {known.name: Value(folders.get(known.name), known.variable) for known in KNOWN}


def test_this_machine_can_be_asked() -> None:
    machine = read_machine()
    assert machine.python == sys.version_info[:3]
    assert machine.memory_bytes > 2**28
    assert 0 < machine.usable_cores <= machine.cores
    assert machine.open_files != 0
    assert [program.name for program in machine.programs] == ["rsync", "ssh", "tmux", "zstd"]


def test_our_own_packages_are_no_strangers() -> None:
    assert strangers(OUR_FOLDER) == ()


def test_packages_of_our_names_elsewhere_are_strangers(tmp_path: Path) -> None:
    found = strangers(tmp_path)
    assert [stranger.name for stranger in found] == ["nnunet_ext", "migrate", "monitor"]
    assert found[1] == Stranger("migrate", str(OUR_FOLDER / "migrate" / "__init__.py"))


def test_another_distribution_that_put_files_into_ours_is_a_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "sqlalchemy_migrate-0.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sqlalchemy-migrate\nVersion: 0.13.0\n")
    (info / "RECORD").write_text("migrate/__init__.py,,\n")
    (info / "top_level.txt").write_text("migrate\n")  # all that Python 3.10 looks at
    monkeypatch.syspath_prepend(tmp_path)
    assert Stranger("migrate", "the package sqlalchemy-migrate") in strangers(tmp_path)
    assert strangers(OUR_FOLDER) == ()  # there it has nothing of ours


def test_a_program_says_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "rsync"
    script.write_text("#!/bin/sh\necho 'openrsync: protocol version 29'\necho 'more'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    assert read_program("rsync", "--version").says == "openrsync: protocol version 29"


def test_a_program_that_does_not_run_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "tmux"
    script.write_text("#!/bin/sh\necho 'libevent is missing' >&2\nexit 127\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    found = read_program("tmux", "-V")
    assert (found.path, found.says) == (str(script), "")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert read_program("tmux", "-V").path is None


def test_the_answer_of_nvidia_smi_is_understood() -> None:
    text = "NVIDIA A100-SXM4-40GB, 40960, 550.54.15\nNVIDIA GB10, [N/A], 580.95.05\n"
    assert parse_gpus(text) == (
        Gpu("NVIDIA A100-SXM4-40GB", 40960, "550.54.15"),
        Gpu("NVIDIA GB10", 0, "580.95.05"),
    )
    assert parse_gpus("No devices were found\n") == ()


def test_folders_are_seen_as_they_are(layout: Layout[Path]) -> None:
    layout.results.rmdir()
    raw, preprocessed, results = read_folders(
        settings(preprocessed=str(layout.preprocessed), results="~/nnUNet_results")
    )
    assert (raw.root, raw.path, raw.exists) == (ROOTS[0], None, False)
    assert preprocessed.exists and preprocessed.is_writable and preprocessed.free_bytes
    assert (results.path, results.exists) == (layout.results, False)
