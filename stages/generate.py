"""Make one image set: every image of a block of `generate`, and a few for the grid.

python -m stages.generate inversion
"""

from functools import partial
from pathlib import Path

import numpy as np

from dinv.diffusion.params import ModelParams
from dinv.execution.code import code_digest
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import PartStore
from dinv.execution.run import run_parts
from dinv.images.image_set import IMAGES, ImageSetReader
from dinv.strategies.base import Material, StrategyParams
from dinv.strategies.registry import STRATEGIES
from dinv.strategies.worker import Form, RenderWorker, generation_plan, preview_plan
from stages.frozen_model import FrozenModel
from stages.runner import block_argument, chosen, run

GRID_COLUMNS = 10


def main(
    block: str, model: ModelParams, generate: dict[str, StrategyParams], execution: ExecutionParams
) -> None:
    params = chosen(generate, block, "generate")
    real, frozen = ImageSetReader(Path("data/real/train")), FrozenModel(model, execution)
    material = Material(ImageSetReader(Path("data/real/train_model")), Path(params.input), frozen.open)
    strategy = STRATEGIES[params.strategy](params, material)
    code = code_digest(STRATEGIES.module(params.strategy), "dinv.strategies.worker")
    # Only what the renderer uses: a method without a diffusion model does not depend on which there is.
    identity = [frozen.digest, model.dtype, model.resolution] if strategy.renderer().uses_model else []
    form, key = Form(real.shape, real.class_names), [code, identity, real.shape]
    classes = np.unique(real.labels)[:GRID_COLUMNS].tolist()
    worker = partial(RenderWorker, frozen.opener, execution.micro_batch)
    for plan, folder in (
        (generation_plan(strategy, form, key), "generated"),
        (preview_plan(strategy.previews(), classes, form, key), "previews"),
    ):
        run_parts(plan, PartStore(folder), IMAGES, worker, execution, Path("data") / folder / block)


if __name__ == "__main__":
    run("generate", main, block=block_argument(__doc__))
