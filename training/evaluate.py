"""Score a system's submission in ActivityNet's form, ours or not, and print a table with controls beside it.

    python training/evaluate.py --predictions results.json --references val_1.json val_2.json --output scores.json

It only scores files. Everything that is wrong with one of them is said before anything is computed.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from annotations import MAX_OVERRUN, read_annotation_file
from transformers import HfArgumentParser

from sail_hf.data import write_json
from sail_hf.metric import METRICS, DenseVideoCaptioningMetric, checked_prediction, format_table

logger = logging.getLogger(__name__)
FORM = '{"results": {video_id: [{"sentence": str, "timestamp": [start, end]}, ...]}}'


@dataclass
class EvaluateArguments:
    predictions: Path = field(metadata={"help": f"JSON file of the form {FORM}, times in seconds."})
    references: list[str] = field(
        metadata={"help": "Annotation files with time stamps; several are independent references of the same videos."}
    )
    output: Path = field(metadata={"help": "JSON file to write the scores to, as fractions."})
    protocol: Literal["2021", "2018"] = field(
        default="2021", metadata={"help": "An unmatched prediction meets a random token (2021) or abc123!@# (2018)."}
    )
    missing: Literal["zero", "skip"] = field(
        default="zero", metadata={"help": "Videos without a prediction count as zero (official) or are left out."}
    )
    metrics: list[str] = field(
        default_factory=lambda: list(METRICS), metadata={"help": f"Any of {' '.join(METRICS)}; default all."}
    )


def read_predictions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The `results` of a submission: video id -> events with "timestamp" (seconds) and "sentence".

    Raises ValueError naming the file, the place and what is wrong there.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        found = f"the keys {list(content)[:5]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f'{path}: expected the key "results", as in {FORM}; found {found}')
    try:
        return {video: checked_prediction(events, f"results[{video!r}]") for video, events in results.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_references(paths: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Video id -> its reference sets, one per file; the set of a file that lacks the video is empty.

    Raises FileNotFoundError and ValueError as `read_annotation_file` does; ValueError for a file without time stamps.
    """
    files = []
    for path in paths:
        rows = {row["video_id"]: row for row in read_annotation_file(path)}
        untimed = [video for video, row in rows.items() if row["timestamps"] is None]
        if untimed:
            raise ValueError(f"{path}: {len(untimed)} videos have no time stamps to score against, e.g. {untimed[0]}")
        files.append(rows)
    none = {"timestamps": [], "captions": [], "duration": None}
    return {
        video: [
            {"timestamps": row["timestamps"], "sentences": row["captions"], "duration": row["duration"]}
            for row in (rows.get(video, none) for rows in files)
        ]
        for video in dict.fromkeys(video for rows in files for video in rows)
    }


def check_against(predictions: dict[str, list[dict]], references: dict[str, list[dict]]) -> None:
    """Raise ValueError for videos that no reference file has; warn of times outside the video, scored as they are."""
    unknown = [video for video in predictions if video not in references]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(predictions)} predicted videos are in no reference file, e.g. {unknown[:3]}; "
            f"the reference files hold ids such as {next(iter(references))!r}. Score against the files of that split"
        )
    outside = []
    for video, events in predictions.items():
        duration = next((one["duration"] for one in references[video] if one["duration"]), float("inf"))
        for start, end in (event["timestamp"] for event in events):
            if min(start, end) < 0 or max(start, end) > duration + MAX_OVERRUN:
                outside.append(f"{video} [{start:g}, {end:g}] in 0 to {duration:g} s")
            elif start > end:
                outside.append(f"{video} [{start:g}, {end:g}] ends before it starts")
    if outside:
        logger.warning(
            "%d predicted events have times outside of the video or reversed, e.g. %s. They are scored as they are; "
            "if there are many, check that times are in seconds.",
            len(outside),
            "; ".join(outside[:3]),
        )


def evaluate_files(args: EvaluateArguments) -> dict[str, Any]:
    """Check the files, compute the scores and write them."""
    predictions, references = read_predictions(args.predictions), read_references(args.references)
    check_against(predictions, references)
    scores = DenseVideoCaptioningMetric().compute(
        predictions=[predictions.get(video, []) for video in references],
        references=list(references.values()),
        protocol=args.protocol,
        missing=args.missing,
        metrics=args.metrics,
    )
    write_json(args.output, scores)
    return scores


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = HfArgumentParser(EvaluateArguments, description=__doc__.split("\n\n")[0])
    (args,) = parser.parse_args_into_dataclasses(arguments)
    try:
        scores = evaluate_files(args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(format_table(scores, args.predictions.stem))
    print(f"\nWrote {args.output}")


if __name__ == "__main__":
    main()
