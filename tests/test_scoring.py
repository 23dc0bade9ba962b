"""Scores at the end of training: those that training/evaluate.py gives for the same captions and reference files."""

import json

import pytest
from build_dataset import build_dataset
from datasets import Dataset, concatenate_datasets
from tiny import CAPTIONS, make_model, make_processor, make_rows

from sail_hf import SailDataCollator, SailTrainer, SailTrainingArguments
from sail_hf.scoring import reference_sets

TIMES = [[[0.0, 4.0], [4.0, 9.0], [8.0, 20.0]], [[0.0, 6.0], [5.0, 15.0]], [[1.0, 5.0]]]


@pytest.fixture(scope="module")
def processor():
    return make_processor()


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


def make_trainer(folder, processor, eval_dataset, processing_class="the processor", **arguments) -> SailTrainer:
    model = make_model(processor)
    model.generation_config.update(num_beams=1, max_new_tokens=6, full_max_new_tokens=16)
    defaults = {"captioning_epochs": 1, "localization_epochs": 0, "save_strategy": "no", "report_to": []}
    defaults |= {"disable_tqdm": True, "use_cpu": True, "score_at_end": True}
    return SailTrainer(
        model=model,
        args=SailTrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
        train_dataset=make_rows(),
        eval_dataset=eval_dataset,
        data_collator=SailDataCollator(processor),
        processing_class=processor if processing_class == "the processor" else processing_class,
    )


def test_reference_sets_of_a_data_set_are_those_of_its_files(data, files, evaluate_py):
    expected = evaluate_py.read_references(files)
    found = dict(zip(data["video_id"], reference_sets(list(data.remove_columns("video_features"))), strict=True))
    for video, sets in expected.items():
        # Only the files that have the video say how long it is.
        assert [{**one, "duration": 20.0} for one in sets] == found[video]
    assert found["video0"][0]["sentences"] == [] and found["video2"][1]["sentences"] == []


def test_scores_at_the_end_are_those_of_evaluate_py(data, files, evaluate_py, processor, tmp_path, capsys):
    trainer = make_trainer(tmp_path, processor, data)
    trainer.train()
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["num_videos"], scores["num_missing"]) == (3, 0) and scores["num_predictions"] >= 3
    command = ["--predictions", str(tmp_path / "results.json"), "--references", *files]
    evaluate_py.main([*command, "--output", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == scores
    logged = trainer.state.log_history[-1]
    assert {"eval_f1", "eval_meteor", "eval_soda_c", "eval_f1_three_spans"} <= logged.keys()
    assert logged["eval_f1"] == scores["f1"]
    assert "controls, which see no video" in printed and "METEOR" in printed


def test_model_and_captions_are_there_if_scoring_fails(data, processor, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("METEOR: Java printed nothing for 300 s")

    monkeypatch.setattr("sail_hf.metric.DenseVideoCaptioningMetric._compute", fail)
    with pytest.raises(RuntimeError, match="METEOR"):
        make_trainer(tmp_path, processor, data).train()
    assert (tmp_path / "model.safetensors").is_file()
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 3
    assert not (tmp_path / "scores.json").exists()


def test_rows_that_are_dicts_are_scored_too(processor, tmp_path, monkeypatch):
    monkeypatch.setattr("sail_hf.metric.find_java_tools", lambda: (_ for _ in ()).throw(ImportError("no Java")))
    rows = [
        {**row, "video_id": f"video{i}", "duration": 20.0, "timestamps": times}
        for i, (row, times) in enumerate(zip(make_rows(), TIMES, strict=True))
    ]
    trainer = make_trainer(tmp_path, processor, rows, captioning_epochs=0, score_at_end=False)
    scores = trainer.score()
    assert 0 <= scores["recall"] <= 1 and "meteor" not in scores
    assert set(json.loads((tmp_path / "results.json").read_text())["results"]) == {"video0", "video1", "video2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: None, "eval_dataset"),
        (lambda data: data.remove_columns(["duration", "timestamps"]), "columns duration, timestamps"),
        (
            lambda data: data.remove_columns("references").map(
                lambda row: {"timestamps": None if row["video_id"] == "video1" else row["timestamps"]}
            ),
            "1 of 3 videos have no `timestamps`, which scoring needs, e.g. video1",
        ),
        (
            lambda data: data.map(lambda row: {"duration": None if row["video_id"] == "video1" else 20.0}),
            "1 of 3 videos have no `duration`",
        ),
        (lambda data: {"one": data, "other": data}, "one `eval_dataset`"),
    ],
)
def test_what_cannot_be_scored_is_said_before_training(data, processor, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, processor, change(data))


def test_scoring_needs_the_processor(data, processor, tmp_path):
    with pytest.raises(ValueError, match="SailProcessor"):
        make_trainer(tmp_path, processor, data, processing_class=None)
