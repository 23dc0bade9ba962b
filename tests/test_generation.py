"""Generation: counting, batching, scores, and any causal language model as the decoder."""

import math
import warnings

import pytest
import torch
from tiny import make_model, make_tokenizer
from torch import tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    OPTConfig,
    Qwen3Config,
    StoppingCriteriaList,
)

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.generation_sail import StatedCountLogitsProcessor

# Deterministic and short, for runs that are compared.
GREEDY = {"num_beams": 1, "max_new_tokens": 6, "full_max_new_tokens": 12}


def sentences_of(generated, pad):
    return [[token for token in row if token != pad] for row in generated.sequences.tolist()]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generating_a_batch_equals_generating_its_videos_one_by_one(model, batch, processor, num_beams):
    options = {**GREEDY, "num_beams": num_beams}
    features, mask = batch["video_features"], batch["video_attention_mask"]
    counts = tensor([3, 2, 1])
    pad = processor.tokenizer.pad_token_id
    for given in (counts, None):
        together = model.generate(features, video_attention_mask=mask, num_events=given, **options)
        sentences, scores = [], []
        for b, frames in enumerate([8, 5, 6]):
            one = model.generate(
                features[b : b + 1, :frames], num_events=None if given is None else given[b : b + 1], **options
            )
            n = int(one.num_events)
            assert int(together.num_events[b]) == n
            torch.testing.assert_close(together.event_centers[b, :n], one.event_centers[0], rtol=1e-5, atol=1e-6)
            sentences += sentences_of(one, pad)
            scores.append(one.scores)
        assert sentences_of(together, pad) == sentences
        torch.testing.assert_close(together.scores, torch.cat(scores), rtol=1e-4, atol=1e-6)


def test_the_number_of_events_is_the_number_of_sentences(model, processor):
    """`N events: ` and the sentences, each but the last with a separator after it, up to the end token."""
    end, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    space = model.config.separator_ids[-1]
    assert list(model.config.separator_ids) == [space]
    assert model.split_sentences([7, 8, space, 11, 12, space, 13, end, 14, space]) == [[11, 12], [13]]
    assert model.split_sentences([7, 8, space, 11, pad, pad]) == [[11]]
    # A separator after the last sentence, or two in a row, make no further sentence; without any there is none.
    assert model.split_sentences([7, space, 11, space, space, 12, space, end]) == [[11], [12]]
    assert model.split_sentences([7, 8, 9, end]) == []


def test_generate_reads_the_count_off_its_own_caption(model, batch):
    mask = batch["video_attention_mask"]
    output = model.generate(batch["video_features"], video_attention_mask=mask, num_beams=1, full_max_new_tokens=24)
    read = [len(model.split_sentences(row)) for row in output.full_sequences.tolist()]
    assert output.num_events.tolist() == [min(max(n, 1), model.config.num_queries) for n in read]
    assert len(output.sequences) == len(output.scores) == int(output.num_events.sum())
    assert output.event_masks.shape == (3, int(output.num_events.max()), 8)


def test_a_given_count_is_taken(model, batch):
    output = model.generate(batch["video_features"], num_events=tensor([2, 4, 1]), **GREEDY)
    assert output.full_sequences is None
    assert output.num_events.tolist() == [2, 4, 1] and len(output.sequences) == 7


