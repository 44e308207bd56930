"""The front door for model files: which format the bytes have, and the reader for it.

In: the bytes of a file. Out: `Contents`, or the error that says what the file is instead and what is known. A
format is told by its first bytes, never by a file's name. Knows nothing about what the formats hold.
"""

from __future__ import annotations

from masklet.errors import CorruptFileError, UnknownFormatError
from masklet.io.tensor_table import Buffer, Contents, quoted

KNOWN = (
    "masklet reads PyTorch files (.pt, .pth; torch.save of 1.6 or later), .safetensors, its own .gguf, and"
    " sam3.cpp's .ggml of SAM 2 and EdgeTAM"
)
_HEAD_BYTES = 512


def read_contents(file: Buffer) -> Contents:
    """Read the table of tensors of a model file in any known format.

    Raises the `CheckpointError` that says why it cannot be used.
    """
    # The readers and what they need are imported here: a cached model of one format never needs the others.
    head = file[:_HEAD_BYTES]
    if head.startswith(b"PK\x03\x04"):
        from masklet.io.torch_file import read_torch

        return read_torch(file)
    if head.startswith(b"GGUF"):
        from masklet.io.gguf import read_gguf

        return read_gguf(file)
    if head.startswith(b"2mas"):
        from masklet.io.ggml import read_ggml

        return read_ggml(file)
    if _looks_like_safetensors(head, len(file)):
        from masklet.io.safetensors import read_safetensors

        return read_safetensors(file)
    if head[:2] != b"PK" and file[-22:-18] == b"PK\x05\x06":
        raise CorruptFileError(
            "its beginning is damaged (it ends like a PyTorch file); download or copy it again"
        )
    raise UnknownFormatError(f"{_describe(head)}. {KNOWN}")


def _looks_like_safetensors(head: bytes, nbytes: int) -> bool:
    """A header length and `{"`, one of which may be damaged. In text the length would be astronomical."""
    plausible = int.from_bytes(head[:8], "little") + 8 <= nbytes
    return (head[8:9] == b"{" and not _is_text(head)) or (plausible and head[9:10] == b'"')


_MAGICS = (
    (
        b"\x80",
        "a bare Python pickle, such as Detectron2's .pkl; load it where it was made, and torch.save its"
        " state dict",
    ),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"3mas", "a ggml file with SAM 3 of sam3.cpp; of those, the ones with SAM 2 and EdgeTAM are read"),
    (b"lmgg", "a ggml file from before GGUF"),
    (b"fmgg", "a ggml file from before GGUF"),
    (b"tjgg", "a ggml file from before GGUF"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
    (b"\x89PNG", "a picture (PNG), not a model"),
    (b"\xff\xd8\xff", "a picture (JPEG), not a model"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the model itself; run `git lfs pull` where it was cloned, or download it",
    ),
)


def _describe(head: bytes) -> str:
    """What a file that is not a checkpoint seems to be."""
    from masklet.io.torch_file import LEGACY_MAGIC

    if LEGACY_MAGIC in head[:32]:
        return (
            "a torch file in the legacy format, from before PyTorch 1.6; convert it with PyTorch:"
            ' torch.save(torch.load("old.pt", map_location="cpu"), "new.pt")'
        )
    for magic, description in _MAGICS:
        if head.startswith(magic):
            return description
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    # In protocol buffers' encoding: ir_version, a small number, and then a text or message field.
    if head[:1] == b"\x08" and head[1:2] <= b"\x20" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return "an ONNX graph, which has no checkpoint's names; give the checkpoint that it was exported from"
    if not any(head):
        return "it begins with zeros, as a download that was cut off; download it again"
    if _is_text(head):
        text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
        if text[:200].lower().startswith(("<!doctype html", "<html", "<head", "<?xml", "<!--")):
            return (
                "a web page saved as a model; download again, the file itself and not the page that shows it"
            )
        return f"a text file, which begins {quoted(text[:40])}"
    return f"of unknown format; its first bytes are {head[:8].hex(' ')}"


def _is_text(head: bytes) -> bool:
    """Text in any encoding that keeps ASCII's control characters out."""
    return all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
