"""The command `sail`: captions for videos, times for captions, stretches that fit a sentence, and scores."""

import argparse
import math
import sys
from importlib import import_module

from . import __version__
from .export import FORMATS


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's).

    Returns:
        The exit status: 0, 1 where something failed, 2 for a command that makes no sense, 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        # Nothing heavy is imported before a command needs it.
        return import_module(args.module, __package__).run(args)
    except OSError as error:
        # The system's own errors read "[Errno 2] No such file or directory: 'captions.txt'".
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except (ValueError, ImportError, RuntimeError) as error:
        return fail(str(error), 1)
    except KeyboardInterrupt:
        return fail("interrupted", 130)


def fail(message: str, status: int) -> int:
    print(f"sail: error: {message}", file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sail", description=__doc__)
    parser.add_argument("--version", action="version", version=f"sail {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, about: str, epilog: str | None = None) -> argparse.ArgumentParser:
        form = argparse.RawDescriptionHelpFormatter
        made = commands.add_parser(
            name, help=about, description=f"{about.capitalize()}.", epilog=epilog, formatter_class=form
        )
        made.set_defaults(module=f".cli_{name}")
        return made

    formats = "formats:\n" + "\n".join(f"  {name:<13} {form.about} (.{form.ending})" for name, form in FORMATS.items())
    dash = "Names that start with a dash go last, after --.\n\n"
    _add_caption(command("caption", "describe the events of videos", dash + formats))
    _add_align(command("align", "find the times of captions that are there already", dash + formats))
    _add_find(command("find", "find the stretches of videos that fit a sentence", dash + formats))
    _add_score(command("score", "score the events that a system found, ours or any other"))
    _add_app(command("app", "do all of it in a browser"))
    command("doctor", "tell what is installed here, and what is missing for which feature")
    return parser


# --- Arguments of each command ------------------------------------------------------------------------------------

_VIDEOS = "video file, folder, quoted pattern, @list.txt or http(s) address"


def _add_caption(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="+", metavar="VIDEO", help=_VIDEOS)
    add("--model", required=True, help="folder or Hub name of a trained model")
    _add_output(parser)
    _add_device(parser)
    text = "of the model's weights (default: as they are stored)"
    add("--dtype", choices=("float32", "bfloat16", "float16"), help=text)
    add("--skip-existing", action="store_true", help="leave videos whose output is there alone")
    add("--num-events", type=int, metavar="N", help="number of events (default: inferred)")
    add(
        "--localization",
        choices=("masks", "cohesion", "alignment"),
        help="how events are localised (default: as the model says)",
    )
    text = "where the words are seen, too: in json, and in html under the pointer (of a model with a grounding head)"
    add("--grounding", action="store_true", help=text)
    text = "with alignment: frames looked at for finer times (default: those that are captioned)"
    add("--frames-per-second", type=_positive_float, metavar="N", help=text)
    text = "also print the captions of the model's bank that each event leaned on, with their CLIP cosines"
    add("--explain", action="store_true", help=text)
    text = (
        "caption longer videos in chunks of this length, 0: none (default: as long as videos that the model learned)"
    )
    add("--chunk-length", type=float, metavar="SECONDS", help=text)
    add("--stride", type=float, metavar="SECONDS", help="overlap on each side of a chunk (default: a sixth of it)")
    add("--batch-size", type=_positive_int, default=1, metavar="N", help="videos, or chunks of long ones, at a time")


def _add_align(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("video", metavar="VIDEO", help=f"{_VIDEOS}; several need captions by video")
    text = (
        "its captions in order: one a line, .srt, .vtt, .json, .csv, or what a language model wrote; for several videos a "
        "file with the column video, or a folder with a file named as each video"
    )
    add("--captions", metavar="FILE", required=True, help=text)
    _add_clip(parser)
    _add_output(parser)
    text = (
        "captions in order without overlap (default), in order with overlap, in any order, or in order and drawn towards "
        "equal shares as far as the frames leave it open"
    )
    add("--alignment", choices=("ordered", "overlapping", "unordered", "expected"), default="ordered", help=text)
    text = "higher leaves out more of what no caption fits (default: 0)"
    add("--gap-level", type=_number, default=0.0, metavar="X", help=text)
    add("--compare", action="store_true", help="tell how far the times were off that the captions came with")


def _add_find(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = f"{_VIDEOS}; or a data set of extract_features.py (folder or .parquet), whose features are searched"
    add("videos", nargs="+", metavar="VIDEO", help=text)
    add("query", metavar="SENTENCE", help='what to find, such as "a man lifts the bar"')
    add("--also", action="append", default=[], metavar="SENTENCE", help="a further sentence, any number of times")
    _add_clip(parser)
    _add_output(parser, "a list to read")
    add("--top-k", type=_positive_int, default=5, metavar="N", help="most stretches for a sentence (default: 5)")
    text = "keep what CLIP saw of each video here, and use it the next time"
    add("--features", metavar="FOLDER", help=text)
    text = "cut the stretches out into this folder, without encoding where the key frames allow"
    add("--clips", metavar="FOLDER", help=text)


def _add_score(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = (
        "file of a system's events (ActivityNet's submission, JSON, CSV, what language models write), folder with a file "
        "for each video (also .srt, .vtt, .txt), or folder of such systems, for a row each"
    )
    add("predictions", metavar="PREDICTIONS", help=text)
    text = "annotation file with times; several are references of the same videos"
    add("references", nargs="+", metavar="REFERENCES", help=text)
    add("--output", metavar="FILE", help="JSON file for the scores, as fractions")
    add(
        "--protocol",
        choices=("2021", "2018"),
        default="2021",
        help="unmatched: a random token (default), or abc123!@#",
    )
    add("--missing", choices=("zero", "skip"), default="zero", help="videos without a prediction (default: zero)")
    text = "any of localization, controls, meteor, cider, rouge_l, bleu, soda_c; with commas (default: all)"
    add("--metrics", type=lambda names: names.split(","), metavar="NAMES", help=text)


def _add_app(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", nargs="+", required=True, help="folders or Hub names of trained models to choose from")
    _add_device(parser)
    add("--host", metavar="NAME", help="0.0.0.0 serves other machines as well (default: this one alone)")
    add("--port", type=_positive_int, metavar="N", help="(default: the first that is free from 7860 on)")
    text = "MB of an upload at most (default: 500)"
    add("--max-upload", type=_positive_int, default=500, metavar="MB", help=text)


def _add_clip(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder or Hub name of a SAIL model, whose CLIP is used")
    source.add_argument("--clip", help="open_clip model (ViT-L-14), hf-hub:org/repo or folder of a CLIP")
    _add_device(parser)
    text = "frames looked at in a second of video (default: 2)"
    parser.add_argument("--frames-per-second", type=_positive_float, default=2.0, metavar="N", help=text)


def _add_output(parser: argparse.ArgumentParser, default: str = "json") -> None:
    text = f"of the output, several with commas, or all (default: as --output ends, else {default})"
    parser.add_argument("--format", type=_formats, metavar="NAMES", help=text)
    text = "folder for a file per video, or file (default: the standard output)"
    parser.add_argument("--output", metavar="PATH", help=text)
    parser.add_argument("--embed", action="store_true", help="with html: the page holds the video, of at most 20 MB")
    text = "with html: a copy of a video that is no MP4 with H.264, beside the page, which every browser plays"
    parser.add_argument("--transcode", action="store_true", help=text)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: a GPU if there is one)")
    chatter = parser.add_mutually_exclusive_group()
    chatter.add_argument("--quiet", action="store_true", help="no progress and no notes, errors alone")
    chatter.add_argument("--verbose", action="store_true", help="what the libraries print as well")


def _formats(text: str) -> list[str]:
    names = list(FORMATS) if text == "all" else list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"expected all or some of {', '.join(FORMATS)}; found {unknown[0]!r}")
    return names


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


if __name__ == "__main__":
    sys.exit(main())
