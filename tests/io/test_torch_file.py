from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from masklet.errors import CorruptFileError, InputError, OutputError, UnknownFormatError, UnsafeFileError
from masklet.io import torch_pickle
from masklet.io.checkpoints import open_checkpoint
from masklet.io.torch_file import write_torch_file

FLOATS = np.arange(24, dtype=np.float32)


@pytest.fixture
def opened(ops, torch_zip, write):
    """Opens a file with the given tensors under "model", all of them over one storage `0` of 24 floats."""

    def opened(tensors, storages=None, **settings):
        value = ops.mapping({"model": ops.mapping(tensors, ordered=True)})
        storages = {"0": FLOATS.tobytes()} if storages is None else storages
        return open_checkpoint(write(torch_zip(ops.whole(value), storages, **settings)))

    return opened


@pytest.fixture
def unpickled(torch_zip, write):
    """Opens a file around a bare pickle."""
    return lambda pickled: open_checkpoint(write(torch_zip(pickled, {"0": FLOATS.tobytes()})))


# Tensors


def test_every_stored_type(opened, ops):
    values = {
        "f64": ("DoubleStorage", np.array([1.5, -2, np.inf])),
        "f32": ("FloatStorage", np.array([1.5, -2, np.inf], np.float32)),
        "f16": ("HalfStorage", np.array([1.5, -2, np.inf], np.float16)),
        "bf16": ("BFloat16Storage", np.array([1.5, -2, np.inf], ml_dtypes.bfloat16)),
        "i64": ("LongStorage", np.array([1, -2, 1 << 62])),
        "i32": ("IntStorage", np.array([1, -2, 1 << 30], np.int32)),
        "i16": ("ShortStorage", np.array([1, -2, 3], np.int16)),
        "i8": ("CharStorage", np.array([1, -2, 3], np.int8)),
        "u8": ("ByteStorage", np.array([1, 2, 255], np.uint8)),
        "bool": ("BoolStorage", np.array([True, False, True])),
    }
    tensors = {name: ops.tensor(name, kind, 3, [3], [1]) for name, (kind, _) in values.items()}
    checkpoint = opened(tensors, {name: array.tobytes() for name, (_, array) in values.items()})
    assert checkpoint.format == "torch"
    for name, (_, array) in values.items():
        read, info = checkpoint.array(name), checkpoint.tensors[name]
        expected = array.astype(np.float32) if name in ("f16", "bf16") else array
        assert (info.dtype, info.shape, info.nbytes) == (name, (3,), array.nbytes)
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
        assert checkpoint.raw(name).tobytes() == array.tobytes()
    assert checkpoint.raw("bf16").dtype == np.uint16
    assert checkpoint.raw("f16").dtype == np.float16


def test_a_newer_dtype_over_an_untyped_storage(opened, ops):
    tensor = ops.tensor("0", "UntypedStorage", 6, [2], [1], 1, dtype="uint16")
    checkpoint = opened({"w": tensor}, {"0": np.array([7, 8, 9], np.uint16).tobytes()})
    np.testing.assert_array_equal(checkpoint.array("w"), np.array([8, 9], np.uint16))


def test_8_bit_floats_are_listed_but_not_converted(opened, ops):
    tensor = ops.tensor("0", "UntypedStorage", 3, [3], [1], dtype="float8_e4m3fn")
    checkpoint = opened({"w": tensor}, {"0": b"\x01\x02\x03"})
    assert checkpoint.raw("w").tolist() == [1, 2, 3]
    with pytest.raises(UnknownFormatError, match="f8_e4m3"):
        checkpoint.array("w")


