"""Captions aligned to frames, in a world of plain colours where it is known where each belongs."""

import io

import numpy as np
import pytest
import torch
from colours import (
    BLUE,
    FPS,
    GREEN,
    GREY,
    RED,
    SENTENCES,
    frames,
    make_colour_clip,
    make_colour_model,
    write_video,
)
from PIL import Image
from tiny import make_clip, make_processor, make_tokenizer
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from sail_hf import SailForDenseVideoCaptioning, VideoError
from sail_hf.alignment_sail import align_ordered
from sail_hf.loss_sail import cosines
from sail_hf.video_processing_sail import SailVideoProcessor

TASK = "dense-video-captioning"
CAPTIONS = [RED, GREEN, BLUE]
SCENES = (("red", 1.5), ("green", 3.0), ("blue", 1.5))
SPANS = [(0, 1.5), (1.5, 4.5), (4.5, 6)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("colours") / "clip"


@pytest.fixture(scope="module")
def clip(clip_folder):
    return make_colour_clip(clip_folder)


@pytest.fixture(scope="module")
def processor():
    processor = make_processor()
    processor.tokenizer = make_tokenizer([*SENTENCES.values(), "1 events: 3 events: "])
    return processor


@pytest.fixture(scope="module")
def model(clip, processor):
    return make_colour_model(clip, processor, CAPTIONS)


@pytest.fixture(scope="module")
def pipe(model, processor):
    return pipeline(TASK, model=model, processor=processor)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "colours.mp4", *SCENES)


def times(events):
    return [(event["start"], event["end"]) for event in events]


def features_of(clip, *scenes, num_frames=8):
    """CLIP features `(num_frames, D)` of frames spread evenly over scenes."""
    pictures = frames(*scenes)
    chosen = pictures[np.linspace(0, len(pictures) - 1, num_frames).round().astype(int)]
    return clip.encode_images(SailVideoProcessor.from_vision_config(clip.vision_config).process_frames(chosen))


# --- given captions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate, tolerance", [(2, 0.3), (10, 0.11)])
def test_captions_lie_where_they_belong(pipe, video, rate, tolerance):
    events = pipe(video, captions=CAPTIONS, frames_per_second=rate)
    assert [event["text"] for event in events] == CAPTIONS
    assert np.abs(np.array(times(events)) - SPANS).max() <= tolerance
    assert all(list(event) == ["start", "end", "text", "gain"] and event["gain"] > 0.1 for event in events)


def test_two_frames_a_second_are_the_default(pipe, video):
    assert pipe(video, captions=CAPTIONS) == pipe(video, captions=CAPTIONS, frames_per_second=2)


def test_what_no_caption_fits_is_left_out(clip, tmp_path):
    video = write_video(tmp_path / "gap.mp4", ("red", 2), ("grey", 2), ("blue", 2))
    events = clip.align(video, [RED, BLUE], frames_per_second=5, gap_level=0.5)
    assert np.abs(np.array(times(events)) - [(0, 2), (4, 6)]).max() <= 0.21
    tiled = clip.align(video, [RED, BLUE], frames_per_second=5, gap_level=-np.inf)
    assert tiled[0]["end"] == pytest.approx(tiled[1]["start"]) and tiled[1]["end"] == pytest.approx(6)


def test_captions_out_of_order(pipe, clip, video):
    shuffled = [BLUE, RED, GREEN]
    found = clip.align(video, shuffled, alignment="unordered", frames_per_second=5)
    assert [event["text"] for event in found] == shuffled
    assert np.abs(np.array(times(found)) - [SPANS[2], SPANS[0], SPANS[1]]).max() <= 0.21
    # The pipeline sorts by start, as always.
    events = pipe(video, captions=shuffled, alignment="unordered", frames_per_second=5)
    assert [event["text"] for event in events] == CAPTIONS
    # In the order given, at most two of the three can lie where they belong.
    ordered = pipe(video, captions=shuffled, frames_per_second=5)
    assert [event["text"] for event in ordered] == shuffled and times(ordered) == sorted(times(ordered))


