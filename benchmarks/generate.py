"""Generation: ours against the published way, in one process.

The reference samples with PNDM, 100 steps, guidance 2 by two UNet passes a step; ours with the
settings of params.yaml. Conditions are random: they do not change the time. What the samplers' images are
worth is an experiment: `dinv experiment samplers`.

    python benchmarks/generate.py
"""

from collections.abc import Sequence

import torch
from common import compare, machine, make_parser
from diffusers import PNDMScheduler

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model, load_model
from dinv.execution.device import resolve_device
from dinv.params import load_params
from dinv.strategies.diffusion_inversion import DiffusionInversionParams
from dinv.strategies.from_noise import FromNoise, noise_seeds


@torch.no_grad()
def published(
    model: LatentDiffusion, noise: torch.Tensor, c: torch.Tensor, uncond: torch.Tensor, num_steps: int
) -> torch.Tensor:
    """PNDM with guidance scale 2, two passes a step, in plain diffusers calls."""
    scheduler = PNDMScheduler.from_config(model.schedule, skip_prk_steps=True, set_alpha_to_one=False)
    scheduler.set_timesteps(num_steps)
    z = noise
    for t in scheduler.timesteps:
        e_u = model.unet(z, t, uncond).sample
        e_c = model.unet(z, t, c).sample
        z = scheduler.step(e_u + 2.0 * (e_c - e_u), t, z).prev_sample
    images: torch.Tensor = model.vae.decode(z / model.vae.config.scaling_factor).sample
    return images


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, runs=3)
    parser.add_argument("--block", default="inversion", help="block of generate in params.yaml")
    parser.add_argument("--batch", type=int, default=50)
    args = parser.parse_args(arguments)
    batch, runs, num_steps = (2, 1, 3) if args.tiny else (args.batch, args.runs, 100)
    params = load_params(args.params)
    block = params.generate[args.block]
    assert isinstance(block, DiffusionInversionParams)
    model = load_model(fetch_model(params.model), params.model, resolve_device(params.execution.device))
    ours = FromNoise(block.guidance_scale, block.scheduler, block.num_inference_steps)
    c, uncond = (torch.randn(batch, 5, model.width, device=model.device) for _ in range(2))
    seeds = noise_seeds(0, [(i,) for i in range(batch)])
    inputs = {"prompt_embeds": c, "negative_prompt_embeds": uncond, "noise_seed": seeds}
    noise = torch.randn(batch, *model.latent_shape, device=model.device)
    print(machine(model.device))
    compare(
        "time per image",
        lambda: published(model, noise, c, uncond, num_steps),
        lambda: ours.render(model, inputs),
        (batch, batch),
        runs,
        model.device,
    )


if __name__ == "__main__":
    main()
