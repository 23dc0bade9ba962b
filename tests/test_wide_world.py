import hashlib
import json
from dataclasses import replace

import numpy as np
import PIL
import pytest
from drawing import SIZE
from PIL import Image
from wide_world import (
    FPS,
    KINDS,
    WideEvent,
    bystander_of,
    draw_wide,
    everywhere,
    frame_boxes,
    groundable_words,
    labels,
    render_wide_world,
    share_inside,
    stage_of,
    tightest,
    true_boxes,
    wide_frames,
    wide_picture,
    wide_script,
)
from world import ACTIONS, draw_frames, draw_picture, event_sentence, render_playground, sample_script

BLANK = Image.new("RGB", (SIZE, SIZE))


def digest(*frames):
    found = hashlib.sha256()
    for frame in frames:
        found.update(np.ascontiguousarray(frame).tobytes())
    return found.hexdigest()


def some_events(number=40):
    return [event for index in range(number) for event in wide_script(0, "train", index).events]


@pytest.mark.skipif(PIL.__version__ != "12.3.0", reason="the digest was made with Pillow 12.3.0")
def test_the_usual_world_is_drawn_bit_for_bit_as_before_there_was_a_wide_one():
    found = hashlib.sha256()
    for index in range(3):
        script = sample_script(0, "train", index)
        found.update(repr(script).encode())
        for frame in draw_frames(script):
            found.update(frame.tobytes())
    for index in range(40):
        image, text = draw_picture(0, "train", index)
        found.update(np.asarray(image).tobytes())
        found.update(text.encode())
    assert found.hexdigest() == "5a5f3bdcaa1b91ace6c8b5e9a7170def402f70ca871367d1b442811b04f08348"


def test_a_wide_script_says_what_the_usual_one_says():
    for index in range(10):
        usual, wide = sample_script(3, "test", index), wide_script(3, "test", index)
        assert wide.annotation() == usual.annotation() and wide.happenings == usual.happenings
        assert wide == wide_script(3, "test", index)
        assert wide.events != wide_script(4, "test", index).events


def test_events_are_placed_as_stated():
    events = some_events()
    zooms = np.array([event.zoom for event in events])
    assert 0.5 <= zooms.min() < 0.53 and 0.87 < zooms.max() <= 0.9
    boxes = np.array([everywhere(event) for event in events])
    # Inside of the picture, up to rounding to pixels; and anywhere there.
    assert boxes.min() >= 0 and boxes.max() <= 1
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (middles.min(0) < 0.3).all() and (middles.max(0) > 0.7).all()


def test_a_stage_drifts_steadily():
    event = replace(event_of("A fox reads a book.", "fox", "read"), end=32, corner=(0.1, 0.3), last_corner=(0.3, 0.2))
    assert [stage_of(BLANK, event, seconds).left for seconds in (0, 1, 2)] == pytest.approx([0.1, 0.15, 0.2])
    assert [stage_of(BLANK, event, seconds).top for seconds in (0, 1, 2)] == pytest.approx([0.3, 0.275, 0.25])
    drifts = np.abs([np.subtract(event.last_corner, event.corner) for event in some_events()])
    assert 0.2 < drifts.max() <= 0.25 and 0.05 < drifts.mean() < 0.125


def test_bystanders_are_others_who_are_in_no_caption_and_mostly_not_hidden():
    hidden = []
    for event in some_events():
        assert event.bystander != event.actor and event.bystander not in event.sentence
        half, (x, y) = event.bystander_side / 2, event.bystander_middle
        hidden.append(share_inside([x - half, y - half, x + half, y + half], everywhere(event)))
    assert np.mean(np.array(hidden) < 0.15) > 0.9


def test_a_bystander_stands_still_behind_the_event():
    event = some_events(1)[0]
    first, later = (draw_wide(BLANK, event, seconds) for seconds in (0.0, 1.3))
    assert digest(np.asarray(first)) != digest(np.asarray(later))
    alone = np.asarray(bystander_of(BLANK, event).image)
    for image, seconds in ((first, 0.0), (later, 1.3)):
        covered = np.asarray(stage_of(BLANK, event, seconds).image).any(-1)
        np.testing.assert_array_equal(np.asarray(image)[~covered], alone[~covered])


def test_boxes_are_those_of_the_ink():
    """A reader and a skater draw nothing but themselves and their prop: what is not blank is the action's box."""
    checked = 0
    for event in some_events():
        if event.action in ("read", "skate", "jump"):
            ink = np.asarray(stage_of(BLANK, event, 0.7).image).any(-1)
            rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
            expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            # The faintest edge of a sprite may be too faint for 8 bits on black.
            np.testing.assert_allclose(np.array(frame_boxes(event, 0.7)["action"]) * SIZE, expected, atol=1.01)
            checked += 1
    assert checked > 30


