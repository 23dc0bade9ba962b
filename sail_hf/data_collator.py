"""Batches of a SAIL data set: frame features, labels and caption features, padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .processing_sail import SailProcessor, collate_labels


@dataclass
class SailDataCollator:
    """Makes the inputs of [`SailForDenseVideoCaptioning`] from rows of a data set.

    A row has `captions` (list of N sentences in order) and `video_features` `(T, D)` or `pixel_values_videos`
    `(T, 3, H, W)`; where it has `caption_features` `(N, D)`, `transition_features` `(N - 1, D)` and `frame_caption_features`
    `(T, D)`, the losses that need them exist. Nothing else is read, `timestamps` least of all.

    ```python
    rows = [
        {"captions": ["A man lifts a bar.", "He puts it down."], "video_features": features_of_32_frames},
        {"captions": ["A dog runs."], "video_features": features_of_20_frames},
    ]
    batch = SailDataCollator(processor)(rows)
    batch["video_features"].shape, batch["video_attention_mask"].sum(1)  # (2, 32, 768), [32, 20]
    batch["num_events"], batch["event_labels"].shape  # [2, 1], (2, 2, length of the longest sentence with its prompt)
    ```

    Args:
        processor ([`SailProcessor`]): makes the labels.
        max_events (`int`, *optional*): captions past this number are left out; give the model's `num_queries`.
        max_length (`int`, *optional*): longest row of labels, in tokens.
    """

    processor: SailProcessor
    max_events: int | None = None
    max_length: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "captions" not in rows[0]:
            raise ValueError(
                f"Expected rows with `captions`, found the columns {sorted(rows[0])}. A plain `Trainer` drops what is no "
                "argument of the model's `forward`: give it TrainingArguments(remove_unused_columns=False)."
            )
        captions = [list(row["captions"])[: self.max_events] for row in rows]
        if not all(captions):
            raise ValueError("Expected at least one caption for each video, found a row with none.")
        batch = collate_labels([self.processor.caption_labels(texts, self.max_length) for texts in captions])
        name = "video_features" if "video_features" in rows[0] else "pixel_values_videos"
        if any(row.get(name) is None for row in rows):
            raise ValueError(
                "Expected `video_features` in each row, or `pixel_values_videos` in each; "
                f"found the columns {sorted(rows[0])}."
            )
        videos = [_tensor(row[name]) for row in rows]
        batch[name] = pad_sequence(videos, batch_first=True)
        batch["video_attention_mask"] = pad_sequence([torch.ones(len(v), dtype=torch.long) for v in videos], True)
        if any(row.get("frame_caption_features") is not None for row in rows):
            of_frames = [row.get("frame_caption_features") for row in rows]
            batch["frame_caption_features"] = _pad_features(
                "frame_caption_features", of_frames, list(map(len, videos))
            )
        for name, fewer in (("caption_features", 0), ("transition_features", 1)):
            counts = [len(row["captions"]) - fewer for row in rows]
            # Where no video has a second caption there is no transition.
            if any(counts) and any(row.get(name) is not None for row in rows):
                features = _pad_features(name, [row.get(name) for row in rows], counts)
                batch[name] = features[:, : int(batch["num_events"].max()) - fewer]
        return batch


def _pad_features(name: str, features: list[Any], counts: list[int]) -> torch.Tensor:
    values = [_tensor([] if value is None else value) for value in features]
    found = [len(value) for value in values]
    if found != counts:
        raise ValueError(f"Expected {counts} rows of `{name}` for the videos of this batch, found {found}.")
    size = max(value.shape[-1] for value in values)
    # A video with one caption has no transition, and its empty array may have lost its second dimension.
    return pad_sequence([value.reshape(-1, size) for value in values], batch_first=True)


def _tensor(value: Any) -> torch.Tensor:
    return value.float() if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value, dtype=np.float32))
