"""Events made visible: a time line with thumbnails, subtitle files, and a page to watch them on.

An event is what the pipeline returns: `{"start": seconds, "end": seconds, "text": str, "score": float}`. The score may be
missing, or a `"gain"` in its place; events may overlap and come in any order.
"""

import html
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any
from urllib.parse import urlsplit

import numpy as np

# The picture's measures, in inches.
_WIDTH, _MARGIN, _THUMBNAIL_HEIGHT, _MASK_HEIGHT = 11.0, 0.75, 1.0, 1.3
_LINE, _BAR, _BAR_GAP = 0.165, 0.13, 0.05
_REFERENCE_COLOR = "#6b7280"
# A sentence starts or ends at its bar, on whichever side it has half the picture for itself.
_CHARACTERS_PER_LINE = 78
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
    """Draw a video's events on a time line: thumbnails, event masks, and every event as a bar under its sentence.

    Args:
        video: of any kind that [`open_video`] takes.
        events: predicted events.
        masks: `(N, T)` array or tensor in [0, 1], the mask of `events[i]` over T frames spread evenly from the start
            to the end of the video. Its curve has the colour of the event's bar.
        references: true events, drawn in grey below, and as a grey background of the masks.
        fps: frames per second of `video`, where it is an array or a list of images.
        title: heading.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig("events.png")` needs no display.

    Raises:
        ValueError: masks whose shape is not `(len(events), T)`, times that are not times, an unreadable video.
    """
    from matplotlib.figure import Figure

    from .video_reading import open_video

    events, references = _checked(events), _checked(references or [])
    if masks is not None:
        masks = np.asarray(masks, dtype=float)
        if masks.ndim != 2 or len(masks) != len(events):
            raise ValueError(f"Expected masks of shape ({len(events)}, T), one per event, found {masks.shape}.")
    with open_video(video, fps=fps) as reader:
        duration = max(reader.duration, 1e-3)
        height, width = next(iter(reader.frames_at([0.0]))).shape[:2]
        count = min(24, max(1, round(_WIDTH / (_THUMBNAIL_HEIGHT * width / height))))
        thumbnails = list(reader.frames_at((np.arange(count) + 0.5) / count * duration))

    panels = [("thumbnails", _WIDTH / count * height / width)]
    if masks is not None:
        panels.append(("masks", _MASK_HEIGHT))
    panels.append(("predicted", _rows_height(events)))
    if references:
        panels.append(("true", _rows_height(references)))
    heights = [height for _, height in panels]
    gap, top, bottom = 0.12, 0.45 if title else 0.15, 0.5
    total = sum(heights) + gap * (len(heights) - 1) + top + bottom
    figure = Figure(figsize=(_WIDTH + 2 * _MARGIN, total))
    if title:
        figure.suptitle(title, x=_MARGIN / (_WIDTH + 2 * _MARGIN), y=1 - 0.1 / total, ha="left", va="top", fontsize=12)
    colors = [f"C{i % 10}" for i in range(len(events))]
    y = total - top
    for name, height in panels:
        y -= height
        box = (_MARGIN / (_WIDTH + 2 * _MARGIN), y / total, _WIDTH / (_WIDTH + 2 * _MARGIN), height / total)
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
            _draw_masks(axes, masks, colors, references, duration)
        elif name == "predicted":
            _draw_rows(axes, events, colors, duration)
        else:
            _draw_rows(axes, references, [_REFERENCE_COLOR] * len(references), duration)
        y -= gap
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("seconds", fontsize=9)
    return figure


def _draw_masks(axes, masks: np.ndarray, colors: list[str], references: list[dict], duration: float) -> None:
    for event in references:
        axes.axvspan(event["start"], event["end"], color=_REFERENCE_COLOR, alpha=0.15, linewidth=0)
    times = np.linspace(0, duration, masks.shape[1])
    for mask, color in zip(masks, colors, strict=True):
        axes.plot(times, mask, color=color, linewidth=1.8)
        axes.fill_between(times, mask, color=color, alpha=0.12, linewidth=0)
    axes.set(ylim=(0, 1.05), yticks=[0, 1])


def _rows_height(events: list[dict]) -> float:
    num_lines = sum(len(_label_lines(i, event)) for i, event in enumerate(events))
    return max(0.3, _BAR_GAP + num_lines * _LINE + len(events) * (_BAR + 3 * _BAR_GAP))


def _label_lines(index: int, event: dict) -> list[str]:
    known = [f"  ({note}{event[key]:.2f})" for key, note in _NUMBERS.items() if event.get(key) is not None]
    return textwrap.wrap(f"{index + 1}  {event['text']}{''.join(known)}", _CHARACTERS_PER_LINE)


