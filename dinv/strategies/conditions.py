"""Conditions per class: prompts with the class's name, or embeddings that were learned for each class."""

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field

from dinv.diffusion.text import TextEncoder, load_text_encoder, prompt_for
from dinv.errors import UserError
from dinv.inversion.bank import load_bank
from dinv.section import Seed
from dinv.strategies.base import Material, StrategyParams

LEARNED = "data/learned"
GuidanceScale = Annotated[float, Field(ge=1, allow_inf_nan=False)]
NumSteps = Annotated[int, Field(ge=1, le=1000)]


class SamplerParams(StrategyParams):
    """How a strategy samples: diffusers' guidance scale s, scheduler and its number of steps."""

    guidance_scale: GuidanceScale
    scheduler: Literal["pndm", "ddim", "dpmsolver++"]
    num_inference_steps: NumSteps
    seed: Seed


class ClassConditions(Protocol):
    """What stands for each class."""

    def of(self, labels: Sequence[int]) -> torch.Tensor:
        """prompt_embeds float32 [B, K, D]."""
        ...

    def unconditional(self) -> torch.Tensor:
        """What guidance leads away from, float32 [K, D]."""
        ...

    def text(self, label: int) -> str:
        """How the table of images names the condition."""
        ...


class PromptConditions:
    """A prompt per class; guidance leads away from the empty prompt."""

    def __init__(self, encoder: TextEncoder, template: str, class_names: Sequence[str]):
        self.encoder, self.prompts = encoder, [prompt_for(template, name) for name in class_names]

    def of(self, labels: Sequence[int]) -> torch.Tensor:
        """The prompts' embeddings, float32 [B, L, D]."""
        return self.encoder.embeds([self.prompts[k] for k in labels])

    def unconditional(self) -> torch.Tensor:
        """The empty prompt's embedding, float32 [L, D]."""
        return self.encoder.embeds([""])[0]

    def text(self, label: int) -> str:
        """The prompt."""
        return self.prompts[label]


class LearnedConditions:
    """An embedding per class that method `class_embeddings` or `class_lora` of stage `invert` learned.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, material: Material):
        bank, names = load_bank(material.folder), material.real.class_names
        missing = set(range(len(names))) - set(bank.labels.tolist())
        if len(bank.ids) != len(set(bank.labels.tolist())):
            raise UserError(
                f"{material.folder}: an embedding per image; this strategy wants one per class, learned by "
                "method class_embeddings or class_lora, or a prompt"
            )
        self._row_of = {int(label): row for row, label in enumerate(bank.labels)}
        self._missing, self._names, self.embeds = missing, names, bank.prompt_embeds.float()
        self._empty = material.open_model

    def of(self, labels: Sequence[int]) -> torch.Tensor:
        """The learned embeddings, float32 [B, K, D]."""
        absent = [k for k in labels if k in self._missing]
        if absent:
            raise UserError(f"class {self._names[absent[0]]!r} has no training image, so no embedding")
        return self.embeds[[self._row_of[k] for k in labels]]

    def unconditional(self) -> torch.Tensor:
        """The first K tokens of the empty prompt's embedding, float32 [K, D]."""
        return self._empty().empty_prompt_embeds(self.embeds.shape[1]).cpu().float()

    def text(self, label: int) -> str:
        """The class's learned token, in the way textual inversion writes it."""
        return f"<{self._names[label]}>"


def class_conditions(template: str | None, material: Material, user: str) -> ClassConditions:
    """Prompts of a template, or with None what was learned for each class.

    Raises:
        UserError: the model has no text encoder, or `input` holds no embedding per class.
    """
    if template is None:
        return LearnedConditions(material)
    if material.folder.as_posix().startswith(LEARNED):
        raise UserError(
            f"{user}: prompt = {template!r} leaves what input = {material.folder.as_posix()!r} holds without "
            "effect; set prompt to null, or input to data/real/train"
        )
    encoder = load_text_encoder(material.open_model(), user)
    return PromptConditions(encoder, template, material.real.class_names)
