"""Events without repeats and gaps: which stay, what is added, and what changes nothing."""

import copy
import json

import choose_levels
import datasets
import pytest
import torch
from colours import BLUE, FPS, GREEN, RED, SENTENCES, frames, make_colour_clip, make_colour_model
from tiny import make_processor, make_tokenizer
from torch import tensor
from transformers import pipeline

from sail_hf.events_sail import kept_events, supports, uncovered


def test_support_is_the_mean_similarity_inside_a_segment():
    similarities = tensor([[0.1, 0.5, 0.7, 0.1], [0.4, 0.0, 0.0, 0.8]])
    torch.testing.assert_close(supports(similarities, tensor([[1, 3], [0, 1]])), tensor([0.6, 0.4]))
    # A segment without frames, as padding has them, is supported by nothing.
    assert supports(similarities, tensor([[0, 0], [3, 4]])).tolist() == pytest.approx([0.0, 0.8])


SPANS = tensor([[0.0, 0.5], [0.5, 0.6], [0.7, 1.0]])  # the first two touch


@pytest.mark.parametrize(
    "alike, levels, kept",
    [
        (0.9, (0.8, -1.0), [False, True, True]),  # one time and one meaning: the better supported stays
        (0.8, (0.8, -1.0), [True, True, True]),  # not more alike than the level
        (0.9, (1.0, -1.0), [True, True, True]),  # what is off
        (0.9, (0.8, 0.5), [False, True, False]),  # the third has too little support
        (0.9, (1.0, 0.65), [False, True, False]),
        (0.9, (0.8, 0.99), [False, True, False]),  # the best one stays in any case
    ],
)
def test_which_events_stay(alike, levels, kept):
    meanings = torch.full((3, 3), alike)
    assert kept_events(SPANS, meanings, tensor([0.6, 0.7, 0.3]), *levels).tolist() == kept


def test_a_repeat_of_what_went_stays():
    """Only an event that stays replaces others: the middle one goes for the first, which the last does not touch."""
    spans = tensor([[0.0, 0.4], [0.3, 0.6], [0.5, 0.9]])
    assert kept_events(spans, torch.ones(3, 3), tensor([0.9, 0.8, 0.7]), 0.8, -1.0).tolist() == [True, False, True]


def test_stretches_that_no_event_covers():
    assert uncovered(tensor([[1, 3], [2, 4], [6, 7]]), 9).tolist() == [[0, 1], [4, 6], [7, 9]]
    assert uncovered(tensor([[0, 5]]), 5).tolist() == []
    assert uncovered(torch.zeros(0, 2, dtype=torch.long), 3).tolist() == [[0, 3]]


# --- in generation ------------------------------------------------------------------------------------------------

SCENES = (("red", 2), ("green", 2), ("blue", 2))
# As alike as a sentence is with itself, and as well as the colours' CLIP fits its own pictures.
LEVELS = {"repeat_level": 0.95, "support_level": 0.5}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_colour_clip(tmp_path_factory.mktemp("colours") / "clip")


@pytest.fixture(scope="module")
def processor():
    processor = make_processor()
    processor.tokenizer = make_tokenizer([*SENTENCES.values(), "1 events: 3 events: "])
    return processor


