"""The whole joint step of the paper's model: ours, and the same model in PyTorch, eager and compiled.

Each runs in a process of its own, as a user's would, and they take turns: in one process the two frameworks get in the
way of each other's memory and threads.
"""

# The peers' packages need not be installed.
# pyright: reportMissingImports=false

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.joint import JointStep, config
from benchmarks.measure import Row, Settings
from colorjax.cli.arguments import Parser

TITLE = "The joint step of the paper's model on one repeated batch"

CLASSES = 101
_TORCH_FORMS = {
    "torch eager": {"channels_last": False, "compile": False},
    "torch eager, channels last": {"channels_last": True, "compile": False},
    "torch.compile": {"channels_last": False, "compile": True},
    "torch.compile, channels last": {"channels_last": True, "compile": True},
}


def add_arguments(parser: Parser) -> None:
    """Adds the table's arguments."""
    parser.add_argument("--pack", default="", metavar="DIR", help="a pack of 256-pixel photos; by default the sample")


def rows(settings: Settings) -> list[Row]:
    """A row for each batch size and program."""
    accelerator = jax.default_backend() != "cpu"
    size, width = (32, 0.25) if settings.quick else (224, 1.0)
    # A batch of 128 does not fit the memory of the measured CPU machines.
    batches = (2,) if settings.quick else (8, 32, 128) if accelerator else (8, 32)
    peak = measure.matmul_rate(repeats=settings.repeats, quick=settings.quick)
    found = []
    for batch in batches:
        wanted = {"batch": batch, "size": size, "width": width, "pack": "" if settings.quick else settings.pack}
        names = ["ours"]
        if measure.torch_or_none() and (accelerator or batch == batches[0]):
            names += _TORCH_FORMS
        runners = {name: _Runner(wanted | {"program": name}) for name in names}
        failures = {name: runner.said["error"] for name, runner in runners.items() if "error" in runner.said}
        for name in failures:
            runners.pop(name).end()
        if "ours" in failures:
            raise RuntimeError(failures["ours"])
        ours = runners["ours"].said
        turns: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(settings.repeats):
            for name, runner in runners.items():
                turns[name].append(runner.run())
        for runner in runners.values():
            runner.end()
        seconds = {name: float(np.median(of)) for name, of in turns.items()}
        for name, of in seconds.items():
            found.append(
                {
                    "batch": batch,
                    "program": name,
                    "s a step": of,
                    "images/s": batch / of,
                    "ours is faster by": of / seconds["ours"],
                    # The same count for all programs, so that the shares compare.
                    "share of matmul rate": ours["flops"] / of / peak,
                }
            )
        found[-len(seconds)] |= {"GFLOP": ours["flops"] / 1e9, "GB": ours["bytes"] / 1e9}
        found += [{"batch": batch, "program": f"{name}: {why}"} for name, why in failures.items()]
    return found


class _Runner:
    """A program in its own process, warmed up.

    Attributes:
        said: what it said of itself, or {"error": why it does not run}.
    """

    said: dict[str, Any]

    def __init__(self, wanted: dict[str, Any]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step", json.dumps(wanted)],
            cwd=measure.REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said = self._answer()

    def run(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return {"error": f"its process ended with {self._process.wait()}"}


def _serve(wanted: dict[str, Any]) -> None:
    """Warms the program up, then runs a step for each line of standard input."""
    name, batch, size, width = (wanted[key] for key in ("program", "batch", "size", "width"))
    said = {}
    try:
        if name == "ours":
            ours = JointStep.make(config(batch=batch, pack=wanted["pack"], size=size, width=width))
            said = {"flops": ours.flops, "bytes": measure.compiled_memory(ours.compiled)}
            run: Callable[[], Any] = ours.running(ours.one_batch())
        else:
            run = _torch_step(batch, size, width, **_TORCH_FORMS[name])
        for _ in range(2):
            jax.block_until_ready(run())
    except Exception as error:  # A program that does not compile is a result too.
        said = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"}
    print(json.dumps(said), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        jax.block_until_ready(run())
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def _torch_step(batch: int, size: int, width: float, *, channels_last: bool, compile: bool) -> Callable[[], None]:
    """PyTorch's step. It gets L, the soft targets and the weights ready-made, while our step computes them from the
    photos each time: what the comparison omits favors PyTorch."""
    import torch

    from benchmarks import torch_model

    device = measure.torch_device()
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model: Any = torch_model.Colorizer(classes=CLASSES, image_size=size, width=width).to(device)
    l = torch.tensor(rng.uniform(0, 100, (batch, 1, size, size)), dtype=torch.float32, device=device)
    if channels_last:
        model, l = model.to(memory_format=torch.channels_last), l.to(memory_format=torch.channels_last)
    labels = torch.tensor(rng.integers(0, CLASSES, batch), device=device)
    targets = torch.rand(batch, 313, size // 2, size // 2, device=device)
    targets /= targets.sum(dim=1, keepdim=True)
    weight = torch.ones(batch, size // 2, size // 2, device=device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def loss() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            class_logits, color_logits = model(l)
        return torch_model.loss(class_logits, color_logits, labels, targets, weight)

    compiled = torch.compile(loss) if compile else loss

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        compiled().backward()
        optimizer.step()
        measure.torch_wait()

    return run


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
