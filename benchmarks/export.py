"""Compares exported programs with the model itself: outputs and speed.

    python -m benchmarks export --config=configs/paper.py --out=OUT --sizes=224,448 --batches=1,8

It needs onnx and onnxruntime. `OUT/export.json` holds, for each size and batch, the median seconds of the model under
jax.jit, of its StableHLO program, and of ONNX Runtime on the CPU, each with its default number of threads, and the
largest differences from the model in ab and in the class logits. The parameters are the initial ones unless --workdir
names a run; the speed does not depend on them.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnxruntime
from jax import export as jax_export
from ml_collections import ConfigDict

from colorjax import color, data
from colorjax.cli import configuration
from colorjax.cli.arguments import CHECKPOINT, Parser, folder, listed, number
from colorjax.export import onnx_graph
from colorjax.export.stablehlo import LEAST_TEMPERATURE, to_stablehlo
from colorjax.model.program import init_model
from colorjax.run.locate import locate
from colorjax.run.trained import Trained, load_trained

Outputs = dict[str, Any]


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    configuration.add_arguments(parser, default="configs/paper.py")
    add = parser.add_argument
    add("--workdir", metavar="DIR", help=f"{CHECKPOINT}; by default --config's model, untrained")
    add("--out", type=folder, required=True, metavar="DIR", help="folder for export.json")
    add("--sizes", type=listed(number(int, 32)), default="224", metavar="N,…", help="heights and widths in pixels")
    add("--batches", type=listed(number(int, 1)), default="1,8", metavar="N,…", help="batch sizes")


def run(args: argparse.Namespace) -> None:
    """Prints and writes a row for each size and batch."""
    config = configuration.load(args.config, args.overrides)
    trained = load_trained(locate(args.workdir)) if args.workdir else _untrained(config)
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "onnx", "onnxruntime")},
        "command": " ".join(sys.argv),
        "rows": [],
    }
    programs = {"model": _model(trained), "stablehlo": _stablehlo(trained), "onnxruntime": _onnxruntime(trained)}
    temperature = np.asarray(trained.config.decode.temperature, np.float32)
    for size in args.sizes:
        for batch in args.batches:
            inputs = _lightness(batch, size), _lightness(batch, trained.config.data.image_size), temperature
            answers = {name: program(*inputs) for name, program in programs.items()}
            seconds = {name: _seconds(program, *inputs, repeats=args.repeats) for name, program in programs.items()}
            differences = {
                name: {key: float(np.abs(answer[key] - answers["model"][key]).max()) for key in ("ab", "class_logits")}
                for name, answer in answers.items()
                if name != "model"
            }
            row = {"size": size, "batch": batch, "seconds": seconds, "largest_difference": differences}
            record["rows"].append(row)
            (out / "export.json").write_text(json.dumps(record, indent=2) + "\n")
            print(json.dumps(row), flush=True)


def _untrained(config: Any) -> Trained:
    names = tuple(f"class {i}" for i in range(101))
    params, stats = init_model(config, "joint", classes=len(names))
    return Trained(config, names, 0, *jax.tree.map(np.asarray, (params, stats)))


def _model(trained: Trained) -> Callable[..., Outputs]:
    program, decoder = trained.program(), trained.decoder()

    # The parameters are arguments, as in evaluation and prediction.
    @jax.jit
    def colorize(params: Any, stats: Any, l: jax.Array, global_l: jax.Array, temperature: jax.Array) -> Outputs:
        outputs, _ = program(params, stats, l, global_l=global_l, train=False)
        ab = outputs.color
        if ab.shape[-1] != 2:
            ab = color.annealed_mean(decoder.adjusted(ab) / temperature, temperature=1.0)
        return {"ab": decoder.saturation * ab, "class_logits": outputs.class_logits}

    trees = jax.device_put((trained.params, trained.stats))
    return lambda *inputs: jax.device_get(colorize(*trees, *inputs))


def _stablehlo(trained: Trained) -> Callable[..., Outputs]:
    call = jax.jit(jax_export.deserialize(bytearray(to_stablehlo(trained))).call)
    return lambda *inputs: jax.device_get(call(*inputs))


def _onnxruntime(trained: Trained) -> Callable[..., Outputs]:
    graph = onnx_graph.build(trained, least_temperature=LEAST_TEMPERATURE)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    keys = [value.name for value in session.get_outputs()]
    return lambda *inputs: dict(zip(keys, session.run(keys, dict(zip(names, inputs, strict=True))), strict=True))


def _lightness(batch: int, size: int) -> np.ndarray:
    config: Any = ConfigDict({"source": "sample", "resolution": size, "train_fraction": 0.8, "shuffle_buffer": 1})
    batches = data.eval_batches(config, "train", batch_size=batch)
    return np.asarray(color.rgb_to_lab(next(batches)["image"]))[..., :1]


def _seconds(program: Callable[..., Outputs], *inputs: np.ndarray, repeats: int) -> float:
    program(*inputs)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        program(*inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
