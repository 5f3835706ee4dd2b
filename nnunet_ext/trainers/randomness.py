"""Random numbers that go on where they stopped: the generators' states travel in the checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from nnunet_ext.trainers.power import Power


class Reproducible(Power):
    """Seeds Python, numpy and torch when a seed is set, saves their states with every checkpoint and restores them
    after a resumed training has started its loaders, which draw random numbers of their own.

    With the single-process loader (nnUNet_n_proc_DA=0) on the same device, a paused and resumed training is bit-equal
    to one that never stopped; nnU-Net's worker processes draw unseeded numbers.
    """

    def initialize(self) -> None:
        seed = self.nnx_training.seed
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
        super().initialize()

    def save_checkpoint(self, filename: str) -> None:
        self.nnx_store(random=_states())
        super().save_checkpoint(filename)

    def on_train_start(self) -> None:
        super().on_train_start()
        known = self.nnx_state.get("random")
        if known is not None and self.current_epoch > 0:
            _restore(known)


def _states() -> dict[str, Any]:
    """Plain values only: a checkpoint must load on a machine without nnx."""
    kind, keys, *position = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys, dtype=np.uint32).tobytes(), *position),
        "torch": _bytes(torch.get_rng_state()),
        "cuda": [_bytes(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def _restore(known: dict[str, Any]) -> None:
    random.setstate(known["python"])
    kind, keys, *position = known["numpy"]
    np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *position))
    torch.set_rng_state(_tensor(known["torch"]))
    if torch.cuda.is_available() and len(known["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_tensor(state) for state in known["cuda"]])


def _bytes(state: torch.Tensor) -> bytes:
    return bytes(state.numpy().tobytes())


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
