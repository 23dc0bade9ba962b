"""Caption a data set with stored features and write ActivityNet's submission form.

    python training/predict.py --model FOLDER --dataset DATASET_DIR --split validation --output results.json
    accelerate launch training/predict.py ...     # each process its share

Machines share the work by `--shard 1/4` to `4/4`; the command without `--shard` then joins what they did. Captioned videos
are kept in OUTPUT.work until the file is written, so that the same command goes on where it was stopped.
"""

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg
from work_folder import WHOLE, WorkFolder, digest, own_device, run_in_shares, take_shard, weights_digest

from sail_hf.data import CAPTIONED_COLUMNS, submission, write_json
from sail_hf.hub_names import check_dataset_name, check_model_name

if TYPE_CHECKING:
    from datasets import Dataset

# Videos that are captioned before they are kept.
ROWS_AT_ONCE = 512
# What a row's events depend on; features of patches where it has them.
FEATURES = ("video_features", "region_features")


@dataclass
class PredictArguments:
    model: str = HfArg(help="Folder or name of a trained model.")
    dataset: str = HfArg(help="Folder or name of a data set with video_features (extract_features.py).")
    output: Path = HfArg(help="JSON file to write.")
    split: str = HfArg(default="validation", help="Split to caption.")
    batch_size: int = HfArg(default=8, help="Videos at a time.")
    shard: str = HfArg(default=WHOLE, help="Share of the videos to caption here, such as 2/4.")
    counts: Path | None = HfArg(
        default=None, help="JSON of video id and number of events, or of another prediction, whose numbers are taken."
    )

    def __post_init__(self):
        take_shard([], self.shard)
        if self.batch_size < 1:
            raise ValueError(f"expected --batch_size of at least 1, found {self.batch_size}")


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


def read_rows(args: PredictArguments) -> "Dataset":
    """The split's ids, durations and features; ValueError where one is missing, or a video is there twice."""
    import datasets

    data = datasets.load_dataset(args.dataset, split=args.split)
    if missing := set(CAPTIONED_COLUMNS) - set(data.column_names):
        raise ValueError(f"{args.dataset}, split {args.split}, lacks {', '.join(sorted(missing))}")
    data = data.select_columns(sorted({*CAPTIONED_COLUMNS, "region_features"} & set(data.column_names)))
    ids, durations = data["video_id"], data["duration"]
    if twice := [video_id for video_id, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{args.dataset}, split {args.split}, has {len(twice)} videos twice, e.g. {twice[0]!r}")
    if lacking := [video_id for video_id, seconds in zip(ids, durations, strict=True) if seconds is None]:
        raise ValueError(
            f"{len(lacking)} of {len(ids)} videos have no duration, which times in seconds need, e.g. {lacking[0]!r}"
        )
    return data.with_format("numpy")


def predict(args: PredictArguments) -> None:
    """Caption what is not captioned yet, and write the submission; OSError, ValueError for names and rows that are wrong."""
    check_model_name(args.model)
    check_dataset_name(args.dataset)
    data, counts = read_rows(args), read_counts(args.counts) if args.counts else None
    if counts and (missing := [video for video in data["video_id"] if video not in counts]):
        raise ValueError(f"{args.counts} has no number for {len(missing)} of {len(data)} videos, e.g. {missing[0]}.")
    from transformers import AutoProcessor

    from sail_hf import SailForDenseVideoCaptioning
    from sail_hf.trainer import caption_dataset

    model = SailForDenseVideoCaptioning.from_pretrained(args.model).to(own_device()).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    settings = [weights_digest(model), model.config.to_json_string(), model.generation_config.to_json_string(), counts]
    work = WorkFolder(args.output)
    with work.locked(args.shard):
        mine = take_shard(list(range(len(data))), args.shard)
        keys = {index: row_key(settings, data[index]) for index in mine}
        to_do = [index for index in mine if work.read(keys[index]) is None]
        for start in range(0, len(to_do), ROWS_AT_ONCE):
            part = to_do[start : start + ROWS_AT_ONCE]
            results = caption_dataset(model, processor, data.select(part), args.batch_size, counts)
            for index, events in zip(part, results.values(), strict=True):
                work.write(keys[index], json.dumps(events).encode())
        if args.shard != WHOLE:
            print(
                f"Captioned {len(mine)} videos of shard {args.shard}, in {work.path}. Next: the others, then without --shard."
            )
            return
        results = {str(name): json.loads(work.read(keys[index])) for index, name in enumerate(data["video_id"])}
        write_json(args.output, submission(results))
        work.remove()
    print(
        f"Wrote {args.output}. Next:\n  python training/evaluate.py --predictions {args.output} --references FILE.json"
    )


def row_key(settings: list[str], row: dict) -> str:
    """What a row's events are kept under: a digest of all that they depend on."""
    features = [hashlib.sha256(row[name].tobytes()).hexdigest() for name in FEATURES if name in row]
    return digest(settings, str(row["video_id"]), float(row["duration"]), features)


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(PredictArguments, description=__doc__)
    try:
        (args,) = parser.parse_args_into_dataclasses(argv)
        run_in_shares(predict, args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
