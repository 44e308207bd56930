"""Draws 3D models as sprites: each from several sides, under several lights.

In: the furniture libraries of Sweet Home 3D (zip files with OBJ models, materials, textures and a catalogue).
Out: `Item`s, the PNG of one view each, all views of a model with one concept. Drawn by VTK without a display.
Knows nothing about splits and files of the data folder.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import concepts
import numpy as np
from cutouts import LONGEST
from readers import Item, Names

VIEWS = 4
BATCH = 20  # models a process
PATIENCE = 60  # seconds a model may take on average
FLAT = re.compile(
    r"door|window|blind|curtain|wall|fence|rail|rug|mat\b|poster|picture|shelf light|glass pane", re.I
)
LICENSED = re.compile(r"Creative Commons|CC0|CC-0|CC BY|Free Art|Public domain", re.I)


def read(folder: Path, names: Names) -> Iterator[Item]:
    """Draws all models of all libraries below `folder`, in processes of their own: the importer of
    models crashes on some, and then only that model is lost."""
    jobs: dict[Path, str] = {}
    for library in sorted(folder.rglob("*.sh3f")):
        box = folder / "models" / library.stem
        with zipfile.ZipFile(library) as archive:
            archive.extractall(box)
        jobs |= _catalogue(box)
    paths = list(jobs)
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for batch, _ in zip(batches, threads.map(_draw_batch, batches), strict=True):
            for path in batch:
                shown = concepts.concept(jobs[path], names.words) or "person"
                for number, view in enumerate(_views(path)):
                    if view.exists():
                        name = f"{path.relative_to(folder / 'models').parts[0]}_{path.stem}_{number}"
                        yield Item(re.sub("[^A-Za-z0-9]+", "_", name), shown, view.read_bytes())


def _views(path: Path) -> list[Path]:
    """Where the views of a model are drawn to."""
    return [path.with_suffix(f".view{number}.png") for number in range(VIEWS)]


def _draw_batch(paths: list[Path]) -> None:
    """Draws models in another process, and after a crash or a standstill those behind the model it was at."""
    left = paths
    while left:
        command = [sys.executable, str(Path(__file__).resolve()), *map(str, left)]
        try:
            subprocess.run(command, capture_output=True, timeout=PATIENCE * len(left), check=True)
            return
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            missing = [path for path in left if not _views(path)[-1].exists()]
            left = left[left.index(missing[0]) + 1 :] if missing else []


def _catalogue(box: Path) -> dict[Path, str]:
    """The models of an unpacked library with their English names; flat ones and those that others made under
    no open licence are left out."""
    text = (box / "PluginFurnitureCatalog.properties").read_text("latin-1")
    library = re.search(r"^license=(.*)$", text, re.M)
    facts: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.M):
        facts.setdefault(number, {})[key] = value.strip()
    found = {}
    for entry in facts.values():
        path = box / entry.get("model", "").lstrip("/")
        licence = entry.get("license") or (library[1] if library else "")
        if path.suffix == ".obj" and LICENSED.search(licence) and not FLAT.search(entry.get("name", "")):
            found[path] = entry["name"]
    return dict(sorted(found.items()))


def draw(path: Path) -> None:
    """Draws the views of an OBJ model beside it; the same model always looks the same."""
    from PIL import Image

    chance = random.Random(path.stem)
    window, renderer = _scene(path, chance)
    start = chance.uniform(-30, 60)
    for number, view in enumerate(_views(path)):
        azimuth = start + number * 360 / VIEWS + chance.uniform(-20, 20)
        _look(renderer, azimuth, chance.choice((5, 15, 25, 40, 60)) + chance.uniform(-5, 5))
        _light(renderer, chance)
        Image.fromarray(_pixels(window)).save(view, compress_level=1)


def _scene(path: Path, chance: random.Random):
    """A window with the model in it; models without a texture and colour get one colour each material."""
    import vtk  # pyright: ignore[reportMissingImports]

    vtk.vtkObject.GlobalWarningDisplayOff()
    path.write_text(
        re.sub(r"^(vt\s+\S+\s+\S+)[^\n]*$", r"\1", path.read_text("latin-1"), flags=re.M), "latin-1"
    )
    importer = vtk.vtkOBJImporter()
    importer.SetFileName(str(path))
    materials = sorted(path.parent.glob("*.mtl"))
    if materials:
        importer.SetFileNameMTL(str(materials[0]))
    importer.SetTexturePath(str(path.parent))
    window, renderer = vtk.vtkRenderWindow(), vtk.vtkRenderer()
    window.SetOffScreenRendering(1)
    window.SetSize(2 * LONGEST, 2 * LONGEST)
    window.SetAlphaBitPlanes(1)
    window.SetMultiSamples(4)
    window.AddRenderer(renderer)
    importer.SetRenderWindow(window)
    importer.Update()
    renderer.SetBackgroundAlpha(0)
    tinted = chance.random() < 0.6
    for actor in renderer.GetActors():
        material = actor.GetProperty()
        material.SetAmbient(0.3)
        material.SetAmbientColor(material.GetDiffuseColor())
        material.SetSpecular(min(0.4, material.GetSpecular()))
        red, green, blue = material.GetDiffuseColor()
        if (
            tinted
            and actor.GetTexture() is None
            and max(red, green, blue) - min(red, green, blue) < 0.05
            and red > 0.3
        ):
            tint = [chance.uniform(0.3, 1) for _ in range(3)]
            material.SetColor(*tint)
    return window, renderer


def _look(renderer, azimuth: float, elevation: float) -> None:
    """Turns the camera around the model, degrees."""
    camera = renderer.GetActiveCamera()
    a, e = np.radians(azimuth), np.radians(elevation)
    middle = np.asarray(camera.GetFocalPoint())
    camera.SetViewUp(0, 1, 0)
    camera.SetPosition(*(middle + np.array((np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)))))
    renderer.ResetCamera()


def _light(renderer, chance: random.Random) -> None:
    """One strong light from above at a side, one weak from the camera."""
    import vtk  # pyright: ignore[reportMissingImports]

    renderer.RemoveAllLights()
    for strength, place in ((0.9, (chance.uniform(-3, 3), chance.uniform(1, 4), 2)), (0.4, (0, 0, 1))):
        light = vtk.vtkLight()
        light.SetLightTypeToCameraLight()
        light.SetPosition(*place)
        light.SetIntensity(strength)
        renderer.AddLight(light)


def _pixels(window) -> np.ndarray:
    """RGBA of the window, (H, W, 4) uint8."""
    import vtk  # pyright: ignore[reportMissingImports]
    from vtk.util.numpy_support import vtk_to_numpy  # pyright: ignore[reportMissingImports]

    window.Render()
    reader = vtk.vtkWindowToImageFilter()
    reader.SetInput(window)
    reader.SetInputBufferTypeToRGBA()
    reader.ReadFrontBufferOff()
    reader.Update()
    image = reader.GetOutput()
    width, height, _ = image.GetDimensions()
    return np.ascontiguousarray(
        vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 4)[::-1]
    )


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        draw(Path(argument))
