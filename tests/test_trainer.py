"""The two stages, exact gradients under accumulation, resuming, and what is logged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import make_model, make_rows
from transformers import Trainer, TrainerCallback, TrainingArguments

from sail_hf import SailDataCollator, SailForDenseVideoCaptioning, SailTrainer, SailTrainingArguments
from sail_hf.loss_sail import count_items

CAPTIONING = {"loss_full"}
LOCALIZATION = {"loss_full", "loss_positive", "loss_negative", "loss_similarity", "loss_augmentation"}


@pytest.fixture(scope="module")
def rows():
    """Six videos with 3, 2, 1, 3, 2, 1 captions."""
    return make_rows(seed=0) + make_rows(seed=1, num_frames=(8, 4, 6))


def make_trainer(folder, processor, rows, dropout=0.0, callbacks=None, config=None, **arguments):
    model = make_model(processor, dropout=dropout, **(config or {}))
    for module in model.decoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    defaults = {
        "captioning_epochs": 1,
        "localization_epochs": 1,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return SailTrainer(
        model=model,
        args=SailTrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=SailDataCollator(processor),
        processing_class=processor,
        callbacks=callbacks,
    )


def logs_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def parts_of(entry):
    return {name for name in entry if name.startswith("loss_")}


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_weights(found, expected, tolerance=1e-6):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


class WeightsAtEpochEnds(TrainerCallback):
    def __init__(self):
        self.weights = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights_of(model))


# --- arguments ----------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers(tmp_path):
    args = SailTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.captioning_epochs, args.localization_epochs, args.num_train_epochs) == (10, 10, 20)
    assert (args.learning_rate, args.weight_decay, args.adam_beta1, args.adam_beta2) == (1e-4, 0.01, 0.9, 0.99)
    assert (args.per_device_train_batch_size, args.max_grad_norm) == (8, 1.0)
    assert (args.lr_scheduler_type, args.get_warmup_steps(1000)) == ("cosine", 50)
    assert args.remove_unused_columns is False
    # Extraction takes hours, and a filter would hide a loss that is not finite.
    assert args.ddp_timeout_delta.days == 1 and args.logging_nan_inf_filter is False


@pytest.mark.parametrize("name", ["captioning_epochs", "localization_epochs"])
def test_negative_epochs_are_an_error(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        SailTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: -1})


def test_the_sum_of_the_stages_is_not_overwritten_in_silence(tmp_path):
    given = {"output_dir": str(tmp_path), "use_cpu": True, "captioning_epochs": 2, "localization_epochs": 3}
    with pytest.raises(ValueError, match="`num_train_epochs` is 3, but .* add up to 5"):
        SailTrainingArguments(num_train_epochs=3, **given)
    assert SailTrainingArguments(num_train_epochs=5, **given).num_train_epochs == 5


# --- stages -------------------------------------------------------------------------------------------------------


def test_the_first_stage_learns_whole_video_captions_alone(tmp_path, processor, rows):
    watch = WeightsAtEpochEnds()
    trainer = make_trainer(tmp_path, processor, rows, localization_epochs=2, callbacks=[watch])
    before = weights_of(trainer.model)
    trainer.train()
    assert [parts_of(entry) for entry in logs_of(trainer)] == [CAPTIONING] * 2 + [LOCALIZATION] * 4
    changed = [
        {".".join(name.split(".")[:2]) for name in before if not torch.equal(now[name], then[name])}
        for then, now in zip([before, *watch.weights], watch.weights, strict=False)
    ]
    assert not any("mask_generator" in name for name in changed[0]) and "model.video_encoder" in changed[0]
    assert "model.mask_generator" in changed[1] and "model.video_encoder" in changed[1]


@pytest.mark.parametrize(
    "captioning, localization, stages",
    [(0, 1, [1, 1, 1]), (1, 0, [0, 0, 0]), (1, 1, [0, 0, 0, 1, 1, 1]), (0.5, 1.5, [0, 0, 1, 1, 1, 1])],
)
def test_any_split_into_stages(tmp_path, processor, rows, captioning, localization, stages):
    """Three steps an epoch."""
    epochs = {"captioning_epochs": captioning, "localization_epochs": localization}
    trainer = make_trainer(tmp_path, processor, rows, per_device_train_batch_size=2, **epochs)
    trainer.train()
    assert [parts_of(entry) == LOCALIZATION for entry in logs_of(trainer)] == [bool(stage) for stage in stages]


def test_the_stage_changes_at_an_epoch_with_accumulation_that_does_not_divide_it(tmp_path, processor, rows):
    # 6 batches of one video, 4 to a step: steps of 4 and 2 in each epoch.
    trainer = make_trainer(
        tmp_path, processor, rows, per_device_train_batch_size=1, gradient_accumulation_steps=4, logging_steps=1
    )
    trainer.train()
    assert [parts_of(entry) for entry in logs_of(trainer)] == [CAPTIONING] * 2 + [LOCALIZATION] * 2


def test_with_max_steps_the_epochs_are_shares(tmp_path, processor, rows):
    trainer = make_trainer(tmp_path, processor, rows, captioning_epochs=5, localization_epochs=15, max_steps=4)
    trainer.train()
    assert [parts_of(entry) for entry in logs_of(trainer)] == [CAPTIONING] + [LOCALIZATION] * 3


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"captioning_epochs": 0.1, "localization_epochs": 1}, "`captioning_epochs` is 0.1, but none of the 3 steps"),
        ({"max_steps": 3, "localization_epochs": 0.1}, "`localization_epochs` is 0.1, but none of the 3 steps"),
    ],
)
def test_a_stage_that_cannot_be_reached_is_an_error(tmp_path, processor, rows, arguments, words):
    with pytest.raises(ValueError, match=words):
        make_trainer(tmp_path, processor, rows, **arguments).train()


# --- data sets and devices ----------------------------------------------------------------------------------------


def as_dataset(rows):
    return Dataset.from_list(
        [{name: v if name == "captions" else v.tolist() for name, v in row.items()} for row in rows]
    )


@pytest.mark.parametrize("columns", [[], ["transition_features"]])
def test_a_streaming_data_set_trains_as_rows_do(tmp_path, processor, rows, columns):
    data = as_dataset(rows).remove_columns(columns)
    logs = []
    for dataset in (data.to_iterable_dataset(), data):
        trainer = make_trainer(tmp_path, processor, dataset, max_steps=4, per_device_train_batch_size=6)
        trainer.train()
        logs.append(logs_of(trainer))
    losses = LOCALIZATION - {"loss_augmentation"} if columns else LOCALIZATION
    assert [parts_of(entry) for entry in logs[0]] == [CAPTIONING] * 2 + [losses] * 2
    for found, expected in zip(*logs, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("split", [False, True])
def test_batches_may_be_dispatched(tmp_path, processor, rows, split):
    config = {"dispatch_batches": True, "split_batches": split}
    stream = as_dataset(rows).to_iterable_dataset()
    trainer = make_trainer(tmp_path, processor, stream, max_steps=2, accelerator_config=config)
    trainer.train()
    assert parts_of(logs_of(trainer)[-1]) == LOCALIZATION


def test_two_processes_stream_what_one_does(tmp_path, processor, rows):
    """Each its own videos, or one process reads and dispatches halves: losses of one process with both halves."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    tests = Path(__file__).parent
    result = subprocess.run(
        [*launch, str(tests / "stream_in_processes.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    one = make_trainer(
        tmp_path, processor, as_dataset(rows).to_iterable_dataset(), per_device_train_batch_size=2, max_steps=6
    )
    one.train()
    for name in ("own", "dispatched"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert len(found) == 6
        for entry, expected in zip(found, logs_of(one), strict=True):
            assert parts_of(entry) == parts_of(expected)
            for part in parts_of(expected) | {"loss"}:
                assert entry[part] == pytest.approx(expected[part], rel=1e-4), (name, part)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_plain_trainer_trains(tmp_path, processor, rows, streaming):
    data = as_dataset(rows)
    arguments = {
        "max_steps": 1,
        "per_device_train_batch_size": 6,
        "report_to": [],
        "use_cpu": True,
        "logging_steps": 1,
    }
    model = make_model(processor, dropout=0.0)
    model.decoder.apply(lambda module: isinstance(module, torch.nn.Dropout) and setattr(module, "p", 0.0))
    expected = model(**SailDataCollator(processor)(rows)).loss.item()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(tmp_path), remove_unused_columns=False, save_strategy="no", **arguments),
        train_dataset=data.to_iterable_dataset() if streaming else data,
        data_collator=SailDataCollator(processor),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_plain_trainer_that_drops_the_captions_is_told_how_not_to(tmp_path, processor, rows):
    trainer = Trainer(
        model=make_model(processor),
        args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]),
        train_dataset=as_dataset(rows),
        data_collator=SailDataCollator(processor),
    )
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        trainer.train()


