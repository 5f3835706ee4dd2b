from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nnunet_ext import cli
from nnunet_ext.cli import Verb, run
from nnunet_ext.errors import Damaged, Exit, HostError, NnxError, NoSuchRun, Refused, Unfit, Usage
from nnunet_ext.layout import ROOTS, Layout


def a_verb_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    @cli.speaking
    def runs() -> None:
        raise error

    monkeypatch.setattr("nnunet_ext.commands.runs.runs", runs)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NnxError("It broke."), 1),
        (Usage("It broke."), 2),
        (NoSuchRun("It broke."), 3),
        (HostError("It broke."), 4),
        (Damaged("It broke."), 5),
        (Unfit("It broke."), 6),
        (Refused("It broke."), 7),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_ends_with_its_exit_code_a_sentence_and_no_traceback(monkeypatch, capsys, error, code) -> None:
    a_verb_that_raises(monkeypatch, error)
    assert run(["runs"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip() in ("nnx: It broke.", "nnx: Interrupted.")


def test_a_hint_stands_below_the_sentence_and_v_shows_the_traceback(monkeypatch, capsys) -> None:
    a_verb_that_raises(monkeypatch, Damaged("The pack is cut.", "Try:\nnnx verify"))
    assert run(["runs"]) == Exit.DAMAGED
    assert capsys.readouterr().err == "nnx: The pack is cut.\n     Try:\n     nnx verify\n"
    for words in (["-v", "runs"], ["runs", "-v"]):
        assert run(words) == Exit.DAMAGED
        assert "Traceback" in capsys.readouterr().err


def test_a_file_systems_trouble_is_a_sentence_with_the_path(monkeypatch, capsys) -> None:
    a_verb_that_raises(monkeypatch, PermissionError(13, "Permission denied", "/data/x"))
    assert run(["runs"]) == Exit.FAILED
    assert capsys.readouterr().err == "nnx: Permission denied: /data/x.\n"


def test_a_bug_is_called_a_bug(monkeypatch, capsys) -> None:
    a_verb_that_raises(monkeypatch, ZeroDivisionError("division by zero"))
    assert run(["runs"]) == Exit.FAILED
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "bug in nnx" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "said"), [(["rums"], "nnx runs"), (["runs", "--jsno"], "--json"), (["runs", "extra"], "runs --help")]
)
def test_wrong_words_are_answered_with_the_right_ones(capsys, words, said) -> None:
    assert run(words) == Exit.USAGE
    assert said in capsys.readouterr().err


def test_folders_that_are_not_set_are_named_with_the_line_to_type(layout: Layout[Path], monkeypatch, capsys) -> None:
    monkeypatch.delenv(ROOTS[0])
    monkeypatch.delenv(ROOTS[2])
    assert run(["runs"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "nnUNet_raw and nnUNet_results are not set" in said
    assert "export nnUNet_results=" in said


def test_an_option_overrides_the_environment(layout: Layout[Path], tmp_path: Path, make_run, capsys) -> None:
    make_run()
    assert run(["runs", "--json", "--results", str(tmp_path / "none")]) == Exit.DONE
    assert json.loads(capsys.readouterr().out) == []


def test_every_verb_has_one_line_and_a_section_in_the_help(capsys) -> None:
    assert run(["--help"]) == Exit.DONE
    text = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"  {verb.name} " in text
        assert f"{verb.section}:" in text
        assert len(verb.help) < 60


def test_nnx_alone_shows_the_help_and_is_a_usage_error(capsys) -> None:
    assert run([]) == Exit.USAGE


def test_a_verb_that_is_not_built_is_not_listed(monkeypatch, capsys) -> None:
    monkeypatch.setattr(cli, "VERBS", (Verb("runs", "nnunet_ext.commands.runs", "Look", "Every run."),))
    assert run(["--help"]) == Exit.DONE
    assert "doctor" not in capsys.readouterr().out
    assert run(["doctor"]) == Exit.USAGE


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_scripts_are_what_their_shell_can_read(shell: str, capsys) -> None:
    assert run(["--completion", shell]) == Exit.DONE
    script = capsys.readouterr().out
    assert "_NNX_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_completion_offers_the_runs_that_are_there(layout: Layout[Path], make_run) -> None:
    make_run()
    make_run(configuration="3d_fullres", fold=3)

    def offered(*words: str) -> list[str]:
        environ = {
            **os.environ,
            "_NNX_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["nnx", *words]),
            "COMP_CWORD": str(len(words)),
        }
        code = "import sys; sys.argv = ['nnx']; from nnunet_ext.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
        return [line.split(",")[1] for line in done.stdout.splitlines()]

    assert offered("ru") == ["runs"]
    assert offered("train", "4", "3") == ["3d_fullres"]
    assert offered("train", "4", "3d_fullres", "3") == ["3"]


def test_a_reader_that_goes_away_is_no_error(layout: Layout[Path], make_run) -> None:
    for fold in range(50):
        make_run(fold=fold)
    nnx = subprocess.Popen(
        [sys.executable, "-m", "nnunet_ext", "runs", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(cli.__file__).parents[1],
    )
    nnx.stdout.close()
    assert (nnx.wait(), nnx.stderr.read()) == (0, b"")
    nnx.stderr.close()
