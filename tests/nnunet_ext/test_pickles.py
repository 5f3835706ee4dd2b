"""The pickle interpreter gives the same plain values as Python's own, and refuses what only a hostile pickle holds."""

from __future__ import annotations

import pickle
import pickletools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ext.errors import Damaged
from nnunet_ext.pickles import MAX_NAMES, OPCODES, interpret
from nnunet_ext.rebuild import Opaque, plain

START = b"\x80\x02"
HOT_OPCODES = b"rjKhR\x86(Xt."
scalars = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary()
)
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda parts: st.lists(parts) | st.dictionaries(keys, parts) | st.tuples(parts, parts, parts) | st.tuples(parts),
    max_leaves=40,
)


@given(value=values, protocol=st.sampled_from([2, 3, 4, 5]))
@settings(deadline=None)
def test_plain_values_are_read_as_python_reads_them(value: Any, protocol: int) -> None:
    assert plain(interpret(pickle.dumps(value, protocol=protocol)).value) == value


def test_many_and_long_values_are_read_as_python_reads_them() -> None:
    value = {"long" * 1000: list(range(-300, 70_000, 7)), "texts": [str(i) for i in range(2000)], "b": b"\xff" * 300}
    for protocol in (2, 3, 4, 5):
        assert interpret(pickle.dumps(value, protocol=protocol)).value == value


def test_a_shared_part_is_read_once() -> None:
    shared = ["part"]
    first, second = interpret(pickle.dumps([shared, shared], protocol=2)).value
    assert first is second


def test_a_set_becomes_a_list() -> None:
    for protocol in (2, 4):
        assert interpret(pickle.dumps({5}, protocol=protocol)).value == [5]
        assert interpret(pickle.dumps(frozenset({5}), protocol=protocol)).value == [5]


def test_an_unknown_name_becomes_an_inert_placeholder_and_is_told() -> None:
    read = interpret(START + b"cmade.up\nThing\n(K\x01K\x02tR}X\x01\x00\x00\x00aK\x03sb.")
    assert read.value == Opaque("made.up.Thing", (1, 2))
    assert read.foreign == ("made.up.Thing",)


def test_harmless_library_values_become_placeholders_and_are_not_told() -> None:
    import datetime

    read = interpret(pickle.dumps([Path("a"), datetime.timedelta(1), complex(1, 2), bytearray(b"x")], protocol=2))
    assert [type(value) for value in read.value] == [Opaque] * 4
    assert read.foreign == ()


def test_numpy_scalars_of_both_numpys_become_numbers() -> None:
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        float32 = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"
        float32 += b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        raw = b"c_codecs\nencode\nX\x05\x00\x00\x00\x00\x00\xc2\x80>X\x06\x00\x00\x00latin1\x86R"
        read = interpret(START + b"c" + module + b"\nscalar\n" + float32 + raw + b"\x86R.")
        assert read.value == 0.25
        assert type(read.value) is float
        assert read.foreign == ()


def test_every_opcode_that_checkpoints_do_not_need_is_refused() -> None:
    known = {*OPCODES, *HOT_OPCODES}
    unknown = [op for op in pickletools.opcodes if ord(op.code) not in known]
    assert {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "PERSID", "DUP", "NEXT_BUFFER"} <= {op.name for op in unknown}
    for code in set(range(256)) - known:
        with pytest.raises(Damaged):
            interpret(START + b"]}(K\x01K\x02" + bytes([code]) + b"K\x01\x00\x00\x00\x00\x00\x00\x00\n\n.")


def test_a_pickle_cut_anywhere_is_refused() -> None:
    whole = pickle.dumps({"a": [1, 2.5, "text", (1, None, b"raw")], 7: {"b": 2**40}}, protocol=2)
    for end in range(len(whole)):
        with pytest.raises(Damaged):
            interpret(whole[:end])


