"""Events made visible: a time line with thumbnails, and a page to watch them on. Events are as in `export`."""

import base64
import html
import json
import mimetypes
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from .export import NUMBERS, by_time, checked_events

# The picture's measures, in inches: the time line, and to its right the sentences.
_WIDTH, _TEXT_WIDTH, _MARGIN, _THUMBNAIL_HEIGHT, _MASK_HEIGHT = 7.5, 4.8, 0.75, 1.0, 1.3
_TOTAL_WIDTH = _WIDTH + _TEXT_WIDTH + 2 * _MARGIN
_LINE, _BAR, _GAP = 0.165, 0.13, 0.08
_CHARACTERS_PER_LINE = 64
_REFERENCE_COLOR, _MISSED_COLOR = "#6b7280", "#dc2626"
# An event whose IoU with every prediction is at most this is missed at all thresholds of the scores.
_MISSED_TIOU = 0.3
# Frames of a word that are drawn: those next to the best one.
_FRAMES_OF_A_WORD = 5
# Events whose spans have more are as good as one.
_SAME_TIOU = 0.95
# A page that holds a video of at most this many MB can be mailed, and is opened by every browser.
MAX_EMBEDDED_MB = 20
# What is told of a sentence besides: its probability, or how much better it fits its frames than the others.
_NUMBERS = {"score": "", "gain": "gain "}


def plot_events(
    video: Any,
    events: Sequence[Mapping[str, Any]],
    masks: Any = None,
    references: Sequence[Mapping[str, Any]] | None = None,
    fps: float | None = None,
    title: str | None = None,
):
    """Draw a video's events on a time line: thumbnails, event masks, and every event as a bar beside its sentence.

    Events that share one span say so, and their masks, which lie on each other, are dashed.

    Args:
        video: of any kind that [`open_video`] takes.
        events: predicted events.
        masks: `(N, T)` array or tensor in [0, 1], the mask of `events[i]` over T frames spread evenly from the start
            to the end of the video. Its curve has the colour of the event's bar.
        references: true events, drawn in grey below, and as a grey background of the masks; those that no prediction
            comes near (IoU at most 0.3) are red and called missed.
        fps: frames per second of `video`, where it is an array or a list of images.
        title: heading.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig("events.png")` needs no display.

    Raises:
        ValueError: masks whose shape is not `(len(events), T)`, times that are not times, an unreadable video.
    """
    from matplotlib.figure import Figure

    from .video_reading import open_video

    events, references = checked_events(events), checked_events(references or [])
    if masks is not None:
        masks = np.asarray(masks, dtype=float)
        if masks.ndim != 2 or len(masks) != len(events):
            raise ValueError(f"Expected masks of shape ({len(events)}, T), one per event, found {masks.shape}.")
    with open_video(video, fps=fps) as reader:
        duration = max(reader.duration, 1e-3)
        height, width = next(iter(reader.frames_at([0.0]))).shape[:2]
        count = min(24, max(1, round(_WIDTH / (_THUMBNAIL_HEIGHT * width / height))))
        thumbnails = list(reader.frames_at((np.arange(count) + 0.5) / count * duration))

    twins = [_twin(events, i) for i in range(len(events))]
    labels = [
        _label(i, event, "" if twin is None else f"same span as {twin + 1}")
        for i, (event, twin) in enumerate(zip(events, twins, strict=True))
    ]
    missed = [all(_iou(event, one) <= _MISSED_TIOU for one in events) for event in references]
    true_labels = [
        _label(i, event, "missed" if is_missed else "")
        for i, (event, is_missed) in enumerate(zip(references, missed, strict=True))
    ]
    panels = [("thumbnails", _WIDTH / count * height / width)]
    if masks is not None:
        panels.append(("masks", _MASK_HEIGHT))
    panels.append(("predicted", _rows_height(labels)))
    if references:
        panels.append(("true", _rows_height(true_labels)))
    heights = [height for _, height in panels]
    gap, top, bottom = 0.12, 0.45 if title else 0.15, 0.5
    total = sum(heights) + gap * (len(heights) - 1) + top + bottom
    figure = Figure(figsize=(_TOTAL_WIDTH, total))
    if title:
        figure.suptitle(title, x=_MARGIN / _TOTAL_WIDTH, y=1 - 0.1 / total, ha="left", va="top", fontsize=12)
    colors = [f"C{i % 10}" for i in range(len(events))]
    y = total - top
    for name, height in panels:
        y -= height
        box = (_MARGIN / _TOTAL_WIDTH, y / total, _WIDTH / _TOTAL_WIDTH, height / total)
        axes = figure.add_axes(box, xlim=(0, duration))
        axes.set_ylabel(name, fontsize=9, color="#374151")
        axes.tick_params(labelbottom=False, labelsize=8)
        if name == "thumbnails":
            axes.set_ylabel("")
            for i, image in enumerate(thumbnails):
                axes.imshow(image, extent=(i / count * duration, (i + 1) / count * duration, 0, 1), aspect="auto")
                axes.axvline(i / count * duration, color="white", linewidth=1)
            axes.set(xlim=(0, duration), ylim=(0, 1), xticks=[], yticks=[])
        elif name == "masks":
            _draw_masks(axes, masks, colors, twins, references, duration)
        elif name == "predicted":
            _draw_rows(axes, events, labels, colors, duration)
        else:
            true_colors = [_MISSED_COLOR if is_missed else _REFERENCE_COLOR for is_missed in missed]
            _draw_rows(axes, references, true_labels, true_colors, duration)
        y -= gap
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("seconds", fontsize=9)
    return figure


