"""The recipes in the folder above, which the scripts of this folder call."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import ablate  # noqa: E402
import build_dataset  # noqa: E402
import caption_frames  # noqa: E402
import extract_features  # noqa: E402
import fit_event_counter  # noqa: E402
import grounding_annotations  # noqa: E402
import train  # noqa: E402

__all__ = [
    "ablate",
    "build_dataset",
    "caption_frames",
    "extract_features",
    "fit_event_counter",
    "grounding_annotations",
    "train",
]
