"""Writes transition captions with an LLM: a sentence for what happens between each two adjacent captions of a video.

    python training/augment_captions.py generate --annotations data/activitynet#train --output train.jsonl
    python training/augment_captions.py merge --dataset data/activitynet --split train --logs train.jsonl

Section 3.3 and Algorithm 1 of the paper. `generate` appends each answer to a log as soon as it is there, and goes on
from that log when started again, after whatever ended it. With `--shard 1/4` to `--shard 4/4` four machines share the
work, each with its own log. `merge` puts the answers of all logs into the data set, and refuses if one is missing or
there twice.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from build_dataset import FEATURES, write_split
from datasets import Dataset
from filelock import FileLock, Timeout
from huggingface_hub import hf_hub_download
from llm_engines import Request, Sampling, ServerEngine, TransformersEngine
from pyarrow import parquet
from tqdm import tqdm
from transformers import HfArgumentParser
from work_folder import take_shard

from sail_hf.data import read_annotations

# Algorithm 1, word for word. Its emphasis is kept as Markdown, which is how the numbered rules are set.
SYSTEM_PROMPT, USER_PROMPT = (
    (Path(__file__).parent / "prompts" / f"transition_{role}.md").read_text(encoding="utf-8").rstrip("\n")
    for role in ("system", "user")
)


def digest(value) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


PROMPT_DIGEST = digest([SYSTEM_PROMPT, USER_PROMPT])
KEY = ("video_id", "pair", "prompt")  # fields of a logged answer that say what it belongs to


@dataclass(frozen=True)
class Pair:
    """Two adjacent captions: the `index`-th and the one after it."""

    video_id: str
    index: int
    caption1: str
    caption2: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat messages of Algorithm 1; runs of white space in the captions become a space."""
        captions = {"caption1": " ".join(self.caption1.split()), "caption2": " ".join(self.caption2.split())}
        question = USER_PROMPT.format(**captions)
        return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]

    @property
    def key(self) -> tuple[str, int, str]:
        """Video, index and digest of the prompt: what an answer belongs to."""
        return self.video_id, self.index, digest(self.messages)

    def seed(self, seed: int, attempt: int) -> int:
        """Seed of an attempt, below 2**31: depends on nothing but the pair, its prompt and the run's seed."""
        return int(digest([seed, attempt, *self.key])[:8], 16) >> 1


def caption_pairs(rows: list[dict]) -> list[Pair]:
    """All adjacent pairs of captions, N-1 of a video with N."""
    return [Pair(row["video_id"], i, *pair) for row in rows for i, pair in enumerate(pairwise(row["captions"]))]


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
    """A file of JSON lines: a first line with the settings, then one line for each pair; made by [`open_log`]."""

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
        settings: What the answers depend on besides the pair.

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
    return tuple(record[name] for name in KEY)


