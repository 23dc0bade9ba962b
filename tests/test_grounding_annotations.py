"""Boxes of words: both forms of annotations, carried over frames, into a data set that training reads."""

import json

import extract_features
import grounding_annotations
import numpy as np
import pytest
import torch
from datasets import load_dataset
from numbered_video import render
from tiny import make_clip
from torch import tensor
from train import main as train
from training_data import TimeWarped
from word_boxes import around, grounding, most_confident, peak_offset, places_of, propagate, read_boxes, seed_box

from sail_hf.grounding_sail import is_content_word, seen_boxes

# In the form of ActivityNet-Entities' cleaned JSON, written by hand: two boxes in one segment, of which one has two words.
ENTITIES = {
    "vocab": ["man", "bar", "dog"],
    "annotations": {
        "v_a": {
            "segments": {
                "0": {
                    "process_clss": [["man"], ["bar", "man"]],
                    "tokens": ["A", "man", ",", "who", "is", "n't", "tall", "lifts", "a", "bar", "."],
                    "frame_ind": [2, 9],
                    "process_idx": [[1], [9, 1]],
                    "process_bnd_box": [[72, 0, 360, 405], [0, 0, 720, 202.5]],
                    "crowds": [0, 0],
                },
                "1": {
                    "process_clss": [],
                    "tokens": ["He", "rests", "."],
                    "frame_ind": [],
                    "process_idx": [],
                    "process_bnd_box": [],
                    "crowds": [],
                },
            }
        }
    },
}
RAW = {"database": {"v_a": {"rwidth": 720, "rheight": 405, "segments": {}}}}
ROW = {
    "video_id": "v_a",
    "captions": ["A man, who isn't tall lifts a bar.", "He rests."],
    "timestamps": [[10.0, 20.0], [20.0, 22.0]],
}


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def test_activitynet_entities(tmp_path):
    """Frame 2 of ten of a segment from 10 s to 20 s is at 12.5 s; boxes are pixels of frames 720 wide."""
    boxes, sizes = written(tmp_path / "cleaned.json", ENTITIES), written(tmp_path / "raw.json", RAW)
    found = read_boxes(boxes, [ROW, {"video_id": "v_other", "captions": ["A."], "timestamps": [[0, 1]]}], sizes)
    assert found.keys() == {"v_a"}
    first, second = found["v_a"]
    assert second == []
    assert {word.index: word.boxes for word in first} == {
        1: [(12.5, [0.1, 0.0, 0.5, 1.0]), (19.5, [0.0, 0.0, 1.0, 0.5])],
        7: [(19.5, [0.0, 0.0, 1.0, 0.5])],
    }
    with pytest.raises(ValueError, match="v_a has no rwidth and rheight.*--sizes"):
        read_boxes(boxes, [ROW])
    with pytest.raises(ValueError, match="v_a has no timestamps"):
        read_boxes(boxes, [{**ROW, "timestamps": None}], sizes)


def test_tokens_are_of_the_words_that_they_lie_in():
    tokens = ["A", "man", ",", "who", "is", "n't", "-LRB-", "", "tall"]
    assert places_of(tokens, "A man, who isn't (tall)") == [0, 1, 1, 2, 3, 3, None, None, 4]


def test_our_own_form(tmp_path):
    own = {
        "v_a": [
            [
                {"index": 1, "word": "man,", "time": 3.0, "box": [0, 0, 0.5, 1]},
                {"index": 1, "time": 4.0, "box": [0.5, 0, 1, 1]},
                {"index": 5, "entities": [1, 7]},
            ],
            [],
        ]
    }
    (words, nothing) = read_boxes(written(tmp_path / "own.json", own), [ROW])["v_a"]
    assert [(word.index, len(word.boxes), word.entities) for word in words] == [(1, 2, []), (5, 0, [1, 7])]
    assert nothing == []
    for change, message in (
        ({"v_a": [[]]}, "has 2 captions, and boxes of 1"),
        ({"v_a": [[{"index": 8, "time": 0, "box": [0, 0, 1, 1]}], []]}, "has no word 8"),
        ({"v_a": [[{"index": 1, "time": 0}], []]}, "video v_a: KeyError 'box'"),
        ([1], "expected a JSON object of videos"),
    ):
        with pytest.raises(ValueError, match=message):
            read_boxes(written(tmp_path / "wrong.json", change), [ROW])


# --- propagation --------------------------------------------------------------------------------------------------


