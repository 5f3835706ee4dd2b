"""What an nnU-Net checkpoint says, and whether it is whole, without torch and without running its pickle.

A checkpoint is what torch.save writes: a zip of uncompressed members under one folder: `data.pkl`, a pickle of
everything but the numbers, and `data/<key>`, the numbers of each tensor's storage. The file may come from anywhere,
so no size it announces is believed.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import Damaged
from nnunet_ext.pickles import MAX_PICKLE_BYTES, Pickled, interpret
from nnunet_ext.rebuild import TensorInfo, plain

HINT = "Take another checkpoint of this fold; `nnx runs` shows which ones are whole."
MAX_READ_BYTES = 4 * 2**20  # at once; a zip's directory is read at once: 60,000 members, where a network has hundreds
CHUNK_BYTES = 2**20
REQUIRED = ("network_weights", "current_epoch", "trainer_name", "init_args", "logging")
# One entry per epoch in each: nnunetv2/training/logging/nnunet_logger.py, LocalLogger.
PER_EPOCH = (
    "mean_fg_dice",
    "ema_fg_dice",
    "dice_per_class_or_region",
    "train_losses",
    "val_losses",
    "lrs",
    "epoch_start_timestamps",
    "epoch_end_timestamps",
)


@dataclass(frozen=True)
class Checkpoint:
    """The facts in a checkpoint, as nnUNetTrainer.save_checkpoint stored them, in plain Python values."""

    path: Path
    size_bytes: int
    current_epoch: int  # as stored: the number of completed epochs
    best_ema: float | None  # the best EMA pseudo Dice
    trainer_name: str
    init_args: Mapping[str, Any]  # plans, configuration, fold, dataset_json, device as text; and nnx's own state
    logging: Mapping[str, list[Any]]  # name -> one entry per epoch
    tensors: Mapping[str, TensorInfo]  # the network's weights
    weights_bytes: int  # of the network's storages, each counted once (nnU-Net lists most weights under two names)
    has_optimizer: bool
    has_grad_scaler: bool
    mirroring_axes: tuple[int, ...] | None
    foreign: tuple[str, ...]  # names of code, unknown to nnx, that torch runs when it loads this file

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read the facts; the tensors' numbers are not read (`whole` does). Raises Damaged."""
        with _archive(path) as (archive, size_bytes):
            return _facts(path, archive, size_bytes)

    def inconsistency(self) -> str | None:
        """Why nnU-Net would log to the wrong epoch when it continues from here, or None.

        A checkpoint that was not saved at an epoch's end has one entry too many: nnU-Net stores current_epoch + 1.
        """
        for name in PER_EPOCH:
            entries = len(self.logging.get(name, ()))
            if name in self.logging and entries != self.current_epoch:
                return f"{self.path} says {self.current_epoch} epochs are done, but has {entries} entries of {name}"
        return None


def whole(path: Path) -> str | None:
    """None when the checkpoint is whole, else the reason as a sentence. Reads every byte and checks every CRC-32."""
    try:
        with _archive(path) as (archive, size_bytes):
            _facts(path, archive, size_bytes)
            for member in archive.infolist():
                for _ in _chunks(archive, member):
                    pass
    except Damaged as error:
        return error.sentence
    return None


@contextmanager
def _archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """The checkpoint's zip and the file's size, which stay those of one file when another takes its name meanwhile.

    Whatever is wrong with the file, also while it is used, becomes a Damaged that names it.
    """
    try:
        with _File(path) as file:
            size_bytes = file.check()
            with zipfile.ZipFile(file) as archive:
                yield archive, size_bytes
    except Damaged as error:
        raise Damaged(f"{path} is not a readable checkpoint: {error.sentence}", error.hint or HINT) from error
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror or error}", HINT) from error
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, OverflowError, struct.error) as error:
        raise Damaged(f"{path} is not a readable checkpoint: it was cut short or altered ({error})", HINT) from error


