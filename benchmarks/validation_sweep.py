"""Compare generation settings by validation accuracy: how the defaults in params.yaml were chosen.

Inverts the default task once, then for every setting generates images and trains the synthetic
and the mixed arm. Looks at the validation split only. Writes one tidy CSV.

    python benchmarks/validation_sweep.py --output docs/validation_sweep.csv
"""

import argparse
import csv
import time
from pathlib import Path

import torch

from dinv.classify.train import LabelledImages, pixel_statistics, predict, train_classifier
from dinv.config import Params, load_params
from dinv.data.image_set import ImageSet, batches
from dinv.data.task import Task, load_task
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import load_model
from dinv.generation.diffusion_inversion import DiffusionInversion
from dinv.generation.reconstruction import reconstruct
from dinv.inversion.bank import EmbeddingBank, load_part, save_bank
from dinv.inversion.invert import invert

# noise_std, interpolation, guidance_scale: one change at a time around promising points.
SETTINGS = [
    (0.4, 0.4, 1.0),
    (0.8, 0.4, 1.0),
    (0.8, 0.8, 1.0),
    (0.0, 0.0, 1.0),
    (0.2, 0.2, 1.0),
    (1.2, 0.8, 1.0),
    (0.8, 0.4, 1.5),
]


def labelled(images: torch.Tensor, labels: torch.Tensor) -> LabelledImages:
    """uint8 [N, H, W, C] to the trainer's layout."""
    return LabelledImages(images.permute(0, 3, 1, 2).contiguous(), labels)


def learned_bank(model: LatentDiffusion, train: ImageSet, params: Params, cache: Path) -> EmbeddingBank:
    """Invert the training images, or read the embeddings of an earlier call."""
    if cache.exists():
        return load_part(cache)
    labels = torch.from_numpy(train.labels)
    start = time.time()
    bank = invert(model, torch.from_numpy(train.images), labels, train.ids, params.invert, 100)
    visits = len(bank.ids) * params.invert.num_visits
    print(f"inversion {visits / (time.time() - start):.0f} visits/s, {bank.heldout_loss.mean(1)}")
    save_bank(bank, cache)
    return bank


def generated(model: LatentDiffusion, bank: EmbeddingBank, params: Params, **update: float) -> LabelledImages:
    """Generate every variant of every image under changed settings."""
    strategy = DiffusionInversion(model, bank, params.generate.model_copy(update=update))
    plan = strategy.plan()
    images = torch.cat([strategy.render(plan[rows]) for rows in batches(len(plan), 100)])
    return labelled(images, bank.labels[[d.row for d in plan]])


def validation_accuracies(sources: list[LabelledImages], task: Task, params: Params) -> list[float]:
    """Percent correct on the validation split, one classifier per seed."""
    val, labels = task.val.tensor(), torch.from_numpy(task.val.labels)
    statistics = pixel_statistics(task.train.tensor())
    accuracies = []
    for seed in params.train.seeds:
        result = train_classifier(sources, len(task.train.class_names), statistics, params.train, seed)
        correct = predict(result.classifier, val) == labels
        accuracies.append(100 * correct.float().mean().item())
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--bank", type=Path, required=True, help="where to keep the embeddings")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = load_params(args.params)
    task = load_task(params.data)
    model = load_model(Path(params.model.path), params.model, torch.device("cpu"))
    bank = learned_bank(model, task.train, params, args.bank)
    images, labels = torch.from_numpy(task.train.images), torch.from_numpy(task.train.labels)
    real = labelled(images, labels)
    runs = {"real": [real], "reconstruction": [labelled(reconstruct(model, images), labels)]}
    rows = []

    def report(arm: str, setting: tuple[float, ...], sources: list[LabelledImages]) -> None:
        found = validation_accuracies(sources, task, params)
        rows.extend(
            [arm, *setting, seed, round(a, 2)] for seed, a in zip(params.train.seeds, found, strict=True)
        )
        print(arm, *setting, f"{sum(found) / len(found):.2f}", [round(a, 1) for a in found], flush=True)
        with args.output.open("w") as file:
            header = ["arm", "noise_std", "interpolation", "guidance_scale", "seed", "val_top1_accuracy"]
            csv.writer(file, lineterminator="\n").writerows([header, *rows])

    for arm, sources in runs.items():
        report(arm, (0.0, 0.0, 1.0), sources)
    for noise_std, interpolation, scale in SETTINGS:
        update = {"noise_std": noise_std, "interpolation": interpolation, "guidance_scale": scale}
        synthetic = generated(model, bank, params, **update)
        report("synthetic", tuple(update.values()), [synthetic])
        report("mixed", tuple(update.values()), [real, synthetic])


if __name__ == "__main__":
    main()
