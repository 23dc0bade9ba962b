"""Whether words point at what they mean: scores of boxes as ActivityNet-Entities has them, grounding lift, and controls.

Boxes are `[x0, y0, x1, y1]` in shares of the frame, in tensors `(W, 4)`, one for each word of some sentences in the frame that is
labelled; a word's class is the word itself, or what it is an inflection of. The controls look at no patch, or at the wrong one:
an accuracy says little without them. Those that need a model are runs of it: with the patches of another video, or with a
head that was not trained.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from .grounding_sail import box_coverage, grid_of, heat_boxes

# A box is right where its IoU with the true one is more.
THRESHOLD = 0.5


def localization_accuracy(ious: Tensor, classes: Sequence[str]) -> float:
    """Share of words whose box has an IoU of more than .5 with the true one, `ious` `(W,)`: mean over classes.

    Raises:
        ValueError: no words, or another number of classes.
    """
    return _class_mean((ious > THRESHOLD).double().tolist(), classes)


def grounding_lift(boxes: Tensor, true_boxes: Tensor, classes: Sequence[str]) -> float:
    """Accuracy less what is left of it when boxes are exchanged between events of the same word: 0 has not looked.

    Of classes with several words; exact, over all exchanges.

    Raises:
        ValueError: no word is there twice.
    """
    of_class: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(classes):
        of_class[name].append(index)
    lifts = []
    for own in (torch.tensor(own) for own in of_class.values() if len(own) > 1):
        hits = (box_iou(boxes[own], true_boxes[own]) > THRESHOLD).double()
        right = hits.diagonal().sum()
        lifts.append((right / len(own) - (hits.sum() - right) / (len(own) * (len(own) - 1))).item())
    if not lifts:
        raise ValueError("Boxes can be exchanged only between events of the same word, and no word is there twice.")
    return sum(lifts) / len(lifts)


def attention_mass(heat: Tensor, true_boxes: Tensor) -> Tensor:
    """Share of the attention on a frame `(W, N)` that lies in the box `(W, 4)`, both of what CLIP saw: `(W,)`."""
    inside = (heat * box_coverage(true_boxes, grid_of(heat.shape[-1]))).sum(-1)
    return inside / heat.sum(-1).clamp(min=torch.finfo(heat.dtype).tiny)


def _class_mean(values: Sequence[float], classes: Sequence[str]) -> float:
    of_class: dict[str, list[float]] = defaultdict(list)
    for value, name in zip(values, classes, strict=True):
        of_class[name].append(value)
    if not of_class:
        raise ValueError("Expected at least one word with a box, found none.")
    return sum(sum(own) / len(own) for own in of_class.values()) / len(of_class)


# --- Generated sentences ------------------------------------------------------------------------------------------


@dataclass
class LabelledSentence:
    """A true sentence.

    words: in order, each with its class, the frames that are labelled and their boxes `(frames, 4)`.
    others: further words of the sentence, which nobody labelled and which are no mistake.
    """

    words: Sequence[tuple[str, Sequence[int], Tensor]]
    others: Iterable[str] = ()


def grounding_f1(
    predictions: Sequence[Sequence[tuple[str, Tensor]] | None], references: Sequence[LabelledSentence], words: str
) -> dict[str, float]:
    """F1_all or F1_loc of generated sentences (Zhou et al., Grounded Video Description, CVPR 2019), and both per sentence.

    Precision: share of the words of a generated sentence that the true one has and whose box is right; recall the same of the
    true words; means over words of a class, then over the true sentences' classes. Per sentence: means over the sentences that
    have such words on both sides.

    Args:
        predictions: for each true sentence the classes of the generated one's words, each with its boxes `(F, 4)` in all frames;
            `None` where there is none, which lowers recall.
        references: true sentences; those without labels are left out.
        words: `"all"`: a word that is in only one of the sentences is a mistake; `"loc"`: it is passed over.

    Returns:
        `precision`, `recall`, `f1`, `precision_per_sentence`, `recall_per_sentence`, `f1_per_sentence`.
    """
    if words not in ("all", "loc"):
        raise ValueError(f"`words` must be 'all' or 'loc', found {words!r}.")
    vocabulary = {name for reference in references for name, *_ in reference.words}
    precision, recall, sentences = defaultdict(list), defaultdict(list), []
    for predicted, reference in zip(predictions, references, strict=True):
        if not reference.words:
            continue
        first_true = {name: label for name, *label in reversed(reference.words)}
        first_found = dict(reversed(predicted or ()))
        found = [
            (name, _is_right(boxes, *first_true[name]) if name in first_true else 0.0)
            for name, boxes in predicted or ()
            if name in first_true or (words == "all" and name not in reference.others)
        ]
        true = [
            (name, _is_right(first_found[name], *label) if name in first_found else 0.0)
            for name, *label in reference.words
            if name in first_found or words == "all"
        ]
        for of_class, pairs in ((precision, found), (recall, true)):
            for name, right in pairs:
                of_class[name].append(right)
        if found and true:
            sentences.append([sum(right for _, right in pairs) / len(pairs) for pairs in (found, true)])
    scores = [
        sum(sum(own) / len(own) for own in side.values()) / max(len(vocabulary), 1) for side in (precision, recall)
    ]
    each = [(*sides, _f1(*sides)) for sides in sentences]
    means = [sum(values) / len(each) for values in zip(*each, strict=True)] or [0.0] * 3
    names = ("precision", "recall", "f1")
    per_sentence = {f"{name}_per_sentence": value for name, value in zip(names, means, strict=True)}
    return dict(zip(names, (*scores, _f1(*scores)), strict=True)) | per_sentence


def _is_right(boxes: Tensor, frames: Sequence[int], true_boxes: Tensor) -> float:
    """Whether the box of one of the labelled frames is right."""
    return float((box_iou(boxes[list(frames)], true_boxes).diagonal() > THRESHOLD).any())


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# --- Controls -----------------------------------------------------------------------------------------------------


def median_boxes(words: Sequence[str], training_words: Sequence[str], training_boxes: Tensor) -> Tensor:
    """`(W, 4)`: of each word the median of its boxes in training; of a word that was not there, of all boxes."""
    of_word = {word: torch.tensor([name == word for name in training_words]) for word in set(words)}
    rows = (training_boxes[own] if (own := of_word[word]).any() else training_boxes for word in words)
    return torch.stack([boxes.quantile(0.5, 0) for boxes in rows])


def center_boxes(boxes: Tensor) -> Tensor:
    """Boxes `(W, 4)` of the same sizes in the middle of the frame: give [`median_boxes`], whose sizes are not the true ones."""
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    return torch.cat([0.5 - half, 0.5 + half], -1)


def foreground_boxes(boxes: Sequence[Tensor]) -> Tensor:
    """`(W, 4)`: for each word the tightest box around everything that is in the foreground of its frame, boxes `(K, 4)`."""
    return torch.stack([torch.cat([own[:, :2].amin(0), own[:, 2:].amax(0)]) for own in boxes])


def other_word(sentences: Sequence[int], classes: Sequence[str]) -> list[int]:
    """For each word the index of the next one of its sentence that is another word; its own where there is none."""
    found = []
    for index, (sentence, name) in enumerate(zip(sentences, classes, strict=True)):
        turn = [*range(index + 1, len(classes)), *range(index)]
        found.append(next((i for i in turn if sentences[i] == sentence and classes[i] != name), index))
    return found


def patch_text_boxes(patches: Tensor, word_features: Tensor) -> Tensor:
    """Boxes `(W, 4)` where the cosines of patches `(W, N, D)` with the words' CLIP text features `(W, D)` are above their mean."""
    cosines = functional.cosine_similarity(patches.float(), word_features.float()[:, None], dim=-1)
    return heat_boxes((cosines - cosines.mean(-1, keepdim=True)).clamp(min=0))[0]
