"""What an image of every block of `generate` costs: learning, preparation, seconds and UNet passes an image.

Of params.yaml, or of one cell of an experiment, on its own training images and model. Every method and
strategy prepares once; images are timed in turn, block after block, and compared with `--reference`.

    python benchmarks/methods.py
    python benchmarks/methods.py --experiment methods --cell "satellite tiles"
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from common import machine, make_parser, seconds

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model, load_model
from dinv.errors import UserError
from dinv.execution.device import resolve_device
from dinv.execution.params import ExecutionParams
from dinv.experiments.spec import changed, load_experiment
from dinv.images.fingerprint import write_fingerprints
from dinv.images.image_set import ImageSetReader, save_image_set
from dinv.inversion.base import Place
from dinv.inversion.registry import METHODS
from dinv.metrics.tables import markdown
from dinv.params import LEARNED, Params, parse_params, read_yaml
from dinv.sources.task import load_task
from dinv.strategies.base import Material, Strategy
from dinv.strategies.registry import STRATEGIES
from dinv.strategies.retrieval import HELD_OUT

REAL = Path("data/real/train_model")


def parameters(file: Path, experiment: str | None, cell: str | None) -> Params:
    """Of a file, or of the first run of an experiment's cell."""
    base = read_yaml(file)
    if experiment is None:
        return parse_params(base, str(file))
    runs = load_experiment(experiment, base).runs()
    found = [run for run in runs if cell in (None, run.place.get("cell"))]
    if not found:
        known = ", ".join(dict.fromkeys(str(run.place.get("cell")) for run in runs))
        raise UserError(f"--cell {cell}: no such cell of {experiment}; there are {known}")
    return parse_params(changed(base, found[0].settings, file), experiment)


@contextlib.contextmanager
def workspace(params: Params) -> Iterator[None]:
    """An empty folder with the training images and the fingerprints, and links to the project's own files."""
    project, task = Path.cwd(), load_task(params.data)
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        for name in ("models", "data/bundled"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).symlink_to(project / name)
        save_image_set(task.train.take_at([params.model.resolution], range(len(task.train)))[0], REAL)
        rows = [(split, range(len(split))) for split in (task.val, task.test)]
        write_fingerprints(
            (split.take_at([params.data.resolution], every)[0].images for split, every in rows), HELD_OUT
        )
        yield


def learn(params: Params, blocks: Sequence[str], model: LatentDiffusion) -> dict[str, float]:
    """Seconds of every block of `invert` that these blocks of `generate` start from."""
    place = Place(lambda: model, ["benchmark"], ExecutionParams.here(str(model.device)))
    wanted, found = {params.generate[block].input for block in blocks}, {}
    for name, p in params.invert.items():
        if LEARNED + name in wanted:
            work = partial(METHODS[p.method].learn, p, ImageSetReader(REAL), place, Path(LEARNED) / name)
            found[LEARNED + name] = seconds(work, model.device)
    return found


@dataclass
class Prepared:
    """A block that is ready to make some of its images; `took` seconds to become so."""

    work: Callable[[], object]
    num_images: int
    took: float
    passes: float = 0.0
    times: list[float] = field(default_factory=list)


def prepare(params: Params, block: str, model: LatentDiffusion, num_images: int) -> Prepared:
    """Of a block of `generate`: images that are spread over all of it."""
    p, start = params.generate[block], time.perf_counter()
    folder = REAL if p.input.startswith("data/real") else Path(p.input)
    strategy: Strategy = STRATEGIES[p.strategy](p, Material(ImageSetReader(REAL), folder, lambda: model))
    took = time.perf_counter() - start
    draws = strategy.draws(list(range(0, len(strategy), max(1, len(strategy) // num_images))[:num_images]))
    render = strategy.renderer().open(lambda: model)
    work = torch.no_grad()(lambda: render(strategy.inputs(draws)))
    return Prepared(work, len(draws), took)


def measure(blocks: Collection[Prepared], model: LatentDiffusion, num_runs: int) -> None:
    """Count each block's UNet passes in a first run, then time all of them in turn."""
    rows: list[int] = []
    counter = model.unet.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    for block in blocks:
        rows.clear()
        block.work()
        block.passes = sum(rows) / block.num_images
    counter.remove()
    for _ in range(num_runs):
        for block in blocks:
            block.times.append(seconds(block.work, model.device) / block.num_images)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, runs=3)
    parser.add_argument("--experiment", help="file of experiments/, in place of params.yaml alone")
    parser.add_argument("--cell", help="one of the experiment's cells, the first if none is named")
    parser.add_argument("--reference", default="inversion", help="block that others are compared with")
    parser.add_argument("--images", type=int, default=100, help="how many images are made at once")
    args = parser.parse_args(arguments)
    num_images, num_runs = (2, 1) if args.tiny else (args.images, args.runs)
    params = parameters(args.params, args.experiment, args.cell)
    model = load_model(fetch_model(params.model), params.model, resolve_device(params.execution.device))
    with workspace(params):
        learned = learn(params, list(params.generate), model)
        blocks = {name: prepare(params, name, model, num_images) for name in params.generate}
        measure(blocks.values(), model, num_runs)
        num_real = len(ImageSetReader(REAL))
    print(f"{machine(model.device)}; {num_real} labelled images, n = {num_runs}\n")
    print(report(params, blocks, learned, args.reference))


def report(params: Params, blocks: dict[str, Prepared], learned: dict[str, float], reference: str) -> str:
    """Markdown, a line per block."""
    lines = []
    for name, block in blocks.items():
        ratios = [a / b for a, b in zip(block.times, blocks[reference].times, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(
            {
                "block": name,
                "learning, s": f"{learned.get(params.generate[name].input, 0):.0f}",
                "preparation, s": f"{block.took:.1f}",
                "UNet passes per image": f"{block.passes:.1f}",
                "ms per image": f"{1000 * statistics.median(block.times):.1f}",
                f"times that of {reference}": ratio,
            }
        )
    return markdown(pd.DataFrame(lines)).rstrip()


if __name__ == "__main__":
    main()
