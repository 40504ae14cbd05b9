"""The statistics of a study, on invented photos and seeds, against scipy and plain loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from colorjax.evaluation.tables import write_csv
from colorjax.study import report
from colorjax.study.comparison import METRICS, paired_difference, seed_deviation, summarize
from colorjax.study.plan import Run
from configs import paper


def photos(rng: np.random.Generator, *, mean: float = 20.0, n: int = 300) -> np.ndarray:
    return rng.normal(mean, 3.0, (n, len(METRICS)))


def test_one_seed_is_scipys_bootstrap_of_the_paired_differences() -> None:
    rng = np.random.default_rng(0)
    full = photos(rng)
    row = full + rng.gamma(2.0, 0.5, full.shape)  # skewed, and far less spread than the photos themselves
    mean, low, high = paired_difference({3: row}, {3: full})
    assert mean == pytest.approx((row - full).mean(axis=0), rel=1e-12)
    expected = scipy.stats.bootstrap(
        ((row - full)[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    width = expected.high - expected.low
    assert abs(low[0] - expected.low) < 0.08 * width
    assert abs(high[0] - expected.high) < 0.08 * width
    # Without pairing, the variance would be twice that of the photos themselves.
    assert width < 0.5 * 2 * 1.96 * 3.0 * np.sqrt(2 / 300)


def test_several_seeds_are_drawn_as_well() -> None:
    rng = np.random.default_rng(1)
    full = {seed: photos(rng, n=200) for seed in range(4)}
    of_seed = (-0.6, 0.1, 0.9, 1.2)
    row = {seed: full[seed] + of_seed[seed] + rng.normal(0, 1.0, full[seed].shape) for seed in range(4)}
    row[9] = photos(rng, n=200)  # has no counterpart, so it is left out
    mean, low, high = paired_difference(row, full)
    differences = np.stack([row[seed] - full[seed] for seed in range(4)])[..., 0]
    assert mean[0] == pytest.approx(differences.mean(), rel=1e-12)
    other = np.random.default_rng(6)
    means = []
    for _ in range(10_000):
        drawn = other.integers(200, size=200)
        means.append(np.mean([differences[s][drawn].mean() for s in other.integers(4, size=4)]))
    ends = np.quantile(means, (0.025, 0.975))
    assert np.abs([low[0], high[0]] - ends).max() < 0.08 * (ends[1] - ends[0])
    # The seeds make the interval wide: photos alone would give a fifth of it.
    assert ends[1] - ends[0] > 4 * 2 * 1.96 * differences.std(axis=1).mean() / np.sqrt(4 * 200)


def test_equal_runs_have_a_difference_of_exactly_0() -> None:
    rng = np.random.default_rng(2)
    full = {seed: photos(rng) for seed in (0, 1)}
    for ends in paired_difference({seed: values.copy() for seed, values in full.items()}, full):
        assert ends.tolist() == [0.0] * len(METRICS)


def test_a_constant_shift_has_an_interval_without_width() -> None:
    full = np.arange(40.0)[:, None] * np.ones(len(METRICS))
    for ends in paired_difference({0: full + 0.5}, {0: full}):
        assert ends.tolist() == [0.5] * len(METRICS)


def test_photos_without_a_value_are_left_out() -> None:
    rng = np.random.default_rng(3)
    full, row = photos(rng), photos(rng, mean=21.0)
    full[:250, 0] = np.nan
    row[:, 1] = np.nan
    mean, low, high = paired_difference({0: row}, {0: full})
    assert mean[0] == pytest.approx((row[250:, 0] - full[250:, 0]).mean())
    assert low[0] < mean[0] < high[0]
    assert np.isnan([mean[1], low[1], high[1]]).all()
    # Fifty photos instead of three hundred.
    assert 1.8 < (high[0] - low[0]) / (high[2] - low[2]) < 3.2


class Done(Run):
    """A run without checkpoints, whose files alone determine its status."""

    def status(self) -> str:
        return "done" if (self.evaluation / "per_photo.csv").exists() else "pending"


def run(
    tmp_path: Path, row: str, seed: int, values: np.ndarray | None, *, temperature: float = 0.38, **model: Any
) -> Run:
    config = paper.get_config().unlock()
    config.seed, config.decode.temperature = seed, temperature
    config.model.update(**model)
    created = Done(row, seed, "joint", config.lock(), tmp_path / row / f"seed{seed}")
    if values is not None:
        created.evaluation.mkdir(parents=True)
        header = ["index", "label", "class", "true_colorfulness", *METRICS]
        lines = [[i, 0, "pie, with cream", 40.0, *map(float, line)] for i, line in enumerate(values)]
        write_csv(created.evaluation / "per_photo.csv", header, lines)
    return created


def test_rows_are_averaged_over_photos_and_seeds(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    values = {(row, seed): photos(rng, n=20) for row in ("full", "no_fusion", "zhang2016_head") for seed in (0, 1)}
    color_ce = METRICS.index("color_ce")
    for seed in (0, 1):
        values["no_fusion", seed][:, color_ce] = np.nan
    runs = [run(tmp_path, "full", 0, values["full", 0]), run(tmp_path, "full", 1, values["full", 1])]
    runs += [run(tmp_path, "no_fusion", 0, values["no_fusion", 0]), run(tmp_path, "no_fusion", 1, None)]
    runs += [run(tmp_path, "zhang2016_head", s, values["zhang2016_head", s], output_stride=4) for s in (0, 1)]
    full, no_fusion, zhang = summarize(runs)
    assert full.mean["psnr"] == pytest.approx(np.mean([values["full", s][:, 0].mean() for s in (0, 1)]), rel=1e-6)
    a, b = (values["full", s][:, 0].mean() for s in (0, 1))
    assert full.deviation["psnr"] == pytest.approx(abs(a - b) / np.sqrt(2), rel=1e-4)
    assert not full.difference
    assert no_fusion.status == {0: "done", 1: "pending"}
    assert no_fusion.paired == (0,)
    assert not no_fusion.deviation
    assert no_fusion.difference["psnr"][0] == pytest.approx(
        (values["no_fusion", 0] - values["full", 0])[:, 0].mean(), rel=1e-4
    )
    assert "color_ce" not in no_fusion.mean
    assert "color_ce" not in no_fusion.difference
    # It has cross-entropies, but with other targets.
    assert "color_ce" in zhang.mean
    assert zhang.difference.keys() == {*METRICS} - {"color_ce", "color_loss"}


def test_differences_that_seeds_alone_explain_are_not_highlighted(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    same = photos(rng, n=40)
    shift = {("full", 0): 0.0, ("full", 1): 0.6, ("no_fusion", 0): 0.9, ("no_fusion", 1): 0.7, ("no_rarity", 0): 2.0}
    shift["temperature_100", 0] = 0.1  # full's training, so seeds play no role in its difference
    model = {"no_fusion": {"fusion": False}, "no_rarity": {"width": 0.5}}
    runs = []
    for (row, seed), by in shift.items():
        values = same + by + rng.normal(0, 0.01, same.shape)
        runs.append(
            run(tmp_path, row, seed, values, temperature=1.0 if "temp" in row else 0.38, **model.get(row, {})),
        )
        (runs[-1].evaluation / "metrics.json").write_text(json.dumps({"rows": {"model": {}}, "photos": 40}))
    summaries = report.write(tmp_path, runs)
    means = {key: (same + by).mean(axis=0)[0] for key, by in shift.items()}
    variances = [np.var([means[row, seed] for seed in (0, 1)], ddof=1) for row in ("full", "no_fusion")]
    assert seed_deviation(summaries)["psnr"] == pytest.approx(np.sqrt(np.mean(variances)), rel=0.05)
    # The interval of either is without 0.
    assert all(summary.difference["psnr"][1] > 0 for summary in summaries if summary.row != "full")
    text = (tmp_path / "report.md").read_text()
    bold = {line.split("|")[1].strip() for line in text.splitlines() if "**" in line}
    assert bold == {"no_rarity", "temperature_100"}
    assert "| between seeds " in text


def test_files_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    full, other = run(tmp_path, "full", 0, photos(rng, n=9)), run(tmp_path, "no_fusion", 0, photos(rng, n=8))
    with pytest.raises(ValueError, match=r"no_fusion/seed0.*per_photo\.csv has other photos than .*full/seed0"):
        summarize([full, other])
    path = other.evaluation / "per_photo.csv"
    path.write_text(path.read_text().replace("index", "place", 1))
    with pytest.raises(ValueError, match=r"no_fusion.*is damaged \(KeyError: 'index'\): write it again"):
        summarize([other])
    path.write_text("index,psnr\n0,loud\n")
    with pytest.raises(ValueError, match="could not convert string to float: 'loud'"):
        summarize([other])
    path.write_text("index,psnr\n")
    with pytest.raises(ValueError, match="has no photo"):
        summarize([other])
