"""Each format of an exported colorizer, reloaded and compared with the model on photographs."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.color
import skimage.data
import yaml

from colorjax import color
from colorjax.data import dataset_info, open_source
from colorjax.data.packed import write_pack
from colorjax.export import onnx_graph
from colorjax.export.formats import export
from colorjax.export.stablehlo import load_stablehlo
from colorjax.model.program import abstract_model
from colorjax.run import compilation
from colorjax.run.trained import Trained, load_trained, save_trained
from colorjax.training.loop import train
from colorjax.training.pretrained import graft_pretrained
from configs import quickstart

BINS = color.ab_bins()
Colorize = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]
"""(l, global_l, temperature) -> (ab, class logits)."""


def photographs(height: int, width: int) -> np.ndarray:
    """L of two photographs: float32 [2, height, width, 1], 0…100."""
    photos = skimage.data.coffee(), skimage.data.chelsea()
    crops = (photo[40 : 40 + 3 * height : 3, 60 : 60 + 3 * width : 3] for photo in photos)
    return np.stack([skimage.color.rgb2lab(crop)[..., :1] for crop in crops]).astype(np.float32)


def model(trained: Trained) -> Colorize:
    """The model itself, its color decoded here."""
    program, decode = trained.program(), trained.config.decode
    compiled = jax.jit(
        lambda l, global_l: program(trained.params, trained.stats, l, global_l=global_l, train=False)[0],
        compiler_options={"xla_backend_optimization_level": 0},  # it runs once
    )

    def colorize(l: np.ndarray, global_l: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        outputs = compiled(l, global_l)
        class_logits, ab = np.asarray(outputs.class_logits), np.asarray(outputs.color)
        if ab.shape[-1] == len(BINS):
            scores = ab.astype(np.float64)
            if decode.unweighting:
                assert trained.prior is not None
                scores -= decode.unweighting * np.log(color.rarity_weights(trained.prior.p))
            shares = np.exp((scores - scores.max(axis=-1, keepdims=True)) / temperature)
            ab = shares / shares.sum(axis=-1, keepdims=True) @ BINS
        return decode.saturation * ab, class_logits

    return colorize


def in_onnxruntime(graph: onnx.ModelProto) -> Colorize:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def colorize(l: np.ndarray, global_l: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"l": l, "global_l": global_l, "temperature": np.asarray(temperature, np.float32)}
        ab, class_logits = session.run(["ab", "class_logits"], inputs)
        return np.asarray(ab), np.asarray(class_logits)

    return colorize


def assert_same(got: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).max() < 1e-3 * theirs.std()


@pytest.fixture(scope="module")
def run(untrained: Path) -> Trained:
    trained = load_trained(untrained)
    with trained.config.unlocked():
        trained.config.decode.update(unweighting=0.4, saturation=1.25)
    return trained


@pytest.fixture(scope="module")
def portable(run: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portable") / "folder"
    save_trained(run, path)
    return path


@pytest.fixture(scope="module")
def expected(run: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Of photographs twice as large as those that it was made for, and not square."""
    return model(run)(photographs(64, 48), photographs(32, 32), 0.38)


def test_stablehlo_gives_what_the_model_gives(
    portable: Path, tmp_path: Path, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    export(portable, tmp_path / "out", format="stablehlo")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"classes.json", "config.json", "model.stablehlo"}
    program = load_stablehlo(tmp_path / "out" / "model.stablehlo")
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert len(program.in_avals) == 3  # the parameters are inside
    assert program.in_avals[1].shape[1:] == (32, 32, 1)
    got = program.call(photographs(64, 48), photographs(32, 32), np.float32(0.38))
    assert_same((np.asarray(got["ab"]), np.asarray(got["class_logits"])), expected)
    with pytest.raises(ValueError, match=r"8\*h"):
        program.call(photographs(60, 48), photographs(32, 32), np.float32(0.38))
    damaged = tmp_path / "damaged"
    damaged.write_bytes((tmp_path / "out" / "model.stablehlo").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"damaged is damaged or not a program of jax\.export"):
        load_stablehlo(damaged)


