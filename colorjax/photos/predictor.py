"""Colors photos of any size with a trained colorizer.

    from colorjax import Predictor
    colored = Predictor().colorize([photo])

`colorjax predict` colors files.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colorjax import color
from colorjax.model.decode import Decoder
from colorjax.model.program import Program, Tree
from colorjax.photos import resample
from colorjax.photos.candidates import find_tilts
from colorjax.photos.hub import on_hub
from colorjax.photos.points import Point, checked
from colorjax.photos.provenance import Provenance
from colorjax.run import compilation
from colorjax.run.config import Config
from colorjax.run.locate import locate
from colorjax.run.trained import load_trained, save_trained
from colorjax.run.trees import checksum, flatten

MAX_SIZE = 4096  # pixels of the working size; a batch's activations take gigabytes long before
MAX_BATCH_SIZE = 1024


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network predicts for one photo; `render` makes pictures of it without the network.

    Attributes:
        photo: the given photo, not a copy.
        color: float32 [h, w, 313], the ab bins' logits, adjusted for decoding, or [h, w, 2], ab (regression).
        guide: float32 [h, w], the photo's L at the color's resolution.
        class_probabilities: float32 [classes], of what the global features network saw: of the style photo if there
            is one, and after the hint.
        class_names: of the classes, in the same order.
        temperature: of the annealed mean, by default, as configured.
        saturation: factor on the decoded color, as configured.
        uncertainty_temperature: divides the logits for the uncertainty, as configured.
        points: the photo's color points, which only `render` uses.
        divergence: of a candidate, in nats; see `candidates.Tilt`. 0 is the network's own prediction.
    """

    photo: np.ndarray
    color: np.ndarray
    guide: np.ndarray
    class_probabilities: np.ndarray
    class_names: tuple[str, ...]
    temperature: float
    saturation: float = 1.0
    uncertainty_temperature: float = 1.0
    points: tuple[Point, ...] = ()
    divergence: float = 0.0

    def with_points(self, points: Iterable[tuple[int, int, str]]) -> "Prediction":
        """The same prediction with other color points (photos/points.py); the network does not run again.

        Args:
            points: x and y in pixels of the photo, from 0 at the left and the top, and "#rrggbb". Of two at the same
                place the last one counts.

        Raises:
            ValueError: if one is not a point or lies outside the photo, or there are more than MAX_POINTS.
        """
        return replace(self, points=tuple(checked(points, shape=self.photo.shape)))

    def likeliest(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most likely classes and their probabilities, the most likely first."""
        best = np.argsort(-self.class_probabilities, kind="stable")[:k]
        return [(self.class_names[i], float(self.class_probabilities[i])) for i in best]

    def ab(self, *, temperature: float | None = None) -> np.ndarray:
        """The color at working resolution: float32 [h, w, 2].

        Args:
            temperature: of the annealed mean, 0 (the likeliest color) to 1 (the mean) or more; ignored by regression.

        Raises:
            ValueError: if it is negative.
        """
        temperature = self.temperature if temperature is None else temperature
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; it must be 0 (the likeliest color) or more")
        if self.color.shape[-1] == 2:
            ab = self.color
        # Decoding at 0 has its own program. All others share one, so that moving a slider does not compile.
        elif temperature == 0:
            ab = _mode(self.color)
        else:
            ab = _mean(self.color, np.float32(max(temperature, 1e-4)))
        return np.float32(self.saturation) * np.asarray(ab)

    def candidates(self, k: int) -> list["Prediction"]:
        """Several plausible colorings of the photo, the likeliest, which is this one, first (photos/candidates.py).

        Args:
            k: how many, 1…MAX_CANDIDATES; there are fewer if the network is so sure that no other is unlike enough.

        Raises:
            ValueError: if k is out of this range, or the colorizer predicts no distribution (regression).
        """
        if self.color.shape[-1] == 2:
            raise ValueError("this colorizer predicts colors without probabilities (model.head 'ab'): no candidates")
        tilts = find_tilts(self.color, self.temperature, k)
        return [replace(self, color=self.color + tilt.logits, divergence=tilt.divergence) for tilt in tilts]

    def uncertainty(self) -> np.ndarray:
        """How unsure the network is of the color, at working resolution: float32 [h, w], 0 (sure) to 1.

        The entropy of the predicted distribution, divided by that of 313 colors with equal probability.

        Raises:
            ValueError: if the colorizer predicts no distribution (regression).
        """
        if self.color.shape[-1] == 2:
            raise ValueError("this colorizer predicts colors without probabilities (model.head 'ab'): no uncertainty")
        return np.asarray(_uncertainty(self.color, np.float32(self.uncertainty_temperature)))

    def render(self, *, temperature: float | None = None, saturation: float = 1.0) -> np.ndarray:
        """The color photo, with the photo's lightness.

        Args:
            temperature: as in `ab`.
            saturation: factor of the predicted chroma, beside the configured one; 0 is gray. Color points keep theirs.

        Returns:
            [H, W, 3] of the photo's dtype, sRGB.

        Raises:
            ValueError: if either is negative.
        """
        if not 0 <= saturation < math.inf:
            raise ValueError(f"saturation is {saturation}; it must be 0 (gray) or more")
        ab, mean = self.ab(temperature=temperature), self.ab(temperature=1.0) if self.points else None
        return resample.render(self.photo, ab, self.guide, saturation=saturation, points=self.points, mean=mean)


class Predictor:
    """A trained colorizer, ready for photos of any size.

    Attributes:
        config: what it was trained with; see configs/paper.py.
        class_names: of its classes.
        size: side in pixels of the square to which photos are resized for the network.
        batch_size: photos that the network sees at once.
    """

    config: Config
    class_names: tuple[str, ...]
    size: int
    batch_size: int

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        *,
        size: int | None = None,
        batch_size: int = 8,
        name: str | None = None,
    ):
        """Loads a colorizer. It compiles when the first photo comes.

        Args:
            checkpoint: a run's workdir, an exported folder, or the name of shipped weights; None is `locate.DEFAULT`.
            size: working size in pixels, a multiple of 8 in 32…MAX_SIZE; by default what it was trained with.
            batch_size: photos that the network sees at once, 1…MAX_BATCH_SIZE.
            name: of the colorizer, for `provenance`; by default that of its folder.

        Raises:
            FileNotFoundError: if there is no such colorizer.
            ValueError: if the size or the batch size is out of its range, or a file is damaged or lacks what decoding
                needs.
        """
        if size is not None and (size % 8 or not 32 <= size <= MAX_SIZE):
            raise ValueError(f"size is {size}; it must be a multiple of 8 between 32 and {MAX_SIZE}")
        if not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch_size is {batch_size}; it must be between 1 and {MAX_BATCH_SIZE}")
        folder = locate(checkpoint)
        trained = load_trained(folder)
        self._name = folder.resolve().name if name is None else name
        self._trained = replace(trained, params={}, stats={})
        self.config, self.class_names = trained.config, trained.class_names
        self.size = self.config.data.image_size if size is None else size
        self.batch_size = batch_size
        self._params, self._stats = jax.device_put((trained.params, trained.stats))
        self._forward = jax.jit(
            functools.partial(_forward, trained.program(), trained.decoder(), self.config.model.output_stride),
            compiler_options=compilation.compiler_options(),
        )

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, **options: Any) -> "Predictor":
        """Loads a colorizer from a folder, or from a repository on the Hugging Face Hub, which is fetched.

        Args:
            folder_or_repo: a run's workdir or an exported folder; else a repository such as "user/name".
            options: `size` and `batch_size`, and those of huggingface_hub's ModelHubMixin.from_pretrained, such as
                `revision` and `token`.

        Raises:
            ImportError: if huggingface_hub is not installed.
            OSError: if the repository cannot be fetched.
            FileNotFoundError, ValueError: as the constructor.
        """
        return on_hub(cls).from_pretrained(folder_or_repo, **options)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Uploads the colorizer as an exported folder with a model card, and returns the address of the commit.

        Args:
            repo: such as "user/name"; it is made if it does not exist.
            options: of huggingface_hub's ModelHubMixin.push_to_hub, such as `private` and `token`.

        Raises:
            ImportError: if huggingface_hub is not installed.
            OSError: if the Hub refuses it.
        """
        kind = on_hub(type(self))
        uploaded = kind.__new__(kind)
        uploaded.__dict__.update(self.__dict__)
        return uploaded.push_to_hub(repo, **options)

    def save(self, folder: str | Path) -> None:
        """Writes the colorizer as an exported folder (run.trained.save_trained).

        Raises:
            FileExistsError: if the folder holds something.
        """
        params, stats = jax.device_get((self._params, self._stats))
        save_trained(replace(self._trained, params=params, stats=stats), folder)

    @functools.cached_property
    def provenance(self) -> Provenance:
        """Which model and which weights make the colors, for `files.write_photo`."""
        return Provenance(self._name, checksum(flatten({"params": self._params, "stats": self._stats})))

    def predict(
        self,
        photos: Sequence[np.ndarray],
        *,
        style: np.ndarray | None = None,
        hint: str | None = None,
        points: Sequence[Sequence[tuple[int, int, str]]] | None = None,
    ) -> list[Prediction]:
        """Runs the network on photos of any sizes.

        Args:
            photos: uint8 or uint16, gray [H, W], sRGB [H, W, 3], or with alpha [H, W, 2] or [H, W, 4]. Only the
                lightness of color photos is used. The predictions keep them, without a copy.
            style: another such photo, whose global features replace the photos' (Iizuka, section 6.3).
            hint: name or number of a class; the global features are moved until the classifier predicts it.
            points: for each photo its color points, as in `Prediction.with_points`.

        Raises:
            ValueError: for an array that is not a photo, an unknown class, a model whose colors depend on neither style
                nor class, a wrong color point, or a prediction that is not finite.
        """
        for i, photo in enumerate(photos):
            _check(photo, f"photo {i}")
        if points is not None and len(points) != len(photos):
            raise ValueError(f"there are {len(points)} lists of points for {len(photos)} photos; give one for each")
        given = [checked(p, shape=photo.shape) for p, photo in zip(points or [()] * len(photos), photos, strict=True)]
        if style is not None:
            _check(style, "the style")
        if (style is not None or hint is not None) and not self.config.model.fusion:
            raise ValueError("this colorizer was trained without fusion: no style or class hint reaches its colors")
        number = None if hint is None else self.class_number(hint)
        predictions: list[Prediction] = []
        for start in range(0, len(photos), self.batch_size):
            predictions += self._run(photos[start : start + self.batch_size], style, number)
        return [replace(p, points=tuple(of)) if of else p for p, of in zip(predictions, given, strict=True)]

    def colorize(
        self,
        photos: Sequence[np.ndarray],
        *,
        temperature: float | None = None,
        saturation: float = 1.0,
        style: np.ndarray | None = None,
        hint: str | None = None,
        points: Sequence[Sequence[tuple[int, int, str]]] | None = None,
    ) -> list[np.ndarray]:
        """The color photos: `predict`, then `Prediction.render`, with their arguments."""
        predictions = self.predict(photos, style=style, hint=hint, points=points)
        return [p.render(temperature=temperature, saturation=saturation) for p in predictions]

    def candidates(
        self, photo: np.ndarray, k: int = 3, *, style: np.ndarray | None = None, hint: str | None = None
    ) -> list[Prediction]:
        """Several plausible colorings of one photo: `predict`, then `Prediction.candidates`, with their arguments."""
        return self.predict([photo], style=style, hint=hint)[0].candidates(k)

    def class_number(self, hint: str) -> int:
        """The number of a class by its name, ignoring case, hyphens and underscores, or by its number.

        Raises:
            ValueError: if there is no such class; lists similar ones.
        """
        wanted = _normalized(hint)
        names = [_normalized(name) for name in self.class_names]
        if wanted in names:
            return names.index(wanted)
        if hint.isdigit() and int(hint) < len(names):
            return int(hint)
        similar = [name for name, normalized in zip(self.class_names, names, strict=True) if wanted in normalized]
        shown = ", ".join((similar or self.class_names)[:8]) + ("" if similar else ", …")
        raise ValueError(
            f"hint is {hint!r}, which is not a class of this colorizer; its {len(names)} classes are {shown}"
        )

    def _run(self, photos: Sequence[np.ndarray], style: np.ndarray | None, hint: int | None) -> list[Prediction]:
        # Resized to the square that the network was trained on: the colors are better than at the photo's aspect ratio
        # (docs/color.md).
        trained_size = self.config.data.image_size
        squares = [_square(photo, self.size) for photo in photos]
        trained = None if self.size == trained_size else [_square(photo, trained_size) for photo in photos]
        styles = None if style is None else [_square(style, trained_size)] * len(photos)
        # A single photo is a batch of its own. All other batches are padded, so that there are only two programs.
        padded = 1 if len(photos) == 1 else self.batch_size
        color, guide, probabilities = jax.device_get(
            self._forward(
                self._params,
                self._stats,
                _padded(squares, padded),
                None if trained is None else _padded(trained, padded),
                None if styles is None else _padded(styles, padded),
                None if hint is None else np.full(padded, hint, np.int32),
            )
        )
        count = len(photos)
        if not all(np.isfinite(x[:count]).all() for x in (color, probabilities)):
            raise ValueError("the prediction is not finite (NaN or infinite): the colorizer's weights are damaged")
        decode = self.config.decode
        settings = decode.temperature, decode.saturation, decode.uncertainty_temperature
        return [
            Prediction(photo, color[i], guide[i], probabilities[i], self.class_names, *settings)
            for i, photo in enumerate(photos)
        ]


def _forward(
    program: Program,
    decoder: Decoder,
    stride: int,
    params: Tree,
    stats: Tree,
    photos: jax.Array,
    trained: jax.Array | None,
    styles: jax.Array | None,
    hint: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Color, guide and class probabilities of a batch.

    Args:
        photos: uint8 [B, size, size, 3].
        trained: uint8 [B, image_size, image_size, 3], the same photos at the trained size; None if `size` is that.
        styles: the style photos, in the same form.
        hint: int32 [B].
    """
    l = color.lightness(photos, gray=False)
    trained_l = l if trained is None else color.lightness(trained, gray=False)
    global_l = None if styles is None else color.lightness(styles, gray=False)
    outputs, _ = program(params, stats, trained_l, global_l=global_l, hint=hint, train=False)
    colors = outputs.color
    if trained is not None:
        global_l = trained_l if global_l is None else global_l
        sized = program(params, stats, l, global_l=global_l, hint=hint, train=False)[0].color
        # At another size the same network predicts other colors. So only the detail comes from this size, and what is
        # coarser than four pixels comes from the trained size.
        coarse = colors.shape[1] * stride // 4
        colors = sized + _resized(_resized(colors, coarse) - _resized(sized, coarse), sized.shape[1])
    return decoder.adjusted(colors), color.downsample(l, factor=stride)[..., 0], jax.nn.softmax(outputs.class_logits)


def _resized(maps: jax.Array, side: int) -> jax.Array:
    return jax.image.resize(maps, (maps.shape[0], side, side, maps.shape[-1]), "linear")


_mean = jax.jit(lambda logits, temperature: color.annealed_mean(logits / temperature, temperature=1.0))
_uncertainty = jax.jit(lambda logits, temperature: color.uncertainty(logits / temperature))
_mode = jax.jit(lambda logits: color.annealed_mean(logits, temperature=0.0))


def _square(photo: np.ndarray, size: int) -> np.ndarray:
    return resample.thumbnail(photo, height=size, width=size)


def _padded(photos: list[np.ndarray], count: int) -> np.ndarray:
    return np.stack(photos + photos[:1] * (count - len(photos)))


def _normalized(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


def _check(photo: np.ndarray, name: str) -> None:
    fits = photo.ndim == 2 or (photo.ndim == 3 and 1 <= photo.shape[-1] <= 4)
    if photo.dtype not in (np.uint8, np.uint16) or not fits or 0 in photo.shape:
        raise ValueError(
            f"{name} is {photo.dtype} {list(photo.shape)}; it must be uint8 or uint16 [H, W], [H, W, 3], or with alpha "
            "[H, W, 2] or [H, W, 4]"
        )
