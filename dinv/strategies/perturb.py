"""Diffusion Inversion, stage 2: perturb learned embeddings (Zhou, Sahak, Ba 2023, section 3)."""

import torch


def perturb(
    c_i: torch.Tensor, c_j: torch.Tensor, a: torch.Tensor, noise_std: torch.Tensor, xi: torch.Tensor
) -> torch.Tensor:
    """c' = (1 - a) c_i + a c_j + lambda xi.

    Args:
        c_i: the image's embedding, float32 [B, K, D].
        c_j: its partner's, of the same class and never c_i itself, [B, K, D].
        a: weight of the partner in [0, 1], [B].
        noise_std: lambda, a number, or one per element [K, D] when relative to the bank's spread.
        xi: N(0, I), [B, K, D].
    """
    a = a.view(-1, 1, 1)
    return (1 - a) * c_i + a * c_j + noise_std * xi
