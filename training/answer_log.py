"""A log of an LLM's answers to many short questions about videos: asked until all are answered, killed or not.

What `augment_captions.py` and `caption_frames.py` share. Each answer is appended to the log as soon as it is there; started
again, after whatever ended it, a run goes on from that log. Answers are cleaned alike, and collected from the logs of all
shards.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from filelock import FileLock, Timeout
from llm_engines import Request
from tqdm import tqdm
from transformers import HfArgumentParser


def digest(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Question:
    """What is asked about a place in a video, the `index`-th of its `unit`s.

    A subclass names its unit, and has `messages`, the chat messages, and `prompt`, what of them tells one question about
    the place from another.
    """

    unit: ClassVar[str]
    video_id: str
    index: int

    @property
    def key(self) -> tuple[str, int, str]:
        """Video, index and digest of the prompt: what an answer belongs to."""
        return self.video_id, self.index, digest(self.prompt)

    def seed(self, seed: int, attempt: int) -> int:
        """Seed of an attempt, below 2**31: depends on nothing but the question and the run's seed."""
        return int(digest([seed, attempt, *self.key])[:8], 16) >> 1


_THOUGHT = re.compile(r"<think>.*?(?:</think>|$)|^.*</think>", re.DOTALL)
_MARKUP = re.compile(r"^(?:[#>•-]+|\d+[.)])\s+|[*`]|__")
_LABEL = re.compile(
    r"^(?:[\w'-]+[ ,]+){0,3}(?:caption|event|action|sentence|output|answer|response)(?: \d+(?:\.\d+)?)?\s*:\s*",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"""^(?:["“„«]([^"“”„«»]*)["“”»]|['‘]([^‘]*)['’])\.?$""")
_WHOLE_SENTENCES = re.compile(r"""^.*[.!?…]["”’)]*(?=\s|$)""")


def clean_answer(answer: str, complete: bool) -> tuple[str, list[str]]:
    """Makes a caption of an LLM's answer.

    Args:
        answer: The answer as decoded, without special tokens.
        complete: False where the length limit cut it off.

    Returns:
        The caption, empty where nothing usable is left, and the names of the rules that changed something, in this
        order: `thinking` (a `<think>` block taken out), `lines` (only one line kept: the first that does not end in a
        colon), `markup` (Markdown taken off), `label` ("Caption:" and the like taken off), `quotes`, `cut` (cut off:
        what comes after the last whole sentence dropped) or `broken` (cut off within the first sentence: the last word
        dropped).
    """
    edits = []

    def step(rule: str, before: str, after: str) -> str:
        if after != before:
            edits.append(rule)
        return after

    text = step("thinking", answer.strip(), _THOUGHT.sub("", answer).strip())
    lines = [" ".join(line.split()) for line in text.splitlines() if _has_words(line)]
    if not lines:
        return "", edits
    kept = next((line for line in lines if not line.rstrip("*_").endswith(":")), lines[-1])
    complete = complete or kept is not lines[-1]
    text = step("lines", " ".join(text.split()), kept)
    text = step("markup", text, _MARKUP.sub("", text).strip())
    text = step("label", text, _LABEL.sub("", text))
    text = step("quotes", text, _without_quotes(text))
    if not complete:
        whole = _WHOLE_SENTENCES.match(text)
        text = step("cut", text, whole[0]) if whole else step("broken", text + " ", text.rpartition(" ")[0])
    return (text if _has_words(text) else ""), edits


def _without_quotes(text: str) -> str:
    if quoted := _QUOTED.match(text):
        return (quoted[1] or quoted[2] or "").strip()
    # One that was opened and cut off.
    return text.lstrip('"“') if sum(map(text.count, '"“”')) == 1 else text


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)


@dataclass
class AnswerLog:
    """A file of JSON lines: a first line with the settings, then one line for each answer; made by [`open_log`]."""

    file: BinaryIO
    records: list[dict]

    def append(self, record: dict) -> None:
        """Adds an answer; when this returns, it is on the disk."""
        self.write(record)
        self.records.append(record)

    def write(self, line: dict) -> None:
        self.file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        self.file.flush()
        os.fsync(self.file.fileno())


@contextmanager
def open_log(path: str | Path, settings: dict) -> Iterator[AnswerLog]:
    """Opens a log of answers to go on with, or makes one.

    Whole lines are appended and synced to the disk, so whatever ends the program can at most leave the last line torn;
    opening the log again drops that.

    Args:
        settings: What the answers depend on besides the question.

    Raises:
        ValueError: the log was made with other settings, or is damaged.
        RuntimeError: another process is writing it.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(f"{path}.lock", timeout=0).acquire()
    except Timeout:
        raise RuntimeError(f"another process is writing {path}") from None
    with lock, open(path, "ab") as file:
        found, records, whole_lines = read_log(path)
        if found not in (None, settings):
            raise ValueError(f"{path} was made with {found}, not {settings}: use another --output")
        file.truncate(whole_lines)
        log = AnswerLog(file, records)
        if not whole_lines:
            log.write({"settings": settings})
        yield log


def read_log(path: str | Path) -> tuple[dict | None, list[dict], int]:
    """Settings (`None` in an empty log), answers and length in bytes of the whole lines of a log.

    Raises:
        ValueError: a line other than a torn last one cannot be read.
    """
    data = Path(path).read_bytes()
    length = data.rfind(b"\n") + 1
    try:
        lines = [json.loads(line) for line in data[:length].splitlines()]
        return (lines[0]["settings"] if lines else None), lines[1:], length
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or no log of this program: {error!r}") from None


def record_key(record: dict) -> tuple[str, int, str]:
    """The first three fields of a logged answer: its question's key."""
    video_id, index, prompt, *_ = record.values()
    return video_id, index, prompt


