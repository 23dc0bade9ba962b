"""Context from captions: clusters, what a bank recalls, its fusion with frames, and where its sentences are kept."""

import math

import pytest
import torch
from tiny import CAPTIONS, make_model, make_rows
from torch import tensor
from torch.testing import assert_close

from sail_hf import SailDataCollator, SailForDenseVideoCaptioning, SailModel
from sail_hf.context_sail import SENTENCES_FILE, Context, SailContext, cluster_frames, id_bytes

IDS = ["one", "two", "three"]
SENTENCES = [text for video in CAPTIONS for text in video]
OF_VIDEOS = [name for name, video in zip(IDS, CAPTIONS, strict=True) for _ in video]


def with_bank(model, seed=7):
    """The model's bank filled with the captions of `CAPTIONS` and random features."""
    features = torch.randn(len(SENTENCES), 24, generator=torch.Generator().manual_seed(seed))
    model.model.context.fill(features, OF_VIDEOS, SENTENCES)
    return model


def trained(model):
    """As if the fusion had been trained: its last layer is no longer 0."""
    torch.nn.init.normal_(model.model.context.out.weight, std=0.3)
    return model


@pytest.fixture
def contextual(processor):
    return trained(with_bank(make_model(processor, context_size=3, context_k=2)))


@pytest.fixture(scope="module")
def named(processor):
    """A batch of three videos of 8, 5 and 6 frames, with their ids."""
    return {**SailDataCollator(processor)(make_rows(num_frames=(8, 5, 6))), "video_ids": id_bytes(IDS)}


# --- Clusters -----------------------------------------------------------------------------------------------------


def test_clusters_merge_what_costs_least():
    # Ward's costs of 0, 1, 5, 7, 20 on a line: 0+1: 1/2 (least); then 5+7: 4/2 = 2 before {0, 1}+5: 2/3 * 4.5^2 = 13.5;
    # then {0, 1}+{5, 7}: 1 * 5.5^2 = 30.25 before {5, 7}+20: 2/3 * 14^2 = 130.7.
    features, real = tensor([[[0.0], [1.0], [5.0], [7.0], [20.0]]]), torch.ones(1, 5)
    assert cluster_frames(features, real, 4).tolist() == [[0, 0, 1, 2, 3]]
    assert cluster_frames(features, real, 3).tolist() == [[0, 0, 1, 1, 2]]
    assert cluster_frames(features, real, 2).tolist() == [[0, 0, 0, 0, 1]]
    assert cluster_frames(features, real, 9).tolist() == [[0, 1, 2, 3, 4]]


def test_a_large_cluster_costs_more_to_merge():
    # {0, 0, 0} + 3: 3/4 * 9 = 6.75; 3 + 6.5: 1/2 * 12.25 = 6.125, though the means lie farther apart.
    features = tensor([[[0.0], [0.0], [0.0], [3.0], [6.5]]])
    assert cluster_frames(features, torch.ones(1, 5), 2).tolist() == [[0, 0, 0, 1, 1]]


def test_clusters_of_a_batch_are_those_of_each_video():
    generator = torch.Generator().manual_seed(3)
    features, lengths = torch.randn(4, 9, 5, generator=generator), [9, 6, 3, 1]
    real = (torch.arange(9) < tensor(lengths)[:, None]).long()
    together = cluster_frames(features, real, 4)
    for i, length in enumerate(lengths):
        alone = cluster_frames(features[i : i + 1, :length], torch.ones(1, length), 4)
        assert together[i, :length].tolist() == alone[0].tolist()
        assert len(set(alone[0].tolist())) == min(length, 4)


# --- What is recalled ---------------------------------------------------------------------------------------------


def a_context(processor, size=2, k=2, **fields):
    return SailContext(make_model(processor, context_size=size, context_k=k, feature_size=2, **fields).config).eval()


