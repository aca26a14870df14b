"""Learn what a strategy needs: one block of `invert`, such as an embedding for every training image.

python -m stages.invert embeddings
"""

from dataclasses import fields
from pathlib import Path

import pandas as pd

from dinv.diffusion.params import ModelParams
from dinv.execution.code import code_digest
from dinv.execution.params import ExecutionParams
from dinv.files import atomic_write
from dinv.images.image_set import ImageSetReader
from dinv.inversion.base import Loss, MethodParams, Place
from dinv.inversion.registry import METHODS
from stages.frozen_model import FrozenModel
from stages.runner import block_argument, chosen, run


def main(block: str, model: ModelParams, invert: dict[str, MethodParams], execution: ExecutionParams) -> None:
    params = chosen(invert, block, "invert")
    frozen = FrozenModel(model, execution)
    key = [code_digest(METHODS.module(params.method)), frozen.digest, model.dtype, model.resolution]
    real, place = ImageSetReader(Path("data/real/train_model")), Place(frozen.opener, key, execution)
    curve = METHODS[params.method].learn(params, real, place, Path("data/learned") / block)
    with atomic_write(Path(f"data/curves/{block}.csv")) as temporary:
        columns = [field.name for field in fields(Loss)]  # where nothing is learned by steps, only these
        pd.DataFrame(curve, columns=columns).to_csv(temporary, index=False)


if __name__ == "__main__":
    run("invert", main, block=block_argument(__doc__))
