"""Judgements over made facts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from nnunet_ext.cgroup import Limits
from nnunet_ext.checkup.finding import Finding, is_fit
from nnunet_ext.checkup.machine import Folder, Machine, Packages, Program, Stranger
from nnunet_ext.checkup.machine_check import (
    judge_cores,
    judge_folder,
    judge_machine,
    judge_memory,
    judge_nnunetv2,
    judge_open_files,
    judge_packages,
    judge_programs,
    judge_python,
    judge_rsync,
    judge_shared_memory,
    judge_strangers,
    judge_torch,
    judge_trainer_folders,
)

GIB = 2**30
GOOD = Packages("2.8.1", "2.8.0+cu128", "0.23.0+cu128", "1.26.4", "3.3.2")
MACHINE = Machine(
    system="Linux",
    python=(3, 11, 7),
    packages=GOOD,
    strangers=(),
    memory_bytes=64 * GIB,
    cores=16,
    usable_cores=16.0,
    limits=Limits(None, None),
    shared_memory_bytes=32 * GIB,
    open_files=65536,
    programs=(),
    installer="apt-get",
    compiler="/usr/bin/gcc",
    python_headers=True,
    gpus=(),
    shelf=None,
)


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.topic: finding.level for finding in findings}


def test_a_good_machine_is_fit_without_a_note() -> None:
    assert {finding.level for finding in judge_machine(MACHINE, {})} == {"ok"}


def test_a_mac_has_no_shared_memory_folder_and_may_open_few_files() -> None:
    mac = dataclasses.replace(MACHINE, system="Darwin", shared_memory_bytes=None, open_files=256)
    assert {finding.level for finding in judge_machine(mac, {})} == {"ok"}


def test_every_finding_that_is_not_ok_says_what_to_do() -> None:
    bad = dataclasses.replace(
        MACHINE,
        python=(3, 9, 0),
        packages=Packages("2.7.0", "2.9.1", None, "1.24", None),
        strangers=(Stranger("monitor", "/x"),),
        memory_bytes=GIB,
        usable_cores=1.0,
        shared_memory_bytes=2**26,
        open_files=256,
    )
    findings = list(judge_machine(bad, {}))
    assert {finding.level for finding in findings} == {"note", "unfit"}
    assert all(finding.fix for finding in findings)
    assert all(finding.finding.endswith(".") for finding in findings)


def test_python_3_10_is_the_oldest() -> None:
    assert judge_python((3, 10, 0)).level == "ok"
    assert judge_python((3, 9, 19)).level == "unfit"


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.8.0", "ok"), ("2.8.1", "ok"), ("2.8.2", "note"), ("3.0", "note"), ("2.7.0", "unfit"), (None, "unfit")],
)
def test_nnunet_versions(version: str | None, level: str) -> None:
    assert judge_nnunetv2(version).level == level


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("2.1.2", "ok"),
        ("2.10.0", "ok"),
        ("2.8.0+cu128", "ok"),
        ("2.9.0", "unfit"),
        ("2.9.1+cpu", "unfit"),
        ("2.0.1", "unfit"),
    ],
)
def test_torch_versions(version: str, level: str) -> None:
    assert judge_torch(version).level == level


def test_old_or_missing_companions_of_nnunet_are_unfit() -> None:
    odd = Packages("2.8.1", "2.8.0", None, "1.25.2", "3.3.1")
    assert levels(list(judge_packages(odd))) == {
        "nnU-Net": "ok",
        "torch": "ok",
        "torchvision": "unfit",
        "numpy": "unfit",
        "blosc2": "unfit",
    }


def test_a_light_install_gets_one_sentence_and_one_command() -> None:
    (only,) = judge_packages(Packages(None, None, None, None, None))
    assert (only.level, only.fix) == ("unfit", "pip install 'nnunet-nnx[train]'")


def test_a_stranger_is_named_with_its_place() -> None:
    (found,) = judge_strangers((Stranger("migrate", "/site/migrate/__init__.py"),))
    assert found.level == "unfit"
    assert "/site/migrate/__init__.py" in found.finding


def test_a_control_group_s_memory_limit_counts() -> None:
    found = judge_memory(256 * GIB, 4 * GIB)
    assert found.level == "note"
    assert found.finding.startswith("4.0 GiB of memory, of 256.0 GiB: the control group's limit.")
    assert judge_memory(256 * GIB, None).level == "ok"


def test_more_workers_than_usable_cores_are_noted() -> None:
    assert judge_cores(64, 4.0, None).fix == "export nnUNet_n_proc_DA=4"
    assert judge_cores(64, 4.0, "4").level == "ok"
    assert judge_cores(64, 4.0, "8").level == "note"
    assert judge_cores(8, 8.0, None).level == "ok"
    assert judge_cores(64, 0.5, None).fix == "export nnUNet_n_proc_DA=1"


def test_a_number_of_workers_that_is_none_is_unfit() -> None:
    assert judge_cores(8, 8.0, "many").level == "unfit"
    assert judge_cores(8, 8.0, "0").level == "note"


def test_docker_s_64_mib_of_shared_memory_are_unfit() -> None:
    assert judge_shared_memory(64 * 2**20).level == "unfit"
    assert judge_shared_memory(512 * 2**20).level == "note"
    assert judge_shared_memory(GIB).level == "ok"


def test_few_open_files_are_noted() -> None:
    assert judge_open_files(256).fix == "ulimit -n 4096"
    assert judge_open_files(1024).level == "ok"
    assert judge_open_files(-1).level == "ok"


FOLDER = Folder("nnUNet_results", Path("/data/it's"), "nnUNet_results", True, True, True, 500 * GIB)


@pytest.mark.parametrize(
    ("change", "level", "fix"),
    [
        ({}, "ok", ""),
        ({"path": None}, "unfit", "export nnUNet_results=/path/to/nnUNet_results"),
        ({"exists": False}, "unfit", "mkdir -p '/data/it'\"'\"'s'"),
        ({"is_readable": False}, "unfit", "ls -ld '/data/it'\"'\"'s'"),
        ({"is_writable": False}, "unfit", "ls -ld '/data/it'\"'\"'s'"),
        ({"free_bytes": 2**20}, "unfit", "df -h '/data/it'\"'\"'s'"),
        ({"free_bytes": 5 * GIB}, "note", "df -h '/data/it'\"'\"'s'"),
        ({"free_bytes": None}, "ok", ""),
        ({"root": "nnUNet_raw", "exists": False}, "note", "mkdir -p '/data/it'\"'\"'s'"),
        ({"root": "nnUNet_raw", "is_writable": False, "free_bytes": 0}, "ok", ""),
        ({"root": "nnUNet_preprocessed", "is_writable": False}, "note", "ls -ld '/data/it'\"'\"'s'"),
    ],
)
def test_folders(change: dict[str, object], level: str, fix: str) -> None:
    found = judge_folder(dataclasses.replace(FOLDER, **change))  # type: ignore[arg-type]
    assert (found.level, found.fix) == (level, fix)


def test_a_folder_s_origin_is_said() -> None:
    assert "(from $nnUNet_results)" in judge_folder(FOLDER).finding
    assert "(from /home/me/nnx.toml)" in judge_folder(dataclasses.replace(FOLDER, origin="/home/me/nnx.toml")).finding


@pytest.mark.parametrize(
    ("says", "level", "name"),
    [
        ("rsync  version 3.2.7  protocol version 31", "ok", "rsync 3.2.7"),
        ("rsync  version v3.4.1  protocol version 32", "ok", "rsync 3.4.1"),
        ("rsync  version 2.6.9  protocol version 29", "note", "rsync 2.6.9"),
        ("openrsync: protocol version 29", "note", "Apple's openrsync"),
    ],
)
def test_the_flavours_of_rsync(says: str, level: str, name: str) -> None:
    found = judge_rsync(says, "brew")
    assert found.level == level
    assert found.finding.startswith(name)


def test_missing_programs_are_notes_with_the_package_manager_s_words() -> None:
    missing = tuple(Program(name, None, "") for name in ("rsync", "ssh", "tmux", "zstd"))
    assert is_fit(judge_programs(missing, None))
    assert [finding.fix for finding in judge_programs(missing, "apt-get")][1] == "sudo apt-get install openssh-client"
    assert [finding.fix for finding in judge_programs(missing, "brew")][2] == "brew install tmux"


def test_a_program_that_does_not_run_is_noted() -> None:
    (found,) = judge_programs((Program("tmux", "/opt/tmux", ""),), "brew")
    assert (found.level, found.finding) == ("note", "/opt/tmux does not run.")


def test_versions_of_programs_are_found_in_what_they_say() -> None:
    ssh = Program("ssh", "/usr/bin/ssh", "OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17 1 Jul 2025")
    zstd = Program("zstd", "/usr/bin/zstd", "*** Zstandard CLI (64-bit) v1.5.4, by Yann Collet ***")
    assert [finding.finding for finding in judge_programs((ssh, zstd), None)] == ["ssh 9.2p1.", "zstd 1.5.4."]


def test_the_shelf_is_offered_beside_the_user_s_own_trainers(tmp_path: Path) -> None:
    own, shelf = tmp_path / "own trainers", tmp_path / "shelf"
    own.mkdir()
    (found,) = judge_trainer_folders(str(own), shelf)
    assert found.fix == f"export nnUNet_extTrainer='{own}{os.pathsep}{shelf}'"
    shelf.mkdir()
    assert [f.level for f in judge_trainer_folders(f"{own}{os.pathsep}{shelf}", shelf)] == ["ok"]
    assert list(judge_trainer_folders(None, None)) == []


def test_a_trainer_folder_that_is_not_there_is_noted(tmp_path: Path) -> None:
    missing, _ = judge_trainer_folders(str(tmp_path / "gone"), None)
    assert (missing.level, missing.fix) == ("note", f"mkdir -p {tmp_path / 'gone'}")