def test_lengths_of_event_and_whole_video_captions(model, batch):
    output = model.generate(
        batch["video_features"],
        num_beams=1,
        min_new_tokens=3,
        max_new_tokens=3,
        full_min_new_tokens=5,
        full_max_new_tokens=5,
    )
    assert output.sequences.shape[1] == 3 and output.full_sequences.shape == (3, 5)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_scores_are_geometric_means_of_token_probabilities(processor, num_beams):
    """Checked against the probabilities that the training pass gives the same tokens; sentences of two lengths."""
    model = make_model(processor, seed=3)
    with torch.no_grad():  # random weights, but large: sentences that differ from video to video
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    features = 3 * torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0))
    options = {"min_new_tokens": 0, "max_new_tokens": 7, "no_repeat_ngram_size": 0, "num_beams": num_beams}
    options["num_events"] = tensor([3, 3, 3])
    pad, prompt = model.generation_config.pad_token_id, list(model.config.event_prompt_ids)
    # A token that ends a part of the sentences early is made their end.
    for end in model.generate(features, **options).sequences.unique().tolist():
        output = model.generate(features, **options, eos_token_id=end)
        sentences = sentences_of(output, pad)
        if len({len(sentence) for sentence in sentences}) > 1:
            break
    assert len({len(sentence) for sentence in sentences}) > 1
    for row, sentence in enumerate(sentences):
        video, event = divmod(row, 3)
        masked = features[video : video + 1] * output.event_masks[video, event, :, None]
        real = torch.ones(1, 8)
        encoded = model.model.video_encoder(masked, real)
        log_probs = model.caption_logits(encoded, real, tensor([prompt + sentence])).log_softmax(-1)[0]
        picked = [log_probs[len(prompt) - 1 + i, token].item() for i, token in enumerate(sentence)]
        assert output.scores[row].item() == pytest.approx(math.exp(sum(picked) / len(picked)), rel=1e-4)


def test_pixels_and_features_give_the_same(processor, clip):
    clip_model = make_model(processor, vision_config=clip.vision_config)
    pixels = torch.randn(2, 6, 3, 32, 32)
    features = torch.stack([clip.encode_images(video) for video in pixels])
    clip_model.model.vision_tower.load_state_dict(clip.model.visual.state_dict())
    torch.testing.assert_close(clip_model.model.get_video_features(pixels), features, rtol=1e-5, atol=1e-5)
    from_pixels = clip_model.generate(pixel_values_videos=pixels, **GREEDY)
    from_features = clip_model.generate(features, **GREEDY)
    assert torch.equal(from_pixels.sequences, from_features.sequences)


def test_the_generation_config_travels_with_the_checkpoint(processor, tmp_path):
    model = make_model(processor)
    paper = model.generation_config
    assert (paper.num_beams, paper.no_repeat_ngram_size, paper.length_penalty) == (4, 4, 1.0)
    assert (paper.min_new_tokens, paper.max_new_tokens) == (4, 32)
    assert (paper.full_min_new_tokens, paper.full_max_new_tokens) == (8, 128)
    model.generation_config.max_new_tokens = 9
    model.generation_config.full_max_new_tokens = 21
    model.save_pretrained(tmp_path)
    loaded = SailForDenseVideoCaptioning.from_pretrained(tmp_path).generation_config
    assert (loaded.max_new_tokens, loaded.full_max_new_tokens, loaded.num_beams) == (9, 21, 4)
    assert loaded.eos_token_id == processor.tokenizer.eos_token_id


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"number_of_beams": 2}, "number_of_beams"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"streamer": object()}, "streamer"),
        ({"assistant_model": object()}, "assistant_model"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"input_ids": tensor([[1]])}, "input_ids"),
    ],
)
def test_generation_arguments_that_cannot_be_honoured_are_named(model, batch, arguments, words):
    with pytest.raises(ValueError, match=words):
        model.generate(batch["video_features"], **arguments)
    if "num_return_sequences" in arguments:  # from a configuration, too
        config = GenerationConfig(**model.generation_config.to_dict() | arguments)
        with pytest.raises(ValueError, match=words):
            model.generate(batch["video_features"], generation_config=config)


