"""The ray backend: workers are actors on a Ray cluster. The only file that imports ray."""

import logging
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from textwrap import shorten
from typing import Any

from tqdm import tqdm

from dinv.errors import UserError
from dinv.execution.params import ExecutionParams

try:
    import ray
except ImportError as error:
    raise UserError(
        "execution.backend = 'ray': Ray is not installed; pip install -e '.[ray]' here, or set it to local"
    ) from error


NUM_TRIES = 3  # of a part whose worker dies, as when the machine's memory runs out


class _Actor:
    """Holds one worker in its own process."""

    def __init__(self, make_worker: Callable[[], Any], num_threads: int):
        self._make_worker, self._num_threads = make_worker, num_threads
        self._worker: Any = None

    def compute(self, task: Any) -> bytes:
        if self._worker is None:
            self._worker = self._make_worker()
            if "torch" in sys.modules:  # not imported for the sake of this: it takes seconds
                sys.modules["torch"].set_num_threads(self._num_threads)
        return bytes(self._worker.compute(task, lambda n: None))


def run_on_ray(
    make_worker: Callable[[], Any],
    tasks: Sequence[Any],
    execution: ExecutionParams,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, bytes]]:
    """Yield (index, content) of every task as it is finished, in any order.

    A worker that dies is replaced, on another node if need be, and its part computed again after those that
    wait; no other part is touched. Contents come back through Ray's object store.

    Raises:
        UserError: a part's workers died NUM_TRIES times; the other parts have been yielded before.
    """
    if not tasks:
        return
    _connect(execution)
    try:
        start_actor, n = _actor_starter(make_worker, execution), min(execution.num_workers, len(tasks))
        idle, waiting = deque(start_actor() for _ in range(n)), deque(range(len(tasks)))
        running: dict[Any, tuple[int, Any]] = {}
        deaths = _Deaths([task.name for task in tasks])
        while waiting or running:
            while waiting and idle:
                i, actor = waiting.popleft(), idle.popleft()
                running[actor.compute.remote(ray.put(tasks[i]()))] = (i, actor)
            (ready,), _ = ray.wait(list(running), num_returns=1)
            i, actor = running.pop(ready)
            try:
                content = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                ray.kill(actor)  # where only the result was lost it is still alive
                idle.append(start_actor())
                waiting.extend([i] if deaths.leave_another_try(i, error) else [])
                continue
            idle.append(actor)
            advance(tasks[i].units)
            yield i, content
        deaths.raise_if_any()
    finally:
        ray.shutdown()


class _Deaths:
    """How often the worker of each part has died, and why."""

    def __init__(self, names: Sequence[str]):
        self.names = names
        self.counts: Counter[int] = Counter()
        self.reasons: dict[int, str] = {}

    def leave_another_try(self, i: int, error: Exception) -> bool:
        """Count one more death of a part's worker and say so; whether the part may be tried again."""
        # Ray's message names actor, class and pid first; what happened to the process stands last.
        detail = str(error).rpartition("Worker exit detail:")[2]
        self.counts[i] += 1
        self.reasons[i] = shorten(detail.partition("Some common causes")[0], 200, placeholder="...")
        tqdm.write(
            f"{self.names[i]}: its worker died, try {self.counts[i]} of {NUM_TRIES} ({self.reasons[i]})",
            sys.stderr,
        )
        return self.counts[i] < NUM_TRIES

    def raise_if_any(self) -> None:
        """Raise UserError if a part has used up its tries."""
        lost = [i for i, count in self.counts.items() if count == NUM_TRIES]
        if lost:
            others = f" and {len(lost) - 1} more parts" if len(lost) > 1 else ""
            raise UserError(
                f"{self.names[lost[0]]}{others}: {NUM_TRIES} workers died of it ({self.reasons[lost[0]]}); "
                "most likely their machine has too little memory: lower execution.num_workers or "
                "execution.micro_batch, then run again: all other parts are finished and kept"
            )


def _connect(execution: ExecutionParams) -> None:
    try:
        _require_reachable(execution.address)
        # Without "local" Ray would join any cluster that happens to run on this machine.
        address = execution.address or "local"
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"execution.address = {execution.address!r}: no Ray cluster there ({reason}); start one, "
            "or set null for one on this machine"
        ) from error


def _require_reachable(address: str | None) -> None:
    """Raise OSError at once where nobody listens; Ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


def _actor_starter(make_worker: Callable[[], Any], execution: ExecutionParams) -> Callable[[], Any]:
    """A function that starts one more worker; raises UserError if the cluster cannot hold all of them."""
    cpus, gpus, n = execution.cpus_per_worker, execution.gpus_per_worker, execution.num_workers
    offered = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if each * n > offered.get(name, 0):
            raise UserError(
                f"execution.num_workers = {n}: the Ray cluster offers {offered.get(name, 0):g} {name}s, "
                f"{n} workers of {each:g} need more; lower num_workers or {name.lower()}s_per_worker"
            )
    actor_class = ray.remote(_Actor).options(num_cpus=cpus, num_gpus=gpus)
    return lambda: actor_class.remote(make_worker, cpus)
