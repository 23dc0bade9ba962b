"""What a bank of captions buys, with its controls, on a rendered world (worlds.py): docs/context.md.

    python training/playground/context_evidence.py --world outputs/worlds/seed_0 --output outputs/context/seed_0

16 of the 64 pairs of actor and action (each actor and each action twice) are kept from 100 *paired* videos, whose frames and
captions are learned; the bank holds the captions of all videos of the world, so it alone has these pairs. Rows:

    off                   no context
    own                   40 captions for each of 12 clusters
    permuted              the same bank, with its features exchanged between captions
    windows               equal windows in the place of clusters
    no text               a cluster's own mean in the place of its captions
    k 8, k 20             fewer captions
    no exclusion          a video may recall its own captions in training: what leaking buys

Each is trained with the masks of the frames' cohesion, which nothing learns, and captions every event of the validation and
test videos *from its true span*: the shares of captions that name the right actor, and the right action, say what the decoder
has learned and not where events were found. `full, off` and `full, own` learn from all videos. What is finished is kept.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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

SIZE, K, NUM_PAIRED = 12, 40, 100
_ACTION_OF = {phrase: action for action, phrases in ACTIONS.items() for phrase in phrases}


@dataclass
class Row:
    """A training: on which data, with which bank, and what stands in the place of its parts."""

    data: str = "paired"
    context: dict[str, int] = field(default_factory=lambda: {"context_size": SIZE, "context_k": K})
    bank: str | None = "bank"
    clusters: str = "ward"
    texts: str = "bank"


ROWS = {
    "off": Row(context={}, bank=None),
    "own": Row(),
    "permuted": Row(bank="permuted"),
    "no text": Row(texts="means"),
    "windows": Row(clusters="windows"),
    "no exclusion": Row(bank="unnamed"),
    "k 8": Row(context={"context_size": SIZE, "context_k": 8}),
    "k 20": Row(context={"context_size": SIZE, "context_k": 20}),
    "full, off": Row(data="bank", context={}, bank=None),
    "full, own": Row(data="bank"),
}


@dataclass
class EvidenceArguments:
    world: Path = field(metadata={"help": "Folder of a world (worlds.py)."})
    output: Path = field(metadata={"help": "Folder of its runs and of scores.json."})
    rows: list[str] = field(default_factory=lambda: list(ROWS), metadata={"help": f"Any of {', '.join(ROWS)}."})
    seed: int = field(default=0, metadata={"help": "Of the pairs, of the permutation and of training."})
    captioning_epochs: float = field(default=30, metadata={"help": "Of the paired videos; of all, as many updates."})
    localization_epochs: float = field(default=5, metadata={"help": "Likewise."})


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
    """Folders of data: `paired`, and as banks `bank`, `permuted` and `unnamed` (ids that no video has)."""
    if (output / "unnamed").exists():
        return
    data = datasets.load_dataset(str(world / "dataset"), split="train")
    data = data.select_columns(["video_id", "duration", "captions", "video_features", "caption_features"])
    held = held_pairs(seed)
    free = [i for i, captions in enumerate(data["captions"]) if not held & set(pairs_of(captions))]
    save(data.select(free[:NUM_PAIRED]), output / "paired")
    save(data, output / "bank")
    features = np.concatenate([np.asarray(rows, dtype=np.float16) for rows in data["caption_features"]])
    mixed = np.random.default_rng(seed).permutation(features)
    cuts = np.cumsum([len(captions) for captions in data["captions"]])[:-1]
    exchanged = [rows.tolist() for rows in np.split(mixed, cuts)]
    column = datasets.Dataset.from_dict(
        {"caption_features": exchanged},
        features=datasets.Features({"caption_features": data.features["caption_features"]}),
    )
    save(datasets.concatenate_datasets([data.remove_columns("caption_features"), column], axis=1), output / "permuted")
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


def equal_windows(features: Tensor, frame_mask: Tensor, size: int) -> Tensor:
    """In the place of [`cluster_frames`]: windows of equal length."""
    lengths = frame_mask.sum(1, keepdim=True).clamp(min=1)
    return (torch.arange(frame_mask.shape[1]) * size // lengths).clamp(max=size - 1).long()


_RETRIEVE = SailContext.retrieve


def cluster_means(context: SailContext, clusters: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, ...]:
    """In the place of [`SailContext.retrieve`]: as text, a cluster's own mean."""
    _, sentences, cosines = _RETRIEVE(context, clusters, exclude)
    return normalize(clusters.float(), dim=-1), sentences, cosines


@contextmanager
def replaced(row: Row) -> Iterator[None]:
    """What a row has in the place of clusters and of texts."""
    windows = patch(
        "sail_hf.context_sail.cluster_frames", equal_windows if row.clusters == "windows" else cluster_frames
    )
    texts = patch.object(SailContext, "retrieve", cluster_means if row.texts == "means" else _RETRIEVE)
    with windows, texts:
        yield


def train_row(row: Row, folder: Path, args: EvidenceArguments) -> None:
    """Train a row into its folder."""
    # As many updates on ten times as many videos.
    share = 1.0
    if row.data != "paired":
        share = NUM_PAIRED / len(datasets.load_dataset(str(args.output / row.data), split="train"))
    model_config = {"encoder_layers": 1, "encoder_ffn_dim": 256, **row.context}
    values = {
        "clip": str(args.world / "clip"),
        "decoder": str(args.world / "small_decoder"),
        "include_text_tower": False,
        "dataset": str(args.output / row.data),
        "context_captions": str(args.output / row.bank) if row.bank else None,
        "method": "cohesion",
        "model_config": {
            **train.read_config(Path(__file__).parent / "playground.yaml")["model_config"],
            **model_config,
        },
        "captioning_epochs": args.captioning_epochs * share,
        "localization_epochs": args.localization_epochs * share,
        "per_device_train_batch_size": 8,
        "output_dir": str(folder),
        "seed": args.seed,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    trainer = train.make_trainer(*train.configured(Path(__file__).parent / "playground.yaml", **values))
    train.train(trainer, resume=True)


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
    context = SailContext(SailConfig(feature_size=features.shape[1], context_size=SIZE, context_k=K)).eval()
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
            with replaced(ROWS[name]):
                train_row(ROWS[name], folder, args)
                scores[name] = accuracy(caption_true_spans(folder, rows), rows, held)
        write_json(path, scores)
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
