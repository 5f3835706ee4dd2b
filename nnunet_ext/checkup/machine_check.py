"""Is this machine fit to train: judges the facts of `machine` and `inspection`, and says how to mend what is not."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nnunet_ext.checkup.device_check import judge_inspection
from nnunet_ext.checkup.finding import Finding, gib, note, ok, quoted, unfit
from nnunet_ext.checkup.inspection import inspect_torch
from nnunet_ext.checkup.machine import (
    SHARED_MEMORY,
    Folder,
    Machine,
    Packages,
    Program,
    Stranger,
    read_folders,
    read_machine,
)
from nnunet_ext.errors import NnxError
from nnunet_ext.settings import Value

GIB = 2**30
INSTALL = "pip install 'nnunet-nnx[train]'"
TESTED_NNUNET = ("2.8.0", "2.8.1")
# An augmentation worker and the final validation's resampling each hold whole cases in memory.
LITTLE_MEMORY = 8 * GIB
# The batches of nnU-Net's workers wait in /dev/shm: up to 9 in its queues and one per worker, and a 3D patch of
# 128x128x128 with its deep supervision targets takes about 30 MB. Docker gives 64 MiB unless told otherwise.
LITTLE_SHARED_MEMORY, TINY_SHARED_MEMORY = GIB, 64 * 2**20
# Every tensor that waits in a queue is an open file on Linux (torch.multiprocessing, strategy file_descriptor).
FEW_OPEN_FILES = 1024
# Checkpoints of the largest published plan (ResEnc XL) are 2 to 3 GB, kept three times and written beside the old.
LITTLE_DISK, TINY_DISK = 10 * GIB, GIB


def check_machine(
    settings: Mapping[str, Value], environ: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[Finding]:
    """Every finding about this machine; what is asked quickly comes first, torch (a child process) last, which takes
    seconds and is announced to `say`."""
    machine = read_machine()
    yield from judge_machine(machine, environ)
    for folder in read_folders(settings):
        yield judge_folder(folder)
    yield from judge_programs(machine.programs, machine.installer)
    if machine.packages.nnunetv2 is not None:
        yield from judge_trainer_folders(environ.get("nnUNet_extTrainer"), machine.shelf)
    if machine.packages.torch is None:
        return
    say("Asking torch and nnU-Net, which takes seconds ...")
    try:
        inspection = inspect_torch()
    except NnxError as wrong:
        yield unfit("torch", wrong.sentence, f"Install it anew: {INSTALL}")
        return
    yield from judge_inspection(inspection, machine, environ)


def judge_machine(machine: Machine, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Versions, names, memory and cores."""
    yield judge_python(machine.python)
    yield from judge_packages(machine.packages)
    yield from judge_strangers(machine.strangers)
    yield judge_memory(machine.memory_bytes, machine.limits.memory_bytes)
    yield judge_cores(machine.cores, machine.usable_cores, environ.get("nnUNet_n_proc_DA"))
    if machine.shared_memory_bytes is not None:
        yield judge_shared_memory(machine.shared_memory_bytes)
    if machine.system == "Linux":
        yield judge_open_files(machine.open_files)


def judge_python(version: tuple[int, int, int]) -> Finding:
    spoken = ".".join(map(str, version))
    if version < (3, 10):
        return unfit("Python", f"Python {spoken} is too old.", "Make an environment with Python 3.10 or newer.")
    return ok("Python", f"Python {spoken}.")


def judge_packages(packages: Packages) -> Iterator[Finding]:
    """What a training imports; a machine without nnU-Net needs only one sentence about it."""
    if packages.nnunetv2 is None and packages.torch is None:
        yield unfit("nnU-Net", "Neither nnU-Net nor torch is installed; this machine can watch, not train.", INSTALL)
        return
    yield judge_nnunetv2(packages.nnunetv2)
    yield judge_torch(packages.torch)
    yield _judge_at_least("torchvision", packages.torchvision, (0,), "nnU-Net's search for trainers imports it")
    # numpy 2 renamed numpy.core to numpy._core, and checkpoints name it; 1.26 is the first that knows both.
    yield _judge_at_least("numpy", packages.numpy, (1, 26), "older ones cannot load checkpoints written with numpy 2")
    yield _judge_at_least("blosc2", packages.blosc2, (3, 3, 2), "nnU-Net's preprocessed cases need it")


