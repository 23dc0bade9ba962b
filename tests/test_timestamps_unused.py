"""Training reads no time stamps: other ones, or none, change no logged number."""

import json
import random
from pathlib import Path

from datasets import Dataset, Features, List, Value
from tiny import CAPTIONS, make_rows
from train import main

MODEL = {
    "encoder_layers": 1, "encoder_ffn_dim": 32,
    "attention_head_dim": 8, "mask_decoder_ffn_dim": 32, "alignment_loss_weight": 1.0,
}  # fmt: skip


def write_dataset(folder: Path, timestamps: list | None, captions: list[list[str]] = CAPTIONS) -> str:
    vector = List(Value("float32"), length=24)
    features = {"captions": List(Value("string")), "video_features": List(vector), "caption_features": List(vector)}
    features |= {"transition_features": List(vector), "frame_caption_features": List(vector)}
    features |= {"timestamps": List(List(Value("float64")))}
    rows = []
    for i, row in enumerate(make_rows()):
        arrays = {name: value.numpy() for name, value in row.items() if name != "captions"}
        rows.append({**arrays, "captions": captions[i], "timestamps": timestamps[i] if timestamps else None})
    folder.mkdir()
    Dataset.from_list(rows, features=Features(features)).to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def log_of(dataset: str, parts: dict[str, str], output: Path) -> list[dict]:
    """What three epochs over all losses log."""
    fields = {
        **parts, "dataset": dataset, "model_config": json.dumps(MODEL), "num_frames": 8, "num_queries": 4,
        "output_dir": output, "captioning_epochs": 1, "localization_epochs": 2, "per_device_train_batch_size": 2,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True, "seed": 3,
    }  # fmt: skip
    trainer = main([word for name, value in fields.items() for word in (f"--{name}", str(value))])
    timing = ("runtime", "per_second")
    return [
        {name: value for name, value in entry.items() if not name.endswith(timing)}
        for entry in trainer.state.log_history
    ]


def test_other_timestamps_change_no_loss(parts, tmp_path):
    drawn = random.Random(0)
    times = [[sorted(drawn.uniform(0, 60) for _ in range(2)) for _ in captions] for captions in CAPTIONS]
    shuffled = [drawn.sample(spans, len(spans)) for spans in times[:0:-1]] + [[[9.0, 1.0]]]
    logs = {
        name: log_of(write_dataset(tmp_path / name, spans), parts, tmp_path / f"{name}_run")
        for name, spans in {"true": times, "shuffled": shuffled, "none": None}.items()
    }
    assert logs["true"] == logs["shuffled"] == logs["none"]
    last = logs["true"][-2]
    for loss in ("full", "positive", "negative", "similarity", "augmentation", "alignment"):
        assert f"loss_{loss}" in last, f"{loss} was part of the run: {last}"
    # What is read does change them.
    captions = [["A man lifts a bar.", "He runs.", "People clap and cheer."], *CAPTIONS[1:]]
    changed = log_of(write_dataset(tmp_path / "changed", times, captions), parts, tmp_path / "changed_run")
    assert changed != logs["true"]
