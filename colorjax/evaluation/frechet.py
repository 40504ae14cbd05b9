"""The Fréchet distance of two sets of features, assumed normally distributed (Heusel et al., NeurIPS 2017)."""

import numpy as np


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """|μ_a − μ_b|² + Tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½).

    The fewer the photos, the more it overestimates: compare only distances over equally many photos.

    Args:
        a, b: floating [N, channels], two or more photos each.

    Raises:
        ValueError: there are fewer photos, or the channels differ.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"features of shapes {a.shape} and {b.shape} have no Fréchet distance")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    centered_a, centered_b = a - a.mean(axis=0), b - b.mean(axis=0)
    root_a, root_b = centered_a / np.sqrt(len(a) - 1), centered_b / np.sqrt(len(b) - 1)  # Σ = rootᵀ root
    # The eigenvalues of Σ_a Σ_b are the squared singular values of root_a root_bᵀ, or of any factors of the same Σ.
    # Unlike a matrix's square root, they are never complex.
    singular = np.linalg.svd(_factor(root_a) @ _factor(root_b).T, compute_uv=False)
    trace = np.square(root_a).sum() + np.square(root_b).sum() - 2 * singular.sum()
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + max(trace, 0.0))


def _factor(root: np.ndarray) -> np.ndarray:
    """The triangular R with RᵀR = rootᵀ root."""
    return np.linalg.qr(root, mode="r")
