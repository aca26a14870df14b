"""The strategy of the paper: sample from perturbed and interpolated learned embeddings."""

from collections.abc import Sequence
from typing import Any

import torch

from dinv.config import GenerateParams
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.sampling import sample
from dinv.errors import UserError
from dinv.files import bytes_digest
from dinv.generation.perturb import perturb
from dinv.generation.strategy import Draw
from dinv.inversion.bank import EmbeddingBank, mean_embeddings
from dinv.rng import generator


class DiffusionInversion:
    """Plans on the bank alone; renders with the model that the bank was learned with."""

    def __init__(self, model: LatentDiffusion, bank: EmbeddingBank, params: GenerateParams):
        if bank.prompt_embeds.shape[2] != model.width:
            raise UserError(
                f"data/embeddings: embeddings have width {bank.prompt_embeds.shape[2]}, the model's "
                f"cross-attention {model.width}; run dvc repro invert with this model.path"
            )
        self.model, self.bank, self.params = model, bank, params
        self._noise_std = noise_std(bank, params)
        self._uncond = self._unconditional() if params.guidance_scale > 1 else bank.prompt_embeds

    def plan(self) -> list[Draw]:
        """Variant 0 of every image, then variant 1, ...: more variants only append."""
        return plan_draws(self.bank.labels, self.bank.ids, self.params)

    def conditions(self, draws: Sequence[Draw]) -> torch.Tensor:
        """The perturbed embeddings c', float32 [B, K, D]."""
        c = self.bank.prompt_embeds
        partners = [d.row if d.partner is None else d.partner for d in draws]
        a = torch.tensor([d.interpolation for d in draws])
        xi = torch.stack([self._keyed_randn("embedding", d, tuple(c.shape[1:])) for d in draws])
        return perturb(c[[d.row for d in draws]], c[partners], a, self._noise_std, xi)

    def fingerprint(self, draws: Sequence[Draw]) -> Any:
        """Conditions, unconditional conditions, sampler settings and the keys of the noise."""
        rows = [d.row for d in draws]
        tensors = [self.conditions(draws)]
        if self.params.guidance_scale > 1:
            tensors.append(self._uncond[rows])
        sampler = ("guidance_scale", "scheduler", "num_inference_steps", "seed")
        return {
            "tensors": bytes_digest(*(t.contiguous().numpy().tobytes() for t in tensors)),
            "sampler": {k: getattr(self.params, k) for k in sampler},
            "provenance": self.provenance(draws),
        }

    def render(self, draws: Sequence[Draw]) -> torch.Tensor:
        """Sample one image per draw from its own noise."""
        shape = self.model.latent_shape
        return sample(
            self.model,
            torch.stack([self._keyed_randn("latents", d, shape) for d in draws]),
            self.conditions(draws),
            self._uncond[[d.row for d in draws]],
            self.params.guidance_scale,
            self.params.scheduler,
            self.params.num_inference_steps,
        )

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

    def _unconditional(self) -> torch.Tensor:
        if self.params.unconditional == "mean":
            return mean_embeddings(self.bank, self.params.unconditional_scope)
        empty = self.model.empty_prompt_embeds(self.bank.prompt_embeds.shape[1]).cpu()
        return empty.expand_as(self.bank.prompt_embeds)

    def _keyed_randn(self, purpose: str, draw: Draw, shape: tuple[int, ...]) -> torch.Tensor:
        g = generator(self.params.seed, purpose, self.bank.ids[draw.row], draw.variant)
        return torch.randn(shape, generator=g)


def noise_std(bank: EmbeddingBank, params: GenerateParams) -> torch.Tensor:
    """lambda as it multiplies xi: a scalar, or [K, D] in units of the bank's std per element."""
    lam = torch.tensor(params.noise_std)
    return lam * bank.prompt_embeds.std(0) if params.noise_unit == "relative" else lam


def plan_draws(labels: torch.Tensor, ids: Sequence[str], params: GenerateParams) -> list[Draw]:
    """Choose a partner of the same class, never the image itself, and a weight for every draw.

    Raises:
        UserError: interpolation is asked for and a class has one image only.
    """
    members = {int(k): torch.nonzero(labels == k).flatten().tolist() for k in labels.unique()}
    alone = [rows[0] for rows in members.values() if len(rows) == 1]
    if alone and params.interpolation > 0:
        raise UserError(
            f"generate.interpolation = {params.interpolation}: image {ids[alone[0]]!r} is the only "
            "one of its class and has no partner; add images, or set it to 0"
        )
    return [
        _draw(row, variant, members[int(labels[row])], ids[row], params)
        for variant in range(params.num_images_per_embedding)
        for row in range(len(ids))
    ]


def _draw(row: int, variant: int, members: list[int], image_id: str, params: GenerateParams) -> Draw:
    if params.interpolation == 0:
        return Draw(row, variant, None, 0.0)
    g = generator(params.seed, "partner", image_id, variant)
    others = [m for m in members if m != row]
    partner = others[int(torch.randint(len(others), (), generator=g))]
    share = torch.rand((), generator=g).item()
    uniform = params.interpolation_distribution == "uniform"
    return Draw(row, variant, partner, params.interpolation * (share if uniform else 1.0))
