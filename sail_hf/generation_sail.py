"""Generation of SAIL: caption the whole video, localise its events, and caption each of them."""

import copy
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_managed_module
from transformers.utils import ModelOutput

from .alignment_sail import ALIGNMENTS, frame_spans
from .beams_sail import open_rows_beam_search
from .configuration_sail import SailConfig
from .context_sail import Context
from .events_sail import settled, uncovered
from .grounding_sail import Regions, frame_log_weights, looking_at
from .loss_sail import cosines
from .masks_sail import SailCohesionMaskGenerator
from .trust import check_limit

logger = logging.getLogger(__name__)
# Fields of ours in the generation config; a config that was made without them has these.
LOCALIZATION_DEFAULTS = {
    "localization": "masks",
    "alignment": "ordered",
    "gap_level": 0.0,
    "stated_count": False,
    "counting": "captions",
    "repeat_level": 1.0,
    "support_level": -1.0,
}


@dataclass
class SailGenerateOutput(ModelOutput):
    """Output of [`SailForDenseVideoCaptioning.generate`].

    Args:
        sequences (`torch.LongTensor` of shape `(sum of num_events, length)`):
            Token ids of every event's sentence, video by video, events by centre.
        scores (`torch.FloatTensor` of shape `(sum of num_events,)`): geometric mean of the tokens' probabilities.
        num_events (`torch.LongTensor` of shape `(batch_size,)`)
        full_sequences (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
            Token ids of the whole-video captions that the number of events was read from. `None` if none was made.
        event_centers, event_widths, event_masks: as in [`SailModelOutput`].
    """

    sequences: Tensor | None = None
    scores: Tensor | None = None
    num_events: Tensor | None = None
    full_sequences: Tensor | None = None
    event_centers: Tensor | None = None
    event_widths: Tensor | None = None
    event_masks: Tensor | None = None


