"""What a History promises: the same rows and the same EMA from a checkpoint and from a log, cut or damaged."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ext.errors import Damaged
from nnunet_ext.history import EMA_TOLERANCE, Epoch, History

EXCERPTS = Path(__file__).parents[1] / "data" / "logs"
REAL = Path(__file__).parents[3] / "shared" / "data" / "logs"
PROPERTY = settings(database=None, deadline=None, max_examples=200)

NUMBER = r"[-+]?(?:nan|inf|\d[\d.]*(?:e[-+]?\d+)?)"
LINES = {
    "learning_rate": rf"Current learning rate: ({NUMBER})",
    "train_loss": rf"train_loss ({NUMBER})",
    "val_loss": rf"val_loss ({NUMBER})",
    "duration_s": rf"Epoch time: ({NUMBER}) s",
    "nnunet_ema": rf".*New best EMA pseudo Dice: ({NUMBER})",
}


def test_the_ema_is_nnunets() -> None:
    history = History.of(dice_rows(0.5, 0.7, 0.1))
    assert history.ema == (0.5, 0.5 * 0.9 + 0.1 * 0.7, (0.5 * 0.9 + 0.1 * 0.7) * 0.9 + 0.1 * 0.1)


def test_a_class_that_is_nan_is_left_out_of_the_mean() -> None:
    assert Epoch(0, pseudo_dice=(0.2, math.nan, 0.6)).mean_pseudo_dice == pytest.approx(0.4)


def test_an_empty_history_knows_nothing() -> None:
    history = History()
    assert (history.last, history.completed_epochs, history.duration_s) == (None, 0, 0)
    assert (history.best_ema, history.best_epoch, history.poisoned_at) == (None, None, None)
    assert (history.ema, history.known_ema, history.known_worst_class_ema) == ((), (), ())


def test_a_repeated_epoch_drops_itself_and_every_later_one() -> None:
    again = Epoch(2, mean_pseudo_dice=0.9)
    history = History.of([*dice_rows(0.1, 0.2, 0.3, 0.4), again])
    assert [row.mean_pseudo_dice for row in history.rows] == [0.1, 0.2, 0.9]
    assert history.last == again
    assert history == History.of(dice_rows(0.1, 0.2, 0.3, 0.4)).with_epoch(again)


def test_a_restart_at_epoch_0_starts_over() -> None:
    assert History.of([*dice_rows(0.1, 0.2, 0.3), *dice_rows(0.7)]).ema == (0.7,)


def test_the_best_epoch_is_the_first_with_the_highest_ema() -> None:
    history = History.of(dice_rows(0.5, 1.0, 0.2, 0.2))
    assert (history.best_epoch, history.best_ema) == (1, history.ema[1])
    assert History.of(dice_rows(0.5, 0.5, 0.5)).best_epoch == 0


def test_one_all_nan_epoch_poisons_nnunets_ema_but_not_ours() -> None:
    rows = [Epoch(0, pseudo_dice=(0.5,)), Epoch(1, pseudo_dice=(math.nan,)), Epoch(2, pseudo_dice=(0.6,))]
    history = History.of(rows)
    assert history.poisoned_at == 1
    assert history.ema == (0.5, 0.5, 0.5 * 0.9 + 0.1 * 0.6)
    assert history.known_ema == (0.5, None, history.ema[2])


def test_a_resume_from_before_the_poisoned_epoch_heals() -> None:
    history = History.of([*dice_rows(0.5, math.nan, 0.6), Epoch(1, mean_pseudo_dice=0.5)])
    assert history.poisoned_at is None


@pytest.mark.parametrize("no_dice", [math.inf, 220.6748, -1000.154])
def test_a_pseudo_dice_outside_0_to_1_is_skipped(no_dice: float) -> None:
    assert History.of(dice_rows(0.5, no_dice, 0.5)).ema == (0.5, 0.5, 0.5)


def test_the_ema_of_a_class_skips_the_epochs_without_it() -> None:
    rows = [Epoch(index, pseudo_dice=(0.8, dice)) for index, dice in enumerate((math.nan, 0.2, math.nan, 0.4))]
    history = History.of(rows)
    assert history.known_class_ema(1) == (None, 0.2, None, pytest.approx(0.22))
    assert history.known_worst_class_ema == (None, 0.2, 0.2, pytest.approx(0.22))
    assert history.known_class_ema(7) == (None,) * 4


def test_a_gap_is_not_known_until_the_lost_epoch_no_longer_matters() -> None:
    history = History.of(row for row in dice_rows(*[0.5] * 100) if row.index != 10)
    unknown = [row.index for row, ema in zip(history.rows, history.known_ema, strict=True) if ema is None]
    assert unknown == list(range(11, 76))
    assert (len(history.rows), history.completed_epochs) == (99, 100)


def test_many_lost_epochs_matter_longer() -> None:
    history = History.of(row for row in dice_rows(*[0.5] * 200) if row.index not in range(50, 60))
    unknown = [row.index for row, ema in zip(history.rows, history.known_ema, strict=True) if ema is None]
    assert unknown == list(range(60, 143))


def test_the_ema_stays_unrounded_where_a_printed_best_agrees() -> None:
    rows = [Epoch(0, mean_pseudo_dice=0.79996, nnunet_ema=0.8), Epoch(1, mean_pseudo_dice=0.79996)]
    assert History.of(rows).ema[0] == 0.79996


def test_a_log_that_begins_in_the_middle_is_not_known_for_88_epochs() -> None:
    history = History.of(dice_rows(*[0.5] * 200)[50:])
    assert [ema is None for ema in history.known_ema] == [True] * 87 + [False] * 63


def test_a_printed_best_ends_a_gap() -> None:
    rows = [Epoch(0, mean_pseudo_dice=0.5), Epoch(7, mean_pseudo_dice=0.8, nnunet_ema=0.6), *dice_rows(*[0.6] * 9)[8:]]
    assert History.of(rows).known_ema == (0.5, 0.6, pytest.approx(0.6))


def test_a_damaged_dice_line_is_a_gap() -> None:
    history = History.of([Epoch(0, mean_pseudo_dice=0.5), Epoch(1, train_loss=0.1), Epoch(2, mean_pseudo_dice=0.5)])
    assert history.known_ema == (0.5, None, None)
    assert history.ema == (0.5, 0.5, 0.5)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=200), st.data())
@PROPERTY
def test_a_known_ema_is_right_whatever_rows_are_lost(dice: list[float], data: st.DataObject) -> None:
    true = History.of(dice_rows(*dice)).ema
    kept = data.draw(st.sets(st.sampled_from(range(len(dice)))))
    history = History.of(row for row in dice_rows(*dice) if row.index in kept)
    for row, ema in zip(history.rows, history.known_ema, strict=True):
        assert ema is None or abs(ema - true[row.index]) <= EMA_TOLERANCE


per_class = st.one_of(st.floats(0, 1), st.just(math.nan))


@given(st.lists(st.tuples(per_class, per_class), min_size=1, max_size=60))
@PROPERTY
def test_a_checkpoint_and_a_log_of_one_training_tell_the_same(classes: list[tuple[float, float]]) -> None:
    stored = History.from_logging(logging_of(classes))
    printed = History.of(as_printed(stored))
    assert printed.completed_epochs == stored.completed_epochs
    assert printed.poisoned_at == stored.poisoned_at
    assert [ema is None for ema in printed.known_ema] == [ema is None for ema in stored.known_ema]
    for ours, theirs in zip(printed.ema, stored.ema, strict=True):
        assert ours == theirs or abs(ours - theirs) <= EMA_TOLERANCE


def test_a_partial_epoch_in_a_checkpoint_is_dropped() -> None:
    logging = logging_of([(0.5, 0.5), (0.6, 0.6)])
    for key in ("epoch_start_timestamps", "lrs", "train_losses"):
        logging[key].append(0.01)
    assert History.from_logging(logging).completed_epochs == 2


def test_an_epoch_whose_end_is_not_logged_yet_counts_without_a_duration() -> None:
    logging = logging_of([(0.5, 0.5), (0.6, 0.6)])
    logging["epoch_end_timestamps"].pop()
    history = History.from_logging(logging)
    assert [row.duration_s for row in history.rows] == [90.0, None]
    assert history.duration_s == 90.0


def test_a_logging_that_holds_no_numbers_is_damaged() -> None:
    logging = logging_of([(0.5, 0.5)])
    logging["val_losses"][0] = "seven"
    with pytest.raises(Damaged, match=r"'seven'.*val_losses"):
        History.from_logging(logging)


def test_an_empty_logging_is_an_empty_history() -> None:
    assert History.from_logging({}) == History()


@pytest.mark.nnunet
@pytest.mark.filterwarnings("ignore")
def test_the_logging_of_nnunets_own_logger_is_read_and_its_ema_rebuilt(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    logger_module = pytest.importorskip("nnunetv2.training.logging.nnunet_logger")
    logger, draw = logger_module.MetaLogger(tmp_path, False), np.random.default_rng(7)
    for epoch in range(1000):
        classes = list(draw.uniform(0, 1, 3).astype(np.float32))
        logger.log("epoch_start_timestamps", 100.0 * epoch, epoch)
        logger.log("lrs", 0.01, epoch)
        logger.log("train_losses", np.float32(-0.5), epoch)
        logger.log("mean_fg_dice", np.nanmean(classes), epoch)
        logger.log("dice_per_class_or_region", classes, epoch)
        logger.log("val_losses", np.float32(-0.5), epoch)
        logger.log("epoch_end_timestamps", 100.0 * epoch + 90, epoch)
    history = History.from_logging(logger.get_checkpoint())
    assert history.completed_epochs == 1000
    assert all(type(row.val_loss) is float for row in history.rows)
    theirs = [float(ema) for ema in logger.get_value("ema_fg_dice", None)]
    assert max(abs(a - b) for a, b in zip(history.ema, theirs, strict=True)) < 2e-6  # float32 with numpy 2


@pytest.mark.parametrize("name", ["np1_nnunet-2.0_first_12_epochs", "np2_nnunet-2.5_fork_console"])
def test_the_ema_of_a_log_agrees_with_every_printed_best(name: str) -> None:
    history = History.of(read_log(EXCERPTS / f"{name}.txt"))
    assert history.completed_epochs == len(history.rows) > 5
    assert 0 < rebuild_deviation(history) <= EMA_TOLERANCE


def test_lost_lines_are_healed_by_the_next_printed_best() -> None:
    history = History.of(read_log(EXCERPTS / "np2_nnunet-2.6_lines_of_epoch_13_lost.txt"))
    assert 13 not in [row.index for row in history.rows]
    assert rebuild_deviation(history) > 0.02
    assert history.ema[12] == pytest.approx(0.3788)
    assert None not in history.known_ema
    assert told_deviation(history) <= EMA_TOLERANCE


def test_a_log_that_begins_at_epoch_330_is_known_from_its_first_printed_best() -> None:
    history = History.of(read_log(EXCERPTS / "np1_nnunet-2.6_begins_at_epoch_330.txt"))
    assert history.rows[0].index == 330
    assert history.completed_epochs == 335
    assert None not in history.known_ema
    assert history.ema[0] == 0.8653
    assert told_deviation(history) <= EMA_TOLERANCE


def test_a_log_with_a_nan_class_and_nan_losses_is_read_as_it_is() -> None:
    (row,) = History.of(read_log(EXCERPTS / "np1_nnunet-2.5_nan_class_and_nan_loss.txt")).rows
    assert row.train_loss is not None
    assert math.isnan(row.train_loss)
    assert row.mean_pseudo_dice == 0.0


def test_a_region_based_log_with_impossible_dice_has_no_ema() -> None:
    history = History.of(read_log(EXCERPTS / "np1_nnunet-2.x_region_dice_out_of_range.txt"))
    assert history.ema == (None, None)


WHOLE_LOGS = {
    "01_hippocampus_zzl120_1000ep_resumed/fold_0/training_log_*.txt": 1000,
    "02_hippocampus_zzl120_50ep_5folds/fold_1/training_log_*.txt": 50,
    "04_msd_liver_woshashishi_1000ep/LIVER_A_F0_BASELINE_001/*.log": 1000,
    "05_kits23_anhtuduong_100ep/fold_0/training_log_*.txt": 100,
    "10_kits23_mohamedaazir_10ep/training_log_*.txt": 10,
    "12_dmiclab_dataset019_addedart_cropped_2d/fold_0/training_log_*.txt": 1000,
    "15_dmiclab_dataset026_4dct_copd_3d_fullres/fold_0/training_log_*.txt": 1000,
    "19_icekang_oct_dataset310_150ep_5folds_np2_console/*fold3*.out": 150,
    "23_wooddefects_atoliver_resencL_slurm_resumed/nnunet-train_[67][947][352].log": 1000,  # 693 745 792
}


@pytest.mark.parametrize("pattern", WHOLE_LOGS)
def test_whole_real_logs_and_resume_chains_give_every_printed_best(pattern: str) -> None:
    files = sorted(REAL.glob(pattern), key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])
    if not files:
        pytest.skip("the real logs are not here")
    history = History.of(epoch for file in files for epoch in read_log(file))
    assert [row.index for row in history.rows] == list(range(WHOLE_LOGS[pattern]))
    assert None not in history.known_ema
    assert rebuild_deviation(history) <= EMA_TOLERANCE


def test_the_stored_ema_of_whole_real_trainings_is_rebuilt_exactly() -> None:
    files = sorted(REAL.glob("40_autonnunet_msd_progress_csv/conv/*/fold_0_progress.csv"))
    if not files:
        pytest.skip("the real curves are not here")
    for file in files:
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        logging = {key: [float(row[key]) for row in rows] for key in logging_of([]) if "per_class" not in key}
        classes = [re.findall(NUMBER, row["dice_per_class_or_region"]) for row in rows]
        history = History.from_logging({**logging, "dice_per_class_or_region": classes})
        assert history.completed_epochs == 1000
        assert max(abs(a - b) for a, b in zip(history.ema, logging["ema_fg_dice"], strict=True)) <= 1e-12


def dice_rows(*dice: float) -> list[Epoch]:
    return [Epoch(index, mean_pseudo_dice=value) for index, value in enumerate(dice)]


def logging_of(classes: list[tuple[float, float]]) -> dict[str, list]:
    """The `logging` that nnU-Net would store for these pseudo Dice."""
    means = [Epoch(0, pseudo_dice=values).mean_pseudo_dice for values in classes]
    emas: list[float] = []
    for mean in means:
        emas.append(emas[-1] * 0.9 + 0.1 * mean if emas else mean)
    return {
        "mean_fg_dice": means,
        "ema_fg_dice": emas,
        "dice_per_class_or_region": [list(values) for values in classes],
        "train_losses": [-0.5] * len(classes),
        "val_losses": [-0.4] * len(classes),
        "lrs": [0.01] * len(classes),
        "epoch_start_timestamps": [100.0 * at for at in range(len(classes))],
        "epoch_end_timestamps": [100.0 * at + 90 for at in range(len(classes))],
    }


def as_printed(stored: History) -> Iterator[Epoch]:
    """The same epochs as nnU-Net prints them: four decimals, and the EMA for new bests only."""
    best = None
    for row in stored.rows:
        is_best = best is None or row.nnunet_ema > best
        best = row.nnunet_ema if is_best else best
        told = round(best, 4) if is_best else None
        yield Epoch(row.index, pseudo_dice=tuple(round(d, 4) for d in row.pseudo_dice), nnunet_ema=told)


def rebuild_deviation(history: History) -> float:
    """How far the bare formula over the rows is from what nnU-Net printed."""
    bare = History(tuple(Epoch(row.index, mean_pseudo_dice=row.mean_pseudo_dice) for row in history.rows))
    told = zip(bare.ema, history.rows, strict=True)
    return max(abs(ema - row.nnunet_ema) for ema, row in told if row.nnunet_ema is not None)


def told_deviation(history: History) -> float:
    told = zip(history.ema, history.rows, strict=True)
    return max(abs(ema - row.nnunet_ema) for ema, row in told if row.nnunet_ema is not None)


def read_log(file: Path) -> Iterator[Epoch]:
    """Just enough of a reader for undamaged lines."""
    facts: dict = {}
    for line in [*file.read_text(errors="replace").splitlines(), "2000-01-01 00:00:00.0: Epoch 0"]:
        stamped = re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+): (.*?)\s*$", line)
        if stamped is None:
            continue
        time, text = datetime.fromisoformat(stamped[1].ljust(26, "0")), stamped[2]
        if header := re.fullmatch(r"Epoch (\d+)", text):
            if "pseudo_dice" in facts:
                yield Epoch(**facts)
            facts = {"index": int(header[1]), "started_at": time.replace(tzinfo=timezone.utc).timestamp()}
        elif text.startswith("Pseudo dice ["):
            facts["pseudo_dice"] = tuple(map(float, re.findall(NUMBER, re.sub(r"np\.float\d+", "", text))))
        for name, pattern in LINES.items():
            if found := re.match(pattern, text):
                facts[name] = float(found[1])
