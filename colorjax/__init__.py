"""Automatic colorization of grayscale images with self-attention, in JAX and Flax."""
