"""Train SAIL on captions alone, in two stages.

    python training/train.py configs/youcook2.yaml [--field value ...]
    accelerate launch training/train.py configs/activitynet.yaml --method ilcacm
    python training/train.py --videos DIR --captions FILE --output_dir DIR --method sail-sim
    accelerate launch --multi_gpu --num_processes 2 training/train.py configs/x.yaml --use_cpu true   # two CPU processes

The YAML file holds fields of the dataclasses below and of `SailTrainingArguments`; the command line replaces them.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from extract_features import ExtractArguments, extract_features
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed
from transformers.hf_argparser import HfArg
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
from sail_hf.configuration_sail import method_fields
from sail_hf.data import REFERENCE_COLUMNS, read_annotations
from sail_hf.loss_sail import required_columns

# The only columns that training sees: time stamps stay behind.
COLUMNS = ["captions", "video_features", "caption_features", "transition_features"]
# What a model that is made anew has where nothing else is said.
NEW_MODEL = {"clip": "ViT-L-14", "decoder": "distilbert/distilgpt2", "method": "sail"}
# What a trained model brings: its weights, and the frames that its features were made of.
BROUGHT = ("clip", "decoder", "tokenizer", "decoder_from_scratch", "num_frames")


@dataclass
class ModelArguments:
    """Of a new model, or of a trained one what is to change of it; `None` is the new model's default, or no change."""

    model_name_or_path: str | None = HfArg(default=None, help="Trained SAIL to go on from.")
    clip: str | None = HfArg(default=None, help="open_clip model, hf-hub:org/repo or folder. Default: ViT-L-14.")
    decoder: str | None = HfArg(default=None, help="Causal language model. Default: distilbert/distilgpt2.")
    tokenizer: str | None = HfArg(default=None, help="Tokenizer, name or folder. Default: the decoder's.")
    decoder_from_scratch: bool | None = HfArg(default=None, help="Give the decoder random weights.")
    include_text_tower: bool | None = HfArg(default=None, help="Save CLIP's text tower too, for alignment.")
    method: str | None = HfArg(default=None, help="fixed, ilcacm, sail-sim, sail-synth, ... Default: sail.")
    mask_type: str | None = HfArg(default=None, help="gaussian, cauchy or hard.")
    num_frames: int | None = HfArg(default=None, help="T, frames of a video. Default: 32.")
    num_queries: int | None = HfArg(default=None, help="K, largest number of events of a video. Default: 14.")
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
    time_warp: float = HfArg(default=0.0, help="For little data: strength of random changes of speed, in [0, 1).")
    validation_split: str | None = HfArg(default=None, help="Split that evaluation is on.")
    resume: bool = HfArg(default=True, help="Go on from the last checkpoint in output_dir, if any.")

    def __post_init__(self):
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


def load_split(name: str, split: str, columns: Iterable[str]) -> datasets.Dataset:
    """One split of a folder or Hub data set, with those of the columns that it has (ValueError: not those needed)."""
    data = datasets.load_dataset(name, split=split)
    if missing := {"captions", "video_features"} - set(data.column_names):
        raise ValueError(f"{name}, split {split}, lacks {sorted(missing)}; training/extract_features.py makes them.")
    return data.select_columns([column for column in columns if column in data.column_names]).with_format("numpy")


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


def check_losses(config: SailConfig, columns: Iterable[str]) -> None:
    """Raise ValueError where the method has a loss that the data set has no column for."""
    for column, weight in required_columns(config).items():
        if column not in columns:
            raise ValueError(
                f"Method {config.method} needs the column {column} ({weight} is {getattr(config, weight)}); the data "
                f"set has {sorted(columns)}. Choose another method, or add the column: training/augment_captions.py writes "
                "transitions, training/extract_features.py makes features of them."
            )


def build_model(args: ModelArguments) -> tuple[SailForDenseVideoCaptioning, SailProcessor]:
    """A trained model to go on from, or a new one; ValueError where a part cannot be changed as asked for."""
    model, processor = go_on_from(args) if args.model_name_or_path else new_model(args)
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
    kinds = {key for key in {*info["missing_keys"], *info["unexpected_keys"]} if "model.mask_generator." not in key}
    if lost := resized | kinds:
        raise ValueError(
            f"Other sizes were asked for than {name} has, whose weights would be lost or lacking, e.g. {min(lost)}; of a "
            "trained model the losses may change, and the kind and the layers of the mask generator."
        )
    if args.include_text_tower:
        model.config.vision_config.include_text_tower = True
        model.model.add_clip(model.model.get_clip())
    elif args.include_text_tower is False and model.model.text_tower is not None:
        model.config.vision_config.include_text_tower, model.model.text_tower = False, None
    return model, SailProcessor.from_pretrained(name)


