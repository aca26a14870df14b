"""Make a bundled task: so many images per class of two Parquet files, resized as dinv's data stage does.

    python -m models.pretraining.sample_task --pool pool.parquet --test test.parquet \
        --num-pool 200 --num-test 200 --output data/bundled/satellite

The pictures are written as lossless WebP, so what ships is what the data stage would have made. The images
of a class are those whose names come first by SHA-256.
"""

import argparse
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dinv.errors import UserError
from dinv.files import digest_of
from dinv.images.resize import to_square


def chosen_rows(table: pa.Table, per_class: int) -> list[int]:
    """Rows of `per_class` images of every class, in the table's order. Raises UserError."""
    order = sorted(range(len(table)), key=lambda i: digest_of(table["image"][i]["path"].as_py()))
    taken: dict[str, list[int]] = {}
    for row in order:
        rows = taken.setdefault(table["class"][row].as_py(), [])
        if len(rows) < per_class:
            rows.append(row)
    for name, rows in taken.items():
        if len(rows) < per_class:
            raise UserError(f"class {name!r}: {len(rows)} images; ask for at most that many")
    return sorted(row for rows in taken.values() for row in rows)


def small_picture(content: bytes, side: int) -> bytes:
    """The encoded picture at side x side pixels, lossless."""
    pixels = to_square(Image.open(io.BytesIO(content)), side, "center_crop", "RGB")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", lossless=True, quality=100, method=6)
    return out.getvalue()


def sample(source: Path, per_class: int, side: int, output: Path) -> int:
    """Write a sample of one file; returns the number of its images."""
    table = pq.read_table(source, columns=["image", "class"])
    table = table.take(chosen_rows(table, per_class))
    images = [
        {"bytes": small_picture(entry["bytes"], side), "path": entry["path"]}
        for entry in table["image"].to_pylist()
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "class": table["class"]}), output, compression="zstd")
    return len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pool", type=Path, required=True, help="Parquet file that labelled images are drawn from"
    )
    parser.add_argument("--test", type=Path, required=True, help="Parquet file of test images")
    parser.add_argument("--num-pool", type=int, required=True, help="images per class")
    parser.add_argument("--num-test", type=int, required=True, help="images per class")
    parser.add_argument("--resolution", type=int, default=32, help="pixels")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    args = parser.parse_args()
    for source, number, name in ((args.pool, args.num_pool, "train"), (args.test, args.num_test, "test")):
        total = sample(source, number, args.resolution, args.output / f"{name}.parquet")
        print(f"{args.output / name}.parquet: {total} images")


if __name__ == "__main__":
    main()
