"""The scores against hand-computed cases, brute force, pycocoevalcap's scorers and the recorded original programs."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import event, reference

from sail_hf import DenseVideoCaptioningMetric, metric_captions
from sail_hf.metric import checked_prediction, format_table
from sail_hf.metric_captions import (
    best_ordered_sum,
    bleu_parts,
    bleu_scores,
    cider_d,
    clean,
    meteor_score,
    meteor_statistics,
    ngram_counts,
    rouge_l,
    run_java,
)

# Captions: pieces


words = st.lists(st.sampled_from("a man runs the dog jumps over".split()), min_size=1, max_size=9).map(" ".join)
sentence_pairs = st.lists(st.tuples(words | st.just(""), words), min_size=1, max_size=5)


def as_coco(pairs):
    hypotheses = {i: [hypothesis] for i, (hypothesis, _) in enumerate(pairs)}
    return {i: [reference] for i, (_, reference) in enumerate(pairs)}, hypotheses


@settings(max_examples=60)
@given(sentence_pairs)
def test_cider_rouge_and_bleu_equal_pycocoevalcap(pairs):
    pytest.importorskip("pycocoevalcap.cider.cider")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    grams = [(ngram_counts(hypothesis), ngram_counts(reference)) for hypothesis, reference in pairs]
    assert cider_d(grams) == pytest.approx(Cider().compute_score(*as_coco(pairs))[0], abs=1e-9)
    own_rouge = np.mean([rouge_l(hypothesis, reference) for hypothesis, reference in pairs])
    assert own_rouge == pytest.approx(Rouge().compute_score(*as_coco(pairs))[0], abs=1e-9)
    own_bleu = bleu_scores(np.sum([bleu_parts(*pair) for pair in grams], axis=0))
    np.testing.assert_allclose(own_bleu, Bleu().compute_score(*as_coco(pairs), verbose=0)[0], atol=1e-9)


def test_one_pair_has_no_cider_even_if_identical():
    counts = ngram_counts("a man runs over the dog")
    assert cider_d([(counts, counts)]) == 0
    other = ngram_counts("two women play chess outside")
    assert cider_d([(counts, counts), (other, other)]) == pytest.approx(10)


def test_rouge_l_by_hand():
    """LCS "a man the dog" of 4 in 5 and 6 words."""
    precision, recall = 4 / 5, 4 / 6
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l("a man sees the dog", "a man runs over the dog") == pytest.approx(expected)
    assert rouge_l("", "a man") == 0


@settings(max_examples=60)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 1000))
def test_ordered_matching_agrees_with_trying_everything(rows, columns, seed):
    weights = np.random.default_rng(seed).random((rows, columns))

    def best(i, j):
        if i == rows or j == columns:
            return 0.0
        return max(best(i + 1, j), best(i, j + 1), weights[i, j] + best(i + 1, j + 1))

    assert best_ordered_sum(weights) == pytest.approx(best(0, 0))


def test_clean_replaces_what_is_not_ascii():
    assert clean("caf\u00e9\u2028 a\n\tman \U0001f600runs\ud800") == "caf a man runs"


def test_meteor_aggregate_equals_what_the_program_itself_says(java_tools):
    pairs = [
        ("a man is throwing a ball quickly in the park", "the guy threw a ball fast in a park"),
        ("a man runs", "a man runs"),
        ("a woman runs", "the lady is running # @"),
        ("a man dances with the dog", "man is dancing with dogs outside"),
        ("", "a man runs"),
        ("a cat", "qxzjvkqwxzjvqk"),
        # Phrases of several words, and punctuation that METEOR's normal form takes apart, also inside of a phrase.
        ("they take part in the race at the moment", "they participate in the race now"),
        ("the man 's 7-year-old dog starts at 3:30", "a man's dog of 7 years begins at half past 3"),
        ("he has a bit of a rest in the 1980's", "he takes a little-bit of rest ( e.g. ) in the 80 's"),
    ]
    statistics = meteor_statistics(pairs, java_tools, timeout=300)
    program = [java_tools.java, "-jar", str(java_tools.meteor_jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    # EVAL takes the statistics of segments, and prints the score of each and then of all.
    segments = " ||| ".join(" ".join(str(value) for value in row) for row in statistics)
    asked = "".join(f"SCORE ||| {reference} ||| {hypothesis}\n" for hypothesis, reference in pairs)
    said = subprocess.run(
        program, input=asked + f"EVAL ||| {segments}\n", capture_output=True, text=True, check=True, timeout=300
    ).stdout.splitlines()
    raw = np.array([line.split() for line in said[: len(pairs)]], dtype=float)
    raw[[1, 6], 20] = 0  # every word matched, in one chunk
    np.testing.assert_array_equal(statistics, raw)
    *each, total = map(float, said[len(pairs) :])
    np.testing.assert_allclose(meteor_score(statistics), each, atol=1e-12)
    assert meteor_score(statistics.sum(axis=0)) == pytest.approx(total, abs=1e-12)
    assert meteor_score(statistics[1]) == 1


def test_sentences_that_lose_letters_are_counted_and_shown(compute, java_tools, caplog):
    truth = [reference(event(0, 5, "Stra\u00dfe"), event(5, 9, "A dog jumps."), duration=10)]
    prediction = [[event(0, 5, "caf\u00e9"), event(5, 9, "\u72d7\u8df3"), event(2, 3, "A dog.")]]
    with caplog.at_level(logging.WARNING):
        compute(prediction, truth, ["localization"])
    assert not caplog.text  # no sentence is scored
    with caplog.at_level(logging.WARNING):
        compute(prediction, truth, ["rouge_l"])
    assert "2 sentences change, e.g. 'caf\u00e9' becomes 'caf'" in caplog.text
    assert "1 become empty, e.g. '\u72d7\u8df3'" in caplog.text


# Java that fails


def test_a_program_that_is_stuck_is_ended_and_named():
    with pytest.raises(RuntimeError, match=r"METEOR: Java printed nothing for 1 s after 1 of 3 lines(.|\n)*loading"):
        script = (
            "import sys, time; print('x', flush=True); print('loading', file=sys.stderr, flush=True); time.sleep(60)"
        )
        run_java([[sys.executable, "-c", script]], [3], "METEOR", timeout=1)


@pytest.mark.parametrize(
    "script", ["print('x'); raise SystemExit('heap space')", "import sys; sys.stderr.write('heap space')"]
)
def test_a_program_that_fails_or_prints_too_little_is_an_error(script):
    with pytest.raises(RuntimeError, match="heap space"):
        run_java([[sys.executable, "-c", script]], [2], "METEOR", timeout=60)


def test_much_output_on_both_streams_does_not_block():
    script = "import sys\nfor i in range(50000): print('x' * 50); print('y' * 50, file=sys.stderr)"
    first, second = run_java([[sys.executable, "-c", script]] * 2, [50000, 50000], "METEOR", timeout=60)
    assert len(first) == len(second) == 50000


def test_without_java_parts_the_rest_is_computed(compute, monkeypatch, caplog):
    monkeypatch.setattr(metric_captions.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(metric_captions.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        scores = compute([[event(0, 1)]], [reference(event(0, 1))], ["localization", "meteor", "cider"])
    assert scores["f1"] == 1 and "meteor" not in scores
    for part in ("meteor, cider", "pycocoevalcap", "Java", 'pip install "sail-hf[metrics]"'):
        assert part in caplog.text
    with pytest.raises(ImportError, match="cannot compute meteor"):
        compute([[event(0, 1)]], [reference(event(0, 1))], ["meteor"])


# The whole metric


def test_every_name_on_a_tiny_set(compute, java_tools):
    predictions = [
        [event(0, 5, "A man runs over the caf\u00e9."), event(90, 99, "Something else.")],
        [event(0, 5, "A dog jumps."), event(5, 10, "")],
        [],
    ]
    references = [
        reference(event(0, 5, "A man runs over the caf\u2014."), event(5, 9, "A dog jumps."), duration=99.5),
        reference(event(0, 5, "A dog jumps."), event(5, 10, "It is over."), duration=10),
        reference(event(0, 5, "A dog jumps."), duration=10),
    ]
    every = ["localization", "controls", "meteor", "cider", "rouge_l", "bleu", "soda_c"]
    scores = compute(predictions, references, every)
    names = "meteor cider rouge_l bleu_1 bleu_2 bleu_3 bleu_4 bleu_mean soda_c precision recall f1 f1_mean_over_tious"
    for name in [
        *names.split(),
        *(f"{part}@{t}" for part in ("precision", "recall", "f1") for t in (0.3, 0.5, 0.7, 0.9)),
    ]:
        assert 0 < scores[name] < 10, name
    assert scores["num_lift_videos"] == 2
    json.dumps(scores, allow_nan=False)
    # SODA_c by hand: one identical pair of 2 predictions and 2 references in the first and in the second video (METEOR
    # is 1 for it and 0 for the empty sentence), so F1 1/2 each; the third video has no prediction.
    assert scores["soda_c"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    # ROUGE-L at every threshold: first video 1 and 0 (unmatched), second 1 and 0.
    assert scores["rouge_l"] == pytest.approx(1 / 3)
    table = format_table(scores, "tiny")
    assert "1 videos without a prediction (counted as zero)" in table
    for row in ("whole video", "equal spans 1/N, own counts", "SODA_c", "lift", "center r"):
        assert row in table
    assert compute(predictions, references, ["rouge_l"], missing="skip")["rouge_l"] == pytest.approx(1 / 2)
    none = compute([[], [], []], references, ["cider", "rouge_l", "bleu", "soda_c", "meteor"])
    assert all(none[name] == 0 for name in names.split() if name in none)


def test_the_protocols_differ_in_the_unmatched_reference(compute, java_tools):
    """A hypothesis that shares a sign with `abc123!@#` scores in 2018 only."""
    predictions, references = [[event(0, 1, "abc123!@#")]], [reference(event(5, 6))]
    scores = [compute(predictions, references, ["rouge_l"], protocol=year)["rouge_l"] for year in ("2018", "2021")]
    assert scores == [pytest.approx(1), 0]


def test_soda_takes_the_prediction_as_the_reference_unless_told_otherwise(compute, java_tools):
    predictions = [[event(0, 10, "A man is running.")]]
    references = [reference(event(0, 10, "A man is running through the woods with two large dogs."))]
    swapped, plain = (
        compute(predictions, references, ["soda_c"], soda_swapped=swap)["soda_c"] for swap in (True, False)
    )
    # Recall weighs .85: the short sentence is covered completely when it is the reference.
    assert swapped > plain + 0.1


def test_format_table_shows_what_there_is(compute):
    predictions, references = [[event(0, 10)], [event(0, 5)]], [reference(event(0, 10), duration=10)] * 2
    table = format_table(compute(predictions, references), "mine")
    assert "captions" not in table and "controls" not in table
    assert table.splitlines()[-1].split() == ["mine", "62.50", "62.50", "62.50", "62.50", "0.00"]
    table = format_table(compute(predictions[:1], references[:1], ["controls"]), "mine")
    assert table.splitlines()[-1].split() == ["mine", "n/a", "n/a", "n/a", "n/a"]


def test_add_batch_adds_up(compute, tmp_path):
    metric = DenseVideoCaptioningMetric(cache_dir=str(tmp_path))
    metric.add(prediction=[event(0, 10)], reference=reference(event(0, 10)))
    metric.add_batch(predictions=[[event(0, 10)]], references=[[reference(event(50, 60)), reference(event(70, 80))]])
    assert metric.compute(metrics=["localization"])["f1"] == 0.5


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([{"timestamp": [0]}], reference(event(0, 1)), r"predictions\[0\]\[0\]: expected .*sentence"),
        ([{"timestamp": [0], "sentence": "x"}], reference(event(0, 1)), r"expected the time stamp \[start, end\]"),
        ([event(0, float("nan"))], reference(event(0, 1)), r"expected the time stamp .* found \[0, nan\]"),
        ([event(0, 1, None)], reference(event(0, 1)), "expected the sentence as a string, found None"),
        ({"a": 1}, reference(event(0, 1)), "expected a list of events, found dict"),
        ([], {"timestamps": [[0, 1]], "sentences": []}, r"references\[0\]\[0\]: expected equally many"),
        ([], reference(), r"references\[0\]: no reference event"),
        ([], reference(event(0, 1), duration=-1), "expected a duration above 0 s"),
    ],
)
def test_malformed_input_is_named(compute, prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        compute([prediction], [truth])


@pytest.mark.parametrize(
    "options", [{"protocol": "2020"}, {"missing": "ignore"}, {"tious": [1.5]}, {"tious": []}, {"metrics": ["bert"]}]
)
def test_unknown_options_are_named(compute, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        compute([[]], [reference(event(0, 1))], **options)


def test_different_numbers_of_videos(compute):
    with pytest.raises(ValueError, match="predictions of 2 videos, but references of 1"):
        compute([[], []], [reference(event(0, 1))])


def test_evaluate_load_works_offline_from_anywhere(tmp_path):
    """As a user does it, also beside a script named evaluate.py, as training/ has one."""
    path = Path(metric_captions.__file__).with_name("metric.py")
    script = f"""
