"""Color: sRGB and Lab, and the 313 color classes."""

from colorjax.color.bins import (
    BIN_STEP,
    NUM_BINS,
    ab_bins,
    annealed_mean,
    bin_shares,
    dense_shares,
    nearest_bin,
    nearest_bins,
    rarity_weights,
    smooth,
    soft_targets,
    uncertainty,
)
from colorjax.color.lab import (
    downsample,
    is_gray,
    lab_to_rgb,
    lightness,
    rgb_to_lab,
    to_pixels,
    to_uint8,
    unit_rgb,
)

__all__ = [
    "BIN_STEP",
    "NUM_BINS",
    "ab_bins",
    "annealed_mean",
    "bin_shares",
    "dense_shares",
    "downsample",
    "is_gray",
    "lab_to_rgb",
    "lightness",
    "nearest_bin",
    "nearest_bins",
    "rarity_weights",
    "rgb_to_lab",
    "smooth",
    "soft_targets",
    "to_pixels",
    "to_uint8",
    "uncertainty",
    "unit_rgb",
]
