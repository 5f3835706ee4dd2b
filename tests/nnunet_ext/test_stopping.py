"""When a training stops, and never before: each rule alone, their order, and any history however it was cut."""

from __future__ import annotations

import csv
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ext.errors import Exit, Usage
from nnunet_ext.history import Epoch, History
from nnunet_ext.stopping import Policy, first_stop, verdict

REAL = Path(__file__).parents[3] / "shared" / "data" / "logs"
PROPERTY = settings(database=None, deadline=None, max_examples=200)


def test_nothing_asks_to_stop_by_default() -> None:
    found = verdict(constant(0.9, 300), Policy(), num_epochs=1000)
    assert (found.stop, found.kind, found.epoch, found.exit_code) == (False, None, 299, Exit.DONE)
    assert found.reason == "nothing asks to stop after epoch 299 of 1000"


def test_an_empty_history_stops_only_on_a_request_or_the_clock() -> None:
    policy = Policy(target=0.1, patience=1, max_hours=0.001, max_epochs=1, until=1000)
    assert not verdict(History(), policy).stop
    assert verdict(History(), policy, request="enough").kind == "request"
    assert verdict(History(), policy, now=1000).kind == "budget"
    assert first_stop(History(), policy) is None


def test_the_target_is_reached_with_every_number_in_the_reason() -> None:
    found = verdict(constant(0.85, 5), Policy(target=0.8, margin=0.04, hold=2), num_epochs=100)
    assert (found.stop, found.kind, found.epoch, found.exit_code) == (True, "target", 4, Exit.TARGET)
    assert found.numbers == {"ema": 0.85, "target": 0.8, "margin": 0.04, "held": 5, "hold": 2}
    for number in ("0.8500", "0.8", "0.04", "row: 5", "asked for: 2", "epoch 4 of 100"):
        assert number in found.reason


def test_an_ema_exactly_at_the_target_is_enough() -> None:
    assert verdict(constant(0.5, 1), Policy(target=0.5)).kind == "target"
    assert not verdict(constant(math.nextafter(0.5, 0), 1), Policy(target=0.5)).stop


def test_the_margin_is_kept() -> None:
    assert not verdict(constant(0.84, 3), Policy(target=0.8, margin=0.05)).stop
    assert verdict(constant(0.86, 3), Policy(target=0.8, margin=0.05)).stop


def test_the_target_must_hold_in_a_row() -> None:
    history = History.of(told(0.81, 0.82, 0.79, 0.81, 0.82, 0.83))
    assert first_stop(history, Policy(target=0.8, hold=3)).epoch == 5
    assert first_stop(history, Policy(target=0.8, hold=2)).epoch == 1
    assert first_stop(history, Policy(target=0.8, hold=4)) is None


def test_an_epoch_without_a_dice_neither_reaches_nor_breaks_a_hold() -> None:
    rows = [*told(0.81), Epoch(1), *told(*[0.81] * 3)[2:]]
    assert not verdict(History.of(rows[:2]), Policy(target=0.8)).stop
    assert first_stop(History.of(rows), Policy(target=0.8, hold=2)).epoch == 2


def test_the_target_waits_for_min_epochs() -> None:
    assert first_stop(constant(0.9, 20), Policy(target=0.8, min_epochs=10)).epoch == 9


def test_a_rounded_up_ema_does_not_reach_the_target() -> None:
    assert not verdict(constant(0.79999, 1), Policy(target=0.8)).stop


def test_the_target_of_one_class_and_of_the_worst_class() -> None:
    history = History.of(Epoch(at, pseudo_dice=(0.9, 0.5, math.nan if at % 2 else 0.7)) for at in range(9))
    assert verdict(history, Policy(target=0.8, target_class=0)).numbers["ema"] == pytest.approx(0.9)
    assert "of class 0" in verdict(history, Policy(target=0.8, target_class=0)).reason
    assert not verdict(history, Policy(target=0.51, target_class=1)).stop
    assert not verdict(history, Policy(target=0.51, target_min_class=True)).stop
    assert "worst class" in verdict(history, Policy(target=0.49, target_min_class=True)).reason
    assert verdict(history, Policy(target=0.69)).stop