def test_a_cluster_recalls_its_nearest_sentences(processor):
    context = a_context(processor)
    context.fill(tensor([[1.0, 0], [0, 2], [3, 3], [-1, 0]]), ["a", "a", "b", "c"], list("wxyz"))
    texts, sentences, cosines = context.retrieve(tensor([[[5.0, 0], [0, 1]]]))
    half = math.sqrt(0.5)
    assert sentences.tolist() == [[[0, 2], [1, 2]]]
    assert_close(cosines, tensor([[[1, half], [1, half]]]), atol=1e-3, rtol=0)
    assert_close(texts, tensor([[[(1 + half) / 2, half / 2], [half / 2, (1 + half) / 2]]]), atol=1e-3, rtol=0)


def test_a_video_recalls_none_of_its_own_sentences(processor):
    context = a_context(processor)
    context.fill(tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]]), ["a", "a", "b", "c"], list("wxyz"))
    frames = tensor([[[1.0, 0], [0, 1]]] * 2)
    found = context.recall(frames, torch.ones(2, 2), id_bytes(["a", "elsewhere"]))
    assert not {0, 1} & set(found.sentences[0].flatten().tolist())
    assert found.sentences[1, :, 0].tolist() == [0, 1]


def test_fewer_sentences_than_asked_for_are_a_mean_of_fewer(processor):
    context = a_context(processor, k=40)
    context.fill(tensor([[1.0, 0], [0, 1], [1, 1]]), ["a", "a", "b"], list("xyz"))
    exclude = tensor([[True, True, False], [True, True, True]])
    texts, _, cosines = context.retrieve(tensor([[[1.0, 0]]] * 2), exclude)
    half = math.sqrt(0.5)
    assert_close(texts, tensor([[[half, half]], [[0.0, 0.0]]]), atol=1e-3, rtol=0)
    assert cosines.isfinite().sum(-1).flatten().tolist() == [1, 0]


@pytest.mark.parametrize(
    "features, ids",
    [(torch.ones(2, 3), ["a", "b"]), (torch.ones(2, 2), ["a"]), (torch.ones(0, 2), []), (torch.ones(2), ["a", "b"])],
)
def test_a_bank_that_does_not_fit_is_refused(processor, features, ids):
    with pytest.raises(ValueError, match=r"shape \(sentences, 2\)"):
        a_context(processor).fill(features, ids, ["x"] * len(ids))


@pytest.mark.parametrize("fields", [{"context_size": -1}, {"context_size": 3, "context_k": 0}])
def test_sizes_are_positive(processor, fields):
    with pytest.raises(ValueError, match="must be positive, found"):
        make_model(processor, **fields)


# --- Fusion -------------------------------------------------------------------------------------------------------


def test_a_model_that_gets_a_bank_goes_on_unchanged(processor, named):
    model, other = make_model(processor), make_model(processor, context_size=3)
    other.load_state_dict(model.state_dict(), strict=False)
    with_bank(other)
    one, two = model(**named), other(**named)
    assert [x.tolist() for x in one.to_tuple()] == [x.tolist() for x in two.to_tuple()]


def test_without_context_there_is_nothing_of_it(processor):
    model = make_model(processor)
    assert model.model.context is None and not [name for name in model.state_dict() if "context" in name]


def test_captions_reach_the_frames_but_no_loss_of_raw_features(processor, named, contextual):
    plain = make_model(processor)
    plain.load_state_dict(contextual.state_dict(), strict=False)
    one, two = plain(**named), contextual(**named)
    for name in ("loss_full", "loss_positive", "loss_negative"):
        assert one[name] != two[name]
    for name in ("loss_similarity", "loss_augmentation", "event_centers", "event_widths"):
        assert torch.equal(one[name], two[name])


