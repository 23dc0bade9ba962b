"""Makes a data set with CLIP features from videos, or from features that others have made, and their captions.

    python training/extract_features.py --annotations train.json --videos videos --clip ViT-L-14 --output data/mine
    python training/extract_features.py --annotations data/captions --videos videos --clip my_clip --output data/mine
    python training/extract_features.py --annotations train.json --features clip_visual --clip ViT-L-14 --output data/mine
    accelerate launch training/extract_features.py ...     # each process its share

`--annotations` is one or more files of the forms that [`read_annotation_file`] reads (several files: references of the
same videos), or a folder that `build_dataset.py` has made, all of whose splits are taken. The output holds a Parquet file
per split, for `datasets.load_dataset(OUTPUT)`: the columns of the captions, and

* `video_features` (T, D): CLIP's image projections, not normalised, of T frames spread evenly over the video;
* with `--regions`, `region_features` (T, N, D): the projections of the N patches of each frame, and `region_bounds`
  `[x0, y0, x1, y1]`: what CLIP saw of the frames, in shares of them. 12.6 MB a video for ViT-L-14 and 32 frames: it says how many;
* `caption_features` (N, D), `transition_features` (N-1, D; where the captions have transitions): text projections.

`--features` takes the place of `--videos`: a folder or file of the forms in `stored_features.py`, resampled to T. The text
columns then need a `--clip`, the one that the features are of, or `--caption_features`; without both there are none, as
for features that are not CLIP's.

Stopped at any time, the same command goes on where it was: finished videos are kept in OUTPUT.work, under a digest of
all that determines their features; one that is damaged is done again. That folder can be deleted afterwards. Machines
share the work by `--shard 1/4` to `4/4`; the command without `--shard` then joins what they did. Videos that are missing
or cannot be read are listed on the screen and in OUTPUT/skipped.json, and left out.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stored_features import StoredFeatures
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg
from work_folder import WHOLE, WorkFolder, own_device, run_in_shares, take_shard

from sail_hf.data import VIDEO_EXTENSIONS, find_video, find_videos, read_annotations, write_json, written_whole
from sail_hf.hub_names import check_clip_name

# What takes seconds to import is imported where it is needed: a mistyped name is said at once.

ROWS_AT_ONCE, BYTES_AT_ONCE = 256, 2**28
MAX_LISTED = 20


@dataclass(kw_only=True)
class ExtractArguments:
    annotations: list[str] = HfArg(help="Caption file(s), or a folder made by build_dataset.py.")
    videos: str | None = HfArg(
        default=None, help="Folder with the videos, named by id, with or without a leading 'v_'."
    )
    features: str | None = HfArg(default=None, help="Instead of videos: folder or file of stored features.")
    caption_features: str | None = HfArg(default=None, help="With --features: stored features of the captions.")
    output: str = HfArg(help="Folder of the data set.")
    clip: str | None = HfArg(
        default=None, help="open_clip model, hf-hub:org/repo or folder. Default with --videos: ViT-L-14."
    )
    pretrained: str = HfArg(default="openai", help="open_clip's tag of the weights, such as laion2b_s34b_b79k.")
    split: Literal["train", "validation", "test"] = HfArg(default="train", help="Split that caption files make.")
    num_frames: int = HfArg(default=32, help="T, frames of each video.")
    regions: bool = HfArg(default=False, help="Features of the frames' patches too, for words that point at them.")
    num_workers: int = HfArg(default=2, help="Videos that are read at the same time, ahead of CLIP.")
    shard: str = HfArg(default=WHOLE, help="Share of the videos to do here, such as 2/4.")
    dry_run: bool = HfArg(default=False, help="Say what would be done and what skipped; compute nothing.")

    def __post_init__(self):
        for name in ("num_frames", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected --{name} of at least 1, found {getattr(self, name)}")
        take_shard([], self.shard)
        if (self.videos is None) == (self.features is None):
            raise ValueError("give either --videos or --features")
        if self.regions and not self.videos:
            raise ValueError("--regions needs --videos: stored features of frames have no patches")
        if self.caption_features and not self.features:
            raise ValueError("--caption_features goes with --features; with --videos, CLIP reads the captions")
        if self.videos and self.clip is None:
            self.clip = "ViT-L-14"
        if self.clip is None and self.pretrained != "openai":
            raise ValueError(f"--pretrained {self.pretrained} needs the --clip that it is of")
        if Path(self.output).resolve() in [Path(path).resolve() for path in self.annotations]:
            raise ValueError(f"--output {self.output} is the folder of the captions: choose another")


def read_splits(paths: list[str], split: str) -> dict[str, list[dict]]:
    """Rows of captions by split; ValueError for a video that is in two."""
    folder = Path(paths[0])
    if len(paths) > 1 or not folder.is_dir():
        return {split: read_annotations(paths)}
    names = sorted({file.name.split("-")[0] for file in folder.glob("*-*.parquet")})
    if not names:
        raise ValueError(f"{folder} holds no Parquet files: make them with build_dataset.py")
    splits = {name: read_annotations([f"{folder}#{name}"]) for name in names}
    split_of: dict[str, str] = {}
    for name, row in ((name, row) for name, rows in splits.items() for row in rows):
        if (other := split_of.setdefault(row["video_id"], name)) != name:
            raise ValueError(f"video {row['video_id']!r} is in the split {other} and in {name}")
    return splits


def check_apart(splits: dict[str, list[dict]], find: Callable[[str], Any]) -> None:
    """Raise ValueError where two ids, such as one with `v_` and one without, find one and the same video."""
    taken: dict[Any, str] = {}
    for video_id in (row["video_id"] for rows in splits.values() for row in rows):
        if (found := find(video_id)) is not None and (other := taken.setdefault(found, video_id)) != video_id:
            raise ValueError(f"{other!r} and {video_id!r} are the same video, {found}: give each video one entry")


def features_of(rows: list[dict], shapes: dict[str, tuple[int, ...]]):
    """Column types: those of `build_dataset.py`, further columns of the rows, and the features of the `shapes`.

    A null is read as NaN from an `Array2D`, but as `None` from nested lists: hence these for `transition_features`.
    """
    from build_dataset import FEATURES
    from datasets import Array2D, Array3D, Dataset, Features, List, Value

    video_shape = shapes["video_features"]
    extra = dict.fromkeys(name for row in rows for name in row if name not in FEATURES)
    columns = {**FEATURES, **Dataset.from_dict({name: [row.get(name) for row in rows] for name in extra}).features}
    columns["video_features"] = Array2D(video_shape, "float16")
    if "region_features" in shapes:
        columns["region_features"] = Array3D(shapes["region_features"], "float16")
        columns["region_bounds"] = List(Value("float64"), length=4)
    if "caption_features" in shapes:
        columns["caption_features"] = Array2D((None, video_shape[1]), "float16")
    if "transition_features" in shapes:
        columns["transition_features"] = List(List(Value("float16"), length=video_shape[1]))
    return Features(columns)


def write_split(done: list[tuple[dict, str]], work: WorkFolder, path: Path) -> dict[str, tuple[int, ...]]:
    """Write the rows with their features as one Parquet file, a few at a time, whole or not at all; returns a row's shapes."""
    from datasets import Dataset
    from pyarrow import parquet

    first = stored_features(work, next((key for row, key in done if row.get("transitions") is not None), done[0][1]))
    shapes = {name: value.shape for name, value in first.items()}
    columns = features_of([row for row, _ in done], shapes)
    with written_whole(path) as temporary, parquet.ParquetWriter(temporary, columns.arrow_schema) as writer:
        step = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // sum(value.nbytes for value in first.values())))
        for start in range(0, len(done), step):
            rows = [with_features(row, stored_features(work, key)) for row, key in done[start : start + step]]
            rows = [{name: row.get(name) for name in columns} for row in rows]
            writer.write_table(Dataset.from_list(rows, features=columns).with_format("arrow")[:])
    return shapes


