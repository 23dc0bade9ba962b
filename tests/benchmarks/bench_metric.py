"""Speed of the scores on ActivityNet's val set against the procedure of the original programs, in one run.

    python tests/benchmarks/bench_metric.py [ANNOTATIONS_FOLDER]

The predictions are made up: val_1's own events, some left out, with jittered times and a fifth of their words dropped.
The original programs (densevid_eval, SODA) are not here. What they do at least (one scorer call per video and tIoU, METEOR
pair by pair through a pipe, then SODA over all pairs in a second program) runs here with pycocoevalcap's scorers on some
of the videos, scaled up to all; on two cores, the programs themselves were once timed at 144 + 131 = 275 s for data of
this size. CPU seconds are given because wall times mean little on a machine that does other work as well.
"""

import json
import os
import random
import resource
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from sail_hf import DenseVideoCaptioningMetric
from sail_hf.metric import METRICS, TIOUS, format_table
from sail_hf.metric_captions import UNMATCHED_REFERENCE, clean, find_java_tools, tokenize
from sail_hf.metric_localization import interval_iou

ANNOTATIONS = Path(__file__).parents[3] / "shared" / "annotations" / "activitynet"
RECORDED_SECONDS = 275
NUM_PREDICTIONS, NUM_SAMPLED = 16_816, 400  # the number that the originals were once timed on; videos of the procedure


def made_up_predictions(annotations: dict) -> dict[str, list[dict]]:
    rng = random.Random(0)
    events = [(video, i) for video, row in annotations.items() for i in range(len(row["sentences"]))]
    predictions = {video: [] for video in annotations}
    for video, i in sorted(rng.sample(events, NUM_PREDICTIONS)):
        row = annotations[video]
        moved = [time + rng.gauss(0, 0.08) * row["duration"] for time in row["timestamps"][i]]
        start, end = sorted(min(max(time, 0), row["duration"]) for time in moved)
        words = [word for word in row["sentences"][i].split() if rng.random() > 0.2]
        predictions[video].append({"timestamp": [start, end], "sentence": " ".join(words)})
    return predictions


def time_the_procedure(predictions: dict, files: list[dict], videos: list[str], scale: float) -> tuple[float, float]:
    """Seconds and CPU seconds: two starts of METEOR, and `scale` times the scoring of these videos."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    tools = find_java_tools()
    os.environ["PATH"] = f"{Path(tools.java).parent}{os.pathsep}{os.environ['PATH']}"  # pycocoevalcap calls `java`
    unmatched = UNMATCHED_REFERENCE["2021"]
    sentences = [event["sentence"] for video in videos for event in predictions[video]]
    sentences += [
        sentence for file in files for video in videos if video in file for sentence in file[video]["sentences"]
    ]
    distinct = list(dict.fromkeys(clean(sentence) for sentence in sentences))
    tokens = dict(zip(distinct, tokenize(distinct, tools, timeout=300), strict=True))
    meteor = Meteor()
    processes = [psutil.Process(), psutil.Process(meteor.meteor_p.pid)]

    def now() -> np.ndarray:
        return np.array([time.perf_counter(), sum(sum(process.cpu_times()[:2]) for process in processes)])

    begun = now()
    meteor.compute_score({0: ["a man"]}, {0: ["a man"]})  # loads its tables
    loaded = now()
    scorers = [meteor, Cider(), Rouge()]
    for video in videos:
        rows = [file[video] for file in files if video in file]
        guesses = [(event["timestamp"], tokens[clean(event["sentence"])]) for event in predictions[video]]
        truths = [
            [(span, tokens[clean(text)]) for span, text in zip(row["timestamps"], row["sentences"], strict=True)]
            for row in rows
        ]
        for tiou in TIOUS:
            pairs = []
            for span, guess in guesses:
                matched = [
                    (guess, text)
                    for truth in truths
                    for other, text in truth
                    if interval_iou(np.array(span), np.array(other)) >= tiou
                ]
                pairs += matched or [(guess, unmatched)]
            guessed = {i: [guess] for i, (guess, _) in enumerate(pairs)}
            true = {i: [text] for i, (_, text) in enumerate(pairs)}
            if pairs:
                for scorer in scorers:
                    scorer.compute_score(true, guessed)
                Bleu().compute_score(true, guessed, verbose=0)
        for truth in truths:  # SODA
            for _, guess in guesses:
                for _, text in truth:
                    meteor.compute_score({0: [guess]}, {0: [text]})
    return tuple(2 * (loaded - begun) + scale * (now() - loaded))


def cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ANNOTATIONS
    if not folder.is_dir():
        print(f"skipped: there is no folder {folder} with val_1.json and val_2.json")
        return
    files = [json.loads((folder / f"val_{k}.json").read_text()) for k in (1, 2)]
    predictions = made_up_predictions(files[0])
    none = {"timestamps": [], "sentences": []}
    inputs = {
        "predictions": list(predictions.values()),
        "references": [[file.get(video, none) for file in files] for video in predictions],
    }
    print(f"made-up predictions: {NUM_PREDICTIONS} for {len(predictions)} videos, two references")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before the start")

    for name, metrics in {
        "localization": ["localization"],
        "with controls": ["localization", "controls"],
        "everything": list(METRICS),
    }.items():
        start, cpu = time.perf_counter(), cpu_seconds()
        scores = DenseVideoCaptioningMetric().compute(**inputs, metrics=metrics)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        print(f"{name}: {seconds:.1f} s, {cpu:.1f} CPU s")
    sampled = random.Random(0).sample(list(files[1]), NUM_SAMPLED)
    least, least_cpu = time_the_procedure(predictions, files, sampled, len(predictions) / NUM_SAMPLED)
    print(f"the originals' work: at least {least:.0f} s, {least_cpu:.0f} CPU s, scaled from {NUM_SAMPLED} videos")
    print(f"times faster: at least {least / seconds:.1f} in wall time, {least_cpu / cpu:.1f} in CPU time;")
    print(f"              {RECORDED_SECONDS / seconds:.1f} than the recorded {RECORDED_SECONDS} s (aim: 5)\n")
    print(format_table(scores, "made up"))


if __name__ == "__main__":
    main()
