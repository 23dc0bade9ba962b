"""Rendered worlds to compare methods on, one for each seed, with the features that scoring needs.

    python training/playground/worlds.py --seeds 0 1 2 --output outputs/worlds

Each is a world as the demo makes it (rendered videos, a CLIP of its own, features of the training videos, a decoder), with
captions of the training videos' frames by an oracle with noise (frame_captions.py), and

* `evaluation/`: captions, times and features of the other videos, as many frames as in training; split `test` is the demo's
  60 test videos, `validation` the 100 after them;
* `fine/`: the same videos at 4 frames a second, to align captions with;
* `small_decoder/`: the decoder's tokenizer, and a GPT-2 half as wide, for many trainings on a CPU.
"""

from dataclasses import dataclass, field
from pathlib import Path

import datasets
from demo import make_world
from frame_captions import FrameCaptionArguments, add_oracle
from recipes import extract_features
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser

from sail_hf.clip_sail import load_clip
from sail_hf.data import read_annotation_file, write_json, written_whole


@dataclass
class WorldsArguments:
    output: Path = field(default=Path("outputs/worlds"), metadata={"help": "Folder of the worlds, `seed_N` each."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "A world for each."})
    num_train: int = field(default=1000, metadata={"help": "Videos to learn from."})
    num_test: int = field(default=60, metadata={"help": "Videos to score on."})
    num_validation: int = field(default=100, metadata={"help": "Further videos to watch training on."})
    frames_per_second: float = field(default=4.0, metadata={"help": "Of the features that captions are aligned with."})


def write_evaluation(folder: Path, num_test: int, frames_per_second: float) -> None:
    """`evaluation` and `fine` of a world, or those of them that are missing."""
    world = folder / "playground"
    rows = read_annotation_file(world / "test.json")
    clip = load_clip(str(folder / "clip"))
    for split, of_split in (("test", rows[:num_test]), ("validation", rows[num_test:])):
        annotations = folder / f"{split}.json"
        names = {"duration": "duration", "timestamps": "timestamps", "sentences": "captions"}
        write_json(annotations, {row["video_id"]: {name: row[own] for name, own in names.items()} for row in of_split})
        extract_features.extract_features(
            extract_features.ExtractArguments(
                annotations=[str(annotations)],
                videos=str(world / "videos"),
                clip=str(folder / "clip"),
                output=str(folder / "evaluation"),
                split=split,
                num_frames=48,
            )
        )
        path = folder / "fine" / f"{split}-00000-of-00001.parquet"
        if path.exists():
            continue
        found = []
        for row in tqdm(of_split, desc=f"Finer features, {split}", unit="video"):
            features, _ = clip.encode_video(world / "videos" / f"{row['video_id']}.mp4", frames_per_second)
            found.append({**row, "video_features": features.half().tolist()})
        with written_whole(path) as temporary:
            datasets.Dataset.from_list(found).to_parquet(temporary)


def write_small_decoder(folder: Path) -> None:
    AutoTokenizer.from_pretrained(folder / "decoder").save_pretrained(folder / "small_decoder")
    AutoConfig.from_pretrained(folder / "decoder", n_embd=64, n_head=2).save_pretrained(folder / "small_decoder")


def main() -> None:
    (args,) = HfArgumentParser(WorldsArguments, description=__doc__).parse_args_into_dataclasses()
    for seed in args.seeds:
        folder = args.output / f"seed_{seed}"
        if not (folder / "decoder").exists():
            make_world(folder, args.num_train, args.num_test + args.num_validation, seed, {})
        write_evaluation(folder, args.num_test, args.frames_per_second)
        write_small_decoder(folder)
        parts = {"playground": str(folder / "playground"), "clip": str(folder / "clip")}
        add_oracle(FrameCaptionArguments(dataset=str(folder / "dataset"), **parts))
    print(f"Worlds: {args.output}/seed_N, N = {', '.join(map(str, args.seeds))}")


if __name__ == "__main__":
    main()