def judge_nnunetv2(version: str | None) -> Finding:
    if version is None:
        return unfit("nnU-Net", "nnU-Net is not installed.", INSTALL)
    if _numbers(version) < (2, 8):
        sentence = f"nnU-Net {version} is too old: nnx's trainers need the logger and the trainer search of 2.8."
        return unfit("nnU-Net", sentence, "pip install --upgrade 'nnunetv2>=2.8'")
    if version not in TESTED_NNUNET:
        tested = " and ".join(TESTED_NNUNET)
        sentence = (
            f"nnU-Net {version}; nnx is tested with {tested}. It changes nnU-Net's trainer, so try it briefly first."
        )
        return note("nnU-Net", sentence)
    return ok("nnU-Net", f"nnU-Net {version}.")


def judge_torch(version: str | None) -> Finding:
    """The bounds are nnU-Net's own (torch!=2.9.*,>=2.1.2 in its pyproject.toml)."""
    if version is None:
        return unfit("torch", "torch is not installed.", INSTALL)
    fix = "pip install --upgrade 'torch>=2.1.2,!=2.9.*' torchvision"
    if _numbers(version)[:2] == (2, 9):
        sentence = f"torch {version}: nnU-Net refuses 2.9, 3D convolutions with mixed precision are about 4x slower."
        return unfit("torch", sentence, fix)
    if _numbers(version) < (2, 1, 2):
        return unfit("torch", f"torch {version} is too old.", fix)
    return ok("torch", f"torch {version}.")


def judge_strangers(strangers: tuple[Stranger, ...]) -> Iterator[Finding]:
    for stranger in strangers:
        sentence = f"Python finds somebody else's '{stranger.name}' where nnx's belongs: {stranger.where}."
        fix = "Uninstall or rename that one, or give nnx an environment of its own; then install nnx anew."
        yield unfit("packages", sentence, fix)
    if not strangers:
        yield ok("packages", "nnunet_ext, migrate and monitor are nnx's own.")


def judge_memory(total_bytes: int, limit_bytes: int | None) -> Finding:
    usable = min(total_bytes, limit_bytes or total_bytes)
    limited = f", of {gib(total_bytes)}: the control group's limit" if usable < total_bytes else ""
    sentence = f"{gib(usable)} of memory{limited}."
    if usable < LITTLE_MEMORY:
        fix = "If workers are killed, use fewer: export nnUNet_n_proc_DA=2 nnUNet_def_n_proc=2"
        return note("memory", f"{sentence} That is little: 8 GiB is about what 3D trainings need.", fix)
    return ok("memory", sentence)


def judge_cores(cores: int, usable: float, workers: str | None) -> Finding:
    """nnU-Net starts min(12, os.cpu_count()) workers unless told (default_n_proc_DA.py), blind to limits."""
    sentence = f"{usable:g} of {cores} cores usable" if usable < cores else f"{cores} cores"
    fix = f"export nnUNet_n_proc_DA={max(1, int(usable))}"
    if workers is not None and not workers.isdigit():
        return unfit("cores", f"nnUNet_n_proc_DA is '{workers}', which is no number.", fix)
    if workers is not None and int(workers) == 0:
        return note("cores", f"{sentence}. nnUNet_n_proc_DA=0 augments in the training process: slow.", fix)
    started = min(int(workers) if workers is not None else 12, cores)
    if started > usable:
        return note("cores", f"{sentence}, but nnU-Net would start {started} augmentation workers.", fix)
    return ok("cores", f"{sentence}.")


def judge_shared_memory(size_bytes: int) -> Finding:
    topic = str(SHARED_MEMORY)
    sentence = f"{topic} holds {gib(size_bytes)}."
    fix = "Start the container with --shm-size=8g (or --ipc=host)."
    if size_bytes <= TINY_SHARED_MEMORY:
        return unfit(topic, f"{sentence} nnU-Net's augmentation workers die when it is full.", fix)
    if size_bytes < LITTLE_SHARED_MEMORY:
        return note(topic, f"{sentence} That is little for 3D patches.", fix)
    return ok(topic, sentence)


def judge_open_files(limit: int) -> Finding:
    if 0 <= limit < FEW_OPEN_FILES:  # no limit is -1
        return note("open files", f"A process may open {limit} files, which workers can use up.", "ulimit -n 4096")
    return ok("open files", f"A process may open {limit} files." if limit >= 0 else "No limit.")


def judge_folder(folder: Folder) -> Finding:
    """Raw data is only read, and not by a training."""
    if folder.path is None:
        return unfit(folder.root, f"{folder.root} is not set.", f"export {folder.root}=/path/to/{folder.root}")
    where, path = f"{folder.path} (from {_spoken_origin(folder)})", quoted(folder.path)
    is_needed = folder.root != "nnUNet_raw"
    judged = unfit if is_needed else note
    if not folder.exists:
        return judged(folder.root, f"{where} does not exist.", f"mkdir -p {path}")
    if not folder.is_readable:
        return judged(folder.root, f"{where} cannot be read.", f"ls -ld {path}")
    return _judge_room(folder, where, path) if is_needed else ok(folder.root, f"{where}.")


