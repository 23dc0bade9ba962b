"""Writes transition captions with an LLM: a sentence for what happens between each two adjacent captions of a video.

    python training/augment_captions.py generate --annotations data/activitynet#train --output train.jsonl
    python training/augment_captions.py merge --dataset data/activitynet --split train --logs train.jsonl

Section 3.3 and Algorithm 1 of the paper. `generate` appends each answer to a log as soon as it is there, and goes on
from that log when started again, after whatever ended it. With `--shard 1/4` to `--shard 4/4` four machines share the
work, each with its own log. `merge` puts the answers of all logs into the data set, and refuses if one is missing or
there twice.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from answer_log import Question, ask, collect_answers, complete_log, digest, find_answers, run_command
from build_dataset import FEATURES, write_split
from datasets import Dataset
from huggingface_hub import hf_hub_download
from llm_engines import Sampling, ServerEngine, TransformersEngine
from pyarrow import parquet
from work_folder import take_shard

from sail_hf.data import read_annotations

# Algorithm 1, word for word. Its emphasis is kept as Markdown, which is how the numbered rules are set.
SYSTEM_PROMPT, USER_PROMPT = (
    (Path(__file__).parent / "prompts" / f"transition_{role}.md").read_text(encoding="utf-8").rstrip("\n")
    for role in ("system", "user")
)


PROMPT_DIGEST = digest([SYSTEM_PROMPT, USER_PROMPT])


@dataclass(frozen=True)
class Pair(Question):
    """Two adjacent captions: the `index`-th and the one after it."""

    unit = "pair"
    caption1: str
    caption2: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat messages of Algorithm 1; runs of white space in the captions become a space."""
        captions = {"caption1": " ".join(self.caption1.split()), "caption2": " ".join(self.caption2.split())}
        question = USER_PROMPT.format(**captions)
        return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]

    prompt = messages


def caption_pairs(rows: list[dict]) -> list[Pair]:
    """All adjacent pairs of captions, N-1 of a video with N."""
    return [Pair(row["video_id"], i, *pair) for row in rows for i, pair in enumerate(pairwise(row["captions"]))]


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

    def answer(waiting, log, progress):
        engine = make_engine(arguments, revision, sampling)
        ask(engine, waiting, log, arguments.seed, arguments.max_attempts, progress)

    complete_log(mine, arguments.output, settings, arguments.max_attempts, answer)


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
    found = iter(find_answers(pairs, records))
    for row in rows:
        of_row = [next(found) for _ in row["captions"][1:]]
        row["transitions"] = [record["text"] for record in of_row]
        row["transition_edits"] = [" ".join(record["edits"]) for record in of_row]
        row["transition_attempts"] = [record["attempts"] for record in of_row]
        row.update({name: settings[name] for name in ("llm", "llm_revision", "prompt_digest", "seed")})
    write_split(Dataset.from_list(rows, features=FEATURES), Path(arguments.dataset), arguments.split)
    edited = sum(bool(edits) for row in rows for edits in row["transition_edits"])
    print(f"{path}: {len(pairs)} transitions, {edited} of them cleaned")
    if stale := len(records) - len(pairs):
        print(f"{stale} answers in the logs belong to no pair of this split, and were left out")


COMMANDS = {"generate": (GenerateArguments, generate), "merge": (MergeArguments, merge)}


def main(argv: list[str]) -> None:
    run_command("augment_captions.py", COMMANDS, argv)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
