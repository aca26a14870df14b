"""Image sets: labelled uint8 images with ids and provenance, in memory and as sharded Parquet.

The names that other packages use. `labelled.py` is the set in memory, `parquet.py` one file, `folder.py`
writes and reads a folder of files, `reader.py` reads slices of one, `mapped.py` is a set whose pixels stay
on the disk.
"""

from dinv.images.folder import (
    ImageSetWriter,
    load_image_set,
    save_chunks,
    save_image_set,
)
from dinv.images.labelled import ImageSet, batches, concatenate
from dinv.images.mapped import MappedImageSet
from dinv.images.parquet import IMAGES, ROWS_PER_FILE, ROWS_PER_GROUP, read_parquet, write_parquet
from dinv.images.reader import ImageSetReader

__all__ = [
    "IMAGES",
    "ROWS_PER_FILE",
    "ROWS_PER_GROUP",
    "ImageSet",
    "ImageSetReader",
    "ImageSetWriter",
    "MappedImageSet",
    "batches",
    "concatenate",
    "load_image_set",
    "read_parquet",
    "save_chunks",
    "save_image_set",
    "write_parquet",
]