def test_several_gpus_without_a_launcher_are_one(tmp_path, processor, rows, caplog):
    args = SailTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", max_steps=2)
    args._n_gpu = 2  # as with two visible GPUs
    trainer = SailTrainer(
        model=make_model(processor), args=args, train_dataset=rows, data_collator=SailDataCollator(processor)
    )
    assert [r.getMessage() for r in caplog.records if "accelerate launch" in r.getMessage()] == [
        "Training on one of 2 visible GPUs: start the script with `accelerate launch` to use all."
    ]
    assert args.train_batch_size == 8
    trainer.train()
    assert not isinstance(trainer.model_wrapped, torch.nn.DataParallel)


# --- what is logged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size, accumulation", [(6, 1), (2, 3), (1, 6), (4, 2)])
def test_logged_parts_add_up_to_the_logged_loss(tmp_path, processor, rows, batch_size, accumulation):
    """Also where a micro-batch holds nothing but a video with one caption, which has no similarity loss."""
    trainer = make_trainer(
        tmp_path,
        processor,
        rows,
        captioning_epochs=0,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
    )
    whole = SailDataCollator(processor)(rows)
    with torch.no_grad():
        expected = trainer.model(**whole)
    trainer.train()
    (entry,) = logs_of(trainer)
    assert parts_of(entry) == LOCALIZATION
    for name in LOCALIZATION:
        assert entry[name] == pytest.approx(expected[name].item(), rel=1e-4), name
    assert entry["loss"] == pytest.approx(expected.loss.item(), rel=1e-4)


