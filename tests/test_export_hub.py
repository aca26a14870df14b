"""Exports as others read them: `datasets`, model cards, uploads; and where licences are read from."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from hub_server import TOKEN, hub_server

from dinv.classify.architectures import create_classifier
from dinv.classify.base import Fitted
from dinv.classify.cnn import pixel_statistics
from dinv.classify.store import StoredClassifier, save_classifier
from dinv.cli import main
from dinv.errors import UserError
from dinv.images.image_set import ImageSet, save_image_set
from dinv.inversion.bank import EmbeddingBank, bank_statistics, save_bank, save_statistics
from dinv.publish import record
from dinv.publish.cards import RESTRICTIONS, licence_fields, licence_section
from dinv.publish.export import Options, export
from dinv.publish.origin import Origin, common_license, origin_of

CLASSES = ["cat", "dog", "T-shirt/top | x"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder that the commands run in; outputs in it count as unchanged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "changes", lambda stage, kind: {})
    monkeypatch.setattr("dinv.publish.classifiers.changes", lambda stage, kind: {})
    return tmp_path


def images(n=5, **columns):
    facts = {
        "source_id": [f"s{i}" for i in range(n)],
        "noise_std": [0.5] * n,
        "seed": list(range(n)),
        **columns,
    }
    return ImageSet(tiny.random_images(n), np.arange(n) % 3, [f"s{i}#0" for i in range(n)], CLASSES, facts)


def write_lock(**stages):
    """dvc.lock with a task and a model of our own."""
    data = {
        "data": {"source": "image_folder", "root": "pictures", "resize": "squash"},
        "model.path": "generator",
    }
    stages = {
        "download": {"outs": [{"path": "data/real/train", "md5": "r"}], "params": {"params.yaml": data}}
    } | stages
    record.LOCK.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def generated(**params):
    return {
        "outs": [{"path": "data/generated/inversion", "md5": "abc.dir"}],
        "params": {
            "params.yaml": {
                "model": {"path": "generator"},
                "generate.inversion": {"noise_std": 0.5, **params},
            }
        },
    }


def card(folder):
    text = (folder / "README.md").read_text()
    return yaml.safe_load(text.split("---\n")[1]), text


def load(folder, split):
    """`load_dataset`, offline, as a user would call it: in a process of its own."""
    code = f"""
