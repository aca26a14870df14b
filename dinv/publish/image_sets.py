"""An image set as a folder that `datasets.load_dataset` and the Hugging Face hub read."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData
from tqdm import tqdm

from dinv.errors import UserError
from dinv.files import part_paths
from dinv.images.image_set import ROWS_PER_GROUP
from dinv.images.parquet import SUFFIX, damage_named, open_parquet
from dinv.images.reader import ImageSetReader
from dinv.publish import cards
from dinv.publish.origin import Origin, origin_of
from dinv.publish.record import Record, lock_entries, record_of

SHARD_BYTES = 256 * 2**20  # about; the hub's viewer wants less than 300 MB
SPLITS = {"val": "validation", "test": "test"}  # folder of data/real -> split
SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"))
COLUMNS = {
    "image": "PNG",
    "label": "class",
    "id": "name of the image, distinct",
    "probabilities": "soft label: probability of every class",
    "source_id": "the real image that it was made from",
    "partner_id": "the real image that it was mixed with",
    "variant": "which of the images of one source",
    "interpolation": "alpha, weight of the partner",
    "noise_std": "lambda, standard deviation of the noise on the embedding",
    "noise_unit": "unit of lambda",
    "guidance_scale": "s of classifier-free guidance, 1: off",
    "scheduler": "sampler",
    "num_inference_steps": "its steps",
    "seed": "random seed",
}
LOAD = """\
from datasets import load_dataset

images = load_dataset("FOLDER_OR_OWNER/NAME", split="{split}")
"""
CAUTION = """\
## Before you use it

