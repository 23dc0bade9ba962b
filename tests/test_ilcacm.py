"""ILCACM's numbers from converted weights: the reference's own where it is at hand, and a small copy of SAIL's."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import convert_ilcacm_checkpoint
import pytest
import torch
from convert_ilcacm_checkpoint import convert
from safetensors.torch import save_file
from tiny import make_processor
from transformers import AutoTokenizer

from sail_hf import SailForDenseVideoCaptioning, SailProcessor
from sail_hf.processing_sail import collate_labels

ROOT = Path(__file__).parents[1]
SMALL = Path(__file__).parent / "data" / "ilcacm_small.json"
PAD, FULL, MASK, END, SPACE = 50257, 50258, 50259, 50256, 220
EVENTS = [2995, 25, 220]  # " events: " in GPT-2's tokens; the digit before it is one token too


def fill(shapes):
    """Parameters of the given shapes, each a function of its name: the recipe that the reference numbers come with."""
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if name.endswith("lm_head.weight"):
            continue
        if name.split(".")[-1] in ("tpe", "pe", "vpe"):
            state[name] = values
        elif len(shape) == 1 and name.endswith("weight"):
            state[name] = 1 + 0.1 * values
        else:
            state[name] = 0.05 * values
    return state


def inputs_of(case, frames, size):
    """The batch of a case: `num_frames`, `num_events`, a seed, and token ids of the target text alone."""
    generator = torch.Generator().manual_seed(case["feature_seed"])
    features = torch.randn(len(case["num_frames"]), frames, size, generator=generator).half().float()
    mask = (torch.arange(frames) < torch.tensor(case["num_frames"])[:, None]).long()
    return features * mask[:, :, None], mask


def labels_of(num_events, full_ids, event_ids):
    """Each video's labels: `<FULL>N events: `, `<MASK>1 events: `, `<MASK>{N-1} events: ` before the reference's target ids."""
    digit = 15  # "0" in GPT-2's tokens
    labels, first = [], 0
    for n, full in zip(num_events, full_ids, strict=True):
        targets = [strip(ids) for ids in event_ids[first : first + n]]  # each ends in the space and the end token
        others = [[token for target in targets[:i] + targets[i + 1 :] for token in target[:-1]] for i in range(n)]
        labels.append(
            {
                "full_labels": [FULL, digit + n, *EVENTS, *strip(full)],
                "event_labels": [[MASK, digit + 1, *EVENTS, *target] for target in targets],
                "complement_labels": [[MASK, digit + n - 1, *EVENTS, *rest, END] if n > 1 else [] for rest in others],
            }
        )
        first += n
    return labels


def strip(ids):
    return [token for token in ids if token != PAD]


@pytest.fixture(scope="module")
def reference(shared):
    return json.loads((shared / "reference" / "ilcacm" / "cases.json").read_text())


@pytest.fixture(scope="module")
def converted(reference):
    model = convert(fill(reference["meta"]["parameter_shapes"]))
    model.config.joint_full_loss_weight = 1.0  # whose numbers are given too
    return model


@pytest.fixture(scope="module", params=[0, 1], ids=["32-frames", "fewer-frames"])
def case_and_output(request, reference, converted):
    case = reference["cases"][request.param]
    inputs = case["inputs"]
    features, mask = inputs_of(inputs, 32, 768)
    labels = labels_of(inputs["num_events"], inputs["full_input_ids"], inputs["event_input_ids"])
    with torch.no_grad():
        output = converted(features, video_attention_mask=mask, **collate_labels(labels))
    return case, output


def valid_events(output, num_events):
    return torch.arange(output.event_widths.shape[1]) < torch.tensor(num_events)[:, None]


def test_boundaries_and_masks_are_the_references(case_and_output):
    case, output = case_and_output
    valid = valid_events(output, case["inputs"]["num_events"])
    left = (output.event_centers - output.event_widths / 2).clamp(0, 1)[valid]
    right = (output.event_centers + output.event_widths / 2).clamp(0, 1)[valid]
    torch.testing.assert_close(left, torch.tensor(case["left"]), rtol=0, atol=2e-3)
    torch.testing.assert_close(right, torch.tensor(case["right"]), rtol=0, atol=2e-3)
    torch.testing.assert_close(output.event_masks[valid], torch.tensor(case["masks"]), rtol=0, atol=2e-3)


def test_diversity_is_the_references(case_and_output):
    case, output = case_and_output
    assert output.loss_diversity.item() == pytest.approx(case["diversity_loss"], abs=1e-3)


# The reference counts the positions of padded frames, so its captioning losses hold for full videos only.
@pytest.mark.parametrize("case_and_output", [0], ids=["32-frames"], indirect=True)
def test_captioning_losses_are_the_references(case_and_output):
    case, output = case_and_output
    assert output.loss_full.item() == pytest.approx(case["full_loss"], abs=1e-3)
    assert output.loss_positive.item() == pytest.approx(case["positive_loss"], abs=1e-3)
    assert output.loss_negative.item() == pytest.approx(case["negative_loss"], abs=1e-3)


def test_the_processor_writes_the_references_token_ids(reference, shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    processor = SailProcessor(make_processor().video_processor, SailProcessor.prepare_tokenizer(tokenizer))
    for case in reference["cases"]:
        inputs, first = case["inputs"], 0
        for n, full in zip(inputs["num_events"], inputs["full_input_ids"], strict=True):
            labels = processor.caption_labels(inputs["sentences"][first : first + n])
            (expected,) = labels_of([n], [full], inputs["event_input_ids"][first : first + n])
            assert labels == expected
            first += n


# --- a small copy -------------------------------------------------------------------------------------------------

WIDTH, FRAMES, QUERIES, VOCABULARY = 24, 6, 4, 40


def small_shapes():
    """ILCACM's parameters, all small: 1 decoder layer, 1 encoder layer, width 24."""

    def block(prefix, out, inner, names):
        return {
            **{f"{prefix}.{name}.in_proj_weight": [3 * out, out] for name in names},
            **{f"{prefix}.{name}.in_proj_bias": [3 * out] for name in names},
            **{f"{prefix}.{name}.out_proj.weight": [out, out] for name in names},
            **{f"{prefix}.{name}.out_proj.bias": [out] for name in names},
            f"{prefix}.linear1.weight": [inner, out],
            f"{prefix}.linear1.bias": [inner],
            f"{prefix}.linear2.weight": [out, inner],
            f"{prefix}.linear2.bias": [out],
            **{f"{prefix}.norm{i + 1}.{part}": [out] for i in range(len(names) + 1) for part in ("weight", "bias")},
        }

    gpt2, h = "captioner.gpt2_model.transformer", "captioner.gpt2_model.transformer.h.0"
    w = WIDTH
    return {
        f"{gpt2}.wte.weight": [VOCABULARY, w],
        f"{gpt2}.wpe.weight": [64, w],
        **{f"{h}.{ln}.{part}": [w] for ln in ("ln_1", "ln_2") for part in ("weight", "bias")},
        f"{h}.attn.c_attn.weight": [w, 3 * w],
        f"{h}.attn.c_attn.bias": [3 * w],
        f"{h}.attn.c_proj.weight": [w, w],
        f"{h}.attn.c_proj.bias": [w],
        f"{h}.mlp.c_fc.weight": [w, 4 * w],
        f"{h}.mlp.c_fc.bias": [4 * w],
        f"{h}.mlp.c_proj.weight": [4 * w, w],
        f"{h}.mlp.c_proj.bias": [w],
        **{f"{gpt2}.ln_f.{part}": [w] for part in ("weight", "bias")},
        "captioner.gpt2_model.lm_head.weight": [VOCABULARY, w],
        "captioner.video_encoder.vpe": [FRAMES, w],
        **block("captioner.video_encoder.encoder.layers.0", w, 32, ["self_attn"]),
        **{f"captioner.video_encoder.proj.0.{part}": [w] for part in ("weight", "bias")},
        "captioner.video_encoder.proj.1.weight": [w, w],
        "localizer.tpe": [QUERIES, w],
        "localizer.pe": [FRAMES, w],
        **block("localizer.mask_decoder.layers.0", w, 48, ["self_attn", "multihead_attn"]),
        **{f"localizer.norm.{part}": [w] for part in ("weight", "bias")},
        "localizer.center_fc.weight": [1, w],
        "localizer.width_fc.weight": [1, w],
    }


