"""The ray backend on local clusters: same bytes as the local loop, whatever dies."""

from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from recorder import Recorder

from dinv.diffusion.loading import load_model
from dinv.errors import UserError
from dinv.execution.parts import FILES, Codec, PartStore, Plan
from dinv.execution.run import run_parts
from dinv.files import digest_of
from dinv.inversion.bank import EMBEDDINGS, load_bank
from dinv.inversion.image_embeddings import InvertTask, InvertWorker

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

LOCAL = tiny.PARAMS.execution.model_copy(update={"device": "cpu"})
RAY = LOCAL.model_copy(update={"backend": "ray", "num_workers": 2})
BYTES = Codec(".bin", FILES.read, FILES.write, FILES.take, FILES.concatenate)


def numbers(tasks):
    return Plan("part", len(tasks), 1, lambda rows: [digest_of(tasks[rows[0]])], lambda rows: tasks[rows[0]])


def go(tmp_path, tasks, execution=RAY, deadly=None, deaths=1):
    store, out = PartStore("s", tmp_path / "scratch"), tmp_path / "out"
    run_parts(numbers(tasks), store, BYTES, partial(Recorder, tmp_path, deadly, deaths), execution, out)
    return [path.read_bytes()[0] for path in sorted(out.iterdir())]


def tries(tmp_path):
    return sorted(path.name.split("-")[1] for path in tmp_path.glob("try-*"))


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Ray's processes find the recorder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def cluster(importable):
    """Two nodes on this machine, one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def on_cluster(cluster):
    return RAY.model_copy(update={"address": cluster.address})


def test_workers_on_two_nodes_compute_each_part_once(tmp_path, on_cluster):
    assert go(tmp_path, list(range(8)), on_cluster) == list(range(8))
    assert tries(tmp_path) == [str(i) for i in range(8)]
    assert len({path.read_text() for path in tmp_path.glob("try-*")}) == 2


def test_a_killed_worker_costs_its_part_and_nothing_else(tmp_path, on_cluster):
    assert go(tmp_path, list(range(6)), on_cluster, deadly=2) == list(range(6))
    assert tries(tmp_path) == ["0", "1", "2", "2", "3", "4", "5"]


def test_a_part_whose_workers_die_every_time_is_given_up_after_the_others(tmp_path, on_cluster, capsys):
    """As when it needs more memory than its machine has."""
    with pytest.raises(UserError, match=r"part 2: 3 workers died of it .*lower execution\.num_workers"):
        go(tmp_path, list(range(5)), on_cluster, deadly=2, deaths=99)
    assert tries(tmp_path) == ["0", "1", "2", "2", "2", "3", "4"]
    assert len(list((tmp_path / "scratch").rglob("*.part"))) == 4
    said = [line for line in capsys.readouterr().err.splitlines() if "its worker died" in line]
    starts = [f"part 2: its worker died, try {i} of 3 (Worker " for i in (1, 2, 3)]
    assert [line[: len(start)] for line, start in zip(said, starts, strict=True)] == starts
    assert go(tmp_path, list(range(5)), on_cluster) == list(range(5))
    assert tries(tmp_path)[-2:] == ["3", "4"] and tries(tmp_path).count("2") == 4


def test_an_error_of_a_worker_is_the_same_error_and_keeps_what_is_finished(tmp_path, on_cluster):
    with pytest.raises(UserError, match="task 99 is bad"):
        go(tmp_path, [0, 1, 2, 99], on_cluster)
    go(tmp_path, [0, 1, 2, 3], on_cluster)
    assert tries(tmp_path) == ["0", "1", "2", "3", "99"]


def test_inversion_gives_the_bytes_of_the_local_loop(tmp_path, on_cluster):
    folder = tiny.save_tiny_model(tmp_path / "model", num_channels=1, text=False)
    images, labels = tiny.random_images(6, channels=1), torch.arange(6).numpy() % 2
    open_model = partial(load_model, folder, tiny.model_params(folder), torch.device("cpu"))

    def task(rows):
        return InvertTask(images[list(rows)], labels[list(rows)], [f"i{row}" for row in rows])

    plan = Plan("invert part", 6, 2, lambda rows: [f"{row}" for row in rows], task)
    worker = partial(InvertWorker, open_model, tiny.invert_params(), 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have; rounding depends on it
    for name, execution in (("ray", on_cluster), ("local", LOCAL)):
        run_parts(plan, PartStore(name, tmp_path), EMBEDDINGS, worker, execution, tmp_path / f"{name}-out")
    torch.set_num_threads(threads)
    ours, expected = (load_bank(tmp_path / f"{name}-out") for name in ("ray", "local"))
    assert torch.equal(ours.prompt_embeds, expected.prompt_embeds) and ours.ids == expected.ids


def test_too_many_workers_are_refused(tmp_path, on_cluster):
    with pytest.raises(UserError, match=r"num_workers = 9: the Ray cluster offers 2 CPUs"):
        go(tmp_path, [1], on_cluster.model_copy(update={"num_workers": 9}))


def test_no_cluster_at_the_address_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"execution\.address = '127\.0\.0\.1:1': no Ray cluster"):
        go(tmp_path, [1], RAY.model_copy(update={"address": "127.0.0.1:1"}))


def test_a_cluster_is_started_here_when_none_is_named(tmp_path):
    assert go(tmp_path, [0, 1, 2]) == [0, 1, 2]
