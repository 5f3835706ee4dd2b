from __future__ import annotations

import math

import pytest

from nnunet_ext.errors import Exit

pytestmark = [pytest.mark.nnunet, pytest.mark.filterwarnings("default")]


def test_training_stops_at_the_first_epoch_whose_ema_reaches_the_target_and_writes_final(bench, scripted) -> None:
    trainer, _ = bench.train(scripted([0.5, 0.5, 0.9, 0.9, 0.9, 0.9]), epochs=9, target=0.57)
    # E: 0.5, 0.5, 0.54, 0.576
    assert trainer.current_epoch == 4
    final = bench.facts("final")
    assert (final.current_epoch, final.inconsistency()) == (4, None)
    assert final.init_args["nnx"]["stopped"]["kind"] == "target"
    assert not (bench.folder / "checkpoint_latest.pth").exists()
    stopped = bench.events("stopped")[-1]
    assert (stopped["action"], stopped["epoch"], stopped["exit_code"]) == ("finish", 3, Exit.TARGET)
    assert stopped["numbers"]["ema"] == pytest.approx(0.576, abs=1e-6)


def test_the_process_ends_with_the_stops_code_after_validation(bench, scripted, monkeypatch) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    validated = []
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, npz=False: validated.append(npz))
    trainer, code = bench.train(scripted([0.9]), epochs=9, target=0.5)
    assert code == 0
    with pytest.raises(SystemExit) as left:
        trainer.perform_actual_validation(True)
    assert (left.value.code, validated) == (Exit.TARGET, [True])


def test_a_resume_does_not_train_on_and_a_raised_target_does(bench, scripted) -> None:
    cls = scripted([0.5])
    bench.train(cls, epochs=9, target=0.5)
    trainer, _ = bench.train(cls, resume="final")  # no word of a target: the run remembers its own
    assert (trainer.current_epoch, bench.facts("final").current_epoch) == (1, 1)
    assert trainer.dataloader_train is None
    trainer, _ = bench.train(scripted([0.5, 0.9]), resume="final", target=0.53)
    assert trainer.current_epoch == 2
    assert "stopped" in bench.facts("final").init_args["nnx"]


def test_a_target_switched_off_lets_the_run_go_to_its_last_epoch(bench, scripted) -> None:
    bench.train(scripted([0.5]), epochs=3, target=0.5)
    trainer, _ = bench.train(scripted([0.5]), resume="final", target="none")
    assert trainer.current_epoch == 3
    assert "stopped" not in bench.facts("final").init_args["nnx"]


def test_a_plateau_stops_after_patience(bench, scripted) -> None:
    trainer, _ = bench.train(scripted([0.5, 0.6, 0.5]), epochs=20, patience=3)
    # E: 0.5, 0.51, 0.509, ...: the last improvement is epoch 1
    assert trainer.current_epoch == 5
    assert bench.events("stopped")[-1]["exit_code"] == Exit.PLATEAU


def test_min_epochs_delays_the_target(bench, scripted) -> None:
    trainer, _ = bench.train(scripted([0.9]), epochs=9, target=0.5, min_epochs=3)
    assert trainer.current_epoch == 3


def test_a_budget_of_hours_finishes(bench, scripted) -> None:
    trainer, _ = bench.train(scripted([0.5]), epochs=9, max_hours=1e-9)
    assert trainer.current_epoch == 1
    assert bench.events("stopped")[-1]["exit_code"] == Exit.BUDGET


def test_nan_losses_stop_and_leave_the_last_good_checkpoint(bench, scripted) -> None:
    import torch

    cls = scripted([0.5, 0.6], [0.5, 0.4, math.nan])
    trainer = bench.trainer(cls, epochs=9, iterations=2, val_iterations=1)
    after_steps = trainer.on_train_epoch_end

    def spoil_the_weights(steps) -> None:
        after_steps(steps)
        if trainer.current_epoch == 2:
            with torch.no_grad():
                next(trainer.network.parameters()).fill_(math.nan)

    trainer.on_train_epoch_end = spoil_the_weights
    with pytest.raises(SystemExit) as left:
        trainer.run_training()
    assert (left.value.code, trainer.current_epoch) == (Exit.NAN, 4)
    assert bench.facts("latest").current_epoch == 2
    assert not (bench.folder / "checkpoint_final.pth").exists()


def test_weights_that_survived_nan_losses_are_kept(bench, scripted) -> None:
    _, code = bench.train(scripted([0.5, 0.6], [0.5, 0.4, math.nan]), epochs=9)
    assert (code, bench.facts("latest").current_epoch) == (Exit.NAN, 4)


def test_a_cooldown_anneals_the_learning_rate_and_then_finishes(bench, scripted) -> None:
    trainer, _ = bench.train(scripted([0.1, 0.9, 0.1]), epochs=100, target=0.17, cooldown=3)
    # E: 0.1, 0.18 (reached), then below the target again: the cooldown goes on to its end all the same
    assert trainer.current_epoch == 5
    rates = bench.facts("final").logging["lrs"]
    assert rates[2] == pytest.approx(rates[1])
    assert rates[3] == pytest.approx(rates[1] * (2 / 3) ** 0.9)
    assert rates[4] == pytest.approx(rates[1] * (1 / 3) ** 0.9)
    stopped = bench.events("stopped")[-1]
    assert stopped["exit_code"] == Exit.TARGET
    assert "cooled down for 3 epochs" in stopped["reason"]


def test_a_cooldown_survives_a_pause(bench, scripted) -> None:
    cls = scripted([0.5])
    paused = bench.trainer(cls, epochs=100, iterations=2, val_iterations=1, target=0.4, cooldown=4)
    bench.control.identify(bench.run)
    end_of_epoch = paused.on_epoch_end

    def ask_to_pause() -> None:
        if paused.current_epoch == 1:
            bench.control.request_stop("epoch", "pause", "test", by="me")
        end_of_epoch()

    paused.on_epoch_end = ask_to_pause
    with pytest.raises(SystemExit):
        paused.run_training()
    assert paused.current_epoch == 2
    trainer, _ = bench.train(cls, resume="latest")
    rates = bench.facts("final").logging["lrs"]
    assert trainer.current_epoch == 5
    assert [rate / rates[0] for rate in rates[1:]] == pytest.approx([(1 - k / 4) ** 0.9 for k in range(4)])


def test_early_stopping_alone_stops_a_trainer_that_has_no_other_power(bench) -> None:
    from nnunet_ext.trainers.classes import nnUNetTrainerEMAStop

    class Short(nnUNetTrainerEMAStop):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 1

    trainer, _ = bench.train(Short, target=1e-9, min_epochs=2)
    assert trainer.current_epoch == 2
    assert bench.facts("final").current_epoch == 2
