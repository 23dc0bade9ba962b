"""The command `sail`: captions for videos, and times for captions that are there already."""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from tqdm.auto import tqdm

from .data import find_video, find_videos

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
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    dash = "Names that start with a dash go last, after --."

    caption = commands.add_parser(
        "caption", help="describe the events of videos", description="Describe the events of videos.", epilog=dash
    )
    caption.set_defaults(run=run_caption)
    caption.add_argument("videos", nargs="+", metavar="VIDEO", help="video file or http(s) address")
    caption.add_argument("--model", required=True, help="folder or Hub name of a trained model")
    _add_output(caption, "default: the standard output")
    caption.add_argument("--skip-existing", action="store_true", help="leave videos whose output is there alone")
    caption.add_argument("--num-events", type=int, metavar="N", help="number of events (default: inferred)")
    caption.add_argument(
        "--localization", choices=("masks", "alignment"), help="how events are localised (default: as the model says)"
    )
    caption.add_argument(
        "--frames-per-second",
        type=_positive_float,
        metavar="N",
        help="with alignment: frames looked at for finer times (default: those that are captioned)",
    )
    caption.add_argument(
        "--chunk-length", type=float, metavar="SECONDS", help="caption longer videos in chunks of this length"
    )
    caption.add_argument(
        "--stride", type=float, metavar="SECONDS", help="overlap on each side of a chunk (default: a sixth of it)"
    )
    caption.add_argument("--batch-size", type=_positive_int, default=1, metavar="N", help="videos at a time")

    align = commands.add_parser(
        "align",
        help="find the times of captions that are there already",
        description="Find the times of captions that are there already: of one video (VIDEO and --captions), or of "
        "all videos of a data set (--dataset and --videos), which is written again with a column of timestamps.",
        epilog=dash,
    )
    align.set_defaults(run=run_align)
    align.add_argument("video", nargs="?", metavar="VIDEO", help="video file or http(s) address")
    align.add_argument("--captions", metavar="FILE", help="its captions in order: one a line, or a JSON list (.json)")
    align.add_argument("--dataset", metavar="DIR", help="data set with the columns video_id and captions")
    align.add_argument("--videos", metavar="DIR", help="folder of its videos, named by video_id")
    source = align.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder or Hub name of a SAIL model, whose CLIP is used")
    source.add_argument("--clip", help="open_clip model (ViT-L-14), hf-hub:org/repo or folder of a CLIP")
    _add_output(align, "default: the standard output; needed with --dataset, where it must not exist yet")
    align.add_argument(
        "--frames-per-second", type=_positive_float, default=2.0, metavar="N", help="frames looked at (default: 2)"
    )
    align.add_argument(
        "--alignment",
        choices=("ordered", "overlapping", "unordered"),
        default="ordered",
        help="captions in order without overlap (default), in order with overlap, or in any order",
    )
    align.add_argument(
        "--gap-level",
        type=float,
        default=0.0,
        metavar="X",
        help="higher leaves out more of what no caption fits (default: 0)",
    )
    return parser


def _add_output(parser: argparse.ArgumentParser, note: str) -> None:
    parser.add_argument("--format", choices=FORMATS, default="json", help="of the output (default: json)")
    parser.add_argument("--output", metavar="DIR", help=f"folder for a file per video ({note})")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


def _positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return value


def _positive_float(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
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
    printed, reasons = {}, {}
    with tqdm(total=len(videos), desc="Captioning", unit="video") as progress:
        for start in range(0, len(videos), args.batch_size):
            batch = videos[start : start + args.batch_size]
            for video, events in caption_each(pipe, batch, args.batch_size, args.frames_per_second):
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
    pipe: "DenseVideoCaptioningPipeline", videos: list[str], batch_size: int, frames_per_second: float | None
) -> Iterator[tuple[str, list[dict] | Exception]]:
    """Each video with its events, or with what went wrong; if it is one of a batch, the others are done one by one."""
    try:
        results = pipe(videos, batch_size=batch_size, frames_per_second=frames_per_second)
    except Exception as error:  # whatever is wrong with one video, it must not end a run over thousands
        if len(videos) == 1:
            results = [error]
        else:
            alone = (caption_each(pipe, [video], batch_size, frames_per_second) for video in videos)
            results = [events for pairs in alone for _, events in pairs]
    yield from zip(videos, results, strict=True)


def load_pipeline(args: argparse.Namespace) -> "DenseVideoCaptioningPipeline":
    """The pipeline of `--model` with the options of the command line.

    Raises:
        ValueError, OSError: no such model, or options that make no sense.
    """
    from transformers import pipeline

    check_model(args.model)
    if args.device:
        check_device(args.device)
    options = {
        "num_events": args.num_events,
        "localization": args.localization,
        "chunk_length_s": args.chunk_length,
        "stride_length_s": args.stride,
    }
    given = {name: value for name, value in options.items() if value is not None}
    pipe = pipeline("dense-video-captioning", model=args.model, device=args.device, **given)
    localization = args.localization or getattr(pipe.model.generation_config, "localization", "masks")
    if localization != "alignment" and args.frames_per_second:
        raise ValueError("--frames-per-second needs --localization alignment.")
    return pipe