import evaluate
metric = evaluate.load({str(path)!r})
event, reference = {event(0, 4)!r}, {reference(event(0, 5))!r}
print(metric.compute(predictions=[[event]], references=[reference], metrics=["localization"])["recall@0.7"])
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    loaded = subprocess.run([sys.executable, "-c", script], **options)
    assert loaded.stdout.strip() == "1.0", loaded.stderr
    (tmp_path / "evaluate.py").write_text("raise SystemExit('the wrong evaluate')")
    environment["PYTHONPATH"] = str(path.parents[1])
    imported = subprocess.run([sys.executable, "-c", "import sail_hf.metric; print('fine')"], **options)
    assert imported.stdout.strip() == "fine", imported.stderr


# The recorded original programs


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def aligned(predictions: dict, files: list[dict]) -> dict:
    videos = list(dict.fromkeys(video for file in files for video in file))
    none = {"timestamps": [], "sentences": []}
    return {
        "predictions": [predictions.get(video, []) for video in videos],
        "references": [[file.get(video, none) for file in files] for video in videos],
    }


NAMES = {"METEOR": "meteor", "CIDEr": "cider", "Rouge-L": "rouge_l", "F1": "f1_mean_over_tious"}
RECORDED = {
    "activitynet_400": ["activitynet/val_1.json", "activitynet/val_2.json"],
    "youcook2_timechat": ["youcook2/val.json"],
}


