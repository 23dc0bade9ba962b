"""Methods side by side at ActivityNet's size, on SIMULATED features of its real captions, times and counts.

    python training/playground/simulate_activitynet.py --train train.json --annotations val_1.json val_2.json \\
        --accuracy 75 --output outputs/simulated_75

No video and no CLIP is involved: frames and captions are features of `simulate_alignment.py`'s world, under as much noise
that, of a frame with an event, the most similar true caption of its video is that of an event there in `--accuracy`
percent. One first stage (whole-video captions), and from there a second stage of each method; each is scored by the masks
of its generator and by its whole-video captions, aligned with the frames. Under the output folder:

* `dataset/`: what the ordinary recipes take (`train.py --dataset`, `predict.py`); training reads no time stamps.
  `transition_features` stand for an LLM's guesses, which have not seen the video: the scene that the captions of the video
  have in common, and noise of the same length. `world.json` says how noisy it all is.
* `start/`: an untrained small model whose decoder knows the words, as a pretrained one does.
* `first_stage/`, a folder for each method, `table.md`.

Finished parts are kept: the same command goes on where it was stopped.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import datasets
import numpy as np
import torch
from demo import write_decoder
from recipes import build_dataset, extract_features, fit_event_counter, train
from simulate_alignment import (
    FEATURE_SIZE,
    SimulatedClip,
    SimulatedVideo,
    align_videos,
    lasting_noise,
    read_rows,
    show_frames,
    unit,
)
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser, set_seed
from transformers.hf_argparser import HfArg

from sail_hf import (
    DenseVideoCaptioningMetric,
    SailConfig,
    SailForDenseVideoCaptioning,
    SailProcessor,
    SailVideoProcessor,
)
from sail_hf.alignment_sail import ALIGNMENTS
from sail_hf.data import read_annotations, write_json, written_whole
from sail_hf.loss_sail import cosines
from sail_hf.segments_sail import cohesive_spans
from sail_hf.trainer import scored_references

NUM_FRAMES = 32
NOISE_SECONDS = 5.0
# Videos that the noise is chosen on.
CALIBRATION_VIDEOS = 500
# Mean length of a frame's features: as large beside a layer's initial outputs as those of a real CLIP, which are not of length 1.
FRAME_LENGTH = 10.0
VOCABULARY = 3000
# Most training captions that frames are replaced by: all of them.
MEMORY = 40_000
# A narrow model, as playground.yaml's; K is ActivityNet's. Two epochs need no dropout.
MODEL = {
    "num_frames": NUM_FRAMES,
    "num_queries": 14,
    "encoder_layers": 2,
    "attention_head_dim": 32,
    "encoder_ffn_dim": 512,
    "mask_decoder_ffn_dim": 256,
    "dropout": 0.0,
    "initializer_range": 0.08,
    "position_initializer_range": 0.08,
}
# Of ILCACM's code, for the paper's mask generator.
ILCACM_START = {"mask_input_dropout": 0.1}
METHODS = {
    "sail-align": {"method": "sail-align"},
    "sail": {"method": "sail", "model_config": ILCACM_START},
    "ilcacm": {"method": "ilcacm", "model_config": ILCACM_START},
    "fixed": {"method": "fixed"},
}


@dataclass
class SimulateArguments:
    annotations: list[str] = HfArg(help="Annotation files of the scored videos, references of one set.")
    train: str = HfArg(help="Annotation file of the training videos.")
    output: Path = HfArg(default=Path("outputs/simulated"), help="Folder of everything that is made.")
    accuracy: float = HfArg(default=75.0, help="Percent of the frames with an event whose best true caption is right.")
    num_train: int | None = HfArg(default=None, help="Training videos. Default: all.")
    num_videos: int | None = HfArg(default=None, help="Scored videos. Default: all.")
    first_steps: int = HfArg(default=5000, help="Updates of the first stage, which all methods share.")
    second_steps: int = HfArg(default=150, help="Updates of each second stage.")
    batch_size: int = HfArg(default=8, help="Videos an update.")
    first_learning_rate: float = HfArg(default=1.5e-3, help="Highest of the first stage.")
    second_learning_rate: float = HfArg(default=5e-4, help="Highest of the second stages.")
    methods: list[str] = HfArg(default_factory=lambda: list(METHODS), help=f"Any of {', '.join(METHODS)}.")
    seed: int = HfArg(default=0, help="Of the world, weights and orders.")

    def __post_init__(self):
        if not 0 < self.accuracy < 100:
            raise ValueError(f"--accuracy must be a percentage between 0 and 100, found {self.accuracy:g}")
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"--methods must be any of {', '.join(METHODS)}, found {', '.join(sorted(unknown))}")

    def files(self) -> dict[str, list[dict]]:
        """Rows of the annotation files by split."""
        return {"train": read_rows(self.train), "validation": read_annotations(self.annotations)}


# --- The world ----------------------------------------------------------------------------------------------------


class TextClip(SimulatedClip):
    """The text side of the simulated CLIP. What it sees in a sentence beside its words is noise, the same each time."""

    noise = 0.0

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """`(n, FEATURE_SIZE)`."""
        contents = self.encode(texts, 0.0, np.random.default_rng(0))
        return torch.from_numpy(contents + self.noise * own_noise(texts)).float()


def own_noise(texts: list[str]) -> np.ndarray:
    """Half of the frames' noise, as in `simulate_alignment.py`, decided by each text itself."""
    drawn = [np.random.default_rng(crc32(text.encode())).standard_normal(FEATURE_SIZE) for text in texts]
    return 0.5 * np.array(drawn).reshape(-1, FEATURE_SIZE)


