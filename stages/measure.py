"""Compare generated with real images by the features of named networks, and write metrics/.

python -m stages.measure
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinv.execution.params import ExecutionParams
from dinv.execution.parts import PartStore, Plan
from dinv.execution.run import run_parts
from dinv.features.extractors import locate, location_digest
from dinv.features.worker import FEATURES, FeatureWorker, load_features
from dinv.files import atomic_write, write_json
from dinv.images.image_set import ImageSetReader
from dinv.metrics.image_sets import Measurement, choose, distances_table, distribution_distances, memorisation
from dinv.metrics.params import MeasureParams
from dinv.metrics.tables import write_csv
from stages.runner import run

Array = NDArray[Any]
METRICS = Path("metrics")
OUTPUT = Path("data/features")
PART_SIZE = 200  # images
# unseen: test images that are not in the reference, so what real images score.
SETS = {
    "real": "data/real/train",
    "reconstruction": "data/reconstructions",
    "synthetic": "data/generated",
    "unseen": "data/real/test",
}


def main(measure: MeasureParams, execution: ExecutionParams, code_digest: str) -> None:
    images = {name: ImageSetReader(Path(folder)) for name, folder in SETS.items()}
    available = {name: len(reader) for name, reader in images.items()}
    sizes = sizes_to_compare(available, measure)
    if not sizes:
        print(
            f"not measured: {available}, test images counting half, are too few images for "
            f"measure.num_neighbors = {measure.num_neighbors}; the tables stay empty",
            flush=True,
        )
        OUTPUT.mkdir(parents=True, exist_ok=True)
        return write([])
    chosen = choose_images(available, sizes[-1], measure.seed)
    rows: list[Measurement] = []
    for network, place in measure.features.items():
        location = locate(network, place)
        features = {}
        for name, indices in chosen.items():
            reader = images["unseen" if name == "reference" else name]
            key: list[object] = [code_digest, network, location_digest(location)]
            worker = partial(FeatureWorker, network, location, execution)
            folder = OUTPUT / network / name
            plan = extraction_plan(f"{network} features, {name}", reader, indices, key)
            run_parts(plan, PartStore("features"), FEATURES, worker, execution, folder)
            features[name] = load_features(folder)
        rows += compare(network, features, sizes, measure)
    write(rows)


def sizes_to_compare(available: dict[str, int], measure: MeasureParams) -> list[int]:
    """Numbers of images at which all sets are compared, ascending, those with enough neighbours.

    The larger one is that of the smallest of test halves and generated images, the smaller one that
    of the training images, which are few.
    """
    largest = min(measure.num_images, available["unseen"] // 2, available["synthetic"])
    sizes = sorted({min(available["real"], largest), largest})
    return [size for size in sizes if size > measure.num_neighbors]


def choose_images(available: dict[str, int], size: int, seed: int) -> dict[str, Array]:
    """At most `size` rows of every set, the test split in two disjoint halves."""
    rows = {
        name: choose(n, size, np.random.default_rng([seed, i]))
        for i, (name, n) in enumerate(available.items())
        if name != "unseen"
    }
    half = available["unseen"] // 2
    both = np.random.default_rng([seed, len(rows)]).permutation(available["unseen"])
    return rows | {"unseen": np.sort(both[:size]), "reference": np.sort(both[half : half + size])}


def extraction_plan(name: str, reader: ImageSetReader, chosen: Array, key: list[object]) -> Plan:
    """The features of the chosen images."""

    def digests(rows: Sequence[int]) -> list[str]:
        return reader.take(chosen[list(rows)].tolist()).digests(key)

    def task(rows: Sequence[int]) -> Array:
        return reader.take(chosen[list(rows)].tolist()).images

    return Plan(name, len(chosen), PART_SIZE, digests, task)


def compare(
    network: str, features: dict[str, Array], sizes: Sequence[int], measure: MeasureParams
) -> list[Measurement]:
    """Every set against the reference half of the test split, and its nearest neighbours."""
    reference = features.pop("reference")
    distances = distribution_distances(
        network, features, reference, sizes, measure.num_neighbors, measure.seed
    )
    made = {name: x for name, x in features.items() if name != "real"}
    return distances + memorisation(network, made, features["real"], reference, measure.seed)


def write(rows: list[Measurement]) -> None:
    """image_sets.csv has every number, image_sets.json the generated images' for `dvc metrics`."""
    rows = [replace(row, value=round(row.value, 6)) for row in rows]
    columns = [field.name for field in fields(Measurement)]
    write_csv(METRICS / "image_sets.csv", [vars(row) for row in rows], columns)
    largest = max((row.num_images for row in rows if row.images == "synthetic"), default=0)
    summary: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.images == "synthetic" and row.num_images == largest:
            summary.setdefault(row.features, {})[row.metric] = row.value
    write_json(METRICS / "image_sets.json", {"synthetic": summary})
    table = distances_table(rows)
    with atomic_write(METRICS / "image_sets.md") as temporary:
        temporary.write_text(table)
    print(f"\n{table}")


if __name__ == "__main__":
    run("measure", main)
