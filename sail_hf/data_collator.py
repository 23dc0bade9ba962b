"""Batches of a SAIL data set: frame features, labels and caption features, padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .grounding_sail import box_coverage, grid_of
from .processing_sail import SailProcessor, collate_labels


@dataclass
class SailDataCollator:
    """Makes the inputs of [`SailForDenseVideoCaptioning`] from rows of a data set.

    A row has `captions` (list of N sentences in order) and `video_features` `(T, D)` or `pixel_values_videos`
    `(T, 3, H, W)`; where it has `caption_features` `(N, D)`, `transition_features` `(N - 1, D)` and `frame_caption_features`
    `(T, D)`, the losses that need them exist. With `region_features` `(T, N, D)`, a model with a grounding head looks at patches,
    and with `groundings` it learns where to: for each caption a list of `{"word", "frames", "boxes", "scores"}`, the word's
    place in `caption.split()`, and a box and a confidence in [0, 1] for each frame of those that are listed
    (`training/grounding_annotations.py`). Nothing else is read, `timestamps` least of all.

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
        if any(row.get("region_features") is not None for row in rows):
            batch["region_features"] = _pad_regions(
                [row.get("region_features") for row in rows], list(map(len, videos))
            )
            if any("groundings" in row for row in rows):
                batch["grounding_targets"] = self.grounding_targets(captions, _groundings(rows), batch)
        for name, fewer in (("caption_features", 0), ("transition_features", 1)):
            counts = [len(row["captions"]) - fewer for row in rows]
            # Where no video has a second caption there is no transition.
            if any(counts) and any(row.get(name) is not None for row in rows):
                features = _pad_features(name, [row.get(name) for row in rows], counts)
                batch[name] = features[:, : int(batch["num_events"].max()) - fewer]
        return batch

    def grounding_targets(
        self, captions: Sequence[list[str]], groundings: Sequence[list | None], batch: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """`(sum N_s, L, T, N)` of a batch: confidence times the share of a patch in the box, where a position predicts a token
        of a word that has boxes; the largest of several."""
        length, (frames, patches) = batch["event_labels"].shape[2], batch["region_features"].shape[1:3]
        targets = torch.zeros(sum(map(len, captions)), length, frames, patches)
        row_of = iter(targets)
        for of_video, own in zip(captions, groundings, strict=True):
            for caption, words in zip(of_video, [()] * len(of_video) if own is None else own, strict=False):
                target, positions = next(row_of), self.processor.word_positions(caption)
                for word in words:
                    gamma = box_coverage(_tensor(word["boxes"]).reshape(-1, 4), grid_of(patches))
                    of_word = torch.zeros(frames, patches)
                    of_word[_tensor(word["frames"]).long()] = gamma * _tensor(word["scores"])[:, None]
                    places = [
                        place for place in positions[int(word["word"])] if place < length
                    ]  # the others are cut off
                    target[places] = torch.maximum(target[places], of_word)
        return targets


def _groundings(rows: Sequence[dict[str, Any]]) -> list[list | None]:
    """The words with boxes of each video, `None` where it has none."""
    found = [row.get("groundings") for row in rows]
    counts = [(len(row["captions"]), len(own)) for row, own in zip(rows, found, strict=True) if own is not None]
    if wrong := [pair for pair in counts if pair[0] != pair[1]]:
        raise ValueError(f"Expected `groundings` of {wrong[0][0]} captions of a video, found those of {wrong[0][1]}.")
    return found


def _pad_regions(regions: list[Any], num_frames: list[int]) -> torch.Tensor:
    """Features of patches, padded, in the half precision that they are stored in: they are most of a batch."""
    values = [
        torch.as_tensor(value if torch.is_tensor(value) else np.array(value, np.float16)).half() for value in regions
    ]
    found = [len(value) if value.ndim == 3 else None for value in values]
    if found != num_frames:
        raise ValueError(
            f"Expected `region_features` (T, N, D) of {num_frames} frames for the videos of this batch, found {found}."
        )
    return pad_sequence(values, batch_first=True)


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
