"""Train one arm's classifiers, one per seed.

python -m stages.train mixed
"""

from pathlib import Path

from dinv.classify.arms import Arm
from dinv.classify.base import LearnerParams
from dinv.classify.registry import LEARNERS
from dinv.classify.run import Trainer
from dinv.execution.code import code_digest
from dinv.execution.device import resolve_device
from dinv.execution.params import ExecutionParams
from stages.runner import block_argument, chosen, run


def main(
    block: str, arms: dict[str, Arm], train: dict[str, LearnerParams], execution: ExecutionParams
) -> None:
    arm = chosen(arms, block, "arms")
    params = chosen(train, arm.learner, "train")
    code = code_digest(LEARNERS.module(params.learner), "dinv.classify.run")
    trainer = Trainer(params, execution, resolve_device(execution.device), code)
    trainer.train(block, arm, Path("data/classifiers") / block)


if __name__ == "__main__":
    run("train", main, block=block_argument(__doc__))
