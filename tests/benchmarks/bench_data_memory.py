"""Memory of a large data set: writing the Parquet file from finished videos, and an epoch of it through the collator.

    python tests/benchmarks/bench_data_memory.py [--videos 1000 10009]

Features are made up (T = 32, D = 768, 4 captions a video, as ActivityNet's). Each step runs in a process of its own. Printed
are the highest resident size, which counts pages of mapped files that the system can drop at any time, the highest size
without these, seconds (imports included, so p is below 1), and how they grow with the number of videos n, as n^p: an epoch
should take n^1 seconds, in memory that does not depend on n (n^0).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

from results import Table, growth

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "training"), str(ROOT / "tests")]
FRAMES, SIZE, CAPTIONS = 32, 768, 4


def annotations(count: int) -> list[dict]:
    return [
        {
            "video_id": f"v_{i:011d}",
            "duration": 100.0,
            "captions": [f"Caption {i} {j} of a video." for j in range(CAPTIONS)],
            "timestamps": [[25.0 * j, 25.0 * j + 20] for j in range(CAPTIONS)],
            "transitions": ["A transition."] * (CAPTIONS - 1),
        }
        for i in range(count)
    ]


def make(folder: Path, count: int) -> None:
    """The finished videos of an extraction."""
    import safetensors.torch
    import torch
    from work_folder import WorkFolder

    work = WorkFolder(folder / "data")
    for row in annotations(count):
        shapes = {"video_features": FRAMES, "caption_features": CAPTIONS, "transition_features": CAPTIONS - 1}
        tensors = {name: torch.randn(rows, SIZE).half() for name, rows in shapes.items()}
        work.write(row["video_id"], safetensors.torch.save(tensors))


def write(folder: Path, count: int) -> None:
    from extract_features import write_split
    from work_folder import WorkFolder

    done = [(row, row["video_id"]) for row in annotations(count)]
    write_split(done, WorkFolder(folder / "data"), folder / "data" / "train-00000-of-00001.parquet")


def load(folder: Path, count: int) -> None:
    """The Parquet file into the cache of `datasets`, as its first `load_dataset` does."""
    from datasets import load_dataset

    assert len(load_dataset(str(folder / "data"), split="train", cache_dir=str(folder / "cache"))) == count


def epoch(folder: Path, count: int) -> None:
    from datasets import load_dataset
    from tiny import make_processor
    from torch.utils.data import DataLoader

    from sail_hf import SailDataCollator

    data = load_dataset(str(folder / "data"), split="train", cache_dir=str(folder / "cache"))
    columns = ["captions", "video_features", "caption_features", "transition_features"]
    loader = DataLoader(
        data.select_columns(columns).with_format("numpy"),
        batch_size=8,
        shuffle=True,
        collate_fn=SailDataCollator(make_processor(FRAMES)),
    )
    assert sum(len(batch["num_events"]) for batch in loader) == count


STEPS = {step.__name__: step for step in (make, write, load, epoch)}


def status(name: str) -> int:
    """A size of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) // 1024


def measured(step: str, folder: Path, count: int) -> None:
    highest = [0]

    def watch():
        while True:
            highest[0] = max(highest[0], status("RssAnon"))
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    start = time.monotonic()
    STEPS[step](folder, count)
    seconds = time.monotonic() - start
    print(json.dumps([status("VmHWM"), highest[0], seconds]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 10009])
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        return measured(args.step, args.folder, args.videos[0])
    table = Table("videos", "step", "peak MB", "of its own, MB", "s", "ms a video")
    found: dict[str, list[list[float]]] = {step: [] for step in STEPS}
    for count in args.videos:
        with tempfile.TemporaryDirectory() as folder:
            for step in STEPS:
                command = [sys.executable, __file__, "--videos", str(count), "--step", step, "--folder", folder]
                run = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                peak, own, seconds = json.loads(run.stdout.splitlines()[-1])
                found[step].append([peak, own, seconds])
                table.row(f"{count:,}", step, peak, own, f"{seconds:.1f}", f"{1000 * seconds / count:.2f}")
    if len(args.videos) > 1:
        print()
        table = Table("step", "videos", "p of the seconds", "p of its own memory")
        for step, values in found.items():
            for (small, one), (large, other) in pairwise(zip(args.videos, values, strict=True)):
                own, seconds = (growth(one[column], other[column], large / small) for column in (1, 2))
                table.row(step, f"{small:,} to {large:,}", f"{seconds:.2f}", f"{own:.2f}")


if __name__ == "__main__":
    main()
