"""Numbers of events by frames: evidence against segmentations one by one, what a fit learns, and what generation makes of it."""

import datasets
import fit_event_counter
import pytest
import torch
from tiny import make_model, make_processor

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.caption_memory_sail import SailCaptionMemory
from sail_hf.counting_sail import SailEventCounter
from sail_hf.segments_sail import (
    COHESION_WEIGHT,
    GAP_COST,
    all_spans,
    cohesion,
    cohesive_spans,
    count_evidence,
    length_weights,
    span_probabilities,
)


def blocks(counts, num_frames=12, size=24, seed=0):
    """Videos `(V, num_frames, size)` of so many equal stretches of random content, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    videos = []
    for count in counts:
        contents = torch.randn(count, size, generator=generator)
        videos.append(contents[torch.arange(num_frames) * count // num_frames])
    return torch.stack(videos) + 0.1 * torch.randn(len(counts), num_frames, size, generator=generator)


def test_evidence_is_the_weight_of_all_segmentations_into_that_many_events():
    features = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    frame_mask = torch.ones(2, 8)
    frame_mask[1, 6:] = 0
    found = count_evidence(features, frame_mask, 7)
    start, end, _ = all_spans(8, features.device)
    lengths = frame_mask.sum(1).long()
    assert found[1, 6] == -torch.inf  # seven events in six frames
    assert found[1, :6].isfinite().all()
    for number in (1, 2, 5):
        counts = torch.full((2,), number)
        weights = COHESION_WEIGHT * cohesion(features, frame_mask, start, end, 1)
        weights = (weights + length_weights(counts, lengths, start, end))[:, None].expand(-1, number, -1)
        _, total = span_probabilities(weights, GAP_COST / lengths, counts, lengths, start, end, 8)
        torch.testing.assert_close(found[:, number - 1], total)


def test_padding_changes_no_evidence():
    model = make_model(make_processor(), event_counter=True)
    features = blocks([2], num_frames=6)
    alone = model.model.event_counter.evidence(features, torch.ones(1, 6))
    padded = torch.nn.functional.pad(features, (0, 0, 0, 2))
    mask = (torch.arange(8) < 6)[None].long()
    torch.testing.assert_close(model.model.event_counter.evidence(padded, mask), alone)


def test_a_fit_learns_numbers_and_forgets_what_was_fitted_before():
    counter = SailEventCounter(make_model(make_processor(), num_queries=4).config)
    counts = torch.arange(80) % 4 + 1
    frames, unseen = blocks(counts.tolist()), blocks(counts.tolist(), seed=1)
    mask = torch.ones(80, 12)
    counter.fit(counter.evidence(frames, mask), (counts + 1).clamp(max=4))
    assert (counter(unseen, mask).argmax(1) + 1 == counts).float().mean() < 0.5
    counter.fit(counter.evidence(frames, mask), counts)
    assert (counter(unseen, mask).argmax(1) + 1 == counts).float().mean() > 0.9


def test_more_events_than_frames_are_never_the_answer():
    counter = SailEventCounter(make_model(make_processor()).config)
    torch.nn.init.zeros_(counter.linear.weight)
    counter.linear.bias.data = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert counter(torch.randn(1, 2, 24), torch.ones(1, 2)).argmax(1) + 1 == 2


def test_generation_counts_by_frames_without_a_caption_of_the_whole_video():
    model = make_model(make_processor(), event_counter=True)
    model.model.event_counter.linear.bias.data[2] = 5.0
    output = model.generate(video_features=torch.randn(2, 8, 24), counting="frames", localization="cohesion")
    assert output.num_events.tolist() == [3, 3]
    assert output.full_sequences is None
    assert len(output.sequences) == 6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"counting": "fingers"}, "must be 'captions' or 'frames', found 'fingers'"),
        ({"counting": "frames"}, "fit_event_counter.py"),
        ({"counting": "frames", "localization": "alignment"}, "as many events as sentences"),
    ],
)
def test_counting_that_cannot_be_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        make_model(make_processor()).generate(video_features=torch.randn(1, 8, 24), **options)


def test_the_counter_changes_no_other_weight():
    processor = make_processor()
    without, with_counter = make_model(processor).state_dict(), make_model(processor, event_counter=True).state_dict()
    added = with_counter.keys() - without.keys()
    assert added == {"model.event_counter.linear.weight", "model.event_counter.linear.bias"}
    assert not any(with_counter[name].any() for name in added)
    assert without.keys() < with_counter.keys()


def test_the_recipe_writes_a_model_that_counts(tmp_path, capsys):
    processor, counts = make_processor(), [1, 2, 3, 4] * 10
    make_model(processor, mask_generator="fixed").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = [
        {"captions": ["A dog runs."] * count, "video_features": video.tolist()}
        for count, video in zip(counts, blocks(counts, num_frames=8), strict=True)
    ]
    rows.append({"captions": [], "video_features": rows[0]["video_features"]})  # says nothing of numbers
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    command = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "data")]
    fit_event_counter.main([*command, "--output", str(tmp_path / "counting")])
    assert "right in 100.0 % of 8 videos held out" in capsys.readouterr().out
    model = SailForDenseVideoCaptioning.from_pretrained(tmp_path / "counting").eval()
    output = model.generate(video_features=blocks([1, 3], num_frames=8, seed=5))
    assert output.num_events.tolist() == [1, 3]
    with pytest.raises(SystemExit, match="exists: choose another --output"):
        fit_event_counter.main([*command, "--output", str(tmp_path / "counting")])


def test_alignment_has_as_many_events_as_sentences_whatever_the_model_counts_by_itself():
    model = make_model(make_processor(), event_counter=True)
    model.generation_config.update(counting="frames", localization="cohesion")
    assert model.resolve_generation_config().counting == "frames"
    assert model.resolve_generation_config(localization="alignment").counting == "captions"


def test_a_number_that_is_given_leaves_nothing_to_count():
    model = make_model(make_processor(), event_counter=True)
    with pytest.raises(ValueError, match="leave out counting"):
        model.generate(video_features=torch.randn(1, 8, 24), num_events=torch.tensor([2]), counting="frames")


def test_a_memory_replaces_frames_by_the_captions_near_them():
    config = make_model(make_processor(), caption_memory=3, caption_memory_sharpness=100.0).config
    memory = SailCaptionMemory(config)
    captions = 5 * torch.eye(3, config.feature_size)
    memory.fill(captions)
    frames = torch.stack([captions[1] + 0.1, captions[2] + 0.3]).expand(2, -1, -1)
    exclude = torch.tensor([[False, False, False], [False, True, False]])
    seen = memory(frames, exclude)
    torch.testing.assert_close(seen[0], captions[1:] / 5)
    assert seen[1, 0, 1] == 0  # what the video may not use leaves no trace
    torch.testing.assert_close(memory(frames * 7, exclude), seen)
    with pytest.raises(ValueError, match=r"shape \(3, 24\)"):
        memory.fill(captions[:2])


def test_a_memory_hears_through_noise():
    """Frames of three contents under much noise: their captions' cohesion finds the bounds better than the frames' own."""
    generator = torch.Generator().manual_seed(3)
    contents = torch.nn.functional.normalize(torch.randn(30, 24, generator=generator), dim=-1)
    model = make_model(make_processor(), caption_memory=30, caption_memory_sharpness=3.0).eval()
    model.model.caption_memory.fill(contents)
    which = torch.randint(30, (40, 3), generator=generator).repeat_interleave(4, dim=1)
    noise = torch.randn(40, 12, 24, generator=generator)
    frames, mask, valid = contents[which] + 0.3 * noise, torch.ones(40, 12), torch.ones(40, 3, dtype=torch.bool)
    true = torch.tensor([[0, 1], [1, 2], [2, 3]]) / 3
    raw, seen = (
        (cohesive_spans(features, mask, valid) - true).abs().mean()
        for features in (frames, model.model.as_captions(frames))
    )
    assert seen < raw


def test_generation_and_the_cohesion_generator_look_through_the_memory():
    model = make_model(make_processor(), caption_memory=2, mask_generator="cohesion", event_counter=True).eval()
    model.model.caption_memory.fill(torch.eye(2, 24))
    torch.nn.init.eye_(model.model.event_counter.linear.weight)
    frames, number = torch.randn(1, 8, 24, generator=torch.Generator().manual_seed(0)), torch.tensor([3])
    seen = model.model.as_captions(frames)
    expected = cohesive_spans(seen, torch.ones(1, 8), torch.ones(1, 3, dtype=torch.bool)).mean(-1)
    for localization in ("masks", "cohesion"):
        output = model.generate(video_features=frames, num_events=number, localization=localization)
        torch.testing.assert_close(output.event_centers, expected)
    counted = model.generate(video_features=frames, localization="cohesion", counting="frames").num_events
    assert counted == model.model.event_counter(seen, torch.ones(1, 8)).argmax(1) + 1


def test_the_recipe_gives_a_memory_and_takes_it_away(tmp_path):
    processor, counts = make_processor(), [1, 2, 3, 4] * 10
    make_model(processor, mask_generator="fixed").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = [
        {
            "captions": ["A dog runs."] * count,
            "video_features": video.tolist(),
            "caption_features": video[torch.arange(count) * 8 // count].tolist(),
        }
        for count, video in zip(counts, blocks(counts, num_frames=8), strict=True)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    command = ["--dataset", str(tmp_path / "data"), "--model"]
    remembers = ["--caption_memory", "60", "--output", str(tmp_path / "remembers")]
    fit_event_counter.main([*command, str(tmp_path / "model"), *remembers])
    model = SailForDenseVideoCaptioning.from_pretrained(tmp_path / "remembers")
    assert model.config.caption_memory == 60
    assert model.config.cohesion_weight == 64
    torch.testing.assert_close(
        model.model.caption_memory.features.float().norm(dim=-1), torch.ones(60), atol=1e-3, rtol=0
    )
    fit_event_counter.main([*command, str(tmp_path / "remembers"), "--output", str(tmp_path / "forgot")])
    model = SailForDenseVideoCaptioning.from_pretrained(tmp_path / "forgot")
    assert (model.model.caption_memory, model.config.caption_memory, model.config.cohesion_weight) == (None, 0, 16)


def test_no_video_is_counted_through_its_own_captions():
    model = make_model(make_processor(), event_counter=True, num_queries=4)
    video = blocks([2, 2], num_frames=8)
    rows = {"caption_features": [v[:2].numpy() for v in video]}
    remembered = fit_event_counter.fill_memory(model, rows, 10)
    assert remembered.tolist() == [0, 0, 1, 1]
    data = datasets.Dataset.from_dict({"video_features": video.tolist()}).with_format("numpy")
    found = fit_event_counter.evidence_of(model, data, remembered)
    for i in (0, 1):
        only = (remembered == i)[None]
        seen, through_its_own = (model.model.as_captions(video[i : i + 1], exclude) for exclude in (only, ~only))
        evidence = model.model.event_counter.evidence
        torch.testing.assert_close(found[i : i + 1], evidence(seen, torch.ones(1, 8)))
        assert not torch.allclose(found[i : i + 1], evidence(through_its_own, torch.ones(1, 8)))
