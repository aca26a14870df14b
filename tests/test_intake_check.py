"""dinv check: a folder with everything wrong at once, and known answers of its parts."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageFilter

from dinv.cli import main
from dinv.intake.autoencoder import autoencoder_findings, loss_of
from dinv.intake.duplicates import near_pairs
from dinv.intake.labels import folds, joint, likely_wrong, out_of_fold, self_confidence
from dinv.intake.pictures import robust_scores
from dinv.intake.survey import contrast, evenness, sharpness
from dinv.preset import write_settings

COLOUR = {
    "dark": (75, 60, 45),
    "light": (185, 170, 155),
    "very dark": (65, 50, 35),
    "very light": (205, 190, 175),
    "rare": (60, 120, 240),
}


def picture(name, seed, side=32):
    """Noise around the colour of the class."""
    noise = np.random.default_rng(seed).integers(-45, 46, (side, side, 3))
    return Image.fromarray((noise + COLOUR[name]).clip(0, 255).astype(np.uint8))


def save(root, split, counts, seed):
    for k, (name, n) in enumerate(counts.items()):
        (root / split / name).mkdir(parents=True)
        for i in range(n):
            picture(name, seed + 100 * k + i).save(root / split / name / f"{i:02d}.png")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A project for images with nothing wrong, and a tiny model."""
    folder = tmp_path_factory.mktemp("clean")
    save(folder / "mine", "train", {"dark": 20, "light": 20}, 0)
    save(folder / "mine", "test", {"dark": 5, "light": 5}, 1000)
    tiny.save_tiny_model(folder / "models/cells-ldm", text=False)
    shutil.copytree(tiny.ROOT / "models/cells-features", folder / "models/cells-features")
    shutil.copytree(tiny.ROOT / "presets", folder / "presets")
    shutil.copy(tiny.ROOT / "params.yaml", folder)
    data = {
        "source": "image_folder",
        "root": "mine",
        "mode": "RGB",
        "resize": "center_crop",
        "resolution": 16,
    }
    settings = {
        "data": {**data, "num_per_class": None, "num_val_per_class": 0},
        "model": {"path": "models/cells-ldm", "resolution": 16},
        "measure": {"features": {"domain": {"network": "convnet", "path": "models/cells-features"}}},
    }
    write_settings([settings], folder / "params.yaml", "test")
    return folder


@pytest.fixture
def folder(clean, tmp_path, monkeypatch):
    copy = tmp_path / "project"
    shutil.copytree(clean, copy)
    monkeypatch.chdir(copy)
    return copy


def spoil(mine):
    """Everything at once; returns what must be found: reason -> files or classes."""
    train = mine / "train"
    (train / "dark/03.png").write_bytes(b"\x89PNG half")
    shutil.copy(train / "dark/04.png", mine / "test/dark/copy.png")
    shutil.copy(train / "light/04.png", train / "light/twice.png")
    near = Image.open(train / "light/05.png").resize((48, 48), Image.Resampling.BICUBIC)
    near.save(mine / "test/light/near.jpg", quality=95)
    Image.open(train / "light/06.png").resize((40, 40)).save(train / "light/larger.png")
    picture("very light", 507).save(train / "dark/wrong.png")
    picture("very dark", 508).save(train / "light/wrong.png")
    Image.open(train / "dark/09.png").filter(ImageFilter.GaussianBlur(4)).save(train / "dark/09.png")
    Image.new("RGB", (32, 32), (60, 50, 40)).save(train / "dark/10.png")
    Image.new("RGB", (32, 32), (200, 30, 90)).save(train / "dark/lossy.webp", quality=30)
    picture("light", 600, side=7).save(train / "light/11.png")
    Image.open(train / "light/12.png").convert("L").convert("RGB").save(train / "light/12.png")
    save(mine, "train", {"rare": 2}, 2000)
    save(mine, "test", {"rare": 1}, 3000)
    return {
        "broken": {"train/dark/03.png"},
        "duplicate_across_splits": {"test/dark/copy.png"},
        "near_duplicate_across_splits": {"test/light/near.jpg"},
        "duplicate": {"train/light/twice.png"},
        "near_duplicate": {"train/light/larger.png"},
        "label": {"train/dark/wrong.png", "train/light/wrong.png"},
        "blurred": {"train/dark/09.png"},
        "single_colour": {"train/dark/10.png", "train/dark/lossy.webp"},
        "small": {"train/light/11.png"},
        "grey": {"train/light/12.png"},
        "few_images": {"rare"},
        "imbalance": {"rare"},
    }


def check(capsys, *arguments):
    main(["check", *arguments])
    return capsys.readouterr().out


def rows():
    with Path("data/check/findings.csv").open() as file:
        return list(csv.DictReader(file))


def found():
    """reason -> files or classes, of the list."""
    reasons = {}
    for row in rows():
        reasons.setdefault(row["reason"], set()).add(row["file"] or row["class"])
    return reasons


