"""Files on the hub are pinned by a commit, which a small file names."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny

from dinv.diffusion.loading import fetch_model
from dinv.errors import UserError
from dinv.hub import read_pin, resolve

COMMIT = "133a221b8aa7292a167afc5127cb63fb5005638b"
NAME = "CompVis/stable-diffusion-v1-4"


def pin(folder, text):
    path = folder / "model.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        f"repo_id: {NAME}\nrevision: {COMMIT}\n",
        f"{{repo_id: {NAME}, revision: {COMMIT}}}",
        f"repo_id: '{NAME}'\nrevision: '{COMMIT}'  # the first",
    ],
)
def test_a_pin_is_read(tmp_path, text):
    read = read_pin(pin(tmp_path, text))
    assert (read.repo_id, read.revision) == (NAME, COMMIT)


@pytest.mark.parametrize("revision", ["1" * 40, "1" * 38 + "e1", "0" * 40])
def test_a_commit_that_looks_like_a_number_is_a_commit(tmp_path, revision):
    assert read_pin(pin(tmp_path, f"repo_id: a/b\nrevision: {revision}")).revision == revision


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"repo_id: {NAME}\nrevision: main", r"revision = 'main': should match"),
        (f"repo_id: {NAME}\nrevision: abcdef", r"revision = 'abcdef': should match"),
        (f"repo_id: {NAME}\nrevision: {COMMIT[:-1]}", r"revision = '133a\w+': should match"),
        (f"repo_id: {NAME}\nrevision: {COMMIT.upper()}", r"revision = '133A\w+': should match"),
        (f"repo_id: {NAME}\nrevision: '{COMMIT}\\n'", r"revision = .*: should match"),
        (f"repo_id: {NAME}", r"revision: field required"),
        (f"repo_id: stable\nrevision: {COMMIT}", r"repo_id = 'stable': should match"),
        (f"repo_id: a/b\nrevision: {COMMIT}\nbranch: main", r"branch = 'main': extra"),
        ("", r"input should be a valid dictionary"),
        ("- a", r"input should be a valid dictionary"),
        ("{a: [", r"not YAML"),
    ],
)
def test_a_pin_that_is_none_is_refused_in_one_line(tmp_path, text, message):
    path = pin(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        read_pin(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}:") and "write {repo_id: owner/name" in str(error.value)


def test_a_local_path_is_itself(tmp_path):
    (tmp_path / "weights.pth").touch()
    assert resolve(tmp_path, ["*"]) == tmp_path
    assert resolve(tmp_path / "weights.pth", ["*"]) == tmp_path / "weights.pth"


def test_what_is_not_there_or_not_pinned_is_said_with_its_parameter(tmp_path):
    for path in ("someone/model", str(tmp_path / "absent.yaml")):
        with pytest.raises(UserError, match=rf"model\.path: {path}: no such folder or file; .*repo_id"):
            fetch_model(tiny.PARAMS.model.model_copy(update={"path": path}))
    path = pin(tmp_path, "repo_id: a/b\nrevision: abcdef")
    with pytest.raises(UserError, match=r"model\.path: .*model\.yaml: revision = 'abcdef'"):
        fetch_model(tiny.PARAMS.model.model_copy(update={"path": str(path)}))


def test_offline_and_not_in_the_cache_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    path = pin(tmp_path, f"repo_id: someone/model\nrevision: {COMMIT}")
    with pytest.raises(UserError, match=f"someone/model at {COMMIT} cannot be fetched from the hub"):
        resolve(path, ["*"], local_files_only=True)


def test_the_shipped_pin_is_the_paper_s_model():
    read = read_pin(tiny.ROOT / "models/stable-diffusion-v1-4.yaml")
    assert (read.repo_id, read.revision) == (NAME, COMMIT)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs: one commit of one repository."""

    files = {  # noqa: RUF012
        "unet/config.json": b"{}",
        "unet/model.fp16.safetensors": b"half",
        "unet/model.safetensors": b"whole",
        "README.md": b"words",
    }

    def do_GET(self):
        # Older clients take the list of files from the first answer, newer ones from the second.
        siblings = [{"rfilename": name} for name in self.files]
        tree = [{"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in self.files.items()]
        place = f"/api/models/{NAME}"
        if self.path.startswith(f"{place}/revision/{COMMIT}"):
            return self.answer(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        if self.path.startswith(f"{place}/tree/{COMMIT}"):
            return self.answer(json.dumps(tree).encode())
        return self.answer(self.files.get(self.path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")))

    do_HEAD = do_GET

    def answer(self, content):
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FETCH = """
import sys
from pathlib import Path
from dinv.errors import UserError
from dinv.hub import resolve
try:
    print(resolve(Path(sys.argv[1]), ["unet/*.json", "unet/*.safetensors"], len(sys.argv) > 2))
except UserError as error:
    sys.exit(str(error))
"""


def fetch(hub, path, *arguments):
    env = {"HF_ENDPOINT": hub, "HF_HOME": str(path.parent / "home"), "HF_HUB_DISABLE_XET": "1"}
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    command = [sys.executable, "-c", FETCH, str(path), *arguments]
    return subprocess.run(command, env=kept | env, cwd=tiny.ROOT, capture_output=True, text=True, check=False)


def test_a_pinned_snapshot_is_fetched_once_without_what_is_not_needed(tmp_path, hub):
    path = pin(tmp_path, f"repo_id: {NAME}\nrevision: {COMMIT}")
    first = fetch(hub, path)
    folder = Path(first.stdout.strip())
    assert folder.name == COMMIT, first.stderr
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))
    assert found == ["unet/config.json", "unet/model.safetensors"]
    assert (folder / "unet/model.safetensors").read_bytes() == b"whole"
    assert fetch("http://127.0.0.1:1", path, "offline").stdout == first.stdout


def test_a_commit_that_the_hub_lacks_is_one_line(tmp_path, hub):
    missing = fetch(hub, pin(tmp_path, f"repo_id: {NAME}\nrevision: {'0' * 40}"))
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1
    assert f"{NAME} at {'0' * 40} cannot be fetched from the hub" in missing.stderr
