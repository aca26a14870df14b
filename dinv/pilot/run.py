"""`dinv pilot`: will generated images help more than what can be done without them?

Writes metrics/pilot/<name>.json, .md and .png. What is finished is kept in .scratch/pilot: after an
interruption the same command goes on where it was, with the plan that it had made, and ends with the same
numbers.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dinv.errors import UserError
from dinv.estimate.run import scratch_in
from dinv.estimate.sample import Sample
from dinv.execution.code import code_digest
from dinv.execution.lock import exclusive
from dinv.execution.parts import scratch_root
from dinv.files import atomic_write, digest_of, write_json
from dinv.metrics.tables import write_text
from dinv.params import LEARNED, Params, load_params
from dinv.pilot.design import Design, choose_rows
from dinv.pilot.plan import Plan, as_json, make_plan, measured
from dinv.pilot.report import Found, table
from dinv.pilot.report import as_json as found_json
from dinv.pilot.settings import Competition, competition
from dinv.pilot.statistics import Level, levels
from dinv.pilot.work import SIDES, Work
from dinv.sources.task import Split, load_task

OUTPUT, PLAN = Path("metrics/pilot"), "plan.json"


def run_pilot(
    name: str, minutes: float, price_per_hour: float | None, as_text: bool, learners: Sequence[str] = ()
) -> None:
    """Plan, work and report; raises UserError."""
    from dinv.pilot.figure import figure  # noqa: PLC0415 - so that a missing package is noticed at the start

    if not minutes > 0:
        raise UserError(f"--minutes {minutes}: must be above 0")
    started, params = time.monotonic(), load_params()
    found = pilot(name, params, minutes, learners, price_per_hour=price_per_hour)
    write_json(OUTPUT / f"{name}.json", found_json(found))
    text = f"{found.sentence()}\n\n{table(found)}"
    write_text(OUTPUT / f"{name}.md", table(found))
    with atomic_write(OUTPUT / f"{name}.png") as temporary:
        temporary.write_bytes(figure(found))
    if not as_text:
        print(json.dumps(found_json(found), indent=2))
        return
    print(f"\n{text}\n{found.next()}\n{(time.monotonic() - started) / 60:.1f} minutes in all")


def pilot(
    name: str,
    params: Params,
    minutes: float,
    learners: Sequence[str] = (),
    plan: Plan | None = None,
    price_per_hour: float | None = None,
) -> Found:
    """All that is measured. Of the task only the training split is read.

    Args:
        name: of the files that are written.
        params: all of params.yaml.
        minutes: to be kept to.
        learners: the only ones that compete; none: all.
        plan: another pilot's, to be kept to; None: what is timed now decides.
        price_per_hour: of this machine.
    """
    train = load_task(params.data).train
    labels, ids, names = train.raw.labels, train.raw.ids, train.class_names
    _, num_blocks = choose_rows(labels, ids, names, None, params.data.seed)
    everything = competition(params).named(learners)
    folder = scratch_root() / "pilot" / _digest(params, everything, ids, minutes)
    with exclusive(folder / ".lock", "another run does the same pilot; waiting for it"):
        if plan is not None and not (folder / PLAN).is_file():
            write_json(folder / PLAN, as_json(plan))
        plan = planned(folder, params, everything, train, num_blocks, minutes)
        print(f"Plan:\n{plan.text()}", flush=True)
        if plan.minutes > minutes:
            print(f"That is more than the {minutes:g} minutes asked for: no pilot is smaller", flush=True)
        chosen = everything.only(lambda p: p in [everything.learners[n] for n in plan.learners], "")
        work = prepared(params, chosen, plan, train, folder)
        found = compete(work)
    return Found(name, found, plan, price_per_hour)


def _digest(params: Params, found: Competition, ids: list[str], minutes: float) -> str:
    """Of all that decides the answers, but for the plan, which is kept beside them."""
    generate = params.generate[found.generate]
    learned = params.invert.get(generate.input.removeprefix(LEARNED))
    blocks: list[Any] = [generate, *([learned] if learned else []), *found.learners.values()]
    key = [
        code_digest("dinv.pilot.work"),
        params.data.model_dump(),
        params.model.model_dump(),
        [block.model_dump() for block in blocks],
        ids,
        minutes,
    ]
    return digest_of(key)[:16]


def planned(
    folder: Path, params: Params, found: Competition, train: Split, num_blocks: int, minutes: float
) -> Plan:
    """The plan that an interrupted run has made, or a new one from what is measured now."""
    path = folder / PLAN
    if not path.is_file():
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="dinv-pilot-") as name, scratch_in(Path(name)):
            units = measured(params, found, Sample.of(params, Path(name)))
        fewest = int(np.bincount(train.raw.labels, minlength=len(train.class_names)).min())
        left = max(minutes / 10, minutes - (time.monotonic() - started) / 60)
        sizes = (fewest // num_blocks, num_blocks, len(train.class_names))
        plan = make_plan(params, found, units, sizes, left)
        write_json(path, as_json(plan))
    return Plan(**json.loads(path.read_text()))


def prepared(params: Params, found: Competition, plan: Plan, train: Split, folder: Path) -> Work:
    """Read the images that the plan is about."""
    labels, ids = train.raw.labels, train.raw.ids
    rows, _ = choose_rows(labels, ids, train.class_names, plan.block_size, params.data.seed)
    small, large = train.take_at([params.data.resolution, params.model.resolution], rows)
    design = Design(small.labels, small.ids, plan.num_blocks, params.data.seed)
    return Work(params, found, plan, design, small, large, folder)


def compete(work: Work) -> list[Level]:
    """Make images, train everything, and compare; with a bar over classifiers."""
    trainings, names = work.design.trainings(), list(work.found.learners)
    entries = [(side, name) for name in names for side in SIDES]
    if not all(
        (work.folder / "answers" / f"with-{names[-1]}-{s.name}.json").is_file() for s in trainings[-1:]
    ):
        _ = work.made
    correct: dict[str, Any] = {f"{side} {name}": {} for side, name in entries}
    with tqdm(total=len(trainings) * len(entries), unit="classifier") as bar:
        for subset in trainings:
            for side, name in entries:
                bar.set_description(f"{name}, {side}")
                correct[f"{side} {name}"][subset] = work.correct(side, name, subset, bar.update)
    sides = [[f"{side} {name}" for name in names] for side in SIDES]
    return levels(sides[0], sides[1], correct, work.design)
