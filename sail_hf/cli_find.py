"""`sail find`: the stretches of videos that fit a sentence."""

import sys
from argparse import Namespace
from pathlib import Path

from .cli_align import load_clip_of
from .cli_videos import Documents, Events, check_writable, expand_videos, is_url, run_over, stem_of, usable
from .hub_names import check_clip_name, check_model_name


def run(args: Namespace) -> int:
    """Everything that can be checked is checked before a CLIP is loaded. Returns the exit status."""
    videos, queries = expand_videos(args.videos), [args.query, *args.also]
    if not all(map(str.strip, queries)):
        raise ValueError("A sentence to find is empty.")
    documents = Documents(videos, args.format, args.output, args.embed, args.transcode)
    if args.clips and (addresses := list(filter(is_url, videos))):
        raise ValueError(f"--clips cuts files, and {addresses[0]} is an address: download it first.")
    for folder in filter(None, (args.clips, args.features)):
        check_writable(folder)
    given, reasons = usable(videos)
    check_clip_name(args.clip) if args.clip else check_model_name(args.model)
    features: dict = {}
    if given:
        clip = load_clip_of(args)
        from .finding import stored_features

        def read():
            for video in given:
                try:
                    features[video] = stored_features(clip, video, args.frames_per_second, args.features)
                    yield video, []
                except Exception as error:  # one video must not end the others
                    yield video, error

        status = run_over(read(), documents, reasons, "Reading", args.quiet or len(given) == 1)
    else:
        status = run_over(iter(()), documents, reasons, "Reading", args.quiet)
    if not features:
        return status
    names = list(features)
    found = clip.find_in_features(list(features.values()), queries, args.top_k)
    for of_query in found:
        for event in of_query:
            event["video"] = names[event["video"]]
    if args.clips:
        cut_clips(found, Path(args.clips), args.quiet)
    if args.format or args.output:
        for video in names:
            documents.add(
                video, [without_video(one) for of_query in found for one in of_query if one["video"] == video]
            )
        documents.finish()
    else:
        print(format_found(found))
    return status


def without_video(event: dict) -> dict:
    return {key: value for key, value in event.items() if key != "video"}


def format_found(found: list[Events]) -> str:
    """Of each sentence its stretches, the best one first."""
    lines = []
    for of_query in found:
        lines.append(of_query[0]["text"] if of_query else "")
        for event in of_query:
            span = f"{event['start']:.2f} - {event['end']:.2f} s"
            lines.append(f"  {event['similarity']:.3f}  {span:>22}  {event['video']}")
    return "\n".join(lines)


def cut_clips(found: list[Events], folder: Path, quiet: bool) -> None:
    """A file for each stretch, named by its video, its sentence and its rank; what was done is said for each."""
    from .video_cutting import clip_suffix, cut_clip

    for query, of_query in enumerate(found, start=1):
        for rank, event in enumerate(of_query, start=1):
            target = folder / f"{stem_of(event['video'])}_{query}_{rank}{clip_suffix(event['video'])}"
            done = cut_clip(event["video"], event["start"], event["end"], target)
            if not quiet:
                print(f"{target}: {done}", file=sys.stderr)