def test_onnx_gives_what_the_model_gives(
    portable: Path, tmp_path: Path, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    export(portable, tmp_path / "out", format="onnx")
    graph = onnx.load(tmp_path / "out" / "model.onnx")
    colorize = in_onnxruntime(graph)
    assert_same(colorize(photographs(64, 48), photographs(32, 32), 0.38), expected)
    # The batch is free too, and a temperature of 0 is the mode: one of the bins.
    mode, class_logits = colorize(photographs(40, 96)[:1], photographs(32, 32)[:1], 0.0)
    assert mode.shape == (1, 20, 48, 2)
    assert np.abs(class_logits - expected[1][:1]).max() < 1e-3 * expected[1].std()
    distance = np.abs(mode[..., None, :] - 1.25 * BINS).max(axis=-1).min(axis=-1)
    assert np.mean(distance < 0.1) > 0.99
    properties = {entry.key: entry.value for entry in graph.metadata_props}
    assert properties["image_size"] == "32"
    assert tuple(json.loads(properties["class_names"])) == load_trained(portable).class_names


# Everything that changes the forward pass; without patch attention where it is not the point, to compile faster.
_PLAIN = {"model.patch_attention": False}
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "no_patch_attention, group norm": ("no_patch_attention", {"model.norm": "group"}),
    "pooled_output_attention": ("pooled_output_attention", _PLAIN),
    "regression, no_fusion": ("regression", _PLAIN | {"model.fusion": False, "decode.saturation": 0.5}),
    "zhang2016_head": ("zhang2016_head", {}),
    "no_output_attention, group norm after the patch is gathered, maxima between": (
        "no_output_attention",
        {"model.patch_relation_norm": "after", "model.downsampling": "pool", "model.norm": "group"},
    ),
}


def random_colorizer(row: str, overrides: dict[str, Any]) -> Trained:
    """A colorizer of 32 pixels with random parameters, of a size that keeps its activations' scale."""
    config: Any = quickstart.get_config(row).unlock()
    config.update_from_flattened_dict(
        {"data.image_size": 32, "model.output_gate": 0.5, "model.patch_kernels": (3, 3, 1)} | overrides
    )
    rng = np.random.default_rng(0)

    def value(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "var", "gate"):
            return rng.uniform(0.5, 1.0, shape.shape).astype(np.float32)
        deviation = np.sqrt(2 / np.prod(shape.shape[:-1])) if name == "kernel" else 0.1
        return (rng.normal(size=shape.shape) * max(deviation, 0.1 * (name == "u"))).astype(np.float32)

    _, *shapes = abstract_model(config, "joint", classes=5)
    params, stats = jax.tree_util.tree_map_with_path(value, shapes)
    return Trained(config.lock(), tuple("abcde"), 0, params, stats)


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=pytest.mark.slow if "maxima" in name else ()) for name in _VARIANTS]
)
def test_onnx_knows_every_kind_of_model(variant: str) -> None:
    trained = random_colorizer(*_VARIANTS[variant])
    colorize = in_onnxruntime(onnx_graph.build(trained, least_temperature=1e-6))
    photos = photographs(48, 40), photographs(32, 32)
    assert_same(colorize(*photos, 1.0), model(trained)(*photos, 1.0))


def test_a_layer_without_operators_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "ConvBlock", type("ConvBlock", (), {}))
    with pytest.raises(NotImplementedError, match="no ONNX operators are known for ConvBlock"):
        onnx_graph.build(random_colorizer("iizuka2016", {}), least_temperature=1e-6)
    monkeypatch.undo()
    monkeypatch.setattr(onnx_graph._Graph, "fusion", lambda self, module, local, vector: local)
    with pytest.raises(NotImplementedError, match=r"no place in the ONNX graph: \['fusion\.local\.kernel'"):
        onnx_graph.build(random_colorizer("iizuka2016", {}), least_temperature=1e-6)