def moving_square(places, grid=6, seed=0):
    """Patches of noise, `(T, N, D)`, with a thing of 2 x 2 patches of its own looks at (row, column) of each frame; None: it is gone."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(len(places), grid, grid, 32, generator=generator)
    thing = 3 * torch.randn(2, 2, 32, generator=generator)
    for frame, place in enumerate(places):
        if place is not None:
            patches[frame, place[0] : place[0] + 2, place[1] : place[1] + 2] += thing
    return patches.flatten(1, 2)


def test_a_box_follows_what_it_is_of():
    places = [(0, 0), (1, 3), (4, 4)]
    box = tensor([3, 1, 5, 2.5]) / 6  # in frame 1, a part of the thing
    boxes, confidences = propagate(moving_square(places), 1, box)
    for frame in (0, 1, 2):
        down, right = places[frame][0] - 1, places[frame][1] - 3
        torch.testing.assert_close(boxes[frame], box + tensor([right, down, right, down]) / 6, rtol=0, atol=0.5 / 6)
    assert confidences[1] == 1 and torch.equal(boxes[1], box)
    assert (confidences > 0.5).all()
    assert grounding(4, (boxes, confidences)) == {
        "word": 4,
        "frames": [0, 1, 2],
        "boxes": boxes.tolist(),
        "scores": confidences.tolist(),
    }


def test_a_box_ends_where_its_thing_is_lost():
    places = [(0, 0), None, (1, 3), (2, 3), None, (4, 4)]
    _, confidences = propagate(moving_square(places), 2, tensor([3, 1, 5, 3]) / 6)
    assert confidences[2] == 1 and confidences[3] > 0.5
    assert confidences[[0, 1, 4, 5]].tolist() == [0, 0, 0, 0]  # it is back in frames 0 and 5, maybe as another


def test_a_peak_between_places():
    # 1 - (x - 2.3)^2 and 1 - (x - 1.75)^2 at x = 0, ..., 4; the third is highest at its end.
    values = torch.stack([1 - (torch.arange(5) - peak) ** 2 for peak in (2.3, 1.75, -0.2)])
    torch.testing.assert_close(peak_offset(values, tensor([2, 2, 0])), tensor([0.3, -0.25, 0.0]))
    assert peak_offset(torch.ones(1, 5), tensor([2])).tolist() == [0]


def test_a_box_at_an_edge_or_outside():
    patches = moving_square([(4, 0), (0, 4)])
    boxes, _ = propagate(patches, 0, tensor([-0.1, 4 / 6, 2 / 6, 1.2]))  # reaches over the picture
    torch.testing.assert_close(boxes[1], tensor([-0.1 + 4 / 6, 0.0, 1.0, 1.2 - 4 / 6]))  # nothing is beyond an edge
    assert propagate(patches, 0, tensor([1.1, 0, 1.3, 1])) is None


def test_several_labels_and_actions():
    first = (tensor([[0, 0, 0.2, 0.2], [0, 0, 0.3, 0.3]]), tensor([1.0, 0.4]))
    second = (tensor([[0.5, 0.1, 0.9, 0.4], [0.4, 0.4, 0.9, 0.9]]), tensor([0.7, 0.9]))
    boxes, confidences = most_confident([first, second])
    torch.testing.assert_close(boxes, tensor([[0, 0, 0.2, 0.2], [0.4, 0.4, 0.9, 0.9]]))
    torch.testing.assert_close(confidences, tensor([1.0, 0.9]))
    # Eq. 3: the tightest rectangle around both, with the least confidence.
    boxes, confidences = around([first, second])
    torch.testing.assert_close(boxes, tensor([[0, 0, 0.9, 0.4], [0, 0, 0.9, 0.9]]))
    torch.testing.assert_close(confidences, tensor([0.7, 0.4]))


def test_a_seed_is_where_patches_are_nearest_to_the_word():
    word = torch.randn(32, generator=torch.Generator().manual_seed(3))
    patches = torch.randn(3, 36, 32, generator=torch.Generator().manual_seed(4))
    patches[2].unflatten(0, (6, 6))[1:3, 2:5] += 3 * word
    frame, box = seed_box(patches, word)
    assert frame == 2
    torch.testing.assert_close(box, tensor([2, 1, 5, 3]) / 6)


def test_content_words():
    words = "The man, who is tall, lifts 2 bars up into his pick-up .".split()
    assert [word for word in words if is_content_word(word)] == ["man,", "tall,", "lifts", "bars", "pick-up"]


# --- the commands -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set with patches, of two wide videos, and the folder of its CLIP."""
    folder = tmp_path_factory.mktemp("grounding")
    make_clip(folder / "clip")
    (folder / "videos").mkdir()
    render(folder / "videos" / "v_a.mp4", num_frames=40)
    render(folder / "videos" / "v_b.mp4", num_frames=40)
    rows = {"v_a": ["A man lifts a bar.", "He rests."], "v_b": ["A dog runs."]}
    content = {
        name: {"duration": 4.0, "timestamps": [[0, 2]] * len(own), "sentences": own} for name, own in rows.items()
    }
    written(folder / "train.json", content)
    options = {"annotations": folder / "train.json", "videos": folder / "videos", "clip": folder / "clip"}
    options |= {"output": folder / "data", "num_frames": 8, "regions": True}
    extract_features.main([str(word) for name, value in options.items() for word in (f"--{name}", value)])
    return folder


def rows_of(place):
    data = load_dataset(str(place / "data"), split="train", cache_dir=str(place / "cache")).with_format("numpy")
    return {row["video_id"]: row for row in data}


