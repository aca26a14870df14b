"""Sentences with a word in them, from a language model that was trained for that (keytotext's T5)."""

from pathlib import Path

import torch

from dinv.errors import UserError
from dinv.hub import DAMAGED, load_whole
from dinv.rng import derive_seed

MAX_TOKENS = 32
SENTENCE_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class SentenceModel:
    """A text-to-text transformer. Raises UserError when the folder holds none."""

    def __init__(self, location: Path):
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer  # noqa: PLC0415 - takes seconds

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=True)
            self._model = load_whole(AutoModelForSeq2SeqLM, location, dtype=torch.float32)
        except DAMAGED as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{location}: not a text-to-text model ({reason})") from error

    @torch.no_grad()
    def sentences(self, word: str, num_samples: int, seed: int) -> list[str]:
        """Sampled sentences without repetitions, in the order they came; decided by word and seed."""
        tokens = self._tokenizer(word, return_tensors="pt")
        with torch.random.fork_rng(devices=[]):  # transformers draws from the global generator
            torch.manual_seed(derive_seed(seed, "sentences", word))
            found = self._model.generate(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                do_sample=True,
                num_return_sequences=num_samples,
                max_new_tokens=MAX_TOKENS,
            )
        texts = (text.strip() for text in self._tokenizer.batch_decode(found, skip_special_tokens=True))
        return [text for text in dict.fromkeys(texts) if text]
