"""Which cases a fold uses, and what is odd about that."""

from __future__ import annotations

from nnunet_ext.checkup.split_check import judge_split
from nnunet_ext.dataset import Split

CASES = ["a", "b", "c", "d"]
SPLITS = (Split(("a", "b"), ("c", "d")), Split(("c", "d"), ("a", "b")))


def test_a_fold_of_the_split_is_fit() -> None:
    used, (found,) = judge_split(1, SPLITS, CASES, False)
    assert (used.train, used.val, used.all) == (("c", "d"), ("a", "b"), ("a", "b", "c", "d"))
    assert (found.level, found.finding) == ("ok", "Fold 1 of 2: 2 training and 2 validation cases.")


def test_fold_all_uses_everything_and_needs_no_split() -> None:
    used, (found,) = judge_split("all", None, CASES, True)
    assert used.train == used.val == tuple(CASES)
    assert found.level == "ok"


def test_a_fold_beyond_the_split_is_said_to_be_random() -> None:
    used, (found,) = judge_split(2, SPLITS, CASES, False)
    assert used.all == tuple(CASES)
    assert found.level == "note"
    assert "folds 0 to 1" in found.finding
    assert "random 80:20 split" in found.finding


def test_no_split_is_fine_before_the_first_training_and_not_after() -> None:
    five = [*CASES, "e"]
    assert judge_split(0, None, five, False)[1][0].level == "note"
    assert judge_split(0, None, five, True)[1][0].level == "unfit"


def test_too_few_cases_for_a_new_split_are_unfit() -> None:
    assert judge_split(0, None, CASES, False)[1][0].level == "unfit"


def test_a_case_that_the_data_lacks_is_unfit() -> None:
    (found,) = judge_split(0, SPLITS, ["a", "b", "c"], False)[1]
    assert (found.level, found.finding) == ("unfit", "Fold 0 names 1 case (d) that the data folder lacks.")


def test_a_case_on_both_sides_is_noted() -> None:
    leaky = (Split(("a", "b", "c"), ("c", "d")),)
    found = judge_split(0, leaky, CASES, False)[1]
    assert [finding.level for finding in found] == ["note", "ok"]
    assert "1 case (c)" in found[0].finding


def test_cases_in_no_fold_are_noted() -> None:
    found = judge_split(0, SPLITS, [*CASES, "new"], False)[1]
    assert found[0].finding == "In no fold, and so not used: 1 case (new)."


def test_an_empty_side_is_unfit() -> None:
    assert judge_split(0, (Split(("a",), ()),), ["a"], False)[1][0].level == "unfit"


def test_no_folds_at_all_are_no_fold() -> None:
    (found,) = judge_split(0, (), CASES, False)[1]
    assert found.finding.startswith("The split has no folds.")
