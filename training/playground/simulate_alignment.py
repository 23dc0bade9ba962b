"""What aligning captions to frames could do on real captions and times, with a SIMULATED CLIP space.

    python training/playground/simulate_alignment.py --train train.json --annotations val_1.json val_2.json --output result.json

Captions, times and counts are those of the annotation files; the features are not: no video and no CLIP is involved.
A word is a random vector, a caption the sum of its words weighted by rarity, and a frame shows the mean of the events
that take place at that moment and what the video's captions have in common (its scene), under noise that lasts for
seconds as a camera shot does. Captions carry noise too, so that some are closer to all frames than others. The figures
say how localization depends on noise and on wrong captions; they are no results on videos.

`gap_level` and `tolerance` are chosen on simulated training videos, by F1 averaged over the noise
levels, with all events captioned and with `--uncaptioned` of them left out. The table is for `--annotations`; it knows
the true number of captions.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from sail_hf.alignment_sail import Alignment, align_ordered, align_overlapping, align_unordered
from sail_hf.data import read_annotation_file, write_json
from sail_hf.metric import TIOUS
from sail_hf.metric_localization import Events, average, equal_spans, lift_scores, precision_recall

GRID = {
    "gap_level": [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5],
    "tolerance": [0.0, 0.25, 0.5, 0.75, 1.0],
}
FEATURE_SIZE = 128
BATCH_SIZE = 256


@dataclass
class SimulationArguments:
    annotations: list[str] = field(
        metadata={"help": "Annotation files of the reported videos; captions and times are simulated from the first."}
    )
    train: str = field(metadata={"help": "Annotation file of the videos that parameters are chosen on."})
    output: str | None = field(default=None, metadata={"help": "JSON file for all figures."})
    noise: list[float] = field(
        default_factory=lambda: [0.1, 0.2, 0.3, 0.4],
        metadata={"help": "Noise levels: standard deviation of a frame's similarity, 1 = its own caption's signal."},
    )
    corrupted_noise: float = field(default=0.2, metadata={"help": "Noise level of the rows with corrupted captions."})
    noise_seconds: float = field(
        default=5.0, metadata={"help": "Time after which a frame's noise has decayed to 1/e."}
    )
    uncaptioned: float = field(
        default=0.4, metadata={"help": "Share of events without a caption, in rows that say so."}
    )
    num_frames: int = field(default=32, metadata={"help": "Frames of a video, evenly spread."})
    num_train_videos: int = field(default=1500, metadata={"help": "Training videos that parameters are chosen on."})
    num_videos: int | None = field(default=None, metadata={"help": "Reported videos. Default: all."})
    seed: int = field(default=0, metadata={"help": "Of everything random."})

    def __post_init__(self):
        if self.output and not Path(self.output).absolute().parent.is_dir():
            raise ValueError(f"there is no folder {Path(self.output).absolute().parent} for the output")
        if self.num_frames < 2:
            raise ValueError(f"num_frames must be at least 2, found {self.num_frames}")
        if self.noise_seconds <= 0:
            raise ValueError(f"noise_seconds must be positive, found {self.noise_seconds:g}")
        if not 0 <= self.uncaptioned < 1:
            raise ValueError(f"uncaptioned must be a share in [0, 1), found {self.uncaptioned:g}")


@dataclass(frozen=True)
class Condition:
    """How the similarities of a row of the table are simulated."""

    noise: float
    wrong_words: float = 0.0
    swapped: bool = False
    uncaptioned: float = 0.0
    frames_per_second: float | None = None

    def __str__(self) -> str:
        parts = [f"noise {self.noise:g}"]
        if self.wrong_words:
            parts.append(f"{self.wrong_words:.0%} of the words wrong")
        if self.swapped:
            parts.append("two neighbouring captions swapped in every video")
        if self.uncaptioned:
            parts.append(f"{self.uncaptioned:.0%} of the events without caption")
        if self.frames_per_second:
            parts.append(f"{self.frames_per_second:g} frames a second")
        return ", ".join(parts)


class SimulatedClip:
    """A random vector for each word, longer for rarer words; captions are unit sums of them."""

    def __init__(self, captions: list[str], rng: np.random.Generator):
        frequency = Counter(word for caption in captions for word in dict.fromkeys(words_of(caption)))
        self.index = {word: i for i, word in enumerate(frequency)}
        counts = np.array(list(frequency.values()))
        self.probabilities = counts / counts.sum()
        vectors = rng.standard_normal((len(counts), FEATURE_SIZE)) / np.sqrt(FEATURE_SIZE)
        self.vectors = vectors * np.log(len(captions) / counts)[:, None]

    def encode(self, captions: list[str], wrong_words: float, rng: np.random.Generator) -> np.ndarray:
        """`(N, FEATURE_SIZE)`; a share of the words is replaced by others, drawn by frequency. Unknown words say nothing."""
        features = np.zeros((len(captions), FEATURE_SIZE))
        for i, caption in enumerate(captions):
            words = np.array([self.index[word] for word in words_of(caption) if word in self.index], dtype=int)
            others = rng.choice(len(self.vectors), len(words), p=self.probabilities) if wrong_words else words
            features[i] = self.vectors[np.where(rng.random(len(words)) < wrong_words, others, words)].sum(0)
        return unit(features)


def words_of(caption: str) -> list[str]:
    return re.findall(r"[a-z']+", caption.lower())


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-9)


@dataclass
class SimulatedVideo:
    """`similarities` `(N, T)` of captions and frames; `spans` `(N, 2)`, true times of the captions in [0, 1]; `hits`
    `(frames with an event,)`: whether the most similar caption is that of an event which takes place there."""

    similarities: np.ndarray
    spans: np.ndarray
    hits: np.ndarray


def simulate(
    row: dict, condition: Condition, clip: SimulatedClip, arguments: SimulationArguments, rng: np.random.Generator
) -> SimulatedVideo:
    """Simulated similarities of one annotated video."""
    spans = np.clip(np.array(row["timestamps"]) / row["duration"], 0, 1)
    contents = clip.encode(row["captions"], 0.0, rng)
    num_frames = arguments.num_frames
    if condition.frames_per_second:
        num_frames = max(round(row["duration"] * condition.frames_per_second) + 1, 2)
    num_frames = max(num_frames, len(spans))
    frames, active = show_frames(contents, spans, num_frames)
    frames = frames + condition.noise * lasting_noise(num_frames, row["duration"] / arguments.noise_seconds, rng)

    captions = clip.encode(row["captions"], condition.wrong_words, rng) if condition.wrong_words else contents
    captions = captions + 0.5 * condition.noise * rng.standard_normal(captions.shape)
    order = np.arange(len(captions))
    if condition.swapped and len(order) > 1:
        i = rng.integers(len(order) - 1)
        order[[i, i + 1]] = order[[i + 1, i]]
    if condition.uncaptioned:
        captioned = rng.random(len(order)) >= condition.uncaptioned
        captioned[rng.integers(len(order))] = True
        order = order[captioned]
    similarities = unit(captions[order]) @ unit(frames).T
    visible = active[:, order]
    hits = visible[np.arange(num_frames), similarities.argmax(0)][visible.any(1)]
    return SimulatedVideo(similarities, spans[order], hits)


def show_frames(contents: np.ndarray, spans: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """What `(T, FEATURE_SIZE)` frames show before noise: the mean of the events that take place there, if any, and the
    video's scene; and which events take place, `(T, N)`. `contents`: `(N, FEATURE_SIZE)`; `spans`: `(N, 2)` in [0, 1]."""
    time = np.linspace(0, 1, num_frames)[:, None]
    active = (time >= spans[:, 0]) & (time <= spans[:, 1])
    return active @ contents / np.maximum(active.sum(1, keepdims=True), 1) + unit(contents.mean(0)), active


