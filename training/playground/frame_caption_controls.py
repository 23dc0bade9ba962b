"""What captions of frames are worth to `sbs` on the playground: its gate beside controls, and the captions as text alone.

    python training/playground/frame_captions.py --playground W/playground --dataset W/dataset --clip W/clip
    python training/playground/frame_caption_controls.py --world W --evaluation W/evaluation --output outputs/controls

W is a world as the demo makes it, with a trained first stage in W/first_stage; `--evaluation` a data set of its test videos
with features. Every row of VARIANTS is a second stage from there, scored by the masks of its mask generator on unseen
videos, given the true number of events. Two further tables train nothing and are of the training videos: how often gates
open at the true centres, and the times of true captions aligned in order with frames' features, or with the captions of the
frames as text alone, which no pixel goes into. The captions of frames are an oracle's with stated errors, no model's.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from datasets import Dataset, load_dataset
from demo import score, train_sail
from recipes import train
from torch import Tensor
from transformers import HfArgumentParser

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.alignment_sail import align_ordered
from sail_hf.data import write_json
from sail_hf.loss_sail import LossInputs, change_gates, cosines, frame_changes

COLUMNS = ("f1", "lift", "center_correlation", "width_correlation")


def random_places(inputs: LossInputs) -> Tensor:
    """The changes between the captions of frames, in random order: gates open as often, and anywhere."""
    changes = frame_changes(inputs.frame_caption_features)
    return changes[:, torch.randperm(changes.shape[1])]


def changes_of_frames(inputs: LossInputs) -> Tensor:
    """Changes between the frames' own features."""
    return frame_changes(inputs.features)


# For each row: fields of train.py, and what stands for the changes between captions of frames.
VARIANTS = {
    "no attraction (`sail-sim`)": ({"method": "sail-sim"}, None),
    "`sbs`": ({"method": "sbs"}, None),
    "gate always open": ({"method": "sbs", "model_config": {"attraction_beta": -1e4}}, None),
    "random gate": ({"method": "sbs"}, random_places),
    "gate on raw CLIP frames": ({"method": "sbs"}, changes_of_frames),
}


