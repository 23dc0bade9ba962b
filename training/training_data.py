"""What training reads of a data set: its rows, checked against the model, and changes of speed."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
import torch
from transformers import TrainerCallback

from sail_hf import SailConfig

FEATURE_COLUMNS = ["video_features", "caption_features", "transition_features", "frame_caption_features"]
# Of these, what has a row for each frame.
FRAME_COLUMNS = {"video_features", "frame_caption_features", "region_features"}
# The only columns that training sees: time stamps stay behind.
COLUMNS = ["video_id", "captions", *FEATURE_COLUMNS]
# What a model with a grounding head sees as well.
GROUNDING_COLUMNS = ["region_features", "groundings"]
MAX_LISTED = 20
# Rows whose features stand for all in the digest of a data set.
SAMPLED_ROWS = 8


def load_split(name: str, split: str, columns: Iterable[str]) -> datasets.Dataset:
    """One split of a folder or Hub data set, with those of the columns that it has (ValueError: not those needed)."""
    data = datasets.load_dataset(name, split=split)
    if not len(data):
        raise ValueError(f"{name}, split {split}, has no rows.")
    if missing := {"captions", "video_features"} - set(data.column_names):
        raise ValueError(f"{name}, split {split}, lacks {sorted(missing)}; training/extract_features.py makes them.")
    return data.select_columns([column for column in columns if column in data.column_names]).with_format("numpy")


def length_of_most(name: str, split: str) -> float | None:
    """Seconds that 999 of 1,000 videos of a split stay within; None where their durations are not known."""
    data = datasets.load_dataset(name, split=split)
    durations = data["duration"] if "duration" in data.column_names else []
    known = [seconds for seconds in durations if seconds]
    return float(np.quantile(known, 0.999, method="higher")) if known else None


class TimeWarped(torch.utils.data.Dataset):
    """Rows whose frames are picked as if the video ran now slower, now faster; captions in order stay valid.

    The speed changes linearly between `num_knots` random values in [1 - strength, 1 + strength], drawn by seed, epoch and
    row: a resumed run draws what an uninterrupted one draws.
    """

    def __init__(self, data: datasets.Dataset, strength: float, seed: int = 0, num_knots: int = 6):
        self.data, self.strength, self.seed, self.num_knots = data, strength, seed, num_knots
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # processes that load rows see it change

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        row = self.data[index]
        num_frames = len(row["video_features"])
        knots = np.random.default_rng([self.seed, int(self.epoch), index]).uniform(-1, 1, self.num_knots)
        speed = np.interp(np.linspace(0, self.num_knots - 1, num_frames), np.arange(self.num_knots), knots)
        time = np.cumsum(1 + self.strength * speed)
        place = (time - time[0]) / max(time[-1] - time[0], 1e-9) * (num_frames - 1)
        frames = place.round().astype(int)
        warped = {name: value[frames] if name in FRAME_COLUMNS else value for name, value in row.items()}
        if row.get("groundings") is not None:
            warped["groundings"] = [[at_frames(word, frames) for word in words] for words in row["groundings"]]
        return warped


def at_frames(word: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
    """A word's boxes where a video has the old frames `frames` in their place."""
    places = [(new, old) for new, frame in enumerate(frames) for old, its in enumerate(word["frames"]) if its == frame]
    boxes, scores = ([word[name][old] for _, old in places] for name in ("boxes", "scores"))
    return {**word, "frames": [new for new, _ in places], "boxes": boxes, "scores": scores}


class EpochOfTimeWarp(TrainerCallback):
    """Tells the data set which epoch it is."""

    def __init__(self, dataset: TimeWarped):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.epoch.fill_(int(state.epoch or 0))


