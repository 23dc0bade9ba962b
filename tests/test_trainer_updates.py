"""Two updates a batch, numbers that are not finite, autocast, and how often a step waits for the device."""

import traceback
from collections import Counter, defaultdict

import pytest
import torch
from test_trainer import LOCALIZATION, assert_same_weights, logs_of, make_trainer, parts_of, weights_of
from tiny import make_rows
from torch.utils._python_dispatch import TorchDispatchMode

from sail_hf import SailForDenseVideoCaptioning, SailTrainingArguments

TWO = ["two", "two-summed"]


@pytest.fixture(scope="module")
def rows():
    """Six videos with 3, 2, 1, 3, 2, 1 captions, and ids."""
    rows = make_rows(seed=0) + make_rows(seed=1, num_frames=(8, 4, 6))
    return [{"video_id": f"v_{i}ä", **row} for i, row in enumerate(rows)]


# --- two updates --------------------------------------------------------------------------------------------------


def test_only_the_words_for_updates_are_taken(tmp_path):
    with pytest.raises(ValueError, match="one, two, two-summed, found 'three'"):
        SailTrainingArguments(output_dir=str(tmp_path), use_cpu=True, updates_per_batch="three")


@pytest.mark.parametrize("updates", TWO)
def test_two_updates_are_what_a_loop_by_hand_makes(tmp_path, processor, rows, updates):
    """Plain gradient descent: first on positive and mask losses, then, by the new weights, on negative and mask losses."""
    plain = {
        "optim": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    trainer = make_trainer(
        tmp_path,
        processor,
        rows,
        captioning_epochs=0,
        per_device_train_batch_size=6,
        updates_per_batch=updates,
        max_grad_norm=0.5,
        **plain,
    )
    by_hand = make_trainer(tmp_path, processor, rows).model.train()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    batch = trainer.data_collator.collate(rows)
    for left_out in (["complement_labels"], ["full_labels", "event_labels"]):
        by_hand(**{name: value for name, value in batch.items() if name not in left_out}).loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
        optimizer.step()
        if updates == "two":
            optimizer.zero_grad()
    trainer.train()
    assert_same_weights(weights_of(trainer.model), weights_of(by_hand))


@pytest.mark.parametrize("updates", TWO)
def test_two_updates_over_micro_batches_are_those_of_one_large_batch(tmp_path, processor, rows, updates):
    found = []
    for batch_size, accumulation in [(6, 1), (2, 3), (1, 6), (4, 2)]:
        trainer = make_trainer(
            tmp_path,
            processor,
            rows,
            captioning_epochs=0,
            localization_epochs=2,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            updates_per_batch=updates,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        assert trainer.state.global_step == 2
        found.append((weights_of(trainer.model), logs_of(trainer)))
    (weights, logs), *others = found
    for other, other_logs in others:
        assert_same_weights(other, weights, 2e-6)
        for entry, wanted in zip(other_logs, logs, strict=True):
            assert parts_of(entry) == LOCALIZATION
            assert all(entry[name] == pytest.approx(wanted[name], rel=1e-4) for name in {*LOCALIZATION, "loss"})


@pytest.mark.parametrize("updates", TWO)
def test_the_first_stage_has_one_update(tmp_path, processor, rows, updates):
    runs = []
    for way in ("one", updates):
        trainer = make_trainer(tmp_path, processor, rows, localization_epochs=0, updates_per_batch=way)
        trainer.train()
        runs.append(weights_of(trainer.model))
    assert_same_weights(runs[1], runs[0], 0)


def test_two_updates_of_videos_with_one_caption_are_finite(tmp_path, processor, rows):
    single = [row for row in rows if len(row["captions"]) == 1]
    trainer = make_trainer(tmp_path, processor, single, captioning_epochs=0, updates_per_batch="two")
    trainer.train()
    (entry,) = logs_of(trainer)
    assert parts_of(entry) == {"loss_full", "loss_positive"}
    assert entry["loss"] == pytest.approx(entry["loss_full"] + entry["loss_positive"], rel=1e-5)


# --- numbers that are not finite ----------------------------------------------------------------------------------


def broken_rows(rows):
    features = rows[4]["video_features"].clone()
    features[1, 2] = torch.nan
    return [*rows[:4], {**rows[4], "video_features": features}, rows[5]]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"captioning_epochs": 0, "updates_per_batch": "two"}, {"accelerator_config": {"dispatch_batches": True}}],
)
def test_a_loss_that_is_not_finite_stops_training_and_names_the_videos(tmp_path, processor, rows, arguments):
    trainer = make_trainer(tmp_path, processor, broken_rows(rows), per_device_train_batch_size=2, **arguments)
    with pytest.raises(FloatingPointError, match="the loss is not finite \\(.*v_4ä") as error:
        trainer.train()
    assert sum(f"v_{i}ä" in str(error.value) for i in range(6)) == 2
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_rows_without_ids_are_said_to_be_unknown(tmp_path, processor):
    rows = broken_rows(make_rows(seed=0) + make_rows(seed=1))
    with pytest.raises(FloatingPointError, match="rows have no `video_id`"):
        make_trainer(tmp_path, processor, rows).train()