- Labels are those of the images that these were made from. Nobody has looked at every image.
- An image may be close to its source (`source_id`). Whoever must not see the sources must not see these.
- Measure on real images only."""


@dataclass(frozen=True)
class ImageSetExport:
    """What is written about an image set.

    Attributes:
        source: its folder, an output of the pipeline or any other image set.
        images: its labels, classes and columns.
        record: how it was made, if dvc.lock says so.
        stated: the licence that the user states, None: none.
    """

    source: Path
    images: ImageSetReader
    record: Record | None
    stated: str | None

    @classmethod
    def of(cls, source: Path, stated: str | None) -> "ImageSetExport":
        """Raises UserError where there is no image set, or it is not what dvc.lock records."""
        return cls(source, ImageSetReader(source), record_of(source), stated)

    @property
    def is_real(self) -> bool:
        """Whether these are the labelled images themselves: stage download wrote them."""
        return self.record is not None and self.record.stage == "download"

    @property
    def split(self) -> str:
        """Generated images are for training."""
        return SPLITS.get(self.source.name, "train") if self.is_real else "train"

    @property
    def block(self) -> str:
        """Name of the block of `generate`, or of the folder."""
        return self.source.name

    @property
    def origins(self) -> dict[str, Origin]:
        """What it was made from, as far as dvc.lock says."""
        return origins_of(self.record, real=self.is_real)

    def write(self, target: Path) -> int:
        """Write shards, licence texts and the card; returns the number of images."""
        write_shards(self.source, target / "data", self.split)
        origins = self.origins
        cards.copy_notices(origins, target)
        cards.write_card(self._metadata(origins), self._sections(origins), target)
        return len(self.images)

    def _metadata(self, origins: Mapping[str, Origin]) -> DatasetCardData:
        synthetic = [] if self.is_real else ["synthetic", "diffusion", "diffusion-inversion"]
        n = len(self.images)
        return DatasetCardData(
            **cards.licence_fields(self.stated, list(origins.values())),
            pretty_name=self.block,
            annotations_creators=None if self.is_real else ["machine-generated"],
            task_categories=["image-classification"],
            size_categories=[next((name for end, name in SIZES if n < end), "n>1M")],
            tags=[*synthetic, "dinv"],
            configs=[
                {
                    "config_name": "default",
                    "data_files": [{"split": self.split, "path": f"data/{self.split}-*"}],
                }
            ],
        )

    def _sections(self, origins: Mapping[str, Origin]) -> list[str]:
        kind = "real images, as classifiers see them" if self.is_real else "synthetic images"
        height, width, channels = self.images.shape
        about = (
            f"{len(self.images)} {kind} of {len(self.images.class_names)} classes, {width}x{height} pixels, "
            f"{'grey' if channels == 1 else 'RGB'}, written by dinv ({cards.PAPER})."
        )
        return [
            f"# {self.block}",
            about,
            f"## Load\n\n```python\n{LOAD.format(split=self.split)}```",
            settings_section(self.record),
            self._columns(),
            self._classes(),
            "" if self.is_real else CAUTION,
            cards.licence_section(self.stated, origins),
        ]

    def _columns(self) -> str:
        shown = ["image", "label", "id", *self.images.provenance]
        shown += ["probabilities"] if self.images.probabilities is not None else []
        rows = [(f"`{name}`", COLUMNS.get(name, "")) for name in shown]
        return "## Columns\n\n" + cards.table(("column", "what"), rows)

    def _classes(self) -> str:
        counts = Counter(self.images.labels.tolist())
        rows = [(k, name, counts[k]) for k, name in enumerate(self.images.class_names)]
        return "## Classes\n\n" + cards.table(("label", "class", "images"), rows)


def origins_of(record: Record | None, real: bool = False) -> dict[str, Origin]:
    """The generator and the source images of an output, from dvc.lock; empty if nothing is recorded."""
    if record is None:
        return {}
    download = lock_entries().get("download", {}).get("params", {}).get("params.yaml", {})
    task = Record("download", download, "")
    found = {"source images": origin_of(Path(str(task.section("data").get("root"))))}
    if not real:
        generator = record.section("model") or task.section("model")
        found = {cards.GENERATOR: origin_of(Path(str(generator.get("path")))), **found}
    return found


def settings_section(record: Record | None) -> str:
    """The parameters that it was made with."""
    if record is None:
        return "## Settings\n\nNot recorded: no stage in `dvc.lock` has this folder."
    words = f"Stage `{record.stage}`; DVC's hash of its output is `{record.md5}`."
    return f"## Settings\n\n{words}\n\n{cards.yaml_block(record.params)}"


def write_shards(source: Path, folder: Path, split: str) -> None:
    """Copy all rows into folder/<split>-00000-of-0000N.parquet; the pictures' bytes stay as they are.

    Raises:
        UserError: a part is damaged, or parts have columns that do not fit each other.
    """
    paths = part_paths(source, SUFFIX, "image set")
    folder.mkdir(parents=True)
    schema = _common_schema(paths)
    shards: list[Path] = []
    writer, size = None, 0
    for table in tqdm(_tables(paths), "export", total=len(paths), unit="part", mininterval=1):
        if writer is None:
            shards.append(folder / f"{split}-{len(shards):05d}{SUFFIX}")
            writer, size = open_parquet(shards[-1], schema), 0
        writer.write_table(table.select(schema.names).cast(schema), row_group_size=ROWS_PER_GROUP)
        size += table.nbytes
        if size >= SHARD_BYTES:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    for i, path in enumerate(shards):
        path.rename(folder / f"{split}-{i:05d}-of-{len(shards):05d}{SUFFIX}")


def _tables(paths: Sequence[Path]) -> Iterator[Any]:
    for path in paths:
        with damage_named(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        yield table


def _common_schema(paths: Sequence[Path]) -> Any:
    """The columns of all parts; one that is empty in some of them (type null) has the type of the others."""
    schemas = []
    for path in paths:
        with damage_named(path):
            schemas.append(pq.read_schema(path))
    try:  # only null becomes another type
        unified = pa.unify_schemas(schemas)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{paths[0].parent}: parts differ in their columns ({reason})") from error
    metadata = dict(schemas[0].metadata)
    described = json.loads(metadata[b"huggingface"])
    for name, feature in described["info"]["features"].items():
        if feature["_type"] == "Value":
            feature["dtype"] = str(unified.field(name).type)
    metadata[b"huggingface"] = json.dumps(described).encode()
    return unified.with_metadata(metadata)
