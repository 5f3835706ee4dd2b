from __future__ import annotations

import shutil

import pytest

from nnunet_ext.checkpoint import whole
from nnunet_ext.layout import previous_of

pytestmark = [pytest.mark.nnunet, pytest.mark.filterwarnings("default")]


def load(path):
    import torch

    return torch.load(path, map_location="cpu", weights_only=False)


def same(one, other) -> bool:
    import numpy as np
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(np.all(one == other))


def test_a_checkpoint_holds_what_the_stock_trainer_saves_in_a_file_of_the_same_size(bench) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer, _ = bench.train(epochs=1)
    trainer.current_epoch -= 1
    stock = bench.folder / "stock.pth"
    nnUNetTrainer.save_checkpoint(trainer, str(stock))
    ours = bench.folder / "checkpoint_final.pth"
    assert same(load(ours), load(stock))
    assert load(ours)["network_weights"]._metadata == load(stock)["network_weights"]._metadata
    assert abs(ours.stat().st_size - stock.stat().st_size) < 10_000


def test_what_is_written_is_the_end_of_the_epoch_though_training_goes_on(bench, scripted) -> None:
    trainer = bench.trainer(scripted([0.5]), epochs=2, iterations=2, val_iterations=1, checkpoint_minutes=0)
    weights = {}
    start_of_epoch = trainer.on_epoch_start

    def remember() -> None:
        weights[trainer.current_epoch] = {k: v.clone() for k, v in trainer.network.state_dict().items()}
        start_of_epoch()

    trainer.on_epoch_start = remember
    trainer.run_training()
    assert same(dict(load(bench.folder / "checkpoint_best.pth")["network_weights"]), weights[1])


def test_latest_is_saved_as_often_as_asked_and_not_more(bench, scripted) -> None:
    falling = [0.5 - 0.01 * epoch for epoch in range(9)]
    bench.train(scripted(falling), epochs=4, checkpoint_minutes=0, target="none")
    assert previous_of(bench.folder / "checkpoint_latest.pth").exists()
    shutil.rmtree(bench.folder)
    bench.train(scripted(falling), epochs=4, checkpoint_minutes=15)
    assert not previous_of(bench.folder / "checkpoint_latest.pth").exists()


def test_the_generation_before_is_kept_whole(bench, scripted) -> None:
    trainer = bench.trainer(scripted([0.1, 0.2, 0.3]), epochs=3, iterations=2, val_iterations=1)
    trainer.run_training()
    assert bench.facts("best").current_epoch == 3
    previous = previous_of(bench.folder / "checkpoint_best.pth")
    assert whole(previous) is None
    assert load(previous)["current_epoch"] == 2


def test_a_worse_file_never_replaces_a_better_best_after_a_resume(bench, scripted) -> None:
    bench.train(scripted([0.5]), epochs=9, iterations=2, max_hours=1e-9)  # one epoch: final at 1
    bench.train(scripted([0.5, 0.9, 0.9]), resume="final", epochs=9, max_hours="none", target=0.55)
    best = bench.facts("best")
    assert best.current_epoch == 3
    shutil.copy(previous_of(bench.folder / "checkpoint_final.pth"), bench.folder / "checkpoint_latest.pth")
    trainer, _ = bench.train(scripted([0.5, 0.51, 0.52]), resume="latest", max_hours="none", target=0.5, min_epochs=3)
    assert trainer.current_epoch == 3
    assert bench.facts("best") == best
    assert bench.facts("final").best_ema == best.best_ema


def test_a_full_disk_is_reported_the_old_file_stays_and_the_next_epoch_saves_again(
    bench, scripted, monkeypatch
) -> None:
    from nnunet_ext.trainers import safe_checkpoint

    save, calls = safe_checkpoint.torch.save, []

    def full_at_first(content, path, *args, **kwargs) -> None:
        calls.append(path)
        if len(calls) in (3, 4):
            raise OSError(28, "No space left on device")
        save(content, path, *args, **kwargs)

    monkeypatch.setattr(safe_checkpoint.torch, "save", full_at_first)
    bench.train(scripted([0.1, 0.2, 0.3, 0.4]), epochs=4, checkpoint_minutes=0)
    assert len(bench.events("save_failed")) == 2
    assert "No space left" in bench.events("save_failed")[0]["trouble"]
    assert bench.facts("best").current_epoch == 4
    assert not list((bench.folder / ".nnx" / "writing").iterdir())


def test_the_last_save_of_a_training_raises_what_went_wrong(bench, scripted, monkeypatch) -> None:
    from nnunet_ext.trainers import safe_checkpoint

    save = safe_checkpoint.torch.save

    def no_final(content, path, *args, **kwargs) -> None:
        if "final" in str(path):
            raise OSError(28, "No space left on device")
        save(content, path, *args, **kwargs)

    monkeypatch.setattr(safe_checkpoint.torch, "save", no_final)
    with pytest.raises(OSError, match="No space left"):
        bench.train(scripted([0.1]), epochs=2, checkpoint_minutes=0)
    assert bench.facts("latest").current_epoch == 2
    assert whole(bench.folder / "checkpoint_latest.pth") is None


def test_a_checkpoint_with_one_entry_too_many_resumes_without_an_index_error(bench, scripted) -> None:
    import torch

    bench.train(scripted([0.5]), epochs=9, max_hours=1e-9)
    path = bench.folder / "checkpoint_final.pth"
    broken = load(path)
    for values in broken["logging"].values():
        values.append(values[-1])
    torch.save(broken, path)
    trainer, _ = bench.train(scripted([0.5]), resume="final", epochs=3, max_hours="none", allow_lr_jump="yes")
    assert trainer.current_epoch == 3
    assert bench.facts("final").inconsistency() is None


def test_a_checkpoint_that_counts_an_epoch_that_never_was_goes_on_at_its_history(bench, scripted) -> None:
    import torch

    bench.train(scripted([0.5]), epochs=3)
    path = bench.folder / "checkpoint_final.pth"
    broken = load(path)
    broken["current_epoch"] = 9
    torch.save(broken, path)
    assert bench.trainer(scripted([0.5]), resume="final").current_epoch == 3


def test_what_a_trainer_class_logs_more_rarely_does_not_rewind_the_run(bench, scripted) -> None:
    import torch

    bench.train(scripted([0.5]), epochs=3)
    path = bench.folder / "checkpoint_final.pth"
    more = load(path)
    more["logging"]["seldom"] = [1.0]
    torch.save(more, path)
    trainer = bench.trainer(scripted([0.5]), resume="final")
    assert trainer.current_epoch == 3
    assert trainer.logger.get_checkpoint()["seldom"] == [1.0]


def test_disabled_checkpointing_stays_disabled(bench, scripted) -> None:
    trainer = bench.trainer(scripted([0.5]), epochs=1, iterations=2, val_iterations=1)
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert not list(bench.folder.glob("*.pth"))


def test_a_trainer_that_saves_more_keeps_what_it_adds(bench) -> None:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_ext.trainers.extend import extend

    class Adds(nnUNetTrainer):
        def save_checkpoint(self, filename: str) -> None:
            torch.save({"beside": True}, filename + ".extra")
            super().save_checkpoint(filename)

    bench.train(extend(Adds), epochs=1)
    assert load(bench.folder / "checkpoint_final.pth.extra") == {"beside": True}
    assert bench.facts("final").current_epoch == 1
