"""Resuming: what a checkpoint belongs to, whether it is whole, and exactness with changes of speed."""

import json
import shutil

import pytest
import run_folder
import torch
import train
from tiny import make_rows
from training_place import make_place, write_split
from transformers import TrainerCallback

from sail_hf import SailForDenseVideoCaptioning

# Four steps, a checkpoint at each; frames change speed, and weights drop out.
STEPS = ["--save_strategy", "steps", "--save_steps", "1", "--time_warp", "0.7"]
DROPOUT = (
    '{"dropout": 0.1, "encoder_layers": 1, "encoder_ffn_dim": 32, "attention_head_dim": 8, "mask_decoder_ffn_dim": 32}'
)


class Killed(Exception):
    pass


class KilledAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def place(tmp_path_factory, parts):
    return make_place(tmp_path_factory.mktemp("runs"), parts)


@pytest.fixture(scope="module")
def words(place):
    def of(folder, *more):
        return [str(place / "tiny.yaml"), "--output_dir", str(folder), "--model_config", DROPOUT, *STEPS, *more]

    return of


@pytest.fixture(scope="module")
def whole(place, words):
    """A run that was not interrupted."""
    train.main(words(place / "whole"))
    return place / "whole"


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def weights_of(folder):
    return SailForDenseVideoCaptioning.from_pretrained(folder).state_dict()


def assert_bit_for_bit(found, expected):
    weights = weights_of(expected)
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(found).items())
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (found, expected)]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_run_that_goes_on_is_the_uninterrupted_one_bit_for_bit(whole, words, tmp_path, step):
    """Within an epoch and at its end, with time_warp and dropout."""
    arguments = words(tmp_path)
    trainer = train.make_trainer(*train.parse_arguments(list(arguments)))
    trainer.add_callback(run_folder.Seal(train.fingerprint(trainer)))
    trainer.add_callback(KilledAfter(step))
    with pytest.raises(Killed):
        trainer.train()
    assert train.main(arguments).state.global_step == 4
    assert_bit_for_bit(tmp_path, whole)


def test_the_changes_of_speed_are_part_of_the_result(whole, words, tmp_path):
    """What the test above could not tell from no change at all."""
    train.main(words(tmp_path, "--time_warp", "0"))
    with pytest.raises(AssertionError):
        assert_bit_for_bit(tmp_path, whole)


# --- whose checkpoint it is ---------------------------------------------------------------------------------------


def test_the_run_is_written_down(whole):
    for folder in (whole, whole / "checkpoint-4"):
        run = json.loads((folder / "sail_run.json").read_text())["run"]
        assert run["method"] == "sail" and run["model"]["augmentation_loss_weight"] == 0.25
        assert (run["data"]["videos"], run["data"]["time_warp"]) == (12, 0.7)
        assert (run["schedule"]["seed"], run["schedule"]["videos_a_step"]) == (42, 6)


@pytest.mark.parametrize(
    ("arguments", "words_of_error"),
    [
        (
            ["--method", "ilcacm"],
            ["method 'sail' there, 'ilcacm' now", "model.diversity_loss_weight 0.0 there, 1.0 now"],
        ),
        (["--seed", "7"], ["schedule.seed 42 there, 7 now"]),
        (["--learning_rate", "0.02"], ["schedule.learning_rate 0.01 there, 0.02 now"]),
        (["--localization_epochs", "2"], ["schedule.localization_epochs 1 there, 2.0 now"]),
        (["--max_captions", "2"], ["data.captions_of_a_video 4 there, 2 now"]),
        (["--sentence_form", "ilcacm"], ["data.sentence_form 'sail' there, 'ilcacm' now"]),
        (["--per_device_train_batch_size", "3"], ["schedule.videos_a_step 6 there, 3 now"]),
    ],
)
def test_another_run_is_not_taken_over(copy, words, arguments, words_of_error):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    with pytest.raises(SystemExit) as error:
        train.main(words(copy, *arguments))
    for expected in [*words_of_error, "checkpoint-4 belongs to another run", "--resume false", "another --output_dir"]:
        assert expected in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.parametrize("change", ["captions", "features", "order"])
def test_another_data_set_is_not_taken_over(copy, words, tmp_path, change):
    rows = [row for seed in range(4) for row in make_rows(seed)]
    if change == "captions":
        rows[5] = {**rows[5], "captions": ["Another dog."]}
    elif change == "features":
        rows[0] = {**rows[0], "video_features": rows[0]["video_features"] + 1}
    else:
        rows[0], rows[1] = rows[1], rows[0]
    write_split(tmp_path / "data", "train", rows)
    with pytest.raises(SystemExit, match="data.(captions|features) '"):
        train.main(words(copy, "--dataset", str(tmp_path / "data")))


def test_another_decoder_of_the_same_shape_is_not_taken_over(copy, words, parts, tmp_path):
    shutil.copytree(parts["decoder"], tmp_path / "other")
    with pytest.raises(SystemExit, match="starts_from.decoder 'decoder' there, 'other' now"):
        train.main(words(copy, "--decoder", str(tmp_path / "other")))


def test_the_same_run_split_otherwise_goes_on(copy, words):
    arguments = ["--per_device_train_batch_size", "3", "--gradient_accumulation_steps", "2", "--logging_steps", "2"]
    assert train.main(words(copy, *arguments)).state.global_step == 4


def test_a_new_run_moves_the_old_checkpoints(copy, words, capsys):
    old = {path.name: run_folder.checksums(path) for path in copy.glob("checkpoint-*")}
    assert len(old) == 4
    again = train.main(words(copy, "--resume", "false", "--captioning_epochs", "0"))
    assert again.state.global_step == 2
    assert f"the checkpoints of an earlier run in {copy} are now in {copy / 'replaced-1'}" in capsys.readouterr().out
    assert {path.name: run_folder.checksums(path) for path in (copy / "replaced-1").iterdir()} == old
    assert {path.name for path in copy.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


# --- damage -------------------------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is not what was written"),
        (lambda folder: (folder / "optimizer.pt").write_bytes(b""), "optimizer.pt is not what was written"),
        (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
        (lambda folder: (folder / "sail_run.json").unlink(), "it was not written to its end"),
        (lambda folder: (folder / "sail_run.json").write_text('{"sha'), "sail_run.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_falls_back_on_the_one_before(whole, copy, words, capsys, break_it, reason):
    break_it(copy / "checkpoint-4")
    trainer = train.main(words(copy))
    assert f"{copy / 'checkpoint-4'} is passed over: {reason}." in capsys.readouterr().out
    assert trainer.state.global_step == 4 and run_folder.damage(copy / "checkpoint-4") is None
    assert_bit_for_bit(copy, whole)


def test_with_no_whole_checkpoint_training_begins_anew(whole, copy, words, capsys):
    for folder in copy.glob("checkpoint-*"):
        (folder / "sail_run.json").unlink()
    train.main(words(copy))
    assert capsys.readouterr().out.count("is passed over") == 4
    assert_bit_for_bit(copy, whole)
