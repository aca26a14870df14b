"""What surrounds a stage: its parameters, the guard against changes, errors of one line."""

import inspect
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from dinv.errors import UserError
from dinv.execution import expected as forecasts
from dinv.execution.code import changed_since, snapshot
from dinv.execution.expected import expected, keep
from stages import runner


class Toy(BaseModel):
    """Parameters of a project in two blocks."""

    data: dict = {"seed": 0}
    generate: dict = {"a": {"noise": 1}, "b": {"noise": 1}}
    train: dict = {"cnn": {"lr": 1}, "probe": {"lr": 1}}
    arms: dict = {"mixed": {"learner": "cnn"}, "real": {"learner": "probe"}}
    measure: dict = {"features": {"clip": "x", "dino": "x"}, "seed": 0}
    execution: dict = {"device": "cpu"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project; its parameters can be changed while a stage runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").touch()
    params = Toy()
    monkeypatch.setattr(runner, "load_params", lambda: params.model_copy(deep=True))
    return params


def line_of(stage, main, **arguments):
    """The one line that a stage ends with, None if it is content."""
    try:
        runner.run(stage, main, **arguments)
    except SystemExit as error:
        assert "\n" not in error.code
        return error.code
    return None


def test_main_gets_the_sections_it_names_and_the_arguments(project):
    seen = []

    def main(block, data, execution):
        seen.append((block, data, execution))

    assert line_of("generate", main, block="a") is None
    assert seen == [("a", {"seed": 0}, {"device": "cpu"})]


SECTIONS = {  # as dvc.yaml gives them
    "download": ["data"],
    "generate": ["data", "generate", "execution"],
    "train": ["arms", "train", "execution"],
    "measure": ["arms", "measure", "execution"],
}


@pytest.mark.parametrize(
    ("stage", "block", "change", "counts"),
    [
        ("generate", "a", ("generate", "a", {"noise": 2}), True),
        ("generate", "a", ("generate", "b", {"noise": 2}), False),
        ("generate", "a", ("data", "seed", 1), True),
        ("generate", "a", ("execution", "device", "cuda"), False),
        ("train", "mixed", ("train", "cnn", {"lr": 2}), True),
        ("train", "mixed", ("train", "probe", {"lr": 2}), False),
        ("train", "mixed", ("arms", "mixed", {"learner": "probe"}), True),
        ("train", "mixed", ("arms", "real", {"learner": "cnn"}), False),
        ("measure", "clip", ("measure", "features", {"clip": "y", "dino": "x"}), True),
        ("measure", "clip", ("measure", "features", {"clip": "x", "dino": "y"}), False),
        ("measure", "clip", ("measure", "seed", 1), True),
        ("measure", "clip", ("arms", "real", {"learner": "cnn"}), True),
        ("download", None, ("data", "seed", 1), True),
        ("download", None, ("arms", "real", {"learner": "cnn"}), False),
    ],
)
def test_only_parameters_that_count_may_not_change_while_a_stage_runs(project, stage, block, change, counts):
    section, key, value = change

    def main(**given):
        getattr(project, section)[key] = value

    names = [*SECTIONS[stage], *(["block"] if block else [])]
    kind = inspect.Parameter.KEYWORD_ONLY
    main.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    line = line_of(stage, main, **({"block": block} if block else {}))
    assert (line is not None) == counts
    assert not counts or line.startswith(f"dinv {stage}: params.yaml changed while the stage ran")


@pytest.mark.parametrize(("text", "counts"), [("x = 1  # same", False), ("x = 2", True)])
def test_code_may_not_change_while_a_stage_runs_but_comments_may(project, monkeypatch, text, counts):
    (file := Path("dinv/a.py")).parent.mkdir()
    file.write_text("x = 1")
    monkeypatch.setitem(sys.modules, "dinv.a", None)
    monkeypatch.setattr(runner, "snapshot", partial(snapshot, Path()))
    monkeypatch.setattr(runner, "changed_since", partial(changed_since, root=Path()))
    line = line_of("download", lambda: file.write_text(text))
    assert (line is not None and "dinv.a changed while the stage ran" in line) == counts


@pytest.mark.parametrize("missing", ["dvc.yaml", "params.yaml"])
def test_outside_the_project_is_one_clear_line(project, missing):
    Path(missing).unlink()
    line = line_of("invert", pytest.fail)
    assert (
        line
        == f"dinv invert: {Path.cwd()}: has no {missing}; go to the folder of the project, then try again"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("data.root = 'x': no such folder"), "dinv download: data.root = 'x': no such folder"),
        (OSError(28, "No space left on device"), "check free space and permissions"),
        (FileNotFoundError(2, "No such file", "data/real/train"), "data/real/train'; run dvc repro"),
        (torch.OutOfMemoryError(), "out of GPU memory"),
    ],
)
def test_errors_are_one_line(project, error, words):
    def main():
        raise error

    assert words in line_of("download", main)


