"""Events and references as the metric takes them."""


def event(start: float, end: float, sentence: str = "A man runs.") -> dict:
    return {"timestamp": [start, end], "sentence": sentence}


def reference(*events: dict, duration: float | None = None) -> dict:
    spans, sentences = [e["timestamp"] for e in events], [e["sentence"] for e in events]
    return {"timestamps": spans, "sentences": sentences, "duration": duration}
