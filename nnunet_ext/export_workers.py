"""How many processes export predictions at a time in nnU-Net's validation, so that they fit into the free RAM."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.cgroup import cgroup_limits
from nnunet_ext.configuration import Configuration
from nnunet_ext.dataset import read_dataset
from nnunet_ext.errors import NnxError
from nnunet_ext.layout import Layout
from nnunet_ext.plans import Plans
from nnunet_ext.run import Run

VARIABLE = "nnUNet_def_n_proc"  # nnU-Net reads it when it is imported; its default is 8
GIB = 2**30

MOST = 8
WHEN_UNKNOWN = 2
SHARE_OF_FREE_RAM = 0.8
WORKER_BYTES = 400 * 2**20  # torch and nnU-Net imported, without what workers share: 360 MiB measured
ANISOTROPIC = 3  # nnunetv2/configuration.py, ANISO_THRESHOLD


@dataclass(frozen=True)
class Workers:
    """How many, and why as a sentence."""

    count: int
    reason: str


@dataclass(frozen=True)
class Volume:
    """A case as the export sees it: its shape in voxels as the network predicted it (`resampled`), in the image's own
    spacing inside the crop (`cropped`), and the voxels of the whole image. It is anisotropic where nnU-Net resamples
    slices first and then across them."""

    resampled: tuple[int, ...]
    cropped: tuple[int, ...]
    image_voxels: float
    is_anisotropic: bool


def choose_workers(
    run: Run, layout: Layout[Path], keeps_probabilities: bool, asked: int | None, environ: Mapping[str, str]
) -> Workers:
    """The number asked for, else the one in the environment, else what the free RAM and the cores allow."""
    if asked is not None:
        return Workers(asked, "--workers")
    if environ.get(VARIABLE, "").isdigit():
        return Workers(int(environ[VARIABLE]), f"{VARIABLE} is set")
    return decide(largest_export_bytes(run, layout, keeps_probabilities), free_ram_bytes(), usable_cores())


def decide(need_bytes: int | None, free_bytes: int, cores: float) -> Workers:
    """As many as fit into the free RAM beside the process that predicts, which needs about as much as one of them."""
    most = max(1, min(MOST, int(cores)))
    if need_bytes is None:
        return Workers(min(WHEN_UNKNOWN, most), "the size of the largest case is not known")
    fit = int(SHARE_OF_FREE_RAM * free_bytes / need_bytes) - 1
    figures = f"{free_bytes / GIB:.1f} GiB of RAM are free, the export of the largest case needs {need_bytes / GIB:.1f}"
    if fit < 1:
        return Workers(1, f"{figures}: it may not fit")
    return Workers(min(fit, most), figures if fit < most else f"{figures}; {cores:g} cores, at most {MOST}")


def export_bytes(classes: int, volume: Volume, computes_probabilities: bool) -> int:
    """What one worker needs at its peak (nnunetv2/inference/export_prediction.py), with nnU-Net's default resampling.

    The terms follow default_resampling.py (float16 logits as float64, the result as float16, one class at a time with
    its coordinates in float64) and label_handling.py (logits and softmax in float32). The factors were measured on
    3 and 12 classes of 3 to 22 million voxels: 1 to 18 % above the peak wherever logits are resampled.
    """
    predicted, cropped = math.prod(volume.resampled), math.prod(volume.cropped)
    resampling = classes * (10 * predicted + 2 * cropped) + 16 * cropped
    if volume.is_anisotropic:
        between = max(p * cropped / c for p, c in zip(volume.resampled, volume.cropped, strict=True))
        resampling += 8 * int(between) + 84 * cropped
    if not computes_probabilities:
        return WORKER_BYTES + resampling
    probabilities = 8 * classes * cropped + (4 * classes + 9) * int(volume.image_voxels)
    return WORKER_BYTES + max(resampling, probabilities)


def largest_export_bytes(run: Run, layout: Layout[Path], keeps_probabilities: bool) -> int | None:
    """The need of the dataset's most demanding case, from the fingerprint; None when that is not known."""
    try:
        dataset = read_dataset(layout.dataset_json(run.dataset))
        plans = Plans.read(layout.plans_file(run.dataset, run.plans))
        axes = [int(str(axis)) for axis in plans.ask(".transpose_forward[]")]
        volumes = _volumes(layout.fingerprint(run.dataset), axes, plans.configuration(run.configuration))
    except (NnxError, OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
        return None
    computes = keeps_probabilities or dataset.regions is not None
    return max((export_bytes(dataset.heads, volume, computes) for volume in volumes), default=None)


def free_ram_bytes() -> int:
    """What the machine has free, or what the control group allows when that is less."""
    import psutil

    limit = cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")).memory_bytes
    available = int(psutil.virtual_memory().available)
    return available if limit is None else min(available, limit)


def usable_cores() -> float:
    """The cores that the scheduler and the control group leave to this process."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    limits = cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return allowed if limits.cores is None else min(allowed, limits.cores)


def _volumes(fingerprint: Path, axes: Sequence[int], configuration: Configuration) -> list[Volume]:
    said = json.loads(fingerprint.read_bytes())
    target = configuration.spacing
    if target is None:
        raise ValueError("the configuration has no spacing")
    crop_share = float(said["median_relative_size_after_cropping"])
    cases = zip(said["shapes_after_crop"], said["spacings"], strict=True)
    return [_volume([s[a] for a in axes], [m[a] for a in axes], target, crop_share) for s, m in cases]


def _volume(shape: list[int], spacing: list[float], target: tuple[float, ...], crop_share: float) -> Volume:
    """As nnU-Net's compute_new_shape; a 2d configuration leaves the first axis as it is."""
    target = (*spacing[: len(spacing) - len(target)], *target)
    resampled = tuple(round(s * mm / new) for s, mm, new in zip(shape, spacing, target, strict=True))
    thick = next((mm for mm in (target, tuple(spacing)) if max(mm) / min(mm) > ANISOTROPIC), None)
    slices = None if thick is None else thick.index(max(thick))
    is_anisotropic = slices is not None and resampled[slices] != shape[slices]
    return Volume(resampled, tuple(shape), math.prod(shape) / crop_share, is_anisotropic)
