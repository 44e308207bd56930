"""Pictures in and out.

In: a file, a PIL image or an array. Out: (H, W, 3) uint8 RGB, which is all that the rest of masklet sees of
a picture; and files written from such arrays. Knows nothing about models, prompts or masks.

Files give what a person sees in a viewer. PIL images and arrays are taken as Meta's predictor takes them, so
that code which hands them over gets the same numbers. Colour profiles are not applied in either case.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.errors import InputError, MaskletError
from masklet.io.atomic import open_atomic

if TYPE_CHECKING:
    from PIL import Image

# What `write_image` writes, by suffix. Full chroma in JPEG: thin coloured outlines would smear otherwise.
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"subsampling": 0}),
    ".jpeg": ("JPEG", {"subsampling": 0}),
    ".webp": ("WEBP", {"method": 4}),
}

# Formats that describe drawings. Pillow would run Ghostscript or Windows' own interpreter on them.
_DRAWINGS = ("EPS", "WMF")

_ORIENTATION = 0x0112  # EXIF tag
_WHITE_16 = 65535


# ---------------------------------------------------------------------------------------------------- reading


def read_image(source: Any) -> np.ndarray:
    """A picture as a C-contiguous (H, W, 3) uint8 RGB array.

    `source` is one of

    - a path: decoded to what a person sees. The first frame, turned as EXIF says, transparency over white,
      16-bit grey scaled to 8 bits, palettes and CMYK converted.
    - a PIL image: `image.convert("RGB")`, so transparency is dropped and EXIF ignored, as the reference's
      examples do. 16-bit grey is scaled all the same, because a plain conversion would clip it to white.
    - an array (H, W, 3) uint8 RGB: as it is, and without a copy where it is contiguous.

    Files may have as many pixels as Pillow allows: twice `PIL.Image.MAX_IMAGE_PIXELS`, 178 million unless
    the program sets it. Raises `InputError` for everything that is not a picture of at least 1 x 1.
    """
    if isinstance(source, np.ndarray):
        return _checked_array(source)
    if isinstance(source, (str, os.PathLike)):
        return _seen(open_picture(source), repr(os.fsdecode(source)))
    from PIL import Image

    if isinstance(source, Image.Image):
        return _as_given(source)
    raise InputError(
        f"A picture must be a path, a PIL image or an array (H, W, 3) uint8, got {type(source).__name__}. "
        "Open bytes or a file object with PIL.Image.open first; turn a tensor (3, H, W) into an array with "
        "tensor.permute(1, 2, 0).cpu().numpy()."
    )


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """The first frame of a picture file, turned as EXIF says, in the file's own mode. Raises `InputError`."""
    from PIL import Image

    name = os.fsdecode(path)
    try:
        with open(name, "rb") as file:
            image = Image.open(file)
            if image.format in _DRAWINGS:
                raise InputError(f"{name!r} is a drawing ({image.format}), not a picture; export it as PNG.")
            image.load()
            return _upright(image)
    except MaskletError:
        raise
    except Exception as error:  # Pillow's readers raise anything at all on damaged files
        raise InputError(_explain(name, error)) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    if image.format == "TIFF":
        return image  # Pillow turned it on loading, and old versions leave the tag in place
    try:
        turn = turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged metadata (any error) is no reason to refuse the picture
        turn = None
    # Not `ImageOps.exif_transpose`: it also rewrites the metadata, and fails where other tags are damaged.
    return image if turn is None else image.transpose(turn)


def _seen(image: Image.Image, name: str) -> np.ndarray:
    """A decoded file's pixels as a viewer shows them."""
    from PIL import Image

    if is_deep(image):
        return _eight_bit(image, name)
    if has_transparency(image):
        image = converted(image, "RGBA", name)
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.array(converted(image, "RGB", name))


def _as_given(image: Image.Image) -> np.ndarray:
    """A PIL image that the caller opened: the reference's conversion."""
    name = "The PIL image"
    if 0 in image.size:
        raise InputError(f"{name} is empty: width x height is {image.width} x {image.height}.")
    if is_deep(image):
        return _eight_bit(image, name)
    if image.mode == "P" and has_transparency(image):
        image = converted(image, "RGBA", name)  # the same colours, without Pillow's warning
    return np.array(converted(image, "RGB", name))


def converted(image: Image.Image, mode: str, name: str) -> Image.Image:
    """The image in another mode. Raises `InputError`, which speaks of `name`."""
    try:
        if image.mode != mode:
            return image.convert(mode)
        image.load()  # an image that the caller opened is decoded only here
    except Exception as error:  # colours that Pillow cannot convert, damaged data of any kind
        raise InputError(
            f"{name} (mode {image.mode}, {image.width} x {image.height}) cannot be converted to {mode}: "
            f"{error}. Save it anew as PNG with 8 bits."
        ) from error
    return image


