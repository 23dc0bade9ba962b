"""Where the features of a row come from: CLIP that sees a video and reads its captions, or files that others have made."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from stored_features import StoredFeatures
from tqdm import tqdm
from work_folder import WorkFolder, digest, file_digest, weights_digest

from sail_hf.clip_sail import SailClip
from sail_hf.data import find_video, find_videos
from sail_hf.video_processing_sail import SailVideoProcessor, resample_features
from sail_hf.video_reading import open_video, uniform_times

# How far lengths of features that were normalised, in half precision, may lie from 1.
_NORM_TOLERANCE = 5e-3


class VideoSource:
    """CLIP features of the videos in a folder, of `num_frames` frames spread evenly over each."""

    missing = "no such video file"

    def __init__(self, folder: str, clip: SailClip, num_frames: int):
        self.videos, self.clip = find_videos(folder), clip
        self.processor = SailVideoProcessor.from_vision_config(clip.vision_config, num_frames)

    def find(self, video_id: str) -> Path | None:
        return find_video(self.videos, video_id)

    def inputs(self, video: Path) -> list[str]:
        """All that a video's features depend on, besides CLIP's weights."""
        return [self.processor.to_json_string(), file_digest(video)]

    def read(self, video: Path) -> tuple[torch.Tensor, float]:
        """Preprocessed frames `(T, 3, H, W)` and the duration in seconds."""
        with open_video(video) as reader:
            times = uniform_times(self.processor.num_frames, 0, reader.duration)
            return self.processor.process_frames(reader.frames_at(times)), reader.duration

    def features(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"video_features": self.clip.encode_images(frames)}


class RegionSource(VideoSource):
    """CLIP features of the videos in a folder, and of the patches of their frames; ValueError for a CLIP without patches."""

    def __init__(self, folder: str, clip: SailClip, num_frames: int):
        super().__init__(folder, clip, num_frames)
        side = clip.vision_config.image_size
        clip.encode_regions(torch.zeros(1, 3, side, side))  # said before any video is read

    def inputs(self, video: Path) -> list[str]:
        return [*super().inputs(video), "regions"]

    def read(self, video: Path) -> tuple[tuple[torch.Tensor, tuple[float, ...]], float]:
        """Preprocessed frames with what they show of the video's, and the duration in seconds."""
        with open_video(video) as reader:
            frames = reader.frames_at(uniform_times(self.processor.num_frames, 0, reader.duration))
            return self.processor.process_with_bounds(frames), reader.duration

    def features(self, read: tuple[torch.Tensor, tuple[float, ...]]) -> dict[str, torch.Tensor]:
        frames, bounds = read
        images, patches = self.clip.encode_regions(frames)
        bounds = torch.tensor(bounds, dtype=torch.float64)
        return {"video_features": images, "region_features": patches, "region_bounds": bounds}


class FileSource:
    """Stored features, resampled to `num_frames`; all of them of one size, CLIP's where there is one."""

    missing = "no features of that id, nor of one other id with the same last 11 characters"

    def __init__(self, stored: StoredFeatures, num_frames: int, size: int | None):
        self.stored, self.num_frames, self.size = stored, num_frames, size
        self.find = stored.find
        # Features of length 1, which are fewer than CLIP's lengths tell.
        self.num_normalised = 0

    def inputs(self, key: str) -> list[str]:
        features, _ = self.read(key)
        self.num_normalised += is_normalised(self.stored.read(key))
        return [hashlib.sha256(features.numpy().tobytes()).hexdigest(), str(tuple(features.shape))]

    def read(self, key: str) -> tuple[torch.Tensor, None]:
        """Features `(T, D)`; files say nothing of a duration."""
        features = self.stored.read(key)
        self.size = self.size or features.shape[1]
        if features.shape[1] != self.size:
            raise ValueError(f"expected features of size {self.size}, found {features.shape[1]}")
        return resample_features(features, self.num_frames), None

    def features(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"video_features": features}


