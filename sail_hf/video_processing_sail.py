"""Frames of videos to pixels as CLIP expects them, and stored features to a fixed number of frames."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.video_processing_utils import BaseVideoProcessor

from .video_reading import VideoError, is_image_list, open_video, uniform_times


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


class SailVideoProcessor(BaseVideoProcessor):
    """Samples frames uniformly over a video's presentation time and preprocesses them as CLIP does.

    Resize of the short side (bicubic, antialiased), centre crop, division by 255, normalisation. Defaults: OpenAI's
    CLIP at 224 pixels.

    Args:
        num_frames (`int`, defaults to 32): T, frames per video.
        size (`dict`, defaults to `{"shortest_edge": 224}`; `{"height", "width"}` squashes frames into that), crop_size (`dict`, defaults to 224 x 224): pixels.
        resample (`PILImageResampling`, defaults to bicubic)
        image_mean, image_std (`list[float]`): of RGB values in [0, 1].
    """

    num_frames = 32
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    model_input_names = ["pixel_values_videos", "video_attention_mask"]

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
        num_frames: int | None = None,
        start: float | Sequence[float | None] | None = None,
        end: float | Sequence[float | None] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Sample and preprocess one video or a list of videos; the same as calling the processor.

        Args:
            videos: one video or a list of them, each of any kind that [`open_video`] takes.
            fps: frames per second of arrays and image lists; one number, or one per video.
            num_frames: frames per video. Defaults to `self.num_frames`.
            start, end: seconds, the part of each video to sample; a number for all or one per video. Defaults: all of
                the video.
            return_tensors: framework of the result, as everywhere in transformers.

        Returns:
            `pixel_values_videos` `(B, T, 3, H, W)`, `video_attention_mask` `(B, T)` (all 1: every frame is real) and
            `durations` `(B,)`, of the whole videos in seconds.

        Raises:
            VideoError: a video cannot be read or does not cover `start` to `end`.
        """
        many = isinstance(videos, (list, tuple)) and not is_image_list(videos)
        videos = list(videos) if many else [videos]
        if not videos:
            raise VideoError("Expected at least one video, found an empty list")
        num_frames = self.num_frames if num_frames is None else num_frames
        options = [_one_per_video(name, x, len(videos)) for name, x in [("fps", fps), ("start", start), ("end", end)]]
        pixels, durations = [], []
        for video, video_fps, video_start, video_end in zip(videos, *options, strict=True):
            with open_video(video, fps=video_fps) as reader:
                first = 0.0 if video_start is None else video_start
                last = reader.duration if video_end is None else video_end
                if not 0 <= first <= last or first > reader.duration:
                    raise VideoError(
                        f"{reader.name}: expected 0 <= start <= end and a start within its {reader.duration:.3f} s, "
                        f"found start={first}, end={last}"
                    )
                pixels.append(self.process_frames(reader.frames_at(uniform_times(num_frames, first, last))))
                durations.append(reader.duration)
        data = {
            "pixel_values_videos": torch.stack(pixels),
            "video_attention_mask": torch.ones(len(pixels), num_frames, dtype=torch.long),
            "durations": torch.tensor(durations),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def process_frames(self, frames: Iterable[np.ndarray]) -> torch.Tensor:
        """Preprocess frames one by one, so that only the small crops of a video are held.

        Args:
            frames: `uint8` RGB arrays `(H, W, 3)`, of any size.

        Returns: `float32` `(T, 3, crop_height, crop_width)`.
        """
        crops = []
        for frame in frames:
            image = torch.from_numpy(np.require(frame, requirements=["C", "W"])).permute(2, 0, 1)
            image = self.resize(image, self.size, self.resample)
            # transformers' own centre crop rounds odd margins down, torchvision and open_clip round them to even.
            crops.append(tvF.center_crop(image, [self.crop_size.height, self.crop_size.width]))
        if not crops:
            raise VideoError("Expected at least one frame, found none")
        return self.rescale_and_normalize(
            torch.stack(crops), True, self.rescale_factor, True, tuple(self.image_mean), tuple(self.image_std)
        )


def _one_per_video(name: str, value: Any, num_videos: int) -> list:
    if not isinstance(value, (list, tuple, np.ndarray)):
        return [value] * num_videos
    if len(value) != num_videos:
        raise VideoError(f"Expected one {name} for each of {num_videos} videos, found {len(value)}")
    return list(value)
