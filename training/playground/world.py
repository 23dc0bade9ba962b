r"""Render the playground: a small drawn world of captioned videos, and captioned stills for a small CLIP.

Everything here is drawn by this program; nothing is real footage. What it writes into its folder:

    videos/train_0000.mp4 ...   H.264, 96 x 96 pixels, 8 frames a second
    train.json, test.json       annotations in ActivityNet's form, plus `transitions`
    pictures/*.parquet          stills with one caption each (a data set of `image`, `text`; splits train and test)
    playground.json             the settings; a folder is continued only under the same ones

**World.** A video has one scene. Each event is one of 8 actors doing one of 8 actions, each with a pose or a prop of
its own, so that a single frame tells it; no actor and no action comes twice in a video. Between events the scene is
empty, or a *minor happening* (a bird, falling darkness ...) goes by. Minor happenings are never captioned, so what is an
event can be learned. `transitions[i]` says what lies between events i and i + 1: the happening, or that nothing happens.

**Sampling** (all draws independent; seconds are rounded to whole frames):

    number of events                uniform in {2, ..., 6}
    actors, actions                 uniform, but none twice in a video
    duration of an event            log-uniform in [2, 10] s
    gap before, between and after   log-uniform in [1.25, 4] s
    minor happening in a gap        probability 0.6, kind uniform; it lasts the gap, less 0.25 s at both ends
    scene, position, size, looks    uniform
    sentence                        uniform over the paraphrases of the grammar, with the place at probability 0.3

**Pictures** stand for the image-text pairs of the web. They are drawn one by one with a random scene, actor, action
and phase: no video, no time stamp and no order of events goes into them, and they share no random number with videos.

The same seed gives the same scripts, frames and sentences, whatever the number of videos or workers.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from drawing import draw_background, draw_event, draw_happening
from PIL import Image
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from sail_hf.data import write_json, written_whole

FPS = 8
# Raised whenever the same seed would give other files than before.
WORLD_VERSION = 2
# Streams of random numbers that share nothing: np.random.default_rng([seed, stream, index]).
_STREAMS = {"train": 0, "test": 1, "pictures-train": 2, "pictures-test": 3}

# Grammar

ACTORS = {
    "robot": "red",
    "frog": "green",
    "ghost": "blue",
    "duck": "yellow",
    "fox": "orange",
    "octopus": "purple",
    "pig": "pink",
    "rabbit": "white",
}

ACTIONS = {
    "jump": ("jumps on a trampoline", "bounces up and down on a trampoline", "leaps high above a trampoline"),
    "juggle": ("juggles three balls", "keeps three balls in the air", "is juggling with colorful balls"),
    "sleep": ("sleeps on a blue bed", "is fast asleep in bed", "takes a nap on a bed"),
    "paint": ("paints a picture", "is painting at an easel", "works on a painting"),
    "kite": ("flies a kite", "is flying a big kite", "lets a kite rise on a string"),
    "read": ("reads a book", "is reading a large book", "holds a book and reads"),
    "skate": ("rides a skateboard", "rolls around on a skateboard", "is skating on a board"),
    "dance": ("dances to music", "is dancing to a song", "sways to the music"),
}

SCENES = {
    "meadow": "on the meadow",
    "beach": "on the beach",
    "desert": "in the desert",
    "snow": "in the snow",
    "street": "in the street",
    "forest": "in the forest",
}

HAPPENINGS = {
    "bird": ("A bird crosses the sky.", "A small bird flies past.", "A bird flies by {place}."),
    "shade": ("The light fades for a moment.", "It gets dark {place}.", "A shadow falls over the {scene}."),
    "passer-by": ("Somebody walks through.", "A person in grey walks by.", "A person walks past {place}."),
    "leaves": ("Dry leaves blow past.", "The wind carries leaves along.", "Leaves drift by {place}."),
    "balloon": ("A balloon floats away.", "A balloon rises into the sky.", "A balloon drifts upwards {place}."),
}

NOTHING = ("The {scene} stays empty for a while.", "Nothing happens {place}.", "Nobody is to be seen {place}.")

PLACE_PROBABILITY = 0.3
HAPPENING_PROBABILITY = 0.6


def event_sentence(rng: np.random.Generator, scene: str, actor: str, action: str) -> str:
    """A caption of an event: subject (which always names the actor), verb phrase, sometimes the place."""
    colored = f"{ACTORS[actor]} {actor}"
    article = "An" if colored[0] in "aeiou" else "A"
    plain_article = "An" if actor[0] in "aeiou" else "A"
    subject = _choose(rng, (f"{article} {colored}", f"The {colored}", f"{plain_article} {actor}", f"The {actor}"))
    place = f" {SCENES[scene]}" if rng.random() < PLACE_PROBABILITY else ""
    return f"{subject} {_choose(rng, ACTIONS[action])}{place}."


def gap_sentence(rng: np.random.Generator, scene: str, happening: str | None) -> str:
    """A sentence for the time between two events: the minor happening, or (`None`) that nothing happens."""
    return _choose(rng, HAPPENINGS[happening] if happening else NOTHING).format(scene=scene, place=SCENES[scene])


def actor_in(sentence: str) -> str | None:
    """The actor that a sentence names, by its noun; `None` without one. Of several, the first named."""
    words = sentence.lower().replace(".", " ").replace(",", " ").split()
    return next((word for word in words if word in ACTORS), None)


def _choose(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


# Scripts


@dataclass
class Event:
    """An actor doing something. `start`, `end`: frames, end excluded. The rest fixes how it is drawn."""

    start: int
    end: int
    actor: str
    action: str
    sentence: str
    x: float
    height: float
    phase: float
    mirrored: bool


@dataclass
class Happening:
    """A minor happening. `start`, `end`: frames, end excluded."""

    start: int
    end: int
    kind: str
    phase: float


@dataclass
class Script:
    """All that is drawn and said in a video."""

    scene: str
    looks: int  # seeds the details of the background
    num_frames: int = 0
    events: list[Event] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    transitions: list[str] = field(default_factory=list)

    def annotation(self) -> dict:
        """ActivityNet's form (seconds), plus `transitions`."""
        return {
            "duration": self.num_frames / FPS,
            "timestamps": [[event.start / FPS, event.end / FPS] for event in self.events],
            "sentences": [event.sentence for event in self.events],
            "transitions": self.transitions,
        }


