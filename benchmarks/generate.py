"""Generation: ours against the published way, in one process.

The reference samples with PNDM, 100 steps, guidance 2 by two UNet passes a step; ours with the
settings of params.yaml. `--quality` compares images of both samplers from the same embeddings: the
validation accuracy of classifiers trained on them, and their Frechet distance to real ones.

    python benchmarks/generate.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import compare, machine
from diffusers import PNDMScheduler
from dinv.classify.train import LabelledImages, pixel_statistics, train_classifier
from numpy.typing import NDArray
from validation_sweep import generated, validation_accuracies, with_setting

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import load_model
from dinv.execution.device import resolve_device
from dinv.inversion.bank import EmbeddingBank, bank_statistics, load_bank
from dinv.metrics.frechet import frechet_distance
from dinv.params import Params, load_params
from dinv.sources.task import load_task
from dinv.strategies.diffusion_inversion import DiffusionInversion


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


def quality(model: LatentDiffusion, bank: EmbeddingBank, params: Params) -> None:
    """Synthetic arm's validation accuracy, and Frechet distance of generated to validation images.

    Its features are the ConvNet-3's of the real arm, averaged over positions: `width` numbers.
    """
    task = load_task(params.data)
    train, val = task.train.load(), task.val.load()
    real = LabelledImages(train.tensor(), torch.from_numpy(train.labels))
    features = real_features(real, params)
    slow = {"scheduler": "pndm", "num_inference_steps": 100}
    fast = {"num_inference_steps": 20}
    settings = {"ours": {}, "ours with 20 steps": fast, "pndm with 100 steps, same guidance": slow}
    for name, update in settings.items():
        images = generated(model, bank, with_setting(params, update))
        found = validation_accuracies([images], train, val, params)
        distance = frechet_distance(features(images.images), features(val.tensor()))
        print(f"{name}: accuracy {[round(a, 1) for a in found]}, Frechet {distance:.4f}", flush=True)


def real_features(real: LabelledImages, params: Params) -> Callable[[torch.Tensor], NDArray[np.float32]]:
    """Images uint8 [N, C, H, W] -> features of a classifier trained on the real ones."""
    num_classes, statistics = int(real.labels.max()) + 1, pixel_statistics(real.images)
    classifier = train_classifier([real], num_classes, statistics, params.train, 0).classifier
    classifier.body = torch.nn.Sequential(*list(classifier.body.children())[:-2])

    @torch.no_grad()
    def features(images: torch.Tensor) -> NDArray[np.float32]:
        return torch.cat([classifier(b).mean((2, 3)) for b in images.split(500)]).numpy()

    return features


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
        quality(model, bank, params)


if __name__ == "__main__":
    main()