NAMES = ["os\nsystem", "posix\nsystem", "nt\nsystem", "builtins\neval", "__builtin__\nexec", "subprocess\nPopen"]
NAMES += [
    "torch\nserialization.os.system",
    "torch.serialization\nos.popen",
    "importlib\nimport_module",
    "builtins\ngetattr",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_runs_commands_is_refused_wherever_it_stands(name: str) -> None:
    short = name.replace("\n", ".")
    by_stack = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name.split("\n")) + b"\x93"
    for named in (b"c" + name.encode() + b"\n", by_stack):
        for use in (b".", b"(K\x01tR.", b")\x81.", b"}b."):
            with pytest.raises(Damaged, match=short.replace(".", "[.]")):
                interpret(START + named + use)


NOT_OURS = {
    "the result of a call is called": b"cmade.up\nThing\n)R)R.",
    "a text is called": b"X\x01\x00\x00\x00a)R.",
    "a dtype is called": b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R)R.",
    "a state is given to a name": b"cmade.up\nThing\n}X\x05\x00\x00\x00build)sb)R)R.",
    "a dict is extended": b"}(K\x01e.",
    "a list is given items": b"](K\x01K\x02u.",
    "a dict is given a key without a value": b"}(K\x01u.",
    "there is no mark": b"K\x01t.",
    "there is nothing to pop": b"R.",
    "the memo has no such entry": b"j\x00\x00\x00\x00.",
    "a name is made of numbers": b"K\x01K\x02\x93.",
    "a dtype is a tuple": b"cnumpy\ndtype\n)\x85R.",
    "bytes are made of bytes": b"c_codecs\nencode\nC\x01aX\x06\x00\x00\x00latin1\x86R.",
    "a device is a number": b"ctorch\ndevice\nK\x01\x85R.",
    "a size is a number": b"ctorch\nSize\nK\x01\x85R.",
    "a tensor lies in a number": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.",
    "a storage is a text": b"X\x07\x00\x00\x00storageQ.",
    "a storage is of no known class": b"(X\x07\x00\x00\x00storageca\nb\nX\x01\x00\x00\x000X\x00\x00\x00\x00K\x01tQ.",
    "a name clears the screen": b"cmade\n\x1b[2J\n.",
    "a key is a list": b"}]K\x01s.",
    "a key is a tuple in a tuple": b"})\x85\x85K\x01s.",
    "protocol 1": b"\x80\x01K\x01.",
    "protocol 6": b"\x80\x06K\x01.",
}


@pytest.mark.parametrize("payload", NOT_OURS.values(), ids=NOT_OURS.keys())
def test_a_pickle_no_pickler_writes_is_refused(payload: bytes) -> None:
    with pytest.raises(Damaged):
        interpret(START + payload)


def tensor(shape: bytes, stride: bytes, elements: bytes = b"K\x04", offset: bytes = b"K\x00") -> bytes:
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + elements + b"tQ"
    )
    return START + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + stride + b"\x89}tR."


def test_a_tensor_is_described() -> None:
    read = interpret(tensor(b"K\x02K\x02\x86", b"K\x02K\x01\x86"))
    assert read.value == ((2, 2), "float32", "0", 0, (2, 1))
    assert read.value.size_bytes == 16
    assert read.storages == {"0": 16}


