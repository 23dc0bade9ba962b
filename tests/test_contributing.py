"""CONTRIBUTING's worked example of a new loss, applied to a copy of the package as it is printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

TRAIN = """
from tiny import make_model, make_processor, make_rows
from sail_hf import SailDataCollator, SailTrainer, SailTrainingArguments
from sail_hf.loss_sail import LOSSES

processor = make_processor()
arguments = SailTrainingArguments(
    "out", captioning_epochs=0, localization_epochs=2, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True
)
trainer = SailTrainer(
    make_model(processor, coverage_loss_weight=0.5),
    arguments,
    train_dataset=make_rows(),
    data_collator=SailDataCollator(processor),
)
trainer.train()
logs = trainer.state.log_history[0]
weights = {loss.name: getattr(trainer.model.config, loss.weight) for loss in LOSSES}
expected = sum(weights[name] * logs[f"loss_{name}"] for name in weights if f"loss_{name}" in logs)
assert logs["loss_coverage"] > 0 and abs(logs["loss"] - expected) < 1e-3, logs
"""


def test_a_new_loss_touches_what_contributing_says(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    assert set(re.findall(r"^\+\+\+ b/(.*)$", diff, re.MULTILINE)) == {
        "sail_hf/loss_sail.py",
        "sail_hf/configuration_sail.py",
    }
    shutil.copytree(ROOT / "sail_hf", tmp_path / "sail_hf", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "tiny.py", tmp_path)
    subprocess.run(["git", "apply", "-C1", "-"], cwd=tmp_path, input=diff, text=True, check=True)

    (test,) = re.findall(r"```python\n# tests/test_loss.py\n(.*?)```", text, re.DOTALL)
    header = (ROOT / "tests" / "test_loss.py").read_text(encoding="utf-8").partition("# --- captioning")[0]
    (tmp_path / "test_coverage.py").write_text(
        header.replace("    cosines,", "    cosines,\n    coverage_loss,") + test
    )
    (tmp_path / "train.py").write_text(TRAIN)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for command in (["-m", "pytest", "-p", "no:cacheprovider", "test_coverage.py"], ["train.py"]):
        run = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
