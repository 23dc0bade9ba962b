"""Whether words point at what they mean, on wide rendered worlds (wide_world.py), whose true boxes are known.

    python training/playground/grounding_evidence.py --output outputs/grounding --seeds 0 1 2

For each seed: a world with its CLIP (patches of 8 pixels), a model of the first stage, and from it two second stages that differ
in the weight of the grounding loss alone, so that both have the head and see the patches. Where words look is measured on test
videos with **true sentences**, at the times that aligning these with the frames gives, in the one frame that is labelled:

* accuracy: IoU of at least .5 of the box of the attention's heat and the true one; **lift**: less that with the boxes of other
  events of the same word; mass: share of that frame's attention that is in the true box;
* beside the controls: boxes that look at no patch, the heat of another word of the sentence, another video's patches, a head that
  has learned nothing, the cosine of patch and word, and the best box that the grid of patches allows.

On **generated sentences**, for true times and for times of its own, how often the actor is right, with and without the loss; every
event has a bystander. Of the labels of training, how well boxes are propagated from one frame to the others of the event.

Finished parts are kept in the output folder: the same command goes on. It writes table.md, results.json and pictures/.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from demo import CONFIG, match, write_decoder
from recipes import extract_features, grounding_annotations, train
from torchvision.ops import box_iou
from tqdm.auto import tqdm
from train_clip import ClipArguments, train_clip
from transformers import HfArgumentParser, set_seed
from wide_world import KINDS, NUM_FRAMES, drawn_frames, render_wide_world
from word_boxes import LEAST_CONFIDENCE, propagate
from world import ACTIONS, FPS, actor_in

from sail_hf import SailDataCollator, SailForDenseVideoCaptioning
from sail_hf.alignment_sail import align_ordered
from sail_hf.clip_sail import load_clip
from sail_hf.data import write_json, written_whole
from sail_hf.grounding_sail import grid_of, heat_boxes
from sail_hf.loss_sail import cosines
from sail_hf.metric_grounding import (
    attention_mass,
    center_boxes,
    foreground_boxes,
    grounding_lift,
    localization_accuracy,
    median_boxes,
    other_word,
    patch_text_boxes,
)
from sail_hf.trainer import caption_dataset
from sail_hf.video_reading import open_video, uniform_times

# Second stages: how much the loss weighs. Neither has the negative pass, the dearest, which has no part in it.
STAGES = {"with the loss": 0.1, "without the loss": 0.0}


@dataclass
class EvidenceArguments:
    output: Path = field(default=Path("outputs/grounding"), metadata={"help": "Folder of worlds, models and tables."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "A world for each."})
    num_train: int = field(default=400, metadata={"help": "Videos to learn from."})
    num_test: int = field(default=60, metadata={"help": "Videos to measure on."})
    clip_epochs: int = field(default=4, metadata={"help": "Passes over the stills."})
    captioning_epochs: float = field(default=14, metadata={"help": "First stage, once a world."})
    grounding_epochs: float = field(default=10, metadata={"help": "Each of the second stages."})
    num_drawn: int = field(default=6, metadata={"help": "Events that are drawn, of the first world."})


# Worlds and models


def make_world(folder: Path, seed: int, args: EvidenceArguments) -> None:
    """Videos, CLIP, features of frames and patches, groundings and the decoder's folder."""
    world, clip = folder / "playground", folder / "clip"
    set_seed(seed)
    if not (world / "labels_test.json").exists():
        render_wide_world(world, args.num_train, args.num_test, seed)
    if not (clip / "open_clip_config.json").exists():
        sizes = {"patch_size": 8, "vision_layers": 2}
        train_clip(ClipArguments(str(world / "pictures"), str(clip), num_epochs=args.clip_epochs, seed=seed, **sizes))
    for split in ("train", "test"):
        if not (folder / "dataset" / f"{split}-00000-of-00001.parquet").exists():
            extract_features.extract_features(
                extract_features.ExtractArguments(
                    annotations=[str(world / f"{split}.json")],
                    videos=str(world / "videos"),
                    clip=str(clip),
                    output=str(folder / "dataset"),
                    split=split,
                    num_frames=NUM_FRAMES,
                    regions=True,
                )
            )
    if not (folder / "grounded.json").exists():
        boxes = str(world / "labels_train.json")
        grounding_annotations.add_groundings(
            grounding_annotations.GroundingArguments(dataset=str(folder / "dataset"), boxes=boxes)
        )
        write_json(folder / "grounded.json", {"boxes": boxes})
    if not (folder / "decoder").exists():
        rows = json.loads((world / "train.json").read_text()).values()
        write_decoder(folder / "decoder", [text for row in rows for text in row["sentences"]])


