"""The web page: drop a photo, and see it gray and in color under a slider. The page is Gradio's, an optional extra."""

import contextlib
import html
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from colorjax.photos import resample
from colorjax.photos.files import READABLE_SUFFIXES, SUFFIXES, Photo, output_format, read_photo, write_photo
from colorjax.photos.points import moved
from colorjax.photos.predictor import Prediction, Predictor
from colorjax.run import pictures

PREVIEW_SIDE = 1280  # pixels of the longer side on the page; the download has the photo's own size
KEPT = 30 * 60  # seconds without use after which a session and its files are deleted
_CANDIDATES = 4  # colorings to choose from, the prediction's own first
_THUMBNAIL = 240  # pixels of their longer side
_WAITING = 16  # requests in the queue; the next one is told to come again

_DELETED = "is no longer kept, after half an hour without use. Please drop it here again."

STYLE = """<style>
.main.fillable { width: 100%; max-width: 1080px !important; }
#message { border-left: 4px solid #b91c1c; background: #b91c1c1a; padding: .6rem .8rem; border-radius: 4px; }
#limits { opacity: .7; }
#written { display: none; }
/* All colorings side by side: Gradio gives each 100 pixels, and their row a fixed height. */
#gallery .grid-wrap { min-height: 0; height: auto; }
#gallery .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; padding-top: 2em; }
#gallery .thumbnail-item { height: auto; aspect-ratio: 1; }
</style>"""


@dataclass(frozen=True)
class _Session:
    """What the server keeps about a visitor's photo.

    Attributes:
        upload: the uploaded file, in the page's folder.
        gray: the picture on the slider's left, a JPEG in the same folder.
        preview: what is shown, to be rendered at the page's size: with the color points, and of a chosen candidate.
        prediction: the network's own, without points.
    """

    upload: Path
    gray: Path
    preview: Prediction
    prediction: Prediction


