from __future__ import annotations

import pytest

from nnunet_ext.errors import Exit, Usage
from nnunet_ext.run import Run, dataset_id, parse_fold


def test_words_name_the_run_as_nnunet_does_and_leave_defaults_out() -> None:
    assert Run("Dataset004_Hippocampus", "2d", 0).words() == ["4", "2d", "0"]
    run = Run("Dataset123_A", "3d_lowres", "all", "MyTrainer", "nnUNetResEncUNetMPlans")
    assert run.words() == ["123", "3d_lowres", "all", "-tr", "MyTrainer", "-p", "nnUNetResEncUNetMPlans"]


def test_two_runs_are_the_same_only_when_all_five_names_are() -> None:
    run = Run("Dataset004_Hippocampus", "2d", 0)
    assert run == Run("Dataset004_Hippocampus", "2d", 0, "nnUNetTrainer", "nnUNetPlans")
    assert len({run, Run("Dataset004_Hippocampus", "2d", 0, "Other"), Run("Dataset004_Hippocampus", "2d", "all")}) == 3


@pytest.mark.parametrize(
    ("name", "number"),
    [("Dataset001_A", 1), ("Dataset1234_B", 1234), ("Dataset1_A", None), ("Task01_A", None), ("Dataset001", None)],
)
def test_a_dataset_is_known_by_its_number(name: str, number: int | None) -> None:
    assert dataset_id(name) == number


@pytest.mark.parametrize("word", ["-1", "5.0", "ALL", "", "two", "٣"])
def test_what_is_no_fold_is_a_usage_error_with_a_hint(word: str) -> None:
    with pytest.raises(Usage, match="is not a fold") as wrong:
        parse_fold(word)
    assert wrong.value.exit_code == Exit.USAGE
    assert "all" in wrong.value.hint


def test_folds_are_numbers_or_all() -> None:
    assert [parse_fold(word) for word in ("0", "4", "12", "all")] == [0, 4, 12, "all"]
