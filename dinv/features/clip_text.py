"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020): texts in the space of its image features."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dinv.errors import UserError
from dinv.files import digest_of, file_digest
from dinv.hub import DAMAGED, load_whole

CLIP_FILES = ("*.json", "*.safetensors", "*.txt")
_BATCH = 100  # texts encoded together; not a setting


def clip_digest(location: Path) -> str:
    """SHA-256 over names and bytes of all files that say what a CLIP does, the tokenizer's too."""
    files = sorted(path for pattern in CLIP_FILES for path in location.glob(pattern))
    return digest_of({path.name: file_digest(path) for path in files})


class ClipText:
    """Texts -> features of length 1, by the frozen encoder in float32.

    Attributes:
        scale: exp(logit_scale), by which CLIP multiplies cosines.
        max_length: tokens of a text, with those of start and end.
        width: of the vectors that stand for tokens.

    Raises:
        UserError: the folder is no CLIP model with both encoders and a tokenizer.
    """

    def __init__(self, location: Path, device: torch.device):
        self._tokenizer, self._model = _load(location)
        self._model.to(device)
        self._text = self._model.text_model
        self.device = device
        self.scale = float(self._model.logit_scale.exp())
        self.max_length = int(self._text.config.max_position_embeddings)
        self.width = int(self._text.config.hidden_size)

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [B, D], on the CPU; raises UserError for a text that is too long."""
        ids = [self.framed(self.tokens(text), text) for text in texts]
        batches = [self.padded(ids[i : i + _BATCH]) for i in range(0, len(ids), _BATCH)]
        return torch.cat([self.encode(batch).cpu() for batch in batches])

    def tokens(self, text: str) -> list[int]:
        """Ids of a text's tokens, without start and end."""
        found: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return found

    def framed(self, tokens: Sequence[int], text: str) -> list[int]:
        """Between start and end; raises UserError, which shows `text`, where this CLIP reads fewer tokens."""
        if len(tokens) + 2 > self.max_length:
            raise UserError(
                f"{text!r}: {len(tokens) + 2} tokens with start and end, and this CLIP reads "
                f"{self.max_length}; use shorter class names, templates or contexts"
            )
        return [self._tokenizer.bos_token_id, *tokens, self._tokenizer.eos_token_id]

    def padded(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """int64 [B, L], filled up with the end token: no token sees those after it."""
        longest = max(map(len, ids))
        end = self._tokenizer.eos_token_id
        return torch.tensor([[*row, *[end] * (longest - len(row))] for row in ids], device=self.device)

    def encode(self, ids: torch.Tensor, vectors: torch.Tensor | None = None) -> torch.Tensor:
        """Features float32 [B, D] of token ids [B, L].

        Args:
            ids: with start and end.
            vectors: float32 [B, L, width] that take the place of tokens' vectors where they are not NaN;
                gradients flow to them.
        """
        embedding = self._text.embeddings.token_embedding

        def replaced(module: Any, inputs: Any, known: torch.Tensor) -> torch.Tensor:
            return known if vectors is None else torch.where(vectors.isnan(), known, vectors)

        hook = embedding.register_forward_hook(replaced)
        try:
            pooled = self._text(input_ids=ids).pooler_output
        finally:
            hook.remove()
        return F.normalize(self._model.text_projection(pooled), dim=1)

    @torch.no_grad()
    def vectors_of(self, ids: torch.Tensor) -> torch.Tensor:
        """The vectors float32 [..., width] of token ids."""
        found: torch.Tensor = self._text.embeddings.token_embedding(ids.to(self.device))
        return found


def _load(location: Path) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer  # noqa: PLC0415 - takes seconds

    try:
        if "text_config" not in json.loads((location / "config.json").read_text()):
            raise ValueError("config.json has no text_config")
        tokenizer = CLIPTokenizer.from_pretrained(location, local_files_only=True)
        model = load_whole(CLIPModel, location, dtype=torch.float32)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{location}: not a CLIP model with both encoders ({reason})") from error
    return tokenizer, model.requires_grad_(False)
