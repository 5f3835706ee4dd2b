"""dataset.json and the splits, as nnU-Net reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_ext.dataset import Dataset, Split, read_dataset, read_splits
from nnunet_ext.errors import Damaged, NoSuchRun

PLAIN = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}


def read(tmp_path: Path, content: object) -> Dataset:
    path = tmp_path / "dataset.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_dataset(path)


def test_labels_make_one_output_each(tmp_path: Path) -> None:
    found = read(tmp_path, PLAIN)
    assert found == Dataset(2, (0, 1, 2), None, ".nii.gz")
    assert (found.heads, found.foreground_labels) == (3, 2)


def test_the_ignore_label_makes_no_output(tmp_path: Path) -> None:
    assert read(tmp_path, {**PLAIN, "labels": {"background": 0, "a": 1, "ignore": 2}}).heads == 2


def test_regions_make_one_output_each_and_background_none(tmp_path: Path) -> None:
    labels = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    found = read(tmp_path, {**PLAIN, "labels": labels})
    assert (found.heads, found.labels, found.foreground_labels) == (3, (0, 1, 2, 3), 3)


def test_the_old_word_for_channels_is_understood(tmp_path: Path) -> None:
    old = {"modality": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nrrd"}
    assert read(tmp_path, old).channels == 1


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "3", "null", {}, {**PLAIN, "labels": {"0": "background"}}, {**PLAIN, "labels": []}, "[" * 100_000],
)
def test_anything_else_is_damaged(tmp_path: Path, content: object) -> None:
    with pytest.raises(Damaged):
        read(tmp_path, content)


def test_a_missing_dataset_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoSuchRun, match=r"dataset\.json"):
        read_dataset(tmp_path / "dataset.json")


def test_splits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    assert read_splits(path) is None
    path.write_text('[{"train": ["a", "b"], "val": ["c"]}]')
    assert read_splits(path) == (Split(("a", "b"), ("c",)),)


@pytest.mark.parametrize("content", ["{", "3", '["a"]', '[{"train": ["a"]}]', '[{"train": "abc", "val": []}]', "null"])
def test_other_splits_are_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(Damaged):
        read_splits(tmp_path / "splits.json")
