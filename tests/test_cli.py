"""The command `dinv`: its help is instant, its errors are one line."""

import subprocess
import sys

import numpy as np
import pytest
import tiny

from dinv.cli import main
from dinv.images.image_set import ImageSet, save_image_set

HEAVY = {"torch", "diffusers", "transformers", "pandas", "altair", "dvc", "pydantic", "numpy"}


def test_help_imports_nothing_heavy_and_shows_an_example_of_each(tmp_path):
    code = f"""
import sys
from dinv.cli import main
try:
    main(["--help"])
finally:
    print("heavy:", sorted({HEAVY} & set(sys.modules)))
"""
    env = {"PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "heavy: []" in done.stdout
    for example in (
        "dinv init my_images",
        "dinv check",
        "dinv export data/",
        "dinv archive-model",
        "dinv preset stl10",
        "dinv experiment learning_curve",
        "dinv tune default",
        "dinv report",
        "dinv pilot --minutes",
        "dinv calibrate --pilots",
        "dinv estimate --price-per-hour",
    ):
        assert example in done.stdout


COMMANDS = "init check export archive-model preset experiment tune report estimate pilot calibrate"


@pytest.mark.parametrize("command", COMMANDS.split())
def test_every_subcommand_says_what_it_does_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and f"  dinv {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "absent", "out"], "dinv export: absent: no image set there"),
        (["init", "absent"], "dinv init: absent: no such folder or file; give the folder of your images"),
        (["preset", "stl11"], "dinv preset: presets/stl11.yaml: no such preset; there are "),
        (["experiment", "noise"], "dinv experiment: experiments/noise.yaml: no such experiment; there are "),
        (["tune", "noise"], "dinv tune: tune/noise.yaml: no such file; there are none"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((tiny.ROOT / "params.yaml").read_text())
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert str(stop.value.code).startswith(message) and "\n" not in str(stop.value.code)


def test_outside_a_project_the_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"dinv preset: params\.yaml: no such file; run in the folder"):
        main(["preset", "stl10"])


def test_export_and_preset_do_their_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = ImageSet(tiny.random_images(3), np.array([0, 1, 1]), ["a", "b", "c"], ["cat", "dog"])
    save_image_set(images, tmp_path / "set")
    main(["export", "set", "out"])
    assert capsys.readouterr().out == "3 images in out\n"
    assert len(list((tmp_path / "out/dog").iterdir())) == 2
    (tmp_path / "params.yaml").write_text((tiny.ROOT / "params.yaml").read_text())
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mine.yaml").write_text("data: {seed: 17}\n")
    main(["preset", "mine"])
    assert "  seed: 17 " in (tmp_path / "params.yaml").read_text()


def test_it_is_installed_as_dinv():
    text = (tiny.ROOT / "pyproject.toml").read_text()
    assert '[project.scripts]\ndinv = "dinv.cli:main"\n' in text