def train_models(folder: Path, seed: int, args: EvidenceArguments) -> None:
    """The first stage, and from it the second stages that are not there yet."""
    own = {"dataset": str(folder / "dataset"), "seed": seed, "method": "sail-align"}
    own |= {"save_strategy": "epoch", "save_total_limit": 1}
    if not (folder / "first_stage" / "config.json").exists():
        parts = {part: str(folder / part) for part in ("clip", "decoder")}
        epochs = {"captioning_epochs": args.captioning_epochs, "localization_epochs": 0}
        run(folder / "first_stage", train.read_config(CONFIG) | own | parts | epochs)
    of_model = {name: value for name, value in train.read_config(CONFIG).items() if name not in train.BROUGHT}
    for stage, weight in STAGES.items():
        if (folder / stage.replace(" ", "_") / "config.json").exists():
            continue
        start = {"model_name_or_path": str(folder / "first_stage")}
        start["model_config"] = {"grounding": True, "grounding_loss_weight": weight, "negative_loss_weight": 0.0}
        epochs = {"captioning_epochs": 0, "localization_epochs": args.grounding_epochs}
        run(folder / stage.replace(" ", "_"), of_model | own | start | epochs)


def run(folder: Path, values: dict[str, Any]) -> None:
    print(f"\n== Training {folder}", flush=True)
    arguments = HfArgumentParser(train.PARTS).parse_dict({**values, "output_dir": str(folder)})
    train.train(train.make_trainer(*arguments), resume=True)


# Where words look


@dataclass
class Word:
    """A groundable word of a test sentence.

    Attributes:
        video, event: indices; `place`: in the sentence's `split()`.
        frame: the labelled frame of the [`NUM_FRAMES`]; `box`: the true one there.
        boxes: true boxes by frame, of all frames in the event.
    """

    video: int
    event: int
    place: int
    kind: str
    word: str
    frame: int
    box: list[float]
    boxes: dict[int, list[float]]


def read_words(world: Path, split: str, rows: datasets.Dataset) -> list[Word]:
    """The labelled words of a split with their true boxes."""
    boxes, labels = (json.loads((world / f"{name}_{split}.json").read_text()) for name in ("boxes", "labels"))
    found = []
    for video, (name, duration) in enumerate(zip(rows["video_id"], rows["duration"], strict=True)):
        drawn = drawn_frames(round(float(duration) * FPS))
        for event, (of_event, of_sentence) in enumerate(zip(boxes[name], labels[name], strict=True)):
            for label in of_sentence:
                true = of_event[label["kind"]]
                inside = {i: int(frame) - of_event["start"] for i, frame in enumerate(drawn)}
                own = {i: true[k] for i, k in inside.items() if 0 <= k < len(true) and true[k]}
                frame = round(label["time"] / float(duration) * (NUM_FRAMES - 1))
                found.append(
                    Word(video, event, label["index"], label["kind"], label["word"], frame, label["box"], own)
                )
    return found


