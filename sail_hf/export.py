"""Events as documents: subtitles, tables, chapters, and the forms of annotation tools. Nothing heavy is imported.

An event is what the pipeline returns: `{"start": seconds, "end": seconds, "text": str, "score": float}`. The score may be
missing, or a `"gain"` in its place; events may overlap and come in any order. Documents have times in milliseconds.
Where an event's times are not `0 <= start <= end` seconds, every function raises a ValueError that names it.
"""

import csv
import html
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

# What may be told of an event besides: a probability, or a difference or mean of CLIP cosines.
NUMBERS = ("score", "gain", "similarity")

Event = Mapping[str, Any]
Results = Mapping[str, Sequence[Event]]  # events by the name or address of their video

# Video sites show chapters of at least this many seconds, and from three of them on.
SHORTEST_CHAPTER = 10.0
# Label Studio counts frames, of a rate that its project states.
LABEL_STUDIO_FPS = 25
LABEL_STUDIO_LABEL = "Event"


def checked_events(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Copies of the events, in their order, with float times and white space made single spaces.

    Raises:
        ValueError: an event without start, end or text, or whose times are not `0 <= start <= end` seconds.
    """
    checked = []
    for i, event in enumerate(events):
        if any(key not in event for key in ("start", "end", "text")):
            raise ValueError(f"Event {i}: expected start, end and text, found only {', '.join(event) or 'nothing'}.")
        start, end = float(event["start"]), float(event["end"])
        if not 0 <= start <= end < math.inf:
            raise ValueError(f"Event {i}: expected 0 <= start <= end in seconds, found start={start}, end={end}.")
        checked.append({**event, "start": start, "end": end, "text": " ".join(str(event["text"]).split())})
    return checked


def by_time(events: Sequence[Event]) -> list[dict[str, Any]]:
    """[`checked_events`], by start and then by end."""
    return sorted(checked_events(events), key=lambda event: (event["start"], event["end"]))


def clock(milliseconds: int, decimal: str = ".") -> str:
    """`hh:mm:ss.mmm`"""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{decimal}{milliseconds:03}"


def _cues(events: Sequence[Event]) -> list[tuple[int, int, str]]:
    """(start, end, text) in milliseconds of the events that have text; each lasts at least one."""
    spans = [(round(1000 * event["start"]), round(1000 * event["end"]), event) for event in by_time(events)]
    return [(start, max(start + 1, end), event["text"]) for start, end, event in spans if event["text"]]


def _rounded(event: Event) -> dict[str, Any]:
    """An event as JSON and tables show it."""
    digits = {"start": 3, "end": 3, **dict.fromkeys(NUMBERS, 4)}
    return {key: round(x, digits[key]) if key in digits and x is not None else x for key, x in event.items()}


# --- Subtitles ----------------------------------------------------------------------------------------------------


def format_srt(events: Sequence[Event]) -> str:
    """SubRip subtitles, sorted by start. Overlapping events stay overlapping cues; one without text has none.

    White space in a sentence becomes single spaces, since a blank line would end the cue. A cue lasts at least 1 ms.
    """
    cues = []
    for number, (start, end, text) in enumerate(_cues(events), start=1):
        text = text.replace("-->", "->")
        cues.append(f"{number}\n{clock(start, ',')} --> {clock(end, ',')}\n{text}\n")
    return "\n".join(cues)


def format_vtt(events: Sequence[Event]) -> str:
    """WebVTT subtitles of events, as [`format_srt`], with `&`, `<` and `>` escaped."""
    return _vtt(_cues(events))


def _vtt(cues: Sequence[tuple[int, int, str]]) -> str:
    lines = [f"{clock(start)} --> {clock(end)}\n{html.escape(text, quote=False)}\n" for start, end, text in cues]
    return "\n".join(["WEBVTT\n", *lines])


# --- Chapters -----------------------------------------------------------------------------------------------------


def chapters(events: Sequence[Event], shortest: float = 0.001) -> list[tuple[int, int, str]]:
    """(start, end, title) in milliseconds of chapters that do not overlap: each ends where the next begins, the last one
    with its event. An event that begins less than `shortest` seconds after a chapter does is told in its title."""
    merged: list[tuple[int, int, str]] = []
    for start, end, text in _cues(events):
        if merged and start - merged[-1][0] < 1000 * shortest:
            first, last, title = merged.pop()
            start, end, text = first, max(last, end), f"{title} {text}"
        merged.append((start, end, text))
    starts = [start for start, _, _ in merged[1:]]
    ends = [*starts, *(end for _, end, _ in merged[-1:])]
    return [(start, end, title) for (start, _, title), end in zip(merged, ends, strict=True)]


def format_chapters(events: Sequence[Event]) -> str:
    """Chapters as lines `m:ss title`, for the description of a video where it is published.

    Sites take such a list if it begins at 0:00, has three chapters or more, and none under ten seconds: events that begin
    sooner after another share its line, and the first line is 0:00, of its own (`Start`) where no event begins before ten
    seconds.
    """
    found = chapters(events, SHORTEST_CHAPTER)
    if found and found[0][0] >= 1000 * SHORTEST_CHAPTER:
        found.insert(0, (0, found[0][0], "Start"))
    lines = []
    for index, (start, _, title) in enumerate(found):
        minutes, seconds = divmod(start // 1000 if index else 0, 60)
        hours, minutes = divmod(minutes, 60)
        time = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        lines.append(f"{time} {title}\n")
    return "".join(lines)


def format_ffmetadata(events: Sequence[Event]) -> str:
    """Chapters as FFmpeg's metadata file: `ffmpeg -i video.mp4 -i FILE -map_metadata 1 -codec copy out.mp4`."""
    lines = [";FFMETADATA1"]
    for start, end, title in chapters(events):
        title = "".join(f"\\{letter}" if letter in "\\=;#" else letter for letter in title)
        lines += ["[CHAPTER]", "TIMEBASE=1/1000", f"START={start}", f"END={end}", f"title={title}"]
    return "\n".join(lines) + "\n"


def format_vtt_chapters(events: Sequence[Event]) -> str:
    """Chapters as WebVTT, for `<track kind="chapters">`."""
    return _vtt(chapters(events))


# --- Tables and JSON ----------------------------------------------------------------------------------------------


def format_json(events: Sequence[Event]) -> str:
    """A list of events, in their order."""
    return _json(list(map(_rounded, events)))


def format_json_by_video(results: Results) -> str:
    """`{video: [event, ...]}`"""
    return _json({video: list(map(_rounded, events)) for video, events in results.items()})


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def format_csv(results: Results, delimiter: str = ",") -> str:
    """Columns `video`, `start`, `end`, `caption`, and of `NUMBERS` those that events have.

    It is the form of captions to train on ([`read_annotation_file`]).
    """
    rows = [(video, _rounded(event)) for video, events in results.items() for event in by_time(events)]
    numbers = [key for key in NUMBERS if any(key in event for _, event in rows)]
    file = io.StringIO()
    table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    table.writerow(["video", "start", "end", "caption", *numbers])
    for video, event in rows:
        times = [f"{event[key]:.3f}" for key in ("start", "end")]
        table.writerow([video, *times, event["text"], *map(event.get, numbers)])
    return file.getvalue()


def format_tsv(results: Results) -> str:
    """[`format_csv`] with tabs."""
    return format_csv(results, "\t")


# --- Annotation tools ---------------------------------------------------------------------------------------------


def format_elan(events: Sequence[Event]) -> str:
    """ELAN's tab-delimited text: tier, begin and end in milliseconds, annotation (File > Import > CSV / Tab-delimited).

    A tier of ELAN holds no annotations that overlap: what overlaps goes to further tiers, `events-2` and so on.
    """
    lines, ends = ["Tier\tBegin Time - msec\tEnd Time - msec\tAnnotation\n"], []
    for start, end, text in _cues(events):
        tier = next((i for i, last in enumerate(ends) if last <= start), len(ends))
        ends[tier : tier + 1] = [end]
        lines.append(f"events{f'-{tier + 1}' if tier else ''}\t{start}\t{end}\t{text}\n")
    return "".join(lines)


def format_label_studio(results: Results) -> str:
    """Tasks with predictions for Label Studio, each event a region of a time line with its sentence.

    The address of the video must be one that Label Studio can open. The project's configuration:

    ```xml
    <View>
      <Video name="video" value="$video" frameRate="25" timelineHeight="120"/>
      <TimelineLabels name="events" toName="video"><Label value="Event"/></TimelineLabels>
      <TextArea name="text" toName="video" perRegion="true" editable="true"/>
    </View>
    ```

    Its time line counts frames from 1; the task's `frames_per_second` says how fast.
    """
    tasks = []
    for video, events in results.items():
        regions = []
        for index, (start, end, text) in enumerate(_cues(events)):
            first, last = (1 + round(time * LABEL_STUDIO_FPS / 1000) for time in (start, end))
            ranges = [{"start": first, "end": max(first, last)}]
            common = {"id": f"event-{index + 1}", "to_name": "video"}
            label = {"ranges": ranges, "timelinelabels": [LABEL_STUDIO_LABEL]}
            regions.append({**common, "from_name": "events", "type": "timelinelabels", "value": label})
            regions.append(
                {**common, "from_name": "text", "type": "textarea", "value": {"ranges": ranges, "text": [text]}}
            )
        data = {"video": video, "frames_per_second": LABEL_STUDIO_FPS}
        tasks.append({"data": data, "predictions": [{"model_version": "sail", "result": regions}]})
    return _json(tasks)


def format_fiftyone(results: Results) -> str:
    """`labels.json` of a FiftyOneTemporalDetectionDataset, whose videos lie in `data/` beside it by their names."""
    labels: dict[str, list[dict]] = {}
    for video, events in results.items():
        if (name := PurePath(video).stem) in labels:
            raise ValueError(f"FiftyOne knows videos by the names of their files, and two are called {name}.")
        rows = labels.setdefault(name, [])
        for event in map(_rounded, by_time(events)):
            score = {} if event.get("score") is None else {"confidence": event["score"]}
            rows.append({"label": event["text"], "timestamps": [event["start"], event["end"]], **score})
    classes = sorted({row["label"] for rows in labels.values() for row in rows})
    return _json({"classes": classes, "labels": labels})


# --- All of them --------------------------------------------------------------------------------------------------


def format_page(events: Sequence[Event], video: str) -> str:
    """A page to watch the events on ([`format_html`]); `video` is the address as the page sees it."""
    from .visualization import format_html

    return format_html(events, video, title=PurePath(video).stem)


class Format(NamedTuple):
    """A form of documents: the ending of its files, who reads it, and what writes it, of one video or of several."""

    ending: str
    about: str
    one: Callable[[Sequence[Event], str], str] | None = None
    several: Callable[[Results], str] | None = None

    def document(self, results: Results) -> str:
        """The document of a video, or of several where the format holds them."""
        if self.one and len(results) == 1:
            ((video, events),) = results.items()
            return self.one(events, video)
        return self.several(results)


def _of_one(write: Callable[[Sequence[Event]], str]) -> Callable[[Sequence[Event], str], str]:
    return lambda events, video: write(events)


FORMATS = {
    "json": Format("json", "events", _of_one(format_json), format_json_by_video),
    "srt": Format("srt", "subtitles", _of_one(format_srt)),
    "vtt": Format("vtt", "subtitles of web pages", _of_one(format_vtt)),
    "html": Format("html", "a page with the video and its time line", format_page),
    "csv": Format("csv", "a table", several=format_csv),
    "tsv": Format("tsv", "a table with tabs", several=format_tsv),
    "chapters": Format("chapters.txt", "chapters for the description of a published video", _of_one(format_chapters)),
    "ffmetadata": Format("ffmetadata", "chapters that FFmpeg puts into a video", _of_one(format_ffmetadata)),
    "vtt-chapters": Format("chapters.vtt", "chapters of web pages", _of_one(format_vtt_chapters)),
    "label-studio": Format("label-studio.json", "pre-annotations for Label Studio", several=format_label_studio),
    "elan": Format("elan.txt", "tab-delimited text for ELAN", _of_one(format_elan)),
    "fiftyone": Format("fiftyone.json", "temporal detections for FiftyOne", several=format_fiftyone),
}
