"""Compare generated with real images by the features of one network, and write metrics/image_sets/.

python -m stages.measure fashion
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.features.cache import Extraction, extract
from dinv.files import write_json
from dinv.images.image_set import ImageSetReader
from dinv.metrics.gains import REAL_IMAGES, ArmLike
from dinv.metrics.image_sets import COLUMNS, REAL, UNSEEN, choose, distances_table, image_set_numbers
from dinv.metrics.params import MeasureParams
from dinv.metrics.tables import write_csv, write_text
from stages.runner import run
from stages.stale import remove_stale

Array = NDArray[Any]
METRICS = Path("metrics/image_sets")
TEST_IMAGES = "data/real/test"
TEST = "test"


def main(
    measure: MeasureParams, arms: Mapping[str, ArmLike], execution: ExecutionParams, name: str
) -> None:
    folders = image_sets(arms)
    remove_stale({"data/generated": {Path(folder).name for folder in folders.values()}})
    readers = {key: ImageSetReader(Path(folder)) for key, folder in folders.items()}
    available = {key: len(reader) for key, reader in readers.items()}
    sizes = sizes_to_compare(available, measure)
    output = Path("data/features") / name
    if not sizes:
        print(
            f"not measured: {available}, test images counting half, are too few images for "
            f"measure.num_neighbors = {measure.num_neighbors}; the tables stay empty",
            flush=True,
        )
        output.mkdir(parents=True, exist_ok=True)
        return write(name, pd.DataFrame(columns=COLUMNS))
    extraction = Extraction.of(measure.features[name])
    features = {
        key: extract(readers[key], rows, extraction, execution, output / key)
        for key, rows in choose_images(available, measure).items()
    }
    test = features.pop(TEST)
    numbers = image_set_numbers(
        name, features, test, sizes, measure.num_neighbors, measure.num_draws, measure.seed
    )
    write(name, numbers)


def image_sets(arms: Mapping[str, ArmLike]) -> dict[str, str]:
    """Name -> folder of what is compared: the real images, and what arms are trained on besides."""
    made = dict.fromkeys(arm.images for arm in arms.values() if arm.images != REAL_IMAGES)
    found = {REAL: REAL_IMAGES}
    for folder in made:
        name = Path(folder).name
        if name in {*found, TEST, UNSEEN}:
            raise UserError(f"arms: images {folder!r}: {name} is the name of other images; rename the folder")
        found[name] = folder
    return {**found, TEST: TEST_IMAGES}


def sizes_to_compare(available: Mapping[str, int], measure: MeasureParams) -> list[int]:
    """Numbers of images at which sets are compared, ascending: that of every set, as far as test images go.

    Half of the test images are the reference. Sizes with too few neighbours are left out.
    """
    largest = min(measure.num_images, available[TEST] // 2)
    sizes = sorted({min(n, largest) for key, n in available.items() if key != TEST})
    return [size for size in sizes if size > measure.num_neighbors]


def choose_images(available: Mapping[str, int], measure: MeasureParams) -> dict[str, Array]:
    """Rows of every set whose features are extracted, ascending.

    At most measure.num_images, and of test images four times as many: they are divided anew in every draw.
    """
    return {
        key: choose(n, measure.num_images * (4 if key == TEST else 1), np.random.default_rng([measure.seed, i]))
        for i, (key, n) in enumerate(available.items())
    }


def write(name: str, numbers: pd.DataFrame) -> None:
    """NAME.csv has every number, NAME.json those of generated images at their largest size, for `dvc metrics`."""
    write_csv(METRICS / f"{name}.csv", numbers)
    made = numbers[~numbers["images"].isin([REAL, UNSEEN])]
    sizes = made.groupby(["images", "metric"])["num_images"]
    largest = made[made["num_images"] == sizes.transform("max")]
    summary = {
        str(images): dict(zip(rows["metric"], rows["value"], strict=True))
        for images, rows in largest.groupby("images", sort=False)
    }
    write_json(METRICS / f"{name}.json", summary)
    table = distances_table(numbers)
    write_text(METRICS / f"{name}.md", table)
    print(f"\n{table}")


if __name__ == "__main__":
    run("measure", main, name=sys.argv[1])
