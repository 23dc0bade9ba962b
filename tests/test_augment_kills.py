"""Kill -9 at random moments: the log of a run that was killed again and again is that of an uninterrupted run."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from answer_log import UnansweredError, read_log
from augment_captions import GenerateArguments, generate
from chat_server import chat_server
from tiny_llm import make_tiny_llm

KILLS = 20


def write_captions(path: Path, videos: int) -> str:
    rows = [{"video": f"v{i}", "captions": [f"Person {i} does thing {j}." for j in range(4)]} for i in range(videos)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run_in_child(arguments: GenerateArguments) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run(arguments)


def run(arguments: GenerateArguments) -> None:
    # A random LLM may give no usable answer; that is in the log too.
    with contextlib.suppress(UnansweredError):
        generate(arguments)


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have the imports behind them, so that kills hit the work and not the start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["augment_captions", "openai", "torch", "transformers.models.qwen3.modeling_qwen3"])
    return context


def run_with_kills(processes, arguments: GenerateArguments, longest: float, moments: random.Random) -> list[int]:
    """Runs to the end, killed on the way again and again, each time within `longest` seconds of the start.

    On a machine that has become busy, kills would hit nothing but the start: each that does makes `longest` longer.
    Returns the number of answers in the log after each kill.
    """
    log = Path(arguments.output)
    answers = [0]
    while True:
        child = processes.Process(target=run_in_child, args=(arguments,))
        child.start()
        child.join(moments.uniform(0, longest) if len(answers) <= KILLS else 100)
        if child.exitcode is not None:
            assert child.exitcode == 0
            return answers[1:]
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        answers.append(len(read_log(log)[1]) if log.exists() else 0)
        assert answers[-1] >= answers[-2], "what was on the disk before is still there"
        longest *= 1.2 if answers[-1] == answers[-2] else 1


def check_kills(processes, fields: dict, folder: Path, pairs: int) -> None:
    """At least `KILLS` kills, in as many runs as it takes, and every run's log is that of an uninterrupted one."""
    whole = str(folder / "whole.jsonl")
    start = time.monotonic()
    run(GenerateArguments(output=whole, **fields))
    longest = time.monotonic() - start
    expected = contents(whole)
    assert len(expected[1]) == pairs
    moments = random.Random(0)
    answers = []
    while len(answers) < KILLS:
        killed = str(folder / f"killed_{len(answers)}.jsonl")
        answers += run_with_kills(processes, GenerateArguments(output=killed, **fields), longest, moments)
        assert contents(killed) == expected
    assert sum(0 < count < pairs for count in answers) >= 3, f"kills hit the work: {answers}"


def contents(log: str) -> tuple[dict, list[dict]]:
    settings, records, length = read_log(log)
    assert length == os.path.getsize(log), "nothing half-written is left"
    keys = [(r["video_id"], r["pair"]) for r in records]
    assert len(keys) == len(set(keys)), "nothing is there twice"
    return settings, sorted(records, key=lambda r: (r["video_id"], r["pair"]))


def test_kills_with_a_server(processes, tmp_path):
    captions = write_captions(tmp_path / "a.jsonl", 30)
    with chat_server(delay=0.02) as server:
        fields = {"annotations": [captions], "llm": "scripted", "base_url": server.url, "concurrency": 2}
        check_kills(processes, fields, tmp_path, pairs=90)


def test_kills_in_process(processes, tmp_path):
    """Sampling at temperature 0.7: each kill changes which requests share a batch, and no text."""
    llm = str(make_tiny_llm(tmp_path / "tiny-qwen3"))
    captions = write_captions(tmp_path / "a.jsonl", 8)
    fields = {"annotations": [captions], "llm": llm, "max_new_tokens": 8, "max_attempts": 1, "concurrency": 2}
    check_kills(processes, fields, tmp_path, pairs=24)