def test_weights_that_are_not_finite_are_not_saved(tmp_path, processor, rows):
    trainer = make_trainer(tmp_path, processor, rows)
    trainer.save_model()
    expected = weights_of(trainer.model)
    with torch.no_grad():
        trainer.model.model.mask_generator.queries[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="1 weights are not finite, e.g. model.mask_generator.queries"):
        trainer.save_model()
    assert_same_weights(weights_of(SailForDenseVideoCaptioning.from_pretrained(tmp_path)), expected, 0)


def test_evaluation_takes_batches_with_ids(tmp_path, processor, rows):
    assert make_trainer(tmp_path, processor, rows).evaluate()["eval_loss"] > 0


# --- bfloat16 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", ["queries", "progress"])
def test_bfloat16_trains_as_float32_nearly(tmp_path, processor, rows, generator):
    """On the CPU's autocast: losses within 1 %, of which bfloat16 has steps of 0.4 %; weights stay float32."""
    logs = []
    for bf16 in (False, True):
        trainer = make_trainer(
            tmp_path,
            processor,
            rows,
            captioning_epochs=3,
            localization_epochs=3,
            bf16=bf16,
            config={"mask_generator": generator, "alignment_loss_weight": 1.0},
        )
        trainer.train()
        logs.append(logs_of(trainer))
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert len(logs[0]) == 12
    differences = defaultdict(list)
    for entry, wanted in zip(*logs, strict=True):
        for name in {*parts_of(wanted), "loss", "mean_event_center", "mean_event_width"} & wanted.keys():
            differences[name].append(abs(entry[name] / wanted[name] - 1))
            assert entry[name] == pytest.approx(wanted[name], rel=0.01, abs=2e-3), name
    print({name: f"{max(found):.1e}" for name, found in differences.items()})
    assert logs[1][-1]["loss_full"] < logs[1][0]["loss_full"]


# --- waiting for the device ---------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, values and numbers of values that Python asks for, by package."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = name.startswith("index") and any(getattr(part, "dtype", None) == torch.bool for part in args[1])
        if name in ("_local_scalar_dense", "nonzero", "masked_select") or masked:
            stack = traceback.extract_stack()
            places = [
                (name, f.name) for f in stack for name in ("sail_hf", "transformers") if f"/{name}/" in f.filename
            ]
            package, of = places[-1]
            self.found["the host's own labels" if of in ("caption_pass", "length_groups") else package] += 1
        return function(*args, **(kwargs or {}))


def test_a_step_waits_seldom(tmp_path, processor, rows):
    """Once each for frames that are padding and for a loss that is finite.

    Numbers of events and labels come to the host before anything else; that captioning passes read nothing but these is
    tested in `test_caption_pass.py`. transformers asks for every mask whether it is needed.
    """
    trainer = make_trainer(tmp_path, processor, rows, captioning_epochs=0, per_device_train_batch_size=6)
    step, waits = trainer.training_step, Waits()

    def counted(*args):
        with waits:
            return step(*args)

    trainer.training_step = counted
    trainer.train()
    assert trainer.state.global_step == 1
    assert waits.found["sail_hf"] == 2, waits.found
