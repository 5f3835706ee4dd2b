"""Judgements over what torch is made to say."""

from __future__ import annotations

import dataclasses

import pytest

from nnunet_ext.cgroup import Limits
from nnunet_ext.checkup.device_check import judge_compile, judge_devices, judge_inspection
from nnunet_ext.checkup.inspection import Device, Inspection
from nnunet_ext.checkup.machine import Gpu, Machine, Packages

MACHINE = Machine(
    system="Linux",
    python=(3, 11, 7),
    packages=Packages("2.8.1", "2.8.0+cu128", "0.23.0+cu128", "1.26.4", "3.3.2"),
    strangers=(),
    memory_bytes=2**36,
    cores=16,
    usable_cores=16.0,
    limits=Limits(None, None),
    shared_memory_bytes=2**35,
    open_files=65536,
    programs=(),
    installer="apt-get",
    compiler="/usr/bin/gcc",
    python_headers=True,
    gpus=(),
    shelf=None,
)
CPU = Device("cpu", "CPU", None, None, "")
A100 = Device("cuda", "NVIDIA A100", 40 * 2**30, "8.0", "")
CARD = Gpu("NVIDIA A100", 40960, "550.54.15")
CUDA = Inspection("2.8.0+cu128", "12.8", (A100, CPU), "", "", "", True)
NO_GPU = dataclasses.replace(CUDA, torch="2.8.0+cpu", cuda_build=None, devices=(CPU,))


def test_a_cuda_machine_names_card_memory_capability_and_driver() -> None:
    (found,) = judge_devices(CUDA, (CARD,), {})
    assert found.level == "ok"
    for word in ("NVIDIA A100", "40.0 GiB", "8.0", "550.54.15", "12.8"):
        assert word in found.finding


def test_a_laptop_without_a_gpu_is_fit() -> None:
    assert [found.level for found in judge_devices(NO_GPU, (), {})] == ["note"]
    apple = dataclasses.replace(NO_GPU, devices=(Device("mps", "Apple GPU", 12 * 2**30, None, ""), CPU))
    assert [found.finding for found in judge_devices(apple, (), {})] == ["MPS: Apple GPU, 12.0 GiB."]


def test_a_card_that_cannot_compute_is_unfit() -> None:
    broken = dataclasses.replace(A100, trouble="CUDA error: no kernel image is available for execution on the device")
    (found,) = judge_devices(dataclasses.replace(CUDA, devices=(broken, CPU)), (CARD,), {})
    assert found.level == "unfit"
    assert "no kernel image" in found.finding


def test_a_card_that_torch_was_not_built_for_is_unfit() -> None:
    (found,) = judge_devices(NO_GPU, (CARD,), {})
    assert found.level == "unfit"
    assert "built without CUDA" in found.finding


def test_a_driver_that_is_too_old_is_unfit_in_torch_s_words() -> None:
    old = dataclasses.replace(CUDA, devices=(CPU,), cuda_trouble="The NVIDIA driver on your system is too old")
    (found,) = judge_devices(old, (CARD,), {})
    assert found.level == "unfit"
    assert "driver on your system is too old" in found.finding


def test_a_card_hidden_on_purpose_is_a_note() -> None:
    (found,) = judge_devices(dataclasses.replace(CUDA, devices=(CPU,)), (CARD,), {"CUDA_VISIBLE_DEVICES": ""})
    assert (found.level, found.fix) == ("note", "unset CUDA_VISIBLE_DEVICES")


def test_torchvision_and_nnunet_that_do_not_import_are_unfit() -> None:
    broken = dataclasses.replace(
        CUDA, torchvision_trouble="RuntimeError: operator torchvision::nms does not exist", nnunetv2_trouble="x"
    )
    found = list(judge_inspection(broken, MACHINE, {}))
    assert [finding.topic for finding in found if finding.level == "unfit"] == ["torchvision", "nnU-Net"]
    assert "torchvision::nms" in found[0].finding


def test_compiling_is_only_a_topic_on_linux_with_cuda() -> None:
    def topics(inspection: Inspection, system: str) -> list[str]:
        bare = dataclasses.replace(MACHINE, system=system, compiler=None)
        return [finding.topic for finding in judge_inspection(inspection, bare, {})]

    assert "torch.compile" in topics(CUDA, "Linux")
    assert "torch.compile" not in topics(NO_GPU, "Linux")
    assert "torch.compile" not in topics(CUDA, "Darwin")


@pytest.mark.parametrize(
    ("change", "has_triton", "fix"),
    [
        ({}, True, ""),
        ({"compiler": None}, True, "sudo apt-get install build-essential python3.11-dev\nexport nnUNet_compile=f"),
        ({"python_headers": False, "installer": None}, True, "export nnUNet_compile=f"),
        ({}, False, "export nnUNet_compile=f"),
    ],
)
def test_what_compiling_lacks_is_a_note(change: dict[str, object], has_triton: bool, fix: str) -> None:
    found = judge_compile(dataclasses.replace(MACHINE, **change), has_triton, None)  # type: ignore[arg-type]
    assert (found.level, found.fix) == ("note" if fix else "ok", fix)


def test_compiling_switched_off_needs_nothing() -> None:
    bare = dataclasses.replace(MACHINE, compiler=None)
    assert judge_compile(bare, False, "f").level == "ok"
    assert judge_compile(bare, False, "true").level == "note"
