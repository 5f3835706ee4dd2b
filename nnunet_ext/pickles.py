"""Reads the pickle inside a torch checkpoint as plain values; runs nothing and imports nothing that it names.

Python's own unpickler cannot be made safe by a strict `find_class`: one opcode makes it allocate gigabytes, and keys
made of nested tuples take for ever to hash, both inside C. So this is an interpreter of the opcodes that checkpoints
need (protocols 2 to 5; the standard library's `pickletools` describes each). An opcode it does not know is refused.
Names that `rebuild` knows build plain values, every other name an inert `Opaque`. Nothing grows beyond a fixed
multiple of the pickle's own length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import repeat
from typing import Any, NamedTuple

from nnunet_ext import rebuild
from nnunet_ext.errors import Damaged
from nnunet_ext.rebuild import FLAT, Dtype, Global, Opaque, Storage

MAX_PICKLE_BYTES = 32 * 2**20  # 1000 epochs of 118 classes take 6 MB
MAX_OPCODES = 4_000_000  # ... and 1.1 million opcodes
MAX_NAMES = 1000
MAX_NAME_CHARS = 256
MAX_KEYS_NOT_TEXT = 16_384  # numbers can be chosen so that their hashes collide, text cannot


class Pickled(NamedTuple):
    """What a pickle holds, the bytes it expects in each storage, and the names it uses that nnx does not know:
    code that torch would run when it loads the file."""

    value: Any
    storages: dict[str, int]
    foreign: tuple[str, ...]


def interpret(data: bytes) -> Pickled:
    """Read one pickle. Raises Damaged, whose sentence is about "its pickle", when it is cut, altered or hostile."""
    if len(data) > MAX_PICKLE_BYTES:
        raise Damaged(f"its pickle has {len(data):,} bytes, and nnx reads at most {MAX_PICKLE_BYTES:,}")
    machine = _Machine(data)
    try:
        value = machine.run()
    except (LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise Damaged("its pickle is cut short or altered") from error
    return Pickled(value, machine.storages, tuple(machine.foreign))


class _Machine:
    """The pickle machine: a stack, the heights of its marks, and a memo.

    The memo is a dict, so that a huge index costs nothing. No length is compared with what is there: a slice stops
    at the end of the data, and the next opcode is then found missing.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, int] = {}
        self.foreign: dict[str, None] = {}
        self._names: dict[str, Global] = {}
        self._keys_not_text = 0
        self._encoded_chars = 0

    def run(self) -> Any:
        """Interpret until STOP. What checkpoints are made of stands here, most frequent first, because calling a
        function takes as long as three of these opcodes; the rest is in OPCODES."""
        data, stack, memo, others, uint32 = self.data, self.stack, self.memo, OPCODES, _UINT32
        push, pop, mark, unmark, at = stack.append, stack.pop, self.marks.append, self.marks.pop, 0
        for _ in repeat(None, MAX_OPCODES):
            op = data[at]
            at += 1
            if op == 0x72:  # LONG_BINPUT
                memo[uint32(data, at)[0]] = stack[-1]
                at += 4
            elif op == 0x6A:  # LONG_BINGET
                push(memo[uint32(data, at)[0]])
                at += 4
            elif op == 0x4B:  # BININT1
                push(data[at])
                at += 1
            elif op == 0x68:  # BINGET
                push(memo[data[at]])
                at += 1
            elif op == 0x52:  # REDUCE; of all that can lie on the stack only a Global has `build`
                args = pop()
                stack[-1] = stack[-1].build(args)
            elif op == 0x86:  # TUPLE2
                second = pop()
                stack[-1] = (stack[-1], second)
            elif op == 0x28:  # MARK
                mark(len(stack))
            elif op == 0x58:  # BINUNICODE
                start = at + 4
                at = start + uint32(data, at)[0]
                push(data[start:at].decode())
            elif op == 0x74:  # TUPLE
                bottom = unmark()
                stack[bottom:] = (tuple(stack[bottom:]),)
            elif op == 0x2E:  # STOP
                return pop()
            else:
                at = others[op](self, at)
        raise Damaged(f"its pickle has more than {MAX_OPCODES:,} opcodes")

    def above_mark(self) -> list[Any]:
        """Take what lies above the last mark off the stack."""
        bottom = self.marks.pop()
        items = self.stack[bottom:]
        del self.stack[bottom:]
        return items

    def push_name(self, module: str, qualified_name: str) -> None:
        """Push the global of that name; one that has no business in a checkpoint is refused at once."""
        name = f"{module}.{qualified_name}"
        if name not in self._names:
            if len(name) > MAX_NAME_CHARS or not name.isprintable() or len(self._names) >= MAX_NAMES:
                raise Damaged(f"its pickle names more than {MAX_NAMES:,} things, or one that cannot be a name")
            self._names[name] = Global(name, self._builder(name), rebuild.dtype_named(name))
        self.stack.append(self._names[name])

    def _builder(self, name: str) -> Callable[[Any], Any]:
        if name == "_codecs.encode":
            return self._encode
        if name in rebuild.BUILDERS:
            return rebuild.BUILDERS[name]
        if name not in rebuild.INERT:
            if not rebuild.HOSTILE.isdisjoint(name.split(".")):
                raise Damaged(f"its pickle names {name!r}: loading it in torch could run commands")
            self.foreign[name] = None
        return lambda args: Opaque(name, args if type(args) is tuple else (args,))

    def _encode(self, args: Any) -> bytes:
        """Bytes as protocol 2 writes them. One text could be encoded again and again, so lengths are summed."""
        text, encoding = args
        if type(text) is not str or encoding != "latin1":
            raise TypeError
        self._encoded_chars += len(text)
        if self._encoded_chars > len(self.data):
            raise Damaged("its pickle encodes more text than it holds")
        return text.encode("latin-1")

    def storage(self, persistent_id: Any) -> Storage:
        """The storage that a persistent id announces: ("storage", class, key, location, number of elements)."""
        kind, cls, key, _, elements = persistent_id
        if kind != "storage" or type(cls) is not Global or type(key) is not str or type(elements) is not int:
            raise TypeError
        size_bytes = elements * rebuild.ITEM_BYTES[cls.dtype]
        if size_bytes > self.storages.setdefault(key, size_bytes):
            self.storages[key] = size_bytes
        return Storage(cls.dtype, key, elements)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        if type(key) is str and type(self.stack[-1]) is dict:
            self.stack[-1][key] = value
        else:
            self.set_items([key, value])

    def set_items(self, items: list[Any]) -> None:
        """Put key, value, key, value ... into the dict on top of the stack; an Opaque takes none."""
        keys, target = items[::2], self.stack[-1]
        if {str, *map(type, keys)} != {str}:
            self._check_keys(keys)
        if type(target) is dict and not len(items) % 2:
            target.update(zip(keys, items[1::2], strict=True))
        elif type(target) is not Opaque:
            raise TypeError

    def _check_keys(self, keys: list[Any]) -> None:
        """Only flat keys, and not too many: a hostile key takes for ever to hash, hostile numbers hash alike."""
        for key in keys:
            parts = key if type(key) is tuple else (key,)
            if not FLAT.issuperset(map(type, parts)):
                raise Damaged("its pickle has a dictionary whose keys are not plain values")
            self._keys_not_text += max(1, len(parts))
        if self._keys_not_text > MAX_KEYS_NOT_TEXT:
            raise Damaged(f"its pickle has more than {MAX_KEYS_NOT_TEXT:,} dictionary keys that are not text")

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top of the stack; an Opaque takes none."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Opaque:
            raise TypeError


