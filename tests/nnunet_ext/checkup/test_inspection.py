"""Children that ask torch: what they import, what they say, how they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ext.checkup.inspection import inspect_torch, last_words, own_child
from nnunet_ext.errors import NnxError
from nnunet_ext.host import HERE


def test_a_child_imports_nothing_from_the_working_directory(tmp_path: Path) -> None:
    for name in ("click", "migrate", "nnunet_ext", "json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a stray folder was imported')\n")
    done = HERE.run(own_child("nnunet_ext", "--version"), cwd=tmp_path)
    assert (done.code, done.text.split()[0], done.stderr) == (0, "nnx,", b"")


def test_a_child_s_last_words_are_one_line() -> None:
    assert last_words(1, b"Traceback\n  File\nOSError: libcudart.so.12 not found\n\n") == (
        "OSError: libcudart.so.12 not found (exit code 1)"
    )
    assert last_words(-11, b"") == "ended by signal 11"


def test_a_child_that_cannot_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nnunet_ext.checkup.inspection.own_child", lambda module: ["sh", "-c", "echo no torch >&2; kill -11 $$"]
    )
    with pytest.raises(NnxError, match=r"no torch \(ended by signal 11\)"):
        inspect_torch()
    monkeypatch.setattr("nnunet_ext.checkup.inspection.own_child", lambda module: ["echo", '{"devices": [{"odd": 1}]}'])
    with pytest.raises(NnxError, match="could not be asked"):
        inspect_torch()


@pytest.mark.nnunet
def test_the_real_torch_answers() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("nnunetv2")
    found = inspect_torch()
    assert found.torch == str(torch.__version__)
    assert (found.torchvision_trouble, found.nnunetv2_trouble) == ("", "")
    assert [device.trouble for device in found.devices] == [""] * len(found.devices)
    assert found.devices[-1].kind == "cpu"