def test_a_masked_pass_knows_nothing_of_other_events(contextual):
    """Sentences of the clusters outside of a mask, exchanged for others, change nothing."""
    fusion, generator = contextual.model.context, torch.Generator().manual_seed(0)
    frames = torch.randn(1, 6, 24, generator=generator)
    recalled = fusion.recall(frames, torch.ones(1, 6))
    weights = (recalled.clusters[:, :, 0] > 0).float()
    assert 0 < weights.sum() < 6
    seen = frames * weights[:, :, None]
    others = torch.randn(1, 3, 24, generator=generator)
    elsewhere = recalled._replace(texts=torch.cat([recalled.texts[:, :1], others[:, 1:]], 1))
    assert torch.equal(fusion(seen, weights, recalled), fusion(seen, weights, elsewhere))
    here = recalled._replace(texts=torch.cat([others[:, :1], recalled.texts[:, 1:]], 1))
    assert not torch.equal(fusion(seen, weights, recalled), fusion(seen, weights, here))


def test_a_text_weighs_as_its_clusters_mask(processor):
    """Two clusters of orthogonal unit texts, one frame each: what the fusion's layers see, by hand."""
    fusion = a_context(processor)
    frames = tensor([[[2.0, 0], [0, 4]]])
    recalled = Context(torch.eye(2)[None], tensor([[[0.0, 1], [1, 0]]]), tensor([[[2.0], [4]]]), None, None)
    seen = {}
    fusion.mix.register_forward_pre_hook(lambda module, args: seen.update(x=args[0] / 2**0.5))
    fusion(frames * tensor([[1.0, 0.5]])[:, :, None], tensor([[1.0, 0.5]]), recalled)
    v = tensor([[1.0, 0], [0, 0.5]])
    q = tensor([[0.0, 1], [0.5, 0]])
    scores = v @ q.T / 0.07
    rows, columns = scores.softmax(1), scores.softmax(0)
    a, b = rows @ q, rows @ (columns.T @ v)
    # Elements are those of unit vectors times sqrt(2), products times 2.
    root = 2**0.5
    expected = torch.cat([v, a, root * v * a, root * v * b, q.mean(0).expand(2, 2)], 1)
    assert_close(seen["x"][0], expected)


def test_padding_changes_nothing(contextual, named):
    alone = make_rows(num_frames=(8, 5, 6))[1]["video_features"][None]
    outputs = contextual.model(named["video_features"], video_attention_mask=named["video_attention_mask"])
    assert_close(outputs.last_hidden_state[1:2, :5], contextual.model(alone).last_hidden_state)


def test_gradients_reach_the_fusion_and_not_the_bank(contextual, named):
    contextual.train()
    contextual(**named).loss.backward()
    of_context = dict(contextual.model.context.named_parameters())
    assert set(of_context) == {"scale", "mix.weight", "mix.bias", "out.weight", "out.bias"}
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in of_context.values())


def test_training_without_ids_is_refused(contextual, named):
    batch = {name: value for name, value in named.items() if name != "video_ids"}
    contextual(**batch)
    contextual.train()
    with pytest.raises(ValueError, match="no video recalls its own"):
        contextual(**batch)


def test_an_empty_bank_is_refused(processor, named):
    with pytest.raises(ValueError, match="the bank holds no captions"):
        make_model(processor, context_size=3)(**named)


@pytest.mark.parametrize(
    "options", [{"localization": "masks"}, {"localization": "cohesion"}, {"num_events": tensor([2])}]
)
def test_generation_uses_the_bank(processor, contextual, options):
    frames = make_rows()[0]["video_features"][None]
    kept = {
        "num_beams": 1,
        "min_new_tokens": 2,
        "max_new_tokens": 6,
        "full_min_new_tokens": 2,
        "full_max_new_tokens": 6,
    }
    one = contextual.generate(frames, **kept, **options)
    with torch.no_grad():
        contextual.model.context.out.weight.zero_()
        contextual.model.context.out.bias.zero_()
    two = contextual.generate(frames, **kept, **options)
    assert one.scores.shape != two.scores.shape or (one.scores != two.scores).all()


# --- Saving -------------------------------------------------------------------------------------------------------