_UINT32 = struct.Struct("<I").unpack_from

# The other opcodes: functions that are given the machine and the place of the operand, and give the next place.
Opcode = Callable[[_Machine, int], int]


def _new(make: Callable[[], Any]) -> Opcode:
    def opcode(machine: _Machine, at: int) -> int:
        machine.stack.append(make())
        return at

    return opcode


def _constant(value: Any) -> Opcode:
    def opcode(machine: _Machine, at: int) -> int:
        machine.stack.append(value)
        return at

    return opcode


def _number(layout: str) -> Opcode:
    number = struct.Struct(layout)

    def opcode(machine: _Machine, at: int) -> int:
        machine.stack.extend(number.unpack_from(machine.data, at))
        return at + number.size

    return opcode


def _counted(width: int, convert: Callable[[bytes], Any]) -> Opcode:
    """A length of that many bytes, then as many bytes as it says."""

    def opcode(machine: _Machine, at: int) -> int:
        start = at + width
        end = start + int.from_bytes(machine.data[at:start], "little")
        machine.stack.append(convert(machine.data[start:end]))
        return end

    return opcode


def _tuple1(machine: _Machine, at: int) -> int:
    machine.stack[-1] = (machine.stack[-1],)
    return at


def _set_item(machine: _Machine, at: int) -> int:
    machine.set_item()
    return at


