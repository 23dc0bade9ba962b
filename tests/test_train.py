"""training/train.py on a small data set folder: arguments, a whole run, resuming, and two processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import predict
import pytest
import torch
import train
import yaml
from datasets import Dataset
from tiny import make_rows
from training_data import length_of_most
from training_place import make_place, write_split
from transformers import GPT2LMHeadModel, pipeline

from sail_hf import SailForDenseVideoCaptioning, SailProcessor
from sail_hf.clip_sail import load_clip

ROOT = Path(__file__).parents[1]
LOCALIZATION = {"loss_full", "loss_positive", "loss_negative", "loss_similarity", "loss_augmentation"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, parts) -> Path:
    return make_place(tmp_path_factory.mktemp("train"), parts)


@pytest.fixture(scope="module")
def run(place) -> Path:
    """The output folder of a whole run with validation."""
    arguments = ["--validation_split", "validation", "--predict_with_generate", "true"]
    train.main([str(place / "tiny.yaml"), "--output_dir", str(place / "run"), *arguments])
    return place / "run"


def logs_of(folder: Path) -> list[dict]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(SailForDenseVideoCaptioning.from_pretrained(folder).named_parameters())


def assert_same_run(found: Path, expected: Path) -> None:
    logs, wanted = logs_of(found), logs_of(expected)
    assert len(logs) == len(wanted)
    for entry, other in zip(logs, wanted, strict=True):
        names = {name for name in other if name.startswith("loss") or name == "learning_rate"}
        assert names <= entry.keys()
        for name in names:
            assert entry[name] == pytest.approx(other[name], rel=1e-4), name
    weights = weights_of(expected)
    for name, weight in weights_of(found).items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=2e-5)


# --- arguments ----------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_yaml_file(place):
    model, data, training = train.parse_arguments(
        [str(place / "tiny.yaml"), "--output_dir", "x", "--num_queries", "9", "--method", "ilcacm"]
        + ["--learning_rate", "5e-4", "--model_config", '{"dropout": 0.3}', "--resume", "false"]
    )
    assert (model.num_frames, model.num_queries, model.method) == (8, 9, "ilcacm")
    assert model.model_config == {"dropout": 0.3} and model.generation_config["max_new_tokens"] == 6
    assert (training.learning_rate, training.per_device_train_batch_size) == (5e-4, 6)
    assert (data.dataset, data.resume) == (str(place / "data"), False)


def test_arguments_without_a_yaml_file():
    model, data, training = train.parse_arguments(["--dataset", "d", "--output_dir", "x", "--use_cpu", "true"])
    assert (data.dataset, data.split, data.resume) == ("d", "train", True)
    assert (model.decoder, model.clip, model.num_frames, model.method) == (None, None, None, None)
    assert training.num_train_epochs == 20 and training.eval_metrics is None
    words = ["--dataset", "d", "--output_dir", "x", "--use_cpu", "true", "--eval_metrics", "localization", "cider"]
    assert train.parse_arguments(words)[2].eval_metrics == ["localization", "cider"]


@pytest.mark.parametrize(
    "name, values",
    [
        ("activitynet", {"num_frames": 32, "num_queries": 14, "learning_rate": 1e-4, "num_train_epochs": 20}),
        ("youcook2", {"num_frames": 100, "num_queries": 18, "learning_rate": 5e-5, "num_train_epochs": 20}),
        ("../playground/playground", {"method": "sail", "decoder_from_scratch": True}),
    ],
)
def test_the_configs_of_the_repository_are_read(name, values):
    parts = train.parse_arguments([str(ROOT / "training" / "configs" / f"{name}.yaml"), "--use_cpu", "true"])
    found = {key: value for part in parts for key, value in vars(part).items()}
    assert {key: found[key] for key in values} == values


@pytest.mark.parametrize(
    "content, arguments, words",
    [
        ("colour: red\nlearning_rate: 1\n", [], "unknown fields: colour"),
        ("- a\n- b\n", [], "fields and values"),
        ("a: [1\n", [], "YAML"),
        ("dataset: d\n", ["--colour", "red"], "colour"),
        ("dataset: d\n", ["--learning_rate", "fast"], "fast"),
        ("dataset: d\nmodel_config: '{dropout'\n", [], "model_config"),
        ("num_frames: 8\n", [], "--dataset"),
        ("dataset: d\n", ["--num_train_epochs", "3"], "add up to 20"),
    ],
)
def test_arguments_that_are_wrong_are_one_message(tmp_path, capsys, content, arguments, words):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises((SystemExit, ValueError)) as error:
        train.parse_arguments([str(path), "--output_dir", str(tmp_path), "--use_cpu", "true", *arguments])
    assert words in f"{error.value}{capsys.readouterr().err}"


def test_a_yaml_file_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.parse_arguments([str(tmp_path / "no.yaml")])
    assert "no.yaml is not a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--model_config", '{"dropuot": 0.2}'], "dropuot"),
        (["--generation_config", '{"beams": 2}'], "beams"),
        (["--method", "nonsense"], "nonsense"),
    ],
)
def test_unknown_fields_of_model_and_generation_are_named(place, tmp_path, arguments, words):
    with pytest.raises(SystemExit, match=words):
        train.main([str(place / "tiny.yaml"), "--output_dir", str(tmp_path), *arguments])


# --- the data set -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, column, words",
    [
        ("sail", "video_features", "video_features.*extract_features"),
        ("sail", "captions", "captions"),
        ("sail", "caption_features", "caption_features"),
        ("sail", "transition_features", "transition_features"),
        ("sail-synth-hn", "transition_features", "transition_features"),
        ("sail-align", "caption_features", "caption_features"),
        ("sbs", "frame_caption_features", "frame_caption_features.*caption_frames"),
    ],
)
def test_a_column_that_the_method_needs_is_missed_before_training(place, tmp_path, method, column, words):
    write_split(tmp_path / "data", "train", make_rows(), leave_out=(column,))
    arguments = ["--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run"), "--method", method]
    with pytest.raises(SystemExit, match=words):
        train.main([str(place / "tiny.yaml"), *arguments])


def test_a_method_needs_no_more_than_its_columns(place, tmp_path):
    left_out = ("caption_features", "transition_features", "timestamps", "duration")
    write_split(tmp_path / "data", "train", make_rows(), leave_out=left_out)
    arguments = ["--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run"), "--method", "ilcacm"]
    trainer = train.main([str(place / "tiny.yaml"), *arguments, "--captioning_epochs", "0", "--save_strategy", "no"])
    assert {"loss_positive", "loss_diversity"} <= trainer.state.log_history[0].keys()


def test_scoring_needs_a_split_to_score(place, tmp_path):
    with pytest.raises(SystemExit, match="--validation_split"):
        train.main([str(place / "tiny.yaml"), "--output_dir", str(tmp_path), "--predict_with_generate", "true"])


WEIGHTS = ["similarity", "augmentation", "diversity", "alignment"]


@pytest.fixture
def go_on(place, run, tmp_path):
    """Trains on from the finished run, with other arguments; returns the new folder and the trainer."""
    fields = yaml.safe_load((place / "tiny.yaml").read_text())
    kept = {name: value for name, value in fields.items() if name not in (*train.BROUGHT, "model_config")}
    (tmp_path / "on.yaml").write_text(yaml.safe_dump({**kept, "save_strategy": "no", "captioning_epochs": 0}))

    def call(*arguments):
        words = ["--model_name_or_path", str(run), "--output_dir", str(tmp_path / "on"), *arguments]
        return tmp_path / "on", train.main([str(tmp_path / "on.yaml"), *words])

    return call


@pytest.mark.parametrize(
    ("arguments", "weights", "method", "generator"),
    [
        (["--method", "sail-align"], [1, 0.25, 0, 1], "sail-align", "progress"),
        (["--method", "ilcacm", "--mask_type", "cauchy"], [0, 0, 1, 0], "ilcacm", "queries"),
        (
            ["--model_config", '{"alignment_loss_weight": 0.5, "similarity_loss_weight": 0.0}'],
            [0, 0.25, 0, 0.5],
            "custom",
            "queries",
        ),
    ],
)
def test_a_trained_model_goes_on_with_another_method(go_on, arguments, weights, method, generator):
    folder, trainer = go_on(*arguments)
    wanted = {f"loss_{name}" for name, weight in zip(WEIGHTS, weights, strict=True) if weight}
    assert wanted <= trainer.state.log_history[0].keys()
    config = SailForDenseVideoCaptioning.from_pretrained(folder).config
    assert [getattr(config, f"{name}_loss_weight") for name in WEIGHTS] == weights
    assert (config.method, config.mask_generator) == (method, generator)
    assert config.mask_type == ("cauchy" if "cauchy" in arguments else "gaussian")


@pytest.mark.parametrize(
    ("fields", "idle"),
    [
        ({}, "initializer_range, position_initializer_range"),
        ({"mask_generator": "progress"}, "position_initializer_range"),  # which is new, and has the other
    ],
)
def test_initial_values_of_weights_that_are_there_are_said_to_change_nothing(run, fields, idle, capsys):
    ranges = {"initializer_range": 0.5, "position_initializer_range": 0.5}
    train.go_on_from(train.ModelArguments(model_name_or_path=str(run), model_config={**ranges, **fields}))
    assert capsys.readouterr().out.startswith(f"{idle}: initial values")


def test_of_a_trained_model_generation_and_text_tower_may_change(go_on, run):
    assert SailForDenseVideoCaptioning.from_pretrained(run).model.text_tower is None
    folder, _ = go_on("--generation_config", '{"num_beams": 2}', "--include_text_tower", "true", "--num_queries", "4")
    model = SailForDenseVideoCaptioning.from_pretrained(folder)
    assert (model.generation_config.num_beams, model.generation_config.max_new_tokens) == (2, 6)
    clip = load_clip(model.config.vision_config.clip)
    found = model.model.text_tower.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in clip.model.text.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model_config", '{"encoder_layers": 2}'], "Other sizes .*video_encoder"),
        (["--num_queries", "9"], "Other sizes .*mask_generator"),
        (["--method", "best"], "'best'"),
        (["--model_config", '{"method": "sail"}'], "SailConfig has not: method"),
        (["--generation_config", '{"beams": 2}'], "unknown fields: beams"),
    ],
)
def test_a_trained_model_keeps_its_weights(go_on, arguments, words, monkeypatch):
    monkeypatch.setattr(train, "extract_features", None)  # nothing may be computed
    with pytest.raises(SystemExit, match=words):
        go_on(*arguments)


@pytest.mark.parametrize("name", train.BROUGHT)
def test_what_a_trained_model_brings_is_refused(name):
    value = {"num_frames": 8, "decoder_from_scratch": True}.get(name, "x")
    with pytest.raises(ValueError, match=f"brings its own --{name}: leave"):
        train.ModelArguments(model_name_or_path="run", **{name: value})


def test_captions_without_transitions_are_refused_before_features_are_extracted(place, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "extract_features", None)
    (tmp_path / "captions.csv").write_text("video,caption\na,A dog runs.\na,It sleeps.\n")
    fields = yaml.safe_load((place / "tiny.yaml").read_text())
    del fields["dataset"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(fields))
    arguments = [
        "--videos",
        str(tmp_path),
        "--captions",
        str(tmp_path / "captions.csv"),
        "--output_dir",
        str(tmp_path),
    ]
    with pytest.raises(SystemExit, match="needs the column transition_features"):
        train.main([str(tmp_path / "own.yaml"), *arguments])


def test_nothing_but_captions_and_features_reaches_training(place):
    columns = train.load_split(str(place / "data"), "train", train.COLUMNS).column_names
    features = {"video_features", "caption_features", "transition_features", "frame_caption_features"}
    assert set(columns) == {"video_id", "captions", *features}


def test_a_split_or_folder_that_is_not_there(place, tmp_path):
    with pytest.raises((SystemExit, ValueError), match="nosplit"):
        train.load_split(str(place / "data"), "nosplit", train.COLUMNS)
    with pytest.raises((SystemExit, FileNotFoundError), match="nowhere"):
        train.load_split(str(tmp_path / "nowhere"), "train", train.COLUMNS)


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_folder_that_captions(run):
    logs = logs_of(run)
    assert [{name for name in entry if name.startswith("loss_")} for entry in logs] == [{"loss_full"}] * 2 + [
        LOCALIZATION
    ] * 2
    assert logs[-1]["loss_full"] < logs[0]["loss_full"]
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 4
    model = SailForDenseVideoCaptioning.from_pretrained(run)
    assert model.generation_config.max_new_tokens == 6 and model.config.dropout == 0
    assert SailProcessor.from_pretrained(run).video_processor.num_frames == 8
    frames = torch.randint(0, 255, (10, 40, 40, 3), dtype=torch.uint8)
    events = pipeline("dense-video-captioning", model=str(run))(frames, fps=5, num_events=2)
    assert len(events) == 2 and all(0 <= event["start"] <= event["end"] <= 2 for event in events)


def test_a_checkpoint_from_before_a_field_came_takes_it(run, tmp_path):
    old = shutil.copytree(run, tmp_path / "old", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((old / "generation_config.json").read_text())
    del config["repeat_level"]
    (old / "generation_config.json").write_text(json.dumps(config))
    arguments = ["--model_name_or_path", str(old), "--generation_config", '{"repeat_level": 0.5}', "--use_cpu", "true"]
    arguments += ["--dataset", str(run.parent / "dataset"), "--output_dir", str(tmp_path / "new")]
    model, _ = train.build_model(train.parse_arguments(arguments)[0])
    assert model.generation_config.repeat_level == 0.5


def test_chunks_are_as_long_as_the_videos_that_were_learned(place, run, tmp_path):
    """Those of 10 s, unless the configuration says otherwise. Where no duration is known, nothing is."""
    assert SailForDenseVideoCaptioning.from_pretrained(run).config.chunk_length_s == pytest.approx(11.0)
    arguments = [str(place / "tiny.yaml"), "--output_dir", str(tmp_path / "run")]
    said = train.make_trainer(*train.parse_arguments([*arguments, "--model_config", '{"chunk_length_s": 4}']))
    assert said.model.config.chunk_length_s == 4
    write_split(tmp_path / "data", "train", make_rows(), leave_out=("duration",))
    unknown = train.make_trainer(*train.parse_arguments([*arguments, "--dataset", str(tmp_path / "data")]))
    assert unknown.model.config.chunk_length_s is None


def test_an_outlier_does_not_make_chunks_longer(tmp_path):
    """The second longest of 2,000 videos, and the longest of few."""
    for count, expected in ((2000, 2000.0), (10, 9999.0)):
        durations = [float(second + 1) for second in range(count)][:-1] + [9999.0]
        rows = {"duration": [None, *durations], "captions": [["A."]] * (count + 1)}
        (folder := tmp_path / str(count)).mkdir()
        Dataset.from_dict(rows).to_parquet(folder / "train-00000-of-00001.parquet")
        assert length_of_most(str(folder), "train") == expected - (count == 2000)


def test_the_playground_says_that_it_knows_nothing_else():
    config = ROOT / "training" / "playground" / "playground.yaml"
    fields = train.configured(config, use_cpu=True)[0].config_fields()
    assert fields["knows_only"] == "the rendered world of the playground"


def test_predict_py_writes_what_evaluation_wrote(place, run, tmp_path):
    predict.predict(predict.PredictArguments(str(run), str(place / "data"), tmp_path / "results.json"))
    found, expected = (json.loads((folder / "results.json").read_text())["results"] for folder in (tmp_path, run))
    assert found.keys() == expected.keys()
    for video, events in found.items():
        assert [event["sentence"] for event in events] == [event["sentence"] for event in expected[video]]


@pytest.mark.parametrize("form", ["numbers", "submission"])
def test_predict_py_takes_stored_counts(place, run, tmp_path, form):
    counts = {"video0": 1, "video1": 3, "video2": 2, "elsewhere": 1}
    stored = counts if form == "numbers" else {"results": {video: [{}] * n for video, n in counts.items()}}
    (tmp_path / "counts.json").write_text(json.dumps(stored))
    arguments = {
        "dataset": str(place / "data"),
        "output": tmp_path / "results.json",
        "counts": tmp_path / "counts.json",
    }
    predict.predict(predict.PredictArguments(str(run), **arguments))
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {video: len(events) for video, events in results.items()} == {"video0": 1, "video1": 3, "video2": 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not a JSON file"),
        ("[1]", "a JSON object of video ids"),
        ('{"video0": 0}', "at least 1 each"),
        ('{"video0": 2, "video2": 2}', "no number for 1 of 3 videos, e.g. video1"),
    ],
)
def test_counts_that_cannot_be_used_are_an_error(place, run, tmp_path, content, words):
    (tmp_path / "counts.json").write_text(content)
    arguments = {
        "dataset": str(place / "data"),
        "output": tmp_path / "results.json",
        "counts": tmp_path / "counts.json",
    }
    with pytest.raises(ValueError, match=words):
        predict.predict(predict.PredictArguments(str(run), **arguments))
    assert not (tmp_path / "results.json").exists()


def test_the_pretrained_parts_are_in_the_result(place, parts, tmp_path):
    """With no step taken, the decoder's and the CLIP's weights are what the folders hold."""
    arguments = ["--output_dir", str(tmp_path), "--learning_rate", "0", "--weight_decay", "0", "--save_strategy", "no"]
    train.main([str(place / "tiny.yaml"), *arguments, "--include_text_tower", "true"])
    model = SailForDenseVideoCaptioning.from_pretrained(tmp_path)
    decoder = GPT2LMHeadModel.from_pretrained(parts["decoder"])
    wanted = decoder.transformer.wte.weight
    assert torch.equal(model.decoder.transformer.wte.weight[: len(wanted)], wanted)
    assert torch.equal(model.decoder.transformer.h[0].mlp.c_fc.weight, decoder.transformer.h[0].mlp.c_fc.weight)
    clip = load_clip(parts["clip"])
    for tower, original in [(model.model.vision_tower, clip.model.visual), (model.model.text_tower, clip.model.text)]:
        found = tower.state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in original.state_dict().items())


def test_a_run_that_was_cut_off_goes_on(place, run, tmp_path):
    """After the first stage the run stops; started again with the same command, it ends as if it had not."""
    output = tmp_path / "run"
    shutil.copytree(run / "checkpoint-2", output / "checkpoint-2")
    # Killed while it wrote the next checkpoint.
    (output / "checkpoint-3").mkdir()
    shutil.copy(run / "checkpoint-2" / "config.json", output / "checkpoint-3")
    trainer = train.main([str(place / "tiny.yaml"), "--output_dir", str(output)])
    assert trainer.state.global_step == 4
    assert_same_run(output, run)


def test_two_processes_give_the_single_process_run(place, run):
    """`accelerate launch` on two CPU processes of 3 videos each: losses, parts and weights of one process of 6."""
    output = place / "two-processes"
    # Without --multi_gpu, `accelerate launch` starts one process on a machine that has no GPU, whatever the number.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    arguments = ["training/train.py", str(place / "tiny.yaml"), "--output_dir", str(output)]
    arguments += ["--per_device_train_batch_size", "3", "--save_strategy", "no", "--validation_split", "validation"]
    arguments += ["--predict_with_generate", "true"]
    result = subprocess.run(
        [*launch, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("Saved") == 1
    assert_same_run(output, run)
    # Each process captioned a share of the three videos.
    assert result.stderr.count("2/2") and result.stderr.count("1/1")
    assert (output / "results.json").read_text() == (run / "results.json").read_text()
    assert (output / "scores.json").read_text() == (run / "scores.json").read_text()


def test_time_warp_keeps_frames_in_order_and_leaves_the_rest_alone():
    frames = np.arange(20, dtype=np.float32)[:, None]
    row = {"captions": ["A.", "B."], "video_features": frames, "frame_caption_features": 10 * frames}
    warped = train.TimeWarped([row], strength=0.7)
    draws = []
    for epoch in range(20):
        warped.epoch.fill_(epoch)
        draws.append(warped[0])
    for draw in draws:
        frames = draw["video_features"][:, 0]
        assert len(frames) == 20 and frames[0] == 0 and frames[-1] == 19
        assert (np.diff(frames) >= 0).all()
        assert (draw["frame_caption_features"][:, 0] == 10 * frames).all()
        assert draw["captions"] == row["captions"]
    assert len({tuple(draw["video_features"][:, 0]) for draw in draws}) > 10
    # Drawn by epoch, row and seed, whatever was drawn before.
    warped.epoch.fill_(3)
    again, other = warped[0]["video_features"], train.TimeWarped([row], strength=0.7, seed=1)
    other.epoch.fill_(3)
    assert (again == draws[3]["video_features"]).all() and (other[0]["video_features"] != again).any()
    assert (train.TimeWarped([row], strength=0.0)[0]["video_features"] == row["video_features"]).all()
