"""Stand-ins for what the benchmarks need and a machine without network lacks, to walk their path before the real thing is there.

    python training/playground/stand_ins.py --annotations train.json --limit 100 --tokenizer GPT2_TOKENIZER_DIR --output stand_ins

writes under the output folder
* `clip/`: an open_clip folder of ViT-L/14's shape (or `--clip_model`'s) with **random** weights;
* `decoder/`: a causal language model of DistilGPT2's shape with **random** weights, and GPT-2's tokenizer;
* `llm/`: a chat model of Qwen3's architecture, small, with **random** weights;
* `features/v_ID.npy`: **random** features of the videos' durations, one a second `(L, D)`, of ViT-L/14's size;
* `train.json` (named as the annotation file): the first `--limit` videos.

What is trained or scored with them means nothing: only the path is real.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, HfArgumentParser, Qwen3Config, Qwen3ForCausalLM

from sail_hf.data import read_annotations, write_json, written_whole


@dataclass
class StandInArguments:
    annotations: list[str] = field(metadata={"help": "Annotation files in the official JSON form."})
    tokenizer: str = field(metadata={"help": "Folder of GPT-2's tokenizer."})
    output: Path = field(metadata={"help": "Folder to write."})
    limit: int = field(default=100, metadata={"help": "Videos of each annotation file."})
    clip_model: str = field(default="ViT-L-14", metadata={"help": "Model of open_clip whose shape the CLIP has."})
    decoder_layers: int = field(default=6, metadata={"help": "Layers of the decoder; DistilGPT2 has 6."})
    seed: int = 0


def write_clip(name: str, folder: Path) -> int:
    """A random CLIP of an open_clip model's shape; returns the size of its features."""
    config = open_clip.get_model_config(name)
    model = open_clip.create_model(name, pretrained=None)
    preprocess = {"size": 224, "mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    with written_whole(folder) as temporary:
        temporary.mkdir()
        save_file(model.state_dict(), temporary / "open_clip_model.safetensors")
        write_json(temporary / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})
    return config["embed_dim"]


def write_decoder(tokenizer: str, layers: int, folder: Path) -> None:
    """A random GPT-2 of DistilGPT2's width."""
    with written_whole(folder) as temporary:
        GPT2LMHeadModel(GPT2Config(n_layer=layers)).save_pretrained(temporary)
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(temporary)


def write_llm(tokenizer: str, folder: Path) -> None:
    """A small random Qwen3 with a chat template, whose answers are random words."""
    with written_whole(folder) as temporary:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
        size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
        config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=16, **size, **ids)
        Qwen3ForCausalLM(config).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def write_features(rows: list[dict], size: int, folder: Path) -> None:
    """Random features, a row a second."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for row in tqdm(rows, desc="Random features", unit="video"):
        length = max(1, round(row["duration"] or 1))
        video = row["video_id"] if row["video_id"].startswith("v_") else f"v_{row['video_id']}"
        np.save(folder / f"{video}.npy", random.standard_normal((length, size)).astype(np.float16))


def main() -> None:
    (args,) = HfArgumentParser(StandInArguments, description=__doc__).parse_args_into_dataclasses()
    torch.manual_seed(args.seed)
    try:
        files = {path: read_annotations([path])[: args.limit] for path in args.annotations}
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    size = write_clip(args.clip_model, args.output / "clip")
    write_decoder(args.tokenizer, args.decoder_layers, args.output / "decoder")
    write_llm(args.tokenizer, args.output / "llm")
    for path, rows in files.items():
        content = {row["video_id"]: {"sentences": row["captions"], **row} for row in rows}
        kept = {
            video: {name: row[name] for name in ("duration", "timestamps", "sentences")}
            for video, row in content.items()
        }
        write_json(args.output / f"{Path(path.partition('#')[0]).stem}.json", kept)
        write_features(rows, size, args.output / "features")
    print(f"Wrote {args.output}: random weights and random features, which mean nothing.")


if __name__ == "__main__":
    main()