def new_model(args: ModelArguments) -> tuple[SailForDenseVideoCaptioning, SailProcessor]:
    """A model around a pretrained CLIP and decoder; the rest is random."""
    args = replace(args, **{name: value for name, value in NEW_MODEL.items() if getattr(args, name) is None})
    config_fields = args.config_fields()
    clip = load_clip(args.clip)
    clip.vision_config.include_text_tower = bool(args.include_text_tower)
    if args.decoder_from_scratch:
        decoder = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.decoder))
    else:
        decoder = AutoModelForCausalLM.from_pretrained(args.decoder)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.decoder)
    num_frames = config_fields.get("num_frames", SailConfig.num_frames)
    video_processor = SailVideoProcessor.from_vision_config(clip.vision_config, num_frames)
    processor = SailProcessor(video_processor, SailProcessor.prepare_tokenizer(tokenizer))
    return SailForDenseVideoCaptioning.from_clip_and_decoder(clip, decoder, processor, **config_fields), processor


def last_whole_checkpoint(folder: str) -> str | None:
    """The last checkpoint that was written to its end, of which the trainer's state is the last part."""
    checkpoints = sort_checkpoints(folder, use_mtime=False)
    whole = [path for path in checkpoints if Path(path, TRAINER_STATE_NAME).is_file()]
    return whole[-1] if whole else None


def make_trainer(
    model_args: ModelArguments, data_args: DataArguments, training_args: SailTrainingArguments
) -> SailTrainer:
    """Everything up to the first step. What does not fit together is said before features are extracted.

    Raises:
        OSError, ValueError: something is missing, or arguments make no sense together.
    """
    scored = training_args.predict_with_generate
    if scored and not data_args.validation_split:
        raise ValueError("--predict_with_generate needs --validation_split, the split that is captioned and scored.")
    set_seed(training_args.seed)
    model, processor = build_model(model_args)
    dataset = data_args.dataset
    if data_args.videos:
        rows = read_annotations([data_args.captions])
        with_transitions = any(row.get("transitions") for row in rows)
        check_losses(model.config, ["caption_features"] + ["transition_features"] * with_transitions)
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
    train_set, validation_set = load_split(dataset, data_args.split, COLUMNS), None
    if data_args.validation_split:
        columns = {*COLUMNS, *REFERENCE_COLUMNS} if scored else COLUMNS
        validation_set = load_split(dataset, data_args.validation_split, columns)
    check_losses(model.config, train_set.column_names)
    num_queries = model.config.num_queries
    if too_many := sum(len(captions) > num_queries for captions in train_set["captions"]):
        print(
            f"{too_many} of {len(train_set)} videos have more than num_queries, {num_queries}, captions: the rest is left out."
        )
    positions = getattr(model.config.text_config, "max_position_embeddings", None)
    max_length = positions - model.config.num_frames if positions else None
    return SailTrainer(
        model=model,
        args=training_args,
        train_dataset=TimeWarped(train_set, data_args.time_warp) if data_args.time_warp else train_set,
        eval_dataset=validation_set,
        data_collator=SailDataCollator(processor, num_queries, max_length),
        processing_class=processor,
    )


def train(trainer: SailTrainer, resume: bool) -> SailTrainer:
    """Train and save; with `predict_with_generate`, score the captions of the model that was saved."""
    folder = trainer.args.output_dir
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder) if resume else None)
    trainer.save_model()  # whatever becomes of the scores
    trainer.save_state()
    if trainer.args.predict_with_generate:
        trainer.log_metrics("eval", trainer.evaluate())
    trainer.accelerator.end_training()
    if trainer.is_world_process_zero():
        print(f"\nSaved {folder}. Next:\n  sail caption VIDEO --model {folder}")
    return trainer


def main(argv: list[str] | None = None) -> SailTrainer:
    model_args, data_args, training_args = parse_arguments(list(sys.argv[1:] if argv is None else argv))
    try:
        trainer = make_trainer(model_args, data_args, training_args)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    return train(trainer, data_args.resume)


if __name__ == "__main__":
    main()
