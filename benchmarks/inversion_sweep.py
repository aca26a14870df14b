"""Compare settings of the inversion by held-out denoising loss, on every fourth image of the default task.

Appends to one tidy CSV. The held-out draws are the same for every setting.

    python benchmarks/inversion_sweep.py --output docs/inversion_sweep.csv \
        --setting lr=0.03,lr_schedule=constant,timestep_sampling=uniform --setting lr=0.1
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from validation_sweep import parse_setting

from dinv.diffusion.loading import load_model
from dinv.execution.device import resolve_device
from dinv.inversion.invert import invert
from dinv.params import load_params, parse_params
from dinv.sources.task import load_task

COLUMNS = ("lr", "lr_schedule", "timestep_sampling", "init", "latents", "weight_decay", "num_visits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--setting", type=parse_setting, action="append", required=True)
    args = parser.parse_args()
    params = load_params(args.params)
    model = load_model(Path(params.model.path), params.model, resolve_device(params.execution.device))
    task = load_task(params.data).train
    train = task.take(range(0, len(task), 4))
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    if not args.output.exists():
        args.output.write_text(",".join([*COLUMNS, "heldout_loss"]) + "\n")
    for setting in args.setting:
        raw = params.model_dump()
        raw["invert"] |= setting
        changed = parse_params(raw, "--setting").invert
        start = time.perf_counter()
        loss = invert(model, images, labels, train.ids, changed, len(train)).heldout_loss[-1].mean().item()
        values = [getattr(changed, name) for name in COLUMNS]
        print(*values, f"{loss:.5f}", f"{time.perf_counter() - start:.0f} s", flush=True)
        with args.output.open("a") as file:
            csv.writer(file, lineterminator="\n").writerow([*values, round(loss, 5)])


if __name__ == "__main__":
    main()
