"""Every command without a network: nothing but the download of Food-101 needs one, and nothing else asks for one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = [
    f"--config.{field}"
    for field in (
        "data.resolution=40",
        "data.image_size=32",
        "model.width=0.25",
        "model.patch_kernels=3,3,3",
        "pretrain.steps=1",
        "pretrain.batch_size=4",
        "joint.steps=1",
        "joint.batch_size=4",
    )
]

# Runs the commands of a JSON file. Python tells every use of a socket, by any library, before it happens; an address
# that is not this machine's is noted and refused.
_RUN = """
import ipaddress, json, os, sys

asked = []

def refuse(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else "localhost"  # a path, or the address that is connected
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    try:
        local = ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        local = host in (None, "", "localhost", os.uname().nodename)
    if not local:
        asked.append([event, str(host)])
        raise OSError(101, "the network is unreachable")

sys.addaudithook(refuse)
from colorjax.cli import main

statuses = []
for command in json.load(open(sys.argv[1])):
    try:
        main(command)
    except SystemExit as exit:
        statuses.append(exit.code)
print(json.dumps({"asked": asked, "statuses": statuses}))
sys.stdout.flush()
os._exit(0)
"""


def no_network() -> list[str]:
    """What to put before a command so that it has no network at all; nothing where the kernel does not allow it."""
    for prefix in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        try:
            if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
                return prefix
        except FileNotFoundError:
            break
    return []


def run(folder: Path, *commands: list[str], expected: list[int]) -> None:
    (folder / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [*no_network(), sys.executable, "-c", _RUN, str(folder / "commands.json")],
        cwd=folder,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},  # compiles faster
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["asked"] == []
    assert found["statuses"] == expected, done.stderr[-3000:]


def test_an_address_elsewhere_is_noticed(tmp_path: Path) -> None:
    script = _RUN.partition("from colorjax")[0]
    for address in ('("192.0.2.1", 80)', '("example.org", 80)'):
        lines = f"import socket\ntry:\n    socket.create_connection({address}, 1)\nexcept OSError as e:\n    print(e)"
        done = subprocess.run([sys.executable, "-c", script + lines], capture_output=True, text=True, check=True)
        assert "the network is unreachable" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)  # compiles both stages
def test_the_commands_ask_for_no_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(24):
        photo = tmp_path / "photos" / f"class {i % 2}" / f"{i}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 56, 3), np.uint8)).save(photo)
    config = ["--config=configs/quickstart.py", *SMALL]
    packed = ["--config.data.source=packed", "--config.data.dir=pack"]
    run(
        tmp_path,
        ["weights"],
        ["data", *config, "--config.data.source=folder", "--config.data.dir=photos", "--out=pack"],
        ["prior", *config, *packed, "--out=prior.npz"],
        ["train", *config, *packed, "--workdir=run"],
        ["evaluate", "--checkpoint=run", "--out=evaluation"],
        ["ablate", *config, *packed, "--workdir=study", "--rows=full", "--commands"],
        ["predict", "photos/class 0/0.jpg", "--out=colored", "--checkpoint=run"],
        ["export", "--checkpoint=run", "--format=hub", "--out=exported"],
        ["export", "--checkpoint=run", "--format=onnx", "--out=exported_onnx"],
        # Not there, and not to be downloaded: TFDS does not look for it elsewhere.
        ["prior", "--config=configs/paper.py", "--config.data.dir=nowhere", "--out=none.npz"],
        expected=[0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    )
    assert (tmp_path / "colored" / "0.jpg").exists()
    assert (tmp_path / "run" / "evaluation" / "test" / "metrics.json").exists()


@pytest.mark.slow
def test_the_page_asks_for_no_network(untrained: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install gradio")
    script = _RUN.partition("from colorjax")[0] + (
        "import time, urllib.request\n"
        "from colorjax.photos.predictor import Predictor\n"
        "from colorjax.web import server\n"
        "limits = {'max_megabytes': 1, 'max_megapixels': 1}\n"
        "with server.serving(Predictor(sys.argv[1]), port=int(sys.argv[2]), **limits) as url:\n"
        "    assert urllib.request.urlopen(url).status == 200\n"
        "    time.sleep(2)  # what a library asks for in a thread\n"
        "print(json.dumps(asked))\n"
        "sys.stdout.flush()\n"
        "os._exit(0)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-c", script, str(untrained), port], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
