"""Variants of the method side by side, over seeds: the table of a study, on any data set with features.

    python training/ablate.py training/ablations/table4.yaml --dataset data/activitynet --seeds 0 1 2 --output outputs/table4

A preset is a YAML file:

    title: Table 4, what each part adds
    config: ../configs/activitynet.yaml      # fields of train.py
    training: {learning_rate: 1.0e-4}        # optional: of all variants, instead of the config's; --training wins over both
    columns: [soda_c, cider, f1, lift]       # of COLUMNS in ablation_table.py; default: all of them but a study's own
    look_every: 100                          # optional: updates between looks at the masks of the --look_split, drawn
    coverage: true                           # optional: also a table of how much of the videos events cover
    variants:
      first stage:
        train: {localization_epochs: 0}
        rows: {}                             # not scored
      SAIL:
        train: {method: sail}                # fields of train.py; mappings are merged with those of the config
        start: first stage                   # optional: goes on from that variant's run
        keep_transitions: 0.25               # optional: share of the synthetic captions; keep_captions: of the captions
        counts: first stage                  # optional: numbers of events are those that this variant's run captions
        rows:                                # optional: how it is scored, a row each; default: as its checkpoint says
          masks: {localization: masks}       # fields of the generation config
          aligned: {captions: generated, alignment: ordered}    # its whole-video caption, aligned with the finest frames
          true captions: {captions: given, alignment: ordered}   # those of the data set, likewise
        published: {f1: 57.00}               # in percent, printed below the first row

The first row is what the others are tested against. `{seed}` in any text stands for the seed: `--dataset worlds/seed_{seed}`.
What is finished is kept in the output folder, so the same command goes on where it was, and several processes can share
the work: each takes runs that no other has taken. `table.md` and `table.json` hold what is finished by then.
"""

import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import train
import transformers
import yaml
from ablation_table import COLUMNS, coverage_table, draw_looks, table
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from training_data import TimeWarped
from transformers import HfArgumentParser, PrinterCallback, TrainerCallback, pipeline
from transformers.hf_argparser import HfArg

from sail_hf import DenseVideoCaptioningMetric, SailTrainer
from sail_hf.data import REFERENCE_COLUMNS, reference_sets, submission, write_json
from sail_hf.metric import METRICS


@dataclass
class AblateArguments:
    preset: Path = HfArg(help="YAML file of the study.")
    dataset: str = HfArg(help="Data set with features to train on (extract_features.py), folder or name.")
    output: Path = HfArg(help="Folder of all runs and of the table.")
    eval_dataset: str | None = HfArg(default=None, help="Data set to score on. Default: --dataset.")
    eval_split: str = HfArg(default="validation", help="Its split.")
    look_split: str | None = HfArg(default=None, help="Split whose masks are looked at. Default: --eval_split.")
    fine_dataset: str | None = HfArg(default=None, help="The same videos with more frames, to align captions with.")
    seeds: list[int] = HfArg(default_factory=lambda: [0, 1, 2], help="A run of every variant for each.")
    training: str = HfArg(default="{}", help="Fields of train.py for all variants, as JSON.")
    metrics: list[str] = HfArg(default_factory=lambda: list(METRICS), help=f"Any of {' '.join(METRICS)}; default all.")


@dataclass
class Variant:
    """An entry of `variants`; see the description of a preset above."""

    train: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    keep_transitions: float = 1.0
    keep_captions: float = 1.0
    counts: str | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    published: dict[str, float] = field(default_factory=dict)


