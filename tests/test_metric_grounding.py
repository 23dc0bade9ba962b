"""Scores of boxes of words, on numbers worked out by hand, and their controls."""

import pytest
import torch
from torch import tensor

from sail_hf.metric_grounding import (
    LabelledSentence,
    attention_mass,
    center_boxes,
    foreground_boxes,
    grounding_f1,
    grounding_lift,
    localization_accuracy,
    median_boxes,
    other_word,
    patch_text_boxes,
)

LEFT, RIGHT, ALL = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]


def test_accuracy_is_a_mean_over_classes():
    # man: 2 of 3, an IoU of exactly .5 is none; dog: 0 of 1.
    assert localization_accuracy(tensor([0.51, 0.9, 0.5, 0.3]), ["man", "man", "man", "dog"]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="at least one word"):
        localization_accuracy(torch.zeros(0), [])
    with pytest.raises(ValueError, match="shorter"):
        localization_accuracy(tensor([1.0, 0.0]), ["man"])


def test_lift_is_what_an_exchange_takes_away():
    boxes, classes = tensor([LEFT, RIGHT, LEFT, LEFT, RIGHT]), ["man", "man", "man", "dog", "bar"]
    # man, all three right. Exchanged: of the six ordered pairs, 2 -> 0 and 0 -> 2 are right: 1/3. dog and bar: no exchange.
    assert grounding_lift(boxes, boxes, classes) == pytest.approx(1 - 1 / 3)
    # Always the same box: right for two, and exchanged as often.
    same = tensor([LEFT] * 5)
    assert grounding_lift(same, boxes, classes) == pytest.approx(0.0)
    # Two classes: the mean of theirs.
    truth = tensor([LEFT, RIGHT, LEFT, LEFT, RIGHT, LEFT])
    found = tensor([LEFT, RIGHT, LEFT, LEFT, LEFT, RIGHT])
    # a: 1 - 1/3. b (LEFT, RIGHT, LEFT found LEFT, LEFT, RIGHT): 1/3 right; exchanged 0->2, 1->0, 1->2, 2->1 right of 6.
    assert grounding_lift(found, truth, list("aaabbb")) == pytest.approx((2 / 3 + 1 / 3 - 4 / 6) / 2)
    with pytest.raises(ValueError, match="no word is there twice"):
        grounding_lift(boxes[:2], boxes[:2], ["a", "b"])


def test_mass_in_the_box():
    heat = tensor([[0.1, 0.2, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.05, 0.0]])
    boxes = tensor([[0.0, 0.0, 0.5, 1.0], ALL, [0.25, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(attention_mass(heat, boxes), tensor([0.5, 0.0, 0.5]))


def boxes_in(num_frames, **at):
    """Boxes in all frames: the whole picture's, but for those of some frames."""
    boxes = tensor([ALL] * num_frames)
    for frame, box in at.items():
        boxes[int(frame[1:])] = tensor(box)
    return boxes


def test_f1_by_hand():
    man, dog, bar = (("man", [1], tensor([LEFT])), ("dog", [0], tensor([RIGHT])), ("bar", [2], tensor([LEFT])))
    references = [
        LabelledSentence([man, dog], others=["field"]),
        LabelledSentence([man, man, bar]),
        LabelledSentence([]),  # nobody labelled it
        LabelledSentence([dog]),  # and nobody captioned it
    ]
    predictions = [
        # man is right in its labelled frame; a field is no mistake; a cat is.
        [("man", boxes_in(3, _1=LEFT)), ("field", boxes_in(3)), ("cat", boxes_in(3))],
        # man is wrong there; bar is right.
        [("man", boxes_in(3, _0=LEFT)), ("bar", boxes_in(3, _2=LEFT))],
        [("cat", boxes_in(3))],
        None,
    ]
    found = grounding_f1(predictions, references, "all")
    # Classes of the true sentences: man, dog, bar. Precision: man 1/2, bar 1, cat 0. Recall: man 1, 0, 0; dog 0, 0; bar 1.
    precision, recall = (1 / 2 + 1) / 3, (1 / 3 + 1) / 3
    assert (found["precision"], found["recall"]) == (pytest.approx(precision), pytest.approx(recall))
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    # Sentence 1: precision 1/2 (man, cat), recall 1/2. Sentence 2: 1/2, 1/3.
    assert found["precision_per_sentence"] == pytest.approx(1 / 2)
    assert found["recall_per_sentence"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["f1_per_sentence"] == pytest.approx((1 / 2 + 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)) / 2)
    located = grounding_f1(predictions, references, "loc")
    # Words of one sentence alone are passed over: precision as above, recall man 1, 0, 0; bar 1.
    assert (located["precision"], located["recall"]) == (
        pytest.approx((1 / 2 + 1) / 3),
        pytest.approx((1 / 3 + 1) / 3),
    )
    assert located["precision_per_sentence"] == pytest.approx((1 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="'all' or 'loc'"):
        grounding_f1(predictions, references, "some")


def test_f1_of_the_first_of_words_that_come_twice():
    left, right = (boxes_in(1, _0=box) for box in (LEFT, RIGHT))
    reference = LabelledSentence([("man", [0], tensor([LEFT])), ("man", [0], tensor([RIGHT]))])
    found = grounding_f1([[("man", left), ("man", right)]], [reference], "all")
    # Both generated ones are held against the first true one, and both true ones against the first generated one.
    assert (found["precision"], found["recall"], found["f1"]) == (0.5, 0.5, 0.5)


def test_nothing_generated_scores_nothing():
    reference = LabelledSentence([("man", [0], tensor([LEFT]))])
    assert set(grounding_f1([None], [reference], "all").values()) == {0.0}
    assert set(grounding_f1([[]], [reference], "loc").values()) == {0.0}


def test_controls():
    training = tensor([[0.0, 0.0, 0.2, 0.4], [0.2, 0.0, 0.4, 0.4], [0.4, 0.2, 0.9, 0.6], [0.6, 0.6, 1.0, 1.0]])
    median = median_boxes(["man", "dog", "cat"], ["man", "man", "man", "dog"], training)
    torch.testing.assert_close(median[:2], tensor([[0.2, 0.0, 0.4, 0.4], [0.6, 0.6, 1.0, 1.0]]))
    torch.testing.assert_close(median[2], tensor([0.3, 0.1, 0.65, 0.5]))  # a new word: of all
    torch.testing.assert_close(center_boxes(median[:2]), tensor([[0.4, 0.3, 0.6, 0.7], [0.3, 0.3, 0.7, 0.7]]))
    torch.testing.assert_close(
        foreground_boxes([training[:2], training[3:]]), tensor([[0.0, 0.0, 0.4, 0.4], [0.6, 0.6, 1.0, 1.0]])
    )
    assert other_word([0, 0, 0, 1, 2, 2], ["man", "bar", "man", "dog", "man", "man"]) == [1, 2, 1, 3, 4, 5]
    patches, word = torch.zeros(1, 16, 8), torch.zeros(1, 8)
    patches[..., 0], word[0, 1] = 1.0, 1.0
    patches[0, [5, 6], 1] = 3.0
    torch.testing.assert_close(patch_text_boxes(patches, word), tensor([[0.25, 0.25, 0.75, 0.5]]))