def stored_features(work: WorkFolder, key: str) -> dict[str, Any]:
    """Arrays of a finished video by name; OSError where its file was damaged since it was finished."""
    import safetensors.numpy

    if (payload := work.read(key)) is None:
        raise OSError(f"{work.path} was changed while the data set was written: run the same command again")
    return safetensors.numpy.load(payload)


def with_features(row: dict, stored: dict[str, Any]) -> dict:
    """A row with its features and, if its annotation has none, the duration of its video."""
    duration = stored.pop("duration", None)
    if row["duration"] is None and duration is not None:
        row = {**row, "duration": float(duration)}
    return {**row, **stored}


def make_extractor(args: ExtractArguments, work: WorkFolder):
    """The two sources of features that the arguments name."""
    from feature_sources import Extractor, FileSource, RegionSource, VideoSource

    from sail_hf.clip_sail import load_clip

    stored = StoredFeatures(args.features) if args.features else None
    captions = StoredFeatures(args.caption_features) if args.caption_features else None
    clip = load_clip(args.clip, args.pretrained).to(own_device()) if args.clip else None
    if stored:
        source = FileSource(stored, args.num_frames, clip.vision_config.model_cfg["embed_dim"] if clip else None)
    else:
        source = (RegionSource if args.regions else VideoSource)(args.videos, clip, args.num_frames)
    return Extractor(source, clip, captions, work)


