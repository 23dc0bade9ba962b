"""Teach a model how many events a video has, by its frames: fitted to the numbers of captions of training videos.

    python training/fit_event_counter.py --model outputs/mine --dataset data/mine --output outputs/counting

Frames that are alike speak for few events, frames that change for many (`sail_hf/counting_sail.py`); how much so, the training
videos' numbers of captions say. No time stamps are read, nothing else of the model changes, and it takes seconds. The new
model counts so by itself: its generation config has `counting="frames"` and `--localization`. Printed: how often it is right on
a fifth of the videos that it is not fitted to, beside the most frequent number; then it is fitted to all.

With `--caption_memory 40000`, frames are replaced by means of (at most so many) training captions near them before they are
compared, for numbers and for `cohesion` alike: worth it where frames are noisy, not where they are clean (docs/results.md).
The features of these captions, not their texts, are then part of the model.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm
from training_data import check_features, load_split
from transformers import AutoProcessor, HfArgumentParser
from transformers.hf_argparser import HfArg

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.caption_memory_sail import SailCaptionMemory
from sail_hf.data import written_whole

# Weights of cohesion for frames without and with a memory, chosen on simulated training videos (docs/results.md).
RAW_FRAMES = {"cohesion_weight": 16.0, "cohesion_gap_cost": 64.0}
WITH_MEMORY = {"cohesion_weight": 64.0, "cohesion_gap_cost": 384.0}


@dataclass
class CounterArguments:
    model: str = HfArg(help="Model after training (train.py), folder or name.")
    dataset: str = HfArg(help="Data set with features (extract_features.py), folder or name.")
    output: Path = HfArg(help="Folder of the model that counts by frames; must not exist.")
    split: str = HfArg(default="train", help="Split of the training videos.")
    localization: Literal["cohesion", "masks"] = HfArg(
        default="cohesion", help="How the model then localises events by itself."
    )
    caption_memory: int = HfArg(
        default=0,
        help="Training captions, at most, that frames are replaced by before they are compared. 0: raw frames.",
    )
    seed: int = HfArg(default=0, help="Of the draws of the videos that are held out and of the captions.")

    def __post_init__(self):
        if self.caption_memory < 0:
            raise ValueError(f"--caption_memory must be a number of captions or 0, found {self.caption_memory}")


def fill_memory(model: SailForDenseVideoCaptioning, data, most: int, seed: int = 0) -> torch.Tensor:
    """Give the model a [`SailCaptionMemory`] of `most` captions of rows with `caption_features`, drawn by seed, or none for
    `most` 0, in place of what it had. Returns the row `(M,)` that each is of."""
    config, features, rows = model.config, [], []
    if not most and not config.caption_memory:
        return torch.empty(0, dtype=torch.long)
    for row, of_video in enumerate(data["caption_features"] if most else ()):
        features += list(of_video)
        rows += [row] * len(of_video)
    kept = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    config.caption_memory, model.model.caption_memory = len(kept), None
    config.update(WITH_MEMORY if most else RAW_FRAMES)
    if most:
        model.model.caption_memory = SailCaptionMemory(config).to(model.device)
        model.model.caption_memory.fill(torch.from_numpy(np.stack([features[i] for i in kept.tolist()])))
    return torch.tensor(rows, dtype=torch.long)[kept]


def evidence_of(
    model: SailForDenseVideoCaptioning, data, remembered: torch.Tensor, batch_size: int = 16
) -> torch.Tensor:
    """`(V, K)`, [`SailEventCounter.evidence`] of rows with `video_features`; `remembered`: of [`fill_memory`]. No video is seen
    through its own captions, which a new one has not."""
    found, done = [], 0
    with tqdm(total=len(data), desc="Looking at frames", unit="video") as progress:
        for batch in data.select_columns("video_features").iter(batch_size):
            videos = [torch.from_numpy(np.stack(video).astype(np.float32)) for video in batch["video_features"]]
            features = torch.nn.utils.rnn.pad_sequence(videos, batch_first=True)
            lengths = torch.tensor([len(video) for video in videos])
            frame_mask = (torch.arange(features.shape[1]) < lengths[:, None]).long()
            features, frame_mask = model.model.prepare_features(
                video_features=features, video_attention_mask=frame_mask
            )
            exclude = torch.arange(done, done + len(videos))[:, None] == remembered
            seen = model.model.as_captions(features, exclude)
            found.append(model.model.event_counter.evidence(seen, frame_mask))
            done += len(videos)
            progress.update(len(videos))
    return torch.cat(found)


def fit_event_counter(model: SailForDenseVideoCaptioning, data, caption_memory: int = 0, seed: int = 0) -> str:
    """Fit `model.model.event_counter` to rows with `video_features` `(T, D)` and `captions`; what came out, in a sentence.

    `caption_memory`: most captions of [`fill_memory`], from rows with `caption_features`; 0: none.
    """
    counts = torch.tensor([len(captions) for captions in data["captions"]])
    data, counts = data.select(counts.nonzero().flatten().tolist()), counts[counts > 0]
    if len(data) < 2:
        raise ValueError(f"expected at least 2 videos with captions, found {len(data)}")
    remembered = fill_memory(model, data, caption_memory, seed)
    evidence, counter = evidence_of(model, data, remembered), model.model.event_counter
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(order) // 5 or 1], order[len(order) // 5 or 1 :]
    counter.fit(evidence[rest], counts[rest])
    right = (counter.linear(evidence[held_out]).argmax(1) + 1 == counts[held_out]).float().mean()
    most = Counter(counts[rest].tolist()).most_common(1)[0][0]
    counter.fit(evidence, counts)
    return (
        f"number of events right in {100 * right:.1f} % of {len(held_out)} videos held out; "
        f"{most} for every video: {100 * (counts[held_out] == most).float().mean():.1f} %"
    )


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(CounterArguments, description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    try:
        if args.output.exists():
            raise ValueError(f"{args.output} exists: choose another --output")
        model = SailForDenseVideoCaptioning.from_pretrained(args.model, event_counter=True)
        data = load_split(args.dataset, args.split, ("captions", "video_features", "caption_features"))
        if args.caption_memory and "caption_features" not in data.column_names:
            raise ValueError(
                f"--caption_memory needs caption_features, which {args.dataset} lacks: extract_features.py makes them"
            )
        check_features(data, model.config, f"{args.dataset}, split {args.split},")
        print(fit_event_counter(model, data, args.caption_memory, args.seed))
        model.generation_config.update(localization=args.localization, counting="frames")
        with written_whole(args.output) as temporary:
            model.save_pretrained(temporary)
            AutoProcessor.from_pretrained(args.model).save_pretrained(temporary)
        print(f"Wrote {args.output}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
