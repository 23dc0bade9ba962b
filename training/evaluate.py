"""Score a system's files, ours or not, and print a table with controls beside it: what `sail score` does.

    python training/evaluate.py --predictions results.json --references val_1.json val_2.json --output scores.json

It only scores files. Everything that is wrong with one of them is said before anything is computed.
"""

import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from sail_hf.metric import METRICS
from sail_hf.scoring import format_scores, score_files


@dataclass
class EvaluateArguments:
    predictions: Path = HfArg(help="File of a system, or folder of files: of its videos, or of several systems.")
    references: list[str] = HfArg(help="Annotation files with time stamps; several are references of the same videos.")
    output: Path = HfArg(help="JSON file to write the scores to, as fractions.")
    protocol: Literal["2021", "2018"] = HfArg(default="2021", help="Unmatched: random token, or abc123!@#.")
    missing: Literal["zero", "skip"] = HfArg(default="zero", help="Videos without a prediction.")
    metrics: list[str] = HfArg(default_factory=lambda: list(METRICS), help=f"Any of {' '.join(METRICS)}; default all.")


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = HfArgumentParser(EvaluateArguments, description=__doc__.split("\n\n")[0])
    (args,) = parser.parse_args_into_dataclasses(arguments)
    try:
        scores = score_files(**asdict(args))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(format_scores(scores))
    print(f"\nWrote {args.output}")


if __name__ == "__main__":
    main()
