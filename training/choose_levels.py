"""What counts as one meaning, and as fitting the frames: levels for `generate`, by training captions alone.

    python training/choose_levels.py --dataset data/mine --alignment unordered --gap_level 0.75

Each training video's captions are aligned with its frames; time stamps are not read. All of them are events, so each level may cost
a share `--lost` of them. Printed, for train.py's `--generation_config` or a call: `repeat_level`, the cosine of a caption and
one that it overlaps or touches, and `support_level`, the mean cosine of a caption and its frames.
"""

import json
import sys
from dataclasses import dataclass
from typing import Literal

import datasets
import numpy as np
import torch
from tqdm import tqdm
from training_data import load_split
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from sail_hf.alignment_sail import ALIGNMENTS
from sail_hf.events_sail import supports, touching
from sail_hf.loss_sail import cosines


@dataclass
class LevelArguments:
    dataset: str = HfArg(help="Data set with features (extract_features.py), folder or name.")
    split: str = HfArg(default="train", help="Split of the training videos.")
    alignment: Literal[tuple(ALIGNMENTS)] = HfArg(default="ordered", help="As the generation config will have it.")
    gap_level: float = HfArg(default=0.0, help="Likewise.")
    lost: float = HfArg(default=0.01, help="Share of training captions that each level may cost.")

    def __post_init__(self):
        if not 0 <= self.lost <= 1:
            raise ValueError(f"--lost is a share, in [0, 1], found {self.lost}")


def choose_levels(data: datasets.Dataset, args: LevelArguments) -> dict[str, float]:
    """`repeat_level` and `support_level` of rows with `video_features` `(T, D)` and `caption_features` `(N, D)`."""
    support, alike = [], []
    for row in tqdm(data, desc="Aligning", unit="video"):
        frames, captions = (
            torch.as_tensor(np.asarray(row[name]), dtype=torch.float32)[None]
            for name in ("video_features", "caption_features")
        )
        if captions.shape[1] == 0 or (args.alignment != "unordered" and captions.shape[1] > frames.shape[1]):
            continue
        similarities = cosines(captions, frames)
        found = ALIGNMENTS[args.alignment](similarities, gap_level=args.gap_level)
        support += supports(similarities, found.segments)[0].tolist()
        others = touching(found.spans[0]).fill_diagonal_(False)
        alike += cosines(captions, captions)[0].masked_fill(~others, -1).amax(1).tolist()
    if not support:
        raise ValueError(f"{args.dataset}, split {args.split}, has no video with captions that can be aligned")
    levels = {"repeat_level": np.quantile(alike, 1 - args.lost), "support_level": np.quantile(support, args.lost)}
    return {name: round(float(level), 3) for name, level in levels.items()}


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(LevelArguments, description=__doc__)
    try:
        (args,) = parser.parse_args_into_dataclasses(argv)
        data = load_split(args.dataset, args.split, ("captions", "video_features", "caption_features"))
        if "caption_features" not in data.column_names:
            raise ValueError(f"{args.dataset} has no caption_features; training/extract_features.py makes them")
        print(json.dumps(choose_levels(data, args)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
