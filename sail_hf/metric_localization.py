"""Localization scores of dense video captioning, and controls: what the same measures give without the video."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# Predictions that see no video: title, whose number N of events (or N itself), width as a multiple of 1/N.
CONTROLS = {
    "whole_video": ("whole video, one span", 1, 1),
    "three_spans": ("the same three spans, width 1.5/3", 3, 1.5),
    "equal_spans": ("equal spans 1/N, own counts", "own", 1),
    "equal_spans_1.25": ("equal spans 1.25/N, own counts", "own", 1.25),
    "equal_spans_1.5": ("equal spans 1.5/N, own counts", "own", 1.5),
    "equal_spans_reference_counts": ("equal spans 1/N, reference counts", "reference", 1),
    "equal_spans_1.25_reference_counts": ("equal spans 1.25/N, reference counts", "reference", 1.25),
    "equal_spans_1.5_reference_counts": ("equal spans 1.5/N, reference counts", "reference", 1.5),
}


@dataclass
class Events:
    """The events of all videos from one source, video by video, those of a video sorted by start.

    spans: (E, 2) start and end in seconds; counts: (V,) events of each video; sentences: E strings.
    """

    spans: np.ndarray
    counts: np.ndarray
    sentences: list[str]

    @classmethod
    def from_videos(cls, videos: Sequence[Iterable[tuple[Sequence[float], str]]]) -> "Events":
        """videos: per video its (time stamp, sentence) pairs."""
        by_start = [sorted(events, key=lambda event: event[0][0]) for events in videos]
        spans = np.array([span for events in by_start for span, _ in events], dtype=float).reshape(-1, 2)
        sentences = [sentence for events in by_start for _, sentence in events]
        return cls(spans, np.array([len(events) for events in by_start]), sentences)


def position_in_video(counts: np.ndarray) -> np.ndarray:
    """0 .. N-1 for each video, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def interval_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of intervals (..., 2) as the official programs define it; 0 for an interval that ends before it starts."""
    intersection = np.maximum(np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]), 0)
    hull = np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0])
    lengths = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0])
    return intersection / (np.minimum(hull, lengths) + 1e-8)


def pair_up(left_counts: np.ndarray, right_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices (left, right) of all pairs within each video; a video's pairs lie together, row by row."""
    sizes = left_counts * right_counts
    row, column = np.divmod(position_in_video(sizes), np.repeat(right_counts, sizes))
    left, right = (np.repeat(np.cumsum(counts) - counts, sizes) for counts in (left_counts, right_counts))
    return left + row, right + column


