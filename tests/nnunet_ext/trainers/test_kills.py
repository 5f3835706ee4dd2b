"""A kill -9 at every single step of a save, and a disk that is full; bench/kill.py is the long version."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import made_data
import pytest
from failpoint import Failpoint
from lives import Life, Lives, living

from nnunet_ext.checkpoint import Checkpoint, whole
from nnunet_ext.errors import Exit
from nnunet_ext.layout import Layout, checkpoint_in, control_in, previous_of
from nnunet_ext.promote import newest_checkpoint, promote
from nnunet_ext.run import Run

REAL = Path(__file__).parents[2] / "data" / "checkpoints" / "nnunet-2.8.1_numpy2_2d.pth"
STEPS, STEPS_AT_LEAST = 28, 20  # three for each file operation of a save


@dataclass(frozen=True)
class Fold:
    """A fold folder with two generations of checkpoint_latest and a newer checkpoint to put in its place."""

    folder: Path

    @property
    def latest(self) -> Path:
        return checkpoint_in(self.folder, "latest")

    @property
    def newer(self) -> Path:
        return self.folder / "newer.pth"

    def fill(self) -> Fold:
        self.folder.mkdir(parents=True)
        for generation in (b"older", b"old"):
            _with_comment(self.newer, generation)
            promote(self.newer, self.latest)
        _with_comment(self.newer, b"new")
        return self

    def generations(self) -> tuple[bytes, bytes]:
        """Which generation latest and its previous one are; both must be whole."""
        found = []
        for path in (self.latest, previous_of(self.latest)):
            assert whole(path) is None
            found.append(_comment(path))
        return found[0], found[1]


def _with_comment(path: Path, comment: bytes) -> None:
    """The real checkpoint, told apart by its zip comment."""
    shutil.copyfile(REAL, path)
    content = path.read_bytes()
    assert content.endswith(b"\0\0")
    path.write_bytes(content[:-2] + len(comment).to_bytes(2, "little") + comment)


def _comment(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.comment


def _kill_at_every_step(script: str, folds: list[Fold]) -> list[int]:
    """Run `script` for each fold in a process of its own, killed at step 0, 1, 2, ...; how each ended."""
    argv = [sys.executable, "-W", "ignore", "-c", PROLOGUE + script + EPILOGUE, str(Path(__file__).parents[2])]
    words = [str(REAL), *(str(fold.folder) for fold in folds)]
    ran = subprocess.run([*argv, *words], capture_output=True, text=True, check=True)
    codes = [int(code) for code in ran.stdout.split()]
    assert {*codes} == {-signal.SIGKILL, 0}
    assert codes == sorted(codes)
    assert codes.count(-signal.SIGKILL) >= STEPS_AT_LEAST
    return codes


PROLOGUE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from failpoint import Failpoint, arm
from nnunet_ext.promote import promote
"""
PROMOTE = """
def save(fold, failpoint):
    arm(failpoint, with_torch=False)
    promote(Path(fold, "newer.pth"), Path(fold, "checkpoint_latest.pth"))
"""
WRITE = """
import torch
from nnunet_ext.trainers import safe_checkpoint
content = torch.load(sys.argv[2], map_location="cpu", weights_only=False)
content["current_epoch"] += 1
for values in content["logging"].values():
    values.append(values[-1])
def save(fold, failpoint):
    arm(failpoint)
    safe_checkpoint._write(content, Path(fold, "checkpoint_latest.pth"))
"""
EPILOGUE = """
for step, fold in enumerate(sys.argv[3:]):
    pid = os.fork()
    if pid == 0:
        save(fold, Failpoint(step))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_a_kill_at_any_step_of_a_promotion_leaves_whole_generations_and_the_next_one_works(tmp_path: Path) -> None:
    folds = [Fold(tmp_path / f"fold 'é' {step}").fill() for step in range(STEPS)]
    _kill_at_every_step(PROMOTE, folds)
    seen = []
    for fold in folds:
        seen.append(fold.generations())
        assert newest_checkpoint(fold.folder).path == fold.latest
        assert not fold.latest.samefile(previous_of(fold.latest))  # nnU-Net, writing in place, must not destroy both
        promote(fold.newer, fold.latest)
        assert fold.generations()[0] == b"new"
        assert not list((control_in(fold.folder) / "writing").iterdir())
        assert [path.name for path in (control_in(fold.folder) / "previous").iterdir()] == [fold.latest.name]
    assert [*dict.fromkeys(seen)] == [(b"old", b"older"), (b"new", b"older"), (b"new", b"old")]


@pytest.mark.nnunet
def test_a_kill_at_any_step_of_a_trainers_save_leaves_the_old_or_the_new_checkpoint_whole(tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2")
    folds = [Fold(tmp_path / str(step)).fill() for step in range(STEPS)]
    _kill_at_every_step(WRITE, folds)
    before = Checkpoint.read(REAL).current_epoch
    epochs = []
    for fold in folds:
        assert whole(fold.latest) is None
        assert whole(previous_of(fold.latest)) is None
        assert not fold.latest.samefile(previous_of(fold.latest))
        newest = newest_checkpoint(fold.folder)
        assert newest.inconsistency() is None
        epochs.append(newest.current_epoch)
    assert epochs == sorted(epochs)
    assert {*epochs} == {before, before + 1}


@pytest.fixture(scope="module")
def lives(made: Layout[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lives, Layout[Path]]]:
    folder = tmp_path_factory.mktemp("killed 'é'")
    layout = made_data.copy_of(made, folder)
    with living(made_data.environment(layout), folder / "lives") as lives:
        yield lives, layout


def begin(lives: tuple[Lives, Layout[Path]], run: Run, failpoint: Failpoint | None = None) -> Life:
    settings = {"EPOCHS": "99", "ITERATIONS": "2", "VAL_ITERATIONS": "1", "CHECKPOINT_MINUTES": "0"}
    env = made_data.environment(lives[1], **{f"NNX_{name}": value for name, value in settings.items()})
    go_on = ["--c"] if list(lives[1].fold_folder(run).glob("*.pth")) else []
    return lives[0].start(env, *run.words(), "-device", "cpu", *go_on, failpoint=failpoint)


@pytest.mark.nnunet
def test_a_training_killed_in_the_middle_of_a_save_goes_on_at_its_last_completed_epoch(
    lives: tuple[Lives, Layout[Path]],
) -> None:
    run, epoch = Run(made_data.DATASET, "2d", 0), 0
    for failpoint in (Failpoint(1, save=2), Failpoint(14, save=3), Failpoint(16, save=2)):
        life = begin(lives, run, failpoint)
        assert life.code() == -signal.SIGKILL
        assert life.left_over() == []
        begun = re.search(r": Epoch (\d+)", life.output)
        assert begun is not None and int(begun[1]) == epoch
        newest = newest_checkpoint(lives[1].fold_folder(run))
        assert newest.inconsistency() is None
        assert epoch + life.output.count("Epoch time") - newest.current_epoch in (0, 1)
        assert newest.current_epoch > epoch
        epoch = newest.current_epoch


@pytest.mark.nnunet
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits the files of another process")
def test_a_full_disk_ends_no_training_and_is_made_up_for_when_there_is_room_again(
    lives: tuple[Lives, Layout[Path]],
) -> None:
    run = Run(made_data.DATASET, "2d", 1)
    life = begin(lives, run)
    life.wait_for("Epoch time", times=2)
    before = resource.prlimit(life.pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    life.wait_for("WARNING: a checkpoint could not be written")
    life.wait_for("WARNING: the progress plot could not be written", times=2)
    fold_folder = lives[1].fold_folder(run)
    assert [problem for problem in map(whole, fold_folder.glob("*.pth")) if problem] == []
    kept = newest_checkpoint(fold_folder).current_epoch
    resource.prlimit(life.pid, resource.RLIMIT_FSIZE, before)
    life.signal(signal.SIGTERM)
    assert life.code() == Exit.REQUEUE
    assert newest_checkpoint(fold_folder).current_epoch == life.output.count("Epoch time") > kept >= 1
