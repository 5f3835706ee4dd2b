"""Does a run go from CPU to a GPU and back? Anyone with a GPU can run this in under eight minutes.

    bench/gpu_check.py [--device cuda] [--keep FOLDER]

On a small dataset that it makes: plain nnU-Net starts a run on the CPU and is killed; nnx continues it on the device
with torch.compile, pauses, continues without compile, is stopped by SIGTERM; plain nnU-Net finishes it on the CPU.
After each step: the epoch, whether the checkpoint is whole and agrees with its history, the GradScaler's state, and
how far the loss leapt. `--device cpu` tries the check itself where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import made_data

from nnunet_ext.checkpoint import Checkpoint, whole
from nnunet_ext.control import Control
from nnunet_ext.errors import Exit
from nnunet_ext.history import History
from nnunet_ext.host import HERE
from nnunet_ext.layout import Layout
from nnunet_ext.run import Run

EPOCHS = 12
RUN = Run(made_data.DATASET, "2d", 0, "TrainerOfTheCheck")
TRAINER = f"""
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class {RUN.trainer}(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = {EPOCHS}, 40, 5
        self.save_every = 1
"""
LARGEST_LEAP = 0.15  # upwards, of the train loss from one epoch to the next, changes of device included


class Check:
    """The folders of the check and its findings."""

    def __init__(self, layout: Layout[Path], theirs: Path) -> None:
        self.layout = layout
        self.environment = made_data.environment(layout, nnUNet_n_proc_DA="2", nnUNet_extTrainer=str(theirs))
        self.broken: list[str] = []

    def expect(self, what: str, true: bool) -> None:
        if not true:
            self.broken.append(what)
            print(f"  BROKEN: {what}")

    def train(
        self, argv: list[str], until: int | None, stop: Callable[[subprocess.Popen[bytes]], None], **more: str
    ) -> int:
        """Train until epoch `until` is under way and stop it, or to the end; the exit code."""
        before = len(self.epochs())
        quiet = {"stdout": subprocess.DEVNULL, "start_new_session": True}
        with subprocess.Popen(argv, env={**self.environment, **more}, **quiet) as process:
            while until is not None and process.poll() is None:
                if until in self.epochs()[before:]:
                    stop(process)
                    break
                time.sleep(0.05)
            return process.wait()

    def epochs(self) -> list[int]:
        logs = self.layout.logs(RUN, HERE)
        return [int(n) for log in logs for n in re.findall(r": Epoch (\d+) *$", log.read_text(), re.MULTILINE)]

    def report(self, step: str, kind: str, seconds: float, device: str, scaler: bool) -> None:
        path = self.layout.checkpoint(RUN, kind)
        known = Checkpoint.read(path)
        rows = History.from_logging(known.logging).rows
        losses = [row.train_loss or 0.0 for row in rows]
        leap = max((after - before for before, after in itertools.pairwise(losses)), default=0.0)
        print(
            f"{step:42} epoch {known.current_epoch:2}  {device:5} scaler {'yes' if known.has_grad_scaler else 'no ':3} "
            f"loss {losses[-1]:7.4f}  largest leap {leap:.3f}  {seconds:5.1f} s"
        )
        self.expect("the checkpoint is whole", whole(path) is None)
        self.expect("epoch and history agree", known.inconsistency() is None)
        self.expect("every epoch is there once", [row.index for row in rows] == list(range(known.current_epoch)))
        self.expect("the scaler's state is there exactly on CUDA", known.has_grad_scaler == scaler)
        self.expect(f"no leap of the loss by more than {LARGEST_LEAP}", leap <= LARGEST_LEAP)


def steps(check: Check, device: str) -> None:
    words = [*RUN.words()]
    stock = [made_data.program("nnUNetv2_train"), *words, "-device", "cpu"]
    nnx = [made_data.program("nnx"), "train", *words, "--c", "--device", device]
    control = Control(check.layout.control_folder(RUN))
    scaler = device == "cuda"

    def timed(step: str, kind: str, on: str, has_scaler: bool, code: int | None, *train: object, **more: str) -> None:
        begun = time.monotonic()
        got = check.train(*train, **more)  # type: ignore[arg-type]
        check.report(step, kind, time.monotonic() - begun, on, has_scaler)
        check.expect(f"exit code {code}, got {got}", code is None or got == code)

    def pause(_: object) -> None:
        control.request_stop("epoch", "pause", "the check", by="gpu_check")

    def kill(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # plain nnU-Net's workers outlive it otherwise

    def terminate(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)

    timed("stock on CPU, killed", "latest", "cpu", False, None, stock, 3, kill)
    timed(
        "nnx, torch.compile, paused", "latest", device, scaler, Exit.STOP_REQUESTED, nnx, 5, pause, nnUNet_compile="t"
    )
    timed("nnx, no compile, SIGTERM", "latest", device, scaler, Exit.REQUEUE, nnx, 8, terminate, nnUNet_compile="f")
    check.expect("no process of ours is left on the GPU", not _on_gpu())
    timed("stock on CPU, to the end", "final", "cpu", False, 0, [*stock, "--c"], None, pause)
    peaks = [event.get("gpu_peak_allocated_bytes") for event in control.events() if event["event"] == "epoch"]
    if scaler:
        check.expect("every nnx epoch tells its GPU peak", bool(peaks) and all(peaks))
        print(f"GPU peak allocated: {max(peaks) / 2**20:.0f} MiB")


def _on_gpu() -> bool:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-compute-apps=process_name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return "python" in listed.stdout


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], default="cuda")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        theirs = folder / "trainers"
        theirs.mkdir(parents=True)
        (theirs / "of_the_check.py").write_text(TRAINER)
        check = Check(made_data.make(folder / "nnunet"), theirs)
        steps(check, arguments.device)
    print("all held" if not check.broken else f"{len(check.broken)} broken")
    return bool(check.broken)


if __name__ == "__main__":
    sys.exit(main())
