"""How a training step, captioning and memory grow with frames, events and vocabulary: seconds, exponents, a picture.

    python tests/benchmarks/bench_growth.py [--repeats 2] [--axes frames ...]

A SAIL of width 256 (3 layers in the encoder, 4 in the decoder, random weights), 4 videos at a time, 32 frames, 4 events, 14 tokens a
caption and 1,000 words unless that is what grows. Training is a step of the second stage with all of SAIL's losses, AdamW's update
included; captioning is the whole-video caption and the events' sentences, beam 4, all lengths fixed. CPU seconds, the least of the repeats,
and the highest resident size of the process above what it had with the model loaded; each point is a process of its own. The exponent p
of growth as x^p is between the two ends; it is below the method's own where other work is still the larger part. How reading a data
set grows with its videos is measured by bench_data_memory.py.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from results import Table, growth, timed
from torch import Tensor, nn
from transformers import GPT2Config

from sail_hf import SailConfig, SailForDenseVideoCaptioning

PICTURE = Path(__file__).with_name("growth.png")
VIDEOS, SIZE, LENGTH = 4, 256, 14
USUAL = {"frames": 32, "events": 4, "vocabulary": 1000}
# What grows: the points, and how much by the method.
AXES = {
    "frames": (
        [32, 64, 128, 256],
        "attention between frames, in encoder and decoder, squares with them; all else of a step is linear",
    ),
    "events": (
        [3, 5, 9, 14],
        "an event's row and its masks are linear, its complement names all other events: their tokens square in training, not in "
        "captioning",
    ),
    "vocabulary": (
        [1000, 6000, 30000, 151936],  # Qwen3's
        "logits at targets, the embeddings' gradient and moments: linear",
    ),
}


def make_model(frames: int, vocabulary: int) -> SailForDenseVideoCaptioning:
    text_config = GPT2Config(
        vocab_size=vocabulary, n_embd=SIZE, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    config = SailConfig.for_method(
        "sail",
        text_config=text_config,
        feature_size=SIZE,
        num_frames=frames,
        encoder_layers=3,
        encoder_ffn_dim=4 * SIZE,
        full_prompt_ids=[2],
        event_prompt_ids=[3],
        separator_ids=[4],
    )
    torch.manual_seed(0)
    return SailForDenseVideoCaptioning(config)


def make_batch(frames: int, events: int, vocabulary: int) -> dict[str, Tensor]:
    def tokens(*shape: int) -> Tensor:
        return torch.randint(5, vocabulary, shape)

    return {
        "video_features": torch.randn(VIDEOS, frames, SIZE),
        "video_attention_mask": torch.ones(VIDEOS, frames, dtype=torch.long),
        "num_events": torch.full((VIDEOS,), events),
        "full_labels": tokens(VIDEOS, events * LENGTH),
        "event_labels": tokens(VIDEOS, events, LENGTH),
        "complement_labels": tokens(VIDEOS, events, (events - 1) * LENGTH),
        "caption_features": torch.randn(VIDEOS, events, SIZE),
        "transition_features": torch.randn(VIDEOS, events - 1, SIZE),
    }


def caption(model: SailForDenseVideoCaptioning, batch: dict[str, Tensor]) -> None:
    features, frame_mask, counts = (batch[name] for name in ("video_features", "video_attention_mask", "num_events"))
    length = int(counts[0]) * LENGTH
    model.describe(features, frame_mask, full_min_new_tokens=length, full_max_new_tokens=length, num_beams=4)
    masks = model.model.localize(features, frame_mask, counts)[2]
    lengths = {"min_new_tokens": LENGTH, "max_new_tokens": LENGTH}
    model.caption_events(features, frame_mask, masks, counts, num_beams=4, **lengths)


def peak() -> float:
    """Highest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(sizes: dict[str, int], repeats: int) -> dict[str, float]:
    """Seconds of captioning and of a step, and the memory of each in MB."""
    model = make_model(sizes["frames"], sizes["vocabulary"])
    batch, loaded = make_batch(**sizes), peak()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def least(work) -> float:
        work()
        return min(timed(work).cpu for _ in range(repeats))

    model.eval()
    captioning, captioned = least(lambda: caption(model, batch)), peak()
    model.train()
    training = least(step)
    return {
        "training": training,
        "captioning": captioning,
        "training MB": peak() - loaded,
        "captioning MB": captioned - loaded,
    }


def measured_apart(sizes: dict[str, int], repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", json.dumps(sizes), "--repeats", str(repeats)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def print_table(axis: str, points: list[int], found: list[dict[str, float]]) -> None:
    print(f"\n{axis}: by the method, {AXES[axis][1]}.\n")
    table = Table("a step of 4 videos", *(f"{point:,} {axis}" for point in points), "exponent")
    for name in found[0]:
        values = [of_point[name] for of_point in found]
        digits, title = (0, name) if name.endswith("MB") else (2, f"{name}, CPU s")
        exponent = growth(values[0], values[-1], points[-1] / points[0])
        table.row(title, *(f"{value:.{digits}f}" for value in values), f"{exponent:.2f}")


def draw(found: dict[str, tuple[list[int], list[dict[str, float]]]]) -> None:
    """Times as long, and times as much memory, as at the smallest point, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found), 3.4), layout="constrained")
    for place, (axis, (points, values)) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for name in values[0]:
            place.plot(points, [value[name] / values[0][name] for value in values], marker="o", label=name)
        place.plot(points, [point / points[0] for point in points], color="grey", linestyle=":", label="linear")
        place.set(xscale="log", yscale="log", xlabel=axis)
        place.set_xticks(points, [f"{point:,}" for point in points], minor=False)
        place.minorticks_off()
    figure.axes[0].set_ylabel("times the smallest")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--points", type=int, default=4, help="how many of each axis, from the smallest")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(args.measure, args.repeats)))
    found = {}
    for axis in args.axes:
        points = AXES[axis][0][: args.points]
        values = [measured_apart({**USUAL, axis: point}, args.repeats) for point in points]
        print_table(axis, points, values)
        found[axis] = points, values
    draw(found)
    print(f"\n![Growth of time and memory]({PICTURE.name})")


if __name__ == "__main__":
    main()