from datasets import load_dataset
images = load_dataset({str(folder)!r}, split={split!r}, cache_dir={str(folder.parent / "cache")!r})
print(len(images), images.column_names, images.features["label"].names, images[1])
print([p.shape for p in images.with_format("numpy")["image"][:1]], images.features)
"""
    env = {
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder.parent / "home"),
        "PATH": "/bin",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dataset_folder_opens_in_datasets_with_every_column(here):
    probabilities = np.full((5, 3), [0.5, 0.25, 0.25], np.float32)
    first = images(5, partner_id=[None] * 5)
    parts = [first, images(5, partner_id=["p"] * 5)]
    for i, part in enumerate(parts):
        soft = ImageSet(
            part.images, part.labels, [f"{i}-{j}" for j in part.ids], CLASSES, part.provenance, probabilities
        )
        save_image_set(soft, here / f"part{i}")
        (here / "set").mkdir(exist_ok=True)
        shutil.copy(here / f"part{i}/part-00000.parquet", here / f"set/part-{i:05d}.parquet")
    main(["export", "set", "out/dataset", "--format", "huggingface"])
    assert [p.name for p in (here / "out/dataset/data").iterdir()] == ["train-00000-of-00001.parquet"]
    out = load(here / "out/dataset", "train")
    assert out.startswith(
        f"10 ['image', 'label', 'id', 'source_id', 'noise_std', 'seed', 'partner_id', 'probabilities'] {CLASSES}"
    )
    assert "'id': '0-s1#0', 'source_id': 's1', 'noise_std': 0.5, 'seed': 1, 'partner_id': None" in out
    assert "'probabilities': [0.5, 0.25, 0.25]" in out and "(16, 16, 3)" in out
    assert "'partner_id': Value('string')" in out
    assert [p.name for p in (here / "out").iterdir() if p.name not in ("cache", "home")] == ["dataset"]


def test_pictures_bytes_stay_and_large_sets_are_cut_into_shards(here, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr("dinv.publish.image_sets.SHARD_BYTES", 1)
    monkeypatch.setattr("dinv.images.folder.ROWS_PER_FILE", 2)
    save_image_set(images(), here / "set")
    export(here / "set", here / "out", Options("huggingface"))
    shards = sorted((here / "out/data").iterdir())
    assert [p.name for p in shards] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    before = [pq.read_table(p)["image"].to_pylist() for p in sorted((here / "set").iterdir())]
    assert [pq.read_table(p)["image"].to_pylist() for p in shards] == before


def test_the_card_says_where_images_come_from(here):
    (here / "pictures").mkdir()
    (here / "pictures/README.md").write_text("private notes")
    (here / "pictures/LICENSE").write_text("Creative Commons Attribution 4.0\nInternational")
    (here / "generator").mkdir()
    (here / "generator/README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A generator\n")
    (here / "generator/LICENSE.md").write_text("rules")
    write_lock(**{"generate@inversion": generated()})
    save_image_set(images(), here / "data/generated/inversion")
    export(Path("data/generated/inversion"), here / "out", Options("huggingface"))
    metadata, text = card(here / "out")
    assert (
        metadata["license"] == "other" and metadata["license_name"] == "creativeml-openrail-m-and-cc-by-4.0"
    )
    assert {"synthetic", "dinv"} <= set(metadata["tags"]) and metadata["size_categories"] == ["n<1K"]
    assert "| generator | `generator` | creativeml-openrail-m |" in text
    assert "| source images | `pictures` | cc-by-4.0 |" in text and RESTRICTIONS in text
    assert "`generate@inversion`" in text and "noise_std: 0.5" in text and "abc.dir" in text
    assert "| 2 | T-shirt/top \\| x | 1 |" in text and "| `source_id` | the real image" in text
    assert (here / "out/licenses/generator-LICENSE.md").read_text() == "rules"
    copied = sorted(path.name for path in (here / "out/licenses").iterdir())
    assert copied == ["generator-LICENSE.md", "generator-README.md", "source-images-LICENSE"]


def test_real_images_are_not_called_synthetic(here):
    write_lock()
    save_image_set(images(), here / "data/real/train")
    export(Path("data/real/train"), here / "out", Options("huggingface", "cc0-1.0"))
    metadata, text = card(here / "out")
    assert metadata["tags"] == ["dinv"] and metadata["license"] == "cc0-1.0" and "synthetic" not in text
    assert "| generator |" not in text and "Stated by whoever exported this: cc0-1.0" in text


def test_an_output_that_the_lock_does_not_record_is_refused(here, monkeypatch):
    write_lock(**{"generate@inversion": generated()})
    save_image_set(images(), here / "data/generated/inversion")
    monkeypatch.setattr(record, "changes", lambda stage, kind: {"data/generated/inversion": "modified"})
    with pytest.raises(UserError, match=r"not what dvc\.lock records of stage generate@inversion"):
        export(Path("data/generated/inversion"), here / "out", Options("huggingface"))
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "unknown"),
        ({"README.md": "# no card"}, "unknown"),
        ({"README.md": "---\nlicense: mit\n---\n"}, "mit"),
        ({"README.md": "---\nlicense: [apache-2.0]\n---\n", "LICENSE": "MIT License"}, "apache-2.0"),
        ({"README.md": "---\nlicense: [mit, apache-2.0]\n---\n"}, "unknown"),
        ({"README.md": "---\ntags: [a]\n---\n", "LICENSE": "The MIT  License (MIT)"}, "mit"),
        ({"LICENSE.txt": "Creative Commons Attribution-NonCommercial 4.0 International"}, "cc-by-nc-4.0"),
        ({"COPYING": "something else"}, "unknown"),
    ],
)
def test_licences_are_read_from_cards_then_from_licence_files(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert origin_of(tmp_path).license == expected


def test_a_broken_card_is_one_line(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(UserError, match=r"README\.md: the YAML at its top is broken"):
        origin_of(tmp_path)


def test_licences_of_what_ships_are_known():
    for path in ("models/fashion-ldm", "models/satellite-ldm", "models/cells-ldm"):
        assert origin_of(tiny.ROOT / path).is_known, path
    known = {
        name: origin_of(tiny.ROOT / "data/bundled" / name).license
        for name in ("fashion-mnist", "satellite", "cells")
    }
    assert known == {"fashion-mnist": "mit", "satellite": "mit", "cells": "cc-by-4.0"}


def test_a_pin_that_cannot_be_fetched_leaves_the_licence_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    origin = origin_of(tiny.ROOT / "models/stable-diffusion-v1-4.yaml")
    assert origin.repo_id == "CompVis/stable-diffusion-v1-4" and origin.license == "unknown"


def test_licences_together():
    mit, by, none = Origin("a", "mit"), Origin("b", "cc-by-4.0"), Origin("c", "unknown")
    assert common_license([mit, mit]) == "mit" and common_license([mit, by]) == "other"
    assert common_license([mit, none]) == common_license([]) == "unknown"
    assert licence_fields("mit", [by]) == {"license": "mit"}
    assert RESTRICTIONS not in licence_section(None, {"generator": mit})
    assert RESTRICTIONS in licence_section("mit", {"generator": Origin("g", "openrail++")})


def save_classifiers(folder, seeds=(0, 1)):
    """Untrained networks for 16x16 colour images of three classes."""
    folder.mkdir(parents=True)
    mean, std = pixel_statistics(torch.from_numpy(tiny.random_images(4)).permute(0, 3, 1, 2))
    build = {"architecture": "convnet3", "num_channels": 3, "num_classes": 3, "image_size": 16}
    for i, seed in enumerate(seeds):
        network = create_classifier(**build, mean=mean, std=std)
        stored = StoredClassifier("cnn", Fitted(dict(network.state_dict()), build, [(1, 0.5)]), seed, 12)
        save_classifier(stored, folder / f"part-{i:05d}.safetensors")


def code_of(folder):
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    return code


def run_in(folder, code, monkeypatch):
    """What the variables of a card's example are afterwards."""
    found = {}
    monkeypatch.chdir(folder)
    exec(code, found)
    return found


