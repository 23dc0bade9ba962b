"""Builds a data set (Parquet files of one row per video) from caption annotations.

    python training/build_dataset.py --train train.json --validation val_1.json val_2.json --output data/activitynet
    python training/build_dataset.py --train my_captions.csv --output data/mine

The folder loads with `datasets.load_dataset(FOLDER)` or, pushed to the Hub, by its name there. The forms that
annotation files may have are those of [`read_annotation_file`]. Captions keep their order and spelling: where events
are not sorted by start, the order of the file stands, since time stamps are for evaluation only.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, List, Value
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from sail_hf.data import read_annotation_file, read_annotations, row_oddities, written_whole

SPANS = List(List(Value("float64")))

# Every split has every column, null where it does not apply: `load_dataset` wants one schema for all splits.
FEATURES = Features(
    {
        "video_id": Value("string"),
        "duration": Value("float64"),  # seconds
        "captions": List(Value("string")),
        "timestamps": SPANS,  # [start, end] in seconds of each caption, for evaluation only
        "references": List({"name": Value("string"), "captions": List(Value("string")), "timestamps": SPANS}),
        "transitions": List(Value("string")),  # N-1 synthetic sentences
        # How the transitions came about: cleaning rules applied to each (space-separated), answers each one took.
        "transition_edits": List(Value("string")),
        "transition_attempts": List(Value("int32")),
        "llm": Value("string"),
        "llm_revision": Value("string"),
        "prompt_digest": Value("string"),
        "seed": Value("int64"),
    }
)


@dataclass
class BuildArguments:
    output: str = HfArg(help="Folder to make; must not exist.")
    train: list[str] = HfArg(default_factory=list, help="Annotation file(s) of the training videos.")
    validation: list[str] = HfArg(default_factory=list, help="Annotation file(s); several are references.")
    test: list[str] = HfArg(default_factory=list, help="As --validation.")


def build_dataset(splits: dict[str, list[str | Path]]) -> DatasetDict:
    """Reads annotation files into a data set of typed columns.

    Args:
        splits: annotation files by split. Several files of a split are references of the same videos: `captions` and
            `timestamps` are those of the first file that has the video, and `references` holds those of all files.

    Raises:
        ValueError: no file was given, a video is in two splits, or a row is unusable (see [`read_annotation_file`]).
    """
    built, split_of = DatasetDict(), {}
    for split, paths in splits.items():
        if not paths:
            continue
        rows = read_annotations(paths)
        for row in rows:
            if (other := split_of.setdefault(row["video_id"], split)) != split:
                raise ValueError(f"video {row['video_id']!r} is in the split {other} and in {split}")
        rows = [{name: row.get(name) for name in FEATURES} for row in rows]
        built[split] = Dataset.from_list(rows, features=FEATURES)
    if not built:
        raise ValueError("give annotation files by --train, --validation or --test")
    return built


def write_split(dataset: Dataset, folder: Path, split: str) -> Path:
    """Writes a split as one Parquet file, whole or not at all."""
    path = folder / f"{split}-00000-of-00001.parquet"
    with written_whole(path) as temporary:
        dataset.to_parquet(temporary)
    return path


def report_split(split: str, paths: list[str], written: Path) -> None:
    """Prints what went in and what is on disk, and what is worth a look.

    Raises:
        RuntimeError: the written file does not hold every video and caption of the annotation files.
    """
    files = [read_annotation_file(path) for path in paths]
    rows_out = read_annotation_file(written)
    videos_in = len({row["video_id"] for rows in files for row in rows})
    captions_in = sum(len(row["captions"]) for rows in files for row in rows)
    captions_out = sum(len(one["captions"]) for row in rows_out for one in row.get("references") or [row])
    print(
        f"{split}: {videos_in} videos, {captions_in} captions in; {len(rows_out)} videos, {captions_out} captions out"
    )
    if (videos_in, captions_in) != (len(rows_out), captions_out):
        raise RuntimeError(f"{written} does not hold everything of {', '.join(paths)}")
    print(f"  pairs of adjacent captions: {sum(len(row['captions']) - 1 for row in rows_out)}")
    for path, rows in zip(paths, files, strict=True):
        found = [(row["video_id"], oddity) for row in rows for oddity in row_oddities(row)]
        for oddity, count in Counter(oddity for _, oddity in found).most_common():
            example = next(video_id for video_id, other in found if other == oddity)
            print(f"  {Path(path).name}: {oddity} (kept as it is): {count} videos, such as {example}")


def write_dataset(arguments: BuildArguments) -> None:
    """Build the data set, check that it holds everything, and write its folder; OSError, ValueError where that fails."""
    output = Path(arguments.output)
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another --output, or remove it")
    splits = {"train": arguments.train, "validation": arguments.validation, "test": arguments.test}
    dataset = build_dataset(splits)
    with written_whole(output) as temporary:
        temporary.mkdir()
        for split in dataset:
            report_split(split, splits[split], write_split(dataset[split], temporary, split))
    print(f"wrote {output}")


def main() -> None:
    (arguments,) = HfArgumentParser(BuildArguments, description=__doc__).parse_args_into_dataclasses()
    try:
        write_dataset(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
