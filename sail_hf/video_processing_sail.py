"""Frames of videos to pixels as CLIP expects them, and stored features to a fixed number of frames."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor

from .sharing import LoadedByPackage
from .video_limits import VideoError, VideoLimits
from .video_reading import is_image_list, open_video, uniform_times

# Options of transformers' video processors of which only one value makes sense here, and what to do instead.
_ONLY = {
    "do_sample_frames": (
        True,
        "frames are sampled over the presentation time; num_frames=len(video) takes all of an array",
    ),
    "do_convert_rgb": (True, "frames are always read as RGB"),
    "do_pad": (False, "the frames of a batch have one size; size and crop_size set it"),
    "data_format": (ChannelDimension.FIRST, "the model takes pixels as (B, T, 3, H, W)"),
    "fps": (None, "it belongs to one array or list of images; give it in the call, with the video"),
    "video_metadata": (None, "give the frame rate of an array or list of images as fps, in the call"),
    "return_metadata": (False, "the result holds `durations`; open_video gives a video's frame rate as well"),
}
# What saved configurations hold besides options.
_SAVED = {"video_processor_type", "image_processor_type", "feature_extractor_type", "processor_class", "auto_map"}


def resample_features(features: torch.Tensor | np.ndarray, num_frames: int) -> torch.Tensor:
    """Resample stored features, e.g. one per second, to a fixed number of frames.

    More features than frames: those at `floor(linspace(0, L - 1, num_frames))`. Fewer: linear interpolation with
    aligned corners. Both as in ILCACM.

    Args:
        features: `(L, D)`, L >= 1.

    Returns: `(num_frames, D)`, of the same dtype.
    """
    features = torch.as_tensor(features)
    if features.ndim != 2 or not len(features):
        raise ValueError(f"Expected features of shape (L, D) with L >= 1, found {tuple(features.shape)}")
    length = len(features)
    if length == num_frames:
        return features
    if length > num_frames:
        return features[np.floor(np.linspace(0, length - 1, num_frames)).astype(int)]
    stretched = interpolate(features.T[None].float(), size=num_frames, mode="linear", align_corners=True)
    return stretched[0].T.to(features.dtype)


class SailVideoProcessor(LoadedByPackage, BaseVideoProcessor):
    """Samples frames uniformly over a video's presentation time and preprocesses them as CLIP does.

    Resize of the short side (bicubic, antialiased), centre crop, division by 255, normalisation. Defaults: OpenAI's
    CLIP at 224 pixels. Every option can be given here, or in a call for that call.

    Args:
        num_frames (`int`, defaults to 32): T, frames per video.
        do_resize, do_center_crop, do_rescale, do_normalize (`bool`, default to True): the four steps.
        size (`dict`, defaults to `{"shortest_edge": 224}`; `{"height", "width"}` squashes frames into that), crop_size
            (`dict`, defaults to 224 x 224): pixels.
        resample (`PILImageResampling`, defaults to bicubic)
        rescale_factor (`float`, defaults to 1 / 255)
        image_mean, image_std (`float` or `list[float]`): of RGB values in [0, 1].
        device (`str` or `torch.device`, *optional*): where frames are processed and the result lies.

    Raises:
        ValueError: an option that is unknown, or has a value that cannot be honoured.
    """

    num_frames = 32
    do_resize = do_center_crop = do_rescale = do_normalize = True
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    model_input_names = ["pixel_values_videos", "video_attention_mask"]

    def __init__(self, **kwargs: Unpack[VideosKwargs]):
        self._resolve({name: value for name, value in kwargs.items() if name not in _SAVED})
        super().__init__(**kwargs)

    @classmethod
    def from_vision_config(cls, vision_config, num_frames: int = 32) -> "SailVideoProcessor":
        """The preprocessing that the CLIP of a `SailVisionConfig` was trained with."""
        square = {"height": vision_config.image_size, "width": vision_config.image_size}
        return cls(
            num_frames=num_frames,
            size=square if vision_config.resize_mode == "squash" else {"shortest_edge": vision_config.image_size},
            crop_size=square,
            resample=PILImageResampling[vision_config.interpolation.upper()],
            image_mean=list(vision_config.image_mean),
            image_std=list(vision_config.image_std),
        )

    def preprocess(
        self,
        videos: Any,
        fps: float | Sequence[float | None] | None = None,
        start: float | Sequence[float | None] | None = None,
        end: float | Sequence[float | None] | None = None,
        return_tensors: str | None = "pt",
        limits: VideoLimits | None = None,
        **kwargs: Unpack[VideosKwargs],
    ) -> BatchFeature:
        """Sample and preprocess one video or a list of videos; the same as calling the processor.

        Args:
            videos: one video or a list of them, each of any kind that [`open_video`] takes.
            fps: frames per second of arrays and image lists; one number, or one per video.
            start, end: seconds, the part of each video to sample; a number for all or one per video. Defaults: all of
                the video.
            return_tensors: framework of the result, as everywhere in transformers.
            limits: what each video may ask for; see [`open_video`].
            kwargs: options of the class, for this call; None stands for the processor's own. `input_data_format`
                states the layout of arrays (`"channels_first"` or `"channels_last"`), which is found by their shape
                otherwise.

        Returns:
            `pixel_values_videos` `(B, T, 3, H, W)`, `video_attention_mask` `(B, T)` (all 1: every frame is real) and
            `durations` `(B,)`, of the whole videos in seconds.

        Raises:
            VideoError: a video cannot be read, does not cover `start` to `end`, or exceeds a limit.
            ValueError: an option that is unknown, or has a value that cannot be honoured.
        """
        options = self._resolve(kwargs)
        limits = VideoLimits.from_environment() if limits is None else limits
        limits.check("frames", options["num_frames"], "num_frames")
        many = isinstance(videos, (list, tuple)) and not is_image_list(videos)
        videos = list(videos) if many else [videos]
        if not videos:
            raise VideoError("Expected at least one video, found an empty list")
        per_video = [
            _one_per_video(name, x, len(videos)) for name, x in [("fps", fps), ("start", start), ("end", end)]
        ]
        pixels, durations = [], []
        for video, video_fps, video_start, video_end in zip(videos, *per_video, strict=True):
            with open_video(_as_stated(video, options["input_data_format"]), video_fps, limits) as reader:
                first = 0.0 if video_start is None else video_start
                last = reader.duration if video_end is None else video_end
                if not 0 <= first <= last or first > reader.duration:
                    raise VideoError(
                        f"{reader.name}: expected 0 <= start <= end and a start within its {reader.duration:.3f} s, "
                        f"found start={first}, end={last}"
                    )
                times = uniform_times(options["num_frames"], first, last)
                pixels.append(self.process_frames(reader.frames_at(times), limits, **kwargs))
                durations.append(reader.duration)
        pixels = _stack(pixels)
        data = {
            "pixel_values_videos": pixels,
            "video_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.long, device=pixels.device),
            "durations": torch.tensor(durations, device=pixels.device),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def process_frames(
        self, frames: Iterable[np.ndarray], limits: VideoLimits | None = None, **kwargs: Unpack[VideosKwargs]
    ) -> torch.Tensor:
        """Preprocess frames one by one, so that only the small crops of a video are held.

        Args:
            frames: `uint8` RGB arrays `(H, W, 3)`, of any size.
            limits: of which `held_bytes` and `pixels` are meant; see [`open_video`].
            kwargs: options of the class, for this call.

        Returns: `float32` `(T, 3, crop_height, crop_width)`; `uint8` if neither rescaled nor normalised.
        """
        options = self._resolve(kwargs)
        limits = VideoLimits.from_environment() if limits is None else limits
        held = 0
        images = []
        for frame in frames:
            image = torch.from_numpy(np.require(frame, requirements=["C", "W"])).permute(2, 0, 1)
            image = image.to(options["device"])
            for height, width in _sizes_made(image, options):
                limits.check(
                    "pixels", round(height * width), f"a frame of {image.shape[2]} x {image.shape[1]}, resized"
                )
            if options["do_resize"]:
                image = self.resize(image, options["size"], options["resample"])
            if options["do_center_crop"]:
                # transformers' own centre crop rounds odd margins down, torchvision and open_clip round them to even.
                image = tvF.center_crop(image, [options["crop_size"].height, options["crop_size"].width])
            images.append(image)
            held += image.numel() * torch.float32.itemsize
            limits.check("held_bytes", held, f"{len(images)} frames of {image.shape[2]} x {image.shape[1]}")
        if not images:
            raise VideoError("Expected at least one frame, found none")
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        return self.rescale_and_normalize(_stack(images), *(options[name] for name in names))

    def process_with_bounds(
        self, images: Iterator[np.ndarray]
    ) -> tuple[torch.Tensor, tuple[float, float, float, float]]:
        """[`SailVideoProcessor.process_frames`] of frames of one size, at least one, and their [`seen_bounds`]."""
        first = next(images)
        return self.process_frames(chain([first], images)), self.seen_bounds(*first.shape[:2])

    def seen_bounds(self, height: int, width: int) -> tuple[float, float, float, float]:
        """What is left of a frame of `height` x `width` pixels after resize and crop: `(x0, y0, x1, y1)` in shares of the frame.

        `(0, 0, 1, 1)` where frames are squashed; a crop that is larger than the frame reaches over it.
        """
        options, shares = self._resolve({}), (1.0, 1.0)
        if options["do_center_crop"]:
            *resized, crop = [(height, width), *_sizes_made(torch.empty(0, height, width), options)]
            shares = [made / of for made, of in zip(crop, resized[-1], strict=True)]
        return tuple(0.5 + sign * share / 2 for sign in (-1, 1) for share in shares[::-1])

    def _resolve(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """All options, in transformers' standard form; what is not in `kwargs` is the processor's own."""
        names = self.valid_kwargs.__annotations__
        if unknown := sorted(kwargs.keys() - names):
            raise ValueError(
                f"{', '.join(unknown)}: no option of {type(self).__name__}; there are {', '.join(names)}."
            )
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        validate_typed_dict(self.valid_kwargs, kwargs)
        options = {name: kwargs.get(name, getattr(self, name, None)) for name in names}
        for name, (value, instead) in _ONLY.items():
            if options[name] not in (None, value):
                raise ValueError(f"{name}={options[name]!r} cannot be honoured: {instead}.")
        if options["num_frames"] < 1:
            raise ValueError(f"Expected num_frames of 1 or more, found {options['num_frames']}.")
        options = self._standardize_kwargs(**options)
        self._validate_preprocess_kwargs(**options)
        return options


def _as_stated(video: Any, layout: str | None) -> Any:
    """An array in the layout that `input_data_format` states, as `(T, H, W, 3)`; anything else as it is."""
    if layout is None or not isinstance(video, (np.ndarray, torch.Tensor)):
        return video
    channel = 1 if ChannelDimension(layout) is ChannelDimension.FIRST else 3
    if video.ndim != 4 or video.shape[channel] != 3:
        raise VideoError(
            f"Expected 3 channels in dimension {channel}, as input_data_format={layout!r} says, "
            f"found shape {tuple(video.shape)}"
        )
    return torch.as_tensor(video).movedim(channel, 3)


def _sizes_made(image: torch.Tensor, options: dict[str, Any]) -> Iterable[tuple[float, float]]:
    """Height and width of an image `(3, H, W)` after the resize, and after the crop."""
    size = options["size"]
    if options["do_resize"] and size.shortest_edge:
        yield tuple(side * size.shortest_edge / min(image.shape[1:]) for side in image.shape[1:])
    elif options["do_resize"]:
        largest = size.longest_edge or max(size.max_height or 0, size.max_width or 0)
        yield size.height or largest, size.width or largest
    if options["do_center_crop"]:
        yield options["crop_size"].height, options["crop_size"].width


def _stack(images: list[torch.Tensor]) -> torch.Tensor:
    """Images, or stacks of them, of one size as one tensor."""
    if len(shapes := {tuple(image.shape[-2:]) for image in images}) > 1:
        raise ValueError(
            f"Expected frames of one size, found {sorted(shapes)} (height, width). Without do_center_crop, give size "
            "a height and a width."
        )
    return torch.stack(images)


def _one_per_video(name: str, value: Any, num_videos: int) -> list:
    if not isinstance(value, (list, tuple, np.ndarray)):
        return [value] * num_videos
    if len(value) != num_videos:
        raise VideoError(f"Expected one {name} for each of {num_videos} videos, found {len(value)}")
    return list(value)
