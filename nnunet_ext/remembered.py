"""What checkpoints said when they were last read, so that a file that has not changed is not read again."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_ext.errors import NnxError
from nnunet_ext.host import write_whole

MOST = 5000  # files remembered; the ones looked at last stay


@dataclass(frozen=True)
class Facts:
    """What a survey needs of a checkpoint. Without an epoch it cannot be read, and `trouble` says why."""

    epoch: int | None
    ema: float | None = None
    best_ema: float | None = None
    trouble: str = ""


class Remembered:
    """The facts of checkpoints by the identity of their files: device, inode, size, and both times, of which the
    kernel sets the second at every change. A file that cannot be read or written only costs time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = _read(file)
        self._has_news = False

    def facts(self, checkpoint: Path) -> Facts:
        """What the checkpoint says, read now or remembered. Raises OSError when there is no such file."""
        key = _identity(checkpoint)
        known = self._known.pop(key, None)
        if known is None:
            known = _facts(checkpoint)
            self._has_news = True
        self._known[key] = known
        return known

    def keep(self) -> None:
        """Remember for the next time what was read this time."""
        if self._has_news:
            newest = list(self._known.items())[-MOST:]
            text = json.dumps({key: asdict(facts) for key, facts in newest})
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._file, text.encode())


def remembered_here() -> Remembered:
    """In the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Remembered(Path(cache) / "nnx" / "checkpoints.json")


def _identity(checkpoint: Path) -> str:
    found = checkpoint.stat()
    numbers = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return ":".join(map(str, numbers))


def _facts(checkpoint: Path) -> Facts:
    from nnunet_ext.checkpoint import Checkpoint  # not imported where everything is remembered
    from nnunet_ext.history import History

    try:
        read = Checkpoint.read(checkpoint)
        history = History.from_logging(read.logging)
    except (NnxError, OSError) as trouble:
        return Facts(None, trouble=str(trouble))
    return Facts(read.current_epoch, history.ema[-1] if history.ema else None, history.best_ema)


def _read(file: Path) -> dict[str, Facts]:
    try:
        return {key: Facts(**facts) for key, facts in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or not ours: begin anew
        return {}
