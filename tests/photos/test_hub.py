"""Colorizers on the Hub: in a folder, and on a small server that stands in for huggingface.co."""

import base64
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from colorjax.photos.predictor import Predictor
from colorjax.run.trained import load_trained

constants = pytest.importorskip(
    "huggingface_hub.constants", reason='needs huggingface_hub: pip install "colorjax[hub]"'
)
REPO, COMMIT = "anna/vivid", "0123456789abcdef0123456789abcdef01234567"
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Server(http.server.ThreadingHTTPServer):
    """Holds the files of one repository, and what was asked."""

    files: dict[str, bytes]
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        path, files = self.path.partition("?")[0], self.server.files
        self.server.asked.append(f"{self.command} {path}")
        if path == f"/api/models/{REPO}/revision/main" and files:
            self.answer({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(x), "oid": f"{i:040x}"}
                for i, (name, x) in enumerate(files.items())
            ]
            self.answer(entries)
        elif path.startswith(f"/{REPO}/resolve/") and (name := path.rpartition("/")[2]) in files:
            self.answer(files[name], ETag=f'"{list(files).index(name):040x}"', X_Repo_Commit=COMMIT)
        else:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.answer({"url": f"http://127.0.0.1/{REPO}"})
        elif self.path.endswith("/preupload/main"):
            named = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(content)["files"]]
            self.answer({"files": [f | {"shouldIgnore": False} for f in named]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"http://127.0.0.1/{REPO}/commit/{COMMIT}"})
        else:
            self.answer({"valid": True} if "validate-yaml" in self.path else {}, 200)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.asked = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def test_a_folder_is_loaded_and_written_without_a_request(untrained: Path, tmp_path: Path, server: Server) -> None:
    predictor = Predictor.from_pretrained(untrained, batch_size=2)
    assert predictor.batch_size == 2
    assert predictor.provenance.model == untrained.name
    predictor.save(tmp_path / "saved")
    saved, original = load_trained(tmp_path / "saved"), load_trained(untrained)
    jax.tree.map(np.testing.assert_array_equal, (saved.params, saved.stats), (original.params, original.stats))
    assert Predictor.from_pretrained(tmp_path / "saved").provenance.checksum == predictor.provenance.checksum
    with pytest.raises(FileExistsError):
        predictor.save(tmp_path / "saved")
    assert server.asked == []


def test_a_colorizer_is_uploaded_and_fetched(untrained: Path, tmp_path: Path, server: Server) -> None:
    predictor = Predictor(untrained)
    assert predictor.push_to_hub(REPO, token="hf_test").endswith(COMMIT)
    assert {"README.md", "config.json", "classes.json", "model.safetensors"} <= server.files.keys()
    assert b"library_name: colorjax" in server.files["README.md"]
    assert json.loads(server.files["config.json"])["model"] == json.loads(predictor.config.to_json())["model"]
    server.files["unasked.bin"] = b"0"
    fetched = Predictor.from_pretrained(REPO, cache_dir=tmp_path / "cache", token=False, size=40)
    assert fetched.size == 40
    assert fetched.provenance.checksum == predictor.provenance.checksum
    assert fetched.provenance.model == REPO
    assert not any("unasked.bin" in asked for asked in server.asked)
    with pytest.raises(OSError, match="404"):
        Predictor.from_pretrained("anna/absent", cache_dir=tmp_path / "cache", token=False)


def test_without_huggingface_hub_the_error_names_the_extra(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "colorjax\[hub\]"'):
        Predictor.from_pretrained(untrained)