def plot_words(video: Any, event: Mapping[str, Any], fps: float | None = None):
    """Draw where the words of an event are seen: of each word its frames with the box, and with the heat in the best one.

    Args:
        video: of any kind that [`open_video`] takes; fps: its frames per second, where it is an array or a list of images.
        event: one of the pipeline's with `grounding=True`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: an event without words that are seen, an unreadable video.
    """
    from matplotlib.figure import Figure

    from .video_reading import open_video

    if not event.get("words"):
        raise ValueError("Expected an event with `words`, as the pipeline gives with grounding=True, found none.")
    columns = min(_FRAMES_OF_A_WORD, max(len(word["boxes"]) for word in event["words"]))
    figure = Figure(figsize=(1 + 2 * columns, 0.5 + 1.5 * len(event["words"])), layout="constrained")
    figure.suptitle(event["text"].replace("$", r"\$"), fontsize=11)
    panels = figure.subplots(len(event["words"]), columns, squeeze=False)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    with open_video(video, fps=fps) as reader:
        for row, word in zip(panels, event["words"], strict=True):
            best = word["heat"]["time"]
            shown = sorted(
                sorted(word["boxes"], key=lambda box: abs(box["time"] - best))[:columns], key=lambda box: box["time"]
            )
            row[0].set_ylabel(word["text"], fontsize=10)
            for axes, box, image in zip(row, shown, reader.frames_at([box["time"] for box in shown]), strict=False):
                axes.imshow(image, extent=(0, 1, 1, 0), aspect=image.shape[0] / image.shape[1])
                if box["time"] == best:
                    x0, y0, x1, y1 = word["heat"]["box"]
                    values = np.array(word["heat"]["values"])
                    axes.imshow(values, "Reds", alpha=0.7 * values, extent=(x0, x1, y1, y0), aspect=axes.get_aspect())
                (x0, y0, x1, y1) = box["box"]
                axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="#facc15", linewidth=2)
                axes.set(xlim=(0, 1), ylim=(1, 0))
                axes.set_title(f"{box['time']:.1f} s  {box['score']:.2f}", fontsize=8)
    return figure


