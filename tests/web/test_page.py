"""The page, asked over HTTP by a visitor who means harm, and used in a real browser."""

import contextlib
import gc
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mixed_photos
import numpy as np
import pytest
import skimage.data
from PIL import Image, PngImagePlugin

from colorjax.photos.predictor import Prediction, Predictor
from colorjax.run import compilation
from colorjax.web import page as web_page
from colorjax.web import server

pytest.importorskip("gradio", reason="the page needs Gradio: pip install gradio")
httpx = pytest.importorskip("httpx", reason="comes with Gradio")

CHROMIUM = Path("/usr/bin/chromium")
# Gradio and Pandas warn of each other, and Gradio leaves event loops and sockets open.
pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class Served:
    """A page that is being served, by a predictor that keeps what it was asked."""

    url: str
    predictor: Predictor
    asked: list[dict[str, Any]]
    at_once: list[int]


UNOPTIMIZED = {"xla_backend_optimization_level": 0}  # compiling costs more than all else here


@pytest.fixture(scope="module")
def predictor(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "compiler_options", lambda: UNOPTIMIZED)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Predictor(untrained)


@pytest.fixture(scope="module")
def served(predictor: Predictor) -> Iterator[Served]:
    asked: list[dict[str, Any]] = []
    at_once, busy = [], []

    def predict(photos: Any, **rest: Any) -> list[Prediction]:
        asked.append({"photos": photos, **rest})
        busy.append(1)
        at_once.append(len(busy))
        predictions = Predictor.predict(predictor, photos, **rest)
        busy.pop()
        return predictions

    predictor.predict = predict
    with server.serving(predictor, port=free_port(), max_megabytes=1, max_megapixels=1) as url:
        yield Served(url, predictor, asked, at_once)
    gc.collect()  # what Gradio left open is reported here, and not in the tests of other files


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass
class Visitor:
    """A person's browser, as far as the server sees it."""

    url: str
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.dependencies = {d["api_name"]: d for d in self.http.get("/config").json()["dependencies"]}

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return file_at(answer.json()[0], name)

    def join(self, function: str, *data: Any, event: Any = None) -> Any:
        """The answer to a request to run one of the page's functions, all inputs given; the session's is ignored."""
        body = {"fn_index": self.dependencies[function]["id"], "session_hash": self.session, "data": data}
        body |= {} if event is None else {"event_data": event}
        return self.http.post("/gradio_api/queue/join", json=body)

    def call(self, function: str, *data: Any, event: Any = None) -> dict[str, Any]:
        """The message that ends the function's run."""
        self.join(function, *data, event=event).raise_for_status()
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:") and (message := json.loads(line[5:]))["msg"] == "process_completed":
                    return message
        raise AssertionError("the stream ended before the function did")

    def color(
        self, photo: Any, *, style: Any = None, hint: str = "", temperature: float = 0.38, unsure: bool = False
    ) -> "Shown":
        return Shown.of(self.call("color_photo", photo, None, style, hint, 1.0, temperature, unsure), self)

    def picture(self, file: dict[str, Any]) -> np.ndarray:
        answer = self.http.get(f"/gradio_api/file={file['path']}")
        answer.raise_for_status()
        return np.asarray(Image.open(io.BytesIO(answer.content)))


@dataclass
class Shown:
    """What the page shows once a photo is colored, or is not."""

    message: str
    pair: list[np.ndarray] | None
    likeliest: list[tuple[str, float]]

    @classmethod
    def of(cls, ended: dict[str, Any], visitor: Visitor) -> "Shown":
        assert ended["success"], ended
        message, _, pair, likeliest = ended["output"]["data"][:4]
        return cls(
            message_text(message),
            [visitor.picture(p) for p in pair] if isinstance(pair, list) else None,  # else an update of nothing
            [(c["label"], c["confidence"]) for c in likeliest.get("confidences") or []],
        )


def message_text(message: dict[str, Any]) -> str:
    return re.sub("<[^>]*>", "", message["value"]) if message["visible"] else ""


def file_at(path: str, name: str = "photo.png") -> dict[str, Any]:
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def encoded(rgb: np.ndarray, format: str = "PNG", **rest: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format, **rest)
    return buffer.getvalue()


