"""How many events a video has, by its frames: a line through the evidence for each number, learned from captions' counts."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from .configuration_sail import SailConfig
from .segments_sail import count_evidence

# Evidence is a sum over a video's frames; so divided, it is of the size of one number.
_SCALE = 10.0


class SailEventCounter(nn.Module):
    """Log odds of 1, 2, ..., K events (`config.num_queries`) from the frames' cohesion. Beyond the paper, which reads the number
    off the whole-video caption. `training/fit_event_counter.py` fits it; before that, every number is as likely."""

    def __init__(self, config: SailConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.num_queries, config.num_queries).requires_grad_(False)  # no loss trains it

    def initialize(self, config: SailConfig) -> None:
        """0, hence no number above another."""
        init.zeros_(self.linear.weight)
        init.zeros_(self.linear.bias)

    def evidence(self, features: Tensor, frame_mask: Tensor) -> Tensor:
        """`(B, T, D)`, `(B, T)` -> `(B, K)`, around 0; for more events than steps of time, that of the most there can be."""
        costs = self.config.cohesion_weight, self.config.cohesion_gap_cost
        weights = count_evidence(features, frame_mask, self.linear.in_features, *costs)
        possible = weights.isfinite()
        least = weights.gather(1, possible.sum(1, keepdim=True) - 1)
        weights = weights.where(possible, least)
        return (weights - weights.mean(1, keepdim=True)) / _SCALE

    def forward(self, features: Tensor, frame_mask: Tensor) -> Tensor:
        """Log odds `(B, K)`, -inf for more events than frames."""
        numbers = torch.arange(1, self.linear.in_features + 1, device=features.device)
        odds = self.linear(self.evidence(features, frame_mask).to(self.linear.weight.dtype))
        return odds.masked_fill(numbers > frame_mask.sum(1, keepdim=True), -torch.inf)

    def fit(self, evidence: Tensor, counts: Tensor, penalty: float = 1e-4) -> None:
        """Multinomial logistic regression of `counts` `(V,)` on `evidence` `(V, K)`, in place; `penalty`: of squared weights.

        Counts above K are K. What was fitted before is forgotten.
        """
        target = counts.clamp(1, self.linear.out_features) - 1
        line = nn.Linear(self.linear.in_features, self.linear.out_features, device=evidence.device)
        for parameter in line.parameters():
            init.zeros_(parameter)
        optimizer = torch.optim.LBFGS(line.parameters(), max_iter=500, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = functional.cross_entropy(line(evidence), target) + penalty * line.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        self.linear.load_state_dict(line.state_dict())
