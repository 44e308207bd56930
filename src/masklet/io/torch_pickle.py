"""Reading the pickle inside a torch file as data, never as a program.

In: the bytes of `data.pkl`. Out: its value, made of text, numbers, tuples, dicts with text keys, `TensorRef`
and `StorageRef`; everything else becomes `OPAQUE`. Knows nothing about zip archives, where storages lie, or
whether a tensor fits its storage.

Python's unpickler is not used, not even restricted: it imports, calls and hashes what the file says, and lets
a few bytes ask for gigabytes. The small machine below knows only the instructions that PyTorch writes:

- A global is looked up in a closed table and stands for one of a few roles. Nothing is imported or called by
  name.
- Harmless classes that fine-tuning scripts save beside the weights are on the table too, as inert: whatever
  is built from them, or done to them, is `OPAQUE` and forgotten.
- No value is ever traversed, hashed (text apart), compared or printed, so nesting and shared references cost
  nothing.
- Each instruction allocates at most some 100 bytes beyond its own text in the file, and instructions are
  counted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from masklet.errors import CorruptFileError, UnknownFormatError, UnsafeFileError
from masklet.io.tensor_table import quoted

MAX_INSTRUCTIONS = 2_000_000  # a tensor takes about 40, an AdamW state three tensors more
_MAX_INTEGER_BYTES = 8
_MAX_TENSOR_ARGUMENTS = 8
_MAX_DIMENSIONS = 64  # PyTorch's own limit; the table of tensors has a lower one


@dataclass(frozen=True)
class StorageRef:
    """A storage, by the key of its data member; `dtype` is None for untyped ones, which count bytes."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor as the pickle describes it, not yet compared with its storage; all numbers in elements."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """A value that masklet has no use for."""


OPAQUE = Opaque()


@dataclass(frozen=True)
class _Global:
    role: str  # "dict", "tensor", "parameter", "subclass", "storage", "dtype" or "inert"
    dtype: str | None = None


_DTYPES = {
    "float64": "f64", "double": "f64", "float32": "f32", "float": "f32", "float16": "f16", "half": "f16",
    "bfloat16": "bf16", "float8_e4m3fn": "f8_e4m3", "float8_e5m2": "f8_e5m2", "float8_e8m0fnu": "f8_e8m0",
    "complex64": "c64", "complex128": "c128", "int64": "i64", "long": "i64", "int32": "i32", "int": "i32",
    "int16": "i16", "short": "i16", "int8": "i8",
    "uint64": "u64", "uint32": "u32", "uint16": "u16", "uint8": "u8", "bool": "bool",
}  # fmt: skip
STORAGES = {
    "Double": "f64", "Float": "f32", "Half": "f16", "BFloat16": "bf16", "Bool": "bool",
    "ComplexFloat": "c64", "ComplexDouble": "c128", "Long": "i64", "Int": "i32", "Short": "i16", "Char": "i8",
    "Byte": "u8",
}  # fmt: skip
_INERT = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "builtins": "set frozenset list tuple bytearray complex slice range object int float str bool bytes",
    "__builtin__": "set frozenset list tuple bytearray complex slice xrange object int long float str"
    " unicode bool bytes",
    "collections": "defaultdict Counter deque",
    "copyreg": "_reconstructor",
    "copy_reg": "_reconstructor",
    "_codecs": "encode",
    "datetime": "datetime date time timedelta timezone",
    "pathlib": "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "pathlib._local": "PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "typing": "Any",
    "numpy": "ndarray dtype bool_ float16 float32 float64 int32 int64",
    "numpy.dtypes": "BoolDType Float16DType Float32DType Float64DType Int32DType Int64DType UInt32DType"
    " UInt64DType",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.base": "Metadata ContainerMetadata",
    "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode EnumNode PathNode BytesNode",
    "torch": "Size device Tensor",
    "torch.serialization": "_get_layout",
    "torch._utils": "_rebuild_sparse_tensor",
    "torch.torch_version": "TorchVersion",
    "yacs.config": "CfgNode",
    "easydict": "EasyDict",
}  # fmt: skip
_GLOBALS = {
    **{(module, name): _Global("inert") for module, names in _INERT.items() for name in names.split()},
    **{("torch", name): _Global("dtype", dtype) for name, dtype in _DTYPES.items()},
    **{("torch", f"{name}Storage"): _Global("storage", dtype) for name, dtype in STORAGES.items()},
    ("torch.storage", "UntypedStorage"): _Global("storage"),
    ("torch", "UntypedStorage"): _Global("storage"),
    ("collections", "OrderedDict"): _Global("dict"),
    ("builtins", "dict"): _Global("dict"),
    ("__builtin__", "dict"): _Global("dict"),
    ("torch._utils", "_rebuild_tensor_v2"): _Global("tensor"),
    ("torch._utils", "_rebuild_tensor_v3"): _Global("tensor"),
    ("torch._utils", "_rebuild_parameter"): _Global("parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"): _Global("parameter"),
    ("torch.nn.parameter", "Parameter"): _Global("parameter"),
    ("torch._tensor", "_rebuild_from_type_v2"): _Global("subclass"),
}


