"""What this process's control group (a container's, or a Slurm job's) leaves of the machine's memory and cores."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """What the control group of this process may use; None is no limit."""

    memory_bytes: int | None
    cores: float | None


def cgroup_limits(membership: Path, mount: Path) -> Limits:
    """The tightest limits on the way up from this process's control groups, versions 1 and 2; a container often
    sees its own group mounted as the top.

    The files: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html of the same guide.
    """
    memory: list[float] = [math.inf]
    cores: list[float] = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for folder in _group_folders(mount, controllers, path):
                memory += [_number(folder / name) for name in ("memory.max", "memory.limit_in_bytes")]
                cores += [_cpu_quota_v1(folder), _cpu_quota_v2(folder)]
    unlimited_bytes = 2**60  # version 1 spells "no limit" as the largest number of whole pages
    least = min(memory)
    return Limits(int(least) if least < unlimited_bytes else None, min(cores) if min(cores) < math.inf else None)


def _group_folders(mount: Path, controllers: str, path: str) -> Iterator[Path]:
    """The folders of a group and of the groups above it; version 2 names no controllers."""
    tops = [mount, mount / "unified"] if not controllers else [mount / name for name in controllers.split(",")]
    for top in (top for top in tops if top.is_dir()):
        group = top / path.strip("/")
        yield group
        yield from (folder for folder in group.parents if folder == top or top in folder.parents)


def _number(file: Path) -> float:
    try:
        return float(file.read_text())
    except (OSError, ValueError):  # not there, or the word "max"
        return math.inf


def _cpu_quota_v1(folder: Path) -> float:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if 0 < quota < math.inf and 0 < period < math.inf else math.inf


def _cpu_quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError):
        return math.inf
