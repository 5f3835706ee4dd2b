"""nnU-Net's own DDP training on CPU: its `run_ddp`, two or more ranks, gloo where it says nccl, cpu where it says cuda.

    python tests/gloo.py 42 2d 0 -num_gpus 2 -device cuda [--c]

What is changed is changed at import, because each rank, which is spawned, imports this file as its main module.
"""

from __future__ import annotations

import functools
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module  # noqa: N813

from nnunet_ext.trainers import launch

TIMEOUT_S = 60  # a rank that waits for another one longer than this fails, and the test with it

_init, _wrap = module.nnUNetTrainer.__init__, module.DDP


def _set_up(rank: int, world_size: int) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=TIMEOUT_S))


@functools.wraps(_init)
def _init_on_cpu(self: Any, *words: Any, **named: Any) -> None:
    _init(self, *words, **named)
    self.device = torch.device("cpu")
    self.grad_scaler = None


run_training.setup_ddp = _set_up
torch.cuda.set_device = lambda device: None
module.nnUNetTrainer.__init__ = _init_on_cpu
module.DDP = lambda network, device_ids: _wrap(network)

if __name__ == "__main__":
    sys.exit(launch.main())
