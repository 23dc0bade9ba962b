"""The table of a study (ablate.py): means and spreads over seeds, a paired test against the first row, and its pictures."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sail_hf.metric import TIOUS
from sail_hf.metric_localization import Events, precision_recall


class Column(NamedTuple):
    """A column: its title, what values are multiplied by, digits, and whether a study shows it that names no columns."""

    title: str
    scale: float = 100
    digits: int = 2
    always: bool = True


COLUMNS = {
    "soda_c": Column("SODA_c"),
    "meteor": Column("METEOR"),
    "cider": Column("CIDEr"),
    "rouge_l": Column("ROUGE-L", always=False),
    "bleu_4": Column("BLEU-4", always=False),
    "precision": Column("P", always=False),
    "recall": Column("R", always=False),
    "f1": Column("F1"),
    "f1_one_to_one": Column("F1 1:1"),
    "repeats": Column("repeats", digits=1),
    "lift": Column("lift"),
    "center_correlation": Column("centre r", 1),
    "width_correlation": Column("width r", 1),
    "event_count_accuracy": Column("right number", digits=1),
    "event_count_error": Column("error of number", 1),
    "width_sd_mean": Column("sd of widths, mean", 1, 4, False),
    "width_sd_min": Column("least", 1, 4, False),
    "width_sd_max": Column("largest", 1, 4, False),
    "updates": Column("steps", 1, 0, False),
    "train_minutes": Column("min training", 1, 1),
    "caption_minutes": Column("min captioning", 1, 1),
    "memory_gib": Column("GiB", 1, 1),
}
# What looks at no video, beside every F1, with the numbers of events of the first row or the true ones.
CONTROLS = {
    "equal_spans": "*equal spans, numbers of the first row*",
    "three_spans": "*the same three spans for every video*",
    "equal_spans_reference_counts": "*equal spans, true numbers*",
}
NUM_EXCHANGES = 4999

Rows = dict[str, dict[int, dict[str, Any]]]
References = dict[int, dict[str, list[dict[str, Any]]]]


def table(
    title: str,
    columns: list[str],
    rows: Rows,
    published: dict[str, dict[str, float]],
    references: References,
    note: str = "",
) -> tuple[str, dict[str, Any]]:
    """Markdown, and what it is made of.

    Args:
        rows: of each row of the table and each finished seed its scores (fractions), and its `events` in the submission form.
        published: figures to print below a row, by column, as they are published.
        references: of each seed, the reference sets of its videos.
    """
    if not rows:
        return f"# {title}\n\nNothing is finished.\n", {"rows": {}}
    seeds = sorted({seed for of_row in rows.values() for seed in of_row})
    shown = [
        name
        for name in columns
        if any(one.get(name) is not None for of_row in rows.values() for one in of_row.values())
    ]
    first = next(iter(rows))
    chances = {row: paired_test(rows[first], of_row, references) for row, of_row in rows.items() if row != first}
    lines = ["| | " + " | ".join([*(COLUMNS[name].title for name in shown), "p"]) + " |"]
    lines.append("|---|" + "---:|" * (len(shown) + 1))
    content: dict[str, Any] = {}
    for row, of_row in rows.items():
        values = {name: [one[name] for one in of_row.values() if one.get(name) is not None] for name in shown}
        seeds_of_row = "" if len(of_row) == len(seeds) else f" (seeds {', '.join(map(str, sorted(of_row)))})"
        chance = "" if chances.get(row) is None else f"{chances[row]:.4f}"
        cells = [cell(values[name], COLUMNS[name]) for name in shown]
        lines.append(f"| {row}{seeds_of_row} | " + " | ".join([*cells, chance]) + " |")
        content[row] = {
            "seeds": {
                seed: {k: v for k, v in one.items() if k not in ("events", "how")} for seed, one in of_row.items()
            },
            "p": chances.get(row),
            "published": published.get(row) or {},
        }
        if of_publication := published.get(row):
            cells = [f"*{of_publication[name]}*" if name in of_publication else "" for name in shown]
            lines.append("| *published* | " + " | ".join([*cells, ""]) + " |")
    for control, name_of_row in CONTROLS.items():
        if "f1" in shown and f"f1_{control}" in next(iter(rows[first].values())):
            cells = [
                cell([one[f"{name}_{control}"] for one in rows[first].values()], COLUMNS[name])
                if name in ("f1", "f1_one_to_one", "precision", "recall") and f"{name}_{control}" in _any(rows[first])
                else ""
                for name in shown
            ]
            lines.append(f"| {name_of_row} | " + " | ".join([*cells, ""]) + " |")
    left_out = [COLUMNS[name].title for name in columns if name not in shown]
    videos = sorted({len(of_seed) for of_seed in references.values()})
    text = [
        f"# {title}",
        "",
        f"Means ± standard deviations over the seeds {', '.join(map(str, seeds))}, of {' or '.join(map(str, videos))} videos each; "
        "scores in percent, correlations and numbers as they are. p: of F1 as far from the first row's, where the two rows' "
        "predictions are exchanged video by video at random, over all seeds; it says nothing of other seeds.",
        *([f"Not measured: {', '.join(left_out)}."] if left_out else []),
        *([note.strip()] if note else []),
        "",
        *lines,
    ]
    return "\n".join(text) + "\n", {"title": title, "first": first, "rows": content}


def _any(of_row: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return next(iter(of_row.values()))


def cell(values: list[float], column: Column) -> str:
    """Mean ± standard deviation (of a sample) of a row's seeds; empty where there is no value."""
    if not values:
        return ""
    values = [column.scale * value for value in values]
    deviation = f" ± {np.std(values, ddof=1):.{column.digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{column.digits}f}{deviation}"


