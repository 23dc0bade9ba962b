"""The pipeline on rendered videos: every kind of input, batches, chunks; loading it with and without the package."""

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_video import render
from PIL import Image
from tiny import make_clip, make_model, make_processor
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from sail_hf import DenseVideoCaptioningPipeline, SailForDenseVideoCaptioning, SailProcessor, VideoError
from sail_hf.chunking import chunk_bounds
from sail_hf.video_reading import open_video

ROOT = Path(__file__).parents[1]
TASK = "dense-video-captioning"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A folder with a tiny random model, short captions, its processor and its CLIP."""
    folder = tmp_path_factory.mktemp("checkpoint")
    clip = make_clip(tmp_path_factory.mktemp("clip"))
    processor = make_processor()
    model = make_model(processor, vision_config=clip.vision_config)
    torch.manual_seed(3)
    with torch.no_grad():  # masks that differ from video to video and from event to event
        model.model.mask_generator.center_head.weight.normal_()
        model.model.mask_generator.width_head.weight.normal_()
    model.generation_config.update(num_beams=2, max_new_tokens=5, full_max_new_tokens=10)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return pipeline(TASK, model=str(checkpoint))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    """2, 1 and 1.2 seconds at 30 frames per second; each begins with another picture."""
    folder = tmp_path_factory.mktemp("videos")
    return [
        render(folder / "two.mp4"),
        render(folder / "one.mkv", num_frames=30, pts=list(range(0, 60, 2))[:30], fps=60),
        render(folder / "short.mp4", num_frames=36),
    ]


@pytest.fixture(scope="module")
def frames(videos) -> np.ndarray:
    """All 60 frames of the first video."""
    with open_video(videos[0]) as reader:
        return np.stack(list(reader.frames_at(np.arange(60) / 30)))


@pytest.fixture(scope="module")
def expected(pipe, videos):
    """Each video by itself."""
    return [pipe(str(video)) for video in videos]


def assert_same_events(found, wanted):
    assert [event["text"] for event in found] == [event["text"] for event in wanted]
    for name in ("start", "end", "score"):
        values = [event[name] for event in wanted]
        assert [event[name] for event in found] == pytest.approx(values, rel=1e-4, abs=1e-5)


# --- what comes out -----------------------------------------------------------------------------------------------


def test_events_are_sorted_and_lie_in_the_video(expected):
    for events, duration in zip(expected, [2.0, 1.0, 1.2], strict=True):
        assert events
        assert [event["start"] for event in events] == sorted(event["start"] for event in events)
        for event in events:
            assert list(event) == ["start", "end", "text", "score"]
            assert 0 <= event["start"] <= event["end"] <= duration + 1e-6
            assert 0 < event["score"] < 1 and isinstance(event["text"], str)
    # The videos differ, and so does what is found in them.
    assert expected[0] != expected[2]
    json.dumps(expected)


def test_the_pipeline_is_processor_model_and_post_processing(checkpoint, videos, expected):
    processor = SailProcessor.from_pretrained(checkpoint)
    model = SailForDenseVideoCaptioning.from_pretrained(checkpoint)
    for video, events in zip(videos, expected, strict=True):
        inputs = processor(video)
        outputs = model.generate(pixel_values_videos=inputs["pixel_values_videos"])
        (by_hand,) = processor.post_process_dense_captioning(outputs, inputs["durations"])
        assert_same_events(events, by_hand)


def test_the_task_is_registered(pipe):
    assert type(pipe) is DenseVideoCaptioningPipeline
    assert type(pipe.model) is SailForDenseVideoCaptioning and type(pipe.processor) is SailProcessor


# --- what goes in -------------------------------------------------------------------------------------------------


def fake_decoder(frames):
    """What the pipeline needs of a torchcodec `VideoDecoder` (which asks for FFmpeg's libraries): a stand-in."""
    metadata = SimpleNamespace(begin_stream_seconds=0.0, end_stream_seconds=2.0, average_fps=30.0)
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)

    def get_frames_played_at(seconds):
        return SimpleNamespace(data=torch.stack([pictures[int(second * 30)] for second in seconds]))

    return SimpleNamespace(metadata=metadata, get_frames_played_at=get_frames_played_at)