def test_a_classifier_s_card_has_classes_accuracy_and_code_that_runs(here, monkeypatch):
    save_image_set(images(), here / "data/real/train")
    save_classifiers(here / "data/classifiers/mixed")
    arm = {"images": "data/generated/inversion", "real": True, "learner": "cnn"}
    params = {"params.yaml": {"arms.mixed": arm, "train.cnn": {"lr": 0.1}}}
    write_lock(
        **{"train@mixed": {"outs": [{"path": "data/classifiers/mixed", "md5": "m"}], "params": params}}
    )
    (here / "metrics").mkdir()
    rows = [
        f"{a},{seed},{split},{x}.0,50.0,7.5"
        for a, x in (("mixed", 60), ("real", 90))
        for split, seed, x in (("val", 0, 1), ("test", 0, x), ("test", 1, x + 2))
    ]
    head = "arm,seed,split,top1_accuracy,balanced_accuracy,expected_calibration_error"
    (here / "metrics/accuracy.csv").write_text("\n".join([head, *rows]) + "\n")
    assert (
        export(Path("data/classifiers/mixed"), here / "out", Options()) == f"2 classifiers in {here / 'out'}"
    )
    metadata, text = card(here / "out")
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.61 and result["dataset"]["type"] == "image_folder"
    assert "mean of 2 seeds: 61.00 % ± 1.41" in text and "| 1 | test | 62.0 |" in text and "92.0" not in text
    assert "| 1 | dog |" in text and "`squash`" in text and "divides by 255, subtracts [0." in text
    found = run_in(here / "out", code_of(here / "out"), monkeypatch)
    assert found["probabilities"].shape == (1, 3) and abs(found["probabilities"].sum() - 1) < 1e-5


