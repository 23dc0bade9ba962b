"""`sail score`: how good the events are that a system found."""

from argparse import Namespace
from pathlib import Path

from .cli_videos import check_writable
from .scoring import format_scores, score_files


def run(args: Namespace) -> int:
    """Print the table and write the scores. Returns the exit status."""
    for path in (args.predictions, *(name.partition("#")[0] for name in args.references)):
        if not Path(path).exists():
            raise ValueError(f"There is no file or folder {path}.")
    if args.output:
        check_writable(Path(args.output).parent)
    options = {"metrics": args.metrics} if args.metrics else {}
    scores = score_files(
        args.predictions, args.references, args.output, protocol=args.protocol, missing=args.missing, **options
    )
    print(format_scores(scores))
    if args.output:
        print(f"\nWrote {args.output}")
    return 0
