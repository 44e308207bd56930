"""The shape of the project: the list of its files, the direction of imports, the sizes, the public face.

Most of it reads source text and syntax trees. Two tests start an interpreter, because only a fresh one shows
what an import brings along.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import masklet
from masklet import errors

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "masklet"
SOURCES = sorted(PACKAGE.rglob("*.py"))

LISTED_FOLDERS = ("src/masklet/", "benchmarks/", "examples/", "scripts/", "tools/", "docs/")
NOT_OURS = {"__pycache__", "build", "dist", "demo-output", "checkpoints"}

# A layer imports itself, those before it, and the ground. What else may import what stands in `may_import`.
GROUND = ("errors", "rle", "types", "registry")
LAYERS = ("io", "model", "families", "quant", "runtime", "pipeline", "apps")
BELOW_PACKAGE = {*GROUND, *LAYERS, "testing", "__init__", "__main__"}

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
MAX_README_LINES = 40

# `import masklet` must cost nothing. The bound lies far under what numpy alone brings (over 100 modules).
HEAVY = {
    "gguf", "huggingface_hub", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "PIL", "rich",
    "torch", "typer",
}  # fmt: skip
MAX_IMPORTED_MODULES = 40

# What a user with the base install lacks. They may be imported by extras and tests, inside functions.
ABSENT = (
    "cv2", "fastapi", "openvino", "pycocotools", "pytest", "ray", "safetensors", "sam2",
    "scipy", "torch", "torchvision", "transformers", "uvicorn",
)  # fmt: skip

MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users)/\w")
INDEX_HOST = re.compile(r"pypi\.org|python[h]osted|download\.pytorch|index[-]url|find[-]links")


# ------------------------------------------------------------------------------------------ the list of files


def refuse(found: list[str]) -> None:
    """Fail with one line for each finding."""
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@cache
def project_files() -> tuple[str, ...]:
    """Paths of the project's own files: what git would commit, or, outside a checkout, what is no cache."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        return tuple(sorted(path for path in set(listed.split("\0")) if path and (ROOT / path).is_file()))
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.startswith(".")]
        found += [Path(folder, name).relative_to(ROOT).as_posix() for name in files]
    return tuple(sorted(found))


def test_architecture_lists_every_file_once_with_a_reason() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    items = re.findall(r"^- .*$", page, re.MULTILINE)
    entries = [(item, re.match(r"- `([^`]+)` - \S", item)) for item in items]
    listed = [entry[1] for _, entry in entries if entry]
    on_disk = {path for path in project_files() if path.startswith(LISTED_FOLDERS)}
    found = [f"not of the form - `path` - reason: {item}" for item, entry in entries if not entry]
    found += [f"listed more than once: {path}" for path in sorted(set(listed)) if listed.count(path) > 1]
    found += [f"on disk, not in docs/architecture.md: {path}" for path in sorted(on_disk - set(listed))]
    found += [f"in docs/architecture.md, not on disk: {path}" for path in sorted(set(listed) - on_disk)]
    refuse(found)


def test_readme_fits_one_screen() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_no_file_names_a_machine() -> None:
    found = []
    for path in project_files():
        content = (ROOT / path).read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line) or INDEX_HOST.search(line):
                found.append(f"{path}:{number}: {line.strip()}")
    refuse(found)


# ---------------------------------------------------------------------------------------------------- sources


@cache
def tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"), str(source))


def place(source: Path, node: ast.AST) -> str:
    return f"{source.relative_to(ROOT).as_posix()}:{getattr(node, 'lineno', 1)}"


def nodes(kinds: type | tuple[type, ...], sources: list[Path] = SOURCES) -> Iterator[tuple[Path, ast.AST]]:
    for source in sources:
        yield from ((source, node) for node in ast.walk(tree(source)) if isinstance(node, kinds))


def test_files_and_functions_are_short() -> None:
    found = []
    for source in SOURCES:
        lines = len(source.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            found.append(f"{place(source, tree(source))}: {lines} lines, at most {MAX_FILE_LINES}")
    for source, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = node.end_lineno - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            found.append(f"{place(source, node)}: {lines} lines in {node.name}, at most {MAX_FUNCTION_LINES}")
    refuse(found)


def test_library_neither_asserts_nor_prints() -> None:
    found = [f"{place(source, node)}: assert" for source, node in nodes(ast.Assert)]
    library = [source for source in SOURCES if PACKAGE / "apps" not in source.parents]
    for source, node in nodes(ast.Call, library):
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"{place(source, node)}: print")
    refuse(found)


def test_every_module_says_what_it_does() -> None:
    refuse([place(source, tree(source)) for source in SOURCES if not ast.get_docstring(tree(source))])


# ---------------------------------------------------------------------------------------------------- imports