def test_the_mean_gain(clip, video):
    (red, blue) = clip.align(video, [RED, BLUE], frames_per_second=5)
    pictures = features_of(clip, *SCENES, num_frames=31)
    similarities = cosines(clip.encode_texts([RED, BLUE])[None], pictures[None])
    # Encoded and decoded video differs from the pictures a little.
    assert [red["gain"], blue["gain"]] == pytest.approx(align_ordered(similarities).gains[0].tolist(), abs=0.05)
    # Captions that say the same fit no frame better than each other.
    twins = clip.align(video, [RED, RED], frames_per_second=5)
    assert [event["gain"] for event in twins] == pytest.approx([0, 0], abs=1e-6)
    assert twins[0]["end"] <= twins[1]["start"] + 1e-6


def test_frames_are_encoded_a_few_at_a_time(clip, video, monkeypatch):
    """However many frames there are; and the result is that of all at once."""
    batches, encode = [], clip.encode_images
    monkeypatch.setattr(clip, "encode_images", lambda pixels: batches.append(len(pixels)) or encode(pixels))
    events = clip.align(video, CAPTIONS, frames_per_second=40)
    assert sum(batches) == 6 * 40 + 1 and max(batches) <= 64
    assert np.abs(np.array(times(events)) - SPANS).max() <= 0.11


def test_more_captions_than_frames(clip):
    """Frames are shown more than once then: 20 captions share half a second."""
    events = clip.align(frames(("red", 0.5)), [RED] * 20, fps=FPS)
    assert len(events) == 20 and times(events) == sorted(times(events))
    assert events[0]["start"] == 0 and all(event["start"] < event["end"] for event in events)


def test_one_caption(clip, video):
    ((start, end),) = times(clip.align(video, [GREEN], frames_per_second=10))
    assert abs(start - 1.5) <= 0.11 and abs(end - 4.5) <= 0.11


def test_several_videos_and_other_kinds(pipe, video, tmp_path):
    other = write_video(tmp_path / "other.mp4", ("blue", 1), ("red", 2))
    alone = [pipe(video, captions=CAPTIONS), pipe(str(other), captions=(BLUE, RED))]
    captions = [CAPTIONS, (BLUE, RED)]
    assert pipe([video, other], captions=captions, batch_size=2) == alone
    assert pipe([str(video), other], captions=iter(captions)) == alone
    lazy = iter(pipe((path for path in [video, other]), captions=captions))
    assert next(lazy) == alone[0] and list(lazy) == alone[1:]
    assert pipe([], captions=[]) == []
    with video.open("rb") as file:
        assert pipe(file, captions=CAPTIONS) == alone[0]
    pictures = frames(*SCENES)
    from_array = pipe(pictures, fps=FPS, captions=CAPTIONS)
    assert np.abs(np.array(times(from_array)) - SPANS).max() <= 0.3
    assert pipe([Image.fromarray(image) for image in pictures], fps=FPS, captions=CAPTIONS) == from_array


@pytest.mark.parametrize(
    "captions, options, error, words",
    [
        ([], {}, ValueError, "at least one"),
        ([RED, "  "], {}, ValueError, "empty"),
        (RED, {}, ValueError, "list of sentences"),
        ([[RED], [BLUE]], {}, ValueError, "list of sentences"),
        ([RED], {"frames_per_second": 0}, ValueError, "frames_per_second.*0"),
        ([RED], {"frames_per_second": float("inf")}, ValueError, "frames_per_second.*inf"),
        ([RED], {"alignment": "sideways"}, ValueError, "ordered, overlapping, unordered.*sideways"),
        ([RED], {"gap_level": float("nan")}, ValueError, "gap_level"),
        ([RED], {"num_events": 2}, ValueError, "Nothing is generated.*num_events"),
        ([RED], {"num_beams": 2, "localization": "alignment"}, ValueError, "localization, num_beams"),
        ([RED], {"fps": 25}, VideoError, "fps"),
    ],
)
def test_captions_that_make_no_sense(pipe, video, captions, options, error, words):
    with pytest.raises(error, match=words):
        pipe(video, captions=captions, **options)


