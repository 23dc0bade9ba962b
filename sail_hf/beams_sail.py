"""Beam search of transformers that computes a row only until its own search is over."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.utils import ModelOutput


class OpenRows:
    """A decoder as transformers' beam search sees it, which leaves out rows that nothing can change any more.

    The search of a batch goes on until that of its last row is over. It asks the model for the next tokens' scores, for the
    beams of its cache in another order, and which rows can still improve; these are answered here, all else by the decoder.
    """

    def __init__(self, decoder: PreTrainedModel, num_beams: int, num_rows: int):
        self.decoder, self.num_beams, self.num_rows = decoder, num_beams, num_rows
        # Rows, beam by beam, that the cache still holds.
        self.rows = torch.arange(num_rows, device=decoder.device)
        self.cache: Cache | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def __call__(self, **inputs) -> ModelOutput:
        """The decoder's output for open rows; scores of the others are 0, which changes nothing of what they found."""
        if len(self.rows) == self.num_rows:
            return self.decoder(**inputs)
        output = self.decoder(
            **{
                name: value[self.rows] if isinstance(value, Tensor) and len(value) == self.num_rows else value
                for name, value in inputs.items()
            }
        )
        logits = output.logits.new_zeros(self.num_rows, *output.logits.shape[1:])
        logits[self.rows] = output.logits
        output.logits = logits
        return output

    def _reorder_cache(self, cache: Cache, beams: Tensor) -> Cache:
        self.cache = cache
        cache.batch_select_indices(torch.searchsorted(self.rows, beams[self.rows].to(self.rows)))
        return cache

    def _check_early_stop_heuristic(self, *args, **kwargs) -> Tensor:
        can_improve = self.decoder._check_early_stop_heuristic(*args, **kwargs)
        stays = can_improve.flatten().repeat_interleave(self.num_beams)[self.rows]
        if stays.any() and not stays.all():
            kept = stays.nonzero().flatten()
            self.cache.batch_select_indices(kept)
            self.rows = self.rows[kept]
        return can_improve


def open_rows_beam_search(
    decoder: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs,
) -> ModelOutput:
    """For `generate(custom_generate=open_rows_beam_search)` with more than one beam and a `DynamicCache` of keys and values."""
    rows = OpenRows(decoder, generation_config.num_beams, len(input_ids))
    return type(decoder)._beam_search(
        rows, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs
    )
