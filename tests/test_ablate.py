"""training/ablate.py: presets, data left out, runs that are kept, and the table with its paired test."""

import json
from pathlib import Path

import ablate
import numpy as np
import pytest
import train
import yaml
from ablation_table import COLUMNS, cell, coverage_table, paired_test, table
from datasets import Dataset
from training_place import make_place

PRESETS = sorted(Path(ablate.__file__).parent.glob("ablations/*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_say_what_train_understands(path, tmp_path):
    study = ablate.Study(ablate.AblateArguments(preset=path, dataset="data", output=tmp_path))
    for name in study.preset.variants:
        settings = study.settings(name, 0)
        train.configured(study.preset.config, **{**settings["train"], "output_dir": str(tmp_path)})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"variants": {"a": {"trian": {}}}}, "Variant 'a' has trian; expected any of train"),
        ({"variants": {"a": {"start": "b"}, "b": {}}}, "'a' needs 'b', which is no variant before it"),
        ({"columns": ["f2"]}, "`columns` has f2; expected any of soda_c"),
        ({"title": None, "config": None, "variants": {"a": {"published": {"F1": 57}}}}, "`published` of 'a' has F1"),
    ],
)
def test_presets_that_say_something_else(tmp_path, change, message):
    path = tmp_path / "preset.yaml"
    path.write_text(yaml.safe_dump({"title": "x", "config": "x.yaml", "variants": {"a": {}}, **change}))
    with pytest.raises(ValueError, match=message):
        ablate.Preset.read(path)


# --- data ---------------------------------------------------------------------------------------------------------


def rows(num_videos: int = 200) -> Dataset:
    """Four captions a video, whose features say which caption of which video they are of."""
    captions = [[f"{video}.{i}" for i in range(4)] for video in range(num_videos)]
    features = [[[video, i] for i in range(4)] for video in range(num_videos)]
    return Dataset.from_dict(
        {
            "captions": captions,
            "caption_features": features,
            "transition_features": [of_video[1:] for of_video in features],
            "video_features": features,
        }
    ).with_format("numpy")


def test_a_share_of_the_captions_stays_in_order_with_its_features():
    data = ablate.thinned(rows(), 0.5, 1.0, seed=0)
    numbers = []
    for row in data:
        assert [f"{int(video)}.{int(i)}" for video, i in row["caption_features"]] == list(row["captions"])
        assert list(row["captions"]) == sorted(row["captions"]) and len(row["captions"]) >= 1
        numbers.append(len(row["captions"]))
    # Half of four, and one where none was drawn: 2 + 1/16.
    assert np.mean(numbers) == pytest.approx(2.06, abs=0.2)
    assert "transition_features" not in data.column_names
    other = ablate.thinned(rows(), 0.5, 1.0, seed=1)
    assert list(map(list, data["captions"])) != list(map(list, other["captions"]))