def aligned_masks(model: SailForDenseVideoCaptioning, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Masks `(1, N, T)` at the times where true sentences fit the frames of a video."""
    found = align_ordered(cosines(batch["caption_features"], batch["video_features"]), gap_level=0.75)
    return model.model.make_masks(found.centers, found.widths, batch["video_attention_mask"])


@torch.no_grad()
def look(
    model: SailForDenseVideoCaptioning, processor, rows: datasets.Dataset, words: list[Word], shift: int = 0
) -> torch.Tensor:
    """Shares of attention `(W, T, P)` of words of true sentences; `shift`: how many videos further the patches are from."""
    collate, found = SailDataCollator(processor), []
    model.eval()
    for video in tqdm(range(len(rows)), desc="Looking", unit="video", leave=False):
        row = rows[video]
        batch = collate([row])
        regions = batch["region_features"]
        if shift:
            regions = torch.as_tensor(rows[(video + shift) % len(rows)]["region_features"])[None]
        attention = model.ground_events(
            batch["video_features"],
            batch["video_attention_mask"],
            aligned_masks(model, batch),
            batch["num_events"],
            batch["event_labels"],
            regions,
        )
        for word in (word for word in words if word.video == video):
            places = processor.word_positions(row["captions"][word.event])[word.place]
            found.append(attention[word.event, places].mean(0))
    return torch.stack(found)


def cosine_boxes(clip, rows: datasets.Dataset, words: list[Word]) -> torch.Tensor:
    """Boxes `(W, 4)` of the patches of the labelled frames that are nearest to each word, as a text of its own."""
    names = sorted({word.word for word in words})
    texts = dict(zip(names, clip.encode_texts(names), strict=True))
    patches = [torch.as_tensor(rows[video]["region_features"]) for video in range(len(rows))]
    of_words = torch.stack([patches[word.video][word.frame] for word in words])
    return patch_text_boxes(of_words, torch.stack([texts[word.word] for word in words]))


# What generated sentences say


def action_in(sentence: str) -> str | None:
    """The action that a sentence names, by the grammar's phrases."""
    return next((name for name, phrases in ACTIONS.items() if any(phrase in sentence for phrase in phrases)), None)


def right(pairs: list[tuple[str, str, str]]) -> dict[str, float]:
    """Of `(generated sentence, true one, bystander)`: shares with the right actor, the right action, the bystander as actor."""
    return {
        "actor": float(np.mean([actor_in(text) == actor_in(true) for text, true, _ in pairs])),
        "action": float(np.mean([action_in(text) == action_in(true) for text, true, _ in pairs])),
        "bystander": float(np.mean([actor_in(text) == bystander for text, _, bystander in pairs])),
        "sentences": len(pairs),
    }


@torch.no_grad()
def generated(
    model: SailForDenseVideoCaptioning, processor, rows: datasets.Dataset, bystanders: list[list[str]]
) -> dict[str, dict[str, float]]:
    """[`right`] of sentences for the events' true times, and of the model's own events matched with the true ones."""
    collate, of_true_times, of_own = SailDataCollator(processor), [], []
    model.eval()
    own = caption_dataset(model, processor, rows)
    for row, others in zip(tqdm(rows, desc="Captioning true times", unit="video"), bystanders, strict=True):
        batch = collate([row])
        times = torch.tensor(np.array([*map(np.array, row["timestamps"])]) / row["duration"], dtype=torch.float32)
        mask = batch["video_attention_mask"]
        masks = model.model.make_masks(times.mean(1)[None], (times[:, 1] - times[:, 0])[None], mask)
        regions = {"region_features": batch["region_features"]} if model.grounding_head is not None else {}
        ids, _ = model.caption_events(batch["video_features"], mask, masks, batch["num_events"], **regions)
        texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        of_true_times += zip(texts, row["captions"], others, strict=True)
        bystander_of = dict(zip(row["captions"], others, strict=True))
        reference = {"timestamps": [list(map(float, t)) for t in row["timestamps"]], "sentences": row["captions"]}
        of_own += [(e["text"], true, bystander_of[true]) for e, true in match(own[str(row["video_id"])], reference)]
    return {"true times": right(of_true_times), "own times": right(of_own)}


# Scores


def labelled_heat(words: list[Word], attention: torch.Tensor) -> torch.Tensor:
    """Of shares `(W, T, P)` those in the labelled frames, `(W, P)`."""
    return attention[torch.arange(len(words)), [word.frame for word in words]]


def score(words: list[Word], boxes: torch.Tensor, heat: torch.Tensor | None = None) -> dict[str, dict[str, float]]:
    """Of each kind of word accuracy and lift of boxes `(W, 4)`, and the mean mass of heat `(W, P)` in the true boxes."""
    true, found = torch.tensor([word.box for word in words]), {}
    for kind in KINDS:
        own = [i for i, word in enumerate(words) if word.kind == kind]
        names = [words[i].word for i in own]
        accuracy = localization_accuracy(box_iou(boxes[own], true[own]).diagonal(), names)
        found[kind] = {"accuracy": accuracy, "lift": grounding_lift(boxes[own], true[own], names)}
        if heat is not None:
            found[kind]["mass"] = attention_mass(heat[own], true[own]).mean().item()
    return found


def score_heat(words: list[Word], heat: torch.Tensor) -> dict[str, dict[str, float]]:
    """[`score`] of where heat `(W, P)` lies."""
    return score(words, heat_boxes(heat)[0], heat)


def best_grid_boxes(words: list[Word], num_patches: int) -> torch.Tensor:
    """The rectangle of patches of most IoU with each true box."""
    rows, columns = (torch.combinations(torch.arange(n + 1) / n) for n in grid_of(num_patches))
    y, x = rows.repeat_interleave(len(columns), 0), columns.repeat(len(rows), 1)
    grid = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], -1)
    true = torch.tensor([word.box for word in words])
    return grid[box_iou(true, grid).argmax(1)]


