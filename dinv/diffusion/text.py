"""Prompts as conditions: prompt_embeds of a model's own tokenizer and text encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model
from dinv.errors import UserError
from dinv.hub import DAMAGED, load_whole


class TextEncoder:
    """Prompts -> the text encoder's last hidden state, as Stable Diffusion 1.x and 2.x take it.

    On the CPU in float32, each prompt alone: its embedding depends neither on the device nor on others.
    """

    def __init__(self, tokenizer: Any, encoder: Any):
        self.tokenizer, self.encoder = tokenizer, encoder
        self._known: dict[str, torch.Tensor] = {}

    def embeds(self, prompts: Sequence[str]) -> torch.Tensor:
        """float32 [B, L, D]; L is the tokenizer's length, a longer prompt is cut off there."""
        return torch.stack([self._embed(prompt) for prompt in prompts])

    @torch.no_grad()
    def _embed(self, prompt: str) -> torch.Tensor:
        if prompt not in self._known:
            length = self.tokenizer.model_max_length
            options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            ids = self.tokenizer(prompt, max_length=length, **options).input_ids
            self._known[prompt] = self.encoder(ids).last_hidden_state[0]
        return self._known[prompt]


def load_text_encoder(model: LatentDiffusion, user: str) -> TextEncoder:
    """The text encoder of a loaded model's folder.

    Args:
        model: the frozen model.
        user: what needs prompts, for the message.

    Raises:
        UserError: the model has none, or it is damaged.
    """
    folder = fetch_model(model.params, local_files_only=True)
    if not (folder / "text_encoder").is_dir():
        raise UserError(
            f"{user}: needs prompts, and model.path = {model.params.path!r} has no text encoder; use a "
            "text-conditional model, or what invert learned as `input`, where the strategy takes that"
        )
    return _load(folder)


def _load(folder: Path) -> TextEncoder:
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: PLC0415 - takes seconds

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = load_whole(CLIPTextModel, folder / "text_encoder", dtype=torch.float32)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{folder}: its tokenizer or text encoder cannot be loaded ({reason}); fetch it again"
        ) from error
    return TextEncoder(tokenizer, encoder)


def prompt_for(template: str, class_name: str) -> str:
    """`template` with a class's name in place of {class}; underscores in names are spaces."""
    return template.replace("{class}", class_name.replace("_", " "))
