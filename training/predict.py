"""Caption a data set with stored features and write ActivityNet's submission form.

python training/predict.py --model FOLDER --dataset DATASET_DIR --split validation --output results.json
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoProcessor, HfArgumentParser

from sail_hf import SailForDenseVideoCaptioning, SailProcessor


@dataclass
class PredictArguments:
    model: str = field(metadata={"help": "Folder or name of a trained model."})
    dataset: str = field(metadata={"help": "Folder or name of a data set with video_features (extract_features.py)."})
    output: Path = field(metadata={"help": "JSON file to write."})
    split: str = field(default="validation", metadata={"help": "Split to caption."})
    batch_size: int = field(default=8, metadata={"help": "Videos at a time."})


def predict_dataset(
    model: SailForDenseVideoCaptioning, processor: SailProcessor, data: datasets.Dataset, batch_size: int = 8
) -> dict[str, list[dict[str, Any]]]:
    """Events of every row (`video_id`, `duration` in seconds, `video_features` `(T, D)`): video id -> pipeline's output form."""

    def collate(rows: list[dict]) -> dict[str, Any]:
        features = [torch.as_tensor(row["video_features"], dtype=torch.float32) for row in rows]
        return {
            "video_features": torch.nn.utils.rnn.pad_sequence(features, batch_first=True),
            "video_attention_mask": torch.nn.utils.rnn.pad_sequence(
                [torch.ones(len(value), dtype=torch.long) for value in features], batch_first=True
            ),
            "ids": [row["video_id"] for row in rows],
            "durations": [float(row["duration"]) for row in rows],
        }

    results = {}
    columns = data.select_columns(["video_id", "duration", "video_features"]).with_format("numpy")
    with tqdm(total=len(data), desc="Captioning", unit="video") as progress:
        for batch in DataLoader(columns, batch_size=batch_size, collate_fn=collate):
            ids, durations = batch.pop("ids"), batch.pop("durations")
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            outputs = model.generate(**inputs, tokenizer=processor.tokenizer)
            results.update(zip(ids, processor.post_process_dense_captioning(outputs, durations), strict=True))
            progress.update(len(ids))
    return results


def write_submission(path: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    """Write events as `{"results": {video_id: [{"sentence": ..., "timestamp": [s, s]}, ...]}, ...}`, whole or not at all."""
    form = {
        video: [{"sentence": event["text"], "timestamp": [event["start"], event["end"]]} for event in events]
        for video, events in results.items()
    }
    content = {"version": "VERSION 1.0", "results": form, "external_data": {"used": True, "details": "CLIP features"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    (args,) = HfArgumentParser(PredictArguments, description=__doc__).parse_args_into_dataclasses()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SailForDenseVideoCaptioning.from_pretrained(args.model).to(device).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    data = datasets.load_dataset(args.dataset, split=args.split)
    write_submission(args.output, predict_dataset(model, processor, data, args.batch_size))
    print(
        f"Wrote {args.output}. Next:\n  python training/evaluate.py --predictions {args.output} --references FILE.json"
    )


if __name__ == "__main__":
    main()
