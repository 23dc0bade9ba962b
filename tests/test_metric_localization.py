"""Localization scores and controls against numbers by hand, loops and brute force."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import event, reference

from sail_hf.metric_localization import (
    Events,
    equal_spans,
    exchange_spans,
    interval_iou,
    largest_matching,
    one_to_one,
    order_correlations,
    precision_recall,
    repeats,
)

# Localization: one rule each, numbers by hand


def test_iou_of_overlapping_and_of_disjoint_intervals():
    first = np.array([[0.0, 4.0], [0, 4], [0, 4], [3, 3]])
    second = np.array([[2.0, 6.0], [4, 6], [1, 2], [3, 3]])
    np.testing.assert_allclose(interval_iou(first, second), [2 / 6, 0, 1 / 4, 0], atol=1e-8)


def test_an_event_that_ends_before_it_starts_matches_nothing(compute):
    assert interval_iou(np.array([5.0, 2.0]), np.array([0.0, 10.0])) == 0
    assert interval_iou(np.array([5.0, 2.0]), np.array([5.0, 2.0])) == 0
    scores = compute([[event(5, 2), event(0, 4)]], [reference(event(0, 4))])
    assert (scores["precision@0.9"], scores["recall@0.9"]) == (0.5, 1.0)


def test_localization_needs_strictly_more_than_the_threshold_but_captions_do_not(compute, java_tools):
    exactly = float(interval_iou(np.array([0.0, 4.0]), np.array([2.0, 6.0])))
    prediction, truth = [[event(0, 4, "A man runs fast.")]], [reference(event(2, 6, "A man runs fast."))]
    metrics = ("localization", "rouge_l")
    at = compute(prediction, truth, metrics, tious=[exactly])
    assert (at["precision"], at["recall"], at["rouge_l"]) == (0, 0, pytest.approx(1))
    below = compute(prediction, truth, tious=[np.nextafter(exactly, 0)])
    assert (below["precision"], below["recall"]) == (1, 1)


def test_precision_and_recall_take_their_best_file_independently(compute):
    first = reference(event(0, 10), event(20, 30), event(40, 50), event(60, 70))
    second = reference(event(0, 10))
    predictions = [[event(0, 10), event(20, 30)]]
    assert compute(predictions, [[first]])["precision"] == 1
    assert compute(predictions, [[second]])["recall"] == 1
    both = compute(predictions, [[first, second]])
    assert (both["precision"], both["recall"]) == (1, 1)


def test_matching_is_many_to_many(compute):
    scores = compute([[event(0, 10), event(0, 9.9)]], [reference(event(0, 10), event(0.1, 10))])
    assert (scores["precision"], scores["recall"]) == (1, 1)


def test_duplicates_count_each(compute):
    scores = compute([[event(0, 10), event(0, 10), event(20, 30)]], [reference(event(0, 10), event(50, 60))])
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == 0.5


def test_only_the_first_thousand_predictions_count(compute):
    wrong = [event(90, 91)] * 1000
    scores = compute([[*wrong, event(0, 10)]], [reference(event(0, 10))])
    assert (scores["num_predictions"], scores["recall"]) == (1000, 0)
    assert compute([[*wrong[1:], event(0, 10)]], [reference(event(0, 10))])["precision@0.9"] == 0.001


def test_missing_videos_count_as_zero_or_are_left_out(compute):
    predictions, references = [[event(0, 10)], []], [reference(event(0, 10)), reference(event(0, 5))]
    zero, skip = (compute(predictions, references, missing=missing) for missing in ("zero", "skip"))
    assert (zero["precision"], zero["f1"], skip["precision"], skip["f1"]) == (0.5, 0.5, 1, 1)
    for scores in (zero, skip):
        assert (scores["num_videos"], scores["num_predictions"], scores["num_missing"]) == (2, 1, 1)


def test_a_video_that_one_file_lacks_is_scored_against_the_other(compute):
    references = [[reference(event(0, 10)), reference(event(5, 10))], [reference(event(0, 10))], [{}]]
    references[2] = [reference(), reference(event(0, 10))]
    assert compute([[event(0, 10)]] * 3, references)["f1"] == 1


def test_no_prediction_at_all(compute):
    assert compute([[]], [reference(event(0, 1))])["f1"] == 0
    with pytest.raises(ValueError, match="leaves nothing to score"):
        compute([[]], [reference(event(0, 1))], missing="skip")


def test_both_f1_by_hand(compute):
    """Precision 1 and 1/2, recall 1/2 and 1/4 at the two thresholds."""
    predictions = [[event(0, 10), event(20, 26)]]
    references = [reference(event(0, 10), event(20, 30), event(50, 60), event(70, 80))]
    scores = compute(predictions, references, tious=(0.5, 0.9))
    assert (scores["precision@0.5"], scores["recall@0.5"]) == (1, 0.5)
    assert (scores["precision@0.9"], scores["recall@0.9"]) == (0.5, 0.25)
    assert scores["f1"] == pytest.approx(2 * 0.75 * 0.375 / 1.125)
    assert scores["f1_mean_over_tious"] == pytest.approx((2 / 3 + 1 / 3) / 2)


times = st.floats(-5, 100, allow_nan=False).map(lambda value: round(value, 1))
spans = st.lists(st.tuples(times, times), max_size=5)


@settings(max_examples=60)
@given(st.lists(st.tuples(spans, spans, spans), min_size=1, max_size=4))
def test_precision_and_recall_agree_with_loops(videos):
    def iou(a, b):
        shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
        return shared / (min(max(a[1], b[1]) - min(a[0], b[0]), a[1] - a[0] + b[1] - b[0]) + 1e-8)

    def share(these, those, tiou):
        return sum(any(iou(a, b) > tiou for b in those) for a in these) / len(these) if these else 0

    predicted, *files = ([[(span, "") for span in video[k]] for video in videos] for k in range(3))
    predictions, references = Events.from_videos(predicted), [Events.from_videos(file) for file in files]
    tious = (0.3, 0.7)
    values = precision_recall(predictions.spans, predictions.counts, references, tious)
    for index, video in enumerate(videos):
        for file in (0, 1):
            for column, tiou in enumerate(tious):
                assert values[0, file, index, column] == pytest.approx(share(video[0], video[1 + file], tiou))
                assert values[1, file, index, column] == pytest.approx(share(video[1 + file], video[0], tiou))


# One to one


def test_a_repeated_prediction_costs_and_a_long_one_serves_one_event(compute):
    twice = compute([[event(0, 10), event(0, 10)]], [reference(event(0, 10), event(20, 30))], tious=[0.5])
    assert (twice["precision"], twice["recall"], twice["repeats"]) == (1, 0.5, 1)
    assert (twice["precision_one_to_one"], twice["recall_one_to_one"]) == (0.5, 0.5)
    # IoU 0.5 with each half is above 0.3: many-to-many finds both events, one to one the one.
    long = compute([[event(0, 10)]], [reference(event(0, 5), event(5, 10))], tious=[0.3])
    assert (long["precision"], long["recall"], long["repeats"]) == (1, 1, 0)
    assert (long["precision_one_to_one"], long["recall_one_to_one"]) == (1, 0.5)
    assert long["f1_one_to_one"] == pytest.approx(2 / 3)


def test_the_matching_is_the_largest_and_not_the_first_that_comes(compute):
    """[0, 10] fits both events and [0, 8] the first alone: greedily taken, the first prediction blocks the second."""
    predictions, truth = [[event(0, 10), event(0, 6)]], [reference(event(0, 7), event(3, 10))]
    scores = compute(predictions, truth, tious=[0.65])
    assert (scores["precision_one_to_one"], scores["recall_one_to_one"]) == (1, 1)


def test_one_to_one_takes_each_file_for_itself(compute):
    first, second = reference(event(0, 10), event(20, 30)), reference(event(0, 10))
    scores = compute([[event(0, 10), event(0, 10)]], [[first, second]], tious=[0.5])
    assert (scores["precision_one_to_one"], scores["recall_one_to_one"]) == (0.5, 1)


def test_repeats_by_hand(compute):
    """Three of four spans are the same to IoU 0.95; those of other videos and of no length are nobody's repeats."""
    predictions = [[event(0, 100), event(1, 100), event(50, 60), event(0, 97)], [event(0, 100)], [event(3, 3)] * 2]
    references = [reference(event(0, 100))] * 3
    assert compute(predictions, references)["repeats"] == pytest.approx(3 / 7)
    assert compute([[]], references[:1])["repeats"] == 0