def sample_script(seed: int, split: str, index: int) -> Script:
    """The script of video `index` of a split (`"train"` or `"test"`), by the distribution in this file's docstring."""
    rng = np.random.default_rng([seed, _STREAMS[split], index])
    script = Script(scene=_choose(rng, list(SCENES)), looks=int(rng.integers(2**31)))
    num_events = int(rng.integers(2, 7))
    actors = rng.permutation(list(ACTORS))[:num_events].tolist()
    actions = rng.permutation(list(ACTIONS))[:num_events].tolist()
    for i, (actor, action) in enumerate(zip(actors, actions, strict=True)):
        _add_gap(rng, script, between_events=i > 0)
        end = script.num_frames + _log_uniform_frames(rng, 2, 10)
        script.events.append(random_event(rng, script.scene, actor, action, script.num_frames, end))
        script.num_frames = end
    _add_gap(rng, script, between_events=False)
    return script


def _add_gap(rng: np.random.Generator, script: Script, between_events: bool) -> None:
    frames, margin = _log_uniform_frames(rng, 1.25, 4), FPS // 4
    kind = _choose(rng, list(HAPPENINGS)) if rng.random() < HAPPENING_PROBABILITY else None
    start, script.num_frames = script.num_frames, script.num_frames + frames
    if kind:
        script.happenings.append(Happening(start + margin, script.num_frames - margin, kind, float(rng.random())))
    if between_events:
        script.transitions.append(gap_sentence(rng, script.scene, kind))