KINDS = {
    "str": lambda path, frames: (str(path), {}),
    "Path": lambda path, frames: (path, {}),
    "bytes": lambda path, frames: (path.read_bytes(), {}),
    "file": lambda path, frames: (path.open("rb"), {}),
    "BytesIO": lambda path, frames: (io.BytesIO(path.read_bytes()), {}),
    "dict of path": lambda path, frames: ({"path": str(path), "bytes": None}, {}),
    "dict of bytes": lambda path, frames: ({"path": None, "bytes": path.read_bytes()}, {}),
    "array": lambda path, frames: (frames, {"fps": 30}),
    "array, channels first": lambda path, frames: (frames.transpose(0, 3, 1, 2), {"fps": 30}),
    "tensor": lambda path, frames: (torch.from_numpy(frames), {"fps": 30.0}),
    "tensor, channels first": lambda path, frames: (torch.from_numpy(frames).permute(0, 3, 1, 2), {"fps": 30}),
    "images": lambda path, frames: ([Image.fromarray(frame) for frame in frames], {"fps": 30}),
    "decoder": lambda path, frames: (fake_decoder(frames), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_video(pipe, videos, frames, expected, kind):
    video, options = KINDS[kind](videos[0], frames)
    assert_same_events(pipe(video, **options), expected[0])


def test_a_list_of_image_lists_is_several_videos(pipe, frames, expected):
    images = [Image.fromarray(frame) for frame in frames]
    first, second = pipe([images, images], fps=30)
    assert_same_events(first, expected[0])
    assert_same_events(second, expected[0])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_a_list_in_batches(pipe, videos, expected, batch_size):
    found = pipe([str(video) for video in videos], batch_size=batch_size)
    assert len(found) == 3
    for events, wanted in zip(found, expected, strict=True):
        assert_same_events(events, wanted)


@pytest.mark.parametrize("kind", [tuple, iter, list])
def test_several_videos_of_any_kind(pipe, videos, expected, kind):
    found = pipe(kind([str(video) for video in videos]))
    for events, wanted in zip(found, expected, strict=True):
        assert_same_events(events, wanted)
    assert list(pipe(kind([]))) == []


def test_videos_in_a_worker_process(pipe, videos, expected):
    """tests/soak/soak_pipeline_workers.py shows that it cannot hang."""
    for events, wanted in zip(pipe([str(v) for v in videos], num_workers=2, batch_size=2), expected, strict=True):
        assert_same_events(events, wanted)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_generators_and_data_sets_stream(pipe, videos, expected, batch_size):
    paths = [str(video) for video in videos]
    read = []

    def one_by_one():
        for path in paths:
            read.append(path)
            yield path

    results = pipe(one_by_one(), batch_size=batch_size)
    assert_same_events(next(iter(results)), expected[0])
    assert len(read) <= batch_size + 1
    data = KeyDataset(Dataset.from_dict({"video": paths}), "video")
    for events, wanted in zip(pipe(data, batch_size=batch_size), expected, strict=True):
        assert_same_events(events, wanted)


def test_a_video_column_of_a_data_set(pipe, videos, expected):
    from datasets import Video

    data = Dataset.from_dict({"video": [str(video) for video in videos]}).cast_column("video", Video(decode=False))
    for events, wanted in zip(pipe(KeyDataset(data, "video")), expected, strict=True):
        assert_same_events(events, wanted)


def test_a_video_of_one_frame(pipe):
    events = pipe(np.zeros((1, 40, 40, 3), np.uint8), fps=2, num_events=2)
    assert len(events) == 2 and all(0 <= event["start"] <= event["end"] <= 0.5 for event in events)


def test_half_precision(checkpoint, videos, expected):
    half = pipeline(TASK, model=str(checkpoint), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    found = half(videos[0], num_events=2)
    full = pipeline(TASK, model=str(checkpoint))(videos[0], num_events=2)
    for name in ("start", "end"):
        assert [event[name] for event in found] == pytest.approx([event[name] for event in full], abs=0.1)


# --- parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_number_of_events_can_be_fixed(pipe, videos, count):
    assert len(pipe(videos[0], num_events=count)) == count
    assert [len(events) for events in pipe([str(v) for v in videos], num_events=count, batch_size=2)] == [count] * 3


def test_parameters_of_all_calls(checkpoint, videos):
    two = pipeline(TASK, model=str(checkpoint), num_events=2)
    assert len(two(videos[0])) == 2
    assert len(two(videos[0], num_events=3)) == 3
    assert len(two(videos[0])) == 2


def test_generation_arguments_replace_the_checkpoints(pipe, checkpoint, videos):
    texts = [event["text"] for event in pipe(videos[0], num_events=3)]
    longer = pipe(videos[0], num_events=3, generate_kwargs={"max_new_tokens": 12, "min_new_tokens": 12})
    assert all(len(event["text"]) > len(text) for event, text in zip(longer, texts, strict=True))
    assert [event["text"] for event in pipe(videos[0], num_events=3)] == texts
    # By their names, in the call and for all calls.
    by_name = pipe(videos[0], num_events=3, max_new_tokens=12, min_new_tokens=12)
    assert by_name == longer
    always = pipeline(TASK, model=str(checkpoint), num_events=3, max_new_tokens=12)
    assert_same_events(always(videos[0], min_new_tokens=12), longer)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_events": 0}, "num_events.*1..4.*0"),
        ({"num_events": 5}, "num_events.*1..4.*5"),
        ({"num_events": "3"}, "num_events.*whole number.*'3'"),
        ({"num_events": 2.5}, "num_events.*whole number.*2.5"),
        ({"num_events": True}, "num_events.*whole number.*True"),
        ({"chunk_length_s": "3"}, "chunk_length_s.*number.*'3'"),
        ({"frames_per_second": 2}, "frames_per_second.*captions.*alignment"),
        ({"alignment": "unordered"}, "alignment.*captions.*alignment"),
        ({"gap_level": 1.0}, "gap_level.*captions.*alignment"),
        ({"num_beams": 2, "generate_kwargs": {"num_beams": 1}}, "twice.*num_beams"),
        ({"chunk_length_s": -1}, "chunk_length_s"),
        ({"stride_length_s": 1, "chunk_length_s": 0}, "stride_length_s.*chunk_length_s"),
        ({"stride_length_s": 30}, "stride_length_s.*60.*30"),  # 7.5 s for each of 8 frames
        ({"chunk_length_s": 10, "stride_length_s": 5}, "stride_length_s.*10.*5"),
        ({"chunk_length_s": 10, "stride_length_s": -1}, "stride_length_s"),
        ({"generate_kwargs": {"beams": 3}}, "beams"),
        ({"fps": 25}, "fps"),
    ],
)
def test_parameters_that_make_no_sense(pipe, videos, options, words):
    with pytest.raises(ValueError, match=words):
        pipe(videos[0], **options)


def test_unknown_parameters_are_errors(pipe, videos):
    for options in ({"num_event": 3}, {"generate_kwargs": {"num_beam": 3}}, {"num_return_sequences": 2}):
        with pytest.raises(ValueError, match="|".join([*options, "num_beam"])) as error:
            pipe(videos[0], **options)
        assert "._" not in str(error.value) and "()" not in str(error.value)


@pytest.mark.parametrize(
    "video, options, words",
    [
        ("nowhere.mp4", {}, "nowhere.mp4"),
        (b"", {}, "empty"),
        (b"this is no video", {}, "16 bytes"),
        (np.zeros((4, 32, 32, 3), np.uint8), {}, "fps"),
        (np.zeros((4, 32, 32, 3), np.float32), {"fps": 2}, "uint8.*float32"),
        (np.zeros((32, 32, 3), np.uint8), {"fps": 2}, r"\(32, 32, 3\)"),
        (7, {}, "int"),
    ],
    ids=["missing", "empty", "text", "no-fps", "dtype", "shape", "type"],
)
def test_videos_that_cannot_be_read(pipe, video, options, words):
    with pytest.raises(VideoError, match=words):
        pipe(video, **options)


# --- long videos --------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    duration=st.floats(0.5, 5000),
    chunk=st.floats(0.5, 600),
    stride=st.none() | st.floats(0, 0.45),
)
def test_chunks_cover_a_video_and_their_cores_tile_it(duration, chunk, stride):
    stride = None if stride is None else stride * chunk
    bounds = chunk_bounds(duration, chunk, stride)
    overlap = 2 * (chunk / 6 if stride is None else stride)
    if duration <= chunk:
        assert bounds == [(0.0, duration, -np.inf, np.inf)]
        return
    starts, ends, lows, highs = (np.array(column) for column in zip(*bounds, strict=True))
    tolerance = 1e-6 * duration
    assert starts[0] == 0 and abs(ends[-1] - duration) <= tolerance
    np.testing.assert_allclose(ends - starts, chunk, atol=tolerance)
    assert (np.diff(starts) > 0).all()
    # Neighbours share the strides of both at least, and no more chunks are made than that takes.
    assert (ends[:-1] - starts[1:] >= overlap - tolerance).all()
    assert len(bounds) == max(2, np.ceil((duration - chunk) / (chunk - overlap) - 1e-9) + 1)
    # Cores lie on after the other, each inside of its chunk by a stride, from -inf to inf.
    assert lows[0] == -np.inf and highs[-1] == np.inf
    assert (lows[1:] == highs[:-1]).all()
    assert (lows[1:] >= starts[1:] + overlap / 2 - tolerance).all()
    assert (highs[:-1] <= ends[:-1] - overlap / 2 + tolerance).all()