def test_every_video_needs_its_captions(pipe, video):
    with pytest.raises(ValueError, match="each of 2 videos, found 3"):
        pipe([video, video], captions=CAPTIONS)
    with pytest.raises(ValueError, match="list of sentences"):
        pipe([video, video, video], captions=CAPTIONS)
    with pytest.raises(VideoError, match="nowhere.mp4"):
        pipe("nowhere.mp4", captions=CAPTIONS)


# --- the text tower -----------------------------------------------------------------------------------------------


def test_the_text_tower_is_loaded_by_name_where_it_is_missing(clip, processor, pipe, video, tmp_path):
    model = make_colour_model(clip, processor, CAPTIONS, text_tower=False)
    model.save_pretrained(tmp_path / "without")
    processor.save_pretrained(tmp_path / "without")
    loaded = pipeline(TASK, model=str(tmp_path / "without"))
    assert loaded.model.model.text_tower is None
    loaded.model.save_pretrained(tmp_path / "before")
    assert loaded(video, captions=CAPTIONS) == pipe(video, captions=CAPTIONS)
    # Inference changes nothing about what is saved.
    loaded.model.save_pretrained(tmp_path / "after")
    before, after = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("before", "after")
    )
    assert before == after


def test_a_clip_that_is_gone_or_another(clip, processor, video, tmp_path):
    model = make_colour_model(clip, processor, CAPTIONS, text_tower=False)
    pipe = pipeline(TASK, model=model, processor=processor)
    model.config.vision_config.clip = str(tmp_path / "gone")
    with pytest.raises(ValueError, match="without CLIP's text tower.*gone.*include_text_tower"):
        pipe(video, captions=CAPTIONS)
    make_clip(tmp_path / "other")
    model.config.vision_config.clip = str(tmp_path / "other")
    with pytest.raises(ValueError, match="other' has other weights"):
        pipe(video, localization="alignment")
    assert model.model.text_tower is None and not model.config.vision_config.include_text_tower


# --- generated captions -------------------------------------------------------------------------------------------


def texts_of(processor, outputs):
    return processor.tokenizer.batch_decode(outputs.sequences, skip_special_tokens=True)


def test_sentences_of_the_whole_video_are_aligned(model, processor, clip):
    features = features_of(clip, *SCENES)[None]
    options = {"localization": "alignment", "tokenizer": processor.tokenizer}
    outputs = model.generate(video_features=features, **options)
    (full,) = processor.tokenizer.batch_decode(outputs.full_sequences, skip_special_tokens=True)
    assert full == f"3 events: {' '.join(CAPTIONS)}"
    assert texts_of(processor, outputs) == CAPTIONS
    expected = align_ordered(cosines(clip.encode_texts(CAPTIONS)[None], features))
    # 8 frames over 6 s: two show red, four green, two blue.
    assert expected.segments.tolist() == [[[0, 2], [2, 6], [6, 8]]]
    torch.testing.assert_close(outputs.event_centers, expected.centers)
    torch.testing.assert_close(outputs.event_widths, expected.widths)
    masks = model.model.make_masks(expected.centers, expected.widths, torch.ones(1, 8))
    torch.testing.assert_close(outputs.event_masks, masks)


def test_scores_of_the_sentences_of_the_whole_video(model, processor, clip):
    """The geometric mean of the tokens' probabilities, each given all before it."""
    features = features_of(clip, *SCENES)[None]
    options = {"localization": "alignment", "tokenizer": processor.tokenizer}
    outputs = model.generate(video_features=features, **options)
    labels = processor.caption_labels(CAPTIONS)["full_labels"]
    encoded = model.model.video_encoder(features, torch.ones(1, 8))
    log_probs = []
    for end in range(1, len(labels)):
        logits = model.caption_logits(encoded, torch.ones(1, 8), torch.tensor([labels[:end]]))[0, -1]
        log_probs.append(logits.log_softmax(-1)[labels[end]].item())
    start = len(processor.tokenizer("<FULL>3 events: ")["input_ids"])
    for caption, score in zip(CAPTIONS, outputs.scores.tolist(), strict=True):
        length = len(processor.tokenizer(caption)["input_ids"])
        assert score == pytest.approx(np.exp(np.mean(log_probs[start - 1 : start - 1 + length])), rel=1e-4)
        start += length + 1