def random_event(rng: np.random.Generator, scene: str, actor: str, action: str, start: int, end: int) -> Event:
    return Event(
        start,
        end,
        actor,
        action,
        event_sentence(rng, scene, actor, action),
        x=float(rng.uniform(0.36, 0.64)),
        height=float(rng.uniform(0.36, 0.48)),
        phase=float(rng.random()),
        mirrored=bool(rng.random() < 0.5),
    )


def _log_uniform_frames(rng: np.random.Generator, low: float, high: float) -> int:
    return round(FPS * math.exp(rng.uniform(math.log(low), math.log(high))))


# Frames and files


def _draw(background: Image.Image, event: Event, seconds: float) -> Image.Image:
    seconds += 10 * event.phase
    return draw_event(background, event.actor, event.action, event.x, event.height, seconds, event.mirrored)


def draw_frames(script: Script, draw=_draw) -> Iterator[np.ndarray]:
    """Yields the frames of a video in order, as uint8 arrays `(SIZE, SIZE, 3)`.

    `draw`: `(background, event, seconds since its start) -> image`, how an event is drawn.
    """
    background = draw_background(script.scene, script.looks)
    parts: dict[int, Event | Happening] = {}
    for part in (*script.events, *script.happenings):
        parts.update(dict.fromkeys(range(part.start, part.end), part))
    for frame in range(script.num_frames):
        part = parts.get(frame)
        if part is None:
            image = background
        elif isinstance(part, Event):
            image = draw(background, part, (frame - part.start) / FPS)
        else:
            progress = (frame - part.start + 0.5) / (part.end - part.start)
            image = draw_happening(background, part.kind, progress, part.phase)
        yield np.asarray(image)


def frames_of(seed: int, split: str, index: int) -> Iterator[np.ndarray]:
    """[`draw_frames`] of video `index` of a split."""
    return draw_frames(sample_script(seed, split, index))


def _draw_still(background: Image.Image, event: Event, rng: np.random.Generator) -> Image.Image:
    return _draw(background, event, 0.0)


