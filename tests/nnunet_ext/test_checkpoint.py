"""A checkpoint's facts are torch's facts; a file that is cut, altered or hostile is refused and never run."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_ext.checkpoint import Checkpoint, whole
from nnunet_ext.errors import Damaged, Exit
from nnunet_ext.rebuild import Opaque

DATA = Path(__file__).parents[1] / "data" / "checkpoints"
REAL = DATA / "nnunet-2.8.1_numpy2_2d.pth"
REAL_BYTES = REAL.read_bytes()
FOLDER = "checkpoint_final"
with zipfile.ZipFile(REAL) as _zip:
    MEMBERS = {info.filename: _zip.read(info) for info in _zip.infolist()}
PICKLE = MEMBERS[f"{FOLDER}/data.pkl"]


def facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint in JSON's types, as tests/data/checkpoints/make.py writes what torch.load says."""
    return {
        "size_bytes": checkpoint.size_bytes,
        "current_epoch": checkpoint.current_epoch,
        "best_ema": plain(checkpoint.best_ema),
        "trainer_name": checkpoint.trainer_name,
        "init_args": plain(checkpoint.init_args),
        "logging": plain(checkpoint.logging),
        "tensors": {name: [list(t.shape), t.dtype, t.size_bytes] for name, t in checkpoint.tensors.items()},
        "weights_bytes": checkpoint.weights_bytes,
        "has_optimizer": checkpoint.has_optimizer,
        "has_grad_scaler": checkpoint.has_grad_scaler,
        "mirroring_axes": plain(checkpoint.mirroring_axes),
    }


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_pickle(path: Path, pickle: bytes) -> Path:
    """The real checkpoint with another pickle in it."""
    return write(path, {**MEMBERS, f"{FOLDER}/data.pkl": pickle})


def with_entry(path: Path, name: str, value: bytes) -> Path:
    """The real checkpoint with one more entry at its end, whose value is made by these opcodes."""
    key = b"X" + len(name).to_bytes(4, "little") + name.encode()
    return with_pickle(path, PICKLE[:-1] + key + value + b"s.")


def refusal(path: Path) -> str:
    """The sentence with which the file is refused, by both who read it, naming it and with a hint."""
    with pytest.raises(Damaged) as refused:
        Checkpoint.read(path)
    assert refused.value.exit_code == Exit.DAMAGED == 5
    assert refused.value.hint
    assert str(path) in refused.value.sentence
    assert whole(path) == refused.value.sentence
    return refused.value.sentence


# --- what it says ---------------------------------------------------------------------------------------------------


def test_a_real_checkpoint_says_what_torch_says() -> None:
    checkpoint = Checkpoint.read(REAL)
    assert facts(checkpoint) == json.loads(REAL.with_suffix(".json").read_text(encoding="utf-8"))
    assert checkpoint.foreign == ()
    assert checkpoint.inconsistency() is None
    assert whole(REAL) is None


def test_a_path_with_spaces_quotes_and_unicode_is_read(tmp_path: Path) -> None:
    path = tmp_path / 'it\'s a "fold" für 心.pth'
    shutil.copyfile(REAL, path)
    assert Checkpoint.read(path).current_epoch == 3


def test_history_and_best_are_plain_floats() -> None:
    checkpoint = Checkpoint.read(REAL)
    assert type(checkpoint.best_ema) is float
    assert {type(value) for value in checkpoint.logging["mean_fg_dice"]} == {float}
    assert {type(value) for epoch in checkpoint.logging["dice_per_class_or_region"] for value in epoch} == {float}


@pytest.mark.parametrize("device", ["cuda:0", "mps", "cpu", "cuda:15"])
def test_tensors_saved_on_any_device_are_read(tmp_path: Path, device: str) -> None:
    cpu, there = (len(name).to_bytes(4, "little") + name.encode() for name in ("cpu", device))
    path = with_pickle(tmp_path / "checkpoint.pth", PICKLE.replace(b"X" + cpu, b"X" + there))
    assert Checkpoint.read(path).tensors == Checkpoint.read(REAL).tensors


@pytest.mark.parametrize(
    ("opcodes", "says"), [(b"X\x03\x00\x00\x00mps\x85R", "mps"), (b"X\x04\x00\x00\x00cudaK\x03\x86R", "cuda:3")]
)
def test_a_device_is_told_as_torch_prints_it(tmp_path: Path, opcodes: bytes, says: str) -> None:
    value = b"}X\x06\x00\x00\x00devicectorch\ndevice\n" + opcodes + b"s"
    assert Checkpoint.read(with_entry(tmp_path / "a.pth", "init_args", value)).init_args == {"device": says}


