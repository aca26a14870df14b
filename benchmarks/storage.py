"""What DVC needs for many generated images: in our Parquet parts against one PNG file per image.

python benchmarks/storage.py --images 100000
python benchmarks/storage.py --images 5000 --s3     # an S3 server on loopback (pip install 'moto[server]')
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from common import machine
from PIL import Image

from dinv.images.image_set import ImageSet, load_image_set, write_parquet
from dinv.strategies.worker import PART_SIZE

QUIET = {"DVC_NO_ANALYTICS": "1", "DVC_TEST": "true", "AWS_EC2_METADATA_DISABLED": "true"}
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


def images(source: ImageSet, n: int) -> Iterator[ImageSet]:
    """n different images in parts: the source's, each time with other pixels in a corner."""
    for start in range(0, n, PART_SIZE):
        rows = np.arange(start, min(start + PART_SIZE, n))
        pixels = source.images[rows % len(source)].copy()
        pixels[:, 0, :3, 0] = np.stack([rows // 65536, rows // 256 % 256, rows % 256], 1)
        ids = [f"{row:07d}" for row in rows]
        yield ImageSet(pixels, source.labels[rows % len(source)], ids, source.class_names)


def write_parts(source: ImageSet, n: int, folder: Path) -> None:
    for i, part in enumerate(images(source, n)):
        write_parquet(part, folder / f"part-{i:05d}.parquet")


def write_files(source: ImageSet, n: int, folder: Path) -> None:
    for part in images(source, n):
        for name, image in zip(part.ids, part.images, strict=True):
            Image.fromarray(image.squeeze()).save(folder / f"{name}.png")


@contextmanager
def remote_url(s3: bool, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of an empty remote and the environment that it needs."""
    if not s3:
        yield str(folder / "remote"), {}
        return
    import boto3  # noqa: PLC0415 - comes with dvc-s3

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    log = (folder / "server.log").open("w")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        time.sleep(10)
        os.environ |= KEYS
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="images")
        yield "s3://images/dinv", {"AWS_ENDPOINT_URL_S3": address}
    finally:
        server.kill()
        log.close()


def measure(folder: Path, s3: bool, runs: int) -> dict[str, float]:
    """Seconds of each DVC command on folder/images; the median of `runs` for `dvc status`."""
    with remote_url(s3, folder) as (url, extra):
        env = os.environ | QUIET | extra

        def run(*command: str) -> float:
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", *command], cwd=folder, env=env, check=True, capture_output=True
            )
            return time.perf_counter() - start

        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        run("dvc", "init")
        run("dvc", "remote", "add", "-d", "r", url)
        times = {"add": run("dvc", "add", "images")}
        times["status"] = float(np.median([run("dvc", "status") for _ in range(runs)]))
        times["push"] = run("dvc", "push")
        times["push again"] = run("dvc", "push")
        shutil.rmtree(folder / "images")
        times["checkout"] = run("dvc", "checkout")
    return times


LAYOUTS: dict[str, Callable[[ImageSet, int, Path], None]] = {"parts": write_parts, "files": write_files}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--source", type=Path, default=Path("data/real/train"))
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="as little as possible: does it run?")
    args = parser.parse_args(arguments)
    num_images, runs = (5, 1) if args.tiny else (args.images, 5)
    source, found = load_image_set(args.source), {}
    where = "S3" if args.s3 else "local"
    print(f"{machine(torch.device('cpu'))}; {num_images} images, {where} remote, n = 1")
    for name, write in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "images"
            folder.mkdir()
            write(source, num_images, folder)
            sizes = [path.stat().st_size for path in folder.iterdir()]
            found[name] = measure(folder.parent, args.s3, runs)
            print(f"{name}: {len(sizes)} files, {sum(sizes) / 1e6:.0f} MB", flush=True)
    for step, seconds in found["parts"].items():
        files = found["files"][step]
        print(f"{step}: parts {seconds:.1f} s, single files {files:.1f} s, ratio {files / seconds:.1f}")


if __name__ == "__main__":
    main()
