"""What a bank of captions costs: seconds a video as ratios, and bytes.

    python tests/benchmarks/bench_context.py [FRAMES] [SENTENCES]

A random model of the paper's size (DistilGPT2's shape, CLIP ViT-L/14's features without the CLIP) on random features, with and
without a bank of ActivityNet's size (37,421 sentences), 10 clusters and 40 sentences each. Ratios of CPU seconds within one run,
best of 3: of encoding a video, of captioning it (16 new tokens, one beam), and of an update of both passes of the second stage.
"""

import sys
import time
from collections.abc import Callable

import torch

from sail_hf import SailConfig, SailForDenseVideoCaptioning
from sail_hf.context_sail import id_bytes

VIDEOS, EVENTS, WORDS = 1, 3, 16


def cpu_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def build(num_frames: int, **context) -> SailForDenseVideoCaptioning:
    torch.manual_seed(0)
    return SailForDenseVideoCaptioning(SailConfig.for_method("sail", num_frames=num_frames, **context)).eval()


def seconds_of(model: SailForDenseVideoCaptioning, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    features, counts = batch["video_features"], batch["num_events"]
    lengths = {"num_beams": 1, "min_new_tokens": WORDS, "max_new_tokens": WORDS}

    def update() -> None:
        model.train()
        model(**batch).loss.backward()
        model.zero_grad()
        model.eval()

    with torch.no_grad():
        encoding = cpu_seconds(lambda: model.model(features))
    captioning = cpu_seconds(lambda: model.generate(features, num_events=counts, **lengths))
    return {"encoding": encoding, "captioning": captioning, "an update": cpu_seconds(update)}


def main() -> None:
    num_frames = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 37_421
    torch.set_num_threads(1)
    plain, model = build(num_frames), build(num_frames, context_size=10, context_k=40)
    size = model.config.feature_size
    model.model.context.fill(torch.randn(rows, size), [f"video{i // 4}" for i in range(rows)], ["A sentence."] * rows)
    labels = torch.randint(1000, (VIDEOS, EVENTS, WORDS))
    batch = {
        "video_features": torch.randn(VIDEOS, num_frames, size),
        "num_events": torch.full((VIDEOS,), EVENTS),
        "full_labels": labels.flatten(1),
        "event_labels": labels,
        "complement_labels": labels,
        "video_ids": id_bytes(["video0"]),
    }
    without, with_bank = seconds_of(plain, batch), seconds_of(model, batch)
    print(f"{num_frames} frames, {rows:,} sentences")
    for name, seconds in without.items():
        print(f"{name}: {with_bank[name] / seconds:.2f} x without ({1000 * seconds / VIDEOS:.0f} ms a video without)")
    context = model.model.context
    bank = sum(buffer.numel() * buffer.element_size() for buffer in (context.features, context.videos))
    layers = sum(parameter.numel() for parameter in context.parameters())
    print(f"bank: {bank / 2**20:.1f} MiB of features and ids; fusion: {layers:,} parameters")


if __name__ == "__main__":
    main()
