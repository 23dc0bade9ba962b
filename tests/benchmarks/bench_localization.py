"""Time to caption a video by `localization="alignment"`, as a ratio to `"masks"`, both in one run.

    python tests/benchmarks/bench_localization.py [MODEL] [VIDEOS]

By default the model and the test videos that `make demo` leaves behind. CLIP features are computed before, for both the
same, so the ratios are of what differs: whole-video caption, localisation and event captions. CPU seconds, best of 3.
"""

import sys
import time
from pathlib import Path

import torch
from transformers import AutoProcessor

from sail_hf import SailForDenseVideoCaptioning

DEMO = Path(__file__).parents[2] / "outputs" / "demo"
NUM_VIDEOS = 16


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO / "checkpoint"
    videos = Path(sys.argv[2]) if len(sys.argv) > 2 else DEMO / "playground" / "videos"
    if not folder.is_dir() or not videos.is_dir():
        print(f"skipped: no {folder} or no {videos}; make them with `make demo`")
        return
    processor = AutoProcessor.from_pretrained(folder)
    model = SailForDenseVideoCaptioning.from_pretrained(folder).eval()
    paths = [str(path) for path in sorted(videos.glob("test_*.mp4"))[:NUM_VIDEOS]]
    features = model.model.get_video_features(processor(paths)["pixel_values_videos"])

    def seconds(**options) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            model.generate(video_features=features, tokenizer=processor.tokenizer, **options)
            times.append(time.process_time() - start)
        return min(times)

    torch.set_num_threads(1)
    masks = seconds(localization="masks")
    print(f"masks: {1000 * masks / len(paths):.0f} ms a video ({len(paths)} videos in a batch)")
    print(f"alignment: {seconds(localization='alignment') / masks:.2f} x masks")


if __name__ == "__main__":
    main()