def check_model(name: str) -> None:
    """Raise ValueError where `name` is no folder or Hub name of a SAIL model."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        where = "holds no model" if Path(name).is_dir() else "is no folder, and no model of that name could be loaded"
        raise ValueError(f"--model {name} {where}: {str(error).strip().splitlines()[0]}") from error
    if config.model_type != "sail":
        raise ValueError(f"--model {name} is a model of type {config.model_type!r}, expected 'sail'.")


def check_device(name: str) -> None:
    """Raise ValueError where torch has no such device."""
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a CPU build of torch asserts that it has CUDA
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error


# --- sail align ---------------------------------------------------------------------------------------------------


def run_align(args: argparse.Namespace) -> int:
    if not args.gap_level < math.inf:
        return fail(f"--gap-level must be a number, found {args.gap_level}.")
    of_dataset = [args.dataset, args.videos]
    if all(of_dataset) and args.output and not (args.video or args.captions):
        return align_dataset(args)
    if any(of_dataset) or not (args.video and args.captions):
        return fail("give VIDEO and --captions FILE, or --dataset DIR, --videos DIR and --output DIR.")
    from .pipeline_sail import align_captions

    captions = read_captions(Path(args.captions))
    events = align_captions(load_clip_of(args), args.video, captions, **_alignment_options(args))
    events.sort(key=lambda event: (event["start"], event["end"]))
    if args.output:
        (target,) = output_files([args.video], args.output, args.format).values()
        write_file(target, render(events, args.format, args.video, args.output))
    else:
        print(render(events, args.format, args.video), end="")
    return 0


def _alignment_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("frames_per_second", "alignment", "gap_level")}


def load_clip_of(args: argparse.Namespace) -> "SailClip":
    """The CLIP by `--clip`, or the one inside `--model`, on `--device`."""
    import torch

    from .clip_sail import load_clip
    from .modeling_sail import SailModel

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    if args.clip:
        return load_clip(args.clip).to(device)
    check_model(args.model)
    model = SailModel.from_pretrained(args.model)
    return model.get_clip().to(device)


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


def align_dataset(args: argparse.Namespace) -> int:
    """Write a data set again with the columns `timestamps` (seconds) and `timestamp_scores`, in the captions' order.

    Both are null where the video is missing or cannot be read; `skipped.json` says why. Finished videos are kept in
    OUTPUT.work.jsonl until the data set is complete, so that the same command goes on where it was stopped.
    """
    from datasets import DatasetDict, List, Value, load_dataset

    output = Path(args.output)
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another --output, or remove it.")
    dataset = load_dataset(args.dataset)
    for split, data in dataset.items():
        if missing := {"video_id", "captions"} - set(data.column_names):
            raise ValueError(f"{args.dataset}, split {split}: no column {', '.join(sorted(missing))}.")
    videos = find_videos(args.videos)
    aligner = DatasetAligner(args, videos, output.with_name(f"{output.name}.work.jsonl"))
    columns = {"timestamps": List(List(Value("float64"))), "timestamp_scores": List(Value("float64"))}
    temporary = output.with_name(f"{output.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    skipped, num_videos = {}, 0
    aligned = DatasetDict()
    for split, data in dataset.items():
        rows = data.select_columns(["video_id", "captions"])
        results = [aligner.align(row) for row in tqdm(rows, desc=f"Aligning {split}", unit="video")]
        bad = [result if isinstance(result, str) else None for result in results]
        ids = rows["video_id"]
        skipped[split] = [{"video_id": name, "reason": why} for name, why in zip(ids, bad, strict=True) if why]
        num_videos += len(rows)
        data = data.remove_columns([name for name in columns if name in data.column_names])
        for index, (name, feature) in enumerate(columns.items()):
            values = [None if isinstance(result, str) else result[index] for result in results]
            data = data.add_column(name, values, feature=feature)
        data.to_parquet(temporary / f"{split}-00000-of-00001.parquet")
        aligned[split] = data
    write_file(temporary / "skipped.json", json.dumps(skipped, ensure_ascii=False, indent=1))
    os.replace(temporary, output)
    aligner.journal.unlink(missing_ok=True)
    reasons = {f"{item['video_id']} ({split})": item["reason"] for split, items in skipped.items() for item in items}
    print(f"Wrote {output}: timestamps for the captions of {num_videos - len(reasons)} of {num_videos} videos.")
    return report_failures(reasons, num_videos)


class DatasetAligner:
    """Times of the captions of data set rows; those of finished videos are kept in a file."""

    def __init__(self, args: argparse.Namespace, videos: dict[str, Path], journal: Path):
        self.options = _alignment_options(args)
        self.videos = videos
        self.journal = journal
        self.name = args.clip or args.model
        self.clip = load_clip_of(args)
        self.done = dict(self._read())

    def _read(self) -> Iterator[tuple[str, tuple]]:
        lines = self.journal.read_text(encoding="utf-8").splitlines() if self.journal.exists() else []
        for line in lines:
            try:
                key, spans, scores = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            yield key, (spans, scores)

    def align(self, row: dict[str, Any]) -> tuple[list, list] | str:
        """Start and end in seconds of each caption and the scores, or why there are none."""
        from .pipeline_sail import align_captions

        video = find_video(self.videos, row["video_id"])
        if video is None:
            return "no such video file"
        status = video.stat()
        inputs = [self.name, self.options, row["video_id"], row["captions"], status.st_size, status.st_mtime_ns]
        key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:40]
        if key not in self.done:
            try:
                events = align_captions(self.clip, video, row["captions"], **self.options)
            except Exception as error:  # whatever is wrong with one video, it must not end a run over thousands
                return reason_of(error)
            spans = [[event["start"], event["end"]] for event in events]
            self.done[key] = (spans, [event["score"] for event in events])
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, *self.done[key]]) + "\n")
        return self.done[key]


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
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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