def test_a_class_that_was_never_measured_never_reaches_a_target() -> None:
    history = History.of(Epoch(at, pseudo_dice=(0.9, math.nan)) for at in range(9))
    for policy in (
        Policy(target=0.1, target_class=1),
        Policy(target=0.1, target_class=2),
        Policy(target=0.1, target_min_class=True),
    ):
        assert first_stop(history, policy) is None


def test_an_estimated_ema_after_a_gap_never_reaches_a_target() -> None:
    rows = [*told(0.5), *told(*[0.99] * 80)[40:]]
    bare = [replace(row, nnunet_ema=None) for row in rows]
    assert first_stop(History.of(bare), Policy(target=0.4), since=1) is None
    assert first_stop(History.of(rows), Policy(target=0.98)).epoch == 40


def test_a_plateau_is_patience_epochs_without_an_improvement() -> None:
    history = History.of(told(*[0.5, 0.6, *[0.6] * 20]))
    found = first_stop(history, Policy(patience=10))
    assert (found.kind, found.epoch, found.exit_code) == ("plateau", 11, Exit.PLATEAU)
    assert (found.numbers["wait"], found.numbers["best_epoch"], found.numbers["best_ema"]) == (10, 1, 0.6)
    for number in ("0.0005", "10 epochs", "patience 10", "0.6000 after epoch 1", "after epoch 11"):
        assert number in found.reason


def test_gains_of_min_delta_or_less_do_not_move_the_reference() -> None:
    emas = [0.5 + 0.0625 * at for at in range(5)]
    assert first_stop(History.of(told(*emas)), Policy(patience=1, min_delta=0.0625)).epoch == 1
    assert first_stop(History.of(told(*emas)), Policy(patience=2, min_delta=0.0625)) is None


def test_the_plateau_starts_waiting_at_min_epochs() -> None:
    assert first_stop(constant(0.5, 99), Policy(patience=5, min_epochs=20)).epoch == 24
    assert first_stop(constant(0.5, 99), Policy(patience=5, plateau_min_epochs=30)).epoch == 34


def test_the_plateau_asked_for_without_numbers_waits_long_and_leaves_the_target_alone() -> None:
    policy = Policy(target=0.7).with_default_plateau(1000)
    assert (policy.patience, policy.min_delta, policy.plateau_min_epochs) == (200, 5e-4, 300)
    assert Policy().with_default_plateau(100).plateau_min_epochs == 200
    assert first_stop(constant(0.7, 600), policy).epoch == 0
    assert first_stop(constant(0.6, 600), policy).epoch == 499
    assert Policy(patience=40, min_epochs=50).with_default_plateau(1000) == Policy(
        patience=40, min_epochs=50, plateau_min_epochs=50
    )


def test_a_single_nan_loss_is_survived_and_two_in_a_row_stop() -> None:
    rows = [Epoch(at, train_loss=-0.5, val_loss=loss) for at, loss in enumerate((0.1, math.nan, 0.1, math.inf))]
    assert first_stop(History.of(rows), Policy()) is None
    found = first_stop(History.of([*rows, Epoch(4, train_loss=math.nan)]), Policy())
    assert (found.kind, found.epoch, found.exit_code) == ("nan", 4, Exit.NAN)
    assert found.numbers == {"nonfinite_epochs": 2, "train_loss": "nan", "val_loss": "not known"}
    assert first_stop(History.of(rows), Policy(nonfinite_epochs=1)).epoch == 1


def test_a_resume_before_the_nan_epochs_trains_on() -> None:
    rows = [Epoch(at, train_loss=math.nan if at > 2 else 0.5) for at in range(5)]
    assert verdict(History.of(rows), Policy()).kind == "nan"
    assert not verdict(History.of([*rows, Epoch(3, train_loss=0.5)]), Policy()).stop


def test_the_budget_of_epochs_counts_completed_epochs() -> None:
    found = first_stop(constant(0.5, 99), Policy(max_epochs=10))
    assert (found.kind, found.epoch, found.exit_code) == ("budget", 9, Exit.BUDGET)
    assert found.numbers == {"epochs": 10, "max_epochs": 10}


