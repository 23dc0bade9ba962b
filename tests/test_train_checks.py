"""What training/train.py says before the first step: features and model, a dry run, parts of other kinds and sizes."""

import json
from pathlib import Path

import pytest
import torch
import train
import yaml
from tiny import make_clip, make_rows
from training_place import make_place, write_split
from transformers import AutoModelForCausalLM, AutoTokenizer

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.clip_sail import load_clip

CONFIGS = Path(__file__).parents[1] / "training" / "configs"


@pytest.fixture(scope="module")
def place(tmp_path_factory, parts):
    return make_place(tmp_path_factory.mktemp("checks"), parts)


def rows_of(num_frames=8, size=24):
    """Twelve videos with other features than `make_rows`."""
    rows = [row for seed in range(4) for row in make_rows(seed)]
    generator = torch.Generator().manual_seed(0)
    for row in rows:
        for name, count in (("video", num_frames), ("caption", len(row["captions"]))):
            row[f"{name}_features"] = torch.randn(count, size, generator=generator)
        row["transition_features"] = torch.randn(len(row["captions"]) - 1, size, generator=generator)
        row["frame_caption_features"] = torch.randn(num_frames, size, generator=generator)
    return rows


def run(place, tmp_path, *arguments):
    return train.main(
        [str(place / "tiny.yaml"), "--output_dir", str(tmp_path / "run"), "--save_strategy", "no", *arguments]
    )


# --- features and model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [4, 12])
def test_another_number_of_frames_than_the_models_is_an_error(place, tmp_path, num_frames):
    write_split(tmp_path / "data", "train", rows_of(num_frames))
    sentence = (
        f"split train, holds features of {num_frames} frames, and the model takes 8 .*--num_frames {num_frames}.*"
        "training/extract_features.py .* --num_frames 8"
    )
    with pytest.raises(SystemExit, match=sentence):
        run(place, tmp_path, "--dataset", str(tmp_path / "data"))
    write_split(tmp_path / "other", "train", make_rows())
    with pytest.raises(SystemExit, match=f"holds features of 8 frames, and the model takes {num_frames}"):
        run(place, tmp_path, "--dataset", str(tmp_path / "other"), "--num_frames", str(num_frames))


def test_validation_is_looked_at_too(place, tmp_path):
    write_split(tmp_path / "data", "train", make_rows())
    write_split(tmp_path / "data", "validation", rows_of(4))
    with pytest.raises(SystemExit, match="split validation, holds features of 4 frames"):
        run(place, tmp_path, "--dataset", str(tmp_path / "data"), "--validation_split", "validation")


def test_features_of_another_clip_are_an_error(place, parts, tmp_path):
    write_split(tmp_path / "data", "train", rows_of(size=16))
    with pytest.raises(
        SystemExit, match=f"video_features of size 16, and the model takes 24 .*--clip {parts['clip']}"
    ):
        run(place, tmp_path, "--dataset", str(tmp_path / "data"))


def test_a_trained_model_meets_its_own_kind_of_features(place, tmp_path):
    run(place, tmp_path)
    fields = yaml.safe_load((place / "tiny.yaml").read_text())
    kept = {name: value for name, value in fields.items() if name not in (*train.BROUGHT, "model_config")}
    (tmp_path / "on.yaml").write_text(yaml.safe_dump(kept))
    write_split(tmp_path / "data", "train", rows_of(4))
    words = ["--model_name_or_path", str(tmp_path / "run"), "--dataset", str(tmp_path / "data")]
    with pytest.raises(SystemExit, match="features of 4 frames, and the model takes 8"):
        train.main([str(tmp_path / "on.yaml"), "--output_dir", str(tmp_path / "on"), *words])


@pytest.mark.parametrize(
    "column", ["video_features", "caption_features", "transition_features", "frame_caption_features"]
)
def test_a_feature_that_is_not_finite_names_its_video(place, tmp_path, column):
    rows = rows_of()
    rows[3][column][0, 5], rows[7][column][0, 0] = torch.nan, torch.inf
    write_split(tmp_path / "data", "train", rows)
    with pytest.raises(SystemExit, match=f"{column} that are not finite .*, of video3, video7\\."):
        run(place, tmp_path, "--dataset", str(tmp_path / "data"))


# --- captions -----------------------------------------------------------------------------------------------------


