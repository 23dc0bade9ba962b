"""Trainer for SAIL: two stages on one schedule, exact losses whatever the split into batches, every part logged."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import Subset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from .data import write_json
from .loss_sail import SailOutput, count_items
from .scoring import CAPTIONED_COLUMNS, REFERENCE_COLUMNS, caption_dataset, reference_sets, submission

# What the first stage shows the model; with these keys alone, `loss_full` is the only loss.
_CAPTIONING_KEYS = {"video_features", "pixel_values_videos", "video_attention_mask", "full_labels"}
_LOGGED = (
    "loss_full",
    "loss_positive",
    "loss_negative",
    "loss_similarity",
    "loss_augmentation",
    "loss_diversity",
    "loss_alignment",
    "active_hinges",
    "mean_event_center",
    "mean_event_width",
)


@dataclass
class SailTrainingArguments(TrainingArguments):
    """`TrainingArguments` with SAIL's schedule. Defaults are the paper's for ActivityNet Captions.

    Args:
        captioning_epochs (`float`, defaults to 10): first stage, whole-video captions (`loss_full`) alone.
        localization_epochs (`float`, defaults to 10): second stage, all losses of the configuration.
        score_at_end (`bool`, defaults to `False`): at the end of training, save the model and [`SailTrainer.score`] it on
            the `eval_dataset`.

    Other defaults than `TrainingArguments`': `learning_rate` 1e-4, `per_device_train_batch_size` 8, `adam_beta2` 0.99,
    `weight_decay` 0.01, `lr_scheduler_type` cosine, `warmup_steps` 0.05 (of all steps), `remove_unused_columns` False (the
    collator reads nested columns), `prediction_loss_only` True. `num_train_epochs` is the sum of both stages.
    """

    captioning_epochs: float = field(
        default=10, metadata={"help": "Epochs of the first stage (whole-video captions)."}
    )
    localization_epochs: float = field(default=10, metadata={"help": "Epochs of the second stage (all losses)."})
    score_at_end: bool = field(
        default=False, metadata={"help": "At the end of training, caption the eval data set and score the captions."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Videos per device and batch."})
    adam_beta2: float = field(default=0.99, metadata={"help": "Beta2 of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule over both stages together."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Share of all steps (below 1), or their number."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads nested columns."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluation gives the loss."})

    def __post_init__(self):
        if self.captioning_epochs < 0 or self.localization_epochs < 0:
            raise ValueError("`captioning_epochs` and `localization_epochs` must not be negative.")
        self.num_train_epochs = self.captioning_epochs + self.localization_epochs
        super().__post_init__()


class SailTrainer(Trainer):
    """`Trainer` that shows the model whole-video captions alone in the first stage, and everything in the second.

    The stage follows from the state's epoch, so a run resumed from any checkpoint goes on in the right one. Losses are
    normalised by the whole optimiser step's tokens and videos over micro-batches and processes: gradient accumulation
    and several devices give the gradients of one large batch.
    """

    args: SailTrainingArguments

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.score_at_end:
            self._check_scored(self.eval_dataset)
        # The model takes the step's own counts from this trainer, and its loss then needs no further scaling.
        self.model_accepts_loss_kwargs = True
        # Since the last log, of each logged part: its sum, the micro-batches that count, and those that had it.
        self._parts = torch.zeros(len(_LOGGED), 3, dtype=torch.float64)

    @property
    def in_captioning_stage(self) -> bool:
        return (self.state.epoch or 0.0) < self.args.captioning_epochs

    def _stage_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if not self.model.training or not self.in_captioning_stage:
            return inputs
        return {name: value for name, value in inputs.items() if name in _CAPTIONING_KEYS}

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
        outputs: SailOutput = model(**self._stage_inputs(inputs), num_items_in_batch=num_items_in_batch)
        loss = outputs.loss
        if loss is None:
            raise ValueError(f"The batch has no labels that give a loss; it holds {', '.join(inputs)}.")
        if model.training:
            self._record(outputs)
        if num_items_in_batch is not None:
            # Processes average their gradients, but each already divides by the count of all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _record(self, outputs: SailOutput) -> None:
        # A part is already divided by the count of the whole step, so its mean over micro-batches is this much too small.
        scale = self.accelerator.num_processes * self.current_gradient_accumulation_steps
        values = {name: value * scale for name, value in outputs.items() if name.startswith("loss_")}
        values["active_hinges"] = outputs.active_hinges
        if outputs.event_widths is not None:
            real = outputs.event_widths > 0
            values["mean_event_center"] = outputs.event_centers[real].mean()
            values["mean_event_width"] = outputs.event_widths[real].mean()
        for index, name in enumerate(_LOGGED):
            if values.get(name) is not None:
                self._parts[index] += torch.stack([values[name].detach().double().cpu(), *torch.ones(2)])
            elif name.startswith("loss_") and outputs.event_widths is not None:
                # Nothing of this part here (videos with one caption): it lies in the step's other micro-batches.
                self._parts[index, 1] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            parts = self.accelerator.gather(self._parts[None].to(self.args.device)).sum(0).cpu()
            logs.update(
                {name: (total / n).item() for name, (total, n, had) in zip(_LOGGED, parts, strict=True) if had}
            )
            self._parts.zero_()
        super().log(logs, start_time)

    def train(self, *args, **kwargs) -> TrainOutput:
        output = super().train(*args, **kwargs)
        if self.args.score_at_end:
            self.save_model()  # whatever becomes of the scores
            self.score()
        return output

    def score(self, dataset: Dataset | list[dict] | None = None) -> dict[str, Any] | None:
        """Caption a data set and score the captions with [`DenseVideoCaptioningMetric`], all of its defaults.

        Writes `results.json` (a submission that `training/evaluate.py` scores too) and `scores.json` into the output
        folder, logs the numbers as `eval_...` and prints them as a table. Every process captions its share.

        Args:
            dataset: defaults to `eval_dataset`. Its rows have `video_id`, `duration` (seconds), `video_features`,
                `captions`, `timestamps` (seconds) and perhaps `references`, as `training/extract_features.py` writes them.
                Videos that it lacks are not counted, where `training/evaluate.py` counts those of its reference files
                as zero: score `results.json` by that if videos of a benchmark are gone.

        Returns:
            the scores on the main process, `None` on others.

        Raises:
            ValueError: no data set, or rows that cannot be scored.
        """
        from .metric import DenseVideoCaptioningMetric, format_table  # slow to import

        dataset = self.eval_dataset if dataset is None else dataset
        references = self._check_scored(dataset)
        model = self.accelerator.unwrap_model(self.model).eval()
        with self.accelerator.split_between_processes(list(range(len(dataset)))) as share:
            rows = dataset
            if isinstance(dataset, Dataset):
                rows = dataset.select_columns(list(CAPTIONED_COLUMNS)).with_format("numpy")
            batch_size = self.args.per_device_eval_batch_size
            found = caption_dataset(model, self.processing_class, Subset(rows, share), batch_size)
        results = dict(gather_object(list(found.items())))
        if not self.is_world_process_zero():
            return None
        content, folder = submission(results), Path(self.args.output_dir)
        write_json(folder / "results.json", content)
        predictions = [content["results"][video] for video in references]
        scores = DenseVideoCaptioningMetric().compute(predictions=predictions, references=list(references.values()))
        write_json(folder / "scores.json", scores)
        self.log({f"eval_{name}": value for name, value in scores.items() if isinstance(value, float)})
        print(f"\n{format_table(scores, name='this model')}\n\nWrote results.json and scores.json in {folder}")
        return scores

    def _check_scored(self, dataset: Dataset | list[dict] | None) -> dict[str, list[dict]]:
        """Reference sets by video id, or what cannot be scored: said before hours of training, not after."""
        from .metric import checked_reference  # slow to import

        if not dataset or isinstance(dataset, dict):
            raise ValueError("Scoring needs one `eval_dataset`: the videos that are captioned and scored.")
        if missing := {*CAPTIONED_COLUMNS, "captions", "timestamps"} - set(dataset[0]):
            raise ValueError(f"Scoring needs the columns {', '.join(sorted(missing))}; found {', '.join(dataset[0])}.")
        if self.processing_class is None:
            raise ValueError("Scoring needs `processing_class`, the SailProcessor, to read the captions.")
        if isinstance(dataset, Dataset):
            columns = [column for column in REFERENCE_COLUMNS if column in dataset.column_names]
            dataset = dataset.select_columns(columns).with_format(None)
        rows = list(dataset)
        sets = {str(row["video_id"]): one for row, one in zip(rows, reference_sets(rows), strict=True)}
        for video, of_video in sets.items():
            checked_reference(of_video, f"references of {video}")
        return sets
