"""Scores of dense video captioning as a metric of the library `evaluate`, and a table of them.

`evaluate.load("path/to/metric.py")` and an import both work offline. The caption scores need
`pip install "sail-hf[metrics]"`.
"""

import importlib
import logging
import math
import sys
from collections.abc import Sequence
from itertools import zip_longest
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np

from .metric_captions import UNMATCHED_REFERENCE, CaptionScorer, clean, find_java_tools, first_words
from .metric_localization import CONTROLS, Events, control_scores, localization_scores


def import_evaluate() -> ModuleType:
    """The library `evaluate`, even if a script of that name (`training/evaluate.py`) comes first on the path."""
    path = sys.path
    sys.path = [folder for folder in path if not Path(folder, "evaluate.py").is_file()]
    try:
        return importlib.import_module("evaluate")
    finally:
        sys.path = path


evaluate = import_evaluate()
logger = logging.getLogger(__name__)

TIOUS = (0.3, 0.5, 0.7, 0.9)
CAPTION_METRICS = ("meteor", "cider", "rouge_l", "bleu", "soda_c")
METRICS = ("localization", "controls", *CAPTION_METRICS)
MAX_PREDICTIONS = 1000  # per video, the official cap

_DESCRIPTION = """Dense video captioning scores as densevid_eval (2018 and 2021 lines) and SODA compute them, and
controls that show which part of an F1 can be had without looking at the video."""

_CITATION = """@inproceedings{krishna2017dense, title={Dense-Captioning Events in Videos},
  author={Krishna, Ranjay and Hata, Kenji and Ren, Frederic and others}, booktitle={ICCV}, year={2017}}
@inproceedings{fujita2020soda, title={{SODA}: Story Oriented Dense Video Captioning Evaluation Framework},
  author={Fujita, Soichiro and Hirao, Tsutomu and others}, booktitle={ECCV}, year={2020}}"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: per video a list of `{"timestamp": [start, end], "sentence": str}` in seconds; an empty list is a
        missing video. Only the first 1,000 events of a video count; further keys of an event are ignored.
    references: per video, in the same order, one reference set `{"timestamps": [[start, end], ...], "sentences":
        [str, ...], "duration": seconds}` or a list of them. The i-th sets of all videos form the i-th reference file;
        an empty set or a shorter list says that a file lacks the video. Without `duration` there are no controls.
    protocol: "2021" (default) or "2018": an unmatched prediction is scored against a random token or `abc123!@#`.
    missing: videos without a prediction count as "zero" (default, official), or "skip" them (ILCACM's code).
    tious: thresholds of temporal IoU, default (0.3, 0.5, 0.7, 0.9).
    metrics: any of "localization", "controls", "meteor", "cider", "rouge_l", "bleu", "soda_c"; default all.
    soda_swapped: METEOR in SODA_c takes the prediction as its reference (default True), as the programs in use do.
    seed: of the random exchanges behind `lift`, default 0.
    java_timeout: seconds without a line from Java after which it counts as stuck, default 300.

Returns: a dict; fractions, not percentages.
    precision@T, recall@T, f1@T per threshold T (strictly above); precision, recall: their averages over T;
    f1: harmonic mean of these two averages, as papers tabulate it; f1_mean_over_tious: mean of f1@T, always lower or
        equal, as ILCACM's code prints it.
    precision_one_to_one, recall_one_to_one, f1_one_to_one: as precision, recall and f1, but over the largest set of
        disjoint (prediction, event) pairs: a repeated prediction costs, and a long one serves one event.
    repeats: share of the predictions whose span equals that of another of the same video (IoU above 0.95).
    meteor, cider, rouge_l, bleu_1 .. bleu_4, bleu_mean, soda_c.
    precision_C, recall_C, f1_C, f1_one_to_one_C of the controls C: whole_video (one span); three_spans (the same three, of width 1.5/3,
        for every video); equal_spans, equal_spans_1.25, equal_spans_1.5 (N spans of width 1/N, 1.25/N, 1.5/N around
        centers (i + 0.5)/N, with N the system's own counts), and these three with _reference_counts (N as in the
        video's first reference set).
    lift: F1 minus the mean F1 after random exchanges of the predicted spans (as fractions of the duration) between
        videos with equally many predictions; 0 = content-free. lift_one_reference: against the first file alone.
        Only the num_lift_videos videos that have such a partner enter; None if there are none.
    center_correlation, width_correlation: Pearson correlation of the i-th predicted and the i-th true event (by
        center), over the videos with equal numbers N of both, after removing the means for (i, N). None where one of
        the two does not vary (equal spans; too few videos).
    num_videos (of the references), num_predictions, num_missing (videos without a prediction), protocol, missing.

Sentences: the official programs replace every character that is not ASCII by a space (the 2021 line's cleaning; here
    in both protocols), so accents are lost and a sentence in another script becomes empty. A warning says how many
    sentences that changes or empties, wherever captions are scored.

Raises: ValueError for malformed input or options. ImportError if nothing asked for can be computed without the Java
    parts and these are not installed (else a warning names what is left out). RuntimeError if Java fails or is stuck.

Example:
    >>> metric = evaluate.load("sail_hf/metric.py")
    >>> scores = metric.compute(
    ...     predictions=[[{"timestamp": [0.0, 4.0], "sentence": "A man runs."}]],
    ...     references=[{"timestamps": [[0.0, 5.0]], "sentences": ["A man is running."], "duration": 10.0}],
    ...     metrics=["localization"],
    ... )
    >>> scores["recall@0.7"]
    1.0
"""