@dataclass
class Preset:
    title: str
    config: str
    variants: dict[str, Variant]
    training: dict[str, Any] = field(default_factory=dict)
    columns: list[str] = field(default_factory=lambda: [name for name, column in COLUMNS.items() if column.always])
    look_every: int | None = None
    coverage: bool = False
    note: str = ""

    @classmethod
    def read(cls, path: Path) -> "Preset":
        """A preset from its file (OSError, ValueError: it cannot be read, or says what no preset says)."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(content, dict) or not {"title", "config", "variants"} <= content.keys():
            raise ValueError(f"{path}: expected title, config and variants, found {str(content)[:80]!r}.")
        variants = content["variants"]
        _check_names(path, "A preset", content, [field.name for field in fields(cls)])
        _check_names(path, "`columns`", content.get("columns", ()), COLUMNS)
        for number, (name, values) in enumerate(variants.items()):
            _check_names(path, f"Variant {name!r}", values, [field.name for field in fields(Variant)])
            _check_names(path, f"`published` of {name!r}", values.get("published", ()), COLUMNS)
            for earlier in (values.get("start"), values.get("counts")):
                if earlier is not None and earlier not in list(variants)[:number]:
                    raise ValueError(f"{path}: {name!r} needs {earlier!r}, which is no variant before it.")
        content["config"] = str(path.parent / content["config"])
        content["variants"] = {name: Variant(**values) for name, values in variants.items()}
        return cls(**content)


def _check_names(path: Path, where: str, found: Any, known: Any) -> None:
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"{path}: {where} has {', '.join(unknown)}; expected any of {', '.join(known)}.")


def title_of(name: str, row: str) -> str:
    """Of a row of the table."""
    return f"{name}, {row}" if row else name


def with_seed(value: Any, seed: int) -> Any:
    """A value of a preset or of the command line with the seed in its texts."""
    if isinstance(value, dict):
        return {name: with_seed(item, seed) for name, item in value.items()}
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else value


# --- Data ---------------------------------------------------------------------------------------------------------


def thinned(data: datasets.Dataset, keep_captions: float, keep_transitions: float, seed: int) -> datasets.Dataset:
    """Rows with a random share of their captions (in order, at least one) or of their synthetic captions.

    A gap whose synthetic caption is left out has features of 0, which have no gradient in Eq. 3. Where captions are left out,
    the synthetic ones between them no longer stand between neighbours, and all are left out.
    """
    draw, rows = random.Random(seed), data.with_format(None)
    columns: dict[str, list] = {}
    if keep_captions < 1:
        kept = []
        for captions in rows["captions"]:
            chosen = [i for i in range(len(captions)) if draw.random() < keep_captions]
            kept.append(chosen or [draw.randrange(len(captions))])
        for name in {"captions", "caption_features"} & set(data.column_names):
            columns[name] = [[row[i] for i in of_row] for row, of_row in zip(rows[name], kept, strict=True)]
        data = data.remove_columns([name for name in data.column_names if name.startswith("transition")])
    elif keep_transitions < 1:
        columns["transition_features"] = [
            [list(one) if draw.random() < keep_transitions else [0.0] * len(one) for one in row or []]
            for row in rows["transition_features"]
        ]
    if not columns:
        return data
    features = datasets.Features({name: data.features[name] for name in columns})
    small = datasets.Dataset.from_dict(columns, features=features)
    rest = data.with_format(None).remove_columns(list(columns))
    return datasets.concatenate_datasets([rest, small], axis=1).with_format("numpy")


@dataclass
class Scored:
    """Videos of a split: rows of stored features, with finer ones to align with, and references by video id."""

    rows: list[dict[str, Any]]
    fine: list[dict[str, Any]]
    references: dict[str, list[dict[str, Any]]]

    @classmethod
    def load(cls, name: str, split: str, fine: str | None) -> "Scored":
        """Raises ValueError where what is scored lacks columns, or videos in `fine`."""
        data = datasets.load_dataset(name, split=split)
        if missing := {"video_id", "duration", "captions", "timestamps", "video_features"} - set(data.column_names):
            raise ValueError(f"{name}, split {split}, lacks {', '.join(sorted(missing))}, which scoring needs.")
        references = reference_sets(
            list(data.select_columns([c for c in REFERENCE_COLUMNS if c in data.column_names]))
        )
        columns = ["video_id", "duration", "captions", "video_features"]
        rows = list(data.select_columns(columns).with_format("numpy"))
        finer = rows
        if fine:
            found = datasets.load_dataset(fine, split=split).select_columns(columns).with_format("numpy")
            by_id = {str(row["video_id"]): row for row in found}
            if lost := [row["video_id"] for row in rows if str(row["video_id"]) not in by_id]:
                raise ValueError(f"{fine}, split {split}, lacks {len(lost)} of {len(rows)} videos, e.g. {lost[0]}.")
            finer = [by_id[str(row["video_id"])] for row in rows]
        return cls(rows, [_finest(row) for row in finer], references)


def _finest(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose features are a `(L, D)` array; rows of various lengths are read as arrays of arrays."""
    return {**row, "video_features": np.stack([np.asarray(one, dtype=np.float32) for one in row["video_features"]])}


