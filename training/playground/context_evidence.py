"""What a bank of captions buys, with its controls, on a rendered world (worlds.py): docs/context.md.

    python training/playground/context_evidence.py --world outputs/worlds/seed_0 --output outputs/context/seed_0

16 of the 64 pairs of actor and action (each actor and each action twice) are kept from 100 *paired* videos, whose frames and
captions are learned; the bank holds the captions of all videos of the world, so it alone has these pairs. A model without a bank
is trained first, on the paired videos (or on all), and from it all rows go on, with the same numbers of updates and random numbers:

    off                   no context
    own                   40 captions for each of 12 clusters
    permuted              the same captions are recalled, and by one permutation of the bank others' features take their place
    no text               a cluster's own mean in the place of its captions
    windows               equal windows in the place of clusters
    no exclusion          a video may recall its own captions in training: what leaking buys
    k 8, k 20             fewer captions
    full, off; ...        the first three, from a model of all videos

All are trained with the masks of the frames' cohesion, which nothing learns, and caption every event of the validation and test
videos *from its true span*: the shares of captions that name the right actor, and the right action, say what the decoder has
learned and not where events were found. What is finished is kept.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import datasets
import numpy as np
import torch
from recipes import train
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging
from world import ACTIONS, ACTORS, actor_in

from sail_hf import DenseVideoCaptioningMetric, SailConfig, SailForDenseVideoCaptioning, SailProcessor
from sail_hf.context_sail import SailContext, cluster_frames
from sail_hf.data import reference_sets, write_json

CONFIG = Path(__file__).parent / "playground.yaml"
SIZE, NUM_PAIRED = 12, 100
_ACTION_OF = {phrase: action for action, phrases in ACTIONS.items() for phrase in phrases}


@dataclass
class Row:
    """On which data a row goes on, with which bank, and what stands in the place of its parts."""

    data: str = "paired"
    bank: str | None = "bank"
    context_k: int = 40
    clusters: Callable = cluster_frames
    retrieve: Callable = SailContext.retrieve


def equal_windows(features: Tensor, frame_mask: Tensor, size: int) -> Tensor:
    """In the place of [`cluster_frames`]: windows of equal length."""
    lengths = frame_mask.sum(1, keepdim=True).clamp(min=1)
    return (torch.arange(frame_mask.shape[1]) * size // lengths).clamp(max=size - 1).long()


_RETRIEVE = SailContext.retrieve


def cluster_means(context: SailContext, clusters: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, ...]:
    """In the place of [`SailContext.retrieve`]: as text, a cluster's own mean."""
    _, sentences, cosines = _RETRIEVE(context, clusters, exclude)
    return normalize(clusters.float(), dim=-1), sentences, cosines


def permuted(context: SailContext, clusters: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, ...]:
    """Likewise: the features of other captions, always the same ones for the same caption."""
    _, sentences, cosines = _RETRIEVE(context, clusters, exclude)
    others = torch.randperm(len(context.features), generator=torch.Generator().manual_seed(0))
    return context.features[others[sentences]].float().mean(2), sentences, cosines


ROWS = {
    "off": Row(bank=None),
    "own": Row(),
    "permuted": Row(retrieve=permuted),
    "no text": Row(retrieve=cluster_means),
    "windows": Row(clusters=equal_windows),
    "no exclusion": Row(bank="unnamed"),
    "k 8": Row(context_k=8),
    "k 20": Row(context_k=20),
    "full, off": Row(data="bank", bank=None),
    "full, own": Row(data="bank"),
    "full, permuted": Row(data="bank", retrieve=permuted),
}


@dataclass
class EvidenceArguments:
    world: Path = field(metadata={"help": "Folder of a world (worlds.py)."})
    output: Path = field(metadata={"help": "Folder of its runs and of scores.json."})
    rows: list[str] = field(default_factory=lambda: list(ROWS), metadata={"help": f"Any of {', '.join(ROWS)}."})
    seed: int = field(default=0, metadata={"help": "Of the pairs, of the permutation and of training."})
    start_epochs: list[float] = field(
        default_factory=lambda: [30, 5], metadata={"help": "Epochs of both stages before."}
    )
    epochs: list[float] = field(default_factory=lambda: [10, 5], metadata={"help": "Epochs of both stages of a row."})


# --- Data ---------------------------------------------------------------------------------------------------------


def action_in(sentence: str) -> str | None:
    """The action that a sentence names by a phrase of the grammar; `None` without one."""
    return next((action for phrase, action in _ACTION_OF.items() if phrase in sentence), None)


def held_pairs(seed: int) -> set[tuple[str, str]]:
    """16 pairs of actor and action, two of each actor and two of each action."""
    draw = np.random.default_rng(seed)
    actions = draw.permutation(list(ACTIONS)).tolist()
    return {
        (actor, actions[(i + shift) % len(actions)])
        for i, actor in enumerate(draw.permutation(list(ACTORS)).tolist())
        for shift in (0, 1)
    }


