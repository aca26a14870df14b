"""The ray backend: workers are actors on a Ray cluster. The only file that imports ray."""

import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dinv.errors import UserError
from dinv.execution.params import ExecutionParams

try:
    import ray
except ImportError as error:
    raise UserError(
        "execution.backend = 'ray': Ray is not installed; pip install -e '.[ray]' here, or set it to local"
    ) from error


class _Actor:
    """Holds one worker in its own process."""

    def __init__(self, make_worker: Callable[[], Any], num_threads: int):
        torch.set_num_threads(num_threads)
        self._make_worker = make_worker
        self._worker: Any = None

    def compute(self, task: Any) -> bytes:
        self._worker = self._worker or self._make_worker()
        return bytes(self._worker.compute(task, lambda n: None))


def run_on_ray(
    make_worker: Callable[[], Any],
    tasks: Sequence[Any],
    execution: ExecutionParams,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, bytes]]:
    """Yield (index, content) of every task as it is finished, in any order.

    A worker that dies is started again, on another node if need be, and its part computed again;
    no other part is touched. Contents come back through Ray's object store.
    """
    if not tasks:
        return
    _connect(execution)
    try:
        actors = _start_actors(make_worker, execution, len(tasks))
        idle, waiting = deque(actors), deque(enumerate(tasks))
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and idle:
                (i, task), actor = waiting.popleft(), idle.popleft()
                running[actor.compute.remote(ray.put(task()))] = (i, actor)
            (ready,), _ = ray.wait(list(running), num_returns=1)
            i, actor = running.pop(ready)
            idle.append(actor)
            content = _result(ready)
            advance(tasks[i].units)
            yield i, content
    finally:
        ray.shutdown()


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


def _start_actors(make_worker: Callable[[], Any], execution: ExecutionParams, num_tasks: int) -> list[Any]:
    cpus, gpus, n = execution.cpus_per_worker, execution.gpus_per_worker, execution.num_workers
    offered = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if each * n > offered.get(name, 0):
            raise UserError(
                f"execution.num_workers = {n}: the Ray cluster offers {offered.get(name, 0):g} {name}s, "
                f"{n} workers of {each:g} need more; lower num_workers or {name.lower()}s_per_worker"
            )
    actor_class = ray.remote(_Actor).options(
        num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=-1
    )
    return [actor_class.remote(make_worker, cpus) for _ in range(min(n, num_tasks))]


def _result(reference: Any) -> bytes:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
