"""Pushing to a Hub on loopback, and loading from it in a new process that has no `sail_hf`."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build_dataset import FEATURES
from datasets import Dataset
from hub_server import Hub, hub_server
from huggingface_hub import DatasetCard, ModelCard
from tiny import make_clip, make_model, make_processor
from transformers import pipeline

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.loss_sail import Loss

ROOT = Path(__file__).parents[1]
PUSH = ROOT / "hub_card" / "push_to_hub.py"
sys.path.append(str(PUSH.parent))

from cards import dataset_card, model_card, read_scores  # noqa: E402
from push_to_hub import main, parse_arguments, same_events, stage_model  # noqa: E402


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, **hub.environment(tmp_path / "hf_home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def push(hub: Hub, tmp_path: Path, *words, check: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, PUSH, *map(str, words)]
    done = subprocess.run(command, env=environment(hub, tmp_path), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def as_stranger(hub: Hub, tmp_path: Path, code: str):
    """What `code` leaves in `result`, run in a new process in which `import sail_hf` fails."""
    program = f"import sys, json\nsys.modules['sail_hf'] = None\n{code}\nprint(json.dumps(result))"
    variables = environment(hub, tmp_path)
    del variables["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# --- data sets


def write_dataset(folder: Path, texts: dict[str, list[list[str]]]) -> Path:
    """A data set of the given captions by split, with transitions in `train`."""
    folder.mkdir(parents=True)
    for split, videos in texts.items():
        rows = []
        for i, captions in enumerate(videos):
            row = dict.fromkeys(FEATURES) | {"video_id": f"{split}{i}", "duration": 36.0, "captions": captions}
            row["timestamps"] = [[j, j + 1.5] for j in range(len(captions))]
            if split == "train":
                count = len(captions) - 1
                row |= {
                    "transitions": ["He bends down."] * count,
                    "transition_edits": ["quotes cut"] + [""] * (count - 1),
                }
                row |= {"transition_attempts": [2] + [1] * (count - 1), "llm": "org/llm", "llm_revision": "abc123"}
                row |= {"prompt_digest": "dfd779e33ffacf6e", "seed": 7}
            rows.append(row)
        Dataset.from_list(rows, features=FEATURES).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def captions_folder(tmp_path) -> Path:
    write_dataset(
        tmp_path / "set" / "first", {"train": [["Ü one.", "Two.", "Three."], ["A.", "B."]], "validation": [["C."]]}
    )
    write_dataset(tmp_path / "set" / "second", {"train": [["D.", "E."]]})
    return tmp_path / "set"


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_data_set_round_trip(hub, tmp_path, captions_folder):
    (captions_folder / "notes.txt").write_text("stays here")
    done = push(hub, tmp_path, "dataset", captions_folder, "org/captions", "--source", "Made up for this test.")
    assert "loaded it from the Hub: it gives the same" in done.stdout
    assert len(hub.repositories["dataset", "org/captions"].commits) == 2, "the empty repository, and one commit"
    files = hub.files("dataset", "org/captions")
    assert set(files) == {".gitattributes", "README.md", *local_files(captions_folder)} - {"notes.txt"}
    found = as_stranger(
        hub,
        tmp_path,
        "from datasets import load_dataset\n"
        "default, second = load_dataset('org/captions'), load_dataset('org/captions', 'second')\n"
        "features = str(default['train'].features)\n"
        "result = [{s: d.to_list() for s, d in default.items()}, second['train'].to_list(), features]",
    )
    assert [row["captions"] for row in found[0]["train"]] == [["Ü one.", "Two.", "Three."], ["A.", "B."]]
    assert found[0]["train"][0]["timestamps"] == [[0.0, 1.5], [1.0, 2.5], [2.0, 3.5]]
    assert [row["captions"] for row in found[0]["validation"]] == [["C."]]
    assert [row["transitions"] for row in found[1]] == [["He bends down."]]
    assert found[2] == str(FEATURES)

    # A later push replaces everything, in one commit again.
    write_dataset(tmp_path / "smaller", {"train": [["F.", "G."]]})
    push(hub, tmp_path, "dataset", tmp_path / "smaller", "org/captions")
    assert len(hub.repositories["dataset", "org/captions"].commits) == 3
    assert set(hub.files("dataset", "org/captions")) == {".gitattributes", "README.md", "train-00000-of-00001.parquet"}


def test_interrupted_pushes_leave_the_earlier_revision(hub, tmp_path, captions_folder):
    push(hub, tmp_path, "dataset", captions_folder, "org/captions")
    repository = hub.repositories["dataset", "org/captions"]
    before = repository.commits[-1]
    changed = write_dataset(tmp_path / "changed", {"train": [["Other.", "Captions."]], "validation": [["H."]]})

    def push_killed_at(method: str, part: str):
        """Pushes until that request comes; its client is killed and the request gets lost."""
        client = subprocess.Popen(
            [sys.executable, PUSH, "dataset", changed, "org/captions"],
            env=environment(hub, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def fault(found_method, path):
            if found_method == method and part in path:
                os.kill(client.pid, signal.SIGKILL)
                return 500

        hub.fault = fault
        assert client.wait(timeout=120) == -signal.SIGKILL
        hub.fault = lambda method, path: None

    for method, part in [("POST", "/preupload/"), ("PUT", "/lfs/"), ("POST", "/verify"), ("POST", "/commit/")]:
        push_killed_at(method, part)
        assert repository.commits[-1] == before
    loaded = as_stranger(
        hub, tmp_path, "from datasets import load_dataset\nresult = load_dataset('org/captions')['train'].to_list()"
    )
    assert [row["captions"] for row in loaded] == [["Ü one.", "Two.", "Three."], ["A.", "B."]]

    # A refused commit, and somebody else's commit between look and commit, end with a message.
    hub.fault = lambda method, path: 403 if "/commit/" in path else None
    failed = push(hub, tmp_path, "dataset", changed, "org/captions", check=False)
    assert failed.returncode == 1 and "\nerror: " in failed.stderr and "Traceback" not in failed.stderr
    assert repository.commits[-1] == before

    def commit_of_another(method, path):
        if "/commit/" in path:
            repository.add({**before[1], "other.txt": b"by another"})

    hub.fault = commit_of_another
    failed = push(hub, tmp_path, "dataset", changed, "org/captions", check=False)
    assert failed.returncode == 1 and "412" in failed.stderr
    assert repository.commits[-1][1] == {**before[1], "other.txt": b"by another"}

    hub.fault = lambda method, path: None
    push(hub, tmp_path, "dataset", changed, "org/captions")
    assert {"README.md", "train-00000-of-00001.parquet"} < set(hub.files("dataset", "org/captions"))


def test_data_set_card(tmp_path, captions_folder, capsys):
    words = ["dataset", str(captions_folder), "org/captions", "--dry-run", str(tmp_path / "dry")]
    main([*words, "--license", "cc-by-4.0"])
    assert "dry holds what would be pushed; it loads and gives the same" in capsys.readouterr().out
    card = DatasetCard.load(tmp_path / "dry" / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["language"], data["size_categories"]) == ("cc-by-4.0", "en", "n<1K")
    assert "dense-video-captioning" in data["tags"]
    splits = [{"split": split, "path": f"first/{split}-*.parquet"} for split in ("train", "validation")]
    assert data["configs"] == [
        {"config_name": "first", "data_files": splits, "default": True},
        {"config_name": "second", "data_files": [{"split": "train", "path": "second/train-*.parquet"}]},
    ]
    headings = re.findall(r"^#+ (.*)$", card.text, re.MULTILINE)
    assert headings == [
        "captions", "Content", "Where the captions come from", "How the transition captions were made", "Citation"
    ]  # fmt: skip
    # 2 videos, 5 captions of 6 words, 3 transitions of 3 words, 72 s.
    assert "| first | train | 2 | 5 | 2.5 | 1.2 | 3 of 3 pairs | 3.0 | 0.0 |" in card.text
    assert "| first | validation | 1 | 1 | 1.0 | 1.0 | 0 of 0 pairs | - | 0.0 |" in card.text
    assert "| first | train | org/llm | abc123 | 7 | dfd779e33ffacf6e | 3 | 2 (66.7%) | 2 (66.7%) |" in card.text
    assert "* `quotes`: 3 (quotation marks taken off)" in card.text
    assert "**Output**: Provide **ONLY** the single generated caption text" in card.text
    assert 'load_dataset("org/captions", "first")' in card.text
    assert local_files(tmp_path / "dry").keys() == local_files(captions_folder).keys() | {"README.md"}


# --- models


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    processor = make_processor()
    model = make_model(processor, vision_config=make_clip(folder / "clip").vision_config)
    model.save_pretrained(folder / "run")
    processor.save_pretrained(folder / "run")
    (folder / "run" / "trainer_state.json").write_text(json.dumps({"global_step": 120, "epoch": 20.0}))
    return folder / "run"


@pytest.fixture
def scores(tmp_path) -> Path:
    """Invented numbers, for the form of the card alone."""
    values = {"meteor": 0.0512, "cider": 0.25, "soda_c": 0.034, "f1": 0.4321, "precision": 0.5, "recall": 0.38}
    values |= {"f1_whole_video": 0.3, "f1_equal_spans": 0.42, "lift": None}
    values |= {"protocol": "2021", "missing": "zero", "num_videos": 50, "num_predictions": 180, "num_missing": 1}
    (tmp_path / "scores.json").write_text(json.dumps(values))
    return tmp_path / "scores.json"


def random_video() -> torch.Tensor:
    return torch.randint(0, 256, (12, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def test_model_round_trip(hub, tmp_path, model_folder, scores):
    words = ["model", model_folder, "org/tiny", "--scores", scores, "--evaluated_on", "a test"]
    done = push(hub, tmp_path, *words)
    assert "loaded it from the Hub: it gives the same" in done.stdout
    repository = hub.repositories["model", "org/tiny"]
    assert len(repository.commits) == 2
    files = hub.files("model", "org/tiny")
    assert {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "processor_config.json",
        "tokenizer.json", "modeling_sail.py", "configuration_sail.py", "processing_sail.py", "pipeline_sail.py",
        "video_processing_sail.py", "scores.json",
    } < set(files)  # fmt: skip
    assert not any(str(model_folder.parent).encode() in content for content in files.values()), "no local paths"
    assert not any(name.endswith((".bin", ".pkl", ".pt")) for name in files)
    expected = pipeline("dense-video-captioning", model=str(model_folder))(random_video().numpy(), fps=4.0)
    found = as_stranger(
        hub,
        tmp_path,
        "import torch\nfrom transformers import AutoModel, pipeline\n"
        "seeded = torch.Generator().manual_seed(5)\n"
        "video = torch.randint(0, 256, (12, 48, 64, 3), dtype=torch.uint8, generator=seeded)\n"
        "pipe = pipeline('dense-video-captioning', model='org/tiny', trust_remote_code=True)\n"
        "base = AutoModel.from_pretrained('org/tiny', trust_remote_code=True)\n"
        "result = [pipe(video.numpy(), fps=4.0), type(base).__name__, type(pipe.model).__module__]",
    )
    assert expected and same_events(found[0], expected)
    assert found[1] == "SailModel" and found[2].startswith("transformers_modules.")


def test_model_card(tmp_path, model_folder, scores):
    words = ["--scores", scores, "--evaluated_on", "Test Videos", "--dataset", "org/captions", "--license", "mit"]
    stage_model(parse_arguments(["model", str(model_folder), "org/tiny", *map(str, words)]), tmp_path / "staged")
    card = ModelCard.load(tmp_path / "staged" / "README.md")
    data = card.data
    assert (data.license, data.library_name, data.datasets) == ("mit", "transformers", ["org/captions"])
    assert "dense-video-captioning" in data.tags
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "soda_c": 0.034, "meteor": 0.0512, "cider": 0.25, "recall": 0.38, "precision": 0.5, "f1": 0.4321
    }  # fmt: skip
    assert results["meteor"].metric_name == "METEOR (2021 protocol, missing videos: zero)"
    assert results["meteor"].dataset_name == "Test Videos"
    headings = re.findall(r"^#+ (.*)$", card.text, re.MULTILINE)
    assert [h for h in headings if not h.startswith("pip install")] == [
        "tiny", "How to use", "Model", "Training", "Evaluation", "Limits", "Citation"
    ]  # fmt: skip
    assert 'pipeline("dense-video-captioning", model="org/tiny", trust_remote_code=True)' in card.text
    assert "120 optimiser steps, 20.0 epochs" in card.text
    assert "| augmentation | 0.25 |" in card.text and "| diversity |" not in card.text
    assert (
        "| SODA_c | METEOR | CIDEr | Recall | Precision | F1 |\n|---|---|---|---|---|---|\n| 3.40 | 5.12 |"
        in card.text
    )
    assert "50 videos, 180 predicted events" in card.text and "1 videos without a prediction" in card.text
    assert "| this model | 43.21 |\n| one span over the whole video | 30.00 |" in card.text


def test_card_and_files_show_no_path_of_this_machine(tmp_path, monkeypatch):
    """Wherever the script runs, and also where folders were named relative to another place."""
    processor = make_processor()
    for clip, shown in [(str(tmp_path / "my-clip"), "my-clip"), ("models/my-clip", "my-clip"), (r"C:\ai\b", "b")]:
        vision_config = make_clip(tmp_path / "my-clip").vision_config
        vision_config.clip = clip
        model = make_model(processor, vision_config=vision_config)
        model.config.text_config._name_or_path = str(tmp_path / "my-decoder")
        model.save_pretrained(tmp_path / "run"), processor.save_pretrained(tmp_path / "run")
        monkeypatch.chdir("/")
        staged = tmp_path / f"staged-{shown}-{len(clip)}"
        stage_model(parse_arguments(["model", str(tmp_path / "run"), "org/tiny"]), staged)
        assert f"CLIP `{shown}`, frozen" in (staged / "README.md").read_text()
        for path in staged.iterdir():
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content and b"models/my-clip" not in content, path


def test_model_card_names_licence_and_base_models(tmp_path, model_folder):
    words = ["model", str(model_folder), "org/tiny", "--license_name", "research-only"]
    stage_model(parse_arguments([*words, "--base_model", "org/decoder", "org/clip"]), tmp_path / "staged")
    data = ModelCard.load(tmp_path / "staged" / "README.md").data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "research-only")
    assert data["base_model"] == ["org/decoder", "org/clip"]


def test_losses_of_the_card_are_those_of_the_table(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr("cards.LOSSES", [Loss("new", "num_frames", "", (), None)])
    stage_model(parse_arguments(["model", str(model_folder), "org/tiny"]), tmp_path / "staged")
    assert "| loss | weight |\n|---|---|\n| new | 8 |\n" in (tmp_path / "staged" / "README.md").read_text()


def test_a_data_sets_own_text_is_no_html(tmp_path):
    evil = "<script>alert(1)</script> | [x](javascript:1) `"
    write_dataset(tmp_path / "set", {"train": [["A.", "B."]]})
    file = tmp_path / "set" / "train-00000-of-00001.parquet"
    rows = [
        {**row, "llm": evil, "llm_revision": evil, "prompt_digest": evil} for row in Dataset.from_parquet(str(file))
    ]
    rows[0]["transition_edits"] = ["<b>x</b>"]
    Dataset.from_list(rows, features=FEATURES).to_parquet(file)
    text = dataset_card(tmp_path / "set", "org/set").text
    assert "<script>" not in text and "[x](" not in text and "<b>" not in text
    assert "&#60;script&#62;alert(1)&#60;/script&#62; &#124; &#91;x&#93;(javascript:1) &#96; |" in text


def test_model_card_without_scores(tmp_path, model_folder):
    stage_model(parse_arguments(["model", str(model_folder), "org/tiny"]), tmp_path / "staged")
    card = ModelCard.load(tmp_path / "staged" / "README.md")
    assert "No scores were measured for this checkpoint." in card.text
    assert card.data.eval_results is None and "Trained on: not stated." in card.text
    # 7.5 s for each of 8 frames.
    assert "Videos longer than\n  60 s are captioned in chunks" in card.text and "knows only" not in card.text


def test_model_card_says_that_captions_ship(tmp_path, model_folder):
    model = SailForDenseVideoCaptioning.from_pretrained(model_folder)
    assert "bank of" not in (plain := model_card(tmp_path, "org/tiny", model.config, 1).text) and "ship" not in plain
    model.config.context_size, model.config.context_sentences = 10, 37421
    text = model_card(tmp_path, "org/tiny", model.config, 1).text
    assert "| context | bank of 37421 captions, 40 of them for each of 10 stretches of a video |\n| decoder |" in text
    assert "**Training captions ship with this model**" in text and "context_sentences.parquet" in text


def test_model_card_says_where_a_model_knows_little(tmp_path, model_folder):
    model = SailForDenseVideoCaptioning.from_pretrained(model_folder)
    model.config.knows_only, model.config.chunk_length_s = "a world of two dots", 33.5
    text = model_card(tmp_path, "org/tiny", model.config, 1).text
    assert (
        "\n* **It knows only a world of two dots**: its captions of anything else mean nothing.\n* The number" in text
    )
    assert "33.5 s are captioned in chunks" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "nowhere", "org/x"], "there is no folder nowhere"),
        (["dataset", ".", "org/x"], "holds no Parquet files"),
        (["dataset", ".", "x"], "expected ORG/NAME"),
        (["dataset", ".", "a b/x"], "Repo id must"),
        (["dataset", ".", "org/x", "--dry_run", "."], "choose another --dry_run folder"),
        (["dataset", ".", "org/x", "--source", "/data/set"], "--source /data/set is a path of this machine"),
        (["model", ".", "org/x", "--base_model", "org/x", "../decoder"], "--base_model ../decoder is a path"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        main(words)


def test_scores_that_are_no_scores(tmp_path, scores):
    good = json.loads(scores.read_text())
    scores.write_text(json.dumps({**good, "f1": 57.0}))
    with pytest.raises(ValueError, match="f1 is 57.0: expected fractions"):
        read_scores(scores)
    del good["protocol"]
    scores.write_text(json.dumps(good))
    with pytest.raises(ValueError, match="lacks protocol"):
        read_scores(scores)
