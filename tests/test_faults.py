"""Faults of the machine: a full disk, a moved clock. Nothing is lost and nothing is wrong afterwards."""

import os
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


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(downloaded):
    """A limit on the size of files fails writes as a full disk does, with another number."""
    limited = f"ulimit -f 8; exec {sys.executable} -m stages.invert"
    failed = downloaded.run("bash", "-c", limited, ok=False)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    (line,) = [x for x in failed.stderr.splitlines() if x.startswith("dinv ")]
    assert "check free space" in line
    assert not (downloaded.root / "data/embeddings").exists()
    assert not list((downloaded.root / ".scratch").rglob("*.part"))
    downloaded.stage("invert", ok=True)
    first = embeddings(downloaded)
    downloaded.run(sys.executable, "-m", "stages.invert", DINV_SCRATCH=str(downloaded.root / "fresh"))
    assert embeddings(downloaded) == first


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