def alike(shown: np.ndarray, expected: np.ndarray) -> bool:
    """Whether they are the same but for JPEG, which is off by some levels, though not on average."""
    difference = shown.astype(int) - expected
    return bool(np.abs(difference).mean() < 4 and np.abs(difference.mean(axis=(0, 1))).max() < 1)


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    return skimage.data.chelsea()[40:200, 80:240]


@pytest.fixture
def visitor(served: Served) -> Visitor:
    return Visitor(served.url)


def test_a_photo_is_colored_and_the_sliders_do_not_ask_the_network(
    served: Served, visitor: Visitor, cat: np.ndarray
) -> None:
    photo = visitor.upload("cat.png", encoded(cat))
    shown = visitor.color(photo)
    assert shown.message == ""
    (expected,) = Predictor.predict(served.predictor, [cat])
    assert shown.pair is not None
    gray, colored = shown.pair
    assert alike(colored, expected.render(temperature=0.38))
    assert np.ptp(gray.astype(int), axis=-1).max() <= 2
    assert np.abs(gray[..., 0] - np.asarray(Image.fromarray(cat).convert("L"), int)).mean() < 12
    assert shown.likeliest == [(name.replace("_", " "), pytest.approx(p)) for name, p in expected.likeliest(5)]

    asked = len(served.asked)
    message, pair, _ = visitor.call("render", None, 2.0, 0.1, False)["output"]["data"]
    assert message_text(message) == ""
    changed = visitor.picture(pair[1]["value"] if "value" in pair[1] else pair[1])
    assert alike(changed, expected.render(temperature=0.1, saturation=2.0))
    assert not alike(changed, colored)
    _, pair, _ = visitor.call("render", None, 1.0, 0.38, True)["output"]["data"]
    unsure = visitor.picture(pair[1]["value"] if "value" in pair[1] else pair[1])
    large = Image.fromarray(expected.uncertainty()).resize(cat.shape[1::-1], Image.Resampling.BILINEAR)
    heat = np.interp(np.asarray(large), np.linspace(0, 1, 5), [68, 59, 33, 94, 253])
    assert np.abs(unsure[..., 0] - (expected.render()[..., 0] / 3 + heat * 2 / 3)).mean() < 4
    assert len(served.asked) == asked


def test_points_are_added_and_undone_and_another_coloring_is_chosen(
    served: Served, visitor: Visitor, cat: np.ndarray
) -> None:
    assert visitor.color(visitor.upload("cat.png", encoded(cat))).message == ""
    asked = len(served.asked)
    (own,) = Predictor.predict(served.predictor, [cat])
    settings = (1.0, 0.38, False)

    def shown(function: str, *data: Any, event: Any = None) -> tuple[str, np.ndarray | None]:
        message, pair, *_ = visitor.call(function, None, *data, *settings, event=event)["output"]["data"]
        colored = pair[1].get("value", pair[1]) if isinstance(pair, list) else None
        return message_text(message), None if colored is None else visitor.picture(colored)

    def point(x: Any, y: Any, color: str) -> tuple[str, np.ndarray | None]:
        return shown("add_point", color, event={"index": [x, y], "value": None})

    given = [(100, 60, "#3060a0"), (20, 130, "#a03060")]
    for count, (x, y, color) in enumerate(given, start=1):
        message, colored = point(x, y, color if count == 1 else "rgba(160.2, 48, 95.9, 1)")
        assert message == ""
        assert colored is not None
        assert alike(colored, own.with_points(given[:count]).render(temperature=0.38))
    message, colored = shown("undo_point")
    assert colored is not None
    assert alike(colored, own.with_points(given[:1]).render(temperature=0.38))
    for wrong in ((160, 0, "#000000"), (-1, 0, "#000000"), ("x", None, "#000000"), (1, 2, "blue")):
        message, colored = point(*wrong)
        assert "point" in message
        assert colored is None

    _, gallery, _ = visitor.call("suggest", None)["output"]["data"]
    candidates = own.candidates(4)
    assert len(gallery) == 4
    for one, expected in zip(gallery, candidates, strict=True):
        assert alike(visitor.picture(one["image"]), expected.render())
    message, colored = shown("choose", event={"index": 2, "value": None})
    assert colored is not None
    assert alike(colored, candidates[2].with_points(given[:1]).render(temperature=0.38))
    assert shown("choose", event={"index": 9, "value": None})[0] == "There is no such coloring."
    # The download has both.
    _, file, _ = visitor.call("write", None, 1.0, 0.38)["output"]["data"]
    expected = candidates[2].with_points(given[:1]).render(temperature=0.38)
    np.testing.assert_array_equal(visitor.picture(file), expected)
    assert len(served.asked) == asked