def propagation(words: list[Word], rows: datasets.Dataset) -> dict[str, float]:
    """Of the entities of training: mean IoU with the true boxes, in the other frames of their events, of boxes carried there
    with enough confidence and of the labelled box as it is; and the share of these frames that boxes are carried to."""
    carried, copied, total, patches = [], [], 0, {}
    for word in tqdm(words, desc="Propagating", unit="word"):
        if word.kind == "action":
            continue
        if word.video not in patches:
            patches = {word.video: torch.as_tensor(rows[word.video]["region_features"])}
        boxes, confidences = propagate(patches[word.video], word.frame, torch.tensor(word.box))
        others = [frame for frame in word.boxes if frame != word.frame]
        total += len(others)
        kept = [frame for frame in others if confidences[frame] > LEAST_CONFIDENCE]
        if kept:
            true = torch.tensor([word.boxes[frame] for frame in kept])
            carried += box_iou(boxes[kept], true).diagonal().tolist()
            copied += box_iou(torch.tensor([word.box]), true)[0].tolist()
    return {
        "carried": float(np.mean(carried)),
        "copied": float(np.mean(copied)),
        "share of frames": len(carried) / total,
    }


def evaluate(folder: Path, args: EvidenceArguments) -> dict[str, Any]:
    """All of a world that the tables show."""
    world = folder / "playground"
    rows = datasets.load_dataset(str(folder / "dataset"), split="test").with_format("numpy")
    training = datasets.load_dataset(str(folder / "dataset"), split="train").with_format("numpy")
    words, training_words = read_words(world, "test", rows), read_words(world, "train", training)
    results: dict[str, Any] = {"sentences": {}, "num_words": len(words)}
    found, heat = {}, {}
    for stage in STAGES:
        model, processor = load(folder / stage.replace(" ", "_"))
        heat[stage] = labelled_heat(words, look(model, processor, rows, words))
        found[stage] = score_heat(words, heat[stage])
        results["sentences"][stage] = generated(model, processor, rows, bystanders(world, rows))
    model, processor = load(folder / "with_the_loss")
    others = other_word([(word.video, word.event) for word in words], [word.word for word in words])
    found["another word's heat"] = score_heat(words, heat["with the loss"][others])
    shifted = look(model, processor, rows, words, shift=1)
    found["another video's patches"] = score_heat(words, labelled_heat(words, shifted))
    fresh, _ = load(folder / "first_stage", grounding=True)
    untrained = look(fresh, processor, rows, words)
    found["a head that has learned nothing"] = score_heat(words, labelled_heat(words, untrained))
    medians = median_boxes(
        [word.word for word in words],
        [word.word for word in training_words],
        torch.tensor([word.box for word in training_words]),
    )
    boxes = {
        "cosine of patch and word": cosine_boxes(load_clip(str(folder / "clip")), rows, words),
        "the word's median training box": medians,
        "as large, amid the picture": center_boxes(medians),
        "all that is in the foreground (true boxes)": foreground(world, rows, words),
        "the best box of the grid (true boxes)": best_grid_boxes(words, untrained.shape[-1]),
    }
    results["words"] = found | {name: score(words, own) for name, own in boxes.items()}
    results["propagation"] = propagation(training_words, training)
    return results


