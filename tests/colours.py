"""A world of plain colours, where it is known which frames a caption describes: a tiny CLIP and SAIL that learned it."""

from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tiny import CLIP_CFG, make_clip, make_model
from torch.nn import functional as F

from sail_hf import SailForDenseVideoCaptioning, SailProcessor
from sail_hf.clip_sail import SailClip, load_clip

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 40), "blue": (40, 40, 200), "grey": (128, 128, 128)}
SENTENCES = {
    "red": "A red screen.",
    "green": "Everything turns green.",
    "blue": "It ends in blue.",
    "grey": "Nothing but grey.",
}
RED, GREEN, BLUE, GREY = SENTENCES.values()
FPS = 10
SOUND_RATE = 44100


def picture(name: str, seed: int = 0) -> np.ndarray:
    """A plain picture with some noise, uint8 `(32, 32, 3)`."""
    noise = np.random.default_rng(seed).normal(0, 12, (32, 32, 3))
    return (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)


def frames(*scenes: tuple[str, float]) -> np.ndarray:
    """Frames of (colour, seconds) scenes at `FPS` a second."""
    return np.stack([picture(name, i) for name, seconds in scenes for i in range(round(seconds * FPS))])


def write_video(path: Path, *scenes: tuple[str, float]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number, image in enumerate(frames(*scenes)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_odd_video(path, sound="libmp3lame"):
    """MPEG-4 in Matroska: red for 2 s, then green for 2 s, with a tone from second 1 to 3."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        if sound:
            stream = container.add_stream(sound, rate=SOUND_RATE)
            stream.layout = "mono"
        for number, image in enumerate(frames(("red", 2), ("green", 2))):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(picture.encode(frame))
        if sound:
            times = np.arange(4 * SOUND_RATE) / SOUND_RATE
            tone = np.sin(2 * np.pi * 440 * times) * ((1 <= times) & (times < 3)) * 0.5
            for start in range(0, len(tone), 1152):
                part = av.AudioFrame.from_ndarray(
                    (tone[None, start : start + 1152] * 32767).astype(np.int16), format="s16p", layout="mono"
                )
                part.sample_rate, part.pts, part.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
                container.mux(stream.encode(part))
            container.mux(stream.encode())
        container.mux(picture.encode())
    return path


@cache
def _clip_weights() -> dict[str, torch.Tensor]:
    """A tiny CLIP that tells the colours apart, trained for seconds."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CLIP_CFG)
    names = list(SENTENCES)
    tokens = open_clip.SimpleTokenizer(context_length=77)(list(SENTENCES.values()))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(100):
        images = np.stack([picture(name, 1000 + step) for name in names])
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        image, text, _ = model(pixels, tokens)
        loss = F.cross_entropy(10 * image @ text.T, torch.arange(len(names)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def make_colour_clip(folder: Path) -> SailClip:
    make_clip(folder)
    save_file(_clip_weights(), folder / "open_clip_model.safetensors")
    return load_clip(str(folder))


def make_colour_model(
    clip: SailClip, processor: SailProcessor, captions: list[str], text_tower: bool = True, **fields
) -> SailForDenseVideoCaptioning:
    """A tiny random SAIL around the CLIP, whose whole-video caption of everything is `captions`."""
    clip.vision_config.include_text_tower = text_tower
    model = make_model(processor, vision_config=clip.vision_config, **fields)
    model.model.vision_tower.load_state_dict(clip.model.visual.state_dict())
    if text_tower:
        model.model.text_tower.load_state_dict(clip.model.text.state_dict())
    # It says so whatever the frames, and however many there are.
    labels = torch.tensor([processor.caption_labels(captions)["full_labels"]] * 4)
    frame_mask = (torch.arange(model.config.num_frames) < torch.tensor([8, 6, 4, 2])[:, None]).long()
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=2e-2)
    for _ in range(80):
        features = torch.randn(4, model.config.num_frames, model.config.feature_size)
        model(video_features=features, video_attention_mask=frame_mask, full_labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.update(num_beams=1, max_new_tokens=6, full_max_new_tokens=60)
    return model