def test_logs_are_means_over_the_steps_since_the_last(tmp_path, processor, rows):
    every = make_trainer(tmp_path / "1", processor, rows, captioning_epochs=0, localization_epochs=2)
    every.train()
    second = make_trainer(tmp_path / "2", processor, rows, captioning_epochs=0, localization_epochs=2, logging_steps=2)
    second.train()
    single, double = logs_of(every), logs_of(second)
    assert len(single) == 4 and len(double) == 2
    for name in [*LOCALIZATION, "active_hinges", "mean_event_center", "mean_event_width"]:
        assert double[0][name] == pytest.approx((single[0][name] + single[1][name]) / 2, rel=1e-4)
        assert double[1][name] == pytest.approx((single[2][name] + single[3][name]) / 2, rel=1e-4)
    for entry in single:
        assert 0 <= entry["active_hinges"] <= 1
        assert 0 < entry["mean_event_width"] < 1 and 0 < entry["mean_event_center"] < 1


def test_how_many_gates_open_is_logged(tmp_path, processor, rows):
    """With a threshold that no cosine reaches, none takes part in the loss."""
    config = {"method": "sbs", "mask_generator": "progress", "attraction_beta": -10.0, "attraction_theta": 1.1}
    trainer = make_trainer(tmp_path, processor, rows, captioning_epochs=0, config=config, logging_steps=2)
    trainer.train()
    (entry,) = logs_of(trainer)
    assert parts_of(entry) == LOCALIZATION - {"loss_augmentation"} | {"loss_attraction"}
    assert 0 < entry["open_gates"] <= 1 and entry["attracted_gaps"] == entry["loss_attraction"] == 0


