"""Commands of test projects as forks of a process that has imported torch and its like already.

Most of a tiny stage's time is imports: 4 to 8 of 5 to 9 seconds. `python3 -m stages.NAME`, as dvc.yaml calls it,
finds the `python3` of this file first on its PATH, which asks the server for a fork; so do `dvc`, `dinv` and
`python3 -c`. The project's own modules are not imported beforehand: a fork takes them from its own folder.
Everything else is a real process, as is every one of these with DINV_REAL_PROCESSES=1 or HF_ENDPOINT.
"""

import atexit
import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

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
    "huggingface_hub.constants",
    "dvc.cli",
    "dvc.repo",
    "dvc.api",
    "optuna",
)
MODULES = {"dvc": "dvc", "dinv": "dinv.cli"}
CLIENT = """#!{python} -SEsB
import os, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if name != "python3":
    arguments = ["-m", {modules!r}[name], *arguments]
known = arguments[:1] == ["-c"] or (
    arguments[:1] == ["-m"] and (arguments[1].startswith("stages.") or arguments[1] in {modules!r}.values())
)
# Workers of a queue that start at the same moment lose each other's messages: they stay as slow as they are.
known = known and "queue-worker" not in arguments
if not known or "DINV_REAL_PROCESSES" in os.environ or "HF_ENDPOINT" in os.environ:
    os.execv({python!r}, [{python!r}, *arguments])
import json, socket
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
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
    for name in ("python3", *MODULES):
        client = folder / name
        client.write_text(CLIENT.format(python=sys.executable, address=address, modules=MODULES))
        client.chmod(0o755)
    # libgit2 looks for the user's settings when it is imported.
    env = os.environ | {"HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    command = [sys.executable, __file__, str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
    atexit.register(server.kill)
    assert server.stdout.readline() == b"ready\n"
    return str(folder)


def serve(folder: Path) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # end with the tests
    for name in PRELOADED:
        __import__(name)
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    sys.executable = str(folder / "python3")  # what a fork calls is a fork, too
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(connection)
        connection.close()


def answer(connection: socket.socket) -> None:
    """Run what is asked for, with the caller's files, folder and environment, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    request = b""
    while len(request) < int.from_bytes(size, "little"):
        request += connection.recv(1 << 16)
    arguments, cwd, environment = json.loads(request)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    status = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(BrokenPipeError):  # the caller was killed
        connection.sendall(bytes([status]))
    os._exit(status)


def run(arguments: list[str]) -> int:
    """As `python3 -m MODULE` or `python3 -c CODE` does; returns the exit status."""
    import torch

    torch.seed()  # nothing may rely on a generator that all forks share
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if {"HF_HOME", "HF_HUB_CACHE"} & {*os.environ}:
        importlib.reload(sys.modules["huggingface_hub.constants"])
    sys.path[:1] = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *arguments[2:]]
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return int(error.code is not None) if not isinstance(error.code, int) else error.code
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
    return 0


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