def draw_picture(seed: int, split: str, index: int, draw=_draw_still) -> tuple[Image.Image, str]:
    """A still and its caption: an event (70 %), a minor happening (18 %) or an empty scene (12 %).

    `draw`: `(background, event, rng) -> image`, how an event is drawn.
    """
    rng = np.random.default_rng([seed, _STREAMS[f"pictures-{split}"], index])
    scene = _choose(rng, list(SCENES))
    background = draw_background(scene, int(rng.integers(2**31)))
    kind = rng.random()
    if kind < 0.7:
        event = random_event(rng, scene, _choose(rng, list(ACTORS)), _choose(rng, list(ACTIONS)), 0, 0)
        return draw(background, event, rng), event.sentence
    happening = _choose(rng, list(HAPPENINGS)) if kind < 0.88 else None
    if happening:
        background = draw_happening(background, happening, float(rng.random()), float(rng.random()))
    return background, gap_sentence(rng, scene, happening)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: int = FPS) -> None:
    """Encode uint8 frames `(H, W, 3)` as an H.264 mp4 with a key frame every 2 s. It appears when complete."""
    import av

    with written_whole(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        # One thread, so that the same frames give the same file.
        stream = container.add_stream(
            "libx264", rate=fps, options={"preset": "superfast", "crf": "20", "threads": "1"}
        )
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 2 * fps
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


class Drawing(NamedTuple):
    """How a playground is drawn, by functions of a module, which processes that draw import.

    Attributes:
        settings: what its folder's settings say besides the seed and [`WORLD_VERSION`].
        frames: `(seed, split, index) -> frames` of a video.
        picture: `(seed, split, index) -> (image, text)`, a captioned still.
    """

    settings: dict
    frames: Callable[[int, str, int], Iterator[np.ndarray]]
    picture: Callable[[int, str, int], tuple[Image.Image, str]]


USUAL = Drawing({}, frames_of, draw_picture)


def render_playground(
    folder: str | Path,
    num_train: int = 300,
    num_test: int = 60,
    seed: int = 0,
    num_workers: int = 2,
    num_train_pictures: int = 8000,
    num_test_pictures: int = 500,
    drawing: Drawing = USUAL,
) -> None:
    """Write the playground into `folder`; what is there already, complete and of the same seed, stays as it is.

    Raises:
        ValueError: `folder` holds a playground of another seed or of another version of this program.
    """
    folder = Path(folder)
    _check_settings(folder, {"world_version": WORLD_VERSION, "seed": seed, **drawing.settings})
    for name in ("videos", "pictures"):
        (folder / name).mkdir(exist_ok=True)

    video_jobs = []
    for split, count in (("train", num_train), ("test", num_test)):
        annotations = {}
        for index in range(count):
            name = f"{split}_{index:04}"
            annotations[name] = sample_script(seed, split, index).annotation()
            video_jobs.append((folder / "videos" / f"{name}.mp4", drawing.frames, seed, split, index))
        write_json(folder / f"{split}.json", annotations)
    video_jobs = [job for job in video_jobs if not job[0].exists()]

    picture_counts = {"train": num_train_pictures, "test": num_test_pictures}
    picture_counts = {split: n for split, n in picture_counts.items() if _num_rows(_pictures(folder, split)) != n}
    picture_jobs = [(drawing.picture, seed, split, index) for split, n in picture_counts.items() for index in range(n)]

    if not video_jobs and not picture_jobs:
        return
    # Spawned workers know nothing of the caller's threads, which forked ones may wait for in vain.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        videos = pool.map(_render_video, *zip(*video_jobs, strict=True)) if video_jobs else ()
        pictures = pool.map(_encode_picture, *zip(*picture_jobs, strict=True), chunksize=200) if picture_jobs else ()
        for _ in tqdm(videos, total=len(video_jobs), desc="Rendering videos", unit="video"):
            pass
        rows = iter(tqdm(pictures, total=len(picture_jobs), desc="Drawing stills", unit="still"))
        for split, count in picture_counts.items():
            _write_pictures(_pictures(folder, split), [next(rows) for _ in range(count)])


def _check_settings(folder: Path, settings: dict) -> None:
    path = folder / "playground.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != settings:
            raise ValueError(f"{folder} holds the playground of {found}, expected {settings}: use another folder.")
    write_json(path, settings)


def _render_video(path: Path, frames: Callable, seed: int, split: str, index: int) -> None:
    write_video(path, frames(seed, split, index))


def _encode_picture(picture: Callable, seed: int, split: str, index: int) -> tuple[bytes, str]:
    image, text = picture(seed, split, index)
    jpeg = BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue(), text


def _pictures(folder: Path, split: str) -> Path:
    return folder / "pictures" / f"{split}-00000-of-00001.parquet"


def _num_rows(path: Path) -> int:
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path).num_rows if path.exists() else 0


def _write_pictures(path: Path, rows: list[tuple[bytes, str]]) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = [{"image": {"bytes": jpeg, "path": None}, "text": text} for jpeg, text in rows]
    with written_whole(path) as temporary:
        datasets.Dataset.from_list(rows, features=features).to_parquet(temporary)


@dataclass
class PlaygroundArguments:
    """Where to render the playground, and how much of it."""

    output: str = field(metadata={"help": "Folder that the videos, annotations and pictures are written to."})
    num_train: int = field(default=300, metadata={"help": "Number of training videos."})
    num_test: int = field(default=60, metadata={"help": "Number of test videos."})
    seed: int = field(default=0, metadata={"help": "The same seed gives the same world."})
    num_workers: int = field(default=2, metadata={"help": "Processes that draw and encode."})
    num_train_pictures: int = field(default=8000, metadata={"help": "Number of captioned stills for a small CLIP."})
    num_test_pictures: int = field(default=500, metadata={"help": "Number of stills held out."})


def main(args: list[str] | None = None) -> None:
    options = vars(HfArgumentParser(PlaygroundArguments).parse_args_into_dataclasses(args)[0])
    render_playground(options.pop("output"), **options)


if __name__ == "__main__":
    main()
