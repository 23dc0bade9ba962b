"""Both engines with a real LLM architecture: a tiny random Qwen3, in this process and behind `transformers serve`."""

import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from answer_log import read_log
from augment_captions import GenerateArguments, MergeArguments, Pair, generate, merge
from build_dataset import BuildArguments
from build_dataset import write_dataset as build
from hub_server import Repository, hub_server
from llm_engines import Request, Sampling, ServerEngine, TransformersEngine
from tiny_llm import make_tiny_llm

CAPTIONS = [f"A person does thing {i}." for i in range(7)]
SCRIPT = Path(__file__).parents[1] / "training" / "augment_captions.py"
SHORT = [{"role": "user", "content": "Go on."}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> str:
    return str(make_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny-qwen3"))


def requests(count: int) -> list[Request]:
    pairs = [Pair("v", i, CAPTIONS[i % 7], CAPTIONS[(i + 1) % 7]) for i in range(count)]
    return [Request(str(i), pair.messages, pair.seed(0, 0)) for i, pair in enumerate(pairs)]


def texts(engine, asked: list[Request]) -> dict[str, str]:
    return {answer.name: answer.text for answer in engine.answers(asked)}


def test_text_depends_on_prompt_and_seed_not_on_the_batch(llm):
    asked = requests(12)
    sampling = Sampling(max_new_tokens=12)
    together = texts(TransformersEngine(llm, None, sampling, concurrency=12), asked)
    engine = TransformersEngine(llm, None, sampling, concurrency=2)
    assert texts(engine, asked[::-1]) == together
    assert texts(engine, asked[3:4]) == {"3": together["3"]}
    assert len(set(together.values())) == 12
    other_seed = [Request(r.name, r.messages, r.seed + 1) for r in asked]
    assert all(text != together[name] for name, text in texts(engine, other_seed).items())


def test_draws_follow_the_models_distribution(llm):
    engine = TransformersEngine(llm, None, Sampling(temperature=0.7, top_p=0.8, top_k=5, max_new_tokens=1), 256)
    prompt = engine.tokenizer.apply_chat_template(
        SHORT, add_generation_prompt=True, enable_thinking=False, return_dict=False, return_tensors="pt"
    )
    with torch.no_grad():
        probabilities = (engine.model(prompt).logits[0, -1].float() / 0.7).softmax(-1)
    # By definition: the five likeliest, then the fewest of them that hold 80 % of what is left.
    values, tokens = probabilities.topk(5)
    values = values / values.sum()
    kept = int((values.cumsum(0) - values < 0.8).sum())
    expected = {
        engine.tokenizer.decode(int(token), skip_special_tokens=True): float(value / values[:kept].sum())
        for token, value in zip(tokens[:kept], values[:kept], strict=True)
    }
    assert kept > 1
    draws = 1000
    found = Counter(texts(engine, [Request(str(i), SHORT, i) for i in range(draws)]).values())
    assert set(found) == set(expected)
    for text, share in expected.items():
        assert abs(found[text] / draws - share) < 5 * math.sqrt(share * (1 - share) / draws)


def test_greedy_answers_are_those_of_generate(llm):
    engine = TransformersEngine(llm, None, Sampling(temperature=0, max_new_tokens=8), 4)
    asked = requests(3)
    found = texts(engine, asked)
    for request in asked:
        prompt = engine.tokenizer.apply_chat_template(
            request.messages, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=True
        )
        output = engine.model.generate(**prompt)
        answer = output[0, prompt["input_ids"].shape[1] :]
        assert found[request.name] == engine.tokenizer.decode(answer, skip_special_tokens=True)


def test_complete_means_that_the_answer_ended(llm):
    engine = TransformersEngine(llm, None, Sampling(max_new_tokens=20), 16)
    answers = list(engine.answers([Request(str(i), SHORT, i) for i in range(40)]))
    assert len({answer.complete for answer in answers}) == 2, "some end, some are cut off"
    for answer in answers:
        if not answer.complete:
            assert len(engine.tokenizer(answer.text)["input_ids"]) >= 10
    # Cut off after one token: only the end itself is a complete answer.
    engine = TransformersEngine(llm, None, Sampling(max_new_tokens=1), 16)
    for answer in engine.answers([Request(str(i), SHORT, i) for i in range(40)]):
        assert answer.complete == (answer.text == "")


def test_breaking_off_leaves_no_thread(llm):
    engine = TransformersEngine(llm, None, Sampling(max_new_tokens=4), 2)
    before = set(threading.enumerate())
    answers = engine.answers(requests(12))
    next(answers)
    answers.close()
    assert set(threading.enumerate()) <= before


def test_in_process_from_captions_to_data_set(llm, tmp_path):
    captions = tmp_path / "a.csv"
    captions.write_text("video,caption\n" + "".join(f"v{i // 4},{text}\n" for i, text in enumerate(CAPTIONS)))
    build(BuildArguments(output=str(tmp_path / "set"), train=[str(captions)]))
    log = str(tmp_path / "log.jsonl")
    generate(GenerateArguments(annotations=[f"{tmp_path}/set#train"], output=log, llm=llm, max_new_tokens=12))
    settings, records, _ = read_log(log)
    assert settings["llm"] == "tiny-qwen3", "a folder's name, not its path"
    assert len(records) == 5 and all(record["text"] for record in records)
    merge(MergeArguments(dataset=str(tmp_path / "set"), logs=[log]))


def test_the_commit_of_a_model_on_the_hub_is_kept(llm, tmp_path):
    captions = tmp_path / "a.csv"
    captions.write_text("video,caption\nv,He stands.\nv,He sits.\n")
    command = [sys.executable, SCRIPT, "generate", "--annotations", captions, "--output", tmp_path / "log.jsonl"]
    command += ["--llm", "org/llm", "--max_new_tokens", "8", "--max_attempts", "1"]
    with hub_server() as hub:
        repository = hub.repositories["model", "org/llm"] = Repository()
        commit = repository.add({path.name: path.read_bytes() for path in Path(llm).iterdir()})
        done = subprocess.run(
            list(map(str, command)), env={**os.environ, **hub.environment(tmp_path)}, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    settings, _, _ = read_log(tmp_path / "log.jsonl")
    assert (settings["llm"], settings["llm_revision"]) == ("org/llm", commit)


@contextmanager
def transformers_serve(llm: str, log: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", llm, "--host", "127.0.0.1"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"], stdout=output, stderr=output, env={**os.environ}
        )
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def test_transformers_serve(llm, tmp_path):
    sampling = Sampling(temperature=0, top_k=0, max_new_tokens=8)
    asked = requests(4)
    with transformers_serve(llm, tmp_path / "serve.log") as url:
        plain = {"chat_template_kwargs": {"enable_thinking": False}}
        served = texts(ServerEngine(url, llm, sampling, 2, plain), asked)
        # It refuses fields that it does not know, and the message says which.
        with pytest.raises(RuntimeError, match=r"refused a request \(422\): .*top_k"):
            texts(ServerEngine(url, llm, Sampling(), 1, plain), asked[:1])
        sampled = Sampling(top_k=0, max_new_tokens=8)
        one_by_one = [texts(ServerEngine(url, llm, sampled, 1, plain), asked) for _ in range(2)]
    assert served == texts(TransformersEngine(llm, None, sampling, 4), asked), (
        "greedy: the same text from both engines"
    )
    assert one_by_one[0] == one_by_one[1], "one request at a time: the seed decides"
