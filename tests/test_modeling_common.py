"""Our versions of the common tests that transformers runs on its own models (its tests/test_modeling_common.py).

Those that do not apply, and why:

* `test_encoder_decoder_loss_no_double_shift`, `test_causal_lm_loss_honors_shift_labels`, `test_inputs_embeds*`,
  `test_problem_types`, `test_feed_forward_chunking`, `test_resize_position_vector_embeddings`: the model has no `labels`,
  `input_ids` or classification head, and no chunked feed-forward.
* `test_training*` and `test_resize*` on `SailModel`: it has neither a loss nor token embeddings; its heir is tested.
* `test_get_text_features*`, `test_get_image_features*`, `test_get_audio_features*`: there are no such methods.
  `test_get_video_features*`: ours returns a tensor, one feature a frame, tested in test_modeling.py.
* `test_flash_attn*`, `test_flex_attention*`, `test_sdpa_can_dispatch_on_flash`, `test_kernels*`, `test_cpu_offload`,
  `test_disk_offload*`, `test_model_parallelism`, `*deepspeed*`: they need a GPU; what they rest on (the attention
  interface, `_no_split_modules`) is tested here.
* `test_moe*`, `*_rope_*`, `test_sliding_window_mask`, `*tp_plan*`, `test_reverse_loading_mapping`,
  `test_can_load_from_already_mapped_keys`, `test_keep_in_fp32_modules*`: there is nothing of the kind in the model.
* `test_generation_tester_mixin_inheritance`: `generate` captions in several passes; tested in test_generation.py.
"""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_clip, make_config, make_model, make_processor
from transformers import PreTrainedModel

from sail_hf import SailForDenseVideoCaptioning, SailModel
from sail_hf.layers_sail import SailAttention

CLASSES = [SailModel, SailForDenseVideoCaptioning]
OF_BASE = ("video_features", "video_attention_mask", "num_events")


@pytest.fixture(scope="module")
def config(processor, tmp_path_factory):
    """Everything in it: both CLIP towers, all losses."""
    clip = make_clip(tmp_path_factory.mktemp("clip"))
    clip.vision_config.include_text_tower = True
    return make_config(processor, diversity_loss_weight=1.0, vision_config=clip.vision_config, dropout=0.0)


def new(cls, config, **options):
    torch.manual_seed(0)
    return cls._from_config(copy.deepcopy(config), **options).eval()


def inputs_of(cls, batch):
    return {name: batch[name] for name in OF_BASE} if cls is SailModel else dict(batch)