def test_chunks_by_hand():
    inf = float("inf")
    # 10 s in chunks of 4 s that overlap by 1 s on each side: from 0, 2, 4, 6; cut in the middle of each overlap.
    assert chunk_bounds(10, 4, 1) == [(0, 4, -inf, 3), (2, 6, 3, 5), (4, 8, 5, 7), (6, 10, 7, inf)]
    # 9 s: the last chunk moves back to end with the video, from 5; it shares 3 s with the one from 4.
    assert chunk_bounds(9, 4, 1) == [(0, 4, -inf, 3), (2, 6, 3, 5), (4, 8, 5, 6.5), (5, 9, 6.5, inf)]
    # A sixth of the length by default: 6 s in chunks of 3 s, from 0, 2, 3.
    assert chunk_bounds(6, 3, None) == [(0, 3, -inf, 2.5), (2, 5, 2.5, 4), (3, 6, 4, inf)]
    assert chunk_bounds(10, None, None) == [(0, 10, -inf, inf)]
    assert chunk_bounds(4, 4, 1) == [(0, 4, -inf, inf)]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_long_video_chunk_by_chunk(pipe, videos, batch_size):
    """The same as each chunk captioned by hand, the events whose centre lies in its core kept."""
    chunk, stride = 0.8, 0.3
    wanted, found_in_chunks = [], 0
    for start, end, low, high in chunk_bounds(2.0, chunk, stride):
        inputs = pipe.processor(videos[0], start=start, end=end)
        outputs = pipe.model.generate(pixel_values_videos=inputs["pixel_values_videos"])
        (events,) = pipe.processor.post_process_dense_captioning(outputs, [end - start], [start])
        found_in_chunks += len(events)
        wanted += [event for event in events if low <= (event["start"] + event["end"]) / 2 < high]
    found = pipe(videos[0], chunk_length_s=chunk, stride_length_s=stride, batch_size=batch_size)
    assert_same_events(found, sorted(wanted, key=lambda event: (event["start"], event["end"])))
    assert 0 < len(found) < found_in_chunks  # some lie in an overlap and are another chunk's to tell
    assert max(event["end"] for event in found) > 1.2 and all(event["end"] <= 2 for event in found)


