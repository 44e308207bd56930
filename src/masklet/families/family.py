"""What a family of models tells the rest of masklet: its configurations, stages, sizes and tensors.

Each family fills in one `Family`; `table` lists them. In: names and shapes of a checkpoint's tensors. Out: a
configuration, or an error that says what does not fit. Knows no family in particular; imports no onnxscript.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, Protocol

from masklet.errors import InputError, TensorMismatchError, UnknownFormatError
from masklet.model.tokens import MemoryPlaces, TokenOrder

CONFIG_KEY = "masklet.config"  # of the metadata in files that masklet writes
MAX_SIZE = 16384  # of any number of a configuration

Shapes = Mapping[str, tuple[int, ...]]


class Config(Protocol):
    """What the configurations of all families have in common: each is a frozen dataclass."""

    @property
    def family(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def d_model(self) -> int: ...  # channels of the image embedding and of the decoder

    @property
    def memory_dim(self) -> int: ...  # channels of a memory; 0 without

    @property
    def image_size(self) -> int: ...  # side of the square input in pixels, as trained

    @property
    def width(self) -> int: ...  # channels of the trunk, of its first stage where it has several

    @property
    def blocks(self) -> tuple[int, ...]: ...  # of the trunk, per stage

    def orders(self, image_size: int, nested: bool) -> tuple[TokenOrder, ...]:
        """The orders of feature tokens, finest first; the image embedding's is the third."""
        ...

    def block(self, image_size: int, nested: bool) -> int:
        """The side of the blocks in which the embedding's tokens are nested; 0 for raster order."""
        ...

    def memory_places(self, image_size: int) -> MemoryPlaces:
        """Where the tokens of a memory lie."""
        ...

    def to_json(self) -> str:
        """The configuration as the metadata text that `table.from_metadata` reads."""
        ...


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. `check` raises ValueError or TypeError for a configuration of numbers that make no network;
    `network` imports the module that records graphs: its `NETWORK` and `STAGES`."""

    name: str
    title: str  # as people write it
    config: type  # of its configurations
    trunk: type  # of their `trunk`
    presets: Mapping[str, Any]  # published name -> configuration
    image_stages: tuple[str, ...]
    video_stages: tuple[str, ...] = ()
    video_tensors: tuple[str, ...] = ()  # prefixes of the tensors that only video needs
    unused_tensors: Mapping[str, str]  # names or their ends, in published files, read by nothing: why
    size_multiple: int  # pixels, of an input's side
    matches: Callable[[Shapes], bool]
    recognise: Callable[[Shapes], Any]
    check: Callable[[Any], None]
    network: Callable[[], ModuleType]

    def preset_name(self, config: Config) -> str | None:
        """The published name of a configuration, None for one of your own."""
        return next((name for name, preset in self.presets.items() if preset == config), None)

    def parse(self, values: dict[str, Any]) -> Any:
        """The configuration of metadata. Raises ValueError, KeyError or TypeError."""
        config = _filled(self.config, {**values, "trunk": _filled(self.trunk, values["trunk"])})
        self.check(config)
        return config

    def check_size(self, size: int) -> int:
        """`size` if it can be the side of an input, in pixels. Raises InputError."""
        step = self.size_multiple
        if not isinstance(size, int) or isinstance(size, bool) or size < step or size % step:
            raise InputError(f"image_size is {size!r}; give a multiple of {step} pixels, such as 1024.")
        return size

    def check_tensors(self, expected: Shapes, found: Shapes, path: object, *, video: bool = False) -> None:
        """Strict both ways: all expected tensors in their shapes, and no others but the unused ones.

        Pictures and video are checked apart: with `video` only tensors of `video_tensors` count, else only
        the others. Raises TensorMismatchError.
        """
        found = {name: shape for name, shape in found.items() if name.startswith(self.video_tensors) == video}
        if video and not found:
            raise TensorMismatchError(
                f"{path} holds the image part of a {self.title} model only; tracking needs the memory "
                "tensors as well. Use the published file, or fine-tune from it and save the whole model."
            )
        missing = sorted(expected.keys() - found.keys())
        unused = tuple(self.unused_tensors)
        extra = sorted(name for name in found if name not in expected and not name.endswith(unused))
        shaped = [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ]
        problems = [
            f"{what}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
            for what, names in (("missing", missing), ("not known", extra), ("of another shape", shaped))
            if names
        ]
        if problems:
            raise TensorMismatchError(
                f"{path}: the tensors do not fit the recognised model. {'; '.join(problems)}. "
                "Use the file as published, or a fine-tuned one with the same network."
            )


def has_decoder(shapes: Shapes) -> bool:
    """True when there are tensors of a mask decoder under its canonical key."""
    return any(name.startswith("sam_mask_decoder.") for name in shapes)


def count_blocks(shapes: Shapes, prefix: str) -> int:
    """How many blocks have tensors: how many different parts of names follow `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def unknown_network(found: str, published: str) -> UnknownFormatError:
    """The error for a network of a family that is none of its published ones."""
    return UnknownFormatError(
        f"{found}; published: {published}. "
        f"A network of your own needs its configuration in the metadata {CONFIG_KEY}."
    )


def check_sizes(numbers: Iterable[Any]) -> None:
    """Raises ValueError unless all are sizes that a network can have."""
    wrong = [n for n in numbers if not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= MAX_SIZE]
    if wrong:
        raise ValueError(f"{wrong[0]!r} among the sizes; whole numbers between 1 and {MAX_SIZE} are allowed")


def _filled(kind: type, values: Any) -> Any:
    """A configuration dataclass from parsed JSON: every field and nothing else; lists become tuples.

    Raises ValueError.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} instead of the fields of {kind.__name__}")
    expected, got = {field.name for field in fields(kind)}, set(values)
    if expected != got:
        raise ValueError(f"missing {sorted(expected - got)}, unknown {sorted(got - expected)}")
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )
