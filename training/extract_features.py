"""Makes a data set with CLIP features from videos and their captions.

    python training/extract_features.py --annotations train.json --videos videos --clip ViT-L-14 --output data/mine
    python training/extract_features.py --annotations data/captions --videos videos --clip my_clip --output data/mine

`--annotations` is one or more files of the forms that [`read_annotation_file`] reads (several files: references of the
same videos), or a folder that `build_dataset.py` has made, all of whose splits are taken. The output holds a Parquet file
per split, for `datasets.load_dataset(OUTPUT)`: the columns of the captions, and

* `video_features` (T, D): CLIP's image projections, not normalised, of T frames spread evenly over the video;
* `caption_features` (N, D), `transition_features` (N-1, D; where the captions have transitions): text projections.

Stopped at any time, the same command goes on where it was: finished videos are kept in OUTPUT.work, under a digest of
all that determines their features. That folder can be deleted afterwards. Videos that are missing or cannot be read
are listed on the screen and in OUTPUT/skipped.json, and left out.
"""

import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from build_dataset import FEATURES
from datasets import Array2D, Dataset, Features, List, Value
from pyarrow import parquet
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from sail_hf.clip_sail import SailClip, load_clip
from sail_hf.data import VIDEO_EXTENSIONS, find_video, find_videos, read_annotations, write_json, written_whole
from sail_hf.video_processing_sail import SailVideoProcessor
from sail_hf.video_reading import open_video, uniform_times

ROWS_AT_ONCE = 256
MAX_LISTED = 20


@dataclass
class ExtractArguments:
    annotations: list[str] = HfArg(help="Caption file(s), or a folder made by build_dataset.py.")
    videos: str = HfArg(help="Folder with the videos, named by id, with or without a leading 'v_'.")
    output: str = HfArg(help="Folder of the data set.")
    clip: str = HfArg(default="ViT-L-14", help="open_clip model, hf-hub:org/repo or folder.")
    split: Literal["train", "validation", "test"] = HfArg(default="train", help="Split that caption files make.")
    num_frames: int = HfArg(default=32, help="T, frames of each video.")
    batch_size: int = HfArg(default=64, help="Frames that CLIP sees at once.")
    num_workers: int = HfArg(default=2, help="Videos that are decoded at the same time, ahead of CLIP.")

    def __post_init__(self):
        for name in ("num_frames", "batch_size", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected --{name} of at least 1, found {getattr(self, name)}")
        if Path(self.output).resolve() in [Path(path).resolve() for path in self.annotations]:
            raise ValueError(f"--output {self.output} is the folder of the captions: choose another")


def read_splits(paths: list[str], split: str) -> dict[str, list[dict]]:
    """Rows of captions by split."""
    folder = Path(paths[0])
    if len(paths) > 1 or not folder.is_dir():
        return {split: read_annotations(paths)}
    splits = sorted({file.name.split("-")[0] for file in folder.glob("*-*.parquet")})
    if not splits:
        raise ValueError(f"{folder} holds no Parquet files: make them with build_dataset.py")
    return {name: read_annotations([f"{folder}#{name}"]) for name in splits}


class Extractor:
    """Computes features of videos (T = `num_frames`) and captions by both towers of a CLIP, which sees `batch_size` frames at
    once, and keeps those of each finished video in `folder`, in a safetensors file."""

    def __init__(self, clip: SailClip, num_frames: int, batch_size: int, folder: Path):
        self.clip, self.batch_size, self.folder = clip, batch_size, folder
        self.video_processor = SailVideoProcessor.from_vision_config(clip.vision_config, num_frames)
        self._digest = weights_digest(clip.model)
        folder.mkdir(parents=True, exist_ok=True)

    def file_of(self, row: dict, video: Path) -> Path:
        """The file for a row's features, named by a digest of all that they depend on."""
        of_row = [row["video_id"], row["captions"], row.get("transitions")]
        status = video.stat()
        inputs = [self._digest, self.video_processor.to_json_string(), *of_row, status.st_size, status.st_mtime_ns]
        return self.folder / f"{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:40]}.safetensors"

    def read_frames(self, video: Path) -> tuple[torch.Tensor, float] | str:
        """Preprocessed frames `(T, 3, H, W)` and duration in seconds, or why there are none."""
        try:
            with open_video(video) as reader:
                times = uniform_times(self.video_processor.num_frames, 0, reader.duration)
                return self.video_processor.process_frames(reader.frames_at(times)), reader.duration
        except Exception as error:  # whatever is wrong with one video, it must not end a run over thousands
            return str(error) if isinstance(error, ValueError) else f"{video}: {type(error).__name__}: {error}"

    def extract(self, row: dict, frames: torch.Tensor, duration: float, file: Path) -> None:
        """Compute a row's features and write them to `file`, which exists only when it is complete."""
        tensors = {
            "duration": torch.tensor(duration, dtype=torch.float64),
            "video_features": torch.cat([self.clip.encode_images(part) for part in frames.split(self.batch_size)]),
            "caption_features": self.clip.encode_texts(row["captions"]),
        }
        if row.get("transitions") is not None:
            tensors["transition_features"] = self.clip.encode_texts(row["transitions"])
        for name in tensors.keys() - {"duration"}:
            tensors[name] = tensors[name].half().contiguous()
        with written_whole(file) as temporary:
            save_file(tensors, temporary)


def weights_digest(model: torch.nn.Module) -> str:
    """A digest of all weights, so that features of two CLIPs of one name are never mixed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def ahead(function: Callable, items: Iterable, num_workers: int) -> Iterator[tuple]:
    """Pairs `(item, function(item))` in order; `num_workers` threads work on the items that come next."""
    with ThreadPoolExecutor(num_workers) as pool:
        pending = deque()
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > num_workers:
                first, future = pending.popleft()
                yield first, future.result()
        for item, future in pending:
            yield item, future.result()


def extract_split(
    extractor: Extractor, rows: list[dict], videos: dict[str, Path], num_workers: int, description: str
) -> tuple[list[tuple[dict, Path]], list[dict]]:
    """Extract what is not there yet: `(row, file of its features)` in order, and `{"video_id", "reason"}` of the others."""
    reasons: dict[str, str] = {}
    found = []
    for row in rows:
        if video := find_video(videos, row["video_id"]):
            found.append((row, video, extractor.file_of(row, video)))
        else:
            reasons[row["video_id"]] = "no such video file"
    to_do = [item for item in found if not item[2].exists()]
    with tqdm(total=len(found), initial=len(found) - len(to_do), unit="video", desc=description) as progress:
        for (row, video, file), result in ahead(lambda item: extractor.read_frames(item[1]), to_do, num_workers):
            if isinstance(result, str):
                reasons[row["video_id"]] = result
            else:
                frames, duration = result
                if duration < 0.9 * (stated := row["duration"] or 0) - 1:
                    progress.write(f"  note: {video} lasts {duration:.1f} s, its captions are for {stated:.1f} s")
                extractor.extract(row, frames, duration, file)
            progress.update()
    done = [(row, file) for row, _, file in found if row["video_id"] not in reasons]
    ids = [row["video_id"] for row in rows if row["video_id"] in reasons]
    return done, [{"video_id": video_id, "reason": reasons[video_id]} for video_id in ids]


def features_of(rows: list[dict], num_frames: int, embed_dim: int) -> Features:
    """Column types: those of `build_dataset.py`, further columns of the rows, and the features.

    A null is read as NaN from an `Array2D`, but as `None` from nested lists: hence these for `transition_features`.
    """
    extra = dict.fromkeys(name for row in rows for name in row if name not in FEATURES)
    columns = {**FEATURES, **Dataset.from_dict({name: [row.get(name) for row in rows] for name in extra}).features}
    columns["video_features"] = Array2D((num_frames, embed_dim), "float16")
    columns["caption_features"] = Array2D((None, embed_dim), "float16")
    if any(row.get("transitions") is not None for row in rows):
        columns["transition_features"] = List(List(Value("float16"), length=embed_dim))
    return Features(columns)


def write_split(done: list[tuple[dict, Path]], folder: Path, split: str) -> Path:
    """Write the rows with their features as one Parquet file, a few at a time, whole or not at all."""
    path = folder / f"{split}-00000-of-00001.parquet"
    features = features_of([row for row, _ in done], *load_file(done[0][1])["video_features"].shape)
    with written_whole(path) as temporary, parquet.ParquetWriter(temporary, features.arrow_schema) as writer:
        for start in range(0, len(done), ROWS_AT_ONCE):
            rows = [with_features(row, file, features) for row, file in done[start : start + ROWS_AT_ONCE]]
            writer.write_table(Dataset.from_list(rows, features=features).with_format("arrow")[:])
    return path


def with_features(row: dict, file: Path, columns: Iterable[str]) -> dict:
    """A row with its features and, if its annotation has none, the duration of its video."""
    stored = load_file(file)
    duration = float(stored.pop("duration"))
    row = {**row, **stored, "duration": duration if row["duration"] is None else row["duration"]}
    return {name: row.get(name) for name in columns}


def extract_features(args: ExtractArguments) -> None:
    """Extract what is not there yet, and write the data set; OSError, ValueError where nothing could be read or used."""
    splits = read_splits(args.annotations, args.split)
    videos = find_videos(args.videos)
    clip = load_clip(args.clip).to("cuda" if torch.cuda.is_available() else "cpu")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    extractor = Extractor(clip, args.num_frames, args.batch_size, output.with_name(f"{output.name}.work"))
    skipped, num_videos = {}, 0
    for split, rows in splits.items():
        done, skipped[split] = extract_split(extractor, rows, videos, args.num_workers, split)
        num_videos += len(done)
        if done:
            print(f"{split}: {len(done)} of {len(rows)} videos in {write_split(done, output, split)}")
        for item in skipped[split][:MAX_LISTED]:
            print(f"  skipped {item['video_id']}: {item['reason']}")
        if len(skipped[split]) > MAX_LISTED:
            print(f"  ... and {len(skipped[split]) - MAX_LISTED} more")
    listed = output / "skipped.json"
    # Splits of earlier runs stay in it.
    write_json(listed, {**(json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}), **skipped})
    print(f"skipped: {sum(map(len, skipped.values()))} videos, listed in {listed}")
    if not num_videos:
        raise ValueError(f"not one video could be used; looked for {', '.join(VIDEO_EXTENSIONS)} in {args.videos}")


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(ExtractArguments, description=__doc__)
    try:
        (args,) = parser.parse_args_into_dataclasses(argv)
        extract_features(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
