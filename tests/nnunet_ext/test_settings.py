from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ext.errors import Exit, Usage
from nnunet_ext.settings import Known, Value, find_file, load

KNOWN = (Known("target", float, "A Dice."), Known("results", str, "A folder.", "nnUNet_results"))
FILE = (Path("/h/nnx.toml"), {"target": 0.7})


def test_an_option_wins_over_environment_file_and_default_and_each_origin_is_told() -> None:
    assert load({"target": "0.9"}, {"NNX_TARGET": "0.8"}, FILE, KNOWN)["target"] == Value(0.9, "--target")
    assert load({"target": None}, {"NNX_TARGET": "0.8"}, FILE, KNOWN)["target"] == Value(0.8, "NNX_TARGET")
    assert load({}, {"NNX_TARGET": ""}, FILE, KNOWN)["target"] == Value(0.7, "/h/nnx.toml")
    assert load({}, {}, None, KNOWN)["target"] == Value(None, "default")


def test_an_option_of_zero_is_not_taken_for_unset() -> None:
    assert load({"target": "0"}, {"NNX_TARGET": "0.8"}, None, KNOWN)["target"] == Value(0.0, "--target")


def test_the_three_folders_keep_the_names_nnunet_gave_them() -> None:
    assert load({}, {"nnUNet_results": "/r"}, None, KNOWN)["results"] == Value("/r", "nnUNet_results")


@pytest.mark.parametrize(
    ("environ", "file", "origin"),
    [({"NNX_TARGET": "high"}, None, "NNX_TARGET"), ({}, (Path("/h/nnx.toml"), {"target": "high"}), "/h/nnx.toml")],
)
def test_a_value_of_the_wrong_kind_is_told_with_its_origin(environ, file, origin: str) -> None:
    with pytest.raises(Usage, match=f"{origin} sets target to 'high'") as wrong:
        load({}, environ, file, KNOWN)
    assert wrong.value.exit_code == Exit.USAGE


def test_a_misspelt_setting_in_the_file_is_not_ignored() -> None:
    with pytest.raises(Usage, match="'tarjet'") as wrong:
        load({}, {}, (Path("nnx.toml"), {"tarjet": 1}), KNOWN)
    assert wrong.value.hint == "Did you mean target?"


def test_the_file_beside_you_wins_over_the_one_at_home(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    (home / ".config" / "nnx").mkdir(parents=True)
    here.mkdir()
    assert find_file(here, home) is None
    (home / ".config" / "nnx" / "config.toml").write_text("target = 0.6")
    assert find_file(here, home) == (home / ".config" / "nnx" / "config.toml", {"target": 0.6})
    (here / "nnx.toml").write_text("target = 0.8")
    assert find_file(here, home) == (here / "nnx.toml", {"target": 0.8})


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "nnx.toml").write_text("target: 0.7")
    with pytest.raises(Usage, match=r"nnx\.toml is not TOML"):
        find_file(tmp_path, tmp_path)
