"""`sail find`: the stretches of videos, or of a data set's stored features, that fit a sentence."""

import sys
from argparse import Namespace
from pathlib import Path

from .cli_align import load_clip_of
from .cli_videos import Documents, Events, check_writable, expand_videos, formats_of, is_url, run_over, stem_of, usable
from .data import find_videos
from .hub_names import check_clip_name, check_model_name


def run(args: Namespace) -> int:
    """Everything that can be checked is checked before a CLIP is loaded. Returns the exit status."""
    queries = [args.query, *args.also]
    if not all(map(str.strip, queries)):
        raise ValueError("A sentence to find is empty.")
    data_sets = {name: files for name in args.videos if (files := data_set_files(name))}
    stored, files = stored_videos(data_sets), expand_videos([name for name in args.videos if name not in data_sets])
    videos = [*stored, *files]
    if stored and (args.clips or "html" in formats_of(args.format, args.output)):
        raise ValueError("Stored features have no video to cut or to show: leave out --clips and --format html.")
    documents = Documents(videos, args.format, args.output, args.embed, args.transcode)
    if args.features and not files:
        raise ValueError(
            "--features keeps what CLIP sees of videos, and there are only stored features: leave it out."
        )
    if twice := set(stored) & set(files):
        raise ValueError(f"{min(twice)} is a video, and the id of stored features as well: search them one by one.")
    if args.clips and (addresses := list(filter(is_url, videos))):
        raise ValueError(f"--clips cuts files, and {addresses[0]} is an address: download it first.")
    for folder in filter(None, (args.clips, args.features)):
        check_writable(folder)
    given, reasons = usable(files)
    check_clip_name(args.clip) if args.clip else check_model_name(args.model)
    features: dict = dict(stored)
    if given or stored:
        clip = load_clip_of(args)
        from .finding import stored_features

        size = clip.vision_config.model_cfg["embed_dim"]
        for video, (frames, _) in stored.items():
            if frames.shape[1] != size:
                raise ValueError(f"{video} has stored features of size {frames.shape[1]}, and the CLIP's have {size}.")

        def read():
            for video in given:
                try:
                    features[video] = stored_features(clip, video, args.frames_per_second, args.features)
                    yield video, []
                except Exception as error:  # one video must not end the others
                    yield video, error

        status = run_over(read(), documents, reasons, "Reading", args.quiet or len(given) < 2) if given else 0
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


def data_set_files(name: str) -> list[str]:
    """Parquet files of features that a name stands for; a folder with videos stands for these."""
    path = Path(name)
    if path.suffix == ".parquet" and path.is_file():
        return [name]
    return sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() and not find_videos(path) else []


def stored_videos(data_sets: dict[str, list[str]]) -> dict:
    """Features and durations of data sets by video id (ValueError: an id is in two)."""
    stored: dict = {}
    for name, files in data_sets.items():
        from .finding import data_set_features  # torch

        found = data_set_features(files)
        if twice := stored.keys() & found:
            raise ValueError(f"{min(twice)} is in {name} and in a data set before it: search them one by one.")
        stored |= found
    return stored


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