def _on_top(act: Callable[[_Machine, list[Any]], None], count: int | None = None) -> Opcode:
    """Take `count` values off the stack, or all above the mark, and hand them to what lies below."""

    def opcode(machine: _Machine, at: int) -> int:
        if count is None:
            act(machine, machine.above_mark())
        else:
            act(machine, [machine.stack.pop() for _ in range(count)][::-1])
        return at

    return opcode


def _proto(machine: _Machine, at: int) -> int:
    if not 2 <= machine.data[at] <= 5:
        raise Damaged(f"its pickle is of protocol {machine.data[at]}, and nnx reads 2 to 5")
    return at + 1


def _put(machine: _Machine, at: int) -> int:
    machine.memo[machine.data[at]] = machine.stack[-1]
    return at + 1


def _memoize(machine: _Machine, at: int) -> int:
    machine.memo[len(machine.memo)] = machine.stack[-1]
    return at


def _global(machine: _Machine, at: int) -> int:
    middle = machine.data.index(b"\n", at)
    end = machine.data.index(b"\n", middle + 1)
    machine.push_name(machine.data[at:middle].decode(), machine.data[middle + 1 : end].decode())
    return end + 1


def _stack_global(machine: _Machine, names: list[Any]) -> None:
    if {*map(type, names)} != {str}:
        raise TypeError
    machine.push_name(*names)


def _new_object(machine: _Machine, args: list[Any]) -> None:
    machine.stack[-1] = machine.stack[-1].build(args[0])


def _set_state(machine: _Machine, state: list[Any]) -> None:
    """What follows the making of an object: kept for a dtype only; of an OrderedDict it is torch's version notes."""
    if type(machine.stack[-1]) is Dtype:
        machine.stack[-1].set_state(state[0])


def _storage(machine: _Machine, at: int) -> int:
    machine.stack[-1] = machine.storage(machine.stack[-1])
    return at


def _push_tuple(machine: _Machine, items: list[Any]) -> None:
    machine.stack.append(tuple(items))


def _push_list(machine: _Machine, items: list[Any]) -> None:
    machine.stack.append(items)


def _long(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


OPCODES: dict[int, Opcode] = {
    0x80: _proto,  # PROTO
    0x95: lambda machine, at: at + 8,  # FRAME
    0x71: _put,  # BINPUT
    0x94: _memoize,  # MEMOIZE
    0x4E: _constant(None),  # NONE
    0x88: _constant(True),  # NEWTRUE
    0x89: _constant(False),  # NEWFALSE
    0x29: _constant(()),  # EMPTY_TUPLE
    0x5D: _new(list),  # EMPTY_LIST
    0x7D: _new(dict),  # EMPTY_DICT
    0x8F: _new(list),  # EMPTY_SET: sets are lists here, so that nothing is hashed
    0x4A: _number("<i"),  # BININT
    0x4D: _number("<H"),  # BININT2
    0x47: _number(">d"),  # BINFLOAT
    0x8A: _counted(1, _long),  # LONG1
    0x8C: _counted(1, bytes.decode),  # SHORT_BINUNICODE
    0x43: _counted(1, bytes),  # SHORT_BINBYTES
    0x42: _counted(4, bytes),  # BINBYTES
    0x85: _tuple1,  # TUPLE1
    0x87: _on_top(_push_tuple, 3),  # TUPLE3
    0x73: _set_item,  # SETITEM
    0x75: _on_top(_Machine.set_items),  # SETITEMS
    0x61: _on_top(_Machine.extend, 1),  # APPEND
    0x65: _on_top(_Machine.extend),  # APPENDS
    0x90: _on_top(_Machine.extend),  # ADDITEMS
    0x91: _on_top(_push_list),  # FROZENSET
    0x63: _global,  # GLOBAL
    0x93: _on_top(_stack_global, 2),  # STACK_GLOBAL
    0x81: _on_top(_new_object, 1),  # NEWOBJ
    0x62: _on_top(_set_state, 1),  # BUILD
    0x51: _storage,  # BINPERSID
}