def test_accuracy_of_other_classifiers_is_refused(here, monkeypatch):
    save_image_set(images(), here / "data/real/train")
    save_classifiers(here / "data/classifiers/mixed", seeds=(0, 5))
    write_lock(**{"train@mixed": {"outs": [{"path": "data/classifiers/mixed", "md5": "m"}]}})
    (here / "metrics").mkdir()
    (here / "metrics/accuracy.csv").write_text("arm,seed,split\nmixed,0,test\nmixed,1,test\n")
    with pytest.raises(UserError, match="has other seeds of arm mixed"):
        export(Path("data/classifiers/mixed"), here / "out", Options())
    monkeypatch.setattr(
        "dinv.publish.classifiers.changes", lambda stage, kind: {"data/classifiers": "modified"}
    )
    with pytest.raises(UserError, match="not of the classifiers that are there; run dvc repro evaluate"):
        export(Path("data/classifiers/mixed"), here / "out", Options())
    assert not (here / "out").exists()


def save_embeddings(folder):
    folder.mkdir(parents=True)
    c, labels = torch.randn(3, 2, 8), torch.tensor([0, 1, 1])
    curves = [torch.tensor([1]), torch.zeros(1, 3), torch.tensor([1]), torch.zeros(1, 3)]
    bank = EmbeddingBank(c, labels, ["a", "b", "c"], *curves)
    save_bank(bank, folder / "part-00000.safetensors")
    save_statistics(bank_statistics([bank], 2), folder)
    return bank


