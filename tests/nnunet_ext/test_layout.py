from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from nnunet_ext.host import HERE
from nnunet_ext.layout import Layout, is_junk, run_of_fold_folder
from nnunet_ext.run import Run

RUN = Run("Dataset004_Hippocampus", "3d_lowres", 0)
CASCADE = Run("Dataset004_Hippocampus", "3d_cascade_fullres", 0)


def test_paths_are_those_of_nnunet_also_on_a_host() -> None:
    far = Layout(PurePosixPath("/r"), PurePosixPath("/p"), PurePosixPath("/res"))
    assert (
        str(far.checkpoint(RUN, "latest"))
        == "/res/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_lowres/fold_0/checkpoint_latest.pth"
    )
    assert str(far.plans_file(RUN.dataset, "nnUNetPlans")) == "/p/Dataset004_Hippocampus/nnUNetPlans.json"
    assert str(far.data_folder(RUN.dataset, "nnUNetPlans_2d")) == "/p/Dataset004_Hippocampus/nnUNetPlans_2d"


@pytest.mark.nnunet
def test_folders_agree_with_nnunet_itself(layout: Layout[Path]) -> None:
    pytest.importorskip("nnunetv2")
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    for fold in (0, "all"):
        run = Run("Dataset004_Hippocampus", "3d_lowres", fold, "MyTrainer", "MyPlans")
        assert str(layout.fold_folder(run)) == get_output_folder(run.dataset, "MyTrainer", "MyPlans", "3d_lowres", fold)


def test_a_cascade_is_fed_by_its_first_stage_of_the_same_trainer_and_plans(layout: Layout[Path]) -> None:
    fed = layout.previous_stage_predictions(CASCADE, "3d_lowres")
    assert fed == layout.stage_predictions(RUN, "3d_cascade_fullres")
    assert fed == layout.trained_folder(RUN) / "predicted_next_stage" / "3d_cascade_fullres"


@pytest.mark.parametrize("fold", [0, 12, "all"])
def test_a_fold_folder_names_its_run(layout: Layout[Path], fold: int | str) -> None:
    run = Run("Dataset004_Hippocampus", "2d_p256", fold, "nnUNetTrainer_5epochs", "nnUNetResEncUNetMPlans")
    assert run_of_fold_folder(layout.fold_folder(run)) == run


@pytest.mark.parametrize(
    "path",
    [
        "Dataset004_X/T__P__C/fold_x",
        "Dataset004_X/T__C/fold_0",
        "Task4/T__P__C/fold_0",
        "fold_0",
        "Dataset004_X/T____C/fold_0",
    ],
)
def test_other_folders_name_none(path: str) -> None:
    assert run_of_fold_folder(PurePosixPath(path)) is None


def test_every_fold_is_found_and_nothing_else(layout: Layout[Path], make_run) -> None:
    made = [make_run(fold=0), make_run(fold="all"), make_run("Dataset012_Ürgel", "3d_fullres", 3, trainer="T")]
    for stray in (
        "ensembles",
        "fold_9",
        "Dataset004_Hippocampus/crossval_results",
        "Dataset004_Hippocampus/a__b__c/fold_0.old",
    ):
        (layout.results / stray).mkdir(parents=True)
    (layout.results / "Dataset004_Hippocampus" / "T__P__2d").write_text("a file where a folder could be")
    assert list(layout.runs(HERE)) == made


def test_datasets_are_those_of_any_of_the_three_folders(layout: Layout[Path]) -> None:
    for folder in (
        layout.raw / "Dataset001_A",
        layout.preprocessed / "Dataset002_B",
        layout.results / "Dataset003_C",
        layout.raw / "Task04_D",
    ):
        folder.mkdir()
    assert layout.datasets(HERE) == ["Dataset001_A", "Dataset002_B", "Dataset003_C"]


def test_logs_are_in_the_order_of_their_starts_not_of_their_names(layout: Layout[Path], make_run) -> None:
    run = make_run()
    names = [
        "training_log_2025_9_30_08_00_00.txt",
        "training_log_2025_10_2_07_59_59.txt",
        "training_log_2025_10_12_00_00_00.txt",
    ]
    for name in [*reversed(names), "training_log_latest.txt", "progress.png"]:
        (layout.fold_folder(run) / name).touch()
    assert [log.name for log in layout.logs(run, HERE)] == names


def test_what_a_mac_scatters_is_junk_and_a_case_is_not() -> None:
    assert is_junk(".DS_Store")
    assert is_junk("._hippocampus_001.b2nd")
    assert not is_junk("hippocampus_001.b2nd")
