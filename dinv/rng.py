"""Random generators keyed by (seed, purpose, key): no result depends on order, batch or worker."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *key: str | int) -> int:
    """Return a 63-bit seed determined by `seed` and every element of `key`, stable across machines."""
    text = "\x1f".join(f"{type(k).__name__}:{k}" for k in (seed, *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *key: str | int) -> "torch.Generator":
    """Return a CPU generator for one purpose and one item, e.g. ``generator(0, "noise", image_id)``."""
    import torch  # noqa: PLC0415 - takes seconds, and choosing images needs only derive_seed

    return torch.Generator().manual_seed(derive_seed(seed, *key))