def test_a_block_is_an_argument_and_must_exist(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stages.generate", "inversion"])
    assert runner.block_argument("Generate.") == "inversion"
    assert runner.chosen({"inversion": 3}, "inversion", "generate") == 3
    with pytest.raises(UserError, match=r"generate\.inversino: no such block .* there are inversion"):
        runner.chosen({"inversion": 3}, "inversino", "generate")


PARAMS = {
    "data": {"seed": 0},
    "model": {"path": "x"},
    "invert": {"c": {"num_visits": 3}},
    "generate": {
        "a": {"input": "data/learned/c", "noise": 1},
        "b": {"input": "data/real/train", "noise": 1},
    },
    "train": {"cnn": {"lr": 1}, "probe": {"lr": 1}},
    "arms": {
        "mixed": {"images": "data/generated/a", "learner": "cnn"},
        "real": {"images": "data/real/train", "learner": "probe"},
    },
    "measure": {"seed": 0},
    "execution": {"device": "cpu"},
}
STAGES = ["download", "invert@c", "generate@a", "generate@b", "train@mixed", "train@real", "evaluate"]


@pytest.mark.parametrize(
    ("section", "block", "value", "still"),
    [
        ("data", "seed", 1, []),
        ("execution", "device", "cuda", []),
        ("invert", "c", {"num_visits": 4}, ["download", "generate@b", "train@real", "evaluate"]),
        ("generate", "b", {"input": "data/real/train", "noise": 2}, STAGES[:3] + STAGES[4:6]),
        ("train", "cnn", {"lr": 2}, [s for s in STAGES if s not in ("train@mixed", "evaluate")]),
        ("train", "new", {"lr": 2}, STAGES[:-1]),
    ],
)
def test_a_stage_says_its_estimate_while_what_was_timed_is_what_it_does(
    tmp_path, monkeypatch, section, block, value, still
):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path))
    assert expected(PARAMS, "download") is None
    keep(PARAMS, {stage: f"{stage} 3 s" for stage in STAGES})
    assert [expected(PARAMS, stage) for stage in STAGES] == [f"{stage} 3 s" for stage in STAGES]
    changed = {**PARAMS, section: {**PARAMS[section], block: value}}
    assert [stage for stage in STAGES if expected(changed, stage)] == still


@pytest.mark.parametrize("text", ["", "[]", '{"download": 3}', '{"download": {"key": 1}}'])
def test_a_damaged_estimate_is_none(tmp_path, monkeypatch, text):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path))
    (tmp_path / "estimate.json").write_text(text)
    assert expected(PARAMS, "download") is None


def test_the_line_stands_at_the_start(project, monkeypatch, capsys):
    monkeypatch.setattr(
        runner, "expected", lambda params, stage: f"of {stage}, seed {params['data']['seed']}"
    )
    assert line_of("generate", lambda block: print("work"), block="a") is None
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("generate@a: of generate@a, seed 0, as dinv estimate found") and second == "work"


def test_the_rest_is_foretold_once_by_what_was_done_first(monkeypatch):
    """After the first unit two take 4 s: 2 s each, and 7 of 10 are left."""
    clock, said = iter([5.0, 6.0, 9.0, 13.0]), []
    monkeypatch.setattr(forecasts.time, "monotonic", lambda: next(clock))
    forecast = forecasts.Forecast(10, said.append)
    for _ in range(4):
        forecast.advance(1)
    assert said == ["about 14.0 s left, as the first 4 s say"]


def test_a_short_rest_is_not_foretold(monkeypatch):
    clock, said = iter([0.0, 4.0, 8.0]), []
    monkeypatch.setattr(forecasts.time, "monotonic", lambda: next(clock))
    forecast = forecasts.Forecast(3, said.append)
    for _ in range(3):
        forecast.advance(1)
    assert said == []
    assert forecasts.words(90) == "1.5 min" and forecasts.words(0.2) == "0.2 s"
