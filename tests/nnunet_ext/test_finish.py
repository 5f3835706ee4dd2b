"""`nnx finish` closes a run: the right checkpoint becomes final, nothing is lost, what it says is true."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_data
import pytest

from nnunet_ext import finish
from nnunet_ext.checkpoint import Checkpoint
from nnunet_ext.cli import run as nnx
from nnunet_ext.control import Control
from nnunet_ext.errors import Damaged, Exit, Refused
from nnunet_ext.finish import Candidate, Origin, choose
from nnunet_ext.layout import Layout
from nnunet_ext.run import Run

REAL = Path(__file__).parents[1] / "data" / "checkpoints" / "nnunet-2.8.1_numpy2_2d.pth"


def of_epoch(epoch: int, path: Path) -> Path:
    """The real checkpoint, with another number of completed epochs in its pickle."""
    with zipfile.ZipFile(REAL) as real, zipfile.ZipFile(path, "w") as changed:
        for info in real.infolist():
            content = real.read(info)
            if info.filename.endswith("data.pkl"):
                content, times = re.subn(rb"(current_epoch(?:q.|r.{4})K).", rb"\g<1>" + bytes([epoch]), content)
                assert times == 1
            changed.writestr(info.filename, content)
    return path


@dataclass
class Fold:
    """A fold with a ground truth and whatever checkpoints a test gives it."""

    run: Run
    layout: Layout[Path]

    @property
    def control(self) -> Control:
        return Control(self.layout.control_folder(self.run))

    def has(self, **epochs: int) -> None:
        for kind, epoch in epochs.items():
            of_epoch(epoch, self.path(kind))

    def path(self, kind: str) -> Path:
        return self.layout.checkpoint(self.run, kind)

    def epoch(self, kind: str) -> int:
        return Checkpoint.read(self.path(kind)).current_epoch


@pytest.fixture
def fold(layout: Layout[Path], make_run: Any) -> Fold:
    run = make_run()
    layout.gt_segmentations(run.dataset).mkdir(parents=True)
    return Fold(run, layout)


def child(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A real process in the place of the one that validates; it is told the fold's folder."""
    argv = [sys.executable, "-c", f"import os, signal\nfold = os.environ['NNX_FOLD_FOLDER']\n{script}"]
    monkeypatch.setattr(finish, "validation_command", lambda *_: argv)


VALIDATES = """
import json, pathlib
folder = pathlib.Path(fold, "validation"); folder.mkdir()
(folder / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": 0.75}}))
event = {"event": "validated", "cases": 4, "skipped": 3, "launch": os.environ["NNX_LAUNCH"]}
with open(pathlib.Path(fold, ".nnx", "events.jsonl"), "a") as events: events.write(json.dumps(event) + "\\n")
print("predicting a case")
"""


# which checkpoint


def candidate(kind: str, epoch: int | None) -> Candidate:
    return Candidate(kind, Path(f"/{kind}"), epoch, trouble="" if epoch is not None else f"{kind} is cut short")


@pytest.mark.parametrize(
    ("there", "asked", "chosen"),
    [
        ({"final": 9, "best": 9}, None, "final"),
        ({"final": 9, "best": 3, "previous latest": 5}, None, "final"),
        ({"final": 9, "latest": 20, "best": 3}, None, "final"),
        ({"latest": 20, "best": 21}, None, "best"),
        ({"latest": 20, "best": 20}, None, "latest"),
        ({"latest": None, "best": 3}, None, "best"),
        ({"best": 3, "previous latest": 7}, None, "previous latest"),
        ({"final": 9, "best": 3}, "best", "best"),
        ({"final": None, "latest": 9}, "latest", "latest"),
    ],
)
def test_the_asked_one_wins_then_final_then_the_newest_readable(
    there: dict[str, int | None], asked: str | None, chosen: str
) -> None:
    assert choose([candidate(*one) for one in there.items()], asked).source.kind == chosen


