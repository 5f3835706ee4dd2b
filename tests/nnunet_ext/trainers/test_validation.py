"""A validation goes on where it was: whole results of the same checkpoint are kept, nothing else is trusted."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_data
import pytest

from nnunet_ext.errors import Refused, Unfit
from nnunet_ext.layout import Layout
from nnunet_ext.plans import Plans
from nnunet_ext.promote import promote

pytestmark = [pytest.mark.nnunet, pytest.mark.filterwarnings("default")]

VAL = ["made_000", "made_001", "made_002", "made_003"]


@pytest.fixture(scope="module")
def trained(made: Layout[Path], tmp_path_factory: pytest.TempPathFactory) -> Layout[Path]:
    """The dataset with four validation cases, a configuration that is fed by `2d`, and nothing trained yet."""
    layout = made_data.copy_of(made, tmp_path_factory.mktemp("cascade"))
    cases = [f"made_{i:03d}" for i in range(made_data.CASES)]
    layout.splits(made_data.DATASET).write_text(json.dumps([{"train": cases[4:], "val": VAL}]))
    cascade = '.configurations |= (.["2d"].next_stage = "next" | .next = {inherits_from: "2d", previous_stage: "2d"})'
    plans = Plans.read(layout.plans_file(made_data.DATASET, "nnUNetPlans"))
    plans.patch(cascade, "a cascade", when=datetime.now(timezone.utc))
    return layout


@pytest.fixture
def val(bench: Any, trained: Layout[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A trained run; nnU-Net's spawned processes, of which each would import torch for seconds, are threads."""
    import torch
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    from nnunet_ext.trainers import validation

    shutil.rmtree(bench.layout.preprocessed)
    shutil.copytree(trained.preprocessed, bench.layout.preprocessed)
    monkeypatch.setattr(validation, "nnUNet_raw", str(bench.layout.raw))
    for module, where in ((nnUNetTrainer, "nnUNet_preprocessed"), (nnUNetTrainer, "nnUNet_results")):
        assert Path(getattr(module, where)) in (bench.layout.preprocessed, bench.layout.results)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    threads = SimpleNamespace(get_context=lambda kind: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(nnUNetTrainer, "multiprocessing", threads)
    monkeypatch.setattr(evaluate_predictions, "multiprocessing", threads)
    yield Validated(bench, trained)
    torch.set_num_threads(before)


class Validated:
    """A bench whose trainer has written checkpoint_final; each `run` is a new start, as of a new process."""

    def __init__(self, bench: Any, trained: Layout[Path]) -> None:
        self.bench = bench
        once = trained.fold_folder(bench.run)
        if once.exists():
            shutil.copytree(once, bench.folder)
        else:
            bench.train(epochs=1)
            shutil.copytree(bench.folder, once)
        self.folder = bench.layout.validation_folder(bench.run)
        self.next_stage = bench.layout.stage_predictions(bench.run, "next")

    def run(self, npz: bool = False, trainer: Any = None) -> list[str]:
        """Validate checkpoint_final, or what the trainer given has; the cases that were predicted."""
        trainer = trainer or self.bench.trainer(resume="final")
        trainer.inference_allowed_mirroring_axes = None  # four times as fast
        said: list[str] = []
        say = trainer.print_to_log_file
        trainer.print_to_log_file = lambda *words, **options: (said.append(str(words[0])), say(*words, **options))
        trainer.perform_actual_validation(npz)
        return [line.removeprefix("predicting ") for line in said if line.startswith("predicting ")]

    def bytes(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in [*self.folder.iterdir(), *self.next_stage.iterdir()]}

    @property
    def aside(self) -> list[Path]:
        return sorted((self.bench.control.folder / "previous").glob("validation_*"))


def test_what_is_missing_or_half_written_is_predicted_again_and_the_rest_is_not(val) -> None:
    assert val.run(npz=True) == VAL
    whole = val.bytes()
    assert val.run(npz=True) == []
    (val.folder / "made_000.nii.gz").write_bytes(whole["made_000.nii.gz"][: len(whole["made_000.nii.gz"]) // 2])
    (val.folder / "made_001.npz").write_bytes(whole["made_001.npz"][:-100])
    (val.next_stage / "made_002.b2nd").write_bytes(whole["made_002.b2nd"][:-1])
    (val.folder / "summary.json").unlink()
    assert val.run(npz=True) == VAL[:3]
    assert val.bytes().keys() == whole.keys()
    compared = [name for name in whole if name.endswith((".nii.gz", ".json", ".b2nd"))]
    assert {name: val.bytes()[name] for name in compared} == {name: whole[name] for name in compared}
    validated = val.bench.events("validated")
    assert [(event["cases"], event["skipped"]) for event in validated] == [(4, 0), (4, 4), (4, 1)]
    assert not val.aside


def test_probabilities_asked_for_later_are_predicted(val) -> None:
    val.run()
    assert val.run(npz=True) == VAL
    assert val.run(npz=True) == []


def test_results_of_another_checkpoint_are_kept_aside_with_what_the_cascade_is_fed(val) -> None:
    val.run()
    old = val.bytes()
    trainer, _ = val.bench.train(epochs=2, resume="final", allow_lr_jump="yes")
    assert val.run(trainer=trainer) == VAL
    (aside,) = val.aside
    assert (aside / "made_000.nii.gz").read_bytes() == old["made_000.nii.gz"]
    assert (aside / "next" / "made_000.b2nd").read_bytes() == old["made_000.b2nd"]
    assert val.bench.events("validation_moved_aside")[0]["reason"] == "another checkpoint predicted them"
    assert val.run() == []


def test_results_that_stock_nnunet_left_are_used_unless_final_is_newer(val) -> None:
    val.run()
    record = val.bench.layout.validation_record(val.bench.run)
    record.unlink()
    assert val.run() == []
    record.unlink()
    promote(val.bench.layout.checkpoint(val.bench.run, "best"), val.bench.layout.checkpoint(val.bench.run, "final"))
    assert val.run() == VAL
    assert len(val.aside) == 1


def test_a_segmentation_that_somebody_else_wrote_since_is_not_taken_for_ours(val) -> None:
    val.run()
    shutil.copy(val.folder / "made_001.nii.gz", val.folder / "made_000.nii.gz")  # of another shape
    assert val.run() == ["made_000"]
    ours = gzip.decompress((val.folder / "made_000.nii.gz").read_bytes())
    theirs = ours[:-400] + bytes(1 - byte for byte in ours[-400:] if byte < 2)  # whole, as --val_best writes it
    (val.folder / "made_000.nii.gz").write_bytes(gzip.compress(theirs + bytes(len(ours) - len(theirs))))
    assert val.run() == VAL
    assert val.bench.events("validation_moved_aside")[0]["reason"] == "another program has written made_000 since"


def test_weights_that_are_in_no_file_vouch_for_nothing(val) -> None:
    val.run()
    trainer = val.bench.trainer(iterations=1, epochs=1)
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert val.run(trainer=trainer) == VAL
    assert len(val.aside) == 1
    assert json.loads(val.bench.layout.validation_record(val.bench.run).read_text())["checkpoint"] is None


def test_a_fold_that_is_held_is_not_validated_and_missing_truth_is_told_first(val) -> None:
    trainer = val.bench.trainer(resume="final")
    with val.bench.control.lock(), pytest.raises(Refused):
        trainer.perform_actual_validation()
    truth = val.bench.layout.gt_segmentations(made_data.DATASET) / "made_003.nii.gz"
    truth.rename(truth.with_suffix(".away"))
    with pytest.raises(Unfit, match=r"1 of 4 cases have no ground truth.*made_003"):
        trainer.perform_actual_validation()
    assert not val.folder.exists()


def test_training_sees_the_whole_split_before_and_after_a_validation(val) -> None:
    val.run()
    (val.folder / "made_002.nii.gz").unlink()
    trainer = val.bench.trainer(resume="final")
    assert val.run(trainer=trainer) == ["made_002"]
    assert trainer.do_split()[1] == VAL


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".tif", ".png", ".nii"])
def test_every_format_that_is_cut_short_is_noticed(tmp_path: Path, ending: str) -> None:
    import numpy as np
    import SimpleITK
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    from nnunet_ext.trainers.results import segmentation_trouble

    labels = np.random.default_rng(0).integers(0, 3, (12, 30, 31), np.uint8)
    truth, predicted = tmp_path / f"truth{ending}", tmp_path / f"it's Zoë's{ending}"
    reader = next(cls() for cls in LIST_OF_IO_CLASSES if ending in cls.supported_file_endings)
    if ending in (".tif", ".png"):
        reader.write_seg(labels[:1], str(truth), {"spacing": (1, 1, 1)})
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), truth)
    whole = truth.read_bytes()
    assert segmentation_trouble(reader, predicted, truth) == "is not there"
    predicted.write_bytes(whole)
    assert segmentation_trouble(reader, predicted, truth) == ""
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 25):  # a .png ends with 20 bytes of checksums
        predicted.write_bytes(whole[:length])
        assert "cannot be read" in segmentation_trouble(reader, predicted, truth), length


def test_no_two_powers_share_a_private_name() -> None:
    from nnunet_ext.trainers.extend import POWERS
    from nnunet_ext.trainers.power import Power

    classes = {cls for power in POWERS for cls in power.__mro__ if issubclass(cls, Power)}
    for cls in classes:
        for other in classes - set(cls.__mro__):
            if not issubclass(other, cls):
                shared = {name for name in vars(cls).keys() & vars(other).keys() if name.startswith("_nnx_")}
                assert not shared, (cls, other, shared)
