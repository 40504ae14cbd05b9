"""Pretrained networks that judge photos, in JAX."""