def test_a_final_that_the_run_has_outgrown_since_is_not_the_choice() -> None:
    outgrown = Candidate("final", Path("/final"), 9, written_at=100.0)
    assert choose([outgrown, Candidate("latest", Path("/latest"), 12, written_at=200.0)], None).source.kind == "latest"
    assert choose([outgrown, Candidate("latest", Path("/latest"), 12, written_at=50.0)], None).source.kind == "final"


@pytest.mark.parametrize("there", [{"final": None, "best": 3}, {"latest": None, "best": None}])
def test_a_damaged_final_is_not_passed_over_in_silence(there: dict[str, int | None]) -> None:
    with pytest.raises(Damaged, match="is cut short"):
        choose([candidate(*one) for one in there.items()], None)


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(Refused) as refused:
        choose([candidate("final", 9), candidate("best", 3)], "latest")
    assert "final, best" in refused.value.hint
    with pytest.raises(Refused):
        choose([], None)


# making it final


def test_the_copy_is_whole_and_its_origin_is_remembered(fold: Fold) -> None:
    fold.has(latest=7, best=3)
    choice = choose(finish.candidates(fold.run, fold.layout), "best")
    origin = finish.make_final(choice, fold.run, fold.layout)
    assert fold.path("final").read_bytes() == fold.path("best").read_bytes()
    assert (origin.kind, fold.epoch("latest")) == ("best", 7)
    event = next(fold.control.events())
    assert (event["event"], event["kind"], event["epoch"]) == ("promoted", "best", 3)
    assert event["sha256"] == finish.sha256_of(fold.path("final"))
    again = choose(finish.candidates(fold.run, fold.layout), None)
    assert finish.make_final(again, fold.run, fold.layout) == Origin("best", event["at"])


def test_the_final_it_replaces_is_kept_also_when_it_is_asked_twice(fold: Fold) -> None:
    fold.has(final=9, best=3)
    for _ in range(2):
        choice = choose(finish.candidates(fold.run, fold.layout), "best")
        finish.make_final(choice, fold.run, fold.layout)
    assert fold.epoch("final") == 3
    assert Checkpoint.read(fold.layout.previous_checkpoint(fold.run, "final")).current_epoch == 9
    assert len(list(fold.control.events())) == 1


def test_a_final_that_training_wrote_is_called_so(fold: Fold) -> None:
    fold.has(final=9)
    before = fold.path("final").stat()
    choice = choose(finish.candidates(fold.run, fold.layout), None)
    assert finish.make_final(choice, fold.run, fold.layout) == Origin("final", None)
    assert fold.path("final").stat().st_mtime_ns == before.st_mtime_ns


def test_damaged_weights_are_never_made_final(fold: Fold) -> None:
    fold.has(final=9, best=3)
    with zipfile.ZipFile(fold.path("best")) as archive:
        weights = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda info: info.file_size)
    content = bytearray(fold.path("best").read_bytes())
    content[weights.header_offset + weights.file_size // 2] ^= 1  # only a checksum tells
    fold.path("best").write_bytes(content)
    choice = choose(finish.candidates(fold.run, fold.layout), "best")
    with pytest.raises(Damaged):
        finish.make_final(choice, fold.run, fold.layout)
    assert fold.epoch("final") == 9
    assert not list(fold.control.events())


# the command


def test_what_a_training_holds_or_another_machine_has_is_refused(fold: Fold, capfd) -> None:
    fold.has(latest=7)
    with fold.control.lock():
        assert nnx(["finish"]) == Exit.REFUSED
    assert "is running" in capfd.readouterr().err
    fold.control.mark_moved("gpu-box", 7)
    assert nnx(["finish"]) == Exit.REFUSED
    assert "moved to gpu-box after epoch 7" in capfd.readouterr().err
    assert not fold.path("final").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["finish", "--checkpoint", "final"], Exit.USAGE),
        (["finish", "--workers", "0"], Exit.USAGE),
        (["finish", "--checkpoint", "latest"], Exit.REFUSED),
        (["finish", "4", "2d", "1"], Exit.NO_SUCH_RUN),
        (["finish"], Exit.DAMAGED),
    ],
)
def test_bad_input_ends_before_anything_is_done(fold: Fold, words: list[str], code: Exit) -> None:
    fold.path("best").write_bytes(REAL.read_bytes()[:5000])
    assert nnx(words) == code
    assert not fold.path("final").exists()