def read_pickle(data: bytes) -> Any:
    """The value that a torch file's pickle describes.

    Raises `UnsafeFileError` for a global outside the closed table, and `CorruptFileError` for anything that
    `torch.save` does not write. Whatever the bytes, nothing is executed.
    """
    machine = _Machine(data)
    try:
        for _ in range(MAX_INSTRUCTIONS):
            if machine.step():
                return machine.stack.pop()
    except (IndexError, struct.error, UnicodeDecodeError) as error:  # cut short, an empty stack, bad text
        raise CorruptFileError(f"its pickle is damaged ({type(error).__name__})") from error
    raise CorruptFileError(
        f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions; a checkpoint of this kind needs some"
        " thousands. If the file is yours, save the weights alone: torch.save(model.state_dict(), ...)"
    )


class _Machine:
    """A pickle machine's position, stack, marks and memo, over values that cannot do anything."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.stack: list[Any] = []
        self.below_mark: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self) -> bool:
        """Perform one instruction; True when it was the last."""
        code = self.data[self.position : self.position + 1]
        self.position += 1
        if code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code])
        elif (action := _ACTIONS.get(code)) is not None:
            action(self)
        elif code in _WITH_NUMBER:
            number, action = _WITH_NUMBER[code]
            action(self, self.read_number(number))
        elif code in _WITH_BYTES:
            length, action = _WITH_BYTES[code]
            action(self, self.read_bytes(self.read_number(length)))
        elif code != b".":
            raise CorruptFileError(f"its pickle has the instruction {code!r} where torch.save writes none")
        return code == b"."

    # Arguments. `struct.error` and `IndexError` mean a damaged pickle, and are reported as such above.

    def read_number(self, number: struct.Struct) -> Any:
        (value,) = number.unpack_from(self.data, self.position)
        self.position += number.size
        return value

    def read_bytes(self, length: int) -> bytes:
        end = self.position + length
        if not self.position <= end <= len(self.data):
            raise IndexError
        content = self.data[self.position : end]
        self.position = end
        return content

    def read_line(self) -> str:
        end = self.data.find(b"\n", self.position)
        line = self.read_bytes(end - self.position).decode()
        self.position += 1
        return line

    # Stack and memo

    def mark(self) -> None:
        self.below_mark.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below_mark.pop()
        return items

    def pop(self) -> None:
        self.stack.pop()

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise CorruptFileError("its pickle refers to a value that it has not stored")
        self.stack.append(self.memo[index])

    # Values

    def number(self, value: float) -> None:
        self.stack.append(value)

    def integer(self, content: bytes) -> None:
        value = int.from_bytes(content[:_MAX_INTEGER_BYTES], "little", signed=True)
        self.stack.append(value if len(content) <= _MAX_INTEGER_BYTES else OPAQUE)

    def text(self, content: bytes) -> None:
        self.stack.append(content.decode("utf-8", "surrogatepass"))

    def old_text(self, content: bytes) -> None:
        self.stack.append(content.decode("latin-1"))

    def opaque(self, _: bytes) -> None:
        self.stack.append(OPAQUE)

    def empty_dict(self) -> None:
        self.stack.append({})

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise IndexError
        self.stack[-count:] = [items]

    def tuple_from_mark(self) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def opaque_from_mark(self) -> None:
        self.pop_mark()
        self.stack.append(OPAQUE)

    def append(self) -> None:
        self.stack.pop()
        self.expect_opaque()

    def append_from_mark(self) -> None:
        self.pop_mark()
        self.expect_opaque()

    def expect_opaque(self) -> None:
        if self.stack[-1] is not OPAQUE:  # lists and sets are
            raise CorruptFileError("its pickle appends to something that is not a list")

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def set_items_from_mark(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        """Keep the text keys: state dicts have no others, and a file's other values could be slow to hash."""
        target = self.stack[-1]
        if len(items) % 2 or not (target is OPAQUE or type(target) is dict):
            raise CorruptFileError("its pickle sets items of something that is not a dict")
        if target is not OPAQUE:
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update({key: value for key, value in pairs if type(key) is str})

    # Globals and what is made from them

    def find_global(self) -> None:
        module, name = self.read_line(), self.read_line()
        self.push_global(module, name)

    def find_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise CorruptFileError("its pickle names a global by something that is not text")
        self.push_global(module, name)

    def find_extension(self, code: int) -> None:
        self.push_global("copyreg", f"extension {code}")

    def instance(self) -> None:
        self.find_global()
        raise CorruptFileError("its pickle makes an object in a way that torch.save never writes")

    def push_global(self, module: str, name: str) -> None:
        found = _GLOBALS.get((module, name))
        if found is None:
            raise UnsafeFileError(
                f"its pickle asks for {quoted(f'{module}.{name}')}, which is not on the closed list of things"
                " that weights need (tensors, storages, plain containers). Nothing was executed. If you trust"
                " the file, save its weights alone with PyTorch:"
                ' torch.save({"model": model.state_dict()}, ...)'
            )
        self.stack.append(OPAQUE if found.role == "inert" else found)

    def call(self) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        match callee, arguments:
            case Opaque(), _:
                made = OPAQUE
            case _Global(role="dict"), ():
                made = {}
            case _Global(role="tensor"), tuple():
                made = _tensor(arguments)
            case _Global(role="parameter"), (TensorRef() | Opaque() as made, *_):
                pass
            case _Global(role="subclass"), (_Global(role="tensor"), _, tuple(inner), _):
                made = _tensor(inner)
            case _:
                raise CorruptFileError("its pickle makes an object in a way that torch.save never writes")
        self.stack.append(made)

    def call_with_keywords(self) -> None:
        self.stack.pop()
        self.call()

    def build(self) -> None:
        """State given to an object: attributes such as a state dict's `_metadata`. None is needed."""
        self.stack.pop()
        if not (self.stack[-1] is OPAQUE or type(self.stack[-1]) in (dict, TensorRef)):
            raise CorruptFileError("its pickle gives a state to something that has none")

    def find_storage(self) -> None:
        match self.stack.pop():
            case ("storage", _Global(role="storage", dtype=dtype), str(key), _, int(count), *_):
                self.stack.append(StorageRef(key, dtype, count))
            case _:
                raise CorruptFileError("its pickle has a malformed storage reference")