def test_synthetic_captions_that_are_left_out_are_zero():
    data = ablate.thinned(rows(), 1.0, 0.25, seed=0)
    before = np.stack(rows()["transition_features"][:])
    found = np.stack([np.stack(row["transition_features"]) for row in data])
    kept = found.any(-1)
    assert kept.mean() == pytest.approx(0.25, abs=0.05)
    np.testing.assert_array_equal(found, before * kept[..., None])
    whole = rows()
    assert list(map(list, data["captions"])) == list(map(list, whole["captions"]))
    assert ablate.thinned(whole, 1.0, 1.0, seed=0) is whole


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory, parts):
    """A place with `preset.yaml`, and the words that run it."""
    place = make_place(tmp_path_factory.mktemp("ablate"), parts)
    preset = {
        "title": "A small study",
        "config": "tiny.yaml",
        "columns": ["f1", "lift", "cider", "event_count_error", "width_sd_mean", "updates", "train_minutes"],
        "look_every": 2,
        "variants": {
            "first stage": {"train": {"localization_epochs": 0, "method": "ilcacm"}, "rows": {}},
            "sail": {
                "train": {"captioning_epochs": 0, "method": "sail"},
                "start": "first stage",
                "keep_transitions": 0.5,
                "counts": "first stage",
                "rows": {
                    "masks": {"localization": "masks"},
                    "generated": {"captions": "generated", "alignment": "ordered"},
                    "given": {"captions": "given", "alignment": "unordered"},
                },
                "published": {"f1": 57.0},
            },
        },
    }
    (place / "preset.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    words = [str(place / "preset.yaml"), "--dataset", str(place / "data"), "--output", str(place / "study")]
    words += ["--seeds", "0", "--metrics", "localization", "controls"]
    ablate.main(words)
    return place, words


def files(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")
    }


def test_a_study_writes_a_table(study):
    place, _ = study
    text = (place / "study" / "table.md").read_text()
    content = json.loads((place / "study" / "table.json").read_text())
    assert list(content["rows"]) == ["sail, masks", "sail, generated", "sail, given"]
    masks = content["rows"]["sail, masks"]["seeds"]["0"]
    assert masks["updates"] == 2 and masks["num_videos"] == 3 and masks["train_minutes"] > 0
    assert "| *published* | *57.0* |" in text and "Not measured: CIDEr." in text
    assert "| *equal spans, true numbers* |" in text
    given = content["rows"]["sail, given"]["seeds"]["0"]
    assert given["event_count_error"] == 0 and given["event_count_accuracy"] == 1
    looks = json.loads((place / "study" / "seed_0" / "sail" / "looks.json").read_text())
    assert [look["step"] for look in looks] == [0, 2]
    assert [len(spans[0]) for spans in looks[0]["shown"].values()] == [3, 2, 1]
    assert masks["width_sd_mean"] == looks[-1]["width_sd_mean"]
    assert (place / "study" / "curves.png").exists() and (place / "study" / "masks.png").exists()


def test_what_is_finished_is_kept_and_other_settings_are_refused(study, capsys):
    place, words = study
    before = files(place / "study" / "seed_0")
    ablate.main(words)
    assert files(place / "study" / "seed_0") == before
    with pytest.raises(SystemExit, match=r"other settings \(train; see .*choose another --output"):
        ablate.main([*words, "--training", '{"learning_rate": 0.5}'])
    with pytest.raises(SystemExit, match=r"scores of other settings \(masks, generated, given\)"):
        ablate.main([*words[:-1], "localization"])


def test_a_run_of_another_process_is_left_to_it(study, capsys):
    place, words = study
    first = place / "study" / "seed_1" / "first_stage"
    with ablate.claimed(first) as mine:
        assert mine
        ablate.main([word.replace("0", "1") if word == "0" else word for word in words])
    assert "2 runs are another process's" in capsys.readouterr().out
    assert not (place / "study" / "seed_1" / "sail" / "settings.json").exists()


# --- the table ----------------------------------------------------------------------------------------------------


def events(*spans: tuple[float, float]) -> list[dict]:
    return [{"timestamp": list(span), "sentence": "a"} for span in spans]


REFERENCES = {
    f"v{i}": [{"timestamps": [[0.0, 4.0], [6.0, 10.0]], "sentences": ["a", "b"], "duration": 10.0}] for i in range(12)
}


def test_the_paired_test():
    right = {0: {"events": {video: events((0, 4), (6, 10)) for video in REFERENCES}}}
    wrong = {0: {"events": {video: events((4.5, 5.5)) for video in REFERENCES}}}
    references = {0: REFERENCES}
    # Of 2^12 ways to exchange, only none and all are as far apart: p is 2 / 4096, give or take what is drawn.
    assert paired_test(right, wrong, references) == pytest.approx(2 / 4096, abs=1e-3)
    assert paired_test(right, right, references) == 1.0
    # One video: exchanged or not, the two are as far apart.
    one = {0: {"v0": REFERENCES["v0"]}}
    assert paired_test(right, wrong, one) == 1.0
    assert paired_test(right, {1: wrong[0]}, {**references, 1: REFERENCES}) is None


def test_means_and_deviations_over_seeds():
    assert cell([0.4, 0.6], COLUMNS["f1"]) == "50.00 ± 14.14"
    assert cell([0.5], COLUMNS["center_correlation"]) == "0.50"
    scores = {seed: {"f1": f1, "lift": None, "events": {}} for seed, f1 in enumerate((0.4, 0.6))}
    references = dict.fromkeys(scores, REFERENCES)
    some = {"a": scores, "b": {0: {"f1": 0.3, "lift": 0.1, "events": {}}}}
    text, content = table("T", ["f1", "lift", "cider"], some, {"b": {"f1": 57.0}}, references, "A note.")
    lines = text.splitlines()
    assert "| a | 50.00 ± 14.14 |  |  |" in lines and "| b (seeds 0) | 30.00 | 10.00 | 1.0000 |" in lines
    assert lines[lines.index("| b (seeds 0) | 30.00 | 10.00 | 1.0000 |") + 1] == "| *published* | *57.0* |  |  |"
    assert "Not measured: CIDEr." in lines and "A note." in lines
    assert content["rows"]["a"]["seeds"][1]["f1"] == 0.6


def test_coverage_by_number_of_events():
    # Overlapping events count once: 0 to 5 of 10; the other video is covered from 0 to 9.
    half = [{"timestamps": [[1.0, 5.0], [0.0, 3.0]], "sentences": ["a", "b"], "duration": 10.0}]
    most = [{"timestamps": [[0.0, 3.0], [3.0, 6.0], [6.0, 9.0]], "sentences": ["a", "b", "c"], "duration": 10.0}]
    lines = coverage_table({"half": half, "most": most}).splitlines()
    assert "| 50 to 75 % of the video | 50.0 | 0.0 | 0.0 | 0.0 |" in lines
    assert "| 75 to 100 % of the video | 0.0 | 50.0 | 0.0 | 0.0 |" in lines