def lasting_noise(num_frames: int, length: float, rng: np.random.Generator) -> np.ndarray:
    """Unit-variance noise `(T, FEATURE_SIZE)` that decays to 1/e over 1 / `length` of the video."""
    noise = rng.standard_normal((num_frames, FEATURE_SIZE))
    keep = np.exp(-length / (num_frames - 1))
    for t in range(1, num_frames):
        noise[t] = keep * noise[t - 1] + np.sqrt(1 - keep**2) * noise[t]
    return noise


def align_videos(videos: list[SimulatedVideo], align: Callable[..., Alignment]) -> np.ndarray:
    """Spans `(sum N, 2)` in [0, 1] of all captions, video by video."""
    # Similar lengths share a batch, so that little of it is padding.
    order = sorted(range(len(videos)), key=lambda i: videos[i].similarities.shape[1])
    spans = [np.empty(0)] * len(videos)
    for first in range(0, len(order), BATCH_SIZE):
        batch = order[first : first + BATCH_SIZE]
        shapes = torch.tensor([videos[i].similarities.shape for i in batch])
        counts, lengths = shapes[:, :1], shapes[:, 1:]
        similarities = torch.zeros(len(batch), int(counts.max()), int(lengths.max()), dtype=torch.float64)
        for b, i in enumerate(batch):
            n, t = videos[i].similarities.shape
            similarities[b, :n, :t] = torch.from_numpy(videos[i].similarities)
        frame_mask = torch.arange(similarities.shape[2]) < lengths
        caption_mask = torch.arange(similarities.shape[1]) < counts
        aligned = align(similarities, frame_mask, caption_mask).spans.numpy()
        for b, i in enumerate(batch):
            spans[i] = aligned[b, : len(videos[i].spans)]
    return np.concatenate(spans)


