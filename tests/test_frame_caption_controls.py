"""The controls of `sbs`: what stands for the changes between captions of frames, and the tables."""

from unittest import mock

import frame_caption_controls as controls
import numpy as np
import torch
from tiny import make_model

from sail_hf import SailDataCollator
from sail_hf.loss_sail import LossInputs, frame_changes


def test_controls_change_what_opens_the_gates_and_nothing_else(processor):
    generator = torch.Generator().manual_seed(0)
    names = ("video_features", "frame_caption_features", "caption_features")
    row = {name: torch.randn(2 if name == "caption_features" else 16, 24, generator=generator) for name in names}
    # The captions change once between the two events, the frames in another place.
    for name, place in (("frame_caption_features", 4), ("video_features", 11)):
        row[name] = torch.where(torch.arange(16)[:, None] < place, row[name][0], row[name][1])
    batch = SailDataCollator(processor)([{"captions": ["A man lifts a bar.", "He puts it down."], **row}])
    model = make_model(processor, method="sbs", num_frames=16, mask_generator="progress", attraction_theta=-1.0)
    seen = {}
    for name, (_, changes) in controls.VARIANTS.items():
        found = {}

        def spy(inputs, changes=changes, found=found):
            found["changes"] = changes(inputs) if changes else frame_changes(inputs.frame_caption_features)
            return found["changes"]

        with mock.patch.object(LossInputs, "changes", property(spy)):
            output = model(**batch)
        seen[name] = (*found.values(), output.loss_similarity)
    captions, frames, random = (seen[name] for name in ("`sbs`", "gate on raw CLIP frames", "random gate"))
    assert captions[0].argmax() == 3 and frames[0].argmax() == 10
    assert torch.equal(random[0].sort().values, captions[0].sort().values)
    assert all(torch.equal(one[1], captions[1]) for one in seen.values())


def rows_of(captions_fit: bool) -> list[dict]:
    """A video of 21 frames and 20 s with events at 2 to 8 and 11 to 18 s, whose frames' captions tell them, or nothing."""
    what = np.full(21, 2)
    what[2:9], what[11:19] = 0, 1
    features = np.eye(4, dtype=np.float32)
    frames = features[what] if captions_fit else features[[3] * 21]
    captions = {"video_id": "v", "duration": 20.0, "captions": ["A.", "B."], "timestamps": [[2, 8], [11, 18]]}
    return [{**captions, "caption_features": features[:2], "frame_caption_features": frames}]


def test_times_by_captions_of_frames_alone():
    (row,) = rows_of(captions_fit=True)
    spans = controls.spans_of_alignment(row, "frame_caption_features")
    # A frame stands for half a second on either side.
    torch.testing.assert_close(spans * 20, torch.tensor([[1.5, 8.5], [10.5, 18.5]]))
    scores = controls.scores_of([row], [spans])
    # tIoU 6 / 7 and 7 / 8: above 0.3, 0.5 and 0.7, below 0.9.
    assert scores["f1"] == 0.75
    off = controls.scores_of([row], [torch.tensor([[0.0, 0.15], [0.85, 1.0]])])
    assert off["f1"] == 0


def test_gates_at_true_centres():
    # Between the centres 5 and 14.5 s, frames 5 to 14: nine changes, two of which are 1: too many to stand out (n < 5 k).
    assert controls.gates_at_true_centres(rows_of(True), "frame_caption_features") == {"open": 0.0, "between": 0.0}
    (row,) = rows_of(True)
    for place, between in ((10, 1.0), (13, 0.0)):
        row["frame_caption_features"] = np.eye(4, dtype=np.float32)[(np.arange(21) >= place).astype(int)]
        assert controls.gates_at_true_centres([row], "frame_caption_features") == {"open": 1.0, "between": between}


def test_tables_say_shares_in_percent_and_leave_out_what_there_is_not():
    rows = {"`sbs`": {"f1": 0.4567, "width_correlation": 0.123, "open_gates": 0.2}}
    rows["none"] = {"f1": 0.4, "width_correlation": None, "open_gates": None}
    assert controls.format_tables({"masks": rows}).splitlines() == [
        "| masks | f1 | width_correlation | open_gates |",
        "|---|---:|---:|---:|",
        "| `sbs` | 45.7 | 0.12 | 20.0 |",
        "| none | 40.0 |  |  |",
    ]
