"""EmbeddingBank: the learned conditioning embeddings, one per image, as safetensors parts."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dinv.errors import UserError


@dataclass(frozen=True)
class EmbeddingBank:
    """Embeddings of N images.

    Attributes:
        prompt_embeds: float32 [N, K, D].
        labels: int64 [N].
        ids: the images' ids, N distinct strings.
        train_loss: float32 [V, N], each visit's denoising loss.
        heldout_visits: int64 [M], after how many visits the held-out loss was measured.
        heldout_loss: float32 [M, N], denoising loss on fixed draws never trained on.
    """

    prompt_embeds: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    train_loss: torch.Tensor
    heldout_visits: torch.Tensor
    heldout_loss: torch.Tensor

    def __post_init__(self) -> None:
        n = len(self.ids)
        assert self.prompt_embeds.ndim == 3 and len(self.prompt_embeds) == n
        assert len(self.labels) == n == self.train_loss.shape[1] == self.heldout_loss.shape[1]


_TENSORS = ("prompt_embeds", "labels", "train_loss", "heldout_visits", "heldout_loss")


def save_bank(bank: EmbeddingBank, path: Path) -> None:
    """Write one part; equal banks give equal bytes."""
    tensors = {name: getattr(bank, name).contiguous() for name in _TENSORS}
    save_file(tensors, path, {"ids": json.dumps(bank.ids)})


def load_bank(folder: Path) -> EmbeddingBank:
    """Read every part of a folder, in order; raises UserError for a missing or damaged part."""
    paths = sorted(folder.glob("part-*.safetensors"))
    if not paths:
        raise UserError(f"{folder}: no embeddings there; run dvc repro (or dvc pull) first")
    if paths != [folder / f"part-{i:05d}.safetensors" for i in range(len(paths))]:
        raise UserError(f"{folder}: parts are not numbered 0 to {len(paths) - 1}; run dvc checkout")
    return concatenate([load_part(path) for path in paths])


def load_part(path: Path) -> EmbeddingBank:
    """Read one part; raises UserError when it is truncated, damaged or something else."""
    try:
        with safe_open(path, "pt") as file:
            ids = json.loads((file.metadata() or {})["ids"])
            return EmbeddingBank(ids=ids, **{name: file.get_tensor(name) for name in _TENSORS})
    except (SafetensorError, OSError, KeyError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"{path}: truncated, damaged or not embeddings ({reason}); run dvc checkout"
        ) from error


def concatenate(parts: list[EmbeddingBank]) -> EmbeddingBank:
    """Join banks that were learned with the same number of visits."""
    return EmbeddingBank(
        torch.cat([p.prompt_embeds for p in parts]),
        torch.cat([p.labels for p in parts]),
        [i for p in parts for i in p.ids],
        torch.cat([p.train_loss for p in parts], dim=1),
        parts[0].heldout_visits,
        torch.cat([p.heldout_loss for p in parts], dim=1),
    )


def mean_embeddings(bank: EmbeddingBank, scope: str) -> torch.Tensor:
    """c_avg for every image, float32 [N, K, D]: the unconditional condition (paper section 3).

    `dataset` averages all learned embeddings, as the paper says; `class` those of the image's
    class, as the authors' code does where a group is one class (guidance then cancels the class).
    """
    if scope == "dataset":
        return bank.prompt_embeds.mean(0, keepdim=True).expand_as(bank.prompt_embeds)
    means = torch.zeros_like(bank.prompt_embeds)
    for label in bank.labels.unique():
        members = bank.labels == label
        means[members] = bank.prompt_embeds[members].mean(0)
    return means
