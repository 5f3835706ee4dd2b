from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.nnunet, pytest.mark.filterwarnings("default")]


def test_every_epoch_leaves_a_line_with_its_figures(bench) -> None:
    bench.train(epochs=2, iterations=3)
    lines = bench.events("epoch")
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        assert line["steps"] == 3
        assert 0 < line["step_s"] < 60
        assert 0 <= line["data_wait_s"] < 60
        assert line["cleanups"] == 1
        assert line["ram_peak_bytes"] > 100 * 2**20


def test_waiting_for_data_is_told_apart_from_the_step(bench) -> None:
    trainer = bench.trainer(epochs=1, iterations=3, val_iterations=1)
    trainer.on_train_start()
    loader, trainer.on_train_start = trainer.dataloader_train, lambda: None

    class Slow:
        def __next__(self):
            time.sleep(0.4)
            return next(loader)

    trainer.dataloader_train = Slow()
    trainer.run_training()
    assert bench.events("epoch")[0]["data_wait_s"] >= 1.2


def test_a_forced_clean_up_happens_as_often_as_asked_and_its_cost_is_told(bench) -> None:
    bench.train(epochs=1, iterations=6, cleanup_every=2)
    line = bench.events("epoch")[0]
    assert line["cleanups"] == 4
    assert line["cleanup_s"] > 0


def test_passing_the_limit_is_warned_about_once_with_numbers(bench) -> None:
    trainer, _ = bench.train(epochs=2, memory_limit=1e-6)
    text = Path(trainer.log_file).read_text()
    assert text.count("WARNING: RAM use peaked at") == 1
    assert "the limit is 0%" in text


def test_memory_of_workers_counts_and_what_they_share_counts_once() -> None:
    from nnunet_ext.trainers.memory import ram_in_use

    shared = bytearray(b"x" * 200 * 2**20)
    before = ram_in_use()
    ready, done = multiprocessing.Event(), multiprocessing.Event()

    def work() -> None:
        own = bytearray(b"y" * 100 * 2**20)
        ready.set()
        done.wait(30)
        assert len(own) + len(shared)

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    assert ready.wait(30)
    grown = ram_in_use() - before
    done.set()
    worker.join()
    assert 90 * 2**20 < grown < 200 * 2**20


def test_memory_care_alone_works_over_the_stock_trainer(bench) -> None:
    from nnunet_ext.trainers.classes import nnUNetTrainerMemoryCare

    class Short(nnUNetTrainerMemoryCare):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1

    bench.train(Short)
    assert len(bench.events("epoch")) == 1
    assert "nnx" not in bench.facts("final").init_args
