"""The history of a training: one row per completed epoch, and the EMA pseudo Dice rebuilt from the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nnunet_ext.errors import Damaged

EMA_TOLERANCE = 1e-4
"""How far a rebuilt EMA may be from nnU-Net's own: a log rounds both to 4 decimals, each by up to 5e-5."""

_RESULTS = ("train_losses", "val_losses", "dice_per_class_or_region", "mean_fg_dice")


@dataclass(frozen=True)
class Epoch:
    """What one epoch left behind; None is not known (a damaged log), NaN is what nnU-Net computed.

    `pseudo_dice` has one value per class or region, NaN where the class was in no validation batch.
    `mean_pseudo_dice` (their nanmean) and `duration_s` are filled in from the others when not given.
    `nnunet_ema` is the EMA in nnU-Net's own words: a checkpoint has it for every epoch, a log for new bests.
    Times are unix seconds.
    """

    index: int
    train_loss: float | None = None
    val_loss: float | None = None
    pseudo_dice: tuple[float, ...] | None = None
    mean_pseudo_dice: float | None = None
    nnunet_ema: float | None = None
    learning_rate: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if self.mean_pseudo_dice is None and self.pseudo_dice is not None:
            object.__setattr__(self, "mean_pseudo_dice", _nanmean(self.pseudo_dice))
        if self.duration_s is None and self.started_at is not None and self.ended_at is not None:
            object.__setattr__(self, "duration_s", self.ended_at - self.started_at)


@dataclass(frozen=True)
class History:
    """The epochs of one training in order, each at most once; lost epochs leave gaps. Made by `History.of`.

    Two EMAs are told apart. nnU-Net's own turns NaN with the first epoch whose classes are all NaN and stays
    NaN (`poisoned_at`). Ours is the same as long as that does not happen, and skips such epochs.

    The series (`ema`, `known_ema`, ...) have one entry per row.
    """

    rows: tuple[Epoch, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Epoch]) -> History:
        """The history of epochs in the order they were trained: one that repeats an index (a resume, a restart)
        replaces every row from that index on."""
        kept: list[Epoch] = []
        for row in rows:
            while kept and kept[-1].index >= row.index:
                kept.pop()
            kept.append(row)
        return cls(tuple(kept))

    @classmethod
    def from_logging(cls, logging: Mapping[str, Sequence[Any]]) -> History:
        """The history in a checkpoint's `logging` (`LocalLogger.my_fantastic_logging`), one list per key.

        An epoch counts when its losses and pseudo Dice are there. nnU-Net logs start and learning rate before
        them (a partial epoch is dropped) and the end after them (None inside `on_validation_epoch_end`).

        Raises Damaged when a value is not a number.
        """
        completed = min((len(logging[key]) for key in _RESULTS if key in logging), default=0)
        return cls(tuple(_row(logging, index) for index in range(completed)))

    def before(self, index: int) -> History:
        """The history as it was when epoch `index` was about to start: what a rewind to it leaves."""
        return History(tuple(row for row in self.rows if row.index < index))

    def with_epoch(self, epoch: Epoch) -> History:
        """This history with one more epoch; a repeated epoch drops itself and every later one first."""
        return History((*self.before(epoch.index).rows, epoch))

    @property
    def last(self) -> Epoch | None:
        """The last completed epoch."""
        return self.rows[-1] if self.rows else None

    @property
    def completed_epochs(self) -> int:
        """How many epochs the training has completed, lost rows included; the epoch a resume starts with."""
        return self.rows[-1].index + 1 if self.rows else 0

    @property
    def duration_s(self) -> float:
        """The summed duration of the epochs; pauses, repeated epochs and unknown durations count nothing."""
        return sum(row.duration_s for row in self.rows if row.duration_s is not None)

    @cached_property
    def ema(self) -> tuple[float | None, ...]:
        """The EMA after each epoch, an estimate where rows are missing; None before the first pseudo Dice.

        `E0 = D0; E = 0.9 E + 0.1 D` in float64, D the nanmean of the pseudo Dice: `MetaLogger.log` (nnU-Net's
        training/logging/nnunet_logger.py) and `nnUNetTrainer.on_validation_epoch_end`, both 2.8.1. A D that is
        no Dice (NaN, infinite, outside 0..1) is skipped. Where it is further than `EMA_TOLERANCE` from what
        nnU-Net itself says, rows were lost or damaged, and nnU-Net's value is taken.
        """
        return tuple(point.ema for point in self._points)

    @cached_property
    def known_ema(self) -> tuple[float | None, ...]:
        """The EMA where it is known to `EMA_TOLERANCE` and the epoch measured a Dice, otherwise None.

        After a gap it is not known until nnU-Net says it (a new best in the log) or the lost epochs can no
        longer matter: each weighs at most 0.1 and fades by 0.9 per epoch (66 epochs for one, 88 for many).
        """
        return tuple(point.known for point in self._points)

    def known_class_ema(self, class_index: int) -> tuple[float | None, ...]:
        """`known_ema` of one class or region, an index into `pseudo_dice`; all None when there is none such."""
        return tuple(point.known for point in self._class_points(class_index))

    @cached_property
    def known_worst_class_ema(self) -> tuple[float | None, ...]:
        """The lowest EMA over the classes; not known before every class was measured at least once."""
        classes = max((len(row.pseudo_dice or ()) for row in self.rows), default=0)
        series = [self._class_points(index) for index in range(classes)]
        return tuple(_lowest([points[at] for points in series]) for at in range(len(self.rows)))

    @property
    def best_ema(self) -> float | None:
        """The highest known EMA so far."""
        return max((ema for ema in self.known_ema if ema is not None), default=None)

    @property
    def best_epoch(self) -> int | None:
        """The first epoch that had `best_ema`."""
        return None if self.best_ema is None else self.rows[self.known_ema.index(self.best_ema)].index

    @property
    def poisoned_at(self) -> int | None:
        """The epoch since which nnU-Net's own EMA is not finite, so that checkpoint_best is no longer written."""
        return next((row.index for row in self.rows if _poisons(row)), None)

    @cached_property
    def _points(self) -> list[_Point]:
        return _rebuild(self.rows, lambda row: row.mean_pseudo_dice, lambda row: row.nnunet_ema)

    def _class_points(self, class_index: int) -> list[_Point]:
        return _rebuild(self.rows, lambda row: _class_dice(row, class_index), lambda row: None)