def test_views_share_a_storage_and_keep_their_strides(opened, ops):
    base = FLOATS.reshape(4, 6)
    views = {
        "whole": ((4, 6), (6, 1), 0, base),
        "rows": ((2, 6), (6, 1), 6, base[1:3]),
        "transposed": ((6, 4), (1, 6), 0, base.T),
        "block": ((2, 3), (6, 1), 8, base[1:3, 2:5]),
        "every_other": ((12,), (2,), 1, FLOATS[1::2]),
        "expanded": ((5, 6), (0, 1), 0, np.broadcast_to(base[0], (5, 6))),
        "scalar": ((), (), 23, FLOATS[23]),
        "one_row": ((1, 6), (999, 1), 18, base[3:]),  # the stride of a dimension of size 1 says nothing
        "empty": ((0, 6), (6, 1), 24, base[:0]),
    }
    checkpoint = opened({n: ops.tensor("0", "FloatStorage", 24, *v[:3]) for n, v in views.items()})
    for name, (shape, _, offset, expected) in views.items():
        read = checkpoint.array(name)
        assert read.shape == shape
        np.testing.assert_array_equal(read, expected)
        assert read.flags.c_contiguous
        assert not read.flags.writeable
        assert not checkpoint.raw(name).flags.writeable
        assert read.flags.owndata == (name in ("transposed", "block", "every_other", "expanded", "empty"))
        assert checkpoint.tensors[name].offset == checkpoint.tensors["whole"].offset + 4 * offset


def test_contiguous_floats_are_views_of_the_mapping(opened, ops):
    checkpoint = opened({"w": ops.tensor("0", "FloatStorage", 24, [24], [1])})
    one, two = checkpoint.array("w"), checkpoint.array("w")
    assert np.shares_memory(one, two)
    assert checkpoint.tensors["w"].offset % 64 == 0


def test_strides_are_part_of_the_fingerprint(opened, ops):
    """Two views of the same bytes, which differ only in the order of their elements."""
    prints = {
        opened({"w": ops.tensor("0", "FloatStorage", 24, [2, 2], strides)}).fingerprint()
        for strides in ([2, 1], [1, 2])
    }
    assert len(prints) == 2


def test_a_damaged_bool_is_still_a_bool(opened, ops):
    read = opened({"w": ops.tensor("0", "BoolStorage", 3, [3], [1])}, {"0": b"\x00\x01\x02"}).array("w")
    assert read.view(np.uint8).tolist() == [0, 1, 1]


def test_parameters_and_tensors_with_attributes(opened, ops):
    tensor = ops.tensor("0", "FloatStorage", 24, [24], [1])
    hooks = ops.name("collections", "OrderedDict") + b")R"
    with_state = ops.name("torch._utils", "_rebuild_parameter_with_state")
    with_state += b"(" + tensor + b"\x88" + hooks + ops.mapping({"tag": b"K\x01"}) + b"tR"
    inner = tensor[len(ops.name("torch._utils", "_rebuild_tensor_v2")) : -1]
    from_type = ops.name("torch._tensor", "_rebuild_from_type_v2") + b"("
    from_type += ops.name("torch._utils", "_rebuild_tensor_v2") + ops.name("torch", "Tensor") + inner
    from_type += ops.mapping({"tag": b"K\x01"}) + b"tR"
    checkpoint = opened(
        {"parameter": ops.parameter(tensor), "with_state": with_state, "from_type": from_type}
    )
    for name in ("parameter", "with_state", "from_type"):
        np.testing.assert_array_equal(checkpoint.array(name), FLOATS)


def test_a_lazily_negated_tensor_is_refused(opened, ops):
    """Its stored elements have the wrong sign."""
    tensor = ops.tensor("0", "FloatStorage", 24, [24], [1], tail=ops.mapping({"neg": b"\x88"}))
    with pytest.raises(UnknownFormatError, match="negated"):
        opened({"w": tensor})


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "message"),
    [
        ([25], [1], 0, "reaches to byte 100"),
        ([24], [1], 1, "reaches to byte 100"),
        ([2, 12], [13, 1], 0, "reaches to byte 100"),
        ([2], [1 << 62], 0, "reaches to byte"),
        ([1 << 40], [0], 0, "larger than the whole file"),
        ([1 << 40, 1 << 40], [0, 0], 0, "more elements than any file"),
        ([0, 1 << 62, 1 << 62], [0, 0, 0], 0, "more elements than any file"),
        ([-1], [1], 0, "malformed tensor"),
        ([1], [-1], 0, "malformed tensor"),
        ([1], [1], -1, "malformed tensor"),
        ([1 << 70], [1], 0, "malformed tensor"),
        ([1, 1], [1], 0, "malformed tensor"),
        ([1] * 33, [1] * 33, 0, "33 dimensions"),
        ([1] * 65, [1] * 65, 0, "too many arguments or dimensions"),
    ],
)
def test_shapes_that_leave_their_storage(opened, ops, shape, strides, offset, message):
    with pytest.raises(CorruptFileError, match=message):
        opened({"w": ops.tensor("0", "FloatStorage", 24, shape, strides, offset)})


