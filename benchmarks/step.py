"""The whole joint step of the paper's model: ours, and the same model in PyTorch, eager and compiled."""

# The peers' packages need not be installed.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.joint import JointStep, config
from benchmarks.measure import Row, Settings

TITLE = "The joint step of the paper's model on one repeated batch"

CLASSES = 101


def rows(settings: Settings) -> list[Row]:
    """One row a batch size and program."""
    accelerator = jax.default_backend() != "cpu"
    size, width = (32, 0.25) if settings.quick else (224, 1.0)
    # A batch of 128 does not fit the memory of the machines that CPUs are measured on.
    batches = (2,) if settings.quick else (8, 32, 128) if accelerator else (8, 32)
    peak = measure.matmul_rate(repeats=settings.repeats, quick=settings.quick)
    found = []
    for batch in batches:
        ours = JointStep.make(config(batch=batch, pack="" if settings.quick else settings.pack, size=size, width=width))
        forms: dict[str, Callable[[], Any]] = {"ours": ours.running(ours.one_batch())}
        failures: dict[str, str] = {}
        if measure.torch_or_none() and (accelerator or batch == batches[0]):
            for name, options in _TORCH_FORMS.items():
                try:
                    forms[name] = _torch_step(batch, size, width, **options)
                    forms[name]()
                except Exception as error:  # What a compiler does not take is a finding, and not the end of the table.
                    forms.pop(name, None)
                    failures[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"
        seconds = measure.race(forms, repeats=settings.repeats)
        for name, of in seconds.items():
            found.append(
                {
                    "batch": batch,
                    "program": name,
                    "s a step": of,
                    "images/s": batch / of,
                    "ours is faster by": of / seconds["ours"],
                    # The same count for all, so that the shares compare what the hardware is used for.
                    "share of matmul rate": ours.flops / of / peak,
                }
            )
        found[-len(seconds)] |= {
            "GFLOP": ours.flops / 1e9,
            "GB": measure.compiled_memory(ours.compiled) / 1e9,
        }
        found += [{"batch": batch, "program": f"{name}: {why}"} for name, why in failures.items()]
        del ours, forms
    return found


_TORCH_FORMS = {
    "torch eager": {"channels_last": False, "compile": False},
    "torch eager, channels last": {"channels_last": True, "compile": False},
    "torch.compile": {"channels_last": False, "compile": True},
    "torch.compile, channels last": {"channels_last": True, "compile": True},
}


def _torch_step(batch: int, size: int, width: float, *, channels_last: bool, compile: bool) -> Callable[[], None]:
    """PyTorch's step. It is given L, the soft targets and the weights ready-made, which our step makes of the photos
    every time: what the comparison leaves out is to its advantage."""
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