class Extractor:
    """Features of rows, kept in a work folder.

    Args:
        source: of the videos' features.
        clip: encodes captions and transitions; `None` leaves both out.
        captions: stored features of captions, which go before `clip`'s.
    """

    def __init__(
        self,
        source: VideoSource | FileSource,
        clip: SailClip | None,
        captions: StoredFeatures | None,
        work: WorkFolder,
    ):
        self.source, self.clip, self.captions, self.work = source, clip, captions, work
        self._weights = weights_digest(clip.model) if clip else None

    def key(self, row: dict, found: Any) -> str:
        """What a row's features are kept under: a digest of all that they depend on; ValueError for unusable files."""
        stored = self._stored_captions(row)
        texts = [row["video_id"], row["captions"], row.get("transitions"), None if stored is None else stored.tolist()]
        return digest(self._weights, self.source.inputs(found), texts)

    def extract(self, row: dict, read: torch.Tensor, duration: float | None) -> bytes:
        """A row's features as a safetensors file, and `duration` (seconds) where the source knows it.

        Raises:
            ValueError: values that are not finite in half precision.
        """
        tensors = self.source.features(read)
        if (stored := self._stored_captions(row)) is not None:
            tensors["caption_features"] = torch.from_numpy(stored)
        elif self.clip:
            tensors["caption_features"] = self.clip.encode_texts(row["captions"])
        if self.clip and row.get("transitions") is not None:
            tensors["transition_features"] = self.clip.encode_texts(row["transitions"])
        for name in tensors.keys() - {"region_bounds"}:
            tensors[name] = tensors[name].half().contiguous()
            if not tensors[name].isfinite().all():
                raise ValueError(
                    f"its {name} are not all finite numbers in half precision (NaN, infinite or above 65504)"
                )
        if duration is not None:
            tensors["duration"] = torch.tensor(duration, dtype=torch.float64)
        return safetensors.torch.save(tensors)

    def _stored_captions(self, row: dict) -> np.ndarray | None:
        if self.captions is None:
            return None
        if (key := self.captions.find(row["video_id"])) is None:
            raise ValueError(f"no caption features of that id in {self.captions.path}")
        features = self.captions.read(key)
        if len(features) != len(row["captions"]):
            raise ValueError(f"it has {len(row['captions'])} captions, but {len(features)} caption features")
        return features

    def extract_split(
        self, rows: list[dict], num_workers: int, description: str
    ) -> tuple[list[tuple[dict, str]], list[dict[str, str]]]:
        """Extract what is not there yet: `(row, key)` of each usable row in order, and `{"video_id", "reason"}` of others."""
        reasons: dict[str, str] = {}
        keys: dict[str, str] = {}
        to_do = []
        for row in rows:
            video_id = row["video_id"]
            if (found := self.source.find(video_id)) is None:
                reasons[video_id] = self.source.missing
            elif isinstance(key := outcome(self.key, row, found), Exception):
                reasons[video_id] = reason(key)
            else:
                keys[video_id] = key
                if self.work.read(key) is None:
                    to_do.append((row, found))
        with tqdm(total=len(keys), initial=len(keys) - len(to_do), unit="video", desc=description) as progress:
            for (row, found), read in ahead(lambda item: outcome(self.source.read, item[1]), to_do, num_workers):
                result = read if isinstance(read, Exception) else outcome(self.extract, row, *read)
                if isinstance(result, Exception):
                    reasons[row["video_id"]] = reason(result)
                else:
                    self.work.write(keys[row["video_id"]], result)
                    if note := short_video(row, found, read[1]):
                        progress.write(note)
                progress.update()
        done = [(row, keys[row["video_id"]]) for row in rows if row["video_id"] not in reasons]
        ids = [row["video_id"] for row in rows if row["video_id"] in reasons]
        return done, [{"video_id": video_id, "reason": reasons[video_id]} for video_id in ids]


def outcome(function: Callable, *arguments: Any) -> Any:
    """What a function returns, or the exception that it raises: whatever is wrong with one video ends no run."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def reason(error: Exception) -> str:
    """An exception in words: a ValueError's are made for people."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def short_video(row: dict, video: Any, duration: float | None) -> str | None:
    """A note on a video that is shorter than its captions say."""
    stated = row["duration"] or 0
    if duration is None or duration >= 0.9 * stated - 1:
        return None
    return f"  note: {video} lasts {duration:.1f} s, its captions are for {stated:.1f} s"


def is_normalised(features: np.ndarray) -> bool:
    """Whether features `(n, D)` were scaled to length 1, which CLIP's own are not."""
    return bool((np.abs(np.linalg.norm(features, axis=1) - 1) < _NORM_TOLERANCE).all())


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
