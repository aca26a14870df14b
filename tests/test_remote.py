"""Sharing through S3, as docs/sharing.md says it, against a server on loopback that speaks the protocol."""

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import tiny
from project import MEASURE, Project

pytestmark = pytest.mark.slow

BLOCKS = re.findall(r"```bash\n(.*?)```", (tiny.ROOT / "docs/sharing.md").read_text(), re.S)
NAME_REMOTE, SERVER, PUSH, PULL, CHANGE, PUSH_EXPERIMENT, PULL_EXPERIMENT = BLOCKS


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def start_server(folder, **env):
    """A moto server in a process of its own; returns its port and the process."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | env)
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port, server
        time.sleep(0.1)
    raise AssertionError((folder / "server.log").read_text())


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    port, server = start_server(tmp_path_factory.mktemp("s3"))
    yield port
    server.kill()


def client(port):
    import boto3

    keys = {"aws_access_key_id": "MY_KEY", "aws_secret_access_key": "MY_SECRET"}
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **keys)


def bash(project, block, bucket="shared", port=0, ok=True):
    script = block.replace("my-bucket", bucket).replace("https://s3.example.org", f"http://127.0.0.1:{port}")
    return project.run("bash", "-e", "-c", script, ok=ok, AWS_EC2_METADATA_DISABLED="true")


def clone(origin, root, port):
    """What a colleague has after git clone, and after naming the server."""
    subprocess.run(["git", "clone", "--quiet", str(origin), str(root)], check=True)
    project = Project(root)
    bash(project, SERVER, port=port)
    return project


def ran(done):
    return set(re.findall(r"^Running stage '(.+)':", done.stdout, re.M))


@pytest.fixture(scope="module")
def origin(finished, port, tmp_path_factory):
    """A bare git repository whose owner has pushed, and the bucket."""
    folder = tmp_path_factory.mktemp("team")
    client(port).create_bucket(Bucket="shared")
    subprocess.run(["git", "init", "--quiet", "--bare", str(folder / "origin.git")], check=True)
    owner = finished.copy(folder / "owner")
    owner.run("git", "remote", "add", "origin", str(folder / "origin.git"))
    bash(owner, NAME_REMOTE)
    bash(owner, SERVER, port=port)
    owner.run("git", "push", "--quiet", "-u", "origin", "HEAD")
    bash(owner, PUSH)
    return folder / "origin.git"


def test_secrets_stay_out_of_git(origin, port, tmp_path):
    project = clone(origin, tmp_path / "b", port)
    assert "MY_SECRET" in (project.root / ".dvc/config.local").read_text()
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_a_colleague_pulls_and_computes_nothing(origin, port, tmp_path):
    project = clone(origin, tmp_path / "b", port)
    done = bash(project, PULL)
    assert ran(done) == set() and "up to date" in done.stdout
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_another_lambda_fetches_the_embeddings_and_computes_the_rest(origin, port, tmp_path):
    project = clone(origin, tmp_path / "c", port)
    computed = {"generate@inversion", *MEASURE, "train@synthetic", "train@mixed", "evaluate"}
    assert ran(bash(project, CHANGE)) == computed
    bash(project, PUSH_EXPERIMENT)
    other = clone(origin, tmp_path / "d", port)
    bash(other, PULL_EXPERIMENT)
    assert "noise_std: 0.9" in (other.root / "params.yaml").read_text()
    assert other.repro() == set()


def test_a_damaged_object_never_becomes_a_file(origin, port, tmp_path):
    s3 = client(port)
    s3.create_bucket(Bucket="damaged")
    for entry in s3.list_objects_v2(Bucket="shared")["Contents"]:
        body = s3.get_object(Bucket="shared", Key=entry["Key"])["Body"].read()
        if b"PAR1" in body[:4]:
            body = body[:-20] + b"x" + body[-19:]
        s3.put_object(Bucket="damaged", Key=entry["Key"], Body=body)
    project = clone(origin, tmp_path / "b", port)
    project.dvc("remote", "modify", "storage", "url", "s3://damaged/dinv")
    done = bash(project, "dvc pull", ok=False)
    assert done.returncode != 0 and "Checkout failed" in done.stderr
    assert not list((project.root / "data").rglob("*.parquet"))
    assert project.repro()  # computed again


def test_a_missing_bucket_is_an_error(origin, port, tmp_path):
    project = clone(origin, tmp_path / "b", port)
    project.dvc("remote", "modify", "storage", "url", "s3://nobody-made-this/dinv")
    done = bash(project, "dvc pull", ok=False)
    assert done.returncode != 0 and "bucket does not exist" in done.stderr


def test_wrong_credentials_are_an_error(origin, tmp_path):
    port, server = start_server(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="0")
    try:
        done = bash(clone(origin, tmp_path / "b", port), "dvc pull", ok=False)
        assert done.returncode != 0 and re.search("Forbidden|InvalidAccessKeyId|denied", done.stderr)
    finally:
        server.kill()


class CuttingProxy(threading.Thread):
    """Passes connections on to a port; every third is cut after its first bytes."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.target, self.cut, self.connections = port, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self):
        while True:
            incoming, _ = self.listener.accept()
            self.connections += 1
            outgoing = socket.create_connection(("127.0.0.1", self.target))
            limit = 300 if self.connections % 3 == 0 else None
            threading.Thread(target=self.relay, args=(incoming, outgoing, limit), daemon=True).start()

    def relay(self, incoming, outgoing, limit):
        passed = 0
        with incoming, outgoing:
            while True:
                for source in select.select([incoming, outgoing], [], [])[0]:
                    data = source.recv(65536)
                    passed += len(data) if source is outgoing else 0
                    if not data:
                        return
                    if limit is not None and passed > limit:
                        self.cut += 1
                        return
                    (outgoing if source is incoming else incoming).sendall(data)


def test_cut_connections_are_tried_again(origin, port, tmp_path):
    proxy = CuttingProxy(port)
    proxy.start()
    project = clone(origin, tmp_path / "b", proxy.port)
    for _ in range(3):
        if bash(project, "dvc pull", ok=False).returncode == 0:
            break
    assert proxy.cut > 0
    assert project.repro() == set()
    shutil.rmtree(project.root)
