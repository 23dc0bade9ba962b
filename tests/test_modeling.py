"""The model's behaviour on tiny random weights: masks, losses, gradients, saving and loading, batching, decoders."""

import pytest
import torch
from tiny import CAPTIONS, make_clip, make_config, make_model, make_rows
from torch import tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
    Trainer,
    TrainingArguments,
)

from sail_hf import (
    SailConfig,
    SailDataCollator,
    SailForDenseVideoCaptioning,
    SailModel,
    SailProcessor,
    SailVideoProcessor,
)
from sail_hf.configuration_sail import METHODS, method_fields
from sail_hf.layers_sail import SailAttention
from sail_hf.loss_sail import LOSSES as TABLE
from sail_hf.loss_sail import count_items
from sail_hf.masks_sail import event_masks

# Without those of parts that a model may lack: test_grounding.py has that of the grounding head.
LOSSES = [loss.name for loss in TABLE if loss.part is None]
# Every loss at once; the gates of the attraction open wherever a gap has 4 frames.
EVERY_LOSS = {
    **{"method": "sail-align", "diversity_loss_weight": 1.0},
    **{"attraction_loss_weight": 0.4, "attraction_beta": -10.0, "attraction_theta": -1.0},
}


@pytest.fixture(scope="module")
def clip_model(processor, clip):
    """With both CLIP towers inside."""
    clip.vision_config.include_text_tower = True
    return make_model(processor, vision_config=clip.vision_config)


def value(output, name):
    """`output.loss_name`, which the output leaves out of its items where it is None."""
    return getattr(output, f"loss_{name}")


def present(output):
    return {name for name in LOSSES if value(output, name) is not None}


# --- masks --------------------------------------------------------------------------------------------------------


def test_the_fixed_method_trains_no_masks(processor, batch):
    model = make_model(processor, method="fixed")
    output = model(**batch)
    assert output.event_centers[1].tolist() == [0.25, 0.75, 0]
    assert output.event_widths[2].tolist() == [1, 0, 0]
    assert not any("mask_generator" in name for name, _ in model.named_parameters())
    assert present(output) == {"full", "positive", "negative"}
    # More events than event queries: there are none to run out of.
    nine = model.model(batch["video_features"][:1], num_events=tensor([9]))
    torch.testing.assert_close(nine.event_widths, torch.full((1, 9), 1 / 9))


def test_events_come_sorted_by_centre_with_their_own_widths(model, batch):
    """Centres and widths are those that the heads give the first N queries, paired as the heads gave them."""
    raw = {}
    hooks = [
        head.register_forward_hook(lambda _m, _i, out, name=name: raw.__setitem__(name, out.squeeze(-1).sigmoid()))
        for name, head in [
            ("center", model.model.mask_generator.center_head),
            ("width", model.model.mask_generator.width_head),
        ]
    ]
    output = model.model(
        batch["video_features"], video_attention_mask=batch["video_attention_mask"], num_events=tensor([3, 2, 1])
    )
    for hook in hooks:
        hook.remove()
    for b, count in enumerate([3, 2, 1]):
        found = list(zip(output.event_centers[b].tolist(), output.event_widths[b].tolist(), strict=True))
        pairs = zip(raw["center"][b, :count].tolist(), raw["width"][b, :count].tolist(), strict=True)
        assert found == sorted(pairs) + [(0.0, 0.0)] * (3 - count)
    assert (output.event_masks[1, 2] == 0).all() and (output.event_masks[2, 1:] == 0).all()
    assert (output.event_masks[1, :, 5:] == 0).all()
    torch.testing.assert_close(
        output.event_masks[1:2, :2],
        event_masks(
            output.event_centers[1:2, :2],
            output.event_widths[1:2, :2],
            batch["video_attention_mask"][1:2],
            "gaussian",
            2.0,
        ),
    )


def test_a_video_with_n_events_uses_the_first_n_queries(processor):
    model = make_model(processor)
    features = torch.randn(1, 8, 24)
    before = model.model(features, num_events=tensor([2]))
    with torch.no_grad():
        model.model.mask_generator.queries[2:].normal_()
    after = model.model(features, num_events=tensor([2]))
    assert torch.equal(before.event_centers, after.event_centers)
    with torch.no_grad():
        model.model.mask_generator.queries[1].normal_()
    assert not torch.equal(before.event_centers, model.model(features, num_events=tensor([2])).event_centers)


