"""The simulation behind the figures of the alignment: what it simulates, and that its rows say what happened."""

import json

import numpy as np
import pytest
import simulate_alignment
from simulate_alignment import Condition, SimulatedClip, SimulationArguments, main, markdown_table, simulate

NOUNS = "man woman dog child horse boat guitar kitchen river mountain crowd cat".split()
VERBS = "runs jumps sings cooks paints climbs swims dances sleeps throws drives plays".split()


@pytest.fixture
def annotations(tmp_path):
    """40 videos of 60 s with 2 to 4 events, one after the other with pauses of 2 s; two files of the same videos."""
    rng = np.random.default_rng(0)
    videos = {}
    for v in range(40):
        bounds = [0, *sorted(rng.choice(np.arange(6, 54, 6), rng.integers(1, 4), replace=False).tolist()), 60]
        events = [[start + 1.0, end - 1.0] for start, end in zip(bounds, bounds[1:], strict=False)]
        words = zip(rng.permutation(NOUNS), rng.permutation(VERBS), events, strict=False)
        sentences = [f"A {noun} {verb}." for noun, verb, _ in words]
        videos[f"v_{v}"] = {"duration": 60.0, "timestamps": events, "sentences": sentences}
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text(json.dumps(videos))
    return tmp_path


def simulated(annotations, condition, seed=0):
    rows = simulate_alignment.read_rows(str(annotations / "val.json"))
    clip = SimulatedClip([caption for row in rows for caption in row["captions"]], np.random.default_rng(1))
    arguments = SimulationArguments(annotations=["val.json"], train="train.json")
    rng = np.random.default_rng(seed)
    return rows, [simulate(row, condition, clip, arguments, rng) for row in rows]


def test_without_noise_frames_are_most_similar_to_their_own_caption(annotations):
    rows, videos = simulated(annotations, Condition(noise=0.0))
    for row, video in zip(rows, videos, strict=True):
        assert video.similarities.shape == (len(row["captions"]), 32) and video.hits.all()
        np.testing.assert_allclose(video.spans * 60, row["timestamps"])


def test_corruptions_are_what_they_are_called(annotations):
    def accuracy(condition):
        return np.concatenate([video.hits for video in simulated(annotations, condition)[1]]).mean()

    assert accuracy(Condition(0.2)) > accuracy(Condition(0.8)) + 0.1
    assert accuracy(Condition(0.1)) > accuracy(Condition(0.1, wrong_words=1.0)) + 0.2

    rows, videos = simulated(annotations, Condition(0.0, swapped=True))
    for row, video in zip(rows, videos, strict=True):
        moved = (~np.isclose(video.spans * 60, row["timestamps"])).any(axis=1).sum()
        assert moved == (2 if len(row["captions"]) > 1 else 0) and video.hits.all()

    rows, videos = simulated(annotations, Condition(0.0, uncaptioned=0.4))
    kept = sum(len(video.spans) for video in videos) / sum(len(row["captions"]) for row in rows)
    assert 0.6 < kept < 0.95 and all(len(video.spans) for video in videos)

    _, videos = simulated(annotations, Condition(0.1, frames_per_second=2.0))
    assert videos[0].similarities.shape[1] == 121


def test_noise_has_unit_variance_and_lasts():
    noise = simulate_alignment.lasting_noise(400, 40.0, np.random.default_rng(0))
    assert noise.std() == pytest.approx(1, abs=0.05)
    lag = 10  # 10 of 400 frames at a decay of 1/40 of the video
    assert np.mean(noise[lag:] * noise[:-lag]) == pytest.approx(np.exp(-1), abs=0.05)


def test_the_report_separates_content_from_chance(annotations):
    arguments = SimulationArguments(
        annotations=[str(annotations / "val.json")] * 2,
        train=str(annotations / "train.json"),
        noise=[0.05],
        corrupted_noise=0.05,
        num_train_videos=10,
    )
    result = main(arguments)
    json.dumps(result)
    assert "simulated" in result and result["num_videos"] == 40 and result["num_train_videos"] == 10
    rows = {row["condition"]: row for row in result["rows"]}
    clean, wrong = rows["noise 0.05"], rows["noise 0.05, 100% of the words wrong"]
    assert clean["ordered_f1"] > 85 > clean["equal_spans_f1"] and clean["ordered_lift"] > 20
    assert wrong["ordered_lift"] < clean["ordered_lift"] - 15
    swapped = rows["noise 0.05, two neighbouring captions swapped in every video"]
    assert swapped["unordered_f1"] > swapped["ordered_f1"] + 20
    for name, parameters in result["parameters"].items():
        best = max(setting["train_f1"] for setting in result["tried"] if setting["method"] == name)
        assert any(s["train_f1"] == best and parameters.items() <= s.items() for s in result["tried"])
    table = markdown_table(result["rows"]).splitlines()
    assert len(table) == 2 + len(result["rows"]) and len({line.count("|") for line in table}) == 1
    assert main(arguments)["rows"] == result["rows"]


def test_annotations_without_times_are_refused(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"video": "a", "captions": ["A dog runs."]}\n')
    with pytest.raises(ValueError, match="no video with duration and time stamps"):
        simulate_alignment.read_rows(str(path))