def test_without_ground_truth_it_says_so_before_hours_are_spent(fold: Fold, capfd) -> None:
    fold.has(latest=7)
    fold.layout.gt_segmentations(fold.run.dataset).rmdir()
    assert nnx(["finish"]) == Exit.UNFIT
    assert "cp -r" in capfd.readouterr().err


def test_dry_run_prints_commands_that_a_shell_understands_and_does_nothing(fold: Fold, capfd) -> None:
    fold.has(final=9, best=3)
    assert nnx(["finish", "--checkpoint", "best", "--npz", "--device", "cpu", "--workers", "3", "--dry-run"]) == 0
    printed = capfd.readouterr().out
    assert fold.epoch("final") == 9
    *steps, validation = printed.splitlines()
    subprocess.run("\n".join(steps), shell=True, check=True)
    assert fold.epoch("final") == 3
    assert Checkpoint.read(fold.layout.previous_checkpoint(fold.run, "final")).current_epoch == 9
    assert "nnUNet_def_n_proc=3" in validation
    assert validation.endswith("-m nnunet_ext.trainers.launch 4 2d 0 --val -device cpu --npz")


def test_the_answer_is_on_stdout_and_the_validations_words_are_on_stderr(fold: Fold, capfd, monkeypatch) -> None:
    fold.has(latest=7, best=3)
    child(monkeypatch, VALIDATES)
    assert nnx(["finish", "--json", "--device", "cpu"]) == 0
    said = capfd.readouterr()
    answer = json.loads(said.out)
    assert "predicting a case" in said.err
    assert (answer["run"], answer["checkpoint"], answer["epoch"]) == ("4 2d 0", "latest", 7)
    assert (answer["cases"], answer["skipped"], answer["mean_validation_dice"]) == (4, 3, 0.75)
    assert answer["summary"] == str(fold.layout.validation_summary(fold.run))


def test_real_and_pseudo_dice_are_told_apart(fold: Fold, capfd, monkeypatch) -> None:
    fold.has(latest=7, best=3)
    child(monkeypatch, VALIDATES)
    assert nnx(["finish", "--device", "cpu"]) == 0
    said = capfd.readouterr()
    assert "checkpoint_latest of epoch 7: it is the newest readable one" in said.err
    assert "checkpoint_best: epoch 3" in said.err
    lines = dict(line.split(": ", 1) for line in said.out.splitlines())
    assert lines["mean validation Dice"] == "0.7500 (4 cases, 3 skipped)"
    assert "overstates" in lines["EMA pseudo Dice"]
    assert "a copy of checkpoint_latest" in lines["checkpoint_final"]


@pytest.mark.parametrize(
    ("script", "code", "word"),
    [
        ("os._exit(7)", Exit.REFUSED, ""),
        ("os._exit(1)", Exit.FAILED, "Go on with: nnx finish 4 2d 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", Exit.FAILED, "--workers 1"),
        ("os.kill(os.getpid(), signal.SIGTERM)", Exit.REQUEUE, "Go on with"),
        ("signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)", Exit.INTERRUPTED, "Go on with"),
        ("pass", Exit.DAMAGED, "is no summary"),
    ],
)
def test_a_validation_that_does_not_end_well_says_how_to_go_on(
    fold: Fold, capfd, monkeypatch, script: str, code: Exit, word: str
) -> None:
    fold.has(final=7)
    child(monkeypatch, script)
    assert nnx(["finish", "--device", "cpu"]) == code
    said = capfd.readouterr()
    assert said.out == ""
    assert word in said.err