def test_everything_wrong_is_found_and_nothing_else(folder, capsys):
    expected = spoil(folder / "mine")
    arguments = ["--loss", "1", "--features", "domain"]  # the tiny UNet is random and tells nothing apart
    out = check(capsys, *arguments)
    assert found() == expected
    assert "     2  label: looks like another class" in out and "held-out images" in out
    for row in rows():
        if row["reason"] == "label":
            assert {row["other"], row["class"]} == {"light", "dark"} and float(row["value"]) > 0.5
        if row["reason"] == "duplicate_across_splits":
            assert row["other"] == "train/dark/04.png" and row["note"] == "train, dark"
        if row["reason"] == "broken":
            assert "mine/train/dark/03.png: broken image" in row["note"]
    sheet = Image.open("data/check/contact_sheet.png")
    assert sheet.width == 986 and sheet.height > 1500
    assert json.loads(Path("data/check/summary.json").read_text())["images"] == 60
    before = Path("data/check/findings.csv").read_text()
    check(capsys, *arguments)
    assert Path("data/check/findings.csv").read_text() == before


def test_clean_pictures_give_no_finding_and_no_sheet(folder, capsys):
    (folder / "data/check").mkdir(parents=True)
    (folder / "data/check/contact_sheet.png").touch()
    out = check(capsys, "--loss", "1", "--doubt", "1", "--strict")
    assert found() == {} and not Path("data/check/contact_sheet.png").exists()
    assert out.startswith("50 images, 0 findings\n") and "pictures:" not in out
    assert "classes are told apart on" in out


def test_without_networks_no_model_is_needed(folder, capsys):
    shutil.rmtree(folder / "models")
    expected = spoil(folder / "mine")
    summary = json.loads(check(capsys, "--quick", "--json", "--output", "there"))
    assert summary["findings"] == {k: len(v) for k, v in expected.items() if k != "label"}
    assert summary["label_accuracy"] is None and Path("there/contact_sheet.png").exists()


@pytest.mark.parametrize(
    ("option", "gone"),
    [
        (["--near-bits", "-1"], {"near_duplicate", "near_duplicate_across_splits"}),
        (["--blur", "1000"], {"blurred"}),
        (["--contrast", "0", "--even", "2"], {"single_colour"}),
        (["--small", "0"], {"small"}),
        (["--grey", "0"], {"grey"}),
        (["--per-class", "2"], {"few_images"}),
        (["--imbalance", "20"], {"imbalance"}),
    ],
)
def test_every_threshold_is_an_option(folder, capsys, option, gone):
    expected = spoil(folder / "mine")
    check(capsys, "--quick", *option)
    assert set(expected) - set(found()) == {"label"} | gone


def test_strict_fails_on_findings(folder, capsys):
    spoil(folder / "mine")
    with pytest.raises(SystemExit) as stop:
        main(["check", "--quick", "--strict"])
    assert stop.value.code == 1 and "list: data/check/findings.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--features", "domian"],
            "--features domian: no such block .*did you mean domain..; there are unet, domain",
        ),
        (["--num-images", "0"], "--num-images 0: must be at least 1"),
    ],
)
def test_errors_are_one_line(folder, arguments, message):
    with pytest.raises(SystemExit, match=f"^dinv check: {message}") as stop:
        main(["check", *arguments])
    assert "\n" not in str(stop.value.code)


def test_confident_learning_known_answer():
    """Two classes, five pictures each. t = (0.8, 0.78). The last of class 0 is sure to be of class 1, and the last of
    class 1 is not sure enough: 0.7 < 0.8.
    """
    p0 = np.array([0.95, 0.95, 0.95, 0.95, 0.2, 0.05, 0.1, 0.1, 0.15, 0.7])
    p, labels = np.stack([p0, 1 - p0], 1), np.repeat([0, 1], 5)
    assert self_confidence(p, labels) == pytest.approx([0.8, 0.78])
    assert joint(p, labels) == pytest.approx(np.array([[0.4, 0.1], [0, 0.5]]))
    assert likely_wrong(p, labels).tolist() == [4]
    assert likely_wrong(p, labels, margin=0.59).tolist() == [4]
    assert likely_wrong(p, labels, margin=0.61).tolist() == []


def test_a_class_that_is_confused_is_not_flagged_beyond_its_rate():
    """Where a classifier only guesses, no picture is more doubtful than its label's mean."""
    p, labels = np.full((10, 2), 0.5), np.repeat([0, 1], 5)
    assert likely_wrong(p, labels).tolist() == []


def test_wrong_labels_are_found_in_noise_and_right_ones_are_not():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 40)
    x = (np.eye(3)[truth] * 6 + rng.normal(size=(120, 3))).astype(np.float32)
    labels = truth.copy()
    labels[[0, 50, 100]] = [1, 2, 0]
    fold = folds(labels, [str(i) for i in range(120)])
    assert np.bincount(fold).tolist() == [24] * 5
    p = out_of_fold(x, labels, fold, 3)
    assert np.allclose(p.sum(1), 1)
    wrong = set(likely_wrong(p, labels).tolist())
    assert wrong <= {0, 50, 100} and len(wrong) >= 2


