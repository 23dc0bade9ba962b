"""Many runs of the pipeline with worker processes, each in a fork of a process that has read videos: none may hang.

    python tests/soak/soak_pipeline_workers.py [--runs 100] [--timeout 60]

Each run leaves decoders to the garbage collector, which works in the forked processes alone, and there all the time: what
is rare otherwise happens every time. A decoder's end waits for its threads, which a fork does not have.
"""

import argparse
import faulthandler
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from numbered_video import render  # noqa: E402
from tiny import make_clip, make_model, make_processor  # noqa: E402
from transformers import pipeline  # noqa: E402

CAPTIONS = ["A man lifts a bar.", "He puts it down."]


def collect_all_the_time() -> None:
    gc.enable()
    gc.set_threshold(10, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--timeout", type=float, default=60, help="seconds of one run after which it counts as hung")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder) / "clip")
        clip.vision_config.include_text_tower = True
        processor = make_processor()
        model = make_model(processor, vision_config=clip.vision_config)
        model.generation_config.update(num_beams=1, max_new_tokens=5, full_max_new_tokens=10)
        pipe = pipeline("dense-video-captioning", model=model, processor=processor)
        videos = [str(render(Path(folder) / f"{i}.mp4", num_frames=20 + i)) for i in range(3)]
        seconds = []
        gc.disable()
        os.register_at_fork(after_in_child=collect_all_the_time)
        for run in range(args.runs):
            # A hang ends the process with the stack of every thread.
            faulthandler.dump_traceback_later(args.timeout, exit=True)
            begun = time.monotonic()
            alone = pipe(videos)
            options = [{}, {"batch_size": 2}, {"captions": [CAPTIONS] * 3}, {"chunk_length_s": 0.5}][run % 4]
            found = pipe(videos, num_workers=2, **options)
            assert len(found) == len(alone) == 3 and (options or found == alone), (found, alone)
            gc.collect()
            seconds.append(time.monotonic() - begun)
            faulthandler.cancel_dump_traceback_later()
        print(
            f"{args.runs} runs, none hung; the slowest took {max(seconds):.1f} s, the mean {sum(seconds) / args.runs:.2f} s"
        )


if __name__ == "__main__":
    main()
