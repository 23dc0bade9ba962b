"""Generation of SAIL: caption the whole video, localise its events, and caption each of them."""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, GenerationMixin, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from .alignment_sail import Alignment, align_ordered
from .configuration_sail import SailConfig
from .loss_sail import cosines

# Custom fields of the generation config; a config that was made without them has these.
LOCALIZATION_DEFAULTS = {"localization": "masks", "alignment_rounds": 1}


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
        **kwargs,
    ) -> SailGenerateOutput:
        """Caption the whole video, read the number of events off, localise them, caption each (supplement, section B).

        The generation config's `localization` says how events are localised:

        * `"masks"`: by the mask generator. With `num_events`, no whole-video caption is made.
        * `"alignment"`: by aligning the sentences of the whole-video caption to the frames ([`align_ordered`]), and
          the sentences of the events again, `alignment_rounds` times in all. Needs `tokenizer` and CLIP's text tower.
          There are at most as many events as frames. With `num_events`, the first that many sentences count; a video
          whose caption has fewer, or none at all, falls back on the mask generator.

        Args:
            video_features, pixel_values_videos, video_attention_mask: as in `forward`.
            num_events: `(B,)`, number of events of each video.
            tokenizer: the decoder's, to read sentences; used for `"alignment"` alone.
            generation_config: defaults to the model's own. Lengths of the whole-video caption are its
                `full_min_new_tokens` and `full_max_new_tokens`.
            kwargs: fields that replace the generation config's (`num_beams=1`, `localization="alignment"`, ...).

        Raises:
            ValueError: inputs that do not fit together, or no tokenizer or text tower where they are needed.
        """
        config = self._generation_config(generation_config, kwargs)
        features, frame_mask = self.model.prepare_features(pixel_values_videos, video_features, video_attention_mask)
        if config.localization == "alignment":
            return self._generate_aligned(features, frame_mask, num_events, tokenizer, config)
        full_sequences = None
        if num_events is None:
            full_sequences = self.describe(features, frame_mask, config)
            sentences = [len(self.split_sentences(row)) for row in full_sequences.tolist()]
            num_events = torch.tensor(sentences, device=features.device).clamp(1, self.config.num_queries)
        centers, widths, masks = self.model.localize(features, frame_mask, num_events)
        sequences, scores = self.caption_events(features, frame_mask, masks, num_events, config)
        return SailGenerateOutput(sequences, scores, num_events, full_sequences, centers, widths, masks)

    def _generate_aligned(
        self,
        features: Tensor,
        frame_mask: Tensor,
        num_events: Tensor | None,
        tokenizer: PreTrainedTokenizerBase | None,
        config: GenerationConfig,
    ) -> SailGenerateOutput:
        if tokenizer is None:
            raise ValueError("localization='alignment' reads the sentences: pass `tokenizer=processor.tokenizer`.")
        full_sequences = self.describe(features, frame_mask, config)
        most = frame_mask.sum(1) if num_events is None else torch.minimum(num_events, frame_mask.sum(1))
        texts = []
        for row, limit in zip(full_sequences.tolist(), most.tolist(), strict=True):
            sentences = self.split_sentences(row)[:limit]
            texts.append(tokenizer.batch_decode(sentences, skip_special_tokens=True) if sentences else [])
        found = torch.tensor([len(of_video) for of_video in texts], device=features.device)
        num_events = found.clamp(min=1) if num_events is None else num_events

        centers, widths = features.new_zeros(2, len(features), int(num_events.max()))
        aligned = found == num_events
        if not aligned.all():
            short = self.model.localize(features[~aligned], frame_mask[~aligned], num_events[~aligned])
            centers[~aligned, : short[0].shape[1]], widths[~aligned, : short[0].shape[1]] = short[:2]
        for _ in range(config.alignment_rounds):
            if aligned.any():
                rows = aligned.nonzero().flatten().tolist()
                segments = self._align([texts[row] for row in rows], features[aligned], frame_mask[aligned])
                count = segments.segments.shape[1]
                centers[aligned, :count], widths[aligned, :count] = (
                    segments.centers.to(centers),
                    segments.widths.to(widths),
                )
            masks = self.model.make_masks(centers, widths, frame_mask)
            sequences, scores = self.caption_events(features, frame_mask, masks, num_events, config)
            sentences = iter(tokenizer.batch_decode(sequences, skip_special_tokens=True))
            texts = [[next(sentences) for _ in range(count)] for count in num_events.tolist()]
        return SailGenerateOutput(sequences, scores, num_events, full_sequences, centers, widths, masks)

    def _align(self, texts: list[list[str]], features: Tensor, frame_mask: Tensor) -> Alignment:
        """Segments of each video's sentences."""
        counts = [len(of_video) for of_video in texts]
        caption_features = self.model.get_clip().encode_texts([text for of_video in texts for text in of_video])
        caption_features = pad_sequence(caption_features.split(counts), batch_first=True)
        caption_mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        return align_ordered(cosines(caption_features.to(features.device), features), frame_mask, caption_mask)

    @torch.no_grad()
    def describe(
        self,
        video_features: Tensor,
        frame_mask: Tensor,
        generation_config: GenerationConfig | None = None,
        **kwargs,
    ) -> Tensor:
        """Token ids `(B, length)` of `N events: ` and all sentences of each video, after the prompt `<FULL>`."""
        config = self._generation_config(generation_config, kwargs)
        config.min_new_tokens = getattr(config, "full_min_new_tokens", config.min_new_tokens)
        config.max_new_tokens = getattr(config, "full_max_new_tokens", config.max_new_tokens)
        return self._decode(video_features, frame_mask, self.config.full_prompt_ids, config).sequences

    @torch.no_grad()
    def caption_events(
        self,
        video_features: Tensor,
        frame_mask: Tensor,
        masks: Tensor,
        num_events: Tensor,
        generation_config: GenerationConfig | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """One sentence for each event from v * M.

        `masks`: `(B, N, T)`; `num_events`: `(B,)`. Returns token ids `(sum N, length)` and scores `(sum N,)` in [0, 1].
        """
        config = self._generation_config(generation_config, kwargs)
        config.return_dict_in_generate, config.output_scores = True, True
        video, event = (
            torch.arange(masks.shape[1], device=masks.device) < num_events.to(masks.device)[:, None]
        ).nonzero(as_tuple=True)
        masked = video_features[video] * masks[video, event][:, :, None].to(video_features.dtype)
        out = self._decode(masked, frame_mask[video], self.config.event_prompt_ids, config)
        log_probs = self.decoder.compute_transition_scores(
            out.sequences, out.scores, out.get("beam_indices"), normalize_logits=out.get("beam_indices") is None
        )
        # Past the end of a sentence the transition scores are 0 (beams) or -inf (greedy).
        lengths = (out.sequences != config.pad_token_id)[:, : log_probs.shape[1]]
        return out.sequences, (log_probs.where(lengths, 0.0).sum(1) / lengths.sum(1).clamp(min=1)).exp()

    def _generation_config(self, generation_config: GenerationConfig | None, overrides: dict) -> GenerationConfig:
        config = copy.deepcopy(generation_config or self.generation_config)
        for name, default in LOCALIZATION_DEFAULTS.items():
            setattr(config, name, getattr(config, name, default))
        unknown = config.update(**overrides)
        if unknown:
            raise ValueError(f"Unknown generation arguments: {', '.join(unknown)}.")
        if config.localization not in ("masks", "alignment"):
            raise ValueError(f"`localization` must be 'masks' or 'alignment', found {config.localization!r}.")
        if config.alignment_rounds < 1:
            raise ValueError(f"`alignment_rounds` must be at least 1, found {config.alignment_rounds}.")
        return config

    def _decode(self, video_features: Tensor, frame_mask: Tensor, prompt: list[int], config: GenerationConfig):
        ids = torch.tensor([list(prompt)] * len(video_features), device=video_features.device)
        embeds, attention_mask = self._decoder_inputs(video_features, frame_mask, ids)
        with warnings.catch_warnings():
            # Repeats are looked for in the new tokens alone, as they should be: frames have no token ids.
            warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size` with `inputs_embeds`")
            out = self.decoder.generate(inputs_embeds=embeds, attention_mask=attention_mask, generation_config=config)
        return out if config.return_dict_in_generate else SailGenerateOutput(sequences=out)

    def split_sentences(self, ids: list[int]) -> list[list[int]]:
        """Token ids of each sentence in a whole-video caption `N events: sentence sentence ...<end>`."""
        end = self.generation_config.eos_token_id
        stops = {end} if isinstance(end, int) else set(end or [])
        stops.add(self.generation_config.pad_token_id)
        separator = list(self.config.separator_ids)
        sentences: list[list[int]] = [[]]
        for token in ids:
            if token in stops:
                break
            sentences[-1].append(token)
            if sentences[-1][-len(separator) :] == separator:
                sentences[-1] = sentences[-1][: -len(separator)]
                sentences.append([])
        # What stands before the first separator is the count itself, "N events:".
        return [sentence for sentence in sentences[1:] if sentence]


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