@dataclass
class ShownVideo:
    """A video at any level of noise: contents `(N, FEATURE_SIZE)` of its captions and their noise, what its frames show
    `(T, FEATURE_SIZE)` and their noise, and which events take place `(T, N)`."""

    contents: np.ndarray
    caption_noise: np.ndarray
    shown: np.ndarray
    frame_noise: np.ndarray
    active: np.ndarray

    def frames(self, level: float) -> np.ndarray:
        return self.shown + level * self.frame_noise

    def captions(self, level: float) -> np.ndarray:
        return self.contents + level * self.caption_noise

    def hits(self, level: float) -> np.ndarray:
        """Of the frames with an event: whether the most similar caption is that of an event there."""
        best = (unit(self.frames(level)) @ unit(self.captions(level)).T).argmax(1)
        return self.active[np.arange(len(best)), best][self.active.any(1)]


def show(row: dict, clip: TextClip, rng: np.random.Generator) -> ShownVideo:
    contents = clip.encode(row["captions"], 0.0, rng)
    spans = np.clip(np.array(row["timestamps"]) / row["duration"], 0, 1)
    shown, active = show_frames(contents, spans, NUM_FRAMES)
    noise = lasting_noise(NUM_FRAMES, row["duration"] / NOISE_SECONDS, rng)
    return ShownVideo(contents, own_noise(row["captions"]), shown, noise, active)


def choose_noise(videos: list[ShownVideo], accuracy: float) -> float:
    """The level at which `accuracy` percent of the frames are right, by bisection."""
    low, high = 0.0, 2.0
    for _ in range(12):
        middle = (low + high) / 2
        right = 100 * np.concatenate([video.hits(middle) for video in videos]).mean()
        low, high = (middle, high) if right > accuracy else (low, middle)
    return (low + high) / 2


