"""The whole job from nothing, on videos that it renders: `make demo`.

Renders the playground, trains a small CLIP on its stills, extracts features, trains SAIL on captions alone, and captions
videos that no training has seen: scores, pictures, subtitles and a checkpoint under the output folder.
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from recipes import extract_features, train
from scipy.optimize import linear_sum_assignment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train_clip import ClipArguments, train_clip
from transformers import GPT2Config, HfArgumentParser, PreTrainedTokenizerFast, pipeline, set_seed
from world import actor_in, render_playground

from sail_hf import DenseVideoCaptioningMetric
from sail_hf.data import write_json
from sail_hf.export import format_srt, format_vtt
from sail_hf.metric import METRICS, format_table
from sail_hf.metric_localization import interval_iou
from sail_hf.visualization import format_html, plot_events

CONFIG = Path(__file__).parent / "playground.yaml"


@dataclass
class DemoArguments:
    output: Path = field(default=Path("outputs/demo"), metadata={"help": "Folder of everything that the demo writes."})
    num_train: int = field(default=1000, metadata={"help": "Videos to learn from."})
    num_test: int = field(default=60, metadata={"help": "Videos to score on."})
    num_pictures: int = field(default=6, metadata={"help": "Test videos that are drawn and subtitled."})
    seed: int = field(default=0, metadata={"help": "Seed of the world, of all weights and of all orders."})
    training: str = field(
        default="{}", metadata={"help": 'Other values for playground.yaml, as JSON: \'{"method": "ilcacm"}\'.'}
    )


@contextmanager
def step(name: str, seconds: dict[str, float]):
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def write_decoder(folder: Path, captions: list[str], vocab_size: int = 1000) -> None:
    """A byte-level BPE tokenizer of the captions, as GPT-2's is of the web, and the configuration of a small GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*captions, "1 events: 2 events: "], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)
    fast.save_pretrained(folder)
    GPT2Config(
        vocab_size=len(fast),
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.08,
    ).save_pretrained(folder)


def match(events: list[dict], reference: dict) -> list[tuple[dict, str]]:
    """(event, true sentence) pairs: the one-to-one assignment of most total tIoU, pairs that do not overlap left out."""
    if not events:
        return []
    iou = np.array(
        [
            [interval_iou(np.array([e["start"], e["end"]]), np.array(t)) for t in reference["timestamps"]]
            for e in events
        ]
    )
    rows, columns = linear_sum_assignment(-iou)
    return [(events[i], reference["sentences"][j]) for i, j in zip(rows, columns, strict=True) if iou[i, j] > 0]


def score(results: dict[str, list[dict]], references: dict[str, dict], metrics: Sequence[str] = METRICS) -> dict:
    """The metric's scores, and the playground's own: event counts, actors, and the fixed method's F1."""
    predictions = [
        [{"timestamp": [e["start"], e["end"]], "sentence": e["text"]} for e in results[video]] for video in references
    ]
    sets = [
        {"timestamps": r["timestamps"], "sentences": r["sentences"], "duration": r["duration"]}
        for r in references.values()
    ]
    scores = DenseVideoCaptioningMetric().compute(predictions=predictions, references=sets, metrics=metrics)
    pairs = [pair for video, reference in references.items() for pair in match(results[video], reference)]
    scores["event_count_accuracy"] = float(
        np.mean([len(results[video]) == len(r["sentences"]) for video, r in references.items()])
    )
    scores["actor_accuracy"] = float(np.mean([actor_in(e["text"]) == actor_in(true) for e, true in pairs]))
    scores["num_matched_sentences"] = len(pairs)
    # The fixed method's boundaries are N equal spans of the counts at hand, which is what this control is.
    scores["f1_fixed"] = scores["f1_equal_spans"]
    return scores


def draw(folder: Path, pipe, video: Path, events: list[dict], reference: dict) -> None:
    """One test video as a picture, a page and subtitles."""
    duration = reference["duration"]
    times = torch.tensor([[event["start"], event["end"]] for event in events]) / duration
    # The masks that these events have in the model, as fine curves.
    masks = pipe.model.model.make_masks(times.mean(1)[None], (times[:, 1] - times[:, 0])[None], torch.ones(1, 200))[0]
    truth = [
        {"start": start, "end": end, "text": text}
        for (start, end), text in zip(reference["timestamps"], reference["sentences"], strict=True)
    ]
    figure = plot_events(str(video), events, masks, truth, title=video.stem)
    figure.savefig(folder / f"{video.stem}.png", dpi=110)
    page = format_html(events, os.path.relpath(video, folder), title=video.stem)
    for suffix, text in (("srt", format_srt(events)), ("vtt", format_vtt(events)), ("html", page)):
        (folder / f"{video.stem}.{suffix}").write_text(text, encoding="utf-8")


