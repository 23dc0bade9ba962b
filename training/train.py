"""Train SAIL on captions alone, in two stages.

    python training/train.py configs/playground.yaml [--field value ...]
    accelerate launch training/train.py configs/activitynet.yaml --method ilcacm
    python training/train.py --videos DIR --captions FILE --output_dir DIR --method sail-sim
    accelerate launch --multi_gpu --num_processes 2 training/train.py configs/x.yaml --use_cpu true   # two CPU processes

The YAML file holds fields of the dataclasses below and of `SailTrainingArguments`; the command line replaces them.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import datasets
import extract_features
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

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
from sail_hf.configuration_sail import METHODS, method_fields
from sail_hf.scoring import REFERENCE_COLUMNS

# The only columns that training sees: time stamps stay behind.
COLUMNS = ["captions", "video_features", "caption_features", "transition_features"]


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Trained SAIL to go on from; it brings all but what model_config changes."},
    )
    clip: str = field(
        default="ViT-L-14", metadata={"help": "open_clip model, hf-hub:org/repo or folder; the one of the features."}
    )
    decoder: str = field(
        default="distilbert/distilgpt2", metadata={"help": "Causal language model of transformers, name or folder."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer, name or folder. Default: the decoder's."}
    )
    decoder_from_scratch: bool = field(
        default=False, metadata={"help": "Give the decoder random weights: its folder then needs only config.json."}
    )
    include_text_tower: bool = field(
        default=False, metadata={"help": "Save CLIP's text tower too, which alignment of captions to frames needs."}
    )
    method: str = field(
        default="sail", metadata={"help": "fixed, ilcacm, sail-sim, sail-synth, sail-synth-hn, sail, ..."}
    )
    mask_type: str = field(default="gaussian", metadata={"help": "gaussian, cauchy or hard."})
    num_frames: int = field(default=32, metadata={"help": "T, frames of a video."})
    num_queries: int = field(default=14, metadata={"help": "K, largest number of events of a video."})
    model_config: str | None = field(
        default=None, metadata={"help": "Other fields of SailConfig: a mapping in YAML, JSON on the command line."}
    )
    generation_config: str | None = field(
        default=None, metadata={"help": "Fields that replace the default generation config's, likewise."}
    )

    def __post_init__(self):
        for name in ("model_config", "generation_config"):
            value = getattr(self, name) or {}
            try:
                setattr(self, name, json.loads(value) if isinstance(value, str) else value)
            except json.JSONDecodeError as error:
                raise ValueError(f"`{name}` must be JSON, found {value!r}: {error}") from error


@dataclass
class DataArguments:
    dataset: str | None = field(
        default=None, metadata={"help": "Folder or name of a data set with features (extract_features.py)."}
    )
    videos: str | None = field(
        default=None, metadata={"help": "Instead of a data set: folder of videos, whose features are then extracted."}
    )
    captions: str | None = field(
        default=None, metadata={"help": "With videos: their captions in order (JSON, JSONL or CSV; build_dataset.py)."}
    )
    split: str = field(default="train", metadata={"help": "Split to train on."})
    time_warp: float = field(
        default=0.0, metadata={"help": "Augmentation for little data: strength of random changes of speed, in [0, 1)."}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "Split whose loss is computed, and that --score_at_end captions and scores."}
    )
    resume: bool = field(
        default=True, metadata={"help": "Go on from the last checkpoint in output_dir, if there is one."}
    )

    def __post_init__(self):
        if (self.dataset is None) == (self.videos is None) or (self.videos is None) != (self.captions is None):
            raise ValueError("Give either --dataset, or --videos together with --captions.")


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, SailTrainingArguments]:
    """Dataclasses from a YAML file (first argument, optional) and `--field value` pairs, which win."""
    parser = HfArgumentParser((ModelArguments, DataArguments, SailTrainingArguments), description=__doc__)
    defaults = {}
    if argv and not argv[0].startswith("-"):
        path = Path(argv.pop(0))
        if not path.is_file():
            parser.error(f"{path} is not a file.")
        try:
            defaults = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            parser.error(f"{path} is not YAML: {error}")
        if not isinstance(defaults, dict):
            parser.error(f"{path} must hold fields and values (`name: value`), found a {type(defaults).__name__}.")
        known = {action.dest for action in parser._actions}
        if unknown := set(defaults) - known:
            parser.error(f"{path} has unknown fields: {', '.join(sorted(unknown))}.")
    for action in parser._actions:
        action.required = action.required and action.dest not in defaults
    parser.set_defaults(**defaults)
    return parser.parse_args_into_dataclasses(argv)


def load_split(name: str, split: str, columns: Iterable[str]) -> datasets.Dataset:
    """One split of a folder or Hub data set, with those of the columns that it has.

    Raises:
        SystemExit: a column that training needs is missing.
    """
    data = datasets.load_dataset(name, split=split)
    missing = {"captions", "video_features"} - set(data.column_names)
    if missing:
        sys.exit(f"{name}, split {split}, lacks {sorted(missing)}; training/extract_features.py makes them.")
    return data.select_columns([column for column in columns if column in data.column_names]).with_format("numpy")


def extract_features_of(data_args: DataArguments, config: SailConfig, output_dir: str) -> str:
    """Extract features of the user's own videos and captions, or what is left to extract; returns their folder."""
    folder = str(Path(output_dir) / "features")
    extract_features.main(
        ["--annotations", data_args.captions, "--videos", data_args.videos, "--clip", config.vision_config.clip]
        + ["--num_frames", str(config.num_frames), "--split", data_args.split, "--output", folder]
    )
    return folder