def make_page(predictor: Predictor, folder: Path, *, max_bytes: int, max_pixels: int, provenance: bool = True) -> Any:
    """Builds the page; `server.serving` serves it.

    Args:
        predictor: colors the photos, one at a time.
        folder: for the page's temporary files.
        max_bytes: of an upload; only shown, since `serving` refuses more.
        max_pixels: of a photo; more are refused.
        provenance: whether a download's XMP records that the colorizer made its colors.

    Returns:
        A gradio.Blocks.

    Raises:
        ImportError: if Gradio is not installed.
    """
    gr = import_gradio()
    usual = float(predictor.config.decode.temperature)

    def read(path: Path) -> Photo:
        if not path.resolve().is_relative_to(folder):
            raise ValueError(f"{path.name} was not uploaded")
        try:
            photo = read_photo(path.read_bytes(), max_pixels=max_pixels)
        except FileNotFoundError:
            raise ValueError(f"{path.name} {_DELETED}") from None
        except ValueError as e:
            raise ValueError(f"{path.name}: {str(e).removeprefix('the photo: ')}") from e
        os.utime(path)  # keeps it for another half hour
        return photo

    def show(session: _Session, saturation: float, temperature: float, unsure: bool) -> tuple[str, str]:
        rgb = session.preview.render(temperature=temperature, saturation=saturation)
        if unsure:
            heat = pictures.heat(resample.enlarged(session.preview.uncertainty(), *rgb.shape[:2]))
            rgb = (rgb // 3 + heat // 3 * 2).astype(np.uint8)
        return str(session.gray), str(_picture(rgb, folder))

    def color_photo(
        upload: str | None,
        session: _Session | None,
        style: str | None,
        hint: str,
        saturation: float,
        temperature: float,
        unsure: bool,
    ) -> list[Any]:
        """Colors the uploaded photo, or the session's photo again. A file that cannot be read changes nothing."""
        try:
            path = Path(upload) if upload else _kept(session).upload
            pixels = read(path).array
            style_pixels = read(Path(style)).array if style else None
            (prediction,) = predictor.predict([pixels], style=style_pixels, hint=hint or None)
            preview = replace(prediction, photo=_reduced(pixels))
            gray = _picture(preview.render(saturation=0.0), folder)
            points = () if upload else _kept(session).preview.points
            session = _Session(path, gray, replace(preview, points=points), preview)
            pair = show(session, saturation, temperature, unsure)
        except (OSError, ValueError) as e:
            return [_message(e), gr.skip(), gr.skip(), gr.skip(), gr.skip(), None]
        likeliest = {_readable(name): p for name, p in prediction.likeliest(5)}
        return [_message(""), gr.update(visible=True), pair, likeliest, session, None]

    def render(session: _Session | None, saturation: float, temperature: float, unsure: bool) -> list[Any]:
        try:
            # Returning the session keeps it for another half hour.
            return [_message(""), show(_kept(session), saturation, temperature, unsure), session]
        except OSError as e:
            return [_message(e), gr.skip(), session]
        except ValueError as e:
            return [_message(e), gr.skip(), None]

    def changed(
        session: _Session | None,
        change: Callable[[_Session], Prediction],
        saturation: float,
        temperature: float,
        unsure: bool,
    ) -> list[Any]:
        """The page with another preview; a mistake changes nothing."""
        try:
            session = _kept(session)
            session = replace(session, preview=change(session))
            pair = show(session, saturation, temperature, unsure)
            return [_message(""), pair, session, draw(session)]
        except (OSError, ValueError) as e:
            return [_message(e), gr.skip(), session, gr.skip()]

    def add_point(
        event: gr.SelectData,  # pyright: ignore[reportInvalidTypeForm]
        session: _Session | None,
        rgb: str,
        *settings: Any,
    ) -> list[Any]:
        def change(kept: _Session) -> Prediction:
            at = event.index
            x, y = at if isinstance(at, (list, tuple)) and len(at) == 2 else (-1, -1)
            return kept.preview.with_points([*kept.preview.points, (x, y, _hex(rgb))])

        return changed(session, change, *settings)

    def undo_point(session: _Session | None, *settings: Any) -> list[Any]:
        return changed(session, lambda kept: replace(kept.preview, points=kept.preview.points[:-1]), *settings)

    def choose(
        event: gr.SelectData,  # pyright: ignore[reportInvalidTypeForm]
        session: _Session | None,
        *settings: Any,
    ) -> list[Any]:
        def change(kept: _Session) -> Prediction:
            found = kept.prediction.candidates(_CANDIDATES)
            if type(event.index) is not int or not 0 <= event.index < len(found):
                raise ValueError("There is no such coloring.")
            return replace(found[event.index], points=kept.preview.points)

        return changed(session, change, *settings)

    def draw(session: _Session | None) -> Any:
        """The picture to click, with the points."""
        return gr.skip() if session is None else str(_picture(_marked(session.preview), folder))

    def suggest(session: _Session | None) -> list[Any]:
        try:
            prediction = _kept(session).prediction
            small = replace(prediction, photo=_reduced(prediction.photo, _THUMBNAIL)).candidates(_CANDIDATES)
            return [_message(""), [str(_picture(p.render(), folder)) for p in small], session]
        except (OSError, ValueError) as e:
            return [_message(e), gr.skip(), session]

    def write(session: _Session | None, saturation: float, temperature: float) -> list[Any]:
        try:
            kept = _kept(session)
            photo = read(kept.upload)
            points = tuple(moved(kept.preview.points, kept.preview.photo.shape, photo.pixels.shape))
            prediction = replace(kept.preview, photo=photo.pixels, points=points)
            rgb = prediction.render(temperature=temperature, saturation=saturation)
            target = folder / secrets.token_hex(16) / _download_name(kept.upload, photo)
            target.parent.mkdir()
            write_photo(rgb, photo, target, provenance=predictor.provenance if provenance else None)
        except (OSError, ValueError) as e:
            return [_message(e), None, session]
        return [_message(""), str(target), session]

    def upload_box(label: str, **options: Any) -> Any:
        box = gr.File(label=label, show_label=False, file_types=list(READABLE_SUFFIXES), **options)
        # Gradio's method leaves an empty temporary file at every call.
        box.preprocess = lambda payload: None if payload is None else payload.path
        return box

    limits = f"up to {max_bytes / 2**20:.3g} MB and {max_pixels / 1e6:.3g} megapixels"
    with gr.Blocks(title="Color a photo", analytics_enabled=False) as page:
        session = gr.State(time_to_live=KEPT)
        gr.Markdown(
            "# Color a photo\n"
            "Drop a black-and-white photo, or any other: only its brightness is looked at.  \n"
            f'<small id="limits">JPEG, PNG, TIFF, WebP and others, {limits}. '
            "They stay on the computer that runs this page, for half an hour.</small>"
        )
        message = gr.HTML(visible=False)
        photo = upload_box("Photo", height=150, elem_id="photo")
        with gr.Row(visible=False) as result:
            with gr.Column(scale=3, min_width=320):
                pair = gr.ImageSlider(
                    label="Gray and in color", show_label=False, buttons=["fullscreen"], max_height=640, elem_id="pair"
                )
                download = gr.Button("Download at full size", variant="primary")
                # Clicked by the page itself once the file is written.
                written = gr.DownloadButton(elem_id="written")
            with gr.Column(scale=2, min_width=320):
                saturation = gr.Slider(0.0, 2.0, 1.0, step=0.05, label="Saturation", info="0 is gray, 1 as predicted.")
                temperature = gr.Slider(
                    0.0,
                    max(1.0, usual),
                    usual,
                    step=0.01,
                    label="Temperature",
                    info="Low: the likeliest color alone. High: likely colors blend, more softly.",
                    visible=predictor.config.model.head == "bins",
                )
                unsure = gr.Checkbox(
                    label="Show where the network is unsure",
                    info="Violet: sure of the color. Yellow: it has no idea.",
                    visible=predictor.config.model.head == "bins",
                    elem_id="unsure",
                )
                likeliest = gr.Label(
                    label="What the network sees", num_top_classes=5, show_heading=False, elem_id="likeliest"
                )
                with gr.Accordion("Color points", open=False):
                    gr.Markdown("Choose a color, then click the photo where it belongs. It spreads over that thing.")
                    picker = gr.ColorPicker("#3060a0", label="Color", elem_id="picker")
                    canvas = gr.Image(
                        label="Click here", show_label=False, interactive=False, buttons=[], elem_id="canvas"
                    )
                    undo = gr.Button("Undo the last point", size="sm")
                with gr.Accordion("Other colorings", open=False, visible=predictor.config.model.head == "bins"):
                    ask = gr.Button("Show other colorings", size="sm")
                    gallery = gr.Gallery(
                        label="The likeliest first",
                        interactive=False,
                        allow_preview=False,
                        columns=_CANDIDATES,
                        height="auto",
                        buttons=[],
                        elem_id="gallery",
                    )
                # Only the fusion carries what guides to the colors.
                with gr.Accordion("Guide the colors", open=False, visible=predictor.config.model.fusion):
                    gr.Markdown("Style photo: the colors take after its mood.")
                    style = upload_box("Style photo", height=120, elem_id="style")
                    names = [(_readable(name), name) for name in sorted(predictor.class_names)]
                    hint = gr.Dropdown([("let the network decide", ""), *names], value="", label="What the photo shows")

        settings = [saturation, temperature]
        gr.on(
            [photo.upload, style.upload, style.clear, hint.input],
            color_photo,
            [photo, session, style, hint, *settings, unsure],
            [message, result, pair, likeliest, session, photo],
            concurrency_id="network",
            concurrency_limit=1,
            trigger_mode="always_last",
        ).success(draw, [session], [canvas]).success(lambda: None, None, [gallery])
        gr.on(
            [saturation.input, temperature.input, unsure.input],
            render,
            [session, *settings, unsure],
            [message, pair, session],
            concurrency_limit=1,
            trigger_mode="always_last",
            show_progress="hidden",
        )
        shown = [message, pair, session, canvas]
        canvas.select(add_point, [session, picker, *settings, unsure], shown, show_progress="hidden")
        undo.click(undo_point, [session, *settings, unsure], shown, show_progress="hidden")
        gallery.select(choose, [session, *settings, unsure], shown, concurrency_id="network")
        ask.click(suggest, [session], [message, gallery, session], concurrency_id="network")
        download.click(write, [session, *settings], [message, written, session], concurrency_id="network").success(
            None, js="() => document.querySelector('#written').click()"
        )
    page.queue(max_size=_WAITING, default_concurrency_limit=1)
    return page


def import_gradio() -> Any:
    """Gradio.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import gradio
    except ImportError as e:
        raise ImportError("the page needs Gradio: pip install gradio") from e
    return gradio


def theme() -> Any:
    """Gradio's default theme in gray, with the system's fonts, so that none is fetched."""
    from gradio.themes import Default

    fonts = ["system-ui", "sans-serif"]
    return Default(primary_hue="slate", neutral_hue="slate", font=fonts, font_mono=fonts)


def _kept(session: _Session | None) -> _Session:
    """The session if its files still exist; they are kept for another half hour.

    Raises:
        ValueError: if they do not.
    """
    if session is not None:
        with contextlib.suppress(FileNotFoundError):
            for path in (session.upload, session.gray):
                os.utime(path)
            return session
    raise ValueError(f"The photo {_DELETED}")


def _message(problem: Exception | str) -> Any:
    """Shows a problem, or nothing for ""; of an OSError only the reason, since a path is no visitor's business."""
    import gradio as gr

    text = f"The server failed: {problem.strerror}." if isinstance(problem, OSError) else str(problem)
    return gr.update(value=f'<p id="message" role="alert">{html.escape(text)}</p>', visible=bool(text))


def _reduced(pixels: np.ndarray, side: int | None = None) -> np.ndarray:
    """A photo at the page's size, or with another longer side, if it is larger: uint8 [h, w, 3]."""
    height, width = pixels.shape[:2]
    factor = min(1.0, (side or PREVIEW_SIDE) / max(height, width))
    return resample.thumbnail(pixels, height=max(1, round(height * factor)), width=max(1, round(width * factor)))


def _marked(prediction: Prediction) -> np.ndarray:
    """The photo in color with a ring around each color point: uint8 [h, w, 3]."""
    image = Image.fromarray(prediction.render())
    radius = max(image.size) / 80
    drawing = ImageDraw.Draw(image)
    for x, y, rgb in prediction.points:
        for grow, ink in ((1.5, "black"), (1.25, "white"), (1.0, rgb)):
            box = [at + sign * radius * grow for sign in (-1, 1) for at in (x, y)]
            drawing.ellipse(box, fill=ink if grow == 1.0 else None, outline=ink, width=max(1, round(radius / 4)))
    return np.asarray(image)


def _hex(text: str) -> str:
    """A color of Gradio's picker, "#rrggbb" or "rgba(r, g, b, a)", as "#rrggbb"."""
    found = re.fullmatch(r"rgba?\(([\d.]+), *([\d.]+), *([\d.]+)(?:, *[\d.]+)?\)", str(text)[:100])
    return "#" + "".join(f"{min(255, round(float(x))):02x}" for x in found.groups()) if found else str(text)[:100]


def _picture(rgb: np.ndarray, folder: Path) -> Path:
    """Writes a picture for the page, without chroma subsampling."""
    path = folder / f"{secrets.token_hex(16)}.jpg"
    Image.fromarray(rgb).save(path, quality=90, subsampling=0)
    return path


def _download_name(upload: Path, photo: Photo) -> str:
    suffix, kept = upload.suffix, output_format(photo)
    if SUFFIXES.get(suffix.lower()) != kept:
        suffix = next(s for s, name in SUFFIXES.items() if name == kept)
    return f"{upload.stem[:80]}-color{suffix}"


def _readable(name: str) -> str:
    return name.replace("_", " ")
