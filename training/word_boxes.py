"""Where words are to be seen: boxes that people drew, of two forms, carried from one frame to the others by what patches look like."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sail_hf.grounding_sail import box_coverage, grid_of, heat_boxes

# Of ActivityNet-Entities: frames of a segment, in the middle of as many equal parts.
ENTITIES_FRAMES = 10
# Boxes of less confidence are left out (s_th of CVG's Figure 4).
LEAST_CONFIDENCE = 0.5


@dataclass
class Word:
    """The `index`-th word of `caption.split()`: boxes `(seconds, [x0, y0, x1, y1])` in shares of the frame, or, of an action, the
    indices of the words whose boxes its own is drawn around."""

    index: int
    boxes: list[tuple[float, list[float]]] = field(default_factory=list)
    entities: list[int] = field(default_factory=list)


def read_boxes(path: str | Path, rows: Sequence[dict], sizes: str | Path | None = None) -> dict[str, list[list[Word]]]:
    """For each caption of each video the words that have boxes, from a file of either form; videos that it lacks are left out.

    Our own: `{video_id: [[{"index": int, "time": seconds, "box": [x0, y0, x1, y1]}, ...] for each caption]}`, boxes in shares of
    the frame; `"entities": [int, ...]` in place of time and box for an action. Or ActivityNet-Entities' cleaned JSON.

    Args:
        rows: `video_id`, `captions`, and for ActivityNet-Entities `timestamps` in seconds, without which a frame has no time.
        sizes: ActivityNet-Entities' raw JSON, which has the frames' sizes where the cleaned one has not.

    Raises:
        ValueError: another form, or a video whose captions, times or size do not fit or are lacking.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a JSON object of videos, found {str(content)[:60]}")
    entries, read = content, _own_words
    if isinstance(content.get("annotations"), dict):
        entries, known = content["annotations"], {}
        if sizes:
            known = json.loads(Path(sizes).read_text(encoding="utf-8"))["database"]

        def read(entry: dict, row: dict) -> list[list[Word]]:
            return _entities_words({**known.get(row["video_id"], {}), **entry}, row)

    found = {}
    for row in rows:
        if row["video_id"] in entries:
            try:
                found[row["video_id"]] = read(entries[row["video_id"]], row)
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise ValueError(f"{path}, video {row['video_id']}: {type(error).__name__} {error}") from error
    return found


def _own_words(entry: list[list[dict]], row: dict) -> list[list[Word]]:
    if len(entry) != len(row["captions"]):
        raise ValueError(f"{row['video_id']} has {len(row['captions'])} captions, and boxes of {len(entry)}")
    found = []
    for caption, labels in zip(row["captions"], entry, strict=True):
        words: dict[int, Word] = {}
        for label in labels:
            if not 0 <= label["index"] < len(caption.split()):
                raise ValueError(f"{row['video_id']}: {caption!r} has no word {label['index']}, counted from 0")
            word = words.setdefault(label["index"], Word(label["index"]))
            if "entities" in label:
                word.entities += label["entities"]
            else:
                word.boxes.append((float(label["time"]), [float(x) for x in label["box"]]))
        found.append(list(words.values()))
    return found


def _entities_words(entry: dict, row: dict) -> list[list[Word]]:
    if row.get("timestamps") is None:
        raise ValueError(f"{row['video_id']} has no timestamps, which say when ActivityNet-Entities' frames are")
    if not {"rwidth", "rheight"} <= entry.keys():
        raise ValueError(
            f"{row['video_id']} has no rwidth and rheight: give ActivityNet-Entities' raw file by --sizes"
        )
    width, height = entry["rwidth"], entry["rheight"]
    found: list[list[Word]] = [[] for _ in row["captions"]]
    for number, segment in entry["segments"].items():
        if int(number) >= len(found) or not segment["process_bnd_box"]:
            continue
        start, end = row["timestamps"][int(number)]
        places = places_of(segment["tokens"], row["captions"][int(number)])
        words: dict[int, Word] = {}
        boxes = zip(segment["process_bnd_box"], segment["frame_ind"], segment["process_idx"], strict=True)
        for (x0, y0, x1, y1), frame, tokens in boxes:
            time = start + (frame + 0.5) / ENTITIES_FRAMES * (end - start)
            for place in {places[token] for token in tokens} - {None}:
                box = [x0 / width, y0 / height, x1 / width, y1 / height]
                words.setdefault(place, Word(place)).boxes.append((time, box))
        found[int(number)] = list(words.values())
    return found


