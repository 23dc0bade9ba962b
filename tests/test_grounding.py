"""The grounding head: its attention, targets and losses by hand; models with and without it; any decoder; data in, words out."""

import math

import pytest
import torch
from test_generation import DECODERS
from tiny import CAPTIONS, make_model, make_rows
from torch import tensor
from transformers import AutoModelForCausalLM

from sail_hf import SailDataCollator, SailForDenseVideoCaptioning, SailModel
from sail_hf.grounding_sail import Regions, box_coverage, frame_log_weights, grid_of, grounding_loss
from sail_hf.loss_sail import count_items, required_columns

PATCHES = 16


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, tensor(expected), **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def grounded_rows(num_frames=(8, 5, 6)):
    """Rows with patches of 4 x 4, and boxes of one word each of the first and the last video."""
    generator = torch.Generator().manual_seed(5)
    rows = make_rows(num_frames=num_frames)
    for row in rows:
        shape = (len(row["video_features"]), PATCHES, 24)
        row["region_features"] = torch.randn(shape, generator=generator).half()
        row["groundings"] = [[] for _ in row["captions"]]
    man = {"word": 1, "frames": [2, 3], "boxes": [[0, 0, 0.5, 0.5], [0, 0, 0.25, 0.125]], "scores": [1.0, 0.6]}
    field = {"word": 5, "frames": [0], "boxes": [[0.5, 0.5, 1, 1]], "scores": [0.75]}
    rows[0]["groundings"][0], rows[2]["groundings"][0] = [man], [field]
    return rows


@pytest.fixture(scope="module")
def grounded_batch(processor):
    return SailDataCollator(processor)(grounded_rows())


@pytest.fixture(scope="module")
def grounded_model(processor):
    """A model whose head changes its outputs."""
    model = make_model(processor, grounding=True)
    with torch.no_grad():
        model.grounding_head.out_proj.weight.normal_(std=0.5)
    return model


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


# --- attention ----------------------------------------------------------------------------------------------------


def test_frames_outside_of_an_event_are_held_back_but_seen_and_padding_is_not():
    weights = tensor([[1.0, 0.5, 1e-9, 0.0, 0.7]], requires_grad=True)
    found = frame_log_weights(weights, tensor([[1, 1, 1, 1, 0]]))
    close(found, [[0.0, math.log(0.5), -4.0, -4.0, -math.inf]])
    assert not found.requires_grad  # boxes say nothing of when events are


