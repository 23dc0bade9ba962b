"""Files in and out: videos of a folder, captions of videos, submissions; what is written is written whole or not at all.

A row of a data set is `{"video_id": str, "duration": float | None, "captions": list[str], "timestamps": list[[start, end]]
| None}` in seconds, with `"transitions": list[str]` (N - 1 synthetic sentences) and `"references"` (the captions and time
stamps of several files, each with its `name`) where there are any. Captions keep their file's order and spelling. An event
is `{"start", "end", "text", "score"}`, in seconds.
"""

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

# Where a video exists in several forms, the first of these is taken.
VIDEO_EXTENSIONS = tuple(".mp4 .mkv .webm .mov .m4v .avi .mpg .mpeg .ts .flv .wmv .3gp .ogv".split())
# Official files round: ActivityNet's last events end up to 0.5 s past the stored duration.
MAX_OVERRUN = 0.5
_SUBTITLES = (".srt", ".vtt")
# What a row needs to be captioned, and to be scored.
CAPTIONED_COLUMNS = ("video_id", "duration", "video_features")
REFERENCE_COLUMNS = ("video_id", "duration", "captions", "timestamps", "references")
SUBMISSION_FORM = '{"results": {video_id: [{"sentence": str, "timestamp": [start, end]}, ...]}}'


# --- Writing ------------------------------------------------------------------------------------------------------


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary file or folder name beside `path`; what is written there replaces `path` when the block ends well.

    Parent folders are made. What an earlier run left under the temporary name is removed; after an error, `path` is as
    it was.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    if temporary.is_dir():
        shutil.rmtree(temporary)
    try:
        yield temporary
    except SafetensorError as error:  # its only kind, for a full disk too
        raise OSError(f"{temporary} could not be written: {error}") from error
    os.replace(temporary, path)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    with written_whole(path) as temporary:
        # Names of files that are not UTF-8 hold lone surrogates, for which a backslash is also JSON's own way.
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))


# --- Videos of a folder -------------------------------------------------------------------------------------------


def find_videos(folder: str | Path) -> dict[str, Path]:
    """Video files in a folder and its sub-folders by id: the path below the folder, or the name, without extension.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder of videos")
    files = [file for file in folder.rglob("*") if file.suffix.lower() in VIDEO_EXTENSIONS and file.is_file()]
    files.sort(key=lambda file: (VIDEO_EXTENSIONS.index(file.suffix.lower()), file))
    found: dict[str, Path] = {}
    for file in files:
        found.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
        found.setdefault(file.stem, file)
    return found


def find_video(videos: dict[str, Path], video_id: str) -> Path | None:
    """ActivityNet's ids start with `v_`, the names of its files often do not, or the other way round."""
    for name in (video_id, video_id.removeprefix("v_"), f"v_{video_id}"):
        if name in videos:
            return videos[name]
    return None


# --- References and submissions -----------------------------------------------------------------------------------


