"""Writes a data set again with times for its captions, found by CLIP alone: no training, no generation.

    python training/align_dataset.py --dataset data/captions --videos videos --clip ViT-L-14 --output data/aligned

Every split gets the columns `timestamps` (seconds) and `gains` (mean difference of CLIP cosines), in the captions' order.
Both are null where the video is missing or cannot be read; OUTPUT/skipped.json says why. Finished videos are kept in
OUTPUT.work.jsonl until the data set is complete, so that the same command goes on where it was stopped.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from build_dataset import SPANS, write_split
from datasets import Dataset, List, Value, load_dataset
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from sail_hf import SailModel
from sail_hf.clip_sail import SailClip, load_clip
from sail_hf.data import find_video, find_videos, write_json, written_whole


@dataclass
class AlignArguments:
    dataset: str = HfArg(help="Data set with video_id and captions, folder or name.")
    videos: str = HfArg(help="Folder of its videos, named by id.")
    output: str = HfArg(help="Folder to make; must not exist.")
    clip: str | None = HfArg(default=None, help="open_clip model, hf-hub:org/repo or folder; or a model:")
    model: str | None = HfArg(default=None, help="Folder or name of a SAIL, whose CLIP is used.")
    frames_per_second: float = HfArg(default=2.0, help="Frames looked at, hence how fine times are.")
    alignment: Literal["ordered", "overlapping", "unordered"] = HfArg(
        default="ordered", help="Captions in order apart, in order, or in any order."
    )
    gap_level: float = HfArg(default=0.0, help="Higher leaves out more frames that fit no caption well.")

    def __post_init__(self):
        if (self.clip is None) == (self.model is None):
            raise ValueError("give either --clip or --model")
        if Path(self.output).exists():
            raise ValueError(f"{self.output} exists: choose another --output, or remove it")


class Aligner:
    """Times of the captions of rows; those of finished videos are kept in the file `journal`."""

    def __init__(self, clip: SailClip, args: AlignArguments, journal: Path):
        self.clip, self.journal = clip, journal
        self.videos = find_videos(args.videos)
        self.options = {name: getattr(args, name) for name in ("frames_per_second", "alignment", "gap_level")}
        self.name = args.clip or args.model
        self.done: dict[str, tuple[list, list]] = {}
        for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
            try:
                key, spans, gains = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            self.done[key] = spans, gains

    def align(self, row: dict[str, Any]) -> tuple[list, list] | str:
        """Start and end in seconds of each caption and their gains, or why there are none."""
        video = find_video(self.videos, row["video_id"])
        if video is None:
            return "no such video file"
        status = video.stat()
        inputs = [self.name, self.options, row["video_id"], row["captions"], status.st_size, status.st_mtime_ns]
        key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:40]
        if key not in self.done:
            try:
                events = self.clip.align(video, row["captions"], **self.options)
            except Exception as error:  # whatever is wrong with one video, it must not end a run over thousands
                return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            self.done[key] = [[e["start"], e["end"]] for e in events], [e["gain"] for e in events]
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, *self.done[key]]) + "\n")
        return self.done[key]


def with_columns(data: Dataset, results: list[tuple[list, list] | str]) -> Dataset:
    """A data set with the results of its rows as columns, null for those that have none."""
    for index, (name, feature) in enumerate({"timestamps": SPANS, "gains": List(Value("float64"))}.items()):
        values = [None if isinstance(result, str) else result[index] for result in results]
        data = data.remove_columns([name] if name in data.column_names else []).add_column(
            name, values, feature=feature
        )
    return data


def align_dataset(args: AlignArguments) -> None:
    """Align every split, and write the data set whole; OSError, ValueError where nothing could be read or aligned."""
    dataset, output = load_dataset(args.dataset), Path(args.output)
    for split, data in dataset.items():
        if missing := {"video_id", "captions"} - set(data.column_names):
            raise ValueError(f"{args.dataset}, split {split}: no column {', '.join(sorted(missing))}")
    clip = load_clip(args.clip) if args.clip else SailModel.from_pretrained(args.model).get_clip()
    clip = clip.to("cuda" if torch.cuda.is_available() else "cpu")
    output.parent.mkdir(parents=True, exist_ok=True)
    aligner = Aligner(clip, args, output.with_name(f"{output.name}.work.jsonl"))
    skipped, num_videos = {}, sum(map(len, dataset.values()))
    with written_whole(output) as folder:
        folder.mkdir()
        for split, data in dataset.items():
            rows = data.select_columns(["video_id", "captions"])
            results = [aligner.align(row) for row in tqdm(rows, desc=f"Aligning {split}", unit="video")]
            reasons = [(row["video_id"], why) for row, why in zip(rows, results, strict=True) if isinstance(why, str)]
            skipped[split] = [{"video_id": video_id, "reason": reason} for video_id, reason in reasons]
            write_split(with_columns(data, results), folder, split)
        if (num_skipped := sum(map(len, skipped.values()))) == num_videos:
            raise ValueError(f"not one video could be aligned, e.g. {next(iter(skipped.values()))[:3]}")
        write_json(folder / "skipped.json", skipped)
    aligner.journal.unlink(missing_ok=True)
    print(f"Wrote {output}: times for the captions of {num_videos - num_skipped} of {num_videos} videos.")
    for split, items in skipped.items():
        for item in items:
            print(f"  skipped {item['video_id']} ({split}): {item['reason']}")


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(AlignArguments, description=__doc__)
    try:
        (args,) = parser.parse_args_into_dataclasses(argv)
        align_dataset(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