def test_an_action_is_around_its_actor_and_its_prop():
    for event in some_events(10):
        boxes = frame_boxes(event, 0.4)
        assert boxes["action"] == tightest([boxes["actor"], boxes["prop"]])


def test_what_is_outside_of_the_picture_is_cut_off_or_has_no_box():
    event = next(event for event in some_events() if event.action == "read")
    left, top = event.corner
    assert frame_boxes(replace(event, corner=(left - 5, top)), 0.0) == dict.fromkeys(KINDS)
    x0, _, x1, _ = frame_boxes(event, 0.0)["action"]
    cut = frame_boxes(replace(event, corner=(left - (x0 + x1) / 2, top)), 0.0)["action"]
    assert cut[0] == 0 and cut[2] == pytest.approx((x1 - x0) / 2, abs=1.5 / SIZE)


def test_boxes_of_boxes():
    assert tightest([[0.2, 0.3, 0.4, 0.5], [0.1, 0.4, 0.3, 0.9]]) == [0.1, 0.3, 0.4, 0.9]
    # A quarter of the first is inside; they touch; all of it.
    assert share_inside([0.0, 0.0, 0.4, 0.4], [0.2, 0.2, 1.0, 1.0]) == pytest.approx(0.25)
    assert share_inside([0.0, 0.0, 0.2, 0.2], [0.2, 0.0, 1.0, 1.0]) == 0
    assert share_inside([0.3, 0.3, 0.4, 0.4], [0.2, 0.2, 1.0, 1.0]) == pytest.approx(1)


def event_of(sentence, actor, action):
    return WideEvent(0, 8, actor, action, sentence, x=0.5, height=0.4, phase=0.0, mirrored=False)


def test_groundable_words():
    event = event_of("A red robot is painting at an easel in the snow.", "robot", "paint")
    assert groundable_words(event) == {"actor": 2, "action": 4, "prop": 7}
    event = event_of("The fox works on a painting.", "fox", "paint")
    assert groundable_words(event) == {"actor": 1, "action": 2, "prop": 5}
    event = event_of("An octopus is fast asleep in bed.", "octopus", "sleep")
    assert groundable_words(event) == {"actor": 1, "action": 4, "prop": 6}


def test_every_sentence_of_the_grammar_has_three_groundable_words():
    rng = np.random.default_rng(0)
    for action in ACTIONS:
        for _ in range(60):
            event = event_of(event_sentence(rng, "beach", "duck", action), "duck", action)
            assert len(set(groundable_words(event).values())) == 3


def test_labels_are_true_boxes_of_frames_inside_of_the_event():
    script = wide_script(0, "train", 2)
    boxes = true_boxes(script)
    found = labels(script, np.random.default_rng(0))
    assert len(found) == len(boxes) == len(script.events)
    for event, of_event, rows in zip(script.events, boxes, found, strict=True):
        assert [row["kind"] for row in rows] == list(KINDS)
        for row in rows:
            assert event.sentence.rstrip(".").split()[row["index"]] == row["word"]
            frame = int(row["time"] * FPS + 1e-3)
            assert event.start <= frame < event.end
            assert row["box"] == of_event[row["kind"]][frame - event.start]
        # What training has of a verb: Eq. 3 of CVG draws its box around its actor and its prop.
        assert [row.get("entities") for row in rows] == [None, None, [rows[0]["index"], rows[1]["index"]]]


def test_a_wide_folder(tmp_path):
    amounts = {"num_workers": 1, "num_train_pictures": 6, "num_test_pictures": 2}
    render_wide_world(tmp_path / "w", 2, 1, seed=7, **amounts)
    boxes, found = (json.loads((tmp_path / "w" / f"{name}_train.json").read_text()) for name in ("boxes", "labels"))
    assert list(boxes) == list(found) == ["train_0000", "train_0001"]
    assert boxes["train_0001"] == true_boxes(wide_script(7, "train", 1))
    # One command, one world: the usual one does not go on in its folder.
    with pytest.raises(ValueError, match="use another folder"):
        render_playground(tmp_path / "w", 2, 1, seed=7, **amounts)


def test_frames_and_stills_are_wide():
    frames, usual = list(wide_frames(0, "train", 0)), list(draw_frames(sample_script(0, "train", 0)))
    script = wide_script(0, "train", 0)
    assert len(frames) == len(usual)
    differs = [bool((a != b).any()) for a, b in zip(frames, usual, strict=True)]
    of_events = [frame for event in script.events for frame in range(event.start, event.end)]
    assert [i for i, differ in enumerate(differs) if differ] == of_events
    texts = [wide_picture(0, "train", index)[1] for index in range(30)]
    assert texts == [draw_picture(0, "train", index)[1] for index in range(30)]
