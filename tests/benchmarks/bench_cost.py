"""What ActivityNet's 20,000 videos and a million hours of video cost: core hours from measured rates, estimated GPU hours.

    python tests/benchmarks/bench_cost.py [--clip-frames 4]

A video is 2 minutes long (ActivityNet Captions: 117 s), of 32 frames, 4 captions (3.7) and 3 gaps between them (2.7), 14 tokens a
caption; a million hours are 30 million of them. Measured here, in CPU seconds: reading the frames of a made-up 360p H.264 video; CLIP
ViT-L/14 on a few frames; both captioning passes at DistilGPT2's shape, beam 4, random weights. Nothing else was run.

FLOPs are counted by torch's `FlopCounterMode` from the models' shapes, without weights (two for each multiplication with addition).
GPU hours are estimates, not measured: videos x FLOPs / (peak x utilisation) / 3600, with the dense bfloat16 peaks of the data sheets
and a utilisation of 50 % (the lower figure) to 20 % (the higher). Small batches and the decoding of tokens, which memory bounds, are
the reasons to expect the higher one, or more.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from bench_growth import caption
from bench_reading import by_sail, write_video
from results import Table, timed
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig, Qwen3Config, Qwen3ForCausalLM

from sail_hf import SailConfig, SailForDenseVideoCaptioning, SailVisionConfig
from sail_hf.clip_towers import build_towers

FRAMES, CAPTIONS, GAPS, MINUTES = 32, 4, 3, 2
AMOUNTS = {"20,000 videos": 20_000, "a million hours": 1_000_000 * 60 // MINUTES}
PEAKS = {"A100": 312e12, "H200": 989e12}
UTILISATION = (0.5, 0.2)
# Tokens of Algorithm 1's prompts with two captions, in round figures; of an answer, at most; of a frame's image, question and answer.
PROMPT_TOKENS, ANSWER_TOKENS, FRAME_TOKENS = 700, 50, 72
ENGINES = f"""
What runs it: decoding, FFmpeg through PyAV, in as many threads as `--num_workers`; torchcodec's decoders, NVDEC's among them, are taken
by the pipeline, not by the recipe. CLIP: open_clip in `training/extract_features.py`, on the GPU of each process under
`accelerate launch`. Transition captions: Qwen3-8B in `training/augment_captions.py generate`, by transformers in the process, or by
any server with OpenAI's interface (`--base-url`; vLLM, SGLang), which batches requests as they come. Captions of frames, only for the
method `sbs`: BLIP-2's size here, {FRAMES} requests a video, by `training/caption_frames.py` and such a server. Captions:
`training/predict.py`.

How it is shared: all four take `--shard 1/8` to `8/8`, every eighth item each, on machines that need no disk in common: finished videos are
files named by a digest of all that they depend on, answers are lines of logs. A share that was stopped goes on where it was; the command
without `--shard` (for answers: `merge`) joins them, and does what is missing. Training is not shared so: `accelerate launch`.
"""


def flops(work: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device="meta")


def clip_flops(model_cfg: dict) -> int:
    """Of a video's frames, captions and transitions."""
    with torch.device("meta"):
        visual, text = build_towers(SailVisionConfig(model_cfg=model_cfg, include_text_tower=True))
    texts = on_meta(CAPTIONS + GAPS, 77, dtype=torch.long)
    return flops(lambda: visual(on_meta(FRAMES, 3, 224, 224))) + flops(lambda: text(texts))


def llm_flops() -> int:
    """Of Qwen3-8B on a video's gaps: all positions pass through the layers once, only those of the answer become words."""
    shape = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**shape, **heads))
    ids = on_meta(1, PROMPT_TOKENS + ANSWER_TOKENS, dtype=torch.long)
    return GAPS * flops(lambda: model(ids, logits_to_keep=ANSWER_TOKENS))