class StatedCountLogitsProcessor(LogitsProcessor):
    """Keeps a whole-video caption to the number of sentences that it states at its start, `N events: `.

    Before N sentences, or with an empty one, it cannot end; after them no further one begins. Used where the generation config has
    `stated_count`: the number is often right where a weak decoder loses count of its sentences.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: int, end: list[int]):
        self.tokenizer, self.separator, self.end = tokenizer, separator, end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, ids in enumerate(input_ids.tolist()):
            if self.separator not in ids:
                continue
            stated = re.match(r"\s*(\d+)", self.tokenizer.decode(ids[: ids.index(self.separator)]))
            if stated:
                # The first separator ends the count, the k-th is followed by sentence k.
                begun, wanted = ids.count(self.separator), int(stated.group(1))
                if begun < wanted or ids[-1] == self.separator:
                    scores[row, self.end] = -torch.inf
                if begun >= wanted:
                    scores[row, self.separator] = -torch.inf
        return scores


class SailGenerationMixin(GenerationMixin):
    """How [`SailForDenseVideoCaptioning`] generates: whole-video caption, localisation, a sentence for each event."""

    @torch.no_grad()
    def generate(
        self,
        video_features: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_attention_mask: Tensor | None = None,
        num_events: Tensor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        durations: Tensor | None = None,
        region_features: Tensor | None = None,
        **kwargs,
    ) -> SailGenerateOutput:
        """Caption the whole video, read the number of events off, localise them, caption each (supplement, section B).

        The generation config's `localization` says how events are localised:

        * `"masks"`: by the mask generator. With `num_events`, no whole-video caption is made.
        * `"cohesion"`: by the frames alone, whatever the mask generator: stretches that look alike ([`cohesive_spans`]),
          or that captions would say alike ([`SailCaptionMemory`]).
        * `"alignment"`: by aligning the sentences of the whole-video caption to the frames, with `alignment`
          (`"ordered"`, `"overlapping"`, `"unordered"` or `"expected"`, see [`align_ordered`]) and `gap_level`. Needs `tokenizer` and
          CLIP's text tower ([`SailModel.get_clip`] finds it). There are at most as many events as frames. With
          `num_events`, the first that many sentences count; a video whose caption has fewer, or none at all, falls back
          on the mask generator. Without `num_events`, sentences can go and come before they are given their times:
          of events that overlap or touch and whose sentences have a CLIP cosine above `repeat_level` (default 1: off),
          the one that fits its frames best stays; with a `support_level` (default -1: off), each stretch that no event
          covers is captioned from its own mask, and an event goes whose sentence has a lower mean cosine with its frames.
          `training/choose_levels.py` finds both levels.

        How many events there are, the whole-video caption says; with `counting="frames"`, the most likely number by the frames
        ([`SailEventCounter`]), for the first two localizations, and no whole-video caption is made.

        Args:
            video_features, pixel_values_videos, video_attention_mask, durations, region_features: as in `forward`.
            num_events: `(B,)`, number of events of each video.
            tokenizer: the decoder's, to read sentences; used for `"alignment"` and `stated_count` alone.
            generation_config: defaults to the model's own. Lengths of the whole-video caption are its
                `full_min_new_tokens` and `full_max_new_tokens`.
            logits_processor, stopping_criteria: of transformers, for the whole-video captions and the events' alike.
            kwargs: fields that replace the generation config's (`num_beams=1`, `localization="alignment"`, ...).

        Raises:
            ValueError: inputs that do not fit together, features that are not finite, an argument that cannot be honoured
                (`num_return_sequences`, `streamer`, ...), or no tokenizer or text tower where they are needed.
        """
        config = self.resolve_generation_config(generation_config, **kwargs)
        if self.config.knows_only:
            logger.warning_once(
                f"This model knows only {self.config.knows_only}: its captions of anything else mean nothing."
            )
        if self.grounding_head is not None and region_features is None:
            logger.warning_once(
                "This model has a grounding head, but no `region_features` were given: its sentences do without patches."
            )
        of_number = ("repeat_level", "support_level", "counting")
        if num_events is not None and (idle := [name for name in of_number if name in kwargs]):
            raise ValueError(f"With `num_events`, no event goes or comes: leave out {', '.join(idle)}.")
        passed = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        passed["region_features"] = region_features
        features, frame_mask = self.model.prepare_features(pixel_values_videos, video_features, video_attention_mask)
        passed["context"] = self.model.recall(features, frame_mask)
        if not features.isfinite().all():
            bad = (~features.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
            raise ValueError(
                f"The features of videos {bad} of the batch are not finite (NaN or infinity): extract them anew."
            )
        if config.localization == "alignment":
            return self._generate_aligned(features, frame_mask, num_events, tokenizer, config, passed)
        full_sequences = None
        if num_events is None and config.counting == "frames":
            num_events = self.model.event_counter(self.model.as_captions(features), frame_mask).argmax(1) + 1
        elif num_events is None:
            full_sequences = self.describe(features, frame_mask, tokenizer, config, **passed)
            sentences = [len(self.split_sentences(row)) for row in full_sequences.tolist()]
            num_events = torch.tensor(sentences, device=features.device).clamp(1, self.config.num_queries)
        if config.localization == "cohesion":
            valid = torch.arange(int(num_events.max()), device=features.device) < num_events[:, None]
            centers, widths = SailCohesionMaskGenerator(self.config)(
                self.model.as_captions(features), frame_mask, valid
            )
            masks = self.model.make_masks(centers, widths, frame_mask)
        else:
            centers, widths, masks = self.model.localize(features, frame_mask, num_events)
        sequences, scores = self.caption_events(features, frame_mask, masks, num_events, config, **passed)
        return SailGenerateOutput(sequences, scores, num_events, full_sequences, centers, widths, masks)

    def _generate_aligned(
        self,
        features: Tensor,
        frame_mask: Tensor,
        num_events: Tensor | None,
        tokenizer: PreTrainedTokenizerBase | None,
        config: GenerationConfig,
        passed: dict,
    ) -> SailGenerateOutput:
        if tokenizer is None:
            raise ValueError("localization='alignment' reads the sentences: pass `tokenizer=processor.tokenizer`.")
        clip = self.model.get_clip()
        full_sequences = self.describe(features, frame_mask, tokenizer, config, **passed)
        most = frame_mask.sum(1) if num_events is None else torch.minimum(num_events, frame_mask.sum(1))
        regions = self._regions(passed["region_features"], features, range(len(features)), frame_mask, frame_mask)
        frames = self.model.with_context(features, frame_mask, passed["context"])
        sentences, scores = self._cut_sentences(frames, frame_mask, full_sequences, most.tolist(), regions)
        if num_events is None and (config.repeat_level < 1 or config.support_level > -1):
            self._settle(features, frame_mask, sentences, scores, tokenizer, config, passed)
        found = torch.tensor([len(of_video) for of_video in sentences], device=features.device)
        num_events = found.clamp(min=1) if num_events is None else num_events
        aligned = found == num_events

        centers, widths = features.new_zeros(2, len(features), int(num_events.max()))
        if aligned.any():
            texts = [tokenizer.batch_decode(sentences[i], skip_special_tokens=True) for i in _indices(aligned)]
            counts = [len(of_video) for of_video in texts]
            caption_features = clip.encode_texts([text for of_video in texts for text in of_video]).split(counts)
            caption_features = pad_sequence(caption_features, batch_first=True).to(features.device)
            caption_mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
            segments = ALIGNMENTS[config.alignment](
                cosines(caption_features, features[aligned]), frame_mask[aligned], caption_mask, config.gap_level
            )
            centers[aligned, : max(counts)] = segments.centers.to(centers)
            widths[aligned, : max(counts)] = segments.widths.to(widths)
        if not aligned.all():  # by the mask generator, and captioned from its masks
            rest, count = ~aligned, int(num_events[~aligned].max())
            located = self.model.localize(features[rest], frame_mask[rest], num_events[rest])
            centers[rest, :count], widths[rest, :count] = located[0].to(centers), located[1].to(widths)
            counts = num_events[rest]
            rows = self.caption_events(
                features[rest], frame_mask[rest], located[2], counts, config, **_of_videos(passed, rest)
            )
            by_video = [values.split(counts.tolist()) for values in rows]
            for i, ids, score in zip(_indices(rest), *by_video, strict=True):
                sentences[i], scores[i] = list(ids), score
        masks = self.model.make_masks(centers, widths, frame_mask)
        ids = [sentence for of_video in sentences for sentence in of_video]
        sequences = pad_sequence(ids, batch_first=True, padding_value=config.pad_token_id)
        return SailGenerateOutput(sequences, torch.cat(scores), num_events, full_sequences, centers, widths, masks)

    def _settle(
        self,
        features: Tensor,
        frame_mask: Tensor,
        sentences: list[list[Tensor]],
        scores: list[Tensor],
        tokenizer: PreTrainedTokenizerBase,
        config: GenerationConfig,
        passed: dict,
    ) -> None:
        """Take repeats and what no frames fit out of `sentences` and `scores`, and add what was left out, in place."""
        clip, lengths = self.model.get_clip(), frame_mask.sum(1)

        def settle(i: int) -> Tensor:
            """Segments `(N, 2)` of the sentences of video i that stay."""
            texts = tokenizer.batch_decode(sentences[i], skip_special_tokens=True)
            kept, segments = settled(clip.encode_texts(texts), features[i, : lengths[i]].cpu(), config)
            sentences[i] = [ids for ids, stays in zip(sentences[i], kept.tolist(), strict=True) if stays]
            scores[i] = scores[i][kept.to(scores[i].device)]
            return segments

        rows = [i for i, of_video in enumerate(sentences) if of_video]
        segments = [settle(i) for i in rows]
        gaps = [uncovered(own, int(lengths[i])) for i, own in zip(rows, segments, strict=True)]
        if config.support_level == -1 or not sum(map(len, gaps)):
            return
        frames, mask = features[rows], frame_mask[rows]
        counts = torch.tensor([len(of_video) for of_video in gaps])
        spans = frame_spans(pad_sequence(gaps, True), lengths[rows].cpu()).to(frames)
        masks = self.model.make_masks(spans.mean(-1), spans[..., 1] - spans[..., 0], mask)
        found = self.caption_events(frames, mask, masks, counts, config, **_of_videos(passed, rows))
        by_video = [values.split(counts.tolist()) for values in found]
        for i, own, gap, ids, score in zip(rows, segments, gaps, *by_video, strict=True):
            order = torch.cat([own, gap])[:, 0].argsort(stable=True)
            together = [*sentences[i], *ids]
            sentences[i], scores[i] = [together[place] for place in order], torch.cat([scores[i], score])[order]
            settle(i)

    def _cut_sentences(
        self,
        frames: Tensor,
        frame_mask: Tensor,
        full_sequences: Tensor,
        most: list[int],
        regions: Regions | None,
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """The first `most` sentences of each whole-video caption: their token ids, and their scores as of events."""
        prompt = torch.tensor([self.config.full_prompt_ids] * len(frames), device=frames.device)
        labels = torch.cat([prompt, full_sequences], 1)
        encoded = self.model.video_encoder(frames, frame_mask)
        logits = self.caption_logits(encoded, frame_mask, labels, regions=regions)[:, prompt.shape[1] - 1 : -1]
        log_probs = logits.float().log_softmax(-1).gather(-1, full_sequences[..., None])[..., 0]
        sentences, scores = [], []
        for ids, values, limit in zip(full_sequences, log_probs, most, strict=True):
            spans = self._sentence_spans(ids.tolist())[:limit]
            sentences.append([ids[start:end] for start, end in spans])
            scores.append(torch.tensor([values[start:end].mean().exp() for start, end in spans], device=ids.device))
        return sentences, scores

    @torch.no_grad()
    def describe(
        self,
        video_features: Tensor,
        frame_mask: Tensor,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        region_features: Tensor | None = None,
        context: Context | None = None,
        **kwargs,
    ) -> Tensor:
        """Token ids `(B, length)` of `N events: ` and all sentences of each video, after the prompt `<FULL>`.

        With `stated_count` in the generation config, there are as many sentences as the caption says at its start
        ([`StatedCountLogitsProcessor`]); needs `tokenizer`, and a separator of one token.
        """
        config = self.resolve_generation_config(generation_config, **kwargs)
        config.min_new_tokens = getattr(config, "full_min_new_tokens", config.min_new_tokens)
        config.max_new_tokens = getattr(config, "full_max_new_tokens", config.max_new_tokens)
        processors = LogitsProcessorList(logits_processor or [])
        if config.stated_count:
            if tokenizer is None or len(self.config.separator_ids) != 1:
                raise ValueError(
                    "`stated_count` reads the number at the start of a caption: pass `tokenizer=processor.tokenizer`, one "
                    f"with a single token for a space; found separator_ids {list(self.config.separator_ids)}."
                )
            end = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
            processors.append(StatedCountLogitsProcessor(tokenizer, self.config.separator_ids[0], end))
        prompt = self.config.full_prompt_ids
        regions = self._regions(region_features, video_features, range(len(video_features)), frame_mask, frame_mask)
        frames = self.model.with_context(video_features, frame_mask, context)
        return self._decode(frames, frame_mask, prompt, config, processors, stopping_criteria, regions).sequences

    @torch.no_grad()
    def caption_events(
        self,
        video_features: Tensor,
        frame_mask: Tensor,
        masks: Tensor,
        num_events: Tensor,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        region_features: Tensor | None = None,
        context: Context | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """One sentence for each event from v * M.

        `masks`: `(B, N, T)`; `num_events`: `(B,)`; `context`: of [`SailModel.recall`], else recalled here. Returns token ids `(sum N, length)` and scores `(sum N,)` in [0, 1].
        """
        config = self.resolve_generation_config(generation_config, **kwargs)
        video, event = _event_rows(masks, num_events)
        frames = self.model.with_context(video_features, frame_mask, context, masks[video, event], video)
        frame_mask = frame_mask[video]
        regions = self._regions(region_features, video_features, video.tolist(), masks[video, event], frame_mask)
        prompt = self.config.event_prompt_ids
        config.output_scores = True
        out = self._decode(frames, frame_mask, prompt, config, logits_processor, stopping_criteria, regions)
        log_probs = self.decoder.compute_transition_scores(
            out.sequences, out.scores, out.get("beam_indices"), normalize_logits=out.get("beam_indices") is None
        )
        # Past the end of a sentence the transition scores are 0 (beams) or -inf (greedy).
        lengths = (out.sequences != config.pad_token_id)[:, : log_probs.shape[1]]
        return out.sequences, (log_probs.where(lengths, 0.0).sum(1) / lengths.sum(1).clamp(min=1)).exp()

    @torch.no_grad()
    def ground_events(
        self,
        video_features: Tensor,
        frame_mask: Tensor,
        masks: Tensor,
        num_events: Tensor,
        event_labels: Tensor,
        region_features: Tensor,
    ) -> Tensor:
        """What the sentences of events look at, given word by word.

        Args:
            video_features: `(B, T, D)`; `frame_mask`: `(B, T)`; `masks`: `(B, N, T)`; `num_events`: `(B,)`.
            event_labels: `(B, N, L)`, as in `forward`; region_features: `(B, T, N, D)`.

        Returns:
            `(sum N, L, T, N)`: for each position of an event's labels, shares of attention, which add up to 1. The positions that
            predict a word's tokens are [`SailProcessor.word_positions`].
        """
        video, event = _event_rows(masks, num_events)
        frames = self.model.with_context(video_features, frame_mask, None, masks[video, event], video)
        frame_mask = frame_mask[video]
        regions = self._regions(region_features, video_features, video.tolist(), masks[video, event], frame_mask)
        encoded = self.model.video_encoder(frames, frame_mask)
        self.caption_logits(encoded, frame_mask, event_labels.to(frames.device)[video, event], regions=regions)
        return regions.log_attention.exp()

    def resolve_generation_config(
        self, generation_config: GenerationConfig | None = None, **overrides
    ) -> GenerationConfig:
        """A copy of `generation_config` (default: the model's own) with our fields, and with `overrides` in place.

        Raises:
            ValueError: an override that is no field of it, or that generation in several passes cannot honour.
        """
        config = copy.deepcopy(generation_config or self.generation_config)
        for name, default in LOCALIZATION_DEFAULTS.items():
            setattr(config, name, getattr(config, name, default))
        if unknown := config.update(**overrides):
            raise ValueError(f"`generate` does not know the arguments {', '.join(unknown)}.")
        if (config.num_return_sequences or 1) > 1 or config.prompt_lookup_num_tokens:
            raise ValueError(
                "`generate` writes one sentence for each event, so it cannot honour `num_return_sequences` above 1 or "
                "`prompt_lookup_num_tokens`."
            )
        for name in ("max_new_tokens", "full_max_new_tokens"):
            check_limit("new_tokens", getattr(config, name, None) or 0, f"`{name}` asks for")
        check_limit("beams", config.num_beams or 1, "`num_beams` asks for")
        if config.localization not in ("masks", "cohesion", "alignment"):
            raise ValueError(
                f"`localization` must be 'masks', 'cohesion' or 'alignment', found {config.localization!r}."
            )
        if config.counting not in ("captions", "frames"):
            raise ValueError(f"`counting` must be 'captions' or 'frames', found {config.counting!r}.")
        if config.localization == "alignment":
            if overrides.get("counting") == "frames":
                raise ValueError(
                    "With localization='alignment' there are as many events as sentences: `counting='frames'` needs another."
                )
            config.counting = "captions"
        if config.counting == "frames" and self.model.event_counter is None:
            raise ValueError(
                "This model cannot count events by frames (config.event_counter is False): "
                "`training/fit_event_counter.py` teaches it."
            )
        if config.alignment not in ALIGNMENTS:
            raise ValueError(f"`alignment` must be one of {', '.join(ALIGNMENTS)}, found {config.alignment!r}.")
        for name in ("repeat_level", "support_level"):
            if not isinstance(value := getattr(config, name), (int, float)) or not -1 <= value <= 1:
                raise ValueError(f"`{name}` must be a cosine, a number in [-1, 1], found {value!r}.")
        return config

    def _decode(
        self,
        video_features: Tensor,
        frame_mask: Tensor,
        prompt: Sequence[int],
        config: GenerationConfig,
        logits_processor: LogitsProcessorList | None,
        stopping_criteria: StoppingCriteriaList | None,
        regions: Regions | None,
    ) -> ModelOutput:
        ids = torch.tensor([list(prompt)] * len(video_features), device=video_features.device)
        encoded = self.model.video_encoder(video_features, frame_mask)
        embeds, attention_mask = self.decoder_inputs(encoded, frame_mask, ids)
        config.return_dict_in_generate = True
        before = self._before_beams(embeds, attention_mask, config)
        if regions is not None:  # which row a hidden state is of is told by its place: no row may leave
            before.pop("custom_generate", None)
        with warnings.catch_warnings(), looking_at(self.decoder, self.grounding_head, regions):
            # Repeats are looked for in the new tokens alone, as they should be: frames have no token ids.
            warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size` with `inputs_embeds`")
            return self.decoder.generate(
                inputs_embeds=embeds,
                attention_mask=attention_mask,
                generation_config=config,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                **before,
            )

    def _regions(
        self,
        region_features: Tensor | None,
        video_features: Tensor,
        videos: Sequence[int],
        weights: Tensor,
        frame_mask: Tensor,
    ) -> Regions | None:
        """The patches of `videos`, a row each, whose frames weigh `weights` `(rows, T)`; `None` without patches."""
        projected = self.project_regions(region_features, video_features)
        return projected and Regions(*projected, videos, frame_log_weights(weights, frame_mask))

    def _before_beams(self, embeds: Tensor, attention_mask: Tensor, config: GenerationConfig) -> dict[str, Any]:
        """What spares `generate` work that its beams do in vain: the cache of all but the last position, made once a row and not
        once a beam, and [`open_rows_beam_search`].

        Nothing for one beam, for a cache that the generation config chooses, for decoders with states other than keys and
        values, and where processes hold shares of the weights.
        """
        cache = DynamicCache(config=self.decoder.config.get_text_config(decoder=True))
        known = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        if (config.num_beams or 1) == 1 or config.cache_implementation or not known or shares_weights(self):
            return {}
        seen = attention_mask[:, :-1]
        self.decoder(
            inputs_embeds=embeds[:, :-1],
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            logits_to_keep=1,
        )
        if cache.get_seq_length() != seen.shape[1]:
            return {}
        cache.batch_repeat_interleave(config.num_beams)
        return {"past_key_values": cache, "custom_generate": open_rows_beam_search}

    def split_sentences(self, ids: list[int]) -> list[list[int]]:
        """Token ids of each sentence in a whole-video caption `N events: sentence sentence ...<end>`."""
        return [ids[start:end] for start, end in self._sentence_spans(ids)]

    def _sentence_spans(self, ids: list[int]) -> list[tuple[int, int]]:
        """Where each sentence of a whole-video caption begins and ends."""
        end = self.generation_config.eos_token_id
        stops = {end} if isinstance(end, int) else set(end or [])
        stops.add(self.generation_config.pad_token_id)
        separator = list(self.config.separator_ids)
        spans, start, stop = [], 0, 0
        for stop, token in enumerate([*ids, None]):
            if token is None or token in stops:
                break
            if ids[start : stop + 1][-len(separator) :] == separator:
                spans.append((start, stop + 1 - len(separator)))
                start = stop + 1
        # What stands before the first separator is the count itself, "N events:".
        return [span for span in [*spans, (start, stop)][1:] if span[0] < span[1]]


def _of_videos(passed: dict, videos: Tensor | list[int]) -> dict:
    """What is passed on to a decoder's pass, for some of the videos of the batch."""
    regions, context = passed["region_features"], passed["context"]
    return {
        **passed,
        "region_features": None if regions is None else regions[videos],
        "context": None if context is None else context.of(videos),
    }


def _event_rows(masks: Tensor, num_events: Tensor) -> tuple[Tensor, Tensor]:
    """Video and event of each row of a pass over all events."""
    index = torch.arange(masks.shape[1], device=masks.device)
    return (index < num_events.to(masks.device)[:, None]).nonzero(as_tuple=True)


def shares_weights(model: PreTrainedModel) -> bool:
    """Whether processes hold shares of a model's weights (FSDP, ZeRO-3), so that all must make the same passes, or wait forever."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not several or torch.distributed.get_world_size() == 1:
        return False
    return is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def default_generation_config(config: SailConfig) -> GenerationConfig:
    """The paper's decoding: beam 4, no repeated 4-gram, 4..32 new tokens an event and 8..128 for the whole video."""
    text_config = config.text_config
    end = text_config.eos_token_id
    pad = text_config.pad_token_id
    if pad is None:
        pad = end[0] if isinstance(end, list) else end
    return GenerationConfig(
        num_beams=4,
        no_repeat_ngram_size=4,
        length_penalty=1.0,
        min_new_tokens=4,
        max_new_tokens=32,
        full_min_new_tokens=8,
        full_max_new_tokens=128,
        **LOCALIZATION_DEFAULTS,
        bos_token_id=text_config.bos_token_id,
        eos_token_id=end,
        pad_token_id=pad,
    )