def test_hours_are_summed_over_the_epochs_and_pauses_are_free() -> None:
    rows = [Epoch(at, started_at=at * 90_000.0, ended_at=at * 90_000.0 + 1800) for at in range(9)]
    assert first_stop(History.of(rows), Policy(max_hours=2)).epoch == 3
    redone = [*rows[:3], *rows[1:3]]
    assert not verdict(History.of(redone), Policy(max_hours=2)).stop


def test_hours_count_the_epoch_whose_end_is_not_logged_yet() -> None:
    history = History.of([Epoch(0, duration_s=1800), Epoch(1, started_at=5000.0)])
    assert not verdict(history, Policy(max_hours=1)).stop
    assert not verdict(history, Policy(max_hours=1), now=6799).stop
    assert verdict(history, Policy(max_hours=1), now=6800).numbers["hours"] == 1
    ended = History.of([Epoch(0, started_at=0.0, ended_at=1800.0)])
    assert not verdict(ended, Policy(max_hours=1), now=9000).stop


def test_the_clock_is_now_or_the_end_of_the_last_epoch() -> None:
    history = History.of(Epoch(at, ended_at=1_700_000_000.0 + at) for at in range(9))
    policy = Policy(until=1_700_000_005)
    assert first_stop(history, policy).epoch == 5
    assert not verdict(history.before(2), policy, now=1_700_000_004.9).stop
    assert "2023-11-14 22:13:25 UTC" in verdict(history.before(2), policy, now=1_700_000_005).reason


def test_the_first_rule_in_order_decides() -> None:
    rows = [Epoch(at, train_loss=math.nan, mean_pseudo_dice=0.9) for at in range(3)]
    history, sound = History.of(rows), History.of(replace(row, train_loss=0.5) for row in rows)
    policy = Policy(target=0.8, patience=1, max_epochs=1)
    assert verdict(history, policy, request="enough").kind == "nan"
    assert verdict(sound, policy, request="enough").kind == "request"
    assert verdict(sound, policy).kind == "target"
    assert verdict(sound, replace(policy, target=None)).kind == "budget"
    assert verdict(sound, replace(policy, target=None, max_epochs=None)).kind == "plateau"


def test_a_request_gives_its_reason_and_exit_code() -> None:
    found = verdict(constant(0.5, 3), Policy(), request='maintenance at "Zürich"')
    assert (found.exit_code, found.epoch) == (Exit.STOP_REQUESTED, 2)
    assert found.reason == 'a stop was requested (maintenance at "Zürich"), after epoch 2'


def test_first_stop_can_start_later() -> None:
    history = History.of(told(0.9, 0.9, 0.5, 0.5, 0.9))
    assert first_stop(history, Policy(target=0.8), since=2).epoch == 4
    assert first_stop(history, Policy(target=0.8), since=9) is None


