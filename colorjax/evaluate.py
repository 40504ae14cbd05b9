"""Evaluation of a finished run on a whole split, beside the answers that need no network.

`python -m colorjax.evaluate --workdir=…` prints the table and writes `metrics.json` and `panel.png` into
`<workdir>/evaluation/`.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh
from PIL import Image

from colorjax import checkpointing, color, data, metrics, report, state, steps, training
from colorjax.config import Config, load_config
from colorjax.prior import Prior
from colorjax.progress import log_to_terminal
from colorjax.state import Program, Tree

_log = logging.getLogger("colorjax.evaluate")  # also when it is run as __main__

ANSWERS = ("model", "prior", "mean colour", "gray", "truth")

COLUMNS = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "colorfulness": "colourfulness",
    "auc": "AuC %",
    "delta_e": "ΔE2000",
    "color_ce": "colour CE",
    "color_loss": "weighted CE",
    "top1": "top-1",
    "top5": "top-5",
}
"""Metric -> its heading, in the table's order."""

_PANEL_PHOTOS = 12


def evaluate(workdir: str | Path, *, split: str = "test") -> dict[str, dict[str, float]]:
    """Evaluates a run's newest joint checkpoint, or its classifier where the joint stage has none yet.

    Photos are centre crops; each is counted once, whatever the batch size and the number of devices and hosts.

    Args:
        workdir: of `training.train`.
        split: train, validation or test.

    Returns:
        Answer ("model", "prior", "mean colour", "gray", "truth") -> metric -> value: PSNR (dB), SSIM, colourfulness,
        AuC (percent), ΔE2000, cross-entropies (nats a pixel), top-1 and top-5 (share). The same is in
        `<workdir>/evaluation/<split>/metrics.json`.

    Raises:
        FileNotFoundError: if the workdir holds no run, or no finished checkpoint.
    """
    workdir = Path(workdir).absolute()
    config = load_config(workdir)
    stage = "joint" if checkpointing.exists(workdir / "joint" / "checkpoints") else "pretrain"
    own = config[stage]
    mesh = state.make_mesh()
    info = data.dataset_info(config.data)
    program = training.build_program(config, stage, classes=len(info.class_names))
    step, *trees = checkpointing.load(workdir / stage / "checkpoints")
    params, stats = jax.device_put(trees, state.replicated(mesh))
    evaluated = _make_step(program, config, workdir, stage, mesh)

    totals: dict[str, metrics.Totals] = {}
    pictures: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in data.eval_batches(
        config.data,
        split,
        batch_size=own.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    ):
        measured, predicted = evaluated(params, stats, state.to_devices(batch, mesh))
        measured = jax.device_get(measured)
        totals = {answer: metrics.add(totals[answer], total) if totals else total for answer, total in measured.items()}
        if predicted is not None and sum(len(p) for p, _ in pictures) < _PANEL_PHOTOS:
            crops = np.asarray(steps.cropped(batch["image"], config))
            there = batch["mask"] > 0
            pictures.append((crops[there], state.local_rows(predicted)[there]))
    if not totals:
        raise ValueError(f"the {split} split of {info.name} is empty")

    rows = {answer: metrics.mean(totals[answer]) for answer in ANSWERS if answer in totals}
    if jax.process_index() == 0:
        directory = workdir / "evaluation" / split
        directory.mkdir(parents=True, exist_ok=True)
        photos = next(iter(totals["model"].values()))[1]
        record = {"stage": stage, "step": step, "split": split, "photos": int(photos), "rows": rows}
        (directory / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
        if pictures:
            true, predicted = (np.concatenate(x)[:_PANEL_PHOTOS] for x in zip(*pictures, strict=True))
            Image.fromarray(report.panel(true, {"predicted": predicted})).save(directory / "panel.png")
        _log.info(
            "%s, step %d, on %d photos of %s %s; more in %s\n%s",
            stage,
            step,
            photos,
            info.name,
            split,
            directory,
            as_table(rows),
        )
        if config.data.source == "sample":
            _log.info(
                "The sample is crops of the few photographs that scikit-image ships, tested on regions of the same "
                "photographs: it shows that everything runs, not how well photographs are coloured."
            )
    return rows


def as_table(rows: dict[str, dict[str, float]]) -> str:
    """The rows of `evaluate` as Markdown; a dash where a metric has no meaning."""
    columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
    return report.table(
        ["answer", *(COLUMNS[name] for name in columns)],
        [[answer, *(row.get(name, "–") for name in columns)] for answer, row in rows.items()],
    )


def _make_step(
    program: Program,
    config: Config,
    workdir: Path,
    stage: str,
    mesh: Mesh,
) -> Callable[[Tree, Tree, data.Batch], tuple[dict[str, metrics.Totals], jax.Array | None]]:
    prior = reference = None
    if stage == "joint":
        prior = Prior.load(training.prior_path(config, workdir))
        reference = training.load_reference(config, workdir)

    def step(params: Tree, stats: Tree, batch: data.Batch) -> Any:
        mask = jnp.asarray(batch["mask"])
        rgb, lab, targets = steps.prepared(batch, config, reference)
        l = lab[..., :1]
        outputs, _ = program(params, stats, l, train=False)
        labels = jnp.asarray(batch["label"])
        top = {f"top{k}": metrics.top_k_correct(outputs.class_logits, labels, k=k) for k in (1, 5)}
        measured = {"model": metrics.totals(top, mask=mask)}
        if outputs.color is None:
            return measured, None
        assert prior is not None
        assert reference is not None
        temperature = config.decode.temperature

        def constant(ab: Any) -> jax.Array:
            return color.lab_to_rgb(jnp.concatenate([l, jnp.broadcast_to(ab, lab[..., 1:].shape)], -1))

        answers = {
            "model": steps.colorized(outputs, l, temperature=temperature),
            "prior": constant(color.annealed_mean(jnp.log(reference.prior + 1e-12), temperature=temperature)),
            "mean colour": constant(jnp.asarray(prior.mean_ab, jnp.float32)),
            "gray": constant(jnp.zeros(2)),
            "truth": rgb,
        }
        for answer, photo in answers.items():
            predicted = color.rgb_to_lab(photo)
            measures = {"colorfulness": metrics.colorfulness(photo)}
            if answer != "truth":
                measures |= {
                    "psnr": metrics.psnr(photo, rgb),
                    "ssim": metrics.ssim(photo, rgb),
                    "auc": metrics.auc(predicted[..., 1:], lab[..., 1:]),
                    "delta_e": metrics.ciede2000(predicted, lab),
                }
            measured[answer] = measured.get(answer, {}) | metrics.totals(measures, mask=mask)
        _, logged = steps.loss(outputs, batch, targets, config, reference)
        for name in ("color_ce", "color_loss"):
            if f"prior_{name}" in logged:
                measured["model"][name] = logged[name]
                measured["prior"][name] = logged[f"prior_{name}"]
        return measured, color.to_uint8(answers["model"])

    whole, split = state.replicated(mesh), state.by_batch(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, whole, split),
        out_shardings=(whole, split),
        compiler_options=state.compiler_options(),
    )


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; give --workdir and --split")
    log_to_terminal()
    state.keep_compiled_programs()
    evaluate(flags.FLAGS.workdir, split=flags.FLAGS.split)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The --workdir of train.py.", required=True)
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which photos.")
    app.run(_main)
