"""The commands that docs/benchmarks.md prints for ActivityNet, as printed, at a small size: tiny random parts stand in."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import CAPTIONS
from tiny_llm import make_tiny_llm

ROOT = Path(__file__).parents[1]
SMALL = {"encoder_layers": 1, "encoder_ffn_dim": 16, "attention_head_dim": 8, "mask_decoder_ffn_dim": 16}


def commands(section: str) -> list[str]:
    """The recipes' commands in a section of the page, without that of the stand-ins."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    text = text.partition(f"\n## {section}")[2].partition("\n## ")[0]
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [line.replace("accelerate launch", "python") for line in lines]


@pytest.fixture
def place(tmp_path):
    """Annotations of a few videos, and features of theirs, one a second."""
    random = np.random.default_rng(0)
    (tmp_path / "clip_features").mkdir()
    for name, ids in (("train", "abcd"), ("val_1", "ef"), ("val_2", "ef")):
        rows = {}
        for number, video in enumerate(ids):
            captions, duration = CAPTIONS[number % 2], 10.0 + number
            times = np.linspace(0, duration, len(captions) + 1).tolist()
            spans = [[start, end] for start, end in zip(times, times[1:], strict=False)]
            rows[f"v_{video}"] = {"duration": duration, "timestamps": spans, "sentences": captions}
            features = random.standard_normal((round(duration), 24)).astype(np.float32)
            np.save(tmp_path / "clip_features" / f"v_{video}.npy", features)
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "training").symlink_to(ROOT / "training")
    return tmp_path


def test_the_path_of_activitynet(place, parts):
    make_tiny_llm(place / "llm")
    small = ["--clip", parts["clip"], "--decoder", parts["decoder"], "--model_config", json.dumps(SMALL)]
    small += ["--captioning_epochs", "1", "--localization_epochs", "1", "--gradient_accumulation_steps", "1"]
    short = [
        "--generation_config",
        '{"full_max_new_tokens": 12, "max_new_tokens": 6, "num_beams": 1}',
        "--use_cpu",
        "true",
    ]
    more = {
        "augment_captions.py generate": ["--llm", str(place / "llm"), "--max_new_tokens", "12"],
        "train.py": [*small, *short, "--per_device_train_batch_size", "2"],
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = []
    for line in commands("ActivityNet Captions"):
        if "--videos videos" in line:  # the line after it has stored features instead
            continue
        words = [parts["clip"] if word == "ViT-L-14" else word for word in shlex.split(line)]
        assert words[0] == "python" and Path(ROOT, words[1]).is_file(), line
        extra = [word for name, added in more.items() if f"training/{name}" in line for word in added]
        run = subprocess.run(
            [sys.executable, *words[1:], *extra], cwd=place, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{line}\n{run.stdout[-1500:]}\n{run.stderr[-3000:]}"
        done.append(Path(words[1]).name)
    assert done == [
        "build_dataset.py",
        "augment_captions.py",
        "augment_captions.py",
        "extract_features.py",
        "train.py",
        "train.py",
        "predict.py",
        "evaluate.py",
    ]
    scores = json.loads((place / "scores.json").read_text())
    assert scores["num_videos"] == 2 and scores["num_missing"] == 0 and 0 <= scores["f1"] <= 1
