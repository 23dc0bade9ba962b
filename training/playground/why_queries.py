"""Why event queries look at the video, or do not: what reaches centres and widths, and what they could learn from it.

    python training/playground/why_queries.py --start 'outputs/race/seed_{seed}/first_stage' --output outputs/why

An experiment on rendered worlds (worlds.py), whose true times it knows. Two tables:

* **Gradients.** Of each loss, over training videos, the size of its gradient in an event's centre and width (root mean square),
  and how well its opposite points from where the mask is to where the event is (correlation over events, less the means of
  the i-th of N events). At the start of the second stage, and at the end of runs such as the race's.
* **Teachers.** The mask generator alone, everything else frozen, taught by one thing for many updates: the true spans (an upper
  bound, no method), the spans of captions aligned with frames, or Eq. 2 and 3. F1, lift and correlations of the masks of
  videos that no training has seen, given the true numbers of events, after so many updates.

Finished worlds are kept in the output folder.
"""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from recipes import ablate, train
from tqdm.auto import tqdm
from transformers import HfArgumentParser, set_seed

from sail_hf import SailDataCollator, SailForDenseVideoCaptioning
from sail_hf.data import write_json
from sail_hf.loss_sail import LOSSES, LossInputs, sail_losses, segment_loss

TEACHERS = {
    "true spans": None,
    "aligned captions": {"alignment_loss_weight": 1.0},
    "Eq. 2 and 3": {"similarity_loss_weight": 1.0, "augmentation_loss_weight": 0.25},
}
# Each with a learning rate that it bears: at 1e-3 the frames' shares of the progress saturate.
GENERATORS = {
    "queries, positions 1": ({"mask_generator": "queries", "mask_position_initializer_range": 1.0}, 1e-3),
    "queries, positions 0.02": ({"mask_generator": "queries", "mask_position_initializer_range": 0.02}, 1e-3),
    "progress": ({"mask_generator": "progress"}, 3e-4),
}
NO_LOSS = {loss.weight: 0.0 for loss in LOSSES}
ALL_LOSSES = {loss.weight: 1.0 for loss in LOSSES}


