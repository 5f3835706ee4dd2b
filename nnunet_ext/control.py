"""The small folder `.nnx/` beside a fold's files: who this run is, requests to stop it, what happened to it.

run.json       {run_id, dataset, configuration, fold, trainer, plans, created_at}
stop.json      {run_id, nonce, mode, action, reason, by, at}        a request, until the trainer consumes it
moved.json     {to, epoch, at}                                      the run goes on elsewhere
events.jsonl   {at, event, ...} one line each, only ever appended
lock           held by the one process that trains this fold
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any, Literal

from nnunet_ext.errors import Damaged, Refused
from nnunet_ext.host import HERE, Host
from nnunet_ext.run import Run

Mode = Literal["epoch", "now"]  # stop at the end of the running epoch, or at the next batch
Action = Literal["pause", "finish"]  # keep checkpoint_latest to go on later, or write checkpoint_final

LOCK_PATIENCE_S = 2.0  # longer than anybody's glance at the lock


@dataclass(frozen=True)
class StopRequest:
    """A request to stop a run; `nonce` tells two requests with the same words apart."""

    run_id: str
    nonce: str
    mode: Mode
    action: Action
    reason: str
    by: str
    at: str


@dataclass(frozen=True)
class Moved:
    """Where a run went on, and after how many completed epochs."""

    to: str
    epoch: int
    at: str


@dataclass(frozen=True)
class Control:
    """The control folder of one fold, here or on a host; it is made when first written to."""

    folder: PurePath
    host: Host = HERE
    clock: Callable[[], float] = time.time

    # who this run is

    def run_id(self) -> str | None:
        """The identity given to this training when nnx first touched it; None before."""
        known = self._read("run.json")
        return None if known is None else str(known["run_id"])

    def identify(self, run: Run, run_id: str | None = None) -> str:
        """The run's identity; when it has none here, `run_id` (from a checkpoint that moved), else a new one."""
        known = self.run_id()
        if known is None:
            known = run_id or os.urandom(8).hex()
            self._write("run.json", {"run_id": known, **dataclasses.asdict(run), "created_at": self._now()})
        return known

    # requests to stop

    def request_stop(self, mode: Mode, action: Action, reason: str, by: str) -> StopRequest:
        """Ask the trainer to stop; needs no PID and works over network file systems. A newer request replaces an
        older one that was not consumed yet."""
        request = StopRequest(self.run_id() or "", os.urandom(8).hex(), mode, action, reason, by, self._now())
        self._write("stop.json", dataclasses.asdict(request))
        return request

    def pending_stop(self) -> StopRequest | None:
        """The request that waits; one that was meant for another training of the same folder is none."""
        asked = self._read("stop.json")
        if asked is None or asked.get("run_id", "") not in ("", self.run_id()):
            return None
        try:
            return StopRequest(**asked)
        except TypeError as wrong:
            raise self._damaged("stop.json") from wrong

    def consume_stop(self, request: StopRequest) -> None:
        """Take the request away, unless a newer one has replaced it."""
        waiting = self.pending_stop()
        if waiting is not None and waiting.nonce == request.nonce:
            self.host.remove(self.folder / "stop.json")

    # where it lives

    def moved(self) -> Moved | None:
        """Where the run went on, None while it lives here."""
        marker = self._read("moved.json")
        if marker is None:
            return None
        try:
            return Moved(**marker)
        except TypeError as wrong:
            raise self._damaged("moved.json") from wrong

    def mark_moved(self, to: str, epoch: int) -> None:
        self._write("moved.json", {"to": to, "epoch": epoch, "at": self._now()})

    def unmark_moved(self) -> None:
        self.host.remove(self.folder / "moved.json")

    # what happened

    def log(self, event: str, **facts: object) -> None:
        """Append one line to events.jsonl."""
        self.host.make_folder(self.folder)
        line = json.dumps({"at": self._now(), "event": event, **facts}, default=str)
        self.host.append(self.folder / "events.jsonl", line.encode() + b"\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event, oldest first; a line that a crash cut short is left out."""
        try:
            lines = self.host.read(self.folder / "events.jsonl").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    # one trainer at a time (this machine only)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the fold for this process. Raises Refused when another process holds it; the kernel lets go of it
        when this process ends, however it ends."""
        self.host.make_folder(self.folder)
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._take(handle)
            holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": self._now()}
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode(), 0)
            yield
        finally:
            os.close(handle)

    def is_locked(self) -> bool:
        """Whether a process of this machine holds the fold."""
        try:
            handle = os.open(self.folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def _take(self, handle: int) -> None:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as held:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                raise self._already_running() from held
            return

    def _already_running(self) -> Refused:
        try:
            holder = json.loads(Path(self.folder, "lock").read_text())
            who = f"by process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = "by another process"
        return Refused(
            f"This run is already being trained {who} ({self.folder.parent}).",
            "Follow it instead, or stop it first; two trainers on one folder destroy its checkpoints.",
        )

    # files

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            known = json.loads(self.host.read(self.folder / name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as wrong:
            raise self._damaged(name) from wrong
        if not isinstance(known, dict):
            raise self._damaged(name)
        return known

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self.host.make_folder(self.folder)
        self.host.write(self.folder / name, json.dumps(content, indent=1).encode() + b"\n")

    def _damaged(self, name: str) -> Damaged:
        return Damaged(f"{self.folder / name} is not what nnx writes there.", "Remove that file and try again.")

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock(), timezone.utc).isoformat(timespec="milliseconds")
