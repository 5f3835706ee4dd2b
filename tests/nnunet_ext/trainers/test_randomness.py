from __future__ import annotations

import pytest

pytestmark = [pytest.mark.nnunet, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("dice", [[0.3, 0.4, 0.5, 0.6], [0.6, 0.5, 0.4, 0.3]], ids=["new bests", "no new best"])
def test_a_paused_and_resumed_training_is_bit_equal_to_one_that_never_stopped(bench, scripted, dice) -> None:
    import torch

    def weights(trainer):
        return {name: value.clone() for name, value in trainer.network.state_dict().items()}

    cls = scripted(dice)
    straight, _ = bench.train(cls, epochs=4, seed=7, iterations=3, val_iterations=2)
    expected, history = weights(straight), bench.facts("final").logging
    bench.folder.rename(bench.folder.with_name("straight"))

    half = bench.trainer(cls, epochs=4, seed=7, iterations=3, val_iterations=2)
    after_epoch = half.on_epoch_end

    def pause_after_two() -> None:
        if half.current_epoch == 1:
            bench.control.request_stop("epoch", "pause", "half way", by="me")
        after_epoch()

    half.on_epoch_end = pause_after_two
    with pytest.raises(SystemExit):
        half.run_training()
    assert half.current_epoch == 2
    torch.manual_seed(99)
    resumed, _ = bench.train(cls, resume="latest", epochs=4, iterations=3, val_iterations=2)
    assert resumed.current_epoch == 4
    got = bench.facts("final").logging
    for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
        assert got[key] == history[key], key
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    momentum = [state["momentum_buffer"] for state in resumed.optimizer.state.values()]
    assert all(map(torch.equal, momentum, [state["momentum_buffer"] for state in straight.optimizer.state.values()]))


def test_another_seed_is_another_training(bench) -> None:
    bench.train(epochs=1, seed=7)
    one = bench.facts("final").logging["train_losses"]
    bench.train(epochs=1, seed=8)
    assert bench.facts("final").logging["train_losses"] != one


def test_the_states_are_plain_values_that_load_without_nnx(bench) -> None:
    bench.train(epochs=1, seed=7)
    checkpoint = bench.facts("final")
    assert checkpoint.foreign == ()
    assert set(checkpoint.init_args["nnx"]["random"]) == {"python", "numpy", "torch", "cuda"}