@dataclass
class WhyArguments:
    start: str = field(metadata={"help": "Model after the first stage; {seed} stands for the world's."})
    output: Path = field(metadata={"help": "Folder of the tables."})
    worlds: Path = field(default=Path("outputs/worlds"), metadata={"help": "Folder of worlds.py."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Worlds."})
    trained: list[str] = field(
        default_factory=list, metadata={"help": "Models after the second stage, whose gradients are measured, too."}
    )
    looks: list[int] = field(
        default_factory=lambda: [100, 400, 1200], metadata={"help": "Updates at which masks are scored."}
    )
    batch_size: int = field(default=16, metadata={"help": "Videos an update."})
    num_gradient_videos: int = field(default=64, metadata={"help": "Training videos whose gradients are measured."})


def load_model(name: str, **fields) -> tuple[SailForDenseVideoCaptioning, Any]:
    """A model of a folder with other fields, its mask generator a new one where that is of another kind."""
    return train.build_model(train.ModelArguments(model_name_or_path=name, model_config=fields))


class Videos:
    """A world's training videos as tensors: `(V, T, D)` features, features of sentences, and true spans in [0, 1]."""

    def __init__(self, world: Path):
        self.rows = datasets.load_dataset(str(world / "dataset"), split="train").with_format("numpy")
        spans = [np.array([*map(np.array, row["timestamps"])]) / row["duration"] for row in self.rows]
        self.counts = torch.tensor([len(one) for one in spans])
        self.features = torch.from_numpy(np.stack([row["video_features"] for row in self.rows]).astype(np.float32))
        self.captions = self._padded([np.stack(row["caption_features"]) for row in self.rows])
        self.transitions = self._padded(
            [np.stack([*row["transition_features"], self.captions[0, 0].numpy() * 0]) for row in self.rows]
        )[:, :-1]
        self.centers, self.widths = self._padded(
            [np.stack([one.mean(1), one[:, 1] - one[:, 0]], 1) for one in spans]
        ).unbind(-1)

    def _padded(self, values: list[np.ndarray]) -> torch.Tensor:
        tensors = [torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for value in values]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


# --- Gradients ----------------------------------------------------------------------------------------------------


def gradients(
    model: SailForDenseVideoCaptioning, processor, videos: Videos, number: int
) -> dict[str, dict[str, float]]:
    """Of each loss, and of the distance from the true spans, the gradient in centres and widths."""
    collate, found = SailDataCollator(processor, model.config.num_queries), {}
    model.eval()
    for start in range(0, number, 16):
        part = range(start, min(start + 16, number))
        outputs = model(**collate([videos.rows[i] for i in part]))
        of_part = slice(part.start, part.stop)
        centers, widths = outputs.event_centers, outputs.event_widths
        valid, num_events = widths > 0, centers.shape[1]
        true = [values[of_part, :num_events] for values in (videos.centers, videos.widths)]
        losses = {loss.name: outputs.get(f"loss_{loss.name}") for loss in LOSSES}
        losses["true spans"] = segment_loss(centers, widths, *true, valid)
        keys = [(n, i) for n in valid.sum(1).tolist() for i in range(n)]
        for name, loss in losses.items():
            if loss is None or not loss.requires_grad:
                continue
            slopes = torch.autograd.grad(loss, [centers, widths], retain_graph=True, allow_unused=True)
            for kind, slope, own, truth in zip(("centre", "width"), slopes, (centers, widths), true, strict=True):
                if slope is not None:
                    # As if each event had the loss to itself.
                    rows = zip(keys, (slope[valid] * valid.sum()).tolist(), (truth - own)[valid].tolist(), strict=True)
                    found.setdefault(name, {}).setdefault(kind, []).extend(rows)
    return {
        name: {f"{kind} {key}": value for kind, rows in kinds.items() for key, value in described(rows).items()}
        for name, kinds in found.items()
    }


def described(rows: list[tuple[tuple[int, int], float, float]]) -> dict[str, float]:
    """Root mean square of slopes, and the correlation of their opposites with errors, less the means of each key."""
    keys, slopes, errors = zip(*rows, strict=True)
    group = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    left = []
    for values in (-np.array(slopes), np.array(errors)):
        left.append(values - (np.bincount(group, values) / np.bincount(group))[group])
    norm = float(np.linalg.norm(left[0]) * np.linalg.norm(left[1]))
    return {"rms": float(np.sqrt(np.mean(np.square(slopes)))), "r": float(left[0] @ left[1]) / norm if norm else 0.0}


# --- Teachers -----------------------------------------------------------------------------------------------------


def teach(
    model: SailForDenseVideoCaptioning,
    teacher: str,
    learning_rate: float,
    videos: Videos,
    scored: ablate.Scored,
    args: WhyArguments,
    seed: int,
) -> list[dict[str, Any]]:
    """Looks at the masks as the generator alone is taught."""
    generator = model.model.mask_generator
    optimizer = torch.optim.AdamW(generator.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    rng, looks = np.random.default_rng(seed), []
    for update in range(1, max(args.looks) + 1):
        model.train()
        batch = torch.from_numpy(rng.choice(len(videos.counts), args.batch_size, replace=False))
        counts = videos.counts[batch].clamp(max=model.config.num_queries)
        events = int(counts.max())
        features = videos.features[batch]
        frame_mask = torch.ones(features.shape[:2], dtype=torch.long)
        centers, widths, masks = model.model.localize(features, frame_mask, counts)
        if TEACHERS[teacher] is None:
            true = (values[batch, :events] for values in (videos.centers, videos.widths))
            loss = segment_loss(centers, widths, *true, widths > 0)
        else:
            loss = sail_losses(
                LossInputs(
                    model.config,
                    features,
                    frame_mask,
                    encoded=features,
                    encode=None,
                    caption_logits=None,
                    make_masks=model.model.make_masks,
                    counts=counts.tolist(),
                    centers=centers,
                    widths=widths,
                    masks=masks,
                    caption_features=videos.captions[batch, :events],
                    transition_features=videos.transitions[batch, : events - 1],
                )
            )["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update in args.looks:
            model.eval()
            looks.append({"updates": update, **ablate.look_at_masks(model, scored)})
    return looks


def taught(start: str, world: Path, videos: Videos, args: WhyArguments, seed: int, bar: tqdm) -> dict[str, dict]:
    """Looks by generator and teacher, those that are finished from the world's file."""
    path = args.output / f"teachers_{seed}.json"
    lessons: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}
    scored = ablate.Scored.load(str(world / "evaluation"), "validation", None)
    for (generator, (fields, rate)), (teacher, weights) in itertools.product(GENERATORS.items(), TEACHERS.items()):
        if teacher not in lessons.setdefault(generator, {}):
            set_seed(seed)
            model, _ = load_model(start, **{**NO_LOSS, **(weights or {}), **fields})
            lessons[generator][teacher] = teach(model, teacher, rate, videos, scored, args, seed)
            write_json(path, lessons)
        bar.update()
    return lessons


# --- Tables -------------------------------------------------------------------------------------------------------


def mean(values: list[float], scale: float = 1, digits: int = 2) -> str:
    deviation = f" ± {scale * np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * np.mean(values):.{digits}f}{deviation}"


def format_tables(slopes: dict[int, dict], lessons: dict[int, dict]) -> str:
    """Markdown of both tables, means and standard deviations over the worlds."""
    lines = [f"Means ± standard deviations over {len(slopes)} rendered worlds.", ""]
    lines += ["| gradient of | centre, size | r | width, size | r |", "|---|---:|---:|---:|---:|"]
    first = next(iter(slopes.values()))
    for model in first:
        lines.append(f"| **{model}** | | | | |")
        for loss in first[model]:
            found = [of_world[model][loss] for of_world in slopes.values()]
            cells = [
                mean([one[key] for one in found], digits=3 if key.endswith("rms") else 2) if key in found[0] else ""
                for key in ("centre rms", "centre r", "width rms", "width r")
            ]
            lines.append(f"| {loss} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| generator | teacher | updates | F1 | lift | centre r | width r |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for generator, teachers in next(iter(lessons.values())).items():
        for teacher, looks in teachers.items():
            for number, look in enumerate(looks):
                found = [of_world[generator][teacher][number] for of_world in lessons.values()]
                cells = [mean([one[key] for one in found], 100, 1) for key in ("f1", "lift")]
                cells += [mean([one[key] for one in found]) for key in ("center_correlation", "width_correlation")]
                lines.append(f"| {generator} | {teacher} | {look['updates']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    (args,) = HfArgumentParser(WhyArguments, description=__doc__).parse_args_into_dataclasses()
    transformers.utils.logging.set_verbosity_error()  # a new mask generator is meant to be new
    learning = {"looks": args.looks, "batch_size": args.batch_size}
    ablate.check_same(args.output / "settings.json", learning)
    slopes, lessons = {}, {}
    with tqdm(total=len(args.seeds) * len(GENERATORS) * len(TEACHERS), unit="run") as bar:
        for seed in args.seeds:
            world, start = args.worlds / f"seed_{seed}", args.start.replace("{seed}", str(seed))
            videos = Videos(world)
            lessons[seed] = taught(start, world, videos, args, seed, bar)
            models = {"start": (start, {"mask_generator": "queries", "mask_position_initializer_range": 1.0})}
            models |= {name: (name.replace("{seed}", str(seed)), {}) for name in args.trained}
            slopes[seed] = {}
            for title, (name, fields) in models.items():
                set_seed(seed)
                slopes[seed][title] = gradients(
                    *load_model(name, **fields, **ALL_LOSSES), videos, args.num_gradient_videos
                )
            write_json(args.output / "why.json", {"gradients": slopes, "teachers": lessons})
            text = format_tables(slopes, lessons)
            (args.output / "why.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
