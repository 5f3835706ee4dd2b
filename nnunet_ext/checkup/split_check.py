"""Which cases a fold trains and validates on, as nnU-Net chooses them, and what is odd about that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nnunet_ext.checkup.finding import Finding, note, ok, some, unfit
from nnunet_ext.dataset import Split
from nnunet_ext.run import Fold

FOLDS_OF_A_NEW_SPLIT = 5  # nnUNetTrainer.do_split


@dataclass(frozen=True)
class Used:
    """The cases a run trains on and those it validates on."""

    train: tuple[str, ...]
    val: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(sorted({*self.train, *self.val}))


def judge_split(
    fold: Fold, splits: Sequence[Split] | None, cases: Sequence[str], has_begun: bool
) -> tuple[Used, list[Finding]]:
    """The cases the fold uses, as nnUNetTrainer.do_split chooses them, and what is odd about that."""
    everything = Used(tuple(cases), tuple(cases))
    if isinstance(fold, str):
        return everything, [ok("split", f"Fold all trains and validates on all {len(cases)} cases.")]
    if splits is None:
        return everything, [_judge_no_split(len(cases), has_begun)]
    if fold >= len(splits):
        return everything, [_judge_random(fold, len(splits))]
    used = Used(splits[fold].train, splits[fold].val)
    return used, list(_judge_fold(fold, used, splits, cases))


def _judge_random(fold: int, folds: int) -> Finding:
    there = f"folds 0 to {folds - 1}" if folds else "no folds"
    words = f"The split has {there}. For fold {fold} nnU-Net takes a random 80:20 split, which others do not share."
    instead = f"Take a fold from 0 to {folds - 1}, or write" if folds else "Write"
    return note("split", words, f"{instead} fold {fold} into the splits file.")


def _judge_no_split(cases: int, has_begun: bool) -> Finding:
    if has_begun:
        words = "The splits file is gone. nnU-Net would make a new one from the cases that are here now, and cases"
        fix = "Copy it from where the training began."
        return unfit("split", f"{words} that were validated on may be trained on.", fix)
    if cases < FOLDS_OF_A_NEW_SPLIT:
        fix = f"Train fold all, or write a splits file with fewer than {FOLDS_OF_A_NEW_SPLIT} folds."
        return unfit("split", f"nnU-Net cannot split {cases} cases into {FOLDS_OF_A_NEW_SPLIT} folds.", fix)
    return note("split", f"There is no split yet; the first training will split these {cases} cases into 5 folds.")


def _judge_fold(fold: int, used: Used, splits: Sequence[Split], cases: Sequence[str]) -> Iterator[Finding]:
    known = {case for split in splits for case in (*split.train, *split.val)}
    missing = sorted({*used.all} - {*cases})
    both = sorted({*used.train} & {*used.val})
    unused = sorted({*cases} - known)
    if not used.train or not used.val:
        words = f"Fold {fold} has {len(used.train)} training and {len(used.val)} validation cases."
        yield unfit("split", words, "Give the fold both in the splits file.")
    if missing:
        fix = "Copy them from where the data was preprocessed, or preprocess again."
        yield unfit("split", f"Fold {fold} names {some(missing, 'case')} that the data folder lacks.", fix)
    if both:
        words = f"Fold {fold} validates on {some(both, 'case')} that it trains on: its Dice will be too good"
        yield note("split", f"{words}.", "If that is not on purpose, take them out of 'val' in the splits file.")
    if unused:
        yield note("split", f"In no fold, and so not used: {some(unused, 'case')}.")
    if used.train and used.val and not missing:
        numbers = f"{len(used.train)} training and {len(used.val)} validation cases"
        yield ok("split", f"Fold {fold} of {len(splits)}: {numbers}.")
