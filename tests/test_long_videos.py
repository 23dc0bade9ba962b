"""Long videos: chunks by default, events across cuts, numbers of events, events as they come, progress, and what is said of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from colours import SENTENCES, frames, make_colour_clip, make_colour_model
from tiny import make_model, make_processor, make_tokenizer
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from sail_hf import SailForDenseVideoCaptioning, video_reading
from sail_hf.chunking import Chunk, chunk_bounds, events_a_chunk, join_chunks
from sail_hf.clip_sail import SailClip

TASK = "dense-video-captioning"
INFINITY = float("inf")


def make_pipe(processor, seed=3, **fields):
    """Masks that differ from event to event; a clip inside, as videos need one."""
    model = make_model(processor, seed=1, **fields)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.model.mask_generator.center_head.weight.normal_()
        model.model.mask_generator.width_head.weight.normal_()
    model.generation_config.update(num_beams=1, max_new_tokens=5, full_max_new_tokens=10)
    return pipeline(TASK, model=model, processor=processor)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_colour_clip(tmp_path_factory.mktemp("clip"))


def colour_processor():
    processor = make_processor()
    processor.tokenizer = make_tokenizer(list(SENTENCES.values()))
    return processor


@pytest.fixture(scope="module")
def pipe(processor, clip):
    pipe = make_pipe(processor, vision_config=clip.vision_config)
    pipe.model.model.vision_tower.load_state_dict(clip.model.visual.state_dict())
    return pipe


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    """Four minutes at a frame in two seconds."""
    return frames(("red", 3), ("green", 4), ("blue", 2), ("grey", 3))


FPS = 0.5


def spans(events):
    return [(event["start"], event["end"], event["text"]) for event in events]


def event(start, end, text, score=0.5):
    return {"start": start, "end": end, "text": text, "score": score}


# --- joining, by hand ---------------------------------------------------------------------------------------------

# 100 s in chunks of 50 s that overlap by 20 s: cuts at 40 and 65, where the chunks from 30 and from 50 begin to tell.
CHUNKS = [Chunk(0, 50, -INFINITY, 40), Chunk(30, 80, 40, 65), Chunk(50, 100, 65, INFINITY)]


def same_words(one, other):
    return one == other


def test_the_chunks_of_these_tests():
    assert chunk_bounds(100, 50, 10) == CHUNKS


def test_an_event_goes_on_across_cuts():
    """It fills the middle chunk, and ends in the last one; the sentence of the highest score is kept."""
    of_chunks = [
        [event(0, 10, "a"), event(20, 50, "long", 0.4)],
        [event(30, 80, "long", 0.9)],
        [event(50, 95, "long", 0.6), event(80, 90, "b")],
    ]
    joined = list(join_chunks(zip(CHUNKS, of_chunks, strict=True), same_words))
    # The first one ends before the second chunk begins; the long one may always go on.
    assert joined == [[event(0, 10, "a")], [], [event(20, 95, "long", 0.9), event(80, 90, "b")]]


@pytest.mark.parametrize(
    "second, expected",
    [
        (event(30, 60, "other"), [event(20, 35, "same"), event(30, 60, "other")]),  # another meaning
        (
            event(36, 60, "same"),
            [event(20, 35, "same"), event(36, 60, "same")],
        ),  # the same, but there is a gap between them
        (event(35, 60, "same"), [event(20, 60, "same")]),  # they touch
        (event(32, 45, "same"), [event(20, 35, "same")]),  # its centre is not the second chunk's to tell
    ],
)
def test_what_is_one_event(second, expected):
    first = event(20, 35, "same")
    found = list(join_chunks(zip(CHUNKS, [[first], [second], []], strict=True), same_words))
    assert [one for of_chunk in found for one in of_chunk] == expected


def test_events_of_one_chunk_are_not_joined():
    """Two events of the first chunk go on in one each of the second."""
    of_chunks = [
        [event(20, 45, "a", 0.8), event(25, 48, "a", 0.7)],
        [event(40, 60, "a", 0.1), event(41, 70, "a", 0.2)],
    ]
    joined = list(join_chunks(zip(chunk_bounds(80, 50, 10), of_chunks, strict=True), same_words))
    assert joined == [[], [event(20, 60, "a", 0.8), event(25, 70, "a", 0.7)]]


def test_the_events_of_a_chunk_for_a_number_in_the_video():
    assert events_a_chunk(4, chunk_bounds(10, None, None), 4) == 4
    # A chunk of half of the video, and there are three: half of the events, rounded up.
    assert [events_a_chunk(number, CHUNKS, 4) for number in (1, 2, 5, 12)] == [1, 1, 3, 4]
    with pytest.raises(ValueError, match="num_events.*1..12, found 13"):
        events_a_chunk(13, CHUNKS, 4)


# --- chunks by default --------------------------------------------------------------------------------------------


def test_a_long_video_is_captioned_in_chunks_and_that_is_said(pipe, video, caplog):
    """8 frames resolve a minute; these are four."""
    found = pipe(video, fps=FPS)
    assert "240 s are more than 8 frames resolve, so it is captioned in 6 chunks of 60 s" in caplog.text
    assert found == pipe(video, fps=FPS, chunk_length_s=60)
    assert len(found) > 4 and found[-1]["end"] > 200  # more than the queries of one pass
    assert found == sorted(found, key=lambda event: (event["start"], event["end"]))
    caplog.clear()
    at_once = pipe(video, fps=FPS, chunk_length_s=0)
    inputs = pipe.processor(video, fps=FPS)
    outputs = pipe.model.generate(pixel_values_videos=inputs["pixel_values_videos"])
    assert at_once == pipe.processor.post_process_dense_captioning(outputs, [240.0])[0]
    assert not caplog.text


def test_a_short_video_is_seen_at_once(pipe, video, caplog):
    short = video[:30]  # a minute
    found = pipe(short, fps=FPS)
    assert found == pipe(short, fps=FPS, chunk_length_s=0) and not caplog.text
    assert list(pipe.stream(short, fps=FPS)) == [found]


def test_the_configuration_says_how_long_chunks_are(processor, clip, video, tmp_path, caplog):
    pipe = make_pipe(processor, vision_config=clip.vision_config, chunk_length_s=130)
    pipe.save_pretrained(tmp_path)
    found = pipeline(TASK, model=str(tmp_path))(video, fps=FPS)
    assert "in 3 chunks of 130 s" in caplog.text
    assert found == pipe(video, fps=FPS, chunk_length_s=130)
    for number in (0, 240):
        assert pipe(video, fps=FPS, chunk_length_s=number) == pipe(video, fps=FPS, chunk_length_s=1000)
    with pytest.raises(ValueError, match=r"less than half of `chunk_length_s` \(-1\)"):
        make_pipe(processor, vision_config=clip.vision_config, chunk_length_s=-1)


def test_a_stride_that_does_not_fit_the_chunks_of_one_call(processor, clip):
    pipe = pipeline(
        TASK, model=make_pipe(processor).model, processor=processor, chunk_length_s=120, stride_length_s=40
    )
    with pytest.raises(ValueError, match=r"stride_length_s.*less than half of `chunk_length_s` \(60\), found 40"):
        pipe(np.zeros((200, 32, 32, 3), np.uint8), fps=1, chunk_length_s=60)


def test_captions_that_are_there_are_aligned_with_the_whole(processor, clip, video, caplog):
    clip.vision_config.include_text_tower = True
    pipe = make_pipe(processor, vision_config=clip.vision_config)
    pipe.model.model.add_clip(clip)
    captions = ["A red screen.", "Everything turns green.", "It ends in blue."]
    events = pipe(video, fps=FPS, captions=captions, frames_per_second=0.5)
    assert [event["text"] for event in events] == captions and not caplog.text
    np.testing.assert_allclose([event["start"] for event in events], [0, 60, 140], atol=2.1)


# --- the number of events is the video's --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 5, 9])
def test_a_number_of_events_is_for_the_video(pipe, video, number):
    events = pipe(video, fps=FPS, num_events=number)
    assert len(events) == number
    # Those of the highest scores, of what the chunks have for their share.
    more = pipe(video, fps=FPS, num_events=number + 1)
    assert min(event["score"] for event in events) >= min(event["score"] for event in more)
    assert list(pipe.stream(video, fps=FPS, num_events=number)) == [events]


def test_more_events_than_the_chunks_can_have(pipe, video):
    with pytest.raises(ValueError, match="num_events.*1..24, found 25"):
        pipe(video, fps=FPS, num_events=25)


def test_fewer_events_than_asked_for_are_said(pipe, video, caplog):
    events = pipe(video, fps=FPS, num_events=24)
    assert len(events) < 24 and f"Only {len(events)} of 24 events were found" in caplog.text


# --- as they come -------------------------------------------------------------------------------------------------


def test_events_come_chunk_by_chunk(pipe, video):
    read = []

    def read_frame(seconds):
        read.append(seconds[0])
        return SimpleNamespace(data=torch.from_numpy(video[int(seconds[0] / 2)]).permute(2, 0, 1)[None])

    metadata = SimpleNamespace(begin_stream_seconds=0.0, end_stream_seconds=240.0, average_fps=0.5)
    decoder = SimpleNamespace(metadata=metadata, get_frames_played_at=read_frame)
    parts, seen = [], []
    for events in pipe.stream(decoder):
        parts.append(events)
        seen.append(max(read))
    # When a chunk's events come, no frame after it has been read; none of them reaches into the next chunk.
    chunks = chunk_bounds(240, 60, None)
    np.testing.assert_allclose(seen, [chunk.end for chunk in chunks], atol=1e-5)
    for events, following in zip(parts, chunks[1:], strict=False):
        assert all(event["end"] < following.start for event in events)
    every = [event for events in parts for event in events]
    assert sorted(spans(every)) == sorted(spans(pipe(video, fps=FPS)))


def test_batches_of_chunks(pipe, video):
    alone, short = pipe(video, fps=FPS), pipe(video[:20], fps=FPS)
    for batch_size in (2, 5):
        long_one, short_one = pipe([video, video[:20]], fps=FPS, batch_size=batch_size)
        for found, wanted in ((long_one, alone), (short_one, short)):
            assert [event["text"] for event in found] == [event["text"] for event in wanted]
            np.testing.assert_allclose(
                [span[:2] for span in spans(found)], [span[:2] for span in spans(wanted)], atol=1e-3
            )


# --- one meaning --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steady(clip):
    """A model that says of every chunk that a red screen is in its middle half."""
    processor = colour_processor()
    model = make_colour_model(clip, processor, ["A red screen."], text_tower=False)
    with torch.no_grad():
        for head in (model.model.mask_generator.center_head, model.model.mask_generator.width_head):
            head.weight.zero_()
    return pipeline(TASK, model=model, processor=processor)


RED = np.full((120, 32, 32, 3), (200, 40, 40), np.uint8)


def test_the_same_words_are_one_meaning_where_there_is_no_text_tower(steady):
    """Chunks of 60 s from 0, 30 and 60, with events from 15 to 45, 45 to 75 and 75 to 105 s: they touch."""
    (one,) = steady(RED, fps=1, stride_length_s=15)
    assert (one["start"], one["end"]) == pytest.approx((15, 105))
    assert len(steady(RED, fps=1, stride_length_s=5)) == 3 - 1  # from 0 and 50, 60: the last two touch


@pytest.mark.parametrize("cosine, count", [(0.95, 1), (0.85, 3)])
def test_one_meaning_by_the_text_tower(steady, clip, monkeypatch, cosine, count):
    """The texts' features are made by hand; with other words they are as alike as these say."""
    features = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])
    monkeypatch.setattr(SailClip, "encode_texts", lambda self, texts: features)
    monkeypatch.setattr(steady.model.model, "text_tower", clip.model.text)
    assert len(steady(RED, fps=1, stride_length_s=15)) == count


