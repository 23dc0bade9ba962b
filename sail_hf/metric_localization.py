"""Localization scores of dense video captioning, and controls: what the same measures give without the video."""

import math
from collections.abc import Callable, Iterable, Sequence
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
    return shares_of_hits(spans, counts, references, tious, lambda left, right: (left, right))


def one_to_one(
    spans: np.ndarray, counts: np.ndarray, references: Sequence[Events], tious: Sequence[float]
) -> np.ndarray:
    """As [`precision_recall`], but a prediction counts for one reference event and an event for one prediction.

    The pairs are the largest set of disjoint ones with IoU > t; precision and recall are its share of either side.
    """

    def matched(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = largest_matching(left, right)
        return left[pairs], right[pairs]

    return shares_of_hits(spans, counts, references, tious, matched)


def shares_of_hits(
    spans: np.ndarray,
    counts: np.ndarray,
    references: Sequence[Events],
    tious: Sequence[float],
    choose: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Shares (2, files, videos, tIoUs) of predictions and of events among those that `choose` takes of the flat indices
    of all (prediction, event) pairs with IoU > t."""
    result = np.zeros((2, len(references), len(counts), len(tious)))
    for file, reference in enumerate(references):
        left, right = pair_up(counts, reference.counts)
        iou = interval_iou(spans[left], reference.spans[right])
        for column, tiou in enumerate(tious):
            hits = choose(left[iou > tiou], right[iou > tiou])
            for side, of_side in enumerate((counts, reference.counts)):
                result[side, file, :, column] = hit_share(hits[side], of_side)
    return result


def largest_matching(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Indices of a largest set of edges (left[i], right[i]) of which no two share an end.

    An end with a single edge can always take it (Karp and Sipser): this settles most events of real videos, of all
    videos at once. What is left grows by augmenting paths.
    """
    chosen, edges, idle = [], np.arange(len(left)), 0
    own, other = left, right
    while len(edges) and idle < 2:
        leaves = edges[np.bincount(own[edges])[own[edges]] == 1]
        taken = leaves[np.unique(other[leaves], return_index=True)[1]]
        chosen.append(taken)
        settled = np.zeros(other[edges].max() + 1, dtype=bool)
        settled[other[taken]] = True
        edges = edges[~settled[other[edges]]]
        idle = 0 if len(taken) else idle + 1
        own, other = other, own
    return np.concatenate([*chosen, augmented_matching(left, right, edges)])


def augmented_matching(left: np.ndarray, right: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """A largest matching among these edges, by a search for an augmenting path (breadth first) from each right end."""
    ends = dict(zip(edges.tolist(), zip(left[edges].tolist(), right[edges].tolist(), strict=True), strict=True))
    edges_at: dict[int, list[int]] = {}
    for edge, (_, b) in ends.items():
        edges_at.setdefault(b, []).append(edge)
    edge_of: dict[int, int] = {}  # what is chosen so far, by its left and its right end
    left_of: dict[int, int] = {}
    for root in edges_at:
        reached_by: dict[int, int] = {}  # left end -> the edge that leads there
        free, queue = None, [root]
        for b in queue:  # grows while it is walked
            for edge in edges_at[b]:
                a = ends[edge][0]
                if a not in reached_by:
                    reached_by[a] = edge
                    if a in edge_of:
                        queue.append(ends[edge_of[a]][1])
                    else:
                        free = a
                        break
            if free is not None:
                break
        while free is not None:  # turn the path around, back to the root, which had no partner
            a, edge_of[free] = free, reached_by[free]
            b = ends[edge_of[a]][1]
            free = left_of.get(b)
            left_of[b] = a
    return np.array(list(edge_of.values()), dtype=int)


def repeats(events: Events, tiou: float = 0.95) -> float:
    """Share of events whose span is that of another event of the same video (IoU > `tiou`); 0 where there is none."""
    video = np.repeat(np.arange(len(events.counts)), events.counts)
    starts, lengths = events.spans[:, 0], events.spans[:, 1] - events.spans[:, 0]
    repeated = np.zeros(len(video), dtype=bool)
    left = np.arange(len(video))
    shift = 0
    while len(left):
        shift += 1
        left = left[left + shift < len(video)]
        # Events of a video stand by their starts; those further apart than this cannot overlap so much.
        gaps = starts[left + shift] - starts[left]
        left = left[(video[left + shift] == video[left]) & (gaps <= (1 / tiou - 1) * lengths[left] + 1e-9)]
        same = left[interval_iou(events.spans[left], events.spans[left + shift]) > tiou]
        repeated[same] = repeated[same + shift] = True
    return float(repeated.mean()) if len(repeated) else 0.0


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
    single = average(one_to_one(predictions.spans, predictions.counts, references, tious), videos)
    scores.update(zip(("precision_one_to_one", "recall_one_to_one", "f1_one_to_one"), single, strict=True))
    return scores | {"f1_mean_over_tious": mean_f1, "repeats": repeats(predictions)}


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
        scores[f"f1_one_to_one_{name}"] = average(one_to_one(spans, counts, references, tious), videos)[2]
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
