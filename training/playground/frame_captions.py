"""Captions of the playground's frames by an oracle with noise: what a vision-language model might say of each.

    python training/playground/frame_captions.py --playground outputs/demo/playground --dataset outputs/demo/dataset \
        --clip outputs/demo/clip

No model looks at a frame here: the sentence comes from the script that the frame was drawn by, in words drawn anew for each
frame, and is wrong by rates that are known. With probability `error_rate` each, a frame is given (of one without an actor:
another minor happening in place of the first two)

    wrong actor     the right action, by another actor
    wrong action    the right actor, in another action
    generic         a sentence that would do for any frame of the scene
    stale           the sentence of the frame before once more

else the right sentence. It adds the columns of training/caption_frames.py to the data set, for the method `sbs`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import parquet
from recipes import caption_frames
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg
from world import ACTIONS, ACTORS, HAPPENINGS, SCENES, Event, Script, event_sentence, gap_sentence, sample_script

from sail_hf.clip_sail import load_clip

ERRORS = ("wrong actor", "wrong action", "generic", "stale")
GENERIC = ("Somebody is {place}.", "Something happens {place}.", "This is the {scene}.")
# Beside those of world.py, with which it shares no random number.
_STREAM = 4


@dataclass
class FrameCaptionArguments:
    playground: str = HfArg(help="Folder that world.py rendered.")
    dataset: str = HfArg(help="Folder of its features; gets the columns.")
    clip: str = HfArg(help="Folder of the CLIP that made them.")
    split: str = "train"
    error_rate: float = HfArg(default=0.1, help="Probability of each of the four errors.")
    seed: int = HfArg(default=0, help="Of the errors and the words; the world has its own.")

    def __post_init__(self):
        if not 0 <= self.error_rate <= 1 / len(ERRORS):
            raise ValueError(f"--error_rate must lie in [0, {1 / len(ERRORS)}], found {self.error_rate}")


def frame_captions(script: Script, num_frames: int, error_rate: float, rng: np.random.Generator) -> list[str]:
    """A sentence for each of `num_frames` frames spread evenly over a video, as training/extract_features.py takes them."""
    said: list[str] = []
    # Rounded: a time that falls on a frame's start is that frame's.
    for frame in np.linspace(0, script.num_frames, num_frames).round(6).astype(int).tolist():
        frame = min(frame, script.num_frames - 1)
        error = rng.choice([None, *ERRORS], p=[1 - len(ERRORS) * error_rate, *[error_rate] * len(ERRORS)])
        if error == "stale" and said:
            said.append(said[-1])
        elif error == "generic":
            said.append(rng.choice(GENERIC).format(scene=script.scene, place=SCENES[script.scene]))
        else:
            said.append(sentence_of(script, frame, error, rng))
    return said


def sentence_of(script: Script, frame: int, error: str | None, rng: np.random.Generator) -> str:
    """What is to be seen in a frame of a script, but for the actor or action that is wrong."""

    def other(options, right):
        return str(rng.choice([option for option in options if option != right]))

    shown = next((part for part in (*script.events, *script.happenings) if part.start <= frame < part.end), None)
    if isinstance(shown, Event):
        actor = other(ACTORS, shown.actor) if error == "wrong actor" else shown.actor
        action = other(ACTIONS, shown.action) if error == "wrong action" else shown.action
        return event_sentence(rng, script.scene, actor, action)
    kind = shown.kind if shown else None
    return gap_sentence(rng, script.scene, other(HAPPENINGS, kind) if error in ERRORS[:2] else kind)


def add_oracle(args: FrameCaptionArguments) -> None:
    """Caption the frames of a split; ValueError where data set and playground are of two worlds."""
    world = json.loads(Path(args.playground, "playground.json").read_text())["seed"]
    path = caption_frames.split_file(args.dataset, args.split)
    captions, num_frames = {}, caption_frames.frames_of(path)
    for row in parquet.read_table(path, columns=["video_id", "captions"]).to_pylist():
        index = int(row["video_id"].rpartition("_")[2])
        script = sample_script(world, args.split, index)
        if row["captions"] != [event.sentence for event in script.events]:
            raise ValueError(f"{path} is of another world than {args.playground}: {row['video_id']} differs")
        rng = np.random.default_rng([world, _STREAM, index, args.seed])
        captions[row["video_id"]] = frame_captions(script, num_frames, args.error_rate, rng)
    rates = ", ".join(f"{error} {args.error_rate:.0%}" for error in ERRORS)
    provenance = {"frame_captioner": f"oracle with noise, no model: {rates}", "frame_prompt": None}
    provenance["frame_captioner_revision"] = f"seed {args.seed}"
    caption_frames.add_frame_captions(path, captions, provenance, load_clip(args.clip))


if __name__ == "__main__":
    try:
        add_oracle(*HfArgumentParser(FrameCaptionArguments, description=__doc__).parse_args_into_dataclasses())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
