"""Reading the pickle inside a torch file as data, never as a program.

In: the bytes of `data.pkl`. Out: its value, made of text, numbers, tuples, dicts with text keys, `TensorRef`
and `StorageRef`; everything else becomes `OPAQUE`. Knows nothing about zip archives, where storages lie, or
whether a tensor fits its storage.

Python's unpickler is not used, not even restricted: it imports, calls and hashes what the file says, and lets
a few bytes ask for gigabytes. Here the standard library's disassembler (`pickletools.genops`, which executes
nothing) decodes the instructions, and the small machine below acts on those that PyTorch writes. Its limits:

- A global is looked up in a closed table and stands for one of a few roles. Nothing is imported or called by
  name.
- Harmless classes that fine-tuning scripts save beside the weights are on the table too, as inert: whatever
  is built from them, or done to them, is `OPAQUE` and forgotten.
- No value is ever traversed, hashed (text apart), compared or printed, so nesting and
  shared references cost nothing.
- Each instruction allocates at most some 100 bytes beyond its own text in the file, and instructions are
  counted.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from masklet.errors import CorruptFileError, UnknownFormatError, UnsafeFileError
from masklet.io.tensor_table import quoted

MAX_INSTRUCTIONS = 2_000_000  # a tensor takes about 40, an AdamW state three tensors more
_INT64 = range(-(1 << 63), 1 << 63)
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
    **{f"{module} {name}": _Global("inert") for module, names in _INERT.items() for name in names.split()},
    **{f"torch {name}": _Global("dtype", dtype) for name, dtype in _DTYPES.items()},
    **{f"torch {name}Storage": _Global("storage", dtype) for name, dtype in STORAGES.items()},
    "torch.storage UntypedStorage": _Global("storage"),
    "torch UntypedStorage": _Global("storage"),
    "collections OrderedDict": _Global("dict"),
    "builtins dict": _Global("dict"),
    "__builtin__ dict": _Global("dict"),
    "torch._utils _rebuild_tensor_v2": _Global("tensor"),
    "torch._utils _rebuild_tensor_v3": _Global("tensor"),
    "torch._utils _rebuild_parameter": _Global("parameter"),
    "torch._utils _rebuild_parameter_with_state": _Global("parameter"),
    "torch.nn.parameter Parameter": _Global("parameter"),
    "torch._tensor _rebuild_from_type_v2": _Global("subclass"),
}


def read_pickle(data: bytes) -> Any:
    """The value that a torch file's pickle describes.

    Raises `UnsafeFileError` for a global outside the closed table, and `CorruptFileError` for anything that
    `torch.save` does not write. Whatever the bytes, nothing is executed.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_INSTRUCTIONS:
                raise CorruptFileError(
                    f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions; a checkpoint of this kind"
                    " needs a few thousand. If the file is yours, save the weights alone:"
                    " torch.save(model.state_dict(), ...)"
                )
            machine.act(opcode.name, argument)
    except (
        ValueError,
        IndexError,
        struct.error,
        OverflowError,
    ) as error:  # cut short, bad text, a stack that runs empty
        raise CorruptFileError(f"its pickle is damaged ({type(error).__name__})") from error
    return machine.result


class _Machine:
    """A pickle machine's stack, marks and memo, over values that cannot do anything."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below_mark: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = OPAQUE

    def act(self, name: str, argument: Any) -> None:
        """Perform one instruction, named as in `pickletools`."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self.stack.append(argument)
        elif (action := _ACTIONS.get(name)) is not None:
            action(self, argument)
        else:
            raise CorruptFileError(
                f"its pickle contains the instruction {name}, which torch.save never writes"
            )

    # Stack and memo. `IndexError` from an empty list means a damaged pickle, and is reported as such above.

    def stop(self, _: Any) -> None:
        self.result = self.stack.pop()

    def mark(self, _: Any) -> None:
        self.below_mark.append(self.stack)
        self.stack = []

    def pop_mark(self, _: Any = None) -> list[Any]:
        items = self.stack
        self.stack = self.below_mark.pop()
        return items

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise CorruptFileError("its pickle refers to a value that it has not stored")
        self.stack.append(self.memo[index])

    # Values

    def integer(self, value: int) -> None:
        self.stack.append(value if value in _INT64 else OPAQUE)

    def empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise IndexError
        self.stack[-count:] = [items]

    def tuple_from_mark(self, _: Any) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def opaque_from_mark(self, _: Any) -> None:
        self.pop_mark()
        self.stack.append(OPAQUE)

    def append(self, _: Any) -> None:
        self.stack.pop()
        self.expect_opaque()

    def append_from_mark(self, _: Any) -> None:
        self.pop_mark()
        self.expect_opaque()

    def expect_opaque(self) -> None:
        if self.stack[-1] is not OPAQUE:  # lists and sets are
            raise CorruptFileError("its pickle appends to something that is not a list")

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def set_items_from_mark(self, _: Any) -> None:
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

    def find_global(self, name: str) -> None:
        found = _GLOBALS.get(name)
        if found is None:
            raise UnsafeFileError(
                f"its pickle asks for {quoted(name.replace(' ', '.'))}, which is not on the closed list of"
                " things that weights need (tensors, storages, plain containers). Nothing was executed. If"
                " you trust the file, save its weights alone with"
                ' PyTorch: torch.save({"model": model.state_dict()}, ...)'
            )
        self.stack.append(OPAQUE if found.role == "inert" else found)

    def find_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise CorruptFileError("its pickle names a global by something that is not text")
        self.find_global(f"{module} {name}")

    def find_extension(self, code: int) -> None:
        self.find_global(f"copyreg extension {code}")

    def instance(self, name: str) -> None:
        self.find_global(name)
        raise CorruptFileError("its pickle contains the instruction INST, which torch.save never writes")

    def call(self, _: Any) -> None:
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

    def call_with_keywords(self, _: Any) -> None:
        self.stack.pop()
        self.call(None)

    def build(self, _: Any) -> None:
        """State given to an object: attributes such as a state dict's `_metadata`. None is needed."""
        self.stack.pop()
        if not (self.stack[-1] is OPAQUE or type(self.stack[-1]) in (dict, TensorRef)):
            raise CorruptFileError("its pickle gives a state to something that has none")

    def find_storage(self, _: Any) -> None:
        match self.stack.pop():
            case ("storage", _Global(role="storage", dtype=dtype), str(key), _, int(count), *_) if count >= 0:
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


_CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "EMPTY_LIST": OPAQUE,
    "EMPTY_SET": OPAQUE,
} | (dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), OPAQUE))
_LITERALS = frozenset(
    ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINFLOAT")
)
_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, size: None,
    "STOP": _Machine.stop,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "BININT": _Machine.integer,
    "BININT1": _Machine.integer,
    "BININT2": _Machine.integer,
    "LONG1": _Machine.integer,
    "LONG4": _Machine.integer,
    "EMPTY_DICT": _Machine.empty_dict,
    "TUPLE": _Machine.tuple_from_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_from_mark,
    "ADDITEMS": _Machine.append_from_mark,
    "FROZENSET": _Machine.opaque_from_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items_from_mark,
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.find_stack_global,
    "INST": _Machine.instance,
    "EXT1": _Machine.find_extension,
    "EXT2": _Machine.find_extension,
    "EXT4": _Machine.find_extension,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.find_storage,
}
