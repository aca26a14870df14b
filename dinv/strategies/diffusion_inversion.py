"""Diffusion Inversion (Zhou, Sahak, Ba 2023), stage 2: sample from perturbed and interpolated embeddings."""

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from dinv.errors import UserError
from dinv.inversion.bank import BankReader, BankStatistics, load_statistics
from dinv.rng import generator
from dinv.section import Fraction, NonNegativeFloat, PositiveInt, Seed
from dinv.strategies.base import Draw, Facts, Inputs, Material, StrategyParams
from dinv.strategies.class_noise import Shrunk, nearest_others, shrunk
from dinv.strategies.cost import unet_passes
from dinv.strategies.from_noise import FromNoise, noise_seeds

Key = tuple[str, int]  # (source id, variant)


class PerturbationParams(StrategyParams):
    """How many variants of each image there are, and how far from it."""

    num_images_per_embedding: PositiveInt
    balance_classes: bool
    noise_std: NonNegativeFloat
    noise_unit: Literal["absolute", "relative"]
    noise_covariance: Literal["isotropic", "class", "pooled"] = "isotropic"
    interpolation: Fraction
    interpolation_distribution: Literal["fixed", "uniform"]
    seed: Seed


class DiffusionInversionParams(PerturbationParams):
    """`input` is a folder of embeddings that `invert` learned, one per image."""

    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    unconditional: Literal["mean", "empty", "other_class"]
    unconditional_scope: Literal["dataset", "class"]
    scheduler: Literal["pndm", "ddim", "dpmsolver++"]
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)]


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


def perturb(
    c_i: torch.Tensor, c_j: torch.Tensor, a: torch.Tensor, noise_std: torch.Tensor, xi: torch.Tensor
) -> torch.Tensor:
    """c' = (1 - a) c_i + a c_j + lambda xi.

    Args:
        c_i: the image's embedding, float32 [B, K, D].
        c_j: its partner's, of the same class and never c_i itself, [B, K, D].
        a: weight of the partner in [0, 1], [B].
        noise_std: lambda, a number, or one per element [K, D] when relative to the bank's spread.
        xi: N(0, I), or with the covariance of learned embeddings, [B, K, D].
    """
    a = a.view(-1, 1, 1)
    return (1 - a) * c_i + a * c_j + noise_std * xi