def summary(scores: dict[str, dict]) -> str:
    """One line a localisation, and the rows that look at no video."""
    lines = [f"{'':<40}{'P':>7}{'R':>7}{'F1':>7}{'lift':>7}{'count':>7}{'actor':>7}"]
    for name, row in scores.items():
        values = (row[key] for key in ("precision", "recall", "f1", "lift", "event_count_accuracy", "actor_accuracy"))
        lines.append(f"{name:<40}" + "".join(f"{100 * value:7.1f}" for value in values))
    # Given by the counts alone, whatever the localisation.
    own = next(iter(scores.values()))
    controls = {
        "fixed masks (equal spans, own counts)": "equal_spans",
        "equal spans, true counts": "equal_spans_reference_counts",
    }
    for name, key in controls.items():
        values = (own[f"{part}_{key}"] for part in ("precision", "recall", "f1"))
        lines.append(f"{name:<40}" + "".join(f"{100 * value:7.1f}" for value in values))
    return "\n".join(lines)


def make_world(out: Path, num_train: int, num_test: int, seed: int, seconds: dict[str, float]) -> None:
    """All that training needs, under `out`: playground, CLIP, data set with features, and the decoder's folder."""
    world, clip = out / "playground", out / "clip"
    set_seed(seed)
    with step("Rendering the playground (rendered videos, not real ones)", seconds):
        render_playground(world, num_train, num_test, seed=seed)
    with step("Training a small CLIP on rendered stills", seconds):
        train_clip(ClipArguments(pictures=str(world / "pictures"), output=str(clip), seed=seed))
    with step("Extracting features", seconds):
        extract_features.extract_features(
            extract_features.ExtractArguments(
                annotations=[str(world / "train.json")],
                videos=str(world / "videos"),
                clip=str(clip),
                output=str(out / "dataset"),
                num_frames=48,
            )
        )
        rows = json.loads((world / "train.json").read_text()).values()
        write_decoder(out / "decoder", [text for row in rows for text in row["sentences"]])


def train_sail(out: Path, checkpoint: Path, seed: int, **fields) -> None:
    """Train on the world under `out`; `fields` replace those of the playground's configuration."""
    parts = {part: str(out / part) for part in ("clip", "decoder", "dataset")}
    arguments = train.configured(CONFIG, **{**parts, "output_dir": str(checkpoint), "seed": seed, **fields})
    train.train(train.make_trainer(*arguments), resume=True)


def caption_test_videos(pipe, out: Path) -> dict[str, dict[str, list[dict]]]:
    """Events of the test videos by localisation and video: each one's, and alignment of the true captions."""
    references = json.loads((out / "playground" / "test.json").read_text())
    paths = [str(out / "playground" / "videos" / f"{video}.mp4") for video in references]
    given = [reference["sentences"] for reference in references.values()]
    # Sentences are aligned with finer frames than those they were written from.
    finer = {"frames_per_second": 4}
    events = {
        "masks": pipe(paths, batch_size=8, localization="masks"),
        "cohesion": pipe(paths, batch_size=8, localization="cohesion"),
        "alignment": pipe(paths, batch_size=8, localization="alignment", **finer),
        "true captions, aligned": pipe(paths, captions=given, gap_level=0.75, **finer),
    }
    return {name: dict(zip(references, of_videos, strict=True)) for name, of_videos in events.items()}


def main() -> None:
    (args,) = HfArgumentParser(DemoArguments, description=__doc__).parse_args_into_dataclasses()
    out, seconds = args.output, {}
    world, checkpoint = out / "playground", out / "checkpoint"
    make_world(out, args.num_train, args.num_test, args.seed, seconds)
    with step("Training SAIL on captions alone", seconds):
        train_sail(out, checkpoint, args.seed, **json.loads(args.training))
    with step("Captioning videos never seen in training", seconds):
        references = json.loads((world / "test.json").read_text())
        pipe = pipeline("dense-video-captioning", model=str(checkpoint))
        default = pipe.model.generation_config.localization
        results = caption_test_videos(pipe, out)
    with step("Scoring and drawing", seconds):
        # METEOR and the like for the default alone: the others are there for their times.
        times = ("localization", "controls")
        scores = {
            name: score(result, references, METRICS if name == default else times) for name, result in results.items()
        }
        for video in list(references)[: args.num_pictures]:
            draw(out, pipe, world / "videos" / f"{video}.mp4", results[default][video], references[video])
        content = {**scores[default], "localization": default, "by_localization": scores, "seconds": seconds}
        write_json(out / "scores.json", content)

    best = scores[default]
    video = world / "videos" / f"{next(iter(references))}.mp4"
    print(
        f"\n{format_table(best, name=f'sail, {default}')}\n\n{summary(scores)}\n\n"
        f"On {len(references)} unseen videos, with {default}: the number of events is right in "
        f"{best['event_count_accuracy']:.0%}, the actor in {best['actor_accuracy']:.0%} of "
        f"{best['num_matched_sentences']} sentences matched by tIoU.\n"
        f"Pictures, pages and subtitles: {out}\nModel: {checkpoint}\nNext:\n"
        f"  .venv/bin/sail caption {video} --model {checkpoint}"
    )


if __name__ == "__main__":
    main()
