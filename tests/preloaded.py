"""Stages of test projects as forks of a process that has imported torch and its like already.

Most of a tiny stage's time is imports: 4 to 8 of 5 to 9 seconds. `python3 -m stages.NAME`, as dvc.yaml calls it,
finds the `python3` of this file first on its PATH, which asks the server for a fork. The project's own modules
are not imported beforehand: a fork takes them from its own folder. Everything else is a real process, as is
every stage with DINV_REAL_PROCESSES=1.
"""

import atexit
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path

PRELOADED = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "sklearn.metrics",
    "sklearn.neighbors",
    "scipy.linalg",
    "pandas",
    "pyarrow.parquet",
    "pydantic",
    "ruamel.yaml",
    "PIL.Image",
    "safetensors.torch",
    "tqdm",
)
CLIENT = """#!{python} -SEsB
import os, sys
real = any(name in os.environ for name in ("DINV_REAL_PROCESSES", "HF_HUB_CACHE", "HF_HOME", "HF_ENDPOINT"))
if real or sys.argv[1:2] != ["-m"] or not sys.argv[2].startswith("stages."):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import json, socket
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "little")], [0, 1, 2])
server.sendall(request)
status = server.recv(1)
sys.exit(status[0] if status else 137)
"""


@cache
def folder_of_python3() -> str:
    """Start the server of this test process; return the folder that is to come first on a project's PATH."""
    folder = Path(tempfile.mkdtemp(prefix="preloaded-"))
    address = str(folder / "socket")
    client = folder / "python3"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE)
    atexit.register(server.kill)
    assert server.stdout.readline() == b"ready\n"
    return str(folder)


def serve(address: str) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # end with the tests
    for name in PRELOADED:
        __import__(name)
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(connection)
        connection.close()


def answer(connection: socket.socket) -> None:
    """Run the stage that is asked for, with the caller's files, folder and environment, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    request = b""
    while len(request) < int.from_bytes(size, "little"):
        request += connection.recv(1 << 16)
    arguments, cwd, environment = json.loads(request)
    for target, file in enumerate(files):
        os.dup2(file, target)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    status = run_module(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([status]))
    os._exit(status)


def run_module(arguments: list[str]) -> int:
    """As `python3 -m` does; returns the exit status."""
    import torch

    torch.seed()  # nothing may rely on a generator that all forks share
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.path[0] = os.getcwd()
    sys.argv = arguments
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return int(error.code is not None) if not isinstance(error.code, int) else error.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
