"""Compare generated with real images by the features of one network, and write metrics/image_sets/.

python -m stages.measure domain
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from dinv.classify.arms import REAL as REAL_IMAGES
from dinv.classify.arms import Arm, image_sets
from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.features.cache import Extraction, extract
from dinv.files import write_json
from dinv.images.image_set import ImageSetReader
from dinv.metrics.image_sets import COLUMNS, REAL, UNSEEN, choose, distances_table, image_set_numbers
from dinv.metrics.params import MeasureParams
from dinv.metrics.tables import write_csv, write_text
from dinv.rng import derive_seed
from stages.runner import block_argument, chosen, run
from stages.stale import remove_stale

Array = NDArray[Any]
METRICS = Path("metrics/image_sets")
TEST_IMAGES = "data/real/test"
TEST = "test"


def main(block: str, measure: MeasureParams, arms: Mapping[str, Arm], execution: ExecutionParams) -> None:
    network = chosen(measure.features, block, "measure.features")
    remove_stale({"data/generated": image_sets(arms)})
    readers = {name: ImageSetReader(Path(folder)) for name, folder in compared(arms).items()}
    available = {name: len(reader) for name, reader in readers.items()}
    sizes = sizes_to_compare(available, measure)
    output = Path("data/features") / block
    if not sizes:
        print(
            f"not measured: {available}, test images counting half, are too few images for "
            f"measure.num_neighbors = {measure.num_neighbors}; the tables stay empty",
            flush=True,
        )
        output.mkdir(parents=True, exist_ok=True)
        return write(block, pd.DataFrame(columns=COLUMNS))
    extraction = Extraction.of(network)
    features = {
        name: extract(readers[name], rows, extraction, execution, output / name)
        for name, rows in choose_images(available, measure).items()
    }
    test = features.pop(TEST)
    numbers = image_set_numbers(
        block, features, test, sizes, measure.num_neighbors, measure.num_draws, measure.seed
    )
    write(block, numbers)


def compared(arms: Mapping[str, Arm]) -> dict[str, str]:
    """Name -> folder of what is compared: real images, and the generated ones that arms learn from."""
    made = image_sets(arms)
    for name in (REAL, TEST, UNSEEN):
        if name in made:
            raise UserError(f"generate.{name}: {name} means real images in the tables; rename the block")
    return {REAL: REAL_IMAGES, **made, TEST: TEST_IMAGES}


def sizes_to_compare(available: Mapping[str, int], measure: MeasureParams) -> list[int]:
    """Numbers of images at which sets are compared, ascending: that of every set, as far as test images go.

    Half of the test images are the reference. Sizes with too few neighbours are left out.
    """
    largest = min(measure.num_images, available[TEST] // 2)
    sizes = sorted({min(n, largest) for name, n in available.items() if name != TEST})
    return [size for size in sizes if size > measure.num_neighbors]


def choose_images(available: Mapping[str, int], measure: MeasureParams) -> dict[str, Array]:
    """Rows of every set whose features are extracted, ascending.

    At most measure.num_images, and of test images four times as many: they are divided anew in every draw.
    """
    return {
        name: choose(n, measure.num_images * (4 if name == TEST else 1), derive_seed(measure.seed, name))
        for name, n in available.items()
    }


def write(block: str, numbers: pd.DataFrame) -> None:
    """All numbers as CSV; those of generated images at their largest size as JSON, for `dvc metrics`."""
    write_csv(METRICS / f"{block}.csv", numbers)
    made = numbers[~numbers["images"].isin([REAL, UNSEEN])]
    sizes = made.groupby(["images", "metric"])["num_images"]
    largest = made[made["num_images"] == sizes.transform("max")]
    summary = {
        str(images): dict(zip(rows["metric"], rows["value"], strict=True))
        for images, rows in largest.groupby("images", sort=False)
    }
    write_json(METRICS / f"{block}.json", summary)
    table = distances_table(numbers)
    write_text(METRICS / f"{block}.md", table)
    print(f"\n{table}")


if __name__ == "__main__":
    run("measure", main, block=block_argument(__doc__))
