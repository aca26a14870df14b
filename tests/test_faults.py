"""Faults of the machine: a full disk, a read-only folder, a moved clock. Nothing is lost and nothing is wrong afterwards."""

import ctypes
import importlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
import torch

from stages.runner import run

pytestmark = pytest.mark.slow

INVERT = ("invert", "embeddings")


@pytest.fixture
def downloaded(finished, tmp_path):
    """A project whose download stage has run."""
    project = finished.copy(tmp_path / "project")
    for folder in ("data/learned", "data/curves", ".scratch"):
        shutil.rmtree(project.root / folder)
    return project


def embeddings(project):
    return {p.name: p.read_bytes() for p in (project.root / "data/learned/embeddings").iterdir()}


def stage(project, name, *block, prepare=lambda: None, scratch=".scratch"):
    """`python -m stages.NAME` in a fork of this process, which has paid for the imports; `prepare` runs first."""
    main = importlib.import_module(f"stages.{name}").main
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            os.chdir(project.root)
            sys.stdout, sys.stderr, os.environ["DINV_SCRATCH"] = out, err, scratch
            status = 0
            try:
                torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
                prepare()
                run(name, main, **({"block": block[0]} if block else {}))
            except SystemExit as error:
                status = 1
                print(error.code, file=err)
            except BaseException:
                status = 2
                traceback.print_exc()
            out.flush()
            err.flush()
            os._exit(status)
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(name, os.waitstatus_to_exitcode(status), out.read(), err.read())


def succeed(*arguments, **options):
    done = stage(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mounted(commands):
    """Enter a mount namespace of one's own and call mount there. Forks have one thread, as this needs."""

    def prepare():
        new_namespaces, user, group = 0x10000000 | 0x20000, os.getuid(), os.getgid()
        assert ctypes.CDLL(None).unshare(new_namespaces) == 0
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", file).write_text(text)
        subprocess.run(["sh", "-e", "-c", f"mount --make-rprivate /; {commands}"], check=True)

    return prepare


@pytest.fixture
def mounts():
    """`mounted`, where the machine allows it."""
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no mount namespaces")
    return mounted


def one_line_about(done, text):
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("dinv ")]
    assert text in line and "check free space and permissions" in line


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(downloaded, mounts):
    (downloaded.root / ".scratch").mkdir(exist_ok=True)
    full = stage(downloaded, *INVERT, prepare=mounts("mount -t tmpfs -o size=12k tmpfs .scratch"))
    one_line_about(full, "No space left on device")
    assert not (downloaded.root / "data/learned/embeddings").exists()
    succeed(downloaded, *INVERT)
    first = embeddings(downloaded)
    succeed(downloaded, *INVERT, scratch="fresh")
    assert embeddings(downloaded) == first


def test_a_limit_on_file_size_is_one_line_and_leaves_no_part(downloaded):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    one_line_about(stage(downloaded, *INVERT, prepare=limited, scratch="limited"), "File too large")
    assert not list((downloaded.root / "limited").rglob("*.part"))


@pytest.mark.parametrize("command", [("download",), INVERT], ids=["download", "invert"])
def test_a_read_only_output_is_one_line_and_loses_no_part(downloaded, mounts, command):
    protect = mounts("mount --bind data data; mount -o remount,bind,ro data")
    one_line_about(stage(downloaded, *command, prepare=protect), "Read-only file system")
    said = succeed(downloaded, *command)
    assert command == ("download",) or "1 of 1 parts are already finished" in said


def test_a_moved_clock_recomputes_nothing_and_hides_nothing(downloaded):
    succeed(downloaded, *INVERT)
    parts = sorted((downloaded.root / ".scratch/invert").glob("*.part"))
    for seconds, path in zip((0, 4_000_000_000), [parts[0], parts[0].with_suffix(".json")], strict=True):
        os.utime(path, (seconds, seconds))
    assert "1 of 1 parts are already finished" in succeed(downloaded, *INVERT)
    content = bytearray(parts[0].read_bytes())
    content[-1] ^= 1
    parts[0].write_bytes(content)
    os.utime(parts[0], (0, 0))
    assert "already finished" not in succeed(downloaded, *INVERT)