edges = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), unique=True, max_size=25)


@settings(max_examples=200)
@given(edges)
def test_largest_matching_agrees_with_trying_everything(edges):
    def largest(edges):
        if not edges:
            return 0
        (a, b), *rest = edges
        return max(largest(rest), 1 + largest([(c, d) for c, d in rest if c != a and d != b]))

    left, right = np.array(edges, dtype=int).reshape(-1, 2).T
    chosen = largest_matching(left, right)
    assert len(set(left[chosen])) == len(set(right[chosen])) == len(chosen)
    if len(edges) <= 12:
        assert len(chosen) == largest(edges)
    else:
        scipy = pytest.importorskip("scipy.sparse")
        graph = scipy.csr_matrix((np.ones(len(edges)), (left, right)), shape=(7, 7))
        assert len(chosen) == (scipy.csgraph.maximum_bipartite_matching(graph) >= 0).sum()


@settings(max_examples=60)
@given(st.lists(st.tuples(spans, spans), min_size=1, max_size=4))
def test_one_to_one_is_never_above_many_to_many_and_blind_to_the_order(videos):
    predicted, true = ([[(span, "") for span in video[k]] for video in videos] for k in range(2))
    predictions, references = Events.from_videos(predicted), [Events.from_videos(true)]
    arguments = (predictions.counts, references, (0.3, 0.7))
    single = one_to_one(predictions.spans, *arguments)
    assert (single <= precision_recall(predictions.spans, *arguments)).all()
    number = predictions.counts[:, None]
    np.testing.assert_allclose(single[0, 0] * number, single[1, 0] * references[0].counts[:, None])
    # A second copy of every prediction finds no more events than there are, and never fewer.
    twice = Events.from_videos([[*video, *video] for video in predicted])
    doubled = one_to_one(twice.spans, twice.counts, *arguments[1:])
    assert (doubled[1] >= single[1]).all()
    lengths = twice.spans[:, 1] - twice.spans[:, 0]
    assert repeats(twice) >= (lengths > 1e-6).mean() if len(lengths) else repeats(twice) == 0


