"""The strategy of the paper: sample from perturbed and interpolated learned embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.sampling import Guidance, sample
from dinv.errors import UserError
from dinv.files import bytes_digest
from dinv.inversion.bank import BankStatistics
from dinv.rng import generator
from dinv.strategies.params import GenerateParams
from dinv.strategies.perturb import perturb
from dinv.strategies.strategy import Draw

_SAMPLER = ("guidance_scale", "scheduler", "num_inference_steps", "seed")


class Bank(Protocol):
    """Learned embeddings, in memory (EmbeddingBank) or on disk (BankReader)."""

    labels: torch.Tensor
    ids: list[str]

    @property
    def shape(self) -> tuple[int, int]:
        """(K, D)."""
        ...

    def embeds(self, rows: Sequence[int]) -> torch.Tensor:
        """prompt_embeds of the given rows, float32 [B, K, D]."""
        ...


@dataclass(frozen=True)
class SampleRequest:
    """Images to sample: each from its own noise, keyed by (seed, source id, variant).

    Attributes:
        prompt_embeds: the perturbed embeddings c', float32 [B, K, D].
        negative_prompt_embeds: unconditional conditions, [B, K, D]; not used at guidance scale 1.
        keys: (source id, variant) of each image.
        params: the sampler's settings.
    """

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor
    keys: list[tuple[str, int]]
    params: GenerateParams

    def render(self, model: LatentDiffusion) -> torch.Tensor:
        """Sample the images; raises UserError when the embeddings do not fit the model."""
        if self.prompt_embeds.shape[2] != model.width:
            raise UserError(
                f"data/embeddings: embeddings have width {self.prompt_embeds.shape[2]}, the model's "
                f"cross-attention {model.width}; run dvc repro invert with this model.path"
            )
        p = self.params
        noise = torch.stack([keyed_randn(p.seed, "latents", key, model.latent_shape) for key in self.keys])
        guidance = Guidance(self.negative_prompt_embeds, ((self.prompt_embeds, p.guidance_scale),))
        return model.decode(sample(model, noise, p.scheduler, p.num_inference_steps, lambda i, t: guidance))

    def split(self, size: int) -> list["SampleRequest"]:
        """The same images in requests of at most `size`."""
        cuts = [slice(i, i + size) for i in range(0, len(self.keys), size)]
        return [
            replace(
                self,
                prompt_embeds=self.prompt_embeds[cut],
                negative_prompt_embeds=self.negative_prompt_embeds[cut],
                keys=self.keys[cut],
            )
            for cut in cuts
        ]


class DiffusionInversion:
    """Perturbs and interpolates the embeddings of a bank.

    `empty_prompt` is the empty prompt's embedding [K, D], needed if params.unconditional says so.

    Raises:
        UserError: interpolation is asked for and a class has one image only.
    """

    def __init__(
        self,
        bank: Bank,
        statistics: BankStatistics,
        params: GenerateParams,
        empty_prompt: torch.Tensor | None = None,
    ):
        self.bank, self.statistics, self.params = bank, statistics, params
        self._noise_std = noise_std(statistics, params)
        self._members = {int(k): torch.nonzero(bank.labels == k).flatten() for k in bank.labels.unique()}
        require_partners(self._members, bank.ids, params)
        self._uncond = self._unconditional(empty_prompt)
        self._rounds = rounds(self._members, params)
        self._ends = np.cumsum([len(rows) for rows in self._rounds])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """Variant 0 of every image, then variant 1, ...: more variants only append."""
        return [self._draw(*self._place(i)) for i in indices]

    def conditions(self, draws: Sequence[Draw]) -> torch.Tensor:
        """The perturbed embeddings c', float32 [B, K, D]."""
        c_i = self.bank.embeds([d.row for d in draws])
        c_j = self.bank.embeds([d.row if d.partner is None else d.partner for d in draws])
        a = torch.tensor([d.interpolation for d in draws])
        keys, seed = self._keys(draws), self.params.seed
        xi = torch.stack([keyed_randn(seed, "embedding", key, self.bank.shape) for key in keys])
        return perturb(c_i, c_j, a, self._noise_std, xi)

    def unconditional(self, draws: Sequence[Draw]) -> torch.Tensor:
        """Unconditional conditions, float32 [B, K, D]."""
        labels = self.bank.labels[[d.row for d in draws]]
        return self._uncond[labels if len(self._uncond) > 1 else torch.zeros_like(labels)]

    def request(self, draws: Sequence[Draw]) -> SampleRequest:
        """What a worker needs to make the images."""
        return SampleRequest(
            self.conditions(draws), self.unconditional(draws), self._keys(draws), self.params
        )

    def fingerprints(self, draws: Sequence[Draw]) -> list[Any]:
        """Per image: condition, unconditional condition, sampler, key of the noise, provenance."""
        tensors = [self.conditions(draws)]
        if self.params.guidance_scale > 1:
            tensors.append(self.unconditional(draws))
        sampler = {k: getattr(self.params, k) for k in _SAMPLER}
        columns = self.provenance(draws)
        return [
            {
                "tensors": bytes_digest(*(t[i].numpy().tobytes() for t in tensors)),
                "sampler": sampler,
                "provenance": {k: v[i] for k, v in columns.items()},
            }
            for i in range(len(draws))
        ]

    def provenance(self, draws: Sequence[Draw]) -> dict[str, list[Any]]:
        """Source, partner, lambda, a, guidance scale, sampler and seed per image."""
        ids, p = self.bank.ids, self.params
        return {
            "source_id": [ids[d.row] for d in draws],
            "variant": [d.variant for d in draws],
            "partner_id": [ids[d.row if d.partner is None else d.partner] for d in draws],
            "interpolation": [d.interpolation for d in draws],
            "noise_std": [p.noise_std] * len(draws),
            "noise_unit": [p.noise_unit] * len(draws),
            "guidance_scale": [p.guidance_scale] * len(draws),
            "scheduler": [p.scheduler] * len(draws),
            "num_inference_steps": [p.num_inference_steps] * len(draws),
            "seed": [p.seed] * len(draws),
        }

    def _place(self, index: int) -> tuple[int, int]:
        """(row, variant) of an image."""
        variant = int(np.searchsorted(self._ends, index, side="right"))
        rows = self._rounds[variant]
        return int(rows[index - self._ends[variant]]), variant

    def _draw(self, row: int, variant: int) -> Draw:
        params = self.params
        if params.interpolation == 0:
            return Draw(row, variant, None, 0.0)
        g = generator(params.seed, "partner", self.bank.ids[row], variant)
        members = self._members[int(self.bank.labels[row])]
        # The row's own place is skipped, so that it is never its own partner.
        place = int(torch.randint(len(members) - 1, (), generator=g))
        partner = int(members[place + int(members[place] >= row)])
        share = torch.rand((), generator=g).item()
        uniform = params.interpolation_distribution == "uniform"
        return Draw(row, variant, partner, params.interpolation * (share if uniform else 1.0))

    def _keys(self, draws: Sequence[Draw]) -> list[tuple[str, int]]:
        return [(self.bank.ids[d.row], d.variant) for d in draws]

    def _unconditional(self, empty_prompt: torch.Tensor | None) -> torch.Tensor:
        """[1, K, D] for all images, or one per class [M, K, D]."""
        if self.params.unconditional == "empty" and self.params.guidance_scale > 1:
            assert empty_prompt is not None
            return empty_prompt.cpu()[None]
        if self.params.unconditional_scope == "class":
            return self.statistics.class_means
        return self.statistics.mean[None]


