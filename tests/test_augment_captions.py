import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from answer_log import clean_answer, collect_answers, open_log, read_log
from augment_captions import (
    PROMPT_DIGEST,
    SYSTEM_PROMPT,
    USER_PROMPT,
    GenerateArguments,
    MergeArguments,
    Pair,
    caption_pairs,
    generate,
    main,
    merge,
)
from build_dataset import BuildArguments
from build_dataset import write_dataset as build
from chat_server import chat_server
from datasets import load_dataset
from work_folder import take_shard

from sail_hf.data import read_annotation_file

SCRIPT = Path(__file__).parents[1] / "training" / "augment_captions.py"
SETTINGS = {"llm": "tiny", "seed": 0}


def write_captions(path, counts: list[int]) -> str:
    """Annotations of videos v0, v1, ... with so many captions."""
    rows = [
        {"video": f"v{i}", "captions": [f"Person {i} does thing {j} – ü." for j in range(n)]}
        for i, n in enumerate(counts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- questions


def test_prompts_are_the_papers(shared):
    paper = (shared / "paper" / "sail.md").read_text()
    found = re.search(r"\nSYSTEM PROMPT\n\n(.*?)\n\nUSER PROMPT (.*)\s*$", paper, re.DOTALL)
    assert SYSTEM_PROMPT == found[1]
    assert USER_PROMPT == found[2].strip()


def test_prompt_digest_is_pinned():
    # Logs and data sets of other prompts cannot be mixed up with these.
    assert PROMPT_DIGEST == "dfd779e33ffacf6e"


def test_pairs_and_messages():
    rows = [
        {"video_id": "a", "captions": [" One\n{x}. ", "Two.", "Three."]},
        {"video_id": "b", "captions": ["Alone."]},
    ]
    pairs = caption_pairs(rows)
    assert [(p.video_id, p.index, p.caption2) for p in pairs] == [("a", 0, "Two."), ("a", 1, "Three.")]
    system, user = pairs[0].messages
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert "\n\nCaption 1: One {x}.\n\nCaption 2: Two.\n\n" in user["content"]


def test_seed_depends_on_the_pair_and_nothing_else():
    pair = Pair("a", 0, "One.", "Two.")
    seeds = {
        pair.seed(0, 0),
        pair.seed(1, 0),
        pair.seed(0, 1),
        Pair("b", 0, "One.", "Two.").seed(0, 0),
        Pair("a", 1, "One.", "Two.").seed(0, 0),
        Pair("a", 0, "One!", "Two.").seed(0, 0),
    }
    assert len(seeds) == 6 and all(0 <= seed < 2**31 for seed in seeds)
    assert pair.seed(0, 0) == Pair("a", 0, " One. ", "Two.").seed(0, 0), "the prompt is the same"


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_shards_are_a_partition(n):
    pairs = caption_pairs([{"video_id": "a", "captions": list("abcdefgh")}])
    shards = [take_shard(pairs, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(pair.index for shard in shards for pair in shard) == list(range(7))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_wrong_shards(shard):
    with pytest.raises(ValueError, match="expected --shard 1/n to n/n"):
        take_shard([], shard)


def test_dry_run_counts_and_prints_the_prompts(shared, capsys):
    train = shared / "annotations" / "activitynet" / "train.json"
    generate(GenerateArguments(annotations=[str(train)], dry_run=True))
    printed = capsys.readouterr().out
    assert printed.startswith("10009 videos, 27412 pairs of adjacent captions, 27412 in shard 1/1\n")
    assert SYSTEM_PROMPT in printed
    assert "Caption 1: A young woman is seen standing in a room and leads into her dancing." in printed


# --- answers


@pytest.mark.parametrize(
    ("answer", "text", "edits"),
    [
        ("He bends down.", "He bends down.", []),
        ("  He bends down.\n", "He bends down.", []),
        ("Er sagt „Grüß“ – 你好.", "Er sagt „Grüß“ – 你好.", []),
        ("<think>\n\n</think>\n\nHe bends.", "He bends.", ["thinking"]),
        ("<think>So he\nmight bend.</think>He bends.", "He bends.", ["thinking"]),
        ("might bend.\n</think>\n\nHe bends.", "He bends.", ["thinking"]),
        ("<think>He might", "", ["thinking"]),
        ("Caption: He bends.", "He bends.", ["label"]),
        ("Caption 1.5: He bends.", "He bends.", ["label"]),
        ("The generated caption: He bends.", "He bends.", ["label"]),
        ("**Caption:** He bends.", "He bends.", ["markup", "label"]),
        ("Most plausible event: he bends.", "he bends.", ["label"]),
        ("He says: stop.", "He says: stop.", []),
        ('"He bends."', "He bends.", ["quotes"]),
        ("“He bends.”", "He bends.", ["quotes"]),
        ("'He doesn't bend.'", "He doesn't bend.", ["quotes"]),
        ('"He bends".', "He bends", ["quotes"]),
        ('He says "yes".', 'He says "yes".', []),
        ('"Yes" and "no" are cards.', '"Yes" and "no" are cards.', []),
        ('Output: "He bends."', "He bends.", ["label", "quotes"]),
        ("He bends.\nThis links both.", "He bends.", ["lines"]),
        ("Here is the caption:\n\nHe bends.", "He bends.", ["lines"]),
        ("**Caption:**\nHe bends.\n\n(Note.)", "He bends.", ["lines"]),
        ("- He *slowly* bends.", "He slowly bends.", ["markup"]),
        ("1. He bends.", "He bends.", ["markup"]),
        ("2 men bend.", "2 men bend.", []),
        ("", "", []),
        (" \n ", "", []),
        ("...", "", []),
        ("Caption:", "", ["label"]),
        ('""', "", []),
    ],
)
def test_cleaning(answer, text, edits):
    assert clean_answer(answer, complete=True) == (text, edits)


@pytest.mark.parametrize(
    ("answer", "text", "edits"),
    [
        ("He bends. He then wal", "He bends.", ["cut"]),
        ("He bends", "He", ["broken"]),
        ("He bends over the tab", "He bends over the", ["broken"]),
        ("He bends.", "He bends.", []),
        ("He bends.\nThis is bec", "He bends.", ["lines"]),
        ('"He bends over the ta', "He bends over the", ["quotes", "broken"]),
        ("He runs 1.5 miles and th", "He runs 1.5 miles and", ["broken"]),
        ("He", "", ["broken"]),
    ],
)
def test_cleaning_of_answers_that_were_cut_off(answer, text, edits):
    assert clean_answer(answer, complete=False) == (text, edits)


# --- log


def record(i: int, text: str | None = "He – é.") -> dict:
    return {
        "video_id": "v",
        "pair": i,
        "prompt": "0" * 16,
        "text": text,
        "edits": [],
        "attempts": 1,
        "answer": "x\n\r\u2028",
    }


def test_log_survives_a_tear_at_every_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)  # only slow here
    path = tmp_path / "log.jsonl"
    with open_log(path, SETTINGS) as log:
        for i in range(3):
            log.append(record(i))
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        lines = sum(end <= length for end in ends)
        with open_log(path, SETTINGS) as log:
            assert log.records == [record(i) for i in range(lines - 1)]
            for i in range(len(log.records), 3):
                log.append(record(i))
        assert path.read_bytes() == whole


def test_log_of_other_settings_or_damaged_is_refused_and_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    with open_log(path, SETTINGS) as log:
        log.append(record(0))
    before = path.read_bytes()
    with (
        pytest.raises(ValueError, match="was made with .*'seed': 0.*use another --output"),
        open_log(path, {"seed": 1}),
    ):
        pass
    assert path.read_bytes() == before
    path.write_bytes(before + b"nonsense\n")
    with pytest.raises(ValueError, match="is damaged"), open_log(path, SETTINGS):
        pass


def test_two_writers_are_refused(tmp_path):
    with open_log(tmp_path / "log.jsonl", SETTINGS):
        with (
            pytest.raises(RuntimeError, match="another process is writing"),
            open_log(tmp_path / "log.jsonl", SETTINGS),
        ):
            pass


# --- generate and merge, with a server


def arguments(captions, output, server, **changes) -> GenerateArguments:
    fields = {"llm": "scripted", "base_url": server.url, "concurrency": 4, **changes}
    return GenerateArguments(annotations=[str(captions)], output=str(output), **fields)


def test_server_gets_the_papers_settings_and_the_key_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    captions = write_captions(tmp_path / "a.jsonl", [3])
    with chat_server(lambda body: ("He bends.", "stop")) as server:
        generate(arguments(captions, tmp_path / "log.jsonl", server))
    pairs = caption_pairs(read_annotation_file(captions))
    expected = [
        {
            "messages": pair.messages,
            "model": "scripted",
            "seed": pair.seed(0, 0),
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
            "max_tokens": 50,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        for pair in pairs
    ]
    assert sorted(server.bodies, key=lambda body: expected.index(body)) == expected
    assert server.keys == {"Bearer from-the-environment"}
    assert "from-the-environment" not in (tmp_path / "log.jsonl").read_text()


def test_augmented_data_set(tmp_path, capsys):
    captions = write_captions(tmp_path / "a.jsonl", [4, 1, 9, 2])
    build(BuildArguments(output=str(tmp_path / "set"), train=[captions], validation=[write_valid(tmp_path)]))
    logs = [str(tmp_path / f"{i}.jsonl") for i in (1, 2)]
    with chat_server() as server:
        for i, log in enumerate(logs, start=1):
            generate(arguments(f"{tmp_path}/set#train", log, server, shard=f"{i}/2"))
    merge(MergeArguments(dataset=str(tmp_path / "set"), logs=logs))
    assert "12 transitions" in capsys.readouterr().out
    loaded = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert [len(row["transitions"]) for row in loaded["train"]] == [3, 0, 8, 1]
    row = loaded["train"][2]
    assert all(re.fullmatch(r"He turns to number \d+ – é\.", text) for text in row["transitions"])
    assert len(row["transition_edits"]) == len(row["transition_attempts"]) == 8
    assert (row["llm"], row["llm_revision"], row["prompt_digest"], row["seed"]) == ("scripted", None, PROMPT_DIGEST, 0)
    used = {edit for row in loaded["train"] for edits in row["transition_edits"] for edit in edits.split()}
    assert {"quotes", "label"} <= used
    assert loaded["validation"][0]["transitions"] is None
    assert loaded["train"]["captions"] == [r["captions"] for r in read_annotation_file(captions)]


def write_valid(folder) -> str:
    path = folder / "valid.jsonl"
    path.write_text('{"video": "w", "captions": ["One.", "Two."]}\n')
    return str(path)


def test_nothing_is_asked_twice(tmp_path):
    captions = write_captions(tmp_path / "a.jsonl", [6, 6])
    with chat_server(lambda body: ("He bends.", "stop")) as server:
        generate(arguments(captions, tmp_path / "log.jsonl", server))
        generate(arguments(captions, tmp_path / "log.jsonl", server))
        assert len(server.bodies) == 10
        # A caption that was changed is asked for again, the rest is not.
        changed = Path(captions).read_text().replace("Person 1 does thing 0", "Person 1 falls")
        Path(captions).write_text(changed)
        generate(arguments(captions, tmp_path / "log.jsonl", server))
        assert len(server.bodies) == 11


def test_empty_answers_are_asked_again_then_reported(tmp_path):
    captions = write_captions(tmp_path / "a.jsonl", [3])
    hopeless = "Caption 1: Person 0 does thing 1"

    def answer(body):
        return ("", "stop") if hopeless in body["messages"][1]["content"] else ("He bends.", "stop")

    log = tmp_path / "log.jsonl"
    with chat_server(answer) as server, pytest.raises(RuntimeError, match="1 pairs got no usable answer.* v0 pair 1"):
        generate(arguments(captions, log, server, max_attempts=3))
    assert len(server.bodies) == 1 + 3
    assert len({body["seed"] for body in server.bodies}) == 4
    _, records, _ = read_log(log)
    assert sorted((r["pair"], r["text"], r["attempts"]) for r in records) == [(0, "He bends.", 1), (1, None, 3)]
    # More attempts go on where the others ended.
    with chat_server(lambda body: ("He sits.", "stop")) as second:
        generate(arguments(captions, log, second, max_attempts=4))
    assert len(second.bodies) == 1 and second.bodies[0]["seed"] not in {body["seed"] for body in server.bodies}
    _, answers = collect_answers([str(log)])
    assert sorted((a["text"], a["attempts"]) for a in answers.values()) == [("He bends.", 1), ("He sits.", 4)]


def test_cut_off_answers_are_asked_again_and_the_last_one_is_kept(tmp_path):
    captions = write_captions(tmp_path / "a.jsonl", [2])
    with chat_server(lambda body: ("He goes to the", "length")) as server:
        generate(arguments(captions, tmp_path / "log.jsonl", server, max_attempts=3))
    (found,) = read_log(tmp_path / "log.jsonl")[1]
    assert len(server.bodies) == 3
    assert (found["text"], found["edits"], found["attempts"]) == ("He goes to", ["broken"], 3)


def test_faults_of_the_server(tmp_path):
    captions = write_captions(tmp_path / "a.jsonl", [2])
    faults = iter([500, 429])
    with chat_server(lambda body: next(faults, ("He bends.", "stop"))) as server:
        generate(arguments(captions, tmp_path / "log.jsonl", server))
    assert len(server.bodies) == 3
    with (
        chat_server(lambda body: 422) as server,
        pytest.raises(RuntimeError, match=r"refused a request \(422\): .*scripted fault"),
    ):
        generate(arguments(captions, tmp_path / "other.jsonl", server))


@pytest.fixture
def built(tmp_path):
    """A data set of 5 pairs and the log of its answers."""
    captions = write_captions(tmp_path / "a.jsonl", [4, 3])
    build(BuildArguments(output=str(tmp_path / "set"), train=[captions]))
    with chat_server(lambda body: ("He bends.", "stop")) as server:
        generate(arguments(captions, tmp_path / "log.jsonl", server))
    return str(tmp_path / "set"), tmp_path / "log.jsonl"


def test_merge_refuses_gaps_and_duplicates(built, tmp_path):
    dataset, log = built
    before = (Path(dataset) / "train-00000-of-00001.parquet").read_bytes()
    head, *lines = log.read_text().splitlines(keepends=True)
    lines.sort()
    cases = {
        "2 of 5 pairs have no answer in the logs: v0 pair 0, v0 pair 2": [[head, lines[1], *lines[3:]]],
        "v0 pair 1 is answered in .*0.jsonl twice": [[head, *lines, lines[1]]],
        "v0 pair 2 is answered in .*0.jsonl and .*1.jsonl": [[head, *lines], [head, lines[2]]],
        "logs of different settings|was made with": [
            [head, *lines[:2]],
            [head.replace("scripted", "other"), *lines[2:]],
        ],
        "is damaged, or no log": [lines],
    }
    for message, contents in cases.items():
        logs = []
        for i, content in enumerate(contents):
            logs.append(str(tmp_path / f"{i}.jsonl"))
            Path(logs[-1]).write_text("".join(content))
        with pytest.raises(ValueError, match=message):
            merge(MergeArguments(dataset=dataset, logs=logs))
    assert (Path(dataset) / "train-00000-of-00001.parquet").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="there is no .*test-"):
        merge(MergeArguments(dataset=dataset, logs=[str(log)], split="test"))


def run(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)


def test_command_line(tmp_path):
    captions = write_captions(tmp_path / "a.jsonl", [3])
    log = tmp_path / "log.jsonl"
    with chat_server(lambda body: ("He bends.", "stop")) as server:
        done = run("generate", "--annotations", captions, "--output", log, "--base-url", server.url, "--llm", "x")
    assert done.returncode == 0, done.stderr
    assert f"{log} holds all 2 answers" in done.stdout
    assert re.search(r"100%.*2/2 .*(pair/s|s/pair)", done.stderr), "progress with rate and time left"
    failed = run("generate", "--annotations", tmp_path / "no.json", "--output", log)
    assert failed.returncode == 1
    assert failed.stderr.endswith(f"error: there is no annotation file {tmp_path}/no.json\n")
    assert "Traceback" not in failed.stderr


def test_wrong_arguments(tmp_path):
    captions = write_captions(tmp_path / "a.jsonl", [3])
    for words, message in [
        (["generate", "--annotations", captions, "--shard", "0/2"], "expected --shard 1/n"),
        (["generate", "--annotations", captions], "give the log to write by --output"),
        (["mrege"], "expected a command, generate or merge"),
        ([], "expected a command"),
    ]:
        with pytest.raises(ValueError, match=message):
            main(words)
