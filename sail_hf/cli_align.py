"""`sail align`: times for captions that are there already, and how far the times were off that they came with."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .cli_videos import Documents, Events, calm_libraries, expand_videos, pick_device, run_over, stem_of, usable
from .hub_names import check_clip_name, check_model_name
from .prediction_files import read_events, read_results, reference_name

if TYPE_CHECKING:
    from .clip_sail import SailClip

# Endings of a video's captions beside it, the first of these that is there.
_CAPTION_ENDINGS = (".srt", ".vtt", ".json", ".csv", ".tsv", ".txt")


def run(args: Namespace) -> int:
    """Everything that can be checked is checked before a CLIP is loaded. Returns the exit status."""
    videos = expand_videos([args.video])
    captions = captions_of(videos, Path(args.captions), is_one=videos == [args.video])
    documents = Documents(list(captions), args.format, args.output, args.embed, args.transcode)
    timed = [video for video, events in captions.items() if all(event["start"] is not None for event in events)]
    if args.compare and len(timed) < len(captions):
        untimed = next(video for video in captions if video not in timed)
        raise ValueError(f"--compare needs captions with times; those of {untimed} have none.")
    if timed and not args.compare and not args.quiet:
        print("The times of the captions are ignored; --compare tells how far they were off.", file=sys.stderr)
    given, reasons = usable(captions)
    check_clip_name(args.clip) if args.clip else check_model_name(args.model)
    clip = load_clip_of(args) if given else None
    options = {name: getattr(args, name) for name in ("frames_per_second", "alignment", "gap_level")}
    found: dict[str, Events] = {}
    results = align_each(clip, {video: captions[video] for video in given}, options, found)
    status = run_over(results, documents, reasons, "Aligning", args.quiet or len(captions) == 1)
    if not args.compare or args.output:
        documents.finish()
    if args.compare and found:
        print(format_comparison({video: (captions[video], events) for video, events in found.items()}))
    return status


def captions_of(videos: list[str], path: Path, is_one: bool) -> dict[str, Events]:
    """The captions of each video that has any: of one video from its file, of several from a file or folder of all.

    Raises:
        OSError, ValueError: a file that cannot be read, no captions for any of the videos.
    """
    if is_one and not path.is_dir():
        return {videos[0]: checked_captions(read_events(path), path)}
    if path.is_dir():
        files = {video: [path / f"{stem_of(video)}{ending}" for ending in _CAPTION_ENDINGS] for video in videos}
        there = {video: next((file for file in of_video if file.is_file()), None) for video, of_video in files.items()}
        found = {video: checked_captions(read_events(file), file) for video, file in there.items() if file}
    else:
        results = read_results(path)
        names = {video: reference_name(stem_of(video), results) for video in videos}
        found = {video: checked_captions(results[name], path) for video, name in names.items() if name}
    if not found:
        raise ValueError(f"{path} holds captions of none of the {len(videos)} videos, e.g. of {stem_of(videos[0])}.")
    if len(found) < len(videos):
        without = [video for video in videos if video not in found]
        print(f"sail: {len(without)} of {len(videos)} videos have no captions, e.g. {without[0]}.", file=sys.stderr)
    return found


def checked_captions(events: Events, path: Path) -> Events:
    if empty := [i for i, event in enumerate(events) if not event["text"].strip()]:
        raise ValueError(f"{path}: caption {empty[0]} is empty.")
    return events


def align_each(
    clip: "SailClip", captions: dict[str, Events], options: dict, found: dict[str, Events]
) -> Iterator[tuple[str, Events | Exception]]:
    """Each video with its events by time, or with what went wrong; `found` keeps them in the order of the captions."""
    for video, events in captions.items():
        try:
            found[video] = clip.align(video, [event["text"] for event in events], **options)
            yield video, sorted(found[video], key=lambda event: (event["start"], event["end"]))
        except Exception as error:  # one video must not end the others
            yield video, error


def load_clip_of(args: Namespace) -> "SailClip":
    """The CLIP by `--clip`, or the one inside `--model`, on `--device`."""
    device = pick_device(args.device)
    from .clip_sail import load_clip
    from .modeling_sail import SailModel

    with calm_libraries(args):
        clip = load_clip(args.clip) if args.clip else SailModel.from_pretrained(args.model).get_clip()
    return clip.to(device)


def format_comparison(pairs: dict[str, tuple[Events, Events]]) -> str:
    """Given and found times of each caption, and how far the given ones were off, in seconds."""
    lines, offs = [], []
    for video, (given, found) in pairs.items():
        lines += [f"{video}", f"{'given':>19} {'found':>19} {'start off':>10} {'end off':>9}"]
        for old, new in zip(given, found, strict=True):
            off = [old[key] - new[key] for key in ("start", "end")]
            offs += map(abs, off)
            spans = [f"{event['start']:.2f} - {event['end']:.2f}" for event in (old, new)]
            lines.append(f"{spans[0]:>19} {spans[1]:>19} {off[0]:>+10.2f} {off[1]:>+9.2f}  {old['text']}")
    lines.append(
        f"off by {sum(offs) / len(offs):.2f} s on average, {max(offs):.2f} s at most ({len(offs) // 2} captions)"
    )
    return "\n".join(lines)
