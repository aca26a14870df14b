"""Every bad parameter ends in one line with value, place and remedy."""

import copy
import re

import pytest
import tiny
from hypothesis import assume, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dinv.errors import UserError
from dinv.params import load_params, parse_params

RAW = YAML(typ="safe").load((tiny.ROOT / "params.yaml").read_text())


def changed(path, value):
    raw = copy.deepcopy(RAW)
    *sections, key = path.split(".")
    place = raw
    for section in sections:
        place = place[section]
    place[key] = value
    return raw


BAD = [
    ("data.source", "imagenet", r"data\.source = 'imagenet'.*fashion_mnist"),
    ("data.num_per_class", 0, r"data\.num_per_class = 0: .*greater than 0"),
    ("data.num_per_class", 2.5, r"data\.num_per_class = 2\.5: .*integer"),
    ("data.resolution", "32", r"data\.resolution = '32': .*integer"),
    ("model.dtype", "float8", r"model\.dtype = 'float8'"),
    ("invert.embeddings.lr", -1.0, r"invert\.embeddings\.lr = -1\.0: .*greater than 0"),
    ("invert.embeddings.lr", float("inf"), r"invert\.embeddings\.lr = inf: .*finite"),
    ("invert.embeddings.num_visits", True, r"invert\.embeddings\.num_visits = True: .*integer"),
    ("invert.embeddings.adam_beta1", 1.0, r"invert\.embeddings\.adam_beta1 = 1\.0: .*less than 1"),
    (
        "invert.embeddings.method",
        "lora",
        r"invert\.embeddings\.method = 'lora': no such method; known: .*image_",
    ),
    ("invert.embeddings", 3, r"invert\.embeddings: write method: and one of .*image_embeddings"),
    ("invert.more", {"method": "image_embeddings"}, r"invert\.more\.num_tokens: missing parameter"),
    ("generate.inversion.interpolation", 1.5, r"generate\.inversion\.interpolation = 1\.5: .*equal to 1"),
    ("generate.inversion.guidance_scale", 0.5, r"generate\.inversion\.guidance_scale = 0\.5: .*equal to 1"),
    ("generate.inversion.noise_std", None, r"generate\.inversion\.noise_std = None: .*number"),
    ("generate.inversion.lambda", 0.1, r"generate\.inversion\.lambda: unknown parameter"),
    (
        "generate.inversion.guidance",
        2.0,
        r"generate\.inversion\.guidance: .*\(did you mean guidance_scale\?\)",
    ),
    (
        "generate.inversion.strategy",
        "diffusion_inversoin",
        r"generate\.inversion\.strategy = 'diffusion_inversoin': no such strategy \(did you mean diffusion_inv",
    ),
    (
        "generate.inversion.input",
        "data/learned/gone",
        r"generate\.inversion\.input = .*there are data/learned/emb",
    ),
    (
        "generate.Inversion",
        {"strategy": "reconstruction", "input": "x"},
        r"generate\.Inversion\.\[key\] = 'Inv.*pattern",
    ),
    ("generate.more", {"strategy": "reconstruction", "input": "x"}, r"generate\.more: no arm uses it"),
    ("train.cnn.seeds", [], r"train\.cnn\.seeds = \[\]: .*at least 1"),
    ("train.cnn.seeds", [1, 1], r"train\.cnn\.seeds: seeds must differ"),
    ("train.cnn.warmup_steps", 10**6, r"train\.cnn: warmup_steps must be below num_steps"),
    ("train.cnn.width", 64, r"train\.cnn\.width: unknown parameter"),
    ("train.cnn.architecture", "resnet19", r"train\.cnn\.architecture = 'resnet19': .*'resnet18'"),
    ("arms.mixed.images", "data/generated/gone", r"arms\.mixed\.images = 'data/generated/gone': no such"),
    ("arms.mixed.learner", "svm", r"arms\.mixed\.learner = 'svm': no such; there are cnn"),
    ("arms.real.real", True, r"arms\.real\.real = True: images are the real ones already"),
    ("arms.real.reel", True, r"arms\.real\.reel: unknown parameter \(did you mean real\?\)"),
    ("measure.features.domain.network", "vgg", r"measure\.features\.domain\.network = 'vgg'"),
    ("execution.device", "gpu", r"execution\.device = 'gpu': .*pattern"),
    ("execution.micro_batch", 0, r"execution\.micro_batch = 0: .*greater than 0"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_bad_value(path, value, message):
    with pytest.raises(UserError, match=r"^params\.yaml: " + message) as error:
        parse_params(changed(path, value))
    assert "\n" not in str(error.value)


def test_missing_key_and_section_and_file(tmp_path):
    raw = copy.deepcopy(RAW)
    del raw["invert"]["embeddings"]["lr"]
    with pytest.raises(UserError, match=r"invert\.embeddings\.lr: missing parameter"):
        parse_params(raw)
    del raw["invert"]
    with pytest.raises(UserError, match="invert: missing parameter"):
        parse_params(raw)
    with pytest.raises(UserError, match="no such file"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("section", "user"), [("invert", "block of generate"), ("generate", "arm"), ("train", "arm")]
)
def test_a_block_that_nothing_uses_is_refused(section, user):
    """What is written in params.yaml is computed, and only that."""
    raw = copy.deepcopy(RAW)
    raw[section]["spare"] = next(iter(raw[section].values()))
    with pytest.raises(UserError, match=rf"{section}\.spare: no {user} uses it; remove the block, or use it"):
        parse_params(raw)


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "data: 3"])
def test_broken_files(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml: ") as error:
        load_params(path)
    assert "\n" not in str(error.value)


def test_numbers_are_read_as_dvc_writes_them(tmp_path):
    """`dvc exp run -S invert.embeddings.lr=1e-5` writes 1e-05, which YAML 1.1 readers take for a string."""
    path = tmp_path / "params.yaml"
    path.write_text((tiny.ROOT / "params.yaml").read_text().replace("lr: 0.1 ", "lr: 1e-05 ", 1))
    assert load_params(path).invert["embeddings"].lr == 1e-5


def sections(raw):
    """Every place that has parameters of its own."""
    blocks = [(s, b) for s in ("invert", "generate", "train", "arms") for b in raw[s]]
    return [
        *((s,) for s in ("data", "model", "measure", "execution")),
        *blocks,
        ("measure", "features", "domain"),
    ]


@given(st.sampled_from(sections(RAW)), st.text(min_size=1, max_size=12))
def test_any_unknown_key_is_refused(place, key):
    raw = copy.deepcopy(RAW)
    section = raw
    for name in place:
        section = section[name]
    assume(key not in section)
    section[key] = 1
    with pytest.raises(UserError, match="unknown parameter"):
        parse_params(raw)


def test_every_parameter_is_explained_in_params_yaml():
    """Each is there, since none has a default, and a comment stands beside it or above its block."""
    text = (tiny.ROOT / "params.yaml").read_text()
    for place in sections(RAW):
        if place[0] == "arms" or "features" in place:
            continue
        section = RAW
        for name in place:
            section = section[name]
        for key in section:
            (line, *_) = re.findall(rf"^ {{2,4}}{key}:(?: .*)?$", text, re.M)
            assert "#" in line or key in ("seed", "input"), (place, key)
