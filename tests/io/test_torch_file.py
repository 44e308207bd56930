from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from masklet.errors import CorruptFileError, InputError, OutputError, UnknownFormatError
from masklet.io.checkpoints import open_checkpoint
from masklet.io.torch_file import write_torch_file

FLOATS = np.arange(24, dtype=np.float32)


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


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "ema", "anything"])
def test_state_dict_under_a_wrapper(unpickled, ops, wrapper):
    value = ops.mapping({"epoch": b"K\x03", wrapper: ops.tensors("a", "b"), "optimizer": b"}"})
    checkpoint = unpickled(ops.whole(value))
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.extra == ("epoch", "optimizer")


def test_model_is_preferred_to_its_average(unpickled, ops):
    value = ops.mapping({"ema": ops.tensors("a"), "model": ops.tensors("b"), "loss": ops.tensors()})
    checkpoint = unpickled(ops.whole(value))
    assert list(checkpoint.tensors) == ["b"]
    assert checkpoint.extra == ("ema", "loss")


def test_bare_state_dict_with_other_things(unpickled, ops):
    value = ops.tensors("a", "b")[:-1] + ops.text("step") + b"K\x05" + b"u"
    checkpoint = unpickled(ops.whole(value))
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.extra == ("step",)


def test_a_single_tensor_beside_the_state_dict(unpickled, ops):
    best = ops.tensor("0", "FloatStorage", 24, [24], [1])
    value = ops.mapping({"best": best, "mine": ops.tensors("a", "b")})
    checkpoint = unpickled(ops.whole(value))
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.extra == ("best",)


def test_things_inside_the_state_dict_that_are_no_tensors(unpickled, ops):
    inner = ops.mapping({"a": ops.tensor("0", "FloatStorage", 24, [24], [1]), "version": b"K\x02"})
    assert unpickled(ops.whole(ops.mapping({"model": inner}))).extra == ("model.version",)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapping_modules_leave_no_prefix(unpickled, ops, prefix):
    checkpoint = unpickled(ops.whole(ops.tensors(f"{prefix}a", f"{prefix}b.c")))
    assert list(checkpoint.tensors) == ["a", "b.c"]
    assert checkpoint.tensors["b.c"].name == "b.c"


def test_a_prefix_of_some_names_stays(unpickled, ops):
    assert list(unpickled(ops.whole(ops.tensors("module.a", "b"))).tensors) == ["module.a", "b"]


def test_attributes_of_the_state_dict_are_ignored(unpickled, ops):
    """A module's `state_dict()` carries `_metadata` as an attribute of the OrderedDict."""
    versions = ops.mapping({"_metadata": ops.mapping({"": ops.mapping({"version": b"K\x01"})}, ordered=True)})
    value = ops.mapping({"a": ops.tensor("0", "FloatStorage", 24, [24], [1])}, ordered=True) + versions + b"b"
    checkpoint = unpickled(ops.whole(value))
    assert (list(checkpoint.tensors), checkpoint.extra) == (["a"], ())


def test_no_state_dict_to_find(unpickled, ops):
    with pytest.raises(UnknownFormatError, match=r"several dicts of tensors \('x', 'y'\)"):
        unpickled(ops.whole(ops.mapping({"x": ops.tensors("a"), "y": ops.tensors("a")})))
    with pytest.raises(UnknownFormatError, match="no tensors by name"):
        unpickled(ops.whole(ops.mapping({"epoch": b"K\x01"})))
    with pytest.raises(UnknownFormatError, match="single tensor"):
        unpickled(ops.whole(ops.tensor("0", "FloatStorage", 24, [24], [1])))
    with pytest.raises(UnknownFormatError, match="holds no dict"):
        unpickled(ops.whole(b"]"))


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