def test_short_videos_are_one_chunk(pipe, videos, expected):
    found = pipe([str(video) for video in videos], chunk_length_s=2.5, batch_size=2)
    for events, wanted in zip(found, expected, strict=True):
        assert_same_events(events, wanted)


def test_long_and_short_videos_in_one_call(pipe, videos, expected):
    options = {"chunk_length_s": 1.3, "stride_length_s": 0.2}
    alone = [pipe(video, **options) for video in videos]
    together = pipe([str(video) for video in videos], batch_size=2, **options)
    for events, wanted in zip(together, alone, strict=True):
        assert_same_events(events, wanted)
    assert_same_events(together[1], expected[1])


# --- one folder, with the package and without, and no network -----------------------------------------------------

NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise OSError("this test has no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""
CAPTION = """
import json, sys
from transformers import (AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor, AutoVideoProcessor, pipeline)
folder, video, trust = sys.argv[1], sys.argv[2], {"trust_remote_code": True} if sys.argv[3] == "remote" else {}
pipe = pipeline("dense-video-captioning", model=folder, **trust)
classes = [AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor, AutoVideoProcessor]
found = [type(auto.from_pretrained(folder, **trust)) for auto in classes]
print(json.dumps({
    "events": pipe(video),
    "classes": [cls.__name__ for cls in found],
    "modules": sorted({cls.__module__.split(".")[0] for cls in [*found, type(pipe), type(pipe.model)]}),
}))
"""
PUSH = """
import sys
import sail_hf
from transformers import pipeline
sail_hf.SailConfig.register_for_auto_class()
sail_hf.SailForDenseVideoCaptioning.register_for_auto_class("AutoModelForMultimodalLM")
sail_hf.SailProcessor.register_for_auto_class()
sail_hf.SailVideoProcessor.register_for_auto_class("AutoVideoProcessor")
pipe = pipeline("dense-video-captioning", model=sys.argv[1])
pipe.model.config.auto_map = {"AutoModel": "modeling_sail.SailModel"}
pipe.save_pretrained(sys.argv[2])
pipe.processor.save_pretrained(sys.argv[2])
"""
WITHOUT_PACKAGE = """
import sys
sys.modules["sail_hf"] = None  # as if it were not installed
try:
    import sail_hf
except ImportError:
    pass
else:
    raise SystemExit("sail_hf can be imported here")
"""


def run_python(script, *arguments, folder, with_package) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(folder / "modules")
    if with_package:
        environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("route", ["installed", "remote"])
def test_a_folder_without_network(checkpoint, videos, expected, tmp_path, route):
    """In a process of its own: by the installed package, and by the code in the folder where there is no package."""
    if route == "installed":
        script, folder = NO_NETWORK + "import sail_hf" + CAPTION, checkpoint
    else:
        script, folder = NO_NETWORK + WITHOUT_PACKAGE + CAPTION, tmp_path / "pushed"
        run_python(PUSH, checkpoint, folder, folder=tmp_path, with_package=True)
    output = run_python(script, folder, videos[0], route, folder=tmp_path, with_package=route == "installed")
    result = json.loads(output.splitlines()[-1])
    assert_same_events(result["events"], expected[0])
    assert result["classes"] == [
        "SailConfig",
        "SailModel",
        "SailForDenseVideoCaptioning",
        "SailProcessor",
        "SailVideoProcessor",
    ]
    assert result["modules"] == ["sail_hf" if route == "installed" else "transformers_modules"]


def test_no_pickles_are_saved(checkpoint):
    endings = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert endings <= {".safetensors", ".json", ".jinja", ".txt", ".py"}
