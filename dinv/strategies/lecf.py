"""LECF (He et al. 2023, arXiv 2210.07574): prompts of a bank, and a CLIP filter on what they give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.text import load_text_encoder, prompt_for
from dinv.features.clip_text import CLIP_FILES
from dinv.features.params import WatchedPath
from dinv.features.watched import FrozenNetwork
from dinv.features.zero_shot import ZeroShot
from dinv.inversion.prompt_bank import read_prompts
from dinv.section import PositiveInt, Section, Template
from dinv.strategies.base import Draw, Facts, Inputs, Material, OpenModel
from dinv.strategies.conditions import SamplerParams
from dinv.strategies.cost import unet_passes
from dinv.strategies.from_noise import FromNoise, noise_seeds


class ClipFilter(Section):
    """A CLIP model's path, the prompt it compares with, and how one of the candidates is taken.

    probability: the first whose class gets more than 1 / (number of classes), else the likeliest; rank: the
    likeliest.
    """

    path: WatchedPath
    prompt: Template
    rule: Literal["probability", "rank"]
    num_candidates: Annotated[int, Field(ge=2)]


class LecfParams(SamplerParams):
    """`input` is a folder with prompts.json, which method `prompt_bank` writes."""

    num_images_per_class: PositiveInt
    clip: ClipFilter | None


@dataclass(frozen=True)
class Filtered(FromNoise):
    """Candidates from different noise under one prompt, of which CLIP keeps one.

    Inputs: as FromNoise, but `noise_seed` int64 [B, num_candidates]; `label` int64 [B].
    """

    network: FrozenNetwork
    prompts: tuple[str, ...]
    rule: str

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Load the model and CLIP."""
        model = open_model()
        clip = ZeroShot(self.network.place, self.prompts, model.device)
        return lambda inputs: self.choose(model, clip, inputs)

    def choose(self, model: LatentDiffusion, clip: ZeroShot, inputs: Inputs) -> torch.Tensor:
        """The kept candidates, uint8 [B, H, W, C]."""
        n, num_candidates = inputs["noise_seed"].shape
        best = torch.full((n,), -1.0)
        kept: torch.Tensor | None = None
        for i in range(num_candidates):
            rows = torch.nonzero(~self._accepted(best)).flatten()
            if not len(rows):
                break
            wanted = {k: v[rows] for k, v in inputs.items() if k != "label"}
            images = self.render(model, {**wanted, "noise_seed": wanted["noise_seed"][:, i]})
            p = clip.probabilities(images.numpy())[torch.arange(len(rows)), inputs["label"][rows]]
            kept = images.clone() if kept is None else kept
            better = p > best[rows]
            kept[rows[better]], best[rows[better]] = images[better], p[better]
        assert kept is not None
        return kept

    def _accepted(self, p: torch.Tensor) -> torch.Tensor:
        return p > (1 / len(self.prompts) if self.rule == "probability" else 2)


class Lecf:
    """Images of each class from the prompts of a bank in turn; no real image is looked at.

    The paper: GLIDE with s = 3, 200 sentences per class. It filters a class's images as a whole: those of p >
    1/M, or the 800 of largest p; here each image has its own candidates, so that it depends on no other.
    """

    Params = LecfParams

    def __init__(self, params: LecfParams, material: Material):
        self.params, self.class_names = params, material.real.class_names
        self.encoder = load_text_encoder(material.open_model(), "lecf")
        self.prompts = read_prompts(material.folder, self.class_names)
        clip = params.clip
        self._network = None if clip is None else FrozenNetwork.at("clip", clip.path, CLIP_FILES)

    def __len__(self) -> int:
        return self.params.num_images_per_class * len(self.class_names)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """The first image of every class, then the second, ...: more images only append."""
        return [self._draw(*divmod(i, len(self.class_names))) for i in indices]

    def _draw(self, variant: int, label: int) -> Draw:
        p, prompts = self.params, self.prompts[label]
        candidates = 1 if p.clip is None else p.clip.num_candidates
        facts: Facts = {
            "variant": variant,
            "prompt": prompts[variant % len(prompts)],
            "guidance_scale": p.guidance_scale,
            "scheduler": p.scheduler,
            "num_inference_steps": p.num_inference_steps,
            "seed": p.seed,
            "clip_filter": "none" if p.clip is None else p.clip.rule,
            "unet_passes": candidates * unet_passes(p.scheduler, p.num_inference_steps, p.guidance_scale),
        }
        return Draw(f"{self.class_names[label]}#{variant}", label, None, facts)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Prompts and seeds of the start latents."""
        p = self.params
        inputs = {"prompt_embeds": self.encoder.embeds([str(d.facts["prompt"]) for d in draws])}
        if p.guidance_scale > 1:
            empty = self.encoder.embeds([""])
            inputs["negative_prompt_embeds"] = empty.expand(len(draws), -1, -1)
        if p.clip is None:
            return {**inputs, "noise_seed": noise_seeds(p.seed, [(d.id,) for d in draws])}
        candidates = range(p.clip.num_candidates)
        seeds = [noise_seeds(p.seed, [(d.id, i) for i in candidates]) for d in draws]
        return {**inputs, "noise_seed": torch.stack(seeds), "label": torch.tensor([d.label for d in draws])}

    def renderer(self) -> FromNoise:
        """Samples from noise, and filters if asked to."""
        p = self.params
        sampler = (p.guidance_scale, p.scheduler, p.num_inference_steps)
        if p.clip is None or self._network is None:
            return FromNoise(*sampler)
        prompts = tuple(prompt_for(p.clip.prompt, name) for name in self.class_names)
        return Filtered(*sampler, self._network, prompts, p.clip.rule)

    def previews(self) -> "list[tuple[str, Lecf]]":
        """One image of each class."""
        return [("prompt bank", self)]
