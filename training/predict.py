"""Caption a data set with stored features and write ActivityNet's submission form.

python training/predict.py --model FOLDER --dataset DATASET_DIR --split validation --output results.json
"""

from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from transformers import AutoProcessor, HfArgumentParser
from transformers.hf_argparser import HfArg

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.data import CAPTIONED_COLUMNS, submission, write_json
from sail_hf.trainer import caption_dataset


@dataclass
class PredictArguments:
    model: str = HfArg(help="Folder or name of a trained model.")
    dataset: str = HfArg(help="Folder or name of a data set with video_features (extract_features.py).")
    output: Path = HfArg(help="JSON file to write.")
    split: str = HfArg(default="validation", help="Split to caption.")
    batch_size: int = HfArg(default=8, help="Videos at a time.")


def predict(args: PredictArguments) -> None:
    """Caption every row of the split and write the submission."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SailForDenseVideoCaptioning.from_pretrained(args.model).to(device).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    data = datasets.load_dataset(args.dataset, split=args.split).select_columns(list(CAPTIONED_COLUMNS))
    results = caption_dataset(model, processor, data.with_format("numpy"), args.batch_size)
    write_json(args.output, submission(results))


def main() -> None:
    (args,) = HfArgumentParser(PredictArguments, description=__doc__).parse_args_into_dataclasses()
    predict(args)
    print(
        f"Wrote {args.output}. Next:\n  python training/evaluate.py --predictions {args.output} --references FILE.json"
    )


if __name__ == "__main__":
    main()