# with the real nnU-Net

SHORT = """
import os, signal, time
from pathlib import Path
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerShort(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch, self.save_every = 2, 1, 1

    def print_to_log_file(self, *words, **options):
        super().print_to_log_file(*words, **options)
        if words[0] == f"predicting {os.environ.get('DIES_AT')}":
            while not list(Path(self.output_folder).glob("validation/*.nii.gz")):
                time.sleep(0.05)
            time.sleep(0.5)  # the export has written its first file
            os.kill(os.getpid(), signal.SIGKILL)
"""
VAL = ["made_001", "made_004", "made_008"]


@pytest.fixture
def stopped(made: Layout[Path], tmp_path: Path) -> Iterator[tuple[Layout[Path], Run, dict[str, str]]]:
    """A training by plain nnU-Net that was killed after an epoch."""
    layout = made_data.copy_of(made, tmp_path / "it's Zoë's")
    run = Run(made_data.DATASET, "2d", 0, "nnUNetTrainerShort")
    cases = [f"made_{i:03d}" for i in range(made_data.CASES)]
    train = [case for case in cases if case not in VAL]
    layout.splits(run.dataset).write_text(json.dumps([{"train": train, "val": VAL}]))
    shelf = tmp_path / "trainers"
    shelf.mkdir()
    (shelf / "short_epochs.py").write_text(SHORT)
    env = made_data.environment(layout, nnUNet_extTrainer=str(shelf))
    argv = [made_data.program("nnUNetv2_train"), *run.words(), "-device", "cpu"]
    with (tmp_path / "train.log").open("w") as log:
        training = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            logs: list[Path] = []
            while not any("Epoch 2" in path.read_text() for path in logs):
                assert training.poll() is None, (tmp_path / "train.log").read_text()
                time.sleep(0.1)
                logs = [*layout.fold_folder(run).glob("training_log_*")]
        finally:
            os.killpg(training.pid, signal.SIGKILL)
            training.wait()
    yield layout, run, env


def stock(words: list[str], env: dict[str, str]) -> None:
    argv = [made_data.program(words[0]), *words[1:]]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def finished(run: Run, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nnunet_ext", "finish", *run.words(), "--device", "cpu", "--json", *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True)


@pytest.mark.nnunet
def test_a_stopped_stock_training_is_finished_resumably_and_plain_nnunet_agrees(stopped, tmp_path) -> None:
    layout, run, env = stopped
    killed = finished(run, {**env, "DIES_AT": VAL[1]})
    assert (killed.returncode, killed.stdout) == (Exit.FAILED, ""), killed.stderr
    assert "nnx finish 42 2d 0 -tr nnUNetTrainerShort" in killed.stderr
    predicted = sorted(path.name for path in layout.validation_folder(run).iterdir())
    assert predicted == [f"{VAL[0]}.nii.gz"]

    done = finished(run, env)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["cases"], answer["skipped"]) == (3, 1)
    assert answer["checkpoint"] in ("latest", "best")  # the kill may have cut the one that was being written
    assert f"predicting {VAL[0]}" not in done.stderr
    assert all(f"predicting {case}" in done.stderr for case in VAL[1:])

    resumed = tmp_path / "resumed"
    shutil.copytree(layout.validation_folder(run), resumed)
    shutil.rmtree(layout.validation_folder(run))
    stock(["nnUNetv2_train", *run.words(), "--val", "-device", "cpu"], env)
    for name in (*(f"{case}.nii.gz" for case in VAL), "summary.json"):
        assert (resumed / name).read_bytes() == (layout.validation_folder(run) / name).read_bytes(), name
    assert answer["mean_validation_dice"] == finish.mean_dice_in(layout.validation_summary(run))
    best = ["nnUNetv2_find_best_configuration", "42", "-c", "2d", "-f", "0", "-tr", run.trainer, "-np", "1"]
    stock([*best, "--disable_ensembling"], env)