def load(folder: Path, **fields) -> tuple[SailForDenseVideoCaptioning, Any]:
    return train.build_model(train.ModelArguments(model_name_or_path=str(folder), model_config=fields))


def bystanders(world: Path, rows: datasets.Dataset) -> list[list[str]]:
    """Names of the bystanders of each test video's events."""
    boxes = json.loads((world / "boxes_test.json").read_text())
    return [[event["bystander_name"] for event in boxes[str(name)]] for name in rows["video_id"]]


def foreground(world: Path, rows: datasets.Dataset, words: list[Word]) -> torch.Tensor:
    """The tightest box `(W, 4)` around the action and the bystander in each word's labelled frame."""
    boxes = json.loads((world / "boxes_test.json").read_text())
    ids, durations = rows["video_id"], rows["duration"]
    found = []
    for word in words:
        event = boxes[str(ids[word.video])][word.event]
        frame = int(drawn_frames(round(float(durations[word.video]) * FPS))[word.frame]) - event["start"]
        found.append(torch.tensor([event["action"][frame], event["bystander"]]))
    return foreground_boxes(found)


# Tables and pictures


def mean_and_deviation(values: list[float], scale: float) -> str:
    deviation = f" ± {scale * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{scale * np.mean(values):.1f}{deviation}"