def test_a_bank_is_saved_with_the_model(contextual, named, tmp_path):
    contextual.save_pretrained(tmp_path)
    again = SailForDenseVideoCaptioning.from_pretrained(tmp_path)
    assert again.model.context.sentences == SENTENCES
    assert again.config.context_sentences == len(SENTENCES)
    assert again(**named).loss == contextual(**named).loss
    assert SailModel.from_pretrained(tmp_path).context.sentences == SENTENCES
    again.save_pretrained(tmp_path / "again")
    assert SailForDenseVideoCaptioning.from_pretrained(tmp_path / "again").model.context.sentences == SENTENCES


def test_a_bank_keeps_its_type_whatever_the_weights_have(contextual, tmp_path):
    contextual.save_pretrained(tmp_path)
    model = SailForDenseVideoCaptioning.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.model.context.features.dtype == torch.float16
    assert model.model(torch.ones(1, 8, 24, dtype=torch.bfloat16)).last_hidden_state.dtype == torch.bfloat16


def test_a_model_with_a_bank_is_a_graph(contextual):
    given = {"num_events": tensor([2]), "max_events": 2}
    frames = torch.randn(1, 8, 24, generator=torch.Generator().manual_seed(1))
    graph = torch.export.export(contextual.model, (frames,), given).module()
    assert_close(graph(frames, **given).last_hidden_state, contextual.model(frames, **given).last_hidden_state)


def test_sentences_that_are_not_there_are_missed_where_they_are_needed(contextual, named, tmp_path):
    contextual.save_pretrained(tmp_path)
    (tmp_path / SENTENCES_FILE).unlink()
    again = SailForDenseVideoCaptioning.from_pretrained(tmp_path)
    assert again(**named).loss == contextual(**named).loss
    recalled = again.model.recall(named["video_features"], named["video_attention_mask"])
    with pytest.raises(ValueError, match=f"lacks {SENTENCES_FILE}"):
        again.model.context.leaned_on(recalled, torch.ones(3, 1, 8), 2)


@pytest.mark.parametrize("content", [b"no Parquet", None])
def test_a_damaged_file_of_sentences_is_a_sentence(contextual, tmp_path, content):
    contextual.save_pretrained(tmp_path)
    if content is None:
        contextual.model.context.sentences = SENTENCES[:2]
        contextual.model.context.videos = contextual.model.context.videos[:2]
        contextual.model.context.save_sentences(tmp_path)
    else:
        (tmp_path / SENTENCES_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=SENTENCES_FILE):
        SailForDenseVideoCaptioning.from_pretrained(tmp_path)


# --- Explaining ---------------------------------------------------------------------------------------------------


def test_an_event_leans_on_the_sentences_under_its_mask(processor):
    context = a_context(processor, k=3)
    context.fill(tensor([[1.0, 0], [0, 1], [1, 0.2]]), ["a", "b", "c"], ["along x", "along y", "along x"])
    recalled = context.recall(tensor([[[1.0, 0], [1, 0.1], [0, 1]]]), torch.ones(1, 3))
    masks = tensor([[[1.0, 1, 0], [0, 0.1, 1]]])
    ((first, second),) = context.leaned_on(recalled, masks, 3)
    # The second of two equal sentences, and what lies outside of the mask, are left out.
    assert [item["text"] for item in first] == ["along x", "along y"]
    assert [item["text"] for item in second] == ["along y", "along x"]
    assert first[0]["cosine"] == pytest.approx(1, abs=1e-2)
    (((best,), _),) = context.leaned_on(recalled, masks, 1)
    assert best["text"] == "along x"


def test_a_video_is_looked_up_once_however_many_passes_it_takes(contextual, named, monkeypatch):
    given = {name: named[name] for name in ("video_features", "video_attention_mask")}
    expected = contextual.eval().generate(**given, num_beams=1)  # whole-video captions, then the events'
    calls, recall = [], SailContext.recall
    monkeypatch.setattr(SailContext, "recall", lambda *args: calls.append(1) or recall(*args))
    found = contextual.generate(**given, num_beams=1)
    assert len(calls) == 1
    assert torch.equal(found.sequences, expected.sequences)
