"""What a check of this machine or of a dataset found, how much it matters, and how to mend it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "note", "unfit"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: a sentence with the value; `fix` is a command or a sentence, empty when ok."""

    topic: str
    level: Level
    finding: str
    fix: str = ""


def ok(topic: str, finding: str) -> Finding:
    return Finding(topic, "ok", finding)


def note(topic: str, finding: str, fix: str = "") -> Finding:
    """Worth knowing; a training can run all the same."""
    return Finding(topic, "note", finding, fix)


def unfit(topic: str, finding: str, fix: str) -> Finding:
    """A training would fail, or would do something else than what was asked for."""
    return Finding(topic, "unfit", finding, fix)


def is_fit(findings: Iterable[Finding]) -> bool:
    """Notes do not make a machine or a dataset unfit."""
    return all(finding.level != "unfit" for finding in findings)


def gib(size_bytes: int) -> str:
    """A size for a sentence, in the unit people know memory and disks by: `7.7 GiB`, `64 MiB`."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def quoted(path: Path) -> str:
    """A path as it is typed into a shell."""
    return shlex.quote(str(path))


def sentence(words: str) -> str:
    """Words with a full stop."""
    return words if words.endswith((".", "?", "!")) else f"{words}."


def counted(number: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def some(names: Sequence[str], noun: str, shown: int = 3) -> str:
    """How many, and the first few by name: `5 cases (a, b, c, ...)`."""
    more = ", ..." if len(names) > shown else ""
    return f"{counted(len(names), noun)} ({', '.join(names[:shown])}{more})"