@pytest.mark.parametrize("mask_type", ["gaussian", "cauchy", "hard"])
def test_the_mask_type_is_a_config(processor, batch, mask_type):
    output = make_model(processor, mask_type=mask_type)(**batch)
    expected = event_masks(
        output.event_centers[:1], output.event_widths[:1], batch["video_attention_mask"][:1], mask_type, 2.0
    )
    torch.testing.assert_close(output.event_masks[:1], expected)
    assert output.loss.isfinite()


# --- methods are configurations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, losses",
    [
        ("fixed", {"full", "positive", "negative"}),
        ("ilcacm", {"full", "positive", "negative", "diversity"}),
        ("sail-sim", {"full", "positive", "negative", "similarity"}),
        ("sail-synth", {"full", "positive", "negative", "augmentation"}),
        ("sail-synth-hn", {"full", "positive", "negative", "similarity"}),
        ("sail", {"full", "positive", "negative", "similarity", "augmentation"}),
        ("sbs", {"full", "positive", "negative", "similarity", "attraction"}),
        ("sail-align", {"full", "positive", "negative", "similarity", "augmentation", "alignment"}),
    ],
)
def test_a_method_is_a_set_of_losses(processor, batch, method, losses):
    output = make_model(processor, method=method)(**batch)
    assert present(output) == losses
    assert output.loss.isfinite()


def test_synthetic_captions_as_hard_negatives_raise_the_similarity_loss(processor, batch):
    easy = make_model(processor, method="sail-sim", similarity_margin=2.0)(**batch).loss_similarity
    # Its features are its own first caption's negatives now: as near to the masked features as can be.
    near = {**batch, "transition_features": batch["caption_features"][:, :2].contiguous()}
    hard = make_model(processor, method="sail-synth-hn", similarity_margin=2.0)(**near).loss_similarity
    assert hard > easy


def test_the_loss_is_the_weighted_sum_of_its_parts(processor, batch):
    weights = {name: 0.5 + 0.25 * i for i, name in enumerate(LOSSES)}
    fields = {f"{name}_loss_weight": weight for name, weight in weights.items()}
    model = make_model(processor, **fields, joint_full_loss_weight=weights["full"])
    output = model(**batch)
    assert present(output) == set(LOSSES)
    expected = sum(weights[name] * value(output, name) for name in LOSSES)
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("mask_type", ["gaussian", "cauchy", "hard"])
@pytest.mark.parametrize("transition_width", [0.6, 0.2])
def test_mask_losses_by_loops_over_videos_and_events(processor, batch, mask_type, transition_width):
    """Eq. 2 and Eq. 3 as they are written, from the centres and widths that the model gives."""
    model = make_model(processor, mask_type=mask_type, transition_width=transition_width, similarity_margin=0.4)
    with torch.no_grad():  # events that lie apart
        model.model.mask_generator.center_head.weight.normal_(std=3)
    output = model(**batch)

    def average(b, center, width):
        frames = batch["video_features"][b : b + 1, : batch["video_attention_mask"][b].sum()]
        times = torch.ones(frames.shape[:2])
        mask = event_masks(torch.tensor([[center]]), torch.tensor([[width]]), times, mask_type, 2.0)
        return (mask[0, 0][:, None] * frames[0]).mean(0)

    def cosine(a, b):
        return (torch.dot(a, b) / (a.norm() * b.norm()).clamp(min=1e-12)).item()

    similarity, augmentation = [], []
    for b, count in enumerate([3, 2]):
        centers, widths = output.event_centers[b].tolist(), output.event_widths[b].tolist()
        captions, transitions = batch["caption_features"][b], batch["transition_features"][b]
        hinges = []
        for i in range(count):
            cosines = [cosine(average(b, centers[i], widths[i]), captions[j]) for j in range(count)]
            hardest = max(cosines[j] for j in range(count) if j != i)
            hinges.append(max(0, 0.4 - cosines[i] + hardest))
        similarity.append(sum(hinges) / count)
        between = [(centers[i] + centers[i + 1]) / 2 for i in range(count - 1)]
        gaps = [1 - cosine(average(b, c, transition_width), transitions[i]) for i, c in enumerate(between)]
        augmentation.append(sum(gaps) / (count - 1))
    assert output.loss_similarity.item() == pytest.approx(sum(similarity) / 2, rel=1e-4)
    assert output.loss_augmentation.item() == pytest.approx(sum(augmentation) / 2, rel=1e-4)


