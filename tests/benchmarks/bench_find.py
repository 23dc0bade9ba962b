"""Speed of finding a sentence in 1,000 videos of stored features against one matrix product, in one run.

    python tests/benchmarks/bench_find.py [--videos 1000] [--frames 120] [--queries 1]

Features are made up, of ViT-L/14's size (768), a frame a second for two minutes. What is compared: the cosines of all frames
with the sentences, as one product of unit features; and the whole search from the same features in memory, to ranked stretches
in seconds. The sentences' features are made up as well, so no CLIP is needed. CPU seconds, the least of 5 turns.
"""

import argparse
import time

import torch
from torch.nn.functional import normalize

from sail_hf.clip_sail import SailClip

SIZE, TURNS = 768, 5


class MadeUpClip(SailClip):
    """A CLIP whose text tower is a table of random features."""

    def __init__(self, size: int):
        self.size = size

    def encode_texts(self, texts):
        return torch.randn(len(texts), self.size, generator=torch.Generator().manual_seed(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--queries", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator, clip = torch.Generator().manual_seed(0), MadeUpClip(SIZE)
    videos = [(torch.randn(args.frames, SIZE, generator=generator), float(args.frames)) for _ in range(args.videos)]
    queries = [f"sentence {number}" for number in range(args.queries)]
    texts = clip.encode_texts(queries)

    def product() -> None:
        frames = torch.cat([features for features, _ in videos])
        normalize(frames, dim=-1) @ normalize(texts, dim=-1).T

    def search() -> None:
        clip.find_in_features(videos, queries)

    times: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for name, run in (("one product", product), ("whole search", search)):
            start = time.process_time()
            run()
            times.setdefault(name, []).append(time.process_time() - start)
    least = {name: min(seconds) for name, seconds in times.items()}
    print(f"{args.videos} videos of {args.frames} frames, {args.queries} sentences\n")
    print("| what | CPU ms | ratio |\n|---|---:|---:|")
    for name, seconds in least.items():
        print(f"| {name} | {1000 * seconds:.0f} | {seconds / least['one product']:.2f} |")


if __name__ == "__main__":
    main()
