"""`sail app` as a Space, with the models that its README names."""

import sys

from huggingface_hub import SpaceCard

from sail_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", "--model", *SpaceCard.load("README.md").data.models, "--max-upload", "200"]))