def test_the_state_of_nnx_in_the_init_args_is_read(tmp_path: Path) -> None:
    value = b"}X\x03\x00\x00\x00nnx}X\x06\x00\x00\x00reasonX\x06\x00\x00\x00targetss"
    assert Checkpoint.read(with_entry(tmp_path / "a.pth", "init_args", value)).init_args == {
        "nnx": {"reason": "target"}
    }


def test_a_scaler_that_is_switched_off_counts_as_none(tmp_path: Path) -> None:
    on = b"}X\x05\x00\x00\x00scaleG@\xf0\x00\x00\x00\x00\x00\x00s"
    assert Checkpoint.read(with_entry(tmp_path / "on.pth", "grad_scaler_state", on)).has_grad_scaler
    assert not Checkpoint.read(with_entry(tmp_path / "off.pth", "grad_scaler_state", b"}")).has_grad_scaler
    assert not Checkpoint.read(REAL).has_grad_scaler


def test_code_that_torch_would_run_is_told(tmp_path: Path) -> None:
    path = with_entry(tmp_path / "a.pth", "extra", b"cmy_lab.trainers\nSchedule\n)R")
    assert Checkpoint.read(path).foreign == ("my_lab.trainers.Schedule",)


def test_unknown_objects_in_the_init_args_stay_placeholders(tmp_path: Path) -> None:
    value = b"}X\x04\x00\x00\x00sizecmy_lab\nSize\nK\x01\x85Rs"
    read = Checkpoint.read(with_entry(tmp_path / "a.pth", "init_args", value))
    assert read.init_args == {"size": Opaque("my_lab.Size", (1,))}


def test_an_entry_too_many_in_the_history_is_told(tmp_path: Path) -> None:
    checkpoint = Checkpoint.read(with_entry(tmp_path / "odd one.pth", "current_epoch", b"K\x02"))
    sentence = checkpoint.inconsistency()
    assert sentence == f"{checkpoint.path} says 2 epochs are done, but has 3 entries of mean_fg_dice"


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.5, 0.99, 0.9999])
def test_a_cut_checkpoint_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(REAL_BYTES[: int(len(REAL_BYTES) * kept)])
    assert "cut short" in refusal(path)


OTHER_FILES = {
    "empty": (b"", "is empty"),
    "old torch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
    "text": (b"not a checkpoint", "not a file that torch.save wrote"),
    "four bytes": (b"PK\x03\x04", "cut short"),
    "zeros": (bytes(70_000), "not a file that torch.save wrote"),
}


@pytest.mark.parametrize(("content", "says"), OTHER_FILES.values(), ids=OTHER_FILES.keys())
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    assert says in refusal(path)


@pytest.mark.timeout(10)
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    assert "cannot be read: No such file" in refusal(tmp_path / "missing")
    assert "not a regular file" in refusal(Path("/dev/zero"))


def without(*names: str) -> dict[str, bytes]:
    return {name: content for name, content in MEMBERS.items() if name.removeprefix(f"{FOLDER}/") not in names}


WRONG_MEMBERS = {
    "no pickle": (without("data.pkl"), "0 members named data.pkl"),
    "two pickles": ({**MEMBERS, "other/data.pkl": PICKLE}, "2 members named data.pkl"),
    "no version": (without("version", ".data/version"), "no member named version"),
    "a storage is missing": (without("data/7"), "tensor data '7', they are missing"),
    "a storage is short": ({**MEMBERS, f"{FOLDER}/data/7": b""}, "tensor data '7', they are 0"),
}


@pytest.mark.parametrize(("members", "says"), WRONG_MEMBERS.values(), ids=WRONG_MEMBERS.keys())
def test_a_checkpoint_without_all_its_members_is_refused(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    assert says in refusal(write(tmp_path / "wrong.pth", members))


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "twice.pth", {f"{FOLDER}/data.pk{letter}": PICKLE for letter in "lL"})
    path.write_bytes(path.read_bytes().replace(b"data.pkL", b"data.pkl"))
    assert "the same name" in refusal(path)


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{FOLDER}/data.pkl", bytes(50_000_000))
    assert "compressed" in refusal(path)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    members = {f"{FOLDER}/data/{i:03}": bytes(10) for i in range(100)}
    path = write(tmp_path / "shared.pth", {**members, f"{FOLDER}/data.pkl": PICKLE})
    with zipfile.ZipFile(path, "a") as archive:  # the directory is written anew when the file is closed
        large = archive.getinfo(f"{FOLDER}/data.pkl")
        for info in archive.infolist():
            info.header_offset, info.file_size, info.compress_size = large.header_offset, len(PICKLE), len(PICKLE)
        archive.writestr("more", b"")
    assert "more bytes than the file has" in refusal(path)


