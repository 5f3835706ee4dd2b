"""Whether a case's files are whole, on made files and, where blosc2 is installed, on real ones."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from nnunet_ext.checkup.case_files import cases_of, ending_of, trouble_of


def frame(size_bytes: int) -> bytes:
    """A file with a Blosc2 frame's header, as long as it says."""
    header = b"\x9e\xa8b2frame\0\xd2" + (203).to_bytes(4, "big") + b"\xcf" + size_bytes.to_bytes(8, "big")
    return header.ljust(size_bytes, b"x")


def test_cases_are_what_nnunet_sees_without_junk() -> None:
    names = ["b.b2nd", "b_seg.b2nd", "b.pkl", "a.b2nd", "a_seg.b2nd", "a.pkl", "._a.b2nd", ".DS_Store"]
    assert cases_of(names, ".b2nd") == ["a", "b"]
    assert cases_of(["a.npz", "a.npy", "a_seg.npy", "a.pkl", "._a.npz"], ".npz") == ["a"]


def test_endings_are_counted_as_nnunet_counts_them() -> None:
    assert ending_of(["a.b2nd", "a.pkl", "a.npy"]) == ("b2nd",)
    assert ending_of(["a.b2nd", ".DS_Store", "README", "a.nii.gz"]) == ("DS_Store", "README", "b2nd", "gz")


def test_a_whole_b2nd_has_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "a.b2nd").write_bytes(frame(500))
    assert trouble_of(tmp_path / "a.b2nd") == ""


@pytest.mark.parametrize(
    ("data", "trouble"),
    [
        (frame(500)[:-1], "is cut short (499 of 500 bytes)"),
        (frame(500)[:20], "is cut short (20 bytes)"),
        (frame(500)[:5], "is cut short (5 bytes)"),
        (frame(500) + b"x", "is longer than written (501 instead of 500 bytes)"),
        (b"\0" * 500, "is no Blosc2 file"),
        (b"PK\x03\x04 something else, long enough", "is no Blosc2 file"),
        (b"", "is empty"),
    ],
)
def test_a_damaged_b2nd_is_told(tmp_path: Path, data: bytes, trouble: str) -> None:
    (tmp_path / "a.b2nd").write_bytes(data)
    assert trouble_of(tmp_path / "a.b2nd") == trouble


def test_a_cut_npz_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", b"0" * 1000)
        archive.writestr("seg.npy", b"0" * 1000)
    assert trouble_of(path) == ""
    path.write_bytes(path.read_bytes()[:-30])
    assert trouble_of(path).startswith("is cut short or no .npz")


def test_a_cut_pkl_is_told_and_none_is_run(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert trouble_of(path) == ""
    assert not Path("ran").exists()
    path.write_bytes(pickle.dumps({"spacing": [1.0, 1.0]})[:-1])
    assert trouble_of(path).startswith("is cut short")


def test_what_is_not_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.b2nd").mkdir()
    assert trouble_of(tmp_path / "a.b2nd") == "cannot be read (Is a directory)"
    assert trouble_of(tmp_path / "b.b2nd") == "is not there"


@pytest.mark.nnunet
def test_real_blosc2_files_have_the_header_that_is_read(tmp_path: Path) -> None:
    blosc2, numpy = pytest.importorskip("blosc2"), pytest.importorskip("numpy")
    for number, shape in enumerate([(1, 2, 3, 4), (2, 40, 60, 50), (0, 3)]):
        path = tmp_path / f"{number}.b2nd"
        blosc2.asarray(numpy.random.default_rng(0).random(shape), urlpath=str(path))
        assert trouble_of(path) == ""
        path.write_bytes(path.read_bytes()[:-1])
        assert "is cut short" in trouble_of(path)