class UnansweredError(RuntimeError):
    """Some questions got no usable answer."""


def complete_log(
    questions: list[Question],
    output: str,
    settings: dict,
    max_attempts: int,
    answer: Callable[[list[tuple[Question, int]], AnswerLog, tqdm], None],
) -> None:
    """Has all questions answered that the log does not have yet.

    Args:
        settings: as for [`open_log`].
        answer: asks the given questions, each with the number of answers asked for before, by way of [`ask`].

    Raises:
        UnansweredError: some questions got no usable answer; all others are in the log.
    """
    unit = questions[0].unit if questions else "question"
    with open_log(output, settings) as log:
        attempts = {record_key(record): record["attempts"] for record in log.records}
        waiting = [(question, attempts.get(question.key, 0)) for question in without_answer(questions, log)]
        waiting = [(question, attempt) for question, attempt in waiting if attempt < max_attempts]
        with tqdm(total=len(questions), initial=len(questions) - len(waiting), unit=unit, desc="asking") as progress:
            if waiting:
                answer(waiting, log, progress)
        unanswered = without_answer(questions, log)
    if unanswered:
        raise UnansweredError(
            f"{len(unanswered)} {unit}s got no usable answer in {max_attempts} attempts: {name_some(unanswered)}. "
            "All others are in the log; run again with a larger --max_attempts"
        )
    print(f"{output} holds all {len(questions)} answers")


def without_answer(questions: list[Question], log: AnswerLog) -> list[Question]:
    """Questions for which the log has no usable answer."""
    answered = {record_key(record) for record in log.records if record["text"] is not None}
    return [question for question in questions if question.key not in answered]


def ask(
    engine, waiting: list[tuple[Question, int]], log: AnswerLog, seed: int, max_attempts: int, progress: tqdm
) -> None:
    """Asks until each question has a usable answer, or `max_attempts` were not usable; logs what came out.

    `waiting` has with each question the number of answers asked for before. An answer that was cut off within its first
    sentence counts as usable in the last attempt only.
    """
    while waiting:
        asked = {str(i): item for i, item in enumerate(waiting)}
        requests = [Request(name, question.messages, question.seed(seed, i)) for name, (question, i) in asked.items()]
        waiting = []
        for answer in engine.answers(requests):
            question, attempt = asked[answer.name]
            text, edits = clean_answer(answer.text, answer.complete)
            if attempt + 1 < max_attempts and (not text or "broken" in edits):
                waiting.append((question, attempt + 1))
                continue
            record = dict(zip(("video_id", question.unit, "prompt"), question.key, strict=True))
            log.append(
                {**record, "text": text or None, "edits": edits, "attempts": attempt + 1, "answer": answer.text}
            )
            progress.update()


def name_some(questions: Iterable[Question]) -> str:
    names = [f"{question.video_id} {question.unit} {question.index}" for question in questions]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def find_answers(questions: list[Question], records: dict[tuple, dict]) -> list[dict]:
    """The logged answer to each question, of those that [`collect_answers`] found; ValueError where one has none."""
    if missing := [question for question in questions if question.key not in records]:
        raise ValueError(
            f"{len(missing)} of {len(questions)} {missing[0].unit}s have no answer in the logs: {name_some(missing)}"
        )
    return [records[question.key] for question in questions]


def collect_answers(logs: list[str]) -> tuple[dict, dict[tuple, dict]]:
    """Settings of the logs, and their usable answers by key."""
    settings, records, origin = None, {}, {}
    for log in logs:
        found, lines, _ = read_log(log)
        settings = settings or found
        if found != settings:
            raise ValueError(f"{log} was made with {found}, {logs[0]} with {settings}: they do not go together")
        for record in lines:
            if record["text"] is None:
                continue
            key = record_key(record)
            if key in records:
                where = f"{origin[key]} and {log}" if origin[key] != log else f"{log} twice"
                raise ValueError(f"{key[0]} {list(record)[1]} {key[1]} is answered in {where}")
            records[key], origin[key] = record, log
    return settings, records


def run_command(program: str, commands: dict[str, tuple[type, Callable]], argv: list[str]) -> None:
    """Run the command that `argv` begins with: its arguments' dataclass, and what takes an instance of it."""
    if not argv or argv[0] not in commands:
        raise ValueError(f"expected a command, {' or '.join(commands)}; add --help for its options")
    arguments, run = commands[argv[0]]
    run(*HfArgumentParser(arguments, prog=f"{program} {argv[0]}").parse_args_into_dataclasses(argv[1:]))
