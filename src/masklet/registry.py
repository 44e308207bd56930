"""The models that have a name: one that comes with the package, and the published checkpoints with their
addresses, sizes, hashes, licences.

In: a name as people write it. Out: the `BundledModel`, or a `PublishedModel`, which says where its file is
and what it must be. Knows nothing about networks and downloads.

Where the numbers come from. Meta publishes no checksums. Byte sizes and SHA-256 are those that public
projects pin to guard their own downloads: installers, container recipes, model manifests, a 3D Slicer
extension. Each number stood the same in at least two of them that don't copy each other; for SAM 2.0 base+
one project has another hash than the rest. All were found for Meta's address. That the hub's `.pt` is the
same file was found for SAM 2.1 in all sizes and SAM 2.0 large; for SAM 2.0 tiny, small and base+ it is taken
for granted, and a download that is something else is refused. SAM's stand likewise in at least four
projects each; Meta has no repository with its `.pth` files, the one named here is by an author of
transformers' SAM, and its ViT-B was found to be Meta's. EdgeTAM's stand in two projects, in one for Meta's
address, in the other for the hub's. `parameters` were counted in the networks that Meta's `sam2` 1.1.0,
`segment-anything` 1.0 and `edgetam-dimos` 1.0.1 build.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from masklet.errors import ModelNotFoundError

_PUBLISHER = "https://dl.fbaipublicfiles.com"


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """A model whose file is part of the package: it is always there, and never downloaded."""

    name: str
    aliases: tuple[str, ...]
    family: str
    version: str
    preset: str  # of the family's table of configurations
    parameters: int
    licence: str  # SPDX
    filename: str

    @property
    def path(self) -> Path:
        """The file."""
        return Path(__file__).parent / "weights" / self.filename

    @property
    def size_bytes(self) -> int:
        """Asked of the file, so that new weights need no new number here."""
        return self.path.stat().st_size


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file in a repository of the Hugging Face hub, and what its content must be."""

    repo_id: str
    filename: str
    revision: str
    size_bytes: int
    sha256: str | None  # 64 lower-case hexadecimal digits; None where it could not be established

    @property
    def pull_command(self) -> str:
        """The command line that puts the file into the cache."""
        return f"hf download {self.repo_id} {self.filename}"

    @property
    def manual_url(self) -> str:
        """Where a browser gets the same file."""
        return f"https://huggingface.co/{self.repo_id}/resolve/{self.revision}/{self.filename}"


@dataclass(frozen=True, kw_only=True)
class PublishedModel(HubFile):
    """A published checkpoint: the file in its publisher's own layout, and what is known about it."""

    name: str
    family: str
    version: str
    preset: str  # of the family's table of configurations
    aliases: tuple[str, ...]
    url: str  # the same file at its publisher's
    parameters: int
    licence: str  # SPDX
    twin: HubFile | None  # the same weights as safetensors in the layout of `transformers`

    @property
    def pull_command(self) -> str:
        """The command line that puts the file into the cache."""
        return f"masklet pull {self.name}"

    @property
    def manual_url(self) -> str:
        """Where a browser gets the same file: at its publisher's, which needs no hub."""
        return self.url


def models() -> tuple[PublishedModel, ...]:
    """All published models, the recommended ones first."""
    return _MODELS


def find(name: str) -> BundledModel | PublishedModel:
    """The model that `name` means: a model's, file's or repository's name, or a short form of it.

    Case doesn't matter. Raises ModelNotFoundError, with the closest names.
    """
    wanted = name.strip().lower()
    found = _BY_NAME.get(wanted)
    if found is not None:
        return found
    close = difflib.get_close_matches(wanted, _BY_NAME, n=len(_BY_NAME), cutoff=0.75)
    suggestions = list(dict.fromkeys(_BY_NAME[match].name for match in close))[:3]
    hint = f"Did you mean {' or '.join(suggestions)}? " if suggestions else ""
    raise ModelNotFoundError(
        f"There is no model {name!r}. {hint}In the package is {BUNDLED.name}, "
        f"published are {', '.join(model.name for model in _MODELS)}. "
        "A file of your own is given by its path."
    )


def _sam2(
    version: str,
    size: str,
    *,
    size_bytes: int,
    sha256: str,
    parameters: int,
    twin: tuple[int, str] | None = None,
    more: tuple[str, ...] = (),
) -> PublishedModel:
    """A row for SAM 2: Meta names its files, repositories and addresses by version and size alone."""
    stem = {"2.0": "sam2", "2.1": "sam2.1"}[version]
    folder = {"2.0": "072824", "2.1": "092824"}[version]
    name = f"{stem}_hiera_{size}"
    hyphened = name.replace("_", "-")
    repo_id = f"facebook/{hyphened}"
    # The branch, not a commit: what the file must be is said by its hash, and a file that other programs
    # brought into the cache at another commit is the same file.
    revision = "main"
    short = tuple(f"{stem}{mark}{size.replace('_', mark)}" for mark in "_-")
    return PublishedModel(
        name=name,
        family="sam2",
        version=version,
        preset=name,
        aliases=(f"{name}.pt", repo_id, hyphened, *short, *(f"{stem}_{word}" for word in more)),
        repo_id=repo_id,
        filename=f"{name}.pt",
        revision=revision,
        url=f"{_PUBLISHER}/segment_anything_2/{folder}/{name}.pt",
        size_bytes=size_bytes,
        parameters=parameters,
        licence="Apache-2.0",
        sha256=sha256,
        twin=HubFile(
            repo_id=repo_id,
            filename="model.safetensors",
            revision=revision,
            size_bytes=twin[0],
            sha256=twin[1],
        )
        if twin
        else None,
    )


