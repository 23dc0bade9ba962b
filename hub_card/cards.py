"""Fills the cards of models and data sets from what is measured: the saved model, its scores, the Parquet files."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from pyarrow import parquet

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parent / "training"))

from augment_captions import PROMPT_DIGEST, SYSTEM_PROMPT, USER_PROMPT  # noqa: E402

from sail_hf.chunking import SECONDS_A_FRAME  # noqa: E402
from sail_hf.context_sail import SENTENCES_FILE  # noqa: E402
from sail_hf.loss_sail import LOSSES  # noqa: E402

TASK = "dense-video-captioning"
TAGS = [TASK, "weakly-supervised", "video", "video-captioning", "sail"]

# Names in scores.json (fractions), as papers call them.
SCORES = {
    "soda_c": "SODA_c",
    "meteor": "METEOR",
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "recall": "Recall",
    "precision": "Precision",
    "f1": "F1",
}
CONTROLS = {
    "f1_whole_video": "one span over the whole video",
    "f1_three_spans": "the same three spans for every video",
    "f1_equal_spans": "equal spans, as many as this model predicts",
    "f1_equal_spans_1.5": "the same, 1.5 times as wide",
}

COLUMNS = {
    "video_id": "name of the video",
    "duration": "length of the video in seconds",
    "captions": "N sentences, in order",
    "timestamps": "[start, end] of each caption in seconds; for evaluation only",
    "references": "captions and time stamps of every reference file, where there are several",
    "transitions": "N-1 sentences between them",
    "transition_edits": "names of the cleaning rules that changed each transition, empty for most",
    "transition_attempts": "answers asked for until one was usable",
    "llm": "language model that wrote the transitions",
    "llm_revision": "its commit",
    "prompt_digest": "digest of the prompts",
    "seed": "seed of the run",
    "video_features": "CLIP image projections of T frames, not normalised",
    "caption_features": "CLIP text projections of the captions",
    "transition_features": "CLIP text projections of the transitions",
    "frame_captions": "a caption of each of the T frames",
    "frame_captioner": "model that wrote them",
    "frame_captioner_revision": "its revision",
    "frame_prompt": "what it was asked",
    "frame_caption_features": "CLIP text projections of the captions of frames",
}
EDITS = {
    "thinking": "a block of reasoning taken out",
    "lines": "more than one line, of which one was kept",
    "markup": "Markdown taken off",
    "label": 'a label such as "Caption:" taken off',
    "quotes": "quotation marks taken off",
    "cut": "cut off at the length limit, back to the last whole sentence",
    "broken": "cut off at the length limit within its first sentence, the last word dropped",
}


def read_scores(path: str | Path) -> dict:
    """Scores that `training/evaluate.py` wrote.

    Raises:
        ValueError: the file lacks what makes numbers comparable, or holds percentages.
    """
    scores = json.loads(Path(path).read_text(encoding="utf-8"))
    missing = {"protocol", "missing", "num_videos", "num_predictions", "num_missing", "f1"} - set(scores)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: expected what training/evaluate.py writes")
    above = [name for name in SCORES if name != "cider" and (scores.get(name) or 0) > 1]
    if above:
        raise ValueError(f"{path}: {above[0]} is {scores[above[0]]}: expected fractions, not percentages")
    return scores


@dataclass(frozen=True)
class Stated:
    """What a person states of a model, since nothing measures it.

    Args:
        license, license_name: As the Hub spells it, and the name of one that is `"other"`.
        evaluated_on, trained_on: Names of data, for people.
        dataset: Name on the Hub of the data set that it was trained on.
        base_model: Names on the Hub of what it started from; a CLIP of the Hub is added by itself.
    """

    license: str = "other"
    license_name: str | None = None
    evaluated_on: str | None = None
    trained_on: str | None = None
    dataset: str | None = None
    base_model: Sequence[str] = ()


def model_card(
    folder: Path,
    repo_id: str,
    config,
    num_parameters: int,
    scores: dict | None = None,
    stated: Stated = Stated(),
) -> ModelCard:
    """The card of a model.

    Args:
        folder: What training saved; its `trainer_state.json`, if there is one, tells steps and epochs.
        config: The model's [`SailConfig`].
        scores: Of [`read_scores`]; they fill the card's `model-index`.

    Raises:
        ValueError: there are scores, but not what they were measured on.
    """
    if scores and not stated.evaluated_on:
        raise ValueError("say what the scores were measured on: --evaluated_on 'ActivityNet Captions, validation'")
    measured = {SCORES[name]: f"{100 * scores[name]:.2f}" for name in SCORES if (scores or {}).get(name) is not None}
    state_file = folder / "trainer_state.json"
    state = json.loads(state_file.read_text(encoding="utf-8")) if state_file.exists() else {}
    return ModelCard.from_template(
        model_card_data(repo_id, config, scores, stated),
        template_path=str(FOLDER / "model_card.md.jinja"),
        repo_id=repo_id,
        name=repo_id.split("/")[-1],
        config=config,
        num_parameters=num_parameters,
        chunk_length=f"{config.chunk_length_s or SECONDS_A_FRAME * config.num_frames:g}",
        sentences_file=SENTENCES_FILE,
        losses={loss.name: weight for loss in LOSSES if (weight := loss.weight_in(config))},
        scores=scores,
        measured=measured,
        controls={
            text: f"{100 * scores[name]:.2f}"
            for name, text in CONTROLS.items()
            if (scores or {}).get(name) is not None
        },
        evaluated_on=stated.evaluated_on,
        trained_on=stated.trained_on or stated.dataset,
        steps=state.get("global_step"),
        epochs=round(state.get("epoch") or 0, 2),
    )


def model_card_data(repo_id: str, config, scores: dict | None, stated: Stated) -> ModelCardData:
    clip = config.vision_config.clip if config.vision_config else ""
    of_hub = [clip.removeprefix("hf-hub:")] if clip.startswith("hf-hub:") else []
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=stated.dataset or "unknown",
            dataset_name=stated.evaluated_on,
            metric_type=name,
            metric_name=f"{SCORES[name]} ({scores['protocol']} protocol, missing videos: {scores['missing']})",
            metric_value=scores[name],
        )
        for name in SCORES
        if scores and scores.get(name) is not None
    ]
    return ModelCardData(
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
        language="en",
        **license_data(stated.license, stated.license_name),
        base_model=list(dict.fromkeys([*stated.base_model, *of_hub])) or None,
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=TAGS,
        datasets=[stated.dataset] if stated.dataset else None,
        metrics=[name for name in SCORES if scores and scores.get(name) is not None] or None,
    )


def license_data(license: str, name: str | None) -> dict[str, str]:
    """Fields of a card; the Hub wants a name where the licence is none that it knows."""
    return {"license": license, **({"license_name": name or "unnamed"} if license == "other" else {})}


def dataset_card(
    folder: Path, repo_id: str, license: str = "other", license_name: str | None = None, source: str | None = None
) -> DatasetCard:
    """The card of a folder of Parquet files; each sub-folder that holds some is a config, the top one `default`.

    Args:
        source: Where the captions come from, for people.
    """
    splits = find_splits(folder)
    tables = {key: read_text(files) for key, files in splits.items()}
    statistics = [split_statistics(*key, rows) for key, rows in tables.items()]
    provenance = [entry for key, rows in tables.items() for entry in split_provenance(*key, rows)]
    edits = Counter(rule for rows in tables.values() for row in rows for rule in row_rules(row))
    digests = {entry["prompt_digest"] for entry in provenance}
    return DatasetCard.from_template(
        dataset_card_data(
            folder,
            splits,
            license_data(license, license_name),
            sum(row["videos"] for row in statistics),
            bool(provenance),
        ),
        template_path=str(FOLDER / "dataset_card.md.jinja"),
        repo_id=repo_id,
        name=repo_id.split("/")[-1],
        configs=list(dict.fromkeys(config for config, _ in splits)),
        statistics=statistics,
        columns=describe_columns([files[0] for files in splits.values()]),
        source=source,
        license=license_name or license,
        provenance=provenance,
        edits=dict(edits.most_common()),
        edit_meanings=EDITS,
        prompts=[SYSTEM_PROMPT, USER_PROMPT] if PROMPT_DIGEST in digests else None,
        prompt_digest=PROMPT_DIGEST,
    )


def dataset_card_data(
    folder: Path, splits: dict[tuple[str, str], list[Path]], license: dict, num_rows: int, augmented: bool
) -> DatasetCardData:
    configs: dict[str, list[dict]] = {}
    for (config, split), files in splits.items():
        pattern = f"{files[0].parent.relative_to(folder).as_posix()}/{split}-*.parquet".removeprefix("./")
        configs.setdefault(config, []).append({"split": split, "path": pattern})
    sizes = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"]
    return DatasetCardData(
        language="en",
        **license,
        annotations_creators=["found", "machine-generated"] if augmented else ["found"],
        task_categories=["video-text-to-text"],
        tags=TAGS,
        size_categories=sizes[min(max(len(str(num_rows)) - 3, 0), 4)],
        configs=[
            {"config_name": config, "data_files": files, **({"default": True} if i == 0 else {})}
            for i, (config, files) in enumerate(configs.items())
        ],
    )


def find_splits(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Parquet files of each (config, split), `train` first.

    Raises:
        ValueError: there are none.
    """
    splits: dict[tuple[str, str], list[Path]] = {}
    files = [*folder.glob("*-*.parquet"), *folder.glob("*/*-*.parquet")]
    order = {"train": 0, "validation": 1, "test": 2}
    for file in sorted(files, key=lambda f: (f.parent, order.get(f.name.split("-")[0], 3), f.name)):
        config = "default" if file.parent == folder else file.parent.name
        splits.setdefault((config, file.name.split("-")[0]), []).append(file)
    if not splits:
        raise ValueError(f"{folder} holds no Parquet files such as train-00000-of-00001.parquet")
    return splits


