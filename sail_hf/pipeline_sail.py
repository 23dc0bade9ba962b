"""The pipeline `dense-video-captioning`: a video in, its events with start, end and sentence out."""

import math
from collections.abc import Iterable, Sequence
from itertools import islice, tee
from types import GeneratorType
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers.pipelines.base import ChunkPipeline

from .alignment_sail import ALIGNMENTS
from .clip_sail import SailClip
from .loss_sail import cosines
from .video_processing_sail import SailVideoProcessor
from .video_reading import open_video, uniform_times

# Frames that are read and encoded at a time when captions are given: bounds the memory, whatever the video's length.
_FRAMES_AT_ONCE = 64
# Inputs that stand for several videos.
_SEVERAL = (list, Dataset, GeneratorType)


class DenseVideoCaptioningPipeline(ChunkPipeline):
    """Events of a video: when each starts and ends, and a sentence for it.

    ```python
    pipe = pipeline("dense-video-captioning", model=repo_or_folder)
    pipe("video.mp4")  # [{"start": 0.0, "end": 12.4, "text": "A man ...", "score": 0.71}, ...]
    pipe(["a.mp4", "b.mkv"], batch_size=4)
    pipe(array, fps=25)
    pipe("long.mp4", chunk_length_s=120, stride_length_s=10)
    pipe("video.mp4", captions=["A man ...", "He ..."])  # these captions, with their times
    ```

    Parameters of the call, or of `pipeline(...)` for all calls:
        videos: a video or a list, generator or data set of them. A video is a path, URL, bytes, file object, `uint8` array
            or tensor `(T, H, W, 3)` / `(T, 3, H, W)` with `fps`, list of PIL images with `fps`, or torchcodec decoder.
        fps (`float`): frames per second of videos that are arrays or lists of images.
        num_events (`int`, *optional*): number of events; read off the whole-video caption by default. In long videos, the
            number in each chunk.
        chunk_length_s (`float`, *optional*): videos longer than this many seconds are captioned chunk by chunk.
        stride_length_s (`float`, defaults to a sixth of `chunk_length_s`): overlap on each side of a chunk, in seconds.
            An event counts where its centre is nearest to the chunk's middle.
        localization (`str`, *optional*): `"masks"` or `"alignment"`; see [`SailForDenseVideoCaptioning.generate`].
            Defaults to the generation config's.
        generate_kwargs (`dict`): generation arguments that replace the checkpoint's (`{"num_beams": 1}`).

    Parameters of the call alone:
        captions (*optional*): sentences that are there already, to be given times: a list for the video, or one for
            each of several videos. Nothing is generated then; see [`align_captions`] for `frames_per_second`
            (default 2), `alignment` and `gap_level`, which go with it.
        frames_per_second (`float`, *optional*): without `captions`, and where `localization` is `"alignment"`: the
            video is read again with that many frames a second, for finer times than the frames that are captioned
            allow.

    Returns for each video a list of `{"start": s, "end": s, "text": str, "score": float}` in seconds, sorted by start;
    the score is the geometric mean of the probabilities of the sentence's tokens, or with `captions` how much better
    the sentence fits its frames than the others do (mean difference of CLIP cosines).

    CLIP's text tower, which `captions` and `"alignment"` need, is loaded by its name where the checkpoint has none.

    Raises [`VideoError`] for a video that cannot be read, ValueError for parameters that make no sense.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __call__(
        self, videos: Any, captions: Iterable | None = None, frames_per_second: float | None = None, **kwargs
    ):
        # A list of PIL images with `fps` is one video, where a list of anything else is several.
        if isinstance(videos, list) and videos and hasattr(videos[0], "convert"):
            captions = None if captions is None else [captions]
            return self.__call__([videos], captions, frames_per_second, **kwargs)[0]
        if captions is not None:
            rate = {} if frames_per_second is None else {"frames_per_second": frames_per_second}
            return self._align_given(videos, captions, **rate, **kwargs)
        if frames_per_second is not None:
            return self._align_generated(videos, frames_per_second, **kwargs)
        return super().__call__(videos, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """Save model and processor, with the code that loads both and this pipeline; see [`SavedWithCode`]."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _align_given(self, videos: Any, captions: Iterable, batch_size=None, num_workers=None, **kwargs):
        # Frames of one video fill batches by themselves, so `batch_size` says nothing here.
        kwargs = {"fps": self._preprocess_params.get("fps"), **kwargs}
        if not isinstance(videos, _SEVERAL):
            return self._align(videos, captions, **kwargs)
        if isinstance(videos, list) and len(videos) != len(captions := list(captions)):
            raise ValueError(f"Expected a list of captions for each of {len(videos)} videos, found {len(captions)}.")
        events = (self._align(*pair, **kwargs) for pair in zip(videos, captions, strict=True))
        return list(events) if isinstance(videos, list) else events

    def _align_generated(self, videos: Any, frames_per_second: float, **kwargs):
        parameters = {name: value for name, value in kwargs.items() if name not in ("batch_size", "num_workers")}
        forward = {**self._forward_params, **self._sanitize_parameters(**parameters)[1]}
        config = self._effective_generation_config(forward.get("localization"), forward.get("generate_kwargs"))
        if config.localization != "alignment":
            raise ValueError("`frames_per_second` needs `captions`, or localization='alignment'.")
        fps = kwargs.get("fps", self._preprocess_params.get("fps"))
        options = {"fps": fps, "gap_level": config.gap_level, "alignment": config.alignment}

        def refine(video: Any, events: list[dict]) -> list[dict]:
            texts = [event["text"] for event in events]
            if not texts or not all(texts):
                return events
            clip = self.model.model.get_clip()
            aligned = align_captions(clip, video, texts, frames_per_second=frames_per_second, **options)
            pairs = zip(events, aligned, strict=True)
            return sort_events({**event, "start": new["start"], "end": new["end"]} for event, new in pairs)

        if not isinstance(videos, _SEVERAL):
            return refine(videos, super().__call__(videos, **kwargs))
        again = videos
        if isinstance(videos, GeneratorType):
            first, again = tee(videos)
            videos = (video for video in first)
        events = map(refine, again, super().__call__(videos, **kwargs))
        return list(events) if isinstance(videos, list) else events

    def _align(self, video: Any, captions: Sequence[str], **kwargs) -> list[dict[str, Any]]:
        return sort_events(align_captions(self.model.model.get_clip(), video, captions, **kwargs))

    def _effective_generation_config(self, localization: str | None, generate_kwargs: dict | None):
        options = dict(generate_kwargs or {})
        if localization is not None:
            options["localization"] = localization
        return self.model.resolve_generation_config(**options)

    def _sanitize_parameters(
        self,
        fps: float | None = None,
        num_events: int | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | None = None,
        localization: str | None = None,
        generate_kwargs: dict | None = None,
    ):
        if num_events is not None and not 1 <= num_events <= self.model.config.num_queries:
            raise ValueError(f"`num_events` must be 1..{self.model.config.num_queries}, found {num_events}.")
        if chunk_length_s is not None and chunk_length_s <= 0:
            raise ValueError(f"`chunk_length_s` must be positive, found {chunk_length_s}.")
        if stride_length_s is not None:
            if chunk_length_s is None:
                raise ValueError("`stride_length_s` needs `chunk_length_s`.")
            if not 0 <= 2 * stride_length_s < chunk_length_s:
                raise ValueError(
                    f"`stride_length_s` must be less than half of `chunk_length_s` ({chunk_length_s}), "
                    f"found {stride_length_s}."
                )
        if localization not in (None, "masks", "alignment"):
            raise ValueError(f"`localization` must be 'masks' or 'alignment', found {localization!r}.")
        preprocess = {"fps": fps, "chunk_length_s": chunk_length_s, "stride_length_s": stride_length_s}
        forward = {"num_events": num_events, "localization": localization, "generate_kwargs": generate_kwargs}
        return (
            {name: value for name, value in preprocess.items() if value is not None},
            {name: value for name, value in forward.items() if value is not None},
            {},
        )

    def preprocess(
        self,
        video: Any,
        fps: float | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | None = None,
    ):
        processor = self.processor.video_processor
        with open_video(video, fps=fps) as reader:
            chunks = chunk_bounds(reader.duration, chunk_length_s, stride_length_s)
            for index, (start, end, core_start, core_end) in enumerate(chunks):
                frames = reader.frames_at(uniform_times(processor.num_frames, start, end))
                yield {
                    "pixel_values_videos": processor.process_frames(frames)[None],
                    "start": torch.tensor([start]),
                    "duration": torch.tensor([end - start]),
                    "core": torch.tensor([[core_start, core_end]]),
                    "is_last": torch.tensor([index == len(chunks) - 1]),
                }

    def _forward(
        self,
        inputs: dict[str, Any],
        num_events: int | None = None,
        localization: str | None = None,
        generate_kwargs: dict | None = None,
    ):
        pixels = inputs["pixel_values_videos"]
        counts = None if num_events is None else torch.full((len(pixels),), num_events, device=pixels.device)
        config = self._effective_generation_config(localization, generate_kwargs)
        outputs = self.model.generate(
            pixel_values_videos=pixels,
            num_events=counts,
            tokenizer=self.processor.tokenizer,
            generation_config=config,
        )
        events = self.processor.post_process_dense_captioning(outputs, inputs["duration"], inputs["start"])
        return {"is_last": inputs["is_last"], "core": inputs["core"], "events": events}

    def postprocess(self, chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = []
        for chunk in chunks:
            core_start, core_end = chunk["core"].flatten().tolist()
            # A batch of one chunk comes as a list around its events, a larger one already taken apart.
            events = chunk["events"]
            for event in events[0] if events and isinstance(events[0], list) else events:
                if core_start <= (event["start"] + event["end"]) / 2 < core_end:
                    kept.append(event)
        return sort_events(kept)


def sort_events(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events by start, then by end."""
    return sorted(events, key=lambda event: (event["start"], event["end"]))


def align_captions(
    clip: SailClip,
    video: Any,
    captions: Sequence[str],
    fps: float | None = None,
    frames_per_second: float = 2.0,
    alignment: str = "ordered",
    gap_level: float = 0.0,
) -> list[dict[str, Any]]:
    """Time stamps for captions that are there already, by CLIP alone: no training, no generation.

    Args:
        clip: a [`SailClip`] (`load_clip("ViT-L-14")`).
        video: of any kind that [`open_video`] takes.
        captions: in the order of their events, unless `alignment` says otherwise.
        fps: frames per second of a video that is an array or a list of images.
        frames_per_second: frames that are looked at in a second of video, hence how fine the times are. There are
            never fewer than captions. Frames are read and encoded a few at a time, so a video may be of any length.
        alignment: `"ordered"` (captions in order, segments disjoint), `"overlapping"` (in order, segments may grow into
            each other) or `"unordered"`: [`align_ordered`], [`align_overlapping`], [`align_unordered`].
        gap_level: higher leaves out more frames that fit no caption well.

    Returns:
        For each caption, in the order given, `{"start": s, "end": s, "text": str, "score": float}`, in seconds; the
        score is the mean gain of its frames (see [`Alignment`]).

    Raises:
        VideoError: the video cannot be read.
        ValueError: no captions, an empty one, or parameters that make no sense.
    """
    _check_captions(captions)
    if alignment not in ALIGNMENTS:
        raise ValueError(f"`alignment` must be one of {', '.join(ALIGNMENTS)}, found {alignment!r}.")
    if not 0 < frames_per_second < float("inf"):
        raise ValueError(f"`frames_per_second` must be positive, found {frames_per_second}.")
    processor = SailVideoProcessor.from_vision_config(clip.vision_config)
    parts = []
    with open_video(video, fps=fps) as reader:
        duration = reader.duration
        num_frames = max(round(duration * frames_per_second) + 1, len(captions))
        frames = reader.frames_at(uniform_times(num_frames, 0, duration))
        while batch := list(islice(frames, _FRAMES_AT_ONCE)):
            parts.append(clip.encode_images(processor.process_frames(batch)))
    similarities = cosines(clip.encode_texts(captions)[None], torch.cat(parts)[None])
    aligned = ALIGNMENTS[alignment](similarities, gap_level=gap_level)
    rows = zip(aligned.seconds(duration)[0].tolist(), captions, aligned.scores[0].tolist(), strict=True)
    return [{"start": start, "end": end, "text": text, "score": score} for (start, end), text, score in rows]


def _check_captions(captions: Any) -> None:
    if not isinstance(captions, (list, tuple)) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"`captions` must be a list of sentences for each video, found {str(captions)[:80]!r}.")
    if not captions or not all(map(str.strip, captions)):
        raise ValueError(f"`captions` must hold at least one sentence, and none that is empty, found {captions}.")


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
    # The small tolerance keeps rounding from adding a chunk that covers nothing.
    count = max(2, math.ceil((duration - chunk_length) / step - 1e-9) + 1)
    starts = [index * step for index in range(count)]
    # The last chunk is moved back to end with the video, so that it is as long as the others.
    starts[-1] = duration - chunk_length
    cuts = [(a + chunk_length + b) / 2 for a, b in zip(starts, starts[1:], strict=False)]
    return [
        (start, start + chunk_length, low, high)
        for start, low, high in zip(starts, [-infinity, *cuts], [*cuts, infinity], strict=True)
    ]
