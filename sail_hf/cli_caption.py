"""`sail caption`: the events of videos."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from .cli_videos import Documents, Events, calm_libraries, expand_videos, pick_device, run_over, usable
from .export import by_time, clock
from .hub_names import check_model_name

# Sentences of the bank told of an event by `--explain`.
_EXPLAINED = 3

if TYPE_CHECKING:
    from .pipeline_sail import DenseVideoCaptioningPipeline


def run(args: Namespace) -> int:
    """Everything that can be checked is checked before the model is loaded. Returns the exit status."""
    videos = expand_videos(args.videos)
    documents = Documents(videos, args.format, args.output, args.embed, args.transcode)
    if args.skip_existing:
        if not documents.is_folder:
            raise ValueError("--skip-existing needs --output FOLDER.")
        left = [video for video in videos if not all(file.exists() for file in documents.files_of(video))]
        if len(left) < len(videos) and not args.quiet:
            print(f"{len(videos) - len(left)} of {len(videos)} videos have their output already.", file=sys.stderr)
        if not left:
            return 0
        documents = replace(documents, videos=left)
    given, reasons = usable(documents.videos)
    check_model_name(args.model)
    pipe = load_pipeline(args) if given else None
    batches = (given[start : start + args.batch_size] for start in range(0, len(given), args.batch_size))
    results = (result for batch in batches for result in caption_each(pipe, batch, args.batch_size, args.quiet))
    if args.explain:
        results = map(explained, results)
    status = run_over(results, documents, reasons, "Captioning", args.quiet)
    documents.finish()
    return status


def caption_each(
    pipe: "DenseVideoCaptioningPipeline", videos: list[str], batch_size: int, quiet: bool
) -> Iterator[tuple[str, Events | Exception]]:
    """Each video with its events, or with what went wrong; if it is one of a batch, the others are done one by one."""
    try:
        results = [tell(pipe.stream(videos[0]), quiet)] if batch_size == 1 else pipe(videos, batch_size=batch_size)
    except Exception as error:  # it may be any of them
        if len(videos) == 1:
            results = [error]
        else:
            for video in videos:
                yield from caption_each(pipe, [video], batch_size, quiet)
            return
    yield from zip(videos, results, strict=True)


def tell(chunks: Iterator[Events], quiet: bool) -> Events:
    """The events of a video; where it is one of several chunks, they are told on the standard error as they come."""
    from tqdm import tqdm

    told, found = 0, []
    for number, events in enumerate(chunks):
        found += events
        # Whether there are several is known with the second.
        while number and not quiet and told < len(found):
            event = found[told]
            span = " - ".join(clock(round(1000 * event[key])) for key in ("start", "end"))
            tqdm.write(f"{span}  {event['text']}", file=sys.stderr)
            told += 1
    return by_time(found)


def explained(result: tuple[str, Events | Exception]) -> tuple[str, Events | Exception]:
    """A video with its events, once the captions that they leaned on are told on the standard error."""
    from tqdm import tqdm

    video, events = result
    for event in () if isinstance(events, Exception) else events:
        tqdm.write(f"{video}: {event['text']}", file=sys.stderr)
        for sentence in event["context"]:
            tqdm.write(f"  {sentence['cosine']:.2f}  {sentence['text']}", file=sys.stderr)
    return result


def load_pipeline(args: Namespace) -> "DenseVideoCaptioningPipeline":
    """The pipeline of `--model` with the options of the command line.

    Raises:
        ValueError, OSError: no such model, or options that make no sense.
    """
    device = pick_device(args.device)
    from transformers import pipeline

    options = {name: getattr(args, name) for name in ("num_events", "localization", "frames_per_second")}
    options |= {"chunk_length_s": args.chunk_length, "stride_length_s": args.stride, "dtype": args.dtype}
    options |= {"explain": _EXPLAINED if args.explain else None}
    options["grounding"] = args.grounding or None
    options = {name: value for name, value in options.items() if value is not None}
    with calm_libraries(args):
        pipe = pipeline("dense-video-captioning", model=args.model, device=device, trust_remote_code=False, **options)
        aligns = (args.localization or pipe.model.resolve_generation_config().localization) == "alignment"
        if aligns:
            pipe.model.model.get_clip()
    if not aligns and args.frames_per_second:
        raise ValueError("--frames-per-second needs --localization alignment.")
    return pipe