def _card(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_hub_folder_says_what_was_measured_and_no_more(run: Trained, tmp_path: Path) -> None:
    config = run.config.copy_and_resolve_references().unlock()
    config.data.source = "food101"
    save_trained(replace(run, config=config.lock(), step=500), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "unmeasured", format="hub", dtype="bfloat16")
    front, text = _card(tmp_path / "unmeasured")
    assert "metrics" not in front
    assert "model-index" not in front
    assert front["datasets"] == ["ethz/food101"]
    assert front["license"] == "other"
    assert "has not been evaluated" in text
    assert "500 steps of 16 photographs" in text
    assert "It knows food; elsewhere it guesses." in text
    assert load_trained(tmp_path / "unmeasured").step == 500
    content = (tmp_path / "unmeasured" / "model.safetensors").read_bytes()
    assert f"| `model.safetensors` | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |" in text

    rows = {"model": {"psnr": 21.53125, "top1": 0.0625}, "gray": {"psnr": 19.28125}}
    intervals = {"model": {"psnr": [21.4375, 21.625], "top1": [0.05, 0.07]}, "gray": {"psnr": [19.0, 20.0]}}
    evaluation = tmp_path / "run" / "evaluation" / "test"
    evaluation.mkdir(parents=True)
    record = {"stage": "joint", "step": 500, "split": "test", "photos": 2020, "rows": rows}
    sweep = {"0.25": {"psnr": 21.53125}, "1.0": {"psnr": 22.84375}}
    record |= {"intervals": intervals, "temperature": 0.25, "unweighting": 0.3, "saturation": 1.2, "sweep": sweep}
    (evaluation / "metrics.json").write_text(json.dumps(record))
    export(tmp_path / "run", tmp_path / "measured", format="hub")
    front, text = _card(tmp_path / "measured")
    measured = {entry["type"]: entry["value"] for entry in front["model-index"][0]["results"][0]["metrics"]}
    assert measured == {"psnr": 21.53125, "accuracy": 0.0625}
    assert "2,020 photographs of the test split" in text
    assert "19.28" in text
    assert "21.44 to 21.62" in text
    assert (
        "at temperature 0.25, 30% of the rarity weights are taken out of the logits, and a and b are multiplied by 1.2."
        in text
    )
    assert "22.84" in text

    (evaluation / "metrics.json").write_text(json.dumps(record | {"step": 400}))
    export(tmp_path / "run", tmp_path / "stale", format="hub")
    assert "has not been evaluated" in _card(tmp_path / "stale")[1]


def test_what_a_pack_was_made_from_is_not_guessed(run: Trained, tmp_path: Path) -> None:
    config = run.config.copy_and_resolve_references().unlock()
    config.data.source, config.data.dir = "packed", "gone"
    save_trained(replace(run, config=config.lock()), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", format="hub")
    front, text = _card(tmp_path / "out")
    assert "datasets" not in front
    assert "Food-101" not in text

    made = run.config.data
    write_pack(
        open_source(made),
        tmp_path / "moved",
        splits=("train",),
        resolution=made.resolution,
        train_fraction=made.train_fraction,
    )
    export(tmp_path / "run", tmp_path / "known", format="hub", data_dir=tmp_path / "moved")
    photos = dataset_info(made).sizes["train"]
    assert f"Photographs: {photos:,} of crops of the few photographs" in _card(tmp_path / "known")[1]
    assert load_trained(tmp_path / "known").config.data.dir == "gone"  # as the run had it


def test_programs_are_float32(portable: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype is 'float16', but a program \(onnx\) is float32"):
        export(portable, tmp_path / "out", format="onnx", dtype="float16")
    with pytest.raises(ValueError, match="format is 'pickle'"):
        export(portable, tmp_path / "out", format="pickle")
    with pytest.raises(FileExistsError, match="holds something already"):
        export(portable, portable, format="onnx")
    assert not any(tmp_path.iterdir())


def _fine_tuning(**joint: Any) -> Any:
    config: Any = quickstart.get_config("iizuka2016").unlock()
    config.stage, config.data.resolution, config.data.image_size = "joint", 40, 32
    config.joint.update({"steps": 1, "batch_size": 4, "eval_photos": 4, "learning_rate": 1e-5} | joint)
    return config.lock()


@pytest.mark.slow
def test_training_goes_on_from_an_exported_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is compiled here runs once.
    monkeypatch.setattr(compilation, "compiler_options", lambda: {"xla_backend_optimization_level": 0})
    names = tuple(dataset_info(_fine_tuning().data).class_names)
    trained = random_colorizer("iizuka2016", {})
    trained = replace(trained, class_names=names)
    shapes = abstract_model(trained.config, "joint", classes=len(names))[1:]
    rng = np.random.default_rng(1)
    params, stats = jax.tree.map(lambda x: rng.uniform(0.5, 1.0, x.shape).astype(np.float32), shapes)
    save_trained(replace(trained, params=params, stats=stats, step=9), tmp_path / "exported")

    everything = tuple(params)
    assert len(everything) == 6
    train(_fine_tuning(init_from=str(tmp_path / "exported"), carried=everything), tmp_path / "run")
    after = load_trained(tmp_path / "run")
    assert after.step == 1
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, params)
    # Adam's first step is the learning rate, wherever there is a gradient.
    assert 0.5e-5 < max(jax.tree.leaves(change)) < 2e-5


def test_only_the_named_networks_are_taken_and_they_must_fit(portable: Path, run: Trained, tmp_path: Path) -> None:
    config: Any = run.config.copy_and_resolve_references().unlock()
    config.joint.init_from, config.joint.carried = str(portable), ("low_level", "colorization")
    fresh = jax.tree.map(np.zeros_like, (run.params, run.stats))
    params, stats = graft_pretrained(config, tmp_path, *fresh)
    for name in run.params:
        expected = run.params[name] if name in config.joint.carried else fresh[0][name]
        assert jax.tree.all(jax.tree.map(np.array_equal, params[name], expected)), name
    taken, given = (tree["low_level"]["layers"]["0"]["norm"]["mean"] for tree in (stats, run.stats))
    assert np.array_equal(taken, given)

    config.joint.carried = ("low_level", "decoder")
    with pytest.raises(ValueError, match=r"joint\.carried is .*'decoder'.*can only name .*colorization"):
        graft_pretrained(config, tmp_path, *fresh)
    config.joint.carried = ("fusion",)
    other = fresh[0] | {"fusion": jax.tree.map(lambda x: x[:3], fresh[0]["fusion"])}
    with pytest.raises(ValueError, match=r"(?s)shape.*fusion\.local\.kernel"):
        graft_pretrained(config, tmp_path, other, fresh[1])