def test_the_papers_loss_weights_are_the_defaults(processor, batch):
    output = make_model(processor)(**batch)
    o = output
    expected = o.loss_full + o.loss_positive + o.loss_negative + o.loss_similarity + 0.25 * o.loss_augmentation
    torch.testing.assert_close(output.loss, expected)


def test_fields_that_are_given_win_over_the_method():
    assert SailConfig.for_method("sail", similarity_loss_weight=0.0).similarity_loss_weight == 0.0
    assert SailConfig.for_method("ilcacm", diversity_loss_weight=2).diversity_loss_weight == 2
    assert SailConfig.for_method("fixed", mask_generator="queries").mask_generator == "queries"


def test_a_configuration_names_its_method(tmp_path):
    assert SailConfig().method == "sail"
    for method in METHODS:
        SailConfig.for_method(method).save_pretrained(tmp_path)
        assert SailConfig.from_pretrained(tmp_path).method == method
    assert SailConfig(diversity_loss_weight=0.5).method == "custom"
    assert SailConfig.from_pretrained(tmp_path, **method_fields("ilcacm")).method == "ilcacm"


def test_a_method_is_no_label_that_could_be_wrong(tmp_path):
    """Given as a field it would change a name and leave the weights of the losses: refused wherever it can be given."""
    SailConfig().save_pretrained(tmp_path)
    for change in (
        lambda: SailConfig(method="ilcacm"),
        lambda: SailConfig.from_pretrained(tmp_path, method="ilcacm"),
        lambda: setattr(SailConfig(), "method", "ilcacm"),
    ):
        with pytest.raises(ValueError, match="for_method"):
            change()
    with pytest.raises(ValueError, match="one of fixed, ilcacm.*found 'nonsense'"):
        SailConfig.for_method("nonsense")


def test_heads_follow_from_widths(processor, batch):
    """CLIPs of 512, 640 and 1024, C3D's 500, and the decoder's 768 at the default size of a head."""
    for size, heads in [(512, 8), (640, 10), (768, 12), (1024, 16), (500, 5), (2048, 32), (24, 1)]:
        attention = SailAttention(SailConfig(), size)
        assert attention.q_proj.out_features == heads * attention.head_dim == size
        assert size // attention.head_dim == heads


def test_a_config_without_arguments_is_the_papers():
    config = SailConfig()
    assert (config.feature_size, config.num_frames, config.num_queries) == (768, 32, 14)
    assert (config.encoder_layers, config.encoder_ffn_dim) == (6, 2048)
    assert (config.mask_decoder_layers, config.mask_decoder_ffn_dim) == (1, 1024)
    assert (config.mask_temperature, config.similarity_margin, config.transition_width) == (2.0, 0.1, 0.6)
    assert (config.similarity_loss_weight, config.augmentation_loss_weight, config.diversity_loss_weight) == (
        1,
        0.25,
        0,
    )
    assert (config.text_config.model_type, config.text_config.n_layer, config.text_config.vocab_size) == (
        "gpt2",
        6,
        50260,
    )


@pytest.mark.parametrize("fields", [{"mask_generator": "nonsense"}, {"mask_type": "square"}, {"num_frames": "many"}])
def test_a_config_rejects_what_it_does_not_know(fields):
    with pytest.raises(Exception, match=next(iter(fields))):
        SailConfig(**fields)


def test_a_config_survives_saving(processor, clip, tmp_path):
    config = make_config(processor, "sail-synth", vision_config=clip.vision_config, mask_type="cauchy")
    config.save_pretrained(tmp_path)
    loaded = SailConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.similarity_loss_weight == 0 and loaded.augmentation_loss_weight == 0.25
    assert loaded.vision_config.model_cfg == clip.vision_config.model_cfg


# --- the batch decides which losses exist -------------------------------------------------------------------------