def test_a_storage_that_is_missing_or_of_another_size(opened, ops):
    with pytest.raises(CorruptFileError, match="'w' are missing"):
        opened({"w": ops.tensor("1", "FloatStorage", 24, [24], [1])})
    with pytest.raises(CorruptFileError, match=r"should have 23 elements of 4 bytes, but has 96"):
        opened({"w": ops.tensor("0", "FloatStorage", 23, [1], [1])})


def test_broken_tensors_that_nobody_reads_do_no_harm(unpickled, ops):
    model = ops.mapping({"w": ops.tensor("0", "FloatStorage", 24, [24], [1])})
    optimizer = ops.mapping({"w": ops.tensor("7", "FloatStorage", 24, [24], [1])})
    checkpoint = unpickled(ops.whole(ops.mapping({"model": model, "optimizer": optimizer})))
    assert list(checkpoint.tensors) == ["w"]


# Finding the state dict


def tensor_dict(ops, *names):
    return ops.mapping({name: ops.tensor("0", "FloatStorage", 24, [24], [1]) for name in names})


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "ema", "anything"])
def test_state_dict_under_a_wrapper(unpickled, ops, wrapper):
    value = ops.mapping({"epoch": b"K\x03", wrapper: tensor_dict(ops, "a", "b"), "optimizer": b"}"})
    checkpoint = unpickled(ops.whole(value))
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.extra == ("epoch", "optimizer")


def test_model_is_preferred_to_its_average(unpickled, ops):
    value = ops.mapping(
        {"ema": tensor_dict(ops, "a"), "model": tensor_dict(ops, "b"), "loss": tensor_dict(ops)}
    )
    checkpoint = unpickled(ops.whole(value))
    assert list(checkpoint.tensors) == ["b"]
    assert checkpoint.extra == ("ema", "loss")


def test_bare_state_dict_with_other_things(unpickled, ops):
    value = tensor_dict(ops, "a", "b")[:-1] + ops.text("step") + b"K\x05" + b"u"
    checkpoint = unpickled(ops.whole(value))
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.extra == ("step",)


def test_a_single_tensor_beside_the_state_dict(unpickled, ops):
    best = ops.tensor("0", "FloatStorage", 24, [24], [1])
    value = ops.mapping({"best": best, "mine": tensor_dict(ops, "a", "b")})
    checkpoint = unpickled(ops.whole(value))
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.extra == ("best",)


def test_things_inside_the_state_dict_that_are_no_tensors(unpickled, ops):
    inner = ops.mapping({"a": ops.tensor("0", "FloatStorage", 24, [24], [1]), "version": b"K\x02"})
    assert unpickled(ops.whole(ops.mapping({"model": inner}))).extra == ("model.version",)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapping_modules_leave_no_prefix(unpickled, ops, prefix):
    checkpoint = unpickled(ops.whole(tensor_dict(ops, f"{prefix}a", f"{prefix}b.c")))
    assert list(checkpoint.tensors) == ["a", "b.c"]
    assert checkpoint.tensors["b.c"].name == "b.c"


def test_a_prefix_of_some_names_stays(unpickled, ops):
    assert list(unpickled(ops.whole(tensor_dict(ops, "module.a", "b"))).tensors) == ["module.a", "b"]


