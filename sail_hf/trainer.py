"""Trainer for SAIL: two stages on one schedule, exact losses whatever the split into batches, every part logged."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from .loss_sail import count_items
from .modeling_sail import SailOutput

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

    Other defaults than `TrainingArguments`': `learning_rate` 1e-4, `per_device_train_batch_size` 8, `adam_beta2` 0.99,
    `weight_decay` 0.01, `lr_scheduler_type` cosine, `warmup_steps` 0.05 (of all steps), `remove_unused_columns` False (the
    collator reads nested columns), `prediction_loss_only` True. `num_train_epochs` is the sum of both stages.
    """

    captioning_epochs: float = field(
        default=10, metadata={"help": "Epochs of the first stage (whole-video captions)."}
    )
    localization_epochs: float = field(default=10, metadata={"help": "Epochs of the second stage (all losses)."})
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