def test_attention_is_a_softmax_over_all_patches_of_all_frames(processor):
    """h + W_o sum_j alpha_j r_j, written out patch by patch."""
    head = make_model(processor, grounding=True).grounding_head
    with torch.no_grad():
        head.out_proj.weight.normal_()
    patches, hidden = torch.randn(2, 3, 4, 24), torch.randn(3, 5, 16)
    masks = tensor([[0.2, 1.0, 0.0], [1.0, 0.3, 0.9], [0.9, 0.1, 0.4]])
    frames = tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    regions = Regions(*head.project(patches), [1, 0, 1], frame_log_weights(masks, frames))
    found = head(hidden, regions)
    for row, video in enumerate([1, 0, 1]):
        for place in range(5):
            query = head.q_proj(hidden[row, place])
            scores, values = [], []
            for t in range(3):
                for n in range(4):
                    value = head.norm(patches[video, t, n])
                    bias = max(math.log(masks[row, t].clamp(min=1e-30)), -4) if frames[row, t] else -math.inf
                    scores.append(query @ head.k_proj(value) / math.sqrt(24) + bias)
                    values.append(value)
            alpha = torch.stack(scores).softmax(0)
            expected = hidden[row, place] + head.out_proj(alpha @ torch.stack(values))
            torch.testing.assert_close(found[row, place], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(regions.log_attention[row, place].exp().flatten(), alpha, rtol=1e-4, atol=1e-6)


def test_beams_share_the_patches_of_their_row(processor):
    head = make_model(processor, grounding=True).grounding_head
    with torch.no_grad():
        head.out_proj.weight.normal_()
    projected, masks = head.project(torch.randn(2, 3, 4, 24)), torch.rand(2, 3)
    log_weights = frame_log_weights(masks, torch.ones(2, 3))
    hidden = torch.randn(6, 1, 16)  # beams of a row lie next to each other
    found = head(hidden, Regions(*projected, [1, 0], log_weights))
    for beam in range(6):
        row = beam // 3
        alone = head(hidden[beam : beam + 1], Regions(*projected, [[1, 0][row]], log_weights[row : row + 1]))
        torch.testing.assert_close(found[beam], alone[0], rtol=1e-5, atol=1e-6)


# --- targets and losses -------------------------------------------------------------------------------------------


def test_coverage_is_the_share_of_a_patch_that_lies_in_the_box():
    # 2 x 2 patches. The left half; a quarter of the picture in its middle; less than a patch; none of it.
    boxes = tensor([[0, 0, 0.5, 1], [0.25, 0.25, 0.75, 0.75], [0.5, 0.5, 0.75, 0.6], [1.2, 0, 1.4, 1]])
    close(box_coverage(boxes, (2, 2)), [[1, 0, 1, 0], [0.25] * 4, [0, 0, 0, 0.5 * 0.2], [0] * 4])
    # Rows and columns are not taken for each other.
    close(box_coverage(tensor([0, 0.5, 1, 1]), (2, 3)), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="no square number"):
        grid_of(12)


def test_losses_by_hand():
    attention = tensor([0.5, 0.25, 0.125, 0.125])
    gamma = tensor([[1.0, 0.5, 0.0, 0.0], [0.0] * 4, [0.0, 0.0, 0.0, 0.25]])
    log_attention = attention.log().expand(1, 3, 4).unflatten(-1, (2, 2))
    targets = gamma[None].unflatten(-1, (2, 2))
    # The second position has no target, and no part in the mean.
    first, third = -math.log(0.5 + 0.125), -math.log(0.25 * 0.125)
    close(grounding_loss(log_attention, targets, "sum"), (first + third) / 2)
    close(grounding_loss(log_attention, targets, "sum", num_items=4), (first + third) / 4)
    first = -(2 / 3 * math.log(0.5) + 1 / 3 * math.log(0.25))
    close(grounding_loss(log_attention, targets, "spread"), (first - math.log(0.125)) / 2)
    assert grounding_loss(log_attention, torch.zeros(1, 3, 2, 2), "spread") == 0


def test_one_patch_satisfies_the_sum_and_the_spread_wants_all_of_the_box():
    inside = tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 1, 4)
    one, all_of_it = tensor([0.97, 0.01, 0.01, 0.01]), tensor([0.33, 0.33, 0.33, 0.01])
    losses = {
        kind: [grounding_loss(alpha.log().reshape(1, 1, 1, 4), inside, kind).item() for alpha in (one, all_of_it)]
        for kind in ("sum", "spread")
    }
    assert (
        losses["sum"][0] == pytest.approx(losses["sum"][1], rel=1e-4) and losses["spread"][0] > 2 * losses["spread"][1]
    )


def test_padding_has_no_attention_and_breaks_no_gradient():
    scores = torch.randn(1, 1, 2, 3, requires_grad=True)
    held = scores + tensor([0.0, -math.inf])[:, None]
    log_attention = held.flatten(2).log_softmax(-1).unflatten(-1, (2, 3))
    for kind in ("sum", "spread"):
        (gradient,) = torch.autograd.grad(
            grounding_loss(log_attention, tensor([[[[0.0, 1.0, 0.5], [0.0] * 3]]]), kind), scores, retain_graph=True
        )
        assert gradient.isfinite().all() and gradient[0, 0, 0].abs().sum() > 0


# --- batches ------------------------------------------------------------------------------------------------------