def assert_same_outputs(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        if torch.is_tensor(first[name]):
            torch.testing.assert_close(first[name], second[name], **tolerance)


# --- initial values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_every_missing_tensor_is_initialised(cls, config):
    """From an empty checkpoint: nothing on the meta device, nothing that memory happened to hold."""
    torch.manual_seed(0)
    model = cls.from_pretrained(None, config=copy.deepcopy(config), state_dict={})
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.device.type == "cpu" and not tensor.isnan().any(), name
        if not name.endswith("attn_mask"):  # which is 0 and -inf
            assert tensor.abs().max() < 10, name


@pytest.mark.parametrize("missing", ["class_embedding", "positional_embedding", "proj", "text_projection"])
def test_tensors_of_clips_towers_that_a_checkpoint_lacks_are_initialised(config, tmp_path, missing):
    model = new(SailModel, config)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = [name for name in weights if name.endswith(f"tower.{missing}")]
    assert gone
    save_file(
        {name: w for name, w in weights.items() if name not in gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    loaded, info = SailModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(gone)
    for name in gone:
        tensor = loaded.get_parameter(name)
        assert tensor.isfinite().all() and 0 < tensor.std() < 0.1, name


@pytest.mark.parametrize("cls", CLASSES)
def test_buffers_survive_the_meta_device(cls, config):
    with torch.device("meta"):
        model = cls(copy.deepcopy(config))
    model.to_empty(device="cpu")
    model.init_weights()
    expected = dict(new(cls, config).named_buffers())
    assert any(name.endswith("attn_mask") for name in expected)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected[name]), name


# --- saving and loading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_is_missing_after_saving(cls, config, batch, tmp_path):
    model = new(cls, config)
    model.save_pretrained(tmp_path)
    loaded, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_outputs(model(**inputs_of(cls, batch)), loaded(**inputs_of(cls, batch)), rtol=0, atol=0)


def test_the_base_model_and_the_whole_one_load_each_others_folders(config, tmp_path):
    whole = new(SailForDenseVideoCaptioning, config)
    whole.save_pretrained(tmp_path / "whole")
    base, info = SailModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base.save_pretrained(tmp_path / "base")
    again, info = SailForDenseVideoCaptioning.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"decoder"}
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_mismatched_shapes_are_an_error_or_ignored_on_demand(config, tmp_path):
    new(SailModel, config).save_pretrained(tmp_path)
    other = copy.deepcopy(config)
    other.num_queries = 7
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        SailModel.from_pretrained(tmp_path, config=other)
    model = SailModel.from_pretrained(tmp_path, config=other, ignore_mismatched_sizes=True)
    assert model.mask_generator.queries.shape == (7, 24) and model.mask_generator.queries.isfinite().all()


@pytest.mark.parametrize("cls", CLASSES)
def test_loading_under_a_device_context(cls, config, tmp_path):
    new(cls, config).save_pretrained(tmp_path)
    with torch.device("cpu"):
        assert {p.device.type for p in cls.from_pretrained(tmp_path).parameters()} == {"cpu"}
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta"):
        cls.from_pretrained(tmp_path)


# --- outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_tuples_hold_what_dictionaries_hold(cls, config, batch):
    model, inputs = new(cls, config, attn_implementation="eager"), inputs_of(cls, batch)
    options = {"output_hidden_states": True, "output_attentions": True}
    as_dictionary, as_tuple = model(**inputs, **options), model(**inputs, **options, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(as_dictionary)
    for ours, theirs in zip(as_dictionary.to_tuple(), as_tuple, strict=True):
        if torch.is_tensor(ours):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("by", ["argument", "config"])
def test_hidden_states_and_attentions(cls, config, batch, by):
    names = ("output_hidden_states", "output_attentions", "output_mask_attentions")
    config = copy.deepcopy(config)
    if by == "config":
        for name in names:
            setattr(config, name, True)
    model = new(cls, config, attn_implementation="eager")
    output = model(**inputs_of(cls, batch), **(dict.fromkeys(names, True) if by == "argument" else {}))
    assert [h.shape for h in output.hidden_states] == [
        (3, 8, 16)
    ] * 3  # before the first of two layers, and after each
    assert [a.shape for a in output.attentions] == [(3, 2, 8, 8)] * 2
    assert [a.shape for a in output.mask_attentions] == [(3, 3, 3, 8)]  # 3 heads of 8, 3 queries, 8 frames
    for weights in (*output.attentions, *output.mask_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert (output.attentions[0][1, :, :, 5:] == 0).all() and (output.mask_attentions[0][2, :, :, 6:] == 0).all()
    without = new(cls, make_config(make_processor()))(**inputs_of(cls, batch))
    assert without.hidden_states is None and without.attentions is None


def test_hidden_states_and_attentions_keep_their_gradients(config, batch):
    model = new(SailForDenseVideoCaptioning, config, attn_implementation="eager")
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    for tensor in (output.hidden_states[0], output.attentions[0]):
        tensor.retain_grad()
    output.loss.backward()
    assert output.hidden_states[0].grad.abs().sum() > 0 and output.attentions[0].grad.abs().sum() > 0


@pytest.mark.parametrize("cls", CLASSES)
def test_the_same_twice(cls, config, batch):
    model = new(cls, config)
    assert_same_outputs(model(**inputs_of(cls, batch)), model(**inputs_of(cls, batch)), rtol=0, atol=0)


# --- attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_eager_and_sdpa_give_the_same(cls, config, batch):
    sdpa, eager = new(cls, config, attn_implementation="sdpa"), new(cls, config, attn_implementation="eager")
    assert_same_outputs(sdpa(**inputs_of(cls, batch)), eager(**inputs_of(cls, batch)), rtol=1e-4, atol=1e-5)


def test_the_implementation_is_that_of_all_parts(config, tmp_path):
    model = new(SailForDenseVideoCaptioning, config, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    for loaded, expected in [
        (SailForDenseVideoCaptioning.from_pretrained(tmp_path, attn_implementation="eager"), "eager"),
        (SailForDenseVideoCaptioning.from_pretrained(tmp_path), "sdpa"),
    ]:
        parts = [module for module in loaded.modules() if isinstance(module, (PreTrainedModel, SailAttention))]
        assert {part.config._attn_implementation for part in parts} == {expected}
    loaded.set_attn_implementation({"": "eager", "text_config": "sdpa"})
    assert loaded.model.video_encoder.layers[0].self_attn.config._attn_implementation == "eager"
    assert loaded.decoder.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="nonsense"):
        SailModel.from_pretrained(tmp_path, attn_implementation="nonsense")


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(config, batch, reentrant):
    plain, saving = new(SailForDenseVideoCaptioning, config), new(SailForDenseVideoCaptioning, config)
    for module in (*plain.modules(), *saving.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert saving.is_gradient_checkpointing
    saving.enable_input_require_grads()
    for model in (plain, saving):
        model.train()(**batch).loss.backward()
    for (name, ours), theirs in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-6, msg=name)
    saving.gradient_checkpointing_disable()
    assert not saving.is_gradient_checkpointing


def test_lora_reaches_every_projection(config, batch):
    peft = pytest.importorskip("peft")
    names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "projection", "c_attn", "c_fc"]
    model = new(SailForDenseVideoCaptioning, config)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=r"(?!.*tower).*\.(" + "|".join(names) + ")"))
    tuned.train()(**batch).loss.backward()
    added = {name: p for name, p in tuned.named_parameters() if "lora_B" in name}
    assert len(added) == 2 * 6 + 1 * 10 + 1 + 2  # encoder layers, mask decoder layer, projection, decoder
    assert [name for name, p in added.items() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_the_training_step_compiles(processor, batch):
    """With graph breaks: the losses look at how many events there are."""
    model = make_model(processor, dropout=0.0)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)


