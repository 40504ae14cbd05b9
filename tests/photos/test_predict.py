"""Prediction and its command line, of a colorizer with random parameters."""

import io
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mixed_photos
import numpy as np
import pytest
import skimage.color
from PIL import Image

from colorjax import color
from colorjax.cli import predict
from colorjax.cli.predict import main
from colorjax.model.colorizer import Outputs
from colorjax.model.decode import decode_photo
from colorjax.model.program import build_program
from colorjax.photos import films
from colorjax.photos.files import read_photo
from colorjax.photos.predictor import Predictor
from colorjax.run.trained import load_trained


@pytest.fixture(scope="module")
def predictor(untrained: Path) -> Predictor:
    return Predictor(untrained)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    coffee, rocket = mixed_photos.small_pixels("coffee.png"), mixed_photos.small_pixels("rocket.jpg")
    return [coffee, rocket[..., 0].astype(np.uint16) * 257, np.dstack([coffee, coffee[..., :1]]), coffee[:30, :20]]


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in arguments])
    assert isinstance(exit.value.code, int)
    return exit.value.code


def test_the_network_is_the_evaluation_s(untrained: Path, predictor: Predictor) -> None:
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
    smooth = decode_photo(Outputs(outputs.class_logits, jnp.asarray(flat[None])), lab[..., :1], temperature=1.0)[0]
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
    with pytest.raises(ValueError, match="hint is 'soup', no class of this colorizer; its 8 classes are astronaut"):
        predictor.predict(photos[:1], hint="soup")