def test_folds_do_not_move_when_another_class_grows():
    labels, ids = np.repeat([0, 1], 10), [f"a{i}" for i in range(20)]
    before = folds(labels, ids)
    after = folds(np.append(labels, [1, 1]), [*ids, "b", "c"])
    assert (after[:10] == before[:10]).all()


def test_near_pairs_known_answer():
    prints = np.zeros((4, 32), np.uint8)
    prints[1, 0] = 0b111
    prints[2] = 255
    prints[3, 5] = 1
    nothing = np.zeros(4, bool)
    assert set(near_pairs(prints, 3, nothing)) == {(0, 1, 3), (0, 3, 1)}
    assert set(near_pairs(prints, 4, nothing)) == {(0, 1, 3), (0, 3, 1), (1, 3, 4)}
    assert set(near_pairs(prints, 4, np.array([True, False, False, False]))) == {(1, 3, 4)}


def test_near_pairs_in_blocks_are_the_same(monkeypatch):
    prints = np.random.default_rng(0).integers(0, 256, (60, 32), np.uint8)
    prints[50] = prints[7]
    once = list(near_pairs(prints, 110, np.zeros(60, bool)))
    monkeypatch.setattr("dinv.intake.duplicates.CHUNK", 130)
    assert sorted(near_pairs(prints, 110, np.zeros(60, bool))) == sorted(once) and (7, 50, 0) in once


def test_robust_scores_known_answer():
    """Median 3, absolute deviations 2 1 0 1 2: median 1. A class of two is compared with all."""
    found = robust_scores(np.array([1.0, 2, 3, 4, 5, 3, 103]), np.array([0] * 5 + [1] * 2))
    assert found[:5] == pytest.approx(np.array([-2, -1, 0, 1, 2]) / 1.4826)
    assert found[6] > 40


def test_sharpness_and_contrast_known_answers():
    checks = np.indices((16, 16)).sum(0)[None, ..., None] % 2 * 100
    flat_, noise = np.full((1, 16, 16, 1), 7), np.random.default_rng(0).integers(0, 256, (1, 200, 200, 1))
    assert sharpness(checks.astype(np.uint8)) == pytest.approx([64])  # 8 at every pixel: 8 squared
    assert sharpness(flat_.astype(np.uint8)) == [0]
    assert sharpness(noise.astype(np.uint8)) == pytest.approx([20], rel=0.03)
    assert sharpness((checks // 4).astype(np.uint8)) == pytest.approx([64]), "contrast does not count"
    assert contrast(checks.astype(np.uint8)) == [50] and contrast(flat_.astype(np.uint8)) == [0]


def test_evenness_tells_lossy_compression_of_a_colour_from_noise():
    stripes = np.zeros((4, 5, 3), np.uint8)
    stripes[:, 2:] = 9  # 3 of 4 neighbours side by side are equal, all that are one above the other
    assert evenness(Image.fromarray(stripes)) == evenness(Image.fromarray(stripes).transpose(2)) == 0.75
    assert evenness(Image.new("L", (1, 1))) == evenness(Image.new("RGB", (3, 2), (1, 2, 3))) == 1
    noise = np.random.default_rng(0).normal(100, 0.6, (32, 32, 1)).round()  # as a tile of sea has it
    assert evenness(Image.fromarray(noise.repeat(3, 2).astype(np.uint8))) < 0.55
    lossy = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 90)).save(lossy, "WEBP", quality=30)
    picture = Image.open(lossy)
    assert contrast(np.asarray(picture)[None])[0] > 1, "contrast alone does not find it"
    assert evenness(picture) > 0.6


def test_loss_of_the_autoencoder_known_answer():
    """12 right before and wrong after, 2 the other way: McNemar's exact p = 2 (1 + 14 + 91) / 2^14."""
    labels = np.zeros(40, np.int64)
    right, wrong = [0.9, 0.1], [0.2, 0.8]
    before = np.array([right] * 38 + [wrong] * 2)
    after = np.array([wrong] * 12 + [right] * 28)
    loss = loss_of(before, after, labels)
    assert (loss.originals, loss.reconstructions) == (0.95, 0.7)
    assert loss.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    (finding,) = autoencoder_findings(loss, 0.05)
    assert finding.value == 0.25 and finding.note == "95.0% right on originals, 70.0% on reconstructions"
    assert autoencoder_findings(loss, 0.26) == []
    chance = loss_of(before[:3], np.array([right, right, wrong]), labels[:3])
    assert chance.lost > 0.05 and autoencoder_findings(chance, 0.05) == []
    assert loss_of(before, before, labels).p_value == 1


def test_an_autoencoder_that_loses_brightness_is_found(folder, capsys, monkeypatch):
    """One that makes all pictures black: the classes can only be guessed."""
    monkeypatch.setattr(
        "dinv.diffusion.latent_diffusion.LatentDiffusion.decode",
        lambda self, latents: torch.zeros(len(latents), 16, 16, 3, dtype=torch.uint8),
    )
    out = check(capsys, "--features", "domain")
    assert found() == {"autoencoder": {""}}
    assert "1  autoencoder: the model's autoencoder loses what tells classes apart" in out