def assert_recorded(scores: dict, recorded: dict[str, float]) -> None:
    for name, value in recorded.items():
        tolerance = 1e-5 if name in ("METEOR", "soda_c") else 1e-6
        assert scores[NAMES.get(name, name.lower())] == pytest.approx(value, abs=tolerance, rel=0), name


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_scores_of_the_2021_line(name, shared, compute, java_tools):
    predictions = read(shared / "reference" / "metrics" / f"{name}.predictions.json")["results"]
    recorded = read(shared / "reference" / "metrics" / f"{name}.scores.json")
    inputs = aligned(predictions, [read(shared / "annotations" / file) for file in RECORDED[name]])
    every = ["localization", "meteor", "cider", "rouge_l", "bleu", "soda_c"]
    skipped = compute(**inputs, metrics=every, missing="skip")
    assert_recorded(skipped, recorded["scores"])
    # Counting as zero is the same sums over more videos (SODA_c: per file).
    zero = compute(**inputs, metrics=["localization", "cider", "rouge_l", "bleu"])
    share = len(predictions) / len(inputs["predictions"])
    assert (zero["num_missing"], zero["num_videos"]) == (
        round((1 - share) * zero["num_videos"]),
        len(inputs["references"]),
    )
    for score in ("precision", "recall", "cider", "rouge_l", "bleu_4", "f1@0.5"):
        assert zero[score] == pytest.approx(skipped[score] * share)


