"""Prompts for every class, to be looked at and edited: "language enhancement" of LECF.

He et al. 2023 (arXiv 2210.07574) let a T5 write sentences around a class's name. Without a language model, a
bank of templates takes its place.
"""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch

from dinv.diffusion.sentences import SENTENCE_FILES, SentenceModel
from dinv.diffusion.text import prompt_for
from dinv.errors import UserError
from dinv.features.params import WatchedPath
from dinv.features.watched import FrozenNetwork
from dinv.files import write_json
from dinv.images.image_set import ImageSetReader
from dinv.inversion.base import Loss, MethodParams, Place
from dinv.rng import generator
from dinv.section import PositiveInt, Seed

FILE = "prompts.json"
_VIEWS = ("", "a close-up: ", "a cropped picture: ", "bright: ", "dark: ", "blurry: ", "from above: ")
_KINDS = ("a {class}", "one {class}", "the {class}", "a small {class}", "a large {class}", "an old {class}")
_PLACES = ("", " outdoors", " indoors", " on a plain background", " in its usual place")


class PromptBankParams(MethodParams):
    """`language_model`: a text-to-text model's path, null: templates; `num_samples` sentences are sampled."""

    prefix: str
    num_prompts: PositiveInt
    language_model: WatchedPath | None
    num_samples: PositiveInt
    seed: Seed


class PromptBank:
    """Writes prompts.json: class name -> prompts. The paper: 250 sentences of T5, 200 kept, "a photo of"."""

    Params = PromptBankParams

    @staticmethod
    def learn(params: PromptBankParams, real: ImageSetReader, place: Place, output: Path) -> list[Loss]:
        """No images are looked at, only the classes' names; there is no curve."""
        names = real.class_names
        make: Callable[[str, PromptBankParams], list[str]] = template_prompts
        if params.language_model is not None:
            network = FrozenNetwork.at("language_model", params.language_model, SENTENCE_FILES)
            make = sentence_prompts(SentenceModel(network.place))
        write_json(output / FILE, {name: make(name, params) for name in names})
        return []


def template_prompts(name: str, params: PromptBankParams) -> list[str]:
    """Prompts of a random choice of templates; raises UserError when there are not so many."""
    parts = product(_VIEWS, _KINDS, _PLACES)
    templates = [f"{view}{params.prefix} {kind}{place}" for view, kind, place in parts]
    if params.num_prompts > len(templates):
        raise UserError(
            f"num_prompts = {params.num_prompts}: there are {len(templates)} templates; lower it, or set "
            "language_model"
        )
    g = generator(params.seed, "templates", name)
    order = torch.randperm(len(templates), generator=g)[: params.num_prompts].tolist()
    return [prompt_for(templates[i], name) for i in order]


def sentence_prompts(model: SentenceModel) -> Callable[[str, PromptBankParams], list[str]]:
    """A function like `template_prompts` that asks a language model."""

    def make(name: str, params: PromptBankParams) -> list[str]:
        found = model.sentences(prompt_for("{class}", name), params.num_samples, params.seed)
        if not found:
            raise UserError(f"language_model: no sentence for class {name!r}; raise num_samples")
        return [f"{params.prefix} {text}" for text in found[: params.num_prompts]]

    return make


def read_prompts(folder: Path, class_names: list[str]) -> list[list[str]]:
    """Prompts of every class, in the order of classes; raises UserError for what a hand may have spoilt."""
    path = folder / FILE
    try:
        bank = json.loads(path.read_text())
        prompts = [bank[name] for name in class_names]
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; input must be what method prompt_bank wrote") from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not JSON ({error}); correct it, or run dvc repro invert") from error
    except KeyError as error:
        raise UserError(f"{path}: no prompts for class {error}; add them") from error
    for name, texts in zip(class_names, prompts, strict=True):
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            raise UserError(f"{path}: class {name!r} needs a list of prompts; add one at least")
    return prompts