def test_evaluation_is_the_loss_of_everything_whatever_the_stage(tmp_path, processor, rows):
    trainer = make_trainer(tmp_path, processor, rows, per_device_eval_batch_size=6)
    with torch.no_grad():
        expected = trainer.model(**SailDataCollator(processor)(rows)).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_labels_is_an_error(tmp_path, processor, rows):
    trainer = make_trainer(tmp_path, processor, rows)
    batch = SailDataCollator(processor)(rows)
    with pytest.raises(ValueError, match="no labels.*video_features"):
        trainer.compute_loss(trainer.model, {"video_features": batch["video_features"]})


# --- accumulation -------------------------------------------------------------------------------------------------


def one_step(folder, processor, rows, batch_size, accumulation, stage):
    """The weights after one step of plain gradient descent with rate 1: the gradients themselves."""
    epochs = {"captioning_epochs": 1, "localization_epochs": 0} if stage == 1 else {"captioning_epochs": 0}
    trainer = make_trainer(
        folder,
        processor,
        rows,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=1.0,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=0.0,
        **epochs,
    )
    before = weights_of(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 1
    return {name: before[name] - weight for name, weight in weights_of(trainer.model).items()}


@pytest.mark.parametrize("stage", [1, 2])
def test_accumulation_gives_the_gradients_of_one_large_batch(tmp_path, processor, rows, stage):
    """Rows of different lengths and numbers of events: the mean of the micro-batches' means is another gradient."""
    large = one_step(tmp_path, processor, rows, 6, 1, stage)
    assert sum(gradient.abs().sum() for gradient in large.values()) > 1
    for batch_size, accumulation in [(1, 6), (4, 2)]:
        assert_same_weights(one_step(tmp_path, processor, rows, batch_size, accumulation, stage), large, 2e-6)


def test_the_mean_of_micro_batches_would_be_another_gradient(processor, rows):
    """What the test above could not tell apart if all micro-batches had the same number of tokens."""
    collate = SailDataCollator(processor)
    tokens = {int(count_items(collate([row]))["full_tokens"]) for row in rows}
    assert len(tokens) > 1


# --- resuming -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, processor, rows):
    """Two epochs of each stage, two steps each, with dropout; a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder, processor, rows, **RUN)
    trainer.train()
    return folder, weights_of(trainer.model), logs_of(trainer)


RUN = {
    "dropout": 0.1,
    "captioning_epochs": 2,
    "localization_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "max_grad_norm": 1.0,
}


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, processor, rows, uninterrupted, step):
    """From within the first stage into the second (1 to 3), from the switch itself (4), and within the second."""
    folder, weights, logs = uninterrupted
    checkpoint = folder / f"checkpoint-{step}"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == step
    trainer = make_trainer(tmp_path, processor, rows, **{**RUN, "save_strategy": "no"})
    with torch.no_grad():  # what it starts from must come from the checkpoint
        for parameter in trainer.model.parameters():
            parameter.zero_()
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(weights_of(trainer.model), weights)
    assert len(logs) == 8
    for found, expected in zip(logs_of(trainer)[step:], logs[step:], strict=True):
        for name in parts_of(expected) | {"loss", "learning_rate", "epoch"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_a_checkpoint_is_a_folder_for_inference(uninterrupted, processor, rows):
    folder, weights, _ = uninterrupted
    model = SailForDenseVideoCaptioning.from_pretrained(folder / "checkpoint-8")
    assert_same_weights(weights_of(model), weights, 0)
    names = {path.name for path in (folder / "checkpoint-8").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert names & {"processor_config.json", "video_preprocessor_config.json"}
