"""When a training stops: the policy a user sets, and the pure verdict on a history under that policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import accumulate
from typing import Literal

from nnunet_ext.errors import Exit, Usage
from nnunet_ext.history import Epoch, History

Kind = Literal["nan", "request", "target", "budget", "plateau"]

_EXIT_CODES: Mapping[Kind, Exit] = {
    "nan": Exit.NAN,
    "request": Exit.STOP_REQUESTED,
    "target": Exit.TARGET,
    "budget": Exit.BUDGET,
    "plateau": Exit.PLATEAU,
}

_SMALLEST: Mapping[str, int] = {
    **dict.fromkeys(("target_class", "margin", "min_epochs", "min_delta", "plateau_min_epochs", "until"), 0),
    **dict.fromkeys(("hold", "patience", "max_epochs", "nonfinite_epochs"), 1),
}


@dataclass(frozen=True)
class Policy:
    """When to stop; None switches a rule off, so `Policy()` stops only on requests and non-finite losses.

    target: EMA pseudo Dice in (0, 1] of the mean over the classes, of `target_class` (an index into the pseudo
        Dice) or, with `target_min_class`, of the worst class; reached when `EMA - margin >= target` for `hold`
        epochs in a row.
    min_epochs: neither target nor plateau stop before so many epochs are completed.
    patience: so many epochs without an improvement by more than `min_delta` are a plateau; the waiting starts
        after `plateau_min_epochs` epochs.
    max_hours: hours of training, the sum of the epochs' durations. Counted from the history, so they survive
        moves; pauses, saving, the final validation and repeated epochs are not in them.
    max_epochs: completed epochs. until: a clock time in unix seconds.
    nonfinite_epochs: so many epochs in a row with a NaN or infinite loss.

    Raises Usage for a value that makes no sense.
    """

    target: float | None = None
    target_class: int | None = None
    target_min_class: bool = False
    margin: float = 0.0
    hold: int = 1
    min_epochs: int = 0
    patience: int | None = None
    min_delta: float = 5e-4
    plateau_min_epochs: int = 0
    max_hours: float | None = None
    max_epochs: int | None = None
    until: float | None = None
    nonfinite_epochs: int = 2

    def __post_init__(self) -> None:
        _check_target(self)
        _check_numbers(self)

    def with_default_plateau(self, num_epochs: int) -> Policy:
        """This policy with a plateau rule for a user who asked for one without numbers: patience 200, the waiting
        starts after max(200, 0.3 num_epochs) epochs; what the user set is kept."""
        start = self.min_epochs or max(200, math.ceil(3 * num_epochs / 10))
        return replace(self, patience=self.patience or 200, plateau_min_epochs=self.plateau_min_epochs or start)


@dataclass(frozen=True)
class Verdict:
    """Whether to stop after `epoch` (0-based; None: there is none yet), by which rule and why: a sentence, and
    its numbers by name, unrounded and ready for JSON (a non-finite one as text)."""

    stop: bool
    kind: Kind | None
    epoch: int | None
    reason: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def exit_code(self) -> Exit:
        """The code a command ends with on this verdict; DONE when nothing asks to stop."""
        return Exit.DONE if self.kind is None else _EXIT_CODES[self.kind]


def verdict(
    history: History,
    policy: Policy,
    *,
    request: str | None = None,
    now: float | None = None,
    num_epochs: int | None = None,
) -> Verdict:
    """Whether to stop after the last epoch: the first of nan, request, target, budget, plateau decides.

    request: the reason of a pending stop request. now: unix seconds, for `until` and for an epoch whose end is
    not logged yet; without it the end of the last epoch is the clock. num_epochs: for the sentence.

    An epoch whose EMA is not known (`History.known_ema`) is no evidence: it reaches neither target nor plateau
    and does not break a row of epochs above the target.
    """
    found = _Tracks.of(history, policy).judge(len(history.rows) - 1, request, now)
    epoch = None if history.last is None else history.last.index
    return _verdict(found, epoch, num_epochs)


def first_stop(history: History, policy: Policy, *, since: int = 0, num_epochs: int | None = None) -> Verdict | None:
    """The first verdict to stop among those after each epoch from `since` on, None when there is none: for
    replays, and for a watcher that reads several epochs at once."""
    tracks = _Tracks.of(history, policy)
    for at, row in enumerate(history.rows):
        found = tracks.judge(at) if row.index >= since else None
        if found is not None:
            return _verdict(found, row.index, num_epochs)
    return None


_Numbers = dict[str, float | int | str]
_Finding = tuple[Kind, str, _Numbers]


@dataclass(frozen=True)
class _Tracks:
    """What the rules need to know at each row; every entry depends only on the rows up to it."""

    history: History
    policy: Policy
    judged: Sequence[float | None]
    held: Sequence[int]
    best: Sequence[tuple[int, float] | None]
    nonfinite: Sequence[int]
    hours: Sequence[float]

    @classmethod
    def of(cls, history: History, policy: Policy) -> _Tracks:
        judged = _judged_ema(history, policy)
        return cls(
            history,
            policy,
            judged,
            held=_in_a_row([_above(ema, policy) for ema in judged]),
            best=_last_improvements(history, policy.min_delta),
            nonfinite=_in_a_row([_losses_are_nonfinite(row) for row in history.rows]),
            hours=list(accumulate((row.duration_s or 0.0) / 3600 for row in history.rows)),
        )

    def judge(self, at: int, request: str | None = None, now: float | None = None) -> _Finding | None:
        if at < 0:
            return _requested(request) or self._clock(now)
        row = self.history.rows[at]
        return (
            self._nan(at, row)
            or _requested(request)
            or self._target(at, row)
            or self._budget(at, row, now)
            or self._clock(row.ended_at if now is None else now)
            or self._plateau(at, row)
        )

    def _nan(self, at: int, row: Epoch) -> _Finding | None:
        count = self.nonfinite[at]
        if count < self.policy.nonfinite_epochs:
            return None
        train, val = _jsonable(row.train_loss), _jsonable(row.val_loss)
        reason = f"the losses were not finite for {count} epochs in a row (train {train}, validation {val})"
        return "nan", reason, {"nonfinite_epochs": count, "train_loss": train, "val_loss": val}

    def _target(self, at: int, row: Epoch) -> _Finding | None:
        policy, ema, held = self.policy, self.judged[at], self.held[at]
        if policy.target is None or ema is None or held < policy.hold or row.index + 1 < policy.min_epochs:
            return None
        reason = (
            f"the EMA pseudo Dice{_of_class(policy)} {ema:.4f} reached the target {policy.target:g} "
            f"(margin {policy.margin:g}, epochs in a row: {held}, asked for: {policy.hold})"
        )
        numbers: _Numbers = {"ema": ema, "target": policy.target, "margin": policy.margin}
        return "target", reason, {**numbers, "held": held, "hold": policy.hold}

    def _budget(self, at: int, row: Epoch, now: float | None) -> _Finding | None:
        policy = self.policy
        completed = row.index + 1
        if policy.max_epochs is not None and completed >= policy.max_epochs:
            reason = f"{completed} epochs are completed, the budget is {policy.max_epochs}"
            return "budget", reason, {"epochs": completed, "max_epochs": policy.max_epochs}
        hours = self.hours[at] + _open_hours(row, now)
        if policy.max_hours is not None and hours >= policy.max_hours:
            reason = f"{hours:.2f} hours of training are used, the budget is {policy.max_hours:g}"
            return "budget", reason, {"hours": hours, "max_hours": policy.max_hours}
        return None

    def _clock(self, clock: float | None) -> _Finding | None:
        until = self.policy.until
        if until is None or clock is None or clock < until:
            return None
        reason = f"it is {_utc(clock)}, the training was to run until {_utc(until)}"
        return "budget", reason, {"clock": clock, "until": until}

    def _plateau(self, at: int, row: Epoch) -> _Finding | None:
        policy, best, ema = self.policy, self.best[at], self.history.known_ema[at]
        if policy.patience is None or best is None or ema is None:
            return None
        best_epoch, best_ema = best
        wait = row.index - max(best_epoch, policy.min_epochs - 1, policy.plateau_min_epochs - 1)
        if wait < policy.patience:
            return None
        reason = (
            f"the EMA pseudo Dice did not improve by more than {policy.min_delta:g} for {wait} epochs "
            f"(patience {policy.patience}): {best_ema:.4f} after epoch {best_epoch}, now {ema:.4f}"
        )
        numbers: _Numbers = {"wait": wait, "patience": policy.patience, "min_delta": policy.min_delta}
        return "plateau", reason, {**numbers, "best_ema": best_ema, "best_epoch": best_epoch, "ema": ema}


def _requested(request: str | None) -> _Finding | None:
    return None if request is None else ("request", f"a stop was requested ({request})", {})


def _verdict(found: _Finding | None, epoch: int | None, num_epochs: int | None) -> Verdict:
    of = "" if num_epochs is None else f" of {num_epochs}"
    when = "before the first epoch" if epoch is None else f"after epoch {epoch}{of}"
    if found is None:
        return Verdict(False, None, epoch, f"nothing asks to stop {when}")
    kind, reason, numbers = found
    return Verdict(True, kind, epoch, f"{reason}, {when}", numbers)


def _judged_ema(history: History, policy: Policy) -> Sequence[float | None]:
    if policy.target_class is not None:
        return history.known_class_ema(policy.target_class)
    return history.known_worst_class_ema if policy.target_min_class else history.known_ema


def _above(ema: float | None, policy: Policy) -> bool | None:
    return None if ema is None or policy.target is None else ema - policy.margin >= policy.target


def _last_improvements(history: History, min_delta: float) -> list[tuple[int, float] | None]:
    best: tuple[int, float] | None = None
    track = []
    for row, ema in zip(history.rows, history.known_ema, strict=True):
        if ema is not None and (best is None or ema > best[1] + min_delta):
            best = (row.index, ema)
        track.append(best)
    return track


def _losses_are_nonfinite(row: Epoch) -> bool | None:
    known = [loss for loss in (row.train_loss, row.val_loss) if loss is not None]
    return not all(math.isfinite(loss) for loss in known) if known else None


def _in_a_row(answers: Sequence[bool | None]) -> list[int]:
    """How many yes in a row end at each place; None (not known) neither counts nor breaks the row."""
    count = 0
    counts = []
    for answer in answers:
        count = count if answer is None else (count + 1 if answer else 0)
        counts.append(count)
    return counts


def _open_hours(row: Epoch, now: float | None) -> float:
    if now is None or row.started_at is None or row.duration_s is not None:
        return 0.0
    return (now - row.started_at) / 3600


def _of_class(policy: Policy) -> str:
    if policy.target_class is not None:
        return f" of class {policy.target_class}"
    return " of the worst class" if policy.target_min_class else ""


def _jsonable(loss: float | None) -> float | str:
    if loss is None:
        return "not known"
    return loss if math.isfinite(loss) else str(loss)


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _check_target(policy: Policy) -> None:
    target = policy.target
    if target is None:
        if policy.target_class is not None or policy.target_min_class:
            raise Usage("a class was named for the target, but no target is set", "Add --target, such as 0.80.")
        return
    if not 0 < target <= 1:
        hint = f"Did you mean {target / 100:.2f}?" if 1 < target <= 100 else "Give a value such as 0.80."
        raise Usage(f"the target {target:g} is not a Dice between 0 and 1", hint)
    if target + policy.margin > 1:
        raise Usage(
            f"the target {target:g} with the margin {policy.margin:g} lies above 1 and is never reached",
            "Give a lower target or margin.",
        )
    if policy.target_class is not None and policy.target_min_class:
        raise Usage("the target is for one class or for the worst class, not for both", "Leave one of them out.")


def _check_numbers(policy: Policy) -> None:
    for name, smallest in _SMALLEST.items():
        value: float | None = getattr(policy, name)
        if value is not None and not smallest <= value < math.inf:
            raise Usage(f"{name} is {value:g}", f"Give a number that is at least {smallest}.")
    if policy.max_hours is not None and not 0 < policy.max_hours < math.inf:
        raise Usage(f"max_hours is {policy.max_hours:g}", "Give a number of hours above 0.")
