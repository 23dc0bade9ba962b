"""SAIL: a video encoder, a generator of temporal masks, and a caption decoder, trained from captions alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .alignment_sail import align_ordered
from .clip_sail import SailClip, build_towers, load_clip, text_tokenizer
from .configuration_sail import SailConfig
from .generation_sail import SailGenerationMixin, default_generation_config
from .loss_sail import (
    IGNORE_INDEX,
    augmentation_loss,
    caption_loss,
    cosines,
    diversity_loss,
    masked_mean,
    segment_loss,
    similarity_hinges,
    similarity_loss,
)

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
    """

    last_hidden_state: Tensor | None = None
    video_features: Tensor | None = None
    event_centers: Tensor | None = None
    event_widths: Tensor | None = None
    event_masks: Tensor | None = None


@dataclass
class SailOutput(ModelOutput):
    """Output of [`SailForDenseVideoCaptioning`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): weighted sum of the parts that the batch allows (Eq. 4).
        loss_full, loss_positive, loss_negative, loss_similarity, loss_augmentation, loss_diversity, loss_alignment
            (`torch.FloatTensor` of shape `(1,)`, *optional*): the parts, unweighted; `None` where the batch has no item.
        active_hinges (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Share of Eq. 2's hinges above 0. Near 1 all along, the margin is out of reach and masks tend to collapse.
        event_centers, event_widths, event_masks: as in [`SailModelOutput`].
    """

    loss: Tensor | None = None
    loss_full: Tensor | None = None
    loss_positive: Tensor | None = None
    loss_negative: Tensor | None = None
    loss_similarity: Tensor | None = None
    loss_augmentation: Tensor | None = None
    loss_diversity: Tensor | None = None
    loss_alignment: Tensor | None = None
    active_hinges: Tensor | None = None
    event_centers: Tensor | None = None
    event_widths: Tensor | None = None
    event_masks: Tensor | None = None


def event_masks(centers: Tensor, widths: Tensor, frame_mask: Tensor, mask_type: str, temperature: float) -> Tensor:
    """Temporal masks from centres and widths (Eq. 1 for `"gaussian"`; Table 7 for the others).

    Args:
        centers, widths: `(B, N)` in [0, 1].
        frame_mask: `(B, T)`, 1 = real frame; real frames come first and span t in [0, 1].
        mask_type: `"gaussian"`, `"cauchy"` (peak 1) or `"hard"` (1 inside centre +- width / 2).
        temperature: tau.

    Returns:
        `(B, N, T)` in [0, 1], 0 on padding.
    """
    last = (frame_mask.sum(1, keepdim=True) - 1).clamp(min=1)
    time = torch.arange(frame_mask.shape[1], device=centers.device) / last
    offset = time[:, None, :] - centers[:, :, None]
    # A width of 0 is a spike on its own frame, not a division by zero.
    scale = (widths[:, :, None] / temperature).clamp(min=1e-6)
    if mask_type == "gaussian":
        masks = torch.exp(-((offset / scale) ** 2) / 2)
    elif mask_type == "cauchy":
        masks = 1 / (1 + (offset / scale) ** 2)
    else:
        masks = (offset.abs() <= widths[:, :, None] / 2).to(centers.dtype)
    return masks * frame_mask[:, None, :]


