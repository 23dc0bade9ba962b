"""Scores of any system's files against references: of one system, or of several in one table, controls beside each."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .data import MAX_OVERRUN, read_annotations, reference_sets, write_json
from .prediction_files import Events, read_results, reference_name

logger = logging.getLogger(__name__)

References = dict[str, list[dict[str, Any]]]


def score_files(
    predictions: str | Path,
    references: Sequence[str | Path],
    output: str | Path | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Scores of each system by its name. Everything that is wrong with a file is said before anything is computed.

    Args:
        predictions: a file of one system; a folder with a file for each video; or a folder of systems, each such a file or
            folder. Files of videos are those with the name of a video of the references. Forms: [`read_results`].
        references: annotation files with time stamps ([`read_annotation_file`]); several are references of one set.
        output: JSON file for the scores, as fractions: those of the one system, or `{system: scores}`.
        options: of [`DenseVideoCaptioningMetric`]: `protocol`, `missing`, `metrics`, ...

    Raises:
        OSError, ValueError: naming the file and what is wrong. ImportError, RuntimeError: from the metric.
    """
    truth = reference_sets(read_annotations(references))
    systems = find_systems(Path(predictions), truth)
    results = {name: read_system(path, truth) for name, path in systems.items()}
    from . import metric  # slow to import

    checked = {}
    for name, of_system in results.items():
        rows = {
            video: [{"timestamp": [one["start"], one["end"]], "sentence": one["text"]} for one in events]
            for video, events in of_system.items()
        }
        try:
            checked[name] = {video: metric.checked_prediction(row, f"video {video!r}") for video, row in rows.items()}
        except ValueError as error:
            raise ValueError(f"{systems[name]}: {error}") from None
        warn_of_odd_times(name, checked[name], truth)
    scores = {
        name: metric.DenseVideoCaptioningMetric().compute(
            predictions=[rows.get(video, []) for video in truth], references=list(truth.values()), **options
        )
        for name, rows in checked.items()
    }
    if output:
        write_json(output, scores if len(scores) > 1 else next(iter(scores.values())))
    return scores


def find_systems(path: Path, references: References) -> dict[str, Path]:
    """The file or folder of each system, by its name."""
    if not path.is_dir():
        return {path.stem: path}
    inside = [child for child in sorted(path.iterdir()) if not child.name.startswith(".")]
    if not inside:
        raise ValueError(f"{path} is empty: expected files of predictions")
    if any(child.is_file() and reference_name(child.stem, references) for child in inside):
        return {path.resolve().name: path}
    stems = [child.stem for child in inside]
    return {child.stem if stems.count(child.stem) == 1 else child.name: child for child in inside}


def read_system(path: Path, references: References) -> dict[str, Events]:
    """Events by the references' ids of the videos.

    Raises:
        OSError, ValueError: as [`read_results`], and for videos that no reference file has.
    """
    found = read_results(path)
    names = {video: reference_name(video, references) for video in found}
    unknown = [video for video, name in names.items() if name is None or (name != video and name in found)]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(found)} predicted videos are in no reference file, e.g. {unknown[:3]}; "
            f"the reference files hold ids such as {next(iter(references))!r}. Score against the files of that split"
        )
    return {names[video]: events for video, events in found.items()}


def warn_of_odd_times(system: str, predictions: dict[str, list[dict]], references: References) -> None:
    """Warn of times outside of the video or reversed; they are scored as they are."""
    odd = []
    for video, events in predictions.items():
        duration = next((one["duration"] for one in references[video] if one["duration"]), float("inf"))
        for start, end in (event["timestamp"] for event in events):
            if min(start, end) < 0 or max(start, end) > duration + MAX_OVERRUN:
                odd.append(f"{video} [{start:g}, {end:g}] in 0 to {duration:g} s")
            elif start > end:
                odd.append(f"{video} [{start:g}, {end:g}] ends before it starts")
    if odd:
        logger.warning(
            "%s: %d predicted events have times outside of the video or reversed, e.g. %s. They are scored as they are; "
            "if there are many, check that times are in seconds.",
            system,
            len(odd),
            "; ".join(odd[:3]),
        )


# What a row of several systems shows, with the best that its own numbers of events give without looking at a video.
_COLUMNS = {
    "F1": "f1",
    "F1 1:1": "f1_one_to_one",
    "repeats": "repeats",
    "lift": "lift",
    "equal spans": "equal spans",
    "3 spans": "f1_three_spans",
    "METEOR": "meteor",
    "CIDEr": "cider",
    "SODA_c": "soda_c",
    "missing": "num_missing",
}


def format_scores(scores: dict[str, dict[str, Any]]) -> str:
    """What [`score_files`] gave as a table in percent: of a single system in full, of several a row each."""
    from .metric import format_table

    if len(scores) == 1:
        ((name, of_system),) = scores.items()
        return format_table(of_system, name)
    rows = []
    for of_system in scores.values():
        spans = [
            of_system[key]
            for key in ("f1_equal_spans", "f1_equal_spans_1.25", "f1_equal_spans_1.5")
            if key in of_system
        ]
        rows.append(of_system | ({"equal spans": max(spans)} if spans else {}))
    columns = {title: key for title, key in _COLUMNS.items() if any(key in row for row in rows)}
    width = max(map(len, scores)) + 2

    def cell(value: Any) -> str:
        return "n/a" if value is None else str(value) if isinstance(value, int) else f"{100 * value:.2f}"

    first = rows[0]
    lines = [
        f"protocol {first['protocol']}, {first['num_videos']} videos, missing ones {first['missing']}; in percent",
        "equal spans, 3 spans: F1 of the best equal spans of the system's own numbers of events, and of the same three for",
        "every video; neither looks at a video. lift: F1 minus what is left of it with the spans of other videos.",
        "",
        " " * width + "".join(f"{title:>13}" for title in columns),
    ]
    for name, row in zip(scores, rows, strict=True):
        lines.append(f"{name:<{width}}" + "".join(f"{cell(row.get(key)):>13}" for key in columns.values()))
    return "\n".join(lines)
