"""Context from captions (CACMI, AAAI 2026, arXiv 2511.10134): stretches of a video recall sentences, which join its frames.

Frames are clustered into stretches, each stretch recalls the sentences of a bank that are nearest to it in CLIP space, and
their mean joins the frames before the video encoder. Off unless `config.context_size` says into how many stretches.
What is ours: the fusion is a residual whose last layer starts at zero, so a trained model goes on unchanged; frames and
sentences are weighted by an event's mask *before* they meet, so a masked pass knows nothing of other events.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init
from transformers.utils import cached_file

from .configuration_sail import SailConfig

logger = logging.getLogger(__name__)
# Beside the weights: the bank's sentences, in its order, and the videos that they are of.
SENTENCES_FILE = "context_sentences.parquet"
# Of `from_pretrained`, what also says where a further file of the model is.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Bytes of a video's id that are told apart.
ID_BYTES = 64
# Of the cosines of frames and texts, before the softmax: CLIP's own first value.
_FIRST_SCALE = 1 / 0.07


class Context(NamedTuple):
    """What the bank says of B videos, cut into c clusters of adjacent frames.

    Attributes:
        clusters: `(B, T, c)`, 1 / frames of a cluster on its frames, else 0; a short video has fewer clusters than c.
        texts: `(B, c, D)`, mean unit features of a cluster's sentences; 0 for a cluster without frames.
        norms: `(B, T, 1)`, lengths of the raw features; 1 on padding.
        sentences, cosines: `(B, c, k)`, rows of the bank, nearest first, and their cosines with the cluster's mean; -inf
            where fewer than k are left.
    """

    clusters: Tensor
    texts: Tensor
    norms: Tensor
    sentences: Tensor
    cosines: Tensor

    def of(self, videos: Tensor | slice) -> "Context":
        """Rows for some of the videos."""
        return Context(*(value[videos] for value in self))


def cluster_frames(features: Tensor, frame_mask: Tensor, size: int) -> Tensor:
    """Which of at most `size` clusters of adjacent frames each frame is in, `(B, T)`, counted from 0 in order of time.

    As long as there are more, the two adjacent ones are merged whose union has the least further variance (Ward's cost,
    n m / (n + m) |mean - mean|^2). `features`: `(B, T, D)`; `frame_mask`: `(B, T)`, real frames first. Of padding it says
    nothing of use.
    """
    steps = torch.arange(frame_mask.shape[1] + 1, device=frame_mask.device)
    edges = steps.expand(len(frame_mask), -1)
    counts_before = functional.pad(frame_mask.float().cumsum(1), (1, 0))
    sums_before = functional.pad((features.float() * frame_mask[:, :, None]).cumsum(1), (0, 0, 1, 0))
    for number in range(frame_mask.shape[1], size, -1):
        counts = counts_before.gather(1, edges).diff(dim=1)
        sums = sums_before.gather(1, edges[:, :, None].expand(-1, -1, features.shape[2])).diff(dim=1)
        first, second = counts[:, :-1], counts[:, 1:]
        means = sums / counts.clamp(min=1)[:, :, None]
        costs = first * second / (first + second).clamp(min=1) * means.diff(dim=1).square().sum(-1)
        # A video that has no more than `size` loses padding, at the end.
        costs = costs.where(second > 0, torch.where((counts > 0).sum(1) > size, torch.inf, -1.0)[:, None])
        kept = steps[:number]
        edges = edges.gather(1, kept + (kept > costs.argmin(1, keepdim=True)).long())
    return torch.searchsorted(edges[:, 1:].contiguous(), steps[:-1].expand(len(edges), -1).contiguous(), right=True)


def id_bytes(video_ids: Sequence[str]) -> Tensor:
    """Ids of videos as `(B, 64)` bytes of UTF-8, filled up with 0: as a tensor, they are sliced and gathered with a batch."""
    return torch.tensor([list(str(name).encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")) for name in video_ids]).byte()


class SailContext(nn.Module):
    """A bank of sentences, and their fusion with frames: v + Z CFE(v, q), Z = 0 at first.

    Buffers: `features` `(M, D)` float16, unit length, and `videos` `(M, 64)`, the [`id_bytes`] of the video that each is of.
    `sentences`: M texts, or `None` where their file is not there.

    Raises:
        ValueError: `config.context_size` or `config.context_k` below 1.
    """

    def __init__(self, config: SailConfig):
        super().__init__()
        if config.context_size < 1 or config.context_k < 1:
            raise ValueError(
                "`context_size` (clusters of a video; 0: no context) and `context_k` (sentences of each) must be positive, "
                f"found {config.context_size} and {config.context_k}."
            )
        self.config = config
        size, rows = config.feature_size, config.context_sentences
        self.register_buffer("features", torch.zeros(rows, size, dtype=torch.float16))
        self.register_buffer("videos", torch.zeros(rows, ID_BYTES, dtype=torch.uint8))
        self.sentences: list[str] | None = None
        self.scale = nn.Parameter(torch.full((1,), _FIRST_SCALE))
        self.mix, self.out = nn.Linear(5 * size, size), nn.Linear(size, size)

    def initialize(self, config: SailConfig) -> None:
        """Nothing is added at first."""
        init.constant_(self.scale, _FIRST_SCALE)
        for tensor in (self.out.weight, self.out.bias, self.features, self.videos):
            init.zeros_(tensor)

    def fill(self, features: Tensor, video_ids: Sequence[str], sentences: Sequence[str]) -> None:
        """Put in another bank: `features` `(M, D)` of CLIP's text tower, the ids of their videos, and their texts.

        Raises:
            ValueError: no sentences, other numbers of them, or features of another size than the model's.
        """
        size = self.config.feature_size
        if features.shape != (len(sentences), size) or not len(video_ids) == len(sentences) > 0:
            raise ValueError(
                f"A bank of captions needs features of shape (sentences, {size}) (feature_size), a video's id and a text "
                f"for each; found features {tuple(features.shape)}, {len(video_ids)} ids and {len(sentences)} texts."
            )
        device = self.features.device
        self.features = functional.normalize(features.float(), dim=-1).to(device, torch.float16)
        self.videos, self.sentences = id_bytes(video_ids).to(device), list(sentences)
        self.config.context_sentences = len(sentences)

    @torch.no_grad()
    def recall(self, video_features: Tensor, frame_mask: Tensor, video_ids: Tensor | None = None) -> Context:
        """What the bank says of videos `(B, T, D)`, raw; `frame_mask`: `(B, T)`.

        `video_ids`: `(B, 64)` [`id_bytes`], as [`SailTrainer`] gives them, whose own sentences are left out; needed in training.

        Raises:
            ValueError: an empty bank, or no ids in training: a video would read off its own captions.
        """
        if not len(self.features):
            raise ValueError(
                f"`context_size` is {self.config.context_size}, but the bank holds no captions: training/train.py fills it "
                "with the training captions, or model.model.context.fill(features, video_ids, sentences)."
            )
        if self.training and video_ids is None:
            raise ValueError(
                "Training with a bank of captions needs `video_ids` `(B, 64)`, so that no video recalls its own: train "
                "with SailTrainer on rows that have `video_id`, or pass sail_hf.context_sail.id_bytes([...])."
            )
        with torch.autocast(video_features.device.type, enabled=False):
            frames, real = video_features.float(), frame_mask.float()[:, :, None]
            norms = frames.norm(dim=-1, keepdim=True)
            norms = norms.where(norms > 0, 1.0)
            labels = cluster_frames(frames / norms, frame_mask, self.config.context_size)
            clusters = functional.one_hot(labels, self.config.context_size) * real
            clusters = clusters / clusters.sum(1, keepdim=True).clamp(min=1)
            exclude = None if video_ids is None else (self.videos == video_ids[:, None]).all(-1)
            texts, sentences, cosines = self.retrieve(clusters.transpose(1, 2) @ (frames / norms), exclude)
            return Context(clusters, texts * (clusters.sum(1) > 0)[:, :, None], norms, sentences, cosines)

    @torch.no_grad()
    def retrieve(self, clusters: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The `context_k` nearest sentences of each cluster: their mean features, their rows in the bank, their cosines.

        `clusters`: `(B, c, D)`; `exclude`: `(B, M)` bool, sentences that a video may not recall. Returns `(B, c, D)`, 0 where
        none is left, and twice `(B, c, k)`.
        """
        bank = self.features.float()
        similarities = functional.normalize(clusters.float(), dim=-1) @ bank.T
        if exclude is not None:
            similarities = similarities.masked_fill(exclude[:, None], -torch.inf)
        cosines, sentences = similarities.topk(min(self.config.context_k, len(bank)), dim=-1)
        counted = cosines.isfinite().to(bank.dtype)[..., None]
        return (bank[sentences] * counted).sum(2) / counted.sum(2).clamp(min=1), sentences, cosines

    def forward(self, frames: Tensor, weights: Tensor, context: Context) -> Tensor:
        """`frames` `(B, T, D)`, raw features times `weights` `(B, T)`, with what the sentences add (CACMI's CFE).

        M, cosines of frames and texts, each times its weight; A = softmax_row(M) q, B = softmax_row(M) softmax_col(M)^T v;
        [v; A; v * A; v * B; mean q] through two layers. The weight of a text is the mean of `weights` over its cluster.
        """
        length = frames.shape[2] ** 0.5  # so that elements are about 1
        clusters, dtype = context.clusters.to(frames.dtype), frames.dtype
        seen = frames / context.norms.to(dtype) * length
        shares = weights[:, None].to(dtype) @ clusters
        texts = context.texts.to(dtype) * shares.transpose(1, 2) * length
        scores = (seen @ texts.transpose(1, 2)).float() * (self.scale / length**2)
        no_text, no_frame = clusters.sum(1)[:, None] == 0, clusters.sum(2)[:, :, None] == 0
        of_frame = scores.masked_fill(no_text, -torch.inf).softmax(2).to(dtype)
        of_text = scores.masked_fill(no_frame, -torch.inf).softmax(1).to(dtype)
        said, shown = of_frame @ texts, of_frame @ (of_text.transpose(1, 2) @ seen)
        pooled = (texts.sum(1, keepdim=True) / (~no_text).sum(2, keepdim=True)).expand_as(seen)
        hidden = self.mix(torch.cat([seen, said, seen * said, seen * shown, pooled.to(dtype)], dim=-1))
        return frames + self.out(functional.gelu(hidden))

    def leaned_on(self, context: Context, masks: Tensor, most: int) -> list[list[list[dict[str, Any]]]]:
        """Of each event of each video, `most` sentences `{"text", "cosine"}` of the clusters under its mask `(B, N, T)`.

        Under a mask: its mean over the cluster is at least half of its greatest. Sorted by that mean times the cosine.

        Raises:
            ValueError: the bank's sentences are not known.
        """
        if self.sentences is None:
            raise ValueError(f"The bank's sentences are not known: the model's folder lacks {SENTENCES_FILE}.")
        shares = masks.to(context.clusters.dtype) @ context.clusters
        shares = shares.repeat_interleave(context.cosines.shape[2], dim=-1)

        def best(share: Tensor, cosines: Tensor, rows: Tensor) -> list[dict[str, Any]]:
            under = ((share >= 0.5 * share.max()) & cosines.isfinite()).nonzero().flatten()
            under = under[(share * cosines)[under].argsort(descending=True)].tolist()
            # What several clusters recall, or several videos say, counts once.
            found: dict[str, float] = {}
            for place in under:
                found.setdefault(self.sentences[int(rows[place])], float(cosines[place]))
            return [{"text": text, "cosine": cosine} for text, cosine in list(found.items())[:most]]

        videos = zip(shares, context.cosines.flatten(1), context.sentences.flatten(1), strict=True)
        return [[best(share, cosines, rows) for share in of_video] for of_video, cosines, rows in videos]

    def save_sentences(self, folder: str | Path) -> None:
        """Write [`SENTENCES_FILE`], columns `text` and `video_id`; say so where the sentences are not known."""
        if self.sentences is None:
            logger.warning(f"The bank's sentences are not known, so {SENTENCES_FILE} is not written.")
            return
        ids = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in self.videos.tolist()]
        pyarrow = _pyarrow()
        table = pyarrow.table({"text": self.sentences, "video_id": ids})
        pyarrow.parquet.write_table(table, Path(folder) / SENTENCES_FILE)

    def load_sentences(self, name: str | Path, **options) -> None:
        """Read [`SENTENCES_FILE`] of a folder or of a model on the Hub, if it is there. `options`: of `cached_file`.

        Raises:
            ValueError: it does not hold a text for each row of the bank.
        """
        path = cached_file(name, SENTENCES_FILE, _raise_exceptions_for_missing_entries=False, **options)
        if path is None:
            return
        try:
            texts = _pyarrow().parquet.read_table(path, columns=["text"])["text"].to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is no file of a bank's sentences: {error}") from error
        if len(texts) != len(self.features) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"Expected {len(self.features)} texts in {path}, found {len(texts)} rows.")
        self.sentences = texts


def _pyarrow() -> Any:
    try:  # a model without a bank does without
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"A bank's sentences lie in a Parquet file: pip install pyarrow ({error}).") from error
    return pyarrow


class KeepsSentences:
    """Makes a model save and load the sentences of its bank, where it has one."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        context = model.base_model.context
        if context is not None and len(context.features) and pretrained_model_name_or_path is not None:
            options = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
            context.load_sentences(pretrained_model_name_or_path, **options)
        return loaded

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers, with the sentences of a bank of captions."""
        context = self.base_model.context
        if context is None or not len(context.features):
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        super().save_pretrained(save_directory, **kwargs)
        context.save_sentences(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