def _check_shape(name: str, value: Tensor | None, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError for a tensor, where there is one, of another shape; `None` in the shape stands for any size."""
    if value is not None and (
        value.ndim != len(shape) or any(b not in (None, a) for a, b in zip(value.shape, shape, strict=True))
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"`{name}` must have shape ({expected}), found {tuple(value.shape)}.")


def fixed_segments(num_events: Tensor, max_events: int) -> tuple[Tensor, Tensor]:
    """Centres (i + 0.5) / N and widths 1 / N, each `(B, max_events)`, 0 past N (the fixed masks of Figure 2a)."""
    index = torch.arange(max_events, device=num_events.device)
    valid = index < num_events[:, None]
    return ((index + 0.5) / num_events[:, None]) * valid, valid / num_events[:, None]


class SailVideoEncoder(nn.Module):
    """Pre-norm Transformer over frames, into the decoder's embedding space."""

    def __init__(self, config: SailConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.input_projection = (
            nn.Linear(config.feature_size, width) if config.feature_size != width else nn.Identity()
        )
        self.position_embeddings = nn.Parameter(torch.zeros(config.num_frames, width))
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            width,
            config.encoder_attention_heads,
            config.encoder_ffn_dim,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config.encoder_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, width, bias=False)

    def forward(self, video_features: Tensor, frame_mask: Tensor) -> Tensor:
        """`(B, T, D)`, `(B, T)` -> `(B, T, hidden_size)`."""
        hidden = self.input_projection(video_features) + self.position_embeddings[: video_features.shape[1]]
        hidden = self.encoder(self.dropout(hidden), src_key_padding_mask=frame_mask == 0)
        return self.projection(self.norm(hidden))


class SailMaskGenerator(nn.Module):
    """Event queries that look at the frames and give each event a centre and a width."""

    def __init__(self, config: SailConfig):
        super().__init__()
        width = config.feature_size
        self.queries = nn.Parameter(torch.zeros(config.num_queries, width))
        self.position_embeddings = nn.Parameter(torch.zeros(config.num_frames, width))
        layer = nn.TransformerDecoderLayer(
            width,
            config.mask_decoder_attention_heads,
            config.mask_decoder_ffn_dim,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, config.mask_decoder_layers)
        self.norm = nn.LayerNorm(width)
        self.center_head = nn.Linear(width, 1, bias=False)
        self.width_head = nn.Linear(width, 1, bias=False)

    def forward(self, memory: Tensor, frame_mask: Tensor, num_events: Tensor) -> tuple[Tensor, Tensor]:
        """Centres and widths `(B, N)` in [0, 1], sorted by centre, 0 past a video's N.

        `memory`: `(B, T, D)`; `frame_mask`: `(B, T)`; `num_events`: `(B,)`.
        """
        count = int(num_events.max())
        valid = torch.arange(count, device=memory.device) < num_events[:, None]
        hidden = self.decoder(
            self.queries[:count].expand(len(memory), -1, -1),
            memory + self.position_embeddings[: memory.shape[1]],
            tgt_key_padding_mask=~valid,
            memory_key_padding_mask=frame_mask == 0,
        )
        hidden = self.norm(hidden)
        centers = self.center_head(hidden).squeeze(-1).sigmoid()
        widths = self.width_head(hidden).squeeze(-1).sigmoid()
        order = centers.masked_fill(~valid, torch.inf).argsort(1)
        return centers.gather(1, order) * valid, widths.gather(1, order) * valid


class SailProgressMaskGenerator(nn.Module):
    """Frames that drive a video's progress from 0 to N; event i lies where it goes from i to i + 1.

    Convolutions over time give each frame its share of the progress, so what is seen decides where events begin and
    end, and they come in order: continuous integrate-and-fire (Dong and Xu, ICASSP 2020), made for speech. Beyond the
    paper, whose generator are the event queries of `SailMaskGenerator`.
    """

    def __init__(self, config: SailConfig):
        super().__init__()
        width, hidden = config.feature_size, config.mask_decoder_ffn_dim
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([nn.Conv1d(size, hidden, 5, padding=2) for size in (width, hidden)])
        self.head = nn.Conv1d(hidden, 1, 1)

    def forward(self, memory: Tensor, frame_mask: Tensor, num_events: Tensor) -> tuple[Tensor, Tensor]:
        """As `SailMaskGenerator`."""
        real = frame_mask[:, None].to(memory.dtype)
        hidden = self.norm(memory).transpose(1, 2)
        for layer in self.layers:
            hidden = functional.gelu(layer(hidden * real))
        # No frame stands quite still, so that every event has a place.
        rates = ((self.head(hidden).sigmoid() + 0.02) * real)[:, 0].float()
        progress = functional.pad(rates.cumsum(1), (1, 0))
        progress = progress / progress[:, -1:] * num_events[:, None]
        # A frame stands for half a step on either side of its time; step t ends where frame t + 1 begins.
        step, length = torch.arange(progress.shape[1], device=memory.device), frame_mask.sum(1, keepdim=True)
        times = ((step - 0.5) / (length - 1).clamp(min=1)).clamp(0, 1).where(step < length, 1.0)
        event = torch.arange(int(num_events.max()), device=memory.device)
        valid = event < num_events[:, None]
        # The first and last tenth of an event are where it is least certain: they are left to what lies between.
        wanted = torch.cat([event + 0.1, event + 0.9]).where(torch.cat([valid, valid], 1), 0.5)
        after = torch.searchsorted(progress.detach(), wanted, right=True)
        low, high = progress.gather(1, after - 1), progress.gather(1, after)
        begin, end = times.gather(1, after - 1), times.gather(1, after)
        start, stop = (begin + (wanted - low) / (high - low) * (end - begin)).chunk(2, dim=1)
        return (start + stop) / 2 * valid, ((stop - start) / 0.8).clamp(max=1) * valid


class SailPreTrainedModel(PreTrainedModel):
    config: SailConfig
    base_model_prefix = "model"
    main_input_name = "video_features"
    input_modalities = ("video",)
    # The losses are means over the batch, unless the step's own counts come as `num_items_in_batch` from `SailTrainer`.
    accepts_loss_kwargs = False
    _no_split_modules = ["TransformerEncoderLayer", "TransformerDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, SailVideoEncoder):
            init.normal_(module.position_embeddings, std=std)
        elif isinstance(module, nn.Conv1d):
            # torch's own, which the size of the layer decides: the progress generator's frames must not start saturated.
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, SailMaskGenerator):
            init.normal_(module.queries, std=1.0)
            init.normal_(module.position_embeddings, std=std)
        elif getattr(module, "attn_mask", None) is not None and hasattr(module, "build_causal_mask"):
            # open_clip's text tower keeps its causal mask in a buffer that no checkpoint holds.
            init.copy_(module.attn_mask, module.build_causal_mask().to(module.attn_mask.device))


class SailModel(SailPreTrainedModel):
    """Frozen CLIP vision tower (where the configuration has one), video encoder and mask generator."""

    # A folder of `SailForDenseVideoCaptioning` also holds the caption decoder.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]

    def __init__(self, config: SailConfig):
        super().__init__(config)
        self.vision_tower, self.text_tower = None, None
        if config.vision_config is not None:
            self.vision_tower, self.text_tower = build_towers(config.vision_config)
            for tower in (self.vision_tower, self.text_tower):
                if tower is not None:
                    tower.requires_grad_(False)
        self.video_encoder = SailVideoEncoder(config)
        generators = {"learned": SailMaskGenerator, "progress": SailProgressMaskGenerator}
        self.mask_generator = generators[config.mask_generator](config) if config.mask_generator != "fixed" else None
        hidden, size = config.text_config.hidden_size, config.feature_size
        self.memory_projection = (
            nn.Linear(hidden, size, bias=False)
            if config.mask_memory == "encoded" and hidden != size
            else nn.Identity()
        )
        self.post_init()

    def train(self, mode: bool = True) -> "SailModel":
        super().train(mode)
        for tower in (self.vision_tower, self.text_tower):
            if tower is not None:
                tower.eval()
        return self

    @torch.no_grad()
    def get_video_features(self, pixel_values_videos: Tensor, video_attention_mask: Tensor | None = None) -> Tensor:
        """CLIP image projections of frames, not L2-normalised: `(B, T, 3, H, W)` -> `(B, T, D)`, 0 on padding."""
        if self.vision_tower is None:
            raise ValueError(
                "This model has no CLIP vision tower (config.vision_config is None), so it takes `video_features`, "
                "not `pixel_values_videos`."
            )
        batch, frames = pixel_values_videos.shape[:2]
        chunks = pixel_values_videos.to(self.dtype).flatten(0, 1).split(_FRAMES_PER_CLIP_PASS)
        features = torch.cat([self.vision_tower(chunk) for chunk in chunks]).unflatten(0, (batch, frames))
        return features if video_attention_mask is None else features * video_attention_mask[:, :, None]

    def get_clip(self) -> SailClip:
        """The frozen CLIP inside this model, with both towers.

        Raises:
            ValueError: the model has no vision tower or no text tower.
        """
        if self.vision_tower is None or self.text_tower is None:
            missing = "vision tower" if self.vision_tower is None else "text tower"
            raise ValueError(
                f"This model has no CLIP {missing}. SailModel.load_text_tower() loads the text tower by CLIP's name; "
                "`train.py --include_text_tower true` saves it with a model."
            )
        towers = nn.ModuleDict({"visual": self.vision_tower, "text": self.text_tower})
        return SailClip(towers, self.config.vision_config, text_tokenizer(self.config.vision_config))

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

    def load_text_tower(self) -> None:
        """Take in CLIP's text tower by the name of the CLIP (`config.vision_config.clip`), where there is none yet.

        From then on it is part of the model, and saved with it.

        Raises:
            ValueError: the model has no CLIP at all, no CLIP of that name can be loaded, or it is another one than the
                CLIP inside.
        """
        vision_config = self.config.vision_config
        if self.text_tower is not None:
            return
        if vision_config is None:
            raise ValueError(
                "This model was saved without CLIP (config.vision_config is None), hence has no text tower."
            )
        try:
            clip = load_clip(vision_config.clip).model
        except (ValueError, OSError) as error:
            raise ValueError(
                "This model was saved without CLIP's text tower, which aligning captions to frames needs, and its CLIP "
                f"cannot be loaded again. {error} `train.py --include_text_tower true` saves the tower with a model."
            ) from error
        mine = self.vision_tower.state_dict()
        other = clip.visual.state_dict()
        if mine.keys() != other.keys() or any(
            value.shape != other[name].shape or (value.cpu() != other[name].to(value.dtype)).any()
            for name, value in mine.items()
        ):
            raise ValueError(f"The CLIP {vision_config.clip!r} has other weights than the one inside this model.")
        self.text_tower = clip.text.to(self.device, self.dtype)
        vision_config.include_text_tower = True

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
        _check_shape("video_attention_mask", video_attention_mask, video_features.shape[:2])
        if not video_attention_mask[:, 0].all() or (video_attention_mask.diff(dim=1) > 0).any():
            raise ValueError(
                "`video_attention_mask` must be 1 on a video's frames, which come first, and 0 on the padding after them."
            )
        video_features = video_features.to(self.video_encoder.position_embeddings.dtype)
        return video_features * video_attention_mask[:, :, None], video_attention_mask

    def localize(
        self, video_features: Tensor, frame_mask: Tensor, num_events: Tensor, encoded: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Centres and widths `(B, N)` and masks `(B, N, T)` of each video's first `num_events` `(B,)` events."""
        if len(num_events) != len(video_features) or not 0 < int(num_events.min()) <= int(num_events.max()):
            raise ValueError(f"`num_events` must hold a positive number for each video, found {num_events.tolist()}.")
        if self.config.mask_generator == "fixed":
            centers, widths = fixed_segments(num_events, int(num_events.max()))
        else:
            if int(num_events.max()) > self.config.num_queries:
                raise ValueError(
                    f"The mask generator has {self.config.num_queries} event queries (config.num_queries), "
                    f"found a video with {int(num_events.max())} events."
                )
            memory = video_features
            if self.config.mask_memory == "encoded":
                encoded = self.video_encoder(video_features, frame_mask) if encoded is None else encoded
                memory = self.memory_projection(encoded)
            centers, widths = self.mask_generator(memory, frame_mask, num_events)
        return centers, widths, self.make_masks(centers, widths, frame_mask)

    def make_masks(self, centers: Tensor, widths: Tensor, frame_mask: Tensor) -> Tensor:
        """[`event_masks`] of the configuration's kind; all 0 where the width is 0, which marks padding."""
        masks = event_masks(centers, widths, frame_mask, self.config.mask_type, self.config.mask_temperature)
        return masks * (widths > 0)[:, :, None]

    def forward(
        self,
        video_features: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_attention_mask: Tensor | None = None,
        num_events: Tensor | None = None,
    ) -> SailModelOutput:
        """Encode videos; with `num_events` `(B,)`, also localise that many events in each.

        Args:
            video_features: `(B, T, D)` CLIP image projections, not L2-normalised; or
            pixel_values_videos: `(B, T, 3, H, W)` frames after CLIP's preprocessing.
            video_attention_mask: `(B, T)`, 1 = real frame, real frames first. Defaults to all real.
        """
        features, frame_mask = self.prepare_features(pixel_values_videos, video_features, video_attention_mask)
        encoded = self.video_encoder(features, frame_mask)
        located = (None, None, None)
        if num_events is not None:
            located = self.localize(features, frame_mask, num_events, encoded)
        return SailModelOutput(encoded, features, *located)


class SailForDenseVideoCaptioning(SailPreTrainedModel, SailGenerationMixin):
    """[`SailModel`] with a causal language model that captions whole videos and single events."""

    def __init__(self, config: SailConfig):
        super().__init__(config)
        self.model = SailModel(config)
        self.decoder = AutoModelForCausalLM.from_config(config.text_config)
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
            config_fields: fields of [`SailConfig`] (`method`, `num_frames`, ...).
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

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    def caption_logits(self, video_features: Tensor, frame_mask: Tensor, labels: Tensor) -> Tensor:
        """Next-token scores `(rows, L, vocabulary)` of `labels` `(rows, L)` after encoded frames `(rows, T, D)`."""
        embeds, attention_mask = self._decoder_inputs(video_features, frame_mask, labels)
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        return self.decoder(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=labels.shape[1],
        ).logits

    def _decoder_inputs(self, video_features: Tensor, frame_mask: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[encoded frames][text embeddings] and their attention mask; -100 is padding."""
        frames = self.model.video_encoder(video_features, frame_mask)
        text_mask = (ids != IGNORE_INDEX).long()
        embeds = torch.cat([frames, self.get_input_embeddings()(ids * text_mask).to(frames.dtype)], dim=1)
        return embeds, torch.cat([frame_mask.long(), text_mask], dim=1)

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
        num_items_in_batch: dict[str, Tensor] | None = None,
    ) -> SailOutput:
        """The losses that the batch allows; whichever labels are given decide.

        Args:
            video_features: `(B, T, D)`, or `pixel_values_videos`: `(B, T, 3, H, W)`.
            video_attention_mask: `(B, T)`, 1 = real frame, real frames first.
            num_events: `(B,)`, N of each video; needed for every loss but `loss_full`.
            full_labels: `(B, L)` prompt and all sentences -> `loss_full`.
            event_labels, complement_labels: `(sum N, L)`, rows video by video, events in caption order ->
                `loss_positive`, `loss_negative`. A complement row of -100 alone adds no loss.
            caption_features: `(B, N, D)` CLIP text features -> `loss_similarity` (Eq. 2).
            transition_features: `(B, N-1, D)` CLIP text features of the synthetic sentences -> `loss_augmentation` (Eq. 3).
            num_items_in_batch: denominators of the losses ([`count_items`]) where one optimiser step spans several batches or
                processes; see [`SailTrainer`]. Defaults to this batch's own.

        Raises:
            ValueError: shapes that do not fit together.
        """
        config = self.config
        features, frame_mask = self.model.prepare_features(pixel_values_videos, video_features, video_attention_mask)
        items = num_items_in_batch or {}
        output = SailOutput()
        _check_shape("full_labels", full_labels, (len(features), None))
        if full_labels is not None and config.full_loss_weight:
            logits = self.caption_logits(features, frame_mask, full_labels)
            output.loss_full = caption_loss(logits, full_labels, items.get("full_tokens"))
        if num_events is not None:
            output.event_centers, output.event_widths, output.event_masks = self.model.localize(
                features, frame_mask, num_events
            )
            valid = output.event_widths.new_ones(output.event_widths.shape, dtype=torch.bool)
            valid &= torch.arange(valid.shape[1], device=valid.device) < num_events[:, None]
            batch, events = valid.shape
            _check_shape("caption_features", caption_features, (batch, events, config.feature_size))
            _check_shape("transition_features", transition_features, (batch, events - 1, config.feature_size))
            self._mask_losses(output, features, frame_mask, valid, caption_features, transition_features, items)
            self._event_caption_losses(output, features, frame_mask, valid, event_labels, complement_labels, items)
        parts = [
            (config.full_loss_weight, output.loss_full),
            (config.positive_loss_weight, output.loss_positive),
            (config.negative_loss_weight, output.loss_negative),
            (config.similarity_loss_weight, output.loss_similarity),
            (config.augmentation_loss_weight, output.loss_augmentation),
            (config.diversity_loss_weight, output.loss_diversity),
            (config.alignment_loss_weight, output.loss_alignment),
        ]
        given = [weight * loss for weight, loss in parts if loss is not None]
        output.loss = torch.stack(given).sum() if given else None
        return output

    def _event_caption_losses(
        self,
        output: SailOutput,
        features: Tensor,
        frame_mask: Tensor,
        valid: Tensor,
        event_labels: Tensor | None,
        complement_labels: Tensor | None,
        items: dict[str, Tensor],
    ) -> None:
        """The positive pass over v * M and the negative pass over v * (1 - M), a row an event."""
        video = valid.nonzero()[:, 0]
        masks = output.event_masks[valid][:, :, None].to(features.dtype)
        for name, labels, weights in [
            ("positive", event_labels, masks),
            ("negative", complement_labels, 1 - masks),
        ]:
            if labels is None:
                continue
            if len(labels) != len(video):
                raise ValueError(
                    f"Labels of the {name} pass must have a row for each of the {len(video)} events, found {len(labels)}."
                )
            rows = (labels != IGNORE_INDEX).any(1)
            if not rows.any():
                continue
            source = video[rows]
            logits = self.caption_logits(features[source] * weights[rows], frame_mask[source], labels[rows])
            setattr(output, f"loss_{name}", caption_loss(logits, labels[rows], items.get(f"{name}_tokens")))

    def _mask_losses(
        self,
        output: SailOutput,
        features: Tensor,
        frame_mask: Tensor,
        valid: Tensor,
        caption_features: Tensor | None,
        transition_features: Tensor | None,
        items: dict[str, Tensor],
    ) -> None:
        """Similarity (Eq. 2), augmentation (Eq. 3), diversity, and regression to aligned segments: masks only, no decoder."""
        config = self.config
        centers, widths, masks = output.event_centers, output.event_widths, output.event_masks
        if config.diversity_loss_weight:
            output.loss_diversity = diversity_loss(
                masks, valid, config.diversity_threshold, items.get("multi_event_videos")
            )
        between = None
        if transition_features is not None and transition_features.shape[1] > 0:
            inter_width = torch.full_like(centers[:, 1:], config.transition_width) * valid[:, 1:]
            inter_masks = self.model.make_masks((centers[:, :-1] + centers[:, 1:]) / 2, inter_width, frame_mask)
            between = masked_mean(features, inter_masks)
            if config.augmentation_loss_weight:
                output.loss_augmentation = augmentation_loss(
                    between, transition_features, valid, items.get("multi_event_videos")
                )
        if caption_features is None:
            return
        if config.similarity_loss_weight:
            hard = (between, transition_features) if config.transition_hard_negatives else (None, None)
            hinges = similarity_hinges(
                masked_mean(features, masks), caption_features, valid, config.similarity_margin, *hard
            )
            output.loss_similarity = similarity_loss(hinges, valid, items.get("multi_event_videos"))
            counted = valid & (valid.sum(1, keepdim=True) > 1)
            output.active_hinges = (hinges[counted] > 0).float().mean() if counted.any() else None
        if config.alignment_loss_weight:
            with torch.no_grad():
                target = align_ordered(cosines(caption_features, features), frame_mask, valid)
            output.loss_alignment = segment_loss(
                centers, widths, target.centers, target.widths, valid, items.get("events")
            )