@pytest.mark.parametrize(("name", "missing"), [("activitynet_400", "skip"), ("youcook2_timechat", "zero")])
def test_recorded_scores_of_the_2018_line(name, missing, shared, compute, java_tools):
    predictions = read(shared / "reference" / "metrics" / f"{name}.predictions.json")["results"]
    recorded = read(shared / "reference" / "metrics" / f"{name}.scores.json")["scores_2018"]
    inputs = aligned(predictions, [read(shared / "annotations" / file) for file in RECORDED[name]])
    scores = compute(**inputs, metrics=["localization", "meteor"], protocol="2018", missing=missing)
    assert_recorded(scores, {key: value for key, value in recorded.items() if key != "protocol"})


def test_recorded_controls_of_activitynet(shared, compute):
    """The recorded figures of spans that see no video, in percent, with val_1's annotators as the system."""
    files = [read(shared / "annotations" / file) for file in RECORDED["activitynet_400"]]

    def as_predictions(file: dict) -> dict:
        return {video: [event(*span, "") for span in row["timestamps"]] for video, row in file.items()}

    scores = compute(**aligned(as_predictions(files[0]), files), metrics=["controls"])
    recorded = {
        "whole_video": (65.51, 35.22, 45.81),
        "three_spans": (57.81, 55.70, 56.74),
        "equal_spans": (55.20, 55.32, 55.26),
        "equal_spans_1.25": (57.74, 57.66, 57.70),
        "equal_spans_1.5": (58.10, 57.61, 57.85),
    }
    for row, values in recorded.items():
        for suffix in {row, f"{row}_reference_counts"} if row.startswith("equal") else {row}:
            found = [100 * scores[f"{part}_{suffix}"] for part in ("precision", "recall", "f1")]
            assert found == pytest.approx(values, abs=0.05), suffix
    humans = compute(**aligned(as_predictions(files[1]), files[:1]), missing="skip")
    assert [100 * humans[part] for part in ("precision", "recall", "f1")] == pytest.approx(
        (40.21, 40.17, 40.19), abs=0.05
    )


def test_a_sentence_without_end_ends_nothing_and_is_named(compute, java_tools, caplog):
    """36 kB of two words would take all of Java's memory, and so would one word that METEOR takes apart."""
    events = [("a man " * 6000), "http://a.b/" * 3000, "A man runs."]
    spans = [[0, 4], [3, 6], [6, 9]]
    predictions = [[{"timestamp": span, "sentence": text} for span, text in zip(spans, events, strict=True)]]
    references = [{"timestamps": spans, "sentences": events, "duration": 10.0}]
    scores = compute(predictions, references, metrics=["meteor", "soda_c", "rouge_l"])
    assert scores["meteor"] > 0.4 and scores["soda_c"] > 0.4
    assert "predictions[0][0]: a sentence of 12000 words is scored by its first 250." in caplog.text
    # Whatever separates the words.
    for text in ("a\tman\n" * 6000, "a\u72d7man\u72d7" * 6000):
        (checked,) = checked_prediction([event(0, 4, text)], "here")
        assert checked["sentence"].count(" ") == 249