def _draw_rows(axes, events: list[dict], colors: list[str], duration: float) -> None:
    """One row per event: its sentence, and under it its bar. y is in inches from the top."""
    y = _BAR_GAP
    padding = 0.003 * duration
    for i, (event, color) in enumerate(zip(events, colors, strict=True)):
        lines = _label_lines(i, event)
        left = event["start"] + event["end"] < duration
        x = max(event["start"], padding) if left else min(event["end"], duration - padding)
        # A dollar sign would start a formula.
        text = "\n".join(lines).replace("$", r"\$")
        axes.text(x, y, text, ha="left" if left else "right", va="top", fontsize=9, linespacing=1.3, color="#111827")
        y += len(lines) * _LINE + _BAR_GAP
        # Bars of a frame or less would vanish.
        width = max(event["end"] - event["start"], duration / 400)
        axes.barh(y, width, _BAR, event["start"], align="edge", color=color)
        y += _BAR + 2 * _BAR_GAP
    axes.set(ylim=(_rows_height(events), 0), yticks=[])
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def format_srt(events: Sequence[Mapping[str, Any]]) -> str:
    """SubRip subtitles of events, sorted by start. Overlapping events stay overlapping cues.

    White space in a sentence becomes single spaces, since a blank line would end the cue; an event without text has no
    cue. Times are rounded to milliseconds; a cue lasts at least one.

    Raises:
        ValueError: an event whose times are not `0 <= start <= end` seconds.
    """
    cues = []
    for start, end, text in _cues(events):
        text = text.replace("-->", "->")
        cues.append(f"{len(cues) + 1}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n")
    return "\n".join(cues)


def format_vtt(events: Sequence[Mapping[str, Any]]) -> str:
    """WebVTT subtitles of events, as [`format_srt`], with `&`, `<` and `>` escaped."""
    cues = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n"
        for start, end, text in _cues(events)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _cues(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, str]]:
    """(start, end, text) of the events that have text, in milliseconds, sorted."""
    cues = []
    for event in sorted(_checked(events), key=lambda event: (event["start"], event["end"])):
        if event["text"]:
            start = round(1000 * event["start"])
            cues.append((start, max(start + 1, round(1000 * event["end"])), event["text"]))
    return cues


def _clock(milliseconds: int, decimal: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{decimal}{milliseconds:03}"


def _checked(events: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Copies of the events with float times and white space made single spaces."""
    checked = []
    for i, event in enumerate(events):
        missing = [key for key in ("start", "end", "text") if key not in event]
        if missing:
            raise ValueError(f"Event {i}: expected start, end and text, found only {', '.join(event) or 'nothing'}.")
        start, end = float(event["start"]), float(event["end"])
        if not 0 <= start <= end < math.inf:
            raise ValueError(f"Event {i}: expected 0 <= start <= end in seconds, found start={start}, end={end}.")
        checked.append({**event, "start": start, "end": end, "text": " ".join(str(event["text"]).split())})
    return checked


def format_html(events: Sequence[Mapping[str, Any]], video_src: str, title: str = "Events") -> str:
    """A page with the video, its events on a time line, and subtitles; a click on an event plays from its start.

    Args:
        events: predicted events.
        video_src: address of the video as the page sees it, e.g. `urllib.parse.quote` of a file name beside the page.
        title: heading.

    Returns:
        HTML that loads nothing but the video.

    Raises:
        ValueError: an address that is no http(s) one, no file and no relative path.
    """
    if urlsplit(video_src).scheme not in ("", "http", "https", "file"):
        raise ValueError(f"Expected an http(s) address or a file as the page's video, found {video_src[:80]!r}.")
    rows = sorted(_checked(events), key=lambda event: (event["start"], event["end"]))
    rows = [{key: event[key] for key in ("start", "end", "text")} for event in rows]
    # "</script>" in a sentence must not end the script.
    data = json.dumps(rows, ensure_ascii=False).replace("<", "\\u003c")
    return Template(_PAGE).substitute(title=html.escape(title), src=html.escape(video_src), data=data)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.45 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #111827; }
video { width: 100%; max-height: 60vh; background: #000; }
#line { position: relative; }
#now { position: absolute; top: 0; bottom: 0; width: 2px; background: #dc2626; pointer-events: none; }
button { display: block; width: 100%; padding: .45rem 0; border: 0; border-bottom: 1px solid #e5e7eb; background: none;
         font: inherit; text-align: left; cursor: pointer; }
button:hover, button.on { background: #eff6ff; }
time { color: #6b7280; font-variant-numeric: tabular-nums; margin-right: .6rem; }
.bar { height: 7px; margin-top: .3rem; border-radius: 4px; background: #2563eb; min-width: 3px; }
</style>
</head>
<body>
<h1>$title</h1>
<video src="$src" controls playsinline></video>
<div id="line"><div id="now"></div></div>
<script>
const events = $data;
const [video, line, now] = ["video", "#line", "#now"].map((name) => document.querySelector(name));
const clock = (s) => Math.floor(s / 60) + ":" + String(Math.floor(s % 60)).padStart(2, "0");
const track = video.addTextTrack("captions", "Events", "en");
track.mode = "showing";
for (const event of events) {
  const text = event.text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  track.addCue(new VTTCue(event.start, Math.max(event.end, event.start + 0.001), text));
  const row = event.row = document.createElement("button");
  const time = row.appendChild(document.createElement("time"));
  time.textContent = clock(event.start) + "–" + clock(event.end);
  row.append(event.text);
  event.bar = row.appendChild(document.createElement("div"));
  event.bar.className = "bar";
  row.onclick = () => { video.currentTime = event.start; video.play(); };
  line.append(row);
}
function place() {
  const last = Math.max(...events.map((event) => event.end), 0.001);
  const duration = Number.isFinite(video.duration) ? video.duration : last;
  for (const event of events) {
    event.bar.style.marginLeft = 100 * event.start / duration + "%";
    event.bar.style.width = 100 * (event.end - event.start) / duration + "%";
    event.row.classList.toggle("on", event.start <= video.currentTime && video.currentTime < event.end);
  }
  now.style.left = 100 * video.currentTime / duration + "%";
}
video.ontimeupdate = video.onloadedmetadata = place;
place();
</script>
</body>
</html>
"""