def test_embeddings_load_as_their_card_says_and_as_before(here, monkeypatch):
    from dinv.inversion.bank import load_bank

    bank = save_embeddings(here / "learned")
    assert export(here / "learned", here / "out", Options()).startswith("3 embeddings in")
    _, text = card(here / "out")
    assert (
        "3 embeddings of 2 tokens of width 8, of 2 classes" in text and "close to a copy of its image" in text
    )
    found = run_in(here / "out", code_of(here / "out"), monkeypatch)
    assert torch.equal(found["prompt_embeds"], bank.prompt_embeds) and found["ids"] == bank.ids
    assert load_bank(here / "out").ids == bank.ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["set", "out", "--public"], "--public: has no effect without --push"),
        (["set", "out", "--format", "folder", "--license", "mit"], "--license: needs --format huggingface"),
        (["set", "out", "--format", "folder", "--push", "a/b"], "--push: needs --format huggingface"),
        (["learned", "out", "--format", "folder"], "--format folder: is for image sets; learned is none"),
        (["set", "set", "--format", "huggingface"], "set: exists already"),
        (["other", "out"], "other: neither images, nor embeddings, nor classifiers"),
        (["set", "out", "--push", "a/b"], "--push a/b: no token of the Hugging Face hub; run hf auth login"),
        (["set", "out", "--push", "cells"], "--push cells: write OWNER/NAME"),
        (["set", "out", "--push", "a/b/c"], "--push a/b/c: "),
        (["absent", "out", "--format", "huggingface"], "absent: no image set there"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(here, monkeypatch, arguments, message):
    from safetensors.torch import save_file

    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    save_image_set(images(), here / "set")
    save_embeddings(here / "learned")
    (here / "other").mkdir()
    save_file({"x": torch.zeros(1)}, here / "other/part-00000.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    assert str(stop.value.code).startswith(f"dinv export: {message}") and "\n" not in str(stop.value.code)
    assert not (here / "out").exists()


def test_a_damaged_part_leaves_nothing(here):
    save_image_set(images(), here / "set")
    path = here / "set/part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="truncated, damaged or not an image set"):
        export(here / "set", here / "out", Options("huggingface"))
    assert [p.name for p in here.iterdir()] == ["set"]


PUSH = """
import sys
from dinv.cli import main
for name in sys.argv[1:]:
    main(["export", "set", f"{name.replace('/', '_')}_out", "--push", *name.split()])
"""


def push(here, server, *commands, **env):
    env = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(here / "home"),
        "PYTHONPATH": str(tiny.ROOT),
        "PATH": "/bin",
    } | env
    return subprocess.run(
        [sys.executable, "-c", PUSH, *commands],
        cwd=here,
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )


def test_push_makes_a_private_repository_and_uploads_all(here):
    save_image_set(images(), here / "set")
    with hub_server() as server:
        server.private["datasets/team/open"] = False
        done = push(here, server, "team/cells", "team/shown --public", "team/open", HF_TOKEN=TOKEN)
        assert done.stdout.startswith("5 images in team_cells_out\n"), done.stderr
        assert f"{server.url}/datasets/team/cells" in done.stdout
        assert server.private == {
            "datasets/team/cells": True,
            "datasets/team/shown": False,
            "datasets/team/open": False,
        }
        folder = here / "team_cells_out"
        written = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        assert server.files["datasets/team/cells"] == written and "README.md" in written
        assert server.tokens == {f"Bearer {TOKEN}"}
        # The third is public already, which nobody asked for.
        assert "datasets/team/open" not in server.files
        assert done.returncode == 1 and "--push team/open: exists and is public; add --public" in done.stderr


def test_a_hub_that_is_away_leaves_the_folder_and_says_how_to_go_on(here):
    save_image_set(images(), here / "set")
    with hub_server() as server:
        done = push(here, server, "team/cells", HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("dinv export: --push team/cells: Cannot reach"), last
    assert "to try again: hf upload team/cells team_cells_out --repo-type dataset" in last
    assert (here / "team_cells_out/README.md").exists()


@pytest.mark.slow
def test_the_page_s_commands_work_on_what_the_pipeline_made(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    page = (tiny.ROOT / "docs/exporting.md").read_text()
    images, models, to_hub = re.findall("```bash\n(.*?)```", page, re.S)
    code, on_demand = re.findall("```python\n(.*?)```", page, re.S)
    with hub_server() as server:
        env = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        project.run("bash", "-e", "-c", images + models)
        project.run("bash", "-e", "-c", to_hub, HF_HUB_OFFLINE="0", **env)
        assert server.private == {"datasets/my-team/cells": True}
        assert b"license: cc-by-4.0" in server.files["datasets/my-team/cells"]["README.md"]
    check = """
assert len(images) == 60 and {"source_id", "partner_id", "noise_std", "seed"} <= set(images.column_names)
"""
    project.run("python3", "-c", code + check, HF_HOME=str(tmp_path / "home"))
    check = """
stored = GeneratedImages("inversion").labels
assert len(images) == 30000 and len(stored) == 60 and (images.labels[:60] == stored).all()
assert loader.dataset[59][0].shape == (1, 16, 16)
"""
    project.run("python3", "-c", on_demand + check)
    metadata, text = card(project.root / "my_dataset")
    assert metadata["license"] == "unknown" and "num_images_per_embedding: 2" in text
    metadata, text = card(project.root / "my_classifier")
    assert metadata["model-index"] and "| seed | split |" in text and "resize" in text
    # What is not what ran is not handed out.
    (project.root / "data/generated/inversion/part-00000.parquet").unlink()
    shutil.copy(
        project.root / "data/real/train/part-00000.parquet", project.root / "data/generated/inversion"
    )
    done = project.run("dinv", "export", "data/generated/inversion", "x", "--format", "huggingface", ok=False)
    assert done.returncode == 1 and "not what dvc.lock records of stage generate@inversion" in done.stderr
    (project.root / "data/classifiers/real/part-00000.safetensors").unlink()
    done = project.run("dinv", "export", "data/classifiers/mixed", "x", ok=False)
    assert done.returncode == 1 and "run dvc repro evaluate" in done.stderr