def test_a_style_and_a_class_are_asked_of_the_network(served: Served, visitor: Visitor, cat: np.ndarray) -> None:
    photo, coffee = visitor.upload("cat.png", encoded(cat)), skimage.data.coffee()[::4, ::4]
    style = visitor.upload("coffee.png", encoded(coffee))
    name = served.predictor.class_names[2]
    plain, styled = visitor.color(photo), visitor.color(photo, style=style)
    np.testing.assert_array_equal(served.asked[-1]["style"], coffee)
    guided = visitor.color(photo, style=style, hint=name)
    assert served.asked[-1]["hint"] == name
    for one, other in ((plain, styled), (styled, guided)):
        assert one.pair is not None
        assert other.pair is not None
        np.testing.assert_array_equal(one.pair[0], other.pair[0])
        assert (one.pair[1] != other.pair[1]).any()


def test_the_download_has_the_photos_size_format_and_metadata(
    served: Served, visitor: Visitor, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = skimage.data.chelsea()[:300, :300]
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "a grandmother")
    content = encoded(rgb, pnginfo=text, dpi=(300, 300))
    monkeypatch.setattr(web_page, "PREVIEW_SIDE", 90)
    shown = visitor.color(visitor.upload("Großmutter 1931.png", content))
    assert shown.pair is not None
    assert shown.pair[1].shape == (90, 90, 3)
    message, file, _ = visitor.call("write", None, 1.5, 0.2)["output"]["data"]
    assert message_text(message) == ""
    assert re.fullmatch(r"Gro.*mutter 1931-color\.png", Path(file["path"]).name)
    answer = visitor.http.get(f"/gradio_api/file={file['path']}")
    written = Image.open(io.BytesIO(answer.content))
    assert written.format == "PNG"
    assert written.info["Author"] == "a grandmother"
    assert written.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    (expected,) = Predictor.predict(predictor, [rgb])
    np.testing.assert_array_equal(np.asarray(written), expected.render(temperature=0.2, saturation=1.5))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("letter.jpg", b"Dear grandmother,\n", "letter.jpg: not a photo"),
        ("empty.png", b"", "empty.png: .*empty"),
        ("cut.jpg", encoded(skimage.data.coffee(), "JPEG")[:9000], "cut.jpg: .*truncated"),
        ("bomb.png", encoded(np.zeros((9000, 9000), bool)), "bomb.png: .*81.0 megapixels.*limit of 1.0"),
        ("<script>alert(1)<script>.png", b"x", "not a photo"),
    ],
)
def test_a_file_that_is_not_a_photo_is_reported_and_the_page_goes_on(
    visitor: Visitor, cat: np.ndarray, name: str, content: bytes, message: str
) -> None:
    shown = visitor.color(visitor.upload(name, content))
    assert re.search(message, shown.message), shown.message
    assert "/" not in shown.message  # where it lies on the server
    assert shown.pair is None
    assert visitor.color(visitor.upload("cat.png", encoded(cat))).pair


