"""Convert ILCACM's weights (`model.safetensors`, or a safetensors file of its state dict) into a SAIL folder.

    python training/convert_ilcacm_checkpoint.py model.safetensors OUTPUT_DIR --tokenizer DIR

The folder loads with `SailForDenseVideoCaptioning.from_pretrained`. It holds no CLIP: ILCACM's checkpoints are trained on
stored ViT-L/14 features, so the converted model takes `video_features` unless `--clip` names the CLIP to put in.
"""

import argparse
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config

from sail_hf import SailConfig, SailForDenseVideoCaptioning, SailProcessor, SailVideoProcessor
from sail_hf.clip_sail import load_clip

# ILCACM's parameter names -> SAIL's, in this order.
RENAMES = [
    (r"^captioner\.gpt2_model\.", "decoder."),
    (r"^captioner\.video_encoder\.vpe$", "model.video_encoder.position_embeddings"),
    (r"^captioner\.video_encoder\.proj\.0\.", "model.video_encoder.norm."),
    (r"^captioner\.video_encoder\.proj\.1\.", "model.video_encoder.projection."),
    (r"^captioner\.video_encoder\.(encoder\.)?", "model.video_encoder."),
    (r"^localizer\.tpe$", "model.mask_generator.queries"),
    (r"^localizer\.pe$", "model.mask_generator.position_embeddings"),
    (r"^localizer\.mask_decoder\.", "model.mask_generator."),
    (r"^localizer\.center_fc\.", "model.mask_generator.center_head."),
    (r"^localizer\.width_fc\.", "model.mask_generator.width_head."),
    (r"^localizer\.", "model.mask_generator."),
    # Of torch's Transformer layers.
    (r"(?<=\.)multihead_attn\.", "cross_attn."),
    (r"(?<=\.)linear1\.", "mlp.fc1."),
    (r"(?<=\.)linear2\.", "mlp.fc2."),
]
# What ILCACM's code does where SAIL does otherwise, so that going on with training is ILCACM's.
AS_ILCACM = {"position_initializer_range": 1.0, "mask_input_dropout": 0.1, "joint_full_loss_weight": 0.0}
# GPT-2's causal masks, which transformers no longer keeps in checkpoints.
DROPPED = re.compile(r"\.attn\.(bias|masked_bias)$")


def rename(name: str) -> str:
    """SAIL's name of an ILCACM parameter; raises ValueError for a name that ILCACM does not have."""
    if not name.startswith(("captioner.", "localizer.")):
        raise ValueError(f"Expected parameters that start with 'captioner.' or 'localizer.', found {name!r}.")
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def convert_state_dict(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename every parameter of an ILCACM state dict; the causal masks of old GPT-2 checkpoints are left out.

    Torch's attention holds its three projections of queries, keys and values in one tensor: they are taken apart.
    """
    converted = {}
    for name, value in state.items():
        if DROPPED.search(name):
            continue
        name = rename(name)
        if ".in_proj_" in name:
            for part, projection in zip("qkv", value.chunk(3), strict=True):
                converted[name.replace("in_proj_", f"{part}_proj.")] = projection.clone()
        else:
            converted[name] = value
    return converted


def config_of(state: dict[str, torch.Tensor], attention_heads: int = 12) -> SailConfig:
    """The SAIL configuration that the shapes of an ILCACM state dict imply (head counts leave no trace in shapes)."""

    def layers(pattern: str) -> int:
        found = [int(m.group(1)) for name in state if (m := re.search(pattern, name))]
        if not found:
            raise KeyError(pattern)
        return 1 + max(found)

    vocabulary, width = state["captioner.gpt2_model.transformer.wte.weight"].shape
    return SailConfig.for_method(
        "ilcacm",
        text_config=GPT2Config(
            vocab_size=vocabulary,
            n_embd=width,
            n_positions=len(state["captioner.gpt2_model.transformer.wpe.weight"]),
            n_layer=layers(r"gpt2_model\.transformer\.h\.(\d+)\."),
            n_head=attention_heads,
        ),
        feature_size=state["localizer.tpe"].shape[1],
        num_frames=len(state["captioner.video_encoder.vpe"]),
        num_queries=len(state["localizer.tpe"]),
        encoder_layers=layers(r"video_encoder\.encoder\.layers\.(\d+)\."),
        encoder_ffn_dim=len(state["captioner.video_encoder.encoder.layers.0.linear1.weight"]),
        attention_head_dim=width // attention_heads,
        mask_decoder_layers=layers(r"mask_decoder\.layers\.(\d+)\."),
        mask_decoder_ffn_dim=len(state["localizer.mask_decoder.layers.0.linear1.weight"]),
        **AS_ILCACM,
    )


def convert(state: dict[str, torch.Tensor]) -> SailForDenseVideoCaptioning:
    """A SAIL model with the weights of an ILCACM state dict, in evaluation mode.

    Raises:
        ValueError: a parameter is missing, left over, or of another shape.
    """
    try:
        model = SailForDenseVideoCaptioning(config_of(state))
    except KeyError as error:
        raise ValueError(f"Expected an ILCACM checkpoint, found no parameter named {error}.") from error
    try:
        missing, unexpected = model.load_state_dict(convert_state_dict(state), strict=False)
    except RuntimeError as error:  # of another shape
        raise ValueError(f"The parameters do not fit together: {error}") from error
    missing = [name for name in missing if name != "decoder.lm_head.weight"]  # tied to the embeddings
    if missing or unexpected:
        raise ValueError(f"The checkpoint lacks {missing} and has unknown parameters {unexpected}.")
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="safetensors file of ILCACM's state dict")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--tokenizer", required=True, help="folder or name of GPT-2's tokenizer")
    parser.add_argument("--clip", help="CLIP to put into the folder, e.g. ViT-L-14, so that it captions video files")
    args = parser.parse_args()
    if not args.checkpoint.is_file():
        parser.error(f"{args.checkpoint} is not a file.")
    try:
        state = load_file(args.checkpoint)
    except Exception as error:
        parser.error(f"{args.checkpoint} is not a safetensors file: {error}")
    try:
        model = convert(state)
    except ValueError as error:
        parser.error(str(error))
    video_processor = SailVideoProcessor(num_frames=model.config.num_frames)
    if args.clip:
        try:
            clip = load_clip(args.clip)
            model.model.add_clip(clip)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        video_processor = SailVideoProcessor.from_vision_config(clip.vision_config, model.config.num_frames)
    processor = SailProcessor(
        video_processor,
        SailProcessor.prepare_tokenizer(AutoTokenizer.from_pretrained(args.tokenizer)),
        sentence_form="ilcacm",
    )
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print(
        f"Wrote {args.output}: {sum(p.numel() for p in model.parameters()):,} parameters.\n"
        "ILCACM's second stage forgets how to count events: it takes stored counts, which `predict.py --counts FILE` does "
        "too (JSON of video id and number, or what predict.py wrote with a checkpoint of the first stage)."
    )


if __name__ == "__main__":
    main()