# --- token embeddings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_token_embeddings_can_be_resized(config, batch, tmp_path, tied):
    config = copy.deepcopy(config)
    config.text_config.tie_word_embeddings = tied
    model = new(SailForDenseVideoCaptioning, config)
    before, size = model(**batch), model.config.text_config.vocab_size
    model.resize_token_embeddings(size + 10)
    assert model.config.text_config.vocab_size == model.decoder.config.vocab_size == size + 10
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (size + 10, 16)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    loaded = SailForDenseVideoCaptioning.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss)
    model.resize_token_embeddings(size)
    torch.testing.assert_close(model(**batch).loss, before.loss)


def test_token_embeddings_can_be_exchanged(config):
    model = new(SailForDenseVideoCaptioning, config)
    embeddings, head = torch.nn.Embedding(12, 16), torch.nn.Linear(16, 12)
    model.set_input_embeddings(embeddings)
    model.set_output_embeddings(head)
    assert model.get_input_embeddings() is model.decoder.get_input_embeddings() is embeddings
    assert model.get_output_embeddings() is head


# --- compilers ----------------------------------------------------------------------------------------------------


class Localiser(torch.nn.Module):
    """The part from features to centres, widths and masks."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, video_features, video_attention_mask, num_events):
        output = self.model(
            video_features, video_attention_mask=video_attention_mask, num_events=num_events, max_events=3
        )
        return output.event_centers, output.event_widths, output.event_masks


@pytest.mark.parametrize("mask_generator", ["queries", "progress", "fixed", "cohesion"])
def test_localisation_exports_and_compiles_whole(processor, batch, mask_generator):
    model = make_model(processor, mask_generator=mask_generator).model
    localiser = Localiser(model)
    inputs = tuple(batch[name] for name in OF_BASE)
    expected = localiser(*inputs)
    batch_size = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(localiser, inputs, dynamic_shapes=({0: batch_size},) * 3)
    compiled = torch.compile(localiser, fullgraph=True, backend="aot_eager")
    for found in (exported.module()(*inputs), compiled(*inputs)):
        for ours, theirs in zip(expected, found, strict=True):
            torch.testing.assert_close(theirs, ours)
    twice = tuple(torch.cat([value, value]) for value in inputs)
    torch.testing.assert_close(exported.module()(*twice)[0], localiser(*twice)[0])
