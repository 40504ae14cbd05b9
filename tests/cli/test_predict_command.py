"""`colorjax predict`: files, folders and pipes in, colored files out, whatever the files are like."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import jax
import mixed_photos
import numpy as np
import pytest
import skimage.color
from PIL import Image

from colorjax.cli import main, predict
from colorjax.photos import films, pipeline, predictor
from colorjax.photos.files import read_photo
from colorjax.photos.predictor import Predictor
from colorjax.run import locate
from colorjax.run.trained import Trained, load_trained


@pytest.fixture(scope="module")
def loaded(untrained: Path) -> Predictor:
    return Predictor(untrained)


@pytest.fixture
def shared(loaded: Predictor, untrained: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of a test use one predictor, which compiles once; it is of the weights that ship."""
    shipped = tmp_path_factory.mktemp("weights")
    (shipped / locate.DEFAULT).symlink_to(untrained)
    monkeypatch.setattr(locate, "SHIPPED", shipped)

    def load(checkpoint: Path, **_: Any) -> Predictor:
        assert checkpoint.samefile(untrained)
        return loaded

    monkeypatch.setattr(predictor, "Predictor", load)


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["predict", *map(str, arguments)])
    assert isinstance(exit.value.code, int)
    return exit.value.code


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_a_folder_of_fifty_mixed_files(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    mixed = mixed_photos.write_all(source, huge=(1000, 1500))
    assert run(source, "--out", out, "--checkpoint", untrained) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("not colored: ")]
    refused = [photo.name for photo in mixed if photo.refused]
    assert [line for line in lines if line.startswith(f"colored {50 - len(refused)} of 50 in ")]
    assert [line for line in lines if line.startswith(f"not colored, {len(refused)}: ")]
    assert lines[-1] == f"the results are in {out}"
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
    with Image.open(out / "turned 6.jpg") as image:
        assert image.getexif()[0x010E] == "a cup"

    # Again: what is there is skipped, unless it is wanted.
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(source / "rgb.png", source / "*.tif", "--out", out, "--checkpoint", untrained) == 1  # the truncated one
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    assert f"such as {out / 'rgb.png'}; --overwrite colors them again" in capsys.readouterr().err
    options = ("--overwrite", "--saturation", 0, "--hint", "coffee", "--temperature", 1)
    assert run(source / "rgb.png", "--out", out, "--checkpoint", untrained, *options) == 0
    assert np.ptp(read_photo(out / "rgb.png").pixels.astype(int), axis=-1).max() <= 1