def test_attributes_of_the_state_dict_are_ignored(unpickled, ops):
    """A module's `state_dict()` carries `_metadata` as an attribute of the OrderedDict."""
    versions = ops.mapping({"_metadata": ops.mapping({"": ops.mapping({"version": b"K\x01"})}, ordered=True)})
    value = ops.mapping({"a": ops.tensor("0", "FloatStorage", 24, [24], [1])}, ordered=True) + versions + b"b"
    checkpoint = unpickled(ops.whole(value))
    assert (list(checkpoint.tensors), checkpoint.extra) == (["a"], ())


def test_no_state_dict_to_find(unpickled, ops):
    with pytest.raises(UnknownFormatError, match=r"several dicts of tensors \('x', 'y'\)"):
        unpickled(ops.whole(ops.mapping({"x": tensor_dict(ops, "a"), "y": tensor_dict(ops, "a")})))
    with pytest.raises(UnknownFormatError, match="no tensors by name"):
        unpickled(ops.whole(ops.mapping({"epoch": b"K\x01"})))
    with pytest.raises(UnknownFormatError, match="single tensor"):
        unpickled(ops.whole(ops.tensor("0", "FloatStorage", 24, [24], [1])))
    with pytest.raises(UnknownFormatError, match="holds no dict"):
        unpickled(ops.whole(b"]"))


# What pickles may ask for


class Trap:
    """Would leave a file behind if it were ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(torch_zip, write, tmp_path, protocol):
    pickled = pickle.dumps(Trap(tmp_path / "trap"), protocol)
    with pytest.raises(UnsafeFileError, match=r"(_?io)\.open.*Nothing was executed"):
        open_checkpoint(write(torch_zip(pickled, {})))
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("instructions", "name"),
    [
        (b"cos\nsystem\n(X\x04\x00\x00\x00truetR.", "os.system"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"c__builtin__\nexec\n.", "__builtin__.exec"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "torch._utils._rebuild_tensor_v2.__globals__"),
        (b"ctorch.hub\nload\n.", "torch.hub.load"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"\x82\x01.", "copyreg.extension 1"),
        (b"ctorch.nn.modules.linear\nLinear\n.", "torch.nn.modules.linear.Linear"),
    ],
)
def test_globals_outside_the_list(unpickled, instructions, name):
    with pytest.raises(UnsafeFileError) as caught:
        unpickled(b"\x80\x04" + instructions)
    assert repr(name) in str(caught.value)


def test_a_forbidden_global_in_a_place_that_is_not_read(unpickled, ops):
    value = ops.mapping({"model": tensor_dict(ops, "a"), "hidden": b"](" + ops.name("os", "system") + b"e"})
    with pytest.raises(UnsafeFileError, match=r"os\.system"):
        unpickled(ops.whole(value))


def test_what_training_scripts_save_beside_the_weights(unpickled, ops):
    namespace = ops.name("argparse", "Namespace") + b")\x81" + ops.mapping({"lr": b"K\x01"}) + b"b"
    scalar = ops.name("numpy._core.multiarray", "scalar") + ops.name("numpy", "dtype")
    scalar += ops.text("f8") + b"\x89\x88\x87R" + ops.integers([3]) + b"b"
    scalar += ops.name("_codecs", "encode") + ops.text("12345678") + ops.text("latin1") + b"\x86R\x86R"
    config = ops.name("omegaconf.dictconfig", "DictConfig") + b")\x81" + ops.mapping({"a": b"]"}) + b"b"
    default = ops.name("collections", "defaultdict") + ops.name("builtins", "list") + b"\x85R("
    default += ops.text("a") + b"K\x01u"
    beside = {
        "args": namespace,
        "best": scalar,
        "config": config,
        "seen": ops.name("__builtin__", "set") + b"](K\x01K\x02e\x85R",
        "default": default,
        "numbers": b"](K\x01G@\x00\x00\x00\x00\x00\x00\x00Ne",
        "by_number": b"}(K\x01K\x02K\x03K\x04u",
        "device": ops.name("torch", "device") + ops.text("cuda") + b"\x85R",
        "dtype": ops.name("torch", "float32"),
        "size": ops.name("torch", "Size") + ops.integers([1, 2]) + b"\x85R",
        "big": b"\x8a\x20" + b"\x7f" * 32,
        "storage": ops.storage("0", "FloatStorage", 24),
    }
    checkpoint = unpickled(ops.whole(ops.mapping({"model": tensor_dict(ops, "a")} | beside)))
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.extra == tuple(beside)


def test_nothing_on_the_list_is_imported_or_called():
    """The table holds roles, not objects: whatever is on it cannot be called."""
    for name, entry in torch_pickle._GLOBALS.items():
        assert not callable(entry), name
        assert all(isinstance(value, str | None) for value in vars(entry).values())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(torch_zip, write, ops, protocol):
    """Python's own pickler writes the values; the tensor is put in by hand."""
    pickled = pickle.dumps(
        {"a": [1, 2.5, None, True, b"x", "é", (1,), {2}, 1 << 80], "model": "HERE"}, protocol
    )
    here = pickle.dumps("HERE", protocol)
    here = here[here.index(b"HERE") - (2 if protocol >= 4 else 5) :][: 6 if protocol >= 4 else 9]
    assert pickled.count(here) == 1
    pickled = pickled.replace(here, tensor_dict(ops, "w"))
    if protocol >= 4:
        assert pickled[2:3] == b"\x95"  # a frame, whose length does not matter here
    checkpoint = open_checkpoint(write(torch_zip(pickled, {"0": FLOATS.tobytes()})))
    np.testing.assert_array_equal(checkpoint.array("w"), FLOATS)


