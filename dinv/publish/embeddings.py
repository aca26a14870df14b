"""Learned embeddings as a folder with a model card."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from dinv.diffusion.lora import FILE as ADAPTER
from dinv.files import part_paths
from dinv.inversion.bank import SUFFIX, BankReader, load_statistics
from dinv.publish import cards
from dinv.publish.image_sets import origins_of, settings_section
from dinv.publish.origin import Origin
from dinv.publish.record import Record, record_of

LOAD = """\
import json
from safetensors import safe_open

with safe_open("part-00000.safetensors", "pt") as file:
    prompt_embeds = file.get_tensor("prompt_embeds").float()  # [N, {tokens}, {width}]
    labels, ids = file.get_tensor("labels"), json.loads(file.metadata()["ids"])
"""
STATISTICS = """\
`statistics.safetensors` has their mean, their standard deviation and the mean of each class. With dinv, put
the folder at `data/learned/NAME`, and stage `generate` reads it."""
WITH_ADAPTER = f"""\
They were learned together with `{ADAPTER}`, a LoRA of the generator's UNet, and mean little
without it: `pipeline.load_lora_weights(folder)`."""
CAUTION = """\
## Before you share it

An embedding is close to a copy of its image: sampled without noise, the generator draws the image again, as
well as it can. Whoever must not see the images must not have the embeddings."""


@dataclass(frozen=True)
class EmbeddingsExport:
    """What is written about a bank of embeddings.

    Attributes:
        source: data/learned/<block>.
        bank: labels, ids and shape.
        record: how they were learned, if dvc.lock says so.
        stated: the licence that the user states, None: none.
    """

    source: Path
    bank: BankReader
    record: Record | None
    stated: str | None

    @classmethod
    def of(cls, source: Path, stated: str | None) -> "EmbeddingsExport":
        """Raises UserError where files are missing or damaged, or not what dvc.lock records."""
        load_statistics(source)
        return cls(source, BankReader(source), record_of(source), stated)

    def write(self, target: Path) -> int:
        """Write parts, statistics, adapter, licence texts and the card; returns the number of embeddings."""
        beside = [self.source / "statistics.safetensors", *self.source.glob(ADAPTER)]
        for path in [*part_paths(self.source, SUFFIX, "embeddings"), *beside]:
            shutil.copyfile(path, target / path.name)
        origins = origins_of(self.record)
        cards.copy_notices(origins, target)
        cards.write_card(self._metadata(origins), self._sections(origins), target)
        return len(self.bank.ids)

    def _metadata(self, origins: Mapping[str, Origin]) -> ModelCardData:
        generator = origins.get("generator")
        return ModelCardData(
            **cards.licence_fields(self.stated, list(origins.values())),
            library_name="dinv",
            base_model=None if generator is None else generator.repo_id,
            tags=["diffusion", "diffusion-inversion", "textual-inversion", "dinv"],
        )

    def _sections(self, origins: Mapping[str, Origin]) -> list[str]:
        tokens, width = self.bank.shape
        classes = len(set(self.bank.labels.tolist()))
        load = f"```python\n{LOAD.format(tokens=tokens, width=width)}```"
        about = (
            f"{len(self.bank.ids)} embeddings of {tokens} tokens of width {width}, of {classes} classes, "
            f"learned by dinv ({cards.PAPER}) for the generator named below. Each conditions it to draw one "
            "image, or one class."
        )
        how = "A diffusers pipeline of the same generator takes rows as `prompt_embeds`."
        return [
            f"# {self.source.name}",
            about,
            f"## Load\n\n{how}\n\n{load}",
            *([WITH_ADAPTER] if (self.source / ADAPTER).is_file() else []),
            STATISTICS,
            settings_section(self.record),
            CAUTION,
            cards.licence_section(self.stated, origins),
        ]
