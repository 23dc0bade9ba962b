"""Tiny random models, and a small real-looking tokenizer, made in memory for the tests."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, PreTrainedTokenizerFast

from sail_hf import SailConfig, SailForDenseVideoCaptioning, SailProcessor, SailVideoProcessor
from sail_hf.clip_sail import SailClip, load_clip

CAPTIONS = [
    ["A man lifts a bar.", "He puts it down.", "People clap and cheer."],
    ["Chop the lettuce.", "Pour the dressing over the salad."],
    ["A dog runs on a field."],
]
CLIP_CFG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def make_tokenizer(corpus: list[str] | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE like GPT-2's, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = corpus or [caption for video in CAPTIONS for caption in video]
    # The prompt must come out of it as GPT-2's does: " events" one token, the space at the end another.
    tokenizer.train_from_iterator([*texts, *["1 events: "] * 4], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    return SailProcessor.prepare_tokenizer(fast)


def make_clip(folder: Path, embed_dim: int = 24) -> SailClip:
    """A tiny random CLIP, saved as an open_clip folder and loaded from it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    model_cfg = {**CLIP_CFG, "embed_dim": embed_dim}
    model = open_clip.CLIP(**model_cfg)
    preprocess = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return load_clip(str(folder))


def make_config(processor: SailProcessor, method: str = "sail", **fields) -> SailConfig:
    tokenizer = processor.tokenizer
    text_config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=256,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    small = {
        "feature_size": 24,
        "num_frames": 8,
        "num_queries": 4,
        "encoder_layers": 2,
        "attention_head_dim": 8,
        "encoder_ffn_dim": 32,
        "mask_decoder_ffn_dim": 32,
    }
    return SailConfig.for_method(method, text_config=text_config, **processor.prompt_ids(), **{**small, **fields})


def make_processor(num_frames: int = 8) -> SailProcessor:
    video_processor = SailVideoProcessor(
        num_frames=num_frames,
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return SailProcessor(video_processor, make_tokenizer())


def make_model(processor: SailProcessor, seed: int = 0, **fields) -> SailForDenseVideoCaptioning:
    torch.manual_seed(seed)
    return SailForDenseVideoCaptioning(make_config(processor, **fields)).eval()


def make_rows(seed: int = 0, num_frames: tuple[int, ...] = (8, 8, 8)) -> list[dict]:
    """Data set rows for `CAPTIONS` with random features."""
    generator, of_frames = (torch.Generator().manual_seed(number) for number in (seed, seed + 1000))
    rows = []
    for captions, frames in zip(CAPTIONS, num_frames, strict=True):
        rows.append(
            {
                "captions": captions,
                "video_features": torch.randn(frames, 24, generator=generator),
                "caption_features": torch.randn(len(captions), 24, generator=generator),
                "transition_features": torch.randn(len(captions) - 1, 24, generator=generator),
                "frame_caption_features": torch.randn(frames, 24, generator=of_frames),
            }
        )
    return rows