def guessed_transitions(contents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`(N - 1, FEATURE_SIZE)`: the scene, and noise of its length."""
    scene = unit(contents.mean(0))
    return unit(scene + unit(rng.standard_normal((len(contents) - 1, len(scene)))))


def write_world(args: SimulateArguments) -> None:
    """`dataset/` and `world.json`."""
    rng = np.random.default_rng(args.seed)
    files = args.files()
    clip = make_clip(files, args.seed)
    for split, limit in (("train", args.num_train), ("validation", args.num_videos)):
        files[split] = [files[split][i] for i in sorted(rng.permutation(len(files[split]))[:limit])]
    sample = [files["train"][i] for i in rng.permutation(len(files["train"]))[:CALIBRATION_VIDEOS]]
    videos = [show(row, clip, rng) for row in sample]
    level = choose_noise(videos, args.accuracy)
    scale = FRAME_LENGTH / float(np.mean([np.linalg.norm(video.frames(level), axis=1) for video in videos]))
    right, columns = {}, None
    with written_whole(args.output / "dataset") as temporary:
        temporary.mkdir()
        for split, rows in files.items():
            hits = []
            for row in tqdm(rows, desc=f"simulating {split}", unit="video"):
                video = show(row, clip, rng)
                hits.append(video.hits(level))
                row["video_features"] = (scale * video.frames(level)).astype(np.float16)
                row["caption_features"] = video.captions(level).astype(np.float16)
                row["transition_features"] = guessed_transitions(video.contents, rng).astype(np.float16)
            right[split] = 100 * float(np.concatenate(hits).mean())
            names = ("video_features", "caption_features", "transition_features")
            columns = columns or extract_features.features_of([], dict.fromkeys(names, (NUM_FRAMES, FEATURE_SIZE)))
            rows = [{name: row.get(name) for name in columns} for row in rows]
            build_dataset.write_split(datasets.Dataset.from_list(rows, features=columns), temporary, split)
    content = {"simulated": "features; captions, times and counts are real", "noise": level, "percent_right": right}
    write_json(args.output / "world.json", content)


def make_clip(files: dict[str, list[dict]], seed: int) -> TextClip:
    """The world's CLIP, before noise. It knows the words of all annotation files."""
    sets = [one for rows in files.values() for row in rows for one in row.get("references") or [row]]
    return TextClip([caption for one in sets for caption in one["captions"]], np.random.default_rng(seed))


def write_start(args: SimulateArguments) -> None:
    """`start/`: an untrained model without a CLIP, for stored features. Of the decoder's tokens that are words, the initial
    embeddings are the words' own vectors in the simulated CLIP; the rest is random."""
    files = args.files()
    write_decoder(args.output / "decoder", [c for row in files["train"] for c in row["captions"]], VOCABULARY)
    tokenizer = SailProcessor.prepare_tokenizer(AutoTokenizer.from_pretrained(args.output / "decoder"))
    processor = SailProcessor(SailVideoProcessor(num_frames=NUM_FRAMES), tokenizer)
    decoder = AutoConfig.from_pretrained(args.output / "decoder")
    decoder.vocab_size, decoder.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    decoder.resid_pdrop = decoder.embd_pdrop = decoder.attn_pdrop = 0.0
    decoder.activation_function = "gelu_pytorch_tanh"  # GPT-2's own, in one step
    set_seed(args.seed)
    fields = {"text_config": decoder, "feature_size": FEATURE_SIZE, **MODEL, **processor.prompt_ids()}
    model = SailForDenseVideoCaptioning(SailConfig.for_method("fixed", **fields))
    clip, embeddings = make_clip(files, args.seed), model.get_input_embeddings().weight.data
    words = [tokenizer.decode(token).strip().lower() for token in range(len(tokenizer))]
    known = [token for token, word in enumerate(words) if word in clip.index]
    vectors = unit(clip.vectors[[clip.index[words[token]] for token in known]])
    embeddings[known] = torch.from_numpy(vectors).to(embeddings) * embeddings.norm(dim=1).mean()
    model.generation_config.update(stated_count=True, num_beams=2, localization="alignment", alignment="unordered")
    with written_whole(args.output / "start") as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)


# --- Training -----------------------------------------------------------------------------------------------------


def train_stage(args: SimulateArguments, start: str, folder: str, steps: int, **fields) -> None:
    """Train from one model folder into another, unless it is there."""
    if (args.output / folder / train.RUN_FILE).exists():
        return
    values = {
        "model_name_or_path": str(args.output / start),
        "dataset": str(args.output / "dataset"),
        "output_dir": str(args.output / folder),
        "max_steps": steps,
        "per_device_train_batch_size": args.batch_size,
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "group_by_length",
        "save_steps": 100,
        "save_total_limit": 1,
        "logging_steps": 25,
        "report_to": "none",
        "seed": args.seed,
    }
    trainer = train.make_trainer(*HfArgumentParser(train.PARTS).parse_dict({**values, **fields}))
    # Videos of like length share a batch, so that little of it is padding.
    lengths = [sum(map(len, captions)) for captions in trainer.train_dataset["captions"]]
    trainer.train_dataset = trainer.train_dataset.add_column("length", lengths)
    train.train(trainer, resume=True)


def train_methods(args: SimulateArguments) -> None:
    first = {"captioning_epochs": 1, "localization_epochs": 0, "learning_rate": args.first_learning_rate}
    second = {"captioning_epochs": 0, "localization_epochs": 1, "learning_rate": args.second_learning_rate}
    train_stage(args, "start", "first_stage", args.first_steps, **first)
    for method in args.methods:
        train_stage(args, "first_stage", method, args.second_steps, **second, **METHODS[method])


# --- Scores -------------------------------------------------------------------------------------------------------


@dataclass
class Captioned:
    """Sentences of the scored videos, their similarities `(N, T)` to the frames, and spans `(N, 2)` in [0, 1]: the mask
    generator's, and of the frames' cohesion. A video without a sentence has one empty one."""

    texts: list[list[str]]
    similarities: list[np.ndarray]
    mask_spans: list[np.ndarray]
    cohesive_spans: list[np.ndarray]


def scored_videos(args: SimulateArguments) -> datasets.Dataset:
    return datasets.load_dataset(str(args.output / "dataset"), split="validation").with_format("numpy")


