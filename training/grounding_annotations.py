"""Adds the column `groundings` to a data set with features of patches: where the words of its captions are to be seen.

    python training/extract_features.py --annotations train.json --videos videos --clip ViT-L-14 --regions true --output data/mine
    python training/grounding_annotations.py --dataset data/mine --boxes boxes.json
    python training/grounding_annotations.py --dataset data/activitynet --sizes anet_entities_trainval.json \
        --boxes anet_entities_cleaned_class_thresh50_trainval.json
    python training/grounding_annotations.py --dataset data/mine --clip ViT-L-14     # nobody drew boxes: guesses

`--boxes` is of one of the forms of `read_boxes` in word_boxes.py: ours, or ActivityNet-Entities' cleaned JSON. Of each word some frame
is labelled; its box is carried to the other frames by the likeness of patches, where that is above 0.5 (`propagate`). The frame
that is labelled says when something is to be seen, which no caption does: a model that learns from it is so much less weakly
supervised. Without `--boxes`, every content word's box is guessed from the cosine of its CLIP text feature with the patches.

The column holds for each caption a list of `{"word", "frames", "boxes", "scores"}`: the word's place in `caption.split()`, and boxes in
shares of what CLIP saw (`region_bounds`). It replaces an earlier one.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from caption_frames import split_file
from datasets import Dataset, Features, List, Value
from pyarrow import Table, parquet
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg
from word_boxes import Word, around, grounding, most_confident, propagate, read_boxes, seed_box
from work_folder import own_device

from sail_hf.clip_sail import SailClip, load_clip
from sail_hf.data import written_whole
from sail_hf.grounding_sail import is_content_word, seen_boxes

ROWS_AT_ONCE = 8
COLUMN = {
    "word": Value("int32"),
    "frames": List(Value("int32")),
    "boxes": List(List(Value("float32"), length=4)),
    "scores": List(Value("float32")),
}


@dataclass
class GroundingArguments:
    dataset: str = HfArg(help="Folder of a data set with region_features (extract_features.py --regions true).")
    boxes: str | None = HfArg(default=None, help="JSON of boxes, ours or ActivityNet-Entities'.")
    sizes: str | None = HfArg(default=None, help="ActivityNet-Entities' raw JSON, with the sizes of frames.")
    clip: str | None = HfArg(default=None, help="Instead of --boxes: the CLIP of the features, which guesses.")
    pretrained: str = HfArg(default="openai", help="open_clip's tag of its weights.")
    split: str = HfArg(default="train", help="Split of the data set.")

    def __post_init__(self):
        if (self.boxes is None) == (self.clip is None):
            raise ValueError("give either --boxes, or --clip for guesses where nobody drew boxes")
        if self.sizes and not self.boxes:
            raise ValueError("--sizes goes with --boxes of ActivityNet-Entities")


def labelled(captions: list[list[Word]], row: dict, told: Counter) -> list[list[dict]]:
    """The column's value for a video whose words have boxes; `told` counts what became of them."""
    patches, bounds = torch.as_tensor(row["region_features"]), torch.as_tensor(row["region_bounds"]).float()
    if not row["duration"]:
        raise ValueError(f"{row['video_id']} has no duration, without which the times of boxes are no frames")
    last = len(patches) - 1
    found = []
    for words in captions:
        tracks = {}
        for word in words:
            own = []
            for time, box in word.boxes:
                frame = min(max(round(time / float(row["duration"]) * last), 0), last)
                own.append(propagate(patches, frame, seen_boxes(torch.tensor(box), bounds)))
            told["boxes"] += len(own)
            told["boxes outside of what CLIP saw"] += own.count(None)
            if own := [track for track in own if track is not None]:
                tracks[word.index] = most_confident(own)
        for word in words:
            if word.entities and all(index in tracks for index in word.entities):
                tracks[word.index] = around([tracks[index] for index in word.entities])
            elif word.entities:
                told["actions without boxes of all their entities"] += 1
        found.append([grounding(index, track) for index, track in sorted(tracks.items())])
    return found


def guessed(clip: SailClip, row: dict, told: Counter) -> list[list[dict]]:
    """The column's value for a video that nobody drew boxes for."""
    patches = torch.as_tensor(row["region_features"])
    found = []
    for caption in row["captions"]:
        words = [(i, word) for i, word in enumerate(str(caption).split()) if is_content_word(word)]
        features = clip.encode_texts([word for _, word in words])
        tracks = [
            (i, propagate(patches, *seed_box(patches, own))) for (i, _), own in zip(words, features, strict=True)
        ]
        told["guesses"] += len(tracks)
        found.append([grounding(index, track) for index, track in tracks])
    return found


def rows_of(path: Path, columns: list[str]) -> Iterator[tuple[Table, Dataset]]:
    """A Parquet file a few rows at a time: as it is stored, and some columns of it as arrays."""
    for batch in parquet.ParquetFile(path).iter_batches(ROWS_AT_ONCE):
        table = Table.from_batches([batch])
        yield table, Dataset(table).select_columns(columns).with_format("numpy")


def add_groundings(args: GroundingArguments) -> None:
    """Write the split anew with the column; OSError, ValueError where something is missing or does not fit."""
    path = split_file(args.dataset, args.split)
    schema = parquet.read_schema(path)
    if missing := {"region_features", "region_bounds", "duration"} - set(schema.names):
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: make it with extract_features.py --regions true")
    told: Counter = Counter()
    if args.boxes:
        names = [name for name in ("video_id", "captions", "timestamps") if name in schema.names]
        words = read_boxes(args.boxes, parquet.read_table(path, columns=names).to_pylist(), args.sizes)
        if not words:
            raise ValueError(f"{args.boxes} has none of the videos of {path}")
    else:
        clip = load_clip(args.clip, args.pretrained).to(own_device())

    def value(row: dict) -> list[list[dict]] | None:
        if not args.boxes:
            return guessed(clip, row, told)
        return labelled(words[row["video_id"]], row, told) if row["video_id"] in words else None

    new = Features({"groundings": List(List(COLUMN))})
    kept = {name: kind for name, kind in Features.from_arrow_schema(schema).items() if name not in new}
    columns = Features({**kept, **new})
    count, frames = 0, []
    with written_whole(path) as temporary, parquet.ParquetWriter(temporary, columns.arrow_schema) as writer:
        total = parquet.read_metadata(path).num_rows
        with tqdm(total=total, unit="video", desc=args.split) as progress:
            for table, rows in rows_of(path, ["video_id", "duration", "captions", "region_features", "region_bounds"]):
                values = [value(row) for row in rows]
                added = Dataset.from_dict({"groundings": values}, features=new).with_format("arrow")[:]
                arrays = [*(table[name] for name in kept), added["groundings"].combine_chunks()]
                writer.write_table(Table.from_arrays(arrays, schema=columns.arrow_schema))
                count += sum(of_video is not None for of_video in values)
                of_captions = (of_caption for of_video in values for of_caption in of_video or ())
                frames += [len(word["frames"]) for of_caption in of_captions for word in of_caption]
                progress.update(len(rows))
    print(f"{path}: {len(frames)} words with boxes in {count} of {total} videos")
    if frames:
        print(f"  each in {sum(frames) / len(frames):.1f} frames, counting those that boxes were carried to")
    print("".join(f"  {number} {kind}\n" for kind, number in told.items() if number), end="")


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(GroundingArguments, description=__doc__)
    try:
        (args,) = parser.parse_args_into_dataclasses(argv)
        add_groundings(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
