"""Would a run's checkpoint go on with the plans and the dataset that are here: judges shapes and plans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from nnunet_ext.checkpoint import Checkpoint
from nnunet_ext.checkup.finding import Finding, counted, note, ok, sentence, unfit
from nnunet_ext.configuration import Configuration
from nnunet_ext.dataset import Dataset
from nnunet_ext.errors import Damaged, NnxError
from nnunet_ext.layout import CHECKPOINT_KINDS, Layout
from nnunet_ext.plans import Plans
from nnunet_ext.run import Run

TOPIC = "checkpoint"
# What makes another network, or the same one see other images; the rest may be changed on purpose.
DECISIVE = ("network_class_name", "features_per_stage", "kernel_sizes", "strides", "previous_stage", "spacing")


def check_checkpoint(
    run: Run, layout: Layout[Path], configuration: Configuration, dataset: Dataset
) -> Iterator[Finding]:
    """Nothing for a run without checkpoints; else the damaged ones, and how the newest whole one agrees."""
    damaged, newest = [], None
    for path in existing_checkpoints(run, layout):
        try:
            read = Checkpoint.read(path)
        except Damaged as unreadable:
            damaged.append(unreadable)
            continue
        newest = read if newest is None or read.current_epoch > newest.current_epoch else newest
    for wrong in damaged:
        judged = unfit if newest is None else note
        yield judged(TOPIC, sentence(wrong.sentence), wrong.hint)
    if newest is not None:
        copies = f"nnU-Net's copies of what it was trained with lie in {layout.trained_folder(run)}; put those back."
        yield from judge_agreement(newest, configuration, dataset, copies)


def existing_checkpoints(run: Run, layout: Layout[Path]) -> list[Path]:
    paths = [layout.checkpoint(run, kind) for kind in CHECKPOINT_KINDS]
    return [path for path in paths if path.exists()]


def judge_agreement(
    checkpoint: Checkpoint, configuration: Configuration, dataset: Dataset, fix: str
) -> Iterator[Finding]:
    """Whether the weights fit the network that nnU-Net would build, and whether the plans are those of the start."""
    name = checkpoint.path.name
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    found = [unfit(TOPIC, f"{name} does not fit: {words}.", fix) for words in misfits(shapes, configuration, dataset)]
    try:
        differing = differences(_own_configuration(checkpoint, configuration.name), configuration)
    except NnxError as wrong:
        found.append(note(TOPIC, f"The plans in {name} cannot be compared: {sentence(wrong.sentence)}"))
        differing = {}
    decisive = [words for key, words in differing.items() if key in DECISIVE]
    others = [words for key, words in differing.items() if key not in DECISIVE]
    if decisive:
        found.append(unfit(TOPIC, f"The plans changed since {name} was trained: {'; '.join(decisive)}.", fix))
    if others:
        found.append(note(TOPIC, f"The plans changed since {name} was trained: {'; '.join(others)}."))
    yield from found
    if not any(finding.level == "unfit" for finding in found):
        yield ok(TOPIC, f"{name} (after {counted(checkpoint.current_epoch, 'epoch')}) fits the plans and the dataset.")


def misfits(shapes: Mapping[str, tuple[int, ...]], configuration: Configuration, dataset: Dataset) -> Iterator[str]:
    """How the weights differ from the network that nnU-Net would build; `shapes` in the order of the network.

    A convolution's weights are (out, in, kernel ...). Input channels: determine_num_input_channels; a second stage
    is also given one channel per foreground label. Output heads: the last of the decoder's seg_layers.
    """
    convolutions = [shape for shape in shapes.values() if len(shape) in (4, 5)]
    if not convolutions:
        return
    dimension, channels = len(convolutions[0]) - 2, convolutions[0][1]
    if dimension != configuration.dimension:
        yield f"its network is {dimension}D, the configuration {configuration.dimension}D"
    expected = dataset.channels + (dataset.foreground_labels if configuration.previous_stage else 0)
    if channels != expected:
        yield f"its network takes {counted(channels, 'input channel')}, the dataset gives {expected}"
    heads = [shape[0] for name, shape in shapes.items() if ".seg_layers." in name and name.endswith(".weight")]
    if heads and heads[-1] != dataset.heads:
        yield f"its network has {counted(heads[-1], 'output')}, the dataset's labels make {dataset.heads}"


def differences(trained: Configuration, now: Configuration) -> dict[str, str]:
    """What differs between two readings of a configuration, by field, in words."""
    both = {field.name: (getattr(trained, field.name), getattr(now, field.name)) for field in fields(Configuration)}
    return {key: f"{key} was {_spoken(old)}, is {_spoken(new)}" for key, (old, new) in both.items() if old != new}


def _own_configuration(checkpoint: Checkpoint, name: str) -> Configuration:
    """The configuration as the checkpoint remembers it; Damaged or NoSuchRun when it does not."""
    document = checkpoint.init_args.get("plans")
    if not isinstance(document, dict) or not {"configurations", "plans_name"} <= document.keys():
        raise Damaged("it holds no plans")
    return Plans(checkpoint.path, json.dumps(document), document).configuration(name)


def _spoken(value: object) -> str:
    return json.dumps(value)
