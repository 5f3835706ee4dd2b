"""Child process: opens preprocessed cases with blosc2, as nnU-Net does, and prints those that do not open.

Reads `{"folder", "channels", "cases": [[data file, segmentation file], ...]}` from stdin and prints
`{file name: what is wrong}`. First and last chunk of each file are decompressed; the whole would take as long as
reading the dataset.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import blosc2


def main() -> None:
    asked = json.load(sys.stdin)
    wrong: dict[str, str] = {}
    for data_name, seg_name in asked["cases"]:
        wrong |= _troubles(Path(asked["folder"]), data_name, seg_name, asked["channels"])
    json.dump(wrong, sys.stdout)


def _troubles(folder: Path, data_name: str, seg_name: str, channels: int | None) -> dict[str, str]:
    """Shapes are channels first: (c, x, y, z)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in (data_name, seg_name):
        try:
            shapes[name] = _shape(folder / name)
        except (RuntimeError, ValueError, OSError) as trouble:
            return {name: f"does not open ({' '.join(str(trouble).split())})"}
    data, seg = shapes[data_name], shapes[seg_name]
    if data[1:] != seg[1:]:
        return {seg_name: f"has the shape {seg[1:]}, but its image {data[1:]}"}
    if channels is not None and data[0] != channels:
        return {data_name: f"has {data[0]} channel(s), but dataset.json names {channels}"}
    return {}


def _shape(path: Path) -> tuple[int, ...]:
    array = blosc2.open(urlpath=str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    for chunk in {0, array.schunk.nchunks - 1} if array.schunk.nchunks else ():
        array.schunk.decompress_chunk(chunk)
    return tuple(int(size) for size in array.shape)


if __name__ == "__main__":
    main()
