"""Stops a real training again and again, resumes it each time, and checks that no epoch is lost.

    python bench/kill.py --stops 100 --seed 0

Every stop is a signal (to the trainer or to all its processes) at a random moment: while it starts, in an epoch, or
at a random step of a checkpoint's save. After each: nothing of the training is left running, every checkpoint is
whole, a graceful stop has lost no epoch and a SIGKILL at most the one whose save was under way, and the next start
goes on at exactly that epoch. At the end the run is finished and read by plain torch. Prints a table; exit code 1 when
a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import made_data
from failpoint import Failpoint
from lives import Life, Lives, living

from nnunet_ext.checkpoint import whole
from nnunet_ext.control import Control
from nnunet_ext.errors import Exit, Refused
from nnunet_ext.layout import CHECKPOINT_KINDS, Layout, previous_of
from nnunet_ext.promote import newest_checkpoint
from nnunet_ext.run import Run

PHASES = {"start": 0.15, "epoch": 0.30, "save": 0.55}  # how often
START_S, EPOCHS_S = 2.0, 4.0  # a moment in the start, a moment in the epochs after it
SAVE_STEPS = 20  # of tests/failpoint.py in one save
SAVES = 3  # of a life, among which the one to interrupt is chosen
PATIENCE_S = 240  # for whatever must happen
SETTINGS = {"NNX_ITERATIONS": "4", "NNX_VAL_ITERATIONS": "2", "NNX_CHECKPOINT_MINUTES": "0"}

_EPOCH = re.compile(r"^\S+ \S+: Epoch (\d+) ?$", re.MULTILINE)
_DONE = re.compile(r"^\S+ \S+: Epoch time: ", re.MULTILINE)
_READ = """
import sys, torch
known = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
assert not any(name.startswith("nnunet_ext") for name in sys.modules)
assert {len(values) for values in known["logging"].values()} == {known["current_epoch"]}, known["logging"]
print(known["current_epoch"])
"""


@dataclass(frozen=True)
class Kind:
    """A way to stop, and the exit code it promises."""

    name: str
    number: int
    code: int
    group: bool = False
    twice: bool = False

    @property
    def may_lose(self) -> int:
        """Epochs."""
        return int(self.number == signal.SIGKILL)


KINDS = (
    Kind("USR1", signal.SIGUSR1, Exit.REQUEUE),
    Kind("INT", signal.SIGINT, Exit.INTERRUPTED),
    Kind("INT group", signal.SIGINT, Exit.INTERRUPTED, group=True),
    Kind("INT twice", signal.SIGINT, Exit.INTERRUPTED, twice=True),
    Kind("TERM", signal.SIGTERM, Exit.REQUEUE),
    Kind("TERM group", signal.SIGTERM, Exit.REQUEUE, group=True),
    Kind("HUP group", signal.SIGHUP, Exit.INTERRUPTED, group=True),
    Kind("KILL", signal.SIGKILL, -signal.SIGKILL),
    Kind("KILL group", signal.SIGKILL, -signal.SIGKILL, group=True),
)
WEIGHTS = (2, 2, 2, 1, 2, 2, 1, 5, 3)


@dataclass(frozen=True)
class Stop:
    """One stop as planned."""

    kind: Kind
    phase: str
    delay_s: float
    failpoint: Failpoint | None

    @classmethod
    def draw(cls, chance: random.Random) -> Stop:
        phase = chance.choices([*PHASES], [*PHASES.values()])[0]
        kind = chance.choices(KINDS, WEIGHTS)[0]
        delay_s = chance.uniform(0, START_S if phase == "start" else EPOCHS_S)
        step, save = chance.randrange(SAVE_STEPS), chance.randrange(SAVES)
        failpoint = Failpoint(step, save, kind.number, kind.group) if phase == "save" else None
        return cls(kind, phase, delay_s, failpoint)


@dataclass
class Score:
    """What came of the stops, by signal and phase, and every broken promise as a sentence."""

    stops: Counter[tuple[str, str]] = field(default_factory=Counter)
    resumed: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    unreadable: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{'signal':<12}{'phase':<8}{'stops':>7}{'resumed':>9}{'epochs lost':>13}{'unreadable':>12}"
        rows = [self._row(kind.name, phase) for kind in KINDS for phase in PHASES if self.stops[kind.name, phase]]
        columns = (self.stops, self.resumed, self.lost, self.unreadable)
        total = [sum(column.values()) for column in columns]
        return "\n".join([head, *rows, f"{'all':<20}{total[0]:>7}{total[1]:>9}{total[2]:>13}{total[3]:>12}"])

    def _row(self, kind: str, phase: str) -> str:
        key = kind, phase
        numbers = f"{self.stops[key]:>7}{self.resumed[key]:>9}{self.lost[key]:>13}{self.unreadable[key]:>12}"
        return f"{kind:<12}{phase:<8}{numbers}"


class Harness:
    """The one training that is stopped and resumed."""

    def __init__(self, lives: Lives, layout: Layout[Path], epochs: int) -> None:
        self.lives = lives
        self.layout = layout
        self.run = Run(made_data.DATASET, "2d", 0)
        self.env = made_data.environment(layout, NNX_EPOCHS=str(epochs), **SETTINGS)
        self.epoch = 0  # where the next start must go on
        self.unproven: list[tuple[str, str]] = []  # stops after which no epoch has begun yet
        self.score = Score()

    def start(self, failpoint: Failpoint | None = None) -> Life:
        go_on = ["--c"] if self.epoch else []
        return self.lives.start(self.env, *self.run.words()[:3], "-device", "cpu", *go_on, failpoint=failpoint)

    def stop(self, planned: Stop) -> str:
        """Start, stop as planned, check; a line about it."""
        life = self.start(planned.failpoint)
        phase = _carry_out(planned, life)
        code = life.code(PATIENCE_S)
        key = planned.kind.name, phase
        self.score.stops[key] += 1
        self._check_end(planned, phase, life, code)
        self._check_beginning(life)
        lost = self._check_checkpoints(planned, key, life)
        self.unproven.append(key)
        at = f" step {planned.failpoint.step}" if phase == "save" and planned.failpoint else ""
        return f"{planned.kind.name} in {phase}{at}: exit {code}, goes on at epoch {self.epoch}, lost {lost}"

    def finish(self) -> None:
        """checkpoint_final and nnU-Net's validation, read by torch alone."""
        life = self.start()
        life.wait_for("Epoch time", PATIENCE_S)
        control = Control(self.layout.control_folder(self.run))
        control.request_stop("epoch", "finish", "the harness is done", by="bench/kill.py")
        code = life.code(PATIENCE_S)
        self._check_beginning(life)
        completed = _completed(life, self.epoch)
        final = self.layout.checkpoint(self.run, "final")
        self._promise(code == Exit.STOP_REQUESTED, f"finishing ended with {code}:\n{life.output[-2000:]}")
        self._promise(not self.layout.checkpoint(self.run, "latest").exists(), "latest is there beside final")
        self._promise(self.layout.validation_summary(self.run).exists(), "there is no validation")
        argv = [sys.executable, "-I", "-W", "ignore", "-c", _READ, str(final)]
        read = subprocess.run(argv, capture_output=True, text=True, check=False)
        self._promise(read.stdout.strip() == str(completed), f"plain torch reads {read.stdout} {read.stderr}")

    def _check_end(self, planned: Stop, phase: str, life: Life, code: int) -> None:
        allowed = {planned.kind.code}
        if phase == "start":  # before there are handlers
            allowed.add(-planned.kind.number)
        self._promise(code in allowed, f"{planned}: exit code {code}:\n{life.output[-2000:]}")
        left_over = life.left_over()
        self._promise(not left_over, f"{planned}: processes {left_over} are left over")
        self._promise("IndexError" not in life.output, f"{planned}: an IndexError:\n{life.output[-2000:]}")
        if code >= 0:
            self._promise("Traceback" not in life.output, f"{planned}: a traceback:\n{life.output[-2000:]}")

    def _check_beginning(self, life: Life) -> None:
        """A life that came to an epoch proves every resume before it."""
        begun = _EPOCH.findall(life.output)
        if begun:
            right = int(begun[0]) == self.epoch
            self._promise(right, f"a start went on at epoch {begun[0]} instead of {self.epoch}")
            self.score.resumed.update(self.unproven if right else ())
            self.unproven.clear()

    def _check_checkpoints(self, planned: Stop, key: tuple[str, str], life: Life) -> int:
        """Sets the epoch to go on at; gives the epochs lost."""
        for kind in CHECKPOINT_KINDS:
            path = self.layout.checkpoint(self.run, kind)
            for generation in (path, previous_of(path)):
                problem = whole(generation) if generation.exists() else None
                self.score.unreadable[key] += problem is not None
                self._promise(problem is None, f"{planned}: {problem}")
        completed, before = _completed(life, self.epoch), self.epoch
        self.epoch = 0
        with contextlib.suppress(Refused):
            newest = newest_checkpoint(self.layout.fold_folder(self.run))
            self.epoch = newest.current_epoch
            self._promise(newest.inconsistency() is None, f"{planned}: {newest.inconsistency()}")
        lost = completed - self.epoch
        self.score.lost[key] += lost
        self._promise(self.epoch >= before, f"{planned}: fell back from epoch {before} to {self.epoch}")
        self._promise(0 <= lost <= planned.kind.may_lose, f"{planned}: {completed} epochs done, {self.epoch} kept")
        return lost

    def _promise(self, kept: bool, sentence: str) -> None:
        if not kept:
            self.score.broken.append(sentence)
            print(f"BROKEN: {sentence}", flush=True)