HUGE = b"\x8a\x09" + bytes(8) + b"\x01"
BEYOND = {
    "one too many": tensor(b"K\x05\x85", b"K\x01\x85"),
    "shifted": tensor(b"K\x04\x85", b"K\x01\x85", offset=b"K\x01"),
    "before it": tensor(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
    "negative": tensor(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "negative memory": tensor(b"K\x01\x85", b"K\x01\x85", elements=b"J\xff\xff\xff\xff"),
    "huge": tensor(HUGE + b"\x85", HUGE + b"\x85"),
    "a text times a number": tensor(b"X\x01\x00\x00\x00a\x85", HUGE + b"\x85"),
    "a shape without strides": tensor(b"K\x02\x85", b")"),
}


@pytest.mark.parametrize("payload", BEYOND.values(), ids=BEYOND.keys())
def test_a_tensor_beyond_its_storage_is_refused(payload: bytes) -> None:
    with pytest.raises(Damaged):
        interpret(payload)


def laughs(levels: int) -> bytes:
    """A list of twice a list of twice a list ..., ten bytes for each."""
    return START + b"]q\x00" + b"](h\x00h\x00eq\x00" * levels + b"."


def test_a_value_that_grows_when_it_is_copied_is_refused() -> None:
    assert plain(interpret(laughs(1)).value) == [[], []]
    for levels in (30, 60):
        start = time.perf_counter()
        with pytest.raises(Damaged, match="repeated too often"):
            plain(interpret(laughs(levels)).value)
        assert time.perf_counter() - start < 10


def test_a_list_inside_itself_is_refused() -> None:
    with pytest.raises(Damaged, match="nested more than 64 deep"):
        plain(interpret(START + b"]q\x00(h\x00e.").value)


def test_one_text_a_thousand_times_is_refused() -> None:
    with pytest.raises(Damaged, match="repeated too often"):
        plain(interpret(START + b"X\x00\x00\x01\x00" + b"a" * 2**16 + b"q\x00](" + b"h\x00" * 999 + b"e.").value)


def test_a_huge_memo_index_costs_nothing() -> None:
    assert interpret(START + b"K\x01r\xff\xff\xff\xffj\xff\xff\xff\xff.").value == 1


def greedy() -> dict[str, bytes]:
    """Small or allowed pickles that would take gigabytes or hours, had nothing been done about them."""
    many = 4_000_100
    text = b"X" + (2**20).to_bytes(4, "little") + b"a" * 2**20
    same_hash = b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(200_000))
    nested = b")" + b"q\x00h\x00\x86" * 60
    return {
        "a text of 4 GB": START + b"X\xff\xff\xff\xffa.",
        "bytes of 4 GB": START + b"B\xff\xff\xff\xffa.",
        "a frame of 2**63 bytes": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "millions of dicts": START + b"}" * many + b".",
        "millions of marks": START + b"(" * many + b".",
        "a tuple a million deep": START + b")" + b"\x85" * 1_000_000 + b".",
        "a placeholder half a million deep": START
        + b"ca\nb\nq\x00"
        + b"h\x00" * 500_000
        + b")"
        + b"R\x85" * 500_000
        + b".",
        "numbers that hash alike": START + b"}(" + same_hash + b"u.",
        "a key that takes for ever to hash": START + b"}" + nested + b"Ns.",
        "a dtype that takes for ever to hash": START + b"cnumpy\ndtype\n" + nested + b"\x85R.",
        "a text encoded again and again": START
        + b"c_codecs\nencode\nq\x01"
        + text
        + b"q\x02"
        + b"h\x01h\x02X\x06\x00\x00\x00latin1\x86R" * 100_000
        + b".",
        "names without end": START + b"".join(b"ca\n%d\n" % i for i in range(10 * MAX_NAMES)) + b".",
        "a name of a million dots": START + b"ca\n" + b"." * 2**20 + b"\n.",
        "more than nnx reads": b"\x80\x02" + bytes(2**25),
    }


CHILD = """
import resource, sys, time
sys.path[:0] = sys.argv[1:3]
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
from test_pickles import greedy
from nnunet_ext.errors import Damaged
from nnunet_ext.pickles import interpret
from nnunet_ext.rebuild import plain
for name, payload in greedy().items():
    start = time.perf_counter()
    try:
        plain(interpret(payload).value)
    except Damaged:
        print(f"{time.perf_counter() - start:.3f}", name)
"""


def test_a_greedy_pickle_is_refused_in_bounded_time_and_memory() -> None:
    here, root = Path(__file__).parent, Path(__file__).parents[2]
    arguments = [sys.executable, "-c", CHILD, str(root), str(here)]
    child = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert child.stderr == ""
    print(child.stdout)
    seconds = [line.split(" ", 1) for line in child.stdout.splitlines()]
    refused = {name: float(taken) for taken, name in seconds}
    assert set(greedy()) == set(refused)
    assert max(refused.values()) < 10