# --- A run --------------------------------------------------------------------------------------------------------


class MaskLooks(TrainerCallback):
    """Every so many updates, and at the end: the masks of some videos, given their true numbers of events.

    A look holds F1, lift and correlations as fractions, the standard deviation of the widths of a video's events (mean, least
    and largest over the videos), and centres and widths of the first videos. All looks stand in `looks.json`.
    """

    def __init__(self, trainer: SailTrainer, scored: Scored, every: int | None, path: Path):
        self.trainer, self.scored, self.every, self.path = trainer, scored, every, path
        self.looks: list[dict[str, Any]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        found = json.loads(self.path.read_text()) if self.path.exists() else []
        self.looks = [look for look in found if look["step"] < state.global_step]
        if self.every:
            self._look(state)

    def on_step_end(self, args, state, control, **kwargs):
        if self.every and state.global_step % self.every == 0:
            self._look(state)

    def on_train_end(self, args, state, control, **kwargs):
        if not self.looks or self.looks[-1]["step"] < state.global_step:
            self._look(state)

    def _look(self, state) -> None:
        model = self.trainer.model
        training = model.training
        model.eval()
        look = {"step": state.global_step, **look_at_masks(model, self.scored)}
        model.train(training)
        self.looks.append(look)
        write_json(self.path, self.looks)


@torch.no_grad()
def look_at_masks(model, scored: Scored, num_shown: int = 3) -> dict[str, Any]:
    """A look of [`MaskLooks`], less its step."""
    most, found = model.config.num_queries, []
    for start in range(0, len(scored.rows), 32):
        part = scored.rows[start : start + 32]
        values = torch.stack([torch.as_tensor(row["video_features"], dtype=torch.float32) for row in part])
        features, frame_mask = model.model.prepare_features(video_features=values.to(model.device))
        counts = torch.tensor([min(len(row["captions"]), most) for row in part], device=model.device)
        centers, widths, _ = model.model.localize(features, frame_mask, counts)
        for count, *spans in zip(counts.tolist(), centers.tolist(), widths.tolist(), strict=True):
            found.append([value[:count] for value in spans])
    predictions = [
        [
            {"timestamp": [max(c - w / 2, 0) * row["duration"], min(c + w / 2, 1) * row["duration"]], "sentence": ""}
            for c, w in zip(*spans, strict=True)
        ]
        for row, spans in zip(scored.rows, found, strict=True)
    ]
    scores = scores_of(predictions, list(scored.references.values()), ["localization", "controls"])
    spreads = [float(np.std(widths)) for _, widths in found if len(widths) > 1]
    names = ("f1", "lift", "center_correlation", "width_correlation", "f1_equal_spans")
    return {
        **{name: scores[name] for name in names},
        **dict(zip(("width_sd_mean", "width_sd_min", "width_sd_max"), _spread(spreads), strict=True)),
        "shown": {str(row["video_id"]): spans for row, spans in zip(scored.rows[:num_shown], found, strict=False)},
    }


def _spread(values: list[float]) -> tuple[float | None, ...]:
    return (float(np.mean(values)), min(values), max(values)) if values else (None,) * 3


def scores_of(predictions: list, references: list, metrics: list[str]) -> dict[str, Any]:
    return DenseVideoCaptioningMetric().compute(predictions=predictions, references=references, metrics=metrics)


class Progress(TrainerCallback):
    """Moves the bar of all runs by this run's share."""

    def __init__(self, bar: tqdm):
        self.bar, self.share = bar, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step / state.max_steps - self.share)
        self.share = state.global_step / state.max_steps