def test_the_target_of_a_word_stands_where_its_tokens_are_predicted(processor, grounded_batch):
    targets, labels = grounded_batch["grounding_targets"], grounded_batch["event_labels"]
    assert targets.shape == (6, labels.shape[2], 8, PATCHES)
    assert grounded_batch["region_features"].dtype == torch.float16
    rows = {(0, (0, 0), "man"): 2, (5, (2, 0), "field."): 1}  # row of the targets, of the labels, word, frames
    for (row, of_label, word), frames in rows.items():
        (places,) = targets[row].flatten(1).amax(-1).nonzero(as_tuple=True)
        following = labels[of_label][places + 1]
        assert processor.tokenizer.decode(following).strip() == word
        assert (targets[row][places].amax(-1) > 0).sum(1).tolist() == [frames] * len(places)
    assert targets[1:5].sum() == 0
    (place,) = targets[0].flatten(1).amax(-1).nonzero(as_tuple=True)
    square = targets[0, place[0]].unflatten(-1, (4, 4))
    close(square[2, :2, :2], [[1.0, 1.0], [1.0, 1.0]])
    close(square[3, 0, 0], 0.6 * 0.5)  # confidence, and half of the patch
    assert square.sum() == pytest.approx(4.3)


def test_word_positions_are_those_of_the_written_sentence(processor):
    """A sentence as annotators write it has the words of the one that the decoder learns."""
    caption = "  a man,  slowly lifts it"
    (labels,) = processor.caption_labels([caption])["event_labels"]
    words = [
        processor.tokenizer.decode([labels[place + 1] for place in places]).strip()
        for places in processor.word_positions(caption)
    ]
    assert words == ["A", "man,", "slowly", "lifts", "it."]


def test_several_boxes_of_a_word_add_to_its_target(processor):
    rows = grounded_rows()[:1]
    second = {"word": 1, "frames": [3], "boxes": [[0.75, 0.75, 1, 1]], "scores": [0.8]}
    rows[0]["groundings"][0].append(second)
    target = SailDataCollator(processor)(rows)["grounding_targets"][0].amax(0).unflatten(-1, (4, 4))
    close(target[3, 3, 3], 0.8)
    close(target[3, 0, 0], 0.3)
    close(target[2].sum(), 4.0)


def test_captions_and_labels_that_are_cut_off_have_no_target(processor):
    rows = grounded_rows()
    rows[0]["groundings"][2] = rows[0]["groundings"][0]
    assert SailDataCollator(processor, max_events=2)(rows)["grounding_targets"].shape[0] == 5
    cut = SailDataCollator(processor, max_length=7)(rows)["grounding_targets"]
    assert cut.shape[1] == 7 and cut[0].sum() > 0 and cut[5].sum() == 0  # the field comes later than 7 tokens


@pytest.mark.parametrize(
    "change, words",
    [
        ({"groundings": [[]]}, "groundings. of 3 captions of a video, found those of 1"),
        ({"region_features": torch.zeros(3, PATCHES, 24)}, "region_features. .T, N, D. of .8, 5, 6. frames"),
        ({"region_features": torch.zeros(8, 24)}, "found .None, 5, 6"),
        ({"region_features": torch.zeros(8, 12, 24)}, "patches"),
    ],
)
def test_rows_that_do_not_fit_are_named(processor, change, words):
    rows = grounded_rows()
    rows[0].update(change)
    if change.get("region_features", torch.zeros(0)).shape[1:2] == (12,):
        rows = rows[:1]
    with pytest.raises(ValueError, match=words):
        SailDataCollator(processor)(rows)


# --- the model ----------------------------------------------------------------------------------------------------


def test_without_the_head_nothing_is_new(processor, grounded_batch):
    model = make_model(processor)
    assert not any("grounding" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="this one has none .config.grounding is False.*grounding=True"):
        model(**grounded_batch)
    with pytest.raises(ValueError, match="this one has none"):
        model.generate(grounded_batch["video_features"], region_features=grounded_batch["region_features"])
    assert required_columns(model.config).keys() == {"caption_features", "transition_features"}
    assert {"region_features", "groundings"} <= required_columns(make_model(processor, grounding=True).config).keys()