# Controls


def test_equal_spans_are_clipped():
    np.testing.assert_allclose(equal_spans(np.array([2, 0, 1]), 1.5), [[0, 0.625], [0.375, 1], [0, 1]])


def test_controls_by_hand(compute):
    """Two videos with two halves each; the system says one whole span for the first, nothing for the second."""
    references = [
        reference(event(0, 5), event(5, 10), duration=10),
        reference(event(0, 50), event(50, 100), duration=100),
    ]
    scores = compute([[event(0, 10)], []], references, ["controls"])
    assert scores["f1_equal_spans_reference_counts"] == 1
    assert scores["f1_whole_video"] == pytest.approx(0.25)  # IoU 0.5, above the first of four thresholds
    assert scores["f1_equal_spans"] == pytest.approx(0.125)  # one span 1/N for the first video, none for the second
    # three spans [0, 5/12], [1/4, 3/4], [7/12, 1] against halves: IoU 5/6, 1/3, 5/6
    assert scores["precision_three_spans"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 4)
    assert scores["recall_three_spans"] == pytest.approx(3 / 4)


def test_lift_is_zero_for_the_same_spans_everywhere_and_large_for_the_truth(compute):
    rng = np.random.default_rng(0)
    truth = [sorted(rng.uniform(0, 100, 4).tolist()) for _ in range(12)]
    references = [reference(event(a, b), event(c, d), duration=100) for a, b, c, d in truth]
    same = compute([[event(10, 40), event(60, 90)]] * 12, references, ["controls"])
    assert same["lift"] == pytest.approx(0, abs=1e-12)
    assert same["center_correlation"] is None  # nothing varies
    perfect = compute([[event(a, b), event(c, d)] for a, b, c, d in truth], references, ["localization", "controls"])
    assert perfect["f1"] == 1
    assert perfect["lift"] > 0.4
    assert perfect["lift"] == perfect["lift_one_reference"]
    assert perfect["center_correlation"] == perfect["width_correlation"] == pytest.approx(1)
    assert perfect["num_lift_videos"] == 12


