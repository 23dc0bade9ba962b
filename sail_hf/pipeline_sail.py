"""The pipeline `dense-video-captioning`: a video in, its events with start, end and sentence out."""

import math
import os
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.pipelines.base import ChunkPipeline

from .clip_sail import check_captions, frame_times
from .trust import check_limit
from .video_processing_sail import resample_features
from .video_reading import open_video, uniform_times

# What goes with captions that are there already; the other options say how sentences are generated.
_WITH_CAPTIONS = {"fps", "frames_per_second", "alignment", "gap_level", "batch_size", "num_workers"}


class DenseVideoCaptioningPipeline(ChunkPipeline):
    """Events of a video: when each starts and ends, and a sentence for it.

    ```python
    pipe = pipeline("dense-video-captioning", model=repo_or_folder)
    pipe("video.mp4")  # [{"start": 0.0, "end": 12.4, "text": "A man ...", "score": 0.71}, ...]
    pipe(["a.mp4", "b.mkv"], batch_size=4)
    pipe(array, fps=25)
    pipe("long.mp4", chunk_length_s=120, stride_length_s=10)
    pipe("video.mp4", captions=["A man ...", "He ..."])  # these captions, with their times
    pipe({"video_features": features, "duration": 42.0})  # stored features, such as a data set's rows hold
    ```

    Parameters of the call:
        videos: a video, or a list, tuple, iterator or data set of them. A video is a path, URL, bytes, file object,
            `uint8` array or tensor `(T, H, W, 3)` / `(T, 3, H, W)` with `fps`, list of PIL images with `fps`, or
            torchcodec decoder. In its place, a row of stored features: a dictionary with `video_features` `(L, D)`, of
            frames spread evenly over the video, and its `duration` in seconds; other entries are not looked at.
        captions (*optional*): sentences that are there already, to be given times: a list for the video, or one for
            each of several videos. Nothing is generated then. See [`SailClip.align`].

    Parameters of the call, or of `pipeline(...)` for all calls:
        fps (`float`): frames per second of videos that are arrays or lists of images.
        num_events (`int`, *optional*): number of events; read off the whole-video caption by default. In long videos, the
            number in each chunk.
        chunk_length_s (`float`, *optional*): videos longer than this many seconds are captioned chunk by chunk.
        stride_length_s (`float`, defaults to a sixth of `chunk_length_s`): overlap on each side of a chunk, in seconds.
            An event counts where its centre is nearest to the chunk's middle.
        localization (`str`): `"masks"` or `"alignment"`; see [`SailForDenseVideoCaptioning.generate`].
        alignment (`str`), gap_level (`float`): how captions are aligned; see [`SailClip.align`]. Defaults: of generated
            ones, where `localization` is `"alignment"`, the checkpoint's; of `captions`, `"ordered"` and 0.
        frames_per_second (`float`, *optional*): with `captions` (default 2), or where `localization` is `"alignment"`:
            how densely the video is looked at for the times. There are never fewer frames than captions, nor than are
            captioned.
        generate_kwargs (`dict`), or any field of the generation config by its name (`num_beams=1`): replaces the
            checkpoint's, as do `localization`, `alignment` and `gap_level`.

    Returns for each video a list of `{"start": s, "end": s, "text": str, "score": float}` in seconds, sorted by start;
    the score is the geometric mean of the probabilities of the sentence's tokens. With `captions` there is a `"gain"` in
    its place: how much better the sentence fits its frames than the others do (mean difference of CLIP cosines).

    CLIP's text tower, which `captions` and `"alignment"` need, is loaded by its name where the checkpoint has none.

    Raises [`VideoError`] for a video that cannot be read, ValueError for parameters that make no sense or do not exist.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __call__(self, videos: Any, captions: Iterable | None = None, **kwargs):
        if isinstance(videos, (list, tuple)) and videos and hasattr(videos[0], "convert"):
            # Images are one video, where a list of anything else is several.
            return self([list(videos)], None if captions is None else [captions], **kwargs)[0]
        if isinstance(videos, tuple):
            videos = list(videos)
        elif isinstance(videos, Iterator) and not hasattr(videos, "read"):
            videos = (video for video in videos)
        if captions is not None:
            if refused := {name for name, value in kwargs.items() if value is not None} - _WITH_CAPTIONS:
                raise ValueError(f"Nothing is generated with `captions`: leave out {', '.join(sorted(refused))}.")
            videos = _with_captions(videos, captions)
        return [] if isinstance(videos, list) and not videos else super().__call__(videos, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Save model and processor, with the code that loads both and this pipeline (`SavedWithCode`)."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self,
        fps: float | None = None,
        num_events: int | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | None = None,
        frames_per_second: float | None = None,
        generate_kwargs: dict | None = None,
        **generation,
    ):
        if twice := generation.keys() & (generate_kwargs or {}).keys():
            raise ValueError(f"Given twice, by name and in `generate_kwargs`: {', '.join(sorted(twice))}.")
        generation = {name: x for name, x in {**generation, **(generate_kwargs or {})}.items() if x is not None}
        self.model.resolve_generation_config(**generation)
        most = self.model.config.num_queries
        is_count = isinstance(num_events, Integral) and not isinstance(num_events, bool)
        if num_events is not None and not (is_count and 1 <= num_events <= most):
            raise ValueError(f"`num_events` must be a whole number, 1..{most}, found {num_events!r}.")
        positive = {"fps": fps, "chunk_length_s": chunk_length_s, "frames_per_second": frames_per_second}
        reading = {name: x for name, x in {**positive, "stride_length_s": stride_length_s}.items() if x is not None}
        for name, x in {**reading, "gap_level": generation.get("gap_level", 0.0)}.items():
            if not isinstance(x, Real) or isinstance(x, bool) or math.isnan(x):
                raise ValueError(f"`{name}` must be a number, found {x!r}.")
            if name in positive and not 0 < x < math.inf:
                raise ValueError(f"`{name}` must be positive, found {x}.")
        if stride_length_s is not None:
            length = chunk_length_s or getattr(self, "_preprocess_params", {}).get("chunk_length_s")
            if length is None:
                raise ValueError("`stride_length_s` needs `chunk_length_s`.")
            if not 0 <= 2 * stride_length_s < length:
                raise ValueError(
                    f"`stride_length_s` must be less than half of `chunk_length_s` ({length}), found {stride_length_s}."
                )
        counted = {} if num_events is None else {"num_events": num_events}
        return {**reading, **generation}, {**counted, **generation}, generation

    def preprocess(
        self,
        video: Any,
        fps: float | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | None = None,
        frames_per_second: float | None = None,
        **generation,
    ):
        """Pieces of a video: `num_frames` frames of each chunk that is captioned, then as many at a time of those that
        captions are aligned with. The last piece is padded, so that all are of one shape, whatever fills a batch."""
        captions = None
        if isinstance(video, dict) and video.keys() == {"video", "captions"}:
            video, captions = video["video"], video["captions"]
            check_captions(captions)
        if isinstance(video, dict) and "video_features" in video:
            reading = {"fps": fps, "chunk_length_s": chunk_length_s, "frames_per_second": frames_per_second}
            if refused := [name for name, value in reading.items() if value is not None]:
                raise ValueError(f"A row of stored features has no video to read: leave out {', '.join(refused)}.")
            yield from self._stored_pieces(video, captions)
            return
        if captions:
            frames_per_second = frames_per_second or 2.0
        elif self.model.resolve_generation_config(**generation).localization != "alignment":
            given = {"frames_per_second": frames_per_second, **generation}
            if idle := [
                name for name in ("frames_per_second", "alignment", "gap_level") if given.get(name) is not None
            ]:
                raise ValueError(f"`{'`, `'.join(idle)}` needs `captions`, or localization='alignment'.")
        processor = self.processor.video_processor
        size = processor.num_frames
        with open_video(video, fps=fps) as reader:
            duration = reader.duration
            reader.limits.check("frames", size, "num_frames")
            chunks = [] if captions else chunk_bounds(duration, chunk_length_s, stride_length_s)
            pieces = [(chunk, uniform_times(size, *chunk[:2])) for chunk in chunks]
            if frames_per_second is not None:
                times = frame_times(reader, frames_per_second, len(captions or ()) or size * len(chunks))
                pieces += [(None, times[start : start + size]) for start in range(0, len(times), size)]
            for index, (chunk, times) in enumerate(pieces):
                frames = processor.process_frames(reader.frames_at(times))
                padding = frames.new_zeros(size - len(frames), *frames.shape[1:])
                yield {
                    "pixel_values_videos": torch.cat([frames, padding])[None],
                    "num_frames": torch.tensor([len(frames)]),
                    "is_chunk": torch.tensor([chunk is not None]),
                    "bounds": chunk or (0.0, duration),
                    "captions": captions,
                    "is_last": torch.tensor([index == len(pieces) - 1]),
                }

    def _stored_pieces(self, row: dict[str, Any], captions: list[str] | None) -> Iterator[dict[str, Any]]:
        """The pieces of a row of stored features: resampled to be captioned, or as they are for captions to align."""
        size, (features, duration) = self.processor.video_processor.num_frames, self._stored_features(row)
        parts = features.split(size) if captions else [resample_features(features, size)]
        for index, part in enumerate(parts):
            yield {
                "video_features": torch.cat([part, part.new_zeros(size - len(part), part.shape[1])])[None],
                "num_frames": torch.tensor([len(part)]),
                "is_chunk": torch.tensor([captions is None]),
                "bounds": (0.0, duration) if captions else chunk_bounds(duration, None, None)[0],
                "captions": captions,
                "is_last": torch.tensor([index == len(parts) - 1]),
            }

    def _stored_features(self, row: dict[str, Any]) -> tuple[torch.Tensor, float]:
        features, duration = row["video_features"], row.get("duration")
        features = torch.as_tensor(features if isinstance(features, torch.Tensor) else np.asarray(features)).float()
        features, size = features.cpu(), self.model.config.feature_size
        if features.ndim != 2 or not len(features) or features.shape[1] != size:
            raise ValueError(f"`video_features` must be of shape (L, {size}), found {tuple(features.shape)}.")
        if not features.isfinite().all():
            raise ValueError("`video_features` must be finite, found NaN or infinity: extract them anew.")
        if not isinstance(duration, Real) or not 0 < duration < math.inf:
            raise ValueError(f"A row of stored features needs the video's `duration` in seconds, found {duration!r}.")
        return features, float(duration)

    def _forward(self, inputs: dict[str, Any], num_events: int | None = None, **generation):
        kind = "video_features" if "video_features" in inputs else "pixel_values_videos"
        frames, is_chunk = inputs[kind], inputs["is_chunk"].cpu()
        # What is no tensor comes as a list in a batch, and as it is where there is none.
        is_batch = isinstance(inputs["bounds"], list)
        bounds = inputs["bounds"] if is_batch else [inputs["bounds"]]
        features = torch.zeros(*frames.shape[:2], self.model.config.feature_size)
        events: list[list[dict]] = [[] for _ in bounds]
        if is_chunk.any():
            rows = is_chunk.nonzero().flatten().tolist()
            outputs = self.model.generate(
                **{kind: frames[rows]},
                num_events=None if num_events is None else torch.full((len(rows),), num_events, device=frames.device),
                tokenizer=self.processor.tokenizer,
                **generation,
            )
            starts, ends = zip(*[bounds[row][:2] for row in rows], strict=True)
            durations = [end - start for start, end in zip(starts, ends, strict=True)]
            found = self.processor.post_process_dense_captioning(outputs, durations, starts)
            for row, of_chunk in zip(rows, found, strict=True):
                events[row] = of_chunk
        if not is_chunk.all():
            real = torch.arange(frames.shape[1]) < inputs["num_frames"].cpu()[:, None]
            real &= ~is_chunk[:, None]
            seen = frames[real.to(frames.device)]
            stored = kind == "video_features"
            features[real] = seen.cpu() if stored else self.model.model.get_clip().encode_images(seen)
        kept = {name: inputs[name] for name in ("is_last", "is_chunk", "num_frames", "bounds", "captions")}
        return {**kept, "features": features, "events": events if is_batch else events[0]}

    def postprocess(self, pieces: list[dict[str, Any]], **generation) -> list[dict[str, Any]]:
        events, features = [], []
        for piece in pieces:
            if not piece["is_chunk"]:
                features.append(piece["features"][0, : piece["num_frames"]])
                continue
            *_, core_start, core_end = piece["bounds"]
            middles = [(event["start"] + event["end"]) / 2 for event in piece["events"]]
            inside = zip(piece["events"], middles, strict=True)
            events += [event for event, middle in inside if core_start <= middle < core_end]
        events = sort_events(events)
        captions = pieces[0]["captions"]
        # A sentence of no words fits no frame: its event stays where it is.
        spoken = [event for event in events if event["text"]]
        texts = captions or [event["text"] for event in spoken]
        if not features or not texts:
            return events
        if captions:
            # The checkpoint's alignment is for sentences of its own, whose order may be wrong; these are as `sail align` has them.
            generation = {"alignment": "ordered", "gap_level": 0.0, **generation}
        config, clip = self.model.resolve_generation_config(**generation), self.model.model.get_clip()
        duration = pieces[-1]["bounds"][1]
        aligned = clip.align_features(torch.cat(features), texts, duration, config.alignment, config.gap_level)
        if captions:
            return sort_events(aligned)
        for event, new in zip(spoken, aligned, strict=True):
            event.update(start=new["start"], end=new["end"])
        return sort_events(events)


def sort_events(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events by start, then by end."""
    return sorted(events, key=lambda event: (event["start"], event["end"]))