@dataclass
class ControlArguments:
    world: Path = field(metadata={"help": "Folder of a world with a first stage."})
    evaluation: str = field(metadata={"help": "Data set of its unseen videos, with features."})
    output: Path = field(default=Path("outputs/controls"), metadata={"help": "Folder of everything that is made."})
    dataset: Path | None = field(default=None, metadata={"help": "Captioned frames. Default: WORLD/dataset."})
    split: str = field(default="test", metadata={"help": "Split of the unseen videos."})
    seed: int = field(default=0, metadata={"help": "Of every second stage."})
    localization_epochs: float = field(default=1.5, metadata={"help": "Of every second stage."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Highest."})


def run_variant(args: ControlArguments, folder: Path, fields: dict, changes) -> dict[str, float]:
    """Train a second stage and score its masks; what is there already stays."""
    if not (folder / "model.safetensors").exists():
        patch = mock.patch.object(LossInputs, "changes", property(changes)) if changes else nullcontext()
        with patch:
            train_sail(
                args.world,
                folder,
                args.seed,
                **dict.fromkeys(train.BROUGHT),
                dataset=str(args.dataset),
                model_name_or_path=str(args.world / "first_stage"),
                captioning_epochs=0,
                localization_epochs=args.localization_epochs,
                learning_rate=args.learning_rate,
                logging_steps=10,
                **fields,
            )
    rows = load_dataset(args.evaluation, split=args.split).with_format("numpy")
    model = SailForDenseVideoCaptioning.from_pretrained(folder).eval()
    found = scores_of(rows, [spans_of_masks(model, row) for row in rows])
    logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    for name in ("open_gates", "attracted_gaps"):
        values = [entry[name] for entry in logs if name in entry]
        found[name] = sum(values) / len(values) if values else None
    return found


@torch.no_grad()
def spans_of_masks(model: SailForDenseVideoCaptioning, row: dict) -> Tensor:
    """Spans `(N, 2)` in [0, 1] of the masks of a video, as many as it has captions."""
    features = torch.from_numpy(row["video_features"]).float()[None]
    output = model.model(features, num_events=torch.tensor([len(row["captions"])]))
    half = output.event_widths[0] / 2
    return torch.stack([output.event_centers[0] - half, output.event_centers[0] + half], -1).clamp(0, 1)


def spans_of_alignment(row: dict, column: str) -> Tensor:
    """Spans of a video's captions, in order, by their cosines with a column `(T, D)`."""
    captions, frames = (torch.from_numpy(row[name]).float()[None] for name in ("caption_features", column))
    return align_ordered(cosines(captions, frames), gap_level=0.75).spans[0]


def scores_of(rows: Dataset, spans: list[Tensor]) -> dict[str, float]:
    references, results = {}, {}
    for row, of_row in zip(rows, spans, strict=True):
        duration, captions = float(row["duration"]), [str(text) for text in row["captions"]]
        times = [list(map(float, span)) for span in row["timestamps"]]
        references[row["video_id"]] = {"timestamps": times, "sentences": captions, "duration": duration}
        results[row["video_id"]] = [
            {"start": start, "end": end, "text": text}
            for (start, end), text in zip((of_row * duration).tolist(), captions, strict=True)
        ]
    scores = score(results, references, ("localization", "controls"))
    return {name: scores[name] for name in (*COLUMNS, "f1_equal_spans")}


def gates_at_true_centres(rows: Dataset, column: str) -> dict[str, float]:
    """Shares of the gaps whose gate opens, and of those open whose change lies between the two events, give or take a frame."""
    gaps = opened = between = 0
    for row in rows:
        times = torch.tensor([list(map(float, span)) for span in row["timestamps"]]) / float(row["duration"])
        features = torch.from_numpy(row[column]).float()[None]
        mask, valid = torch.ones(1, features.shape[1], dtype=torch.long), torch.ones(1, len(times), dtype=torch.bool)
        gates, places = change_gates(frame_changes(features), times.mean(1)[None], valid, mask, 2.0)
        frame, is_open = 1 / (features.shape[1] - 1), gates[0] > 0
        inside = (places[0] >= times[:-1, 1] - frame) & (places[0] <= times[1:, 0] + frame)
        gaps, opened, between = (
            gaps + len(is_open),
            opened + is_open.sum().item(),
            between + (is_open & inside).sum().item(),
        )
    return {"open": opened / gaps, "between": between / max(opened, 1)}


def format_tables(results: dict[str, dict[str, dict[str, float | None]]]) -> str:
    """Markdown; shares, F1 and lift in percent."""
    lines = []
    for title, rows in results.items():
        names = list(next(iter(rows.values())))
        lines += [f"| {title} | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
        for row, values in rows.items():
            cells = [
                "" if value is None else f"{value:.2f}" if name.endswith("correlation") else f"{100 * value:.1f}"
                for name, value in values.items()
            ]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    (args,) = HfArgumentParser(ControlArguments, description=__doc__).parse_args_into_dataclasses()
    args.dataset = args.dataset or args.world / "dataset"
    rows = load_dataset(str(args.dataset), split="train").with_format("numpy")
    sources = {"captions of frames": "frame_caption_features", "frames' own features": "video_features"}
    results = {
        "true captions aligned with, training videos": {
            name: scores_of(rows, [spans_of_alignment(row, column) for row in rows])
            for name, column in sources.items()
        },
        "gate at true centres, by": {name: gates_at_true_centres(rows, column) for name, column in sources.items()},
        "masks, unseen videos, true counts": {},
    }
    print(format_tables(dict(list(results.items())[:2])), flush=True)
    for variant, (fields, changes) in VARIANTS.items():
        folder = args.output / "".join(c if c.isalnum() else "_" for c in variant)
        results["masks, unseen videos, true counts"][variant] = run_variant(args, folder, fields, changes)
        write_json(args.output / "controls.json", results)
    print(format_tables(results))


if __name__ == "__main__":
    main()
