"""The frozen CLIP: any model of open_clip, encoding of frames and texts, and captions aligned with a video by it."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .alignment_sail import ALIGNMENTS
from .clip_towers import check_towers, clip_tokenizer, encode_with_patches
from .configuration_sail import SailVisionConfig
from .finding import best_stretches, frame_bounds
from .hub_names import check_clip_name
from .loss_sail import cosines
from .video_processing_sail import SailVideoProcessor
from .video_reading import VideoReader, open_video, progress_over, uniform_times

# Frames that are encoded at a time: bounds the memory, whatever a video's length.
_FRAMES_AT_ONCE = 64
_TEXTS_AT_ONCE = 256


class SailClip:
    """A frozen CLIP with its preprocessing and its tokenizer. Made by [`load_clip`] or [`SailModel.get_clip`].

    Attributes:
        vision_config (`SailVisionConfig`): what rebuilds the towers inside a SAIL checkpoint.
        model (`nn.Module`): in evaluation mode, without gradients; towers `.visual` and `.text`.
    """

    def __init__(self, model: nn.Module, vision_config: SailVisionConfig, tokenizer):
        self.model = model.eval().requires_grad_(False)
        self.vision_config = vision_config
        self.tokenizer = tokenizer

    def to(self, device: str | torch.device) -> "SailClip":
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Image projections `(n, D)` of `pixel_values` `(n, 3, H, W)`; float32 on the CPU, not L2-normalised."""
        parameter = next(self.model.visual.parameters())
        parts = pixel_values.split(_FRAMES_AT_ONCE)
        return torch.cat(
            [self.model.visual(part.to(parameter.device, parameter.dtype)).float().cpu() for part in parts]
        )

    @torch.no_grad()
    def encode_regions(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """[`SailClip.encode_images`] of `pixel_values` `(n, 3, H, W)`, and the projections of their patches `(n, N, D)`, float16 on
        the CPU, not L2-normalised, in one pass.

        Raises:
            ValueError: the CLIP's vision tower has no patches, see [`encode_with_patches`].
        """
        parameter = next(self.model.visual.parameters())
        parts = (part.to(parameter.device, parameter.dtype) for part in pixel_values.split(_FRAMES_AT_ONCE))
        found = [encode_with_patches(self.model.visual, part) for part in parts]
        images, patches = zip(*((image.float().cpu(), patch.half().cpu()) for image, patch in found), strict=True)
        return torch.cat(images), torch.cat(patches)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Text projections `(n, D)` of texts, cut to the context (77 tokens); float32 on the CPU, not L2-normalised."""
        texts = list(texts)
        parts = [torch.zeros(0, self.vision_config.model_cfg["embed_dim"])]
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = self.tokenizer(texts[start : start + _TEXTS_AT_ONCE])
            parts.append(self.model.text(tokens.to(self.device)).float().cpu())
        return torch.cat(parts)

    def encode_video(
        self, video: Any, frames_per_second: float = 2.0, at_least: int = 1, fps: float | None = None
    ) -> tuple[Tensor, float]:
        """Features `(n, D)` of a video's frames at [`frame_times`], and its duration in seconds.

        Frames are read and encoded a few at a time, so a video may be of any length.

        Args: as for [`SailClip.align`], and
            at_least: smallest number of frames.
        """
        processor = SailVideoProcessor.from_vision_config(self.vision_config)
        parts = []
        with open_video(video, fps=fps) as reader:
            times = frame_times(reader, frames_per_second, at_least)
            frames = reader.frames_at(progress_over(times, reader.name, "frame"))
            while block := list(islice(frames, _FRAMES_AT_ONCE)):
                parts.append(self.encode_images(processor.process_frames(block)))
            return torch.cat(parts), reader.duration

    def align_features(
        self,
        features: Tensor,
        captions: Sequence[str],
        duration: float,
        alignment: str = "ordered",
        gap_level: float = 0.0,
    ) -> list[dict[str, Any]]:
        """[`SailClip.align`] for features `(n, D)` of frames spread evenly from 0 to `duration` seconds."""
        check_captions(captions)
        if alignment not in ALIGNMENTS:
            raise ValueError(f"`alignment` must be one of {', '.join(ALIGNMENTS)}, found {alignment!r}.")
        similarities = cosines(self.encode_texts(captions)[None], features[None])
        found = ALIGNMENTS[alignment](similarities, gap_level=gap_level)
        rows = zip(found.seconds(duration)[0].tolist(), captions, found.gains[0].tolist(), strict=True)
        return [{"start": start, "end": end, "text": text, "gain": gain} for (start, end), text, gain in rows]

    def align(
        self,
        video: Any,
        captions: Sequence[str],
        frames_per_second: float = 2.0,
        alignment: str = "ordered",
        gap_level: float = 0.0,
        fps: float | None = None,
    ) -> list[dict[str, Any]]:
        """Times for captions that are there already: no training, no generation.

        Args:
            video: of any kind that [`open_video`] takes.
            captions: in the order of their events, unless `alignment` says otherwise.
            frames_per_second: frames that are looked at in a second of video, hence how fine the times are; in all never
                fewer than captions.
            alignment: `"ordered"` (captions in order, segments disjoint), `"overlapping"` (in order, segments may grow
                into each other), `"unordered"`, or `"expected"` (in order, near equal shares where frames say little); see
                [`align_ordered`], [`align_overlapping`], [`align_unordered`], [`align_expected`].
            gap_level: higher leaves out more frames that fit no caption well.
            fps: frames per second of a video that is an array or a list of images.

        Returns:
            For each caption, in the order given, `{"start": s, "end": s, "text": str, "gain": float}`, in seconds; the
            gain is how much better its frames fit it than any other caption (mean difference of cosines, [`Alignment`]).

        Raises:
            VideoError: the video cannot be read.
            ValueError: no captions, an empty one, or parameters that make no sense.
        """
        check_captions(captions)
        features, duration = self.encode_video(video, frames_per_second, len(captions), fps)
        return self.align_features(features, captions, duration, alignment, gap_level)

    def find(
        self,
        video: Any,
        queries: Sequence[str],
        top_k: int = 5,
        frames_per_second: float = 2.0,
        fps: float | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The stretches of a video that fit each sentence best: no training, no generation.

        Args:
            video: of any kind that [`open_video`] takes.
            queries: sentences, such as "a man lifts the bar".
            top_k: most stretches a sentence; those of a sentence do not overlap.
            frames_per_second: frames that are looked at in a second of video, hence how fine the times are.
            fps: frames per second of a video that is an array or a list of images.

        Returns:
            For each sentence, the best first, `{"start": s, "end": s, "text": query, "similarity": float}`, in seconds;
            the similarity is the mean cosine of the sentence and the stretch's frames. It ranks, and is no probability:
            a sentence that nothing in the video fits has its best stretches as well.

        Raises:
            VideoError: the video cannot be read.
            ValueError: no queries, an empty one, or parameters that make no sense.
        """
        check_captions(queries)
        found = self.find_in_features([self.encode_video(video, frames_per_second, fps=fps)], queries, top_k)
        return [[{key: x for key, x in one.items() if key != "video"} for one in of_query] for of_query in found]

    def find_in_features(
        self, videos: Sequence[tuple[Tensor, float]], queries: Sequence[str], top_k: int = 5
    ) -> list[list[dict[str, Any]]]:
        """[`SailClip.find`] in several videos at once, each the features `(n, D)` of frames spread evenly from its beginning
        to its end, and its duration in seconds. Events carry the index of their `"video"` as well."""
        check_captions(queries)
        if not top_k >= 1:
            raise ValueError(f"`top_k` must be at least 1, found {top_k}.")
        if not videos:
            raise ValueError("There are no videos to search.")
        sizes = [len(features) for features, _ in videos]
        frames = torch.cat([features for features, _ in videos])
        similarities = cosines(self.encode_texts(queries)[None], frames[None])[0].split(sizes, dim=1)
        results = []
        for number, query in enumerate(queries):
            of_query = best_stretches([of_video[number].numpy() for of_video in similarities], top_k)
            results.append([])
            for video, first, last, similarity in of_query:
                start, end = frame_bounds(first, last, *(sizes[video], videos[video][1]))
                event = {"video": video, "start": start, "end": end, "text": query, "similarity": similarity}
                results[-1].append(event)
        return results


def frame_times(
    reader: VideoReader, frames_per_second: float, at_least: int = 1, start: float = 0.0, end: float | None = None
) -> np.ndarray:
    """Seconds at which a video is looked at: evenly from `start` to `end`, by default its beginning and its end, both included.

    Raises:
        VideoError: more frames of the whole video than the reader's limits allow.
        ValueError: a rate that is not positive.
    """
    if not 0 < frames_per_second < float("inf"):
        raise ValueError(f"`frames_per_second` must be positive, found {frames_per_second}.")
    end = reader.duration if end is None else end
    count = max(round((end - start) * frames_per_second) + 1, at_least)
    reader.limits.check("frames", max(count, round(reader.duration * frames_per_second) + 1), reader.name)
    return uniform_times(count, start, end)


def check_captions(captions: Any) -> None:
    """Raise ValueError where `captions` is no list of sentences for one video."""
    if not isinstance(captions, (list, tuple)) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"`captions` must be a list of sentences for each video, found {str(captions)[:80]!r}.")
    if not captions or not all(map(str.strip, captions)):
        raise ValueError(f"`captions` must hold at least one sentence, and none that is empty, found {captions}.")


