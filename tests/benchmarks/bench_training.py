"""Speed and memory of a training step against ILCACM's schedule, written plainly below, on real captions.

    python tests/benchmarks/bench_training.py [--annotations FILE] [--tokenizer FOLDER] [--batches 1] [--repeats 2] [--epoch-batches 4]

DistilGPT2's shape with random weights and its dropout, batches of 8 videos of ActivityNet Captions, 32 frames of made-up
features. A step is forward, backward, clipping and AdamW, in float32. The plain schedule pads every row to the longest of
its pass, computes logits at every position, and goes backward after each of two passes (positive, then complement); it is
spared ILCACM's second update. Both take turns on the same batches; ratios are medians over the turns, their range behind them.
Peak memory is that of a process that makes one step, weights and AdamW's moments included. Then a profile of the package's steps; and the
paper's job, 10 epochs of each stage over ActivityNet's 10,009 training videos, extrapolated from the wall seconds of steps over
further batches of it, beside what the papers report of a GPU.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from results import Table, operations, ratios, timed
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from sail_hf import SailConfig, SailDataCollator, SailForDenseVideoCaptioning, SailProcessor, SailVideoProcessor
from sail_hf.loss_sail import augmentation_loss, diversity_loss, masked_mean, similarity_hinges, similarity_loss

SHARED = Path(__file__).parents[3] / "shared"
FRAMES, SIZE, BATCH = 32, 768, 8
# What is timed: losses of the model, and of the plain schedule that it is compared with.
CASES = {
    "first stage": ("full", "full"),
    "second stage, all of SAIL's losses": ("sail", "sail"),
    "the same against ILCACM's own losses": ("sail", "ilcacm"),
}
# Stage, losses, epochs: the paper's (training/configs/activitynet.yaml).
JOB = (("first", "full", 10), ("second", "sail", 10))
TRAINING_VIDEOS = 10_009
# Whole trainings on ActivityNet as published (SAIL: Table 8), on GPUs.
PUBLISHED = "SAIL 1 h 42 min and 33 GiB, ILCACM 1 h 38 min and 33 GiB, SBS 1 h 53 min"
WEIGHTS = {"ilcacm": {"joint_full_loss_weight": 0.0}}


def load_batches(annotations: Path, tokenizer: Path, number: int) -> list[dict[str, Tensor]]:
    """The first batches of a shuffled epoch, real captions and made-up features."""
    videos = json.loads(annotations.read_text())
    names = random.Random(0).sample(sorted(videos), number * BATCH)
    prepared = SailProcessor.prepare_tokenizer(AutoTokenizer.from_pretrained(tokenizer))
    collate = SailDataCollator(SailProcessor(SailVideoProcessor(num_frames=FRAMES), prepared), max_events=14)
    torch.manual_seed(0)

    def row(name: str) -> dict:
        captions = videos[name]["sentences"]
        shapes = {"video": FRAMES, "caption": len(captions), "transition": len(captions) - 1}
        features = {f"{kind}_features": torch.randn(rows, SIZE) for kind, rows in shapes.items()}
        return {"captions": captions, **features}

    rows = [row(name) for name in names]
    return [collate(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]


def make_model(losses: str) -> SailForDenseVideoCaptioning:
    torch.manual_seed(0)
    config = SailConfig.for_method("sail" if losses == "full" else losses, **WEIGHTS.get(losses, {}))
    return SailForDenseVideoCaptioning(config).train()


def plain_caption_loss(model: SailForDenseVideoCaptioning, features: Tensor, frame_mask: Tensor, labels: Tensor):
    """Cross-entropy as any user of transformers has it: all rows padded to the longest, logits at every position."""
    text_mask = (labels != -100).long()
    encoded = model.model.video_encoder(features, frame_mask)
    embeds = torch.cat([encoded, model.get_input_embeddings()(labels * text_mask)], 1)
    mask = torch.cat([frame_mask, text_mask], 1)
    targets = torch.cat([labels.new_full(encoded.shape[:2], -100), labels], 1)
    targets[:, encoded.shape[1]] = -100  # the first token is context
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model.decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, labels=targets).loss


def mask_losses(model: SailForDenseVideoCaptioning, batch: dict[str, Tensor], located: tuple, valid: Tensor) -> Tensor:
    """The losses of the masks that the method has, weighted."""
    config, (centers, _, masks) = model.config, located
    features, captions = batch["video_features"], batch["caption_features"]
    total = features.new_zeros(())
    if config.similarity_loss_weight:
        hinges = similarity_hinges(masked_mean(features, masks), captions, valid, config.similarity_margin)
        total = total + config.similarity_loss_weight * similarity_loss(hinges, valid)
    if config.augmentation_loss_weight:
        middles = (centers[:, :-1] + centers[:, 1:]) / 2
        gap_widths = torch.full_like(middles, config.transition_width) * valid[:, 1:]
        gaps = masked_mean(features, model.model.make_masks(middles, gap_widths, batch["video_attention_mask"]))
        loss = augmentation_loss(gaps, batch["transition_features"], valid)
        total = total + config.augmentation_loss_weight * loss
    if config.diversity_loss_weight:
        total = total + config.diversity_loss_weight * diversity_loss(masks, valid, config.diversity_threshold)
    return total


def plain_backward(model: SailForDenseVideoCaptioning, batch: dict[str, Tensor], losses: str) -> float:
    """Gradients by ILCACM's schedule, a pass after the other; the sum of the losses."""
    features, frame_mask, counts = (batch[name] for name in ("video_features", "video_attention_mask", "num_events"))
    if losses == "full":
        loss = plain_caption_loss(model, features, frame_mask, batch["full_labels"])
        loss.backward()
        return loss.item()
    valid = torch.arange(int(counts.max())) < counts[:, None]

    def masked_pass(labels: Tensor, weigh: Callable[[Tensor], Tensor], used: Tensor) -> tuple[Tensor, tuple]:
        located = model.model.localize(features, frame_mask, counts)
        video, event = used.nonzero(as_tuple=True)
        frames = features[video] * weigh(located[2])[video, event][:, :, None]
        return plain_caption_loss(model, frames, frame_mask[video], labels[video, event]), located

    loss, located = masked_pass(batch["event_labels"], lambda masks: masks, valid)
    loss = loss + mask_losses(model, batch, located, valid)
    if model.config.joint_full_loss_weight:
        loss = loss + plain_caption_loss(model, features, frame_mask, batch["full_labels"])
    loss.backward()
    several = valid & (counts > 1)[:, None]
    negative, _ = masked_pass(batch["complement_labels"], lambda masks: 1 - masks, several)
    negative.backward()
    return (loss + negative).item()


