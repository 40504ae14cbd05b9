"""Candidates: several plausible colorings of one photo, unlike each other.

Each is the network's own distribution of colors, tilted: at every place the logit of the bin (a, b) grows by
u·a + v·b, with one u and v for the whole photo. So the colors stay consistent, and a place where the network is sure
moves less than one where it wavers. Of all distributions with the moved mean, the tilted one is the nearest in
Kullback–Leibler divergence (Csiszár, *I-divergence geometry of probability distributions*, 1975), and the less it is,
the likelier the coloring.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colorjax import color

DISTANCE = 8.0
"""In ab: any two candidates of a photo differ by at least this, on average over places, at their own temperature."""

MAX_CANDIDATES = 9
_DIRECTIONS = 12  # of (u, v), tried at each distance from the prediction
_RINGS = 4  # distances from the prediction, in units of DISTANCE
_SIDE = 32  # places in a row and column where divergence and distance are measured
_STEPS = 12  # of the bisection
_LARGEST = 2.0  # of the length of (u, v), more than any coloring needs


class Tilt(NamedTuple):
    """What makes one coloring of a prediction.

    Attributes:
        logits: float32 [313], to be added to those of every place.
        divergence: the Kullback–Leibler divergence from the network's distribution, the mean over places, in nats: 0
            for the network's own, which is the likeliest.
    """

    logits: np.ndarray
    divergence: float


def find_tilts(logits: np.ndarray, temperature: float, k: int) -> list[Tilt]:
    """The k candidates for one photo, the likeliest first; the first one is the prediction itself.

    Around the prediction at DISTANCE, then at its multiples, those in twelve directions are taken in the order of their
    divergence, if they are at least DISTANCE from all that were taken before. The same photo has the same candidates.

    Args:
        logits: float32 [h, w, 313].
        temperature: of the annealed mean, at which the distances are measured.
        k: how many, 1…MAX_CANDIDATES; there are fewer if the network is so sure that no other coloring is so far.

    Raises:
        ValueError: if k is out of this range.
    """
    if not 1 <= k <= MAX_CANDIDATES:
        raise ValueError(f"candidates is {k}; it must be between 1 and {MAX_CANDIDATES}")
    step = math.ceil(max(logits.shape[:2]) / _SIDE)
    places = logits[::step, ::step].reshape(-1, color.NUM_BINS)
    annealed = np.float32(max(temperature, 1e-2))
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    own = np.zeros(2, np.float32)
    taken = [(0.0, own, np.asarray(_decoded(places, own, annealed)))]
    for ring in range(1, _RINGS + 1):
        if len(taken) >= k:
            break
        found = jax.device_get(_at_distance(places, directions, np.float32(ring * DISTANCE), annealed))
        for divergence, tilt, ab in sorted(zip(*found, strict=True), key=lambda x: float(x[0])):
            if min(_distance(ab, other) for _, _, other in taken) >= DISTANCE:
                taken.append((float(divergence), tilt, ab))
    taken.sort(key=lambda x: x[0])
    bins = color.ab_bins().astype(np.float32)
    return [Tilt(bins @ tilt, divergence) for divergence, tilt, _ in taken[:k]]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other, axis=-1).mean())


def _tilted(logits: jax.Array, tilt: jax.Array) -> jax.Array:
    bins = color.ab_bins().astype(np.float32)
    return logits + jnp.matmul(bins, tilt, precision=jax.lax.Precision.HIGHEST)[None]


@jax.jit
def _decoded(logits: jax.Array, tilt: jax.Array, temperature: jax.Array) -> jax.Array:
    """ab of the tilted logits: float32 [N, 2]."""
    return color.annealed_mean(_tilted(logits, tilt) / temperature, temperature=1.0)


@jax.jit
def _at_distance(
    logits: jax.Array, directions: jax.Array, distance: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """In each direction, the divergence, tilt and ab of what differs from the prediction by at least a distance."""
    plain = _decoded(logits, jnp.zeros(2), temperature)
    before = jax.nn.log_softmax(logits)

    def one(direction: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def moved(length: jax.Array) -> jax.Array:
            ab = _decoded(logits, length * direction, temperature)
            return jnp.sqrt(((ab - plain) ** 2).sum(axis=-1)).mean()

        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            middle = (ends[0] + ends[1]) / 2
            far = moved(middle) >= distance
            return jnp.where(far, ends[0], middle), jnp.where(far, middle, ends[1])

        _, length = jax.lax.fori_loop(0, _STEPS, halve, (jnp.float32(0), jnp.float32(_LARGEST)))
        after = jax.nn.log_softmax(_tilted(logits, length * direction))
        divergence = (jnp.exp(after) * (after - before)).sum(axis=-1).mean()
        return divergence, length * direction, _decoded(logits, length * direction, temperature)

    return jax.lax.map(one, directions)
