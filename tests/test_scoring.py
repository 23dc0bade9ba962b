"""Scores in training: those that training/evaluate.py gives for the same captions and reference files."""

import json
from pathlib import Path

import pytest
import torch
from build_dataset import build_dataset
from datasets import Dataset, concatenate_datasets
from tiny import CAPTIONS, make_model, make_rows
from transformers import EarlyStoppingCallback

from sail_hf import SailDataCollator, SailForDenseVideoCaptioning, SailTrainer, SailTrainingArguments
from sail_hf.data import read_annotations, reference_sets

TIMES = [[[0.0, 4.0], [4.0, 9.0], [8.0, 20.0]], [[0.0, 6.0], [5.0, 15.0]], [[1.0, 5.0]]]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Two reference files: the first lacks the first video, the second the last."""
    videos = {
        f"video{i}": {"duration": 20.0, "timestamps": times, "sentences": captions}
        for i, (times, captions) in enumerate(zip(TIMES, CAPTIONS, strict=True))
    }
    folder = tmp_path_factory.mktemp("references")
    wider = {
        video: {**row, "timestamps": [[start, end + 0.4] for start, end in row["timestamps"]]}
        for video, row in videos.items()
    }
    for name, rows, left_out in (("val_1", videos, "video0"), ("val_2", wider, "video2")):
        content = {video: row for video, row in rows.items() if video != left_out}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return [str(folder / "val_1.json"), str(folder / "val_2.json")]


@pytest.fixture(scope="module")
def data(files) -> Dataset:
    """The files as a data set with features, as training/extract_features.py makes it."""
    rows = build_dataset({"validation": files})["validation"]
    by_id = {f"video{i}": row for i, row in enumerate(make_rows())}
    columns = ("video_features", "caption_features", "transition_features")
    features = [{name: by_id[video][name].tolist() for name in columns} for video in rows["video_id"]]
    return concatenate_datasets([rows.remove_columns("transitions"), Dataset.from_list(features)], axis=1)


def make_trainer(
    folder, processor, eval_dataset, cls=SailTrainer, processing_class="the processor", callbacks=None, **arguments
) -> SailTrainer:
    model = make_model(processor)
    model.generation_config.update(num_beams=1, max_new_tokens=6, full_max_new_tokens=16)
    defaults = {"captioning_epochs": 1, "localization_epochs": 0, "save_strategy": "no", "report_to": []}
    defaults |= {"disable_tqdm": True, "use_cpu": True, "predict_with_generate": True}
    return cls(
        model=model,
        args=SailTrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
        train_dataset=make_rows(),
        eval_dataset=eval_dataset,
        data_collator=SailDataCollator(processor),
        processing_class=processor if processing_class == "the processor" else processing_class,
        callbacks=callbacks,
    )


def test_reference_sets_of_a_data_set_are_those_of_its_files(data, files):
    expected = reference_sets(read_annotations(files))
    assert reference_sets(list(data.remove_columns("video_features"))) == expected
    assert list(expected) == ["video1", "video2", "video0"]
    assert expected["video0"][0]["sentences"] == [] and expected["video2"][1]["sentences"] == []
    assert [one["duration"] for one in expected["video1"]] == [20.0, 20.0]


def test_reference_files_of_one_name_are_two_sets(files, tmp_path):
    (tmp_path / "val_1.json").write_text(Path(files[1]).read_text())
    sets = reference_sets(read_annotations([files[0], str(tmp_path / "val_1.json")]))
    assert [len(one["sentences"]) for one in sets["video1"]] == [2, 2]
    assert sets["video1"][0]["timestamps"] != sets["video1"][1]["timestamps"]


def test_scores_are_those_of_evaluate_py(data, files, evaluate_py, processor, tmp_path):
    trainer = make_trainer(tmp_path, processor, data)
    metrics = trainer.evaluate()
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["num_videos"], scores["num_missing"]) == (3, 0) and scores["num_predictions"] >= 3
    command = ["--predictions", str(tmp_path / "results.json"), "--references", *files]
    evaluate_py.main([*command, "--output", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == scores
    assert {"eval_loss", "eval_f1", "eval_cider", "eval_soda_c", "eval_f1_three_spans"} <= metrics.keys()
    assert metrics["eval_f1"] == scores["f1"] and trainer.state.log_history[-1]["eval_meteor"] == scores["meteor"]


def test_the_best_model_is_chosen_by_a_score_and_training_stops_early(data, processor, tmp_path):
    values = iter([0.2, 0.5, 0.4, 0.3])

    class Trainer(SailTrainer):
        def _score(self, *args):
            return {"f1": next(values), "protocol": "2021", "lift": None}

    trainer = make_trainer(
        tmp_path,
        processor,
        data,
        Trainer,
        captioning_epochs=6,
        eval_strategy="epoch",
        save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model="f1",
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    assert trainer.state.global_step == 4 and trainer.state.best_metric == 0.5
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = SailForDenseVideoCaptioning.from_pretrained(trainer.state.best_model_checkpoint)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, best.get_parameter(name)), name


def test_captions_are_there_if_scoring_fails(data, processor, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("METEOR: Java printed nothing for 300 s")

    monkeypatch.setattr("sail_hf.metric.DenseVideoCaptioningMetric._compute", fail)
    with pytest.raises(RuntimeError, match="METEOR"):
        make_trainer(tmp_path, processor, data).evaluate()
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 3
    assert not (tmp_path / "scores.json").exists()


def test_rows_that_are_dicts_are_scored_too(processor, tmp_path, monkeypatch):
    monkeypatch.setattr("sail_hf.metric.find_java_tools", lambda: (_ for _ in ()).throw(ImportError("no Java")))
    rows = [
        {**row, "video_id": f"video{i}", "duration": 20.0, "timestamps": times}
        for i, (row, times) in enumerate(zip(make_rows(), TIMES, strict=True))
    ]
    metrics = make_trainer(tmp_path, processor, {"one": rows[:2], "other": rows}).evaluate()
    assert 0 <= metrics["eval_one_recall"] <= 1 and "eval_other_f1" in metrics and "eval_one_meteor" not in metrics
    assert set(json.loads((tmp_path / "one_results.json").read_text())["results"]) == {"video0", "video1"}
    assert set(json.loads((tmp_path / "other_results.json").read_text())["results"]) == {"video0", "video1", "video2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: None, "eval_dataset"),
        (lambda data: data.remove_columns(["duration", "timestamps"]), "columns duration, timestamps"),
        (
            lambda data: data.remove_columns("references").map(
                lambda row: {"timestamps": None if row["video_id"] == "video1" else row["timestamps"]}
            ),
            "1 of 3 videos have no time stamps to score against, e.g. video1",
        ),
        (
            lambda data: data.map(lambda row: {"duration": None if row["video_id"] == "video1" else 20.0}),
            "1 of 3 videos have none, e.g. video1",
        ),
        (lambda data: {"one": data, "other": data.select([])}, "no empty one"),
        (lambda data: data.to_iterable_dataset(), "no streaming one"),
        (lambda data: concatenate_datasets([data, data]), "6 rows have 3 ids"),
    ],
)
def test_what_cannot_be_scored_is_said_before_training(data, processor, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, processor, change(data))


def test_scoring_needs_the_processor(data, processor, tmp_path):
    with pytest.raises(ValueError, match="SailProcessor"):
        make_trainer(tmp_path, processor, data, processing_class=None)


@pytest.mark.parametrize(
    ("metrics", "error", "words"), [(["rouge"], ValueError, "rouge_l"), (["meteor"], ImportError, "no Java")]
)
def test_scores_that_cannot_be_computed_are_said_before_training(
    data, processor, tmp_path, monkeypatch, metrics, error, words
):
    monkeypatch.setattr(
        "sail_hf.metric_captions.find_java_tools", lambda: (_ for _ in ()).throw(ImportError("no Java"))
    )
    with pytest.raises(error, match=words):
        make_trainer(tmp_path, processor, data, eval_metrics=metrics)
    scores = make_trainer(tmp_path, processor, data, eval_metrics=["localization"]).evaluate()
    assert "eval_f1" in scores and "eval_lift" not in scores
