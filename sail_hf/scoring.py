"""From a data set with features to events, a submission file and scores."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .modeling_sail import SailForDenseVideoCaptioning
from .processing_sail import SailProcessor

# What a row needs to be captioned, and to be scored.
CAPTIONED_COLUMNS = ("video_id", "duration", "video_features")
REFERENCE_COLUMNS = ("video_id", "duration", "captions", "timestamps", "references")


def caption_dataset(
    model: SailForDenseVideoCaptioning, processor: SailProcessor, data: Dataset | Sequence[dict], batch_size: int = 8
) -> dict[str, list[dict[str, Any]]]:
    """Events of every row: video id -> the pipeline's output form.

    Args:
        data: rows with `video_id`, `duration` in seconds and `video_features` `(T, D)`; a `datasets.Dataset` is read
            fastest with the format "numpy".
    """

    def collate(rows: list[dict]) -> dict[str, Any]:
        features = [torch.as_tensor(row["video_features"], dtype=torch.float32) for row in rows]
        frame_masks = [torch.ones(len(value), dtype=torch.long) for value in features]
        return {
            "video_features": pad_sequence(features, batch_first=True),
            "video_attention_mask": pad_sequence(frame_masks, batch_first=True),
            "ids": [str(row["video_id"]) for row in rows],
            "durations": [float(row["duration"]) for row in rows],
        }

    results = {}
    with tqdm(total=len(data), desc="Captioning", unit="video") as progress:
        for batch in DataLoader(data, batch_size=batch_size, collate_fn=collate):
            ids, durations = batch.pop("ids"), batch.pop("durations")
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            outputs = model.generate(**inputs, tokenizer=processor.tokenizer)
            results.update(zip(ids, processor.post_process_dense_captioning(outputs, durations), strict=True))
            progress.update(len(ids))
    return results


def submission(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Events by video id in ActivityNet's submission form, `{"results": {video_id: [{"sentence", "timestamp"}]}, ...}`."""
    form = {
        video: [{"sentence": event["text"], "timestamp": [event["start"], event["end"]]} for event in events]
        for video, events in results.items()
    }
    return {"version": "VERSION 1.0", "results": form, "external_data": {"used": True, "details": "CLIP features"}}


def reference_sets(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The reference sets of each row, as the metric takes them: the i-th of all rows are one reference file.

    Rows have `video_id`, `duration`, `captions` and `timestamps` in seconds, and in data sets of several reference
    files a list of the last two under `references`, each with the `name` of its file; an empty set says that a file
    lacks the video.

    Raises:
        ValueError: a row without duration or time stamps.
    """
    by_name = [{one["name"]: one for one in row.get("references") or [{**row, "name": None}]} for row in rows]
    for column, lacking in (
        ("duration", [row["duration"] is None for row in rows]),
        ("timestamps", [any(one["timestamps"] is None for one in named.values()) for named in by_name]),
    ):
        if any(lacking):
            example = rows[lacking.index(True)]["video_id"]
            raise ValueError(
                f"{sum(lacking)} of {len(rows)} videos have no `{column}`, which scoring needs, e.g. {example}."
            )
    # A row with all files has them in their order.
    names = dict.fromkeys(name for named in sorted(by_name, key=len, reverse=True) for name in named)
    none = {"captions": [], "timestamps": []}
    return [
        [
            {"timestamps": one["timestamps"], "sentences": one["captions"], "duration": row["duration"]}
            for one in (named.get(name, none) for name in names)
        ]
        for row, named in zip(rows, by_name, strict=True)
    ]
