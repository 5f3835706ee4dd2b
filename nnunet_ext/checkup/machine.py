"""What this machine has: versions, memory, cores, disks, programs, devices; asked here, judged in machine_check."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import resource
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.cgroup import Limits, cgroup_limits
from nnunet_ext.checkup.inspection import OUR_FOLDER
from nnunet_ext.errors import NnxError
from nnunet_ext.host import HERE
from nnunet_ext.settings import KNOWN, Value

DISTRIBUTION = "nnunet-nnx"
OUR_PACKAGES = ("nnunet_ext", "migrate", "monitor")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - its size is asked, nothing is written there
INSTALLERS = ("apt-get", "dnf", "zypper", "pacman", "apk", "brew")


@dataclass(frozen=True)
class Packages:
    """Installed versions; None is not installed."""

    nnunetv2: str | None
    torch: str | None
    torchvision: str | None
    numpy: str | None
    blosc2: str | None


@dataclass(frozen=True)
class Stranger:
    """Somebody else's package under one of our names: where it lies, or the distribution that also claims it."""

    name: str
    where: str


@dataclass(frozen=True)
class Program:
    """A program on the PATH: where, and the first line of what it says about its version (empty: it would not run)."""

    name: str
    path: str | None
    says: str


@dataclass(frozen=True)
class Gpu:
    """A graphics card as its driver names it."""

    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True)
class Machine:
    """Everything that can be asked without torch, in a fraction of a second."""

    system: str  # "Linux" or "Darwin"
    python: tuple[int, int, int]
    packages: Packages
    strangers: tuple[Stranger, ...]
    memory_bytes: int
    cores: int  # what os.cpu_count() says
    usable_cores: float  # what the scheduler and the control group leave of them
    limits: Limits
    shared_memory_bytes: int | None
    open_files: int
    programs: tuple[Program, ...]
    installer: str | None
    compiler: str | None
    python_headers: bool
    gpus: tuple[Gpu, ...]
    shelf: Path | None  # where our own trainer classes for nnUNetv2_train lie, if there are any


@dataclass(frozen=True)
class Folder:
    """One of nnU-Net's three folders: its environment variable, its value and where that came from."""

    root: str
    path: Path | None
    origin: str
    exists: bool
    is_readable: bool
    is_writable: bool
    free_bytes: int | None


def read_machine() -> Machine:
    """Ask this machine; what does not exist here is None or empty."""
    import psutil

    limits = cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return Machine(
        system=platform.system(),
        python=sys.version_info[:3],
        packages=Packages(*(_version(name) for name in Packages.__dataclass_fields__)),
        strangers=strangers(OUR_FOLDER),
        memory_bytes=psutil.virtual_memory().total,
        cores=os.cpu_count() or 1,
        usable_cores=min(_allowed_cores(), limits.cores or math.inf),
        limits=limits,
        shared_memory_bytes=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        programs=tuple(read_program(name, flag) for name, flag in _VERSION_FLAGS.items()),
        installer=next((name for name in INSTALLERS if shutil.which(name)), None),
        compiler=_compiler(os.environ),
        python_headers=Path(_include_folder(), "Python.h").is_file(),
        gpus=read_gpus(),
        shelf=_shelf(OUR_FOLDER / "nnunet_ext" / "shelf"),
    )


def read_folders(settings: Mapping[str, Value]) -> tuple[Folder, ...]:
    """nnU-Net's three folders as they are set."""
    roots = [(known.environment, settings[known.name]) for known in KNOWN if known.environment]
    return tuple(_folder(root, setting) for root, setting in roots)


def strangers(ours: Path) -> tuple[Stranger, ...]:
    """Who else uses our package names: a package elsewhere that Python would import first, or another distribution
    that put its files into ours."""
    return (*_elsewhere(ours), *_mixed_in(ours))


def read_program(name: str, version_flag: str) -> Program:
    """Find a program and ask for its version."""
    path = shutil.which(name)
    if path is None:
        return Program(name, None, "")
    try:
        done = HERE.run([path, version_flag], timeout_s=10)
    except NnxError:
        return Program(name, path, "")
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    return Program(name, path, said.splitlines()[0] if said and done.code == 0 else "")


def read_gpus() -> tuple[Gpu, ...]:
    """NVIDIA cards, from nvidia-smi; none when it is not there or does not run."""
    ask = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = HERE.run(ask, timeout_s=30)
    except NnxError:
        return ()
    return parse_gpus(done.text) if done.code == 0 else ()


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The lines of nvidia-smi's answer; a memory it cannot tell (`[N/A]`, on machines that share it) is 0."""
    lines = [[word.strip() for word in line.rsplit(",", 2)] for line in text.splitlines()]
    return tuple(
        Gpu(name, int(memory) if memory.isdigit() else 0, driver)
        for name, memory, driver in (line for line in lines if len(line) == 3)
    )


_VERSION_FLAGS = {"rsync": "--version", "ssh": "-V", "tmux": "-V", "zstd": "--version"}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _allowed_cores() -> int:
    """macOS cannot pin a process to cores, Linux (and Slurm on it) can."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _compiler(environ: Mapping[str, str]) -> str | None:
    """The C compiler that triton would take for torch.compile (triton/runtime/build.py): $CC, gcc, clang."""
    return next((path for name in (environ.get("CC"), "gcc", "clang") if name and (path := shutil.which(name))), None)


def _include_folder() -> str:
    """Where triton looks for Python.h; Debian's default scheme names a folder that headers are never put into."""
    scheme = sysconfig.get_default_scheme()
    return sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)


def _shelf(folder: Path) -> Path | None:
    return folder if any(file.name != "__init__.py" for file in folder.glob("*.py")) else None


def _folder(root: str, setting: Value) -> Folder:
    if setting.value is None:
        return Folder(root, None, setting.origin, False, False, False, None)
    path = Path(setting.value).expanduser().absolute()
    exists, free_bytes = False, None
    with contextlib.suppress(OSError):  # a folder above that may not be entered
        exists = path.is_dir()
        free_bytes = shutil.disk_usage(path).free
    readable, writable = os.access(path, os.R_OK | os.X_OK), os.access(path, os.W_OK | os.X_OK)
    return Folder(root, path, setting.origin, exists, readable, writable, free_bytes)


def _elsewhere(ours: Path) -> Iterator[Stranger]:
    for name in OUR_PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations or ()) if spec else []
        where = Path(places[0]).resolve() if places else None
        if where is None or ours / name not in (where, where.parent):
            yield Stranger(name, str(where) if where else "nowhere")


def _mixed_in(ours: Path) -> Iterator[Stranger]:
    claims: Mapping[str, list[str]] = importlib.metadata.packages_distributions()
    for name in OUR_PACKAGES:
        for other in sorted(set(claims.get(name, ())) - {DISTRIBUTION}):
            if Path(str(importlib.metadata.distribution(other).locate_file(name))).resolve() == ours / name:
                yield Stranger(name, f"the package {other}")
