"""Long videos: the chunks that they are captioned in, and the events of a video out of those of its chunks."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .trust import check_limit

# Videos are seen at once up to so many seconds for each of a model's frames, unless its configuration says otherwise. So far
# apart are the frames in the longest videos but one in a hundred of ActivityNet Captions (237 s in 32 frames) and of YouCook2
# (706 s in 100).
SECONDS_A_FRAME = 7.5

Event = dict[str, Any]


class Chunk(NamedTuple):
    """Seconds from `start` to `end`; the events whose centre lies in the core from `low` to `high` are this chunk's to tell."""

    start: float
    end: float
    low: float
    high: float


def chunk_bounds(duration: float, chunk_length: float | None, stride: float | None) -> list[Chunk]:
    """The chunks of a video of `duration` seconds; their cores tile the time line.

    Chunks are `chunk_length` long (None: one chunk) and overlap by `stride` (a sixth of the length by default) on each inner
    side.

    Raises:
        ValueError: more chunks than `SAIL_MAX_CHUNKS` allows.
    """
    infinity = float("inf")
    if chunk_length is None or duration <= chunk_length:
        return [Chunk(0.0, duration, -infinity, infinity)]
    stride = chunk_length / 6 if stride is None else stride
    step = chunk_length - 2 * stride
    further = (duration - chunk_length) / step
    check_limit("chunks", further, f"`chunk_length_s` {chunk_length} divides a video of {duration:,.0f} s into")
    # The small tolerance keeps rounding from adding a chunk that covers nothing.
    count = max(2, math.ceil(further - 1e-9) + 1)
    starts = [index * step for index in range(count)]
    # The last chunk is moved back to end with the video, so that it is as long as the others.
    starts[-1] = duration - chunk_length
    cuts = [(a + chunk_length + b) / 2 for a, b in zip(starts, starts[1:], strict=False)]
    return [
        Chunk(start, start + chunk_length, low, high)
        for start, low, high in zip(starts, [-infinity, *cuts], [*cuts, infinity], strict=True)
    ]


def events_a_chunk(num_events: int, chunks: list[Chunk], most: int) -> int:
    """How many events to find in each chunk for `num_events` in the video: as many as its share of the time holds, at least
    one and at most `most`.

    Raises:
        ValueError: more events than all chunks can have.
    """
    if num_events > most * len(chunks):
        raise ValueError(f"`num_events` must be a whole number, 1..{most * len(chunks)}, found {num_events}.")
    share = (chunks[0].end - chunks[0].start) / chunks[-1].end if len(chunks) > 1 else 1
    return min(most, math.ceil(num_events * share))


def join_chunks(
    chunks: Iterable[tuple[Chunk, list[Event]]], alike: Callable[[str, str], bool]
) -> Iterator[list[Event]]:
    """For each chunk the events of the video that no later chunk can change, sorted by start.

    An event goes on across a cut where the next chunk has one that overlaps with it and means the same: the two are one, from
    the first start to the last end, with the sentence of the higher score.

    Args:
        chunks: in order of time, each with its events in seconds.
        alike: whether two sentences mean the same.
    """
    open_events: list[Event] = []  # those that reach into the next chunk
    for chunk, events in chunks:
        events = [event for event in events if chunk.low <= (event["start"] + event["end"]) / 2 < chunk.high]
        for index, old in enumerate(open_events):
            for new in events:
                overlap = new["start"] <= old["end"] and old["start"] <= new["end"]
                if overlap and alike(old["text"], new["text"]):
                    events = [event for event in events if event is not new]
                    span = {"start": min(old["start"], new["start"]), "end": max(old["end"], new["end"])}
                    open_events[index] = {**max(old, new, key=lambda event: event["score"]), **span}
                    break
        # The cut lies in the middle of the overlap.
        next_start = 2 * chunk.high - chunk.end
        events = sort_events(open_events + events)
        yield [event for event in events if event["end"] < next_start]
        open_events = [event for event in events if event["end"] >= next_start]


def sort_events(events: Iterable[Event]) -> list[Event]:
    """Events by start, then by end."""
    return sorted(events, key=lambda event: (event["start"], event["end"]))