def submission(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Events by video id in ActivityNet's submission form ([`SUBMISSION_FORM`])."""
    form = {
        video: [{"sentence": event["text"], "timestamp": [event["start"], event["end"]]} for event in events]
        for video, events in results.items()
    }
    return {"version": "VERSION 1.0", "results": form, "external_data": {"used": True, "details": "CLIP features"}}


def reference_sets(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Video id -> its reference sets, as the metric takes them: the i-th of all videos are one reference file.

    An empty set says that a file lacks the video.

    Raises:
        ValueError: a row without time stamps.
    """
    by_name = [{one["name"]: one for one in row.get("references") or [{**row, "name": None}]} for row in rows]
    lacking = [
        row["video_id"]
        for row, named in zip(rows, by_name, strict=True)
        if any(one.get("timestamps") is None for one in named.values())
    ]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(rows)} videos have no time stamps to score against, e.g. {lacking[0]}"
        )
    # A row with all files has them in their order.
    names = dict.fromkeys(name for named in sorted(by_name, key=len, reverse=True) for name in named)
    none = {"captions": [], "timestamps": []}
    return {
        str(row["video_id"]): [
            {"timestamps": one["timestamps"], "sentences": one["captions"], "duration": row.get("duration")}
            for one in (named.get(name, none) for name in names)
        ]
        for row, named in zip(rows, by_name, strict=True)
    }


# --- Rows of annotation files -------------------------------------------------------------------------------------


def read_annotations(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Reads annotation files that describe the same set of videos (reference files), the first one first.

    A row per distinct video, with the captions of the first file that has it; of several files, those of each stand in
    the row's `references` under the file's name.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: naming file and row, for everything that [`read_annotation_file`] refuses.
    """
    stems = [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else list(map(str, paths))
    files = [{row["video_id"]: row for row in read_annotation_file(path)} for path in paths]
    rows: dict[str, dict] = {}
    for video_id, row in (item for file in files for item in file.items()):
        rows.setdefault(video_id, row)
    if len(files) > 1:
        for video_id, row in rows.items():
            of_row = [(name, file[video_id]) for name, file in zip(names, files, strict=True) if video_id in file]
            row["references"] = [
                {"name": name, "captions": one["captions"], "timestamps": one["timestamps"]} for name, one in of_row
            ]
    return list(rows.values())


def read_annotation_file(path: str | Path) -> list[dict[str, Any]]:
    """Reads one annotation file, by its suffix.

    * `.json`: `{video_id: {"duration", "timestamps", "sentences"}}` (ActivityNet Captions, YouCook2 as usually
      shared), `{"database": {video_id: {"duration", "subset", "annotations": [{"segment", "sentence"}]}}}` (YouCook2's
      own file; `file.json#training` picks one of its subsets), or a list of objects as in `.jsonl`.
    * `.jsonl`: an object a line, `{"video", "captions": [...]}` with optional `duration`, `timestamps`, `transitions`,
      or one event a line, `{"video", "caption"}` with optional `start`, `end`, `duration`.
    * `.csv`: a header and one event a line: columns `video`, `caption`, optionally `start`, `end`, `duration`.
    * events that `sail caption` or `sail align` wrote, corrected by hand: `.srt` or `.vtt` files, one or a folder of them,
      each named as its video; `{video: [event, ...]}` in `.json`; what Label Studio exports as JSON.
    * a folder of Parquet files, `folder#train` for one of its splits, or a `.parquet` file: a data set built by
      `build_dataset.py`; its further columns stay in the rows, feature columns do not.

    In one's own files the video is the name of its file (the extension is dropped) or any id, in a field `video` or
    `video_id`; its events count in the order in which they stand.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown form, a video that occurs twice, no or empty captions, more or fewer time stamps than captions,
            times that are no numbers, negative, reversed or more than 0.5 s past the video's end: ten of them, with rows.
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


def row_problems(row: dict[str, Any]) -> list[str]:
    """What makes a row unusable, one sentence each; empty for a good row."""
    captions, timestamps, duration = row["captions"], row["timestamps"], row["duration"]
    if not isinstance(row["video_id"], str) or not row["video_id"].strip():
        return [f"expected the video's name, found {row['video_id']!r}"]
    if not isinstance(captions, list) or not captions:
        return [f"expected a list of captions, found {captions!r}"]
    problems = [
        f"caption {i} is empty: expected a sentence, found {caption!r}"
        for i, caption in enumerate(captions)
        if not isinstance(caption, str) or not caption.strip()
    ]
    for text in filter(lambda text: isinstance(text, str), [row["video_id"], *captions]):
        if re.search("[\ud800-\udfff]", text):
            problems.append(f"{text!r} is no Unicode text: half of a surrogate pair stands alone")
    if duration is not None and not (_is_time(duration) and duration > 0):
        problems.append(f"expected a duration in seconds, found {duration!r}")
        duration = None
    needed, transitions = len(captions) - 1, row.get("transitions")
    if transitions is not None and len(transitions) != needed:
        problems.append(f"{len(captions)} captions need {needed} transitions, found {len(transitions)}")
    if timestamps is None:
        return problems
    if not isinstance(timestamps, list) or len(timestamps) != len(captions):
        found = f"expected a time stamp for each of the {len(captions)} captions, found {timestamps!r:.100}"
        return [*problems, found]
    for i, span in enumerate(timestamps):
        if not (isinstance(span, list | tuple) and len(span) == 2 and all(map(_is_time, span))):
            problems.append(f"time stamp {i} is {span!r}: expected [start, end] in seconds")
        elif span[0] > span[1]:
            problems.append(f"time stamp {i} is reversed: it starts at {span[0]} and ends at {span[1]}")
        elif span[0] < 0 or (duration is not None and span[1] > duration + MAX_OVERRUN):
            problems.append(f"time stamp {i} is {list(span)}, outside of the video's 0 to {duration} seconds")
    return problems


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def row_oddities(row: dict[str, Any]) -> list[str]:
    """What is worth a look in a usable row: repeated captions, unsorted or empty events, times just past the end."""
    spans = row["timestamps"] or []
    starts = [start for start, _ in spans]
    found = {
        "repeated caption": len({caption.strip() for caption in row["captions"]}) < len(row["captions"]),
        "events not sorted by start": starts != sorted(starts),
        "event of no length": any(start == end for start, end in spans),
        "event that ends after the video": any(end > (row["duration"] or math.inf) for _, end in spans),
    }
    return [oddity for oddity, is_there in found.items() if is_there]


# --- Forms of annotation files: pairs of (where in the file, unchecked row) -----------------------------------------


def _raw_rows(path: Path, subset: str) -> Iterable[tuple[str, dict]]:
    subtitles = [file for file in path.iterdir() if file.suffix.lower() in _SUBTITLES] if path.is_dir() else []
    if subtitles or path.suffix.lower() in _SUBTITLES:
        from .prediction_files import read_events

        return _from_results({file.stem: read_events(file) for file in sorted(subtitles) or [path]})
    if path.is_dir() or path.suffix == ".parquet":
        return _from_parquet(path, subset)
    readers = {".json": lambda path: _from_json(path, subset), ".jsonl": _from_jsonl, ".csv": _from_csv}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: expected .json, .jsonl, .csv or .parquet")
    try:
        return list(readers[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from None


def object_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a plain dict would silently drop the first of two entries with one name."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"video {name!r}: this video was there before: give each video one entry")
        found[name] = value
    return found


def _from_json(path: Path, subset: str) -> Iterator[tuple[str, dict]]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        data = json.loads(text, object_pairs_hook=object_without_doubles)
    except ValueError as error:
        problem = "is not JSON" if isinstance(error, json.JSONDecodeError) else "cannot be used"
        raise ValueError(f"{path} {problem}: {error}") from None
    from .prediction_files import holds_results, results_of

    if holds_results(data):
        return _from_results(results_of(data))
    if isinstance(data, list):
        return _from_objects((f"entry {i}", entry) for i, entry in enumerate(data))
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected an object or a list, found {data!r:.100}")
    database = data.get("database")
    is_database = isinstance(database, dict) and "sentences" not in database
    return _from_database(path, database, subset) if is_database else _from_official(path, data)


def _from_results(results: dict[str, list[dict]]) -> Iterator[tuple[str, dict]]:
    """Events by video, such as were predicted, and corrected by hand."""
    for video, events in results.items():
        spans = [[event["start"], event["end"]] for event in events]
        entry = {"timestamps": spans} if any(event["start"] is not None for event in events) else {}
        yield f"video {video!r}", _row(video, [event["text"] for event in events], entry)


def _from_official(path: Path, data: dict) -> Iterator[tuple[str, dict]]:
    form = "duration, timestamps and sentences"
    for video_id, entry in data.items():
        if not isinstance(entry, dict) or "sentences" not in entry:
            raise ValueError(f"{path}: video {video_id!r}: expected {form}, found {entry!r:.100}")
        yield f"video {video_id!r}", _row(video_id, entry["sentences"], entry)


def _from_database(path: Path, data: dict, subset: str) -> Iterator[tuple[str, dict]]:
    subsets = sorted({entry.get("subset", "") for entry in data.values()})
    if subset not in subsets and (subset or len(subsets) > 1):
        raise ValueError(
            f"{path} holds the subsets {', '.join(subsets)}: write {path.name}#{subsets[0]} for one of them"
        )
    for video_id, entry in data.items():
        if not subset or entry.get("subset") == subset:
            events = entry.get("annotations", [])
            timestamps = [event.get("segment") for event in events]
            captions = [event.get("sentence") for event in events]
            yield f"video {video_id!r}", _row(video_id, captions, {**entry, "timestamps": timestamps})


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
        if surplus := record.pop(None, None):
            found = len(columns) + len(surplus)
            raise ValueError(
                f"{path}: {where}: expected {len(columns)} fields, found {found}, the last of them {surplus[-1]!r}: a caption "
                'with a comma stands in quotes ("A dog, brown.")'
            )
        for column in ("start", "end", "duration"):
            text = (record.get(column) or "").strip()
            try:
                record[column] = float(text) if text else None
            except ValueError:
                raise ValueError(f"{path}: {where}: expected {column} in seconds, found {text!r}") from None
    return _from_objects(records)


def _from_objects(objects: Iterable[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
    """Rows of objects that hold a whole video (`captions`) or one event of it (`caption`)."""
    events: dict[str, tuple[str, list[dict]]] = {}
    for where, item in objects:
        if not isinstance(item, dict) or not item.keys() & {"video", "video_id"}:
            raise ValueError(f"{where}: expected video and captions, found {item!r:.100}")
        video_id = item["video"] if "video" in item else item["video_id"]
        if isinstance(video_id, str) and Path(video_id).suffix.lower() in VIDEO_EXTENSIONS:
            video_id = video_id[: -len(Path(video_id).suffix)]
        where = f"{where}, video {video_id!r}"
        if "captions" in item:
            yield where, _row(video_id, item["captions"], item)
        else:
            events.setdefault(video_id, (where, []))[1].append(item)
    for video_id, (where, items) in events.items():
        entry = {"duration": next((item["duration"] for item in items if item.get("duration") is not None), None)}
        spans = [[item.get("start"), item.get("end")] for item in items]
        if any(time is not None for span in spans for time in span):
            entry["timestamps"] = spans
        yield where, _row(video_id, [item.get("caption") for item in items], entry)


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