def test_frames_left_out_by_the_gap_level(model, processor, clip):
    features = features_of(clip, ("red", 2), ("grey", 2), ("green", 1), ("blue", 1))[None]
    options = {"localization": "alignment", "tokenizer": processor.tokenizer}
    widths = [
        model.generate(video_features=features, gap_level=level, **options).event_widths.sum().item()
        for level in (-100.0, 0.5)
    ]
    assert widths[0] == pytest.approx(1, abs=1e-4) and widths[1] < 0.9


def test_a_batch_is_its_videos(model, processor, clip):
    rows = [features_of(clip, *SCENES), features_of(clip, ("red", 4), ("green", 1), ("blue", 1), num_frames=6)]
    rows.append(features_of(clip, *SCENES, num_frames=2))
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    options = {"localization": "alignment", "tokenizer": processor.tokenizer}
    together = model.generate(video_features=batch, video_attention_mask=mask, **options)
    # A video has no more events than frames.
    assert together.num_events.tolist() == [3, 3, 2]
    sentences = iter(texts_of(processor, together))
    for index, row in enumerate(rows):
        alone = model.generate(video_features=row[None], **options)
        count = alone.num_events.item()
        torch.testing.assert_close(together.event_centers[index, :count], alone.event_centers[0])
        torch.testing.assert_close(together.event_widths[index, :count], alone.event_widths[0])
        assert not together.event_masks[index, count:].any() and not together.event_masks[index, :, len(row) :].any()
        assert texts_of(processor, alone) == [next(sentences) for _ in range(count)]


def test_the_number_of_events_given(model, processor, clip):
    """Of more sentences the first count; a video whose caption has fewer falls back on the mask generator."""
    features = features_of(clip, *SCENES)[None].repeat(3, 1, 1)
    counts = torch.tensor([2, 3, 4])
    options = {"tokenizer": processor.tokenizer, "num_events": counts}
    outputs = model.generate(video_features=features, localization="alignment", **options)
    assert outputs.num_events.tolist() == [2, 3, 4] and len(outputs.sequences) == 9
    first_two = align_ordered(cosines(clip.encode_texts(CAPTIONS[:2])[None], features[:1]))
    torch.testing.assert_close(outputs.event_centers[0, :2], first_two.centers[0])
    assert texts_of(processor, outputs)[:5] == [*CAPTIONS[:2], *CAPTIONS]
    masks = model.generate(video_features=features, localization="masks", **options)
    torch.testing.assert_close(outputs.event_centers[2], masks.event_centers[2])
    torch.testing.assert_close(outputs.event_masks[2], masks.event_masks[2])
    torch.testing.assert_close(outputs.scores[5:], masks.scores[5:])
    assert texts_of(processor, outputs)[5:] == texts_of(processor, masks)[5:]


@pytest.mark.parametrize("captions", [[RED, RED, GREEN, BLUE], [GREY]], ids=["repeated", "one"])
def test_repeated_and_single_sentences(clip, processor, captions):
    model = make_colour_model(clip, processor, captions, num_queries=2)
    features = features_of(clip, *SCENES)[None]
    outputs = model.generate(
        video_features=features, localization="alignment", tokenizer=processor.tokenizer, no_repeat_ngram_size=0
    )
    # More events than the mask generator has queries are no trouble: it is not asked.
    assert outputs.num_events.tolist() == [len(captions)]
    assert (outputs.event_widths > 0).all() and (outputs.event_centers.diff() > 0).all()


def test_a_whole_video_caption_without_sentences(model, processor, clip):
    """Cut off before the first sentence ends: one event, by the mask generator."""
    features = features_of(clip, *SCENES)[None]
    options = {"full_min_new_tokens": 1, "full_max_new_tokens": 1, "tokenizer": processor.tokenizer}
    outputs = model.generate(video_features=features, localization="alignment", **options)
    masks = model.generate(video_features=features, localization="masks", **options)
    assert outputs.num_events.tolist() == [1]
    torch.testing.assert_close(outputs.event_masks, masks.event_masks)
    assert torch.equal(outputs.sequences, masks.sequences)


