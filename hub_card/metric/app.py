"""The metric to try out: predictions and references as JSON, one list entry a video."""

import json
from pathlib import Path

import evaluate
import gradio

METRIC = str(Path(__file__).with_name("dense_video_captioning.py"))
PREDICTIONS = [
    [{"timestamp": [0.0, 4.0], "sentence": "A man runs."}, {"timestamp": [4.0, 9.0], "sentence": "He sits."}]
]
REFERENCES = [
    {"timestamps": [[0.0, 5.0], [5.0, 9.5]], "sentences": ["A man is running.", "He sits down."], "duration": 10.0}
]


def score(predictions: str, references: str) -> dict:
    """All scores, or a sentence that says what is wrong."""
    try:
        given = {"predictions": json.loads(predictions), "references": json.loads(references)}
        return evaluate.load(METRIC).compute(**given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise gradio.Error(str(error), print_exception=False) from error


demo = gradio.Interface(
    score,
    [
        gradio.Code(json.dumps(PREDICTIONS, indent=1), language="json", label="predictions"),
        gradio.Code(json.dumps(REFERENCES, indent=1), language="json", label="references"),
    ],
    gradio.JSON(label="scores"),
    title="Dense video captioning",
    description=evaluate.load(METRIC).description,
    flagging_mode="never",
    analytics_enabled=False,
    api_name="score",
)

if __name__ == "__main__":
    demo.launch()
