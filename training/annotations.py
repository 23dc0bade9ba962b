"""Reads dense captions: the official JSON forms, one's own files (JSON, JSONL, CSV), or a data set built from them.

A row is `{"video_id": str, "duration": float | None, "captions": list[str], "timestamps": list[[start, end]] | None}`,
times in seconds, with `"transitions": list[str]` where the file has them. Captions keep the file's order and spelling.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# Official files round: ActivityNet's last events end up to 0.5 s past the stored duration.
MAX_OVERRUN = 0.5
VIDEO_SUFFIX = re.compile(r"\.(mp4|mkv|webm|mov|m4v|avi|mpe?g|ts|flv|wmv|3gp|ogv)$", re.IGNORECASE)


def read_annotations(paths: list[str | Path]) -> list[dict]:
    """Reads annotation files that describe the same set of videos (reference files), the first one first.

    A row per distinct video; its annotation is that of the first file that has it.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: naming file and row, for everything that [`read_annotation_file`] refuses.
    """
    rows = {}
    for path in paths:
        for row in read_annotation_file(path):
            rows.setdefault(row["video_id"], row)
    return list(rows.values())


def read_annotation_file(path: str | Path) -> list[dict]:
    """Reads one annotation file, by its suffix.

    * `.json`: `{video_id: {"duration", "timestamps", "sentences"}}` (ActivityNet Captions, YouCook2 as usually
      shared), `{"database": {video_id: {"duration", "subset", "annotations": [{"segment", "sentence"}]}}}` (YouCook2's
      own file; `file.json#training` picks one of its subsets), or a list of objects as in `.jsonl`.
    * `.jsonl`: an object a line, `{"video", "captions": [...]}` with optional `duration`, `timestamps`, `transitions`,
      or one event a line, `{"video", "caption"}` with optional `start`, `end`, `duration`.
    * `.csv`: a header and one event a line: columns `video`, `caption`, optionally `start`, `end`, `duration`.
    * a folder of Parquet files, `folder#train` for one of its splits, or a `.parquet` file: a data set built by
      `build_dataset.py`; its further columns stay in the rows, feature columns do not.

    In one's own files the video is the name of its file (the extension is dropped) or any id, in a field `video` or
    `video_id`; its events count in the order in which they stand.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown form, a video that occurs twice, no or empty captions, as many time stamps as captions
            missing, times that are no numbers, negative, reversed, or more than 0.5 s past the video's end; the first
            ten problems are listed, each with its row.
    """
    path, _, subset = str(path).partition("#")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no annotation file {path}")
    problems: list[str] = []
    rows: dict[str, dict] = {}
    for where, row in _raw_rows(path, subset):
        found = row_problems(row)
        if row["video_id"] in rows:
            found.append("this video was there before: give each video one entry")
        problems += [f"{where}: {problem}" for problem in found]
        rows.setdefault(row["video_id"], row)
    if problems:
        rest = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{path} cannot be used:\n  " + "\n  ".join(problems[:10]) + rest)
    if not rows:
        raise ValueError(f"{path} holds no video")
    for row in rows.values():
        row["duration"] = None if row["duration"] is None else float(row["duration"])
        if row["timestamps"] is not None:
            row["timestamps"] = [[float(start), float(end)] for start, end in row["timestamps"]]
    return list(rows.values())


def row_problems(row: dict) -> list[str]:
    """What makes a row unusable, one sentence each; empty for a good row."""
    captions, timestamps, duration = row["captions"], row["timestamps"], row["duration"]
    problems = []
    if not isinstance(row["video_id"], str) or not row["video_id"].strip():
        return [f"expected the video's name, found {row['video_id']!r}"]
    if not isinstance(captions, list) or not captions:
        return [f"expected a list of captions, found {captions!r}"]
    for i, caption in enumerate(captions):
        if not isinstance(caption, str) or not caption.strip():
            problems.append(f"caption {i} is empty: expected a sentence, found {caption!r}")
    if duration is not None and not (_is_time(duration) and duration > 0):
        problems.append(f"expected a duration in seconds, found {duration!r}")
        duration = None
    if row.get("transitions") is not None and len(row["transitions"]) != len(captions) - 1:
        problems.append(
            f"{len(captions)} captions need {len(captions) - 1} transitions, found {len(row['transitions'])}"
        )
    if timestamps is None:
        return problems
    if not isinstance(timestamps, list) or len(timestamps) != len(captions):
        return [
            *problems,
            f"expected a time stamp for each of the {len(captions)} captions, found {timestamps!r:.100}",
        ]
    for i, span in enumerate(timestamps):
        if not (isinstance(span, list | tuple) and len(span) == 2 and all(_is_time(t) for t in span)):
            problems.append(f"time stamp {i} is {span!r}: expected [start, end] in seconds")
        elif span[0] > span[1]:
            problems.append(f"time stamp {i} is reversed: it starts at {span[0]} and ends at {span[1]}")
        elif span[0] < 0 or (duration is not None and span[1] > duration + MAX_OVERRUN):
            problems.append(f"time stamp {i} is {list(span)}, outside of the video's 0 to {duration} seconds")
    return problems


def row_oddities(row: dict) -> list[str]:
    """What is worth a look in a usable row: repeated captions, unsorted or empty events, times just past the end."""
    oddities = []
    if len({caption.strip() for caption in row["captions"]}) < len(row["captions"]):
        oddities.append("repeated caption")
    if row["timestamps"] is not None:
        starts = [start for start, _ in row["timestamps"]]
        if starts != sorted(starts):
            oddities.append("events not sorted by start")
        if any(start == end for start, end in row["timestamps"]):
            oddities.append("event of no length")
        if row["duration"] is not None and any(end > row["duration"] for _, end in row["timestamps"]):
            oddities.append("event that ends after the video")
    return oddities


def _is_time(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _raw_rows(path: Path, subset: str) -> Iterable[tuple[str, dict]]:
    """Pairs of (where in the file, unchecked row)."""
    if path.is_dir() or path.suffix == ".parquet":
        return _from_parquet(path, subset)
    readers = {".json": lambda p: _from_json(p, subset), ".jsonl": _from_jsonl, ".csv": _from_csv}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: expected .json, .jsonl, .csv or .parquet")
    try:
        return list(readers[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from None


def _from_json(path: Path, subset: str) -> Iterator[tuple[str, dict]]:
    try:
        # Pairs, because a dict would silently drop the first of two entries with one name.
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, list):
        raise ValueError(f"{path}: expected an object or a list, found {data!r:.100}")
    if not isinstance(data, _Pairs):
        return _from_objects((f"entry {i}", _plain(entry)) for i, entry in enumerate(data))
    database = dict(data).get("database")
    return _from_database(path, database, subset) if isinstance(database, _Pairs) else _from_official(path, data)


class _Pairs(list):
    """A JSON object as its (name, value) pairs."""


def _plain(value):
    if isinstance(value, _Pairs):
        return {name: _plain(item) for name, item in value}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _from_official(path: Path, data: _Pairs) -> Iterator[tuple[str, dict]]:
    for video_id, entry in data:
        entry = _plain(entry)
        if not isinstance(entry, dict) or "sentences" not in entry:
            raise ValueError(
                f"{path}: video {video_id!r}: expected duration, timestamps and sentences, found {entry!r:.100}"
            )
        yield f"video {video_id!r}", _row(video_id, entry["sentences"], entry)


def _from_database(path: Path, data: _Pairs, subset: str) -> Iterator[tuple[str, dict]]:
    entries = [(video_id, _plain(entry)) for video_id, entry in data]
    subsets = sorted({entry.get("subset", "") for _, entry in entries})
    if subset not in subsets and (subset or len(subsets) > 1):
        raise ValueError(
            f"{path} holds the subsets {', '.join(subsets)}: write {path.name}#{subsets[0]} for one of them"
        )
    for video_id, entry in entries:
        if not subset or entry.get("subset") == subset:
            events = entry.get("annotations", [])
            entry["timestamps"] = [event.get("segment") for event in events]
            yield f"video {video_id!r}", _row(video_id, [event.get("sentence") for event in events], entry)


def _from_jsonl(path: Path) -> Iterator[tuple[str, dict]]:
    def objects():
        for i, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if line.strip():
                try:
                    yield f"line {i}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}: line {i} is not JSON: {error}") from None

    return _from_objects(objects())


def _from_csv(path: Path) -> Iterator[tuple[str, dict]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if "caption" not in columns or not {"video", "video_id"} & set(columns):
            raise ValueError(f"{path}: expected the columns video and caption, found {', '.join(columns) or 'none'}")
        records = [(f"line {reader.line_num}", record) for record in reader]
    for where, record in records:
        for column in ("start", "end", "duration"):
            text = (record.get(column) or "").strip()
            try:
                record[column] = float(text) if text else None
            except ValueError:
                raise ValueError(f"{path}: {where}: expected {column} in seconds, found {text!r}") from None
    return _from_objects(iter(records))


def _from_objects(objects: Iterator[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
    """Rows of objects that hold a whole video (`captions`) or one event of it (`caption`)."""
    events: dict[str, tuple[str, list[dict]]] = {}
    for where, item in objects:
        if not isinstance(item, dict) or not item.keys() & {"video", "video_id"}:
            raise ValueError(f"{where}: expected video and captions, found {item!r:.100}")
        video_id = item["video"] if "video" in item else item["video_id"]
        video_id = VIDEO_SUFFIX.sub("", video_id) if isinstance(video_id, str) else video_id
        where = f"{where}, video {video_id!r}"
        if "captions" in item:
            yield where, _row(video_id, item["captions"], item)
        else:
            events.setdefault(video_id, (where, []))[1].append(item)
    for video_id, (where, items) in events.items():
        timed = [item.get("start") is not None or item.get("end") is not None for item in items]
        item = {"duration": next((item["duration"] for item in items if item.get("duration") is not None), None)}
        if any(timed):
            item["timestamps"] = [[item.get("start"), item.get("end")] for item in items]
        yield where, _row(video_id, [item.get("caption") for item in items], item)


def _from_parquet(path: Path, split: str) -> Iterator[tuple[str, dict]]:
    from pyarrow import parquet

    files = sorted(path.glob(f"{split or '*'}-*.parquet")) if path.is_dir() else [path]
    splits = sorted({file.name.split("-")[0] for file in files})
    if not splits:
        raise ValueError(f"{path} holds no Parquet files" + (f" of the split {split!r}" if split else ""))
    if len(splits) > 1:
        raise ValueError(f"{path} holds the splits {', '.join(splits)}: write {path}#{splits[0]} for one of them")
    for file in files:
        names = parquet.read_schema(file).names
        for row in parquet.read_table(file, columns=[n for n in names if not n.endswith("_features")]).to_pylist():
            extra = {name: value for name, value in row.items() if value is not None}
            yield f"video {row['video_id']!r}", {**extra, **_row(row["video_id"], row["captions"], row)}


def _row(video_id: str, captions: list[str], entry: dict) -> dict:
    row = {"video_id": video_id, "duration": entry.get("duration"), "captions": captions}
    row["timestamps"] = entry.get("timestamps")
    if entry.get("transitions") is not None:
        row["transitions"] = entry["transitions"]
    return row
