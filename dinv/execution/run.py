"""Compute the parts of a plan that are not finished, on one machine or on a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from dinv.execution.device import resolve_device
from dinv.execution.expected import Forecast
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import Codec, Part, PartStore, Plan, assemblies, collect

Advance = Callable[[int], None]


class Worker(Protocol):
    """Keeps a model loaded and has no other state, so any worker can compute any part."""

    def compute(self, task: Any, advance: Advance) -> bytes:
        """Return the bytes of one part's file; call `advance(n)` as n units are done."""
        ...


def run_parts(
    plan: Plan,
    store: PartStore,
    codec: Codec[Any],
    make_worker: Callable[[], Worker],
    execution: ExecutionParams,
    output: Path,
) -> None:
    """Finish every part and write them all to the output folder, in order.

    `make_worker` is called once per worker, and only if something is left to compute; with the ray
    backend it must be picklable.
    """
    compute = _backend(execution)
    parts = list(plan.parts())
    with store.lock(parts):
        missing = [part for part in parts if not store.has(part)]
        todo = assemblies(plan, store, missing, parts)
        pieces = [a.piece for a in todo if a.piece is not None and not store.has(a.piece)]
        with _bar(plan, parts, missing, pieces) as bar:
            forecast = _forecast(plan, pieces)

            def advance(n: int) -> None:
                bar.update(n)
                forecast.advance(n)

            tasks = [_Lazy(plan, piece, bar.set_description) for piece in pieces]
            for i, content in compute(make_worker, tasks, execution, advance):
                store.add(pieces[i], plan.digests(pieces[i].rows), _writer(content))
        for assembly in todo:
            if assembly.known:
                digests = plan.digests(assembly.part.rows)
                store.add(assembly.part, digests, partial(assembly.write, store, codec))
        collect(store, parts, output, codec.suffix)


class _Lazy:
    """A task that is read when a worker is ready for it, so that memory holds few at a time."""

    def __init__(self, plan: Plan, piece: Part, announce: Callable[[str], object]):
        self.plan, self.rows, self.name, self.announce = plan, piece.rows, piece.name, announce
        self.units = len(piece.rows) * plan.units_per_image

    def __call__(self) -> Any:
        self.announce(self.name)
        return self.plan.task(self.rows)


def _writer(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _forecast(plan: Plan, pieces: Sequence[Part]) -> Forecast:
    left = 0 if plan.quiet else sum(len(p.rows) for p in pieces) * plan.units_per_image
    return Forecast(left, lambda text: tqdm.write(f"{plan.name}: {text}"))


def _bar(plan: Plan, parts: Sequence[Part], missing: Sequence[Part], pieces: Sequence[Part]) -> Any:
    left = sum(len(p.rows) for p in pieces)
    known = sum(len(p.rows) for p in missing) - left
    if len(missing) < len(parts) and not plan.quiet:
        tqdm.write(f"{len(parts) - len(missing)} of {len(parts)} parts are already finished")
    if known and not plan.quiet:
        tqdm.write(f"{known} more images are known from earlier runs")
    units = plan.units_per_image
    total = plan.num_images * units
    return tqdm(
        total=total,
        initial=total - left * units,
        unit=plan.unit,
        mininterval=1,
        leave=not plan.quiet,
        disable=plan.quiet and not pieces,
    )


def _local(
    make_worker: Callable[[], Worker],
    tasks: Sequence[_Lazy],
    execution: ExecutionParams,
    advance: Advance,
) -> Iterator[tuple[int, bytes]]:
    worker = make_worker() if tasks else None
    for i, task in enumerate(tasks):
        assert worker is not None
        yield i, worker.compute(task(), advance)


def _backend(execution: ExecutionParams) -> Callable[..., Iterator[tuple[int, bytes]]]:
    """The function that computes parts; a device or package that is missing is noticed here."""
    if execution.backend == "local":
        resolve_device(execution.device)
        return _local
    from dinv.execution.ray_backend import run_on_ray  # noqa: PLC0415 - Ray is optional

    return run_on_ray
