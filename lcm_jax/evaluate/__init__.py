"""Scores of generated images."""
