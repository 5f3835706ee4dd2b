"""The control group's limits, from made /proc and /sys/fs/cgroup trees of both versions."""

from __future__ import annotations

from pathlib import Path

from nnunet_ext.cgroup import Limits, cgroup_limits


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def limits(tmp_path: Path, membership: str) -> Limits:
    (tmp_path / "self").write_text(membership)
    return cgroup_limits(tmp_path / "self", tmp_path / "cgroup")


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    top = tmp_path / "cgroup"
    write(top / "slurm" / "job 7" / "step", memory__max="max", cpu__max="max 100000")
    write(top / "slurm" / "job 7", memory__max=str(16 * 2**30), cpu__max="400000 100000")
    write(top / "slurm", memory__max=str(64 * 2**30), cpu__max="max 100000")
    assert limits(tmp_path, "0::/slurm/job 7/step\n") == Limits(16 * 2**30, 4.0)


def test_a_container_that_sees_its_group_as_the_top_is_understood(tmp_path: Path) -> None:
    write(tmp_path / "cgroup", memory__max=str(2**30), cpu__max="150000 100000")
    assert limits(tmp_path, "0::/docker/not-mounted-here\n") == Limits(2**30, 1.5)


def test_version_1_is_understood(tmp_path: Path) -> None:
    top = tmp_path / "cgroup"
    write(top / "memory" / "docker" / "a", memory__limit_in_bytes=str(3 * 2**30))
    write(top / "memory", memory__limit_in_bytes="9223372036854771712")
    write(top / "cpu,cpuacct" / "docker" / "a", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    (top / "cpu").symlink_to("cpu,cpuacct")
    assert limits(tmp_path, "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n0::/\n") == Limits(3 * 2**30, 2.0)


def test_no_limit_is_none(tmp_path: Path) -> None:
    top = tmp_path / "cgroup"
    write(top / "memory", memory__limit_in_bytes="9223372036854771712")
    write(top / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert limits(tmp_path, "4:memory:/\n3:cpu:/\n") == Limits(None, None)


def test_a_machine_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path / "nothing", tmp_path) == Limits(None, None)
    assert limits(tmp_path, "what is this\n") == Limits(None, None)
