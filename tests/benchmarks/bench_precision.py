"""Captioning on the CPU in bfloat16 and int8: speed as ratios to float32, and what becomes of the captions.

    python tests/benchmarks/bench_precision.py [MODEL VIDEOS] [--turns 3]

Speed: DistilGPT2's shape with random weights, 8 videos of 32 frames and 4 events each, captions of 16 tokens, beam 4; ways take
turns, ratios are medians over the turns, their range behind them. bfloat16 is what `from_pretrained(dtype="bfloat16")`, the
pipeline's `dtype=` and `sail caption --dtype bfloat16` give. int8 are the weights of the linear layers of decoder and video encoder,
inputs quantised as they come (`torch.ao.quantization.quantize_dynamic`); the package has no such option, as torch means to drop
that function, and its successor would be one more dependency. Captions: of a trained model, by default what `make demo`
leaves behind, on its test videos: the share of events' sentences that are word for word those of float32, numbers of events
given; and agreement token by token, both given float32's sentences. Without such a model, the latter with random weights,
which is no more than a bound: among random logits the two greatest lie closer together.
"""

import argparse
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from results import Table, ratios, timed
from torch import Tensor, nn
from transformers import AutoProcessor
from transformers.pytorch_utils import Conv1D

from sail_hf import SailConfig, SailForDenseVideoCaptioning

DEMO = Path(__file__).parents[2] / "outputs" / "demo"
VIDEOS, FRAMES, EVENTS, LENGTH = 8, 32, 4, 16
CPU_FLAGS = ("avx512_bf16", "amx_bf16", "avx512_vnni", "amx_int8")


def in_bfloat16(model: SailForDenseVideoCaptioning) -> SailForDenseVideoCaptioning:
    return copy.deepcopy(model).bfloat16()


def in_int8(model: SailForDenseVideoCaptioning) -> SailForDenseVideoCaptioning:
    model = copy.deepcopy(model)
    for name, layer in list(model.decoder.named_modules()):
        if isinstance(layer, Conv1D):  # GPT-2's linear layers, whose weights lie the other way round
            model.decoder.set_submodule(name, as_linear(layer))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torchao will have it one day
        model.decoder = torch.ao.quantization.quantize_dynamic(model.decoder, {nn.Linear})
        model.model.video_encoder = torch.ao.quantization.quantize_dynamic(model.model.video_encoder, {nn.Linear})
    return model


def as_linear(layer: Conv1D) -> nn.Linear:
    linear = nn.Linear(*layer.weight.shape)
    linear.weight, linear.bias = nn.Parameter(layer.weight.T.contiguous()), layer.bias
    return linear


WAYS: dict[str, Callable[[SailForDenseVideoCaptioning], SailForDenseVideoCaptioning]] = {
    "float32": lambda model: model,
    "bfloat16": in_bfloat16,
    "int8": in_int8,
}


def print_speed(models: dict[str, SailForDenseVideoCaptioning], turns: int) -> None:
    features, counts = torch.randn(VIDEOS, FRAMES, 768), torch.full((VIDEOS,), EVENTS)
    lengths = {"min_new_tokens": LENGTH, "max_new_tokens": LENGTH}

    def caption(model: SailForDenseVideoCaptioning) -> None:
        model.generate(features, num_events=counts, num_beams=4, **lengths)

    for model in models.values():
        caption(model)
    found = [{way: timed(lambda model=model: caption(model)) for way, model in models.items()} for _ in range(turns)]
    table = Table("weights", "CPU s", "times faster: CPU", "wall")
    for way in models:
        cpu, wall = (ratios(found, "float32", way, of) for of in ("cpu", "wall"))
        table.row(way, f"{median(turn[way].cpu for turn in found):.1f}", cpu, wall)


@torch.no_grad()
def likeliest(model: SailForDenseVideoCaptioning, features: Tensor, sequences: Tensor) -> Tensor:
    """The tokens that the model holds likeliest at each place of whole-video captions `(B, length)`, given those before it."""
    prompt = torch.tensor([model.config.full_prompt_ids] * len(sequences))
    features, frame_mask = model.model.prepare_features(video_features=features)
    encoded = model.model.video_encoder(features, frame_mask)
    logits = model.caption_logits(encoded, frame_mask, torch.cat([prompt, sequences], 1))
    return logits[:, prompt.shape[1] - 1 : -1].argmax(-1)


def print_agreement(models: dict[str, SailForDenseVideoCaptioning], features: Tensor, tokenizer, **options) -> None:
    """How much of float32's captions of the videos `(B, T, D)` stays."""
    exact = models["float32"]
    outputs = exact.generate(features, tokenizer=tokenizer, localization="masks", **options)
    pad, counts = exact.generation_config.pad_token_id, outputs.num_events
    full = outputs.full_sequences
    if full is None:
        frame_mask = torch.ones(features.shape[:2], dtype=torch.long)
        full = exact.describe(features, frame_mask, full_min_new_tokens=LENGTH, full_max_new_tokens=LENGTH)
    expected = likeliest(exact, features, full)
    table = Table("weights", "sentences unchanged", "of", "tokens that agree", "of")
    for way, model in models.items():
        found = model.generate(
            features, **{"tokenizer": tokenizer, "localization": "masks", **options, "num_events": counts}
        )
        rows = [
            [[token for token in row if token != pad] for row in ids.tolist()]
            for ids in (outputs.sequences, found.sequences)
        ]
        same = sum(one == other for one, other in zip(*rows, strict=True)) / len(rows[0])
        agree = (likeliest(model, features, full) == expected)[full != pad].float().mean()
        table.row(way, f"{100 * same:.1f} %", len(rows[0]), f"{100 * agree:.2f} %", int((full != pad).sum()))


def print_captions(folder: Path, videos: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    model = SailForDenseVideoCaptioning.from_pretrained(folder).eval()
    paths = [str(path) for path in sorted(videos.glob("test_*.mp4"))]
    pixels = processor(paths)["pixel_values_videos"]
    features = model.model.get_video_features(pixels)
    print(f"\nCaptions of {len(paths)} videos by a trained model, {model.num_parameters() / 1e6:.1f} M weights:\n")
    print_agreement({way: make(model) for way, make in WAYS.items()}, features, processor.tokenizer)


def cpu_flags() -> str:
    """What of the CPU's instructions makes these types fast."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text().split() if path.exists() else []
    return ", ".join(f"{flag} {'yes' if flag in flags else 'no'}" for flag in CPU_FLAGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=DEMO / "checkpoint")
    parser.add_argument("videos", type=Path, nargs="?", default=DEMO / "playground" / "videos")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = SailForDenseVideoCaptioning(SailConfig.for_method("sail")).eval()
    models = {way: make(model) for way, make in WAYS.items()}
    print(f"This CPU: {cpu_flags()}.\n")
    print_speed(models, args.turns)
    if args.model.is_dir() and args.videos.is_dir():
        return print_captions(args.model, args.videos)
    print("\nNo trained model and its videos are there (make them with `make demo`), so captions of random weights:\n")
    features, counts = torch.randn(VIDEOS, FRAMES, 768), torch.full((VIDEOS,), EVENTS)
    print_agreement(models, features, None, num_events=counts, max_new_tokens=LENGTH)


if __name__ == "__main__":
    main()