def test_the_working_size_brings_detail_and_leaves_the_coarse_colors(untrained: Path, photos: list[np.ndarray]) -> None:
    small, large = (Predictor(untrained, size=size).predict(photos[:1])[0] for size in (32, 48))
    assert (small.color.shape, large.color.shape) == ((16, 16, 313), (24, 24, 313))
    coarse = [p.color.reshape(8, p.color.shape[0] // 8, 8, -1, 313).mean(axis=(1, 3)) for p in (small, large)]
    detail = large.color - np.repeat(np.repeat(coarse[1], 3, axis=0), 3, axis=1)
    assert np.abs(coarse[0] - coarse[1]).mean() < np.abs(detail).mean()
    assert np.abs(coarse[0].mean(axis=(0, 1)) - coarse[1].mean(axis=(0, 1))).mean() < np.abs(detail).mean() / 5
    np.testing.assert_allclose(small.class_probabilities, large.class_probabilities, atol=1e-5)


def test_what_cannot_be_is_refused(untrained: Path, predictor: Predictor, photos: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="size is 60; it must be a multiple of 8"):
        Predictor(untrained, size=60)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Predictor(untrained, batch_size=0)
    with pytest.raises(FileNotFoundError, match="config"):
        Predictor(untrained / "absent")
    for wrong in (np.zeros((4, 4)), np.zeros((0, 4), np.uint8), np.zeros((4, 4, 5), np.uint8)):
        with pytest.raises(ValueError, match=r"photo 1 is .*; it must be uint8 or uint16 \[H, W\]"):
            predictor.predict([photos[0], wrong])
    (prediction,) = predictor.predict(photos[:1])
    with pytest.raises(ValueError, match=r"temperature is -1"):
        prediction.render(temperature=-1)
    with pytest.raises(ValueError, match=r"saturation is -0\.5"):
        prediction.render(saturation=-0.5)


def test_a_folder_of_fifty_mixed_files(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    mixed = mixed_photos.write_all(source, huge=(1000, 1500))
    assert run(source, "--out", out, "--checkpoint", untrained) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not colored: ")]
    refused = [photo.name for photo in mixed if photo.refused]
    assert len(errors) == len(refused)
    assert all(any(name in error for error in errors) for name in refused)

    written = {path.name for path in out.iterdir()}
    assert written == {
        str(Path(p.name).with_suffix(".png")) if Path(p.name).suffix in (".gif", ".bmp") else p.name
        for p in mixed
        if not p.refused
    } - {"animated.png"} | {"animated.png", "animated-2.png"}
    for photo in mixed:
        if photo.refused or photo.name.startswith("animated"):
            continue
        name = photo.name.replace(".bmp", ".png")
        got, given = read_photo(out / name), read_photo(source / photo.name)
        assert got.pixels.shape[:2] == given.pixels.shape[:2], name
        assert (got.alpha is None) == (given.alpha is None), name
        assert given.metadata.keys() - got.metadata.keys() == set(), name
        if Path(name).suffix.lower() in (".png", ".tif", ".tiff"):
            assert got.pixels.dtype == given.pixels.dtype, name
            most = np.iinfo(got.pixels.dtype).max
            rgb = np.stack([given.pixels] * 3, -1) if given.pixels.ndim == 2 else given.pixels
            l, kept = (skimage.color.rgb2lab(x / most)[..., 0] for x in (rgb, got.pixels))
            assert np.abs(l - kept).max() < 0.2, name
            if got.alpha is not None:
                np.testing.assert_array_equal(got.alpha, given.alpha)
    assert Image.open(out / "turned 6.jpg").getexif()[0x010E] == "a cup"

    # Again: what is there is skipped, unless it is wanted.
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(source / "rgb.png", source / "*.tif", "--out", out, "--checkpoint", untrained) == 1  # the truncated one
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    assert "rgb.png: skipped" in capsys.readouterr().err
    options = ("--overwrite", "--saturation", 0, "--hint", "coffee", "--temperature", 1)
    assert run(source / "rgb.png", "--out", out, "--checkpoint", untrained, *options) == 0
    assert np.ptp(read_photo(out / "rgb.png").pixels.astype(int), axis=-1).max() <= 1


def test_folders_names_and_what_lies_in_the_way(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = mixed_photos.small_image("coffee.png")
    for name in ("a/x.png", "a/b/x.png", "c/x.jpg", "c/x.bmp", "a/.hidden.png", "a/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, format="PNG")
    out = tmp_path / "a" / "out"
    base = ("--checkpoint", untrained, "--out", out)
    assert run(tmp_path / "a", tmp_path / "c" / "x.jpg", tmp_path / "c" / "x.bmp", *base, "--format", "webp") == 0
    assert sorted(p.name for p in out.iterdir()) == ["x-2.webp", "x-3.webp", "x.webp"]
    assert Image.open(out / "x.webp").format == "WEBP"
    # Its own results, below it, are no input.
    assert run(tmp_path / "a", *base, "--recursive") == 0
    assert (out / "b" / "x.png").exists()
    assert (out / "x.png").exists()
    assert len(list(out.rglob("*.*"))) == 5
    # Never over the input.
    before = (tmp_path / "a" / "x.png").read_bytes()
    assert (
        run(tmp_path / "a" / "x.png", tmp_path / "absent.png", "--checkpoint", untrained, "--out", tmp_path / "a") == 1
    )
    said = capsys.readouterr().err
    assert "would write over it" in said
    assert "absent.png: no such file" in said
    assert (tmp_path / "a" / "x.png").read_bytes() == before


def test_wrong_arguments_end_it_before_it_begins(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (("x.png",), "--out is missing"),
        (("x.png", "-", "--out", tmp_path), "goes without other inputs"),
        (("x.png", "--out", tmp_path, "--quality", "0"), "'0' is no number of 1…100"),
        (("x.png", "--out", tmp_path, "--temperature", "warm"), "'warm' is no number"),
        (("x.png", "--out", tmp_path, "--hint", "soup"), "its 8 classes are"),
        (("x.png", "--out", tmp_path, "--style", tmp_path / "no.jpg"), "no.jpg"),
        (("x.png", "--out", tmp_path, "--size", "7"), "size is 7"),
    ):
        assert run(*arguments, "--checkpoint", untrained) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_photo_through_a_pipe_and_the_command_s_memory(untrained: Path, tmp_path: Path) -> None:
    """In a process of its own: a small photo through the pipe, then a large one within 20 bytes a pixel more.

    3 GB for 100 megapixels leave more: 30 bytes a pixel.
    """
    photo = mixed_photos.small_image("retina.jpg")
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    photo.save(small)
    photo.resize((3600, 2500), Image.Resampling.NEAREST).save(large, compress_level=1)
    script = """
import resource, sys
from colorjax import command
peaks = []
for arguments in (["-"], [sys.argv[2], "--out", sys.argv[3]]):
    try:
        main([*arguments, "--checkpoint", sys.argv[1]])
    except SystemExit as exit:
        assert exit.code == 0
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print((peaks[1] - peaks[0]) / (3600 * 2500), file=sys.stderr)
print("tensorflow" in sys.modules, file=sys.stderr)
"""
    arguments = [sys.executable, "-c", script, str(untrained), str(large), str(tmp_path / "out")]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(arguments, input=small.read_bytes(), capture_output=True, check=False, env=environment)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    piped = Image.open(io.BytesIO(done.stdout))
    assert (piped.format, piped.size, piped.mode) == ("PNG", photo.size, "RGB")
    *_, per_pixel, tensorflow = said.split()
    assert float(per_pixel) < 20
    assert tensorflow == "False"


def test_an_interruption_leaves_whole_files_only(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(6):
        mixed_photos.small_image("coffee.png").save(source / f"{i}.png")
    begun, original = threading.Event(), predict.write_photo

    def slow(*args: Any, **options: Any) -> None:
        begun.set()
        time.sleep(0.2)
        original(*args, **options)

    def interrupted(self: Any) -> None:
        begun.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "write_photo", slow)
    monkeypatch.setattr(predict._Progress, "done", interrupted)
    assert run(source, "--out", out, "--checkpoint", untrained) == 130
    written = list(out.iterdir())
    assert 0 < len(written) < 6
    for path in written:
        read_photo(path)  # whole


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
def test_a_film_keeps_its_sound_rate_and_lightness(untrained: Path, tmp_path: Path) -> None:
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
    (tmp_path / "broken.mkv").write_bytes(b"no film")
    assert run(film, tmp_path / "broken.mkv", "--out", out, "--checkpoint", untrained) == 1
    assert [p.name for p in out.iterdir()] == ["film.mp4"]
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


def test_without_ffmpeg_a_film_says_what_to_install(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="install ffmpeg"):
        films.colorize_video(tmp_path / "a.mp4", tmp_path / "b.mp4", predictor)
