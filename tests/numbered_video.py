"""Renders small videos for tests. The number of each frame is in its picture, as black and white columns."""

from fractions import Fraction

import av
import numpy as np

BITS = 8


def numbered_frame(number: int, height: int = 32, width: int = 16 * BITS) -> np.ndarray:
    """An RGB frame with `number` as eight black and white columns."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    return np.repeat(np.repeat(np.array(bits, dtype=np.uint8) * 255, width // BITS)[None], height, 0)[
        ..., None
    ].repeat(3, 2)


def read_number(frame: np.ndarray) -> int:
    columns = frame.mean(axis=(0, 2)).reshape(BITS, -1).mean(axis=1)
    return sum(1 << bit for bit, value in enumerate(columns) if value > 127)


def render(
    path, num_frames=60, fps=30, codec="libx264", pts=None, gop=12, b_frames=2, options=None, rotation=None, **mux
):
    """Encode numbered frames; `pts` in units of 1 / fps. Returns the path."""
    with av.open(str(path), "w", **mux) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 16 * BITS, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.gop_size, stream.max_b_frames, stream.options = gop, b_frames, options or {}
        if rotation:
            stream.set_display_rotation(*rotation)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = number if pts is None else pts[number], Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
