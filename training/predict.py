"""Caption a data set with stored features and write ActivityNet's submission form.

python training/predict.py --model FOLDER --dataset DATASET_DIR --split validation --output results.json
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from transformers import AutoProcessor, HfArgumentParser
from transformers.hf_argparser import HfArg

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.data import CAPTIONED_COLUMNS, submission, write_json
from sail_hf.trainer import caption_dataset


@dataclass
class PredictArguments:
    model: str = HfArg(help="Folder or name of a trained model.")
    dataset: str = HfArg(help="Folder or name of a data set with video_features (extract_features.py).")
    output: Path = HfArg(help="JSON file to write.")
    split: str = HfArg(default="validation", help="Split to caption.")
    batch_size: int = HfArg(default=8, help="Videos at a time.")
    counts: Path | None = HfArg(
        default=None, help="JSON of video id and number of events, or of another prediction, whose numbers are taken."
    )


def read_counts(path: Path) -> dict[str, int]:
    """Numbers of events by video id, from a mapping or from a submission (ValueError: neither)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    counts = content
    if isinstance(content, dict) and isinstance(content.get("results"), dict):
        counts = {video: len(events) for video, events in content["results"].items()}
    if not isinstance(counts, dict) or not all(type(count) is int and count > 0 for count in counts.values()):
        raise ValueError(
            f"{path}: expected a JSON object of video ids and numbers of events, at least 1 each, or a submission."
        )
    return counts


def predict(args: PredictArguments) -> None:
    """Caption every row of the split and write the submission.

    Raises:
        OSError, ValueError: the counts cannot be read, or lack a video of the split.
    """
    counts = read_counts(args.counts) if args.counts else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SailForDenseVideoCaptioning.from_pretrained(args.model).to(device).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    data = datasets.load_dataset(args.dataset, split=args.split).select_columns(list(CAPTIONED_COLUMNS))
    if counts and (missing := [video for video in data["video_id"] if video not in counts]):
        raise ValueError(f"{args.counts} has no number for {len(missing)} of {len(data)} videos, e.g. {missing[0]}.")
    results = caption_dataset(model, processor, data.with_format("numpy"), args.batch_size, counts)
    write_json(args.output, submission(results))


def main() -> None:
    (args,) = HfArgumentParser(PredictArguments, description=__doc__).parse_args_into_dataclasses()
    try:
        predict(args)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(
        f"Wrote {args.output}. Next:\n  python training/evaluate.py --predictions {args.output} --references FILE.json"
    )


if __name__ == "__main__":
    main()