def test_a_huge_directory_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "directory.pth", {"a" * 60_000 + str(i): b"" for i in range(80)})
    assert "announces a part of" in refusal(path)


def test_a_huge_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.pth"
    with zipfile.ZipFile(path, "w") as archive, archive.open(f"{FOLDER}/data.pkl", "w") as member:
        for _ in range(40):
            member.write(bytes(2**20))
        member.close()
        archive.writestr(f"{FOLDER}/version", b"3")
    assert "its pickle has 41,943,040 bytes" in refusal(path)


def test_a_tensor_announced_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    five_gb = b"\x8a\x05" + (5 * 10**9 // 4).to_bytes(5, "little")
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + five_gb + b"tQ"
    assert "announces 5,000,000,000 bytes" in refusal(with_entry(tmp_path / "big.pth", "extra", storage))


NOT_NNUNET = {
    "a list": (b"\x80\x02].", "does not hold a dictionary"),
    "a state dict": (b"\x80\x02}.", "no network_weights and no current_epoch"),
}


@pytest.mark.parametrize(("pickle", "says"), NOT_NNUNET.values(), ids=NOT_NNUNET.keys())
def test_a_file_of_torch_that_is_no_training_is_refused(tmp_path: Path, pickle: bytes, says: str) -> None:
    assert says in refusal(with_pickle(tmp_path / "torch.pth", pickle))


ODD_VALUES = [
    ("current_epoch", b"X\x01\x00\x00\x003"),
    ("current_epoch", b"J\xff\xff\xff\xff"),
    ("current_epoch", b"\x88"),
    ("current_epoch", b"\x8a\x14" + b"\x7f" * 20),
    ("_best_ema", b"]"),
    ("trainer_name", b"X\x04\x00\x00\x00\x1b[2J"),
    ("trainer_name", b"K\x01"),
    ("init_args", b"]"),
    ("init_args", b"}q\x00X\x01\x00\x00\x00ah\x00s"),
    ("logging", b"]"),
    ("network_weights", b"N"),
    ("network_weights", b"}K\x01Ns"),
    ("logging", b"})]s"),
    ("inference_allowed_mirroring_axes", b"X\x02\x00\x00\x0001"),
]


@pytest.mark.parametrize(("name", "value"), ODD_VALUES)
def test_a_fact_that_cannot_be_is_refused(tmp_path: Path, name: str, value: bytes) -> None:
    refusal(with_entry(tmp_path / "odd.pth", name, value))


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def hostile(canary: Path) -> dict[str, bytes]:
    """Values that make a file when Python or torch unpickles them."""
    command = text(f"touch {canary}")
    call = b"cos\nsystem\n" + command + b"\x85R"
    return {
        "os.system": call,
        "posix.system": b"cposix\nsystem\n" + command + b"\x85R",
        "eval": b"cbuiltins\neval\n" + text(f"open({str(canary)!r}, 'w')") + b"\x85R",
        "subprocess": b"csubprocess\ncheck_output\n](" + text("touch") + text(str(canary)) + b"e\x85R",
        "getattr": b"cbuiltins\ngetattr\ncos\nX\x06\x00\x00\x00system\x86R" + command + b"\x85R",
        "a dotted name inside torch": b"\x8c\x05torch\x8c\x17serialization.os.system\x93" + command + b"\x85R",
        "an argument of a tensor": b"ctorch._utils\n_rebuild_parameter\n(" + call + b"\x89}tR",
        "an argument of an argument": b"cmade\nup\n(cmade\nup\n(" + call + b"tRtR",
        "INST": b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n",
        "OBJ": b"(cos\nsystem\n" + command + b"o",
        "NEWOBJ": b"cos\nsystem\n" + command + b"\x85\x81",
        "NEWOBJ_EX": b"cos\nsystem\n" + command + b"\x85}\x92",
        "BUILD": b"cmade\nup\n)R}" + text("__setstate__") + b"cos\nsystem\nsb" + command + b"b",
        "a persistent id": call + b"Q",
        "a key": b"}" + call + b"Ns",
    }


KINDS = list(hostile(Path("canary")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"
    path = with_entry(tmp_path / "hostile.pth", "extra", hostile(canary)[kind])
    start = time.perf_counter()
    refusal(path)
    assert time.perf_counter() - start < 2
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["os.system", "posix.system", "eval", "subprocess", "INST", "OBJ", "a key"])
def test_the_hostile_pickles_are_hostile(tmp_path: Path, kind: str) -> None:
    """Python's own unpickler runs them, or the test above would prove nothing."""
    canary = tmp_path / "canary"
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", code], input=hostile(canary)[kind] + b".", check=True)
    assert canary.exists()


# --- damage at random -----------------------------------------------------------------------------------------------


def read_or_refuse(path: Path) -> None:
    start = time.perf_counter()
    try:
        checkpoint = Checkpoint.read(path)
    except Damaged as error:
        assert str(path) in error.sentence
    else:
        checkpoint.inconsistency()
        json.dumps(facts(checkpoint), default=str)
    assert time.perf_counter() - start < 5


def mutated(content: bytes, seed: int) -> bytes:
    """One to four random changes."""
    rng, out = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 4)):
        change(out, rng)
    return bytes(out)


