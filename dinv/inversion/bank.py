"""EmbeddingBank: the learned conditioning embeddings, one per image, as safetensors parts."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dinv.errors import UserError
from dinv.execution.parts import Codec
from dinv.files import atomic_write, part_paths
from dinv.inversion.base import Loss


@dataclass(frozen=True)
class EmbeddingBank:
    """Embeddings of N images.

    Attributes:
        prompt_embeds: [N, K, D], float32 or, as stored, float16.
        labels: int64 [N].
        ids: the images' ids, N distinct strings.
        train_visits: int64 [P], ends of about 40 intervals of visits.
        train_loss: [P, N], denoising loss, mean over each interval, of the embeddings' dtype.
        heldout_visits: int64 [M], after how many visits the held-out loss was measured.
        heldout_loss: [M, N], denoising loss on fixed draws never trained on, of the same dtype.
    """

    prompt_embeds: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    train_visits: torch.Tensor
    train_loss: torch.Tensor
    heldout_visits: torch.Tensor
    heldout_loss: torch.Tensor

    def __post_init__(self) -> None:
        n = len(self.ids)
        assert self.prompt_embeds.ndim == 3 and len(self.prompt_embeds) == n
        assert len(self.labels) == n == self.train_loss.shape[1] == self.heldout_loss.shape[1]

    def embeds(self, rows: Sequence[int]) -> torch.Tensor:
        """prompt_embeds of the given rows, float32 [B, K, D]."""
        return self.prompt_embeds[torch.as_tensor(list(rows))].float()

    def to(self, dtype: torch.dtype) -> "EmbeddingBank":
        """The same bank with embeddings and losses of another floating-point type."""
        floats = {name: getattr(self, name).to(dtype) for name in _FLOATS}
        return replace(self, **floats)

    @property
    def shape(self) -> tuple[int, int]:
        """(K, D) of an embedding."""
        return (self.prompt_embeds.shape[1], self.prompt_embeds.shape[2])


SUFFIX = ".safetensors"
_STATISTICS = "statistics.safetensors"
_FLOATS = ("prompt_embeds", "train_loss", "heldout_loss")
_TENSORS = ("prompt_embeds", "labels", "train_visits", "train_loss", "heldout_visits", "heldout_loss")


def save_bank(bank: EmbeddingBank, path: Path) -> None:
    """Write one part; equal banks give equal bytes."""
    tensors = {name: getattr(bank, name).contiguous() for name in _TENSORS}
    save_file(tensors, path, {"ids": json.dumps(bank.ids)})


def load_bank(folder: Path) -> EmbeddingBank:
    """Read every part of a folder, in order."""
    return concatenate([load_part(path) for path in part_paths(folder, SUFFIX, "embeddings")])


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
        parts[0].train_visits,
        torch.cat([p.train_loss for p in parts], dim=1),
        parts[0].heldout_visits,
        torch.cat([p.heldout_loss for p in parts], dim=1),
    )


def take(bank: EmbeddingBank, rows: Sequence[int]) -> EmbeddingBank:
    """The given images' share of a bank."""
    index = torch.as_tensor(list(rows))
    return EmbeddingBank(
        bank.prompt_embeds[index],
        bank.labels[index],
        [bank.ids[i] for i in rows],
        bank.train_visits,
        bank.train_loss[:, index],
        bank.heldout_visits,
        bank.heldout_loss[:, index],
    )


EMBEDDINGS = Codec(SUFFIX, load_part, save_bank, take, concatenate)


class BankReader:
    """A bank on disk: memory holds labels and ids; embeddings are read as they are asked for.

    Attributes:
        labels: int64 [N].
        ids: N distinct strings.
        shape: (K, D) of an embedding.
    """

    def __init__(self, folder: Path):
        self._paths, self._starts = part_paths(folder, SUFFIX, "embeddings"), [0]
        self.ids: list[str] = []
        labels = []
        for path in self._paths:
            part = load_part(path)
            self.ids += part.ids
            labels.append(part.labels)
            self._starts.append(len(self.ids))
        self.labels = torch.cat(labels)
        self.shape = (part.prompt_embeds.shape[1], part.prompt_embeds.shape[2])

    def embeds(self, rows: Sequence[int]) -> torch.Tensor:
        """prompt_embeds of the given rows, float32 [B, K, D]."""
        index = torch.as_tensor(list(rows))
        parts = torch.searchsorted(torch.tensor(self._starts), index, right=True) - 1
        out = torch.empty(len(index), *self.shape)
        for part in parts.unique().tolist():
            here = parts == part
            out[here] = _read_embeds(self._paths[part], (index[here] - self._starts[part]).tolist())
        return out


def _read_embeds(path: Path, rows: list[int]) -> torch.Tensor:
    try:
        with safe_open(path, "pt") as file:
            view = file.get_slice("prompt_embeds")
            return torch.cat([view[row : row + 1] for row in rows]).float()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: changed or gone while it was read ({error}); run dvc checkout") from error


@dataclass(frozen=True)
class BankStatistics:
    """Mean and spread of learned embeddings, float32.

    Attributes:
        mean: c_avg over the data set, [K, D], the paper's unconditional condition (section 3).
        std: per element, over the data set, [K, D]; 0 for a single image.
        class_means: c_avg over each class, [M, K, D]; guidance with it cancels the class, as in the
            authors' code where a group is one class. 0 for a class without images.
    """

    mean: torch.Tensor
    std: torch.Tensor
    class_means: torch.Tensor


def bank_statistics(parts: Iterable[EmbeddingBank], num_classes: int) -> BankStatistics:
    """Accumulate over parts, in float64."""
    count, total, squares = torch.zeros(num_classes, 1, 1), torch.zeros(()), torch.zeros(())
    for part in parts:
        c = part.prompt_embeds.double()
        member = F.one_hot(part.labels, num_classes).double()
        count = count + member.sum(0).view(-1, 1, 1)
        total = total + torch.einsum("nm,nkd->mkd", member, c)
        squares = squares + c.square().sum(0)
    n = count.sum()
    mean = total.sum(0) / n
    variance = (squares - n * mean.square()).clamp_min(0) / (n - 1).clamp_min(1)
    return BankStatistics(mean.float(), variance.sqrt().float(), (total / count.clamp_min(1)).float())


def save_statistics(statistics: BankStatistics, folder: Path) -> None:
    """Write as safetensors beside the bank's parts."""
    tensors = {k: v.contiguous() for k, v in vars(statistics).items()}
    with atomic_write(folder / _STATISTICS) as temporary:
        save_file(tensors, temporary)


def load_statistics(folder: Path) -> BankStatistics:
    """Read; raises UserError when missing or damaged."""
    path = folder / _STATISTICS
    try:
        return BankStatistics(**load_file(path))
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{path}: missing or damaged; run dvc checkout, or dvc repro invert") from error


def loss_curves(parts: Iterable[EmbeddingBank]) -> list[Loss]:
    """Denoising losses, means over images, accumulated over parts in float64."""
    n, train, heldout = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        n += len(part.ids)
        train = train + part.train_loss.double().sum(1)
        heldout = heldout + part.heldout_loss.double().sum(1)
    return [
        Loss(kind, int(visit), round(float(total) / n, 6))
        for kind, visits, totals in (
            ("training", part.train_visits, train),
            ("heldout", part.heldout_visits, heldout),
        )
        for visit, total in zip(visits, totals, strict=True)
    ]
