"""Whether the files of a preprocessed case are whole, judged without blosc2 and numpy from a few bytes of each."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

from nnunet_ext.layout import DATA_ENDINGS, case_files, is_junk

# A Blosc2 contiguous frame: a msgpack array whose first member is the magic and whose third, an unsigned 64 bit
# number, is the length of the whole frame. https://github.com/Blosc/c-blosc2/blob/main/README_CFRAME_FORMAT.rst
_MAGIC, _MAGIC_AT = b"b2frame\0", 2
_LENGTH_AT, _UINT64 = 15, 0xCF
_HEADER_BYTES = _LENGTH_AT + 9

_PICKLE_STOP = b"."


def ending_of(names: Collection[str]) -> tuple[str, ...]:
    """What infer_dataset_class takes the files of a data folder for: the parts behind the last dot, without pkl and
    npy. nnU-Net needs exactly one."""
    return tuple(sorted({name.rsplit(".", 1)[-1] for name in names} - {"pkl", "npy"}))


def cases_of(names: Collection[str], ending: str) -> list[str]:
    """The cases nnU-Net sees in a data folder (get_identifiers), without what macOS scatters."""
    companions = case_files("", ending)[1:]
    own = [name for name in names if name.endswith(ending) and not name.endswith(companions) and not is_junk(name)]
    return sorted(name.removesuffix(ending) for name in own)


def trouble_of(path: Path) -> str:
    """What is wrong with one file of a case, as the end of a sentence; empty when it is whole.

    A .b2nd must be as long as its header says, a .npz must have its directory, a .pkl its last byte; nothing is
    unpickled.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes == 0:
            return "is empty"
        return _CHECKS[path.suffix](path, size_bytes)
    except FileNotFoundError:
        return "is not there"
    except OSError as wrong:
        return f"cannot be read ({wrong.strerror})"


def _b2nd(path: Path, size_bytes: int) -> str:
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if header[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC[: max(0, len(header) - _MAGIC_AT)]:
        return "is no Blosc2 file"
    if len(header) < _HEADER_BYTES:
        return f"is cut short ({size_bytes} bytes)"
    if header[_LENGTH_AT] != _UINT64:
        return "is no Blosc2 file"
    length = int.from_bytes(header[_LENGTH_AT + 1 :], "big")
    if size_bytes < length:
        return f"is cut short ({size_bytes} of {length} bytes)"
    return f"is longer than written ({size_bytes} instead of {length} bytes)" if size_bytes > length else ""


def _npz(path: Path, size_bytes: int) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return "" if archive.namelist() else "holds no arrays"
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return f"is cut short or no .npz ({size_bytes} bytes)"


def _pkl(path: Path, size_bytes: int) -> str:
    with path.open("rb") as file:
        file.seek(size_bytes - 1)
        return "" if file.read(1) == _PICKLE_STOP else f"is cut short ({size_bytes} bytes)"


_CHECKS = {DATA_ENDINGS[0]: _b2nd, DATA_ENDINGS[1]: _npz, ".pkl": _pkl}
