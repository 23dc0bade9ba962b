r"""Render the *wide* world: the playground's scripts on a smaller stage anywhere in the picture, with bystanders and true boxes.

    python training/playground/wide_world.py --output outputs/wide/seed_0/playground --num_train 500

In the usual playground (world.py) the median box of a word's training boxes is often right wherever one looks, so that it cannot
show whether a model looks at what it names. Here, for each event, over and above the usual script of the same seed:

    side of the stage (zoom)        uniform in [0.5, 0.9] of the picture's
    place of the stage              uniform at the event's start, such that what it draws at any time is inside of the picture
    bystander                       another actor, uniform, who stands still beside the event and is in no caption
    size of the bystander           as of actors: their share of the stage's side, times a zoom of its own
    drift of the stage              up to a quarter of the picture's side in each direction from an event's start to its end,
                                    steady, uniform, cut off where the event would leave the picture
    place of the bystander          uniform, the first of 30 draws of which at most a tenth is hidden by the event, or else
                                    the one of which least is

Stills are drawn likewise. Besides what world.py writes there are, of each split,

    boxes_train.json, boxes_test.json       true boxes of each event in each of its frames
    labels_train.json, labels_test.json     each sentence's groundable words, entities with a box in one frame

Boxes are `[x0, y0, x1, y1]`, shares of the picture from its left upper corner. What is covered counts as there; what is
outside of the picture does not. A box of `action` is the tightest around the actor's and the prop's. See [`true_boxes`] and
[`labels`] for the forms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from drawing import SIZE, Stage, act
from PIL import Image
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from world import (
    ACTIONS,
    ACTORS,
    FPS,
    Drawing,
    Event,
    PlaygroundArguments,
    Script,
    draw_frames,
    draw_picture,
    render_playground,
    sample_script,
)

from sail_hf.data import write_json
from sail_hf.video_reading import uniform_times

Box = list[float]

# Of each action: the sprites that its noun means, and the nouns.
PROPS = {
    "jump": (("trampoline",), ("trampoline",)),
    "juggle": (("ball 0", "ball 1", "ball 2"), ("balls",)),
    "sleep": (("bed",), ("bed",)),
    "paint": (("easel",), ("picture", "easel", "painting")),
    "kite": (("kite",), ("kite",)),
    "read": (("book",), ("book",)),
    "skate": (("skateboard",), ("skateboard", "board")),
    "dance": (("note",), ("music", "song")),
}
KINDS = ("actor", "prop", "action")
MOST_DRIFT = 0.25
# Streams of random numbers that world.py's do not touch.
_PLACES, _LABELS = 10, 11
_SPLITS = ("train", "test")
# Frames, evenly spread over a video, among which the labelled ones are: as many as SAIL looks at there.
NUM_FRAMES = 48


@dataclass
class WideEvent(Event):
    """An event with its stage's side and its corner at the start and at the end, and its bystander's middle and side: shares of
    the picture's side. As made, the usual event, with nobody beside it."""

    zoom: float = 1.0
    corner: tuple[float, float] = (0.0, 0.0)
    last_corner: tuple[float, float] = (0.0, 0.0)
    bystander: str = ""
    bystander_middle: tuple[float, float] = (0.5, 0.5)
    bystander_side: float = 0.0
    bystander_mirrored: bool = False


# Scripts


def wide_script(seed: int, split: str, index: int) -> Script:
    """world.py's script of video `index` of a split, its events placed by the distribution in this file's docstring."""
    script = sample_script(seed, split, index)
    rng = np.random.default_rng([seed, _PLACES, _SPLITS.index(split), index])
    script.events = [widened(event, rng) for event in script.events]
    return script


