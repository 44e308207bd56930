"""Numbers and names read one after the other from a binary header, every length checked before it is used.

In: the bytes of a file. Out: Python values, or `CorruptFileError`. Knows nothing about any file format.
"""

from __future__ import annotations

import struct

from masklet.errors import CorruptFileError
from masklet.io.tensor_table import Buffer

MAX_TENSORS = 100_000  # a hundred times what the largest model has; bounds the time that a header takes
MAX_NAME_BYTES = 512


class Cursor:
    """A position in a buffer, which every read moves on. What lies beyond the end is `CorruptFileError`."""

    def __init__(self, data: Buffer, position: int = 0) -> None:
        self.position = position
        self._data = data

    @property
    def left(self) -> int:
        """Bytes between the position and the end of the file."""
        return len(self._data) - self.position

    def skip(self, count: int) -> int:
        """Move on by `count` bytes; gives where they begin."""
        if count > self.left:
            raise CorruptFileError(
                f"at byte {self.position:,} it announces {count:,} more, but the file has"
                f" {len(self._data):,}; it is damaged or cut off: download or copy it again"
            )
        start, self.position = self.position, self.position + count
        return start

    def align(self, step: int) -> None:
        """Move on to the next multiple of `step` from the start of the file."""
        self.skip(-self.position % step)

    def numbers(self, layout: str) -> tuple[int, ...]:
        """Little-endian numbers in the notation of `struct`, such as "IQ"."""
        size = struct.calcsize(f"<{layout}")
        start = self.skip(size)
        return struct.unpack(f"<{layout}", self._data[start : start + size])

    def text(self, nbytes: int, limit: int) -> str:
        """UTF-8 of that many bytes, at most `limit`."""
        if not 0 <= nbytes <= limit:
            raise CorruptFileError(
                f"at byte {self.position:,} it announces a text of {nbytes:,} bytes; at most {limit:,} are"
                " allowed"
            )
        start = self.skip(nbytes)
        try:
            return self._data[start : start + nbytes].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"the text at byte {start:,} is not UTF-8") from error