def format_tables(results: dict[int, dict[str, Any]]) -> str:
    """Markdown, in percent, IoU too: the mean over worlds and, of several, its standard deviation."""
    first, worlds = next(iter(results.values())), list(results.values())
    lines = [
        f"{len(worlds)} wide rendered worlds (seeds {', '.join(map(str, results))}), {first['num_words']} words in the first."
    ]
    columns = [(kind, name) for kind in KINDS for name in ("accuracy", "lift", "mass")]
    lines += ["", "| true sentences | " + " | ".join(f"{kind}, {name}" for kind, name in columns) + " |"]
    lines += ["|---" + "|---:" * len(columns) + "|"]
    for row in first["words"]:
        cells = [
            mean_and_deviation([world["words"][row][kind][name] for world in worlds], 100)
            if name in first["words"][row][kind]
            else ""
            for kind, name in columns
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    measures = ("actor", "action", "bystander")
    titles = ("right actor", "right action", "the bystander as actor")
    lines += ["", "| generated sentences | " + " | ".join(titles) + " | sentences |", "|---|---:|---:|---:|---:|"]
    for stage, of_stage in first["sentences"].items():
        for times in of_stage:
            own = [world["sentences"][stage][times] for world in worlds]
            cells = [mean_and_deviation([values[name] for values in own], 100) for name in measures]
            count = sum(values["sentences"] for values in own)
            lines.append(f"| {stage}, {times} | " + " | ".join(cells) + f" | {count} |")
    lines += ["", "| boxes of entities, in other frames of their events | mean IoU |", "|---|---:|"]
    for name in ("carried", "copied"):
        lines.append(f"| {name} | {mean_and_deviation([world['propagation'][name] for world in worlds], 100)} |")
    share = mean_and_deviation([world["propagation"]["share of frames"] for world in worlds], 100)
    return "\n".join(
        [*lines, "", f"Both over the {share} % of these frames where the confidence is above {LEAST_CONFIDENCE}."]
    )


def draw(folder: Path, pictures: Path, number: int, most_frames: int = 8) -> None:
    """For each of some events: rows of its words, over its frames, with heat, the heat's box (red) and the true one (green)."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = datasets.load_dataset(str(folder / "dataset"), split="test").with_format("numpy").select(range(number))
    words = read_words(folder / "playground", "test", rows)
    model, processor = load(folder / "with_the_loss")
    attention = look(model, processor, rows, words)
    pictures.mkdir(parents=True, exist_ok=True)
    for video, row in enumerate(rows):
        event = max(range(len(row["captions"])), key=lambda n: row["timestamps"][n][1] - row["timestamps"][n][0])
        own = [i for i, word in enumerate(words) if (word.video, word.event) == (video, event)]
        frames = sorted(set.union(*(set(words[i].boxes) for i in own)))[:most_frames]
        with open_video(folder / "playground" / "videos" / f"{row['video_id']}.mp4") as reader:
            times = uniform_times(NUM_FRAMES, 0.0, reader.duration)[frames]
            images = list(reader.frames_at(times))
        figure = Figure(figsize=(1.6 * len(frames), 1.7 * len(own) + 0.3), layout="constrained")
        figure.suptitle(row["captions"][event], fontsize=9)
        axes = figure.subplots(len(own), len(frames), squeeze=False)
        for i, of_word in zip(own, axes, strict=True):
            peak = attention[i].max()
            boxes, heat = heat_boxes(attention[i, frames])
            for ax, frame, image, box in zip(of_word, frames, images, boxes.tolist(), strict=True):
                height, width = image.shape[:2]
                ax.imshow(image)
                shares = (attention[i, frame] / peak).unflatten(-1, grid_of(attention.shape[-1]))
                ax.imshow(shares, extent=(0, width, height, 0), cmap="inferno", alpha=0.55, vmin=0, vmax=1)
                for color, (x0, y0, x1, y1) in (("lime", words[i].boxes.get(frame, [0] * 4)), ("red", box)):
                    size = ((x1 - x0) * width, (y1 - y0) * height)
                    ax.add_patch(Rectangle((x0 * width, y0 * height), *size, fill=False, color=color))
                ax.set_xticks([])
                ax.set_yticks([])
            of_word[0].set_ylabel(words[i].word, fontsize=8)
        figure.savefig(pictures / f"{row['video_id']}.png", dpi=110)


def main() -> None:
    (args,) = HfArgumentParser(EvidenceArguments, description=__doc__).parse_args_into_dataclasses()
    results = {}
    for seed in args.seeds:
        folder = args.output / f"seed_{seed}"
        if not (folder / "scores.json").exists():
            make_world(folder, seed, args)
            train_models(folder, seed, args)
            write_json(folder / "scores.json", evaluate(folder, args))
        results[seed] = json.loads((folder / "scores.json").read_text())
        write_json(args.output / "results.json", results)
        with written_whole(args.output / "table.md") as temporary:
            Path(temporary).write_text(format_tables(results) + "\n", encoding="utf-8")
    draw(args.output / f"seed_{args.seeds[0]}", args.output / "pictures", args.num_drawn)
    print(format_tables(results))


if __name__ == "__main__":
    main()
