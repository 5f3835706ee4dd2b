from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ext.cli import run
from nnunet_ext.errors import Exit
from nnunet_ext.layout import Layout

REAL = Path(__file__).parents[2] / "data" / "checkpoints" / "nnunet-2.8.1_numpy2_2d.pth"


def test_json_has_the_keys_that_scripts_rely_on(layout: Layout[Path], make_run, capsys) -> None:
    made = make_run(fold="all", trainer="MyTrainer")
    shutil.copy(REAL, layout.checkpoint(made, "best"))
    assert run(["runs", "--json"]) == Exit.DONE
    (known,) = json.loads(capsys.readouterr().out)
    assert list(known) == [
        *("dataset", "configuration", "trainer", "plans", "fold", "folder"),
        *("epoch", "num_epochs", "ema", "best_ema", "state", "checkpoints"),
    ]
    assert (known["fold"], known["trainer"], known["state"], known["epoch"]) == ("all", "MyTrainer", "stopped", 3)
    (saved,) = known["checkpoints"]
    assert saved == {
        "kind": "best",
        "path": str(layout.checkpoint(made, "best")),
        "epoch": 3,
        "valid": True,
        "size_bytes": REAL.stat().st_size,
    }


def test_the_table_names_each_run_by_the_words_to_type_and_fits_80_columns(
    layout: Layout[Path], make_run, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copy(REAL, layout.checkpoint(make_run(), "latest"))
    make_run(fold=1, trainer="MyTrainer")
    assert run(["runs"]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].strip() == "Dataset004_Hippocampus"
    assert any(line.startswith("  4 2d 0 ") and "latest 3" in line for line in lines)
    assert any(line.startswith("  4 2d 1 -tr MyTrainer") and " new " in line for line in lines)


def test_a_damaged_checkpoint_is_named_on_stderr_and_the_table_stands(layout: Layout[Path], make_run, capsys) -> None:
    layout.checkpoint(make_run(), "latest").write_bytes(REAL.read_bytes()[:5000])
    assert run(["runs"]) == Exit.DONE
    said = capsys.readouterr()
    assert "latest damaged" in said.out
    assert "checkpoint_latest" in said.err
    assert "Traceback" not in said.err


def test_no_runs_is_no_error(layout: Layout[Path], capsys) -> None:
    assert run(["runs"]) == Exit.DONE
    assert str(layout.results) in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_folder_that_may_not_be_read_is_a_sentence(layout: Layout[Path], make_run) -> None:
    locked = layout.trained_folder(make_run())
    locked.chmod(0o700)
    for folder in [locked, *locked.parents][1:-1]:
        folder.chmod(folder.stat().st_mode | 0o755)
    code = (
        "import os, sys, nnunet_ext.survey, nnunet_ext.commands.runs; from nnunet_ext.cli import run;"
        "os.setuid(65534); sys.exit(run(['runs']))"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == Exit.FAILED
    assert done.stderr == f"nnx: Permission denied: {locked}.\n"