def test_lift_of_videos_without_a_partner(compute):
    references = [reference(event(0, 5), duration=10)] * 3
    alone = compute([[event(0, 5)] * n for n in (1, 2, 3)], references, ["controls"])
    assert (alone["lift"], alone["lift_one_reference"], alone["num_lift_videos"]) == (None, None, 0)
    # The two videos with one event each exchange with each other, the third one stays out: 1 - 0 for them.
    references = [reference(event(0, 5), duration=10), reference(event(5, 10), duration=10), references[0]]
    scores = compute([[event(0, 5)], [event(5, 10)], [event(0, 5)] * 2], references, ["controls"])
    assert (scores["lift"], scores["num_lift_videos"]) == (1, 2)


def test_lift_repeats_with_its_seed(compute):
    rng = np.random.default_rng(1)
    references = [reference(event(0, float(end)), duration=100) for end in rng.uniform(5, 100, 20)]
    predictions = [[event(0, float(end))] for end in rng.uniform(5, 100, 20)]
    lifts = [compute(predictions, references, ["controls"], seed=seed)["lift"] for seed in (0, 0, 1)]
    assert lifts[0] == lifts[1] != lifts[2]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 1000))
def test_exchange_gives_every_video_another_ones_spans(counts, seed):
    counts = np.array(counts)
    owner = np.repeat(np.arange(len(counts)), counts)
    spans = np.stack([owner, owner], axis=1).astype(float)
    got = exchange_spans(spans, counts, np.random.default_rng(seed))[:, 0].astype(int)
    np.testing.assert_array_equal(np.sort(got), np.sort(owner))
    np.testing.assert_array_equal(counts[got], counts[owner])
    partners = np.array([(counts == count).sum() > 1 for count in counts[owner]], dtype=bool)
    np.testing.assert_array_equal(got != owner, partners)


def test_correlations_ignore_what_the_order_alone_explains():
    """Two videos of two events: centers 2 and 8 shifted together by -1 and +1, predictions shifted against them."""

    def events(*centers):
        return Events.from_videos([[((c - 1, c + 1), "") for c in video] for video in centers])

    truth, durations = events((1, 7), (3, 9)), np.array([10.0, 10.0])
    against = order_correlations(events((3, 9), (1, 7)), [truth], durations)
    assert against == {"center_correlation": pytest.approx(-1), "width_correlation": None}
    assert (
        order_correlations(events((3, 9), (1,)), [truth], durations)["center_correlation"] is None
    )  # one video is left


def test_controls_need_durations_and_say_so(compute, caplog):
    with caplog.at_level(logging.WARNING):
        scores = compute([[event(0, 1)]], [reference(event(0, 1))], ["localization", "controls"])
    assert "1 videos have no duration" in caplog.text
    assert scores["f1"] == 1 and "lift" not in scores