def own_backward(model: SailForDenseVideoCaptioning, batch: dict[str, Tensor], losses: str) -> float:
    """Gradients by the package."""
    shown = ("video_features", "video_attention_mask", "full_labels")
    loss = model(**{name: batch[name] for name in shown} if losses == "full" else batch).loss
    loss.backward()
    return loss.item()


WAYS = {"own": own_backward, "plain": plain_backward}


def make_step(way: str, losses: str) -> Callable[[dict[str, Tensor]], float]:
    model = make_model(losses)
    if way == "plain":  # as transformers gives it
        model.decoder = AutoModelForCausalLM.from_config(model.config.text_config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for weight in model.parameters():  # the moments are there from the first step on
        weight.grad = torch.zeros_like(weight)
    optimizer.step()

    def step(batch: dict[str, Tensor]) -> float:
        optimizer.zero_grad()
        loss = WAYS[way](model, batch, losses)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def peak_memory(args: argparse.Namespace, way: str, losses: str) -> float:
    """GiB that a process needs at most for the first batch's step."""
    command = [sys.executable, __file__, "--memory", way, losses, "--annotations", str(args.annotations)]
    command += ["--tokenizer", str(args.tokenizer)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(args: argparse.Namespace) -> None:
    way, losses = args.memory
    (batch,) = load_batches(args.annotations, args.tokenizer, 1)
    step = make_step(way, losses)
    step(batch)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def print_profile(case: str, batch: dict[str, Tensor]) -> None:
    step = make_step("own", CASES[case][0])
    step(batch)
    print(f"\n{case}, the package's step, shares of the time by torch's profiler: {operations(lambda: step(batch))}.")


def print_job(batches: list[dict[str, Tensor]]) -> None:
    """The paper's training on this machine, extrapolated from a step on each of the batches."""
    print()
    table = Table(
        "stage", "s a step of 8 videos", "range", "s an epoch, extrapolated", "epochs", "hours, extrapolated"
    )
    total = 0.0
    for stage, losses, epochs in JOB:
        step = make_step("own", losses)
        step(batches[0])  # warm
        seconds = [timed(lambda step=step, batch=batch: step(batch)).wall for batch in batches]
        mean = sum(seconds) / len(seconds)
        epoch = mean * TRAINING_VIDEOS / BATCH
        total += epochs * epoch / 3600
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        table.row(stage, f"{mean:.1f}", spread, f"{epoch:.0f}", epochs, f"{epochs * epoch / 3600:.1f}")
    print(
        f"\nBoth stages: {total:.0f} hours on this CPU, extrapolated from {len(batches)} batches, reading and evaluation left out."
    )
    print(f"The papers report, on their GPUs, whole trainings of: {PUBLISHED}. These are not measured here.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, default=SHARED / "annotations" / "activitynet" / "train.json")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizers" / "gpt2")
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--epoch-batches", type=int, default=4)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if missing := [str(path) for path in (args.annotations, args.tokenizer) if not path.exists()]:
        print(f"skipped: there is no {' and no '.join(missing)}")
        return
    if args.memory:
        return print_peak(args)
    batches = load_batches(args.annotations, args.tokenizer, args.batches)
    table = Table("losses", "own CPU s", "plain CPU s", "times faster: CPU", "wall", "own GiB", "plain GiB", "share")
    # First: a process that starts from a large one counts that one's pages as its own.
    peaks = {
        case: [peak_memory(args, way, losses) for way, losses in zip(WAYS, CASES[case], strict=True)]
        for case in args.cases
    }
    for case in args.cases:
        own, plain = peaks[case]
        ways = {way: make_step(way, losses) for way, losses in zip(WAYS, CASES[case], strict=True)}
        turns = [
            {way: timed(lambda step=step, batch=batch: step(batch)) for way, step in ways.items()}
            for _ in range(args.repeats)
            for batch in batches
        ]
        del ways
        cpu, wall = (ratios(turns, "plain", "own", of) for of in ("cpu", "wall"))
        seconds = [f"{median(turn[way].cpu for turn in turns):.1f}" for way in WAYS]
        table.row(case, *seconds, cpu, wall, f"{own:.1f}", f"{plain:.1f}", f"{own / plain:.2f}")
    for case in args.cases:
        print_profile(case, batches[0])
    print_job(load_batches(args.annotations, args.tokenizer, args.epoch_batches))


if __name__ == "__main__":
    main()
