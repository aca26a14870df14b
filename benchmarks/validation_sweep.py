"""Compare settings by validation accuracy: how the defaults in params.yaml were chosen.

Inverts the default task once, then for every setting generates images and trains the synthetic
and the mixed arm. Looks at the validation split only. Appends to one tidy CSV.

    python benchmarks/validation_sweep.py --bank bank.safetensors --output docs/validation_sweep.csv \
        --setting noise_std=0.8 --setting noise_std=0.8,guidance_scale=1.5
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from dinv.classify.train import LabelledImages, pixel_statistics, predict, train_classifier
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import load_model
from dinv.images.image_set import ImageSet
from dinv.inversion.bank import EmbeddingBank, bank_statistics, load_part, save_bank
from dinv.inversion.invert import invert
from dinv.params import Params, load_params, parse_params
from dinv.sources.task import load_task
from dinv.strategies.diffusion_inversion import DiffusionInversion
from dinv.strategies.reconstruction import reconstruct

COLUMNS = (
    "noise_std",
    "noise_unit",
    "interpolation",
    "guidance_scale",
    "num_images_per_embedding",
    "real_fraction",
)


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


def generated(model: LatentDiffusion, bank: EmbeddingBank, params: Params) -> LabelledImages:
    """Generate every variant of every image."""
    statistics = bank_statistics([bank], int(bank.labels.max()) + 1)
    strategy = DiffusionInversion(bank, statistics, params.generate)
    draws = strategy.draws(range(len(strategy)))
    images = torch.cat([r.render(model) for r in strategy.request(draws).split(100)])
    return labelled(images, bank.labels[[d.row for d in draws]])


def validation_accuracies(
    sources: list[LabelledImages], train: ImageSet, val: ImageSet, params: Params
) -> list[float]:
    """Percent correct on the validation split, one classifier per seed."""
    pixels, labels = val.tensor(), torch.from_numpy(val.labels)
    statistics = pixel_statistics(train.tensor())
    accuracies = []
    for seed in params.train.seeds:
        result = train_classifier(sources, len(train.class_names), statistics, params.train, seed)
        correct = predict(result.classifier, pixels) == labels
        accuracies.append(100 * correct.float().mean().item())
    return accuracies


def parse_setting(text: str) -> dict[str, Any]:
    """`name=value,...` of generate parameters and real_fraction."""
    pairs = [pair.split("=") for pair in text.split(",")]
    return {name: yaml.safe_load(value) for name, value in pairs}


def with_setting(params: Params, setting: dict[str, Any]) -> Params:
    """params.yaml with some values of `generate` and `train` replaced, validated."""
    raw = params.model_dump()
    for name, value in setting.items():
        section = "train" if name in raw["train"] and name not in raw["generate"] else "generate"
        raw[section][name] = value
    return parse_params(raw, "--setting")


class Report:
    """Prints results and appends them to a CSV, one row per classifier."""

    def __init__(self, path: Path, train: ImageSet, val: ImageSet):
        self.path, self.train, self.val = path, train, val
        if not path.exists():
            header = ["arm", *COLUMNS, "num_visits", "num_steps", "seed", "val_top1_accuracy"]
            path.write_text(",".join(header) + "\n")

    def __call__(self, arm: str, sources: list[LabelledImages], params: Params, varied: bool) -> None:
        found = validation_accuracies(sources, self.train, self.val, params)
        both = params.generate.model_dump() | params.train.model_dump()
        values = [both[name] if varied else "" for name in COLUMNS]
        sizes = [params.invert.num_visits, params.train.num_steps]
        with self.path.open("a") as file:
            writer = csv.writer(file, lineterminator="\n")
            for seed, accuracy in zip(params.train.seeds, found, strict=True):
                writer.writerow([arm, *values, *sizes, seed, round(accuracy, 2)])
        mean = sum(found) / len(found)
        print(arm, *values, f"{mean:.2f}", [round(a, 1) for a in found], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--bank", type=Path, required=True, help="where to keep the embeddings")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--baselines", action="store_true", help="real and reconstruction too")
    parser.add_argument("--setting", type=parse_setting, action="append", default=[])
    args = parser.parse_args()
    params = load_params(args.params)
    task = load_task(params.data)
    train = task.train.load()
    model = load_model(Path(params.model.path), params.model, torch.device("cpu"))
    bank = learned_bank(model, train, params, args.bank)
    report = Report(args.output, train, task.val.load())
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    real = labelled(images, labels)
    if args.baselines:
        report("real", [real], params, False)
        report("reconstruction", [labelled(reconstruct(model, images), labels)], params, False)
    for setting in args.setting:
        changed = with_setting(params, setting)
        synthetic = generated(model, bank, changed)
        report("synthetic", [synthetic], changed, True)
        report("mixed", [real, synthetic], changed, True)


if __name__ == "__main__":
    main()
