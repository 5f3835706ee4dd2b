"""Child process: prints as one JSON document what torch, torchvision and nnU-Net say when they are asked here.

The keys are the fields of `nnunet_ext.checkup.inspection.Inspection`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import warnings
from typing import Any

import torch

TRAINER_MODULE = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"


def main() -> None:
    """Print the document on the real stdout; what imports print goes to stderr."""
    answer = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(answer, "w") as stdout:
        json.dump(inspect(), stdout)


def inspect() -> dict[str, Any]:
    """Everything asked, in order of what is most likely to crash last."""
    cuda, cuda_trouble = _cuda_devices()
    return {
        "torch": str(torch.__version__),
        "cuda_build": torch.version.cuda,
        "devices": [*cuda, *_mps_devices(), _tried("cpu", torch.device("cpu"), "CPU", None, None)],
        "cuda_trouble": cuda_trouble,
        "torchvision_trouble": _import_trouble("torchvision"),
        "nnunetv2_trouble": _import_trouble(TRAINER_MODULE),
        "triton": importlib.util.find_spec("triton") is not None,
    }


def _cuda_devices() -> tuple[list[dict[str, Any]], str]:
    """The CUDA devices, and why there are none when torch knows (a driver that is too old is only a warning)."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        return [], _one_line(str(warned[0].message)) if warned else ""
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        device = torch.device("cuda", index)
        found.append(_tried("cuda", device, properties.name, properties.total_memory, capability))
    return found, ""


def _mps_devices() -> list[dict[str, Any]]:
    if not torch.backends.mps.is_available():
        return []
    return [_tried("mps", torch.device("mps"), "Apple GPU", torch.mps.recommended_max_memory(), None)]


def _tried(
    kind: str, device: torch.device, name: str, memory_bytes: int | None, capability: str | None
) -> dict[str, Any]:
    """The device with what came of a small convolution on it: a build without code for this card, or a broken
    driver or cuDNN, shows only then."""
    trouble = ""
    try:
        image, kernel = torch.ones(1, 1, 8, 8, device=device), torch.ones(1, 1, 3, 3, device=device)
        if torch.nn.functional.conv2d(image, kernel).sum().item() != 324.0:
            trouble = "a convolution gave a wrong result"
    except (RuntimeError, OSError) as wrong:
        trouble = _one_line(str(wrong))
    if "out of memory" in trouble:  # somebody else fills it at the moment; it can compute
        trouble = ""
    return {
        "kind": kind,
        "name": name,
        "memory_bytes": memory_bytes,
        "capability": capability,
        "trouble": trouble,
    }


def _import_trouble(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as wrong:  # noqa: BLE001 - whatever an import of somebody else's package raises is the answer
        return _one_line(f"{type(wrong).__name__}: {wrong}")
    return ""


def _one_line(words: str) -> str:
    return " ".join(words.split())[:300].rstrip(".")


if __name__ == "__main__":
    main()
