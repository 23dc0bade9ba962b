"""Which localisation looks at the video? Methods and mask generators side by side, on worlds that it renders.

    python training/playground/compare_methods.py --seeds 0 1 2 --output outputs/comparison

For every seed: a world as the demo makes it, one first stage (whole-video captions), and from there a second stage for
each of VARIANTS, all with one schedule. Each is scored by the masks of its mask generator on videos that no training
has seen; that of the paper's `sail` also by aligning its generated captions, and the true ones, with frames. The
controls that look at no video stand beside them. Rendered videos, so a comparison of methods, not a result on real ones.

Finished runs are kept in the output folder: the same command goes on where it was, and several can work on different
seeds. `table.md` holds what the seeds asked for have in common: means, and standard deviations over the seeds.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from demo import caption_test_videos, make_world, score, train_sail
from recipes import train
from transformers import HfArgumentParser, pipeline

from sail_hf.data import write_json

# What train.py changes for the second stage.
VARIANTS = {
    "ilcacm": {"method": "ilcacm"},
    "sail": {"method": "sail"},
    "sail, progress": {"method": "sail", "model_config": {"mask_generator": "progress"}},
    "sail-align": {"method": "sail-align"},
    "sail-align, event queries": {"method": "sail-align", "model_config": {"mask_generator": "queries"}},
}
# Rows that look at no video, with the counts of the model of the paper's method or the true ones.
CONTROLS = {
    "fixed masks: equal spans, its own counts": "equal_spans",
    "the same three spans for every video": "three_spans",
    "equal spans, true counts": "equal_spans_reference_counts",
}
COLUMNS = {"f1": "F1", "lift": "lift", "center_correlation": "centre r", "width_correlation": "width r"}


@dataclass
class CompareArguments:
    output: Path = field(default=Path("outputs/comparison"), metadata={"help": "Folder of everything that is made."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "A world and its models for each."})
    num_train: int = field(default=1000, metadata={"help": "Videos to learn from."})
    num_test: int = field(default=60, metadata={"help": "Videos to score on."})
    captioning_epochs: float = field(default=14, metadata={"help": "Of the first stage, which all share."})
    localization_epochs: float = field(default=1.5, metadata={"help": "Of each second stage."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Highest of the second stages."})


def folder_name(variant: str) -> str:
    return variant.replace(", ", "_").replace(" ", "_")


def score_seed(folder: Path, seed: int, args: CompareArguments) -> None:
    """Write scores.json of every variant, or of those that are missing."""
    start = folder / "first_stage"
    if not (folder / "decoder").exists():
        make_world(folder, args.num_train, args.num_test, seed, {})
    if not (start / "model.safetensors").exists():
        train_sail(folder, start, seed, captioning_epochs=args.captioning_epochs, localization_epochs=0)
    references = json.loads((folder / "playground" / "test.json").read_text())
    for variant in VARIANTS:
        name = folder_name(variant)
        if (folder / name / "scores.json").exists():
            continue
        print(f"\n== seed {seed}: {variant}", flush=True)
        train_sail(
            folder,
            folder / name,
            seed,
            **dict.fromkeys(train.BROUGHT),
            model_name_or_path=str(start),
            captioning_epochs=0,
            localization_epochs=args.localization_epochs,
            learning_rate=args.learning_rate,
            **VARIANTS[variant],
        )
        pipe = pipeline("dense-video-captioning", model=str(folder / name))
        if variant == "sail":
            results = caption_test_videos(pipe, folder)
        else:
            paths = [str(folder / "playground" / "videos" / f"{video}.mp4") for video in references]
            results = {"masks": dict(zip(references, pipe(paths, batch_size=8, localization="masks"), strict=True))}
        scores = {kind: score(events, references, ("localization", "controls")) for kind, events in results.items()}
        write_json(folder / name / "scores.json", scores)


def rows_of(folder: Path) -> dict[str, dict[str, float]]:
    """One seed's rows of the table."""
    by_variant = {
        variant: json.loads((folder / folder_name(variant) / "scores.json").read_text()) for variant in VARIANTS
    }
    sail = by_variant["sail"]
    rows = {title: {"f1": sail["masks"][f"f1_{control}"]} for title, control in CONTROLS.items()}
    rows |= {f"{variant}, masks": kinds["masks"] for variant, kinds in by_variant.items()}
    rows["sail, generated captions aligned"] = sail["alignment"]
    rows["true captions aligned"] = sail["true captions, aligned"]
    return rows


def format_comparison(seeds: list[dict[str, dict[str, float]]]) -> str:
    """A Markdown table of means and standard deviations over seeds; F1, lift and counts in percent."""

    def cell(values: list[float | None], scale: float, digits: int) -> str:
        if None in values:
            return ""
        deviation = f" ± {scale * np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{scale * np.mean(values):.{digits}f}{deviation}"

    lines = ["| | " + " | ".join([*COLUMNS.values(), "right number of events"]) + " |", "|---" + "|---:" * 5 + "|"]
    for title in seeds[0]:
        cells = [
            cell([rows[title].get(key) for rows in seeds], *((1, 2) if key.endswith("correlation") else (100, 1)))
            for key in [*COLUMNS, "event_count_accuracy"]
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def check_same_settings(args: CompareArguments) -> None:
    """Runs of other settings must not end up in one table."""
    settings = {name: value for name, value in asdict(args).items() if name not in ("output", "seeds")}
    path = args.output / "settings.json"
    if not path.exists():
        write_json(path, settings)
    elif (found := json.loads(path.read_text())) != settings:
        sys.exit(f"{args.output} holds runs with {found}, not with {settings}: choose another --output.")


def main() -> None:
    (args,) = HfArgumentParser(CompareArguments, description=__doc__).parse_args_into_dataclasses()
    check_same_settings(args)
    for seed in args.seeds:
        score_seed(args.output / f"seed_{seed}", seed, args)
    table = format_comparison([rows_of(args.output / f"seed_{seed}") for seed in args.seeds])
    (args.output / "table.md").write_text(f"{table}\n", encoding="utf-8")
    print(f"\nMean ± standard deviation over {len(args.seeds)} seeds:\n\n{table}\n\nWrote {args.output / 'table.md'}")


if __name__ == "__main__":
    main()
