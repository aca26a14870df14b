"""`dvc repro` without an activated environment: the stages find their packages, or say what is missing."""

import shutil
import subprocess
import sys
import venv

import pytest
import tiny


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The bin folder of an environment without packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin"


@pytest.fixture
def project(tmp_path):
    """A project of one stage, which says that it runs."""
    folder = tmp_path / "project"
    (folder / "stages").mkdir(parents=True)
    shutil.copy(tiny.ROOT / "stages/__init__.py", folder / "stages")
    (folder / "stages/toy.py").write_text("import sys\nprint('runs', *sys.argv[1:])")
    return folder


def stage(bare, folder, **env):
    command = [str(bare / "python3"), "-m", "stages.toy", "block"]
    env = {"PATH": f"{bare}:/usr/bin:/bin", **env}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def give_environment(folder):
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)


def test_without_an_environment_one_line_says_so(bare, project):
    done = stage(bare, project)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"dinv: {bare}/python3 lacks the packages") and done.stderr.count("\n") == 1
    assert "source .venv/bin/activate" in done.stderr


def test_the_project_s_environment_is_found(bare, project):
    give_environment(project)
    done = stage(bare, project)
    assert (done.returncode, done.stdout) == (0, "runs block\n"), done.stderr


def test_so_it_is_from_a_temporary_copy_inside_the_project(bare, project):
    """`dvc exp run --temp` works in .dvc/tmp/exps."""
    inside = project / ".dvc/tmp/exps/copy"
    inside.mkdir(parents=True)
    shutil.move(project / "stages", inside)
    give_environment(project)
    assert stage(bare, inside, DVC_ROOT=str(inside)).stdout == "runs block\n"


def test_an_interpreter_that_has_the_packages_is_kept(project):
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").write_text("#!/bin/sh\nexit 3\n")
    (project / ".venv/bin/python").chmod(0o755)
    done = subprocess.run([sys.executable, "-m", "stages.toy"], cwd=project, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"runs\n")


def test_an_environment_without_packages_is_not_tried_for_ever(bare, project):
    (project / ".venv").symlink_to(bare.parent)
    done = stage(project / ".venv/bin", project)
    assert done.returncode == 1 and "lacks the packages" in done.stderr


def test_it_can_be_read_by_an_old_python():
    """So that such an interpreter is named, not a syntax error shown."""
    text = (tiny.ROOT / "stages/__init__.py").read_text()
    assert 'f"' not in text and ":=" not in text and "list[" not in text
