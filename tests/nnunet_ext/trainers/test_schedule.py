from __future__ import annotations

import pytest

from nnunet_ext.errors import Refused

pytestmark = [pytest.mark.nnunet, pytest.mark.filterwarnings("default")]


def test_epochs_and_iterations_are_set_before_the_learning_rate_schedule_is_built(bench) -> None:
    trainer, _ = bench.train(epochs=4, iterations=3, val_iterations=2)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (4, 3, 2)
    rates = bench.facts("final").logging["lrs"]
    assert rates == pytest.approx([0.01 * (1 - epoch / 4) ** 0.9 for epoch in range(4)])


def test_a_resumed_run_keeps_the_schedule_it_was_started_with(bench, scripted) -> None:
    bench.train(scripted([0.5]), epochs=5, target=0.5, min_epochs=2)
    trainer, _ = bench.train(scripted([0.5]), resume="final", target="none")
    assert (trainer.num_epochs, trainer.current_epoch) == (5, 5)


def test_another_number_of_epochs_is_refused_with_both_learning_rates(bench, scripted) -> None:
    cls = scripted([0.5])
    bench.train(cls, epochs=100, target=0.5, min_epochs=3)
    before = bench.facts("final")
    with pytest.raises(Refused) as refused:
        bench.train(cls, resume="final", epochs=6, target="none")
    was, would_be = 0.01 * (1 - 2 / 100) ** 0.9, 0.01 * (1 - 2 / 6) ** 0.9
    assert f"{was:.6g}" in refused.value.sentence
    assert f"{would_be:.6g}" in refused.value.sentence
    assert "--epochs 100" in refused.value.hint
    assert "--allow-lr-jump" in refused.value.hint
    assert bench.facts("final") == before


def test_a_jump_that_is_allowed_is_made(bench, scripted) -> None:
    cls = scripted([0.5])
    bench.train(cls, epochs=100, target=0.5, min_epochs=3)
    trainer, _ = bench.train(cls, resume="final", epochs=5, target="none", allow_lr_jump="yes")
    assert trainer.current_epoch == 5
    assert bench.facts("final").logging["lrs"][3] == pytest.approx(0.01 * (1 - 3 / 5) ** 0.9)


def test_a_stock_checkpoint_of_another_schedule_is_refused_by_its_learning_rates(bench) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Stock(nnUNetTrainer):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 3, 2, 1

    Stock.__name__ = "nnUNetTrainer"
    bench.train(Stock)
    assert "nnx" not in bench.facts("final").init_args
    with pytest.raises(Refused, match="9 epochs it would have been"):
        bench.train(resume="final", epochs=9)