def test_a_full_disk_is_a_message_without_a_path(
    visitor: Visitor, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = visitor.upload("cat.png", encoded(cat))
    assert visitor.color(photo).pair

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", "/somewhere/secret")

    with monkeypatch.context() as patch:
        patch.setattr(web_page, "_picture", full)
        patch.setattr(web_page, "write_photo", full)
        assert visitor.color(photo).message == "The server failed: No space left on device."
        for function, more in (("render", [False]), ("write", [])):
            message = visitor.call(function, None, 1.0, 0.38, *more)["output"]["data"][0]
            assert message_text(message) == "The server failed: No space left on device."
    assert visitor.color(photo).pair


@pytest.mark.slow
def test_of_fifty_mixed_files_each_is_colored_and_downloaded_or_refused(visitor: Visitor, tmp_path: Path) -> None:
    mixed = mixed_photos.write_all(tmp_path, huge=(300, 400))
    for file in mixed:
        shown = visitor.color(visitor.upload(file.name, (tmp_path / file.name).read_bytes()))
        if file.refused:
            assert re.search(file.refused, shown.message), (file.name, shown)
            assert shown.pair is None
            continue
        made_of = file.gray if file.rgb is None else file.rgb
        assert made_of is not None
        size = made_of.shape[:2]
        assert shown.pair is not None, (file.name, shown)
        assert [picture.shape for picture in shown.pair] == [(*size, 3)] * 2
        message, written, _ = visitor.call("write", None, 1.0, 0.38)["output"]["data"]
        assert message_text(message) == ""
        assert visitor.picture(written).shape[:2] == size, file.name


def test_an_upload_beyond_the_limit_is_refused(served: Served, visitor: Visitor) -> None:
    def answer(length: int, **rest: Any) -> Any:
        return visitor.http.post("/gradio_api/upload", files={"files": ("a.png", bytes(length))}, **rest).status_code

    assert answer(2**20) == 200
    assert answer(2**20 + 1) == 413  # by Gradio, of the file
    assert answer(2**20 + 2**17) == 413  # by AccessControl, of the request
    three = [("files", (f"{i}.png", bytes(2**19))) for i in range(3)]
    assert visitor.http.post("/gradio_api/upload", files=three).status_code == 413

    def parts() -> Iterator[bytes]:
        yield b"of unknown length"

    assert visitor.http.post("/gradio_api/upload", content=parts()).status_code == 411
    assert visitor.http.post("/gradio_api/queue/join", content=bytes(2**17)).status_code == 413


def test_no_file_of_the_server_is_served(served: Served, visitor: Visitor, untrained: Path) -> None:
    own = Path(visitor.upload("own.png", b"mine")["path"])
    folder = own.parents[1]
    secret = folder.parent / f"{folder.name}-secret.txt"
    secret.write_text("nobody's business")
    (folder / "link.txt").symlink_to(secret)
    try:
        assert visitor.http.get(f"/gradio_api/file={own}").content == b"mine"
        for path in (
            "/etc/passwd",
            f"{folder}/../../../../../../etc/passwd",
            f"{folder}/..%2f..%2f..%2f..%2fetc%2fpasswd",
            f"{folder}/%2e%2e/{secret.name}",
            f"{folder}-secret.txt",
            f"{folder}/link.txt",
            str(untrained / "config.json"),
            str(Path.cwd() / "README.md"),
            "README.md",
            "../../etc/passwd",
            "file:///etc/passwd",
            "http://127.0.0.1:9/",
            f"{served.url}config",
            str(folder),
            f"{folder}/%00",
            f"{folder}/../{'x' * 5000}",
        ):
            status, text = asked_raw(served.url, f"/gradio_api/file={path}")
            assert status == 403, path
            assert "root:" not in text
            assert "nobody" not in text
    finally:
        secret.unlink()


def asked_raw(url: str, path: str) -> tuple[int, str]:
    """An answer to a path as it is: httpx would tidy up the dots."""
    host, port = url.removeprefix("http://").strip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as s:
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: s.recv(65536), b""))
    return int(answer.split()[1]), answer.decode(errors="replace")


def test_a_request_cannot_name_a_file_of_the_server(
    served: Served, visitor: Visitor, untrained: Path, cat: np.ndarray
) -> None:
    secret = untrained.parent / "secret.png"
    secret.write_bytes(encoded(cat))
    own, asked = visitor.upload("cat.png", encoded(cat)), len(served.asked)
    for file in (file_at(str(secret)), {"path": str(secret)}, file_at("/etc/passwd"), str(secret)):
        requests: list[tuple[Any, ...]] = [
            ("color_photo", file, None, None, "", 1.0, 0.38, False),
            ("color_photo", own, None, file, "", 1.0, 0.38, False),
            ("color_photo", own, None, None, file, 1.0, 0.38, False),
            ("color_photo", own, None, None, "", file, 0.38, False),
            ("color_photo", None, {"upload": str(secret)}, None, "", 1.0, 0.38, False),
            ("write", {"upload": str(secret)}, 1.0, 0.38),
            ("write", file, 1.0, file),
        ]
        for request in requests:
            ended = visitor.call(*request)
            assert "root:" not in json.dumps(ended)
            if ended["success"]:
                assert message_text(ended["output"]["data"][0])
    assert len(served.asked) == asked


def test_a_request_cannot_have_the_server_fetch_an_address(visitor: Visitor, cat: np.ndarray) -> None:
    for address in ("http://127.0.0.1:9/cat.png", "https://192.0.2.1/cat.png"):
        for place in ((file_at(address), None, None, ""), (None, None, None, [file_at(address)])):
            assert visitor.join("color_photo", *place, 1.0, 0.38, False).status_code == 403
    assert visitor.http.post("/gradio_api/queue/join", content=b"[" * 60_000).status_code == 403
    assert visitor.color(visitor.upload("cat.png", encoded(cat))).pair


