"""Guidance: one output made of the model's outputs under several conditions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Guidance:
    """eps = eps(base) + sum_k s_k (eps(c_k) - eps(base)).

    One term is classifier-free guidance (Ho and Salimans 2022) with diffusers' scale s; the paper's w is
    s - 1. Guiding v equals guiding eps, since eps is affine in v.

    Attributes:
        base: the unconditional condition, float32 [B, K, D]; None if the scales sum to 1.
        terms: conditions [B, K, D] with their scales s_k.
    """

    base: torch.Tensor | None
    terms: tuple[tuple[torch.Tensor, float], ...]


def guided(predict: Predict, z_t: torch.Tensor, t: torch.Tensor, guidance: Guidance) -> torch.Tensor:
    """The guided output, float32 [B, c, h, w]. Passes that have no weight are skipped.

    Args:
        predict: (z_t, t, condition) to the model's output.
        z_t: noisy latents, float32 [B, c, h, w].
        t: timesteps, int64 [B].
        guidance: conditions and scales; at scale 1 of one term its base is not looked at.

    Raises:
        ValueError: there is no base and it has a weight.
    """
    terms = [(c, s) for c, s in guidance.terms if s != 0]
    weight_of_base = 1 - math.fsum(s for _, s in terms)
    if abs(weight_of_base) < 1e-9:  # 0.7, 0.2 and 0.1 do not sum to exactly 1
        outputs = _predict_all(predict, z_t, t, [c for c, _ in terms])
        if len(terms) == 1:
            return outputs[0]
        return torch.stack([s * output for (_, s), output in zip(terms, outputs, strict=True)]).sum(0)
    if guidance.base is None:
        raise ValueError(f"without a base the scales must sum to 1, not {1 - weight_of_base:g}")
    base, *outputs = _predict_all(predict, z_t, t, [guidance.base, *(c for c, _ in terms)])
    result = base
    for (_, s), output in zip(terms, outputs, strict=True):
        result = result + s * (output - base)
    return result


def _predict_all(
    predict: Predict, z_t: torch.Tensor, t: torch.Tensor, conditions: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The output under every condition: in one batch, or one by one if their numbers of tokens differ."""
    n, on_device = len(conditions), [c.to(z_t.device) for c in conditions]
    if n == 1 or len({c.shape[1] for c in on_device}) > 1:
        return [predict(z_t, t, c) for c in on_device]
    return list(predict(torch.cat([z_t] * n), torch.cat([t] * n), torch.cat(on_device)).chunk(n))
