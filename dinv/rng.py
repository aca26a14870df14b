"""Random generators keyed by (seed, purpose, key): no result depends on order, batch or worker."""

import hashlib

import torch


def derive_seed(seed: int, *key: str | int) -> int:
    """Return a 63-bit seed determined by `seed` and every element of `key`, stable across machines."""
    text = "\x1f".join(f"{type(k).__name__}:{k}" for k in (seed, *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose and one item, e.g. ``generator(0, "noise", image_id)``."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))
