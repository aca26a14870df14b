"""Captions as the networks read them: a small CLIP tokenizer, ids, and the text encoder's states."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from dinv.errors import UserError

MAX_LENGTH = 16  # tokens of a prompt, with start and end
VOCABULARY = 2000  # at most


def train_tokenizer(texts: Sequence[str], folder: Path) -> Any:
    """Byte-level BPE of these texts, written as Stable Diffusion's tokenizer/ is.

    The vocabulary is that of CLIP in small: every byte, every byte that ends a word, what the merges
    make, start and end; so any text can be read.
    """
    plain = CLIPTokenizer()
    learned = plain.train_new_from_iterator(texts, VOCABULARY - 256)
    model = json.loads(learned.backend_tokenizer.to_str())["model"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    characters = sorted(_byte_characters())
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    files = folder / "vocab.json", folder / "merges.txt"
    files[0].write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n")
    files[1].write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    tokenizer = CLIPTokenizer(*map(str, files), model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel  # noqa: PLC0415 - comes with transformers

    return ByteLevel.alphabet()


def ids_of(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Token ids int64 [N, L], padded and cut to the model's length as Stable Diffusion does."""
    return tokenizer(
        list(texts), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


class Captions:
    """All captions in one list, and a draw of one for an image of a kind."""

    def __init__(self, by_kind: list[list[str]]) -> None:
        self.texts = [text for texts in by_kind for text in texts]
        self.count = torch.tensor([len(texts) for texts in by_kind])
        self.first = self.count.cumsum(0) - self.count

    def draw(self, kinds: torch.Tensor) -> torch.Tensor:
        """Place in `texts` of a caption drawn for each image, int64 [B]."""
        return self.first[kinds] + (torch.rand(len(kinds)) * self.count[kinds]).long()


class TextEncoder:
    """The frozen tokenizer and text encoder of a model folder."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "text_encoder").is_dir():
            raise UserError(
                f"{folder / 'text_encoder'}: no such folder; run python -m models.pretraining.clip first"
            )
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self.network: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder", local_files_only=True, dtype=torch.float32
        ).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """The states that condition a UNet, float32 [N, L, D]: what dinv and Stable Diffusion use."""
        parts = ids_of(self.tokenizer, texts).split(500)
        return torch.cat([self.network(ids).last_hidden_state for ids in parts])