# --- finer times --------------------------------------------------------------------------------------------------


def test_sentences_are_aligned_within_their_chunk(clip):
    """Colours change in the second half; the model says the same three sentences of each chunk."""
    processor = colour_processor()
    captions = ["A red screen.", "Everything turns green.", "It ends in blue."]
    pipe = pipeline(TASK, model=make_colour_model(clip, processor, captions), processor=processor)
    twice = frames(("red", 2), ("green", 2), ("blue", 2))
    twice = np.concatenate([twice, twice])
    options = {"fps": 1, "localization": "alignment", "frames_per_second": 1, "stride_length_s": 0}
    found = pipe(twice, **options)
    assert [event["text"] for event in found] == captions * 2
    edges = [0, 20, 40, 60, 80, 100, 120]
    np.testing.assert_allclose([event["start"] for event in found], edges[:-1], atol=1)
    np.testing.assert_allclose([event["end"] for event in found], edges[1:], atol=1)


# --- what is said -------------------------------------------------------------------------------------------------


@pytest.fixture
def bars(monkeypatch):
    """Bars of transformers on, however short the time."""
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    monkeypatch.setattr(video_reading, "_BAR_AFTER", 0)
    yield
    if not was_on:
        transformers_logging.disable_progress_bar()


def test_progress_inside_a_video(pipe, clip, video, bars, capsys):
    pipe(video, fps=FPS)
    shown = capsys.readouterr().err
    assert "the ndarray (120, 32, 32, 3)" in shown and "0/6" in shown
    clip.encode_video(video, 0.5, fps=FPS)
    assert "0/121" in capsys.readouterr().err
    transformers_logging.disable_progress_bar()
    pipe(video, fps=FPS)
    assert capsys.readouterr().err == ""


def test_a_model_says_that_it_knows_little(processor, clip, tmp_path, caplog):
    """Once, when it captions; a saved one too. What it does not say, it does not warn of."""
    short = np.zeros((8, 32, 32, 3), np.uint8)
    make_pipe(processor, vision_config=clip.vision_config, knows_only="a world of two dots").save_pretrained(tmp_path)
    pipe = pipeline(TASK, model=str(tmp_path))
    assert not caplog.text
    for _ in range(2):
        pipe(short, fps=1)
    assert caplog.text.count("This model knows only a world of two dots") == 1
    caplog.clear()
    make_pipe(processor, vision_config=clip.vision_config)(short, fps=1)
    assert not caplog.text


def test_a_checkpoint_of_before_has_neither_field(processor, clip, tmp_path):
    make_pipe(processor, vision_config=clip.vision_config).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["chunk_length_s"], content["knows_only"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = SailForDenseVideoCaptioning.from_pretrained(tmp_path).config
    assert (config.chunk_length_s, config.knows_only) == (None, None)