def _sam1(
    size: str, word: str, mark: str, *, size_bytes: int, sha256: str, parameters: int
) -> PublishedModel:
    """A row for SAM. `word` is its size in the names of transformers' files, `mark` the first digits of its
    MD5, which Meta writes into the file's name."""
    name = f"sam_vit_{size}"
    file = f"{name}_{mark}"
    return PublishedModel(
        name=name,
        family="sam1",
        version="1",
        preset=name,
        aliases=(
            *(file, f"{file}.pth", name.replace("_", "-"), f"vit_{size}", f"vit-{size}"),
            *(f"facebook/sam-vit-{word}", f"sam-vit-{word}"),
        ),
        repo_id="ybelkada/segment-anything",
        filename=f"checkpoints/{file}.pth",
        revision="main",
        url=f"{_PUBLISHER}/segment_anything/{file}.pth",
        size_bytes=size_bytes,
        parameters=parameters,
        licence="Apache-2.0",
        sha256=sha256,
        twin=None,
    )


# What `masklet.load` gives without a name, and commands without --model.
BUNDLED = BundledModel(
    name="masklet-nano",
    aliases=("masklet_nano", "nano"),
    family="sam2",
    version="2.1",
    preset="masklet-nano",
    parameters=4_978_690,
    licence="MIT",
    filename="nano.safetensors",
)

# The twins of 2.0 and of SAM exist too; their sizes and hashes could not be established. `more` are the names
# of Meta's configuration files. A family that is added later brings its own function beside `_sam2` and its
# rows here.
_MODELS: tuple[PublishedModel, ...] = (
    _sam2(
        "2.1",
        "tiny",
        size_bytes=156_008_466,
        sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        parameters=38_962_498,
        twin=(155_908_064, "48c14467e5cf9e51870511feb72c89688e82dd74523142c0538b663e193ac2a7"),
        more=("hiera_t",),
    ),
    _sam2(
        "2.1",
        "small",
        size_bytes=184_416_285,
        sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        parameters=46_060_354,
        twin=(184_305_280, "0a4067b11ce1e23d5229203f11c718a823060d15a4b23fa2372a7d4b77cbbc60"),
        more=("hiera_s",),
    ),
    _sam2(
        "2.1",
        "base_plus",
        size_bytes=323_606_802,
        sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        parameters=80_850_178,
        twin=(323_476_296, "2012733a0de5d03efd1bba550a2847c4551be9ef2e0d497c83074df66189f780"),
        more=("hiera_b+", "base+"),
    ),
    _sam2(
        "2.1",
        "large",
        size_bytes=898_083_611,
        sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        parameters=224_446_642,
        twin=(897_897_416, "dc407dce21301fd94abb395c5099b4f2c455fdc8a8f261ac3d0ea6d4cd197230"),
        more=("hiera_l",),
    ),
    _sam2(
        "2.0",
        "tiny",
        size_bytes=155_906_050,
        sha256="65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
        parameters=38_945_986,
        more=("hiera_t",),
    ),
    _sam2(
        "2.0",
        "small",
        size_bytes=184_309_650,
        sha256="95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
        parameters=46_043_842,
        more=("hiera_s",),
    ),
    _sam2(
        "2.0",
        "base_plus",
        size_bytes=323_493_298,
        sha256="d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
        parameters=80_833_666,
        more=("hiera_b+", "base+"),
    ),
    _sam2(
        "2.0",
        "large",
        size_bytes=897_952_466,
        sha256="7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
        parameters=224_430_130,
        more=("hiera_l",),
    ),
    _sam1(
        "b",
        "base",
        "01ec64",
        size_bytes=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        parameters=93_735_472,
    ),
    _sam1(
        "l",
        "large",
        "0b3195",
        size_bytes=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        parameters=312_342_832,
    ),
    _sam1(
        "h",
        "huge",
        "4b8939",
        size_bytes=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        parameters=641_090_608,
    ),
    PublishedModel(
        name="edgetam",
        family="edgetam",
        version="1",
        preset="edgetam",
        aliases=("edgetam.pt", "facebook/EdgeTAM", "edge_tam", "edge-tam"),
        repo_id="facebook/EdgeTAM",
        filename="edgetam.pt",
        revision="main",
        url="https://github.com/facebookresearch/EdgeTAM/raw/main/checkpoints/edgetam.pt",
        size_bytes=56_116_523,
        parameters=13_895_794,
        licence="Apache-2.0",
        sha256="ed2d4850b8792c239689b043c47046ec239b6e808a3d9b6ae676c803fd8780df",
        twin=None,
    ),
)
_BY_NAME = {word.lower(): model for model in (BUNDLED, *_MODELS) for word in (model.name, *model.aliases)}