@dataclass
class GenerateArguments:
    annotations: list[str] = field(
        metadata={"help": "Annotation files, or DATASET#SPLIT; of several, the first that has a video counts."}
    )
    output: str = field(default="", metadata={"help": "Log of the answers (.jsonl), made or continued."})
    llm: str = field(default="Qwen/Qwen3-8B", metadata={"help": "Name or folder, or the server's name, of the LLM."})
    llm_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the LLM."})
    base_url: str | None = field(
        default=None, metadata={"help": "Server with OpenAI's interface (http://host:8000/v1); key: OPENAI_API_KEY."}
    )
    temperature: float = field(default=0.7, metadata={"help": "0: always the likeliest token."})
    top_p: float = 0.8
    top_k: int = field(default=20, metadata={"help": "0: no limit; for a server: not sent, its own default holds."})
    max_new_tokens: int = 50
    seed: int = 0
    max_attempts: int = field(default=5, metadata={"help": "Answers to ask for, until one is usable."})
    concurrency: int = field(default=256, metadata={"help": "Requests in a batch, or under way at the server."})
    shard: str = field(default="1/1", metadata={"help": "Part of the pairs to do here, such as 2/4."})
    extra_body: str = field(
        default='{"chat_template_kwargs": {"enable_thinking": false}}',
        metadata={"help": "Further fields of each request to a server, as JSON."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Print counts and the first prompt, ask nothing."})


class UnansweredError(RuntimeError):
    """Some pairs got no usable answer."""


def generate(arguments: GenerateArguments) -> None:
    """Asks for all transition captions that the log does not have yet.

    Raises:
        UnansweredError: some pairs got no usable answer; all others are in the log.
    """
    rows = read_annotations(arguments.annotations)
    pairs = caption_pairs(rows)
    mine = take_shard(pairs, arguments.shard)
    print(f"{len(rows)} videos, {len(pairs)} pairs of adjacent captions, {len(mine)} in shard {arguments.shard}")
    if arguments.dry_run:
        for message in mine[0].messages if mine else []:
            print(f"\n[{message['role']}]\n{message['content']}")
        return
    if not arguments.output:
        raise ValueError("give the log to write by --output")
    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.top_k, arguments.max_new_tokens)
    revision = arguments.llm_revision if arguments.base_url else find_revision(arguments.llm, arguments.llm_revision)
    settings = {
        # A folder's name, not where it lies: this is published.
        "llm": Path(arguments.llm).name if Path(arguments.llm).is_dir() else arguments.llm,
        "llm_revision": revision,
        "engine": "server" if arguments.base_url else "transformers",
        "prompt_digest": PROMPT_DIGEST,
        "seed": arguments.seed,
        **asdict(sampling),
    }
    with open_log(arguments.output, settings) as log:
        attempts = {record_key(record): record["attempts"] for record in log.records}
        waiting = [(pair, attempts.get(pair.key, 0)) for pair in without_answer(mine, log)]
        waiting = [(pair, attempt) for pair, attempt in waiting if attempt < arguments.max_attempts]
        with tqdm(total=len(mine), initial=len(mine) - len(waiting), unit="pair", desc="transitions") as progress:
            if waiting:
                answer_pairs(make_engine(arguments, revision, sampling), waiting, log, arguments, progress)
        unanswered = without_answer(mine, log)
    if unanswered:
        raise UnansweredError(
            f"{len(unanswered)} pairs got no usable answer in {arguments.max_attempts} attempts: "
            f"{name_some(unanswered)}. All others are in the log; run again with a larger --max_attempts"
        )
    print(f"{arguments.output} holds all {len(mine)} answers")


def find_revision(llm: str, revision: str | None) -> str | None:
    """The commit that a model of the Hub is at; for a folder, what was given."""
    if Path(llm).is_dir():
        return revision
    # Cached files lie in a folder named by their commit.
    return Path(hf_hub_download(llm, "config.json", revision=revision)).parent.name


def make_engine(arguments: GenerateArguments, revision: str | None, sampling: Sampling):
    llm, concurrency = arguments.llm, arguments.concurrency
    if arguments.base_url:
        return ServerEngine(arguments.base_url, llm, sampling, concurrency, json.loads(arguments.extra_body))
    return TransformersEngine(llm, revision, sampling, concurrency)


def without_answer(pairs: list[Pair], log: AnswerLog) -> list[Pair]:
    """Pairs for which the log has no usable answer."""
    answered = {record_key(record) for record in log.records if record["text"] is not None}
    return [pair for pair in pairs if pair.key not in answered]


def answer_pairs(engine, waiting: list[tuple[Pair, int]], log: AnswerLog, arguments: GenerateArguments, progress):
    """Asks until each pair has a usable answer, or `max_attempts` were not usable; logs what came out.

    `waiting` has with each pair the number of answers asked for before. An answer that was cut off within its first
    sentence counts as usable in the last attempt only.
    """
    while waiting:
        asked = {str(i): item for i, item in enumerate(waiting)}
        requests = [Request(name, pair.messages, pair.seed(arguments.seed, i)) for name, (pair, i) in asked.items()]
        waiting = []
        for answer in engine.answers(requests):
            pair, attempt = asked[answer.name]
            text, edits = clean_answer(answer.text, answer.complete)
            if attempt + 1 < arguments.max_attempts and (not text or "broken" in edits):
                waiting.append((pair, attempt + 1))
                continue
            record = dict(zip(KEY, pair.key, strict=True)) | {"text": text or None, "edits": edits}
            log.append(record | {"attempts": attempt + 1, "answer": answer.text})
            progress.update()


def name_some(pairs: Iterable[Pair]) -> str:
    names = [f"{pair.video_id} pair {pair.index}" for pair in pairs]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


@dataclass
class MergeArguments:
    dataset: str = field(metadata={"help": "Folder that build_dataset.py made."})
    logs: list[str] = field(metadata={"help": "Logs of all shards."})
    split: str = "train"


def merge(arguments: MergeArguments) -> None:
    """Puts the answers of all shards into a split of a data set, with where they come from.

    Raises:
        ValueError: a pair has no answer, or several; the logs' settings differ; the data set has features already.
    """
    path = Path(arguments.dataset, f"{arguments.split}-00000-of-00001.parquet")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: expected a data set that build_dataset.py made")
    if further := set(parquet.read_schema(path).names) - set(FEATURES):
        raise ValueError(f"{path} has {', '.join(sorted(further))} already: merge first, then extract features")
    rows = parquet.read_table(path).to_pylist()
    settings, records = collect_answers(arguments.logs)
    pairs = caption_pairs(rows)
    missing = [pair for pair in pairs if pair.key not in records]
    if missing:
        raise ValueError(f"{len(missing)} of {len(pairs)} pairs have no answer in the logs: {name_some(missing)}")
    for row in rows:
        found = [records[pair.key] for pair in caption_pairs([row])]
        row["transitions"] = [record["text"] for record in found]
        row["transition_edits"] = [" ".join(record["edits"]) for record in found]
        row["transition_attempts"] = [record["attempts"] for record in found]
        row.update({name: settings[name] for name in ("llm", "llm_revision", "prompt_digest", "seed")})
    write_split(Dataset.from_list(rows, features=FEATURES), Path(arguments.dataset), arguments.split)
    edited = sum(bool(edits) for row in rows for edits in row["transition_edits"])
    print(f"{path}: {len(pairs)} transitions, {edited} of them cleaned")
    if stale := len(records) - len(pairs):
        print(f"{stale} answers in the logs belong to no pair of this split, and were left out")


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
                raise ValueError(f"{record['video_id']} pair {record['pair']} is answered in {where}")
            records[key], origin[key] = record, log
    return settings, records


COMMANDS = {"generate": (GenerateArguments, generate), "merge": (MergeArguments, merge)}


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in COMMANDS:
        raise ValueError(f"expected a command, {' or '.join(COMMANDS)}; add --help for its options")
    arguments, run = COMMANDS[argv[0]]
    parser = HfArgumentParser(arguments, prog=f"augment_captions.py {argv[0]}")
    run(*parser.parse_args_into_dataclasses(argv[1:]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
