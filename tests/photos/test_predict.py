"""Prediction and films, by a colorizer with random parameters."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import mixed_photos
import numpy as np
import pytest
import scipy.special
import scipy.stats
import skimage.color
from PIL import Image

from colorjax import color
from colorjax.model.decode import compose_photo
from colorjax.model.program import build_program
from colorjax.photos import films, pipeline
from colorjax.photos.inputs import Job
from colorjax.photos.predictor import Predictor
from colorjax.run.trained import load_trained


@pytest.fixture(scope="module")
def predictor(untrained: Path) -> Predictor:
    return Predictor(untrained)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    coffee, rocket = mixed_photos.small_pixels("coffee.png"), mixed_photos.small_pixels("rocket.jpg")
    return [coffee, rocket[..., 0].astype(np.uint16) * 257, np.dstack([coffee, coffee[..., :1]]), coffee[:30, :20]]


def test_the_network_is_that_of_the_evaluation(untrained: Path, predictor: Predictor) -> None:
    rgb = np.asarray(mixed_photos.small_image("coffee.png").resize((32, 32), Image.Resampling.BOX))
    loaded = load_trained(untrained)
    program = build_program(loaded.config, "joint", classes=len(loaded.class_names))
    lab = color.rgb_to_lab(rgb[None])
    # It runs once, so LLVM's optimization would take longer than it saves.
    reference = jax.jit(
        lambda params, stats, l: program(params, stats, l, train=False)[0],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    outputs = reference(loaded.params, loaded.stats, lab[..., :1])
    assert outputs.color is not None
    (prediction,) = predictor.predict([rgb])
    np.testing.assert_allclose(prediction.color, outputs.color[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(prediction.class_probabilities, jax.nn.softmax(outputs.class_logits[0]), rtol=1e-3)
    guide = np.asarray(lab[0, ..., 0]).reshape(16, 2, 16, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(prediction.guide, guide, atol=1e-3)
    for temperature in (0.0, 0.38, 1.0):
        expected = color.annealed_mean(prediction.color, temperature=temperature)
        np.testing.assert_allclose(prediction.ab(temperature=temperature), expected, atol=1e-2)
    # Smooth colors: there the guided and the bilinear picture are the same.
    flat = np.broadcast_to(np.array([5, 20], np.float32), (16, 16, 2))
    smooth = compose_photo(lab[..., :1], jnp.asarray(flat[None]))[0]
    rendered = replace(prediction, color=flat).render()
    assert np.abs(rendered - 255 * np.asarray(smooth)).mean() < 1


def test_photos_of_unlike_kinds_are_colored_together(predictor: Predictor, photos: list[np.ndarray]) -> None:
    predictions = predictor.predict(photos)
    for photo, prediction in zip(photos, predictions, strict=True):
        (alone,) = predictor.predict([photo])
        np.testing.assert_allclose(alone.color, prediction.color, rtol=1e-3, atol=1e-3)
        colored = prediction.render()
        assert (colored.shape, colored.dtype) == ((*photo.shape[:2], 3), photo.dtype)
        most = np.iinfo(photo.dtype).max
        rgb = np.stack([photo] * 3, axis=-1) if photo.ndim == 2 else photo[..., :3]
        l, got = (skimage.color.rgb2lab(x / most)[..., 0] for x in (rgb, colored))
        assert np.abs(l - got).max() < 0.2
        assert np.ptp(prediction.render(saturation=0.0).astype(int), axis=-1).max() <= most / 255
        assert prediction.class_probabilities.dtype == np.float32
        assert prediction.class_probabilities.sum() == pytest.approx(1)
        best = prediction.likeliest(3)
        assert [p for _, p in best] == sorted((p for _, p in best), reverse=True)
        assert best[0][0] == predictor.class_names[prediction.class_probabilities.argmax()]
    assert len(predictor.predict(photos * 5)) == 20  # more than a batch
    assert predictor.predict([]) == []
    np.testing.assert_array_equal(predictor.colorize(photos[:1])[0].shape, photos[0].shape)


def test_the_uncertainty_is_the_entropy_of_the_colors(predictor: Predictor, photos: list[np.ndarray]) -> None:
    (prediction,) = predictor.predict(photos[:1])
    p = scipy.special.softmax(prediction.color.astype(np.float64), axis=-1)
    np.testing.assert_allclose(prediction.uncertainty(), scipy.stats.entropy(p, axis=-1) / np.log(313), rtol=1e-4)
    cooler = replace(prediction, uncertainty_temperature=0.5)
    p = scipy.special.softmax(prediction.color.astype(np.float64) / 0.5, axis=-1)
    np.testing.assert_allclose(cooler.uncertainty(), scipy.stats.entropy(p, axis=-1) / np.log(313), rtol=1e-4)
    sure = np.where(np.arange(313) == 7, 1e4, np.zeros((2, 2, 1))).astype(np.float32)
    np.testing.assert_array_equal(replace(prediction, color=sure).uncertainty(), 0)
    np.testing.assert_allclose(replace(prediction, color=0 * sure).uncertainty(), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="predicts colors without probabilities"):
        replace(prediction, color=sure[..., :2]).uncertainty()


def test_a_style_replaces_the_global_features(predictor: Predictor, photos: list[np.ndarray]) -> None:
    photo, other = photos[0], photos[1]
    (plain,), (same,) = predictor.predict([photo]), predictor.predict([photo], style=photo)
    (styled,), (style,) = predictor.predict([photo], style=other), predictor.predict([other])
    np.testing.assert_allclose(same.color, plain.color, rtol=1e-3, atol=1e-3)
    assert np.abs(styled.color - plain.color).max() > 0.01
    np.testing.assert_allclose(styled.class_probabilities, style.class_probabilities, atol=1e-4)


def test_a_hint_moves_the_class_and_the_colors(predictor: Predictor, photos: list[np.ndarray]) -> None:
    (plain,) = predictor.predict(photos[:1])
    unlikely = int(plain.class_probabilities.argmin())
    for hint in (predictor.class_names[unlikely].upper().replace("_", " "), str(unlikely)):
        (hinted,) = predictor.predict(photos[:1], hint=hint)
        assert hinted.class_probabilities.argmax() == unlikely
        assert np.abs(hinted.color - plain.color).max() > 0.01
    with pytest.raises(
        ValueError, match="hint is 'soup', which is not a class of this colorizer; its 8 classes are astronaut"
    ):
        predictor.predict(photos[:1], hint="soup")


def test_the_working_size_brings_detail_and_leaves_the_coarse_colors(untrained: Path, photos: list[np.ndarray]) -> None:
    small, large = (Predictor(untrained, size=size).predict(photos[:1])[0] for size in (32, 48))
    assert (small.color.shape, large.color.shape) == ((16, 16, 313), (24, 24, 313))
    coarse = [p.color.reshape(8, p.color.shape[0] // 8, 8, -1, 313).mean(axis=(1, 3)) for p in (small, large)]
    detail = large.color - np.repeat(np.repeat(coarse[1], 3, axis=0), 3, axis=1)
    assert np.abs(coarse[0] - coarse[1]).mean() < np.abs(detail).mean()
    assert np.abs(coarse[0].mean(axis=(0, 1)) - coarse[1].mean(axis=(0, 1))).mean() < np.abs(detail).mean() / 5
    np.testing.assert_allclose(small.class_probabilities, large.class_probabilities, atol=1e-5)


def test_wrong_arguments_are_refused(untrained: Path, predictor: Predictor, photos: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="size is 60; it must be a multiple of 8"):
        Predictor(untrained, size=60)
    with pytest.raises(ValueError, match="size is 1000000000; it must be a multiple of 8 between 32 and 4096"):
        Predictor(untrained, size=1_000_000_000)
    for batch_size in (0, 1025):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}; it must be between 1 and 1024"):
            Predictor(untrained, batch_size=batch_size)
    with pytest.raises(FileNotFoundError, match="neither a folder nor the name of shipped weights"):
        Predictor(untrained / "absent")
    for wrong in (np.zeros((4, 4)), np.zeros((0, 4), np.uint8), np.zeros((4, 4, 5), np.uint8)):
        with pytest.raises(ValueError, match=r"photo 1 is .*; it must be uint8 or uint16 \[H, W\]"):
            predictor.predict([photos[0], wrong])
    (prediction,) = predictor.predict(photos[:1])
    with pytest.raises(ValueError, match=r"temperature is -1"):
        prediction.render(temperature=-1)
    with pytest.raises(ValueError, match=r"saturation is -0\.5"):
        prediction.render(saturation=-0.5)


def test_colors_are_smoothed_over_time_but_not_over_cuts() -> None:
    rng = np.random.default_rng(0)
    guide = rng.uniform(0, 100, (8, 8)).astype(np.float32)
    true = rng.normal(0, 20, (8, 8, 2))
    noisy = [(true + rng.normal(0, 5, true.shape)).astype(np.float32) for _ in range(40)]
    smoother = films.Smoother(0.8)
    smoothed = [smoother(ab, guide) for ab in noisy]
    np.testing.assert_array_equal(smoothed[0], noisy[0])
    np.testing.assert_allclose(smoothed[1], 0.8 * smoothed[0] + 0.2 * noisy[1], rtol=1e-5, atol=1e-5)

    def flicker(frames: list[np.ndarray]) -> float:
        return float(np.abs(np.diff(np.stack(frames[10:]), axis=0)).mean())

    assert flicker(smoothed) < 0.3 * flicker(noisy)
    # One place that becomes another thing takes its own color, the rest does not.
    moved = guide.copy()
    moved[0, 0] = 100 - moved[0, 0] if abs(100 - 2 * moved[0, 0]) > 30 else moved[0, 0] + 40
    after = smoother(noisy[0], moved)
    np.testing.assert_allclose(after[0, 0], noisy[0][0, 0], atol=1e-2)
    assert np.abs(after[1:] - noisy[0][1:]).mean() > 1
    np.testing.assert_array_equal(smoother(noisy[1], 100 - guide), noisy[1])  # a cut
    with pytest.raises(ValueError, match="smoothing is 1"):
        films.Smoother(1)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="films need ffmpeg")
def test_a_film_keeps_its_sound_rate_and_lightness(predictor: Predictor, tmp_path: Path) -> None:
    film, out = tmp_path / "film.mp4", tmp_path / "out"
    make = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=97x64:rate=12:duration=0.5"]
    make += [
        "-f",
        "lavfi",
        "-i",
        "sine=duration=0.5",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv444p",
        "-c:a",
        "aac",
        str(film),
    ]
    subprocess.run(make, check=True)
    broken, long = tmp_path / "broken.mkv", "写" * 83 + ".mp4"
    broken.write_bytes(b"no film")
    jobs = [Job(film, out / "film.mp4"), Job(broken, out / "broken.mkv"), Job(film, out / long)]
    results = list(pipeline.color_files(jobs, predictor, pipeline.Look()))
    assert [result.notes for result in results] == [("6 frames",), (), ("6 frames",)]
    assert "broken.mkv: not a film that ffmpeg can read" in str(results[1].error)
    assert {path.name for path in out.iterdir()} == {"film.mp4", long}
    probe = [
        "ffprobe",
        "-v",
        "error",
        "-count_frames",
        "-show_entries",
        "stream=codec_name,width,height,nb_read_frames",
    ]
    told = subprocess.run([*probe, "-of", "csv=p=0", str(out / "film.mp4")], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["h264,98,64,6", f"aac,{told.stdout.split(',')[-1].strip()}"]
    frames = [next(films._frames(path, "12")) for path in (film, out / "film.mp4")]
    l = [skimage.color.rgb2lab(frame[:, :97])[..., 0] for frame in frames]
    assert np.abs(l[0] - l[1]).mean() < 2  # as far as H.264 keeps it
    assert np.abs(frames[0].astype(int) - frames[1][:, :97]).mean() > 2


def test_without_ffmpeg_the_error_names_what_to_install(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="install ffmpeg"):
        films.colorize_video(tmp_path / "a.mp4", tmp_path / "b.mp4", predictor)
