"""Long videos of a rendered world: captioned in chunks, at once, and as the short ones that they are made of.

    python training/playground/long_videos.py --demo outputs/demo --output outputs/long_videos

Test videos of the demo's world, of which training has seen none, are drawn one after the other into long ones, which so have a
change of scene every half a minute or so. The demo's model captions them, with each localisation,

    one by one    the short videos alone, their events moved to where the short ones begin: the model at what it has learned
    chunks        as it does unasked: chunks of `chunk_length_s` of its configuration, events across cuts joined
    at once       with `chunk_length_s=0`: as many frames and as many events, at most, as of a short video

Beside the metric's scores stands what becomes of true events that a cut between two chunks divides, and of the others.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from demo import score
from tqdm.auto import tqdm
from transformers import HfArgumentParser, pipeline
from transformers.utils import logging as transformers_logging
from world import frames_of, sample_script, write_video

from sail_hf.chunking import chunk_bounds
from sail_hf.data import write_json
from sail_hf.metric import METRICS
from sail_hf.metric_localization import interval_iou

# As the demo captions: sentences are aligned with finer frames than those they were written from.
LOCALIZATIONS = {"alignment": {"frames_per_second": 4}, "cohesion": {}, "masks": {}}
COLUMNS = {
    "F1": "f1",
    "equal spans": "f1_equal_spans",
    "lift": "lift",
    "F1 1:1": "f1_one_to_one",
    "METEOR": "meteor",
    "SODA_c": "soda_c",
    "actor": "actor_accuracy",
}


@dataclass
class LongVideosArguments:
    demo: Path = field(default=Path("outputs/demo"), metadata={"help": "Folder of demo.py, with its model."})
    output: Path = field(
        default=Path("outputs/long_videos"), metadata={"help": "Folder of the videos and of scores.json."}
    )
    num_videos: int = field(default=240, metadata={"help": "Short videos, the demo's test videos first."})
    sizes: list[int] = field(default_factory=lambda: [8, 24], metadata={"help": "Short videos in a long one."})
    batch_size: int = field(default=8, metadata={"help": "Chunks that are captioned together."})


def joined(references: list[dict[str, Any]]) -> dict[str, Any]:
    """The annotation of videos one after the other."""
    starts = np.cumsum([0, *(reference["duration"] for reference in references)]).tolist()
    parts = list(zip(starts, references, strict=False))
    return {
        "duration": starts[-1],
        "timestamps": [[start + a, start + b] for start, part in parts for a, b in part["timestamps"]],
        "sentences": [sentence for _, part in parts for sentence in part["sentences"]],
        "starts": starts[:-1],
    }


def moved(events: Iterable[list[dict]], starts: list[float]) -> list[dict]:
    """The events of short videos as those of the long one, in which they begin at `starts` seconds."""
    return [
        {**event, "start": start + event["start"], "end": start + event["end"]}
        for start, of_video in zip(starts, events, strict=True)
        for event in of_video
    ]


def at_cuts(results: dict[str, list[dict]], references: dict[str, dict], chunk_length: float) -> dict[str, dict]:
    """Of the true events that a cut divides, and of the others: `count`; the shares `found`, by a prediction of a tIoU above
    0.5, and `twice`, in which more than one prediction has its centre."""
    fates = {"divided": [], "whole": []}
    for video, reference in references.items():
        cuts = np.array([chunk.low for chunk in chunk_bounds(reference["duration"], chunk_length, None)])
        spans = np.array([[event["start"], event["end"]] for event in results[video]]).reshape(-1, 2)
        centers = spans.mean(1)
        for start, end in reference["timestamps"]:
            kind = "divided" if ((start < cuts) & (cuts < end)).any() else "whole"
            inside = (start <= centers) & (centers < end)
            fates[kind].append((interval_iou(spans, np.array([start, end])).max(initial=0) > 0.5, inside.sum() > 1))
    return {
        kind: {"count": len(of_kind), **dict(zip(("found", "twice"), np.mean(of_kind, 0).tolist(), strict=True))}
        for kind, of_kind in fates.items()
        if of_kind
    }


def in_table(name: str, row: dict[str, Any]) -> str:
    """A row of the printed table."""
    values = [f"{100 * row[key]:.1f}" if row.get(key) is not None else "" for key in COLUMNS.values()]
    fates = [row["at_cuts"].get(kind, {}) for kind in ("divided", "whole")]
    values += [f"{row['num_predictions']} of {row['num_events']}"]
    values += [" / ".join(f"{100 * fate[key]:.1f}" for fate in fates if fate) for key in ("found", "twice")]
    return f"| {name} | " + " | ".join(values) + " |"


def ways(
    pipe: Callable, paths: list[Path], short: list[list[dict]], references: dict[str, dict], options: dict
) -> dict:
    """Ways to caption the long videos at `paths`; each is a function of nothing, which gives the events by video."""
    files = [str(path) for path in paths]
    starts = np.cumsum([0, *(len(reference["starts"]) for reference in references.values())]).tolist()
    parts = [short[a:b] for a, b in pairwise(starts)]

    def one_by_one() -> Iterator[list[dict]]:
        return map(moved, parts, (reference["starts"] for reference in references.values()))

    return {
        "one by one": one_by_one,
        "chunks": partial(pipe, files, **options),
        "at once": partial(pipe, files, chunk_length_s=0, **options),
    }


def render(path: Path, seed: int, indices: Iterable[int]) -> Path:
    """The test videos `indices` of a world, one after the other in one file."""
    if not path.exists():
        write_video(path, chain.from_iterable(frames_of(seed, "test", index) for index in indices))
    return path


def main() -> None:
    (args,) = HfArgumentParser(LongVideosArguments, description=__doc__).parse_args_into_dataclasses()
    transformers_logging.disable_progress_bar()
    seed = json.loads((args.demo / "playground" / "playground.json").read_text())["seed"]
    pipe = pipeline("dense-video-captioning", model=str(args.demo / "checkpoint"))
    args.output.mkdir(parents=True, exist_ok=True)
    annotations = [sample_script(seed, "test", index).annotation() for index in range(args.num_videos)]
    short = {
        size: [
            render(args.output / f"{size}_{first:04}.mp4", seed, range(first, first + size))
            for first in tqdm(
                range(0, args.num_videos - size + 1, size), desc=f"Rendering {size} in one", unit="video"
            )
        ]
        for size in (1, *args.sizes)
    }
    scores: dict[str, dict] = {}
    print("| | " + " | ".join(COLUMNS) + " | events | found: at a cut / else | twice: at a cut / else |", flush=True)
    print("|---|" + "---:|" * (len(COLUMNS) + 3), flush=True)
    for localization, finer in LOCALIZATIONS.items():
        options = {"localization": localization, "batch_size": args.batch_size, **finer}
        alone = pipe([str(path) for path in short[1]], **options)
        for size in args.sizes:
            parts = [annotations[first : first + size] for first in range(0, args.num_videos - size + 1, size)]
            references = {path.stem: joined(part) for path, part in zip(short[size], parts, strict=True)}
            for way, caption in ways(pipe, short[size], alone, references, options).items():
                results = dict(zip(references, caption(), strict=True))
                row = score(results, references, METRICS if localization == "alignment" else METRICS[:2])
                row["num_events"] = sum(len(reference["sentences"]) for reference in references.values())
                row["at_cuts"] = at_cuts(results, references, pipe.model.config.chunk_length_s)
                name = f"{localization}, {size} in one, {way}"
                scores[name] = {**row, "events": results}
                print(in_table(name, row), flush=True)
                write_json(args.output / "scores.json", scores)


if __name__ == "__main__":
    main()