def checked_event(timestamp: Any, sentence: Any, where: str) -> tuple[list[float], str]:
    """[start, end] and sentence of an event, or a ValueError that says where and what is wrong.

    Of a sentence longer than is scored ([`first_words`]) only these words are kept, with a warning that says where.
    """
    try:
        start, end = map(float, timestamp)
    except (TypeError, ValueError):
        start = end = math.nan
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(f"{where}: expected the time stamp [start, end] in seconds, found {timestamp!r}")
    if not isinstance(sentence, str):
        raise ValueError(f"{where}: expected the sentence as a string, found {sentence!r}")
    # Counted as they are scored: what separates words may be anything that becomes a space.
    cleaned = clean(sentence)
    kept = first_words(cleaned)
    if kept != cleaned:
        found, most = (text.count(" ") + 1 for text in (cleaned, kept))
        logger.warning("%s: a sentence of %d words is scored by its first %d.", where, found, most)
        sentence = kept
    return [start, end], sentence


def checked_prediction(events: Any, where: str) -> list[dict]:
    """A video's predicted events with no other keys, or a ValueError that says where and what is wrong."""
    if not isinstance(events, list | tuple):
        raise ValueError(f"{where}: expected a list of events, found {type(events).__name__}")
    checked = []
    for index, event in enumerate(events):
        if not isinstance(event, dict) or not {"timestamp", "sentence"} <= event.keys():
            form = '{"timestamp": [start, end], "sentence": str}'
            raise ValueError(f"{where}[{index}]: expected {form}, found {event!r}")
        span, sentence = checked_event(event["timestamp"], event["sentence"], f"{where}[{index}]")
        checked.append({"timestamp": span, "sentence": sentence})
    return checked


def checked_reference(sets: Any, where: str) -> list[dict]:
    """A video's reference sets as a list, or a ValueError that says where and what is wrong."""
    sets = [sets] if isinstance(sets, dict) else sets
    if not isinstance(sets, list | tuple) or not all(isinstance(one, dict) for one in sets):
        raise ValueError(f"{where}: expected a reference set (a dict) or a list of them, found {sets!r}")
    checked = []
    for index, one in enumerate(sets):
        here = f"{where}[{index}]"
        if not {"timestamps", "sentences"} <= one.keys() or len(one["timestamps"]) != len(one["sentences"]):
            raise ValueError(f'{here}: expected equally many "timestamps" and "sentences", found {one!r}')
        duration = one.get("duration")
        if duration is not None and not (isinstance(duration, Real) and 0 < duration < math.inf):
            raise ValueError(f"{here}: expected a duration above 0 s, found {duration!r}")
        events = [checked_event(*event, here) for event in zip(one["timestamps"], one["sentences"], strict=True)]
        spans, sentences = ([event[part] for event in events] for part in (0, 1))
        checked.append({"timestamps": spans, "sentences": sentences, "duration": duration})
    if not any(one["sentences"] for one in checked):
        raise ValueError(f"{where}: no reference event in any set")
    return checked


