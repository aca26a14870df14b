"""Bad input to whole stages: one line on stderr, exit status not 0, nothing finished is lost."""

import contextlib
import importlib
import json
import re
import shutil

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dinv.diffusion.loading import load_model, model_digest
from dinv.errors import UserError
from stages import runner

pytestmark = pytest.mark.slow


BLOCKS = {"invert": "embeddings", "generate": "inversion", "measure": "domain", "train": "mixed"}


def run_stage(project, name):
    """Run a stage in this process, as `python -m stages.NAME` does; return its one-line error or None."""
    main = importlib.import_module(f"stages.{name}").main
    with contextlib.chdir(project.root):
        try:
            runner.run(name, main, **({"block": BLOCKS[name]} if name in BLOCKS else {}))
        except SystemExit as error:
            return error.code
    return None


@pytest.fixture(scope="session")
def prepared(finished, tmp_path_factory):
    """A project whose images are made and whose classifiers are not trained."""
    project = finished.copy(tmp_path_factory.mktemp("bad") / "prepared")
    for folder in ("data/features", "data/classifiers", "metrics"):
        shutil.rmtree(project.root / folder)
    return project


def misspelt(project):
    path = project.root / "params.yaml"
    path.write_text(path.read_text().replace("noise_std:", "noise_sdt:"))


