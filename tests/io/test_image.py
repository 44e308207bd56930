from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from masklet.errors import InputError, OutputError
from masklet.io import atomic
from masklet.io.image import check_image_suffix, read_image, write_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

# Left to right and top to bottom all different, so that no turn or mirror image goes unnoticed.
COLOURS = np.array(
    [[RED, GREEN, BLUE, WHITE], [(9, 8, 7), (90, 80, 70), (0, 0, 0), (1, 200, 3)]] * 2, np.uint8
)[:3]  # fmt: skip


def png(
    width: int, height: int, depth: int, colour_type: int, data: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG byte by byte, for what Pillow reads but does not write. `data` has no filter bytes."""
    line = len(data) // height
    rows = b"".join(b"\0" + data[line * row : line * (row + 1)] for row in range(height))
    header = struct.pack(">2L5B", width, height, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))
        for kind, body in parts
    )


def saved(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def assert_picture(array: np.ndarray) -> None:
    assert array.ndim == 3
    assert array.shape[2] == 3
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous


# ----------------------------------------------------------------------------------------- what a person sees


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_colour_files(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", COLOURS, **({"lossless": True} if suffix == "webp" else {}))
    for source in (path, str(path)):
        picture = read_image(source)
        assert_picture(picture)
        np.testing.assert_array_equal(picture, COLOURS)


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", COLOURS)
    np.testing.assert_array_equal(read_image((tmp_path / "a.png").rename(tmp_path / "a.jpg")), COLOURS)


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "l.png", grey)), np.dstack([grey] * 3))
    bits = Image.fromarray(grey).convert("1", dither=Image.Dither.NONE)
    expected = np.dstack([np.where(grey >= 128, 255, 0).astype(np.uint8)] * 3)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "1.png", bits)), expected)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], np.uint8)
    expected = [[[200, 0, 0], [255, 255, 255], [244, 204, 204]]]
    np.testing.assert_array_equal(read_image(saved(tmp_path / "rgba.png", rgba)), expected)
    la = Image.new("LA", (3, 1))
    for x, alpha in enumerate((255, 0, 51)):
        la.putpixel((x, 0), (0, alpha))
    np.testing.assert_array_equal(read_image(saved(tmp_path / "la.png", la))[0, :, 0], [0, 255, 204])


def test_palettes(tmp_path: Path) -> None:
    indices = Image.new("P", (3, 1))
    indices.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        indices.putpixel((x, 0), x)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "p.png", indices)), [[RED, GREEN, BLUE]])
    one = saved(tmp_path / "one.png", indices, transparency=1)
    np.testing.assert_array_equal(read_image(one), [[RED, WHITE, BLUE]])
    table = saved(tmp_path / "table.png", indices, transparency=b"\xff\x00\x00")
    np.testing.assert_array_equal(read_image(table), [[RED, WHITE, WHITE]])
    gif = saved(tmp_path / "a.gif", indices, transparency=1)
    np.testing.assert_array_equal(read_image(gif), [[RED, WHITE, BLUE]])


def test_a_transparent_colour_without_alpha(tmp_path: Path) -> None:
    path = saved(tmp_path / "rgb.png", COLOURS[:1], transparency=GREEN)
    np.testing.assert_array_equal(read_image(path), [[RED, WHITE, BLUE, WHITE]])
    path = saved(tmp_path / "l.png", np.array([[10, 20]], np.uint8), transparency=10)
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [255, 20])


DEEP = np.array([[0, 257, 128], [129, 32768, 65535]], np.uint16)
DEEP_SEEN = [[0, 1, 0], [1, 128, 255]]  # value / 257, rounded


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    picture = read_image(saved(tmp_path / f"deep.{suffix}", DEEP))
    assert_picture(picture)
    np.testing.assert_array_equal(picture, np.dstack([DEEP_SEEN] * 3))


def test_big_endian_and_32_bit_tiff(tmp_path: Path) -> None:
    path = saved(tmp_path / "32.tif", DEEP.astype(np.int32))
    np.testing.assert_array_equal(read_image(path)[..., 1], DEEP_SEEN)
    data = saved(tmp_path / "a.tif", DEEP).read_bytes()
    assert data[:2] == b"II"
    entry = struct.Struct(">HHLHH"), struct.Struct(">HHLL")
    tags = [
        (256, 3, 3),
        (257, 3, 2),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 3, 2),
        (279, 4, 12),
    ]
    directory = b"".join(
        entry[0].pack(tag, kind, 1, value, 0) if kind == 3 else entry[1].pack(tag, kind, 1, value)
        for tag, kind, value in tags
    )
    body = DEEP.astype(">u2").tobytes()
    big = b"MM\0*" + struct.pack(">L", 20) + body + struct.pack(">H", len(tags)) + directory + bytes(4)
    np.testing.assert_array_equal(read_image(written(tmp_path / "big.tif", big))[..., 2], DEEP_SEEN)


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    data = png(3, 2, 16, 0, DEEP.astype(">u2").tobytes(), (b"tRNS", struct.pack(">H", 257)))
    expected = np.array(DEEP_SEEN)
    expected[0, 1] = 255
    np.testing.assert_array_equal(read_image(written(tmp_path / "a.png", data))[..., 0], expected)


def test_16_bit_colour_and_alpha(tmp_path: Path) -> None:
    rgb = struct.pack(">6H", 0, 0x8000, 0xFFFF, 0x1234, 0, 0x00FF)
    np.testing.assert_array_equal(
        read_image(written(tmp_path / "rgb.png", png(2, 1, 16, 2, rgb))), [[(0, 128, 255), (0x12, 0, 0)]]
    )
    rgba = struct.pack(">8H", 0, 0, 0, 0xFFFF, 0, 0, 0, 0)
    np.testing.assert_array_equal(
        read_image(written(tmp_path / "rgba.png", png(2, 1, 16, 6, rgba))), [[(0, 0, 0), WHITE]]
    )
    la = struct.pack(">4H", 0x4000, 0xFFFF, 0, 0)
    np.testing.assert_array_equal(
        read_image(written(tmp_path / "la.png", png(2, 1, 16, 4, la)))[..., 0], [[0x40, 255]]
    )


def test_cmyk_jpeg(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    picture = read_image(saved(tmp_path / "a.jpg", cmyk, quality=100))
    assert_picture(picture)
    assert np.abs(picture.astype(int) - np.array(RED)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_are_turned_as_exif_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(COLOURS)
    stored.getexif()[0x0112] = orientation
    expected = np.array(ImageOps.exif_transpose(stored))
    assert (expected.shape[:2] == (3, 4)) == (orientation <= 4)
    for suffix in ("png", "tif"):
        path = saved(tmp_path / f"a.{suffix}", COLOURS, exif=exif)
        np.testing.assert_array_equal(read_image(path), expected)
    compressed = saved(tmp_path / "lzw.tif", COLOURS, exif=exif, compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(compressed), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*garbage" * 9])
@pytest.mark.filterwarnings("ignore")  # Pillow may warn about the metadata
def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path, exif: bytes) -> None:
    path = saved(tmp_path / "a.jpg", COLOURS, exif=exif)
    assert read_image(path).shape == (3, 4, 3)


def test_any_failure_in_the_metadata_is_tolerated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Image.Image) -> None:
        raise SyntaxError("not a TIFF file")

    path = saved(tmp_path / "a.png", COLOURS)
    monkeypatch.setattr(Image.Image, "getexif", fail)
    np.testing.assert_array_equal(read_image(path), COLOURS)


def test_orientation_counts_although_another_tag_is_damaged(tmp_path: Path) -> None:
    tags = struct.pack("<HHLL", 0x0112, 3, 1, 6) + struct.pack("<HHLL", 0x8769, 4, 1, 0x7FFFFFFF)
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + tags + bytes(4)
    path = saved(tmp_path / "a.jpg", COLOURS, exif=exif)
    assert read_image(path).shape == (4, 3, 3)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_several(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read_image(path), np.full((5, 6, 3), RED))


def test_one_pixel(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", COLOURS[:1, :1])), [[RED]])


# ------------------------------------------------------------------------------ what the reference would take


def test_pil_images_are_converted_plainly() -> None:
    np.testing.assert_array_equal(read_image(Image.fromarray(COLOURS)), COLOURS)
    rgba = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    np.testing.assert_array_equal(read_image(rgba), [[(10, 20, 30)] * 2])
    np.testing.assert_array_equal(read_image(Image.new("L", (2, 1), 7)), [[(7, 7, 7)] * 2])
    np.testing.assert_array_equal(read_image(Image.new("CMYK", (1, 1), (0, 255, 255, 0))), [[RED]])


def test_pil_images_are_not_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.png", COLOURS, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(image), COLOURS)


def test_a_pil_palette_with_transparency_gives_no_warning(tmp_path: Path) -> None:
    indices = Image.new("P", (2, 1))
    indices.putpalette([*RED, *GREEN])
    indices.putpixel((1, 0), 1)
    with Image.open(saved(tmp_path / "a.png", indices, transparency=b"\x00\x80")) as image:
        np.testing.assert_array_equal(read_image(image), [[RED, GREEN]])


def test_a_deep_pil_image_is_scaled() -> None:
    np.testing.assert_array_equal(read_image(Image.fromarray(DEEP))[..., 0], DEEP_SEEN)


def test_arrays_are_taken_as_they_are() -> None:
    assert read_image(COLOURS) is COLOURS
    view = COLOURS[::-1, ::2]
    taken = read_image(view)
    assert_picture(taken)
    np.testing.assert_array_equal(taken, view)


def test_an_array_needs_no_pillow() -> None:
    program = """
import sys
sys.modules["PIL"] = None
import numpy as np
from masklet.io.image import read_image
read_image(np.zeros((2, 2, 3), np.uint8))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------- refused input


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.zeros((4, 5), np.uint8), "np.stack"),
        (np.zeros((4, 5, 1), np.uint8), "np.repeat"),
        (np.zeros((4, 5, 4), np.uint8), r"\[\.\.\., :3\]"),
        (np.zeros((3, 40, 50), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), "one picture at a time"),
        (np.zeros(7, np.uint8), r"\(7,\)"),
        (np.zeros((4, 5, 3), np.float32), r"image \* 255"),
        (np.zeros((4, 5, 3), np.uint16), "// 257"),
        (np.zeros((4, 5, 3), np.int64), r"astype\(np.uint8\)"),
        (np.zeros((4, 5, 3), bool), r"astype\(np.uint8\) \* 255"),
        (np.zeros((4, 5, 3), object), "object"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((5, 0, 3), np.uint8), "empty"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        read_image(array)


def test_the_hints_are_right() -> None:
    """Each recipe in a message gives an array that is accepted."""
    grey, alpha, first = (
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
    )
    fixed = [np.stack([grey] * 3, axis=-1), np.repeat(grey[..., None], 3, axis=2), alpha[..., :3]]
    fixed += [first.transpose(1, 2, 0), (np.ones((4, 5, 3)) * 255).round().astype(np.uint8)]
    for array in fixed:
        assert read_image(array).shape == (4, 5, 3)


@pytest.mark.parametrize("source", [None, 3, b"bytes", [[1, 2]], io.BytesIO(b"x")])
def test_other_sources(source: object) -> None:
    with pytest.raises(InputError, match=type(source).__name__):
        read_image(source)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        read_image(tmp_path / "no.png")
    with pytest.raises(InputError, match="There is no file"):
        read_image("a\0b.png")
    with pytest.raises(InputError, match="download it first"):
        read_image("https://example.org/a.png")
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        read_image(written(tmp_path / "empty.png", b""))
    with pytest.raises(InputError, match="not a picture"):
        read_image(written(tmp_path / "text.png", b"hello, this is text"))
    with pytest.raises(InputError, match="HEIC"):
        read_image(written(tmp_path / "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"))
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(InputError, match="drawing"):
        read_image(written(tmp_path / "a.eps", drawing))


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = saved(tmp_path / "a.png", COLOURS)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match="no permission"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = saved(tmp_path / f"whole.{suffix}", noise).read_bytes()
    path = written(tmp_path / f"half.{suffix}", data[: len(data) // 2])
    with pytest.raises(InputError, match=r"damaged or cut off|not a picture"):
        read_image(path)
    if suffix not in ("tif", "webp"):  # these are refused on opening
        with Image.open(path) as image, pytest.raises(InputError, match="PIL image"):
            read_image(image)


def test_float_tiff_has_no_white(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="floating-point"):
        read_image(saved(tmp_path / "a.tif", np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)))
    with pytest.raises(InputError, match="32-bit"):
        read_image(saved(tmp_path / "b.tif", np.array([[0, 70000]], np.int32)))


def test_colours_that_pillow_cannot_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("conversion not supported")

    path = saved(tmp_path / "a.tif", Image.new("CMYK", (4, 4)))
    monkeypatch.setattr(Image.Image, "convert", refuse)
    for source in (path, Image.new("CMYK", (4, 4))):
        with pytest.raises(InputError, match=r"mode CMYK, 4 x 4.*conversion not supported"):
            read_image(source)


def test_a_decompression_bomb(tmp_path: Path) -> None:
    """A few bytes that claim a gigapixel are refused from the header, before anything is allocated."""
    bomb = png(60000, 60000, 8, 2, b"\0" * 60000)
    with pytest.raises(InputError, match="too many pixels"):
        read_image(written(tmp_path / "bomb.png", bomb))


def test_a_large_picture_is_not_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", np.zeros((30, 40, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # 1200 pixels: between once and twice the limit
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_image(path).shape == (30, 40, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(InputError, match="too many pixels"):
        read_image(path)


def test_empty_pil_image() -> None:
    with pytest.raises(InputError, match="empty"):
        read_image(Image.new("RGB", (0, 5)))


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_a_picture_or_our_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (12, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 5
    wholes = []
    for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp", "ppm", "tga"):
        options = {"exif": exif} if suffix in ("png", "jpg", "tif", "webp") else {}
        wholes.append(saved(tmp_path / f"whole.{suffix}", noise, **options).read_bytes())
    wholes.append(saved(tmp_path / "lzw.tif", noise, compression="tiff_lzw").read_bytes())
    path, refused = tmp_path / "damaged", 0
    for round_number in range(360):
        data = bytearray(wholes[round_number % len(wholes)])
        for _ in range(int(generator.integers(1, 4))):
            at = int(generator.integers(0, min(len(data), 400)))
            data[at] = int(generator.integers(0, 256))
        path.write_bytes(data)
        try:
            assert_picture(read_image(path))
        except InputError:
            refused += 1
    assert 60 < refused < 360


# ---------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("name", ["a.png", "a.PNG"])
def test_png_round_trip(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, COLOURS)
    np.testing.assert_array_equal(read_image(tmp_path / name), COLOURS)
    write_image(str(tmp_path / name), COLOURS[..., 1])
    with Image.open(tmp_path / name) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.array(image), COLOURS[..., 1])
    write_image(tmp_path / name, COLOURS[::-1, ::2])
    np.testing.assert_array_equal(read_image(tmp_path / name), COLOURS[::-1, ::2])


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_lossy_formats(tmp_path: Path, suffix: str, kind: str) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    smooth = np.dstack(np.broadcast_arrays(np.arange(64)[:, None], np.arange(64), 90)).astype(np.uint8) * 2
    path, rough = tmp_path / f"a.{suffix}", tmp_path / f"rough.{suffix}"
    write_image(path, smooth)
    write_image(rough, smooth, quality=5)
    with Image.open(path) as image:
        assert image.format == kind
    assert np.abs(read_image(path).astype(int) - smooth).mean() < 2
    assert rough.stat().st_size < path.stat().st_size


@pytest.mark.parametrize("name", ["a", "a.gif", "a.png.txt", ".png"])
def test_unknown_suffixes(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.png, \.jpg"):
        write_image(tmp_path / name, COLOURS)
    with pytest.raises(InputError):
        check_image_suffix(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_suffixes_can_be_checked_before_the_work() -> None:
    assert check_image_suffix("no/such/folder/a.JPG") == ".jpg"
    with pytest.raises(InputError, match=r"may end in \.png"):
        check_image_suffix("a.jpg", allowed=(".png",))


@pytest.mark.parametrize(
    "array",
    [
        COLOURS.astype(np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_cannot_be_written(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        write_image(tmp_path / "a.png", array)


@pytest.mark.parametrize("quality", [0, 101])
def test_quality_has_bounds(tmp_path: Path, quality: int) -> None:
    with pytest.raises(InputError, match="1 to 100"):
        write_image(tmp_path / "a.jpg", COLOURS, quality=quality)


def test_a_picture_that_the_format_does_not_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="write a PNG"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 70000, 3), np.uint8))
    assert os.listdir(tmp_path) == []


def test_writing_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="create it"):
        write_image(tmp_path / "no" / "a.png", COLOURS)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OutputError, match="full"):
        write_image(tmp_path / "a.png", COLOURS)
    assert os.listdir(tmp_path) == []