def frame_caption_flops() -> int:
    """Of BLIP-2 with OPT 2.7B on a video's frames, the querying transformer left out."""
    text_config = OPTConfig(hidden_size=2560, num_hidden_layers=32, ffn_dim=10240, num_attention_heads=32)
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(Blip2Config(text_config=text_config, image_token_index=50265)).eval()
    ids = on_meta(1, FRAME_TOKENS, dtype=torch.long)
    seeing = flops(lambda: model.vision_model(on_meta(1, 3, 224, 224)))
    return FRAMES * (seeing + flops(lambda: model.language_model(ids)))


def reading_seconds() -> float:
    with tempfile.TemporaryDirectory() as folder:
        write_video(path := Path(folder, "video.mp4"), 640, 360, MINUTES)
        by_sail(str(path))  # warm
        return timed(lambda: by_sail(str(path))).cpu


@torch.no_grad()
def clip_seconds(model_cfg: dict, frames: int) -> float:
    tower = build_towers(SailVisionConfig(model_cfg=model_cfg))[0].eval()
    pixels = torch.randn(frames, 3, 224, 224)
    tower(pixels[:1])  # warm
    return timed(lambda: tower(pixels)).cpu * FRAMES / frames


def captioning(videos: int = 4) -> tuple[float, float]:
    """CPU seconds and FLOPs of a video."""
    torch.manual_seed(0)
    model = SailForDenseVideoCaptioning(SailConfig.for_method("sail")).eval().requires_grad_(False)
    batch = {
        "video_features": torch.randn(videos, FRAMES, 768),
        "video_attention_mask": torch.ones(videos, FRAMES, dtype=torch.long),
        "num_events": torch.full((videos,), CAPTIONS),
    }
    seconds = timed(lambda: caption(model, batch)).cpu
    return seconds / videos, flops(lambda: caption(model, batch)) / videos


def rounded(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def gpu_hours(videos: int, flops_a_video: float, peak: float) -> str:
    return " to ".join(rounded(videos * flops_a_video / (peak * share) / 3600) for share in UTILISATION)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip-frames", type=int, default=4)
    args = parser.parse_args()
    model_cfg = open_clip.get_model_config("ViT-L-14")
    caption_seconds, caption_flops = captioning()
    works = {  # CPU seconds, if measured, and FLOPs, if counted, of a video
        "reading 32 frames, 360p": (reading_seconds(), None),
        "CLIP ViT-L/14": (clip_seconds(model_cfg, args.clip_frames), clip_flops(model_cfg)),
        "captions, beam 4": (caption_seconds, caption_flops),
        "transition captions, Qwen3-8B": (None, llm_flops()),
        "captions of frames, BLIP-2 (`sbs` only)": (None, frame_caption_flops()),
    }
    print("Core hours: measured rates of this CPU x size.\n")
    table = Table("work", "CPU s a video, measured", *(f"{amount}, core hours" for amount in AMOUNTS))
    for name, (seconds, _) in works.items():
        if seconds is not None:
            table.row(name, f"{seconds:.2f}", *(rounded(videos * seconds / 3600) for videos in AMOUNTS.values()))
    peaks = ", ".join(f"{gpu} {peak / 1e12:.0f} TFLOP/s" for gpu, peak in PEAKS.items())
    shares = " to ".join(f"{100 * share:.0f} %" for share in UTILISATION)
    print("\nGPU hours: **estimates**, videos x FLOPs / (peak x utilisation) / 3600;", end=" ")
    print(f"peaks {peaks}; utilisation {shares}; decoding stays on CPU cores.\n")
    columns = [f"{amount}, {gpu} hours" for amount in AMOUNTS for gpu in PEAKS]
    table = Table("work", "TFLOP a video, counted", *columns)
    for name, (_, count) in works.items():
        if count is not None:
            hours = [gpu_hours(videos, count, peak) for videos in AMOUNTS.values() for peak in PEAKS.values()]
            table.row(name, f"{count / 1e12:.3g}", *hours)
    print(
        "\nSAIL's paper reports 0.28 hours for the transition captions of ActivityNet's 10,009 training videos, without the GPU."
    )
    print(ENGINES)


if __name__ == "__main__":
    main()
