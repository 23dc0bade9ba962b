"""The pipeline `dense-video-captioning`: a video in, its events with start, end and sentence out."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from numbers import Integral, Real
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers.pipelines.base import ChunkPipeline

from .chunking import SECONDS_A_FRAME, Chunk, chunk_bounds, events_a_chunk, join_chunks, sort_events
from .clip_sail import check_captions, frame_times
from .events_sail import settled
from .generation_sail import SailGenerateOutput
from .grounding_sail import seen_words
from .loss_sail import cosines
from .processing_sail import collate_labels
from .video_processing_sail import resample_features
from .video_reading import open_video, progress_over, uniform_times

logger = logging.getLogger(__name__)
# Sentences whose CLIP text features have at least this cosine mean the same. In the playground's CLIPs these are 62 % of the
# pairs of paraphrases, 1 to 3 % of those with another action, and none with another actor.
_ALIKE = 0.9
# What a model with a grounding head is given for pixels, by both of which CLIP passes once.
_SEEN = ("video_features", "region_features")

# What goes with captions that are there already; the other options say how sentences are generated.
_WITH_CAPTIONS = {"fps", "frames_per_second", "alignment", "gap_level", "batch_size", "num_workers"}


class DenseVideoCaptioningPipeline(ChunkPipeline):
    """Events of a video: when each starts and ends, and a sentence for it.

    ```python
    pipe = pipeline("dense-video-captioning", model=repo_or_folder)
    pipe("video.mp4")  # [{"start": 0.0, "end": 12.4, "text": "A man ...", "score": 0.71}, ...]
    pipe(["a.mp4", "b.mkv"], batch_size=4)
    pipe(array, fps=25)
    for events in pipe.stream("long.mp4"):  # chunk by chunk, as they are found
        print(events)
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
        num_events (`int`, *optional*): number of events of the video; read off the whole-video caption by default, in long
            videos off each chunk's. With it, each chunk gets its share, and those of the highest scores remain.
        chunk_length_s (`float`, *optional*): videos longer than this many seconds are captioned chunk by chunk, which is said.
            Defaults to the configuration's, else to 7.5 for each frame that the model sees (`SECONDS_A_FRAME`); 0: every
            video at once.
        stride_length_s (`float`, defaults to a sixth of the chunks' length): overlap on each side of a chunk, in seconds. An
            event counts where its centre is nearest to the chunk's middle. One that the next chunk goes on with, in an
            overlapping span and the same meaning, is joined with it. The same meaning: a cosine of CLIP's text features
            of at least 0.9, or the same words where the text tower is neither in the checkpoint nor needed for times.
        localization (`str`): `"masks"`, `"cohesion"` or `"alignment"`; see [`SailForDenseVideoCaptioning.generate`].
        alignment (`str`), gap_level (`float`): how captions are aligned; see [`SailClip.align`]. Defaults: of generated
            ones, where `localization` is `"alignment"`, the checkpoint's; of `captions`, `"ordered"` and 0.
        repeat_level, support_level (`float`): where `localization` is `"alignment"`, which sentences are one event or none, and
            whether gaps are captioned; see [`SailForDenseVideoCaptioning.generate`]. 1 and -1: off.
        frames_per_second (`float`, *optional*): with `captions` (default 2), or where `localization` is `"alignment"`:
            how densely the video is looked at for the times, in long videos chunk by chunk. There are never fewer frames
            than captions, nor than are captioned.
        explain (`int`, *optional*): of a model with a bank of captions (`context_size`), sentences that each event leaned on:
            a list `"context"` of `{"text": str, "cosine": float}` in the event ([`SailContext.leaned_on`]).
        generate_kwargs (`dict`), or any field of the generation config by its name (`num_beams=1`): replaces the
            checkpoint's, as do `localization`, `alignment` and `gap_level`.
        grounding (`bool`, defaults to `False`): each event also has `"words"`, where its content words are seen
            ([`seen_words`]), in shares of the video's own frame whatever CLIP's crop left of it. Needs a model with a grounding
            head; of stored features, rows with `region_features` `(L, N, D)` and `region_bounds`, as `training/extract_features.py` makes.

    Returns for each video a list of `{"start": s, "end": s, "text": str, "score": float}` in seconds, sorted by start;
    the score is the geometric mean of the probabilities of the sentence's tokens. With `captions` there is a `"gain"` in
    its place: how much better the sentence fits its frames than the others do (mean difference of CLIP cosines). Captions
    that are there already are aligned with the whole of a video, and stored features captioned as a whole, however long.

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

    def stream(self, video: Any, **kwargs) -> Iterator[list[dict[str, Any]]]:
        """The events of one video, chunk by chunk: of each chunk a list of those that no later chunk can change.

        All lists together are what the call returns; a short video has one. The memory that it takes does not grow with the
        video's length. Takes the parameters of the call, but `captions` and `batch_size`. With `num_events`, whose choice
        takes all events, the last list has them all.
        """
        of_all_calls = (self._preprocess_params, self._forward_params, self._postprocess_params)
        of_this = self._sanitize_parameters(**kwargs)
        preprocess, forward, postprocess = ({**a, **b} for a, b in zip(of_all_calls, of_this, strict=True))
        pieces = (self.forward(piece, **forward) for piece in self.preprocess(video, **preprocess))
        return self._events_of(pieces, **postprocess)

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
        explain: int | None = None,
        generate_kwargs: dict | None = None,
        grounding: bool | None = None,
        **generation,
    ):
        if grounding and self.model.grounding_head is None:
            raise ValueError(
                "This model cannot say where words are seen: it has no grounding head. Train one with "
                "--model_config '{\"grounding\": true}' (docs/grounding.md)."
            )
        if twice := generation.keys() & (generate_kwargs or {}).keys():
            raise ValueError(f"Given twice, by name and in `generate_kwargs`: {', '.join(sorted(twice))}.")
        generation = {name: x for name, x in {**generation, **(generate_kwargs or {})}.items() if x is not None}
        self.model.resolve_generation_config(**generation)
        is_count = isinstance(num_events, Integral) and not isinstance(num_events, bool)
        if num_events is not None and not (is_count and num_events >= 1):
            most = self.model.config.num_queries
            raise ValueError(f"`num_events` must be a whole number, 1..{most}, found {num_events!r}.")
        reading = {"fps": fps, "frames_per_second": frames_per_second, "chunk_length_s": chunk_length_s}
        reading = {name: x for name, x in {**reading, "stride_length_s": stride_length_s}.items() if x is not None}
        for name, x in {**reading, "gap_level": generation.get("gap_level", 0.0)}.items():
            if not isinstance(x, Real) or isinstance(x, bool) or math.isnan(x):
                raise ValueError(f"`{name}` must be a number, found {x!r}.")
            if name in ("fps", "frames_per_second") and not 0 < x < math.inf:
                raise ValueError(f"`{name}` must be positive, found {x}.")
        if not 0 <= reading.get("chunk_length_s", 0) < math.inf:
            raise ValueError(
                f"`chunk_length_s` must be positive, or 0 for a video as a whole, found {chunk_length_s}."
            )
        chunking = {**getattr(self, "_preprocess_params", {}), **reading}
        length, stride = self._chunk_length(chunking.get("chunk_length_s")), chunking.get("stride_length_s", 0)
        if length is None and stride_length_s is not None:
            raise ValueError("`stride_length_s` is the overlap of chunks, and with `chunk_length_s` 0 there are none.")
        if length is not None and not 0 <= 2 * stride < length:
            raise ValueError(
                f"`stride_length_s` must be less than half of `chunk_length_s` ({length:g}), found {stride}."
            )
        counted = {} if num_events is None else {"num_events": num_events}
        if explain is not None and (not explain >= 1 or self.model.model.context is None):
            raise ValueError(
                "`explain`, a positive number of sentences, needs a model with a bank of captions (`context_size`), found "
                f"{explain!r} and a model with context_size {self.model.config.context_size}."
            )
        tells = {"grounding": grounding, "explain": explain}
        tells = {name: value for name, value in tells.items() if value is not None}
        return {**reading, **counted, **generation}, {**tells, **generation}, {**counted, **generation}

    def _chunk_length(self, chunk_length_s: float | None) -> float | None:
        """Seconds that are captioned at once, as asked for or by default; None for a video of any length."""
        if chunk_length_s is None:
            of_model = self.model.config.chunk_length_s
            return of_model or SECONDS_A_FRAME * self.processor.video_processor.num_frames
        return chunk_length_s or None

    def preprocess(
        self,
        video: Any,
        fps: float | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | None = None,
        frames_per_second: float | None = None,
        num_events: int | None = None,
        **generation,
    ):
        """Pieces of a video. Of each chunk: the `num_frames` frames that are captioned, then as many at a time of those that
        captions are aligned with. The last piece is padded, so that all are of one shape, whatever fills a batch."""
        captions = None
        if isinstance(video, dict) and video.keys() == {"video", "captions"}:
            video, captions = video["video"], video["captions"]
            check_captions(captions)
        processor = self.processor.video_processor
        size = processor.num_frames
        if isinstance(video, dict) and "video_features" in video:
            reading = {"fps": fps, "chunk_length_s": chunk_length_s, "frames_per_second": frames_per_second}
            if refused := [name for name, value in reading.items() if value is not None]:
                raise ValueError(f"A row of stored features has no video to read: leave out {', '.join(refused)}.")
            features, duration = self._stored_features(video)
            chunks = chunk_bounds(duration, None, None)
            parts = features.split(size) if captions else [resample_features(features, size)]
            regions = {}
            if self.model.grounding_head is not None and "region_features" in video and not captions:
                if "region_bounds" not in video:
                    raise ValueError(
                        "A row with `region_features` needs `region_bounds`, what CLIP saw of the frames."
                    )
                regions["seen"] = tuple(map(float, video["region_bounds"]))
                patches = torch.as_tensor(np.asarray(video["region_features"]))
                resampled = resample_features(patches.flatten(1), size).unflatten(1, patches.shape[1:])
                regions["region_features"] = resampled[None]
            for part, piece in self._plan(chunks, lambda chunk: parts, captions, num_events):
                yield {**piece, **_padded("video_features", part, size), **regions}
            return
        if captions:
            frames_per_second = frames_per_second or 2.0
        elif self.model.resolve_generation_config(**generation).localization != "alignment":
            given = {"frames_per_second": frames_per_second, **generation}
            of_alignment = ("frames_per_second", "alignment", "gap_level", "repeat_level", "support_level")
            if idle := [name for name in of_alignment if given.get(name) is not None]:
                raise ValueError(f"`{'`, `'.join(idle)}` needs `captions`, or localization='alignment'.")
        with open_video(video, fps=fps) as reader:
            reader.limits.check("frames", size, "num_frames")
            length = None if captions else self._chunk_length(chunk_length_s)
            chunks = chunk_bounds(reader.duration, length, stride_length_s)
            if len(chunks) > 1 and chunk_length_s is None:
                logger.warning(
                    f"{reader.name}: {reader.duration:.0f} s are more than {size} frames resolve, so it is captioned in "
                    f"{len(chunks)} chunks of {length:g} s (chunk_length_s=0 or --chunk-length 0: all at once)."
                )

            def times_of(chunk: Chunk) -> list[np.ndarray]:
                seen = [] if captions else [uniform_times(size, chunk.start, chunk.end)]
                if frames_per_second is None:
                    return seen
                times = frame_times(reader, frames_per_second, len(captions or ()) or size, chunk.start, chunk.end)
                return [*seen, *(times[start : start + size] for start in range(0, len(times), size))]

            plan = self._plan(chunks, times_of, captions, num_events)
            for times, piece in progress_over(plan, reader.name, "part"):
                frames, seen = processor.process_with_bounds(reader.frames_at(times))
                yield {**piece, **_padded("pixel_values_videos", frames, size), "seen": seen}

    def _plan(
        self,
        chunks: list[Chunk],
        parts_of: Callable[[Chunk], Sequence],
        captions: list[str] | None,
        num_events: int | None,
    ) -> list[tuple[Any, dict[str, Any]]]:
        """Each part of each chunk, the first of them to be captioned unless there are `captions`, with all of its piece but the
        frames."""
        counted = {}
        if num_events is not None:
            count = events_a_chunk(num_events, chunks, self.model.config.num_queries)
            counted = {"num_events": torch.tensor([count])}
        plan = []
        for chunk in chunks:
            parts = parts_of(chunk)
            for index, part in enumerate(parts):
                is_end = index == len(parts) - 1
                piece = {
                    "is_chunk": torch.tensor([index == 0 and not captions]),
                    "bounds": chunk,
                    "captions": captions,
                    "ends_chunk": is_end,
                    "is_last": torch.tensor([is_end and chunk is chunks[-1]]),
                }
                plan.append((part, {**piece, **counted}))
        return plan

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

    def _forward(self, inputs: dict[str, Any], grounding: bool = False, explain: int | None = None, **generation):
        kind = "video_features" if "video_features" in inputs else "pixel_values_videos"
        frames, is_chunk = inputs[kind], inputs["is_chunk"].cpu()
        # What is no tensor comes as a list in a batch, and as it is where there is none.
        is_batch = isinstance(inputs["bounds"], list)
        bounds = inputs["bounds"] if is_batch else [inputs["bounds"]]
        # A batch of chunks alone has no features that anything is aligned with.
        features = torch.zeros(len(frames), 0 if is_chunk.all() else frames.shape[1], self.model.config.feature_size)
        events: list[list[dict]] = [[] for _ in bounds]
        if is_chunk.any():
            rows = is_chunk.nonzero().flatten().tolist()
            seen = {kind: frames[rows]}
            if "region_features" in inputs:
                seen["region_features"] = inputs["region_features"][rows]
            elif kind == "pixel_values_videos" and self.model.grounding_head is not None:
                seen = dict(zip(_SEEN, self.model.model.get_region_features(frames[rows]), strict=True))
            elif explain is not None:  # CLIP sees the frames once
                seen = {"video_features": self.model.model.prepare_features(**seen)[0]}
            if grounding and "region_features" not in seen:
                raise ValueError(
                    "To ground words, a row needs `region_features` beside its `video_features`: extract them."
                )
            outputs = self.model.generate(
                **seen,
                num_events=inputs["num_events"][rows] if "num_events" in inputs else None,
                tokenizer=self.processor.tokenizer,
                **generation,
            )
            starts, ends = zip(*[bounds[row][:2] for row in rows], strict=True)
            durations = [end - start for start, end in zip(starts, ends, strict=True)]
            words = None
            if grounding:
                crops = inputs["seen"] if is_batch else [inputs["seen"]]
                words = self._words(outputs, seen, [(*bounds[row][:2], crops[row]) for row in rows])
            found = self.processor.post_process_dense_captioning(outputs, durations, starts, words)
            if explain is not None:
                self._explain(seen["video_features"], found, starts, durations, explain)
            for row, of_chunk in zip(rows, found, strict=True):
                events[row] = of_chunk
        if not is_chunk.all():
            real = torch.arange(frames.shape[1]) < inputs["num_frames"].cpu()[:, None]
            real &= ~is_chunk[:, None]
            seen = frames[real.to(frames.device)]
            stored = kind == "video_features"
            features[real] = seen.cpu() if stored else self.model.model.get_clip().encode_images(seen)
        kept = {
            name: inputs[name] for name in ("is_last", "is_chunk", "num_frames", "bounds", "captions", "ends_chunk")
        }
        return {**kept, "features": features, "events": events if is_batch else events[0]}

    def _explain(
        self, features: torch.Tensor, found: list[list[dict]], starts: list[float], durations: list[float], most: int
    ) -> None:
        """Put into each event the sentences of the bank that it leaned on, under a mask of its span."""
        model = self.model.model
        frame_mask = features.new_ones(features.shape[:2], dtype=torch.long)
        spans = [torch.tensor([[event["start"], event["end"]] for event in events]).reshape(-1, 2) for events in found]
        spans = pad_sequence(
            [(of - start) / seconds for of, start, seconds in zip(spans, starts, durations, strict=True)], True
        ).to(features)
        widths = spans.diff(dim=-1)[..., 0].clamp(min=1e-3)
        masks = model.make_masks(spans.mean(-1), widths, frame_mask)
        leaned = model.context.leaned_on(model.recall(features, frame_mask), masks, most)
        for events, sentences in zip(found, leaned, strict=True):
            for event, of_event in zip(events, sentences, strict=False):  # rows are padded
                event["context"] = of_event

    def _words(
        self, outputs: SailGenerateOutput, seen: dict[str, torch.Tensor], of_videos: list[tuple[float, float, tuple]]
    ) -> list[list[dict[str, Any]]]:
        """Where the words of each sentence are seen, from the videos' start and end in seconds and what CLIP saw of their frames."""
        for x0, y0, x1, y1 in {crop for *_, crop in of_videos}:
            if min(x1 - x0, y1 - y0) < 1:
                logger.warning_once(
                    f"CLIP saw {x0:.0%} to {x1:.0%} of the frames' width and {y0:.0%} to {y1:.0%} of their height: words are looked "
                    "for there alone."
                )
        texts = self.processor.tokenizer.batch_decode(outputs.sequences, skip_special_tokens=True)
        # A sentence of no words has labels like others, and nothing is asked of them.
        texts = [" ".join(text.split()) or "." for text in texts]
        counts = outputs.num_events.tolist()
        by_video = [texts[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]
        labels = collate_labels([self.processor.caption_labels(of_video) for of_video in by_video])["event_labels"]
        features, frame_mask = self.model.model.prepare_features(video_features=seen["video_features"])
        located = (outputs.event_masks, outputs.num_events, labels, seen["region_features"])
        attention = iter(self.model.ground_events(features, frame_mask, *located))
        found = []
        for of_video, (start, end, crop) in zip(by_video, of_videos, strict=True):
            times = uniform_times(features.shape[1], start, end).tolist()
            rows = zip(of_video, attention, strict=False)
            found += [seen_words(text, of, self.processor.word_positions(text), times, crop) for text, of in rows]
        return found

    def postprocess(self, pieces: list[dict[str, Any]], **options) -> list[dict[str, Any]]:
        return sort_events(chain.from_iterable(self._events_of(pieces, **options)))

    def _events_of(
        self, pieces: Iterable[dict[str, Any]], num_events: int | None = None, **generation
    ) -> Iterator[list[dict[str, Any]]]:
        """[`DenseVideoCaptioningPipeline.stream`] of pieces that went through the model."""
        # A number that is given is kept, so that no event goes.
        off = {} if num_events is None else {"repeat_level": 1.0, "support_level": -1.0}
        chunks = self._chunks_of(pieces, {**generation, **off})
        aligns = self.model.resolve_generation_config(**generation).localization == "alignment"
        has_clip = aligns or self.model.model.text_tower is not None
        found = join_chunks(chunks, self._are_alike if has_clip else lambda one, other: one.lower() == other.lower())
        if num_events is None:
            yield from found
            return
        events = list(chain.from_iterable(found))
        if len(events) < num_events:
            logger.warning(f"Only {len(events)} of {num_events} events were found: others were in two chunks at once.")
        if len(events) > num_events:
            events = sorted(events, key=lambda event: -event["score"])[:num_events]
        yield sort_events(events)

    def _are_alike(self, one: str, other: str) -> bool:
        features = self.model.model.get_clip().encode_texts([one, other])[None]
        return bool(cosines(features, features)[0, 0, 1] >= _ALIKE)

    def _chunks_of(
        self, pieces: Iterable[dict[str, Any]], generation: dict[str, Any]
    ) -> Iterator[tuple[Chunk, list[dict[str, Any]]]]:
        """Each chunk with its events, their times by alignment where there are frames for that."""
        events, features = [], []
        for piece in pieces:
            if piece["is_chunk"]:
                events = piece["events"]
            else:
                features.append(piece["features"][0, : piece["num_frames"]])
            if piece["ends_chunk"]:
                chunk = Chunk(*piece["bounds"])
                yield chunk, self._aligned(chunk, events, features, piece["captions"], generation)
                events, features = [], []

    def _aligned(
        self,
        chunk: Chunk,
        events: list[dict[str, Any]],
        features: list[torch.Tensor],
        captions: list[str] | None,
        generation: dict[str, Any],
    ) -> list[dict[str, Any]]:
        # A sentence of no words fits no frame: its event stays where it is.
        spoken = [event for event in events if event["text"]]
        texts = captions or [event["text"] for event in spoken]
        if not features or not texts:
            return events
        if captions:
            # The checkpoint's alignment is for sentences of its own, whose order may be wrong; these are as `sail align` has them.
            generation = {"alignment": "ordered", "gap_level": 0.0, **generation}
        config, clip = self.model.resolve_generation_config(**generation), self.model.model.get_clip()
        seconds, frames = chunk.end - chunk.start, torch.cat(features)
        if not captions:  # finer frames may show further repeats
            kept = settled(clip.encode_texts(texts), frames, config)[0].tolist()
            spoken = [event for event, stays in zip(spoken, kept, strict=True) if stays]
            events = [*spoken, *(event for event in events if not event["text"])]
            texts = [event["text"] for event in spoken]
        aligned = clip.align_features(frames, texts, seconds, config.alignment, config.gap_level)
        for event in aligned:
            event.update(start=chunk.start + event["start"], end=chunk.start + event["end"])
        if captions:
            return aligned
        for event, new in zip(spoken, aligned, strict=True):
            event.update(start=new["start"], end=new["end"])
        return events


def _padded(kind: str, frames: torch.Tensor, size: int) -> dict[str, torch.Tensor]:
    """Frames as the batch of one that a piece holds, padded to `size`, and their number."""
    padding = frames.new_zeros(size - len(frames), *frames.shape[1:])
    return {kind: torch.cat([frames, padding])[None], "num_frames": torch.tensor([len(frames)])}


def _with_captions(videos: Any, captions: Iterable) -> Any:
    """A video, or each of several, together with its captions."""
    if not isinstance(videos, (list, Dataset, GeneratorType)):
        return {"video": videos, "captions": captions}
    if isinstance(videos, list) and len(videos) != len(captions := list(captions)):
        raise ValueError(f"Expected a list of captions for each of {len(videos)} videos, found {len(captions)}.")
    pairs = ({"video": video, "captions": own} for video, own in zip(videos, captions, strict=True))
    return list(pairs) if isinstance(videos, list) else pairs
