"""Meshes, sharding rules and transfers."""