def judge_programs(programs: tuple[Program, ...], installer: str | None) -> Iterator[Finding]:
    for program in programs:
        fix = _install(program.name, installer)
        if program.path is None:
            yield note(program.name, f"There is no {program.name}; {_USES[program.name]}.", fix)
        elif not program.says:
            yield note(program.name, f"{program.path} does not run.", fix)
        elif program.name == "rsync":
            yield judge_rsync(program.says, installer)
        else:
            yield ok(program.name, f"{program.name} {_version_in(program.says)}.")


def judge_rsync(says: str, installer: str | None) -> Finding:
    """macOS ships openrsync, before that the last rsync under GPL 2; both lack rsync 3's options."""
    if says.startswith("openrsync"):
        name = "Apple's openrsync"
    else:
        name = f"rsync {_version_in(says)}"
        if _numbers(_version_in(says)) >= (3, 0):
            return ok("rsync", f"{name}.")
    return note("rsync", f"{name}: it moves files, without what rsync 3 added.", _install("rsync", installer))


def judge_trainer_folders(value: str | None, shelf: Path | None) -> Iterator[Finding]:
    """nnU-Net searches these folders for trainers (find_objects.py) and passes over those that are not there; nnx's
    own, if it has trainers to offer, is only for people who type nnUNetv2_train."""
    folders = [Path(word) for word in (value or "").split(os.pathsep) if word.strip()]
    for folder in (folder for folder in folders if not folder.exists()):
        yield note("trainers", f"nnUNet_extTrainer names {folder}, which does not exist.", f"mkdir -p {quoted(folder)}")
    if shelf in folders:
        yield ok("trainers", f"nnUNetv2_train finds nnx's trainers in {shelf}.")
    elif shelf is not None:
        all_folders = os.pathsep.join(map(str, [*folders, shelf]))
        sentence = "nnUNetv2_train by itself does not find nnx's trainers; nnx needs nothing set."
        yield note("trainers", sentence, f"export nnUNet_extTrainer={shlex.quote(all_folders)}")
    elif folders:
        yield ok("trainers", f"nnUNet_extTrainer is {value}.")


_USES = {
    "rsync": "moving a run goes over sftp, which is slower",
    "ssh": "moving a run with keys only ssh can use needs it",
    "tmux": "a training started on this machine for later cannot be attached to",
    "zstd": "unpacking a pack by hand (tar --zstd) needs it, nnx does not",
}
_APT_NAMES = {"ssh": "openssh-client"}


def _judge_room(folder: Folder, where: str, path: str) -> Finding:
    is_results = folder.root == "nnUNet_results"
    if not folder.is_writable:
        judged = unfit if is_results else note
        return judged(folder.root, f"{where} cannot be written to.", f"ls -ld {path}")
    if folder.free_bytes is None:
        return ok(folder.root, f"{where}.")
    free = f"{where}, {gib(folder.free_bytes)} free"
    if folder.free_bytes < TINY_DISK and is_results:
        return unfit(folder.root, f"{free}: checkpoints would not fit.", f"df -h {path}")
    if folder.free_bytes < LITTLE_DISK:
        return note(folder.root, f"{free}, which is little.", f"df -h {path}")
    return ok(folder.root, f"{free}.")


def _spoken_origin(folder: Folder) -> str:
    return f"${folder.origin}" if folder.origin == folder.root else folder.origin


def _judge_at_least(package: str, version: str | None, least: tuple[int, ...], why: str) -> Finding:
    bound = ".".join(map(str, least))
    if version is None:
        return unfit(package, f"{package} is not installed; {why}.", INSTALL)
    if _numbers(version) < least:
        sentence = f"{package} {version} is older than {bound}; {why}."
        return unfit(package, sentence, f"pip install --upgrade '{package}>={bound}'")
    return ok(package, f"{package} {version}.")


def _install(program: str, installer: str | None) -> str:
    if installer == "apt-get":
        return f"sudo apt-get install {_APT_NAMES.get(program, program)}"
    if installer == "brew":
        return f"brew install {program}"
    return f"Install {program} with your package manager."


def _numbers(version: str) -> tuple[int, ...]:
    """`2.8.1+cu128` -> (2, 8, 1); what follows the numbers does not count."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _version_in(says: str) -> str:
    found = re.search(r"\d+\.\d+[\w.]*", says)
    return found[0].rstrip(".") if found else "of unknown version"
