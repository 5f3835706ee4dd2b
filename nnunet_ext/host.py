"""A machine nnx works on: run a program, read, write and list files there; the only user of subprocess."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, Protocol

from nnunet_ext.errors import NnxError, Unfit


@dataclass(frozen=True)
class Entry:
    """One name in a folder. Links are followed for kind, size and time; a dead link is of kind "other"."""

    name: str
    kind: Literal["file", "folder", "other"]
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Completed:
    """How a program ended; `code` is negative for a signal."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class Host(Protocol):
    """What every kind of host can do. Trouble with a file is an OSError of the fitting kind (FileNotFoundError,
    PermissionError, ...), trouble with a program that cannot start is Unfit, a connection's trouble is HostError."""

    @property
    def name(self) -> str:
        """What the user calls it; empty for this machine."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: PurePath | None = None,
    ) -> Completed:
        """Run a program to its end, quoted by nobody's shell; `env` is added to the host's own.

        Raises Unfit when there is no such program, NnxError after `timeout_s` (its whole process group is ended).
        """

    def run_attached(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Run a program on the user's terminal and give its exit code (128 + n for a signal, as a shell does).

        Ctrl-C reaches it through the terminal; other signals meant for this process are handed on to it.
        """

    def list(self, folder: PurePath) -> list[Entry]:
        """The names in a folder, in no order."""

    def stat(self, path: PurePath) -> Entry | None:
        """One file or folder; None when nothing is there."""

    def read(self, path: PurePath, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file from `offset`; fewer than `length` at its end."""

    def write(self, path: PurePath, data: bytes) -> None:
        """Replace a file as a whole: a reader sees the old bytes or the new, and after a power cut, too."""

    def append(self, path: PurePath, data: bytes) -> None:
        """Add to a file's end in one write, so that two writers' lines never mix."""

    def make_folder(self, path: PurePath) -> None:
        """Make a folder and those above it; nothing happens when it is there."""

    def rename(self, old: PurePath, new: PurePath) -> None:
        """Rename, replacing a file of the new name in the same instant."""

    def remove(self, path: PurePath) -> None:
        """Remove a file; nothing happens when it is not there."""


class LocalHost:
    """This machine."""

    name = ""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: PurePath | None = None,
    ) -> Completed:
        with _start(argv, env, cwd) as process:
            try:
                stdout, stderr = process.communicate(stdin, timeout=timeout_s)
            except BaseException as stopped:
                _end_group(process)
                if isinstance(stopped, subprocess.TimeoutExpired):
                    raise NnxError(f"{argv[0]} did not end within {timeout_s:g} s.") from stopped
                raise
        return Completed(tuple(argv), process.returncode, stdout, stderr)

    def run_attached(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        with subprocess.Popen(list(argv), env={**os.environ, **env}) as process, _handing_on_signals(process):
            code = process.wait()
        return code if code >= 0 else 128 - code

    def list(self, folder: PurePath) -> list[Entry]:
        with os.scandir(folder) as names:
            return [_entry(name.name, Path(name.path)) for name in names]

    def stat(self, path: PurePath) -> Entry | None:
        return _entry(path.name, Path(path)) if os.path.lexists(path) else None

    def read(self, path: PurePath, offset: int = 0, length: int | None = None) -> bytes:
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    def write(self, path: PurePath, data: bytes) -> None:
        write_whole(Path(path), data)

    def append(self, path: PurePath, data: bytes) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)

    def make_folder(self, path: PurePath) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)

    def rename(self, old: PurePath, new: PurePath) -> None:
        Path(old).replace(new)

    def remove(self, path: PurePath) -> None:
        Path(path).unlink(missing_ok=True)


HERE: Host = LocalHost()


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, fsync, replace, fsync the folder; an existing file's mode is kept. Raises OSError, and then
    the old file is as it was."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            beside.chmod(stat.S_IMODE(path.stat().st_mode))
        replace_durably(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def replace_durably(new: Path, path: Path) -> None:
    """Give a finished, fsynced file its name, and make the name itself survive a power cut."""
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _entry(name: str, path: Path) -> Entry:
    try:
        found = path.stat()
    except OSError:
        return Entry(name, "other", 0, 0)
    kind: Literal["file", "folder", "other"] = "other"
    if stat.S_ISREG(found.st_mode):
        kind = "file"
    elif stat.S_ISDIR(found.st_mode):
        kind = "folder"
    return Entry(name, kind, found.st_size, found.st_mtime_ns)


def _start(argv: Sequence[str], env: Mapping[str, str] | None, cwd: PurePath | None) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, so that it can be ended with all its children."""
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    except FileNotFoundError as missing:
        if cwd is not None and not Path(cwd).is_dir():
            raise
        raise Unfit(f"There is no program '{argv[0]}' here.", f"Install {Path(argv[0]).name}.") from missing
    except PermissionError as forbidden:
        raise Unfit(f"The program '{argv[0]}' may not be run.") from forbidden


@contextlib.contextmanager
def _handing_on_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ctrl-C goes to the whole terminal, so the child has it already and decides what becomes of it."""
    handlers: dict[signal.Signals, Any] = {signal.SIGINT: signal.SIG_IGN}
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        handlers[number] = lambda caught, _: process.send_signal(caught)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
