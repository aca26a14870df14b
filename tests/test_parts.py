"""Parts: atomic, verified, resumed after kill -9, refused to a second writer."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dinv.errors import UserError
from dinv.execution.device import resolve_device
from dinv.execution.parts import Part, PartStore, collect, run_parts, scratch_root
from dinv.files import atomic_write, digest_of

PARTS = [Part(f"p{i}", digest_of(i), 10) for i in range(4)]


def runner(computed):
    def compute(i, advance):
        computed.append(i)
        advance(10)
        return lambda path: path.write_bytes(bytes([i]) * 100)

    return compute


def test_finished_parts_are_never_computed_twice(tmp_path):
    store, computed = PartStore("s", tmp_path), []
    run_parts(store, PARTS[:2], runner(computed))
    paths = run_parts(store, PARTS, runner(computed))
    assert computed == [0, 1, 2, 3]
    assert [p.read_bytes()[0] for p in paths] == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"\xff" + b[1:], lambda b: b""])
def test_damaged_part_is_computed_again(tmp_path, damage):
    store, computed = PartStore("s", tmp_path), []
    run_parts(store, PARTS, runner(computed))
    path = store.path(PARTS[2])
    path.write_bytes(damage(path.read_bytes()))
    run_parts(store, PARTS, runner(computed))
    assert computed == [0, 1, 2, 3, 2] and path.read_bytes() == bytes([2]) * 100


def test_an_error_keeps_what_is_finished(tmp_path):
    store, computed = PartStore("s", tmp_path), []

    def failing(i, advance):
        if i == 2:
            raise UserError("boom")
        return runner(computed)(i, advance)

    with pytest.raises(UserError, match="boom"):
        run_parts(store, PARTS, failing)
    run_parts(store, PARTS, runner(computed))
    assert computed == [0, 1, 2, 3]


def test_second_run_of_the_same_work_is_refused(tmp_path):
    store = PartStore("s", tmp_path)
    with store.lock(PARTS), pytest.raises(UserError, match="another run"):
        run_parts(store, PARTS, runner([]))
    run_parts(store, PARTS, runner([]))


def test_collect_numbers_parts_and_drops_old_ones(tmp_path):
    store = PartStore("s", tmp_path / "scratch")
    paths = run_parts(store, PARTS, runner([]))
    out = tmp_path / "out"
    collect(paths, out, ".bin")
    collect(paths[:2], out, ".bin")
    assert sorted(p.name for p in out.iterdir()) == ["part-00000.bin", "part-00001.bin"]


def test_atomic_write_leaves_the_old_file_on_error(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


SLOW = """
import sys, time
from pathlib import Path
from dinv.execution.parts import Part, PartStore, run_parts
parts = [Part(f"p{i}", f"{i:064d}", 1) for i in range(30)]
def compute(i, advance):
    time.sleep(0.02)
    return lambda path: path.write_bytes(bytes([i]) * 50_000)
run_parts(PartStore("s", Path(sys.argv[1])), parts, compute)
"""


@pytest.mark.parametrize("after", [0.05, 0.2, 0.4, 0.55])
def test_kill_dash_nine_loses_only_the_part_at_work(tmp_path, after):
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    parts = [Part(f"p{i}", f"{i:064d}", 1) for i in range(30)]
    store = PartStore("s", tmp_path)
    while not store.path(parts[0]).exists():
        time.sleep(0.01)
    time.sleep(after)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = [store.has(p) for p in parts]
    assert any(finished) and finished == sorted(finished, reverse=True)
    computed = []

    def compute(i, advance):
        computed.append(i)
        return lambda path: path.write_bytes(bytes([i]) * 50_000)

    paths = run_parts(store, parts, compute)
    assert computed == [i for i, done in enumerate(finished) if not done]
    assert [p.read_bytes() for p in paths] == [bytes([i]) * 50_000 for i in range(30)]


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