def test_a_call_of_a_function_that_the_page_does_not_have_is_refused(visitor: Visitor) -> None:
    for index in (-1, 999, True, 1.0, "0", None, [0]):
        body = {"fn_index": index, "session_hash": visitor.session, "data": []}
        assert visitor.http.post("/gradio_api/queue/join", json=body).status_code == 400, index
    assert visitor.http.post("/gradio_api/queue/join", json={"data": []}).status_code == 400


def test_dropped_uploads_and_coloring_leave_nothing_behind(
    served: Served,
    visitor: Visitor,
    cat: np.ndarray,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    photo = visitor.upload("cat.png", encoded(cat))
    folder = Path(photo["path"]).parents[1]
    before = set(folder.rglob("*"))
    host, port = served.url.removeprefix("http://").strip("/").split(":")
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    for path in ("upload", "queue/join"):
        head = f"POST /gradio_api/{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        for _ in range(10):
            with socket.create_connection((host, int(port)), timeout=10) as s:
                s.sendall(f"{head}Content-Length: 60000\r\n\r\n".encode() + form + bytes(20_000))
    assert visitor.color(photo).pair
    added = set(folder.rglob("*")) - before
    assert all(path.suffix == ".jpg" for path in added), added  # the two pictures on the page
    assert len(added) == 2
    assert "Traceback" not in caplog.text + capfd.readouterr().err


def test_uploads_that_do_not_arrive_do_not_fill_the_memory(served: Served, visitor: Visitor) -> None:
    host, port = served.url.removeprefix("http://").strip("/").split(":")
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: {2**20}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(17):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10)).sendall(head)
        until(lambda: upload_status(visitor, 2**20) == 503, seconds=10)
    until(lambda: upload_status(visitor, 2**20) == 200, seconds=10)


def upload_status(visitor: Visitor, length: int) -> int:
    return visitor.http.post("/gradio_api/upload", files={"files": ("a.png", bytes(length))}).status_code


def test_nothing_but_the_page_is_answered(visitor: Visitor) -> None:
    for path in (
        "/docs",
        "/openapi.json",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/openapi.json",
        "/gradio_api/proxy=http://127.0.0.1:9/",
        "/gradio_api/runs",
        "/gradio_api/vibe-code",
        "/gradio_api/custom_component/x/client/component/..%2f..%2findex.js",
        "/gradio_api/deep_link?session_hash=a",
        "/gradio_api/file/etc/passwd",
    ):
        assert visitor.http.get(path).status_code == 404, path
    for path in ("run/color_photo", "call/color_photo", "api/predict", "vibe-edit", "process_recording", "stream/a"):
        assert visitor.http.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404, path
    assert visitor.http.request("DELETE", "/").status_code == 404
    for path in ("/assets/..%2f..%2f..%2froutes.py", "/static/..%2f..%2f..%2froutes.py"):
        assert visitor.http.get(path).status_code >= 400


def test_the_page_is_reached_from_this_machine_alone(
    served: Served, predictor: Predictor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(served.url.strip("/").rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)

    # Bound elsewhere it says so, before anything is served.
    def stop(*_: Any, **__: Any) -> Any:
        raise InterruptedError

    monkeypatch.setattr(web_page, "make_page", stop)
    for host, warned in (
        ("example.org", True),
        ("0.0.0.0", True),
        ("192.0.2.1", True),
        ("localhost", False),
        ("::1", False),
    ):
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, "colorjax.web"),
            pytest.raises(InterruptedError),
            server.serving(predictor, host=host, port=7860),
        ):
            pass
        assert ("without a password" in caplog.text) == warned


