"""CLIP as a zero-shot classifier (Radford et al. 2021, arXiv 2103.00020): images against prompts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from dinv.errors import UserError

CLIP_FILES = ("*.json", "*.safetensors", "*.txt")


class ZeroShot:
    """A prompt per class. Raises UserError when the folder is no CLIP model with both encoders."""

    def __init__(self, location: Path, prompts: Sequence[str], device: torch.device):
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer  # noqa: PLC0415 - seconds

        try:
            self._processor = CLIPImageProcessor.from_pretrained(location, local_files_only=True)
            tokenizer = CLIPTokenizer.from_pretrained(location, local_files_only=True)
            model = CLIPModel.from_pretrained(location, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{location}: not a CLIP model with both encoders ({reason})") from error
        self._model = model.eval()
        torch.nn.Module.to(self._model, device)
        tokens = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(device)
        with torch.no_grad():
            texts = self._model.text_projection(self._model.text_model(**tokens).pooler_output)
        self._texts = texts / texts.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """softmax over classes of exp(scale) cos(image, prompt): uint8 [B, H, W, C] -> float32 [B, M]."""
        rgb = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        pixels = self._processor(images=list(rgb), return_tensors="pt")["pixel_values"]
        seen = self._model.vision_model(pixel_values=pixels.to(self._texts.device)).pooler_output
        features = self._model.visual_projection(seen)
        features = features / features.norm(dim=1, keepdim=True)
        return (self._model.logit_scale.exp() * features @ self._texts.T).softmax(1).cpu()