@pytest.mark.parametrize(
    ("values", "sentence", "hint"),
    [
        ({"target": 70}, "the target 70 ", "0.70"),
        ({"target": 0}, "the target 0 ", "0.80"),
        ({"target": -0.5}, "the target -0.5 ", "0.80"),
        ({"target": math.nan}, "the target nan ", "0.80"),
        ({"target": 0.97, "margin": 0.04}, "margin 0.04", "lower"),
        ({"target_class": 1}, "no target", "--target"),
        ({"target": 0.5, "target_class": 1, "target_min_class": True}, "not for both", "out"),
        ({"target": 0.5, "target_class": -1}, "target_class is -1", "at least 0"),
        ({"patience": 0}, "patience is 0", "at least 1"),
        ({"hold": 0}, "hold is 0", "at least 1"),
        ({"margin": -0.1}, "margin is -0.1", "at least 0"),
        ({"min_delta": math.nan}, "min_delta is nan", "at least 0"),
        ({"max_hours": 0}, "max_hours is 0", "above 0"),
        ({"max_hours": math.inf}, "max_hours is inf", "above 0"),
        ({"max_epochs": 0}, "max_epochs is 0", "at least 1"),
        ({"nonfinite_epochs": 0}, "nonfinite_epochs is 0", "at least 1"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_a_hint(values: dict, sentence: str, hint: str) -> None:
    with pytest.raises(Usage) as refused:
        Policy(**values)
    assert sentence in refused.value.sentence
    assert hint in refused.value.hint


dice = st.one_of(st.floats(0.3, 1), st.just(math.nan))
losses = st.one_of(st.none(), st.floats(-1, 1), st.sampled_from((math.nan, math.inf)))
epochs = st.builds(
    Epoch,
    index=st.just(0),
    train_loss=losses,
    val_loss=losses,
    pseudo_dice=st.one_of(st.none(), st.tuples(dice, dice)),
    duration_s=st.one_of(st.none(), st.floats(1, 500)),
    ended_at=st.one_of(st.none(), st.floats(0, 5000)),
)
policies = st.builds(
    Policy,
    target=st.floats(0.3, 0.9),
    target_min_class=st.booleans(),
    margin=st.floats(0, 0.1),
    hold=st.integers(1, 4),
    min_epochs=st.integers(0, 8),
    patience=st.one_of(st.none(), st.integers(1, 8)),
    min_delta=st.sampled_from((0.0, 5e-4, 0.05)),
    plateau_min_epochs=st.integers(0, 8),
    max_hours=st.one_of(st.none(), st.floats(0.01, 3)),
    max_epochs=st.one_of(st.none(), st.integers(1, 40)),
    until=st.one_of(st.none(), st.floats(100, 9000)),
    nonfinite_epochs=st.integers(1, 3),
)


@st.composite
def histories(draw: st.DrawFn) -> History:
    rows = [replace(row, index=at) for at, row in enumerate(draw(st.lists(epochs, max_size=40)))]
    lost = draw(st.sets(st.integers(0, 40), max_size=2))
    return History.of(row for row in rows if row.index not in lost)


@given(histories(), policies)
@PROPERTY
def test_first_stop_is_the_first_verdict_over_the_prefixes(history: History, policy: Policy) -> None:
    prefixes = [History.of(history.rows[: at + 1]) for at in range(len(history.rows))]
    stops = (found for found in (verdict(prefix, policy) for prefix in prefixes) if found.stop)
    assert first_stop(history, policy) == next(stops, None)


@given(histories(), policies, st.data())
@PROPERTY
def test_the_verdict_survives_any_cut_rewind_and_resume(history: History, policy: Policy, data: st.DataObject) -> None:
    count = len(history.rows)
    reached, back = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count))), reverse=True)
    doomed = [replace(row, pseudo_dice=(1.0, 1.0), mean_pseudo_dice=1.0) for row in history.rows[back:reached]]
    resumed = History.of([*history.rows[:back], *doomed])
    for row in history.rows[back:]:
        resumed = resumed.with_epoch(row)
    assert verdict(resumed, policy) == verdict(history, policy)
    assert first_stop(resumed, policy) == first_stop(history, policy)


@given(histories(), policies)
@PROPERTY
def test_a_higher_target_never_stops_earlier(history: History, policy: Policy) -> None:
    only_target = replace(policy, patience=None, max_hours=None, max_epochs=None, until=None, nonfinite_epochs=99)
    lower = first_stop(history, only_target)
    higher = first_stop(history, replace(only_target, target=min(1 - policy.margin, policy.target + 0.05)))
    assert higher is None or (lower is not None and lower.epoch <= higher.epoch)


@given(histories(), policies)
@PROPERTY
def test_no_rule_fires_before_its_conditions_hold(history: History, policy: Policy) -> None:
    found = verdict(history, policy)
    rows = history.rows
    if found.kind == "target":
        emas = history.known_worst_class_ema if policy.target_min_class else history.known_ema
        known = [ema for ema in emas if ema is not None]
        assert emas[-1] is not None
        assert len(known) >= policy.hold
        assert all(ema - policy.margin >= policy.target for ema in known[-policy.hold :])
        assert history.completed_epochs >= policy.min_epochs
    if found.kind == "nan":
        known_losses = [(row.train_loss, row.val_loss) for row in rows if (row.train_loss, row.val_loss) != (None,) * 2]
        last = known_losses[-policy.nonfinite_epochs :]
        assert len(last) == policy.nonfinite_epochs
        assert all(any(not math.isfinite(loss) for loss in pair if loss is not None) for pair in last)
    if found.kind == "budget":
        hours = history.duration_s / 3600
        assert (
            (policy.max_hours is not None and hours >= policy.max_hours * (1 - 1e-9))
            or (policy.max_epochs is not None and history.completed_epochs >= policy.max_epochs)
            or (policy.until is not None and rows[-1].ended_at >= policy.until)
        )
    if found.stop:
        json.dumps(dict(found.numbers), allow_nan=False)