def as_events(spans: np.ndarray, counts: np.ndarray) -> Events:
    return Events(spans, counts, [""] * len(spans))


def f1(spans: np.ndarray, counts: np.ndarray, references: list[Events]) -> float:
    """Harmonic F1 over all videos that the first reference file has, in percent."""
    return 100 * average(precision_recall(spans, counts, references, TIOUS), references[0].counts > 0)[2]


def captions_of(videos: list[SimulatedVideo]) -> Events:
    """The true events of the captions, in fractions of the duration."""
    return as_events(np.concatenate([video.spans for video in videos]), np.array([len(v.spans) for v in videos]))


def choose_parameters(training: list[list[SimulatedVideo]]) -> tuple[dict[str, dict[str, float]], list[dict]]:
    """For each method the values of GRID of best mean F1 over the training conditions; and all that was tried."""
    truths = [captions_of(videos) for videos in training]
    methods = {
        "ordered": (align_ordered, ["gap_level"]),
        "overlapping": (align_overlapping, ["gap_level", "tolerance"]),
        "unordered": (align_unordered, ["gap_level", "tolerance"]),
    }
    chosen, tried = {}, []
    for name, (align, grid) in methods.items():
        scores = []
        settings = [dict(zip(grid, values, strict=True)) for values in product(*(GRID[key] for key in grid))]
        for setting in tqdm(settings, desc=f"choosing {' and '.join(grid)}: {name}", unit="setting"):
            parts = [
                f1(align_videos(videos, partial(align, **setting)), truth.counts, [truth])
                for videos, truth in zip(training, truths, strict=True)
            ]
            scores.append(float(np.mean(parts)))
        chosen[name] = settings[int(np.argmax(scores))]
        tried += [{"method": name, **s, "train_f1": score} for s, score in zip(settings, scores, strict=True)]
    return chosen, tried


def report(
    condition: Condition,
    videos: list[SimulatedVideo],
    references: list[Events],
    parameters: dict[str, dict[str, float]],
    seed: int,
) -> dict:
    """One row of the table: F1 of the controls, F1 and lift of each method, in percent."""
    truth = captions_of(videos)
    if condition.uncaptioned:
        references = [truth]  # the other file's annotators captioned all events
    three = np.full_like(truth.counts, 3)
    row = {
        "condition": str(condition),
        **dataclasses.asdict(condition),
        "frame_accuracy": 100 * float(np.concatenate([video.hits for video in videos]).mean()),
        "equal_spans_f1": f1(equal_spans(truth.counts, 1), truth.counts, references),
        "equal_spans_1.25_f1": f1(equal_spans(truth.counts, 1.25), truth.counts, references),
        "three_spans_f1": f1(equal_spans(three, 1.5), three, references),
    }
    methods = {"ordered": align_ordered, "overlapping": align_overlapping, "unordered": align_unordered}
    for name, align in methods.items():
        spans = align_videos(videos, partial(align, **parameters[name]))
        predicted = as_events(spans, truth.counts)
        row[f"{name}_f1"] = f1(spans, truth.counts, references)
        row[f"{name}_f1_one_reference"] = f1(spans, truth.counts, [truth])
        lift = lift_scores(predicted, [truth], np.ones(len(videos)), TIOUS, np.random.default_rng(seed))["lift"]
        row[f"{name}_lift"] = None if lift is None else 100 * lift
    return row