def test_logits_processors_and_stopping_criteria_act_on_both_passes(model, batch):
    seen = []

    class Watch(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(len(scores))
            scores[:, 7] = torch.inf
            return scores

    output = model.generate(batch["video_features"][:1], **GREEDY, logits_processor=LogitsProcessorList([Watch()]))
    assert (output.full_sequences == 7).all() and (output.sequences == 7).all() and len(seen) == 6 + 12
    short = StoppingCriteriaList([MaxLengthCriteria(3)])
    output = model.generate(batch["video_features"][:1], **GREEDY, stopping_criteria=short)
    assert output.full_sequences.shape[1] == output.sequences.shape[1] == 3


def test_features_that_are_not_finite_are_refused(model, batch):
    features = batch["video_features"].clone()
    features[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"videos \[1\] of the batch are not finite"):
        model.generate(features, video_attention_mask=batch["video_attention_mask"])


def test_a_decoder_stored_in_half_precision_trains(processor, clip, batch):
    decoder = AutoModelForCausalLM.from_config(DECODERS["gpt2"], dtype=torch.bfloat16)
    decoder.config.dtype = torch.bfloat16
    sizes = {"num_frames": 8, "num_queries": 4, "encoder_layers": 1}
    model = SailForDenseVideoCaptioning.from_clip_and_decoder(clip, decoder, processor, **sizes)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model(**batch).loss.backward()
    assert model.decoder.transformer.wpe.weight.grad.isfinite().all()


# --- any causal language model ------------------------------------------------------------------------------------

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}
DECODERS = {
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128, vocab_size=300),
    "llama": LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SMALL, intermediate_size=24, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True),
    "opt": OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=128),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=24),
    "bloom": BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=300),
}


@pytest.mark.parametrize("name", DECODERS)
def test_any_causal_language_model_can_be_the_decoder(name, processor, clip, batch, tmp_path):
    """It trains, generates a batch as its single videos, and comes back from disk with the same weights."""
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(DECODERS[name])
    wanted = {key: t.clone() for key, t in decoder.state_dict().items()}
    sizes = {
        "num_frames": 8,
        "num_queries": 4,
        "encoder_layers": 1,
        "attention_head_dim": 8,
        "encoder_ffn_dim": 16,
        "mask_decoder_ffn_dim": 16,
    }
    model = SailForDenseVideoCaptioning.from_clip_and_decoder(clip, decoder, processor, **sizes).eval()
    # The pretrained weights are in it; only the vocabulary has grown by the added tokens.
    assert model.get_input_embeddings().weight.shape == (len(processor.tokenizer), 16)
    for key, weight in model.decoder.state_dict().items():
        assert torch.equal(weight[: len(wanted[key])], wanted[key]) if weight.ndim else True, key
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=FutureWarning)
        output = model(**batch)
    output.loss.backward()
    assert output.loss.isfinite()
    options = {"num_events": tensor([2, 1, 1]), "num_beams": 2, "max_new_tokens": 5}
    together = model.generate(batch["video_features"], video_attention_mask=batch["video_attention_mask"], **options)
    options["num_events"] = tensor([1])
    alone = model.generate(batch["video_features"][1:2, :5], **options)
    pad = processor.tokenizer.pad_token_id
    assert sentences_of(together, pad)[2] == sentences_of(alone, pad)[0]
    torch.testing.assert_close(together.scores[2], alone.scores[0], rtol=1e-4, atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded = SailForDenseVideoCaptioning.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).loss, output.loss)


def test_stated_count_rules_the_number_of_sentences():
    """The count at the start decides: no end before that many sentences, no separator after them."""
    tokenizer = make_tokenizer()
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    (space,), end = ids(" "), tokenizer.eos_token_id
    processor = StatedCountLogitsProcessor(tokenizer, space, [end])
    one_begun = ids("2 events: ") + ids("A dog runs.")
    both_begun = one_begun + [space] + ids("He puts it down.")
    for history, forbidden, allowed in [(one_begun, end, space), (both_begun, space, end)]:
        scores = processor(torch.tensor([history]), torch.zeros(1, len(tokenizer)))
        assert scores[0, forbidden] == -torch.inf
        assert scores[0, allowed] == 0
    empty_last = processor(torch.tensor([one_begun + [space]]), torch.zeros(1, len(tokenizer)))
    assert torch.isinf(empty_last[0, [space, end]]).all()
    nothing_stated = torch.tensor([ids("2 events")])
    assert torch.equal(processor(nothing_stated, torch.zeros(1, 4)), torch.zeros(1, 4))


