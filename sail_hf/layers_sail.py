"""Layers of SAIL: attention on transformers' interface, the video encoder, and the mask generator's decoder layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_sail import SailConfig


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention written out, as transformers' attention interface wants it: the one that can return its weights."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SailAttention(nn.Module):
    """Multi-head attention of `(B, N, width)` to itself, or to `key_value_states` `(B, T, width)`."""

    is_causal = False

    def __init__(self, config: SailConfig, width: int):
        super().__init__()
        self.config = config
        most = max(1, width // config.attention_head_dim)
        heads = next(number for number in range(most, 0, -1) if width % number == 0)
        self.head_dim, self.scaling, self.dropout = width // heads, (width // heads) ** -0.5, config.dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, key_value_states: Tensor | None = None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        source = hidden_states if key_value_states is None else key_value_states

        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            heads(self.q_proj(hidden_states)),
            heads(self.k_proj(source)),
            heads(self.v_proj(source)),
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(output.flatten(2)), weights

    def initialize(self, config: SailConfig) -> None:
        """As torch's own attention, which the method's authors use: the three projections as one of three times the width."""
        bound = (6 / (4 * self.q_proj.in_features)) ** 0.5
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            init.uniform_(projection.weight, -bound, bound)


class SailMLP(nn.Module):
    def __init__(self, config: SailConfig, width: int, hidden_width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden_width), nn.Linear(hidden_width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.dropout(functional.gelu(self.fc1(hidden_states))))


class SailEncoderLayer(GradientCheckpointingLayer):
    """Pre-norm Transformer encoder layer."""

    def __init__(self, config: SailConfig, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = SailAttention(config, width)
        self.mlp = SailMLP(config, width, config.encoder_ffn_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs) -> Tensor:
        attended, _ = self.self_attn(self.norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.norm2(hidden_states)))


class SailMaskDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm Transformer decoder layer: event queries attend to each other, then to the frames."""

    def __init__(self, config: SailConfig, width: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.self_attn, self.cross_attn = SailAttention(config, width), SailAttention(config, width)
        self.mlp = SailMLP(config, width, config.mask_decoder_ffn_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, queries: Tensor, frames: Tensor, query_mask: Tensor | None, frame_mask: Tensor | None, **kwargs
    ) -> Tensor:
        attended, _ = self.self_attn(self.norm1(queries), query_mask, **kwargs)
        queries = queries + self.dropout(attended)
        attended, _ = self.cross_attn(self.norm2(queries), frame_mask, key_value_states=frames, **kwargs)
        queries = queries + self.dropout(attended)
        return queries + self.dropout(self.mlp(self.norm3(queries)))


class SailVideoEncoder(nn.Module):
    """Pre-norm Transformer over frames, into the decoder's embedding space."""

    def __init__(self, config: SailConfig):
        super().__init__()
        self.config = config
        width = config.text_config.hidden_size
        self.input_projection = (
            nn.Linear(config.feature_size, width) if config.feature_size != width else nn.Identity()
        )
        self.position_embeddings = nn.Parameter(torch.zeros(config.num_frames, width))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([SailEncoderLayer(config, width) for _ in range(config.encoder_layers)])
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, width, bias=False)

    def forward(self, video_features: Tensor, frame_mask: Tensor, **kwargs) -> Tensor:
        """`(B, T, D)`, `(B, T)` -> `(B, T, hidden_size)`."""
        hidden = self.input_projection(video_features) + self.position_embeddings[: video_features.shape[1]]
        hidden = self.dropout(hidden)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=frame_mask)
        for layer in self.layers:
            hidden = layer(hidden, mask, **kwargs)
        return self.projection(self.norm(hidden))

    def initialize(self, config: SailConfig) -> None:
        """Initial values of what no layer of torch holds."""
        init.normal_(self.position_embeddings, std=config.position_initializer_range)


def fuse_gelu(decoder: nn.Module) -> None:
    """GPT-2's activation as one operation: written out, it keeps five tensors of every layer's widest for its gradient."""
    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh())


def check_shape(name: str, value: Tensor | None, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError for a tensor, where there is one, of another shape; `None` in the shape stands for any size."""
    if value is not None and (
        value.ndim != len(shape) or any(b not in (None, a) for a, b in zip(value.shape, shape, strict=True))
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"`{name}` must have shape ({expected}), found {tuple(value.shape)}.")