def test_features_of_patches(place, capsys):
    from sail_hf.clip_sail import load_clip
    from sail_hf.video_processing_sail import SailVideoProcessor

    row = rows_of(place)["v_a"]
    assert row["region_features"].shape == (8, 4, 24)
    columns = load_dataset(str(place / "data"), split="train", cache_dir=str(place / "cache")).features
    assert columns["region_features"].dtype == "float16"
    clip = load_clip(str(place / "clip"))
    processor = SailVideoProcessor.from_vision_config(clip.vision_config, 8)
    pixels = processor(str(place / "videos" / "v_a.mp4"))["pixel_values_videos"][0]
    np.testing.assert_array_equal(row["region_features"], clip.encode_regions(pixels)[1].numpy())
    # Of the same pass, and as without patches.
    np.testing.assert_allclose(row["video_features"], clip.encode_images(pixels).half().numpy(), rtol=2e-3, atol=2e-3)
    with pytest.raises(SystemExit, match="--regions needs --videos"):
        words = ["--annotations", "x", "--features", "y", "--output", "z", "--regions", "true"]
        extract_features.main(words)


def test_boxes_into_the_data_set_and_through_training(place, parts, capsys):
    bounds = rows_of(place)["v_a"]["region_bounds"]
    x0, _, x1, _ = bounds.tolist()
    middle = [x0, 0.0, (x0 + x1) / 2, 0.5]  # the upper left quarter of what CLIP saw
    own = {
        "v_a": [
            [
                {"index": 1, "time": 2.0, "box": middle},
                {"index": 2, "entities": [1]},
                {"index": 4, "time": 1.0, "box": [2.0, 0, 2.5, 1]},
            ],
            [],
        ]
    }
    before = rows_of(place)
    grounding_annotations.main(["--dataset", str(place / "data"), "--boxes", str(written(place / "own.json", own))])
    told = capsys.readouterr().out
    assert "2 words with boxes in 1 of 2 videos" in told and "1 boxes outside of what CLIP saw" in told
    after = rows_of(place)
    assert after["v_b"]["groundings"] is None
    words, nothing = after["v_a"]["groundings"]
    assert [int(word["word"]) for word in words] == [1, 2] and len(nothing) == 0
    labelled = list(words[0]["frames"]).index(4)  # 2 s of 4 s, among frames 0 to 7
    np.testing.assert_allclose(words[0]["boxes"][labelled], [0, 0, 0.5, 0.5], atol=1e-6)
    assert words[0]["scores"][labelled] == 1
    np.testing.assert_array_equal(words[1]["boxes"], words[0]["boxes"])
    np.testing.assert_array_equal(before["v_a"]["region_features"], after["v_a"]["region_features"])

    config = {"encoder_layers": 1, "encoder_ffn_dim": 16, "attention_head_dim": 8, "mask_decoder_ffn_dim": 16}
    fields = {
        **parts, "dataset": place / "data", "method": "sail-sim", "num_frames": 8, "num_queries": 4,
        "model_config": json.dumps({**config, "grounding": True}), "time_warp": 0.5, "output_dir": place / "run",
        "captioning_epochs": 1, "localization_epochs": 2, "per_device_train_batch_size": 1, "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "use_cpu": True, "seed": 3,
    }  # fmt: skip
    trainer = train([str(word) for name, value in fields.items() for word in (f"--{name}", value)])
    assert any("loss_grounding" in entry for entry in trainer.state.log_history)


def test_guesses_where_nobody_drew_boxes(place, capsys):
    grounding_annotations.main(["--dataset", str(place / "data"), "--clip", str(place / "clip")])
    assert "guesses" in capsys.readouterr().out
    (caption,) = rows_of(place)["v_b"]["groundings"]
    assert [int(word["word"]) for word in caption] == [1, 2]  # dog, runs.


def test_a_data_set_without_patches_is_named(tmp_path, place):
    with pytest.raises(SystemExit, match="give either --boxes, or --clip"):
        grounding_annotations.main(["--dataset", str(tmp_path)])
    with pytest.raises(SystemExit, match="there is no"):
        grounding_annotations.main(["--dataset", str(tmp_path), "--clip", "x"])


def test_changes_of_speed_take_boxes_along():
    word = {"word": 1, "frames": [0, 4], "boxes": [[0, 0, 1, 1], [0, 0, 0.5, 0.5]], "scores": [1.0, 0.6]}
    row = {"video_features": np.arange(6.0)[:, None], "groundings": [[word]]}
    warped = TimeWarped([row], 0.9, seed=1)[0]
    frames = warped["video_features"][:, 0].astype(int).tolist()
    assert frames != list(range(6)) and frames.count(4) == 2 and 3 not in frames
    (found,) = warped["groundings"][0]
    assert [frames[place] for place in found["frames"]] == [frame for frame in frames if frame in (0, 4)]
    assert found["boxes"][-1] == word["boxes"][1] and found["scores"][0] == 1.0


def test_boxes_of_the_frame_are_shares_of_what_clip_saw():
    # A frame of 16 : 9, of which a crop leaves the middle 9 : 9.
    bounds = tensor([7 / 32, 0, 25 / 32, 1])
    torch.testing.assert_close(seen_boxes(tensor([7 / 32, 0.25, 0.5, 1]), bounds), tensor([0, 0.25, 0.5, 1]))