def _with_captions(videos: Any, captions: Iterable) -> Any:
    """A video, or each of several, together with its captions."""
    if not isinstance(videos, (list, Dataset, GeneratorType)):
        return {"video": videos, "captions": captions}
    if isinstance(videos, list) and len(videos) != len(captions := list(captions)):
        raise ValueError(f"Expected a list of captions for each of {len(videos)} videos, found {len(captions)}.")
    pairs = ({"video": video, "captions": own} for video, own in zip(videos, captions, strict=True))
    return list(pairs) if isinstance(videos, list) else pairs


def chunk_bounds(
    duration: float, chunk_length: float | None, stride: float | None
) -> list[tuple[float, float, float, float]]:
    """(start, end, start of core, end of core) of each chunk, in seconds; the cores tile the time line.

    Chunks are `chunk_length` long and overlap by `stride` (a sixth of the length by default) on each inner side.
    """
    infinity = float("inf")
    if chunk_length is None or duration <= chunk_length:
        return [(0.0, duration, -infinity, infinity)]
    stride = chunk_length / 6 if stride is None else stride
    step = chunk_length - 2 * stride
    further = (duration - chunk_length) / step
    check_limit("chunks", further, f"`chunk_length_s` {chunk_length} divides a video of {duration:,.0f} s into")
    # The small tolerance keeps rounding from adding a chunk that covers nothing.
    count = max(2, math.ceil(further - 1e-9) + 1)
    starts = [index * step for index in range(count)]
    # The last chunk is moved back to end with the video, so that it is as long as the others.
    starts[-1] = duration - chunk_length
    cuts = [(a + chunk_length + b) / 2 for a, b in zip(starts, starts[1:], strict=False)]
    return [
        (start, start + chunk_length, low, high)
        for start, low, high in zip(starts, [-infinity, *cuts], [*cuts, infinity], strict=True)
    ]