def _carry_out(planned: Stop, life: Life) -> str:
    """Stop the life; gives the phase it was stopped in."""
    if planned.failpoint is not None:
        if _ends_within(life, 20, until_stopping=True):
            return "save"
        _send(planned.kind, life)  # that save has no such step
        return "epoch"
    if planned.phase == "epoch":
        life.wait_for(": Epoch ", PATIENCE_S)
    time.sleep(planned.delay_s)
    phase = "epoch" if ": Epoch " in life.output else "start"
    _send(planned.kind, life)
    if planned.kind.twice:
        time.sleep(0.6)
        _send(planned.kind, life)
    return phase


def _send(kind: Kind, life: Life) -> None:
    with contextlib.suppress(ProcessLookupError):
        (life.signal_group if kind.group else life.signal)(kind.number)


def _ends_within(life: Life, patience_s: float, until_stopping: bool) -> bool:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if life.has_ended() or (until_stopping and "nnx: Stopping" in life.output):
            return True
        time.sleep(0.02)
    return False


def _completed(life: Life, before: int) -> int:
    """The epochs done when this life ended: nnU-Net logs `Epoch time` after the last batch of each."""
    begun = [int(epoch) for epoch in _EPOCH.findall(life.output)]
    done = len(_DONE.findall(life.output))
    return begun[done - 1] + 1 if done else before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a folder in which tests/made_data.py made its dataset already")
    words = parser.parse_args()
    chance = random.Random(words.seed)
    folder = Path(tempfile.mkdtemp(prefix="nnx kill "))
    made = made_data.layout_in(words.data) if words.data else made_data.make(folder / "made")
    layout = made_data.copy_of(made, folder / "trained")
    began = time.monotonic()
    with living(made_data.environment(layout), folder / "lives") as lives:
        harness = Harness(lives, layout, epochs=50 + 8 * words.stops)
        for number in range(words.stops):
            line = harness.stop(Stop.draw(chance))
            print(f"{number + 1:>4} {time.monotonic() - began:6.0f} s  {line}", flush=True)
        harness.finish()
    print(f"\n{harness.score}\n{words.stops} stops in {(time.monotonic() - began) / 60:.1f} minutes, seed {words.seed}")
    print(f"{len(harness.score.broken)} promises broken" + (f"; see {folder}" if harness.score.broken else ""))
    if not harness.score.broken:
        shutil.rmtree(folder)
    return int(bool(harness.score.broken))


if __name__ == "__main__":
    sys.exit(main())
