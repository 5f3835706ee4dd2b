"""The child process that trains: nnU-Net's own `nnUNetv2_train`, with nnx's powers put over the trainer class.

    python -m nnunet_ext.trainers.launch 4 3d_fullres 0 -device cuda [--c]

Arguments are those of nnUNetv2_train. NNX_CHECKPOINT names the file that `--c` continues from; without it nnx takes
the newest readable one, and refuses where nnU-Net would silently start at epoch 0.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from nnunetv2.run import run_training

from nnunet_ext.control import Control
from nnunet_ext.errors import Exit, NnxError
from nnunet_ext.layout import control_in
from nnunet_ext.promote import newest_checkpoint
from nnunet_ext.trainers.extend import extend
from nnunet_ext.trainers.stoppable import LAUNCH

CHECKPOINT = "NNX_CHECKPOINT"
FOLD_FOLDER = "NNX_FOLD_FOLDER"

_find_stock = run_training.recursive_find_trainer_class_by_name
_load_stock = run_training.maybe_load_checkpoint


def _find(name: str) -> type[Any]:
    """The class nnU-Net finds by that name, with nnx's powers."""
    return extend(_find_stock(name))


def _load(trainer: Any, continue_training: bool, validation_only: bool, pretrained: str | None = None) -> None:
    """Continue from the newest checkpoint instead of nnU-Net's first of final, latest and best, or refuse."""
    if not continue_training:
        _load_stock(trainer, continue_training, validation_only, pretrained)
        return
    named = os.environ.get(CHECKPOINT)
    trainer.load_checkpoint(named or str(newest_checkpoint(Path(trainer.output_folder)).path))


# At import, because the ranks of a DDP training are spawned: they import this module, and nothing of ours besides.
run_training.recursive_find_trainer_class_by_name = _find
run_training.maybe_load_checkpoint = _load


def main() -> int:
    """Train, and give the exit code of how it ended."""
    launch = os.environ.setdefault(LAUNCH, secrets.token_hex(8))
    try:
        with _signals_reach_the_ranks():
            run_training.run_training_entry()
    except NnxError as known:
        return _say(known.sentence, known.hint, known.exit_code)
    except KeyboardInterrupt:
        return _say("Interrupted.", "Nothing that was saved is lost. Go on with --c.", Exit.INTERRUPTED)
    except Exception as failed:  # noqa: BLE001 - whatever ends a training is told to those who wait for it
        code = getattr(failed, "exit_code", None)  # torch.multiprocessing.ProcessExitedException
        if isinstance(code, int) and code in list(Exit):
            return code
        return _crashed(failed)
    return _outcome(launch)


def _crashed(failed: Exception) -> int:
    """The traceback for whoever mends it, a sentence for the user, an event for whoever watches."""
    traceback.print_exc()
    cause = f"{type(failed).__name__}: {failed}".splitlines()[0]
    fold_folder = os.environ.get(FOLD_FOLDER)
    if fold_folder is not None:
        Control(control_in(Path(fold_folder))).log("crashed", cause=cause, launch=os.environ[LAUNCH])
    return _say(
        f"The training crashed: {cause}.", "Nothing that was saved before is lost. Go on with --c.", Exit.CRASHED
    )


def _say(sentence: str, hint: str, code: Exit) -> int:
    print(f"nnx: {sentence}", *hint.splitlines(), sep="\n     ", file=sys.stderr)  # noqa: T201
    return code


def _outcome(launch: str) -> int:
    """What the ranks of a DDP training could not say by their own exit codes."""
    fold_folder = os.environ.get(FOLD_FOLDER)
    if fold_folder is None:
        return Exit.DONE
    for event in Control(control_in(Path(fold_folder))).events():
        if event.get("event") == "stopped" and event.get("launch") == launch:
            return int(event["exit_code"])
    return Exit.DONE


@contextlib.contextmanager
def _signals_reach_the_ranks() -> Iterator[None]:
    """While ranks train in processes of their own, hand every signal on to them. A trainer in this process replaces
    these handlers by its own."""

    def hand_on(number: int, _: object) -> None:
        for rank in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                rank.send_signal(number)

    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, hand_on) for number in caught} if _uses_ranks() else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _uses_ranks() -> bool:
    return "-num_gpus" in sys.argv and sys.argv[sys.argv.index("-num_gpus") + 1 :][:1] != ["1"]


if __name__ == "__main__":
    sys.exit(main())
