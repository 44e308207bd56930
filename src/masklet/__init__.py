"""Run the Segment Anything family on pictures and video, without PyTorch.

    import masklet

    predictor = masklet.ImagePredictor(masklet.load())  # or load("sam2.1_hiera_tiny")
    predictor.set_image("photo.jpg")
    masks, scores, low_res = predictor.predict(point_coords=[[500, 375]], point_labels=[1])

Importing does nothing: each public name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masklet.errors import MaskletError
    from masklet.io.video import open_video
    from masklet.pipeline.automatic import AutomaticMaskGenerator
    from masklet.pipeline.image import ImagePredictor
    from masklet.pipeline.memory import ReferencePolicy
    from masklet.pipeline.model import Model, load
    from masklet.pipeline.tracker import Tracker
    from masklet.pipeline.video import VideoPredictor

__version__ = "0.1.0"
__all__ = [
    "AutomaticMaskGenerator",
    "ImagePredictor",
    "MaskletError",
    "Model",
    "ReferencePolicy",
    "Tracker",
    "VideoPredictor",
    "load",
    "open_video",
]

_HOMES = {
    "AutomaticMaskGenerator": "masklet.pipeline.automatic",
    "ImagePredictor": "masklet.pipeline.image",
    "MaskletError": "masklet.errors",
    "Model": "masklet.pipeline.model",
    "ReferencePolicy": "masklet.pipeline.memory",
    "Tracker": "masklet.pipeline.tracker",
    "VideoPredictor": "masklet.pipeline.video",
    "load": "masklet.pipeline.model",
    "open_video": "masklet.io.video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'masklet' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
