"""What a training is asked to do: settings as said, kept in the checkpoint, handed to the child process."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunet_ext.errors import NnxError
from nnunet_ext.host import Host
from nnunet_ext.settings import DEFAULT, TRAINING, Value
from nnunet_ext.stopping import Policy


@dataclass(frozen=True)
class Training:
    """The settings of one training; None leaves what the trainer class says, or switches a rule off.

    epochs, iterations, val_iterations: the schedule (nnU-Net: 1000, 250, 50). seed: of every random number generator.
    policy: when to stop. cooldown: epochs over which the learning rate is annealed to 0 before a target or plateau
    finishes the run. checkpoint_minutes: training that may be lost to a kill -9. memory_limit: the part of the memory
    (GPU and RAM) that may be used before nnx cleans up and warns. cleanup_every: iterations between forced
    clean-ups, 0 for none.
    """

    epochs: int | None = None
    iterations: int | None = None
    val_iterations: int | None = None
    seed: int | None = None
    policy: Policy = field(default_factory=Policy)
    cooldown: int = 0
    checkpoint_minutes: float = 15.0
    memory_limit: float = 0.8
    cleanup_every: int = 0
    allow_lr_jump: bool = False


_POLICY = ("target", "patience", "min_delta", "min_epochs", "max_hours")
_ONLY_NOW = {"allow_lr_jump", "seed"}  # said for one start, not remembered by the run


def resolve(asked: Mapping[str, Value], stored: Mapping[str, Any]) -> Training:
    """What is asked now, over what the run was asked before (`stored`, from its checkpoint), over the defaults.

    Raises Usage for values that make no sense together.
    """
    said = {**stored, **_said(asked)}
    policy = Policy(**{name: said.pop(name) for name in _POLICY if name in said})
    return Training(policy=policy, **said)


def remembered(asked: Mapping[str, Value], stored: Mapping[str, Any]) -> dict[str, Any]:
    """What the run's next checkpoints should remember: everything that was ever said, the newest word of each."""
    said = {name: value for name, value in _said(asked).items() if name not in _ONLY_NOW}
    return {**stored, **said}


def environment(asked: Mapping[str, Value]) -> dict[str, str]:
    """What was said, as the environment variables that the child process reads."""
    said = _said(asked)
    return {known.variable: known.word(said[known.name]) for known in TRAINING if known.name in said}


def _said(asked: Mapping[str, Value]) -> dict[str, Any]:
    return {known.name: asked[known.name].value for known in TRAINING if asked[known.name].origin != DEFAULT}


def default_device(host: Host) -> str:
    """The device nnU-Net would train on here: `cuda` where a driver lists a GPU, `mps` on Apple silicon, else `cpu`."""
    try:
        listed = host.run(["nvidia-smi", "-L"], timeout_s=20)
    except NnxError:
        listed = None
    if listed is not None and listed.code == 0 and "GPU" in listed.text:
        return "cuda"
    return "mps" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"
