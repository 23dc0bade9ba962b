"""What transformers' common tests ask of every video processor (its tests/test_video_processing_common.py), asked here.

Not applicable, and why:
* `test_call_sample_frames`: `do_sample_frames=False` and a rate to sample at. A SAIL reads `num_frames` frames by
  presentation time; the first is refused by a sentence (tested below), and `fps` is the rate of an array.
* `test_nested_input`: a list of arrays is a list of videos here, not the frames of one.
* `test_call_numpy_4_channels` for arrays: a video array has 3 channels, anything else is refused. For PIL images it
  applies, and is here.
* `test_video_processor_preprocess_arguments`: it looks for two ways of validation that this class does not use, and
  skips itself. Unknown arguments are errors here, tested below.
* `test_can_compile_fast_video_processor`: frames are decoded one by one in Python, which `torch.compile` cannot trace.
* `test_override_instance_attributes_does_not_affect_other_instances`: it skips itself where `size` is a `SizeDict`.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoVideoProcessor, BatchFeature
from transformers.processing_utils import VideosKwargs
from transformers.testing_utils import check_json_file_has_correct_format

from sail_hf import SailVideoProcessor, VideoError

OPTIONS = {
    "do_resize": True,
    "size": {"shortest_edge": 20},
    "do_center_crop": True,
    "crop_size": {"height": 18, "width": 18},
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "num_frames": 8,
}
SHAPES = [(30, 47), (80, 61), (33, 33)]


@pytest.fixture
def processor() -> SailVideoProcessor:
    return SailVideoProcessor(**OPTIONS)


def videos(kind: str) -> list:
    """Three videos of 8 frames, of different sizes, as `"pil"`, `"np"` (channels last) or `"torch"` (channels first)."""
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (8, *shape, 3), dtype=np.uint8) for shape in SHAPES]
    if kind == "pil":
        return [[Image.fromarray(frame) for frame in array] for array in arrays]
    return arrays if kind == "np" else [torch.from_numpy(array).permute(0, 3, 1, 2) for array in arrays]


def pixels(processor: SailVideoProcessor, video=None, **options) -> torch.Tensor:
    return processor(videos("np")[0] if video is None else video, fps=1, **options)["pixel_values_videos"]


# Saving and loading


def test_to_json_string_has_the_options(processor):
    content = json.loads(processor.to_json_string())
    assert {name: content[name] for name in OPTIONS} == OPTIONS


def test_json_file(processor, tmp_path):
    processor.to_json_file(tmp_path / "video_processor.json")
    assert SailVideoProcessor.from_json_file(tmp_path / "video_processor.json").to_dict() == processor.to_dict()


def test_from_dict_with_options_that_replace():
    processor = SailVideoProcessor.from_dict(OPTIONS)
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 20}, {"height": 18, "width": 18})
    processor = SailVideoProcessor.from_dict(OPTIONS, size=42, crop_size=84)
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 42}, {"height": 84, "width": 84})


@pytest.mark.parametrize("changes", [{}, {"do_resize": False, "do_normalize": False}, {"do_center_crop": False}])
@pytest.mark.parametrize("loader", [SailVideoProcessor, AutoVideoProcessor])
def test_save_and_load(tmp_path, loader, changes):
    processor = SailVideoProcessor(**OPTIONS | changes)
    (file,) = processor.save_pretrained(tmp_path)
    check_json_file_has_correct_format(file)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is SailVideoProcessor and loaded.to_dict() == processor.to_dict()
    assert torch.equal(pixels(loaded), pixels(processor))


def test_from_pretrained_with_options_that_replace(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = SailVideoProcessor.from_pretrained(tmp_path, do_normalize=False, num_frames=3)
    assert torch.equal(pixels(loaded), pixels(processor, do_normalize=False, num_frames=3))


def test_init_without_options():
    assert pixels(SailVideoProcessor()).shape == (1, 32, 3, 224, 224)


def test_none_survives_saving(tmp_path):
    processor = SailVideoProcessor(**OPTIONS | {"do_resize": None})
    assert processor.to_dict()["do_resize"] is None
    processor.save_pretrained(tmp_path)
    assert SailVideoProcessor.from_pretrained(tmp_path).do_resize is None


def test_instances_share_nothing():
    first, second = SailVideoProcessor(), SailVideoProcessor()
    first.size.shortest_edge, first.crop_size.height = 7, 5
    assert second.size == {"shortest_edge": 224} and second.crop_size == {"height": 224, "width": 224}
    assert SailVideoProcessor().size == {"shortest_edge": 224}


def test_valid_kwargs_are_those_of_transformers(processor):
    assert processor.valid_kwargs is VideosKwargs


# Calls


@pytest.mark.parametrize("kind", ["pil", "np", "torch"])
def test_call(processor, kind):
    assert pixels(processor, videos(kind)[0]).shape == (1, 8, 3, 18, 18)
    batch = pixels(processor, videos(kind))
    assert batch.shape == (3, 8, 3, 18, 18) and batch.dtype == torch.float32
    assert torch.equal(batch, pixels(processor, videos("np")))
    assert torch.equal(batch[1:2], pixels(processor, videos(kind)[1]))


def test_pil_images_of_four_channels(processor):
    images = [image.convert("RGBA") for image in videos("pil")[0]]
    found = pixels(processor, images, image_mean=0.0, image_std=1.0)
    assert torch.equal(found, pixels(processor, image_mean=0.0, image_std=1.0))
    assert 0 <= found.min() and found.max() <= 1


def test_cast_of_type_and_device(processor):
    encoding = processor(videos("torch"), fps=1)
    assert isinstance(encoding, BatchFeature)
    assert encoding.pixel_values_videos.device == torch.device("cpu")
    for cast in (encoding.to(torch.float16), processor(videos("torch"), fps=1).to("cpu", torch.float16)):
        assert cast.pixel_values_videos.dtype == torch.float16
        assert cast.video_attention_mask.dtype == torch.long
    with pytest.raises(TypeError):
        encoding.to(torch.bfloat16, "cpu")


@pytest.mark.parametrize(("framework", "kind"), [("pt", torch.Tensor), ("np", np.ndarray), (None, torch.Tensor)])
def test_return_tensors(processor, framework, kind):
    encoding = processor(videos("np"), fps=2, return_tensors=framework)
    assert {name: type(value) for name, value in encoding.items()} == dict.fromkeys(
        ["pixel_values_videos", "video_attention_mask", "durations"], kind
    )
    assert encoding["durations"].tolist() == [4.0] * 3


CHANGES = {
    "do_resize": {"do_resize": False},
    "do_rescale": {"do_rescale": False},
    "do_normalize": {"do_normalize": False},
    "do_center_crop": {"do_center_crop": False},
    "size": {"size": {"shortest_edge": 25}},
    "size of a number": {"size": 25},
    "size of a square": {"size": 25, "default_to_square": True},
    "size that squashes": {"size": {"height": 20, "width": 19}, "do_center_crop": False},
    "crop_size": {"crop_size": {"height": 10, "width": 16}},
    "resample": {"resample": Image.Resampling.NEAREST},
    "rescale_factor": {"rescale_factor": 1 / 127.5},
    "image_mean": {"image_mean": [0.1, 0.2, 0.3]},
    "image_std": {"image_std": [0.1, 0.2, 0.3]},
    "num_frames": {"num_frames": 3},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=list(CHANGES))
def test_an_option_does_the_same_in_the_call_as_at_construction_and_does_something(processor, changes):
    in_call, constructed = pixels(processor, **changes), pixels(SailVideoProcessor(**OPTIONS | changes))
    assert torch.equal(in_call, constructed)
    default = pixels(processor)
    assert in_call.shape != default.shape or not torch.equal(in_call, default)
    assert torch.equal(default, pixels(processor)), "an option of a call is for that call"


def test_each_step_does_what_it_says(processor):
    frame = videos("np")[0][:1]
    raw = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}
    unchanged = pixels(processor, frame, num_frames=1, **raw)
    assert unchanged.dtype == torch.uint8
    assert torch.equal(unchanged[0, 0], torch.from_numpy(frame[0]).permute(2, 0, 1))
    shapes = {"do_resize": (20, 31), "do_center_crop": (18, 18)}
    for step, shape in shapes.items():
        assert pixels(processor, frame, num_frames=1, **raw | {step: True}).shape[-2:] == shape
    scaled = pixels(processor, frame, num_frames=1, **raw | {"do_rescale": True})
    assert torch.allclose(scaled, unchanged / 255)
    normalised = pixels(processor, frame, num_frames=1, **raw | {"do_rescale": True, "do_normalize": True})
    mean, std = (torch.tensor(OPTIONS[name])[:, None, None] for name in ("image_mean", "image_std"))
    assert torch.allclose(normalised, (scaled - mean) / std, atol=1e-5)


def test_none_in_a_call_is_the_processors_own(processor):
    assert torch.equal(pixels(processor, num_frames=None, size=None, do_resize=None), pixels(processor))


def test_device():
    for encoding in (
        SailVideoProcessor(**OPTIONS, device="meta")(videos("np")[0], fps=1),
        SailVideoProcessor(**OPTIONS)(videos("np")[0], fps=1, device="meta"),
    ):
        assert {value.device.type for value in encoding.values()} == {"meta"}


def test_input_data_format(processor):
    ambiguous = np.random.default_rng(0).integers(0, 256, (4, 3, 20, 3), dtype=np.uint8)
    first = pixels(processor, ambiguous, input_data_format="channels_first")
    assert torch.equal(first, pixels(processor, np.ascontiguousarray(ambiguous.transpose(0, 2, 3, 1))))
    last = pixels(processor, ambiguous, input_data_format="channels_last")
    assert torch.equal(last, pixels(processor, ambiguous)) and not torch.equal(last, first)
    with pytest.raises(VideoError, match=r"input_data_format='channels_first' says, found shape \(8, 30, 47, 3\)"):
        pixels(processor, input_data_format="channels_first")


def test_frames_of_several_sizes_need_the_crop(processor):
    with pytest.raises(ValueError, match=r"one size, found \[\(20, 20\), \(20, 31\), \(26, 20\)\].*do_center_crop"):
        pixels(processor, videos("np"), do_center_crop=False)


# Refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"do_sample_frames": False}, "do_sample_frames=False cannot be honoured: frames are sampled"),
        ({"do_convert_rgb": False}, "do_convert_rgb=False cannot be honoured"),
        ({"do_pad": True}, "do_pad=True cannot be honoured"),
        ({"data_format": "channels_last"}, "data_format='channels_last' cannot be honoured"),
        ({"return_metadata": True}, "return_metadata=True cannot be honoured"),
        ({"video_metadata": {"fps": 3}}, "video_metadata=.* cannot be honoured: give the frame rate"),
        ({"num_frames": 0}, "num_frames of 1 or more, found 0"),
        ({"do_rescale": "yes"}, "do_rescale"),
        ({"num_frame": 3}, "num_frame: no option of SailVideoProcessor"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_the_call_and_at_construction(processor, options, words):
    for refuse in (lambda: pixels(processor, **options), lambda: SailVideoProcessor(**options)):
        with pytest.raises(Exception, match=words):
            refuse()


def test_what_is_so_anyway_is_accepted(processor):
    same = {"do_sample_frames": True, "do_convert_rgb": True, "do_pad": False, "data_format": "channels_first"}
    assert torch.equal(pixels(processor, **same), pixels(processor))
    assert torch.equal(pixels(SailVideoProcessor(**OPTIONS, **same)), pixels(processor))


def test_fps_at_construction_is_refused():
    with pytest.raises(ValueError, match="fps=25 cannot be honoured: it belongs to one array"):
        SailVideoProcessor(fps=25)