def start_memory() -> None:
    """Peaks of memory count from here on, where the system can forget an earlier one."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (forget := Path("/proc/self/clear_refs")).exists():
        forget.write_text("5")


def peak_memory() -> float | None:
    """GiB since [`start_memory`]: of the GPU, else of the process (resident); `None` where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 2**20


class Study:
    """A preset with its arguments: what is to be run, what each run is made of, and what came out."""

    def __init__(self, args: AblateArguments):
        self.args, self.preset = args, Preset.read(args.preset)
        self.everywhere = json.loads(args.training)

    def folder(self, name: str, seed: int) -> Path:
        return self.args.output / f"seed_{seed}" / name.replace(", ", "_").replace(" ", "_").replace("/", "_")

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """All that decides a run of a variant."""
        variant, common = self.preset.variants[name], train.read_config(self.preset.config)
        values = {"dataset": self.args.dataset}
        for part in (common, self.preset.training, self.everywhere, variant.train):
            for field_name, value in part.items():
                old = values.get(field_name)
                both = isinstance(value, dict) and isinstance(old, dict)
                values[field_name] = {**old, **value} if both else value
        values["dataset"] = self.args.dataset
        if variant.start:
            values["model_name_or_path"] = str(self.folder(variant.start, seed))
        if values.get("model_name_or_path"):
            values.update(dict.fromkeys(train.BROUGHT))
        settings = {"train": with_seed(values, seed), "seed": seed}
        settings |= {part: getattr(variant, part) for part in ("keep_captions", "keep_transitions", "counts")}
        return settings | ({"start": self.settings(variant.start, seed)} if variant.start else {})

    def load(self, seed: int, split: str) -> Scored:
        name = self.args.eval_dataset or self.args.dataset
        return Scored.load(with_seed(name, seed), split, with_seed(self.args.fine_dataset, seed))

    def run(self, name: str, seed: int, bar: tqdm) -> None:
        """Train and score a variant, or what of it is missing (ValueError: the folder holds runs of other settings)."""
        folder, settings, variant = self.folder(name, seed), self.settings(name, seed), self.preset.variants[name]
        check_same(folder / "settings.json", settings)
        with (folder / "log.txt").open("a") as log, redirect_stdout(log):
            if not (folder / "run.json").exists():
                self._train(folder, settings, seed, bar)
            scores = {}
            if (folder / "scores.json").exists():
                scores = json.loads((folder / "scores.json").read_text())
            rows = {row: self._how(options, seed) for row, options in variant.rows.items()}
            if other := [row for row, how in rows.items() if row in scores and scores[row]["how"] != how]:
                raise ValueError(
                    f"{folder} holds scores of other settings ({', '.join(other)}): remove scores.json there."
                )
            if rows.keys() - scores.keys():
                self._score(folder, variant, seed, scores)

    def _how(self, options: dict[str, Any], seed: int) -> dict[str, Any]:
        """All that decides the scores of a row, beside the run."""
        data = [self.args.eval_dataset, self.args.eval_split, self.args.fine_dataset]
        return {"options": options, "metrics": self.args.metrics, "data": [with_seed(one, seed) for one in data]}

    def _train(self, folder: Path, settings: dict[str, Any], seed: int, bar: tqdm) -> None:
        resumed = any(folder.glob("checkpoint-*"))
        own = {"output_dir": str(folder), "seed": seed, "disable_tqdm": True}
        start_memory()
        trainer = train.make_trainer(*train.configured(self.preset.config, **{**settings["train"], **own}))
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Progress(bar))
        shares = settings["keep_captions"], settings["keep_transitions"]
        data = trainer.train_dataset
        if isinstance(data, TimeWarped):
            data.data = thinned(data.data, *shares, seed)
        else:
            trainer.train_dataset = thinned(data, *shares, seed)
        looks = None
        if trainer.args.localization_epochs:
            scored = self.load(seed, self.args.look_split or self.args.eval_split)
            looks = MaskLooks(trainer, scored, self.preset.look_every, folder / "looks.json")
            trainer.add_callback(looks)
        begin = time.perf_counter()
        train.train(trainer, resume=True)
        found = {"updates": trainer.state.global_step, "memory_gib": peak_memory()}
        if not resumed:
            found["train_minutes"] = (time.perf_counter() - begin) / 60
        if looks:
            found |= {name: value for name, value in looks.looks[-1].items() if name.startswith("width_sd")}
        write_json(folder / "run.json", found)

    def _score(self, folder: Path, variant: Variant, seed: int, scores: dict[str, dict]) -> None:
        scored = self.load(seed, self.args.eval_split)
        pipe = pipeline("dense-video-captioning", model=str(folder))
        counts = None
        if variant.counts:
            counts = numbers_of_events(self.folder(variant.counts, seed), scored)
        sentences: dict[str, list[str]] = {}
        for row, options in variant.rows.items():
            if row in scores:
                continue
            begin = time.perf_counter()
            events = locate(pipe, scored, options, counts, sentences)
            minutes = (time.perf_counter() - begin) / 60
            write_json(folder / f"events_{len(scores)}.json", submission(events))
            predictions = [
                [{"timestamp": [e["start"], e["end"]], "sentence": e["text"]} for e in events[video]]
                for video in scored.references
            ]
            found = scores_of(predictions, list(scored.references.values()), self.args.metrics)
            true = [len(sets[0]["sentences"]) for sets in scored.references.values()]
            errors = np.abs([len(of_video) for of_video in predictions] - np.array(true))
            found |= {"event_count_accuracy": float((errors == 0).mean()), "event_count_error": float(errors.mean())}
            own = {"events": f"events_{len(scores)}.json", "how": self._how(options, seed)}
            scores[row] = {**found, "caption_minutes": minutes, **own}
            write_json(folder / "scores.json", scores)


