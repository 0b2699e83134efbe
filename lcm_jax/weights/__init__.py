"""Names and files of foreign checkpoints."""