def pairs_of(captions: list[str]) -> list[tuple[str | None, str | None]]:
    return [(actor_in(caption), action_in(caption)) for caption in captions]


def write_data(world: Path, output: Path, seed: int) -> None:
    """Folders of data: `paired`; `bank`, all videos; `unnamed`, all under ids that no video has."""
    if (output / "unnamed").exists():
        return
    data = datasets.load_dataset(str(world / "dataset"), split="train")
    data = data.select_columns(["video_id", "duration", "captions", "video_features", "caption_features"])
    held = held_pairs(seed)
    free = [i for i, captions in enumerate(data["captions"]) if not held & set(pairs_of(captions))]
    save(data.select(free[:NUM_PAIRED]), output / "paired")
    save(data, output / "bank")
    save(data.map(lambda row: {"video_id": f"nobody's {row['video_id']}"}), output / "unnamed")


def save(data: datasets.Dataset, folder: Path) -> None:
    folder.mkdir(parents=True)
    data.to_parquet(folder / "train-00000-of-00001.parquet")


def evaluation_rows(world: Path) -> list[dict]:
    """Validation and test videos: features as arrays."""
    parts = [datasets.load_dataset(str(world / "evaluation"), split=split) for split in ("validation", "test")]
    names = ["video_id", "duration", "captions", "timestamps", "video_features"]
    rows = [row for part in parts for row in part.select_columns(names).with_format("numpy")]
    return [{**row, "timestamps": np.stack(list(row["timestamps"]))} for row in rows]


# --- Runs ---------------------------------------------------------------------------------------------------------


def start_of(data: str, args: EvidenceArguments) -> Path:
    """The folder of the model that rows on some data go on from; it is trained where it is not there."""
    folder = args.output / f"start_{data}"
    if not (folder / "model.safetensors").exists():
        made = {
            "clip": str(args.world / "clip"),
            "decoder": str(args.world / "small_decoder"),
            "include_text_tower": False,
            "model_config": {**train.read_config(CONFIG)["model_config"], "encoder_layers": 1, "encoder_ffn_dim": 256},
        }
        run(folder, data, args.start_epochs, args, method="cohesion", **made)
    return folder


