"""How far the probabilities of the color classes can be trusted: reliability, and the temperature that improves it.

Guo, Pleiss, Sun and Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017. A pixel's prediction is its
likeliest bin, its confidence that bin's probability, and it is right if the bin is the nearest to the true color.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from colorjax import color
from colorjax.data import Batch, center_crop
from colorjax.data.batches import Share
from colorjax.evaluation import bootstrap, split_pass
from colorjax.evaluation.measures import Photos, Scores
from colorjax.model.decode import Decoder
from colorjax.model.program import Program, Tree
from colorjax.run import compilation, sharding
from colorjax.run.config import Config

BINS = 15
"""Of the confidence and of the uncertainty, of equal width in 0…1 (Guo et al., section 2)."""

_TEMPERATURES = tuple(np.geomspace(0.4, 2.5, 17).tolist())  # among which the best is sought
_SIDE = 32  # pixels of each side that are looked at, so that trying temperatures costs less than the network


def calibrate(
    program: Program,
    params: Tree,
    stats: Tree,
    config: Config,
    *,
    decoder: Decoder,
    split: str,
    share: Share,
    mesh: Mesh,
) -> dict[str, Any]:
    """Fits a temperature on the validation split, and measures a split with it and without.

    Gray photos are left out, and of a large output every n-th pixel in each direction is looked at.

    Args:
        program, params, stats: a colorizer with color classes; the trees are on the mesh.
        config: its configuration; `config.data` says where the photos are.
        decoder: of its logits; the probabilities are those of its adjusted logits.
        split: train, validation or test.
        share: of this host in each batch.
        mesh: the devices that share a batch.

    Returns:
        `temperature`, by which all logits are divided, with the least cross-entropy on the validation split; and
        `before` and `after` it, each with: `nll`, the mean cross-entropy with the nearest bin in nats; `ece`, the
        expected calibration error, and `ece_interval`, its 95 % bootstrap interval over photos; by bin of the
        confidence `share` (of all pixels), `confidence` and `accuracy`; and by bin of the uncertainty, the entropy of
        the distribution divided by that of 313 equal colors, `uncertainty_share`, `uncertainty` and `error`, the mean
        distance in ab of the decoded color from the true one. An empty bin has None.
    """

    def measured(split: str, temperatures: Sequence[float]) -> dict[str, np.ndarray]:
        measure = _make_measure(program, config, decoder, temperatures, mesh)
        return split_pass.scores(
            lambda batch: measure(params, stats, sharding.to_devices(batch, mesh)), config, split, share
        )[2]["model"]

    sums = measured("validation", _TEMPERATURES)
    best = lowest(np.log(_TEMPERATURES), sums["nll"].sum(axis=0))
    temperature = float(np.exp(best))
    sums = measured(split, (1.0, temperature))
    before, after = (_summary({name: x[:, i] for name, x in sums.items()}) for i in range(2))
    return {"temperature": temperature, "before": before, "after": after}


def lowest(x: np.ndarray, y: np.ndarray) -> float:
    """Where a curve is lowest: its lowest point, or the vertex of the parabola through that and the two beside it.

    Args:
        x: equally spaced [N], N of 3 or more.
        y: [N].
    """
    i = int(np.argmin(y))
    if i in (0, len(y) - 1):
        return float(x[i])
    left, middle, right = y[i - 1 : i + 2]
    return float(x[i] + 0.5 * (left - right) / (left - 2 * middle + right) * (x[1] - x[0]))


def expected_calibration_error(counts: np.ndarray, confidences: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """The mean over pixels of |accuracy − confidence| of their bins (Guo et al., equation 3).

    Args:
        counts: [..., BINS], pixels in each bin of the confidence, up to a common factor.
        confidences, hits: [..., BINS], the sums of their confidences, and of 1 for each right prediction.

    Returns:
        [...], 0…1.
    """
    return np.abs(hits - confidences).sum(axis=-1) / counts.sum(axis=-1)


def chart(record: dict[str, Any]) -> str:
    """The reliability diagram, and the error by the uncertainty, as an SVG.

    Args:
        record: of `calibrate`.
    """
    size, margin, gap = 240, 44, 76
    colors = {"before": "#b45309", "after": "#1d4ed8"}
    bottom = size + 2 * margin
    width, height = 2 * size + 2 * margin + gap, bottom + 40
    errors = [e for series in colors for e in record[series]["error"] if e is not None]
    most = float(np.ceil(max(errors, default=1.0) / 10) * 10)
    parts = [f'<rect width="{width}" height="{height}" fill="white"/>']
    panels = (
        ("confidence", "accuracy", "share", 1.0, "confidence", "accuracy"),
        ("uncertainty", "error", "uncertainty_share", most, "uncertainty", "mean error in ab"),
    )
    for i, (x_name, y_name, share_name, top, x_label, y_label) in enumerate(panels):
        left = margin + i * (size + gap)
        parts.append(f'<rect x="{left}" y="{margin}" width="{size}" height="{size}" fill="none" stroke="#888"/>')
        for tick in range(5):
            at = tick / 4
            parts.append(_text(left + at * size, margin + size + 15, f"{at:g}"))
            parts.append(_text(left - 6, margin + (1 - at) * size + 4, f"{at * top:.3g}", anchor="end"))
        parts.append(_text(left + size / 2, bottom - 8, x_label))
        parts.append(_text(left, margin - 8, y_label, anchor="start"))
        if i == 0:
            line = f'x1="{left}" y1="{margin + size}" x2="{left + size}" y2="{margin}"'
            parts.append(f'<line {line} stroke="#888" stroke-dasharray="4 4"/>')
        for series, stroke in colors.items():
            values = record[series]
            points = [
                (left + x * size, margin + (1 - y / top) * size, share)
                for x, y, share in zip(values[x_name], values[y_name], values[share_name], strict=True)
                if x is not None
            ]
            drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
            parts.append(f'<polyline points="{drawn}" fill="none" stroke="{stroke}" stroke-width="1.5"/>')
            # The area of a dot is the share of the pixels in its bin.
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{1.5 + 14 * share**0.5:.1f}" fill="{stroke}" opacity="0.5"/>'
                for x, y, share in points
            ]
    labels = {"before": "temperature 1", "after": f"temperature {record['temperature']:.2f}"}
    for i, (series, label) in enumerate(labels.items()):
        text = f"{label}: expected calibration error {100 * record[series]['ece']:.1f} %"
        parts.append(_text(margin, bottom + 14 + 16 * i, text, anchor="start", fill=colors[series]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", fill: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{text}</text>'


def _summary(sums: dict[str, np.ndarray]) -> dict[str, Any]:
    """The record of one temperature, from the sums of each photo, [N] or [N, BINS]."""
    # Divided by the photos' number, so that resampled means are sums up to a common factor.
    table = np.concatenate([sums[name] for name in ("counts", "confidences", "hits")], axis=1)
    table = table[sums["counts"].sum(axis=1) > 0]  # without gray photos
    resampled = bootstrap.resampled_means(table).reshape(-1, 3, BINS)
    low, high = bootstrap.percentiles(expected_calibration_error(*resampled.swapaxes(0, 1)))
    total = {name: x.sum(axis=0, dtype=np.float64) for name, x in sums.items()}
    pixels = total["counts"].sum()

    def means(name: str, counts: np.ndarray) -> list[float | None]:
        return [float(x / n) if n else None for x, n in zip(total[name], counts, strict=True)]

    return {
        "nll": float(total["nll"] / pixels),
        "ece": float(expected_calibration_error(total["counts"], total["confidences"], total["hits"])),
        "ece_interval": [float(low), float(high)],
        "share": (total["counts"] / pixels).tolist(),
        "confidence": means("confidences", total["counts"]),
        "accuracy": means("hits", total["counts"]),
        "uncertainty_share": (total["uncertainty_counts"] / pixels).tolist(),
        "uncertainty": means("uncertainties", total["uncertainty_counts"]),
        "error": means("errors", total["uncertainty_counts"]),
    }


def _make_measure(
    program: Program, config: Config, decoder: Decoder, temperatures: Sequence[float], mesh: Mesh
) -> Callable[[Tree, Tree, Batch], tuple[Scores, Photos]]:
    """Builds the jitted function (params, stats, batch) -> ({"model": sums}, {}).

    The sums over a photo's pixels at each of T temperatures: `nll` [B, T], and by bin `counts`, `confidences`, `hits`,
    `uncertainty_counts`, `uncertainties` and `errors` [B, T, BINS]. Those of a gray photo are 0.
    """

    def measure(params: Tree, stats: Tree, batch: Batch) -> tuple[Scores, Photos]:
        rgb = center_crop(jnp.asarray(batch["image"]), config.data.image_size).astype(jnp.float32) / 255
        lab = color.rgb_to_lab(rgb)
        predicted = program(params, stats, lab[..., :1], train=False)[0].color
        true = color.downsample(lab[..., 1:], factor=config.model.output_stride)
        every = max(1, predicted.shape[1] // _SIDE)
        predicted, true = (x[:, ::every, ::every].reshape(len(x), -1, x.shape[-1]) for x in (predicted, true))
        logits = decoder.adjusted(predicted)
        nearest = color.nearest_bins(true, count=1, in_gamut=True)[0][0]
        hit = (jnp.argmax(logits, axis=-1) == nearest).astype(jnp.float32)
        error = jnp.linalg.norm(decoder.ab(predicted) - true, axis=-1)
        weight = jnp.where(color.is_gray(lab[..., 1:]), 0.0, 1.0)[:, None]

        def binned(value: jax.Array, *sums: jax.Array) -> list[jax.Array]:
            number = jnp.clip((value * BINS).astype(jnp.int32), 0, BINS - 1)
            inside = jax.nn.one_hot(number, BINS) * weight[..., None]
            return [jnp.einsum("bpn,bp->bn", inside, x, precision="highest") for x in sums]

        def at(temperature: jax.Array) -> dict[str, jax.Array]:
            log_p = jax.nn.log_softmax(logits / temperature)
            uncertainty = color.uncertainty(logits / temperature)
            confidence, one = jnp.exp(log_p.max(axis=-1)), jnp.ones_like(hit)
            nll = -jnp.take_along_axis(log_p, nearest[..., None], axis=-1)[..., 0]
            counts, confidences, hits = binned(confidence, one, confidence, hit)
            uncertainty_counts, uncertainties, errors = binned(uncertainty, one, uncertainty, error)
            return {
                "nll": (weight * nll).sum(axis=-1),
                "counts": counts,
                "confidences": confidences,
                "hits": hits,
                "uncertainty_counts": uncertainty_counts,
                "uncertainties": uncertainties,
                "errors": errors,
            }

        # One after the other: the temperatures share one program, and only one distribution is in memory.
        sums = jax.lax.map(at, jnp.asarray(temperatures, jnp.float32))
        return {"model": {name: jnp.moveaxis(x, 0, 1) for name, x in sums.items()}}, {}

    whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    return jax.jit(
        measure,
        in_shardings=(whole, whole, split),
        out_shardings=split,
        compiler_options=compilation.compiler_options(),
    )
