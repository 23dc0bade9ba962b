"""Events that are there already, from the files of any system: subtitles, tables, JSON, and what language models write.

Events come as `{"start": seconds, "end": seconds, "text": str}`; sentences without times have None for both. Nothing
heavy is imported.
"""

import csv
import html
import io
import json
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from .data import VIDEO_EXTENSIONS, object_without_doubles
from .export import LABEL_STUDIO_FPS

Events = list[dict[str, Any]]

# Names under which systems write the same thing, the first one first.
_TEXT_KEYS = ("text", "sentence", "caption", "description", "event", "label")
_SPAN_KEYS = ("timestamp", "timestamps", "segment", "time", "interval")
_START_KEYS, _END_KEYS = ("start", "start_time", "begin"), ("end", "end_time", "stop")
_VIDEO_KEYS = ("video", "video_id", "video_name", "vname", "vid")
_ANSWER_KEYS = ("events", "prediction", "pred", "output", "answer", "response", "generated_cap", "results")
_FORMS = (
    "ActivityNet's submission, {video: [event, ...]}, a list of objects with a video each, or a Label Studio export; "
    'an event is {"start": s, "end": s, "text": str}, its times may be in "timestamp": [s, s]'
)

_CLOCK = r"(?:\d+:)?\d{1,2}:\d{2}(?:[.,]\d+)?"
_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"\s*(?:seconds?|secs?|s)\b\.?"
_TO = r"\s*(?:-->|-|–|—|~|to|until)\s*"
_OPEN, _CLOSE = r"[\[(<{]?\s*", r"\s*[\])>}]?"
# A range of times, as against "2 to 3 eggs": clock times, a unit, the beginning of a line or "from" before it and a comma
# or colon after it, or brackets around it.
_RANGE = re.compile(
    rf"(?:\bfrom\s+)?{_OPEN}\b({_CLOCK}){_TO}({_CLOCK})\b{_CLOSE}"
    rf"|(?:\bfrom\s+)?{_OPEN}\b({_NUMBER})(?:{_UNIT})?{_TO}({_NUMBER}){_UNIT}{_CLOSE}"
    rf"|(?:^|\bfrom\s+)({_NUMBER}){_TO}({_NUMBER})(?=\s*[,:])"
    rf"|[\[(<{{]\s*({_NUMBER})(?:{_TO}|\s*,\s*)({_NUMBER})\s*[\])>}}]",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*•#]+\s+|\d+[.)]\s+|(?:event|segment)\s*\d+\s*[:.]\s*)*\**", re.IGNORECASE)
_CUE = re.compile(rf"^\s*({_CLOCK})\s*-->\s*({_CLOCK})[^\n]*\n?((?:[^\n]*\S[^\n]*\n?)*)", re.MULTILINE)


def seconds(time: Any) -> float:
    """A number of seconds, or `[hh:]mm:ss[.mmm]`, or `12.5s`.

    Raises:
        ValueError: something else.
    """
    if isinstance(time, int | float) and not isinstance(time, bool):
        return float(time)
    match = re.fullmatch(rf"\s*(?:({_CLOCK})|({_NUMBER})(?:{_UNIT})?)\s*", str(time), re.IGNORECASE)
    if not match:
        raise ValueError(f"expected seconds or mm:ss, found {time!r}")
    total = 0.0
    for part in (match[1] or match[2]).replace(",", ".").split(":"):
        total = 60 * total + float(part)
    return round(total, 6)


# --- One video ----------------------------------------------------------------------------------------------------


def parse_subtitles(text: str) -> Events:
    """The cues of SubRip or WebVTT; tags are dropped, lines of a cue become one sentence."""
    events = []
    for start, end, lines in _CUE.findall(text.replace("\r\n", "\n").replace("\r", "\n")):
        words = html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>", "", lines)).split()
        if words:
            events.append({"start": seconds(start), "end": seconds(end), "text": " ".join(words)})
    return events


def parse_answer(text: str) -> Events:
    """Events from what a video language model writes: JSON, or sentences with ranges of times before or after them.

    `0.0 - 24.2 seconds, a man ...`, `From 00:10 to 00:25, ...`, `[1:02:03 - 1:02:10] ...`, `(0.5, 3.2) ...`, a list of
    events as JSON with words around it. Text without a time is no event.
    """
    if found := _json_inside(text):
        return found
    events = []
    for line in (_BULLET.sub("", line) for line in text.splitlines()):
        ranges = list(_RANGE.finditer(line))
        if not ranges:
            if events and not events[-1]["text"]:
                events[-1]["text"] = _bare(line)
            continue
        before = _bare(line[: ranges[0].start()]) if len(ranges) == 1 else ""
        ends = [match.start() for match in ranges[1:]] + [len(line)]
        for match, until in zip(ranges, ends, strict=True):
            start, end = (time for time in match.groups() if time is not None)
            after = _bare(line[match.end() : until])
            sentence = " ".join(filter(None, (before, after)))
            events.append({"start": seconds(start), "end": seconds(end), "text": sentence})
    return events


def _bare(text: str) -> str:
    return re.sub(r"^[\s,:;.*\-–—|\])}>]+|[\s*\[({<,:;|–—-]+$", "", text)


def _json_inside(text: str) -> Events:
    """The events of the first JSON value in a text that holds any."""
    for opening in re.finditer(r"[\[{]", text):
        try:
            content, _ = json.JSONDecoder().raw_decode(text, opening.start())
            found = events_of(content)
        except (ValueError, RecursionError):
            continue
        if found and all(event["start"] is not None for event in found):
            return found
    return []


def events_of(content: Any) -> Events:
    """The events of one video in any of the forms that JSON files have.

    Raises:
        ValueError: no such form.
    """
    if isinstance(content, str):
        return parse_answer(content)
    if isinstance(content, dict):
        if isinstance(content.get("sentences"), list):
            spans = content.get("timestamps") or [None] * len(content["sentences"])
            content = [{"text": x, "timestamp": span} for x, span in zip(content["sentences"], spans, strict=True)]
        elif (answer := _first(content, _ANSWER_KEYS)) is not None:
            return events_of(answer)
    if not isinstance(content, list):
        raise ValueError(f"expected a list of events, found {content!r:.80}")
    return [_event(item, f"event {index}") for index, item in enumerate(content)]


def _event(item: Any, where: str) -> dict[str, Any]:
    if isinstance(item, str):
        item = {"text": item}
    text = _first(item, _TEXT_KEYS) if isinstance(item, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected a sentence, found {item!r:.80}")
    span = _first(item, _SPAN_KEYS)
    if span is None:
        span = [_first(item, _START_KEYS), _first(item, _END_KEYS)]
    if isinstance(span, str) and (match := _RANGE.search(f"[{span}]")):
        span = [time for time in match.groups() if time is not None]
    if not isinstance(span, list | tuple) or len(span) != 2 or (span[0] is None) != (span[1] is None):
        raise ValueError(f"{where}: expected start and end, found {span!r:.80}")
    try:
        start, end = (None if time is None else seconds(time) for time in span)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return {"start": start, "end": end, "text": " ".join(text.split())}


def _first(item: dict[str, Any], keys: Iterable[str]) -> Any:
    """What the first of these names holds, that is there and not None."""
    return next((item[key] for key in keys if item.get(key) is not None), None)


def read_events(path: str | Path) -> Events:
    """The events of one video: `.srt`, `.vtt`, `.json`, `.csv`, `.tsv`, or a text.

    A text (any other ending) holds what a language model wrote where most of its lines begin with times, and else a
    sentence a line. Sentences without times have None for both.

    Raises:
        OSError, ValueError: naming the file and what is wrong with it.
    """
    path = Path(path)
    text = read_text(path)
    try:
        if path.suffix.lower() in (".srt", ".vtt"):
            events = parse_subtitles(text)
        elif path.suffix.lower() == ".json":
            content = json.loads(text, object_pairs_hook=object_without_doubles)
            by_video = None if _is_one_video(content) else results_of(content)
            if by_video is not None and len(by_video) > 1:
                raise ValueError(f"expected the events of one video, found {len(by_video)} videos")
            events = events_of(content) if by_video is None else next(iter(by_video.values()), [])
        elif path.suffix.lower() in (".csv", ".tsv"):
            events = [event for events in _table(text, path, needs_video=False).values() for event in events]
        else:
            lines = [_BULLET.sub("", line) for line in text.splitlines() if line.strip()]
            timed = _json_inside(text) or sum(bool(_RANGE.match(line.strip())) for line in lines) > len(lines) / 2
            untimed = [{"start": None, "end": None, "text": line.strip()} for line in text.splitlines()]
            events = parse_answer(text) if timed else [event for event in untimed if event["text"]]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not events:
        raise ValueError(f"{path} holds no captions.")
    return events


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from None


def _is_one_video(content: Any) -> bool:
    """A list of events or of sentences, as against a list of objects that name their videos."""
    if isinstance(content, dict):
        return isinstance(content.get("sentences"), list) or isinstance(content.get("events"), list)
    objects = [item for item in content if isinstance(item, dict)] if isinstance(content, list) else []
    return isinstance(content, list) and not any(_first(item, (*_VIDEO_KEYS, "data")) for item in objects)


# --- Many videos --------------------------------------------------------------------------------------------------


def read_results(path: str | Path) -> dict[str, Events]:
    """The events of each video, as any system wrote them: a file of all, or a folder with a file for each.

    Files: `.json` (ActivityNet's submission, `{video: events}`, objects that name their video and hold events or a
    model's answer, Label Studio's export), `.jsonl` (such an object a line), `.csv` and `.tsv` (columns `video`, `start`,
    `end`, `caption`). In a folder, the name of a file is its video ([`read_events`]). A video's extension is dropped.

    Raises:
        OSError, ValueError: naming the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        results = {file.stem: read_events(file) for file in sorted(path.iterdir()) if file.is_file()}
    else:
        text = read_text(path)
        try:
            if path.suffix.lower() in (".csv", ".tsv"):
                results = _table(text, path)
            elif path.suffix.lower() == ".jsonl":
                results = results_of([json.loads(line) for line in text.splitlines() if line.strip()])
            else:
                results = results_of(json.loads(text, object_pairs_hook=object_without_doubles))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}") from None
    return results


def video_name(name: Any) -> str:
    """The name of a video without folder and extension."""
    path = Path(str(name))
    return path.stem if path.suffix.lower() in VIDEO_EXTENSIONS else str(name)


def reference_name(video: str, references: Container[str]) -> str | None:
    """The id of a video in the references: ActivityNet's start with `v_`, the names of its files often do not."""
    names = (video, video.removeprefix("v_"), f"v_{video}")
    return next((name for name in names if name in references), None)


def results_of(content: Any) -> dict[str, Events]:
    """The events of each video in any of the forms that JSON files of many videos have.

    Raises:
        ValueError: no such form.
    """
    results: dict[str, Events] = {}
    if isinstance(content, dict):
        inner = content.get("results", content)
        if not isinstance(inner, dict):
            raise ValueError(f"expected {_FORMS}; found {content!r:.80}")
        objects = [{"video": video, "events": events} for video, events in inner.items()]
    elif isinstance(content, list):
        objects = [_task(item) if isinstance(item, dict) and "data" in item else item for item in content]
    else:
        raise ValueError(f"expected {_FORMS}; found {content!r:.80}")
    for index, item in enumerate(objects):
        video = _first(item, _VIDEO_KEYS) if isinstance(item, dict) else None
        if video is None:
            raise ValueError(f"entry {index}: expected {_FORMS}; found {item!r:.80}")
        try:
            answer = _first(item, _ANSWER_KEYS)
            if answer is None and isinstance(caption := item.get("caption"), str) and not _has_times(item):
                answer = caption
            found = events_of(item) if answer is None and "sentences" in item else None
            found = found or (events_of([item]) if answer is None else events_of(answer))
        except ValueError as error:
            raise ValueError(f"video {video!r}: {error}") from None
        results.setdefault(video_name(video), []).extend(found)
    return results


def holds_results(content: Any) -> bool:
    """Whether JSON holds events by video, ours or corrected in Label Studio, as against annotations."""
    if isinstance(content, list):
        return bool(content) and all(isinstance(task, dict) and "data" in task for task in content)
    lists = list(content.values()) if isinstance(content, dict) else []
    return bool(lists) and all(
        isinstance(events, list) and all(isinstance(one, dict) and _has_times(one) for one in events)
        for events in lists
    )


def _has_times(item: dict[str, Any]) -> bool:
    return _first(item, (*_SPAN_KEYS, *_START_KEYS)) is not None


def _task(task: dict[str, Any]) -> dict[str, Any]:
    """A task of Label Studio: what was annotated, or else predicted."""
    data = task["data"]
    rate = data.get("frames_per_second", LABEL_STUDIO_FPS)
    made = [one for one in task.get("annotations", []) if not one.get("was_cancelled")] or task.get("predictions", [])
    regions: dict[str, dict] = {}
    for region in made[-1]["result"] if made else []:
        value, found = region["value"], regions.setdefault(region["id"], {})
        if value.get("ranges"):
            found["timestamp"] = [(value["ranges"][0][end] - 1) / rate for end in ("start", "end")]
        if value.get("text"):
            found["text"] = value["text"] if isinstance(value["text"], str) else " ".join(value["text"])
    events = [found for found in regions.values() if "text" in found]
    return {"video": data.get("video", ""), "events": sorted(events, key=lambda event: event["timestamp"])}


def _table(text: str, path: Path, needs_video: bool = True) -> dict[str, Events]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = reader.fieldnames or []
    if not set(_TEXT_KEYS) & set(columns) or (needs_video and not set(_VIDEO_KEYS) & set(columns)):
        raise ValueError(f"expected the columns video, start, end, caption; found {', '.join(columns) or 'none'}")
    results: dict[str, Events] = {}
    for row in reader:
        if surplus := row.pop(None, None):
            raise ValueError(
                f"line {reader.line_num}: expected {len(columns)} fields, found {len(columns) + len(surplus)}: a caption "
                'with a comma stands in quotes ("A dog, brown.")'
            )
        item = {key: value for key, value in row.items() if value}
        video = _first(item, _VIDEO_KEYS) or ""
        results.setdefault(video_name(video), []).append(_event(item, f"line {reader.line_num}"))
    return results
