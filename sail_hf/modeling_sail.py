"""SAIL: a video encoder, a generator of temporal masks, and a caption decoder, trained from captions alone."""

from dataclasses import dataclass
from functools import partial
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .caption_memory_sail import SailCaptionMemory
from .clip_sail import SailClip, load_clip
from .clip_towers import build_towers, clip_tokenizer, encode_with_patches
from .configuration_sail import SailConfig
from .context_sail import Context, KeepsSentences, SailContext
from .counting_sail import SailEventCounter
from .generation_sail import SailGenerationMixin, default_generation_config, shares_weights
from .grounding_sail import Regions, SailGroundingHead, looking_at
from .layers_sail import SailAttention, SailEncoderLayer, SailVideoEncoder, check_shape, fuse_gelu
from .loss_sail import IGNORE_INDEX, LossInputs, SailOutput, length_groups, one_group, sail_losses
from .masks_sail import MASK_GENERATORS, event_masks
from .trust import check_size, check_weight_files

# Frames that pass through the CLIP vision tower at a time, whatever the batch: bounds the memory.
_FRAMES_PER_CLIP_PASS = 64


@dataclass
class SailModelOutput(ModelOutput):
    """Output of [`SailModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_frames, hidden_size)`): encoded frames.
        video_features (`torch.FloatTensor` of shape `(batch_size, num_frames, feature_size)`): CLIP features, 0 on padding.
        event_centers, event_widths (`torch.FloatTensor` of shape `(batch_size, num_events)`, *optional*):
            In [0, 1] of the video's duration, sorted by centre, 0 past a video's number of events. Given `num_events`.
        event_masks (`torch.FloatTensor` of shape `(batch_size, num_events, num_frames)`, *optional*):
            Weight of each frame in [0, 1] (Eq. 1); 0 on padding.
        hidden_states, attentions: of the video encoder's layers, with `output_hidden_states`, `output_attentions`.
        mask_attentions: of the event queries to the frames, with `output_mask_attentions`; empty for mask generators without.
        context ([`Context`]): what a bank of captions says of the videos, where the configuration has `context_size`.
    """

    last_hidden_state: Tensor | None = None
    video_features: Tensor | None = None
    event_centers: Tensor | None = None
    event_widths: Tensor | None = None
    event_masks: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    mask_attentions: tuple[Tensor, ...] | None = None
    context: Context | None = None


def _check_frame_mask(frame_mask: Tensor) -> None:
    if not (frame_mask[:, 0].all() & (frame_mask.diff(dim=1) <= 0).all()):
        raise ValueError(
            "`video_attention_mask` must be 1 on a video's frames, which come first, and 0 on the padding after them."
        )


def _check_options(kwargs: dict) -> None:
    known = ("output_attentions", "output_hidden_states", "output_mask_attentions")
    if unknown := set(kwargs) - set(known):
        raise TypeError(
            f"Unknown arguments: {', '.join(sorted(unknown))}. Besides its inputs, the model takes {', '.join(known)}."
        )


class SailPreTrainedModel(KeepsSentences, PreTrainedModel):
    config: SailConfig
    base_model_prefix = "model"
    main_input_name = "video_features"
    input_modalities = ("video",)
    # The losses are means over the batch, unless the step's own counts come as `num_items_in_batch` from `SailTrainer`.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["SailEncoderLayer", "SailMaskDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers; ValueError for weights that are more than tensors, or outside of the model's folder."""
        if pretrained_model_name_or_path is not None:
            check_weight_files(pretrained_model_name_or_path)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except UnpicklingError as error:
            name = pretrained_model_name_or_path
            raise ValueError(f"{name} was not loaded: its weights are damaged, or more than tensors.") from error

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # transformers passes over modules of others without parameters of their own, such as attention and `progress`.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        own = (
            SailAttention,
            SailVideoEncoder,
            SailEventCounter,
            SailGroundingHead,
            SailContext,
            SailCaptionMemory,
            *MASK_GENERATORS.values(),
        )
        if isinstance(module, own):
            module.initialize(self.config)
        elif type(module).__module__.startswith(("open_clip.", "timm.")) and not isinstance(module, nn.LayerNorm):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, std=self.config.initializer_range)
            # What no checkpoint holds, such as the causal mask of open_clip's text tower, is made anew.
            if made := dict(module.named_buffers(recurse=False)).keys() - module.state_dict().keys():
                path = next(name for name, other in self.named_modules() if other is module)
                tower, _, inner = path.partition(".")
                with torch.device("cpu"), init.no_init_weights():
                    towers = dict(
                        zip(("vision_tower", "text_tower"), build_towers(self.config.vision_config), strict=True)
                    )
                fresh = towers[tower].get_submodule(inner)
                for name in made:
                    init.copy_(module.get_buffer(name), fresh.get_buffer(name))


