"""What the names in a torch checkpoint's pickle stand for, as plain values: tensors, numpy scalars, devices, dicts.

Everything here is given arguments that a hostile file may have chosen: types are asked before anything is compared,
hashed or multiplied, and a TypeError says no.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import mul
from typing import Any, NamedTuple

from nnunet_ext.errors import Damaged

MAX_DEPTH = 64
MAX_COPIED = 5_000_000  # values and characters; 1000 epochs of 118 classes are 150,000
NUMBERS = {int, float, bool, type(None)}
FLAT = {str, bytes, *NUMBERS}
ITEM_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}


class TensorInfo(NamedTuple):
    """A tensor without its values. (A dataclass takes four times as long to make, and there are hundreds in a file.)"""

    shape: tuple[int, ...]
    dtype: str  # as torch says it, without "torch."
    storage: str  # the key of the archive's member that holds the values
    offset: int  # in elements
    stride: tuple[int, ...]  # in elements

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements, wherever they lie."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Opaque:
    """Stands where a pickle names something that is not rebuilt: a class, a function, or what calling it would make."""

    name: str
    args: tuple[Any, ...] = ()


def plain(value: Any) -> Any:
    """The value copied into dicts, lists, tuples, numbers, text and Opaque, at most MAX_DEPTH deep, nothing shared.

    A pickle may hold a list inside itself, or one list a million times. Raises Damaged for such.
    """
    return _Copy().of(value, MAX_DEPTH)


class Global:
    """A name the pickle refers to; `build` is what calling it with a tuple of arguments gives here; the dtype is there
    when it names one, or a storage class."""

    __slots__ = ("build", "dtype", "name")

    def __init__(self, name: str, build: Callable[[Any], Any], dtype: str) -> None:
        self.name = name
        self.build = build
        self.dtype = dtype


class Storage(NamedTuple):
    """The memory of one or more tensors: one member of the archive."""

    dtype: str
    key: str
    elements: int


class Dtype:
    """A numpy dtype. It is pickled in two steps: its code, then a state that says the byte order."""

    __slots__ = ("_code", "unpack")

    def __init__(self, code: Any) -> None:
        if type(code) is not str:
            raise TypeError
        self._code = NUMPY_CODES.get(code)
        self.unpack: Callable[[bytes], tuple[Any, ...]] | None = None

    def set_state(self, state: Any) -> None:
        order = state[1]
        if type(order) is not str:
            raise TypeError
        if self._code:
            self.unpack = struct.Struct(BYTE_ORDERS[order] + self._code).unpack


def dtype_named(name: str) -> str:
    """torch.float32 or torch.FloatStorage -> "float32"; "" where the name is neither."""
    return DTYPES.get(name.rpartition(".")[2].removesuffix("Storage"), "") if name.startswith("torch.") else ""


def _tensor(args: Any) -> TensorInfo:
    """torch._utils._rebuild_tensor*(storage, offset, shape, stride, requires_grad, hooks, dtype in v3, ...)."""
    memory, offset, shape, stride = args[:4]
    if type(memory) is not Storage or type(shape) is not tuple or type(stride) is not tuple:
        raise TypeError
    dtype, elements = memory.dtype, memory.elements
    if len(args) > 6 and type(args[6]) is Global:
        dtype = args[6].dtype
        elements = elements * ITEM_BYTES[memory.dtype] // ITEM_BYTES[dtype]
    steps = sum(stride)
    if type(sum(shape, offset) + steps) is not int or len(shape) != len(stride):  # an int only if all of them are
        raise TypeError
    last = offset + sum(map(mul, shape, stride)) - steps
    if min((offset, *shape, *stride)) < 0 or (last >= elements and 0 not in shape):
        raise Damaged("its pickle has a tensor that reaches beyond its storage")
    return tuple.__new__(TensorInfo, (shape, dtype, memory.key, offset, stride))


def _numpy_scalar(args: Any) -> Any:
    """numpy.core.multiarray.scalar(dtype, bytes), as a Python number."""
    dtype, raw = args
    return dtype.unpack(raw)[0] if dtype.unpack else Opaque("numpy.generic", (raw,))


def _device(args: Any) -> str:
    """torch.device(kind[, index]) as torch prints it: "cpu", "mps", "cuda:0"."""
    kind, *index = args
    if type(kind) is not str or len(kind) > 32 or {int, *map(type, index)} != {int}:
        raise TypeError
    return ":".join(map(str, args))


def _empty_dict(args: Any) -> dict[Any, Any]:
    """collections.OrderedDict() or defaultdict(factory); the items follow in the pickle."""
    if args and type(args[0]) is not Global:
        raise TypeError
    return {}


def _set(args: Any) -> Any:
    """A set as a list, so that nothing is hashed."""
    if args and type(args[0]) is not list:
        raise TypeError
    return args[0] if args else []


def _empty_bytes(args: Any) -> bytes:
    if args:
        raise TypeError
    return b""


def _size(args: Any) -> Any:
    if type(args[0]) is not tuple:
        raise TypeError
    return args[0]


BUILDERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("collections.OrderedDict", "collections.defaultdict"), _empty_dict),
    **dict.fromkeys(("builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset"), _set),
    "__builtin__.bytes": _empty_bytes,
    **dict.fromkeys([f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")], _tensor),
    "torch._utils._rebuild_parameter": lambda args: args[0],
    "torch._utils._rebuild_parameter_with_state": lambda args: args[0],
    "torch.Size": _size,
    "torch.device": _device,
    "numpy.dtype": lambda args: Dtype(args[0]),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
# A part of a name that only a pickle made to run commands has. Not a proof of harmlessness.
HOSTILE = {
    *("__builtin__", "builtins", "__import__", "asyncio", "code", "ctypes", "eval", "exec", "getattr", "importlib"),
    *("marshal", "multiprocessing", "nt", "os", "pickle", "popen", "posix", "pty", "runpy", "shutil", "socket"),
    *("subprocess", "sys", "system"),
}
DTYPES = {
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "Untyped": "uint8",
    **{dtype: dtype for dtype in ITEM_BYTES},
}
HARMLESS_TYPES = (
    "bool",
    "bytearray",
    "complex",
    "dict",
    "float",
    "int",
    "list",
    "object",
    "range",
    "slice",
    "str",
    "tuple",
)
# Rebuilt as Opaque, and known to run nothing.
INERT = {
    *(f"torch.{dtype}" for dtype in ITEM_BYTES),
    *(f"torch.{kind}Storage" for kind in DTYPES if kind not in ITEM_BYTES),
    "torch.storage.UntypedStorage",
    *(f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in HARMLESS_TYPES),
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "datetime.datetime",
    "datetime.timedelta",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
}
NUMPY_CODES = {"b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"}
NUMPY_CODES |= {"f2": "e", "f4": "f", "f8": "d"}
BYTE_ORDERS = {"<": "<", ">": ">", "|": "=", "=": "="}


class _Copy:
    """A copy of a value that counts what it copies: shared parts become many, a cycle would never end."""

    def __init__(self) -> None:
        self._left = MAX_COPIED

    def of(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in NUMBERS:
            return value
        if kind in (list, tuple, dict):
            return self._container(kind, value, depth - 1)
        if kind in (str, bytes):
            self._spend(len(value))
            return value
        if kind is Opaque:
            return Opaque(value.name, self._container(tuple, value.args, depth - 1))
        return Opaque(value.name if kind is Global else f"torch or numpy {kind.__name__}")

    def _container(self, kind: type, value: Any, depth: int) -> Any:
        self._spend(16 + len(value))
        if depth < 0:
            raise Damaged(f"its values are nested more than {MAX_DEPTH} deep")
        if kind is dict:
            return {self.of(key, depth): self.of(part, depth) for key, part in value.items()}
        return kind(value if NUMBERS.issuperset(map(type, value)) else [self.of(part, depth) for part in value])

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Damaged("its values are too many, or repeated too often")