def check_options(protocol: str, missing: str, tious: Sequence[float], metrics: Sequence[str]) -> None:
    if protocol not in UNMATCHED_REFERENCE:
        raise ValueError(f"protocol: expected one of {list(UNMATCHED_REFERENCE)}, found {protocol!r}")
    if missing not in ("zero", "skip"):
        raise ValueError(f'missing: expected "zero" or "skip", found {missing!r}')
    if not len(tious) or not all(0 < tiou < 1 for tiou in tious):
        raise ValueError(f"tious: expected thresholds between 0 and 1, found {tious!r}")
    if isinstance(metrics, str) or not metrics or not set(metrics) <= set(METRICS):
        raise ValueError(f"metrics: expected a list of any of {list(METRICS)}, found {metrics!r}")


def warn_of_altered(sentences: Sequence[tuple[str, str]]) -> None:
    """Say how many sentences (before, after) the cleaning changed and how many it emptied, with an example of each."""
    emptied = [before for before, after in sentences if not after.strip()]
    changed = [(before, after) for before, after in sentences if after.strip()]
    found = []
    if changed:
        found.append(f"{len(changed)} sentences change, e.g. {changed[0][0]!r} becomes {changed[0][1]!r}")
    if emptied:
        found.append(f"{len(emptied)} become empty, e.g. {emptied[0]!r}")
    if found:
        logger.warning(
            "Caption scores keep ASCII characters alone, as the official programs do: %s.", "; ".join(found)
        )


class DenseVideoCaptioningMetric(evaluate.Metric):
    """Scores of dense video captioning; `inputs_description` (and `help(metric.compute)`) lists options and scores."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._altered: list[tuple[str, str]] = []  # sentences with letters that are lost, before and after

    def _info(self) -> evaluate.MetricInfo:
        event = {"timestamp": [datasets.Value("float64")], "sentence": datasets.Value("string")}
        reference = {
            "timestamps": [[datasets.Value("float64")]],
            "sentences": [datasets.Value("string")],
            "duration": datasets.Value("float64"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": [event], "references": [reference]}),
        )

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one video."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add videos."""
        if len(predictions) != len(references):
            raise ValueError(f"found predictions of {len(predictions)} videos, but references of {len(references)}")
        predictions = [checked_prediction(events, f"predictions[{i}]") for i, events in enumerate(predictions)]
        references = [checked_reference(sets, f"references[{i}]") for i, sets in enumerate(references)]
        for event in (event for events in predictions for event in events):
            event["sentence"] = self._cleaned(event["sentence"])
        for one in (one for sets in references for one in sets):
            one["sentences"] = list(map(self._cleaned, one["sentences"]))
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _cleaned(self, sentence: str) -> str:
        cleaned = clean(sentence)
        if not sentence.isascii():
            self._altered.append((sentence, cleaned))
        return cleaned

    def _compute(
        self,
        predictions: list,
        references: list,
        protocol: str = "2021",
        missing: str = "zero",
        tious: Sequence[float] = TIOUS,
        metrics: Sequence[str] = METRICS,
        soda_swapped: bool = True,
        seed: int = 0,
        java_timeout: float = 300,
    ) -> dict[str, Any]:
        check_options(protocol, missing, tious, metrics)
        captions = [metric for metric in metrics if metric in CAPTION_METRICS]
        if captions:
            warn_of_altered(self._altered)
        self._altered = []
        predicted = Events.from_videos(
            [[(event["timestamp"], event["sentence"]) for event in video[:MAX_PREDICTIONS]] for video in predictions]
        )
        by_video = [
            [list(zip(one["timestamps"], one["sentences"], strict=True)) for one in video] for video in references
        ]
        files = [Events.from_videos(sets) for sets in zip_longest(*by_video, fillvalue=())]
        videos = predicted.counts > 0 if missing == "skip" else np.ones(len(predictions), dtype=bool)
        if not videos.any():
            raise ValueError('no video has a prediction, so missing="skip" leaves nothing to score')

        scores: dict[str, Any] = {}
        if "localization" in metrics:
            scores.update(localization_scores(predicted, files, videos, tious))
        if "controls" in metrics:
            durations = [next((one["duration"] for one in video if one["duration"]), None) for video in references]
            if None in durations:
                logger.warning("Controls are left out: %d videos have no duration.", durations.count(None))
            else:
                scores.update(control_scores(predicted, files, np.array(durations), videos, tious, seed))
        if captions:
            try:
                tools = find_java_tools()
            except ImportError as error:
                if not scores:
                    raise ImportError(f"cannot compute {', '.join(captions)}; {error}") from None
                logger.warning("Left out: %s; %s", ", ".join(captions), error)
            else:
                scorer = CaptionScorer(predicted, files, protocol, tools, java_timeout)
                scores.update(scorer.score(captions, videos, tious, soda_swapped))
        return scores | {
            "num_videos": len(predictions),
            "num_predictions": len(predicted.sentences),
            "num_missing": int((predicted.counts == 0).sum()),
            "protocol": protocol,
            "missing": missing,
        }


