"""`masklet track`: a video and prompts to masks of every object in every frame.

In: a video, prompts on any of its frames, outputs. Out: files or lines on stdout, and on stdout a table. All
that can be checked beforehand (prompts, outputs, the video) is checked before a model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.apps import options, terminal
from masklet.apps.track_outputs import Output, check_writable, open_writers, parse_outputs
from masklet.apps.track_prompts import (
    BOX_FORM,
    POINT_FORM,
    FramePrompt,
    Told,
    check_prompts,
    gather,
    parse_frame_box,
    parse_frame_mask,
    parse_frame_point,
    read_prompts_file,
)
from masklet.apps.track_run import (
    Method,
    Results,
    StateKind,
    Summary,
    results_of_clip,
    results_of_stream,
    write_results,
)
from masklet.errors import OutputError

if TYPE_CHECKING:
    from masklet.io.results import ResultWriter, RunSettings, Start
    from masklet.io.video import VideoSource

FRAMES = "Frames"  # titles of options in the command's help
TRACKING = "Tracking"

EXAMPLES = """Examples:

masklet track clip.mp4 --point 0:1:520,375 -o seen.mp4

masklet track clip.mp4 --box 0:1:80,40,610,470 --point 45:2:300,200 -o masks

masklet track clip.mp4 --mask 0:first.png --frames 100 -o masks --resume

