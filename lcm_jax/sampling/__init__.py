"""Few-step and reference samplers."""
