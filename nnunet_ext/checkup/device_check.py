"""Can torch compute here, and on what: judges what torch said of itself and of the devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nnunet_ext.checkup.finding import Finding, gib, note, ok, unfit
from nnunet_ext.checkup.inspection import Device, Inspection
from nnunet_ext.checkup.machine import Gpu, Machine

GET_TORCH = "https://pytorch.org/get-started/locally"


def judge_inspection(inspection: Inspection, machine: Machine, environ: Mapping[str, str]) -> Iterator[Finding]:
    """What torch, torchvision and nnU-Net said, and each device."""
    if inspection.torchvision_trouble:
        sentence = f"torchvision does not import with torch {inspection.torch}: {inspection.torchvision_trouble}."
        yield unfit("torchvision", sentence, "pip install --upgrade --force-reinstall 'torch!=2.9.*' torchvision")
    if inspection.nnunetv2_trouble and machine.packages.nnunetv2:
        sentence = f"nnU-Net does not import: {inspection.nnunetv2_trouble}."
        yield unfit("nnU-Net", sentence, "pip install --upgrade --force-reinstall nnunetv2")
    yield from judge_devices(inspection, machine.gpus, environ)
    if machine.system == "Linux" and any(device.kind == "cuda" for device in inspection.devices):
        yield judge_compile(machine, inspection.triton, environ.get("nnUNet_compile"))


def judge_devices(inspection: Inspection, gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Each device torch can use, or why there is no GPU; the CPU is worth a word only without one."""
    found = [device for device in inspection.devices if device.kind != "cpu"]
    for device in found:
        yield _judge_device(device, gpus, inspection.cuda_build)
    if found:
        return
    hidden = environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and hidden in ("", "-1"):
        fix = "unset CUDA_VISIBLE_DEVICES"
        yield note("device", f"{gpus[0].name} is hidden by CUDA_VISIBLE_DEVICES={hidden!r}.", fix)
    elif gpus:
        yield _judge_unused_gpu(inspection, gpus[0])
    else:
        why = f" ({inspection.cuda_trouble})" if inspection.cuda_trouble else ""
        yield note("device", f"CPU only{why}: good for tests, far too slow for most trainings.")


def judge_compile(machine: Machine, has_triton: bool, nnunet_compile: str | None) -> Finding:
    """torch.compile is on by default on Linux with CUDA (nnUNetTrainer._do_i_compile) and builds C code."""
    if nnunet_compile is not None and nnunet_compile.lower() not in ("true", "1", "t"):
        return ok("torch.compile", f"Off (nnUNet_compile={nnunet_compile}).")
    lacking = [] if machine.compiler else ["a C compiler"]
    lacking += [] if machine.python_headers else ["Python.h"]
    lacking += [] if has_triton else ["triton"]
    if not lacking:
        return ok("torch.compile", f"Compiler {machine.compiler}, Python.h and triton are there.")
    python = ".".join(map(str, machine.python[:2]))
    packages = f"build-essential python{python}-dev"
    fix = f"sudo apt-get install {packages}" if machine.installer == "apt-get" and has_triton else ""
    off = "export nnUNet_compile=f"
    return note("torch.compile", f"It lacks {' and '.join(lacking)}.", f"{fix}\n{off}".strip())


def _judge_device(device: Device, gpus: tuple[Gpu, ...], cuda_build: str | None) -> Finding:
    memory = f", {gib(device.memory_bytes)}" if device.memory_bytes else ""
    about = f"{device.kind.upper()}: {device.name}{memory}"
    if device.kind == "cuda":
        driver = next((f", driver {gpu.driver}" for gpu in gpus), "")
        about += f", capability {device.capability}{driver}, torch built for CUDA {cuda_build}"
    if device.trouble:
        fix = f"Install the torch that suits this card and driver: {GET_TORCH}"
        return unfit("device", f"{about} cannot compute: {device.trouble}.", fix)
    return ok("device", f"{about}.")


def _judge_unused_gpu(inspection: Inspection, gpu: Gpu) -> Finding:
    if inspection.cuda_build is None:
        sentence = f"There is a {gpu.name}, but torch {inspection.torch} is built without CUDA."
        return unfit("device", sentence, f"Install a torch with CUDA: {GET_TORCH}")
    why = inspection.cuda_trouble or f"driver {gpu.driver}, torch built for CUDA {inspection.cuda_build}"
    sentence = f"There is a {gpu.name}, but torch cannot use it: {why}."
    return unfit("device", sentence, f"Update the driver, or install a torch for an older CUDA: {GET_TORCH}")