def check_features(data: datasets.Dataset, config: SailConfig, source: str) -> None:
    """Look at every feature once, before training.

    Raises:
        ValueError: another number of frames or another size than the model's, or a number that is not finite.
    """
    frames = max(pyarrow.compute.max(pyarrow.compute.list_value_length(rows)).as_py() for rows in stored(data))
    if frames != config.num_frames:
        raise ValueError(
            f"{source} holds features of {frames} frames, and the model takes {config.num_frames} (num_frames). Train a new "
            f"model with --num_frames {frames}, or make features for this one: python training/extract_features.py ... "
            f"--num_frames {config.num_frames}"
        )
    for column in [*FEATURE_COLUMNS, "region_features"]:
        if column not in data.column_names:
            continue
        # A split that lacks a column which another one has gets it with nulls.
        sizes = {np.shape(features)[-1] for features in data[:1][column] if features is not None and len(features)}
        if sizes - {config.feature_size}:
            raise ValueError(
                f"{source} holds {column} of size {min(sizes)}, and the model takes {config.feature_size} (feature_size), as "
                "its CLIP makes them. Train with the --clip that they were made by, or make them again: python "
                f"training/extract_features.py ... --clip {config.vision_config.clip if config.vision_config else 'CLIP'}"
            )
        if not all(np.isfinite(values(rows)).all() for rows in stored(data, column)):
            rows = [() if row[column] is None else row[column] for row in data]
            broken = [i for i, row in enumerate(rows) if not np.isfinite(np.concatenate([*row, []])).all()]
            names = [str(data[i]["video_id"]) if "video_id" in data.column_names else f"row {i}" for i in broken]
            more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
            raise ValueError(
                f"{source} holds {column} that are not finite (NaN or infinite), of {', '.join(names[:MAX_LISTED])}{more}. "
                "Make the features of these videos again, or leave the videos out."
            )


def stored(data: datasets.Dataset, column: str = "video_features") -> Iterator[pyarrow.Array]:
    """The rows of a column as lists of lists, as they lie in the file: nothing is copied."""
    for chunk in data.with_format("arrow")[:][column].chunks:
        yield chunk.storage if isinstance(chunk, pyarrow.ExtensionArray) else chunk


def values(rows: pyarrow.Array) -> np.ndarray:
    """All numbers of nested lists in a row."""
    while isinstance(rows, (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray)):
        rows = rows.flatten()
    return rows.to_numpy(zero_copy_only=False)


def bank_of(data: datasets.Dataset, source: str) -> tuple[torch.Tensor, list[str], list[str]]:
    """Features `(M, D)`, videos' ids and texts of all captions (ValueError: a column is missing, or a caption's features)."""
    if missing := {"video_id", "captions", "caption_features"} - set(data.column_names):
        raise ValueError(f"{source} lacks {', '.join(sorted(missing))}, which a bank of captions is made of.")
    rows = list(data.select_columns(["video_id", "captions", "caption_features"]).with_format("numpy"))
    features = [np.asarray(row["caption_features"], dtype=np.float32) for row in rows]
    if odd := [row["video_id"] for row, own in zip(rows, features, strict=True) if len(own) != len(row["captions"])]:
        raise ValueError(f"{source} holds another number of caption_features than of captions, e.g. of {odd[0]}.")
    texts = [str(text) for row in rows for text in row["captions"]]
    ids = [str(row["video_id"]) for row in rows for _ in row["captions"]]
    return torch.from_numpy(np.concatenate(features)), ids, texts


def data_fingerprint(data: datasets.Dataset) -> dict[str, Any]:
    """What tells two data sets apart: their size and columns, and digests of ids, captions and boxes, and of some features."""
    texts = data.select_columns([name for name in ("video_id", "captions", "groundings") if name in data.column_names])
    captions, features = hashlib.sha256(), hashlib.sha256()
    for row in texts.with_format(None):
        captions.update(json.dumps(row, sort_keys=True).encode())
    for index in np.linspace(0, len(data) - 1, SAMPLED_ROWS).astype(int).tolist():
        features.update(np.ascontiguousarray(data[index]["video_features"], dtype=np.float32).tobytes())
    return {
        "videos": len(data),
        "columns": sorted(data.column_names),
        "captions": captions.hexdigest()[:16],
        "features": features.hexdigest()[:16],
    }