def locate(
    pipe, scored: Scored, options: dict[str, Any], counts: dict[str, int] | None, sentences: dict[str, list[str]]
) -> dict[str, list[dict]]:
    """Events of all videos as a row of a preset asks for them, by video id.

    `sentences`: of the whole-video captions by video, written once and then kept for further rows.
    """
    ids = [str(row["video_id"]) for row in scored.rows]
    options = dict(options)
    source = options.pop("captions", None)
    if source is None:
        return dict(zip(ids, captioned(pipe, scored.rows, counts, **options), strict=True))
    if source not in ("generated", "given"):
        raise ValueError(f"`captions` of a row must be generated or given, found {source!r}.")
    given = {video: list(row["captions"]) for video, row in zip(ids, scored.rows, strict=True)}
    if source == "generated":
        if not sentences:
            # In order, so that the events stand as their sentences were written.
            written = captioned(pipe, scored.rows, None, localization="alignment", alignment="ordered")
            sentences.update(zip(ids, [[e["text"] for e in events] for events in written], strict=True))
        given = {video: [text for text in texts if text.strip()] for video, texts in sentences.items()}
    spoken = [i for i, video in enumerate(ids) if given[video]]
    rows, captions = [scored.fine[i] for i in spoken], [given[ids[i]] for i in spoken]
    aligned = pipe(rows, captions=captions, **options) if rows else []
    return {video: [] for video in ids} | dict(zip([ids[i] for i in spoken], aligned, strict=True))