@torch.no_grad()
def caption(args: SimulateArguments, folder: str, clip: TextClip, batch_size: int = 64) -> Captioned:
    """Whole-video captions of a model, made once for every localisation of their sentences."""
    model = SailForDenseVideoCaptioning.from_pretrained(args.output / folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.output / folder)
    found, data = Captioned([], [], [], []), scored_videos(args).select_columns("video_features")
    with tqdm(total=len(data), desc=f"captioning by {folder}", unit="video") as progress:
        for batch in data.iter(batch_size):
            features = torch.from_numpy(np.stack(batch["video_features"])).float()
            frame_mask = torch.ones(features.shape[:2], dtype=torch.long)
            sequences = model.describe(features, frame_mask, tokenizer).tolist()
            # As many as there are frames at most, as in `generate`.
            rows = [model.split_sentences(row)[:NUM_FRAMES] or [[]] for row in sequences]
            texts = [tokenizer.batch_decode(row, skip_special_tokens=True) for row in rows]
            counts = [min(len(row), model.config.num_queries) for row in rows]
            centers, widths, _ = model.model.localize(features, frame_mask, torch.tensor(counts))
            spans = torch.stack([centers - widths / 2, centers + widths / 2], -1).clamp(0, 1).numpy()
            found.texts += texts
            found.mask_spans += [row[:count] for row, count in zip(spans, counts, strict=True)]
            found.cohesive_spans += cohesive(features, counts, model.config)
            found.similarities += [similarities(clip, *pair) for pair in zip(texts, features, strict=True)]
            progress.update(len(rows))
    return found


def cohesive(features: torch.Tensor, counts: list[int], config: SailConfig) -> list[np.ndarray]:
    """Spans `(N, 2)` in [0, 1] by the frames `(B, T, D)` alone, as of `generate(localization="cohesion")`."""
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    costs = config.cohesion_weight, config.cohesion_gap_cost
    spans = cohesive_spans(features, torch.ones(features.shape[:2]), valid, *costs).double().numpy()
    return [row[:count] for row, count in zip(spans, counts, strict=True)]


def similarities(clip: TextClip, texts: list[str], frames: torch.Tensor) -> np.ndarray:
    return cosines(clip.encode_texts(texts)[None], frames[None])[0].double().numpy()


def align(similarities: list[np.ndarray], alignment: str) -> list[np.ndarray]:
    """Spans `(N, 2)` in [0, 1] of each video's sentences."""
    videos = [SimulatedVideo(of_video, np.zeros((len(of_video), 2)), np.zeros(0)) for of_video in similarities]
    return np.split(align_videos(videos, ALIGNMENTS[alignment]), np.cumsum([len(of) for of in similarities])[:-1])


def score(args: SimulateArguments, spans: list[np.ndarray], texts: Sequence[Sequence[str]]) -> dict:
    """The metric's scores of boundaries against both references, with controls; and how often the number is the first's."""
    references = list(scored_references(scored_videos(args)).values())
    predictions = [
        [
            {"timestamp": list(span), "sentence": text}
            for span, text in zip(of_video * sets[0]["duration"], row, strict=True)
        ]
        for of_video, row, sets in zip(spans, texts, references, strict=True)
    ]
    metrics = ("localization", "controls")
    scores = DenseVideoCaptioningMetric().compute(predictions=predictions, references=references, metrics=metrics)
    true = [len(sets[0]["timestamps"]) for sets in references]
    return scores | {"event_count_accuracy": float(np.mean([len(a) == b for a, b in zip(spans, true, strict=True)]))}


def score_method(args: SimulateArguments, method: str, clip: TextClip) -> dict[str, dict]:
    """Scores by localisation: the mask generator's, and the generated captions aligned with the frames."""
    found = caption(args, method, clip)
    texts = [row[: len(spans)] for row, spans in zip(found.texts, found.mask_spans, strict=True)]
    scores = {"masks": score(args, found.mask_spans, texts), "cohesion": score(args, found.cohesive_spans, texts)}
    return scores | {name: score(args, align(found.similarities, name), found.texts) for name in ALIGNMENTS}


def score_true_captions(args: SimulateArguments, clip: TextClip) -> dict[str, dict]:
    """As [`score_method`], for the captions of the first annotation file that has the video, hence with its count."""
    rows = scored_videos(args).select_columns(["captions", "video_features"])
    found = [
        similarities(clip, list(row["captions"]), torch.from_numpy(row["video_features"]).float()) for row in rows
    ]
    captions = list(rows["captions"])
    return {name: score(args, align(found, name), captions) for name in ALIGNMENTS}