@dataclass(frozen=True)
class _Point:
    """The EMA after one epoch, how far lost epochs can have moved the true one, and whether the epoch itself
    measured a Dice."""

    ema: float | None
    error: float
    measured: bool

    @property
    def known(self) -> float | None:
        return self.ema if self.measured and self.error <= EMA_TOLERANCE else None


def _rebuild(
    rows: Iterable[Epoch], dice_of: Callable[[Epoch], float | None], told_by: Callable[[Epoch], float | None]
) -> list[_Point]:
    points: list[_Point] = []
    ema: float | None = None
    error = 0.0
    expected = 0
    for row in rows:
        dice, told = dice_of(row), told_by(row)
        lost = row.index - expected + (dice is None)
        expected = row.index + 1
        if lost:  # a lost D lies in 0..1, so each one can pull the true EMA away by 0.1 of what is left
            error = 1.0 if ema is None else 1 - (1 - error) * 0.9**lost
        if dice is not None and _is_dice(dice):
            ema = dice if ema is None else ema * 0.9 + 0.1 * dice
            error *= 0.9
        if told is not None and _is_dice(told):
            ema = told if ema is None or abs(told - ema) > EMA_TOLERANCE else ema
            error = 0.0
        measured = any(value is not None and _is_dice(value) for value in (dice, told))
        points.append(_Point(ema, error, measured))
    return points


def _lowest(classes: Sequence[_Point]) -> float | None:
    emas = [point.ema for point in classes if point.ema is not None and point.error <= EMA_TOLERANCE]
    if len(emas) < len(classes) or not any(point.measured for point in classes):
        return None
    return min(emas)


def _poisons(row: Epoch) -> bool:
    return any(value is not None and not math.isfinite(value) for value in (row.mean_pseudo_dice, row.nnunet_ema))


def _class_dice(row: Epoch, class_index: int) -> float | None:
    if row.pseudo_dice is None or class_index >= len(row.pseudo_dice):
        return None
    return row.pseudo_dice[class_index]


def _is_dice(value: float) -> bool:
    return 0.0 <= value <= 1.0  # false for NaN; broken region-based trainings logged 220 and -1000 (#2369)


def _nanmean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _row(logging: Mapping[str, Sequence[Any]], index: int) -> Epoch:
    def value(key: str) -> float | None:
        values = logging.get(key, ())
        return _number(key, values[index]) if index < len(values) else None

    return Epoch(
        index=index,
        train_loss=value("train_losses"),
        val_loss=value("val_losses"),
        pseudo_dice=_per_class(logging, index),
        mean_pseudo_dice=value("mean_fg_dice"),
        nnunet_ema=value("ema_fg_dice"),
        learning_rate=value("lrs"),
        started_at=value("epoch_start_timestamps"),
        ended_at=value("epoch_end_timestamps"),
    )


def _per_class(logging: Mapping[str, Sequence[Any]], index: int) -> tuple[float, ...] | None:
    key = "dice_per_class_or_region"
    if key not in logging:
        return None
    return tuple(_number(key, value) for value in logging[key][index])


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise Damaged(f"the training history holds {value!r} where a number is expected ({key})") from error