def read_text(files: list[Path]) -> list[dict]:
    """Rows of a split without features."""
    names = [name for name in parquet.read_schema(files[0]).names if not name.endswith("_features")]
    return [row for file in files for row in parquet.read_table(file, columns=names).to_pylist()]


def describe_columns(files: list[Path]) -> list[tuple[str, str, str]]:
    """(name, type, meaning) of every column of the files."""
    types = {field.name: str(field.type) for file in files for field in parquet.read_schema(file)}
    for name, type_name in types.items():
        type_name = type_name.replace("element: ", "").replace("item: ", "").replace("extension<", "<")
        types[name] = "array of float16" if name.endswith("_features") else type_name
    return [(cell(name), cell(type_name), COLUMNS.get(name, "")) for name, type_name in types.items()]


def cell(value) -> str:
    """A data set's own text in a table of Markdown: no HTML, no links, no further cells."""
    return " ".join(str(value).split()).translate({ord(sign): f"&#{ord(sign)};" for sign in "&<>|[]`"})


def split_statistics(config: str, split: str, rows: list[dict]) -> dict:
    captions = [caption for row in rows for caption in row["captions"]]
    transitions = [text for row in rows for text in row.get("transitions") or []]
    hours = sum(row["duration"] or 0 for row in rows) / 3600
    return {
        "config": cell(config),
        "split": cell(split),
        "videos": len(rows),
        "captions": len(captions),
        "captions_per_video": f"{len(captions) / len(rows):.1f}",
        "words_per_caption": mean_words(captions),
        "pairs": len(captions) - len(rows),
        "transitions": len(transitions),
        "words_per_transition": mean_words(transitions),
        "hours": f"{hours:.1f}" if all(row["duration"] for row in rows) else "not stated",
    }


