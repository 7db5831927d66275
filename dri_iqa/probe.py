"""What the degradation half of an extractor sees, as a linear classifier that lies in the bundle.

`evaluation/probe.py` makes the views and fits it; here is what is kept and asked. It needs torch
only, so that loading a model stays cheap.

Shapes: N views, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dri_iqa.bundle_head import ProbeFacts


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    """Multinomial logistic regression on standardised features, float64."""

    mean_F: Tensor
    scale_F: Tensor
    weight_KF: Tensor
    bias_K: Tensor

    @classmethod
    def fit(cls, features_NF: Tensor, label_N: Tensor, penalty: float = 1e-3) -> LinearProbe:
        """Fit to convergence.

        Args:
            features_NF: of the training views.
            label_N: classes 0..K-1.
            penalty: weight of the squared weights, relative to the mean cross-entropy.
        """
        features_NF = features_NF.double()
        mean_F, scale_F = features_NF.mean(0), features_NF.std(0).clamp(min=1e-8)
        x_NF = (features_NF - mean_F) / scale_F
        classes = int(label_N.max()) + 1
        weight_KF = torch.zeros(classes, x_NF.shape[1], dtype=torch.float64, requires_grad=True)
        bias_K = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [weight_KF, bias_K], max_iter=300, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(x_NF @ weight_KF.T + bias_K, label_N)
            loss = loss + 0.5 * penalty * weight_KF.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        return cls(
            mean_F=mean_F, scale_F=scale_F, weight_KF=weight_KF.detach(), bias_K=bias_K.detach()
        )

    def logits(self, features_NF: Tensor) -> Tensor:
        """Unnormalised log-probabilities, (N, K)."""
        x_NF = (features_NF.double() - self.mean_F) / self.scale_F
        return x_NF @ self.weight_KF.T + self.bias_K

    def predict(self, features_NF: Tensor) -> Tensor:
        """The likeliest class of every row, (N,)."""
        return self.logits(features_NF).argmax(1)

    def accuracy(self, features_NF: Tensor, label_N: Tensor) -> float:
        """Share of rows that are classified rightly."""
        return float((self.predict(features_NF) == label_N).double().mean())

    def error(self, features_NF: Tensor, label_N: Tensor) -> float:
        """Share of rows that are classified wrongly."""
        return float((self.predict(features_NF) != label_N).double().mean())

    def log_loss(self, features_NF: Tensor, label_N: Tensor) -> float:
        """Mean cross-entropy in nats; guessing gives log K."""
        return float(F.cross_entropy(self.logits(features_NF), label_N))


@dataclass(frozen=True, kw_only=True, eq=False)
class DegradationProbe:
    """A linear probe of the degradation type on the pooled upper half of an extractor's last map."""

    facts: ProbeFacts
    linear: LinearProbe

    def probabilities(self, features_NF: Tensor) -> Tensor:
        """Of every kind, (N, K) float64, rows sum to 1."""
        return self.linear.logits(features_NF).softmax(1)

    def tensors(self) -> dict[str, Tensor]:
        """What a bundle keeps of it, beside the facts."""
        linear = self.linear
        return {
            "probe.mean": linear.mean_F,
            "probe.scale": linear.scale_F,
            "probe.weight": linear.weight_KF,
            "probe.bias": linear.bias_K,
        }

    @classmethod
    def from_tensors(cls, facts: ProbeFacts, tensors: Mapping[str, Tensor]) -> DegradationProbe:
        """The inverse of `tensors`."""
        linear = LinearProbe(
            mean_F=tensors["probe.mean"],
            scale_F=tensors["probe.scale"],
            weight_KF=tensors["probe.weight"],
            bias_K=tensors["probe.bias"],
        )
        return cls(facts=facts, linear=linear)

    @staticmethod
    def empty_tensors(kinds: int, features: int) -> dict[str, Tensor]:
        """Tensors of the right names, shapes and type, to check those of a bundle against."""
        shapes = {
            "probe.mean": (features,),
            "probe.scale": (features,),
            "probe.weight": (kinds, features),
            "probe.bias": (kinds,),
        }
        return {
            name: torch.empty(shape, dtype=torch.float64, device="meta")
            for name, shape in shapes.items()
        }