def model_that_says(clip, processor, captions, of_event):
    """`captions` of whole videos, `of_event` of an event, whatever the frames."""
    model = make_colour_model(clip, processor, captions)
    rows = [processor.caption_labels(captions)["full_labels"], *processor.caption_labels([of_event])["event_labels"]]
    labels = torch.nn.utils.rnn.pad_sequence([tensor(row) for row in rows], True, -100)
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=2e-2)
    for _ in range(150):
        model(video_features=torch.randn(2, 8, 24), full_labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.update(localization="alignment", no_repeat_ngram_size=0, max_new_tokens=20)
    return model


def features_of(clip, processor, *scenes):
    pictures = frames(*scenes)
    chosen = torch.linspace(0, len(pictures) - 1, 8).round().long()
    return clip.encode_images(processor.video_processor.process_frames(list(pictures[chosen])))[None]


def texts_of(model, processor, features, **options):
    outputs = model.generate(video_features=features, tokenizer=processor.tokenizer, **options)
    texts = processor.tokenizer.batch_decode(outputs.sequences, skip_special_tokens=True)
    assert (
        len(outputs.scores) == len(texts) == int(outputs.num_events.sum()) and (outputs.event_widths > 0).any(1).all()
    )
    return [text.strip() for text in texts]


@pytest.fixture(scope="module")
def model(clip, processor):
    return model_that_says(clip, processor, [RED, RED, BLUE], GREEN)


def test_events_are_neither_dropped_nor_added_where_nothing_is_said(model, clip, processor):
    assert texts_of(model, processor, features_of(clip, processor, *SCENES)) == [RED, RED, BLUE]


def test_a_repeat_is_one_event(model, clip, processor):
    features = features_of(clip, processor, *SCENES)
    # In order, the two share the red frames out; otherwise each has all of them.
    for alignment in ("ordered", "unordered"):
        assert texts_of(model, processor, features, alignment=alignment, repeat_level=0.95) == [RED, BLUE]


@pytest.mark.parametrize("alignment", ["unordered", "ordered"])
def test_what_is_missing_is_captioned_from_its_own_mask(model, clip, processor, alignment):
    features = features_of(clip, processor, *SCENES)
    options = {"alignment": alignment, "gap_level": 0.5, **LEVELS}
    assert texts_of(model, processor, features, **options) == [RED, GREEN, BLUE]
    # Grey frames are an uncovered stretch, too, but what the model says of them does not fit.
    grey = features_of(clip, processor, ("red", 2), ("grey", 2), ("blue", 2))
    assert texts_of(model, processor, grey, **options) == [RED, BLUE]


def test_what_no_frames_fit_is_no_event(model, clip, processor):
    red = features_of(clip, processor, ("red", 2), ("grey", 2))
    options = {"alignment": "unordered", "gap_level": 0.5, **LEVELS}
    assert texts_of(model, processor, red, **options) == [RED]
    # One stays where nothing fits at all.
    grey = features_of(clip, processor, ("grey", 4))
    assert len(texts_of(model, processor, grey, **options)) == 1


def test_a_batch_is_its_videos(model, clip, processor):
    rows = [features_of(clip, processor, *SCENES)[0], features_of(clip, processor, ("red", 2), ("grey", 2))[0, :6]]
    options = {"alignment": "unordered", "gap_level": 0.5, **LEVELS}
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(8) < tensor([[8], [6]])
    together = texts_of(model, processor, batch, video_attention_mask=mask.long(), **options)
    assert together == [text for row in rows for text in texts_of(model, processor, row[None], **options)]


def test_a_given_number_of_events_is_kept(model, clip, processor):
    features, config = features_of(clip, processor, *SCENES), copy.deepcopy(model.generation_config)
    config.update(**LEVELS)
    options = {"num_events": tensor([3]), "generation_config": config}
    assert texts_of(model, processor, features, **options) == [RED, RED, BLUE]
    with pytest.raises(ValueError, match="no event goes or comes: leave out repeat_level"):
        texts_of(model, processor, features, repeat_level=0.9, **options)


def test_levels_that_are_no_cosines(model, clip, processor):
    with pytest.raises(ValueError, match="`support_level` must be a cosine.*found 2"):
        texts_of(model, processor, features_of(clip, processor, *SCENES), support_level=2)


def test_a_pipeline_looks_for_repeats_at_a_finer_rate_too(model, processor):
    pipe = pipeline("dense-video-captioning", model=model, processor=processor, frames_per_second=5)
    pictures, options = frames(*SCENES), {"fps": FPS, "alignment": "unordered"}
    found = [event["text"] for event in pipe(pictures, **options, repeat_level=0.95)]
    assert found == [RED, BLUE]
    assert [event["text"] for event in pipe(pictures, **options)] == [RED, RED, BLUE]
    assert [event["text"] for event in pipe(pictures, **options, **LEVELS, gap_level=0.5)] == [RED, GREEN, BLUE]
    assert len(pipe(pictures, **options, num_events=3)) == 3
    with pytest.raises(ValueError, match="repeat_level.*localization='alignment'"):
        pipe(pictures, fps=FPS, localization="masks", frames_per_second=None, alignment=None, repeat_level=0.5)


# --- levels by training captions ----------------------------------------------------------------------------------


def test_levels_are_quantiles_of_training_captions(tmp_path, capsys):
    """Two videos of two captions that share the frames out: the second one's are at an angle of 60 degrees."""
    east, north = [1.0, 0.0], [0.0, 1.0]
    slanted = [0.5, 0.75**0.5]
    rows = [
        {"captions": ["a", "b"], "video_features": [east, east, north, north], "caption_features": [east, north]},
        {"captions": ["a", "c"], "video_features": [east, east, north, north], "caption_features": [east, slanted]},
    ]
    file = tmp_path / "train-00000-of-00001.parquet"
    datasets.Dataset.from_list(rows).to_parquet(file)
    command = ["--dataset", str(tmp_path), "--alignment", "ordered"]
    choose_levels.main([*command, "--lost", "0"])
    # The least supported caption is the slanted one on its northern frames; the most alike are the second video's.
    assert json.loads(capsys.readouterr().out) == {"repeat_level": 0.5, "support_level": pytest.approx(0.866)}
    choose_levels.main([*command, "--lost", "0.5"])
    assert json.loads(capsys.readouterr().out) == {"repeat_level": 0.25, "support_level": 1.0}
    with pytest.raises(SystemExit):
        choose_levels.main([*command, "--lost", "2"])
    datasets.Dataset.from_list(rows).remove_columns("caption_features").to_parquet(file)
    with pytest.raises(SystemExit, match="no caption_features; training/extract_features.py"):
        choose_levels.main(command)