def captioned(pipe, rows: list[dict], counts: dict[str, int] | None, **options) -> list[list[dict]]:
    """The pipeline's events of rows of stored features, with numbers of events by video id where there are any."""
    if counts is None:
        return pipe(rows, batch_size=8, **options)
    events: dict[str, list[dict]] = {}
    for number in sorted(set(counts.values())):
        group = [row for row in rows if counts[str(row["video_id"])] == number]
        found = pipe(group, batch_size=8, num_events=number, **options)
        events |= dict(zip([str(row["video_id"]) for row in group], found, strict=True))
    return [events[str(row["video_id"])] for row in rows]


def numbers_of_events(folder: Path, scored: Scored) -> dict[str, int]:
    """How many events the model in a folder says that each video has."""
    pipe = pipeline("dense-video-captioning", model=str(folder))
    events = captioned(pipe, scored.rows, None, localization="alignment")
    most = pipe.model.config.num_queries
    found = zip(scored.rows, events, strict=True)
    return {str(row["video_id"]): min(max(len(of_video), 1), most) for row, of_video in found}


def check_same(path: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError where a folder holds a run of other settings."""
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, settings)
    elif (found := json.loads(path.read_text())) != settings:
        other = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
        raise ValueError(
            f"{path.parent} holds a run of other settings ({', '.join(other)}; see {path.name}): choose another --output, or "
            "remove the folder."
        )


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process has the run to itself until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def run_study(args: AblateArguments) -> str:
    """Do what is left of a study, write its table, and return it (OSError, ValueError: something does not fit)."""
    study = Study(args)
    runs = list(itertools.product(args.seeds, study.preset.variants))
    elsewhere: set[tuple[int, str]] = set()
    with tqdm(total=len(runs), unit="run", bar_format="{l_bar}{bar}| {n:.2f}/{total} [{elapsed}<{remaining}]") as bar:
        for number, (seed, name) in enumerate(runs):
            bar.set_description(f"{name}, seed {seed}")
            variant = study.preset.variants[name]
            needed = {(seed, other) for other in (variant.start, variant.counts) if other}
            with claimed(study.folder(name, seed)) as mine:
                if mine and not needed & elsewhere:
                    study.run(name, seed, bar)
                else:
                    elsewhere.add((seed, name))
            bar.update(number + 1 - bar.n)
    text = write_table(study)
    if elsewhere:
        text += (
            f"\n{len(elsewhere)} runs are another process's: the same command makes the whole table when it is done."
        )
    return text


def write_table(study: Study) -> str:
    """`table.md` and `table.json` of the runs that are finished, and the pictures of the looks."""
    args, preset = study.args, study.preset
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    published, looks = {}, {}
    for (name, variant), seed in itertools.product(preset.variants.items(), args.seeds):
        folder = study.folder(name, seed)
        if (folder / "looks.json").exists():
            looks.setdefault(name, {})[seed] = json.loads((folder / "looks.json").read_text())
        if not (folder / "scores.json").exists():
            continue
        run, scores = (json.loads((folder / file).read_text()) for file in ("run.json", "scores.json"))
        for number, row in enumerate(variant.rows):
            title = title_of(name, row)
            if row in scores:
                events = json.loads((folder / scores[row]["events"]).read_text())["results"]
                rows.setdefault(title, {})[seed] = {**run, **scores[row], "events": events}
            if not number:
                published[title] = variant.published
    references = {seed: study.load(seed, args.eval_split).references for seed in args.seeds}
    text, content = table(preset.title, preset.columns, rows, published, references, preset.note)
    if preset.coverage:
        text += coverage_table(references[args.seeds[0]])
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "table.md").write_text(text, encoding="utf-8")
    write_json(args.output / "table.json", content)
    return text + draw_looks(looks, args.output)


def main(argv: list[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words = ["--preset", *words]
    (args,) = HfArgumentParser(AblateArguments, description=__doc__).parse_args_into_dataclasses(words)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        print(run_study(args))
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
