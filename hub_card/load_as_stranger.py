"""Loads a model the way its card says, without this package, and prints what it makes of a random video, as JSON.

python hub_card/load_as_stranger.py FOLDER_OR_NAME [REVISION]
"""

import json
import sys

import torch
from transformers import Pipeline, pipeline

TASK = "dense-video-captioning"


def sample_outputs(pipe: Pipeline) -> list[dict]:
    """Events of a fixed random video, or of random features for a model without CLIP."""
    generator = torch.Generator().manual_seed(0)
    config = pipe.model.config
    if config.vision_config is not None:
        frames = torch.randint(0, 256, (config.num_frames, 48, 64, 3), dtype=torch.uint8, generator=generator)
        return pipe(frames.numpy(), fps=1.0, generate_kwargs={"num_beams": 1})
    features = torch.randn(1, config.num_frames, config.feature_size, generator=generator)
    outputs = pipe.model.generate(video_features=features.to(pipe.device), num_beams=1)
    return pipe.processor.post_process_dense_captioning(outputs, durations=[1.0])[0]


if __name__ == "__main__":
    # An installed copy must not stand in for the code that was pushed.
    sys.modules["sail_hf"] = None
    revision = sys.argv[2] if len(sys.argv) > 2 else None
    print(json.dumps(sample_outputs(pipeline(TASK, model=sys.argv[1], revision=revision, trust_remote_code=True))))