def truncate(relative):
    def damage(project):
        path = project.root / relative
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[: len(data) // 2])

    return damage


def remove(relative):
    def damage(project):
        path = project.root / relative
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def change_model(project):
    path = project.root / "models/fashion-ldm/scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "beta_end": 0.02}))


def one_image_of_a_class(project):
    project.set(data__num_per_class=1)
    assert run_stage(project, "download") is None and run_stage(project, "invert") is None


def broken_folder(project):
    for name in ("cat", "dog"):
        folder = project.root / "mine" / name
        folder.mkdir(parents=True)
        for i in range(5):
            Image.fromarray(tiny.random_images(1)[0]).save(folder / f"{i}.png")
    (project.root / "mine/dog/3.png").write_bytes(b"\x89PNG half")
    project.set(
        data__source="image_folder", data__root="mine", data__num_per_class=None, data__num_val_per_class=0
    )


CASES = [
    (
        "misspelt parameter",
        misspelt,
        "generate",
        r"generate\.inversion\.noise_sdt: unknown .*did you mean noise_std",
    ),
    (
        "wrong type",
        lambda p: p.set(invert__embeddings__num_visits="many"),
        "invert",
        r"invert\.embeddings\.num_visits = 'many'",
    ),
    (
        "out of range",
        lambda p: p.set(generate__inversion__interpolation=2.0),
        "generate",
        r"generate\.inversion\.interpolation = 2\.0",
    ),
    (
        "no model",
        lambda p: p.set(model__path="models/absent"),
        "download",
        r"model\.path: models/absent: no such folder or file",
    ),
    ("no unet", remove("models/fashion-ldm/unet"), "invert", r"changed since the download stage"),
    ("changed model", change_model, "invert", r"changed since the download stage .*--force download"),
    ("no data", remove("tinydata/t10k-labels-idx1-ubyte.gz"), "download", r"t10k-labels.*no such file"),
    ("truncated data", truncate("tinydata/train-images-idx3-ubyte.gz"), "download", r"not a complete gzip"),
    (
        "too few images",
        lambda p: p.set(data__num_per_class=99),
        "download",
        r"class 'T-shirt/top' has 6 images",
    ),
    ("too many test", lambda p: p.set(data__num_test=999), "download", r"data\.num_test = 999"),
    (
        "large images",
        lambda p: p.set(data__resolution=8),
        "download",
        r"train/\d{5}: image of 12x12 is larger",
    ),
    (
        "wrong mode",
        lambda p: (p.set(data__mode="RGB"), run_stage(p, "download")),
        "invert",
        r"set it to L",
    ),
    (
        "resolution",
        lambda p: p.set(model__resolution=18),
        "invert",
        r"model\.resolution = 18: must be a multiple",
    ),
    (
        "too many tokens",
        lambda p: p.set(invert__embeddings__num_tokens=6),
        "invert",
        r"invert\.num_tokens = 6",
    ),
    ("fp16 on cpu", lambda p: p.set(model__dtype="float16"), "invert", r"model\.dtype = 'float16'"),
    ("device", lambda p: p.set(execution__device="cuda:77"), "invert", r"execution\.device = 'cuda:77'"),
    (
        "damaged images",
        truncate("data/real/train_model/part-00000.parquet"),
        "invert",
        r"part-00000\.parquet: .*dvc checkout",
    ),
    (
        "damaged embeddings",
        truncate("data/learned/embeddings/part-00000.safetensors"),
        "generate",
        r"part-00000.*dvc checkout",
    ),
    ("lonely image", one_image_of_a_class, "generate", r"interpolation = .*has no partner"),
    ("broken image", broken_folder, "download", r"mine/dog/3\.png: broken image"),
    (
        "no upstream",
        remove("data/learned/embeddings"),
        "generate",
        r"data/learned/embeddings: no embeddings there",
    ),
    (
        "no feature network",
        lambda p: p.set(measure__features__domain={"network": "clip", "path": "absent"}),
        "measure",
        r"measure\.features: clip at 'absent': no such path",
    ),
    (
        "unknown features",
        lambda p: p.set(measure__features__domain={"network": "vgg", "path": "absent"}),
        "measure",
        r"measure\.features\.domain\.network = 'vgg'",
    ),
    ("no classifiers", lambda p: None, "evaluate", r"data/classifiers/real: no classifiers"),
]


@pytest.mark.parametrize(("damage", "stage", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_one_line_and_a_failing_exit(prepared, tmp_path, damage, stage, message):
    project = prepared.copy(tmp_path / "copy")
    damage(project)
    finished = sorted((project.root / ".scratch").rglob("*.part"))
    error = run_stage(project, stage)
    assert re.search(rf"^dinv {stage}: .*{message}", error) and "\n" not in error
    assert sorted((project.root / ".scratch").rglob("*.part")) == finished


def test_a_real_process_ends_with_status_one_and_that_line(prepared, tmp_path):
    project = prepared.copy(tmp_path / "copy")
    misspelt(project)
    done = project.stage("generate", "inversion")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("dinv generate: params.yaml: generate.inversion.noise_sdt")
    assert "Traceback" not in done.stderr


def test_too_few_images_leave_the_tables_empty_and_say_so(prepared, tmp_path, capsys):
    project = prepared.copy(tmp_path / "copy")
    project.set(measure__num_neighbors=99)
    assert run_stage(project, "measure") is None
    assert "not measured: {'real': 30," in capsys.readouterr().out
    measured = project.root / "metrics/image_sets"
    assert (measured / "domain.csv").read_text().count("\n") == 1  # the header
    assert json.loads((measured / "domain.json").read_text()) == {}
    assert list((project.root / "data/features/domain").iterdir()) == []


def test_changing_params_during_a_stage_fails_it(prepared, tmp_path):
    project = prepared.copy(tmp_path / "copy")

    def main(generate, block):
        project.set(generate__inversion__noise_std=generate[block].noise_std + 1)

    with contextlib.chdir(project.root), pytest.raises(SystemExit, match="changed while the stage ran"):
        runner.run("generate", main, block="inversion")


def load(folder, **update):
    return load_model(folder, tiny.model_params(folder, **update), tiny.torch.device("cpu"))


def test_model_without_cross_attention(tmp_path):
    tiny.save_tiny_model(tmp_path, cross_attention=False)
    with pytest.raises(UserError, match="no cross-attention"):
        load(tmp_path)


def test_model_of_mixed_parts(tmp_path):
    tiny.save_tiny_model(tmp_path, text=False, text_width=24)
    with pytest.raises(UserError, match="width 24, its UNet's cross-attention 16"):
        load(tmp_path)


def test_model_without_text_encoder_has_no_empty_prompt(tmp_path):
    tiny.save_tiny_model(tmp_path, text=False)
    (tmp_path / "empty_prompt_embeds.safetensors").unlink()
    with pytest.raises(UserError, match=r"no text encoder.*invert\.init to normal"):
        load(tmp_path).empty_prompt_embeds(3)


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_truncated_weights(tmp_path, name):
    tiny.save_tiny_model(tmp_path)
    path = tmp_path / name / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{name}: cannot be loaded .*fetch it again"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_weights_that_lack_one(tmp_path, name):
    """The libraries would fill it with random numbers."""
    tiny.save_tiny_model(tmp_path)
    (path,) = (tmp_path / name).glob("*.safetensors")
    tensors = load_file(path)
    lost = sorted(tensors)[-1]
    del tensors[lost]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{name}: cannot be loaded \(.*is missing\); fetch it again"):
        load(tmp_path).empty_prompt_embeds(3)


def test_an_autoencoder_with_the_old_names_of_stable_diffusion_1_is_whole(tmp_path):
    tiny.save_tiny_model(tmp_path)
    path = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    expected = load(tmp_path).vae.state_dict()
    pattern = re.compile(r"(?<=\.)(to_q|to_k|to_v|to_out\.0)(?=\.)")
    tensors = {pattern.sub(lambda m: old[m[0]], name): value for name, value in load_file(path).items()}
    assert tensors.keys() != expected.keys()
    save_file(tensors, path, {"format": "pt"})
    found = load(tmp_path).vae.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_pickled_weights_are_never_loaded(tmp_path):
    tiny.save_tiny_model(tmp_path)
    path = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match="unet: cannot be loaded"):
        load(tmp_path)


def test_missing_component_and_unknown_prediction_type(tmp_path):
    tiny.save_tiny_model(tmp_path, prediction_type="sample")
    with pytest.raises(UserError, match="prediction_type 'sample'"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "vae")
    with pytest.raises(UserError, match=r"vae: no config\.json"):
        load(tmp_path)


def test_model_digest_sees_every_byte_it_reads(tmp_path):
    tiny.save_tiny_model(tmp_path)
    before = model_digest(tmp_path)
    path = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert model_digest(tmp_path) != before
    (tmp_path / "README.md").write_text("not read")
    data[-1] ^= 1
    path.write_bytes(data)
    assert model_digest(tmp_path) == before
