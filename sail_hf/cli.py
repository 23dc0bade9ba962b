"""The command `sail`: captions for videos, and times for captions that are there already."""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from . import __version__
from .data import written_whole
from .hub_names import check_clip_name, check_model_name

if TYPE_CHECKING:
    from .clip_sail import SailClip
    from .pipeline_sail import DenseVideoCaptioningPipeline

FORMATS = ("json", "srt", "vtt", "html")


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's). Returns the exit status: 1 where something failed."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("interrupted")


def fail(message: str) -> int:
    print(f"sail: error: {message}", file=sys.stderr)
    return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sail", description=__doc__)
    parser.add_argument("--version", action="version", version=f"sail {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    dash = "Names that start with a dash go last, after --."

    text = "describe the events of videos"
    caption = commands.add_parser("caption", help=text, description=f"{text.capitalize()}.", epilog=dash)
    caption.set_defaults(run=run_caption)
    add = caption.add_argument
    add("videos", nargs="+", metavar="VIDEO", help="video file or http(s) address")
    add("--model", required=True, help="folder or Hub name of a trained model")
    _add_output(caption)
    add("--skip-existing", action="store_true", help="leave videos whose output is there alone")
    add("--num-events", type=int, metavar="N", help="number of events (default: inferred)")
    add("--localization", choices=("masks", "alignment"), help="how events are localised (default: as the model says)")
    text = "with alignment: frames looked at for finer times (default: those that are captioned)"
    add("--frames-per-second", type=_positive_float, metavar="N", help=text)
    add("--chunk-length", type=float, metavar="SECONDS", help="caption longer videos in chunks of this length")
    add("--stride", type=float, metavar="SECONDS", help="overlap on each side of a chunk (default: a sixth of it)")
    add("--batch-size", type=_positive_int, default=1, metavar="N", help="videos at a time")

    text = "find the times of captions that are there already"
    align = commands.add_parser("align", help=text, description=f"{text.capitalize()}.", epilog=dash)
    align.set_defaults(run=run_align)
    add = align.add_argument
    add("video", metavar="VIDEO", help="video file or http(s) address")
    text = "its captions in order: one a line, or a JSON list (.json)"
    add("--captions", metavar="FILE", required=True, help=text)
    source = align.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder or Hub name of a SAIL model, whose CLIP is used")
    source.add_argument("--clip", help="open_clip model (ViT-L-14), hf-hub:org/repo or folder of a CLIP")
    _add_output(align)
    text = "frames looked at (default: 2)"
    add("--frames-per-second", type=_positive_float, default=2.0, metavar="N", help=text)
    text = "captions in order without overlap (default), in order with overlap, or in any order"
    add("--alignment", choices=("ordered", "overlapping", "unordered"), default="ordered", help=text)
    text = "higher leaves out more of what no caption fits (default: 0)"
    add("--gap-level", type=_number, default=0.0, metavar="X", help=text)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="json", help="of the output (default: json)")
    parser.add_argument("--output", metavar="DIR", help="folder for a file per video (default: the standard output)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


def _positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return value


def _number(text: str) -> float:
    if not (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number, found {text}")
    return value


def _positive_float(text: str) -> float:
    if (value := _number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


# --- sail caption -------------------------------------------------------------------------------------------------


def run_caption(args: argparse.Namespace) -> int:
    if not args.output and len(args.videos) > 1 and args.format != "json":
        return fail(f"{len(args.videos)} videos do not fit into one {args.format} document: give --output DIR.")
    if args.skip_existing and not args.output:
        return fail("--skip-existing needs --output DIR.")
    targets = output_files(args.videos, args.output, args.format) if args.output else {}
    videos = [video for video in args.videos if not (args.skip_existing and targets[video].exists())]
    if skipped := len(args.videos) - len(videos):
        print(f"{skipped} of {len(args.videos)} videos have their output already.", file=sys.stderr)
    if not videos:
        return 0
    pipe = load_pipeline(args)
    from tqdm import tqdm

    printed, reasons = {}, {}
    with tqdm(total=len(videos), desc="Captioning", unit="video") as progress:
        for start in range(0, len(videos), args.batch_size):
            batch = videos[start : start + args.batch_size]
            for video, events in caption_each(pipe, batch):
                if isinstance(events, Exception):
                    reasons[video] = reason_of(events)
                elif video in targets:
                    write_file(targets[video], render(events, args.format, video, args.output))
                else:
                    printed[video] = events
                progress.update()
    if len(args.videos) == 1:
        for video, events in printed.items():
            print(render(events, args.format, video), end="")
    elif not args.output:
        print(json.dumps(printed, ensure_ascii=False, indent=1))
    return report_failures(reasons, len(videos))


def caption_each(
    pipe: "DenseVideoCaptioningPipeline", videos: list[str]
) -> Iterator[tuple[str, list[dict] | Exception]]:
    """Each video with its events, or with what went wrong; if it is one of a batch, the others are done one by one."""
    try:
        results = pipe(videos, batch_size=len(videos))
    except Exception as error:  # whatever is wrong with one video, it must not end a run over thousands
        if len(videos) == 1:
            results = [error]
        else:
            results = [events for video in videos for _, events in caption_each(pipe, [video])]
    yield from zip(videos, results, strict=True)


def load_pipeline(args: argparse.Namespace) -> "DenseVideoCaptioningPipeline":
    """The pipeline of `--model` with the options of the command line.

    Raises:
        ValueError, OSError: no such model, or options that make no sense.
    """
    check_model_name(args.model)
    from transformers import pipeline

    if args.device:
        check_device(args.device)
    options = {name: getattr(args, name) for name in ("num_events", "localization", "frames_per_second")}
    options |= {"chunk_length_s": args.chunk_length, "stride_length_s": args.stride}
    given = {name: value for name, value in options.items() if value is not None}
    pipe = pipeline("dense-video-captioning", model=args.model, device=args.device, trust_remote_code=False, **given)
    if (args.localization or pipe.model.resolve_generation_config().localization) == "alignment":
        pipe.model.model.get_clip()
    elif args.frames_per_second:
        raise ValueError("--frames-per-second needs --localization alignment.")
    return pipe


def check_device(name: str) -> None:
    """Raise ValueError where torch has no such device."""
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a CPU build of torch asserts that it has CUDA
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error


# --- sail align ---------------------------------------------------------------------------------------------------


def run_align(args: argparse.Namespace) -> int:
    captions = read_captions(Path(args.captions))
    options = {name: getattr(args, name) for name in ("frames_per_second", "alignment", "gap_level")}
    events = load_clip_of(args).align(args.video, captions, **options)
    events.sort(key=lambda event: (event["start"], event["end"]))
    if args.output:
        (target,) = output_files([args.video], args.output, args.format).values()
        write_file(target, render(events, args.format, args.video, args.output))
    else:
        print(render(events, args.format, args.video), end="")
    return 0


def load_clip_of(args: argparse.Namespace) -> "SailClip":
    """The CLIP by `--clip`, or the one inside `--model`, on `--device`."""
    check_clip_name(args.clip) if args.clip else check_model_name(args.model)
    import torch

    from .clip_sail import load_clip
    from .modeling_sail import SailModel

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    clip = load_clip(args.clip) if args.clip else SailModel.from_pretrained(args.model).get_clip()
    return clip.to(device)


def read_captions(path: Path) -> list[str]:
    """Captions of a file: a JSON list of sentences if it ends in .json, else one a line.

    Raises:
        ValueError, OSError: the file is not of that form, empty, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    if path.suffix.lower() == ".json":
        try:
            captions = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON file: {error}") from error
        if not isinstance(captions, list) or not all(isinstance(item, str) and item.strip() for item in captions):
            raise ValueError(f"{path}: expected a JSON list of sentences, found {text.strip()[:60]!r}.")
    else:
        captions = [line.strip() for line in text.splitlines() if line.strip()]
    if not captions:
        raise ValueError(f"{path} holds no captions.")
    return captions


# --- outputs ------------------------------------------------------------------------------------------------------


def output_files(videos: list[str], folder: str, ending: str) -> dict[str, Path]:
    """A file in `folder` for each video, by the video's name.

    Raises:
        ValueError: two videos would have the same file.
    """
    files: dict[str, Path] = {}
    for video in videos:
        path = unquote(urlsplit(video).path) if is_url(video) else video
        file = Path(folder) / f"{Path(path).stem}.{ending}"
        for other, taken in files.items():
            if taken == file and other != video:
                raise ValueError(f"{other} and {video} would both be written to {file}: caption them one by one.")
        files[video] = file
    return files


def is_url(video: str) -> bool:
    return video.lower().startswith(("http://", "https://"))


def render(events: list[dict], ending: str, video: str, folder: str | None = None) -> str:
    """A document of the format `ending`; a page finds the video from `folder` (default: the working directory)."""
    from .visualization import format_html, format_srt, format_vtt

    if ending == "json":
        return json.dumps(events, ensure_ascii=False, indent=1) + "\n"
    if ending == "html":
        source = video if is_url(video) else quote(os.path.relpath(video, folder or os.curdir))
        return format_html(events, source, title=Path(video).stem)
    return {"srt": format_srt, "vtt": format_vtt}[ending](events)


def write_file(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def reason_of(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def report_failures(reasons: dict[str, str], total: int) -> int:
    """List what failed on the standard error. Returns the exit status."""
    if reasons:
        print(f"sail: {len(reasons)} of {total} videos failed:", file=sys.stderr)
        for video, reason in reasons.items():
            print(f"  {reason if reason.startswith(video) else f'{video}: {reason}'}", file=sys.stderr)
    return int(bool(reasons))


if __name__ == "__main__":
    sys.exit(main())