@given(st.lists(st.floats(0.3, 0.9), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))
@PROPERTY
def test_the_plateau_agrees_with_the_definition_by_brute_force(
    values: list[float], patience: int, min_epochs: int, plateau_min_epochs: int
) -> None:
    history = History.of(Epoch(at, mean_pseudo_dice=value) for at, value in enumerate(values))
    policy = Policy(patience=patience, min_delta=0.01, min_epochs=min_epochs, plateau_min_epochs=plateau_min_epochs)
    found = first_stop(history, policy)
    assert (found.epoch if found else None) == next(
        (
            t
            for t in range(len(values))
            if waited(history.ema[: t + 1], 0.01, max(min_epochs, plateau_min_epochs)) >= patience
        ),
        None,
    )


def test_a_thousand_epochs_are_judged_in_well_under_a_tenth_of_a_second() -> None:
    history = History.of(Epoch(at, 1.0, 1.0, (0.5, 0.6, 0.7)) for at in range(1000))
    started = time.perf_counter()
    assert first_stop(history, Policy(target=0.9, target_min_class=True, patience=2000)) is None
    assert time.perf_counter() - started < 0.1


def test_on_a_real_liver_training_a_short_patience_stops_too_early() -> None:
    file = REAL / "04_msd_liver_woshashishi_1000ep/LIVER_A_F0_BASELINE_001/training_validation.log"
    if not file.exists():
        pytest.skip("the real logs are not here")
    lines = re.findall(r"Pseudo dice \[(.*)\]", file.read_text())
    history = History.of(Epoch(at, pseudo_dice=tuple(map(float, line.split(",")))) for at, line in enumerate(lines))
    for patience in (50, 75, 100):
        found = first_stop(history, Policy(patience=patience))
        assert found.epoch == 199 + patience
        assert found.numbers["best_ema"] == pytest.approx(0.869, abs=5e-4)
    assert history.best_ema == pytest.approx(0.907, abs=5e-4)
    assert first_stop(history, Policy(patience=148, min_delta=0)).epoch == 703
    assert first_stop(history, Policy(patience=149, min_delta=0)) is None
    assert first_stop(history, Policy().with_default_plateau(1000)) is None


def test_on_real_trainings_the_default_plateau_loses_little() -> None:
    files = sorted(REAL.glob("40_autonnunet_msd_progress_csv/*/*/*.csv"))
    if not files:
        pytest.skip("the real curves are not here")
    lost = []
    for file in files:
        with file.open() as lines:
            dice = [float(row["mean_fg_dice"]) for row in csv.DictReader(lines)]
        history = History.of(Epoch(at, mean_pseudo_dice=value) for at, value in enumerate(dice))
        found = first_stop(history, Policy().with_default_plateau(1000))
        lost.append(
            history.best_ema - (history.best_ema if found is None else history.before(found.epoch + 1).best_ema)
        )
    assert len(lost) == 75
    assert sorted(lost)[37] == 0
    assert max(lost) < 0.035


def constant(ema: float, count: int) -> History:
    return History.of(Epoch(at, mean_pseudo_dice=ema, nnunet_ema=ema) for at in range(count))


def told(*emas: float) -> list[Epoch]:
    """Epochs after which nnU-Net says these EMAs."""
    return [Epoch(at, mean_pseudo_dice=ema, nnunet_ema=ema) for at, ema in enumerate(emas)]


def waited(emas: tuple[float, ...], min_delta: float, min_epochs: int) -> int:
    reference, last = -math.inf, 0
    for epoch, ema in enumerate(emas):
        if ema > reference + min_delta:
            reference, last = ema, epoch
    return len(emas) - 1 - max(last, min_epochs - 1)
