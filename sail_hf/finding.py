"""Stretches of videos that fit a sentence: where they lie, and what is kept of the videos to find others."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .data import written_whole

if TYPE_CHECKING:
    from .clip_sail import SailClip

# Frames that show what is asked for lie above the middle between those that hardly do and the best one.
_BACKGROUND = 0.05
# So many of a video's stretches, those with the largest sums, are ranked: more would be single frames of noise.
_PER_VIDEO = 10


class Stretch(NamedTuple):
    """Frames `first` to `last`, both included, of the video of that index, and their mean similarity."""

    video: int
    first: int
    last: int
    similarity: float


def best_stretches(similarities: Sequence[np.ndarray], top_k: int) -> list[Stretch]:
    """The stretches of frames that fit best, the best one first; those of a video are disjoint.

    A stretch has the largest sum of what its frames have above a level, which is the middle between the highest
    similarity of all videos and their 5th percentile: so it bridges single frames below the level. Of each video, the
    ten largest sums are taken, and of all videos the highest mean similarities.

    Args:
        similarities: of the frames of each video to a sentence, each `(T,)`.
    """
    every = np.concatenate(similarities)
    level = (every.max() + np.quantile(every, _BACKGROUND)) / 2
    peaks = np.array([values.max() for values in similarities])
    found: list[Stretch] = []
    for video in np.argsort(-peaks, kind="stable"):
        if len(found) == top_k and peaks[video] <= found[-1].similarity:
            break  # a mean is never above its highest value
        of_video = _stretches(similarities[video] - level, _PER_VIDEO)
        means = [float(similarities[video][first : last + 1].mean()) for first, last in of_video]
        found += [Stretch(int(video), *ends, mean) for ends, mean in zip(of_video, means, strict=True)]
        found = sorted(found, key=lambda stretch: -stretch.similarity)[:top_k]
    return found


def _stretches(values: np.ndarray, count: int) -> list[tuple[int, int]]:
    """(first, last) of up to `count` disjoint stretches of positive sum, the largest sum first."""
    pieces, found = [_largest(values, 0, len(values))], []
    while len(found) < count:
        best = max(pieces, key=lambda piece: piece[0])
        if best[0] <= 0:
            break
        _, first, last, begin, end = best
        pieces.remove(best)
        found.append((first, last))
        pieces += [_largest(values, begin, first), _largest(values, last + 1, end)]
    return found


def _largest(values: np.ndarray, begin: int, end: int) -> tuple[float, int, int, int, int]:
    """Sum, first and last of the stretch with the largest sum in `begin` to `end`, and these two."""
    if begin >= end:
        return (0.0, begin, begin, begin, end)
    sums = np.concatenate([[0.0], np.cumsum(values[begin:end])])
    gains = sums[1:] - np.minimum.accumulate(sums[:-1])
    last = int(gains.argmax())
    first = int(sums[: last + 1].argmin())
    return (float(gains[last]), begin + first, begin + last, begin, end)


def frame_bounds(first: int, last: int, count: int, duration: float) -> tuple[float, float]:
    """Seconds from the start of frame `first` to the end of frame `last` of `count` spread evenly from 0 to `duration`:
    each reaches half-way to its neighbours."""
    step = duration / max(count - 1, 1)
    if count == 1:
        return (0.0, duration)
    return (max(0.0, (first - 0.5) * step), min(duration, (last + 0.5) * step))


def stored_features(
    clip: "SailClip", video: str, frames_per_second: float, folder: str | os.PathLike | None
) -> tuple[Tensor, float]:
    """[`SailClip.encode_video`] of a file or address, kept in `folder` as float16 and read from there the next time.

    A file that changes, another CLIP and another rate have features of their own.
    """
    if folder is None:
        return clip.encode_video(video, frames_per_second)
    file = Path(folder) / f"{_key(clip, video, frames_per_second)}.safetensors"
    try:
        with safe_open(file, "pt") as stored:
            return stored.get_tensor("features").float(), float(stored.metadata()["duration"])
    except (FileNotFoundError, SafetensorError):  # not there, or damaged
        features, duration = clip.encode_video(video, frames_per_second)
    half = features.half()
    with written_whole(file) as temporary:
        save_file({"features": half}, temporary, metadata={"duration": repr(duration), "video": video})
    return half.float(), duration


def data_set_features(files: Sequence[str]) -> dict[str, tuple[Tensor, float]]:
    """Features `(T, D)` and durations in seconds of the videos of a data set, by their ids.

    Raises:
        ValueError: a column is missing, or two rows have one id.
    """
    import datasets

    rows = datasets.load_dataset("parquet", data_files=list(files), split="train", streaming=True)
    columns = ["video_id", "duration", "video_features"]
    if missing := set(columns) - set(rows.features):
        raise ValueError(f"{files[0]} lacks {', '.join(sorted(missing))}: training/extract_features.py writes them.")
    found: dict[str, tuple[Tensor, float]] = {}
    for row in rows.select_columns(columns).with_format("numpy"):
        video = str(row["video_id"])
        if video in found:
            raise ValueError(f"{files[0]}: two rows have the id {video}: give one file of its folder.")
        features = np.stack([np.asarray(frame, dtype=np.float32) for frame in row["video_features"]])
        found[video] = torch.from_numpy(features), float(row["duration"])
    return found


def _key(clip: "SailClip", video: str, frames_per_second: float) -> str:
    digest = hashlib.sha256(f"{clip.vision_config.to_json_string()} {frames_per_second}".encode())
    weights = next(clip.model.visual.parameters()).detach().float().cpu()
    digest.update(weights.contiguous().view(torch.uint8).numpy().tobytes())
    if os.path.isfile(video):
        state = os.stat(video)
        digest.update(f"{os.path.realpath(video)} {state.st_size} {state.st_mtime_ns}".encode())
    else:
        digest.update(video.encode())
    return f"{Path(video).stem[:80]}-{digest.hexdigest()[:16]}"
