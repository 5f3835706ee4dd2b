"""`nnx doctor` as it is typed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nnunet_ext.checkup.finding import note, ok, unfit
from nnunet_ext.cli import run
from nnunet_ext.layout import ROOTS, Layout
from nnunet_ext.settings import KNOWN


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without torch, so that nothing takes seconds."""
    monkeypatch.setattr("nnunet_ext.checkup.machine._version", lambda name: None)


@pytest.mark.usefixtures("layout", "light")
def test_a_light_install_is_unfit_and_told_how_to_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 6
    out = capsys.readouterr().out
    assert "    pip install 'nnunet-nnx[train]'\n" in out
    assert out.splitlines()[-1].startswith("unfit: 1 finding to fix")
    assert max(map(len, out.splitlines())) < 300  # nothing is padded to the width of a pipe


@pytest.mark.usefixtures("light")
def test_unset_folders_are_findings_with_export_lines(
    layout: Layout[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("nnUNet_results")
    assert run(["doctor"]) == 6
    out = capsys.readouterr().out
    assert "    export nnUNet_results=/path/to/nnUNet_results\n" in out
    assert f"{layout.raw} (from $nnUNet_raw)" in out
    assert run(["doctor", "--results", "~/nnUNet_results"]) == 6
    assert f"{layout.results} (from --results)" in capsys.readouterr().out


@pytest.mark.usefixtures("light")
def test_json_is_one_document_with_every_setting_and_its_origin(
    layout: Layout[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("nnx.toml").write_text("target = 0.7\n")
    assert run(["doctor", "--json"]) == 6
    said = json.loads(capsys.readouterr().out)
    assert said.keys() == {"fit", "findings", "settings"}
    assert said["fit"] is False
    assert all(finding.keys() == {"topic", "level", "finding", "fix"} for finding in said["findings"])
    assert [setting["name"] for setting in said["settings"]] == [known.name for known in KNOWN]
    settings = {setting["name"]: (setting["value"], setting["origin"]) for setting in said["settings"]}
    assert settings["raw"] == (str(layout.raw), "nnUNet_raw")
    assert settings["target"] == (0.7, str(Path.cwd() / "nnx.toml"))
    assert settings["patience"] == (None, "default")


@pytest.mark.usefixtures("layout")
def test_findings_that_are_notes_are_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = [ok("a", "Good."), note("b", "Odd.", "sh -c 'one'\nsh -c 'two'")]
    monkeypatch.setattr("nnunet_ext.checkup.machine_check.check_machine", lambda *words: iter(made))
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [["✓", "a", "Good."], ["!", "b", "Odd."]]
    assert lines[2:4] == ["    sh -c 'one'", "    sh -c 'two'"]
    assert lines[-1] == "fit (1 note)"


@pytest.mark.usefixtures("layout")
def test_quiet_says_only_what_is_not_ok(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = [ok("a", "Good."), unfit("b", "Bad.", "mend")]
    monkeypatch.setattr("nnunet_ext.checkup.machine_check.check_machine", lambda *words: iter(made))
    assert run(["doctor", "-q"]) == 6
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["✗", "b", "Bad."],
        ["mend"],
        ["unfit:", "1", "finding", "to", "fix"],
    ]


def test_words_in_brackets_are_printed_as_they_are(
    layout: Layout[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [unfit("a[red]", "no [bold]markup[/bold] in /data/[x]", "rm '/data/[x]'")]
    monkeypatch.setattr("nnunet_ext.checkup.machine_check.check_machine", lambda *words: iter(made))
    run(["doctor"])
    out = capsys.readouterr().out
    assert "no [bold]markup[/bold] in /data/[x]" in out
    assert "rm '/data/[x]'" in out


def test_a_run_that_has_not_begun_can_be_checked(layout: Layout[Path], capsys: pytest.CaptureFixture[str]) -> None:
    layout.preprocessed_dataset("Dataset004_Hippocampus").mkdir()
    assert run(["doctor", "4", "2d", "0"]) == 6
    assert str(layout.dataset_json("Dataset004_Hippocampus")) in capsys.readouterr().out


def test_a_run_is_also_named_by_its_folder(
    layout: Layout[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "elsewhere" / "Dataset004_Hippocampus" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    folder.mkdir(parents=True)
    assert run(["doctor", str(folder), "--json"]) == 6
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["topic"], found["fix"]) == ("dataset", "nnUNetv2_plan_and_preprocess -d 4 -c 2d")


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize(
    ("words", "code"),
    [(["4", "2d", "0"], 3), (["4", "2d"], 2), (["-tr", "nnUNetTrainer"], 2), (["gone/fold_0"], 3)],
)
def test_words_that_name_no_run_are_refused(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *words]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("nnx: ")


@pytest.mark.nnunet
def test_the_doctor_asks_the_real_machine(layout: Layout[Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("nnunetv2")
    run(["doctor", "--json"])
    topics = {finding["topic"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert {"Python", "nnU-Net", "torch", "memory", "cores", "device", *ROOTS} <= topics
    assert shutil.which("rsync") is None or "rsync" in topics


def test_env_prints_lines_that_a_shell_can_run_and_keeps_the_users_own_trainers(layout, monkeypatch, capsys) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", "/their own/trainers")
    assert run(["doctor", "--env"]) == 0
    lines = capsys.readouterr().out
    done = subprocess.run(["sh", "-c", f'{lines}\nprintf %s "$nnUNet_results|$nnUNet_extTrainer"'], capture_output=True)
    results, trainers = done.stdout.decode().split("|")
    assert results == str(layout.results)
    theirs, shelf = trainers.split(os.pathsep)
    assert theirs == "/their own/trainers"
    assert (Path(shelf) / "nnx_trainers.py").is_file()