def small_numbers(model):
    """Every number of one batch of two videos with 6 and 4 frames, 3 events and 1."""
    features, mask = inputs_of({"feature_seed": 5, "num_frames": [FRAMES, 4]}, FRAMES, WIDTH)
    labels = [
        {
            "full_labels": [1, 2, 3, 4, 5, 6, 7, 8],
            "event_labels": [[2, 3, 4], [2, 3, 5, 6], [2, 3, 7]],
            "complement_labels": [[2, 4, 5, 6, 7], [2, 4, 4, 7], [2, 4, 4, 5, 6]],
        },
        {"full_labels": [1, 2, 9, 10], "event_labels": [[2, 3, 9, 10]], "complement_labels": [[]]},
    ]
    model.config.joint_full_loss_weight = 1.0
    with torch.no_grad():
        output = model(features, video_attention_mask=mask, **collate_labels(labels))
    names = ["event_centers", "event_widths", "event_masks"]
    names += ["loss_full", "loss_positive", "loss_negative", "loss_diversity"]
    return {name: output[name].tolist() for name in names}


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("ilcacm") / "model.safetensors"
    save_file(fill(small_shapes()), path)
    return path


def assert_small_numbers(model):
    expected = json.loads(SMALL.read_text())
    found = small_numbers(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(value), rtol=1e-4, atol=1e-5)


