"""Trainer for SAIL: two stages on one schedule, exact losses whatever the split into batches, captions scored in evaluation."""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, has_length

from .context_sail import id_bytes
from .data import CAPTIONED_COLUMNS, REFERENCE_COLUMNS, reference_sets, submission, write_json
from .loss_sail import LOSSES, SHARES, SailOutput, count_items
from .modeling_sail import SailForDenseVideoCaptioning
from .processing_sail import SailProcessor

logger = logging.getLogger(__name__)

# What the first stage shows the model; with these keys alone, `loss_full` is the only loss.
CAPTIONING_KEYS = {
    *("video_features", "pixel_values_videos", "video_attention_mask", "region_features"),
    *("full_labels", "video_ids"),
}
# Of two updates a batch, what the first and the second do not see; both see all else, hence the losses of the masks.
NOT_IN_FIRST, NOT_IN_SECOND = {"complement_labels"}, {"full_labels", "event_labels", "grounding_targets"}


@dataclass
class SailTrainingArguments(TrainingArguments):
    """`TrainingArguments` with SAIL's schedule. Defaults are the paper's for ActivityNet Captions.

    Args:
        captioning_epochs (`float`, defaults to 10): first stage, whole-video captions (`loss_full`) alone.
        localization_epochs (`float`, defaults to 10): second stage, all losses of the configuration. With `max_steps`, which
            a data set without a length (streaming) needs, both numbers are shares: 10 and 10 are half of the steps each.
        updates_per_batch (`str`, defaults to `"one"`): of the second stage. `"one"`: on the sum of all losses, as SAIL. `"two"`:
            first on the losses of positive passes and masks, then, by the updated weights, on those of negative passes and
            masks, as ILCACM's DeepSpeed run. `"two-summed"`: the second update still holds the gradients of the first, as
            ILCACM's plain script, which does not clip them (`max_grad_norm` 0). A batch is all micro-batches and processes
            of a step; what both passes compute is logged as their sum, as the loss is.
        predict_with_generate (`bool`, defaults to `False`): evaluation also captions its data set and scores the captions
            with [`DenseVideoCaptioningMetric`]: `eval_f1`, `eval_cider`, `eval_lift`, ..., for `metric_for_best_model="f1"`.
            Its rows need `video_id`, `duration` (seconds), `video_features`, `captions` and `timestamps` (seconds) or
            `references`, as `training/extract_features.py` writes them. The last captions lie in `output_dir/results.json`,
            their scores in `scores.json`.
        eval_metrics (`list[str]`, *optional*): any of `METRICS` of `metric.py`. Defaults to all, less those whose programs
            are not installed.

    Other defaults than `TrainingArguments`': `learning_rate` 1e-4, `per_device_train_batch_size` 8, `adam_beta2` 0.99,
    `weight_decay` 0.01, `lr_scheduler_type` cosine, `warmup_steps` 0.05 (of all steps), `remove_unused_columns` False (the
    collator reads nested columns), `prediction_loss_only` True, `logging_nan_inf_filter` False (a loss that is not finite stops
    training), `ddp_timeout` 86400 s (processes wait for the one that extracts features or scores captions), `accelerator_config` `{"dispatch_batches": False}` (batches
    for several processes are padded to different lengths, which one process could only dispatch with `split_batches`).
    `num_train_epochs` is the sum of both stages.

    Raises:
        ValueError: negative epochs, another word for `updates_per_batch`, or `num_train_epochs` other than their sum.
    """

    captioning_epochs: float = field(
        default=10, metadata={"help": "Epochs of the first stage (whole-video captions); its share of max_steps."}
    )
    localization_epochs: float = field(
        default=10, metadata={"help": "Epochs of the second stage (all losses); its share of max_steps."}
    )
    updates_per_batch: Literal["one", "two", "two-summed"] = field(
        default="one", metadata={"help": "Updates a batch in the second stage: one, or two as in ILCACM's code."}
    )
    predict_with_generate: bool = field(
        default=False, metadata={"help": "Evaluation also captions its data set and scores the captions."}
    )
    eval_metrics: list[str] | None = field(
        default=None, metadata={"help": "Scores of the captions: localization, controls, meteor, ...; default all."}
    )
    num_train_epochs: float | None = field(default=None, metadata={"help": "Follows from the epochs of both stages."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Videos per device and batch."})
    adam_beta2: float = field(default=0.99, metadata={"help": "Beta2 of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule over both stages together."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Share of all steps (below 1), or their number."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads nested columns."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluation gives the loss."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite stops training."})
    ddp_timeout: int = field(default=86400, metadata={"help": "Seconds that processes wait for each other."})

    def __post_init__(self):
        if self.captioning_epochs < 0 or self.localization_epochs < 0:
            raise ValueError("`captioning_epochs` and `localization_epochs` must not be negative.")
        if self.updates_per_batch not in (ways := ("one", "two", "two-summed")):
            raise ValueError(
                f"`updates_per_batch` must be one of {', '.join(ways)}, found {self.updates_per_batch!r}."
            )
        epochs = self.captioning_epochs + self.localization_epochs
        if self.num_train_epochs is not None and not math.isclose(self.num_train_epochs, epochs):
            raise ValueError(
                f"`num_train_epochs` is {self.num_train_epochs:g}, but `captioning_epochs` and `localization_epochs` add up "
                f"to {epochs:g}: set these two, of which it is the sum."
            )
        self.num_train_epochs = epochs
        if self.accelerator_config is None:
            self.accelerator_config = {"dispatch_batches": False}
        super().__post_init__()


def captioning_steps(args: SailTrainingArguments, max_steps: int) -> int:
    """Steps of the first stage, of `max_steps` in all."""
    return round(max_steps * args.captioning_epochs / (args.num_train_epochs or 1))


def check_stages(args: SailTrainingArguments, max_steps: int) -> None:
    """Raise ValueError where a stage that has epochs would get none of `max_steps` steps."""
    steps = captioning_steps(args, max_steps)
    for name, of_stage in (("captioning_epochs", steps), ("localization_epochs", max_steps - steps)):
        if getattr(args, name) and not of_stage:
            raise ValueError(
                f"`{name}` is {getattr(args, name):g}, but none of the {max_steps} steps falls to that stage: train "
                "for more steps (more epochs, smaller batches or a larger `max_steps`), or set it to 0."
            )


class StageCheck(TrainerCallback):
    """[`check_stages`] at the start of training."""

    def on_train_begin(self, args, state, control, **kwargs):
        check_stages(args, state.max_steps)


class NamedBatches:
    """A collator whose batches hold their rows' `video_id` where rows have one: `"video_ids"`, `(B, 64)` [`id_bytes`]."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]):
        self.collate = collate

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collate(rows)
        if "video_id" not in rows[0]:
            return batch
        return {**batch, "video_ids": id_bytes([row["video_id"] for row in rows])}


def names_of(video_ids: torch.Tensor | None) -> str:
    """The ids of a batch of [`NamedBatches`], for a message."""
    if video_ids is None:
        return "unknown (the rows have no `video_id`)"
    return ", ".join(bytes(row).rstrip(b"\0").decode(errors="replace") for row in video_ids.tolist())


class SailTrainer(Trainer):
    """`Trainer` that shows the model whole-video captions alone in the first stage, and everything in the second.

    The stage follows from the step, so a run resumed from any checkpoint goes on in the right one. Losses are normalised by
    the whole optimiser step's tokens and videos over micro-batches and processes: gradient accumulation and several devices
    give the gradients of one large batch. Every part of the loss is logged as that large batch would give it.

    A loss that is not finite stops training, and weights that are not finite are not saved (FloatingPointError).
    """

    args: SailTrainingArguments

    def __init__(self, model: Any = None, args: SailTrainingArguments | None = None, **kwargs):
        if args is not None and args.n_gpu > 1:
            logger.warning(
                "Training on one of %d visible GPUs: start the script with `accelerate launch` to use all.", args.n_gpu
            )
            # As transformers does for models that must not be wrapped in `nn.DataParallel`.
            args._n_gpu = 1
        super().__init__(model, args, **kwargs)
        self.add_callback(StageCheck())
        if self.args.predict_with_generate:
            self._check_scored()
        # The model takes the step's own counts from this trainer, and its loss then needs no further scaling.
        self.model_accepts_loss_kwargs = True
        # Since the last log: sums of each loss by step, and of what describes the masks the values of the micro-batches.
        self._loss_sums: dict[str, Counter] = defaultdict(Counter)
        self._mask_values: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.data_collator = NamedBatches(self.data_collator)
        # Of two updates a batch: what the second is still to see.
        self._micro_batches: list[dict[str, Any]] = []

    @property
    def in_captioning_stage(self) -> bool:
        return self.state.global_step < captioning_steps(self.args, self.state.max_steps)

    def _stage_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if not self.model.training or not self.in_captioning_stage:
            return inputs
        return without(inputs, inputs.keys() - CAPTIONING_KEYS)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> dict[str, torch.Tensor] | None:
        """What each loss averages over, summed over the micro-batches and processes of one optimiser step."""
        counts = [count_items(batch) for batch in batch_samples]
        if not counts:
            return None
        totals = {name: sum(count[name] for count in counts).to(device) for name in counts[0]}
        if self.args.world_size > 1:
            totals = {name: self.accelerator.gather(total).sum() for name, total in totals.items()}
        # A step without any item of a kind has no loss of that kind either.
        return {name: total.clamp(min=1) for name, total in totals.items()}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, torch.Tensor] | None = None,
    ):
        inputs = dict(inputs)
        video_ids = inputs.get("video_ids")
        outputs: SailOutput = model(**self._stage_inputs(inputs), num_items_in_batch=num_items_in_batch)
        loss = outputs.loss
        if loss is None:
            raise ValueError(f"The batch has no labels that give a loss; it holds {', '.join(inputs)}.")
        if model.training:
            if not loss.isfinite():
                self._stop_at(outputs, video_ids)
            self._record(outputs)
        if num_items_in_batch is not None:
            # Processes average their gradients, but each already divides by the count of all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """As `Trainer`'s; with two updates a batch, the first is made here, and `Trainer` makes the second."""
        if self.args.updates_per_batch == "one" or self.in_captioning_stage:
            return super().training_step(model, inputs, num_items_in_batch)
        loss = super().training_step(model, without(inputs, NOT_IN_FIRST), num_items_in_batch)
        self._micro_batches.append(inputs)
        if not self.accelerator.sync_gradients:
            return loss
        if self.args.max_grad_norm > 0:
            self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        if self.args.updates_per_batch == "two":
            self.optimizer.zero_grad()
        while self._micro_batches:
            inputs, hidden, counts = self._micro_batches.pop(0), NOT_IN_SECOND, num_items_in_batch
            if inputs["num_events"].max() < 2:
                # No video has a loss of this update, which other processes may have: the first's, divided to nothing.
                hidden, counts = NOT_IN_FIRST, dict.fromkeys((loss.average for loss in LOSSES), torch.inf)
            loss = loss + super().training_step(model, without(inputs, hidden), counts)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer`'s.

        Raises:
            FloatingPointError: a weight is not finite; nothing is written.
        """
        broken = [name for name, weight in self.model.named_parameters() if not weight.isfinite().all()]
        if broken:
            raise FloatingPointError(
                f"Not saved: {len(broken)} weights are not finite, e.g. {broken[0]}. What was saved before is as it was: go on "
                "from there with a smaller `learning_rate`."
            )
        super().save_model(output_dir, _internal_call)

    def _stop_at(self, outputs: SailOutput, video_ids: torch.Tensor | None) -> None:
        parts = {loss.name: outputs.get(f"loss_{loss.name}") for loss in LOSSES}
        broken = [name for name, part in parts.items() if part is not None and not part.isfinite()]
        raise FloatingPointError(
            f"Training stopped at step {self.state.global_step}: the loss is not finite ({', '.join(broken)}). Look at the "
            f"features and captions of the batch's videos: {names_of(video_ids)}; if these are in order, train with a smaller "
            "`learning_rate`."
        )

    # --- Logging --------------------------------------------------------------------------------------------------

    def _record(self, outputs: SailOutput) -> None:
        for name in (f"loss_{loss.name}" for loss in LOSSES):
            if outputs.get(name) is not None:
                # Already divided by the count of the whole step, so micro-batches and processes add up to it.
                self._loss_sums[name][self.state.global_step] += outputs[name].detach()
        for name in SHARES:
            if outputs.get(name) is not None:
                self._mask_values[name].append(outputs[name].detach())
        if outputs.event_widths is not None:
            # Both are 0 past a video's events.
            events = (outputs.event_widths > 0).sum()
            self._mask_values["mean_event_center"].append(outputs.event_centers.detach().sum() / events)
            self._mask_values["mean_event_width"].append(outputs.event_widths.detach().sum() / events)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._mean_parts())
        super().log(logs, start_time)

    def _mean_parts(self) -> dict[str, float]:
        """Means over the steps since the last log that have the loss, of all processes; they start anew."""
        sums = [(name, step, float(part)) for name, steps in self._loss_sums.items() for step, part in steps.items()]
        values = [(name, float(value)) for name, found in self._mask_values.items() for value in found]
        self._loss_sums.clear()
        self._mask_values.clear()
        by_name: dict[str, list[float]] = defaultdict(list)
        of_step: Counter = Counter()
        for name, step, part in gather_object(sums):
            of_step[name, step] += part
        for (name, _), value in of_step.items():
            by_name[name].append(value)
        for name, value in gather_object(values):
            by_name[name].append(value)
        return {name: sum(found) / len(found) for name, found in by_name.items()}

    # --- Evaluation -----------------------------------------------------------------------------------------------

    def evaluation_loop(
        self, dataloader: DataLoader, *args, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.args.predict_with_generate:
            scores = self._caption_and_score(dataloader.dataset, metric_key_prefix)
            numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in numbers.items()})
        return output

    def _caption_and_score(self, dataset: Dataset | Sequence[dict], prefix: str) -> dict[str, Any]:
        """Scores of the captions of a data set; every process captions its share, the main one scores and writes."""
        references = scored_references(dataset)
        rows = dataset
        if isinstance(dataset, Dataset):
            seen = {*CAPTIONED_COLUMNS, "region_features"} & set(dataset.column_names)
            rows = dataset.select_columns(sorted(seen)).with_format("numpy")
        with self.accelerator.split_between_processes(list(range(len(dataset)))) as share:
            found = caption_dataset(
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                Subset(rows, share),
                self.args.per_device_eval_batch_size,
            )
        results = dict(gather_object(list(found.items())))
        scores = [None]
        if self.is_world_process_zero():
            scores = [self._score({video: results[video] for video in references}, references, prefix)]
        return broadcast_object_list(scores)[0]

    def _score(self, results: dict[str, list[dict]], references: dict[str, list[dict]], prefix: str) -> dict[str, Any]:
        from .metric import METRICS, DenseVideoCaptioningMetric  # slow to import

        name = "" if prefix == "eval" else f"{prefix.removeprefix('eval_')}_"
        content = submission(results)
        write_json(Path(self.args.output_dir, f"{name}results.json"), content)
        scores = DenseVideoCaptioningMetric().compute(
            predictions=list(content["results"].values()),
            references=list(references.values()),
            metrics=self.args.eval_metrics or METRICS,
        )
        write_json(Path(self.args.output_dir, f"{name}scores.json"), scores)
        return scores

    def _check_scored(self) -> None:
        """What cannot be scored is said before hours of training, not after."""
        from .metric import METRICS, check_options
        from .metric_captions import find_java_tools

        if self.processing_class is None:
            raise ValueError("Scoring needs `processing_class`, the SailProcessor, to read the captions.")
        if self.eval_dataset is None:
            raise ValueError(
                "`predict_with_generate` needs an `eval_dataset`: the videos that are captioned and scored."
            )
        for dataset in self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]:
            scored_references(dataset)
        if self.args.eval_metrics is not None:
            check_options("2021", "zero", (0.5,), self.args.eval_metrics)
            if not set(self.args.eval_metrics) <= set(METRICS[:2]):
                find_java_tools()


def without(inputs: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """A batch less some of what it holds."""
    return {name: value for name, value in inputs.items() if name not in names}


def scored_references(dataset: Dataset | Sequence[dict]) -> dict[str, list[dict[str, Any]]]:
    """Reference sets of a data set's rows by video id.

    Raises:
        ValueError: naming what a row lacks to be captioned and scored.
    """
    from .metric import checked_reference  # slow to import

    if not has_length(dataset) or not len(dataset):
        raise ValueError("Scoring needs a data set with rows that can be counted: no streaming one, and no empty one.")
    if missing := {*CAPTIONED_COLUMNS, "captions", "timestamps"} - set(dataset[0]):
        raise ValueError(f"Scoring needs the columns {', '.join(sorted(missing))}; found {', '.join(dataset[0])}.")
    rows = dataset
    if isinstance(dataset, Dataset):
        columns = [column for column in REFERENCE_COLUMNS if column in dataset.column_names]
        rows = dataset.select_columns(columns).with_format(None)
    rows = list(rows)
    if untimed := [row["video_id"] for row in rows if row["duration"] is None]:
        raise ValueError(
            f"Scoring needs durations; {len(untimed)} of {len(rows)} videos have none, e.g. {untimed[0]}."
        )
    references = reference_sets(rows)
    if len(references) < len(rows):
        raise ValueError(f"Scoring needs one row for each video; {len(rows)} rows have {len(references)} ids.")
    for video, sets in references.items():
        checked_reference(sets, f"references of {video}")
    return references


def caption_dataset(
    model: SailForDenseVideoCaptioning,
    processor: SailProcessor,
    data: Dataset | Sequence[dict],
    batch_size: int = 8,
    counts: dict[str, int] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Events of every row: video id -> the pipeline's output form.

    Args:
        model: in evaluation mode, on the device that captions.
        data: rows with `video_id`, `duration` in seconds and `video_features` `(T, D)`, and for a model with a grounding head
            `region_features` `(T, N, D)`; a `datasets.Dataset` is read
            fastest with the format "numpy".
        counts: number of events by video id. Defaults to the model's own count.
    """

    def collate(rows: list[dict]) -> dict[str, Any]:
        features = [torch.as_tensor(row["video_features"], dtype=torch.float32) for row in rows]
        frame_masks = [torch.ones(len(value), dtype=torch.long) for value in features]
        regions = {}
        if model.grounding_head is not None and "region_features" in rows[0]:
            of_rows = [torch.as_tensor(row["region_features"]) for row in rows]
            regions = {"region_features": pad_sequence(of_rows, batch_first=True)}
        return {
            **regions,
            "video_features": pad_sequence(features, batch_first=True),
            "video_attention_mask": pad_sequence(frame_masks, batch_first=True),
            "ids": [str(row["video_id"]) for row in rows],
            "durations": [float(row["duration"]) for row in rows],
        }

    results = {}
    with tqdm(total=len(data), desc="Captioning", unit="video") as progress:
        for batch in DataLoader(data, batch_size=batch_size, collate_fn=collate):
            ids, durations = batch.pop("ids"), batch.pop("durations")
            if counts is not None:
                batch["num_events"] = torch.tensor([counts[video] for video in ids])
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            outputs = model.generate(**inputs, tokenizer=processor.tokenizer)
            results.update(zip(ids, processor.post_process_dense_captioning(outputs, durations), strict=True))
            progress.update(len(ids))
    return results