COLUMNS = {
    "condition": "simulated condition",
    "frame_accuracy": "frames right",
    "equal_spans_f1": "equal 1/N",
    "equal_spans_1.25_f1": "equal 1.25/N",
    "three_spans_f1": "three spans",
    "ordered_f1": "ordered F1",
    "ordered_lift": "lift",
    "overlapping_f1": "overlapping F1",
    "overlapping_lift": "lift",
    "unordered_f1": "unordered F1",
    "unordered_lift": "lift",
}


def markdown_table(rows: list[dict]) -> str:
    def cell(value: str | float | None) -> str:
        return value if isinstance(value, str) else "n/a" if value is None else f"{value:.1f}"

    lines = [list(COLUMNS.values()), ["---", *["---:"] * (len(COLUMNS) - 1)]]
    lines += [[cell(row[column]) for column in COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_rows(path: str) -> list[dict]:
    rows = [row for row in read_annotation_file(path) if row["timestamps"] and row["duration"]]
    if not rows:
        raise ValueError(f"{path} has no video with duration and time stamps: the simulation needs both")
    return rows


def reference_events(rows: list[dict], files: list[str]) -> list[Events]:
    """True events, in fractions of the duration, of the rows' videos in each file; none where a file lacks a video."""
    references = []
    for path in files:
        found = {row["video_id"]: row for row in read_rows(path)}
        videos = [found.get(row["video_id"]) for row in rows]
        spans = [np.array(video["timestamps"]) / video["duration"] for video in videos if video]
        counts = np.array([len(video["timestamps"]) if video else 0 for video in videos])
        references.append(as_events(np.concatenate(spans) if spans else np.empty((0, 2)), counts))
    return references


def main(arguments: SimulationArguments) -> dict:
    rng = np.random.default_rng(arguments.seed)
    train, rows = read_rows(arguments.train), read_rows(arguments.annotations[0])
    clip = SimulatedClip([caption for row in train + rows for caption in row["captions"]], rng)
    train = [train[i] for i in rng.permutation(len(train))[: arguments.num_train_videos]]
    rows = [rows[i] for i in sorted(rng.permutation(len(rows))[: arguments.num_videos])]
    references = reference_events(rows, arguments.annotations)

    def simulate_all(rows: list[dict], condition: Condition) -> list[SimulatedVideo]:
        return [simulate(row, condition, clip, arguments, rng) for row in rows]

    training = [
        simulate_all(train, Condition(noise, uncaptioned=share))
        for noise in arguments.noise
        for share in (0.0, arguments.uncaptioned)
    ]
    parameters, tried = choose_parameters(training)
    noise = arguments.corrupted_noise
    conditions = [Condition(level) for level in arguments.noise]
    conditions += [Condition(noise, wrong_words=share) for share in (0.25, 0.5, 1.0)]
    conditions += [Condition(noise, swapped=True), Condition(noise, frames_per_second=2.0)]
    conditions += [Condition(level, uncaptioned=arguments.uncaptioned) for level in arguments.noise]
    progress = tqdm(conditions, desc="simulating", unit="condition")
    table = [report(c, simulate_all(rows, c), references, parameters, arguments.seed) for c in progress]
    return {
        "simulated": "features are simulated; captions, times and counts are those of the annotation files",
        "arguments": dataclasses.asdict(arguments),
        "num_train_videos": len(train),
        "num_videos": len(rows),
        "parameters": parameters,
        "tried": tried,
        "rows": table,
    }


if __name__ == "__main__":
    parser = HfArgumentParser(SimulationArguments, description=__doc__)
    try:
        (arguments,) = parser.parse_args_into_dataclasses()
        result = main(arguments)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"SIMULATED features, real captions and times of {result['num_videos']} videos; F1 and lift in percent.")
    print(f"Parameters, chosen on {result['num_train_videos']} training videos: {json.dumps(result['parameters'])}\n")
    print(markdown_table(result["rows"]))
    if arguments.output:
        write_json(arguments.output, result)