class SailModel(SailPreTrainedModel):
    """Frozen CLIP vision tower (where the configuration has one), video encoder and mask generator."""

    # A folder of `SailForDenseVideoCaptioning` also holds the caption decoder and its head.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^grounding_head\."]
    _can_record_outputs = {
        "hidden_states": SailEncoderLayer,
        "attentions": OutputRecorder(SailAttention, index=1, layer_name="video_encoder"),
        "mask_attentions": OutputRecorder(SailAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: SailConfig):
        super().__init__(config)
        self.vision_tower, self.text_tower = None, None
        self._borrowed_text_tower: tuple[nn.Module, ...] = ()
        if config.vision_config is not None:
            self.vision_tower, self.text_tower = build_towers(config.vision_config)
            for tower in self.towers():
                tower.requires_grad_(False)
        self.video_encoder = SailVideoEncoder(config)
        self.mask_generator = MASK_GENERATORS[config.mask_generator](config)
        self.context = SailContext(config) if config.context_size else None
        self.caption_memory = SailCaptionMemory(config) if config.caption_memory else None
        self.event_counter = SailEventCounter(config) if config.event_counter else None
        check_size(self)
        self.post_init()

    def towers(self) -> list[nn.Module]:
        """CLIP's towers inside this model."""
        return [tower for tower in (self.vision_tower, self.text_tower) if tower is not None]

    def train(self, mode: bool = True) -> "SailModel":
        super().train(mode)
        for tower in self.towers():
            tower.eval()
        return self

    @torch.no_grad()
    def get_video_features(self, pixel_values_videos: Tensor, video_attention_mask: Tensor | None = None) -> Tensor:
        """CLIP image projections of frames, not L2-normalised: `(B, T, 3, H, W)` -> `(B, T, D)`, 0 on padding."""
        chunks = self._clip_chunks(pixel_values_videos)
        features = torch.cat([self.vision_tower(chunk) for chunk in chunks]).unflatten(
            0, pixel_values_videos.shape[:2]
        )
        return features if video_attention_mask is None else features * video_attention_mask[:, :, None]

    @torch.no_grad()
    def get_region_features(self, pixel_values_videos: Tensor) -> tuple[Tensor, Tensor]:
        """[`get_video_features`] of `(B, T, 3, H, W)`, and those of the frames' patches, `(B, T, N, D)`, in one pass."""
        chunks = self._clip_chunks(pixel_values_videos)
        parts = zip(*(encode_with_patches(self.vision_tower, chunk) for chunk in chunks), strict=True)
        return tuple(torch.cat(part).unflatten(0, pixel_values_videos.shape[:2]) for part in parts)

    def _clip_chunks(self, pixel_values_videos: Tensor) -> tuple[Tensor, ...]:
        """Frames of `(B, T, 3, H, W)`, as many as pass through the vision tower at a time."""
        if self.vision_tower is None:
            raise ValueError(
                "This model has no CLIP vision tower (config.vision_config is None), so it takes `video_features`, "
                "not `pixel_values_videos`."
            )
        return pixel_values_videos.to(self.dtype).flatten(0, 1).split(_FRAMES_PER_CLIP_PASS)

    def get_clip(self) -> SailClip:
        """The frozen CLIP inside this model, with both towers.

        A text tower that the checkpoint lacks is loaded by the name of the CLIP (`config.vision_config.clip`). It is kept
        beside the model, and not saved with it.

        Raises:
            ValueError: the model has no CLIP at all, no CLIP of that name can be loaded, or it is another one than the
                CLIP inside.
        """
        vision_config = self.config.vision_config
        if self.vision_tower is None:
            raise ValueError(
                "This model has no CLIP (config.vision_config is None), which aligning captions to frames needs."
            )
        if self.text_tower is None and not self._borrowed_text_tower:
            self._borrowed_text_tower = (self._load_text_tower(),)
        text_tower = self.text_tower or self._borrowed_text_tower[0].to(self.device, self.dtype)
        towers = nn.ModuleDict({"visual": self.vision_tower, "text": text_tower})
        return SailClip(towers, vision_config, clip_tokenizer(vision_config.model_cfg))

    def _load_text_tower(self) -> nn.Module:
        name = self.config.vision_config.clip
        try:
            clip = load_clip(name, self.config.vision_config.pretrained).model
        except (ValueError, OSError) as error:
            raise ValueError(
                "This model was saved without CLIP's text tower, which aligning captions to frames needs, and its CLIP "
                f"cannot be loaded again. {error} `train.py --include_text_tower true` saves the tower with a model."
            ) from error
        mine, other = self.vision_tower.state_dict(), clip.visual.state_dict()
        if mine.keys() != other.keys() or any(
            value.shape != other[key].shape or (value.cpu() != other[key].to(value.dtype)).any()
            for key, value in mine.items()
        ):
            raise ValueError(f"The CLIP {name!r} has other weights than the one inside this model.")
        return clip.text

    def add_clip(self, clip: SailClip) -> None:
        """Put a CLIP into a model that was made or converted without one; saved with the model from then on.

        Raises:
            ValueError: the CLIP's features have another size than those the model was trained on.
        """
        size = clip.vision_config.model_cfg["embed_dim"]
        if size != self.config.feature_size:
            raise ValueError(f"Expected a CLIP with features of size {self.config.feature_size}, found {size}.")
        self.config.vision_config = clip.vision_config
        self.vision_tower = clip.model.visual
        if clip.vision_config.include_text_tower:
            self.text_tower = clip.model.text

    def prepare_features(
        self,
        pixel_values_videos: Tensor | None = None,
        video_features: Tensor | None = None,
        video_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Features `(B, T, D)`, 0 on padding, and frame mask `(B, T)`, from whichever input is given.

        Raises:
            ValueError: none or both inputs given, or a wrong shape.
        """
        if (pixel_values_videos is None) == (video_features is None):
            raise ValueError("Expected either `pixel_values_videos` or `video_features`, found both or neither.")
        if video_features is None:
            video_features = self.get_video_features(pixel_values_videos)
        size, limit = self.config.feature_size, self.config.num_frames
        if video_features.ndim != 3 or video_features.shape[2] != size or not 0 < video_features.shape[1] <= limit:
            raise ValueError(
                f"`video_features` must have shape (batch, at most {limit} frames, {size}), "
                f"found {tuple(video_features.shape)}."
            )
        if video_attention_mask is None:
            video_attention_mask = video_features.new_ones(video_features.shape[:2], dtype=torch.long)
        check_shape("video_attention_mask", video_attention_mask, video_features.shape[:2])
        if not torch.compiler.is_compiling():  # a graph has no values to look at
            _check_frame_mask(video_attention_mask)
        video_features = video_features.to(self.video_encoder.position_embeddings.dtype)
        return video_features * video_attention_mask[:, :, None], video_attention_mask

    def recall(self, video_features: Tensor, frame_mask: Tensor, video_ids: Tensor | None = None) -> Context | None:
        """[`SailContext.recall`] of videos; `None` for a model without context."""
        return None if self.context is None else self.context.recall(video_features, frame_mask, video_ids)

    def add_context(
        self, context: Context | None, frames: Tensor, weights: Tensor, video: Tensor | slice = slice(None)
    ) -> Tensor:
        """`frames` `(rows, T, D)` of videos by index, times `weights` `(rows, T)`, with what captions add, if anything."""
        return frames if context is None else self.context(frames, weights, context.of(video))

    def with_context(
        self,
        features: Tensor,
        frame_mask: Tensor,
        context: Context | None,
        weights: Tensor | None = None,
        video: Tensor | slice = slice(None),
    ) -> Tensor:
        """[`SailModel.add_context`] to raw `features` `(B, T, D)` of those videos times `weights`, by default whole.

        `context`: of the videos, where it has been recalled before.
        """
        context = self.recall(features, frame_mask) if context is None else context
        weights = frame_mask if weights is None else weights
        return self.add_context(context, features[video] * weights[:, :, None].to(features.dtype), weights, video)

    def localize(
        self, video_features: Tensor, frame_mask: Tensor, num_events: Tensor, max_events: int | None = None, **kwargs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Centres and widths `(B, N)` and masks `(B, N, T)` of each video's first `num_events` `(B,)` events.

        `max_events`: N; by default the largest of `num_events`.
        """
        check_shape("num_events", num_events, video_features.shape[:1])
        if max_events is None:
            counts = num_events.tolist()
            max_events = max(counts)
            if min(counts) < 1:
                raise ValueError(f"`num_events` must hold a positive number for each video, found {counts}.")
        if max_events > self.config.num_queries and self.config.mask_generator in ("queries", "progress"):
            raise ValueError(
                f"The mask generator has {self.config.num_queries} event queries (config.num_queries), "
                f"found a video with {max_events} events."
            )
        valid = torch.arange(max_events, device=video_features.device) < num_events[:, None]
        if self.config.mask_generator == "cohesion":
            video_features = self.as_captions(video_features)
        centers, widths = self.mask_generator(video_features, frame_mask, valid, **kwargs)
        return centers, widths, self.make_masks(centers, widths, frame_mask)

    def as_captions(self, video_features: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Features as [`SailCaptionMemory`] makes them; as they are, where there is no memory."""
        return video_features if self.caption_memory is None else self.caption_memory(video_features, exclude)

    def make_masks(self, centers: Tensor, widths: Tensor, frame_mask: Tensor) -> Tensor:
        """[`event_masks`] of the configuration's kind; all 0 where the width is 0, which marks padding."""
        masks = event_masks(centers, widths, frame_mask, self.config.mask_type, self.config.mask_temperature)
        return masks * (widths > 0)[:, :, None]

    @capture_outputs
    def forward(
        self,
        video_features: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_attention_mask: Tensor | None = None,
        num_events: Tensor | None = None,
        max_events: int | None = None,
        durations: Tensor | None = None,
        video_ids: Tensor | None = None,
        **kwargs,
    ) -> SailModelOutput:
        """Encode videos; with `num_events` `(B,)`, also localise that many events in each.

        Args:
            video_features: `(B, T, D)` CLIP image projections, not L2-normalised; or
            pixel_values_videos: `(B, T, 3, H, W)` frames after CLIP's preprocessing.
            video_attention_mask: `(B, T)`, 1 = real frame, real frames first. Defaults to all real.
            max_events: N, rows of what is localised; by default the largest of `num_events`. Given, nothing depends on
                values: `torch.export` and `torch.compile(fullgraph=True)` take it.
            durations: `(B,)` seconds, which the processor gives; the model works in [0, 1] and does not read them.
            video_ids: `(B, 64)` [`id_bytes`], read by a model with `context_size` alone: none recalls its own captions.
            kwargs: `output_attentions`, `output_hidden_states`, `output_mask_attentions`, `return_dict`.
        """
        _check_options(kwargs)
        features, frame_mask = self.prepare_features(pixel_values_videos, video_features, video_attention_mask)
        context = self.recall(features, frame_mask, video_ids)
        encoded = self.video_encoder(self.add_context(context, features, frame_mask), frame_mask, **kwargs)
        located = (None, None, None)
        if num_events is not None:
            located = self.localize(features, frame_mask, num_events, max_events, **kwargs)
        return SailModelOutput(encoded, features, *located, context=context)


class SailForDenseVideoCaptioning(SailPreTrainedModel, SailGenerationMixin):
    """[`SailModel`] with a causal language model that captions whole videos and single events."""

    def __init__(self, config: SailConfig):
        super().__init__(config)
        self.model = SailModel(config)
        # In the dtype of the rest, whatever the decoder was stored in.
        self.decoder = AutoModelForCausalLM.from_config(
            config.text_config, dtype=torch.get_default_dtype(), trust_remote_code=False
        )
        fuse_gelu(self.decoder)
        self.grounding_head = None
        if config.grounding:
            self.grounding_head = SailGroundingHead(config, self.get_output_embeddings().weight.shape[1])
        check_size(self)
        self.post_init()
        if self.generation_config.max_new_tokens is None:
            self.generation_config = default_generation_config(config)

    @classmethod
    def from_clip_and_decoder(
        cls, clip: SailClip, decoder: PreTrainedModel, processor, **config_fields
    ) -> "SailForDenseVideoCaptioning":
        """A new model around a pretrained CLIP and a pretrained causal language model; the rest is random.

        Args:
            clip: from [`load_clip`]; its vision tower is copied in (and its text tower, if
                `clip.vision_config.include_text_tower`).
            decoder: any causal language model of transformers; its embeddings grow by the processor's added tokens.
            processor ([`SailProcessor`]): whose tokenizer is the decoder's.
            config_fields: fields of [`SailConfig`] (`num_frames`, ..., those of [`method_fields`]).
        """
        tokenizer = processor.tokenizer
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        decoder.config.eos_token_id, decoder.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        config = SailConfig(
            text_config=decoder.config,
            vision_config=clip.vision_config,
            feature_size=clip.vision_config.model_cfg["embed_dim"],
            **processor.prompt_ids(),
            **config_fields,
        )
        model = cls(config)
        model.decoder.load_state_dict(decoder.state_dict())
        model.model.vision_tower.load_state_dict(clip.model.visual.state_dict())
        if model.model.text_tower is not None:
            model.model.text_tower.load_state_dict(clip.model.text.state_dict())
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.decoder.set_output_embeddings(value)

    def caption_logits(
        self,
        encoded: Tensor,
        frame_mask: Tensor,
        labels: Tensor,
        keep: Tensor | None = None,
        regions: Regions | None = None,
    ) -> Tensor:
        """Next-token scores `(rows, L, vocabulary)` of `labels` `(rows, L)` after encoded frames `(rows, T, hidden_size)`.

        `keep`: `(rows, L)` bool, the places that are scored, on any device; with it, scores are `(places, vocabulary)`, row by row.
        `regions`: patches that the rows, or with `keep` the places, also look at, with the grounding head.
        """
        embeds, attention_mask = self.decoder_inputs(encoded, frame_mask, labels)
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        with looking_at(self.decoder, self.grounding_head, regions):
            return self.decoder(
                inputs_embeds=embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                logits_to_keep=labels.shape[1] if keep is None else pad(keep, (encoded.shape[1], 0)),
                use_cache=False,
            ).logits

    def project_regions(self, region_features: Tensor | None, video_features: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values `(B, T, N, D)` of the patches of the videos whose features are `(B, T, D)`; `None` without patches.

        Raises:
            ValueError: the model has no grounding head, or another shape.
        """
        if region_features is None:
            return None
        if self.grounding_head is None:
            raise ValueError(
                "`region_features` are for a model with a grounding head, and this one has none (config.grounding is False). "
                "Leave them out, or load the model with from_pretrained(..., grounding=True) and train it."
            )
        check_shape("region_features", region_features, (*video_features.shape[:2], None, video_features.shape[2]))
        return self.grounding_head.project(region_features)

    def decoder_inputs(self, encoded: Tensor, frame_mask: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[encoded frames][text embeddings] and their attention mask; ids of -100 are padding."""
        text_mask = (ids != IGNORE_INDEX).long()
        embeds = torch.cat([encoded, self.get_input_embeddings()(ids * text_mask).to(encoded.dtype)], dim=1)
        return embeds, torch.cat([frame_mask.long(), text_mask], dim=1)

    @can_return_tuple
    def forward(
        self,
        video_features: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_attention_mask: Tensor | None = None,
        num_events: Tensor | None = None,
        full_labels: Tensor | None = None,
        event_labels: Tensor | None = None,
        complement_labels: Tensor | None = None,
        caption_features: Tensor | None = None,
        transition_features: Tensor | None = None,
        frame_caption_features: Tensor | None = None,
        region_features: Tensor | None = None,
        grounding_targets: Tensor | None = None,
        num_items_in_batch: dict[str, Tensor] | None = None,
        durations: Tensor | None = None,
        video_ids: Tensor | None = None,
        **kwargs,
    ) -> SailOutput:
        """The losses that the batch allows; whichever labels are given decide.

        Args:
            video_features: `(B, T, D)`, or `pixel_values_videos`: `(B, T, 3, H, W)`.
            video_attention_mask: `(B, T)`, 1 = real frame, real frames first.
            num_events: `(B,)`, number of events of each video; needed for every loss but `loss_full`.
            full_labels: `(B, L)` prompt and all sentences -> `loss_full`.
            event_labels, complement_labels: `(B, N, L)`, events in caption order, rows past a video's events -100 ->
                `loss_positive`, `loss_negative`. A video with one event has no complement.
            caption_features: `(B, N, D)` CLIP text features -> `loss_similarity` (Eq. 2).
            transition_features: `(B, N-1, D)` CLIP text features of the synthetic sentences -> `loss_augmentation` (Eq. 3).
            frame_caption_features: `(B, T, D)` CLIP text features of a caption of each frame -> `loss_attraction` (SBS).
            region_features: `(B, T, N, D)` features of N patches of each frame, which the grounding head looks at; and
                grounding_targets: `(sum N_s, L, T, N)` in [0, 1], for each event's row of `event_labels` and each position that
                predicts a word's token, where the word is to be seen ([`box_coverage`]); 0: no target -> `loss_grounding`.
            num_items_in_batch: denominators of the losses ([`count_items`]) where one optimiser step spans several batches or
                processes; see [`SailTrainer`]. Defaults to this batch's own.
            durations, video_ids, kwargs: as in [`SailModel.forward`].

        Raises:
            ValueError: shapes that do not fit together, or patches without a grounding head.
        """
        size = self.config.feature_size
        of_events = {
            "event_labels": (event_labels, None),
            "complement_labels": (complement_labels, None),
            "caption_features": (caption_features, size),
        }
        given = {name: value for name, (value, _) in of_events.items() if value is not None}
        between = {"transition_features": transition_features, "frame_caption_features": frame_caption_features}
        if num_events is None and (
            needing := [*given, *(name for name, value in between.items() if value is not None)]
        ):
            raise ValueError(f"`num_events` is needed beside {', '.join(needing)}.")
        events = next((value.shape[1] for value in given.values() if value.ndim == 3), None)
        counts = None if num_events is None else num_events.tolist()
        if counts and not 0 < min(counts) <= max(counts) <= (events or max(counts)):
            raise ValueError(
                f"`num_events` must hold a positive number for each video, at most {events} as in {next(iter(given))}, "
                f"found {counts}."
                if events
                else f"`num_events` must hold a positive number for each video, found {counts}."
            )
        # On the host before anything runs, so that no pass waits for the device.
        full_labels, event_labels, complement_labels = (
            None if labels is None else labels.cpu() for labels in (full_labels, event_labels, complement_labels)
        )
        given = (video_features, pixel_values_videos, video_attention_mask, num_events, events)
        outputs = self.model(*given, video_ids=video_ids, **kwargs)
        features, frame_mask = outputs.video_features, video_attention_mask
        if frame_mask is None:
            frame_mask = features.new_ones(features.shape[:2], dtype=torch.long)
        batch = len(features)
        check_shape("full_labels", full_labels, (batch, None))
        if num_events is not None:
            events = outputs.event_masks.shape[1]
            for name, (value, last) in of_events.items():
                check_shape(name, value, (batch, events, last))
            check_shape("transition_features", transition_features, (batch, events - 1, size))
            check_shape("frame_caption_features", frame_caption_features, features.shape)
        regions = self.project_regions(region_features, features)
        if grounding_targets is not None:
            if region_features is None or event_labels is None:
                raise ValueError("`grounding_targets` needs `region_features` and `event_labels` beside it.")
            targets_shape = (sum(counts), event_labels.shape[2], *region_features.shape[1:3])
            check_shape("grounding_targets", grounding_targets, targets_shape)
        inputs = LossInputs(
            config=self.config,
            features=features,
            frame_mask=frame_mask,
            encoded=outputs.last_hidden_state,
            encode=self.model.video_encoder,
            caption_logits=self.caption_logits,
            group_rows=one_group if shares_weights(self) else length_groups,
            make_masks=self.model.make_masks,
            add_context=partial(self.model.add_context, outputs.context),
            counts=counts,
            centers=outputs.event_centers,
            widths=outputs.event_widths,
            masks=outputs.event_masks,
            full_labels=full_labels,
            event_labels=event_labels,
            complement_labels=complement_labels,
            caption_features=caption_features,
            transition_features=transition_features,
            frame_caption_features=frame_caption_features,
            regions=regions,
            grounding_targets=grounding_targets,
        )
        losses = sail_losses(inputs, num_items_in_batch)
        return SailOutput(
            loss=losses.pop("total", None),
            **{f"loss_{name}": value for name, value in losses.items()},
            **inputs.shares(),
            event_centers=outputs.event_centers,
            event_widths=outputs.event_widths,
            event_masks=outputs.event_masks,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            mask_attentions=outputs.mask_attentions,
        )
