"""Measurements: every script writes a JSON file that says on which machine it was made."""
