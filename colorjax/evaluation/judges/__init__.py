"""Off-the-shelf networks that judge photographs: run here in JAX, with the weights that others trained."""
