"""A folder with a small data set and a YAML file, from which `training/train.py` trains in seconds."""

from pathlib import Path

import numpy as np
import yaml
from datasets import Array2D, Dataset, Features, List, Value
from tiny import make_rows


def features_of(num_frames: int, size: int) -> Features:
    """The columns as training/extract_features.py types them."""
    return Features(
        {
            "video_id": Value("string"),
            "duration": Value("float64"),
            "captions": List(Value("string")),
            "timestamps": List(List(Value("float64"))),
            "video_features": Array2D((num_frames, size), "float16"),
            "caption_features": Array2D((None, size), "float16"),
            "transition_features": List(List(Value("float16"))),
            "frame_caption_features": Array2D((num_frames, size), "float16"),
        }
    )


def write_split(folder: Path, split: str, rows: list[dict], leave_out: tuple[str, ...] = (), time=np.nan) -> None:
    """Rows as Parquet, by default with time stamps that would crash whoever computed with them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = [
        {
            "video_id": f"video{i}",
            "duration": 10.0,
            "timestamps": [[i * time, (i + 1) * time] for i in range(len(row["captions"]))],
            **{name: value if name == "captions" else value.half().numpy() for name, value in row.items()},
        }
        for i, row in enumerate(rows)
    ]
    features = features_of(*rows[0]["video_features"].shape)
    data = Dataset.from_list(table, features=features).remove_columns(list(leave_out))
    data.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def make_place(folder: Path, parts: dict[str, str]) -> Path:
    """A data set of 15 videos (3 for validation), and `tiny.yaml`; `parts`: the folders of CLIP and decoder."""
    write_split(folder / "data", "train", [row for seed in range(4) for row in make_rows(seed)])
    write_split(folder / "data", "validation", make_rows(9), time=3.0)
    fields = {
        **parts,
        "dataset": str(folder / "data"),
        "num_frames": 8,
        "num_queries": 4,
        "model_config": {
            "dropout": 0,
            "encoder_layers": 1,
            "encoder_ffn_dim": 32,
            "attention_head_dim": 8,
            "mask_decoder_ffn_dim": 32,
        },
        "generation_config": {"num_beams": 1, "max_new_tokens": 6, "full_max_new_tokens": 9},
        "captioning_epochs": 1,
        "localization_epochs": 1,
        "per_device_train_batch_size": 6,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(fields))
    return folder
