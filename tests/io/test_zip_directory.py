from __future__ import annotations

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest

from masklet.errors import CorruptFileError, UnknownFormatError
from masklet.io.checkpoints import open_checkpoint

FLOATS = np.arange(24, dtype=np.float32)


def test_archives_that_other_writers_make(ops, write):
    """Python's zipfile: no descriptors, no padding, sizes in the local header; and its 64-bit forms."""
    pickled = ops.whole(ops.mapping({"model": ops.tensors("w")}))
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
    pickled = ops.whole(ops.mapping({"model": ops.tensors("w")}))
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", FLOATS.tobytes())
    content = bytes(stream.content)
    assert (b"PK\x06\x06" in content) == (limit == 10)
    np.testing.assert_array_equal(open_checkpoint(write(content)).array("w"), FLOATS)


def test_compressed_members_are_refused(ops, write):
    pickled = ops.whole(ops.mapping({"model": ops.tensors("w")}))
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
        torch_zip(ops.whole(ops.mapping({"model": ops.tensors("weight")})), {"0": FLOATS.tobytes()})
    )
    content[content.index(b"weight")] ^= 1
    with pytest.raises(CorruptFileError, match=r"archive/data.pkl.*checksum"):
        open_checkpoint(write(bytes(content)))


def test_damage_in_the_weights_is_found_by_verify(opened, ops, torch_zip, write):
    pickled = ops.whole(ops.mapping({"model": ops.tensors("w")}))
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
    content = torch_zip(ops.whole(ops.mapping({"model": ops.tensors("w")})), {"0": FLOATS.tobytes()})
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
    content = torch_zip(ops.whole(ops.mapping({"model": ops.tensors("w")})), {"0": FLOATS.tobytes()})
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.index(signature) + at
        content = content[:start] + bytes([content[start] | 1]) + content[start + 1 :]
    with pytest.raises(UnknownFormatError, match="encrypted"):
        open_checkpoint(write(content))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_directory_of_another_length_than_stated(ops, write, count):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", ops.whole(ops.mapping({"model": ops.tensors("w")})))
        archive.writestr("a/data/0", FLOATS.tobytes())
    content = bytearray(buffer.getvalue())
    assert struct.unpack("<2H", content[-14:-10]) == (2, 2)
    content[-14:-10] = struct.pack("<2H", count, count)
    with pytest.raises(CorruptFileError, match=f"lists 2 members but states {count}"):
        open_checkpoint(write(bytes(content)))


def test_bytes_before_the_archive(ops, write):
    path = write(b"PK\x03\x04 and something else")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data.pkl", ops.whole(ops.mapping({"model": ops.tensors("w")})))
        archive.writestr("a/data/0", FLOATS.tobytes())
    with pytest.raises(CorruptFileError, match="bytes before the first member"):
        open_checkpoint(path)


def test_members_that_share_their_bytes(torch_zip, ops, write):
    """Two directory entries for one local header, as zip bombs have them."""
    content = torch_zip(
        ops.whole(ops.mapping({"model": ops.tensors("w")})), {"0": FLOATS.tobytes(), "1": b"abcd"}
    )
    with pytest.raises(CorruptFileError):
        open_checkpoint(write(content.replace(b"archive/data/1", b"archive/data/0", 1)))