def hit_share(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Share of the events of each video whose flat index is among `hits`; 0 for a video without events."""
    is_hit = np.zeros(counts.sum())
    is_hit[hits] = 1
    video = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(video, is_hit, len(counts)) / np.maximum(counts, 1)


def precision_recall(
    spans: np.ndarray, counts: np.ndarray, references: Sequence[Events], tious: Sequence[float]
) -> np.ndarray:
    """Precision and recall (2, files, videos, tIoUs) of predicted spans (sum of counts, 2) against each file alone.

    Many-to-many: precision is the share of predictions with IoU > t to any reference event, recall the reverse.
    """
    result = np.zeros((2, len(references), len(counts), len(tious)))
    for file, reference in enumerate(references):
        left, right = pair_up(counts, reference.counts)
        iou = interval_iou(spans[left], reference.spans[right])
        for column, tiou in enumerate(tious):
            result[0, file, :, column] = hit_share(left[iou > tiou], counts)
            result[1, file, :, column] = hit_share(right[iou > tiou], reference.counts)
    return result


def harmonic_mean(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def average(values: np.ndarray, videos: np.ndarray) -> tuple[float, float, float]:
    """(precision, recall, F1) from `precision_recall`: best over files, each for itself, then means over `videos`."""
    precision, recall = values.max(axis=1)[:, videos].mean(axis=(1, 2)).tolist()
    return precision, recall, harmonic_mean(precision, recall)


def localization_scores(
    predictions: Events, references: Sequence[Events], videos: np.ndarray, tious: Sequence[float]
) -> dict[str, float]:
    """Averages over the chosen videos (bool mask)."""
    values = precision_recall(predictions.spans, predictions.counts, references, tious)
    scores = {}
    for column, tiou in enumerate(tious):
        names = (f"precision@{tiou:g}", f"recall@{tiou:g}", f"f1@{tiou:g}")
        scores.update(zip(names, average(values[..., [column]], videos), strict=True))
    mean_f1 = sum(scores[f"f1@{tiou:g}"] for tiou in tious) / len(tious)
    scores["precision"], scores["recall"], scores["f1"] = average(values, videos)
    return scores | {"f1_mean_over_tious": mean_f1}


def equal_spans(counts: np.ndarray, scale: float) -> np.ndarray:
    """N spans per video of width scale/N around centers (i + 0.5)/N, clipped to [0, 1]: (sum of counts, 2)."""
    number = np.repeat(counts, counts)
    centers = (position_in_video(counts) + 0.5) / number
    return np.clip(np.stack([centers - scale / 2 / number, centers + scale / 2 / number], axis=1), 0, 1)


def control_scores(
    predictions: Events,
    references: Sequence[Events],
    durations: np.ndarray,
    videos: np.ndarray,
    tious: Sequence[float],
    seed: int,
) -> dict[str, float | int | None]:
    """Scores of CONTROLS, lift and correlations; durations (V,) in seconds."""
    first = np.zeros_like(predictions.counts)
    for reference in references:
        first = np.where(first > 0, first, reference.counts)
    counts_of = {"own": predictions.counts, "reference": first}
    scores: dict[str, float | int | None] = {}
    for name, (_, number, scale) in CONTROLS.items():
        counts = counts_of[number] if number in counts_of else np.full_like(first, number)
        spans = equal_spans(counts, scale) * np.repeat(durations, counts)[:, None]
        values = average(precision_recall(spans, counts, references, tious), videos)
        scores.update(zip((f"precision_{name}", f"recall_{name}", f"f1_{name}"), values, strict=True))
    scores.update(lift_scores(predictions, references, durations, tious, np.random.default_rng(seed)))
    return scores | order_correlations(predictions, references, durations)


def exchange_spans(spans: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every video gets the spans of another one with equally many, by a random cycle; one alone keeps its own."""
    result = spans.copy()
    starts = np.cumsum(counts) - counts
    for count in np.unique(counts[counts > 0]):
        rows = rng.permutation(starts[counts == count])[:, None] + np.arange(count)
        result[rows] = spans[np.roll(rows, 1, axis=0)]
    return result


def lift_scores(
    predictions: Events,
    references: Sequence[Events],
    durations: np.ndarray,
    tious: Sequence[float],
    rng: np.random.Generator,
    num_exchanges: int = 10,
) -> dict[str, float | int | None]:
    """F1 minus the mean F1 of random exchanges, over the videos that have a partner with equally many predictions."""
    counts = predictions.counts
    partners = (counts > 0) & (np.bincount(counts)[counts] > 1)
    scale = np.repeat(durations, counts)[:, None]
    drawn = [exchange_spans(predictions.spans / scale, counts, rng) * scale for _ in range(num_exchanges)]
    own, *exchanged = (precision_recall(spans, counts, references, tious) for spans in (predictions.spans, *drawn))

    def lift(files: slice, videos: np.ndarray) -> float | None:
        if not videos.any():
            return None
        chance = [average(values[:, files], videos)[2] for values in exchanged]
        return average(own[:, files], videos)[2] - sum(chance) / num_exchanges

    return {
        "lift": lift(slice(None), partners),
        "lift_one_reference": lift(slice(1), partners & (references[0].counts > 0)),
        "num_lift_videos": int(partners.sum()),
    }


def order_correlations(
    predictions: Events, references: Sequence[Events], durations: np.ndarray
) -> dict[str, float | None]:
    """Correlation of i-th predicted and true center and width where both have N events, less the means for (i, N)."""

    def centers_and_widths(events: Events, videos: np.ndarray) -> np.ndarray:
        video = np.repeat(np.arange(len(videos)), events.counts)
        spans = events.spans / durations[video][:, None]
        order = np.lexsort((spans.mean(axis=1), video))
        spans = spans[order[videos[video]]]
        return np.stack([spans.mean(axis=1), spans[:, 1] - spans[:, 0]])

    same = [predictions.counts == reference.counts for reference in references]
    counts = np.concatenate([predictions.counts[videos] for videos in same])
    keys = np.stack([np.repeat(counts, counts), position_in_video(counts)], axis=1)
    group = np.unique(keys, axis=0, return_inverse=True)[1]
    predicted = np.concatenate([centers_and_widths(predictions, videos) for videos in same], axis=1)
    true = np.concatenate([centers_and_widths(*pair) for pair in zip(references, same, strict=True)], axis=1)

    def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
        x, y = (values - (np.bincount(group, values) / np.bincount(group))[group] for values in (x, y))
        norms = math.sqrt(x @ x), math.sqrt(y @ y)
        return float(x @ y) / math.prod(norms) if min(norms) > 1e-9 else None  # below is rounding

    return {
        "center_correlation": correlation(predicted[0], true[0]),
        "width_correlation": correlation(predicted[1], true[1]),
    }