def format_table(scores: dict[str, Any], name: str = "system") -> str:
    """What `compute` returned as a table in percent: localization, the controls below it, caption scores.

    name: title of the scored system's own rows. Scores that were not computed are left out.
    """

    def line(title: str, *cells: Any) -> str:
        texts = ("n/a" if cell is None else cell if isinstance(cell, str) else f"{100 * cell:.2f}" for cell in cells)
        return (f"{title:<38}" + "".join(f"{text:>9}" for text in texts)).rstrip()

    def quality(suffix: str) -> list[float]:
        return [scores[f"{part}{suffix}"] for part in ("precision", "recall", "f1")]

    missing = "counted as zero" if scores["missing"] == "zero" else "left out"
    lines = [
        f"protocol {scores['protocol']}, {scores['num_videos']} videos, {scores['num_predictions']} predictions, "
        f"{scores['num_missing']} videos without a prediction ({missing}); in percent"
    ]
    if "f1" in scores:
        lines += ["", line("localization", "P", "R", "F1", "F1 1:1", "repeats")]
        lines += [line(f"  at tIoU {key[3:]}", *quality(key[2:])) for key in scores if key.startswith("f1@")]
        lines += [line("  mean over tIoU of F1", "", "", scores["f1_mean_over_tious"])]
        lines += [line(name, *quality(""), scores["f1_one_to_one"], scores["repeats"])]
    if "lift" in scores:
        lines += ["", line("controls, which see no video", "P", "R", "F1", "F1 1:1")]
        for control, (title, _, _) in CONTROLS.items():
            lines += [line(f"  {title}", *quality(f"_{control}"), scores[f"f1_one_to_one_{control}"])]
        keys = ("lift", "lift_one_reference", "center_correlation", "width_correlation")
        lines += ["", line("content", "lift", "(1 ref.)", "center r", "width r"), line(name, *map(scores.get, keys))]
    captions = {"meteor": "METEOR", "cider": "CIDEr", "rouge_l": "ROUGE-L", "soda_c": "SODA_c", "bleu_mean": "BLEU"}
    captions |= {f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)}
    computed = [key for key in captions if key in scores]
    if computed:
        lines += ["", line("captions", *map(captions.get, computed)), line(name, *map(scores.get, computed))]
    return "\n".join(lines)
