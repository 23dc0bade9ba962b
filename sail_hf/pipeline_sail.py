"""The pipeline `dense-video-captioning`: a video in, its events with start, end and sentence out."""

from typing import Any

import torch
from transformers.pipelines.base import ChunkPipeline

from .video_processing_sail import open_video, uniform_times


class DenseVideoCaptioningPipeline(ChunkPipeline):
    """Events of a video: when each starts and ends, and a sentence for it.

    ```python
    pipe = pipeline("dense-video-captioning", model=repo_or_folder)
    pipe("video.mp4")  # [{"start": 0.0, "end": 12.4, "text": "A man ...", "score": 0.71}, ...]
    pipe(["a.mp4", "b.mkv"], batch_size=4)
    pipe(array, fps=25)
    pipe("long.mp4", chunk_length_s=120, stride_length_s=10)
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
        generate_kwargs (`dict`): generation arguments that replace the checkpoint's (`{"num_beams": 1}`).

    Returns for each video a list of `{"start": s, "end": s, "text": str, "score": float}` in seconds, sorted by start;
    the score is the geometric mean of the probabilities of the sentence's tokens.

    Raises [`VideoError`] for a video that cannot be read, ValueError for parameters that make no sense.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __call__(self, videos: Any, **kwargs):
        # A list of PIL images with `fps` is one video, where a list of anything else is several.
        if isinstance(videos, list) and videos and hasattr(videos[0], "convert"):
            return super().__call__([videos], **kwargs)[0]
        return super().__call__(videos, **kwargs)

    def _sanitize_parameters(
        self,
        fps: float | None = None,
        num_events: int | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | None = None,
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
        preprocess = {"fps": fps, "chunk_length_s": chunk_length_s, "stride_length_s": stride_length_s}
        forward = {"num_events": num_events, "generate_kwargs": generate_kwargs}
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

    def _forward(self, inputs: dict[str, Any], num_events: int | None = None, generate_kwargs: dict | None = None):
        pixels = inputs["pixel_values_videos"]
        counts = None if num_events is None else torch.full((len(pixels),), num_events, device=pixels.device)
        outputs = self.model.generate(pixel_values_videos=pixels, num_events=counts, **(generate_kwargs or {}))
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
        return sorted(kept, key=lambda event: (event["start"], event["end"]))


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
    starts = [0.0]
    while starts[-1] + chunk_length < duration:
        starts.append(starts[-1] + chunk_length - 2 * stride)
    # The last chunk is moved back to end with the video, so that it is as long as the others.
    starts[-1] = duration - chunk_length
    cuts = [(a + chunk_length + b) / 2 for a, b in zip(starts, starts[1:], strict=False)]
    return [
        (start, start + chunk_length, low, high)
        for start, low, high in zip(starts, [-infinity, *cuts], [*cuts, infinity], strict=True)
    ]
