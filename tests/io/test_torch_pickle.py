from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest

from masklet.errors import CorruptFileError, UnknownFormatError, UnsafeFileError
from masklet.io import torch_pickle
from masklet.io.checkpoints import open_checkpoint

FLOATS = np.arange(24, dtype=np.float32)


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
    value = ops.mapping({"model": ops.tensors("a"), "hidden": b"](" + ops.name("os", "system") + b"e"})
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
    checkpoint = unpickled(ops.whole(ops.mapping({"model": ops.tensors("a")} | beside)))
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
    pickled = pickled.replace(here, ops.tensors("w"))
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
    checkpoint = unpickled(ops.whole(ops.tensors("\ud800")))
    assert len(checkpoint.fingerprint()) == 64
