"""Pure maths of diffusion paths, solvers and losses (jax and numpy only)."""
