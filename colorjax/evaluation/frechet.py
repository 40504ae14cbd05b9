"""The Fréchet distance of two sets of features, each taken for a normal distribution (Heusel et al., NeurIPS 2017)."""

import numpy as np


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """|μ_a − μ_b|² + Tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½).

    A distance of few photos comes out too large, the more so the fewer they are: only distances over equally many
    photos compare.

    Args:
        a, b: floating [N, channels], of two or more photos each.

    Raises:
        ValueError: if there are fewer photos, or other channels.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"features of shapes {a.shape} and {b.shape} have no Fréchet distance")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    centered_a, centered_b = a - a.mean(axis=0), b - b.mean(axis=0)
    root_a, root_b = centered_a / np.sqrt(len(a) - 1), centered_b / np.sqrt(len(b) - 1)  # Σ = rootᵀ root
    # The eigenvalues of Σ_a Σ_b are the squared singular values of root_a root_bᵀ, or of any square factors of the
    # same Σ. Unlike a matrix's square root, they are never complex.
    singular = np.linalg.svd(_factor(root_a) @ _factor(root_b).T, compute_uv=False)
    spread = np.square(root_a).sum() + np.square(root_b).sum() - 2 * singular.sum()
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + max(spread, 0.0))


def _factor(root: np.ndarray) -> np.ndarray:
    """The triangular R with RᵀR = rootᵀroot, no larger than it must be."""
    return np.linalg.qr(root, mode="r")
