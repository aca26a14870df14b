"""Faults of the machine: a full disk, a read-only folder, a moved clock. Nothing is lost and nothing is wrong afterwards."""

import os
import shutil
import subprocess
import sys

import project as projects
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    project = projects.create(tmp_path_factory.mktemp("faults") / "project")
    project.stage("download", ok=True)
    return project


def embeddings(project):
    return {p.name: p.read_bytes() for p in (project.root / "data/embeddings").iterdir()}


def with_mounts(project, mounts, stage):
    """Run a stage in a mount namespace of its own, after the commands in `mounts`."""
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no mount namespaces")
    script = f"set -e; {mounts}; exec {sys.executable} -m stages.{stage}"
    return project.run("unshare", "-rm", "sh", "-c", script, ok=False)


def one_line_about(done, text):
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("dinv ")]
    assert text in line and "check free space and permissions" in line


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(downloaded):
    (downloaded.root / ".scratch").mkdir(exist_ok=True)
    full = with_mounts(downloaded, "mount -t tmpfs -o size=12k tmpfs .scratch", "invert")
    one_line_about(full, "No space left on device")
    assert not (downloaded.root / "data/embeddings").exists()
    downloaded.stage("invert", ok=True)
    first = embeddings(downloaded)
    downloaded.run(sys.executable, "-m", "stages.invert", DINV_SCRATCH=str(downloaded.root / "fresh"))
    assert embeddings(downloaded) == first


def test_a_limit_on_file_size_is_one_line_and_leaves_no_part(downloaded):
    limited = f"ulimit -f 8; exec {sys.executable} -m stages.invert"
    scratch = downloaded.root / "limited"
    failed = downloaded.run("bash", "-c", limited, ok=False, DINV_SCRATCH=str(scratch))
    one_line_about(failed, "File too large")
    assert not list(scratch.rglob("*.part"))


@pytest.mark.parametrize("stage", ["download", "invert"])
def test_a_read_only_output_is_one_line_and_loses_no_part(downloaded, stage):
    protect = "mount --bind data data; mount -o remount,bind,ro data"
    one_line_about(with_mounts(downloaded, protect, stage), "Read-only file system")
    done = downloaded.stage(stage, ok=True)
    assert stage == "download" or "1 of 1 parts are already finished" in done.stdout


def test_a_moved_clock_recomputes_nothing_and_hides_nothing(downloaded):
    downloaded.stage("invert", ok=True)
    parts = sorted((downloaded.root / ".scratch/invert").glob("*.part"))
    for seconds, path in zip((0, 4_000_000_000), [parts[0], parts[0].with_suffix(".json")], strict=True):
        os.utime(path, (seconds, seconds))
    assert "1 of 1 parts are already finished" in downloaded.stage("invert", ok=True).stdout
    content = bytearray(parts[0].read_bytes())
    content[-1] ^= 1
    parts[0].write_bytes(content)
    os.utime(parts[0], (0, 0))
    assert "already finished" not in downloaded.stage("invert", ok=True).stdout