def run(folder: Path, data: str, epochs: list[float], args: EvidenceArguments, **values) -> None:
    """Train into a folder: epochs of the paired videos, or as many updates on all."""
    number = len(datasets.load_dataset(str(args.output / data), split="train"))
    values |= {
        "dataset": str(args.output / data),
        "captioning_epochs": epochs[0] * NUM_PAIRED / number,
        "localization_epochs": epochs[1] * NUM_PAIRED / number,
        "per_device_train_batch_size": 8,
        "output_dir": str(folder),
        "seed": args.seed,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    train.train(train.make_trainer(*train.configured(CONFIG, **values)), resume=True)


def run_row(row: Row, folder: Path, args: EvidenceArguments) -> None:
    """Go on with a row, into its folder."""
    values = {**dict.fromkeys(train.BROUGHT), "include_text_tower": None, "method": None, "model_config": {}}
    if row.bank:
        values["model_config"] = {"context_size": SIZE, "context_k": row.context_k}
        values["context_captions"] = str(args.output / row.bank)
    run(folder, row.data, args.epochs, args, model_name_or_path=str(start_of(row.data, args)), **values)


@torch.no_grad()
def caption_true_spans(folder: Path, rows: list[dict]) -> list[list[str]]:
    """A caption of every event, from the mask of its true span."""
    model = SailForDenseVideoCaptioning.from_pretrained(folder).eval()
    tokenizer = SailProcessor.from_pretrained(folder).tokenizer
    captions = []
    for begin in range(0, len(rows), 16):
        part = rows[begin : begin + 16]
        values = torch.stack([torch.as_tensor(row["video_features"], dtype=torch.float32) for row in part])
        features, frame_mask = model.model.prepare_features(video_features=values)
        spans = [torch.tensor(row["timestamps"] / row["duration"], dtype=torch.float32) for row in part]
        counts, spans = torch.tensor([len(of_video) for of_video in spans]), pad_sequence(spans, batch_first=True)
        masks = model.model.make_masks(spans.mean(-1), spans.diff(dim=-1)[..., 0], frame_mask)
        ids, _ = model.caption_events(features, frame_mask, masks, counts, num_beams=1)
        said = iter(tokenizer.batch_decode(ids, skip_special_tokens=True))
        captions += [[next(said) for _ in range(count)] for count in counts.tolist()]
    return captions


def shares(right: list[tuple[bool, bool]], prefix: str = "") -> dict[str, float]:
    """Shares of pairs (actor is right, action is right), and of those where both are."""
    values = np.array(right)
    actor, action = values.mean(0).tolist()
    return {f"{prefix}actor": actor, f"{prefix}action": action, f"{prefix}both": float(values.all(1).mean())}


def is_right(said: str, true: str) -> tuple[bool, bool]:
    return actor_in(said) == actor_in(true), action_in(said) == action_in(true)


def accuracy(captions: list[list[str]], rows: list[dict], held: set[tuple[str, str]]) -> dict[str, float]:
    """[`shares`] of captions of all events, and of those of `held` pairs."""
    pairs = [
        (said, true)
        for of_video, row in zip(captions, rows, strict=True)
        for said, true in zip(of_video, map(str, row["captions"]), strict=True)
    ]
    of_held = [(said, true) for said, true in pairs if (actor_in(true), action_in(true)) in held]
    return {
        "events": len(pairs),
        "held_events": len(of_held),
        **shares([is_right(*pair) for pair in pairs]),
        **shares([is_right(*pair) for pair in of_held], "held_"),
    }


# --- What is recalled, without any training -----------------------------------------------------------------------


def recalled(world: Path, output: Path, rows: list[dict]) -> dict[str, float]:
    """How often the first caption is right: of a cluster that lies in an event, and of an event's true span."""
    data = datasets.load_dataset(str(output / "bank"), split="train").with_format("numpy")
    features, ids, texts = train.bank_of(data, "the bank")
    context = SailContext(SailConfig(feature_size=features.shape[1], context_size=SIZE)).eval()
    context.fill(features, ids, texts)
    of_clusters, of_spans = [], []
    for row in rows:
        frames, captions = torch.tensor(row["video_features"])[None].float(), list(map(str, row["captions"]))
        found = context.recall(frames, torch.ones(frames.shape[:2]))
        times = torch.linspace(0, 1, frames.shape[1]) * float(row["duration"])
        inside = torch.stack([(times >= start) & (times < end) for start, end in row["timestamps"].tolist()]).float()
        for share, first in zip((inside @ found.clusters[0]).T, found.sentences[0, :, 0].tolist(), strict=True):
            if share.max() > 0.5:
                of_clusters.append(is_right(texts[first], captions[int(share.argmax())]))
        _, first, _ = context.retrieve((inside @ normalize(frames[0], dim=-1))[None])
        of_spans += [is_right(texts[i], true) for i, true in zip(first[0, :, 0].tolist(), captions, strict=True)]
    return {"clusters": len(of_clusters), **shares(of_clusters), **shares(of_spans, "true_span_"), **as_spans(rows)}


def as_spans(rows: list[dict]) -> dict[str, float]:
    """F1 and lift of clusters as spans: as many as a video has events, and as many as it has events and gaps around them."""
    columns = ("video_id", "duration", "captions", "timestamps")
    references = reference_sets([{name: np.asarray(row[name]).tolist() for name in columns} for row in rows])
    scores = {}
    for name, sizes in (
        ("count", [len(row["captions"]) for row in rows]),
        ("count_and_gaps", [2 * len(row["captions"]) + 1 for row in rows]),
    ):
        predictions = []
        for row, size in zip(rows, sizes, strict=True):
            frames = normalize(torch.tensor(row["video_features"]).float(), dim=-1)[None]
            labels = cluster_frames(frames, torch.ones(frames.shape[:2]), size)[0].tolist()
            step = float(row["duration"]) / len(labels)
            edges = [i for i in range(len(labels)) if not i or labels[i] != labels[i - 1]] + [len(labels)]
            spans = zip(edges, edges[1:], strict=False)
            predictions.append([{"timestamp": [a * step, b * step], "sentence": ""} for a, b in spans])
        measured = DenseVideoCaptioningMetric().compute(
            predictions=predictions, references=list(references.values()), metrics=["localization", "controls"]
        )
        scores |= {f"{name}_{key}": measured[key] for key in ("f1", "lift")}
    return scores


def main() -> None:
    (args,) = HfArgumentParser(EvidenceArguments, description=__doc__).parse_args_into_dataclasses()
    if unknown := set(args.rows) - set(ROWS):
        sys.exit(f"error: --rows must be any of {', '.join(ROWS)}, found {', '.join(sorted(unknown))}.")
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    write_data(args.world, args.output, args.seed)
    rows, held = evaluation_rows(args.world), held_pairs(args.seed)
    path = args.output / "scores.json"
    scores = json.loads(path.read_text()) if path.exists() else {"recalled": recalled(args.world, args.output, rows)}
    for name in args.rows:
        if name not in scores:
            folder = args.output / name.replace(", ", "_").replace(" ", "_")
            row = ROWS[name]
            clusters = patch("sail_hf.context_sail.cluster_frames", row.clusters)
            with clusters, patch.object(SailContext, "retrieve", row.retrieve):
                run_row(row, folder, args)
                scores[name] = accuracy(caption_true_spans(folder, rows), rows, held)
        write_json(path, scores)
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
