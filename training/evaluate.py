"""Score a system's submission in ActivityNet's form, ours or not, and print a table with controls beside it.

    python training/evaluate.py --predictions results.json --references val_1.json val_2.json --output scores.json

It only scores files. Everything that is wrong with one of them is said before anything is computed.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from sail_hf.data import MAX_OVERRUN, SUBMISSION_FORM, read_annotations, read_predictions, reference_sets, write_json
from sail_hf.metric import METRICS, DenseVideoCaptioningMetric, format_table

logger = logging.getLogger(__name__)


@dataclass
class EvaluateArguments:
    predictions: Path = HfArg(help=f"JSON file of the form {SUBMISSION_FORM}, in seconds.")
    references: list[str] = HfArg(help="Annotation files with time stamps; several are references of the same videos.")
    output: Path = HfArg(help="JSON file to write the scores to, as fractions.")
    protocol: Literal["2021", "2018"] = HfArg(default="2021", help="Unmatched: random token, or abc123!@#.")
    missing: Literal["zero", "skip"] = HfArg(default="zero", help="Videos without a prediction.")
    metrics: list[str] = HfArg(default_factory=lambda: list(METRICS), help=f"Any of {' '.join(METRICS)}; default all.")


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
    predictions, references = read_predictions(args.predictions), reference_sets(read_annotations(args.references))
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
