"""Parts: atomic, verified, resumed after kill -9, reused image by image, computed by one of two runs."""

import json
import os
import signal
import threading
import time
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinv.errors import UserError
from dinv.execution.device import resolve_device
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import Codec, PartStore, Plan, scratch_root
from dinv.execution.run import run_parts
from dinv.files import atomic_write, digest_of

LOCAL = ExecutionParams(
    device="cpu",
    micro_batch=4,
    backend="local",
    num_workers=1,
    cpus_per_worker=1,
    gpus_per_worker=0.0,
    address=None,
)


class Upper:
    """Upper-cases the words it gets; remembers which."""

    def __init__(self, computed):
        self.computed = computed

    def compute(self, task, advance):
        self.computed += task
        advance(len(task))
        if "boom" in task:
            raise UserError("boom")
        return json.dumps([word.upper() for word in task]).encode()


WORDS = Codec(
    ".json",
    lambda path: json.loads(path.read_text()),
    lambda words, path: path.write_text(json.dumps(words)),
    lambda words, rows: [words[row] for row in rows],
    lambda parts: [word for part in parts for word in part],
)


def plan_of(words, part_size=3):
    return Plan(
        "part",
        len(words),
        part_size,
        lambda rows: [digest_of(words[row]) for row in rows],
        lambda rows: [words[row] for row in rows],
    )


def go(tmp_path, words, computed=None, execution=LOCAL):
    """Run; return what the output folder says."""
    worker = partial(Upper, computed if computed is not None else [])
    store, out = PartStore("s", tmp_path / "scratch"), tmp_path / "out"
    run_parts(plan_of(words), store, WORDS, worker, execution, out)
    return [word for path in sorted(out.iterdir()) for word in json.loads(path.read_text())]


def stored(tmp_path):
    return sorted((tmp_path / "scratch").rglob("*.part"))


def test_finished_parts_are_never_computed_twice(tmp_path):
    words, computed = list("abcdefgh"), []
    assert go(tmp_path, words, computed) == list("ABCDEFGH")
    assert go(tmp_path, words, computed) == list("ABCDEFGH")
    assert computed == words


def test_no_worker_is_made_when_nothing_is_left(tmp_path):
    go(tmp_path, list("abc"))
    store = PartStore("s", tmp_path / "scratch")
    run_parts(plan_of(list("abc")), store, WORDS, pytest.fail, LOCAL, tmp_path / "out")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=20),
    st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=20),
)
def test_added_moved_and_removed_images_cost_only_what_is_new(tmp_path_factory, before, after):
    before, after = ([f"w{i}" for i in order] for order in (before, after))
    folder, computed = tmp_path_factory.mktemp("p"), []
    go(folder, before)
    assert go(folder, after, computed) == [word.upper() for word in after]
    assert sorted(computed) == sorted(set(after) - set(before))
    fresh = tmp_path_factory.mktemp("fresh")
    go(fresh, after)
    for path in (fresh / "out").iterdir():
        assert path.read_bytes() == (folder / "out" / path.name).read_bytes()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"\xff" + b[1:], lambda b: b""])
def test_damaged_part_is_computed_again(tmp_path, damage):
    words, computed = list("abcdefgh"), []
    go(tmp_path, words)
    path = next(p for p in stored(tmp_path) if "D" in p.read_text())
    path.write_bytes(damage(path.read_bytes()))
    assert go(tmp_path, words, computed) == list("ABCDEFGH")
    assert computed == list("def")


@pytest.mark.parametrize("sidecar", ["", "[]", "{}", '{"sha256": 1}', "null"])
def test_damaged_sidecar_means_not_finished(tmp_path, sidecar):
    words, computed = list("abcdef"), []
    go(tmp_path, words)
    stored(tmp_path)[0].with_suffix(".json").write_text(sidecar)
    assert go(tmp_path, words, computed) == list("ABCDEF") and len(computed) == 3


def test_an_error_keeps_what_is_finished(tmp_path):
    with pytest.raises(UserError, match="boom"):
        go(tmp_path, ["a", "b", "c", "boom"])
    computed = []
    go(tmp_path, ["a", "b", "c", "d"], computed)
    assert computed == ["d"]


def test_second_run_of_the_same_work_waits_for_the_first_and_computes_nothing(tmp_path, capsys):
    computed = []
    runs = [threading.Thread(target=go, args=(tmp_path / name, list("abc"), computed)) for name in "xy"]
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    (tmp_path / "y/scratch").symlink_to(tmp_path / "x/scratch")
    said = ""
    with PartStore("s", tmp_path / "x/scratch").lock(list(plan_of(list("abc")).parts())):
        for run in runs:
            run.start()
        while said.count("waiting for it") < 2:
            said += capsys.readouterr().err
            time.sleep(0.01)
        assert computed == []
    for run in runs:
        run.join(60)
    assert computed == ["a", "b", "c"]
    assert [len(list((tmp_path / name / "out").iterdir())) for name in "xy"] == [1, 1]


def test_output_numbers_parts_and_drops_old_ones(tmp_path):
    go(tmp_path, list("abcdefg"))
    go(tmp_path, list("abcd"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["part-00000.json", "part-00001.json"]


def test_atomic_write_leaves_the_old_file_on_error(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


class Slow(Upper):
    """Takes 20 ms a part."""

    def compute(self, task, advance):
        time.sleep(0.02)
        return super().compute(task, advance)


@pytest.mark.parametrize("after", [0.05, 0.2, 0.4, 0.55])
def test_kill_dash_nine_loses_only_the_part_at_work(tmp_path, after):
    words = [f"w{i}" for i in range(90)]
    pid = os.fork()
    if pid == 0:
        worker, store = partial(Slow, []), PartStore("s", tmp_path / "scratch")
        run_parts(plan_of(words), store, WORDS, worker, LOCAL, tmp_path / "out")
        os._exit(0)
    while not stored(tmp_path):
        time.sleep(0.01)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    store = PartStore("s", tmp_path / "scratch")
    finished = [store.has(part) for part in plan_of(words).parts()]
    assert any(finished) and finished == sorted(finished, reverse=True)
    computed = []
    assert go(tmp_path, words, computed) == [word.upper() for word in words]
    assert computed == words[3 * sum(finished) :]


def test_scratch_is_under_the_dvc_root_unless_told(monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("DINV_SCRATCH", raising=False)
    assert scratch_root() == tmp_path / ".scratch"
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "x"))
    assert scratch_root() == tmp_path / "x"


def test_absent_device_is_refused():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(UserError, match=r"execution\.device = 'cuda:99'"):
        resolve_device("cuda:99")
