from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ext.errors import Exit, NoSuchRun, Usage
from nnunet_ext.host import HERE
from nnunet_ext.layout import Layout
from nnunet_ext.naming import Found, Name, find_run


def find(layout: Layout[Path], *words: str, **options: str) -> Found:
    return find_run(Name(words, **options), layout, HERE)


@pytest.mark.parametrize("dataset", ["4", "004", "Dataset004_Hippocampus"])
def test_number_and_name_mean_the_same_dataset(layout: Layout[Path], make_run, dataset: str) -> None:
    run = make_run()
    assert find(layout, dataset, "2d", "0") == Found(run, layout)


def test_a_path_names_a_run_also_outside_nnunet_results(layout: Layout[Path], make_run, tmp_path: Path) -> None:
    run = make_run(fold="all", trainer="T", plans="P")
    elsewhere = tmp_path / "usb disk"
    layout.results.rename(elsewhere)
    folder = Layout(layout.raw, layout.preprocessed, elsewhere).fold_folder(run)
    found = find(layout, str(folder))
    assert (found.run, found.layout.fold_folder(found.run)) == (run, folder)


def test_nothing_typed_means_the_only_run(layout: Layout[Path], make_run) -> None:
    run = make_run()
    assert find(layout).run == run


def test_trainer_and_plans_narrow_the_choice_when_nothing_else_is_typed(layout: Layout[Path], make_run) -> None:
    make_run()
    special = make_run(trainer="MyTrainer")
    assert find(layout, trainer="MyTrainer").run == special


def test_when_two_runs_match_both_are_listed_ready_to_type(layout: Layout[Path], make_run) -> None:
    make_run()
    make_run(fold=1, trainer="T")
    with pytest.raises(NoSuchRun, match="2 runs") as unclear:
        find(layout)
    assert unclear.value.exit_code == Exit.NO_SUCH_RUN
    assert unclear.value.hint.splitlines()[1:] == ["  4 2d 1 -tr T", "  4 2d 0"]


def test_a_wrong_dataset_is_answered_with_near_ones(layout: Layout[Path], make_run) -> None:
    make_run()
    with pytest.raises(NoSuchRun, match="Dataset004_Hipocampus") as wrong:
        find(layout, "Dataset004_Hipocampus", "2d", "0")
    assert wrong.value.hint == "Did you mean Dataset004_Hippocampus?"


def test_an_unknown_number_is_answered_with_what_there_is(layout: Layout[Path], make_run) -> None:
    make_run()
    with pytest.raises(NoSuchRun, match="'7'") as wrong:
        find(layout, "7", "2d", "0")
    assert "Dataset004_Hippocampus" in wrong.value.hint


def test_with_no_dataset_at_all_the_folders_that_were_searched_are_named(layout: Layout[Path]) -> None:
    with pytest.raises(NoSuchRun) as wrong:
        find(layout, "7", "2d", "0")
    assert str(layout.results) in wrong.value.hint


@pytest.mark.parametrize(
    ("words", "options"), [(("4", "2d", "1"), {}), (("4", "3d_fullres", "0"), {}), (("4", "2d", "0"), {"trainer": "T"})]
)
def test_a_wrong_configuration_fold_or_trainer_is_answered_with_the_runs_of_the_dataset(
    layout: Layout[Path], make_run, words, options
) -> None:
    make_run()
    with pytest.raises(NoSuchRun) as wrong:
        find(layout, *words, **options)
    assert wrong.value.hint == "One of:\n  4 2d 0"


def test_two_datasets_of_one_number_are_refused_as_nnunet_refuses_them(layout: Layout[Path], make_run) -> None:
    make_run("Dataset004_A")
    make_run("Dataset004_B")
    with pytest.raises(NoSuchRun, match="not unique"):
        find(layout, "4", "2d", "0")


@pytest.mark.parametrize("words", [("4", "2d"), ("4", "2d", "0", "1"), ("4",)])
def test_other_words_are_a_usage_error_that_says_how(layout: Layout[Path], make_run, words) -> None:
    make_run()
    with pytest.raises(Usage) as wrong:
        find(layout, *words)
    assert "DATASET CONFIGURATION FOLD" in wrong.value.hint


def test_a_folder_that_is_no_fold_folder_is_told_what_one_looks_like(layout: Layout[Path], make_run) -> None:
    run = make_run()
    with pytest.raises(NoSuchRun) as wrong:
        find(layout, str(layout.trained_folder(run)))
    assert "fold_N" in wrong.value.hint