@pytest.mark.usefixtures("shared")
def test_results_have_names_of_their_own_and_never_replace_the_input(
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
    assert read_photo(out / "x.webp").format == "WEBP"
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
    messages = capsys.readouterr().err
    assert "would write over it" in messages
    assert "absent.png: no such file" in messages
    assert (tmp_path / "a" / "x.png").read_bytes() == before


def test_wrong_arguments_are_one_line_and_status_2(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, no_photo = tmp_path / "file", tmp_path / "letter.jpg"
    file.write_text("")
    no_photo.write_text("Dear Anna,")
    checkpoint = next((untrained / "joint" / "checkpoints").glob("[0-9]*"))
    for arguments, message in (
        (("x.png",), "--out is missing; give the folder for the results"),
        (("x.png", "-", "--out", tmp_path), "- (a photo from a pipe) does not go with other inputs"),
        (("-", "--out", tmp_path), "--out does not go with -; the result goes to standard output"),
        (("x.png", "--out", file), f"--out: '{file}' is a file; give a folder"),
        (("x.png", "--out", file / "below"), f"--out: '{file}' is a file; give a folder"),
        (("x.png", "--out", "x" * 300), "File name too long"),
        (("x.png", "--out", tmp_path, "--quality", "0"), "--quality: '0' is not a whole number between 1 and 100"),
        (("x.png", "--out", tmp_path, "--temperature", "5"), "--temperature: '5' is not a number between 0 and 1"),
        (
            ("x.png", "--out", tmp_path, "--temperature", "warm"),
            "--temperature: 'warm' is not a number between 0 and 1",
        ),
        (("x.png", "--out", tmp_path, "--size", "60"), "--size: '60' is not a multiple of 8 between 32 and 4096"),
        (("x.png", "--out", tmp_path, "--size", "1000000000"), "not a multiple of 8 between 32 and 4096"),
        (("x.png", "--out", tmp_path, "--batch_size", "0"), "--batch-size: '0' is not a whole number between 1 and"),
        (("x.png", "--out", tmp_path, "--style", tmp_path / "no.jpg"), "no.jpg: No such file or directory"),
        (("x.png", "--out", tmp_path, "--style", no_photo), "letter.jpg: not a photo in a format that is read"),
        (
            ("x.png", "--out", tmp_path, "--hint", "soup"),
            "hint is 'soup', which is not a class of this colorizer; its 8 classes are",
        ),
        (("x.png", "--out", tmp_path, "--checkpoint", checkpoint), f"did you mean the folder above, {untrained}?"),
        (("x.png", "--out", tmp_path, "--checkpoint", "nothing"), "neither a folder nor the name of shipped weights"),
        (("x.png", "--out", tmp_path, "--candidates", "0"), "--candidates: '0' is not a whole number between 1 and 9"),
        (("-", "--candidates", "2"), "--candidates does not go with -; give a file and --out"),
        (("x.png", "--out", tmp_path, "--point", "1,2,blue"), "--point: '1,2,blue' is not a point; write x,y,#rrggbb"),
        (("x.png", "--out", tmp_path, "--points", no_photo), "letter.jpg must hold [[x, y, "),
        (("x.png", "--out", tmp_path, "--points", tmp_path / "no.json"), "no.json: No such file or directory"),
        (
            ("x.png", "--out", tmp_path, "--point", "1,2,#000000", "--points", no_photo),
            "--point does not go with --points; put all points into the file",
        ),
        (("x.png", "--out", tmp_path, "--tempreature", "1"), "did you mean --temperature?"),
    ):
        given = () if "--checkpoint" in arguments else ("--checkpoint", untrained)
        assert run(*arguments, *given) == 2, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert sorted(tmp_path.iterdir()) == [file, no_photo]


@pytest.mark.slow
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
from colorjax.cli import main, predict
peaks = []
for arguments in (["-"], [sys.argv[2], "--out", sys.argv[3]]):
    try:
        main(["predict", *arguments, "--checkpoint", sys.argv[1]])
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
    messages = done.stderr.decode()
    assert done.returncode == 0, messages
    piped = Image.open(io.BytesIO(done.stdout))
    assert (piped.format, piped.size, piped.mode) == ("PNG", photo.size, "RGB")
    *_, per_pixel, tensorflow = messages.split()
    assert float(per_pixel) < 20
    assert tensorflow == "False"


@pytest.mark.usefixtures("shared")
def test_a_map_of_the_uncertainty_stands_beside_each_photo(
    loaded: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("cup.png", "cup.jpg", "cup.jpg.uncertainty.png"):
        mixed_photos.small_image("coffee.png").save(source / name)
    assert run(source, "--out", out, "--uncertainty") == 0
    maps = ["cup.jpg.uncertainty.png", "cup.jpg.uncertainty-2.png", "cup.png.uncertainty.png"]
    maps.append("cup.jpg.uncertainty-2.png.uncertainty.png")
    assert {path.name for path in out.iterdir()} == {"cup.jpg", "cup.png", *maps}
    photo = read_photo(source / "cup.png")
    (prediction,) = loaded.predict([photo.pixels])
    gray = np.asarray(Image.open(out / "cup.png.uncertainty.png"))[..., 0]
    assert gray.shape == photo.pixels.shape[:2]
    large = Image.fromarray(prediction.uncertainty()).resize(gray.shape[::-1], Image.Resampling.BILINEAR)
    assert np.abs(gray - 255 * np.asarray(large)).max() <= 2
    # A map that is there is not written over.
    (out / "cup.jpg").unlink()
    before = (out / "cup.jpg.uncertainty.png").read_bytes()
    assert run(source / "cup.jpg", "--out", out, "--uncertainty", "--temperature", 1) == 0
    assert "cup.jpg.uncertainty.png; --overwrite colors them again" in capsys.readouterr().err
    assert (out / "cup.jpg.uncertainty.png").read_bytes() == before
    assert not (out / "cup.jpg").exists()
    assert run("-", "--uncertainty") == 2
    assert capsys.readouterr().err.endswith("--uncertainty does not go with -; give a file and --out\n")
    with loaded.config.unlocked():
        monkeypatch.setitem(loaded.config.model, "head", "ab")
    assert run(source, "--out", out, "--uncertainty") == 2
    assert "this colorizer has none (model.head 'ab')" in capsys.readouterr().err


@pytest.mark.usefixtures("shared")
def test_an_interruption_leaves_whole_files_only(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(6):
        mixed_photos.small_image("coffee.png").save(source / f"{i}.png")
    begun, original = threading.Event(), pipeline.write_photo

    def slow(*args: Any, **options: Any) -> None:
        begun.set()
        time.sleep(0.2)
        original(*args, **options)

    def interrupted(self: Any) -> None:
        begun.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_photo", slow)
    monkeypatch.setattr(predict._Progress, "step", interrupted)
    assert run(source, "--out", out, "--checkpoint", untrained) == 130
    written = list(out.iterdir())
    assert 0 < len(written) < 6
    for path in written:
        read_photo(path)  # whole


@pytest.mark.usefixtures("shared")
def test_points_and_candidates_of_photos(loaded: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b/a.png", "c.png"):
        save_photo(source / name)
    one = ("--point", "40,30,#607080", "--point", "5,6,#705060")
    assert run(source / "c.png", "--out", out, *one, "--candidates", 3) == 0
    assert sorted(path.name for path in out.iterdir()) == ["c-candidate2.png", "c-candidate3.png", "c.png"]
    photo = read_photo(source / "c.png").array
    given = [(40, 30, "#607080"), (5, 6, "#705060")]
    for path, expected in zip(
        [out / "c.png", out / "c-candidate2.png", out / "c-candidate3.png"], loaded.candidates(photo, 3), strict=True
    ):
        np.testing.assert_array_equal(read_photo(path).pixels, expected.with_points(given).render())
    capsys.readouterr()

    # Of several photos by name; a point outside of one does not stop the others.
    file = tmp_path / "points.json"
    file.write_text('{"b/a.png": [[40, 30, "#607080"]], "c.png": [[64, 0, "#607080"]]}')
    assert run(source, "--recursive", "--out", tmp_path / "second", "--points", file) == 1
    error = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("not colored: "))
    assert "c.png: the point 64,0 is outside of the photo, which is 64 pixels wide and 48 high" in error
    pictures = [read_photo(tmp_path / "second" / name).pixels for name in ("a.png", "b/a.png")]
    np.testing.assert_array_equal(pictures[0], loaded.predict([photo])[0].render())
    np.testing.assert_array_equal(pictures[1], loaded.predict([photo])[0].with_points(given[:1]).render())
    for content, message in (
        ('{"x.png": []}', "--points: no input is named 'x.png'"),
        ('{"a.png": []}', "--points: 2 inputs are named 'a.png'; give more of the path"),
        ('[[1, 2, "#000000"]]', "points are for one photo, and there are 3; give one"),
    ):
        file.write_text(content)
        assert run(source, "--recursive", "--out", tmp_path / "third", "--points", file) == 2
        assert message in capsys.readouterr().err
    film = tmp_path / "film.mp4"
    film.write_bytes(b"")
    assert run(film, "--out", out, *one) == 2
    assert "film.mp4 is a film; points are for photos" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="films need ffmpeg")
@pytest.mark.usefixtures("shared")
@pytest.mark.slow
def test_a_keyframe_guides_a_film(loaded: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, accepted, out = save_photo(tmp_path / "photo.png"), tmp_path / "accepted.png", tmp_path / "out"
    film = tmp_path / "film.mkv"
    make = ["ffmpeg", "-v", "error", "-framerate", "10", "-loop", "1", "-i", str(photo), "-frames:v", "4"]
    subprocess.run([*make, "-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv444p", str(film)], check=True)
    given = [(8, 8, "#4060c0"), (50, 40, "#30a040")]
    (prediction,) = loaded.predict([read_photo(photo).array], points=[given])
    picture = prediction.render()
    Image.fromarray(picture).save(accepted)

    assert run(film, "--out", out / "without") == 0
    capsys.readouterr()
    assert run(film, "--out", out / "with", "--keyframe", f"{accepted}@0.1") == 0
    assert "accepted.png guides it from 0.10 s" in capsys.readouterr().err
    with_it, without = (list(films._frames(out / name / "film.mkv", "10")) for name in ("with", "without"))

    def distance(frame: np.ndarray) -> float:
        return float(
            np.linalg.norm((skimage.color.rgb2lab(frame) - skimage.color.rgb2lab(picture))[..., 1:], axis=-1).mean()
        )

    assert len(with_it) == len(without) == 4
    assert distance(with_it[0]) == pytest.approx(distance(without[0]), rel=0.1)
    for guided, plain in zip(with_it[1:], without[1:], strict=True):
        assert distance(guided) < 0.5 * distance(plain)

    gray = tmp_path / "gray.png"
    Image.fromarray(picture).convert("L").save(gray)
    for inputs, keyframe, status, message in (
        ((film,), tmp_path / "no.png", 2, "--keyframe: "),
        ((film,), gray, 2, "gray.png is gray; give a colored picture of a frame"),
        ((film,), f"{accepted}@later", 2, "'later' is not a time; write FILE@SECONDS"),
        ((film,), f"{accepted}@7", 1, "is at 7 s, and film.mkv lasts 0.40 s"),
        ((photo,), accepted, 2, "photo.png is a photo; --keyframe is for films"),
        ((film, photo), accepted, 2, "keyframes are for one film, and there are 2 inputs"),
    ):
        assert run(*inputs, "--out", tmp_path / "none", "--keyframe", keyframe) == status
        assert message in capsys.readouterr().err
    assert run("-", "--keyframe", accepted) == 2
    assert "--keyframe does not go with -; give a film and --out" in capsys.readouterr().err


def save_photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mixed_photos.small_image("coffee.png").save(path, format="PNG")
    return path


@pytest.mark.usefixtures("shared")
def test_what_is_not_a_file_is_named_and_the_others_are_colored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("good.png", "below/good.png", "closed/hidden.png", "folder.jpg/good.png"):
        save_photo(source / name)
    (source / "loop.png").symlink_to(source / "loop.png")
    (source / "dangling.png").symlink_to(source / "absent.png")
    (source / "below" / "up").symlink_to(source)
    (source / "again.png").symlink_to(source / "good.png")
    os.mkfifo(source / "pipe.png")

    def scandir(path: Any, scandir: Any = os.scandir) -> Any:
        if Path(path).name == "closed":  # the tests may run as root, whom permissions do not stop
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    long = tmp_path / ("x" * 300)
    assert run(source, source / "pipe.png", long, tmp_path / "**x", "--recursive", "--out", out) == 1
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.png")) == [
        "again.png",
        "below/good.png",
        "folder.jpg/good.png",
    ]
    messages = capsys.readouterr().err
    for message in (
        "loop.png: Too many levels of symbolic links",
        "dangling.png: No such file or directory",
        "pipe.png: not a file",
        "closed: Permission denied",
        "xxx: no such file, folder or pattern",
        "**x: ",
        "colored 3 of 9 ",
    ):
        assert message in messages


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: not a file"):
        read_photo(tmp_path / "pipe.png")


@pytest.mark.usefixtures("shared")
def test_long_names_and_names_with_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    japanese = "写" * 83 + ".png"  # 253 bytes
    longest = ["x" * 251 + ".gif", "x" * 251 + ".bmp"]  # 255 bytes; as .webp a byte too many
    escapes = "\x1b[2J\x9b31m\u202egnp.png"
    for name in (japanese, *longest, escapes):
        save_photo(source / name)
    (source / "\x1b[31mbad.png").write_text("no photo")
    assert run(source, "--out", out) == 1
    assert {path.name for path in out.iterdir()} == {
        japanese,
        "x" * 251 + ".png",
        "x" * 249 + "-2.png",
        escapes,
    }
    messages = capsys.readouterr().err
    assert "\x1b" not in messages
    assert "\\x1b[31mbad.png" in messages
    assert run(source / longest[0], "--out", tmp_path / "webp", "--format", "webp") == 0
    assert [path.name for path in (tmp_path / "webp").iterdir()] == ["x" * 250 + ".webp"]


@pytest.mark.usefixtures("shared")
def test_closed_pipes_end_in_one_line_and_lose_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save_photo(tmp_path / "photo.png")

    with closed_pipe() as closed, monkeypatch.context() as patch, photo.open("rb") as file:
        patch.setattr(sys, "stdin", io.TextIOWrapper(file))
        patch.setattr(sys, "stdout", closed)
        assert run("-") == 1
    assert capsys.readouterr().err == "not colored: standard output was closed\n"
    for stdout_is_none in (True, False):
        with closed_pipe() as closed, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None if stdout_is_none else closed)
            patch.setattr(sys, "stderr", closed if stdout_is_none else None)
            assert run("-") == 1
            assert run(photo, tmp_path / "absent.png", "--out", tmp_path / "out", "--overwrite") == 1
        read_photo(tmp_path / "out" / "photo.png")
        (tmp_path / "out" / "photo.png").unlink()


@contextlib.contextmanager
def closed_pipe() -> Iterator[TextIO]:
    """A pipe that nothing reads any more, to write to."""
    read, write = os.pipe()
    os.close(read)
    file = os.fdopen(write, "w")
    yield file
    with contextlib.suppress(BrokenPipeError):
        file.close()


def test_weights_that_are_not_finite_color_nothing(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(path: Path) -> Trained:
        trained = load_trained(path)
        return replace(trained, params=jax.tree.map(lambda x: np.full_like(x, np.nan), trained.params))

    monkeypatch.setattr(predictor, "load_trained", damaged)
    photo = save_photo(tmp_path / "photo.png")
    assert run(photo, "--out", tmp_path / "out", "--checkpoint", untrained) == 1
    assert "photo.png: the prediction is not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("shared")
def test_a_bug_with_one_photo_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [save_photo(tmp_path / name) for name in ("a.png", "b.png", "c.png")]

    def write(rgb: Any, like: Any, target: Path, original: Any = pipeline.write_photo, **options: Any) -> None:
        if target.name == "b.png":
            raise TypeError("a bug")
        original(rgb, like, target, **options)

    monkeypatch.setattr(pipeline, "write_photo", write)
    assert run(*photos, "--out", tmp_path / "out") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    assert f"not colored: {photos[1]}: TypeError: a bug" in capsys.readouterr().err