def test_without_labels_there_is_no_loss(model, batch):
    output = model(batch["video_features"], video_attention_mask=batch["video_attention_mask"])
    assert output.loss is None and output.event_centers is None
    located = model(batch["video_features"], num_events=batch["num_events"])
    assert located.loss is None and located.event_masks.shape == (3, 3, 8)


def test_the_whole_video_caption_weighs_differently_alone_and_beside_the_others(processor, batch):
    """Eq. 4 as published has no such loss in the second stage."""
    model = make_model(processor, full_loss_weight=3.0, joint_full_loss_weight=0.0)
    alone = model(batch["video_features"], full_labels=batch["full_labels"])
    torch.testing.assert_close(alone.loss, 3 * alone.loss_full)
    together = model(**batch)
    assert present(together) == {"positive", "negative", "similarity", "augmentation"}


@pytest.mark.parametrize(
    "given, losses",
    [
        (["full_labels"], {"full"}),
        (["num_events", "event_labels"], {"positive"}),
        (["num_events", "complement_labels"], {"negative"}),
        (["num_events", "caption_features"], {"similarity"}),
        (["num_events", "transition_features"], {"augmentation"}),
        (["num_events", "full_labels", "event_labels", "caption_features"], {"full", "positive", "similarity"}),
    ],
)
def test_each_input_brings_its_loss(model, batch, given, losses):
    inputs = {name: batch[name] for name in ["video_features", "video_attention_mask", *given]}
    output = model(**inputs)
    assert present(output) == losses
    # Each loss is the same whether the others are there or not.
    together = model(**batch)
    for name in losses:
        torch.testing.assert_close(value(output, name), value(together, name))


def test_videos_with_one_caption_add_no_negative_and_no_nan(processor):
    model = make_model(processor, **EVERY_LOSS)
    row = make_rows()[2]
    single = SailDataCollator(processor)([row, row])
    output = model(**single)
    assert present(output) == {"full", "positive", "alignment"}
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_every_gradient_of_a_mixed_batch_is_finite(processor, batch):
    model = make_model(processor, **EVERY_LOSS).train()
    output = model(**batch)
    assert present(output) == set(LOSSES)
    output.loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    # Everything learns: no parameter is out of reach.
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []


def test_active_hinges_are_the_share_above_zero(processor, batch):
    # A cosine is at least -1 and at most 1: a margin of 3 leaves every hinge active, one of -3 none.
    assert make_model(processor, similarity_margin=3)(**batch).active_hinges == 1
    assert make_model(processor, similarity_margin=-3)(**batch).active_hinges == 0


def test_denominators_can_be_given(model, batch):
    """Twice the batch's own counts halve every loss."""
    items = {name: 2 * count for name, count in count_items(batch).items()}
    whole, half = model(**batch), model(**batch, num_items_in_batch=items)
    assert present(half) == {"full", "positive", "negative", "similarity", "augmentation"}
    for name in present(half):
        torch.testing.assert_close(2 * value(half, name), value(whole, name))


# --- gradients ----------------------------------------------------------------------------------------------------


def reached(model, loss):
    """First parts of the names of all parameters that a loss has a gradient for."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    names = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    return {".".join(name.split(".")[:2]) if name.startswith("model.") else name.split(".")[0] for name in names}


def test_what_each_loss_trains(processor, batch):
    model = make_model(processor, **EVERY_LOSS, diversity_threshold=0.0)
    output = model(**batch)
    masks, captioner = {"model.mask_generator"}, {"model.video_encoder", "decoder"}
    assert reached(model, output.loss_similarity) == masks
    assert reached(model, output.loss_augmentation) == masks
    assert reached(model, output.loss_diversity) == masks
    assert reached(model, output.loss_attraction) == masks
    assert reached(model, output.loss_alignment) == masks
    assert reached(model, output.loss_full) == captioner
    assert reached(model, output.loss_positive) == masks | captioner
    assert reached(model, output.loss_negative) == masks | captioner


def test_the_clip_towers_are_frozen_and_stay_in_evaluation_mode(clip_model, batch):
    clip_model.train()
    assert not clip_model.model.vision_tower.training and not clip_model.model.text_tower.training
    assert clip_model.model.video_encoder.training
    inputs = {name: v for name, v in batch.items() if not name.startswith(("video_", "frame_"))}
    clip_model(pixel_values_videos=torch.randn(3, 4, 3, 32, 32), **inputs).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in clip_model.model.vision_tower.parameters())
    clip_model.zero_grad()
    clip_model.eval()


# --- saving and loading -------------------------------------------------------------------------------------------


def all_tensors(model):
    """Parameters and buffers, those that no checkpoint holds among them."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def test_a_loaded_model_equals_the_saved_one_in_every_tensor(clip_model, tmp_path, batch):
    clip_model.save_pretrained(tmp_path)
    loaded = SailForDenseVideoCaptioning.from_pretrained(tmp_path)
    saved_tensors, loaded_tensors = all_tensors(clip_model), all_tensors(loaded)
    assert saved_tensors.keys() == loaded_tensors.keys()
    assert any(name.endswith("text_tower.attn_mask") for name in saved_tensors)
    different = [name for name, t in saved_tensors.items() if not torch.equal(t, loaded_tensors[name])]
    assert different == []
    assert [p.name for p in tmp_path.glob("*.bin")] == [] and (tmp_path / "model.safetensors").is_file()


