"""Captioning losses, whose rows go through the decoder in groups of like length: equal to the same written plainly."""

import pytest
import torch
from tiny import make_model
from torch import tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, BloomConfig, CohereConfig, Gemma2Config, GraniteConfig, OPTConfig

from sail_hf import loss_sail
from sail_hf.generation_sail import shares_weights

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA_LIKE = {**SMALL, "num_key_value_heads": 1, "intermediate_size": 24}
# Scores that are scaled or capped after the head, and positions that are counted in other ways.
DECODERS = {
    "cohere": CohereConfig(**LLAMA_LIKE, logit_scale=0.25),
    "gemma2": Gemma2Config(**LLAMA_LIKE, head_dim=8, final_logit_softcapping=0.05),
    "granite": GraniteConfig(**LLAMA_LIKE, logits_scaling=3.0),
    "opt": OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=256),
    "bloom": BloomConfig(hidden_size=16, n_layer=2, n_head=2),
}
PASSES = {"loss_full": "full_labels", "loss_positive": "event_labels", "loss_negative": "complement_labels"}


def without_dropout(model):
    for module in model.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


def with_decoder(processor, name):
    """A model whose decoder is of another kind; dropout is off."""
    if name == "gpt2":
        return without_dropout(make_model(processor))
    config = DECODERS[name]
    config.update({"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id})
    model = make_model(processor)
    model.decoder = AutoModelForCausalLM.from_config(config)
    return without_dropout(model)


def plain_loss(model, features, frame_mask, labels):
    """All rows padded to the longest, logits at every position, the mean over targets."""
    encoded = model.model.video_encoder(features, frame_mask)
    embeds, mask = model.decoder_inputs(encoded, frame_mask, labels)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model.decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    logits = logits[:, features.shape[1] :][:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def plain_losses(model, batch):
    features, frame_mask, counts = (batch[name] for name in ("video_features", "video_attention_mask", "num_events"))
    masks = model.model.localize(features, frame_mask, counts)[2]
    losses = {"loss_full": plain_loss(model, features, frame_mask, batch["full_labels"])}
    for name, weights, least in (("loss_positive", masks, 1), ("loss_negative", 1 - masks, 2)):
        pairs = [(b, n) for b, count in enumerate(counts.tolist()) if count >= least for n in range(count)]
        video, event = tensor(pairs).unbind(1)
        frames = features[video] * weights[video, event][:, :, None]
        losses[name] = plain_loss(model, frames, frame_mask[video], batch[PASSES[name]][video, event])
    return losses


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def without_mask_losses(batch):
    return {name: batch[name] for name in ("video_features", "video_attention_mask", "num_events", *PASSES.values())}


@pytest.mark.parametrize("cost", [0, 30, 10**6])
@pytest.mark.parametrize("name", ["gpt2", *DECODERS])
def test_losses_and_gradients_are_those_of_the_plain_passes(processor, batch, monkeypatch, name, cost):
    monkeypatch.setattr(loss_sail, "POSITIONS_A_PASS", cost)
    model, batch = with_decoder(processor, name), without_mask_losses(batch)
    output, expected = model(**batch), plain_losses(model, batch)
    for loss, value in expected.items():
        torch.testing.assert_close(output[loss], value, rtol=1e-5, atol=1e-6)
    found, wanted = gradients(model, output.loss), gradients(model, sum(expected.values()))
    assert found.keys() == wanted.keys()
    for weight, gradient in wanted.items():
        torch.testing.assert_close(found[weight], gradient, rtol=1e-4, atol=1e-6, msg=lambda text: f"{weight}: {text}")  # noqa: B023


def test_counts_of_a_whole_step_divide_the_sum_over_groups(processor, batch, monkeypatch):
    """Twice the items of the batch, whatever the groups: half of each loss."""
    model, batch = with_decoder(processor, "gpt2"), without_mask_losses(batch)
    counts = {name: 2 * count for name, count in loss_sail.count_items(batch).items()}
    for cost in (0, 10**6):
        monkeypatch.setattr(loss_sail, "POSITIONS_A_PASS", cost)
        alone, in_step = model(**batch), model(**batch, num_items_in_batch=counts)
        for loss in PASSES:
            torch.testing.assert_close(in_step[loss], alone[loss] / 2, rtol=1e-6, atol=1e-7)


def test_the_first_token_of_a_row_is_no_target(processor, batch):
    """In rows of one token there is none: a loss of 0, and gradients that are 0, for processes that wait for each other."""
    model = with_decoder(processor, "gpt2")
    inputs = {name: batch[name] for name in ("video_features", "video_attention_mask")}
    output = model(**inputs, full_labels=batch["full_labels"][:, :1])
    assert output.loss_full == 0
    assert all((gradient == 0).all() for gradient in gradients(model, output.loss).values())


def test_a_hole_in_the_labels_is_as_in_the_plain_pass(processor, batch):
    """An id of -100 amid a row is neither seen nor a target; the row goes on after it."""
    model = with_decoder(processor, "gpt2")
    features, frame_mask, labels = (batch[name] for name in ("video_features", "video_attention_mask", "full_labels"))
    holed = torch.cat([labels[:, :3], labels.new_full((3, 1), -100), labels[:, 3:]], 1)
    found = model(video_features=features, video_attention_mask=frame_mask, full_labels=holed).loss_full
    torch.testing.assert_close(found, plain_loss(model, features, frame_mask, holed), rtol=1e-5, atol=1e-6)


def test_gpt2s_activation_is_the_same_function_and_keeps_one_tensor(processor):
    """The decoder of transformers and ours, same weights: the same scores; for its gradient, ours keeps its input alone."""
    model = make_model(processor)
    plain = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    plain.load_state_dict(model.decoder.state_dict())
    embeds = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        model.decoder(inputs_embeds=embeds).logits, plain(inputs_embeds=embeds).logits, rtol=1e-5, atol=1e-6
    )
    kept = {}
    for name, decoder in (("ours", model.decoder), ("plain", plain)):
        found = []
        values = torch.linspace(-4, 4, 99, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, found=found: found.append(t) or t, lambda t: t):
            decoder.transformer.h[0].mlp.act(values)
        kept[name] = len({tensor.data_ptr() for tensor in found if tensor.numel() == 99})
    assert kept["ours"] == 1 < kept["plain"]


def test_nothing_but_targets_is_scored(processor, batch):
    model, batch = with_decoder(processor, "gpt2"), without_mask_losses(batch)
    scored = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: scored.append(output.shape[0]))
    model(**batch)
    targets = sum(int((batch[labels][..., 1:] != -100).sum()) for labels in PASSES.values())
    assert sum(scored) == targets


def test_little_of_what_the_decoder_sees_is_padding(processor, batch, monkeypatch):
    """With passes that cost nothing, every position that the decoder computes is a frame's or an id's, and no row's last."""
    monkeypatch.setattr(loss_sail, "POSITIONS_A_PASS", 0)
    model, batch = with_decoder(processor, "gpt2"), without_mask_losses(batch)
    seen = []
    original = model.decoder.forward
    monkeypatch.setattr(
        model.decoder, "forward", lambda **kw: seen.append(kw["inputs_embeds"].shape) or original(**kw)
    )
    model(**batch)
    frames = batch["video_features"].shape[1]
    rows = [row for labels in PASSES.values() for row in batch[labels].flatten(0, -2) if (row != -100).any()]
    assert sum(size[0] for size in seen) == len(rows)
    assert sum(size[0] * size[1] for size in seen) == sum(frames + int((row != -100).sum()) - 1 for row in rows)


def test_a_pass_reads_nothing_off_the_device(processor, batch):
    """Tensors on the device `meta` have no values, so whatever asks for one fails; labels alone are on the host."""
    model = make_model(processor)
    counts, labels = batch["num_events"].tolist(), batch["complement_labels"]
    features, frame_mask, weights = (torch.ones(size, device="meta") for size in ((3, 8, 24), (3, 8), (3, 3, 8)))
    inputs = loss_sail.LossInputs(
        config=model.config,
        features=features,
        frame_mask=frame_mask,
        encoded=features,
        encode=lambda frames, mask: frames[..., :16],
        caption_logits=lambda encoded, mask, ids, keep, regions: torch.zeros(int(keep.sum()), 300, device="meta"),
        make_masks=None,
        add_context=lambda frames, weights, video: frames,
        counts=counts,
    )
    for num_items in (None, 7):
        loss, _ = inputs.event_pass(labels, weights, num_items, at_least=2)
        assert loss.device.type == "meta" and loss.shape == ()
        of_videos = inputs.caption_pass(features, frame_mask, batch["full_labels"], num_items, regions=None)
        assert of_videos.device.type == "meta"


def test_where_processes_hold_shares_of_the_weights_all_make_as_many_passes(processor, batch, monkeypatch):
    """Pretended: one process says that it is of two, and its model sharded."""
    model, passes = make_model(processor), []
    model.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(loss_sail, "POSITIONS_A_PASS", 0)
    alone = model(**batch).loss
    assert len(passes) > 3  # rows of each length go for themselves
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    assert not shares_weights(model)  # as under DDP
    monkeypatch.setattr("sail_hf.generation_sail.is_fsdp_managed_module", lambda model: True)
    passes.clear()
    torch.testing.assert_close(model(**batch).loss, alone)
    assert len(passes) == 3  # full, positive, negative