class _File(io.FileIO):
    """A regular file that is never waited for (a pipe would be) and gives little at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))

    def check(self) -> int:
        """The file's bytes; raises Damaged when it cannot be a zip."""
        status = os.fstat(self.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Damaged("it is not a regular file")
        start = self.read(4)
        if not start:
            raise Damaged("it is empty")
        if start[:2] == b"\x80\x02":
            raise Damaged("it has torch's format from before 1.6, which nnU-Net v2 never wrote")
        if start != b"PK\x03\x04":
            raise Damaged("it is not a file that torch.save wrote")
        return status.st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_READ_BYTES:
            raise Damaged(f"it announces a part of {size:,} bytes where torch writes a small one")
        return super().read(MAX_READ_BYTES if size is None or size < 0 else size)


def _facts(path: Path, archive: zipfile.ZipFile, size_bytes: int) -> Checkpoint:
    pickled = _pickled(archive, size_bytes)
    stored = pickled.value
    if type(stored) is not dict:
        raise Damaged("it does not hold a dictionary")
    if missing := [key for key in REQUIRED if key not in stored]:
        raise Damaged(f"it has no {' and no '.join(missing)}, so it is not from an nnU-Net v2 training")
    weights = _named(stored, "network_weights")
    tensors = {name: tensor for name, tensor in weights.items() if type(tensor) is TensorInfo}
    histories = {name: values for name, values in _named(stored, "logging").items() if type(values) is list}
    return Checkpoint(
        path=path,
        size_bytes=size_bytes,
        current_epoch=_epoch(stored),
        best_ema=_typed(stored, "_best_ema", float, type(None)),
        trainer_name=_class_name(stored),
        init_args=plain(_named(stored, "init_args")),
        logging=plain(histories),
        tensors=tensors,
        weights_bytes=sum(pickled.storages[key] for key in {tensor.storage for tensor in tensors.values()}),
        has_optimizer=bool(stored.get("optimizer_state")),
        has_grad_scaler=bool(stored.get("grad_scaler_state")),
        mirroring_axes=_axes(stored.get("inference_allowed_mirroring_axes")),
        foreign=pickled.foreign,
    )


def _typed(stored: Mapping[str, Any], key: str, *kinds: type) -> Any:
    value = stored.get(key)
    if type(value) not in kinds:
        raise Damaged(f"its {key} is a {type(value).__name__}")
    return value


def _named(stored: Mapping[str, Any], key: str) -> dict[str, Any]:
    values: dict[str, Any] = _typed(stored, key, dict)
    if {str, *map(type, values)} != {str}:
        raise Damaged(f"the names in its {key} are not all text")
    return values


def _epoch(stored: Mapping[str, Any]) -> int:
    epoch: int = _typed(stored, "current_epoch", int)
    if not 0 <= epoch < 2**31:
        raise Damaged(f"its current_epoch is {epoch}")
    return epoch


def _class_name(stored: Mapping[str, Any]) -> str:
    name: str = _typed(stored, "trainer_name", str)
    if not name.isidentifier():
        raise Damaged("its trainer_name is not the name of a class")
    return name


def _axes(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if type(value) not in (list, tuple) or not {*map(type, value)} <= {int}:
        raise Damaged("its inference_allowed_mirroring_axes are not axes")
    return tuple(value)


def _pickled(archive: zipfile.ZipFile, size_bytes: int) -> Pickled:
    """The pickle, after the members and the storages it speaks of were found to be there in full."""
    members = _members(archive, size_bytes)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise Damaged(f"it holds {len(pickles)} members named data.pkl in its top folder")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}version" not in members and f"{folder}.data/version" not in members:
        raise Damaged("it has no member named version, without which torch does not load it")
    member = members[pickles[0]]
    if member.file_size > MAX_PICKLE_BYTES:
        raise Damaged(f"its pickle has {member.file_size:,} bytes, and nnx reads at most {MAX_PICKLE_BYTES:,}")
    pickled = interpret(b"".join(_chunks(archive, member)))
    for key, announced in pickled.storages.items():
        data = members.get(f"{folder}data/{key}")
        if data is None or data.file_size < announced:
            there = "missing" if data is None else f"{data.file_size:,}"
            raise Damaged(f"its pickle announces {announced:,} bytes of tensor data {key[:20]!r}, they are {there}")
    return pickled


def _members(archive: zipfile.ZipFile, size_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name: none twice, none compressed, together no larger than the file."""
    infos = archive.infolist()
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise Damaged("two of its members have the same name")
    if any(info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size for info in infos):
        raise Damaged("one of its members is compressed, and torch compresses none")
    if sum(info.file_size for info in infos) > size_bytes:
        raise Damaged("its members announce more bytes than the file has")
    return members


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The member's bytes piece by piece; zipfile checks the CRC-32 at the end."""
    with archive.open(member) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