masklet track 0 --point 0:1:320,240 -o - --no-masks
"""

# ---------------------------------------------------------------------------------------------------- options

VideoArgument = Annotated[
    str,
    typer.Argument(
        metavar="VIDEO",
        show_default=False,
        help="A video file, a folder of pictures, a pattern such as 'frames/*.jpg', or a camera: 0, 1, ...",
    ),
]
Points = Annotated[
    list[Told] | None,
    typer.Option(
        "--point",
        metavar=POINT_FORM,
        parser=parse_frame_point,
        show_default=False,
        rich_help_panel=options.PROMPTS,
        help="A pixel on the object (1, also without a label) or off it (0). Repeat it for more.",
    ),
]
Boxes = Annotated[
    list[Told] | None,
    typer.Option(
        "--box",
        metavar=BOX_FORM,
        parser=parse_frame_box,
        show_default=False,
        rich_help_panel=options.PROMPTS,
        help="A box around the object in pixels: left, top, right, bottom. Repeat it for more.",
    ),
]
Masks = Annotated[
    list[Told] | None,
    typer.Option(
        "--mask",
        metavar="FRAME:[OBJ:]FILE",
        parser=parse_frame_mask,
        show_default=False,
        rich_help_panel=options.PROMPTS,
        help="The object's mask: a black and white picture or a .npy array. Without OBJ, a PNG with one "
        "colour index for each object, as DAVIS has them. Repeat it for more.",
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE.json",
        show_default=False,
        rich_help_panel=options.PROMPTS,
        help="A list of prompts, each with frame, object and points, labels, box or mask.",
    ),
]
StartFrame = Annotated[
    int | None,
    typer.Option(
        "--start",
        metavar="N",
        min=0,
        show_default="the first prompted frame, with --reverse the last",
        rich_help_panel=FRAMES,
        help="The frame where tracking begins.",
    ),
]
NumFrames = Annotated[
    int | None,
    typer.Option(
        "--frames",
        metavar="N",
        min=1,
        show_default="all",
        rich_help_panel=FRAMES,
        help="How many frames to track.",
    ),
]
Reverse = Annotated[
    bool, typer.Option("--reverse", rich_help_panel=FRAMES, help="Track backwards, towards frame 0.")
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        show_default=False,
        rich_help_panel=options.OUTPUT,
        help="Where to: a video to look at (.mp4, .mov, .mkv, .webm), a folder of PNGs whose colour index is "
        "the object, a COCO document (.json), a line of JSON for each frame (.jsonl), or the same on "
        "standard output (-). Repeat it for several.",
    ),
]
PerObject = Annotated[
    bool,
    typer.Option(
        "--per-object",
        rich_help_panel=options.OUTPUT,
        help="In a folder: black and white masks, OUT/OBJ/00000.png.",
    ),
]
NoMasks = Annotated[
    bool,
    typer.Option("--no-masks", rich_help_panel=options.OUTPUT, help="In JSON lines: leave the masks out."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=options.OUTPUT,
        help="Add the frames that a folder or a .jsonl file of an earlier run lacks.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", rich_help_panel=options.OUTPUT, help="Replace earlier results.")
]
FillHoles = Annotated[
    float,
    typer.Option(
        "--fill-holes",
        metavar="AREA",
        min=0,
        rich_help_panel=TRACKING,
        help="Fill holes in masks up to this many low-resolution pixels; 0: none.",
    ),
]
NonOverlap = Annotated[
    bool,
    typer.Option("--non-overlap", rich_help_panel=TRACKING, help="Let a pixel belong to one object at most."),
]
LostAfter = Annotated[
    int,
    typer.Option(
        "--lost-after",
        metavar="N",
        min=1,
        rich_help_panel=TRACKING,
        help="Call an object lost when it was hidden for this many frames.",
    ),
]
State = Annotated[
    StateKind,
    typer.Option(
        "--state",
        metavar="WHERE",
        rich_help_panel=TRACKING,
        help="Where to keep what was tracked: forget (only as long as it is needed), disk or memory. The "
        "results are the same.",
    ),
]

# ---------------------------------------------------------------------------------------------------- command


@dataclass(frozen=True)
class Wish:
    """What the outputs should be like."""

    outputs: Sequence[Output]
    per_object: bool
    masks: bool
    start: Start


def track(
    video: VideoArgument,
    point: Points = None,
    box: Boxes = None,
    mask: Masks = None,
    prompts: PromptsFile = None,
    start: StartFrame = None,
    frames: NumFrames = None,
    reverse: Reverse = False,
    output: Outputs = None,
    per_object: PerObject = False,
    no_masks: NoMasks = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    fill_holes: FillHoles = 8,
    non_overlap: NonOverlap = False,
    lost_after: LostAfter = 30,
    state: State = "forget",
    model: options.ModelOption = None,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    image_size: options.ImageSize = None,
    profile: options.Profile = None,
) -> None:
    """Follow objects through a video.

    Show each object in some frame, by points, a box or a mask, and give it
    a number OBJ of your choice, 1 or more. FRAME counts from 0. Prompts for
    the same object in other frames correct it. x counts right and y down
    from the top left corner, in pixels of the video as a player shows it.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume keeps earlier results and --overwrite replaces them; give one.")
    outputs = parse_outputs(output or [], per_object=per_object, masks=not no_masks, resume=resume)
    told = [*(point or ()), *(box or ()), *(mask or ())]
    gathered = gather([*told, *(read_prompts_file(prompts) if prompts else ())])
    check_writable(outputs, video)
    wish = Wish(
        outputs, per_object, not no_masks, "resume" if resume else "overwrite" if overwrite else "new"
    )
    method = Method(fill_holes, non_overlap, lost_after, state)
    computation = options.Computation(model, device, threads, precision, image_size, profile)
    with _open(video) as source:
        check_prompts(gathered, source.num_frames, source.size_hw)
        if source.num_frames is None:
            if start is not None or reverse or resume:
                raise typer.BadParameter(
                    "a camera has no --start, --reverse or --resume: its frames come once."
                )
            _track_stream(source, gathered, frames, wish, method, computation)
        else:
            order = _order(gathered, start, frames, reverse, source.num_frames)
            _track_clip(video, source, gathered, order, wish, method, computation)


def _open(video: str) -> Any:
    """The video, or the camera of a number. Raises `InputError`."""
    from masklet.io.video import open_video

    if video.isascii() and video.isdigit() and not Path(video).exists():
        return open_video(int(video))
    return open_video(video)


def _order(
    prompts: Sequence[FramePrompt], start: int | None, count: int | None, reverse: bool, num_frames: int
) -> range:
    """The frames to track, in order. Raises `typer.BadParameter`."""
    if start is None:
        start = (max if reverse else min)(prompt.frame for prompt in prompts)
    if start >= num_frames:
        raise typer.BadParameter(
            f"--start {start}: there is no such frame; the video has {num_frames}, counted from 0 to "
            f"{num_frames - 1}."
        )
    order = range(start, -1, -1) if reverse else range(start, num_frames)
    return order[:count]