def keyed_randn(seed: int, purpose: str, key: tuple[str, int], shape: tuple[int, ...]) -> torch.Tensor:
    """N(0, I) for one purpose and one variant of one image."""
    return torch.randn(shape, generator=generator(seed, purpose, *key))


def noise_std(statistics: BankStatistics, params: GenerateParams) -> torch.Tensor:
    """lambda as it multiplies xi: a scalar, or [K, D] in units of the bank's std per element."""
    lam = torch.tensor(params.noise_std)
    return lam * statistics.std if params.noise_unit == "relative" else lam


def rounds(members: dict[int, torch.Tensor], params: GenerateParams) -> list[torch.Tensor]:
    """Rows that have a variant 0, rows that have a variant 1, ...

    With `balance_classes` every class gets as many images as the largest one; a class's first rows get one
    more than its others where the number does not divide.
    """
    n = params.num_images_per_embedding
    sizes = [len(rows) for rows in members.values()]
    quotas = torch.full((sum(sizes),), n)
    if params.balance_classes:
        for rows in members.values():
            each, more = divmod(n * max(sizes), len(rows))
            quotas[rows] = each + (torch.arange(len(rows)) < more).long()
    return [torch.nonzero(quotas > v).flatten() for v in range(int(quotas.max()))]


def require_partners(members: dict[int, torch.Tensor], ids: Sequence[str], params: GenerateParams) -> None:
    """Raise UserError if interpolation is asked for and a class has one image only."""
    alone = [int(rows[0]) for rows in members.values() if len(rows) == 1]
    if alone and params.interpolation > 0:
        raise UserError(
            f"generate.interpolation = {params.interpolation}: image {ids[alone[0]]!r} is the only "
            "one of its class and has no partner; add images, or set it to 0"
        )