# Pickles that are broken


@pytest.mark.parametrize(
    "instructions",
    [
        b"",
        b"}",  # no STOP
        b".",  # nothing to stop with
        b"0.",
        b"u.",
        b"}u.",  # no mark
        b"}(K\x01u.",  # a key without a value
        b"](e0e.",
        b"}K\x01a.",
        b"K\x01(K\x01K\x02u.",
        b"h\x05.",  # never stored
        b"q\x00.",
        b"\x85.",
        b"K\x01\x86.",
        b"R.",
        b"K\x01)R.",
        b"NNR.",
        b"ccollections\nOrderedDict\n]R.",
        b"ctorch\nFloatStorage\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\nNR.",
        b"ctorch._utils\n_rebuild_parameter\n)R.",
        b"ctorch._utils\n_rebuild_parameter\nK\x01\x85R.",
        b"NQ.",
        b"(X\x07\x00\x00\x00storageNNNNtQ.",
        b"K\x01Nb.",
        b"NN\x93.",
        b"2.",  # DUP, which no pickler writes
        b"P0\n.",
        b"I1\n.",
        b"X\x04\x00\x00\x00\xff\xff\xff\xff.",  # not UTF-8
        b"X\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\x7f.",  # LONG4
        b"\x8b\x00\x00\x00\x80.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BINBYTES8
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x96\x00\x00\x00\x00\x00\x00\x00\x80.",
        b"T\xff\xff\xff\xff.",
        b"c\xff\n\xff\n.",
        b"cnoname",
        b"\xfe.",
    ],
)
def test_malformed_pickles(instructions):
    with pytest.raises(CorruptFileError):
        torch_pickle.read_pickle(b"\x80\x02" + instructions)


def bomb_of_shared_tuples(count):
    """Each tuple holds the one before twice: 2 ** count leaves if anything walks it."""
    steps = b"".join(b"(h%ch%ctq%c0" % (i, i, i + 1) for i in range(count))
    return b")q\x000" + steps + b"h%c" % count