def layer_of(source: Path) -> str:
    """The first name below `masklet`: a folder, or a module beside them."""
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


def may_import(layer: str) -> set[str]:
    """The layers that a layer may import, in functions as well. "masklet" is the public face itself."""
    below = {name: {*GROUND, *LAYERS[: LAYERS.index(name) + 1]} for name in LAYERS}
    exceptions = {
        "errors": set(),
        "rle": {"errors"},
        "types": {"errors", "rle"},
        "registry": {"errors", "types"},
        "testing": {*below["runtime"], "testing"},
        "apps": {*below["apps"], "testing", "masklet"},
        "__init__": {*below["apps"], "testing"},
        "__main__": {"apps"},
    }
    return exceptions.get(layer) or below.get(layer, set())


def imported_layers(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Which of our layers an import statement reaches; empty for other packages."""
    if isinstance(node, ast.Import):
        paths = [alias.name for alias in node.names]
    elif node.level:
        return {"a relative import"}
    elif node.module == "masklet":
        names = [alias.name for alias in node.names if alias.name != "__version__"]  # a constant, for all
        paths = [f"masklet.{name}" if name in BELOW_PACKAGE else "masklet" for name in names]
    else:
        paths = [node.module or ""]
    parts = [path.split(".") for path in paths]
    return {path[1] if len(path) > 1 else "masklet" for path in parts if path[0] == "masklet"}


def test_every_module_has_a_layer() -> None:
    assert {layer_of(source) for source in SOURCES} - BELOW_PACKAGE == set()


def test_imports_point_one_way() -> None:
    found = []
    for source, node in nodes((ast.Import, ast.ImportFrom)):
        layer = layer_of(source)
        wrong = imported_layers(node) - may_import(layer)
        found += [f"{place(source, node)}: {layer} imports {name}" for name in sorted(wrong)]
    refuse(found)


@pytest.mark.parametrize(
    ("statement", "layers"),
    [
        ("import numpy as np", set()),
        ("import masklet", {"masklet"}),
        ("import masklet.io.hub", {"io"}),
        ("from masklet import errors, load", {"errors", "masklet"}),
        ("from masklet import __version__", set()),
        ("from masklet.runtime.graph import Stage", {"runtime"}),
        ("from .errors import InputError", {"a relative import"}),
    ],
)
def test_imported_layers(statement: str, layers: set[str]) -> None:
    assert imported_layers(ast.parse(statement).body[0]) == layers


def in_fresh_interpreter(program: str) -> Any:
    """What a program prints as JSON in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_module_imports_with_the_base_install() -> None:
    names = [
        ".".join(("masklet", *source.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for source in SOURCES
        if source.name != "__main__.py"
    ]
    program = f"""
import importlib, json, sys, traceback
sys.modules.update(dict.fromkeys({ABSENT!r}))  # importing one of them is an ImportError
failed = {{}}
for name in {names!r}:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = traceback.format_exception_only(error)[-1]
print(json.dumps(failed))
"""
    failed = in_fresh_interpreter(program)
    refuse([f"{name}: {reason}" for name, reason in failed.items()])


def test_importing_masklet_brings_nothing_heavy() -> None:
    program = """
import json, sys
before = set(sys.modules)
import masklet
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    brought = in_fresh_interpreter(program)
    assert {name.partition(".")[0] for name in brought} & HEAVY == set()
    assert len(brought) <= MAX_IMPORTED_MODULES, brought


# ------------------------------------------------------------------------------------------------ public face


def test_public_names_are_sorted_and_resolve() -> None:
    assert masklet.__all__ == sorted(set(masklet.__all__))
    assert [name for name in masklet.__all__ if not hasattr(masklet, name)] == []


def test_dir_offers_the_public_names() -> None:
    assert set(masklet.__all__) <= set(dir(masklet))


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = masklet.no_such_name


def test_version_is_the_one_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    stated = re.search(r'^version = "([^"]+)"$', project, re.MULTILINE)
    assert stated is not None
    assert masklet.__version__ == stated[1]


def test_error_tree_in_the_docstring_is_the_real_one() -> None:
    """Depth is four characters a level; a base beside the parent stands in parentheses."""
    drawn, ancestors = {}, ["Exception"]
    for line in errors.__doc__.splitlines():
        entry = re.match(r"    ((?:│   |    )*(?:├── |└── )?)(\w+)(?: \((\w+)\))?(?: {2,}\S.*)?$", line)
        if entry:
            branch, name, second_base = entry.groups()
            del ancestors[1 + len(branch) // 4 :]
            drawn[name] = (ancestors[-1], second_base) if second_base else (ancestors[-1],)
            ancestors.append(name)
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert drawn == {value.__name__: tuple(base.__name__ for base in value.__bases__) for value in classes}
