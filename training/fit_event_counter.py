"""Teach a model how many events a video has, by its frames: fitted to the numbers of captions of training videos.

    python training/fit_event_counter.py --model outputs/mine --dataset data/mine --output outputs/counting

Frames that are alike speak for few events, frames that change for many (`sail_hf/counting_sail.py`); how much so, the training
videos' numbers of captions say. No time stamps are read, nothing else of the model changes, and it takes seconds. The new
model counts so by itself: its generation config has `counting="frames"` and `--localization`. Printed: how often it is right on
a fifth of the videos that it is not fitted to, beside the most frequent number; then it is fitted to all.
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
from sail_hf.data import written_whole


@dataclass
class CounterArguments:
    model: str = HfArg(help="Model after training (train.py), folder or name.")
    dataset: str = HfArg(help="Data set with features (extract_features.py), folder or name.")
    output: Path = HfArg(help="Folder of the model that counts by frames; must not exist.")
    split: str = HfArg(default="train", help="Split of the training videos.")
    localization: Literal["cohesion", "masks"] = HfArg(
        default="cohesion", help="How the model then localises events by itself."
    )
    seed: int = HfArg(default=0, help="Of the draw of the videos that are held out.")


def evidence_of(model: SailForDenseVideoCaptioning, data, batch_size: int = 64) -> torch.Tensor:
    """`(V, K)`, [`SailEventCounter.evidence`] of rows with `video_features`."""
    found = []
    with tqdm(total=len(data), desc="Looking at frames", unit="video") as progress:
        for batch in data.select_columns("video_features").iter(batch_size):
            videos = [torch.from_numpy(np.stack(video).astype(np.float32)) for video in batch["video_features"]]
            features = torch.nn.utils.rnn.pad_sequence(videos, batch_first=True)
            lengths = torch.tensor([len(video) for video in videos])
            frame_mask = (torch.arange(features.shape[1]) < lengths[:, None]).long()
            features, frame_mask = model.model.prepare_features(
                video_features=features, video_attention_mask=frame_mask
            )
            found.append(model.model.event_counter.evidence(features, frame_mask))
            progress.update(len(videos))
    return torch.cat(found)


def fit_event_counter(model: SailForDenseVideoCaptioning, data, seed: int = 0) -> str:
    """Fit `model.model.event_counter` to rows with `video_features` `(T, D)` and `captions`; what came out, in a sentence."""
    counts = torch.tensor([len(captions) for captions in data["captions"]])
    data, counts = data.select(counts.nonzero().flatten().tolist()), counts[counts > 0]
    if len(data) < 2:
        raise ValueError(f"expected at least 2 videos with captions, found {len(data)}")
    evidence, counter = evidence_of(model, data), model.model.event_counter
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
        data = load_split(args.dataset, args.split, ("captions", "video_features"))
        check_features(data, model.config, f"{args.dataset}, split {args.split},")
        print(fit_event_counter(model, data, args.seed))
        model.generation_config.update(localization=args.localization, counting="frames")
        with written_whole(args.output) as temporary:
            model.save_pretrained(temporary)
            AutoProcessor.from_pretrained(args.model).save_pretrained(temporary)
        print(f"Wrote {args.output}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