def test_stated_count_needs_a_tokenizer(processor):
    model = make_model(processor)
    with pytest.raises(ValueError, match="pass `tokenizer=processor.tokenizer`"):
        model.generate(video_features=torch.randn(1, 8, 24), stated_count=True)


def test_unknown_alignment_is_an_error(processor):
    model = make_model(processor)
    with pytest.raises(ValueError, match="ordered, overlapping, unordered, expected, found 'sideways'"):
        model.generate(video_features=torch.randn(1, 8, 24), alignment="sideways")


def test_cohesion_takes_the_number_of_events_and_places_them_by_the_frames(model):
    generator = torch.Generator().manual_seed(0)
    size, length = model.config.feature_size, model.config.num_frames
    first, second = torch.randn(2, size, generator=generator)
    frames = torch.stack([first] * (length // 4) + [second] * (length - length // 4))[None]
    output = model.generate(video_features=frames, num_events=torch.tensor([2]), localization="cohesion")
    torch.testing.assert_close(output.event_widths, torch.tensor([[0.25, 0.75]]), atol=0.01, rtol=0)
    torch.testing.assert_close(output.event_centers, torch.tensor([[0.125, 0.625]]), atol=0.01, rtol=0)
    torch.testing.assert_close(
        output.event_masks,
        model.model.make_masks(output.event_centers, output.event_widths, torch.ones(frames.shape[:2])),
    )
    assert len(output.sequences) == 2


def test_beams_that_share_their_frames_are_the_same_beams(processor, batch):
    """The frames go through the decoder once a video: sequences and scores are those of `generate` on every beam's own frames."""
    narrow = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    sliding = Gemma2Config(**SMALL, num_key_value_heads=1, intermediate_size=24, head_dim=8, **narrow)
    states = Lfm2Config(**SMALL, num_key_value_heads=1, intermediate_size=24, layer_types=["conv", "full_attention"])
    for name, config in {**DECODERS, "sliding": sliding, "states of its own": states}.items():
        config.update({"vocab_size": len(processor.tokenizer)})
        model = make_model(processor, seed=5)
        model.decoder = AutoModelForCausalLM.from_config(config).eval()
        features, mask = batch["video_features"], batch["video_attention_mask"]
        options = {"num_beams": 3, "max_new_tokens": 7, "min_new_tokens": 1, "full_max_new_tokens": 7}
        settings = model.resolve_generation_config(**options)
        prompt = tensor([list(model.config.full_prompt_ids)] * 3)
        embeds, seen = model.decoder_inputs(model.model.video_encoder(features, mask), mask, prompt)
        shared = model._before_beams(embeds, seen, settings)
        assert bool(shared) == (name != "states of its own"), name
        both = [
            model.decoder.generate(
                inputs_embeds=embeds,
                attention_mask=seen,
                generation_config=settings,
                return_dict_in_generate=True,
                output_scores=True,
                **cache,
            )
            for cache in (shared, {})
        ]
        assert torch.equal(both[0].sequences, both[1].sequences), name
        torch.testing.assert_close(both[0].sequences_scores, both[1].sequences_scores, rtol=1e-4, atol=1e-5)


def test_frames_are_not_seen_once_for_each_beam(model, batch, monkeypatch):
    rows = []
    original = model.decoder.forward
    monkeypatch.setattr(model.decoder, "forward", lambda *a, **kw: rows.append(embeds_of(kw)) or original(*a, **kw))

    def embeds_of(inputs):
        return None if inputs.get("inputs_embeds") is None else tuple(inputs["inputs_embeds"].shape[:2])

    model.generate(batch["video_features"], num_events=tensor([2, 1, 1]), num_beams=3, max_new_tokens=5)
    frames_and_prompt = 8 + len(model.config.event_prompt_ids)
    # Four events: all but the last token of the prompt once each, and that token for each beam.
    assert [shape for shape in rows if shape] == [(4, frames_and_prompt - 1), (12, 1)]


def test_a_cache_that_is_chosen_is_the_one_used(model, batch):
    """Static caches cannot be filled beforehand; sentences are the same."""
    options = {"num_events": tensor([2, 1, 1]), "num_beams": 2, "max_new_tokens": 5}
    ours = model.generate(batch["video_features"], **options)
    static = model.generate(batch["video_features"], **options, cache_implementation="static")
    assert torch.equal(ours.sequences, static.sequences)


class EndsAt(LogitsProcessor):
    """Row i, of so many beams, ends after `lengths[i]` tokens and not before."""

    def __init__(self, lengths, end, beams):
        self.lengths, self.end, self.beams = lengths, end, beams

    def __call__(self, input_ids, scores):
        for row, length in enumerate(self.lengths):
            rows = slice(row * self.beams, (row + 1) * self.beams)
            if input_ids.shape[1] < length - 1:
                scores[rows, self.end] = -torch.inf
            else:
                scores[rows] = scores[rows].masked_fill(torch.arange(scores.shape[1]) != self.end, -torch.inf)
        return scores


def large_weights(model):
    with torch.no_grad():  # random weights, but large: sentences that differ from video to video
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_rows_that_are_done_are_left_out_and_nothing_changes(processor, monkeypatch, early_stopping):
    """Rows of 3, 9, 5 and 6 tokens: those of transformers' own search, for as many positions as rows are open."""
    model = large_weights(make_model(processor, seed=3))
    features, mask = 3 * torch.randn(4, 8, 24, generator=torch.Generator().manual_seed(0)), torch.ones(4, 8)
    lengths, beams, end = [3, 9, 5, 6], 3, model.generation_config.eos_token_id
    options = {"num_beams": beams, "full_min_new_tokens": 0, "full_max_new_tokens": 12, "no_repeat_ngram_size": 0}
    options |= {
        "early_stopping": early_stopping,
        "logits_processor": LogitsProcessorList([EndsAt(lengths, end, beams)]),
    }
    sizes, original = [], model.decoder.forward

    def forward(*args, **inputs):
        if inputs.get("input_ids") is not None:
            sizes.append(len(inputs["input_ids"]))
        return original(*args, **inputs)

    monkeypatch.setattr(model.decoder, "forward", forward)
    found = model.describe(features, mask, **options)
    own, sizes = sizes, []
    monkeypatch.setattr(model, "_before_beams", lambda *args: {})
    expected = model.describe(features, mask, **options)
    assert torch.equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) == 4
    ended = [row.index(end) + 1 if end in row else len(row) for row in found.tolist()]
    assert ended == lengths
    if early_stopping is False:
        # The first token comes from the prompt; then tokens 2 to 9, each row's up to its last.
        assert own == [3 * sum(length > done for length in lengths) for done in range(1, 9)]
        assert sizes == [12] * 8


@pytest.mark.parametrize("seed", range(6))
def test_searches_that_end_by_themselves_are_the_same(processor, monkeypatch, seed):
    """Ends that the model itself finds, in rows of several lengths: sequences and scores as without leaving rows out."""
    model = large_weights(make_model(processor, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    features, num_events = 3 * torch.randn(5, 8, 24, generator=generator), tensor([4, 2, 3, 1, 4])
    options = {"num_events": num_events, "num_beams": 4, "min_new_tokens": 1, "max_new_tokens": 16}
    first = model.generate(features, **options)
    # A token that many sentences hold is made their end, so that rows end at several places.
    end = first.sequences.flatten().mode().values.item()
    found = model.generate(features, **options, eos_token_id=end)
    monkeypatch.setattr(model, "_before_beams", lambda *args: {})
    expected = model.generate(features, **options, eos_token_id=end)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
