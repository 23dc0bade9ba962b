"""Writes a data set again with times for its captions, found by CLIP alone: no training, no generation.

    python training/align_dataset.py --dataset data/captions --videos videos --clip ViT-L-14 --output data/aligned

Every split gets the columns `timestamps` (seconds) and `gains` (mean difference of CLIP cosines), in the captions' order.
Both are null where the video is missing or cannot be read; OUTPUT/skipped.json says why. Finished videos are kept in
OUTPUT.work until the data set is complete, so that the same command goes on where it was stopped. Machines share the work
by `--shard 1/4` to `4/4`, processes by `accelerate launch`; the command without `--shard` then joins what they did.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg
from work_folder import (
    WHOLE,
    WorkFolder,
    digest,
    file_digest,
    own_device,
    run_in_shares,
    take_shard,
    weights_digest,
)

from sail_hf.data import find_video, find_videos, write_json, written_whole
from sail_hf.hub_names import check_clip_name, check_dataset_name, check_model_name

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from sail_hf.clip_sail import SailClip


@dataclass
class AlignArguments:
    dataset: str = HfArg(help="Data set with video_id and captions, folder or name.")
    videos: str = HfArg(help="Folder of its videos, named by id.")
    output: str = HfArg(help="Folder to make; must not exist.")
    clip: str | None = HfArg(default=None, help="open_clip model, hf-hub:org/repo or folder; or a model:")
    pretrained: str = HfArg(default="openai", help="With --clip: open_clip's tag of the weights.")
    model: str | None = HfArg(default=None, help="Folder or name of a SAIL, whose CLIP is used.")
    frames_per_second: float = HfArg(default=2.0, help="Frames looked at, hence how fine times are.")
    alignment: Literal["ordered", "overlapping", "unordered", "expected"] = HfArg(
        default="ordered", help="Captions in order apart, in order, in any order; or as is expected to hit most."
    )
    gap_level: float = HfArg(default=0.0, help="Higher leaves out more frames that fit no caption well.")
    shard: str = HfArg(default=WHOLE, help="Share of the videos to align here, such as 2/4.")

    def __post_init__(self):
        if (self.clip is None) == (self.model is None):
            raise ValueError("give either --clip or --model")
        if self.model and self.pretrained != "openai":
            raise ValueError(f"--pretrained {self.pretrained} goes with --clip; a model brings its own CLIP")
        take_shard([], self.shard)
        if Path(self.output).exists():
            raise ValueError(f"{self.output} exists: choose another --output, or remove it")


class Aligner:
    """Times of the captions of rows; those of finished videos are kept in a work folder."""

    def __init__(self, clip: "SailClip", args: AlignArguments, work: WorkFolder):
        self.clip, self.work = clip, work
        self.videos = find_videos(args.videos)
        self.options = {name: getattr(args, name) for name in ("frames_per_second", "alignment", "gap_level")}
        self._weights = weights_digest(clip.model)

    def align(self, row: dict[str, Any]) -> tuple[list, list] | str:
        """Start and end in seconds of each caption and their gains, or why there are none."""
        video = find_video(self.videos, row["video_id"])
        if video is None:
            return "no such video file"
        key = digest(self._weights, self.options, row["video_id"], row["captions"], file_digest(video))
        if (finished := self.work.read(key)) is not None:
            return tuple(json.loads(finished))
        try:
            events = self.clip.align(video, row["captions"], **self.options)
        except Exception as error:  # whatever is wrong with one video, it must not end a run over thousands
            return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        result = [[event["start"], event["end"]] for event in events], [event["gain"] for event in events]
        self.work.write(key, json.dumps(result).encode())
        return result


def with_columns(data: "Dataset", results: list[tuple[list, list] | str]) -> "Dataset":
    """A data set with the results of its rows as columns, null for those that have none."""
    from build_dataset import SPANS
    from datasets import List, Value

    for index, (name, feature) in enumerate({"timestamps": SPANS, "gains": List(Value("float64"))}.items()):
        values = [None if isinstance(result, str) else result[index] for result in results]
        data = data.remove_columns([name] if name in data.column_names else []).add_column(
            name, values, feature=feature
        )
    return data


def read_dataset(args: AlignArguments) -> "DatasetDict":
    """All splits; ValueError where a column is missing, or a video is there twice."""
    from datasets import load_dataset

    dataset = load_dataset(args.dataset)
    split_of: dict[str, str] = {}
    for split, data in dataset.items():
        if missing := {"video_id", "captions"} - set(data.column_names):
            raise ValueError(f"{args.dataset}, split {split}: no column {', '.join(sorted(missing))}")
        for video_id in data["video_id"]:
            if video_id in split_of:
                raise ValueError(f"video {video_id!r} is in the split {split_of[video_id]} and again in {split}")
            split_of[video_id] = split
    return dataset


def align_dataset(args: AlignArguments) -> None:
    """Align every split, and write the data set whole; OSError, ValueError where nothing could be read or aligned."""
    find_videos(args.videos)
    check_clip_name(args.clip) if args.clip else check_model_name(args.model)
    check_dataset_name(args.dataset)
    dataset, output = read_dataset(args), Path(args.output)
    from sail_hf import SailModel
    from sail_hf.clip_sail import load_clip

    if args.clip:
        clip = load_clip(args.clip, args.pretrained)
    else:
        clip = SailModel.from_pretrained(args.model).get_clip()
    work = WorkFolder(output)
    aligner = Aligner(clip.to(own_device()), args, work)
    with work.locked(args.shard):
        results = {}
        for split, data in dataset.items():
            rows = take_shard(list(data.select_columns(["video_id", "captions"])), args.shard)
            results[split] = [aligner.align(row) for row in tqdm(rows, desc=f"Aligning {split}", unit="video")]
        if args.shard != WHOLE:
            print(f"Aligned shard {args.shard}, in {work.path}. Next: the other shards, then without --shard.")
            return
        skipped = write_aligned(dataset, results, output)
        work.remove()
    num_videos, num_skipped = sum(map(len, dataset.values())), sum(map(len, skipped.values()))
    print(f"Wrote {output}: times for the captions of {num_videos - num_skipped} of {num_videos} videos.")
    for split, items in skipped.items():
        for item in items:
            print(f"  skipped {item['video_id']} ({split}): {item['reason']}")


def write_aligned(dataset: "DatasetDict", results: dict[str, list], output: Path) -> dict[str, list[dict[str, str]]]:
    """Write the splits with their results, whole or not at all; returns the videos that have none, and why."""
    from build_dataset import write_split

    skipped = {
        split: [
            {"video_id": video_id, "reason": result}
            for video_id, result in zip(data["video_id"], results[split], strict=True)
            if isinstance(result, str)
        ]
        for split, data in dataset.items()
    }
    if sum(map(len, skipped.values())) == sum(map(len, dataset.values())):
        raise ValueError(f"not one video could be aligned, e.g. {next(iter(skipped.values()))[:3]}")
    with written_whole(output) as folder:
        folder.mkdir()
        for split, data in dataset.items():
            write_split(with_columns(data, results[split]), folder, split)
        write_json(folder / "skipped.json", skipped)
    return skipped


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(AlignArguments, description=__doc__)
    try:
        (args,) = parser.parse_args_into_dataclasses(argv)
        run_in_shares(align_dataset, args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
