"""A run's colorizer, loaded by its path; and the portable folder, read by other programs and damaged in many ways."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy

from colorjax.model.colorizer import SHARED
from colorjax.model.program import init_model
from colorjax.run import sharding
from colorjax.run.checkpoints import Checkpoints
from colorjax.run.trained import Trained, load_trained, save_trained
from colorjax.run.workdir import bind_config, save_class_names
from colorjax.training.optimizer import init_state
from configs import quickstart


def test_a_run_is_loaded_by_its_path(untrained: Path) -> None:
    got = load_trained(str(untrained))
    assert got.step == 0
    assert list(got.class_names) == json.loads((untrained / "classes.json").read_text())
    assert json.loads(got.config.to_json()) == json.loads((untrained / "config.json").read_text())
    # The fixture's parameters are the initial ones.
    params, _ = init_model(got.config, "joint", classes=len(got.class_names))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: isinstance(a, np.ndarray) and np.array_equal(a, b), got.params, params)
    )


def test_what_is_no_colorizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_trained(tmp_path)
    bind_config(quickstart.get_config(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither a run.s joint stage .* nor .*model\.safetensors"):
        load_trained(tmp_path)
    params = {"low_level": {"0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}}
    stats = {"low_level": {"0": {"mean": np.ones(3, np.float32)}}}
    checkpoints = Checkpoints(tmp_path / "joint" / "checkpoints")
    checkpoints.save(init_state(params, stats, optax.adam(1e-3), sharding.make_mesh()))
    checkpoints.close()
    with pytest.raises(FileNotFoundError, match=r"classes\.json is missing"):
        load_trained(tmp_path)
    save_class_names(tmp_path, ("pie", "soup"))
    with pytest.raises(ValueError, match=r"checkpoints does not fit the model that .*; missing: params"):
        load_trained(tmp_path)


def test_other_classes_than_the_run_began_with_are_refused(tmp_path: Path) -> None:
    save_class_names(tmp_path, ("pie", "soup"))
    save_class_names(tmp_path, ("pie", "soup"))
    with pytest.raises(ValueError, match=r"2 there, 3 now, differing in cake;"):
        save_class_names(tmp_path, ("cake", "pie", "soup"))
    with pytest.raises(ValueError, match="their order"):
        save_class_names(tmp_path, ("soup", "pie"))
    assert json.loads((tmp_path / "classes.json").read_text()) == ["pie", "soup"]


@pytest.fixture(scope="module")
def run(untrained: Path) -> Trained:
    return load_trained(untrained)


@pytest.fixture(scope="module")
def folder(run: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portable") / "folder"
    save_trained(run, path)
    return path


def test_a_whole_model_is_loaded_by_its_path(run: Trained) -> None:
    assert run.params.keys() > {*SHARED, "colorization"}
    assert len(run.class_names) == 8


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_a_portable_folder_holds_every_bit(run: Trained, tmp_path: Path, format: str) -> None:
    save_trained(replace(run, step=7), tmp_path / "deep" / "out", format=format)
    got = load_trained(tmp_path / "deep" / "out")
    assert got.class_names == run.class_names
    assert got.step == 7
    assert got.config.model == run.config.model
    assert run.prior is not None
    assert got.prior is not None
    assert np.array_equal(got.prior.p, run.prior.p)
    assert got.prior.photos == run.prior.photos
    equal = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes(), (got.params, got.stats), (run.params, run.stats)
    )
    assert jax.tree.all(equal)
    assert [path.name for path in tmp_path.glob("deep/*")] == ["out"]
    assert not any(path.stat().st_mode & 0o111 for path in tmp_path.glob("deep/out/*"))  # none is a program


def test_other_programs_read_it(run: Trained, folder: Path, tmp_path: Path) -> None:
    save_trained(run, tmp_path / "npz", format="npz")
    with np.load(tmp_path / "npz" / "model.npz", allow_pickle=False) as file:
        both = [dict(file), safetensors.numpy.load_file(folder / "model.safetensors")]
    expected = {
        ".".join((prefix, *(str(key.key) for key in path))): leaf
        for prefix, tree in (("params", run.params), ("stats", run.stats))
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    assert "params.low_level.layers.0.conv.kernel" in expected
    for tensors in both:
        assert tensors.keys() == expected.keys() | {"step"}
        assert all(np.array_equal(tensors[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("format", "dtype", "relative"),
    [("safetensors", "bfloat16", 2**-8), ("safetensors", "float16", 2**-11), ("npz", "float16", 2**-11)],
)
def test_fewer_bits_round(run: Trained, tmp_path: Path, format: str, dtype: str, relative: float) -> None:
    save_trained(run, tmp_path / "out", format=format, dtype=dtype)
    (file,) = tmp_path.glob("out/model.*")
    whole = sum(x.size for x in jax.tree.leaves((run.params, run.stats)))
    assert 2 * whole < file.stat().st_size < 2.2 * whole + 60_000
    got = load_trained(tmp_path / "out")
    pairs = zip(jax.tree.leaves((got.params, got.stats)), jax.tree.leaves((run.params, run.stats)), strict=True)
    for mine, exact in pairs:
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, exact, rtol=relative, atol=2**-25)


def test_a_value_that_float16_cannot_hold_is_refused(run: Trained, tmp_path: Path) -> None:
    large = replace(run, params=run.params | {"fusion": jax.tree.map(lambda x: x + 1e5, run.params["fusion"])})
    with pytest.raises(ValueError, match=r"params\.fusion\..* reaches 1000.*take dtype=bfloat16"):
        save_trained(large, tmp_path / "out", dtype="float16")
    assert not any(tmp_path.iterdir())
    save_trained(large, tmp_path / "out", dtype="bfloat16")


def test_shards_together_are_the_whole(run: Trained, folder: Path, tmp_path: Path) -> None:
    save_trained(run, tmp_path / "out", max_shard_size=1_500_000)
    shards = sorted(tmp_path.glob("out/*.safetensors"))
    assert len(shards) > 2
    assert [path.name for path in shards] == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    read = [safetensors.numpy.load_file(path) for path in shards]
    # A tensor that is larger by itself stands alone.
    assert all(sum(x.nbytes for x in one.values()) <= 1_500_000 or len(one) == 1 for one in read)
    whole = safetensors.numpy.load_file(folder / "model.safetensors")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    places = {key: path.name for path, one in zip(shards, read, strict=True) for key in one}
    assert index["weight_map"] == places
    assert sum(map(len, read)) == len(places)
    got = load_trained(tmp_path / "out")
    assert jax.tree.all(jax.tree.map(np.array_equal, (got.params, got.stats), (run.params, run.stats)))

    shards[1].rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"{shards[1].name} is missing, which the index names"):
        load_trained(tmp_path / "out")
    shutil.copy(shards[0], shards[1])
    with pytest.raises(ValueError, match=rf"{shards[1].name} and .*index\.json disagree"):
        load_trained(tmp_path / "out")


def test_paths_of_the_machine_stay_there(run: Trained, tmp_path: Path) -> None:
    config = run.config.copy_and_resolve_references().unlock()
    config.data.dir, config.data.prior = "/home/someone/secret/food101", "/home/someone/prior.npz"
    config.data.teacher, config.joint.init_from = "/home/someone/teacher.npy", "/scratch/runs/pretrained/"
    save_trained(replace(run, config=config.lock()), tmp_path / "out")
    got = load_trained(tmp_path / "out").config
    assert (got.data.dir, got.data.prior, got.joint.init_from) == ("food101", "prior.npz", "pretrained")
    assert got.data.teacher == "teacher.npy"


def _rewritten(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        tensors = safetensors.numpy.load_file(file)
        change(tensors)
        safetensors.numpy.save_file(tensors, file)

    return damage


def _flip_bit(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def _change_config(file: Path, change: Callable[[dict], object]) -> None:
    path = file.parent / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


_KERNEL = "params.fusion.local.kernel"
_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        r"model\.safetensors is truncated, damaged or no safetensors",
    ),
    "empty": (lambda file: file.write_bytes(b""), r"model\.safetensors is truncated"),
    "a pickle": (lambda file: file.write_bytes(pickle.dumps({"params": 1})), r"model\.safetensors is truncated"),
    "another model's": (
        lambda file: safetensors.numpy.save_file({"wte.weight": np.ones((3, 2), np.float32)}, file),
        r"missing: .* and \d+ more; not in the model: wte\.weight$",
    ),
    "a key too few": (
        _rewritten(lambda tensors: tensors.pop(_KERNEL)),
        rf"; missing: {_KERNEL}$",
    ),
    "a key too many": (
        _rewritten(lambda tensors: tensors.update(more=np.ones(1, np.float32))),
        r"; not in the model: more$",
    ),
    "another shape": (
        _rewritten(lambda tensors: tensors.update({_KERNEL: tensors[_KERNEL][:5].copy()})),
        rf"of another shape: {_KERNEL} \(model \(64, 64\), given \(5, 64\)\)$",
    ),
    "whole numbers": (
        _rewritten(lambda tensors: tensors.update({_KERNEL: tensors[_KERNEL].astype(np.int8)})),
        rf"{_KERNEL} is int8",
    ),
    "no step": (_rewritten(lambda tensors: tensors.pop("step")), r"; missing: step$"),
    "a step that is none": (
        _rewritten(lambda tensors: tensors.update(step=np.asarray(0.5, np.float32))),
        "step is float32",
    ),
    "two models": (
        lambda file: np.savez(file.with_name("model.npz"), step=1),
        r"holds model\.safetensors and model\.npz, each a whole model: delete",
    ),
    "a bit flipped": (lambda file: _flip_bit(file, -1000), r"(params|stats)\..* differs from its checksum"),
    "a bit of the header flipped": (lambda file: _flip_bit(file, 100), r"model\.safetensors is "),
    "a value that is not finite": (
        _rewritten(lambda tensors: tensors.update({_KERNEL: tensors[_KERNEL] * np.inf})),
        rf"{_KERNEL} holds values that are not finite",
    ),
    "no decode": (
        lambda file: _change_config(file, lambda config: config.pop("decode")),
        r"it is not a configuration \(ValueError: decode is absent\)",
    ),
    "a model of words": (
        lambda file: _change_config(file, lambda config: config["model"].update(width="wide")),
        r"config\.json does not describe a colorizer",
    ),
    "no classes": (lambda file: (file.parent / "classes.json").unlink(), r"classes\.json is missing"),
    "classes cut off": (lambda file: (file.parent / "classes.json").write_text('["a"'), r"classes\.json is damaged"),
    "classes of another kind": (
        lambda file: (file.parent / "classes.json").write_text('{"0": "a"}'),
        "is not a list of class names",
    ),
    "a class too few": (
        lambda file: (file.parent / "classes.json").write_text('["a"]'),
        r"of another shape: params\.classification\.output\.",
    ),
    "a configuration cut off": (lambda file: (file.parent / "config.json").write_text("{"), r"config\.json is damaged"),
    "another model's configuration": (
        lambda file: (file.parent / "config.json").write_text('{"model_type": "bert"}'),
        r"config\.json is damaged: it is not a configuration",
    ),
    "an index that is none": (
        lambda file: file.rename(file.with_name("model.safetensors.index.json")).write_text("[]"),
        r"index\.json is no index of safetensors files",
    ),
    "an index to elsewhere": (
        lambda file: file.rename(file.with_name("model.safetensors.index.json")).write_text(
            '{"weight_map": {"step": "../secret.safetensors"}}'
        ),
        r"index\.json is no index of safetensors files",
    ),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_folder_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    break_it, message = _DAMAGES[damage]
    break_it(broken / "model.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_trained(broken)
    assert "\n" not in str(error.value)
    assert len(str(error.value).replace(str(broken), "")) <= 300


def test_a_damaged_prior_is_refused_and_a_missing_one_is_none(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    prior = tmp_path / "copy" / "prior.npz"
    prior.write_bytes(prior.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"prior\.npz is no readable prior"):
        load_trained(tmp_path / "copy")
    prior.unlink()
    assert load_trained(tmp_path / "copy").prior is None
    save_trained(load_trained(tmp_path / "copy"), tmp_path / "again")
    assert not (tmp_path / "again" / "prior.npz").exists()


def test_a_bit_flipped_in_an_npz_is_found(run: Trained, tmp_path: Path) -> None:
    save_trained(run, tmp_path / "out", format="npz")
    _flip_bit(tmp_path / "out" / "model.npz", 1_000_000)
    with pytest.raises(ValueError, match=r"model\.npz is truncated, damaged.*CRC"):
        load_trained(tmp_path / "out")


def test_a_folder_from_before_there_were_checksums_is_read(run: Trained, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "old")
    file = tmp_path / "old" / "model.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), file, metadata={"format": "flax"})
    got = load_trained(tmp_path / "old")
    assert jax.tree.all(jax.tree.map(np.array_equal, got.params, run.params))


class _Evil:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize("damage", ["truncated", "a pickle", "a bare array", "pickled arrays", "no arrays"])
def test_a_damaged_npz_is_refused_and_never_unpickled(folder: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    file = tmp_path / "broken" / "model.npz"
    with file.open("wb") as f:
        if damage == "truncated":
            np.savez(f, step=np.arange(1000))
            f.truncate(3000)
        elif damage == "a pickle":
            pickle.dump(_Evil(), f)
        elif damage == "a bare array":
            np.save(f, np.ones(3))
        elif damage == "pickled arrays":
            np.savez(f, step=np.array([_Evil()], dtype=object))
        else:
            np.savez(f)
    with pytest.raises(ValueError, match=r"model\.npz (is truncated, damaged or no \.npz|does not fit)"):
        load_trained(tmp_path / "broken")


def test_what_is_there_is_never_overwritten(run: Trained, folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="holds something already"):
        save_trained(run, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    save_trained(run, tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file holds something"):
        save_trained(run, tmp_path / "file")


def test_a_save_that_fails_leaves_nothing(run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", no_space)
    with pytest.raises(OSError, match="no space left"):
        save_trained(run, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pickle"}, "format is 'pickle'; it must be safetensors or npz"),
        ({"dtype": "int8"}, "dtype is 'int8'; a tensor in safetensors can be float32, bfloat16, float16"),
        ({"format": "npz", "dtype": "bfloat16"}, "a tensor in npz can be float32, float16"),
        ({"max_shard_size": 0}, "max_shard_size is 0"),
    ],
)
def test_what_cannot_be_written_is_refused(run: Trained, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_trained(run, tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


def test_arrays_in_any_order_of_memory_are_saved_as_they_are(run: Trained, tmp_path: Path) -> None:
    fortran = replace(run, params=jax.tree.map(lambda x: np.array(x, order="F"), run.params))
    save_trained(fortran, tmp_path / "out", dtype="bfloat16")
    got = load_trained(tmp_path / "out").params["fusion"]["local"]["kernel"]
    assert np.array_equal(got, run.params["fusion"]["local"]["kernel"].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_portable_folder_needs_neither_orbax_nor_tensorflow(folder: Path, tmp_path: Path) -> None:
    # An entry of None makes an import fail. The command line, from one portable folder to another.
    blocked = "import sys; sys.modules.update(dict.fromkeys(['orbax', 'orbax.checkpoint', 'tensorflow'])); "
    command = "import runpy; runpy.run_module('colorjax', run_name='__main__', alter_sys=True)"
    out = tmp_path / "out"
    flags = ["export", f"--workdir={folder}", "--format=npz", f"--out={out}", "--dtype=float16"]
    done = subprocess.run(
        [sys.executable, "-c", blocked + command, *flags],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stderr
    got, exact = load_trained(out).params["fusion"], load_trained(folder).params["fusion"]
    np.testing.assert_allclose(got["local"]["kernel"], exact["local"]["kernel"], rtol=2**-11, atol=2**-25)