def mean_words(texts: list[str]) -> str:
    return f"{sum(len(text.split()) for text in texts) / len(texts):.1f}" if texts else "-"


def split_provenance(config: str, split: str, rows: list[dict]) -> list[dict]:
    """An entry for each LLM, prompt and seed that transitions of a split come from."""
    origins: dict[tuple, list[dict]] = {}
    for row in rows:
        if row.get("transitions"):
            origin = tuple(row.get(name) for name in ("llm", "llm_revision", "seed", "prompt_digest"))
            origins.setdefault(origin, []).append(row)
    entries = []
    for (llm, revision, seed, prompt), found in origins.items():
        count = sum(len(row["transitions"]) for row in found)
        cleaned = sum(bool(edits) for row in found for edits in row.get("transition_edits") or [])
        retried = sum(attempts > 1 for row in found for attempts in row.get("transition_attempts") or [])
        entry = {"config": config, "split": split, "llm": llm, "llm_revision": revision, "seed": seed}
        entry |= {"prompt_digest": prompt}
        entry = {name: value if value is None else cell(value) for name, value in entry.items()}
        entry |= {"transitions": count}
        entry |= {"cleaned": f"{cleaned} ({cleaned / count:.1%})", "retried": f"{retried} ({retried / count:.1%})"}
        entries.append(entry)
    return entries


def row_rules(row: dict) -> list[str]:
    return [cell(rule) for edits in row.get("transition_edits") or [] for rule in edits.split()]