def test_a_loaded_model_gives_the_same_outputs(clip_model, processor, tmp_path, batch):
    clip_model.save_pretrained(tmp_path)
    loaded = SailForDenseVideoCaptioning.from_pretrained(tmp_path)
    assert not loaded.training
    for name, tensor_ in clip_model(**batch).items():
        assert torch.equal(tensor_, loaded(**batch)[name]), name
    pixels = torch.randn(2, 5, 3, 32, 32)
    options = {"max_new_tokens": 5, "full_max_new_tokens": 10}
    before = clip_model.generate(pixel_values_videos=pixels, **options)
    after = loaded.generate(pixel_values_videos=pixels, **options)
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_the_base_model_loads_from_the_same_folder(clip_model, tmp_path, batch):
    clip_model.save_pretrained(tmp_path)
    base = SailModel.from_pretrained(tmp_path)
    inputs = {name: batch[name] for name in ("video_features", "video_attention_mask", "num_events")}
    expected = clip_model.model(**inputs)
    for name, tensor_ in base(**inputs).items():
        assert torch.equal(tensor_, expected[name]), name


def test_auto_classes(clip_model, processor, tmp_path):
    clip_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is SailConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is SailModel
    assert type(AutoModelForMultimodalLM.from_pretrained(tmp_path)) is SailForDenseVideoCaptioning
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SailProcessor and type(loaded.video_processor) is SailVideoProcessor
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is SailVideoProcessor
    assert loaded.video_processor.to_dict() == processor.video_processor.to_dict()
    assert loaded.caption_labels(CAPTIONS[0]) == processor.caption_labels(CAPTIONS[0])


def test_loading_in_half_precision(model, tmp_path, batch):
    model.save_pretrained(tmp_path)
    loaded = SailForDenseVideoCaptioning.from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = loaded(**batch)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(output.loss.float(), model(**batch).loss, rtol=0.05, atol=0.05)
    assert (
        loaded.generate(batch["video_features"], num_beams=1, max_new_tokens=4, full_max_new_tokens=10)
        .scores.isfinite()
        .all()
    )


def test_autocast_trains(processor, batch):
    model = make_model(processor).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- padding and batching -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_generator", ["queries", "progress"])
