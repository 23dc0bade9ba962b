"""CLIP's preprocessing of frames, batches of videos, and stored features."""

import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_clip

from sail_hf.clip_sail import load_clip
from sail_hf.configuration_sail import SailVisionConfig
from sail_hf.video_processing_sail import SailVideoProcessor, resample_features
from sail_hf.video_reading import VideoError

# CLIP's preprocessing


@pytest.mark.parametrize(
    ("resize_mode", "shape"),
    [("shortest", shape) for shape in [(240, 320), (321, 215), (50, 333), (225, 224), (1, 1)]]
    + [("squash", shape) for shape in [(240, 320), (480, 854), (50, 333), (224, 224), (1, 1)]],
)
def test_preprocessing_is_open_clips(shape, resize_mode):
    from open_clip.transform import image_transform

    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((8, 8)).resize(shape[::-1], Image.Resampling.BICUBIC))
    processor = SailVideoProcessor.from_vision_config(SailVisionConfig(resize_mode=resize_mode))
    for frame in (noise, smooth):
        ours = processor.process_frames([frame])[0]
        theirs = image_transform(224, is_train=False, resize_mode=resize_mode)(Image.fromarray(frame))
        difference = (ours - theirs).abs()
        assert difference.max() < 2.1 / 255 / 0.26  # two grey levels
        assert difference.mean() < 0.1 / 255 / 0.26


def test_a_clip_that_squashes_frames_says_so(tmp_path):
    """As SigLIP's."""
    make_clip(tmp_path)
    path = tmp_path / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["preprocess_cfg"] |= {"resize_mode": "squash", "interpolation": "bilinear"}
    path.write_text(json.dumps(content))
    processor = SailVideoProcessor.from_vision_config(load_clip(str(tmp_path)).vision_config)
    (pixels,) = processor.process_frames([np.repeat(np.array([[[0] * 3], [[255] * 3]], np.uint8), 90, axis=1)])
    assert processor.size == {"height": 32, "width": 32} and pixels.shape == (3, 32, 32)
    assert pixels[:, 0].max() < -1.9 and pixels[:, -1].min() > 1.9  # all of the height, black to white
    assert processor.resample == Image.Resampling.BILINEAR
    content["preprocess_cfg"]["resize_mode"] = "longest"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="'longest'; expected 'shortest' or 'squash'"):
        load_clip(str(tmp_path))


def test_frames_are_processed_one_by_one():
    alive = []

    def frames():
        for _ in range(6):
            frame = np.zeros((64, 64, 3), np.uint8)
            alive.append(weakref.ref(frame))
            assert sum(reference() is not None for reference in alive) <= 2
            yield frame
            del frame

    assert SailVideoProcessor().process_frames(frames()).shape == (6, 3, 224, 224)


def small_processor(num_frames: int = 4) -> SailVideoProcessor:
    config = SailVisionConfig(image_size=32, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25])
    return SailVideoProcessor.from_vision_config(config, num_frames=num_frames)


def brightness(pixel_values: torch.Tensor) -> torch.Tensor:
    """Grey level 0 to 255 of each frame of the small processor's output."""
    return (pixel_values.mean(dim=(-3, -2, -1)) * 0.25 + 0.5) * 255


def ramp(num_frames: int) -> np.ndarray:
    """Frame i is grey level 10 i."""
    return np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 10, (num_frames, 40, 50, 3))


def test_batch_of_videos():
    inputs = small_processor()([ramp(7), ramp(13)], fps=[1, 2])
    assert inputs["pixel_values_videos"].shape == (2, 4, 3, 32, 32)
    assert inputs["pixel_values_videos"].dtype == torch.float32
    assert inputs["video_attention_mask"].tolist() == [[1] * 4] * 2
    assert inputs["durations"].tolist() == [7.0, 6.5]
    # linspace(0, 7, 4) = 0, 2.33, 4.67, 7 at 1 fps; linspace(0, 6.5, 4) = 0, 2.17, 4.33, 6.5 at 2 fps.
    expected = torch.tensor([[0.0, 20, 40, 60], [0, 40, 80, 120]])
    assert torch.allclose(brightness(inputs["pixel_values_videos"]), expected, atol=0.1)


def test_one_video_is_a_batch_of_one():
    images = [Image.fromarray(frame) for frame in ramp(4)]
    for video in (ramp(4), images):
        inputs = small_processor()(video, fps=1, num_frames=2)
        assert torch.allclose(brightness(inputs["pixel_values_videos"]), torch.tensor([[0.0, 30]]), atol=0.1)
    assert isinstance(small_processor()(images, fps=1, return_tensors="np")["pixel_values_videos"], np.ndarray)


def test_part_of_a_video():
    inputs = small_processor(3)([ramp(10), ramp(10)], fps=1, start=[2, None], end=4.5)
    expected = torch.tensor([[20.0, 30, 40], [0, 20, 40]])
    assert torch.allclose(brightness(inputs["pixel_values_videos"]), expected, atol=0.1)
    assert inputs["durations"].tolist() == [10.0, 10.0]


@pytest.mark.parametrize(("start", "end"), [(5, 2), (-1, 2), (11, 12)])
def test_part_outside_of_the_video(start, end):
    with pytest.raises(VideoError, match=f"within its 10.000 s, found start={start}, end={end}"):
        small_processor()(ramp(10), fps=1, start=start, end=end)


def test_numbers_per_video_must_match():
    with pytest.raises(VideoError, match="one fps for each of 2 videos, found 3"):
        small_processor()([ramp(3), ramp(3)], fps=[1, 2, 3])
    with pytest.raises(VideoError, match="empty list"):
        small_processor()([])


def test_processor_comes_back_from_disk(tmp_path):
    from transformers import AutoVideoProcessor

    import sail_hf  # noqa: F401 (registers the class)

    processor = small_processor(5)
    processor.save_pretrained(tmp_path)
    for loaded in (SailVideoProcessor.from_pretrained(tmp_path), AutoVideoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is SailVideoProcessor
        assert loaded.to_dict() == processor.to_dict()
        assert torch.equal(
            loaded(ramp(9), fps=1)["pixel_values_videos"], processor(ramp(9), fps=1)["pixel_values_videos"]
        )


# Stored features


def test_resample_features_to_fewer():
    features = torch.arange(10.0)[:, None] * torch.tensor([1.0, -1.0])
    # floor(linspace(0, 9, 4)) = floor(0, 3, 6, 9); floor(linspace(0, 9, 5)) = floor(0, 2.25, 4.5, 6.75, 9)
    assert resample_features(features, 4)[:, 0].tolist() == [0, 3, 6, 9]
    assert resample_features(features, 5)[:, 1].tolist() == [0, -2, -4, -6, -9]
    assert torch.equal(resample_features(features, 10), features)


def test_resample_features_to_more():
    features = np.array([[0.0, 1.0], [2.0, 1.0], [8.0, 1.0]], dtype=np.float16)
    resampled = resample_features(features, 5)
    assert resampled.dtype == torch.float16
    assert resampled.tolist() == [[0, 1], [1, 1], [2, 1], [5, 1], [8, 1]]
    assert resample_features(features[:1], 3).tolist() == [[0, 1]] * 3


def test_resample_features_of_nothing():
    with pytest.raises(ValueError, match=r"\(L, D\) with L >= 1, found \(0, 8\)"):
        resample_features(torch.zeros(0, 8), 4)