class Perturbation:
    """The conditions of a bank's variants, as pure functions of (row, variant).

    `empty_prompt` is the empty prompt's embedding [K, D], needed if params.unconditional says so.

    Raises:
        UserError: a class has one image only, and interpolation or the noise needs more; or there is one
            class only, and another is asked for.
    """

    def __init__(
        self,
        bank: Bank,
        statistics: BankStatistics,
        params: DiffusionInversionParams,
        empty_prompt: torch.Tensor | None = None,
    ):
        self.bank, self.statistics, self.params = bank, statistics, params
        self.empty_prompt = empty_prompt
        self._noise_std = noise_std(statistics, params)
        self._members = {int(k): torch.nonzero(bank.labels == k).flatten() for k in bank.labels.unique()}
        require_partners(self._members, bank.ids, params)
        self._uncond = self._unconditional()
        self._rounds = rounds(self._members, params)
        self._ends = np.cumsum([len(rows) for rows in self._rounds])
        self._row_of = {image_id: row for row, image_id in enumerate(bank.ids)}
        self._covariances: dict[int | None, Shrunk] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """Variant 0 of every image, then variant 1, ...: more variants only append."""
        return [self._draw(*self._place(i)) for i in indices]

    def conditions(self, draws: Sequence[Draw]) -> torch.Tensor:
        """The perturbed embeddings c', float32 [B, K, D]."""
        c_i = self.bank.embeds(self._rows(draws))
        c_j = self.bank.embeds([self._row_of[str(d.facts["partner_id"])] for d in draws])
        a = torch.tensor([float(d.facts["interpolation"]) for d in draws])
        return perturb(c_i, c_j, a, self._noise_std, torch.stack([self._xi(draw) for draw in draws]))

    def unconditional(self, draws: Sequence[Draw]) -> torch.Tensor:
        """Unconditional conditions, float32 [B, K, D]."""
        labels = self.bank.labels[self._rows(draws)]
        return self._uncond[labels if len(self._uncond) > 1 else torch.zeros_like(labels)]

    def _xi(self, draw: Draw) -> torch.Tensor:
        """The image's noise [K, D]: N(0, I), or N(0, Sigma) of its class, of mean variance 1 if absolute."""
        g = generator(self.params.seed, "embedding", *keys([draw])[0])
        eps = torch.randn(self.bank.shape, generator=g)
        if self.params.noise_covariance == "isotropic":
            return eps
        sigma = self._covariance(draw.label if self.params.noise_covariance == "class" else None)
        xi = sigma.draw(eps.flatten(), torch.randn(len(sigma.rows), generator=g)).view_as(eps)
        return xi / sigma.variance**0.5 if self.params.noise_unit == "absolute" else xi

    def _covariance(self, label: int | None) -> Shrunk:
        """Of a class's embeddings around their mean; None: of all, around the means of their classes."""
        if label not in self._covariances:
            chosen = self._members if label is None else {label: self._members[label]}
            groups = [self.bank.embeds(rows.tolist()).flatten(1) for rows in chosen.values()]
            deviations = torch.cat([group - group.mean(0) for group in groups])
            try:
                self._covariances[label] = shrunk(deviations)
            except ValueError as error:
                whose = "every class" if label is None else f"class {label}"
                raise UserError(
                    f"noise_covariance = {self.params.noise_covariance!r}: embeddings of {whose} do not "
                    "differ and have no covariance; add images, or set it to isotropic"
                ) from error
        return self._covariances[label]

    def _rows(self, draws: Sequence[Draw]) -> list[int]:
        return [self._row_of[str(d.source_id)] for d in draws]

    def _place(self, index: int) -> tuple[int, int]:
        """(row, variant) of an image."""
        variant = int(np.searchsorted(self._ends, index, side="right"))
        rows = self._rounds[variant]
        return int(rows[index - self._ends[variant]]), variant

    def _draw(self, row: int, variant: int) -> Draw:
        source = self.bank.ids[row]
        facts = {**self._perturbed(row, variant), **self._rendered(source)}
        return Draw(f"{source}#{variant}", int(self.bank.labels[row]), source, facts)

    def _perturbed(self, row: int, variant: int) -> Facts:
        p = self.params
        partner, a = self._partner(row, variant) if p.interpolation > 0 else (row, 0.0)
        return {
            "variant": variant,
            "partner_id": self.bank.ids[partner],
            "interpolation": a,
            "noise_std": p.noise_std,
            "noise_unit": p.noise_unit,
        }

    def _rendered(self, source: str) -> Facts:
        """Facts of what is made of the perturbed embedding."""
        p = self.params
        return {
            "noise_covariance": p.noise_covariance,
            "guidance_scale": p.guidance_scale,
            "scheduler": p.scheduler,
            "num_inference_steps": p.num_inference_steps,
            "seed": p.seed,
            "unet_passes": unet_passes(p.scheduler, p.num_inference_steps, p.guidance_scale),
        }

    def _partner(self, row: int, variant: int) -> tuple[int, float]:
        """Another row of the same class, and its weight a."""
        p = self.params
        g = generator(p.seed, "partner", self.bank.ids[row], variant)
        members = self._members[int(self.bank.labels[row])]
        # The row's own place is skipped, so that it is never its own partner.
        place = int(torch.randint(len(members) - 1, (), generator=g))
        share = torch.rand((), generator=g).item() if p.interpolation_distribution == "uniform" else 1.0
        return int(members[place + int(members[place] >= row)]), p.interpolation * share

    def _unconditional(self) -> torch.Tensor:
        """[1, K, D] for all images, or one per class [M, K, D]."""
        if needs_empty_prompt(self.params):
            assert self.empty_prompt is not None
            return self.empty_prompt.cpu()[None]
        if self.params.unconditional == "other_class":
            return self.statistics.class_means[self._others()]
        if self.params.unconditional_scope == "class":
            return self.statistics.class_means
        return self.statistics.mean[None]

    def _others(self) -> torch.Tensor:
        """The class that each is most easily taken for: that of the nearest mean embedding, int64 [M]."""
        means = self.statistics.class_means
        present = torch.tensor([label in self._members for label in range(len(means))])
        if present.sum() < 2:
            raise UserError("unconditional = 'other_class': the images are of one class; set it to mean")
        return nearest_others(means, present)


