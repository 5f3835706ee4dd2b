"""Trainings in processes of their own, started in a second: forked from a process that has imported nnU-Net already.

    python tests/lives.py FOLDER     reads one JSON line per life from stdin: {name, env, argv, failpoint}

A life is what `python -m nnunet_ext.trainers.launch` runs, in a session of its own; FOLDER gets NAME.pid, NAME.out
and, at the end, NAME.code.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from failpoint import Failpoint, arm

LAUNCH = "nnunet_ext.trainers.launch"


@dataclass(frozen=True)
class Life:
    """One training process, from its start to its end."""

    pid: int
    output_file: Path
    poll: Callable[[], int | None]  # the exit code, negative for a signal; None while it lives

    @property
    def output(self) -> str:
        return self.output_file.read_text(errors="replace")

    def has_ended(self) -> bool:
        return self.poll() is not None

    def wait_for(self, text: str, timeout_s: float = 90, times: int = 1) -> None:
        """Until the output has `text`; fails when the life ends or the time is up before."""
        until(lambda: self.output.count(text) >= times or self.has_ended(), timeout_s, f"'{text}'", self)
        assert self.output.count(text) >= times, f"ended before '{text}':\n{self.output[-3000:]}"

    def code(self, timeout_s: float = 90) -> int:
        """How it ended: its exit code, negative for a signal."""
        until(self.has_ended, timeout_s, "the end", self)
        code = self.poll()
        assert code is not None
        return code

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """As a terminal does on Ctrl-C, and a scheduler: every process of the training."""
        os.killpg(self.pid, number)

    def processes(self) -> list[int]:
        """Every living process of this training: main process, augmentation workers, spawned pools."""
        return [pid for pid in psutil.pids() if _session(pid) == self.pid and _is_alive(pid)]

    def left_over(self, patience_s: float = 5) -> list[int]:
        """The processes that outlive the training by `patience_s`."""
        deadline = time.monotonic() + patience_s
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.processes()


class Lives:
    """Starts lives; see `living`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.count = 0

    def start(self, env: Mapping[str, str], *argv: str, failpoint: Failpoint | None = None) -> Life:
        """A training by nnUNetv2_train's arguments under the whole environment `env`."""
        name = f"life{self.count}"
        self.count += 1
        order = {"name": name, "env": dict(env), "argv": argv, "failpoint": failpoint and asdict(failpoint)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        pid_file, code_file = self.folder / f"{name}.pid", self.folder / f"{name}.code"
        until(lambda: pid_file.exists() and pid_file.read_text() != "", 60, f"the start of {name}")
        code = lambda: int(code_file.read_text()) if code_file.exists() else None  # noqa: E731
        return Life(int(pid_file.read_text()), self.folder / f"{name}.out", code)


@contextlib.contextmanager
def living(env: Mapping[str, str], folder: Path) -> Iterator[Lives]:
    """A process that forks lives; at the end everything it started is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    patient = {**env, "OMP_WAIT_POLICY": "passive"}  # on a busy machine, threads that spin while they wait cost most
    process = subprocess.Popen(argv, env=patient, stdin=subprocess.PIPE, cwd=folder)
    try:
        yield Lives(process, folder)
    finally:
        process.communicate()


def until(condition: Callable[[], bool], timeout_s: float, what: str, life: Life | None = None) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        output = "" if life is None else f":\n{life.output[-3000:]}"
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}{output}"
        time.sleep(0.02)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main(folder: Path) -> None:
    """The process that has imported nnU-Net and forks."""
    __import__(LAUNCH)
    children: dict[int, str] = {}
    orders = _Lines(sys.stdin.fileno())
    while not orders.closed:
        for line in orders.within(0.02):
            order = json.loads(line)
            (folder / f"{order['name']}.out").touch()
            pid = os.fork()
            if pid == 0:
                os._exit(_live(folder, order))
            children[pid] = order["name"]
            (folder / f"{order['name']}.pid").write_text(str(pid))
        _reap(children, folder)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


class _Lines:
    """Lines of a pipe, without waiting."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.rest = b""
        self.closed = False

    def within(self, timeout_s: float) -> list[bytes]:
        if not select.select([self.handle], [], [], timeout_s)[0]:
            return []
        read = os.read(self.handle, 2**20)
        self.closed = not read
        *lines, self.rest = (self.rest + read).split(b"\n")
        return lines


def _reap(children: dict[int, str], folder: Path) -> None:
    for pid in [*children]:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            beside = folder / f"{children.pop(pid)}.code.part"
            beside.write_text(str(os.waitstatus_to_exitcode(status)))
            beside.replace(beside.with_suffix(""))


def _live(folder: Path, order: Mapping[str, Any]) -> int:
    """In the forked child: become what the command line would have started, and train."""
    os.setsid()
    output = os.open(folder / f"{order['name']}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it: nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = [LAUNCH, *order["argv"]]
    if order["failpoint"] is not None:
        arm(Failpoint(**order["failpoint"]))
    return _run()


def _run() -> int:
    """What Python itself does around a program: tracebacks, atexit, exit codes, death by Ctrl-C."""
    import atexit
    import threading
    import traceback

    from nnunet_ext.trainers import launch

    try:
        code = launch.main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = -signal.SIGINT
    except BaseException:  # noqa: BLE001 - what the interpreter would print
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the checkpoint writer, as at any exit
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        os.kill(os.getpid(), signal.SIGINT)
    return int(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
