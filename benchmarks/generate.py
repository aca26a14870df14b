"""Generation: ours against the published way, in one process.

The reference samples with PNDM, 100 steps, guidance 2 by two UNet passes a step; ours with the
settings of params.yaml. `--quality` compares the validation accuracy of classifiers trained on
images of both samplers from the same embeddings.

    python benchmarks/generate.py
"""

import argparse
from pathlib import Path

import torch
from common import compare, machine
from diffusers import PNDMScheduler
from validation_sweep import generated, validation_accuracies, with_setting

from dinv.config import load_params
from dinv.data.task import load_task
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import load_model
from dinv.execution.device import resolve_device
from dinv.generation.diffusion_inversion import DiffusionInversion
from dinv.inversion.bank import bank_statistics, load_bank


@torch.no_grad()
def published(
    model: LatentDiffusion, noise: torch.Tensor, c: torch.Tensor, uncond: torch.Tensor
) -> torch.Tensor:
    """PNDM with 100 steps and guidance scale 2, two passes a step, in plain diffusers calls."""
    scheduler = PNDMScheduler.from_config(model.schedule, skip_prk_steps=True, set_alpha_to_one=False)
    scheduler.set_timesteps(100)
    z = noise
    for t in scheduler.timesteps:
        e_u = model.unet(z, t, uncond).sample
        e_c = model.unet(z, t, c).sample
        z = scheduler.step(e_u + 2.0 * (e_c - e_u), t, z).prev_sample
    return model.vae.decode(z / model.vae.config.scaling_factor).sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--embeddings", type=Path, default=Path("data/embeddings"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--quality", action="store_true")
    args = parser.parse_args()
    params = load_params(args.params)
    device = resolve_device(params.execution.device)
    model = load_model(Path(params.model.path), params.model, device)
    bank = load_bank(args.embeddings)
    strategy = DiffusionInversion(bank, bank_statistics([bank], int(bank.labels.max()) + 1), params.generate)
    request = strategy.request(strategy.draws(range(args.batch)))
    c, uncond = request.prompt_embeds.to(device), request.negative_prompt_embeds.to(device)
    noise = torch.randn(args.batch, *model.latent_shape, device=device)
    print(machine(device))
    compare(
        "time per image",
        lambda: published(model, noise, c, uncond),
        lambda: request.render(model),
        (args.batch, args.batch),
        args.runs,
        device,
    )
    if args.quality:
        task = load_task(params.data)
        train, val = task.train.load(), task.val.load()
        slow = {"scheduler": "pndm", "num_inference_steps": 100}
        for name, update in (("ours", {}), ("pndm, 100 steps, same guidance", slow)):
            found = validation_accuracies(
                [generated(model, bank, with_setting(params, update))], train, val, params
            )
            print(f"{name}: validation accuracy {[round(a, 1) for a in found]}", flush=True)


if __name__ == "__main__":
    main()
