"""idx files of unsigned bytes, as MNIST and its successors are published."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinv.errors import UserError


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzip-compressed; raises UserError when it is damaged."""
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; its folder must hold the four .gz files as published"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a complete gzip file ({error}); fetch it again") from error
    num_dims = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    header = 4 + 4 * num_dims
    shape = [int(n) for n in np.frombuffer(raw[4:header], ">u4")] if len(raw) >= header else []
    body = raw[header:]
    if len(shape) != num_dims or num_dims == 0 or math.prod(shape) != len(body):
        raise UserError(f"{path}: not an idx file of bytes, or truncated; fetch it again")
    return np.frombuffer(body, np.uint8).reshape(shape)