def _settings(
    video: str,
    source: VideoSource,
    prompts: Sequence[FramePrompt],
    method: Method,
    computation: options.Computation,
) -> dict[str, Any]:
    """What decides the results, under the names of the options. Neither threads nor the way in which past
    frames are kept do."""
    from masklet import __version__, registry

    name = computation.model or registry.BUNDLED.name
    path = Path(name).expanduser()
    size = path.stat().st_size if path.is_file() else registry.find(name).size_bytes
    running, _ = computation.settings()
    return {
        "masklet": __version__,
        "video": {"name": Path(video).name, "frames": source.num_frames, "size": list(source.size_hw)},
        "model": {"name": path.name, "bytes": size},
        "device": running.device,
        "precision": running.precision,
        "image_size": running.image_size,
        "fill_holes": method.fill_holes,
        "non_overlap": method.non_overlap,
        "lost_after": method.lost_after,
        "prompts": [prompt.document() for prompt in prompts],
    }


def _track_clip(
    video: str,
    source: VideoSource,
    prompts: Sequence[FramePrompt],
    order: range,
    wish: Wish,
    method: Method,
    computation: options.Computation,
) -> None:
    from masklet.io.results import RunSettings

    values = _settings(video, source, prompts, method, computation)
    settings = RunSettings({**values, "start": order.start, "reverse": order.step < 0})
    writers = _open_writers(wish, settings, prompts, source, reverse=order.step < 0)
    there = sum(all(writer.has(index) for writer in writers) for index in order)
    if there == len(order):
        for writer in writers:
            writer.finish()
        terminal.note(f"All {there} frames are there already.")
        return
    model = options.load_model(computation)
    pictures = source if any(writer.needs_pixels for writer in writers) else None

    def results(cancel: Callable[[], bool]) -> Results:
        return results_of_clip(model, video, prompts, order, method, pictures, cancel)

    summary = write_results(results, writers, len(order), show_bar=_has_room_for_bar(wish.outputs))
    _report(summary, wish.outputs, max(there, summary.frames), len(order))


def _track_stream(
    source: VideoSource,
    prompts: Sequence[FramePrompt],
    num_frames: int | None,
    wish: Wish,
    method: Method,
    computation: options.Computation,
) -> None:
    from masklet.io.results import RunSettings

    settings = RunSettings(_settings("camera", source, prompts, method, computation))
    writers = _open_writers(wish, settings, prompts, source, reverse=False)
    model = options.load_model(computation)

    def results(cancel: Callable[[], bool]) -> Results:
        return results_of_stream(model, source, prompts, num_frames, method, cancel)

    summary = write_results(results, writers, num_frames, show_bar=_has_room_for_bar(wish.outputs))
    _report(summary, wish.outputs, summary.frames, num_frames)


def _open_writers(
    wish: Wish, settings: RunSettings, prompts: Sequence[FramePrompt], source: VideoSource, *, reverse: bool
) -> list[ResultWriter]:
    return open_writers(
        wish.outputs,
        settings,
        sorted({prompt.object_id for prompt in prompts}),
        source,
        per_object=wish.per_object,
        masks=wish.masks,
        reverse=reverse,
        start=wish.start,
    )


def _has_room_for_bar(outputs: Sequence[Output]) -> bool:
    """Not where a terminal shows the lines themselves."""
    return not (sys.stdout.isatty() and any(output.kind == "stdout" for output in outputs))


def _report(summary: Summary, outputs: Sequence[Output], there: int, total: int | None) -> None:
    """What was done: a table on stdout, unless lines went there; what was left undone on stderr, and an exit
    code."""
    if summary.error is not None or summary.stopped_by is not None:
        terminal.note(_what_is_there(summary, outputs, there, total))
        if summary.error is not None:
            raise summary.error
        raise typer.Exit(128 + (summary.stopped_by or 0))
    if any(output.kind == "stdout" for output in outputs):
        return
    rows = []
    for object_id, one in sorted(summary.objects.items()):
        iou, area = (f"{one.iou / one.seen:.3f}", f"{one.area / one.seen:.0f}") if one.seen else ("-", "-")
        rows.append((str(object_id), str(one.frames), str(one.seen), iou, area))
    terminal.write_table(("object", "frames", "seen in", "mean score", "mean area px"), rows, right="rrrrr")


def _what_is_there(summary: Summary, outputs: Sequence[Output], there: int, total: int | None) -> str:
    frames = f"{there} frames" if total is None else f"{there} of {total} frames"
    why = "Interrupted" if summary.error is None else "Stopped"
    if not there:
        return f"{why} before the first frame was done."
    if isinstance(summary.error, OutputError):  # which says what became of its file
        return f"{why} after {frames}."
    return f"{why}: {frames} are in {', '.join(map(str, outputs))}."