def test_padding_frames_and_labels_changes_nothing(processor, mask_generator):
    """Padding by events is what a batch of videos with different numbers has; see the next test."""
    model = make_model(processor, **EVERY_LOSS, mask_generator=mask_generator)
    rows = make_rows(num_frames=(5, 4, 3))
    plain = SailDataCollator(processor)(rows[:2])
    padded = {
        # What stands on the padding must not matter.
        "video_features": torch.cat([plain["video_features"], torch.full((2, 3, 24), 7.0)], 1),
        "video_attention_mask": torch.nn.functional.pad(plain["video_attention_mask"], (0, 3)),
        "num_events": plain["num_events"],
        "caption_features": plain["caption_features"],
        "transition_features": plain["transition_features"],
        "frame_caption_features": torch.nn.functional.pad(plain["frame_caption_features"], (0, 0, 0, 3), value=7.0),
    }
    padded["video_features"][1, 4] = 7.0
    for name in ("full_labels", "event_labels", "complement_labels"):
        padded[name] = torch.nn.functional.pad(plain[name], (0, 5), value=-100)
    expected, found = model(**plain), model(**padded)
    assert present(found) == set(LOSSES)
    for name in LOSSES:
        torch.testing.assert_close(value(found, name), value(expected, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.event_centers, expected.event_centers, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.event_masks[:, :, :5], expected.event_masks, rtol=1e-5, atol=1e-6)
    assert (found.event_masks[:, :, 5:] == 0).all()


@pytest.mark.parametrize("mask_generator", ["queries", "progress"])
def test_a_batch_equals_its_videos_one_by_one(processor, batch, mask_generator):
    """Losses are means: over tokens, or over the videos with more than one caption, of what single videos give."""
    model = make_model(processor, **{**EVERY_LOSS, "alignment_loss_weight": 0.0}, mask_generator=mask_generator)
    rows = make_rows(num_frames=(8, 5, 6))
    collate = SailDataCollator(processor)
    singles = [collate([row]) for row in rows]
    outputs = [model(**single) for single in singles]
    together = model(**batch)
    for b, (row, output) in enumerate(zip(rows, outputs, strict=True)):
        events, frames = len(row["captions"]), len(row["video_features"])
        torch.testing.assert_close(together.event_centers[b, :events], output.event_centers[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.event_widths[b, :events], output.event_widths[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            together.event_masks[b, :events, :frames], output.event_masks[0], rtol=1e-5, atol=1e-6
        )
        assert (together.event_centers[b, events:] == 0).all() and (together.event_masks[b, :, frames:] == 0).all()
    items = {
        "full": "full_tokens",
        "positive": "positive_tokens",
        "negative": "negative_tokens",
        "similarity": "multi_event_videos",
        "augmentation": "multi_event_videos",
        "attraction": "multi_event_videos",
        "diversity": "multi_event_videos",
    }
    assert present(together) == items.keys()
    for name, count in items.items():
        pairs = [(value(o, name), count_items(s)[count]) for o, s in zip(outputs, singles, strict=True)]
        total = sum(loss * number for loss, number in pairs if loss is not None)
        mean = total / sum(number for loss, number in pairs if loss is not None)
        torch.testing.assert_close(value(together, name), mean, rtol=1e-5, atol=1e-6)
    # The video with one caption gives no such loss.
    assert present(outputs[2]) == {"full", "positive"}


# --- a plain Trainer ----------------------------------------------------------------------------------------------


def plain_trainer(folder, processor, rows, **arguments):
    args = TrainingArguments(
        output_dir=str(folder),
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    return Trainer(
        model=make_model(processor, dropout=0),
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=SailDataCollator(processor),
    )


def test_a_plain_trainer_trains_it(processor, tmp_path):
    batches = {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 4}
    trainer = plain_trainer(tmp_path, processor, make_rows() * 2, max_steps=12, learning_rate=1e-2, **batches)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before


def test_a_plain_trainer_accumulates_the_mean_of_its_batches(processor, tmp_path):
    """The same batch twice in a step, or once: the same step of plain gradient descent."""
    steps = []
    for count in (1, 2):
        trainer = plain_trainer(
            tmp_path,
            processor,
            make_rows()[:1] * count,
            max_steps=1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=count,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0,
        )
        for module in trainer.model.decoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0
        trainer.train()
        steps.append(dict(trainer.model.named_parameters()))
    for name, once in steps[0].items():
        torch.testing.assert_close(steps[1][name], once, rtol=0, atol=1e-6)


def test_clip_is_added_to_a_model_without_one_and_saved_with_it(processor, tmp_path):
    model = make_model(processor)
    clip = make_clip(tmp_path / "clip")
    model.model.add_clip(clip)
    model.save_pretrained(tmp_path / "model")
    loaded = SailForDenseVideoCaptioning.from_pretrained(tmp_path / "model")
    pixels = torch.rand(2, 3, 3, 32, 32)
    expected = clip.encode_images(pixels.flatten(0, 1)).unflatten(0, (2, 3))
    assert torch.allclose(loaded.model.get_video_features(pixels), expected, atol=1e-5)
    with pytest.raises(ValueError, match="size 12, found 24"):
        make_model(processor, feature_size=12).model.add_clip(clip)