def change(out: bytearray, rng: random.Random) -> None:
    """A byte or an opcode replaced, a piece cut out or repeated elsewhere, or the end cut off."""
    at, other, length = rng.randrange(len(out)), rng.randrange(len(out)), rng.choice([1, 5, 50, 2000])
    kind = rng.choice(["byte", "opcode", "cut out", "repeat", "end"])
    if kind == "byte":
        out[at] = rng.randrange(256)
    elif kind == "opcode":
        out[at] = rng.choice(b"()}]RtbsuejhqrKMJX.\x85\x86\x87\x89\x93")
    elif kind == "cut out":
        del out[at : at + length]
    elif kind == "repeat":
        out[at:at] = out[other : other + length]
    else:
        del out[max(at, len(out) - length, 1) :]


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(seed=st.integers(0, 2**64))
@FUZZ
def test_an_altered_pickle_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    read_or_refuse(with_pickle(tmp_path / "altered.pth", mutated(PICKLE, seed)))


@given(seed=st.integers(0, 2**64))
@FUZZ
def test_an_altered_file_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "altered.pth"
    path.write_bytes(mutated(REAL_BYTES, seed))
    read_or_refuse(path)
    whole(path)


def test_a_changed_byte_anywhere_in_the_members_is_found(tmp_path: Path) -> None:
    path, rng = tmp_path / "changed.pth", random.Random(0)
    with zipfile.ZipFile(REAL) as archive:
        starts = [info.header_offset for info in archive.infolist()]
    lengths = [struct.unpack_from("<HH", REAL_BYTES, start + 26) for start in starts]  # of the name and what follows it
    places = [start + 30 + name + extra for start, (name, extra) in zip(starts, lengths, strict=True)]
    for place, content in zip(places, MEMBERS.values(), strict=True):
        damaged = bytearray(REAL_BYTES)
        damaged[place + rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        reason = whole(path)
        assert reason is not None
        assert str(path) in reason


# --- against torch itself -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that nnU-Net saved just now, each with a JSON of what torch.load says."""
    pytest.importorskip("nnunetv2")
    folder = tmp_path_factory.mktemp("made by nnU-Net")
    subprocess.run([sys.executable, str(DATA / "make.py"), str(folder)], check=True, capture_output=True, timeout=300)
    return folder


@pytest.mark.nnunet
def test_fresh_checkpoints_say_what_torch_says(fresh: Path) -> None:
    paths = sorted(fresh.glob("*.pth"))
    assert [path.stem for path in paths if not path.stem.startswith("nnunet-")] == ["large", "nan", "scaler"]
    for path in paths:
        checkpoint = Checkpoint.read(path)
        assert facts(checkpoint) == json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), path
        assert checkpoint.inconsistency() is None
        assert checkpoint.foreign == ()
        assert whole(path) is None
    assert Checkpoint.read(fresh / "scaler.pth").has_grad_scaler
    assert math.isnan(Checkpoint.read(fresh / "nan.pth").logging["ema_fg_dice"][-1])


@pytest.mark.nnunet
def test_a_large_checkpoint_with_a_long_history_is_read_in_a_moment(fresh: Path) -> None:
    path, times_s = fresh / "large.pth", []
    assert path.stat().st_size > 250e6
    for _ in range(3):
        start = time.perf_counter()
        checkpoint = Checkpoint.read(path)
        times_s.append(time.perf_counter() - start)
    assert len(checkpoint.logging["mean_fg_dice"]) == 1000
    assert min(times_s) < 0.2