def _iou(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    shared = min(a["end"], b["end"]) - max(a["start"], b["start"])
    union = max(a["end"], b["end"]) - min(a["start"], b["start"])
    return max(0.0, shared) / union if union else 1.0  # of no length, at one time


def _twin(events: list[dict], index: int) -> int | None:
    """The first event before this one that has its span."""
    return next((i for i in range(index) if _iou(events[i], events[index]) > _SAME_TIOU), None)


def _draw_masks(axes, masks: np.ndarray, colors, twins, references: list[dict], duration: float) -> None:
    for event in references:
        axes.axvspan(event["start"], event["end"], color=_REFERENCE_COLOR, alpha=0.15, linewidth=0)
    times = np.linspace(0, duration, masks.shape[1])
    for mask, color, twin in zip(masks, colors, twins, strict=True):
        # Dashed, the curve below shows through.
        axes.plot(times, mask, color=color, linewidth=1.8, linestyle="-" if twin is None else (0, (4, 4)))
        axes.fill_between(times, mask, color=color, alpha=0.12, linewidth=0)
    axes.set(ylim=(0, 1.05), yticks=[0, 1])


def _label(index: int, event: dict, note: str) -> list[str]:
    """The lines of an event's sentence, with its number and what is told of it."""
    known = [f"{name}{event[key]:.2f}" for key, name in _NUMBERS.items() if event.get(key) is not None]
    notes = [*known, note] if note else known
    text = f"{index + 1}  {event['text']}" + (f"  ({', '.join(notes)})" if notes else "")
    return textwrap.wrap(text, _CHARACTERS_PER_LINE)


def _rows_height(labels: list[list[str]]) -> float:
    return max(0.3, _GAP + sum(len(lines) * _LINE + _GAP for lines in labels))


def _draw_rows(axes, events: list[dict], labels: list[list[str]], colors: list[str], duration: float) -> None:
    """One row per event: its bar, and to the right of the time line its sentence. y is in inches from the top."""
    y = _GAP
    for event, lines, color in zip(events, labels, colors, strict=True):
        # Bars of a frame or less would vanish.
        width = max(event["end"] - event["start"], duration / 400)
        axes.barh(y + (_LINE - _BAR) / 2, width, _BAR, event["start"], align="edge", color=color)
        # A dollar sign would start a formula.
        text = "\n".join(lines).replace("$", r"\$")
        place = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "top"}
        ink = _MISSED_COLOR if color == _MISSED_COLOR else "#111827"
        axes.text(1.015, y, text, fontsize=9, linespacing=1.3, color=ink, **place)
        y += len(lines) * _LINE + _GAP
    axes.set(ylim=(_rows_height(labels), 0), yticks=[])
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def format_html(
    events: Sequence[Mapping[str, Any]], video_src: str, title: str = "Events", duration: float | None = None
) -> str:
    """A page to watch the events on, and to correct them: `page.html`, filled in.

    The video stays in sight above its time line, with the events as subtitles; a word that is known to be seen somewhere
    (`"words"` of an event) shows its frames with box and heat under the pointer; a click on an event plays from its start,
    or loops it. Sentences, their starts and ends can be changed, events added and deleted, and all be downloaded as
    `{title: events}` (JSON) or subtitles, which [`read_annotation_file`] reads; nothing is sent anywhere. The page says
    its keys. Where a browser cannot decode the video, it says so and the rest stays.

    Args:
        events: predicted events.
        video_src: address of the video as the page sees it, e.g. `urllib.parse.quote` of a file name beside the page, or
            the video itself ([`embedded`]).
        title: heading, and name of the video in what is downloaded.
        duration: seconds of the video, for the time line of a browser that cannot tell; it is never shorter
            than the last event's end.

    Returns:
        HTML that loads nothing but the video.

    Raises:
        ValueError: an address that is no http(s) one, no file, no relative path and no video.
    """
    if not (video_src.startswith("data:video/") or urlsplit(video_src).scheme in ("", "http", "https", "file")):
        raise ValueError(f"Expected an http(s) address or a file as the page's video, found {video_src[:80]!r}.")
    kept = ("start", "end", "text", *NUMBERS, "words")
    rows = [{key: event[key] for key in kept if event.get(key) is not None} for event in by_time(events)]
    length = max([duration or 0.001, *(row["end"] for row in rows)])
    values = {"data": rows, "name": title, "length": length, "numbers": list(NUMBERS)}
    # "</script>" in a sentence must not end the script.
    scripted = {key: json.dumps(x, ensure_ascii=False).replace("<", "\\u003c") for key, x in values.items()}
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return Template(page).substitute(scripted, title=html.escape(title), src=html.escape(video_src))


def check_embeddable(video: str | Path) -> None:
    """Raise ValueError for a video file of more than 20 MB, OSError for one that cannot be read."""
    if (size := Path(video).stat().st_size / 1e6) > MAX_EMBEDDED_MB:
        raise ValueError(
            f"{video} has {size:.1f} MB, and a page holds at most {MAX_EMBEDDED_MB}: make the page without --embed, or of "
            "a smaller copy of the video."
        )


def embedded(video: str | Path) -> str:
    """A video file as an address that holds it, for a page that is one file.

    Raises:
        OSError, ValueError: as [`check_embeddable`].
    """
    check_embeddable(video)
    kind = mimetypes.guess_type(video)[0] or ""
    kind = kind if kind.startswith("video/") else "video/mp4"  # browsers look at the content
    return f"data:{kind};base64,{base64.b64encode(Path(video).read_bytes()).decode()}"