class TimeWarped(torch.utils.data.Dataset):
    """Rows whose frames are picked as if the video ran now slower, now faster; captions in order stay valid.

    The speed changes linearly between `num_knots` random values in [1 - strength, 1 + strength].
    """

    def __init__(self, data: datasets.Dataset, strength: float, num_knots: int = 6):
        self.data, self.strength, self.num_knots = data, strength, num_knots

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        row = self.data[index]
        num_frames = len(row["video_features"])
        knots = 1 + self.strength * (2 * torch.rand(1, 1, self.num_knots) - 1)
        time = torch.nn.functional.interpolate(knots, num_frames, mode="linear", align_corners=True)[0, 0].cumsum(0)
        place = (time - time[0]) / (time[-1] - time[0]) * (num_frames - 1)
        return {**row, "video_features": row["video_features"][place.round().long().numpy()]}


def check_losses(config, columns: list[str]) -> None:
    """Stop before training where the method has a loss that the data set has no column for."""
    needs = {
        "similarity_loss_weight": "caption_features",
        "alignment_loss_weight": "caption_features",
        "augmentation_loss_weight": "transition_features",
        "transition_hard_negatives": "transition_features",
    }
    for weight, column in needs.items():
        if getattr(config, weight) and column not in columns:
            sys.exit(
                f"Method {config.method} needs the column {column} ({weight} is {getattr(config, weight)}); the data "
                f"set has {columns}. Choose another method, or add the column: training/augment_captions.py writes "
                "transitions, training/extract_features.py makes features of them."
            )


def go_on_from(name: str, model_config: dict) -> SailForDenseVideoCaptioning:
    """A trained model with other fields of its configuration; only its mask generator may be a new one."""
    if method := model_config.get("method"):
        if method not in METHODS:
            sys.exit(f"`method` must be one of {', '.join(METHODS)}, found {method!r}.")
        model_config = {**method_fields(method), **{k: v for k, v in model_config.items() if k != "method"}}
    model, info = SailForDenseVideoCaptioning.from_pretrained(name, output_loading_info=True, **model_config)
    changed = {*info["missing_keys"], *info["unexpected_keys"]}
    if lost := {key for key in changed if not key.startswith(("model.mask_generator.", "model.memory_projection."))}:
        sys.exit(
            f"`model_config` has other sizes than {name}, whose weights it would lose or lack, e.g. {min(lost)}; of a "
            "trained model it may change the losses and the mask generator."
        )
    return model


