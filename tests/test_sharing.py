"""What `save_pretrained` and `push_to_hub` write loads in a process without this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import Hub, hub_server
from tiny import make_clip, make_model, make_processor
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

import sail_hf

ROOT = Path(__file__).parents[1]
SENTENCES = ["One.", "Two.", "Three."]
TASK = "dense-video-captioning"
VIDEO = "numpy.random.default_rng(5).integers(0, 256, (12, 48, 64, 3), dtype=numpy.uint8)"


def run(hub: Hub, folder: Path, home: str, code: str, package: bool):
    """What `code` leaves in `result`, run in `folder` in a new process, with or without `sail_hf`."""
    hidden = "" if package else "sys.modules['sail_hf'] = None\n"
    program = f"import json, numpy, sys\n{hidden}video = {VIDEO}\n{code}\nprint(json.dumps(result))"
    variables = {**os.environ, **hub.environment(folder / home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if not package:
        del variables["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    processor = make_processor()
    vision_config = make_clip(folder.parent / "clip").vision_config
    # With a bank of captions, so that a file of data goes along with the weights.
    model = make_model(processor, vision_config=vision_config, context_size=2, context_k=2)
    model.model.context.fill(torch.eye(24)[:3], ["a", "a", "b"], SENTENCES)
    torch.nn.init.normal_(model.model.context.out.weight, std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_every_way_of_sharing_loads_without_the_package(saved, tmp_path):
    with hub_server() as hub:
        events = run(
            hub,
            tmp_path,
            "owner",
            "from sail_hf import SailForDenseVideoCaptioning, SailProcessor\n"
            "from transformers import pipeline\n"
            f"model = SailForDenseVideoCaptioning.from_pretrained({str(saved)!r})\n"
            f"processor = SailProcessor.from_pretrained({str(saved)!r})\n"
            f"pipe = pipeline({TASK!r}, model=model, processor=processor)\n"
            "model.push_to_hub('org/parts'), processor.push_to_hub('org/parts'), pipe.push_to_hub('org/pipe')\n"
            "pipe.save_pretrained('kept', push_to_hub=True, repo_id='org/kept')\n"
            f"pipeline({TASK!r}, model=model, processor=processor)\n"  # saving leaves the model as it was
            "result = pipe(video, fps=4.0)",
            package=True,
        )
        assert events
        found = run(
            hub,
            tmp_path,
            "stranger",
            "from transformers import AutoModel, AutoModelForMultimodalLM, AutoProcessor, pipeline\n"
            "result = []\n"
            "for name in ('org/parts', 'org/pipe', 'org/kept', './kept'):\n"
            f"    pipe = pipeline({TASK!r}, model=name, trust_remote_code=True)\n"
            "    result.append(pipe(video, fps=4.0))\n"
            f"    assert pipe.model.model.context.sentences == {SENTENCES}\n"
            "base = AutoModel.from_pretrained('org/parts', trust_remote_code=True)\n"
            "assert type(base).__name__ == 'SailModel'\n"
            # What a fine-tuner does with what was downloaded.
            "model = AutoModelForMultimodalLM.from_pretrained('org/parts', trust_remote_code=True)\n"
            "processor = AutoProcessor.from_pretrained('org/parts', trust_remote_code=True)\n"
            "model.save_pretrained('tuned'), processor.save_pretrained('tuned')\n"
            "model.push_to_hub('org/tuned'), processor.push_to_hub('org/tuned')\n"
            "pipe.save_pretrained('tuned_pipe')",
            package=False,
        )
        assert found == [events] * 4
        for name in ("parts", "pipe", "kept"):
            del hub.repositories["model", f"org/{name}"]
        again = run(
            hub,
            tmp_path,
            "another",
            "from transformers import AutoModel, pipeline\n"
            "result = []\n"
            "for name in ('org/tuned', './tuned', './tuned_pipe'):\n"
            f"    result.append(pipeline({TASK!r}, model=name, trust_remote_code=True)(video, fps=4.0))\n"
            "    base = AutoModel.from_pretrained(name, trust_remote_code=True)\n"
            f"    assert base.context.sentences == {SENTENCES}",
            package=False,
        )
    assert again == [events] * 3, "nothing refers to the repository that it came from"


def test_with_the_package_the_code_of_a_folder_is_not_run(saved, tmp_path, monkeypatch):
    for file in saved.glob("*.py"):
        file.write_text("raise RuntimeError('this ran')")
    for trust in (None, True):
        pipe = pipeline(TASK, model=str(saved), trust_remote_code=trust)
        assert type(pipe) is sail_hf.DenseVideoCaptioningPipeline
        assert type(AutoConfig.from_pretrained(saved, trust_remote_code=trust)) is sail_hf.SailConfig
        assert type(AutoModel.from_pretrained(saved, trust_remote_code=trust)) is sail_hf.SailModel
        assert type(AutoProcessor.from_pretrained(saved, trust_remote_code=trust)) is sail_hf.SailProcessor
    # Saving over a folder replaces what another version wrote there.
    pipe.save_pretrained(saved)
    for file in saved.glob("*.py"):
        assert file.read_text() == (ROOT / "sail_hf" / file.name).read_text()