def test_given_captions_are_in_order_whatever_the_checkpoint_does_with_its_own(pipe, video):
    captions = ["A red scene.", "A green scene.", "A red scene."]
    expected = pipe(video, captions=captions)
    config = pipe.model.generation_config
    config.alignment, config.gap_level = "unordered", 0.75
    try:
        assert pipe(video, captions=captions) == expected
        assert pipe(video, captions=captions, alignment="unordered") != expected
    finally:
        config.alignment, config.gap_level = "ordered", 0.0


def test_localization_travels_with_the_generation_config(model, processor, video, tmp_path):
    copy = SailForDenseVideoCaptioning(model.config).eval()
    copy.load_state_dict(model.state_dict())
    copy.generation_config.update(
        localization="alignment", gap_level=0.25, num_beams=1, max_new_tokens=6, full_max_new_tokens=60
    )
    copy.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline(TASK, model=str(tmp_path))
    loaded = pipe.model.generation_config
    assert (loaded.localization, loaded.gap_level) == ("alignment", 0.25)
    aligned, by_masks = pipe(video), pipe(video, localization="masks")
    assert times(aligned) != times(by_masks)
    # 8 frames over 6 s: boundaries are known to half a step of 0.86 s.
    assert np.abs(np.array(times(pipe(video, gap_level=0))) - SPANS).max() <= 0.44
    assert pipeline(TASK, model=str(tmp_path), localization="masks")(video) == by_masks
    assert pipe(video, generate_kwargs={"localization": "masks"}) == by_masks


def test_pipeline_by_alignment_in_batches_and_chunks(pipe, video, tmp_path):
    other = write_video(tmp_path / "other.mp4", ("red", 4), ("green", 1), ("blue", 1))
    alone = [pipe(path, localization="alignment") for path in (video, other)]
    together = pipe([video, other], localization="alignment", batch_size=2)
    for found, wanted in zip(together, alone, strict=True):
        assert [event["text"] for event in found] == [event["text"] for event in wanted]
        np.testing.assert_allclose(times(found), times(wanted), atol=1e-5)
    chunks = pipe(video, localization="alignment", chunk_length_s=3, stride_length_s=0.5)
    assert times(chunks) == sorted(times(chunks)) and all(0 <= start <= end <= 6 for start, end in times(chunks))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"localization": "alignment"}, "tokenizer"),
        ({"localization": "sideways"}, "masks.*alignment.*sideways"),
    ],
)
def test_generation_that_makes_no_sense(model, clip, options, words):
    with pytest.raises(ValueError, match=words):
        model.generate(video_features=features_of(clip, *SCENES)[None], **options)


def test_pipeline_localization_that_does_not_exist(pipe, video):
    with pytest.raises(ValueError, match="sideways"):
        pipe(video, localization="sideways")


# --- finer times for generated captions ---------------------------------------------------------------------------


def test_generated_captions_at_a_finer_rate(pipe, video, tmp_path):
    """8 frames over 6 s leave boundaries open by up to 0.43 s, ten a second by 0.05 s."""
    options = {"localization": "alignment", "frames_per_second": 10}
    coarse, fine = pipe(video, localization="alignment"), pipe(video, **options)
    assert [event["text"] for event in fine] == CAPTIONS
    assert np.abs(np.array(times(coarse)) - SPANS).max() > np.abs(np.array(times(fine)) - SPANS).max()
    assert np.abs(np.array(times(fine)) - SPANS).max() <= 0.11
    # The score is still that of the sentence.
    assert [event["score"] for event in fine] == [event["score"] for event in coarse]
    other = write_video(tmp_path / "other.mp4", ("red", 4), ("green", 1), ("blue", 1))
    alone = [fine, pipe(other, **options)]
    kinds = {
        "list": [video, other],
        "generator": (path for path in [video, other]),
        "data set": KeyDataset([{"video": video}, {"video": other}], "video"),
        "bytes": [path.read_bytes() for path in (video, other)],
        "files": [io.BytesIO(path.read_bytes()) for path in (video, other)],
    }
    for name, videos in kinds.items():
        for found, wanted in zip(pipe(videos, batch_size=2, **options), alone, strict=True):
            assert [event["text"] for event in found] == [event["text"] for event in wanted], name
            np.testing.assert_allclose(times(found), times(wanted), atol=1e-5)
    pictures = frames(*SCENES)
    assert np.abs(np.array(times(pipe(pictures, fps=FPS, **options))) - SPANS).max() <= 0.11
    assert len(pipe([Image.fromarray(image) for image in pictures], fps=FPS, **options)) == 3