def test_a_trained_model_goes_on_unchanged_with_a_new_head(processor, grounded_batch, tmp_path):
    model = make_model(processor)
    model.save_pretrained(tmp_path)
    with_head = SailForDenseVideoCaptioning.from_pretrained(tmp_path, grounding=True)
    batch = without(grounded_batch, "region_features", "grounding_targets")
    plain, found = model(**batch), with_head(**batch, region_features=grounded_batch["region_features"])
    for name in ("loss_full", "loss_positive", "loss_negative", "event_masks"):
        assert torch.equal(plain[name], found[name]), name
    options = {"num_events": tensor([2, 1, 1]), "video_attention_mask": batch["video_attention_mask"]}
    first = model.generate(batch["video_features"], **options)
    second = with_head.generate(batch["video_features"], region_features=grounded_batch["region_features"], **options)
    assert torch.equal(first.sequences, second.sequences) and torch.equal(first.scores, second.scores)
    assert {name for name, _ in with_head.grounding_head.named_parameters()} == {
        *(
            "norm.weight",
            "norm.bias",
            "q_proj.weight",
            "q_proj.bias",
            "k_proj.weight",
            "k_proj.bias",
            "out_proj.weight",
        )
    }


def test_a_head_comes_back_from_disk(grounded_model, grounded_batch, tmp_path):
    grounded_model.save_pretrained(tmp_path)
    loaded = SailForDenseVideoCaptioning.from_pretrained(tmp_path)
    assert torch.equal(loaded(**grounded_batch).loss, grounded_model(**grounded_batch).loss)
    SailModel.from_pretrained(tmp_path)  # passes over the head


def test_the_loss_trains_the_head_and_the_words_but_not_where_events_are(processor, grounded_model, grounded_batch):
    output = grounded_model(**grounded_batch)
    (gradients,) = [torch.autograd.grad(output.loss_grounding, grounded_model.parameters(), allow_unused=True)]
    learns = {
        name: gradient is not None and bool(gradient.abs().sum() > 0)
        for (name, _), gradient in zip(grounded_model.named_parameters(), gradients, strict=True)
    }
    assert learns["grounding_head.q_proj.weight"] and learns["grounding_head.k_proj.weight"]
    assert learns["decoder.transformer.h.0.mlp.c_fc.weight"]
    assert not learns["grounding_head.out_proj.weight"]
    other = make_model(processor, grounding=True, grounding_loss_weight=0.0)(**grounded_batch)
    assert other.loss_grounding is None and other.loss_positive is not None


def test_the_loss_needs_no_weight_of_the_positive_pass(processor, grounded_batch):
    models = [make_model(processor, grounding=True, positive_loss_weight=weight) for weight in (1.0, 0.0)]
    outputs = [model(**grounded_batch) for model in models]
    assert torch.equal(outputs[0].loss_grounding, outputs[1].loss_grounding) and outputs[1].loss_positive is None


def test_micro_batches_add_up_to_the_loss_of_all(processor, grounded_model):
    rows = grounded_rows()
    collate = SailDataCollator(processor)
    whole = collate(rows)
    counts = count_items(whole)
    assert counts["grounded_tokens"] == 3  # man; field, and its full stop
    parts = [
        grounded_model(**collate([row]), num_items_in_batch=counts).loss_grounding
        for row in rows
        if any(row["groundings"])
    ]
    torch.testing.assert_close(sum(parts), grounded_model(**whole).loss_grounding, rtol=1e-4, atol=1e-6)


def test_targets_of_another_shape_are_named(grounded_model, grounded_batch):
    targets = grounded_batch["grounding_targets"]
    with pytest.raises(ValueError, match="grounding_targets. must have shape .6, 14, 8, 16., found .5, 14, 8, 16."):
        grounded_model(**{**grounded_batch, "grounding_targets": targets[:5]})
    with pytest.raises(ValueError, match="needs `region_features` and `event_labels`"):
        grounded_model(**without(grounded_batch, "region_features"))
    with pytest.raises(ValueError, match="region_features. must have shape .3, 8, any, 24., found .3, 7"):
        grounded_model(**{**grounded_batch, "region_features": torch.zeros(3, 7, PATCHES, 24)})