def check_names(args: ExtractArguments) -> dict[str, list[dict]]:
    """Raise OSError, ValueError for what is mistyped, before anything slow; returns the rows of captions by split."""
    for name in ("videos", "features", "caption_features"):
        if (path := getattr(args, name)) and not Path(path).exists():
            raise FileNotFoundError(f"there is no --{name} {path}")
    if args.clip:
        check_clip_name(args.clip)
    return read_splits(args.annotations, args.split)


def extract_features(args: ExtractArguments) -> None:
    """Extract what is not there yet, and write the data set; OSError, ValueError where nothing could be read or used."""
    splits = check_names(args)
    if args.dry_run:
        return report_plan(args, splits)
    output = Path(args.output)
    work = WorkFolder(output)
    extractor = make_extractor(args, work)
    check_apart(splits, extractor.source.find)
    skipped, num_videos = {}, 0
    with work.locked(args.shard):
        for split, rows in splits.items():
            rows = take_shard(rows, args.shard)
            done, skipped[split] = extractor.extract_split(rows, args.num_workers, split)
            num_videos += len(done)
            if args.shard != WHOLE:
                print(f"{split}: {len(done)} of {len(rows)} videos of shard {args.shard} in {work.path}")
            elif done:
                path = output / f"{split}-00000-of-00001.parquet"
                shapes = write_split(done, work, path)
                frames, size = shapes["video_features"]
                print(f"{split}: {len(done)} of {len(rows)} videos in {path}, T = {frames} frames of size D = {size}")
                if args.regions:
                    megabytes = 2 * math.prod(shapes["region_features"]) / 1e6
                    print(
                        f"  {shapes['region_features'][1]} patches a frame: {megabytes:.3g} MB a video before compression"
                    )
            list_skipped(skipped[split])
        if args.shard == WHOLE:
            listed = output / "skipped.json"
            # Splits of earlier runs stay in it.
            earlier = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
            write_json(listed, {**earlier, **skipped})
            print(f"skipped: {sum(map(len, skipped.values()))} videos, listed in {listed}")
    if normalised := getattr(extractor.source, "num_normalised", 0):
        print(
            f"warning: the features of {normalised} videos have length 1. SAIL learns from CLIP's own, which are longer "
            "and tell more; where there is a choice, take those that were not normalised."
        )
    if without := sum(row["duration"] is None for rows in splits.values() for row in rows) if args.features else 0:
        print(
            f"note: {without} annotations have no duration, without which a video can be learned from, not captioned."
        )
    if not num_videos and args.shard == WHOLE:
        example = next((item for items in skipped.values() for item in items), None)
        looked = f"{', '.join(VIDEO_EXTENSIONS)} in {args.videos}" if args.videos else args.features
        raise ValueError(
            f"not one video could be used; looked for {looked}. {example['video_id']}: {example['reason']}"
        )


def list_skipped(skipped: list[dict[str, str]]) -> None:
    for item in skipped[:MAX_LISTED]:
        print(f"  skipped {item['video_id']}: {item['reason']}")
    if len(skipped) > MAX_LISTED:
        print(f"  ... and {len(skipped) - MAX_LISTED} more")


def report_plan(args: ExtractArguments, splits: dict[str, list[dict]]) -> None:
    """Print for each split how many videos and captions there are, and which would be skipped and why."""
    from feature_sources import FileSource, VideoSource, outcome, reason

    from sail_hf.video_reading import open_video

    if args.features:
        stored = StoredFeatures(args.features)
        find, probe, missing = stored.find, stored.read, FileSource.missing
    else:
        videos = find_videos(args.videos)
        find, missing = lambda video_id: find_video(videos, video_id), VideoSource.missing

        def probe(video: Path) -> None:
            with open_video(video):
                pass

    check_apart(splits, find)
    for split, rows in splits.items():
        rows, skipped = take_shard(rows, args.shard), []
        for row in rows:
            found = find(row["video_id"])
            result = ValueError(missing) if found is None else outcome(probe, found)
            if isinstance(result, Exception):
                skipped.append({"video_id": row["video_id"], "reason": reason(result)})
        captions = sum(len(row["captions"]) for row in rows)
        print(f"{split}: {len(rows) - len(skipped)} of {len(rows)} videos would be used; {captions} captions in all")
        list_skipped(skipped)


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(ExtractArguments, description=__doc__)
    try:
        (args,) = parser.parse_args_into_dataclasses(argv)
        run_in_shares(extract_features, args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
