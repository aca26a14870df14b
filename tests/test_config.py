"""Every bad parameter ends in one line with value, place and remedy."""

import copy

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dinv.errors import UserError
from dinv.params import Params, load_params, parse_params

RAW = YAML(typ="safe").load((tiny.ROOT / "params.yaml").read_text())


def changed(path, value):
    raw = copy.deepcopy(RAW)
    section, key = path.split(".")
    raw[section][key] = value
    return raw


BAD = [
    ("data.source", "imagenet", r"data\.source = 'imagenet'.*'fashion_mnist'"),
    ("data.num_per_class", 0, r"data\.num_per_class = 0: .*greater than 0"),
    ("data.num_per_class", 2.5, r"data\.num_per_class = 2\.5: .*integer"),
    ("data.resolution", "32", r"data\.resolution = '32': .*integer"),
    ("model.revision", "main", r"model: revision must be a commit hash"),
    ("model.dtype", "float8", r"model\.dtype = 'float8'"),
    ("invert.lr", -1.0, r"invert\.lr = -1\.0: .*greater than 0"),
    ("invert.lr", float("inf"), r"invert\.lr = inf: .*finite"),
    ("invert.num_visits", True, r"invert\.num_visits = True: .*integer"),
    ("invert.adam_beta1", 1.0, r"invert\.adam_beta1 = 1\.0: .*less than 1"),
    ("generate.interpolation", 1.5, r"generate\.interpolation = 1\.5: .*less than or equal to 1"),
    ("generate.guidance_scale", 0.5, r"generate\.guidance_scale = 0\.5: .*greater than or equal to 1"),
    ("generate.noise_std", None, r"generate\.noise_std = None: .*number"),
    ("generate.lambda", 0.1, r"generate\.lambda: unknown parameter"),
    ("generate.guidance", 2.0, r"generate\.guidance: unknown parameter \(did you mean guidance_scale\?\)"),
    ("train.seeds", [], r"train\.seeds = \[\]: .*at least 1"),
    ("train.seeds", [1, 1], r"train: seeds must differ"),
    ("train.warmup_steps", 10**6, r"train: warmup_steps must be below num_steps"),
    ("execution.device", "gpu", r"execution\.device = 'gpu': .*pattern"),
    ("execution.micro_batch", 0, r"execution\.micro_batch = 0: .*greater than 0"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_bad_value(path, value, message):
    with pytest.raises(UserError, match=r"^params\.yaml: " + message) as error:
        parse_params(changed(path, value))
    assert "\n" not in str(error.value)


def test_resnet_of_another_width_is_refused_rather_than_ignored():
    raw = changed("train.architecture", "resnet18")
    raw["train"]["width"] = 32
    with pytest.raises(UserError, match="train: width must be 64 for resnet18"):
        parse_params(raw)


def test_missing_key_and_section_and_file(tmp_path):
    raw = copy.deepcopy(RAW)
    del raw["invert"]["lr"]
    with pytest.raises(UserError, match=r"invert\.lr: missing parameter"):
        parse_params(raw)
    del raw["invert"]
    with pytest.raises(UserError, match="invert: missing parameter"):
        parse_params(raw)
    with pytest.raises(UserError, match="no such file"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "data: 3"])
def test_broken_files(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml: ") as error:
        load_params(path)
    assert "\n" not in str(error.value)


def test_numbers_are_read_as_dvc_writes_them(tmp_path):
    """`dvc exp run -S invert.lr=1e-5` writes 1e-05, which YAML 1.1 readers take for a string."""
    path = tmp_path / "params.yaml"
    path.write_text((tiny.ROOT / "params.yaml").read_text().replace("lr: 0.1 ", "lr: 1e-05 ", 1))
    assert load_params(path).invert.lr == 1e-5


@given(st.sampled_from(list(RAW)), st.text(min_size=1, max_size=12))
def test_any_unknown_key_is_refused(section, key):
    raw = copy.deepcopy(RAW)
    if key in raw[section]:
        return
    raw[section][key] = 1
    with pytest.raises(UserError, match="unknown parameter"):
        parse_params(raw)


def test_every_parameter_is_explained_in_params_yaml():
    text = (tiny.ROOT / "params.yaml").read_text()
    for section in Params.model_fields:
        for key in Params.model_fields[section].annotation.model_fields:
            assert f"  {key}:" in text