def score_frames_alone(args: SimulateArguments, caption_memory: int) -> dict[str, dict]:
    """Cohesion of the frames, raw or as a memory of at most so many training captions has them, with numbers by frames, fitted
    to those of the training captions, and with the first annotation file's: no captioner at all."""
    model = SailForDenseVideoCaptioning.from_pretrained(args.output / "start", event_counter=True)
    train_set = datasets.load_dataset(str(args.output / "dataset"), split="train").with_format("numpy")
    print(fit_event_counter.fit_event_counter(model, train_set, caption_memory, args.seed))
    found = {"cohesion": [], "cohesion, true counts": []}
    for batch in scored_videos(args).select_columns(["video_features", "captions"]).iter(16):
        features = model.model.as_captions(torch.from_numpy(np.stack(batch["video_features"])).float())
        numbers = model.model.event_counter(features, torch.ones(features.shape[:2])).argmax(1) + 1
        for spans, counts in zip(found.values(), (numbers.tolist(), list(map(len, batch["captions"]))), strict=True):
            spans += cohesive(features, counts, model.config)
    return {name: score(args, spans, [[""] * len(of_video) for of_video in spans]) for name, spans in found.items()}


# --- The table ----------------------------------------------------------------------------------------------------

COLUMNS = {
    "f1": "F1",
    "lift": "lift",
    "f1_one_to_one": "F1 1:1",
    "repeats": "repeats",
    "event_count_accuracy": "right counts",
    "center_correlation": "centre r",
    "width_correlation": "width r",
}
# Rows that look at no video, with the counts of the method they stand below, or the true ones.
CONTROLS = {
    "equal spans 1/N, own counts": "f1_equal_spans",
    "equal spans 1.5/N, own counts": "f1_equal_spans_1.5",
    "equal spans 1/N, true counts": "f1_equal_spans_reference_counts",
    "equal spans 1.5/N, true counts": "f1_equal_spans_1.5_reference_counts",
    "the same three spans for every video": "f1_three_spans",
}


def format_scores(scores: dict[str, dict[str, dict]]) -> str:
    """A Markdown table of the scores by method and localisation; in percent but for the correlations."""
    rows = {}
    for method, kinds in scores.items():
        for kind, of_kind in kinds.items():
            rows[f"{method}, {f'captions aligned, {kind}' if kind in ALIGNMENTS else kind}"] = of_kind
    first = next(iter(rows.values()))
    rows |= {title: {"f1": first[key]} for title, key in CONTROLS.items()}

    def cell(row: dict, key: str) -> str:
        value = row.get(key)
        return "" if value is None else f"{value:.2f}" if key.endswith("correlation") else f"{100 * value:.1f}"

    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---" + "|---:" * len(COLUMNS) + "|"]
    lines += [f"| {title} | {' | '.join(cell(row, key) for key in COLUMNS)} |" for title, row in rows.items()]
    return "\n".join(lines)


def kept(path: Path, compute) -> dict:
    """What a JSON file holds, or `compute()`, written there."""
    if not path.exists():
        write_json(path, compute())
    return json.loads(path.read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(SimulateArguments, description=__doc__)
    try:
        (args,) = parser.parse_args_into_dataclasses(argv)
        settings = {name: value for name, value in asdict(args).items() if name not in ("output", "methods")}
        if (found := kept(args.output / "settings.json", lambda: settings)) != settings:
            raise ValueError(
                f"{args.output} holds what was made with {found}, not with {settings}: choose another --output"
            )
        if not (args.output / "world.json").exists():
            write_world(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    world = json.loads((args.output / "world.json").read_text(encoding="utf-8"))
    if not (args.output / "start").exists():
        write_start(args)
    train_methods(args)
    clip = make_clip(args.files(), args.seed)
    clip.noise = world["noise"]
    scores = {
        method: kept(args.output / method / "scores.json", lambda method=method: score_method(args, method, clip))
        for method in args.methods
    }
    for name, most in {"frames alone": 0, "frames by a memory of captions": MEMORY}.items():
        file = args.output / f"{name.replace(' ', '_')}.json"
        scores[name] = kept(file, lambda most=most: score_frames_alone(args, most))
    scores["true"] = kept(args.output / "true_captions.json", lambda: score_true_captions(args, clip))
    right = world["percent_right"]["validation"]
    title = f"SIMULATED features; a frame's best true caption is right in {right:.1f} % of the frames with an event."
    table = f"{title}\n\n{format_scores(scores)}\n"
    with written_whole(args.output / "table.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    print(f"\n{table}\nWrote {args.output / 'table.md'}")


if __name__ == "__main__":
    main()