def _tensor(arguments: tuple[Any, ...]) -> TensorRef:
    """Storage, offset, shape, strides, requires_grad, hooks, [dtype in v3,] [metadata]."""
    match arguments:
        case (StorageRef() as storage, int(offset), tuple(shape), tuple(strides), _, _, *_):
            rest = list(arguments[6:_MAX_TENSOR_ARGUMENTS])
        case _:
            raise CorruptFileError("its pickle has a malformed tensor")
    if len(arguments) > _MAX_TENSOR_ARGUMENTS or max(len(shape), len(strides)) > _MAX_DIMENSIONS:
        raise CorruptFileError("its pickle has a tensor with too many arguments or dimensions")
    dtype = storage.dtype or "u8"
    if rest and isinstance(rest[0], _Global):
        dtype = rest.pop(0).dtype
    sizes = (offset, *shape, *strides)
    if dtype is None or len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in sizes):
        raise CorruptFileError("its pickle has a malformed tensor")
    if rest and rest[0]:
        raise UnknownFormatError(
            "it holds a tensor that is marked as conjugated or negated, which masklet does not apply; call"
            " resolve_conj() and resolve_neg() on its tensors in PyTorch and save it again"
        )
    return TensorRef(storage, dtype, offset, shape, strides)


_U8, _U16, _U32, _U64 = (struct.Struct(f"<{code}") for code in "BHIQ")
_I32, _F64 = struct.Struct("<i"), struct.Struct(">d")


def _ignore(machine: _Machine, argument: int) -> None:
    """The protocol's version and the length of a frame change nothing here."""


_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": (), b"]": OPAQUE, b"\x8f": OPAQUE}
_ACTIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": _Machine.pop_mark,
    b"\x94": _Machine.memoize,
    b"}": _Machine.empty_dict,
    b"t": _Machine.tuple_from_mark,
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"a": _Machine.append,
    b"e": _Machine.append_from_mark,  # to a list
    b"\x90": _Machine.append_from_mark,  # to a set
    b"\x91": _Machine.opaque_from_mark,  # a frozenset
    b"s": _Machine.set_item,
    b"u": _Machine.set_items_from_mark,
    b"c": _Machine.find_global,
    b"i": _Machine.instance,
    b"\x93": _Machine.find_stack_global,
    b"R": _Machine.call,
    b"\x81": _Machine.call,  # the constructor, without keywords
    b"\x92": _Machine.call_with_keywords,
    b"b": _Machine.build,
    b"Q": _Machine.find_storage,
}
_WITH_NUMBER: dict[bytes, tuple[struct.Struct, Callable[[_Machine, Any], None]]] = {
    b"\x80": (_U8, _ignore),
    b"\x95": (_U64, _ignore),
    b"K": (_U8, _Machine.number),
    b"M": (_U16, _Machine.number),
    b"J": (_I32, _Machine.number),
    b"G": (_F64, _Machine.number),
    b"q": (_U8, _Machine.put),
    b"r": (_U32, _Machine.put),
    b"h": (_U8, _Machine.get),
    b"j": (_U32, _Machine.get),
    b"\x82": (_U8, _Machine.find_extension),
    b"\x83": (_U16, _Machine.find_extension),
    b"\x84": (_I32, _Machine.find_extension),
}
_WITH_BYTES: dict[bytes, tuple[struct.Struct, Callable[[_Machine, bytes], None]]] = {
    b"X": (_U32, _Machine.text),
    b"\x8c": (_U8, _Machine.text),
    b"\x8d": (_U64, _Machine.text),
    b"U": (_U8, _Machine.old_text),
    b"T": (_I32, _Machine.old_text),
    b"\x8a": (_U8, _Machine.integer),
    b"\x8b": (_I32, _Machine.integer),
    b"C": (_U8, _Machine.opaque),
    b"B": (_U32, _Machine.opaque),
    b"\x8e": (_U64, _Machine.opaque),
    b"\x96": (_U64, _Machine.opaque),
}
