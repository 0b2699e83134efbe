"""Weights that leave the project."""