def test_the_network_colors_one_photo_at_a_time(served: Served, cat: np.ndarray) -> None:
    visitors = [Visitor(served.url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        photos = [v.upload("cat.png", encoded(cat)) for v in visitors]
        shown = list(pool.map(lambda v, p: v.color(p), visitors, photos))
    assert all(s.pair for s in shown)
    assert max(served.at_once) == 1


def test_sessions_know_nothing_of_each_other_are_forgotten_and_have_limits(
    served: Served, predictor: Predictor, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, third = (Visitor(served.url) for _ in range(3))
    photo = third.upload("another cat.png", encoded(cat))
    assert one.color(one.upload("cat.png", encoded(cat))).pair
    assert third.color(photo).pair
    Path(photo["path"]).unlink()  # as Gradio does after half an hour
    for function, more in (("render", [False]), ("write", [])):
        for visitor in (other, third):
            message, *rest = visitor.call(function, None, 1.0, 0.38, *more)["output"]["data"]
            assert "no longer kept" in message_text(message)
            assert "path" not in json.dumps(rest)
    assert "no longer kept" in third.color(photo).message

    monkeypatch.setattr(web_page, "KEPT", 1.0)
    with server.serving(predictor, port=free_port()) as url:
        one = Visitor(url)
        assert one.color(one.upload("cat.png", encoded(cat))).pair
        time.sleep(2.5)
        assert "no longer kept" in message_text(one.call("render", None, 1.0, 0.38, False)["output"]["data"][0])
        folder = Path(one.upload("own.png", b"mine")["path"]).parents[1]
        until(lambda: not list(folder.iterdir()), seconds=20)  # folders too
        assert folder.exists()
    assert not folder.exists()

    monkeypatch.undo()
    monkeypatch.setattr(server, "_SESSIONS", 2)
    monkeypatch.setattr(server, "_SPACE", 2**20)
    with server.serving(predictor, port=free_port()) as url:
        visitors = [Visitor(url) for _ in range(3)]
        for visitor in visitors:
            assert visitor.color(visitor.upload("cat.png", encoded(cat))).pair
        messages = [
            message_text(v.call("render", None, 1.0, 0.38, False)["output"]["data"][0]) for v in reversed(visitors)
        ]
        assert messages[:2] == ["", ""]
        assert "no longer kept" in messages[2]
        visitors[0].upload("large.png", bytes(2**20))
        with pytest.raises(httpx.HTTPStatusError, match="507"):
            visitors[0].upload("small.png", b"mine")


def test_without_gradio_the_error_names_what_to_install(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match="pip install gradio"), server.serving(predictor, port=free_port()):
        pass


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end(untrained: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "colorjax", "demo", f"--port={port}"]
    unoptimized = " ".join(f"--{name}={value}" for name, value in UNOPTIMIZED.items())
    environment = os.environ | {"TMPDIR": str(tmp_path), "XLA_FLAGS": unoptimized}
    root = Path(web_page.__file__).parents[2]
    running = subprocess.Popen([*command, f"--checkpoint={untrained}"], cwd=root, env=environment)
    try:
        until(lambda: running.poll() is not None or is_listening(port), seconds=120)
        assert "Color a photo" in httpx.get(f"http://127.0.0.1:{port}/").text
        assert [p.name for p in tmp_path.glob("colorjax-*")]
        running.terminate()
        assert running.wait(timeout=30) == 0
    finally:
        running.kill()
    assert not list(tmp_path.glob("colorjax-*"))


def is_listening(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def until(true: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_port_that_is_taken_is_named(served: Served, predictor: Predictor) -> None:
    port = int(served.url.strip("/").rsplit(":", 1)[1])
    with pytest.raises(OSError, match=f"port {port}, which may be taken"), server.serving(predictor, port=port):
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser's tests need it: pip install playwright"
    )
    if not CHROMIUM.exists():
        pytest.skip("the browser's tests need Chromium: apt-get install chromium")
    # Each keeps Chromium from asking its maker for anything.
    quiet = ["background-networking", "component-update", "sync", "quic"]
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(
            executable_path=str(CHROMIUM),
            args=[
                f"--{name}"
                for name in ("headless", "no-sandbox", "no-first-run", "disable-gpu", *(f"disable-{x}" for x in quiet))
            ],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, served: Served) -> Iterator[Callable[[int], Any]]:
    """Opens the page in a window of some width; at the end, everything it asked for must have been the server's."""
    pages, requested = [], []

    def open_page(width: int) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.set_default_timeout(15_000)
        page.on("request", lambda request: requested.append(request.url))
        page.goto(served.url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    elsewhere = [u for u in requested if not u.startswith((served.url, "data:", "blob:"))]
    assert not elsewhere
    assert requested


def drop(page: Any, name: str, content: bytes, *, which: str = "#photo") -> None:
    page.set_input_files(
        f"{which} input[type=file]", {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    )


def pictures_shown(page: Any, other_than: Sequence[str] = ()) -> list[str]:
    """The addresses of the slider's two pictures, once the browser has drawn them and they are others."""
    return page.wait_for_function(
        """before => {
            const shown = [...document.querySelectorAll('#pair img')], src = shown.map(i => i.src);
            const drawn = shown.length == 2 && shown.every(i => i.complete && i.naturalWidth > 0);
            return drawn && src.join() != before.join() && src;
        }""",
        arg=list(other_than),
    ).json_value()


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_a_photo_is_colored_tuned_and_downloaded(
    opened: Callable[[int], Any], served: Served, cat: np.ndarray, width: int
) -> None:
    page = opened(width)
    drop(page, "cat.png", encoded(cat))
    shown = pictures_shown(page)
    assert len(set(shown)) == 2
    assert page.locator("#likeliest .confidence").count() == 5
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    asked = len(served.asked)
    saturation = page.get_by_label("number input for Saturation")
    saturation.fill("0")
    saturation.press("Enter")
    tuned = pictures_shown(page, other_than=shown)
    page.get_by_label("Show where the network is unsure").check()
    pictures_shown(page, other_than=tuned)
    assert len(served.asked) == asked

    with page.expect_download() as download:
        page.get_by_role("button", name="Download at full size").click()
    assert download.value.suggested_filename == "cat-color.png"
    written = np.asarray(Image.open(download.value.path()))
    assert written.shape == cat.shape
    assert np.ptp(written.astype(int), axis=-1).max() <= 1  # saturation is 0


def test_in_a_browser_a_bad_file_is_reported_and_the_next_photo_is_colored(
    opened: Callable[[int], Any], cat: np.ndarray
) -> None:
    page = opened(390)
    bomb = encoded(np.zeros((9000, 9000), bool))
    for name, content, message in (
        ("letter.jpg", b"Dear grandmother,\n", "letter.jpg"),
        ("bomb.png", bomb, "limit of 1.0"),
        ("cut.jpg", encoded(skimage.data.coffee(), "JPEG")[:9000], "cut.jpg"),
    ):
        drop(page, name, content)
        page.locator("#message", has_text=message).wait_for()
        # The box is empty again, for another photo.
        page.locator("#photo input[type=file]").wait_for(state="attached")
    drop(page, "huge.png", bytes(2**20 + 2**17))
    page.get_by_text("exceed the maximum allowed size of 1").wait_for()
    drop(page, "cat.png", encoded(cat))
    pictures_shown(page)
    assert page.locator("#message").count() == 0


@pytest.mark.slow
def test_in_a_browser_a_style_and_a_class_change_the_colors(
    opened: Callable[[int], Any], served: Served, cat: np.ndarray
) -> None:
    page = opened(1280)
    drop(page, "cat.png", encoded(cat))
    plain = pictures_shown(page)
    page.get_by_text("Guide the colors").click()
    drop(page, "coffee.png", encoded(skimage.data.coffee()[::4, ::4]), which="#style")
    styled = pictures_shown(page, other_than=plain)
    assert served.asked[-1]["style"] is not None
    page.get_by_label("What the photo shows").click()
    name = served.predictor.class_names[1]
    page.get_by_role("option", name=name.replace("_", " "), exact=True).click()
    pictures_shown(page, other_than=styled)
    assert served.asked[-1]["style"] is not None
    assert served.asked[-1]["hint"] == name


@pytest.mark.slow
def test_in_a_browser_a_click_adds_a_color_point_and_undo_removes_it(
    opened: Callable[[int], Any], served: Served, cat: np.ndarray
) -> None:
    page = opened(1280)
    drop(page, "cat.png", encoded(cat))
    plain = pictures_shown(page)
    asked = len(served.asked)
    page.get_by_text("Color points").click()
    page.locator("#canvas img").click(position={"x": 30, "y": 30})
    pointed = pictures_shown(page, other_than=plain)
    page.get_by_role("button", name="Undo the last point").click()
    pictures_shown(page, other_than=pointed)
    page.get_by_text("Other colorings", exact=True).click()
    page.get_by_role("button", name="Show other colorings").click()
    page.locator("#gallery .thumbnail-item").nth(3).wait_for()
    before = pictures_shown(page)
    page.locator("#gallery .thumbnail-item").nth(1).click()
    pictures_shown(page, other_than=before)
    assert len(served.asked) == asked
