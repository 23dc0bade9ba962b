"""Batches as literal tensors."""

import numpy as np
import pytest
import torch
from torch import tensor

from sail_hf import SailDataCollator

ROWS = [
    {
        "captions": ["He puts it down.", "People clap."],
        "video_features": np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float16),
        "caption_features": np.array([[1, 0], [0, 1]], dtype=np.float32),
        "transition_features": np.array([[7, 8]], dtype=np.float32),
        "frame_caption_features": np.array([[1, 1], [2, 2], [3, 3]], dtype=np.float16),
        "timestamps": [[0, 1], [1, 2]],
        "duration": 2.0,
    },
    {
        "captions": ["A dog runs."],
        "video_features": [[9.0, 10.0], [11.0, 12.0]],
        "caption_features": [[2.0, 2.0]],
        "transition_features": [],
        "frame_caption_features": [[4.0, 4.0], [5.0, 5.0]],
        "timestamps": [[0, 1]],
        "duration": 2.0,
    },
]


def test_a_batch_is_padded_with_zeros_and_minus_100(processor):
    batch = SailDataCollator(processor)(ROWS)
    assert batch["video_features"].tolist() == [[[1, 2], [3, 4], [5, 6]], [[9, 10], [11, 12], [0, 0]]]
    assert batch["video_features"].dtype == torch.float32
    assert batch["video_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["num_events"].tolist() == [2, 1]
    assert batch["caption_features"].tolist() == [[[1, 0], [0, 1]], [[2, 2], [0, 0]]]
    assert batch["transition_features"].tolist() == [[[7, 8]], [[0, 0]]]
    assert batch["frame_caption_features"].tolist() == [[[1, 1], [2, 2], [3, 3]], [[4, 4], [5, 5], [0, 0]]]
    first, second = (processor.caption_labels(row["captions"]) for row in ROWS)
    full = [first["full_labels"], second["full_labels"]]
    assert [row[row != -100].tolist() for row in batch["full_labels"]] == full
    events = first["event_labels"] + second["event_labels"]
    assert [row[row != -100].tolist() for video in batch["event_labels"] for row in video] == [*events, []]
    others = [*first["complement_labels"], [], []]
    assert [row[row != -100].tolist() for video in batch["complement_labels"] for row in video] == others


def test_time_stamps_stay_behind(processor):
    """Nothing but captions and features reaches training, whatever else a row holds."""
    known = {"video_features", "video_attention_mask", "caption_features", "transition_features"}
    known |= {"frame_caption_features", "num_events", "full_labels", "event_labels", "complement_labels"}
    assert set(SailDataCollator(processor)(ROWS)) == known
    moved = [{**row, "timestamps": [[100, 200]] * len(row["captions"]), "duration": 999.0} for row in ROWS]
    before, after = SailDataCollator(processor)(ROWS), SailDataCollator(processor)(moved)
    assert all(torch.equal(before[name], after[name]) for name in known)


def test_columns_that_are_not_there_bring_nothing(processor):
    rows = [{name: row[name] for name in ("captions", "video_features")} for row in ROWS]
    batch = SailDataCollator(processor)(rows)
    assert not {"caption_features", "transition_features", "frame_caption_features"} & set(batch)
    rows = [{**row, "caption_features": None} for row in rows]
    assert "caption_features" not in SailDataCollator(processor)(rows)


@pytest.mark.parametrize("empty", [[], np.zeros((0, 2), np.float32), np.zeros(0, np.float32), torch.zeros(0), None])
def test_a_batch_of_videos_with_one_caption(processor, empty):
    """Such a video has no transition; Parquet gives its empty array back without a second dimension."""
    row = {**ROWS[1], "transition_features": empty}
    batch = SailDataCollator(processor)([row, row])
    assert "transition_features" not in batch
    # Beside a video that has transitions it is padded.
    assert SailDataCollator(processor)([row, ROWS[0]])["transition_features"].tolist() == [[[0, 0]], [[7, 8]]]
    assert batch["complement_labels"].tolist() == [[[-100]], [[-100]]]


def test_captions_past_the_limit_are_left_out_with_their_features(processor):
    row = {
        "captions": ["A dog.", "He puts it down.", "People clap."],
        "video_features": np.zeros((2, 2)),
        "caption_features": np.array([[1, 0], [0, 1], [5, 5]]),
        "transition_features": np.array([[7, 8], [9, 9]]),
    }
    batch = SailDataCollator(processor, max_events=2)([row])
    assert batch["num_events"].tolist() == [2]
    assert batch["caption_features"].tolist() == [[[1, 0], [0, 1]]]
    assert batch["transition_features"].tolist() == [[[7, 8]]]
    assert batch["full_labels"][0].tolist() == processor.caption_labels(row["captions"][:2])["full_labels"]


def test_long_labels_are_cut(processor):
    batch = SailDataCollator(processor, max_length=6)(ROWS)
    for name in ("full_labels", "event_labels", "complement_labels"):
        assert batch[name].shape[-1] == 6


def test_frames_instead_of_features(processor):
    rows = [
        {"captions": ["A dog."], "pixel_values_videos": np.ones((2, 3, 4, 4), np.float32)},
        {"captions": ["A man."], "pixel_values_videos": np.ones((1, 3, 4, 4), np.float32)},
    ]
    batch = SailDataCollator(processor)(rows)
    assert batch["pixel_values_videos"].shape == (2, 2, 3, 4, 4) and "video_features" not in batch
    assert batch["pixel_values_videos"][1, 1].eq(0).all()
    assert batch["video_attention_mask"].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"captions": []}, "at least one caption"),
        ({"captions": ["A dog.", ""]}, "at least one word"),
        ({"caption_features": np.zeros((1, 2))}, "caption_features"),
        ({"transition_features": np.zeros((0, 2))}, "transition_features"),
        ({"transition_features": np.zeros((3, 2))}, "transition_features"),
        ({"caption_features": np.zeros((5, 2))}, "caption_features"),
        ({"frame_caption_features": np.zeros((2, 2))}, "frame_caption_features"),
        ({"frame_caption_features": None}, "frame_caption_features"),
    ],
)
def test_rows_that_do_not_fit_are_named(processor, change, words):
    with pytest.raises(ValueError, match=words):
        SailDataCollator(processor)([{**ROWS[0], **change}, ROWS[1]])


def test_a_row_without_a_video_is_an_error(processor):
    with pytest.raises(ValueError, match="video_features"):
        SailDataCollator(processor)([{"captions": ["A dog."]}])


def test_a_column_in_a_part_of_the_rows_is_an_error(processor):
    """Its loss would otherwise vanish without a word."""
    with pytest.raises(ValueError, match="caption_features"):
        SailDataCollator(processor)([ROWS[0], {**ROWS[1], "caption_features": None}])


def test_tensors_as_rows(processor):
    changed = {"video_features": tensor([[1.0, 2.0]]), "caption_features": tensor([[1.0, 0.0], [0.0, 1.0]])}
    rows = [{**ROWS[0], **changed, "frame_caption_features": tensor([[3.0, 4.0]])}]
    batch = SailDataCollator(processor)(rows)
    assert batch["video_features"].tolist() == [[[1, 2]]]
    assert batch["caption_features"].tolist() == [[[1, 0], [0, 1]]]
