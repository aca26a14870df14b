"""The models that ship with dinv, and which of them fits some images.

A preset whose `model.path` is a folder describes one. Which fits is measured: images go through each
autoencoder and back. One that was trained on such images loses little, about 32 dB are left, of photos 25;
of others' images it leaves 10 to 23 dB.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import load_model
from dinv.diffusion.params import ModelParams
from dinv.images.resize import convert_batch
from dinv.params import read_yaml
from dinv.preset import PRESETS, merged

BASE = "fashion"  # the preset that names every setting in which models differ
MAX_SIDE = 256  # pixels, of images for Stable Diffusion; the paper's too
SMALL_SIDE = 32
# Between 23 dB, the best of a foreign domain, and 32 dB, the worst of a model's own, as measured by
# benchmarks/intake_limits.py: metrics/benchmarks/autoencoders.md.
KNOWN_DB = 27.0
OWN_DB = 2.0  # or as much below what a model leaves of photos it knows, which have more detail
LEAD_DB = 1.5  # by which a model of many domains must be ahead of one that knows only one


@dataclass(frozen=True)
class Shipped:
    """A model of models/: its folder, L or RGB, and the settings that go with it."""

    path: str
    mode: str
    settings: dict[str, Any]

    @property
    def of_many_domains(self) -> bool:
        """Whether text tells it what to make."""
        return (Path(self.path) / "text_encoder").is_dir()

    @property
    def known_db(self) -> float:
        """PSNR from which it knows such pictures; lower where its own, as measured, come back worse."""
        file = Path(self.path) / "measured.json"
        figures = json.loads(file.read_text()) if file.is_file() else {}
        domains = [f for f in figures.values() if isinstance(f, dict)] or [figures]
        levels = [f["autoencoder_psnr"] for f in domains if "autoencoder_psnr" in f]
        return min([KNOWN_DB, *(level - OWN_DB for level in levels)])


def best_of(models: Sequence[Shipped], levels: Mapping[str, float]) -> Shipped:
    """The one whose autoencoder leaves most; one of many domains must be ahead by LEAD_DB."""
    return max(models, key=lambda model: levels[model.path] - LEAD_DB * model.of_many_domains)


def shipped_models() -> list[Shipped]:
    """All that are on this machine; of several presets with the same model the first."""
    found: dict[str, Shipped] = {}
    base = _settings(BASE)
    for path in sorted(PRESETS.glob("*.yaml")):
        preset = read_yaml(path)
        model = preset.get("model", {}).get("path", "")
        if (Path(model) / "unet").is_dir() and "mode" in preset.get("data", {}):
            own = {"resolution": native_resolution(Path(model)), "dtype": "float32"}
            settings = merged(base, _settings(path.stem), {"model": own})
            found.setdefault(model, Shipped(model, preset["data"]["mode"], settings))
    return list(found.values())


def settings_of_other(path: str, resolution: int, architecture: str) -> dict[str, Any]:
    """Settings that go with a Stable Diffusion at `path`: those of the preset sd14-fast.

    Args:
        resolution: of the images that classifiers see; small networks were chosen for 32 pixels.
        architecture: that of the classifier now.
    """
    native = native_resolution(Path(path)) or MAX_SIDE
    settings = merged(_settings("sd14-fast"), {"model": {"path": path, "resolution": min(native, MAX_SIDE)}})
    if resolution > SMALL_SIDE and architecture.startswith("convnet"):
        settings["train"] = {"cnn": {"architecture": "resnet18"}}
    return settings


def _settings(name: str) -> dict[str, Any]:
    """A preset without its data."""
    preset = read_yaml(PRESETS / f"{name}.yaml")
    return {section: values for section, values in preset.items() if section != "data"}


def native_resolution(folder: Path) -> int | None:
    """Side in pixels of the images that a model was trained on; None if its files do not say."""
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fidelity(model: Shipped, images: NDArray[np.uint8]) -> float:
    """What a model's autoencoder leaves of images [N, H, H, C]: PSNR in dB, higher is better."""
    params = ModelParams(path=model.path, **_of_model(model.settings))
    loaded = load_model(Path(model.path), params, torch.device("cpu"))
    channels = 1 if model.mode == "L" else 3
    return psnr(loaded, convert_batch(images, params.resolution, channels))


def psnr(model: LatentDiffusion, images: NDArray[np.uint8]) -> float:
    """10 log10(255^2 / mean squared error) of images against themselves through the autoencoder."""
    back = model.decode(model.encode(torch.from_numpy(images)).mean).numpy()
    error = np.square(images.astype(np.float64) - back).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _of_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings["model"][key] for key in ("dtype", "resolution")}