def load_clip(name: str, pretrained: str = "openai") -> SailClip:
    """Load a CLIP through open_clip.

    Args:
        name: an open_clip model name (`"ViT-L-14"`), `"hf-hub:org/repo"`, `"local-dir:folder"`, or a folder that holds
            `open_clip_config.json` and the weights.
        pretrained: open_clip's tag of the weights, for a plain model name only. Defaults to OpenAI's.

    Raises:
        ValueError: no such model, tag or folder; a tag for what brings its own weights; a configuration that asks for more than towers and a tokenizer; or a
            CLIP whose frames are padded to a square.
        OSError: the weights could not be downloaded.
    """
    import open_clip

    source = f"local-dir:{name}" if Path(name).is_dir() else name
    folder = source.removeprefix("local-dir:") if source.startswith("local-dir:") else None
    options = {}
    if pretrained != "openai" and (folder or source.startswith("hf-hub:")):
        raise ValueError(f"The CLIP {name!r} brings its own weights: leave out {pretrained!r}, a tag of open_clip's.")
    if source.startswith("hf-hub:"):
        check_clip_name(source)
    elif folder is None:
        tag = open_clip.get_pretrained_cfg(source, pretrained)
        if not tag:
            tags = open_clip.list_pretrained_tags_by_model(source)
            found = f"the weights of {name!r} are: {', '.join(tags)}" if tags else f"{name!r} is no open_clip model"
            raise ValueError(
                f"Expected a folder with open_clip_config.json, 'hf-hub:org/repo', or an open_clip model with weights "
                f"{pretrained!r}; {found}. `open_clip.list_pretrained()` lists all."
            )
        # OpenAI's weights were trained with QuickGELU, which open_clip's plain model names leave off.
        options = {"pretrained": pretrained, "force_quick_gelu": bool(tag.get("quick_gelu"))}
    try:
        model_cfg = open_clip.get_model_config(source)
        check_towers(model_cfg)
        model = open_clip.create_model(
            source,
            force_custom_text=True,
            weights_only=True,
            pretrained_text=False,
            require_pretrained=True,
            **options,
        )
        tokenizer = clip_tokenizer(model_cfg, folder)
    except UnpicklingError as error:
        raise ValueError(f"The CLIP {name!r} was not loaded: its weights hold more than tensors.") from error
    except Exception as error:  # of whatever kind a value of open_clip's configuration leads to
        kind = OSError if "ownload" in str(error) else ValueError
        raise kind(f"The CLIP {name!r} could not be loaded: {error}") from error
    if options.get("force_quick_gelu"):
        model_cfg["quick_gelu"] = True
    preprocess = model.visual.preprocess_cfg
    size, resize_mode = preprocess["size"], preprocess.get("resize_mode") or "shortest"
    if resize_mode not in ("shortest", "squash"):
        raise ValueError(f"The CLIP {name!r} resizes frames by {resize_mode!r}; expected 'shortest' or 'squash'.")
    vision_config = SailVisionConfig(
        clip=name,
        pretrained=pretrained,
        model_cfg=model_cfg,
        image_size=size if isinstance(size, int) else size[0],
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
        resize_mode=resize_mode,
        interpolation=preprocess.get("interpolation") or "bicubic",
    )
    return SailClip(model, vision_config, tokenizer)
