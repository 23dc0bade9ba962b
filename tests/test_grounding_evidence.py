import datasets
import pytest
import torch
from grounding_evidence import (
    Word,
    action_in,
    best_grid_boxes,
    format_tables,
    labelled_heat,
    propagation,
    read_words,
    right,
    score_heat,
)
from wide_world import KINDS, drawn_frames, render_wide_world

from sail_hf.data import read_annotation_file


def word(kind="actor", name="fox", frame=0, box=(0.0, 0.0, 0.5, 0.5), boxes=None, video=0):
    return Word(video, 0, 1, kind, name, frame, list(box), boxes or {})


def test_actions_are_told_by_the_grammar():
    assert action_in("A fox keeps three balls in the air.") == "juggle"
    assert action_in("A bird crosses the sky.") is None


def test_right_actors_and_bystanders():
    pairs = [
        ("A fox flies a kite.", "The orange fox is flying a big kite.", "pig"),
        ("A pig flies a kite.", "A fox reads a book.", "pig"),
        ("A duck reads a book.", "A fox reads a book.", "pig"),
        ("It rains.", "A fox reads a book.", "pig"),
    ]
    assert right(pairs) == {"actor": 0.25, "action": 0.5, "bystander": 0.25, "sentences": 4}


def test_the_best_rectangle_of_patches():
    # Of 2 x 2 patches: the left half; all of it (IoU .81 against .62 of a half).
    boxes = best_grid_boxes([word(box=(0.0, 0.0, 0.4, 1.0)), word(box=(0.0, 0.0, 0.9, 0.9))], 4)
    assert boxes.tolist() == [[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]]


def test_heat_is_scored_in_the_labelled_frame():
    """Two words of each kind on 2 x 2 patches, the first found, the second looked for where the first is."""
    words = [
        word(kind, name=kind, frame=frame, box=box)
        for kind in KINDS
        for frame, box in ((0, (0.0, 0.0, 0.5, 0.5)), (1, (0.5, 0.5, 1.0, 1.0)))
    ]
    attention = torch.full((len(words), 2, 4), 0.025)
    attention[:, 0, 0] = attention[:, 1, 0] = 0.4
    found = score_heat(words, labelled_heat(words, attention))
    for kind in KINDS:
        # Exchanged, a box is right as often; 0.4 of 0.475 lies in the first box, 0.025 in the second.
        assert found[kind]["accuracy"] == 0.5 and found[kind]["lift"] == 0.0
        assert found[kind]["mass"] == pytest.approx((0.4 + 0.025) / 0.475 / 2)


def test_boxes_that_are_carried_are_compared_with_copies():
    """One odd patch moves from the first to the last of 4 x 4 patches."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(16, 8, generator=generator).expand(2, 16, 8).clone()
    patches[0, 0] = patches[1, 15] = 4 * torch.ones(8)
    rows = datasets.Dataset.from_list([{"region_features": patches.tolist()}]).with_format("numpy")
    first, last = [0.0, 0.0, 0.25, 0.25], [0.75, 0.75, 1.0, 1.0]
    moved = word(box=first, boxes={0: first, 1: last})
    assert propagation([moved, word("action", box=first, boxes={0: first, 1: first})], rows) == {
        "carried": pytest.approx(1.0),
        "copied": 0.0,
        "share of frames": 1.0,
    }


def test_words_have_the_true_boxes_of_the_frames_that_the_model_sees(tmp_path):
    render_wide_world(tmp_path, 0, 1, seed=3, num_workers=1, num_train_pictures=0, num_test_pictures=0)
    rows = datasets.Dataset.from_list(read_annotation_file(tmp_path / "test.json"))
    words = read_words(tmp_path, "test", rows)
    assert len(words) == 3 * len(rows[0]["captions"])
    seconds = drawn_frames(round(rows[0]["duration"] * 8)) / 8
    for one in words:
        start, end = rows[0]["timestamps"][one.event]
        assert [i for i, time in enumerate(seconds) if start <= time < end] == list(one.boxes)
        assert one.boxes[one.frame] == one.box
        assert rows[0]["captions"][one.event].rstrip(".").split()[one.place] == one.word


def test_tables_have_means_and_deviations_over_worlds():
    def world(accuracy):
        words = {"a row": {kind: {"accuracy": accuracy, "lift": 0.1} for kind in KINDS}}
        sentences = {"a stage": {"true times": {"actor": accuracy, "action": 1.0, "bystander": 0.0, "sentences": 5}}}
        propagation = {"carried": 0.75, "copied": 0.5, "share of frames": 0.9}
        return {"words": words, "sentences": sentences, "propagation": propagation, "num_words": 3}

    text = format_tables({0: world(0.5), 1: world(0.7)})
    assert "| a row | 60.0 ± 14.1 | 10.0 ± 0.0 |  |" in text
    assert "| a stage, true times | 60.0 ± 14.1 | 100.0 ± 0.0 | 0.0 ± 0.0 | 10 |" in text
    assert "| carried | 75.0 ± 0.0 |" in text
    assert "| a row | 50.0 | 10.0 |  |" in format_tables({0: world(0.5)})
