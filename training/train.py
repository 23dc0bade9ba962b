"""Train SAIL on captions alone, in two stages.

    python training/train.py configs/youcook2.yaml [--field value ...]
    accelerate launch training/train.py configs/activitynet.yaml --method ilcacm
    python training/train.py --videos DIR --captions FILE --output_dir DIR --method sail-sim
    accelerate launch --multi_gpu --num_processes 2 training/train.py configs/x.yaml --use_cpu true   # two CPU processes
    python training/train.py configs/activitynet.yaml --dry_run true     # what would be trained, on what, for how long

The YAML file holds fields of the dataclasses below and of `SailTrainingArguments`; the command line replaces them.
"""

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import datasets
import yaml
from accelerate.utils import broadcast_object_list
from extract_features import ExtractArguments, extract_features
from run_folder import RUN_FILE, OtherRunError, Seal, checkpoint_of, set_aside
from training_data import (
    COLUMNS,
    GROUNDING_COLUMNS,
    MAX_LISTED,
    EpochOfTimeWarp,
    TimeWarped,
    bank_of,
    check_features,
    data_fingerprint,
    length_of_most,
    load_split,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed
from transformers.hf_argparser import HfArg

from sail_hf import (
    SailConfig,
    SailDataCollator,
    SailForDenseVideoCaptioning,
    SailProcessor,
    SailTrainer,
    SailTrainingArguments,
    SailVideoProcessor,
)
from sail_hf.clip_sail import load_clip
from sail_hf.configuration_sail import method_fields
from sail_hf.data import REFERENCE_COLUMNS, find_video, find_videos, read_annotations, write_json
from sail_hf.generation_sail import LOCALIZATION_DEFAULTS
from sail_hf.loss_sail import LOSSES, required_columns
from sail_hf.trainer import captioning_steps, check_stages

# Of a configuration, what says where it comes from and what it is for, not what it is.
NAMES_OF_SOURCES = {"clip", "_name_or_path", "transformers_version", "architectures", "chunk_length_s", "knows_only"}
# What decides a run besides model and data.
SCHEDULE = (
    *(
        "captioning_epochs",
        "localization_epochs",
        "max_steps",
        "updates_per_batch",
        "learning_rate",
        "lr_scheduler_type",
    ),
    *("warmup_steps", "optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("seed", "data_seed", "bf16", "fp16"),
)
# What a model that is made anew has where nothing else is said.
NEW_MODEL = {"clip": "ViT-L-14", "decoder": "distilbert/distilgpt2", "method": "sail", "sentence_form": "sail"}
# What a trained model brings: its weights, and the frames that its features were made of.
BROUGHT = ("clip", "pretrained", "decoder", "tokenizer", "decoder_from_scratch", "num_frames")


@dataclass
class ModelArguments:
    """Of a new model, or of a trained one what is to change of it; `None` is the new model's default, or no change."""

    model_name_or_path: str | None = HfArg(default=None, help="Trained SAIL to go on from.")
    clip: str | None = HfArg(default=None, help="open_clip model, hf-hub:org/repo or folder. Default: ViT-L-14.")
    pretrained: str | None = HfArg(default=None, help="open_clip's tag of the weights of --clip. Default: openai.")
    decoder: str | None = HfArg(default=None, help="Causal language model. Default: distilbert/distilgpt2.")
    tokenizer: str | None = HfArg(default=None, help="Tokenizer, name or folder. Default: the decoder's.")
    decoder_from_scratch: bool | None = HfArg(default=None, help="Give the decoder random weights.")
    include_text_tower: bool | None = HfArg(default=None, help="Save CLIP's text tower too, for alignment.")
    method: str | None = HfArg(default=None, help="fixed, ilcacm, sail-sim, sail-synth, ... Default: sail.")
    mask_type: str | None = HfArg(default=None, help="gaussian, cauchy or hard.")
    num_frames: int | None = HfArg(default=None, help="T, frames of a video. Default: 32.")
    num_queries: int | None = HfArg(default=None, help="K, largest number of events of a video. Default: 14.")
    sentence_form: str | None = HfArg(default=None, help="How captions are written: sail (the default) or ilcacm.")
    model_config: str | None = HfArg(default=None, help="Other fields of SailConfig: a mapping (JSON).")
    generation_config: str | None = HfArg(default=None, help="Fields that replace the generation config's, likewise.")

    def __post_init__(self):
        for name in ("model_config", "generation_config"):
            value = getattr(self, name) or {}
            try:
                setattr(self, name, json.loads(value) if isinstance(value, str) else value)
            except json.JSONDecodeError as error:
                raise ValueError(f"`{name}` must be JSON, found {value!r}: {error}") from error
        given = [f"--{name}" for name in BROUGHT if getattr(self, name) is not None]
        if self.model_name_or_path and given:
            raise ValueError(
                f"--model_name_or_path {self.model_name_or_path} brings its own {', '.join(given)}: leave them out, in the "
                "YAML file too."
            )

    def config_fields(self) -> dict[str, Any]:
        """The fields of [`SailConfig`] that are asked for (ValueError: it has none of the name); `model_config` wins."""
        if unknown := set(self.model_config) - {field.name for field in fields(SailConfig)}:
            raise ValueError(f"`model_config` has fields that SailConfig has not: {', '.join(sorted(unknown))}.")
        own = {name: getattr(self, name) for name in ("mask_type", "num_frames", "num_queries")}
        given = {name: value for name, value in own.items() if value is not None}
        return {**(method_fields(self.method) if self.method else {}), **given, **self.model_config}


@dataclass
class DataArguments:
    dataset: str | None = HfArg(default=None, help="Data set with features (extract_features.py), folder or name.")
    videos: str | None = HfArg(default=None, help="Instead of a data set: folder of videos to extract features of.")
    captions: str | None = HfArg(default=None, help="With videos: file of their captions in order (JSON, JSONL, CSV).")
    split: str = HfArg(default="train", help="Split to train on.")
    max_captions: int | None = HfArg(default=None, help="Captions of a video past this number are left out.")
    context_captions: str | None = HfArg(
        default=None, help="With context_size: data set whose captions fill the bank. Default: those trained on."
    )
    time_warp: float = HfArg(default=0.0, help="For little data: strength of random changes of speed, in [0, 1).")
    validation_split: str | None = HfArg(default=None, help="Split that evaluation is on.")
    resume: bool = HfArg(default=True, help="Go on from the last whole checkpoint in output_dir, if any.")
    dry_run: bool = HfArg(default=False, help="Say what would be trained, on what and for how long; train nothing.")

    def __post_init__(self):
        if self.max_captions is not None and self.max_captions < 1:
            raise ValueError(f"--max_captions must be at least 1, found {self.max_captions}.")
        if not 0 <= self.time_warp < 1:
            raise ValueError(f"--time_warp must lie in [0, 1), found {self.time_warp}.")
        if (self.dataset is None) == (self.videos is None) or (self.videos is None) != (self.captions is None):
            raise ValueError("Give either --dataset, or --videos together with --captions.")


PARTS = (ModelArguments, DataArguments, SailTrainingArguments)
Arguments = tuple[ModelArguments, DataArguments, SailTrainingArguments]


def read_config(path: str | Path) -> dict[str, Any]:
    """Fields and values of a YAML file; ValueError where it is not of that form."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold fields and values (`name: value`), found a {type(values).__name__}.")
    if unknown := set(values) - {field.name for part in PARTS for field in fields(part)}:
        raise ValueError(f"{path} has unknown fields: {', '.join(sorted(unknown))}.")
    return values


def configured(path: str | Path, **values) -> Arguments:
    """The dataclasses of a YAML file, with other values for some of their fields."""
    return HfArgumentParser(PARTS).parse_dict({**read_config(path), **values})


def parse_arguments(argv: list[str]) -> Arguments:
    """Dataclasses from a YAML file (first argument, optional) and `--field value` pairs, which win."""
    parser = HfArgumentParser(PARTS, description=__doc__)
    try:
        defaults = read_config(argv.pop(0)) if argv and not argv[0].startswith("-") else {}
        for action in parser._actions:
            action.required = action.required and action.dest not in defaults
        parser.set_defaults(**defaults)
        return parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        parser.error(str(error))


def check_losses(config: SailConfig, columns: Iterable[str]) -> None:
    """Raise ValueError where the method has a loss that the data set has no column for."""
    for column, weight in required_columns(config).items():
        if column not in columns:
            raise ValueError(
                f"Method {config.method} needs the column {column} ({weight} is {getattr(config, weight)}); the data "
                f"set has {sorted(columns)}. Choose another method, or add the column: training/augment_captions.py writes "
                "transitions, of which training/extract_features.py makes features; training/caption_frames.py captions frames; "
                "training/extract_features.py --regions makes features of patches, training/grounding_annotations.py groundings."
            )


def build_model(args: ModelArguments) -> tuple[SailForDenseVideoCaptioning, SailProcessor]:
    """A trained model to go on from, or a new one; ValueError where a part cannot be changed as asked for."""
    model, processor = go_on_from(args) if args.model_name_or_path else new_model(args)
    # Of a checkpoint that was made before a field came, too.
    for name, default in LOCALIZATION_DEFAULTS.items():
        setattr(model.generation_config, name, getattr(model.generation_config, name, default))
    if unknown := model.generation_config.update(**args.generation_config):
        raise ValueError(f"`generation_config` has unknown fields: {', '.join(sorted(unknown))}.")
    return model, processor


def go_on_from(args: ModelArguments) -> tuple[SailForDenseVideoCaptioning, SailProcessor]:
    """A trained model with other fields of its configuration; only its mask generator may be a new one."""
    name = args.model_name_or_path
    model, info = SailForDenseVideoCaptioning.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **args.config_fields()
    )
    resized = {key for key, *_ in info["mismatched_keys"]}
    # A head for patches, or a bank of captions, that a model lacks comes anew and leaves it as it was.
    missing = {key for key in info["missing_keys"] if not key.startswith(("grounding_head.", "model.context."))}
    kinds = {key for key in {*missing, *info["unexpected_keys"]} if "model.mask_generator." not in key}
    if lost := resized | kinds:
        raise ValueError(
            f"Other sizes were asked for than {name} has, whose weights would be lost or lacking, e.g. {min(lost)}; of a "
            "trained model the losses may change, the kind and the layers of the mask generator, and it may get a grounding head or a bank."
        )
    idle = {"position_initializer_range"} | (set() if info["missing_keys"] else {"initializer_range"})
    if not any("model.mask_generator." in key for key in info["missing_keys"]):
        idle.add("mask_position_initializer_range")
    if said := sorted(idle & args.model_config.keys()):
        print(f"{', '.join(said)}: initial values, which change nothing of {name}, whose weights are there already.")
    if args.include_text_tower:
        model.config.vision_config.include_text_tower = True
        model.model.add_clip(model.model.get_clip())
    elif args.include_text_tower is False and model.model.text_tower is not None:
        model.config.vision_config.include_text_tower, model.model.text_tower = False, None
    processor = SailProcessor.from_pretrained(name)
    processor.sentence_form = args.sentence_form or processor.sentence_form
    return model, processor


def new_model(args: ModelArguments) -> tuple[SailForDenseVideoCaptioning, SailProcessor]:
    """A model around a pretrained CLIP and decoder; the rest is random."""
    args = replace(args, **{name: value for name, value in NEW_MODEL.items() if getattr(args, name) is None})
    config_fields = args.config_fields()
    clip = load_clip(args.clip, **({"pretrained": args.pretrained} if args.pretrained else {}))
    clip.vision_config.include_text_tower = bool(args.include_text_tower)
    if args.decoder_from_scratch:
        decoder = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.decoder))
    else:
        decoder = AutoModelForCausalLM.from_pretrained(args.decoder)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.decoder)
    num_frames = config_fields.get("num_frames", SailConfig.num_frames)
    video_processor = SailVideoProcessor.from_vision_config(clip.vision_config, num_frames)
    processor = SailProcessor(video_processor, SailProcessor.prepare_tokenizer(tokenizer), args.sentence_form)
    return SailForDenseVideoCaptioning.from_clip_and_decoder(clip, decoder, processor, **config_fields), processor


def fingerprint(trainer: SailTrainer) -> dict[str, Any]:
    """What decides the weights that a run ends with: its model, data and schedule."""
    args, dataset = trainer.args, trainer.train_dataset
    warped = isinstance(dataset, TimeWarped)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    config = trainer.model.config
    sources = {"model": trainer.model.name_or_path, "decoder": config.text_config.name_or_path}
    sources["clip"] = config.vision_config.clip if config.vision_config else ""
    return {
        "method": config.method,
        "model": less(config.to_dict(), NAMES_OF_SOURCES),
        # Less their folders, which are others on another machine.
        "starts_from": {part: Path(name).name for part, name in sources.items()},
        "data": {
            **data_fingerprint(dataset.data if warped else dataset),
            "time_warp": dataset.strength if warped else 0,
            "captions_of_a_video": trainer.data_collator.collate.max_events,
            "sentence_form": trainer.processing_class.sentence_form,
        },
        "schedule": {"videos_a_step": batch, **{name: getattr(args, name) for name in SCHEDULE}},
    }


def less(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Nested values without those of some names, on every level."""
    return {
        name: less(value, names) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in names
    }


def checked_model(
    model_args: ModelArguments, data_args: DataArguments, training_args: SailTrainingArguments
) -> tuple[SailForDenseVideoCaptioning, SailProcessor]:
    """The model to train, with all that can be said before features are extracted (OSError, ValueError)."""
    if training_args.predict_with_generate and not data_args.validation_split:
        raise ValueError("--predict_with_generate needs --validation_split, the split that is captioned and scored.")
    set_seed(training_args.seed)
    model, processor = build_model(model_args)
    if data_args.captions:
        with_transitions = any(row.get("transitions") for row in read_annotations([data_args.captions]))
        check_losses(model.config, ["caption_features"] + ["transition_features"] * with_transitions)
    return model, processor


def load_data(
    dataset: str, data_args: DataArguments, config: SailConfig, scored: bool
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The splits to train and to evaluate on (ValueError: they do not fit the model)."""
    seen = [*COLUMNS, *GROUNDING_COLUMNS] if config.grounding else COLUMNS
    train_set, validation_set = load_split(dataset, data_args.split, seen), None
    check_losses(config, train_set.column_names)
    check_features(train_set, config, f"{dataset}, split {data_args.split},")
    if data_args.validation_split:
        columns = {*seen, *REFERENCE_COLUMNS} if scored else seen
        validation_set = load_split(dataset, data_args.validation_split, columns)
        check_features(validation_set, config, f"{dataset}, split {data_args.validation_split},")
    return train_set, validation_set


def make_trainer(
    model_args: ModelArguments, data_args: DataArguments, training_args: SailTrainingArguments
) -> SailTrainer:
    """Everything up to the first step. What does not fit together is said before features are extracted.

    Raises:
        OSError, ValueError: something is missing, or arguments make no sense together.
    """
    model, processor = checked_model(model_args, data_args, training_args)
    dataset = data_args.dataset
    if data_args.videos:
        # One process extracts; the others find its features.
        dataset = str(Path(training_args.output_dir, "features"))
        clip, num_frames = model.config.vision_config.clip, model.config.num_frames
        with training_args.main_process_first(local=False, desc="extracting features"):
            extract_features(
                ExtractArguments(
                    annotations=[data_args.captions],
                    videos=data_args.videos,
                    output=dataset,
                    clip=clip,
                    pretrained=model.config.vision_config.pretrained,
                    split=data_args.split,
                    num_frames=num_frames,
                )
            )
    train_set, validation_set = load_data(dataset, data_args, model.config, training_args.predict_with_generate)
    check_stages(training_args, steps_of(training_args, len(train_set))[1])
    fill_bank(model, data_args, train_set)
    if "chunk_length_s" not in model_args.model_config:
        # Longer videos than the model has learned are captioned in chunks; files are often longer than annotations say.
        most = length_of_most(dataset, data_args.split)
        model.config.chunk_length_s = 1.1 * most if most else model.config.chunk_length_s
    num_captions = captions_of_a_video(data_args, model.config)
    if too_many := sum(len(captions) > num_captions for captions in train_set["captions"]):
        print(f"{too_many} of {len(train_set)} videos have more than {num_captions} captions: the rest is left out.")
    positions = getattr(model.config.text_config, "max_position_embeddings", None)
    max_length = positions - model.config.num_frames if positions else None
    warped = TimeWarped(train_set, data_args.time_warp, training_args.seed) if data_args.time_warp else None
    return SailTrainer(
        model=model,
        args=training_args,
        train_dataset=warped or train_set,
        eval_dataset=validation_set,
        data_collator=SailDataCollator(processor, num_captions, max_length),
        processing_class=processor,
        callbacks=[EpochOfTimeWarp(warped)] if warped else None,
    )


def fill_bank(model: SailForDenseVideoCaptioning, data_args: DataArguments, train_set: datasets.Dataset) -> None:
    """Fill the bank of a model with context (ValueError: the data lack something, or a bank is asked for without context)."""
    if not model.config.context_size:
        if data_args.context_captions:
            raise ValueError(
                "--context_captions fills a bank, which the model lacks: --model_config '{\"context_size\": 10}'."
            )
        return
    if "video_id" not in train_set.column_names:
        raise ValueError(
            "Training with a bank of captions needs the column video_id, so that no video recalls its own."
        )
    source, captions = data_args.context_captions, train_set
    if source:
        captions = datasets.load_dataset(source, split=data_args.split)
    model.model.context.fill(*bank_of(captions, source or "The data set to train on"))


def captions_of_a_video(data_args: DataArguments, config: SailConfig) -> int:
    """How many captions of a video are learned at most."""
    return min(config.num_queries, data_args.max_captions or config.num_queries)


def steps_of(args: SailTrainingArguments, num_videos: int) -> tuple[int, int]:
    """Steps of an epoch, and of the whole run, as `Trainer` counts them."""
    batches = math.ceil(num_videos / (args.per_device_train_batch_size * args.world_size))
    steps = math.ceil(batches / args.gradient_accumulation_steps)
    return steps, args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)


def start_of(trainer: SailTrainer, resume: bool, run: dict[str, Any]) -> Path | None:
    """The checkpoint that all processes go on from; `None`: from the beginning.

    Raises:
        OtherRunError: the checkpoints in the folder are another run's.
    """
    folder, found = trainer.args.output_dir, [None]
    if trainer.is_world_process_zero():
        try:
            if resume:
                found = [checkpoint_of(folder, run)]
            elif place := set_aside(folder):
                print(f"--resume false: the checkpoints of an earlier run in {folder} are now in {place}.")
        except OtherRunError as error:
            found = [error]
    (start,) = broadcast_object_list(found)
    if isinstance(start, OtherRunError):
        raise start
    return start


def train(trainer: SailTrainer, resume: bool) -> SailTrainer:
    """Train and save; with `predict_with_generate`, score the captions of the model that was saved.

    Raises:
        OtherRunError: the checkpoints to go on from are another run's.
        FloatingPointError: a loss or a weight is not finite.
    """
    folder, run = trainer.args.output_dir, fingerprint(trainer)
    start = start_of(trainer, resume, run)
    trainer.add_callback(Seal(run))
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    trainer.save_model()  # whatever becomes of the scores
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_json(Path(folder, RUN_FILE), {"run": run})
    if trainer.args.predict_with_generate:
        trainer.log_metrics("eval", trainer.evaluate())
    trainer.accelerator.end_training()
    if trainer.is_world_process_zero():
        print(f"\nSaved {folder}. Next:\n  sail caption VIDEO --model {folder}")
    return trainer


# --- Dry run ------------------------------------------------------------------------------------------------------


def describe(model_args: ModelArguments, data_args: DataArguments, training_args: SailTrainingArguments) -> str:
    """What would be trained, on what and for how long. A model is built, so what does not fit together is an error.

    Raises:
        OSError, ValueError: as [`make_trainer`].
    """
    model, _ = checked_model(model_args, data_args, training_args)
    if data_args.videos:
        rows, videos = read_annotations([data_args.captions]), find_videos(data_args.videos)
        lost = {row["video_id"] for row in rows if find_video(videos, row["video_id"]) is None}
        captions = [row["captions"] for row in rows if row["video_id"] not in lost]
        skipped = [f"{video}: no video file in {data_args.videos}" for video in sorted(lost)]
        source = f"{data_args.videos} and {data_args.captions} (features are still to be extracted)"
    else:
        train_set, _ = load_data(data_args.dataset, data_args, model.config, training_args.predict_with_generate)
        captions, skipped = train_set["captions"], skipped_by_extraction(data_args.dataset, data_args.split)
        source = f"{data_args.dataset}, split {data_args.split}"
    if not captions:
        raise ValueError(f"{source}: not one video to train on.")
    limit = captions_of_a_video(data_args, model.config)
    numbers = [min(len(of_video), limit) for of_video in captions]
    dropped = sum(map(len, captions)) - sum(numbers)
    lines = [
        f"Data: {source}",
        f"  {len(numbers)} videos, {sum(numbers)} captions, {min(numbers)} to {max(numbers)} a video",
        f"  {sum(number == 1 for number in numbers)} videos have one caption: no negative pass, no similarity, no transition",
        f"  left out: {dropped} captions past the first {limit} of their videos, {len(skipped)} videos",
        *(f"    {reason}" for reason in skipped[:MAX_LISTED]),
        *([f"    ... and {len(skipped) - MAX_LISTED} more"] if len(skipped) > MAX_LISTED else []),
        *describe_method(model),
        *describe_schedule(training_args, len(numbers)),
        "Nothing was trained.",
    ]
    return "\n".join(lines)


def skipped_by_extraction(dataset: str, split: str) -> list[str]:
    """Videos that training/extract_features.py left out of a folder, with the reasons."""
    listed = Path(dataset, "skipped.json")
    found = json.loads(listed.read_text(encoding="utf-8")).get(split, []) if listed.is_file() else []
    return [f"{item['video_id']}: {item['reason']}" for item in found]


def describe_method(model: SailForDenseVideoCaptioning) -> list[str]:
    """The method with its losses and weights."""
    config = model.config
    weights = {loss.name: loss.weight_in(config) for loss in LOSSES}
    second = {**weights, "full": config.joint_full_loss_weight if weights["full"] else 0}
    return [
        f"Method: {config.method}, mask generator {config.mask_generator}, masks {config.mask_type}, "
        f"T = {config.num_frames} frames, K = {config.num_queries} queries, D = {config.feature_size}",
        f"  parameters: {sum(p.numel() for p in model.parameters() if p.requires_grad):,} trained, "
        f"{sum(p.numel() for p in model.parameters() if not p.requires_grad):,} frozen",
        f"  first stage: {weights['full']:g} full",
        "  second stage: " + " + ".join(f"{weight:g} {name}" for name, weight in second.items() if weight),
        *(
            [f"  context: {config.context_k} captions for each of {config.context_size} clusters"]
            * bool(config.context_size)
        ),
    ]


def describe_schedule(args: SailTrainingArguments, num_videos: int) -> list[str]:
    """Steps of both stages (ValueError: one that has epochs would get none)."""
    steps, total = steps_of(args, num_videos)
    check_stages(args, total)
    first = captioning_steps(args, total)
    videos = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    updates = {"one": "1 update", "two": "2 updates", "two-summed": "2 updates, on summed gradients,"}[
        args.updates_per_batch
    ]
    return [
        f"Schedule: {total} steps of {videos} videos, {steps} an epoch; learning rate {args.learning_rate:g}, "
        f"{args.lr_scheduler_type.value}",
        f"  first stage: {first} steps ({args.captioning_epochs:g} epochs)",
        f"  second stage: {total - first} steps ({args.localization_epochs:g} epochs), {updates} a step",
    ]


def main(argv: list[str] | None = None) -> SailTrainer | None:
    model_args, data_args, training_args = parse_arguments(list(sys.argv[1:] if argv is None else argv))
    try:
        if data_args.dry_run:
            print(describe(model_args, data_args, training_args))
            return None
        trainer = make_trainer(model_args, data_args, training_args)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    try:
        return train(trainer, data_args.resume)
    except (OtherRunError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