def has_transparency(image: Image.Image) -> bool:
    """Whether some pixels may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def is_deep(image: Image.Image) -> bool:
    """Grey with more than 8 bits, which Pillow's own conversions clip."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _eight_bit(image: Image.Image, name: str) -> np.ndarray:
    """16-bit grey as (H, W, 3) uint8: 65535 is white, as in PNG and TIFF."""
    values = np.asarray(converted(image, image.mode, name))
    if image.mode == "F" or values.min() < 0 or values.max() > _WHITE_16:
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise InputError(
            f"{name} consists of {kind} ({values.min():g} to {values.max():g}), which does not tell "
            "what is white; scale it to 0 .. 255 and save it with 8 bits."
        )
    grey = ((values.astype(np.uint32) * 255 + _WHITE_16 // 2) // _WHITE_16).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _explain(path: str, error: Exception) -> str:
    """Why a file did not open: what was got, what to do."""
    from PIL import Image, UnidentifiedImageError

    name = repr(path)
    if isinstance(error, FileNotFoundError) or "\0" in path:
        return f"There is no file {name}{'; download it first' if '://' in path else ''}."
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return (
            f"{name} has too many pixels: {error} Scale it down first, or raise PIL.Image.MAX_IMAGE_PIXELS."
        )
    if isinstance(error, MemoryError):
        return f"{name} does not fit into memory; scale it down first."
    if os.path.isdir(path):
        return f"{name} is a folder; give the path of one file."
    if isinstance(error, UnidentifiedImageError):
        if os.path.getsize(path) == 0:
            return f"{name} is empty (0 bytes)."
        if Path(path).suffix.lower() in (".heic", ".heif"):
            return (
                f"{name} is in a format that Pillow does not read by itself (HEIC); save it as JPEG or PNG."
            )
        return f"{name} is not a picture that Pillow reads (PNG, JPEG, WebP, TIFF, GIF, BMP and others)."
    if isinstance(error, OSError) and error.errno is not None:
        reason = "no permission to read it" if error.errno == errno.EACCES else error.strerror
        return f"Cannot read {name}: {reason}."
    return f"The picture {name} is damaged or cut off ({error}); copy or download it again."


def _checked_array(array: np.ndarray) -> np.ndarray:
    if array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"A picture array must be (H, W, 3), got {array.shape}.{_shape_hint(array.shape)}")
    if array.dtype != np.uint8:
        raise InputError(
            f"A picture array must be uint8, 0 .. 255, got {array.dtype}.{_dtype_hint(array.dtype)}"
        )
    if array.size == 0:
        raise InputError(f"The picture array is empty: its shape is {array.shape}.")
    return np.ascontiguousarray(array)


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return " For a grey picture: np.stack([image] * 3, axis=-1)."
    if len(shape) == 3 and shape[2] == 1:
        return " For a grey picture: np.repeat(image, 3, axis=2)."
    if len(shape) == 3 and shape[2] == 4:
        return " To drop the alpha channel: image[..., :3]."
    if len(shape) == 3 and shape[0] == 3:
        return " To put the channels last: image.transpose(1, 2, 0)."
    if len(shape) == 4:
        return " Give one picture at a time: images[0]."
    return ""


def _dtype_hint(dtype: np.dtype) -> str:
    if dtype.kind == "f":
        return " For values in 0 .. 1: (image * 255).round().astype(np.uint8)."
    if dtype == np.uint16:
        return " For values up to 65535: (image // 257).astype(np.uint8)."
    if dtype.kind in "iu":
        return " If its values lie in 0 .. 255: image.astype(np.uint8)."
    if dtype.kind == "b":
        return " For black and white: image.astype(np.uint8) * 255."
    return ""


# ---------------------------------------------------------------------------------------------------- writing


def check_image_suffix(path: str | os.PathLike[str], allowed: tuple[str, ...] = tuple(_FORMATS)) -> str:
    """The suffix of an output picture, lower case. Raises `InputError` unless it is among `allowed`.

    Call it before long work whose result goes to `path`.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in allowed:
        got = f"the suffix {suffix!r}" if suffix else "no suffix"
        raise InputError(
            f"Cannot write {os.fspath(path)!r}: {got}; a file name may end in {', '.join(allowed)}."
        )
    return suffix


def write_image(path: str | os.PathLike[str], image: np.ndarray, *, quality: int = 92) -> None:
    """Write (H, W, 3) RGB or (H, W) grey uint8, all or nothing; the format is the suffix's.

    `quality` (1 to 100) is for JPEG and WebP. Raises `InputError` for another suffix, another array or a
    picture that the format cannot hold, `OutputError` where the file cannot be written.
    """
    format_name, options = _FORMATS[check_image_suffix(path)]
    if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or image.shape[2:] == (3,)):
        raise InputError(
            f"A picture to write must be (H, W, 3) or (H, W) uint8, got {image.shape} {image.dtype}."
        )
    if not 1 <= quality <= 100:
        raise InputError(f"The quality of a picture must be 1 to 100, got {quality}.")
    if format_name == "PNG" and image.ndim == 3:
        options = {"compress_level": 1}  # photographs: a quarter of the time for a fifth more bytes
    from PIL import Image

    encoded = io.BytesIO()
    try:
        Image.fromarray(np.ascontiguousarray(image)).save(encoded, format_name, quality=quality, **options)
    except Exception as error:  # Pillow's writers raise OSError, ValueError, KeyError and others
        raise InputError(
            f"Cannot write {os.fspath(path)!r}: Pillow makes no {format_name} of a picture of "
            f"{image.shape[1]} x {image.shape[0]} ({error}); write a PNG."
        ) from error
    with open_atomic(path) as file:
        file.write(encoded.getbuffer())