@pytest.mark.parametrize("name", DECODERS)
def test_any_causal_language_model_looks(name, processor, clip, grounded_batch):
    """Beside patches of other videos in a batch, with beams, and eager as with sdpa."""
    torch.manual_seed(0)
    sizes = {"num_frames": 8, "num_queries": 4, "encoder_layers": 1, "encoder_ffn_dim": 16, "mask_decoder_ffn_dim": 16}
    decoder = AutoModelForCausalLM.from_config(DECODERS[name])
    model = SailForDenseVideoCaptioning.from_clip_and_decoder(clip, decoder, processor, grounding=True, **sizes).eval()
    with torch.no_grad():
        model.grounding_head.out_proj.weight.normal_(std=5.0)
    regions = grounded_batch["region_features"]
    found = model(**grounded_batch)
    assert not torch.equal(found.loss, model(**{**grounded_batch, "region_features": regions.flip(0)}).loss)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**grounded_batch).loss, found.loss, rtol=1e-4, atol=1e-5)
    batch = {key: grounded_batch[key] for key in ("video_features", "video_attention_mask", "region_features")}
    options = {"num_beams": 2, "max_new_tokens": 5}
    together = model.generate(**batch, num_events=tensor([2, 1, 1]), **options)
    one = {key: value[1:2, :5] for key, value in batch.items()}
    alone = model.generate(**one, num_events=tensor([1]), **options)
    torch.testing.assert_close(together.scores[2], alone.scores[0], rtol=1e-4, atol=1e-6)
    blind = model.generate(**without(batch, "region_features"), num_events=tensor([2, 1, 1]), **options)
    assert not torch.allclose(together.scores, blind.scores, rtol=1e-3)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_events_are_grounded_as_the_positive_pass_looks(processor, grounded_model, grounded_batch):
    masks = grounded_model(**grounded_batch).event_masks
    names = ("video_features", "video_attention_mask")
    features, frame_mask = (grounded_batch[name] for name in names)
    rest = [grounded_batch[name] for name in ("num_events", "event_labels", "region_features")]
    attention = grounded_model.ground_events(features, frame_mask, masks, *rest)
    assert attention.shape == grounded_batch["grounding_targets"].shape
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(attention.shape[:2]))
    assert (attention[3:5, :, 5:] == 0).all()  # frames that the second video has not
    loss = grounding_loss(attention.log(), grounded_batch["grounding_targets"], "spread")
    torch.testing.assert_close(loss, grounded_model(**grounded_batch).loss_grounding, rtol=1e-4, atol=1e-5)


def test_a_few_steps_find_the_box(processor):
    """The word of the sentence decides where to look: two words, two places, in a video of noise but for two kinds of patches."""
    torch.manual_seed(0)
    rows = grounded_rows((8, 8, 8))[:1]
    patches = 0.1 * torch.randn(8, PATCHES, 24)
    patches[:, 5, :12] += 2.0
    patches[:, 10, 12:] += 2.0
    rows[0]["region_features"] = patches
    boxes = {1: [0.25, 0.25, 0.5, 0.5], 4: [0.5, 0.5, 0.75, 0.75]}
    assert CAPTIONS[0][0].split()[4] == "bar."
    rows[0]["groundings"][0] = [
        {"word": word, "frames": [3], "boxes": [box], "scores": [1.0]} for word, box in boxes.items()
    ]
    batch = SailDataCollator(processor)(rows)
    model = make_model(processor, grounding=True, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss_grounding.backward()
        optimizer.step()
    rest = [batch[name] for name in ("num_events", "event_labels", "region_features")]
    attention = model.ground_events(
        batch["video_features"], batch["video_attention_mask"], model(**batch).event_masks, *rest
    )[0]
    positions = processor.word_positions(CAPTIONS[0][0])
    for word, patch in ((1, 5), (4, 10)):
        # Not in the labelled frame alone: the patch looks the same in all of them.
        assert attention[positions[word][0]].sum(0).argmax() == patch
