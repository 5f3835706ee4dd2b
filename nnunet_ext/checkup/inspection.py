"""What torch says of this machine, asked in a child process, where a crash of torch is the child's crash."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import nnunet_ext
from nnunet_ext.errors import NnxError
from nnunet_ext.host import HERE

OUR_FOLDER = Path(nnunet_ext.__file__).resolve().parents[1]
IMPORT_PATIENCE_S = 300.0  # torch from a cold network file system


@dataclass(frozen=True)
class Device:
    """What torch can compute on; `trouble` is what came of trying it, empty when it computed."""

    kind: str
    name: str
    memory_bytes: int | None
    capability: str | None
    trouble: str


@dataclass(frozen=True)
class Inspection:
    """What torch says of itself and of this machine; a trouble is empty when there is none."""

    torch: str
    cuda_build: str | None
    devices: tuple[Device, ...]
    cuda_trouble: str
    torchvision_trouble: str
    nnunetv2_trouble: str
    triton: bool


def inspect_torch() -> Inspection:
    """Ask torch, in a child process: a crash there is not ours. Raises NnxError with the child's last words."""
    done = HERE.run(own_child("nnunet_ext.trainers.inspect_machine"), timeout_s=IMPORT_PATIENCE_S)
    try:
        said = json.loads(done.stdout)
        devices = tuple(Device(**device) for device in said.pop("devices"))
        return Inspection(devices=devices, **said)
    except (ValueError, TypeError, KeyError, AttributeError) as wrong:
        raise NnxError(f"torch could not be asked about this machine: {last_words(done.code, done.stderr)}.") from wrong


def own_child(module: str, *words: str) -> list[str]:
    """The arguments that run one of our modules in a child of this Python.

    `python -m` and `python -c` put the working directory first on sys.path, where a stray folder named `torch` or
    `migrate` would be imported instead. It is taken off, and our own folder goes last.
    """
    code = (
        "import runpy, sys; sys.path[:] = [p for p in sys.path if p] + [sys.argv.pop(1)];"
        " runpy.run_module(sys.argv.pop(1), run_name='__main__')"
    )
    return [sys.executable, "-c", code, str(OUR_FOLDER), module, *words]


def last_words(code: int, stderr: bytes) -> str:
    """Why a child ended, in one line."""
    said = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{said[-1].rstrip('.')} ({how})" if said else how