def test_captions_past_max_captions_are_left_out_and_counted(place, tmp_path, capsys):
    trainer = run(place, tmp_path, "--max_captions", "2", "--max_steps", "2")
    assert "4 of 12 videos have more than 2 captions: the rest is left out." in capsys.readouterr().out
    batch = trainer.data_collator(make_rows())
    assert batch["num_events"].tolist() == [2, 2, 1] and batch["caption_features"].shape[1] == 2


@pytest.mark.parametrize(("form", "word"), [("sail", "NASA"), ("ilcacm", "nasa")])
def test_the_form_of_sentences(place, tmp_path, form, word):
    trainer = run(place, tmp_path, "--sentence_form", form, "--max_steps", "2")
    labels = trainer.processing_class.caption_labels(["They visit NASA"])["event_labels"][0]
    assert word in trainer.processing_class.tokenizer.decode(labels)
    saved = json.loads((tmp_path / "run" / "processor_config.json").read_text())
    assert saved["sentence_form"] == form


# --- parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_decoder_stored_in_half_precision_trains_in_float32(place, parts, tmp_path, dtype):
    decoder = AutoModelForCausalLM.from_pretrained(parts["decoder"]).to(dtype)
    decoder.save_pretrained(tmp_path / "decoder")
    AutoTokenizer.from_pretrained(parts["decoder"]).save_pretrained(tmp_path / "decoder")
    assert json.loads((tmp_path / "decoder" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    trainer = run(place, tmp_path, "--decoder", str(tmp_path / "decoder"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and losses[3] < losses[2]
    model = SailForDenseVideoCaptioning.from_pretrained(tmp_path / "run")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [512, 640, 1024])
def test_clips_of_other_sizes_train_at_the_defaults(place, tmp_path, size):
    make_clip(tmp_path / "clip", embed_dim=size)
    write_split(tmp_path / "data", "train", rows_of(size=size)[:3])
    words = ["--clip", str(tmp_path / "clip"), "--dataset", str(tmp_path / "data"), "--model_config", "{}"]
    trainer = run(place, tmp_path, *words, "--max_steps", "2", "--per_device_train_batch_size", "3")
    assert trainer.model.config.feature_size == size
    layer = trainer.model.model.mask_generator.layers[0]
    assert layer.cross_attn.q_proj.out_features == size and trainer.state.log_history[-2]["loss_positive"] > 0


def test_the_tag_of_the_weights_reaches_open_clip(place, parts, tmp_path, monkeypatch):
    asked = []

    def loaded(name, *args, **kwargs):
        asked.append((name, args, kwargs))
        return load_clip(parts["clip"])

    monkeypatch.setattr(train, "load_clip", loaded)
    run(place, tmp_path, "--clip", "ViT-B-32", "--pretrained", "laion2b_s34b_b79k", "--max_steps", "2")
    assert asked == [("ViT-B-32", (), {"pretrained": "laion2b_s34b_b79k"})]


# --- dry run ------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_run_does(place, tmp_path, capsys, monkeypatch):
    arguments = ["--max_captions", "2", "--localization_epochs", "2", "--per_device_train_batch_size", "5"]
    with monkeypatch.context() as context:
        context.setattr(train, "train", None)
        run(place, tmp_path, *arguments, "--dry_run", "true")
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    for words in [
        "12 videos, 20 captions, 1 to 2 a video",
        "4 videos have one caption",
        "left out: 4 captions past the first 2 of their videos, 0 videos",
        "Method: sail, mask generator queries, masks gaussian, T = 8 frames, K = 4 queries, D = 24",
        "first stage: 1 full\n",
        "second stage: 1 full + 1 positive + 1 negative + 1 similarity + 0.25 augmentation\n",
        "9 steps of 5 videos, 3 an epoch",
        "first stage: 3 steps (1 epochs)",
        "second stage: 6 steps (2 epochs), 1 update a step",
        "Nothing was trained.",
    ]:
        assert words in said, said
    trainer = run(place, tmp_path, *arguments)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 9 and sum("loss_positive" in entry for entry in logs) == 6


@pytest.mark.parametrize("more", [[], ["--dry_run", "true"]])
def test_a_stage_without_a_step_is_one_sentence(place, tmp_path, more):
    with pytest.raises(SystemExit, match="`localization_epochs` is 0.1, but none of the 3 steps falls to that stage"):
        run(place, tmp_path, "--localization_epochs", "0.1", "--max_steps", "3", *more)


def test_a_dry_run_lists_what_extraction_left_out(place, tmp_path, capsys):
    write_split(tmp_path / "data", "train", make_rows())
    skipped = {
        "train": [{"video_id": "v1", "reason": "no video file"}],
        "validation": [{"video_id": "v2", "reason": "x"}],
    }
    (tmp_path / "data" / "skipped.json").write_text(json.dumps(skipped))
    run(place, tmp_path, "--dataset", str(tmp_path / "data"), "--dry_run", "true")
    said = capsys.readouterr().out
    assert "1 videos\n    v1: no video file\n" in said and "v2" not in said


def test_a_dry_run_extracts_nothing(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "extract_features", None)
    (tmp_path / "a.mp4").touch()
    (tmp_path / "captions.csv").write_text("video,caption\na,A dog runs.\na,It sleeps.\nb,A man sings.\n")
    fields = yaml.safe_load((place / "tiny.yaml").read_text())
    del fields["dataset"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(fields))
    own = ["--videos", str(tmp_path), "--captions", str(tmp_path / "captions.csv"), "--method", "ilcacm"]
    train.main([str(tmp_path / "own.yaml"), "--output_dir", str(tmp_path / "run"), *own, "--dry_run", "true"])
    said = capsys.readouterr().out
    assert (
        "1 videos, 2 captions, 2 to 2 a video" in said and "b: no video file in" in said and "Method: ilcacm" in said
    )


# --- configurations -----------------------------------------------------------------------------------------------

PAPER = {
    "clip": "ViT-L-14",
    "decoder": "distilbert/distilgpt2",
    "method": "sail",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 8,
    "updates_per_batch": "one",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_grad_norm": 1.0,
}
CLAIMS = {
    "activitynet": {"num_frames": 32, "num_queries": 14, "learning_rate": 1e-4, "captioning_epochs": 10, "localization_epochs": 10},
    "youcook2": {"num_frames": 100, "num_queries": 18, "learning_rate": 5e-5, "captioning_epochs": 5, "localization_epochs": 15},
    "ilcacm_activitynet": {
        "method": "ilcacm",
        "num_frames": 32,
        "num_queries": 16,
        "max_captions": 12,
        "sentence_form": "ilcacm",
        "updates_per_batch": "two",
        "model_config": {"position_initializer_range": 1.0, "mask_input_dropout": 0.1, "joint_full_loss_weight": 0.0},
    },
}  # fmt: skip


def test_every_configuration_makes_a_claim():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == CLAIMS.keys()


@pytest.mark.parametrize("name", CLAIMS)
def test_a_configuration_gives_what_it_claims(name):
    parts = train.parse_arguments([str(CONFIGS / f"{name}.yaml"), "--use_cpu", "true"])
    found = {key: value for part in parts for key, value in vars(part).items()}
    wanted = {**PAPER, **CLAIMS[name]}
    assert {key: found[key] for key in wanted} == wanted


def test_ilcacms_configuration_trains_as_its_code(place, tmp_path):
    """With small parts: what the model, the processor and the first step of the second stage are."""
    fields = yaml.safe_load((CONFIGS / "ilcacm_activitynet.yaml").read_text())
    small = yaml.safe_load((place / "tiny.yaml").read_text())
    fields["model_config"].update({**small.pop("model_config"), "dropout": 0.1})
    kept = ("method", "sentence_form", "max_captions", "updates_per_batch", "model_config")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**fields, **small, **{name: fields[name] for name in kept}}))
    trainer = train.main(
        [
            str(tmp_path / "x.yaml"),
            "--output_dir",
            str(tmp_path / "run"),
            "--gradient_accumulation_steps",
            "2",
            "--per_device_train_batch_size",
            "3",
        ]
    )
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    parts = [{name for name in entry if name.startswith("loss_")} for entry in logs]
    assert parts == [{"loss_full"}] * 2 + [{"loss_positive", "loss_negative", "loss_diversity"}] * 2
    config = SailForDenseVideoCaptioning.from_pretrained(tmp_path / "run").config
    assert (config.method, config.position_initializer_range, config.mask_input_dropout) == ("ilcacm", 1.0, 0.1)
    assert trainer.processing_class.sentence_form == "ilcacm"