def paired_test(
    first: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]], references: References
) -> float | None:
    """How probable an F1 as far apart is where each video's two predictions may have come from either row.

    Approximate randomization over the videos of all seeds that both rows have, F1 averaged over the seeds; `None` if there are
    none. Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989.
    """
    rng = np.random.default_rng(0)
    observed, exchanged = 0.0, np.zeros(NUM_EXCHANGES)
    seeds = [seed for seed in first if seed in other]
    for seed in seeds:
        a, b = (per_video(rows[seed]["events"], references[seed]) for rows in (first, other))
        # Sums over videos, of which each exchanged one moves its difference from one row to the other.
        moved = rng.integers(0, 2, (NUM_EXCHANGES, len(a))) @ (b - a)
        observed += _f1(b.sum(0), len(b)) - _f1(a.sum(0), len(a))
        exchanged += _f1(b.sum(0) - moved, len(b)) - _f1(a.sum(0) + moved, len(a))
    if not seeds:
        return None
    return float((1 + (np.abs(exchanged) >= abs(observed) - 1e-12).sum()) / (1 + NUM_EXCHANGES))


def _f1(sums: np.ndarray, num_videos: int) -> np.ndarray:
    precision, recall = np.moveaxis(sums / num_videos, -1, 0)
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def per_video(events: dict[str, list[dict]], references: dict[str, list[dict]]) -> np.ndarray:
    """Precision and recall of each video `(V, 2)`: the best of the reference files, mean over tIoU."""
    predicted = Events.from_videos(
        [[(event["timestamp"], event["sentence"]) for event in events.get(video, [])] for video in references]
    )
    files = [
        Events.from_videos([list(zip(one["timestamps"], one["sentences"], strict=True)) for one in of_file])
        for of_file in zip(*references.values(), strict=True)
    ]
    return precision_recall(predicted.spans, predicted.counts, files, TIOUS).max(1).mean(-1).T


def coverage_table(references: dict[str, list[dict]]) -> str:
    """Share of the videos by their number of events and by how much of the video these cover together (Figure 2c)."""
    covered, counts = [], []
    for first in (sets[0] for sets in references.values() if sets[0]["timestamps"] and sets[0]["duration"]):
        spans = np.clip(np.sort(np.array(first["timestamps"]) / first["duration"], axis=0), 0, 1)
        # Sorted apart, starts and ends cover what the spans cover.
        overlap = np.maximum(spans[:-1, 1] - spans[1:, 0], 0)
        covered.append((spans[:, 1] - spans[:, 0]).sum() - overlap.sum())
        counts.append(len(spans))
    groups = {"1-2 events": (1, 2), "3-4": (3, 4), "5-6": (5, 6), "7 or more": (7, np.inf)}
    rows = np.clip((np.array(covered) * 4).astype(int), 0, 3)
    lines = ["| events cover | " + " | ".join(groups) + " |", "|---|" + "---:|" * len(groups)]
    for quarter in range(4):
        inside = [(rows == quarter) & (a <= np.array(counts)) & (np.array(counts) <= b) for a, b in groups.values()]
        cells = [f"{100 * of_group.mean():.1f}" for of_group in inside]
        lines.append(f"| {25 * quarter} to {25 * quarter + 25} % of the video | " + " | ".join(cells) + " |")
    lines = ["", f"Percent of {len(counts)} videos of the scored split, first reference:", "", *lines]
    return "\n".join(lines) + "\n"


# --- Pictures -----------------------------------------------------------------------------------------------------


def draw_looks(looks: dict[str, dict[int, list[dict[str, Any]]]], folder: Path) -> str:
    """`curves.png` and `masks.png` of the looks of each variant and seed; a sentence that says so, or why not.

    The curves are F1 and lift of the masks, given the true numbers of events; the masks are those of the first video that is
    shown, in the first seed: a line an event, from its start to its end.
    """
    several = {name: of_seed for name, of_seed in looks.items() if any(len(one) > 1 for one in of_seed.values())}
    if not several:
        return ""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return '\nNot drawn: the looks at the masks (pip install ".[visualization]").\n'
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2), (("f1", "F1"), ("lift", "lift")), strict=True):
        for number, (name, of_seed) in enumerate(several.items()):
            curves = [[(look["step"], look[key]) for look in one if look[key] is not None] for one in of_seed.values()]
            shared = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
            values = 100 * np.array([[dict(curve)[step] for step in shared] for curve in curves])
            style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
            axes.plot(shared, values.mean(0), label=name, **style)
            axes.fill_between(shared, values.min(0), values.max(0), alpha=0.12, color=style["color"], linewidth=0)
        axes.set(xlabel="steps", title=f"{title} of the masks, percent")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(folder / "curves.png", dpi=80)

    figure = Figure(figsize=(11, 1.6 * len(several)), layout="constrained")
    for axes, (name, of_seed) in zip(figure.subplots(len(several), squeeze=False)[:, 0], several.items(), strict=True):
        of_first = of_seed[min(of_seed)]
        steps = np.array([look["step"] for look in of_first])
        centers, widths = np.moveaxis(np.array([next(iter(look["shown"].values())) for look in of_first]), 1, 0)
        for event in range(centers.shape[1]):
            low, high = (np.clip(centers[:, event] + side * widths[:, event] / 2, 0, 1) for side in (-1, 1))
            axes.fill_between(steps, low, high, alpha=0.3, color=f"C{event}")
            axes.plot(steps, centers[:, event], color=f"C{event}", linewidth=1)
        axes.set(title=f"{name}: {next(iter(of_first[0]['shown']))}", ylim=(0, 1), ylabel="time")
    axes.set(xlabel="steps")
    figure.savefig(folder / "masks.png", dpi=80)
    return f"\nDrawn: {folder / 'curves.png'}, {folder / 'masks.png'} (the masks of one video as training went on).\n"
