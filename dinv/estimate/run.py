"""`dinv estimate`: what the run that params.yaml describes costs on this machine, before it is run."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from dinv.errors import UserError
from dinv.estimate.classifiers import evaluate_cost, made_for, measure_cost, train_cost
from dinv.estimate.image_sets import generate_cost
from dinv.estimate.measure import Range
from dinv.estimate.report import Estimate, Row, as_json, lines, table
from dinv.estimate.sample import Sample
from dinv.estimate.stages import Cost, download_cost, invert_cost, with_memory
from dinv.execution.expected import keep
from dinv.params import LEARNED, Params, load_params

IMPORTS = "import dinv.params, dinv.inversion.image_embeddings, dinv.strategies.worker, diffusers.models"


def run_estimate(price_per_hour: float | None, as_text: bool) -> None:
    """Print the estimate of ./params.yaml, as a table or as JSON; raises UserError."""
    if price_per_hour is not None and not price_per_hour >= 0:
        raise UserError(f"--price-per-hour {price_per_hour}: must not be negative")
    params = load_params()
    found = estimate(params, start_seconds(), unfinished(), price_per_hour)
    keep(params.model_dump(), lines(found))
    print(table(found) if as_text else json.dumps(as_json(found), indent=2))


def estimate(
    params: Params, start: float, to_run: set[str] | None, price_per_hour: float | None = None
) -> Estimate:
    """Time a little of every stage.

    Args:
        params: all of params.yaml.
        start: seconds until a stage's process has its imports.
        to_run: stages whose parameters or inputs are not those of their results, None: not known.
        price_per_hour: of this machine, in any currency.

    Raises:
        UserError: the images or the model cannot be read. A block that cannot be estimated is a row that
            says why.
    """
    with tempfile.TemporaryDirectory(prefix="dinv-estimate-") as name, scratch_in(Path(name)):
        sample = Sample.of(params, Path(name))
        costs, hardware = all_costs(sample), describe(sample.device)
    todo = set(costs) if to_run is None else with_followers(to_run, params)
    rows = [
        Row(s, cost, cost.seconds + Range(start, start, start), s not in todo) for s, cost in costs.items()
    ]
    return Estimate(rows, hardware, start, price_per_hour)


def all_costs(sample: Sample) -> dict[str, Cost]:
    """Stage -> cost, in the order in which they run, with a bar."""
    p, found = sample.params, dict[str, Cost]()
    steps = 2 + len(p.invert) + len(p.generate) + len(p.measure.features) + len(p.arms)
    with tqdm(total=steps, unit="stage") as bar:

        def note(stage: str, measure: Callable[[], Cost]) -> None:
            bar.set_description(stage)
            found[stage] = with_memory(sample, measure)
            bar.update()

        note("download", partial(download_cost, sample))
        for name, method in p.invert.items():
            note(f"invert@{name}", partial(invert_cost, method, sample))
        for name, strategy in p.generate.items():
            note(f"generate@{name}", partial(generate_cost, strategy, sample))
        made = made_for(p.arms, {name: found[f"generate@{name}"] for name in p.generate})
        for name, network in p.measure.features.items():
            note(f"measure@{name}", partial(measure_cost, network, made, sample))
        for name, arm in p.arms.items():
            num_made = made.get(arm.images.rpartition("/")[2], 0)
            note(f"train@{name}", partial(train_cost, arm, num_made, sample))
        note("evaluate", partial(evaluate_cost, {n: found[f"train@{n}"] for n in p.arms}, sample))
    return found


def start_seconds() -> float:
    """Until a new process has imported what a stage imports."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - started


def unfinished() -> set[str] | None:
    """Stages that `dvc status` names; None where there is no DVC repository."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    return set(json.loads(done.stdout or "{}"))


def with_followers(stages: set[str], params: Params) -> set[str]:
    """These stages, and all that use what they make."""
    found = set(stages)
    for stage, inputs in inputs_of(params).items():  # in the order in which they run
        if found & inputs:
            found.add(stage)
    return found


def inputs_of(params: Params) -> dict[str, set[str]]:
    """Stage -> the stages whose results it uses, in the order in which they run."""
    found: dict[str, set[str]] = {"download": set()}
    found |= {f"invert@{name}": {"download"} for name in params.invert}
    for name, block in params.generate.items():
        learned = block.input.startswith(LEARNED)
        own = {f"invert@{block.input.removeprefix(LEARNED)}"} if learned else set()
        found[f"generate@{name}"] = {"download", *own}
    made = {f"generate@{name}" for name in params.generate}
    found |= {f"measure@{name}": {"download", *made} for name in params.measure.features}
    for name, arm in params.arms.items():
        own = set() if arm.only_real else {f"generate@{arm.images.rpartition('/')[2]}"}
        found[f"train@{name}"] = {"download", *own}
    found["evaluate"] = set(found)
    return found


def describe(device: torch.device) -> str:
    """The machine, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} in use"


@contextmanager
def scratch_in(folder: Path) -> Iterator[None]:
    """Let nothing that is timed leave finished parts behind, or find some."""
    before = os.environ.get("DINV_SCRATCH")
    os.environ["DINV_SCRATCH"] = str(folder / "scratch")
    try:
        yield
    finally:
        if before is None:
            del os.environ["DINV_SCRATCH"]
        else:
            os.environ["DINV_SCRATCH"] = before