def widened(event: Event, rng: np.random.Generator) -> WideEvent:
    """A usual event, placed at random."""
    wide, zoom, place = WideEvent(**vars(event)), float(rng.uniform(0.5, 0.9)), rng.random(2)
    others = [actor for actor in ACTORS if actor != event.actor]
    wide.bystander = others[int(rng.integers(len(others)))]
    wide.bystander_side = side = float(rng.uniform(0.36, 0.48) * rng.uniform(0.5, 0.9))
    wide.bystander_mirrored = bool(rng.random() < 0.5)
    middles = rng.uniform(side / 2, 1 - side / 2, (30, 2))
    # Of the corners at which all is inside of the picture.
    box = np.array(everywhere(wide))
    least, most = -zoom * box[:2], 1 - zoom * box[2:]
    corner = least + place * (most - least)
    last = (corner + rng.uniform(-MOST_DRIFT, MOST_DRIFT, 2)).clip(least, most)
    wide.zoom, wide.corner, wide.last_corner = zoom, tuple(corner.tolist()), tuple(last.tolist())
    box = everywhere(wide)
    hidden = [share_inside([x - side / 2, y - side / 2, x + side / 2, y + side / 2], box) for x, y in middles]
    chosen = next((i for i, share in enumerate(hidden) if share <= 0.1), int(np.argmin(hidden)))
    wide.bystander_middle = tuple(middles[chosen].tolist())
    return wide


def everywhere(event: WideEvent) -> Box:
    """The tightest box around all that an event draws at any time, looked at twice a second."""
    seconds = np.arange(0, max(event.end - event.start, 1) / FPS, 0.5)
    return tightest([box for t in seconds for _, box in stage_of(_BLANK, event, t).boxes()])


def tightest(boxes: list[Box]) -> Box:
    """The tightest box around all."""
    return [*np.min(boxes, 0)[:2].tolist(), *np.max(boxes, 0)[2:].tolist()]


def share_inside(box: Box, other: Box) -> float:
    """Share of a box's area that is inside of another one."""
    width, height = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    return max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


# Frames


_BLANK = Image.new("RGB", (SIZE, SIZE))


def stage_of(background: Image.Image, event: WideEvent, seconds: float) -> Stage:
    """The stage of an event, `seconds` after its start, drawn on a background."""
    share = seconds * FPS / max(event.end - event.start, 1)
    left, top = (a + share * (b - a) for a, b in zip(event.corner, event.last_corner, strict=True))
    stage = Stage(background, event.mirrored, event.zoom, left, top)
    act(stage, event.actor, event.action, event.x, event.height, seconds + 10 * event.phase)
    return stage


def bystander_of(background: Image.Image, event: WideEvent) -> Stage:
    stage, (x, y) = Stage(background, event.bystander_mirrored), event.bystander_middle
    stage.put(event.bystander, 1 - x if event.bystander_mirrored else x, y, event.bystander_side)
    return stage


def draw_wide(background: Image.Image, event: WideEvent, seconds: float) -> Image.Image:
    """The bystander, and before it the event."""
    return stage_of(bystander_of(background, event).image, event, seconds).image


def wide_frames(seed: int, split: str, index: int) -> Iterator[np.ndarray]:
    return draw_frames(wide_script(seed, split, index), draw_wide)


def _draw_wide_still(background: Image.Image, event: Event, rng: np.random.Generator) -> Image.Image:
    return draw_wide(background, widened(event, rng), 0.0)


def wide_picture(seed: int, split: str, index: int) -> tuple[Image.Image, str]:
    return draw_picture(seed, split, index, _draw_wide_still)


WIDE = Drawing({"wide": 1}, wide_frames, wide_picture)


# Boxes and words


def frame_boxes(event: WideEvent, seconds: float) -> dict[str, Box | None]:
    """True boxes of `actor`, `prop` and `action` `seconds` after an event's start; None where all is outside."""
    placed = stage_of(_BLANK, event, seconds).boxes()
    props = PROPS[event.action][0]
    of_kind = {
        "actor": [box for name, box in placed if name == event.actor],
        "prop": [box for name, box in placed if name in props],
    }
    of_kind["action"] = [box for boxes in of_kind.values() for box in boxes]
    return {kind: [round(x, 4) for x in tightest(boxes)] if boxes else None for kind, boxes in of_kind.items()}


