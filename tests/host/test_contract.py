"""What every kind of host promises; one suite for all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from nnunet_ext.errors import Exit, NnxError, Unfit
from nnunet_ext.host import Host, LocalHost

HOSTS = [LocalHost]


@pytest.fixture(params=HOSTS, ids=lambda kind: kind.__name__)
def host(request: pytest.FixtureRequest) -> Host:
    return request.param()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / 'a "quoted" földer $HOME; true'
    made.mkdir()
    return made


def test_a_program_gets_its_arguments_untouched(host: Host) -> None:
    words = ["a b", "'", '"', "$HOME", "*", "", "ünï", "-n", "line\nbreak", ";true"]
    done = host.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words])
    assert (done.code, done.text) == (0, f"{words}\n")


def test_input_output_and_exit_code_come_through(host: Host) -> None:
    code = (
        "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1]); print('no', file=sys.stderr); sys.exit(3)"
    )
    done = host.run([sys.executable, "-c", code], stdin=bytes(range(256)))
    assert (done.code, done.stdout, done.stderr) == (3, bytes(range(256))[::-1], b"no\n")


def test_environment_is_added_and_the_working_directory_obeyed(host: Host, folder: Path) -> None:
    code = "import os; print(os.environ['NNX_WORD'], 'PATH' in os.environ, os.getcwd())"
    done = host.run([sys.executable, "-c", code], env={"NNX_WORD": "a b"}, cwd=folder)
    assert done.text == f"a b True {folder}\n"


def test_a_missing_program_is_named(host: Host) -> None:
    with pytest.raises(Unfit, match="no-such-program") as unfit:
        host.run(["no-such-program"])
    assert unfit.value.exit_code == Exit.UNFIT


def test_a_program_that_hangs_is_ended_with_its_children(host: Host, folder: Path) -> None:
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, file=open('pid', 'w'), flush=True); time.sleep(60)"
    )
    started = time.monotonic()
    with pytest.raises(NnxError, match="within 1 s"):
        host.run([sys.executable, "-c", code], timeout_s=1, cwd=folder)
    assert time.monotonic() - started < 5
    child = int((folder / "pid").read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait(5)


def test_a_killed_program_is_told_by_its_signal(host: Host) -> None:
    done = host.run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])
    assert done.code == -signal.SIGTERM


def test_written_bytes_are_read_back_whole_and_in_part(host: Host, folder: Path) -> None:
    host.write(folder / "ä b", b"0123456789")
    assert host.read(folder / "ä b") == b"0123456789"
    assert host.read(folder / "ä b", offset=3, length=4) == b"3456"
    assert host.read(folder / "ä b", offset=8, length=10) == b"89"
    assert host.read(folder / "ä b", offset=99) == b""


def test_a_write_leaves_no_other_file_behind_and_keeps_the_mode(host: Host, folder: Path) -> None:
    host.write(folder / "f", b"1")
    (folder / "f").chmod(0o640)
    host.write(folder / "f", b"2")
    assert [entry.name for entry in host.list(folder)] == ["f"]
    assert (folder / "f").stat().st_mode & 0o777 == 0o640


def test_a_reader_never_sees_half_a_write(host: Host, folder: Path) -> None:
    host.write(folder / "f", b"a" * 100_000)
    seen, done = set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            data = host.read(folder / "f")
            seen.add((len(data), len(set(data))))

    reader = threading.Thread(target=look)
    reader.start()
    for letter in b"bcdefgh" * 5:
        host.write(folder / "f", bytes([letter]) * 100_000)
    done.set()
    reader.join()
    assert seen == {(100_000, 1)}


def test_a_write_that_fails_leaves_the_old_file(host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write(folder / "f", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        host.write(folder / "f", b"new")
    assert host.read(folder / "f") == b"old"
    assert len(host.list(folder)) == 1


def test_appended_lines_never_mix(host: Host, folder: Path) -> None:
    lines = [b"%d" % n * 500 + b"\n" for n in range(4)]
    writers = [
        threading.Thread(target=lambda line=line: [host.append(folder / "f", line) for _ in range(50)])
        for line in lines
    ]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    written = host.read(folder / "f").splitlines(keepends=True)
    assert sorted(written) == sorted(lines * 50)


def test_a_listing_tells_files_from_folders_and_follows_links(host: Host, folder: Path) -> None:
    host.write(folder / "file", b"123")
    host.make_folder(folder / "deep" / "er")
    (folder / "link").symlink_to(folder / "deep")
    (folder / "dead").symlink_to(folder / "nothing")
    kinds = {
        entry.name: (entry.kind, entry.size_bytes if entry.kind == "file" else None) for entry in host.list(folder)
    }
    assert kinds == {"file": ("file", 3), "deep": ("folder", None), "link": ("folder", None), "dead": ("other", None)}


def test_missing_things_are_told_apart_from_trouble(host: Host, folder: Path) -> None:
    assert host.stat(folder / "nothing") is None
    host.remove(folder / "nothing")
    for look in (host.read, host.list):
        with pytest.raises(FileNotFoundError):
            look(folder / "nothing")


def test_rename_replaces_and_folders_may_be_there_already(host: Host, folder: Path) -> None:
    host.write(folder / "new", b"new")
    host.write(folder / "old", b"old")
    host.rename(folder / "new", folder / "old")
    host.make_folder(folder)
    assert [entry.name for entry in host.list(folder)] == ["old"]
    assert host.read(folder / "old") == b"new"