def test_the_small_copy_keeps_its_numbers():
    """Made by this model when it agreed with the reference; `PYTHONPATH=.:training python tests/test_ilcacm.py`."""
    assert_small_numbers(convert(fill(small_shapes())))


def test_the_command_line(small_checkpoint, tmp_path):
    """Two layers of names, shapes and a tokenizer in; a folder that `from_pretrained` reads out."""
    tokenizer = tmp_path / "tokenizer"
    make_processor().tokenizer.save_pretrained(tokenizer)
    output = tmp_path / "converted"
    run = subprocess.run(
        [sys.executable, "training/convert_ilcacm_checkpoint.py", small_checkpoint, output]
        + ["--tokenizer", tokenizer],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    assert str(output) in run.stdout and "predict.py --counts" in run.stdout
    assert_small_numbers(SailForDenseVideoCaptioning.from_pretrained(output))
    processor = SailProcessor.from_pretrained(output)
    assert (processor.video_processor.num_frames, processor.sentence_form) == (FRAMES, "ilcacm")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("localizer.center_fc.weight"), "center_head"),
        (lambda state: state.pop("localizer.tpe"), "localizer.tpe"),
        (lambda state: state.pop("captioner.video_encoder.encoder.layers.0.linear1.weight"), "linear1"),
        (lambda state: state.update({"localizer.extra": torch.zeros(1)}), "extra"),
        (lambda state: state.update({"backbone.weight": torch.zeros(1)}), "backbone.weight"),
        (lambda state: state.update({"localizer.pe": torch.zeros(FRAMES + 1, WIDTH)}), "position_embeddings"),
        (lambda state: state.clear(), "no parameter"),
        (lambda state: [state.pop(name) for name in list(state) if ".h.0." in name], "no parameter"),
    ],
)
def test_a_checkpoint_that_is_not_ilcacms_is_an_error(change, words):
    state = fill(small_shapes())
    change(state)
    with pytest.raises(ValueError, match=words):
        convert(state)


def test_causal_masks_of_old_gpt2_checkpoints_are_left_out():
    state = fill(small_shapes())
    state["captioner.gpt2_model.transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    state["captioner.gpt2_model.transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    assert_small_numbers(convert(state))


@pytest.mark.parametrize(
    "content, words",
    [(None, "is not a file"), (b"not weights", "not a safetensors file"), ({"other.weight": [2]}, "'other.weight'")],
)
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, capsys, content, words):
    path = tmp_path / "model.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(fill({**small_shapes(), **content}), path)
    arguments = [str(path), str(tmp_path / "out"), "--tokenizer", "x"]
    monkeypatch.setattr(sys, "argv", ["convert_ilcacm_checkpoint.py", *arguments])
    with pytest.raises(SystemExit) as error:
        convert_ilcacm_checkpoint.main()
    assert error.value.code != 0 and words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_going_on_with_a_converted_model_is_ilcacms_training():
    model = convert(fill(small_shapes()))
    config = model.config
    assert (config.method, config.diversity_loss_weight, config.similarity_loss_weight) == ("ilcacm", 1.0, 0.0)
    assert (config.position_initializer_range, config.mask_input_dropout, config.joint_full_loss_weight) == (
        1.0,
        0.1,
        0,
    )
    assert model.model.mask_generator.dropout.p == 0.1
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


if __name__ == "__main__":
    SMALL.parent.mkdir(exist_ok=True)
    numbers = small_numbers(convert(fill(small_shapes())))
    SMALL.write_text(json.dumps(numbers) + "\n")