class DiffusionInversion(Perturbation):
    """The strategy: `Perturbation` of the bank in `input`, rendered with guidance."""

    Params = DiffusionInversionParams

    def __init__(self, params: DiffusionInversionParams, material: Material):
        bank, statistics = BankReader(material.folder), load_statistics(material.folder)
        # The model is loaded only where its empty prompt is needed.
        needed = needs_empty_prompt(params)
        empty = material.open_model().empty_prompt_embeds(bank.shape[0]) if needed else None
        super().__init__(bank, statistics, params, empty)
        self.material = material

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Conditions and seeds of the start latents."""
        inputs = {
            "prompt_embeds": self.conditions(draws),
            "noise_seed": noise_seeds(self.params.seed, keys(draws)),
        }
        if self.params.guidance_scale > 1:
            inputs["negative_prompt_embeds"] = self.unconditional(draws)
        return inputs

    def renderer(self) -> FromNoise:
        """Samples from noise."""
        p = self.params
        return FromNoise(p.guidance_scale, p.scheduler, p.num_inference_steps)

    def previews(self) -> "list[tuple[str, DiffusionInversion]]":
        """Rising lambda without and with guidance."""
        rows = []
        for scale, factors in ((1.0, (0.0, 1.0, 2.0)), (2.0, (0.0, 1.0))):
            for factor in factors:
                lam = round(factor * self.params.noise_std, 6)
                a = self.params.interpolation if factor else 0.0
                update = {"noise_std": lam, "guidance_scale": scale, "interpolation": a}
                shown = DiffusionInversion(self.params.model_copy(update=update), self.material)
                rows.append((f"lambda {lam:g}, alpha {a:g}, s {scale:g}", shown))
        return rows


def keys(draws: Sequence[Draw]) -> list[Key]:
    """What keys an image's randomness: (source id, variant)."""
    return [(str(d.source_id), int(d.facts["variant"])) for d in draws]


def needs_empty_prompt(params: DiffusionInversionParams) -> bool:
    """Whether guidance leads away from the empty prompt."""
    return params.unconditional == "empty" and params.guidance_scale > 1


def noise_std(statistics: BankStatistics, params: DiffusionInversionParams) -> torch.Tensor:
    """lambda as it multiplies xi: a scalar, or [K, D] in units of the bank's std per element.

    Where xi has the embeddings' covariance, it has their unit, too, if relative.
    """
    lam = torch.tensor(params.noise_std)
    of_elements = params.noise_unit == "relative" and params.noise_covariance == "isotropic"
    return lam * statistics.std if of_elements else lam


def rounds(members: dict[int, torch.Tensor], params: DiffusionInversionParams) -> list[torch.Tensor]:
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


def require_partners(
    members: dict[int, torch.Tensor], ids: Sequence[str], params: DiffusionInversionParams
) -> None:
    """Raise UserError if interpolation is asked for and a class has one image only."""
    alone = [int(rows[0]) for rows in members.values() if len(rows) == 1]
    if alone and params.interpolation > 0:
        raise UserError(
            f"interpolation = {params.interpolation}: image {ids[alone[0]]!r} is the only "
            "one of its class and has no partner; add images, or set it to 0"
        )