def true_boxes(script: Script) -> list[dict]:
    """Of each event `{"start": frame, "actor": [box, ...], "prop": ..., "action": ..., "bystander": box,
    "bystander_name": str}`.

    Boxes are those of the frames from `start` on, [`FPS`] a second, to the event's end.
    """
    found = []
    for event in script.events:
        boxes = [frame_boxes(event, frame / FPS) for frame in range(event.end - event.start)]
        bystander = [round(x, 4) for x in bystander_of(_BLANK, event).boxes()[0][1]]
        of_kind = {kind: [of_frame[kind] for of_frame in boxes] for kind in KINDS}
        found.append({"start": event.start, **of_kind, "bystander": bystander, "bystander_name": event.bystander})
    return found


def groundable_words(event: Event) -> dict[str, int]:
    """Places, counted from 0, of the words of an event's sentence that mean its actor, prop and action.

    The verb stands for the action: the first word of the phrase that is neither "is" nor "fast".
    """
    words = event.sentence.rstrip(".").split()
    phrase = next(p for p in ACTIONS[event.action] if p in event.sentence).split()
    first = len(event.sentence[: event.sentence.index(" ".join(phrase))].split())
    verb = next(i for i, word in enumerate(phrase) if word not in ("is", "fast"))
    # The last: "works on a painting"
    prop = max(i for i, word in enumerate(phrase) if word in PROPS[event.action][1])
    return {"actor": words.index(event.actor), "prop": first + prop, "action": first + verb}


def labels(script: Script, rng: np.random.Generator) -> list[list[dict]]:
    """Of each sentence its words `{"index": place, "word": str, "kind": str, "time": seconds, "box": box}`.

    The times are drawn, for each word by itself, from those of [`NUM_FRAMES`] evenly spread frames that are in the event. A verb
    has `"entities"`, the places of its actor and its prop, too: training goes by these (`word_boxes.py`), and does not read its box.
    """
    times = uniform_times(NUM_FRAMES, 0.0, script.num_frames / FPS)
    drawn = drawn_frames(script.num_frames)
    found = []
    for event in script.events:
        words, places, rows = event.sentence.rstrip(".").split(), groundable_words(event), []
        inside = np.flatnonzero((drawn >= event.start) & (drawn < event.end)).tolist()
        for kind, place in places.items():
            boxes = {i: frame_boxes(event, (int(drawn[i]) - event.start) / FPS)[kind] for i in inside}
            if shown := [i for i, box in boxes.items() if box]:
                i = shown[int(rng.integers(len(shown)))]
                rows.append({"index": place, "word": words[place], "kind": kind})
                rows[-1] |= {"time": round(float(times[i]), 4), "box": boxes[i]}
                if kind == "action":
                    rows[-1]["entities"] = [places["actor"], places["prop"]]
        found.append(rows)
    return found


def drawn_frames(num_frames: int) -> np.ndarray:
    """Which frame of a video of `num_frames` each of [`NUM_FRAMES`] evenly spread ones is."""
    times = uniform_times(NUM_FRAMES, 0.0, num_frames / FPS)
    return np.minimum(np.floor(times * FPS + 1e-6), num_frames - 1).astype(int)


def render_wide_world(folder: str | Path, num_train: int, num_test: int, seed: int, **amounts) -> None:
    """Write the wide world into `folder`, as [`render_playground`], with its boxes and labels."""
    render_playground(folder, num_train, num_test, seed, drawing=WIDE, **amounts)
    for split, count in zip(_SPLITS, (num_train, num_test), strict=True):
        paths = [Path(folder, f"{name}_{split}.json") for name in ("boxes", "labels")]
        boxes_of, labels_of = {}, {}
        for index in tqdm(range(count), desc=f"True boxes, {split}", unit="video"):
            script, name = wide_script(seed, split, index), f"{split}_{index:04}"
            boxes_of[name] = true_boxes(script)
            rng = np.random.default_rng([seed, _LABELS, _SPLITS.index(split), index])
            labels_of[name] = labels(script, rng)
        for path, content in zip(paths, (boxes_of, labels_of), strict=True):
            write_json(path, content)


def main(args: list[str] | None = None) -> None:
    options = vars(HfArgumentParser(PlaygroundArguments).parse_args_into_dataclasses(args)[0])
    render_wide_world(options.pop("output"), **options)


if __name__ == "__main__":
    main()