def places_of(tokens: Sequence[str], caption: str) -> list[int | None]:
    """The word of `caption.split()` that each token of a tokenised caption is of; `None` for one that is not found in it."""
    text, position, places = caption.lower(), 0, []
    for token in tokens:
        at = text.find(token.lower(), position) if token else -1
        # The word that a character is of: as many as white space was before.
        places.append(None if at < 0 else len(caption[: at + 1].split()) - 1)
        position = position if at < 0 else at + len(token)
    return places


# --- From one frame to the others ---------------------------------------------------------------------------------


def propagate(patches: Tensor, frame: int, box: Tensor) -> tuple[Tensor, Tensor] | None:
    """The box of one frame in all frames: boxes `(T, 4)` and confidences in [0, 1] `(T,)`; `None` for a box outside of the patches.

    The patches in the box are looked for as they lie, in every place of every frame, to parts of a patch; the confidence is their
    mean cosine there, less what all patches of the video share. A thing that grows or turns is lost, which the confidence says.
    From where it is at most LEAST_CONFIDENCE on, it is 0: what looks alike in another event is another thing. CVG carries boxes by
    a tracker.

    Args:
        patches: `(T, N, D)` features of patches; frame: index of the frame with the box; box: `(4,)` in shares of what CLIP saw.
    """
    rows, columns = grid_of(patches.shape[1])
    low = [int((box[axis] * number).floor().clamp(0, number)) for axis, number in ((1, rows), (0, columns))]
    high = [int((box[axis] * number).ceil().clamp(0, number)) for axis, number in ((3, rows), (2, columns))]
    if low[0] >= high[0] or low[1] >= high[1]:
        return None
    patches = patches.float()
    unit = functional.normalize(patches - patches.mean((0, 1)), dim=-1).unflatten(1, (rows, columns)).movedim(-1, 1)
    weights = box_coverage(box, (rows, columns)).unflatten(-1, (rows, columns))
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    template = (unit[frame] * weights / weights.sum())[:, window[0], window[1]]
    found = functional.conv2d(unit, template[None])[:, 0]
    confidences, places = found.flatten(1).max(1)
    row, column = places // found.shape[2], places % found.shape[2]
    each = torch.arange(len(found))
    down = row - low[0] + peak_offset(found[each, :, column], row)
    right = column - low[1] + peak_offset(found[each, row], column)
    boxes = box + torch.stack([right / columns, down / rows] * 2, -1)
    boxes[frame], confidences[frame] = box, 1.0
    sure = (confidences > LEAST_CONFIDENCE).long()
    tracked = torch.cat([sure[:frame].flip(0).cumprod(0).flip(0), sure[frame:].cumprod(0)])
    return boxes, confidences.clamp(0, 1) * tracked


def peak_offset(values: Tensor, places: Tensor) -> Tensor:
    """How far beside the highest of `values` `(T, S)`, at `places` `(T,)`, the parabola through it and its neighbours peaks, in
    [-0.5, 0.5]; 0 at either end."""
    inside = (places > 0) & (places < values.shape[1] - 1)
    nearby = (places[:, None] + torch.arange(-1, 2)).clamp(0, values.shape[1] - 1)
    before, peak, after = values.gather(1, nearby).unbind(1)
    offset = (after - before) / (2 * (2 * peak - before - after)).clamp(min=1e-6)
    return offset.where(inside, 0.0)


def most_confident(tracks: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """In each frame the box of the highest confidence, of several tracks of one word."""
    boxes, confidences = (torch.stack(values) for values in zip(*tracks, strict=True))
    best = confidences.argmax(0)
    frames = torch.arange(len(best))
    return boxes[best, frames], confidences[best, frames]


def around(tracks: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """An action's boxes: the tightest rectangles around those of its entities, with the least of their confidences (Eq. 3)."""
    boxes, confidences = (torch.stack(values) for values in zip(*tracks, strict=True))
    return torch.cat([boxes[..., :2].amin(0), boxes[..., 2:].amax(0)], -1), confidences.amin(0)


def seed_box(patches: Tensor, word_feature: Tensor) -> tuple[int, Tensor]:
    """A guess where nobody drew a box: the frame and the box `(4,)` whose patches are nearest to a word's CLIP text feature `(D,)`."""
    cosines = functional.cosine_similarity(patches.float(), word_feature.float(), dim=-1)
    boxes, heat = heat_boxes((cosines - cosines.mean()).clamp(min=0))
    frame = int(heat.argmax())
    return frame, boxes[frame]


def grounding(index: int, track: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """A word of the column `groundings`, with the frames that are confident enough."""
    boxes, confidences = track
    frames = (confidences > LEAST_CONFIDENCE).nonzero().flatten()
    kept = {"frames": frames.tolist(), "boxes": boxes[frames].tolist(), "scores": confidences[frames].tolist()}
    return {"word": index, **kept}