def test_a_finer_rate_uses_the_gap_level_of_the_generation_config(pipe, tmp_path):
    video = write_video(tmp_path / "gap.mp4", ("red", 2), ("green", 1), ("grey", 2), ("blue", 1))
    options = {"localization": "alignment", "frames_per_second": 5}
    widths = [
        sum(end - start for start, end in times(pipe(video, generate_kwargs={"gap_level": level}, **options)))
        for level in (-100.0, 0.5)
    ]
    assert widths[0] == pytest.approx(6, abs=1e-3) and widths[1] < 5.5


def test_a_finer_rate_uses_the_order_of_the_generation_config(pipe, tmp_path):
    """The model says red, green, blue; the video shows them the other way round."""
    video = write_video(tmp_path / "reversed.mp4", *SCENES[::-1])
    options = {"localization": "alignment", "frames_per_second": 10}
    found = pipe(video, generate_kwargs={"alignment": "unordered"}, **options)
    assert [event["text"] for event in found] == CAPTIONS[::-1]
    assert np.abs(np.array(times(found)) - SPANS).max() <= 0.11
    assert [event["text"] for event in pipe(video, **options)] == CAPTIONS


@pytest.mark.parametrize("options", [{"captions": CAPTIONS}, {"localization": "alignment", "chunk_length_s": 4}])
def test_a_video_is_opened_once(pipe, video, options, monkeypatch):
    """And read in pieces of a few frames, of which a batch may hold several kinds; `pipe` and `SailClip.align` agree."""
    import sail_hf.pipeline_sail as module

    opened, original = [], module.open_video
    monkeypatch.setattr(module, "open_video", lambda video, fps: opened.append(video) or original(video, fps=fps))
    alone = pipe(video, frames_per_second=10, **options)
    assert opened == [video]
    for batch_size in (2, 3, 5):
        together = pipe(video, frames_per_second=10, batch_size=batch_size, **options)
        assert [event["text"] for event in together] == [event["text"] for event in alone]
        np.testing.assert_allclose(times(together), times(alone), atol=1e-5)
    if "captions" in options:
        by_clip = pipe.model.model.get_clip().align(video, CAPTIONS, frames_per_second=10)
        np.testing.assert_allclose(times(alone), times(by_clip), atol=1e-5)
        assert [event["gain"] for event in alone] == pytest.approx([event["gain"] for event in by_clip], abs=1e-5)


def test_options_of_alignment_for_all_calls(model, processor, video):
    pipe = pipeline(TASK, model=model, processor=processor, frames_per_second=10, alignment="unordered")
    shuffled = [BLUE, RED, GREEN]
    assert [event["text"] for event in pipe(video, captions=shuffled)] == CAPTIONS
    assert [event["text"] for event in pipe(video, captions=shuffled, alignment="ordered")] == shuffled
    assert [event["text"] for event in pipe(video, localization="alignment")] == CAPTIONS


def test_more_events_than_frames_at_a_low_rate(pipe):
    """There are never fewer frames than those that are captioned."""
    events = pipe(frames(("red", 0.5)), fps=FPS, localization="alignment", frames_per_second=0.1)
    assert len(events) == 3


def test_a_finer_rate_needs_alignment(pipe, video):
    with pytest.raises(ValueError, match="frames_per_second.*captions.*alignment"):
        pipe(video, frames_per_second=2)
    with pytest.raises(ValueError, match="frames_per_second.*positive"):
        pipe(video, frames_per_second=-1, localization="alignment")
    with pytest.raises(ValueError, match="num_event"):
        pipe(video, frames_per_second=2, localization="alignment", num_event=3)