def build_model(args: ModelArguments) -> tuple[SailForDenseVideoCaptioning, SailProcessor]:
    """A trained model to go on from, or a new one around a pretrained CLIP and decoder."""
    if unknown := set(args.model_config) - {field.name for field in fields(SailConfig)}:
        sys.exit(f"`model_config` has fields that SailConfig has not: {', '.join(sorted(unknown))}.")
    if args.model_name_or_path:
        model = go_on_from(args.model_name_or_path, args.model_config)
        return model, SailProcessor.from_pretrained(args.model_name_or_path)
    clip = load_clip(args.clip)
    clip.vision_config.include_text_tower = args.include_text_tower
    if args.decoder_from_scratch:
        decoder = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.decoder))
    else:
        decoder = AutoModelForCausalLM.from_pretrained(args.decoder)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.decoder)
    video_processor = SailVideoProcessor.from_vision_config(clip.vision_config, args.num_frames)
    processor = SailProcessor(video_processor, SailProcessor.prepare_tokenizer(tokenizer))
    model = SailForDenseVideoCaptioning.from_clip_and_decoder(
        clip,
        decoder,
        processor,
        **{
            **method_fields(args.method),
            "mask_type": args.mask_type,
            "num_frames": args.num_frames,
            "num_queries": args.num_queries,
            **args.model_config,
        },
    )
    if unknown := model.generation_config.update(**args.generation_config):
        sys.exit(f"`generation_config` has unknown fields: {', '.join(sorted(unknown))}.")
    return model, processor


def last_whole_checkpoint(folder: str) -> str | None:
    """The last checkpoint that was written to its end, of which the trainer's state is the last part."""
    checkpoints = sort_checkpoints(folder, use_mtime=False)
    whole = [path for path in checkpoints if Path(path, TRAINER_STATE_NAME).is_file()]
    return whole[-1] if whole else None


def main(argv: list[str] | None = None) -> SailTrainer:
    model_args, data_args, training_args = parse_arguments(list(sys.argv[1:] if argv is None else argv))
    if training_args.score_at_end and not data_args.validation_split:
        sys.exit("--score_at_end needs --validation_split, the split that is captioned and scored.")
    set_seed(training_args.seed)
    model, processor = build_model(model_args)
    if data_args.videos:
        # One process extracts; the others find its features.
        with training_args.main_process_first(local=False, desc="extracting features"):
            data_args.dataset = extract_features_of(data_args, model.config, training_args.output_dir)
    train_set = load_split(data_args.dataset, data_args.split, COLUMNS)
    validation_set = None
    if data_args.validation_split:
        columns = {*COLUMNS, *REFERENCE_COLUMNS} if training_args.score_at_end else COLUMNS
        validation_set = load_split(data_args.dataset, data_args.validation_split, columns)
    check_losses(model.config, train_set.column_names)
    too_many = sum(len(captions) > model.config.num_queries for captions in train_set["captions"])
    if too_many:
        print(
            f"{too_many} of {len(train_set)} videos have more than {model.config.num_queries} captions (num_queries); "
            "the captions past that number are left out."
        )
    positions = getattr(model.config.text_config, "max_position_embeddings", None)
    max_length = positions - model.config.num_frames if positions else None
    trainer = SailTrainer(
        model=model,
        args=training_args,
        train_dataset=TimeWarped(train_set, data_args.time_warp) if data_args.time_warp else train_set,
        eval_dataset=validation_set,
        data_collator=SailDataCollator(processor, model.config.num_queries, max_length),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(training_args.output_dir) if data_args.resume else None)
    if not training_args.score_at_end:  # which has saved it
        trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        print(f"\nSaved {training_args.output_dir}. Next:\n  sail caption VIDEO --model {training_args.output_dir}")
    return trainer


if __name__ == "__main__":
    main()