BOMBS = {
    "deep tuples": b")" + b"\x85" * 200_000 + b".",
    "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep dicts": b"}" + b"X\x01\x00\x00\x00k}" * 50_000 + b"s" * 50_000 + b".",
    "deep reduces": ((b"cargparse\nNamespace\n" * 50_000) + b")R" + b"\x85R" * 49_999 + b"."),
    "shared tuples": bomb_of_shared_tuples(200) + b".",
    "shared tuple as a key": b"}" + bomb_of_shared_tuples(200) + b"Ns.",
    "deep tuple as a key": b"})" + b"\x85" * 200_000 + b"Ns.",
    "shared tuple as a shape": b"ctorch._utils\n_rebuild_tensor_v2\n" + bomb_of_shared_tuples(200) + b"R.",
    "memo at the far end": b"}r\xff\xff\xff\xffj\xff\xff\xff\xff0.",
    "reduce on a placeholder": b"cargparse\nNamespace\n" + b")R" * 100_000 + b".",
    "build on a placeholder": b"cargparse\nNamespace\n)R" + b"}b" * 100_000 + b".",
    "itself inside itself": b"}q\x00X\x01\x00\x00\x00kh\x00s" * 1000 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_that_are_harmless_here(name):
    """They parse, or are found malformed, in bounded time and memory."""
    data = b"\x80\x02" + BOMBS[name]
    tracemalloc.start()
    try:
        torch_pickle.read_pickle(data)
    except CorruptFileError:
        assert name == "shared tuple as a shape"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 60 * 1_000_000


def test_instructions_are_counted(monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_INSTRUCTIONS", 1000)
    torch_pickle.read_pickle(b"N0" * 499 + b"N.")
    for endless in (b"}" * 1001, b"(" * 1001, b"N0" * 501, b"]" * 1001, b"}q\x00" * 501):
        with pytest.raises(CorruptFileError, match="more than 1,000 instructions"):
            torch_pickle.read_pickle(endless + b".")


def test_long_tuples_as_arguments_cost_nothing(ops):
    """Regression: a long tuple, stored once and used as the shape or the arguments of many tensors, took
    quadratic time."""
    long = b"(" + b"N" * 100_000 + b"tq\x01"
    call = ops.name("torch._utils", "_rebuild_tensor_v2") + b"q\x00"
    pickled = call + long + b"h\x00h\x01R."
    with pytest.raises(CorruptFileError):
        torch_pickle.read_pickle(pickled)
    start = call + b"(" + ops.storage("0", "FloatStorage", 24) + b"K\x00" + long + b"h\x01\x89NtR."
    with pytest.raises(CorruptFileError, match="too many arguments or dimensions"):
        torch_pickle.read_pickle(start)


def test_one_dict_under_a_million_names(ops, monkeypatch):
    """Regression: each name of a shared dict looked through all of it again, which is quadratic."""
    from masklet.io.torch_file import find_state_dict

    tensor = torch_pickle.read_pickle(ops.tensor("0", "FloatStorage", 24, [24], [1]) + b".")
    shared = {f"w{i}": tensor for i in range(20_000)}
    with pytest.raises(UnknownFormatError, match="several dicts"):
        find_state_dict({f"k{i}": shared for i in range(20_000)})


def test_a_pickle_larger_than_any_description(torch_zip, write):
    with pytest.raises(CorruptFileError, match=r"data.pkl has 67,108,865 bytes"):
        open_checkpoint(write(torch_zip(bytes((64 << 20) + 1), {})))


def test_messages_stay_short_and_printable(opened, unpickled, ops):
    long = "x" * 1_000_000 + "\n\x1b[31m"
    with pytest.raises(CorruptFileError) as caught:
        opened({long: ops.tensor("9", "FloatStorage", 24, [24], [1])})
    with pytest.raises(UnsafeFileError) as unsafe:
        unpickled(b"\x80\x02c" + long[:1_000_000].encode() + b"\n\x1b[31m\n.")
    for message in (str(caught.value), str(unsafe.value)):
        assert len(message) < 1000
        assert message.isprintable()


def test_names_that_are_no_valid_unicode(unpickled, ops):
    checkpoint = unpickled(ops.whole(tensor_dict(ops, "\ud800")))
    assert len(checkpoint.fingerprint()) == 64


# The archive


def test_archives_that_other_writers_make(ops, write):
    """Python's zipfile: no descriptors, no padding, sizes in the local header; and its 64-bit forms."""
    pickled = ops.whole(ops.mapping({"model": tensor_dict(ops, "w")}))
    for force_zip64 in (False, True):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in (("data.pkl", pickled), ("data/0", FLOATS.tobytes())):
                with archive.open(f"any name é/{name}", "w", force_zip64=force_zip64) as member:
                    member.write(content)
        checkpoint = open_checkpoint(write(buffer.getvalue()))
        np.testing.assert_array_equal(checkpoint.array("w"), FLOATS)  # unaligned, so copied
        assert checkpoint.verify()


class Unseekable(io.RawIOBase):
    def __init__(self):
        self.content = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.content += bytes(data)
        return len(data)


@pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 10])
def test_archives_with_descriptors_and_64_bit_directories(ops, write, monkeypatch, limit):
    """A stream makes zipfile write data descriptors; a low limit makes it use every 64-bit form."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    pickled = ops.whole(ops.mapping({"model": tensor_dict(ops, "w")}))
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", FLOATS.tobytes())
    content = bytes(stream.content)
    assert (b"PK\x06\x06" in content) == (limit == 10)
    np.testing.assert_array_equal(open_checkpoint(write(content)).array("w"), FLOATS)


def test_compressed_members_are_refused(ops, write):
    pickled = ops.whole(ops.mapping({"model": tensor_dict(ops, "w")}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", FLOATS.tobytes())
    with pytest.raises(UnknownFormatError, match=r"'a/data.pkl' is compressed.*torch.save it again"):
        open_checkpoint(write(buffer.getvalue()))


@pytest.mark.parametrize("more", [{"constants.pkl": b"."}, {"code/__torch__.py": b"pass"}])
def test_torchscript_is_told_apart(torch_zip, write, more):
    with pytest.raises(UnknownFormatError, match="TorchScript"):
        open_checkpoint(write(torch_zip(b"\x80\x02}.", {}, more=more)))


def test_other_zip_archives(write, torch_zip):
    for names in (["word/document.xml"], ["a.npy"], ["a/b/data.pkl"], ["a/data.pkl", "b/data.pkl"], []):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in names:
                archive.writestr(name, b"content")
        with pytest.raises(UnknownFormatError, match="zip archive"):
            open_checkpoint(write(buffer.getvalue()))


def test_byte_order(opened, ops):
    tensors = {"w": ops.tensor("0", "FloatStorage", 24, [24], [1])}
    assert opened(tensors, byteorder=None).tensors  # files from before PyTorch 2.1
    with pytest.raises(UnknownFormatError, match="big-endian"):
        opened(tensors, byteorder=b"big")
    with pytest.raises(CorruptFileError, match="byte order"):
        opened(tensors, byteorder=b"middle")


def test_damage_in_the_pickle_is_found_by_its_checksum(torch_zip, ops, write):
    content = bytearray(
        torch_zip(ops.whole(ops.mapping({"model": tensor_dict(ops, "weight")})), {"0": FLOATS.tobytes()})
    )
    content[content.index(b"weight")] ^= 1
    with pytest.raises(CorruptFileError, match=r"archive/data.pkl.*checksum"):
        open_checkpoint(write(bytes(content)))


def test_damage_in_the_weights_is_found_by_verify(opened, ops, torch_zip, write):
    pickled = ops.whole(ops.mapping({"model": tensor_dict(ops, "w")}))
    content = bytearray(torch_zip(pickled, {"0": FLOATS.tobytes(), "1": bytes(10 << 20)}))
    assert open_checkpoint(write(bytes(content))).verify()
    content[content.index(FLOATS.tobytes()) + 50] ^= 1
    content[-2000] ^= 1  # inside the second storage, far into it
    checkpoint = open_checkpoint(write(bytes(content)))
    with pytest.raises(CorruptFileError, match=r"'archive/data/0', 'archive/data/1' do not match"):
        checkpoint.verify()


def test_files_saved_without_checksums(opened, ops):
    checkpoint = opened({"w": ops.tensor("0", "FloatStorage", 24, [24], [1])}, checksums=False)
    np.testing.assert_array_equal(checkpoint.array("w"), FLOATS)
    assert checkpoint.verify() is False


def test_every_truncation_is_corrupt(torch_zip, ops, write):
    content = torch_zip(ops.whole(ops.mapping({"model": tensor_dict(ops, "w")})), {"0": FLOATS.tobytes()})
    for length in range(4, len(content), 7):
        with pytest.raises(CorruptFileError):
            open_checkpoint(write(content[:length]))


def test_a_directory_that_lists_a_name_twice(write):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}.")
            archive.writestr("a/data.pkl", b"\x80\x02].")
    with pytest.raises(CorruptFileError, match=r"lists 'a/data.pkl' twice"):
        open_checkpoint(write(buffer.getvalue()))


def test_a_directory_that_claims_gigabytes(write):
    record = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 17 << 20, 4, 0)
    with pytest.raises(CorruptFileError, match="zip directory claims"):
        open_checkpoint(write(b"PK\x03\x04" + bytes(17 << 20) + record))
    record = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 0xFFFFFFF0, 4, 0)
    with pytest.raises(CorruptFileError, match="not where the end of the file says"):
        open_checkpoint(write(b"PK\x03\x04" + bytes(100) + record))


def test_an_encrypted_archive(torch_zip, ops, write):
    content = torch_zip(ops.whole(ops.mapping({"model": tensor_dict(ops, "w")})), {"0": FLOATS.tobytes()})
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.index(signature) + at
        content = content[:start] + bytes([content[start] | 1]) + content[start + 1 :]
    with pytest.raises(UnknownFormatError, match="encrypted"):
        open_checkpoint(write(content))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_directory_of_another_length_than_stated(ops, write, count):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", ops.whole(ops.mapping({"model": tensor_dict(ops, "w")})))
        archive.writestr("a/data/0", FLOATS.tobytes())
    content = bytearray(buffer.getvalue())
    assert struct.unpack("<2H", content[-14:-10]) == (2, 2)
    content[-14:-10] = struct.pack("<2H", count, count)
    with pytest.raises(CorruptFileError, match=f"lists 2 members but states {count}"):
        open_checkpoint(write(bytes(content)))


def test_members_that_share_their_bytes(torch_zip, ops, write):
    """Two directory entries for one local header, as zip bombs have them."""
    content = torch_zip(
        ops.whole(ops.mapping({"model": tensor_dict(ops, "w")})), {"0": FLOATS.tobytes(), "1": b"abcd"}
    )
    with pytest.raises(CorruptFileError):
        open_checkpoint(write(content.replace(b"archive/data/1", b"archive/data/0", 1)))


# Writing


@pytest.mark.parametrize("wrap", ["model", "state_dict", None])
def test_what_is_written_is_read_back(tmp_path, wrap):
    tensors = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.array([1.5, 2.5], np.float16),
        "brain": np.array([1.5, -3.0], ml_dtypes.bfloat16),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "swapped": np.array([1, 2], ">f4"),
        "mask": np.array([True, False]),
    }
    path = tmp_path / "model.pt"
    write_torch_file(path, tensors, wrap)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == list(tensors)
        assert checkpoint.verify()
        for name, array in tensors.items():
            assert checkpoint.tensors[name].shape == array.shape
            assert checkpoint.tensors[name].offset % 64 == 0
            np.testing.assert_array_equal(checkpoint.array(name), array.astype(checkpoint.array(name).dtype))
    first = path.read_bytes()
    write_torch_file(path, tensors, wrap)
    assert path.read_bytes() == first


def test_types_and_folders_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"'w'.*uint64 has no storage class"):
        write_torch_file(tmp_path / "model.pt", {"w": np.zeros(2, np.uint64)})
    with pytest.raises(OutputError, match="does not exist; create it"):
        write_torch_file(tmp_path / "nowhere" / "model.pt", {})
    assert list(tmp_path.iterdir()) == []
