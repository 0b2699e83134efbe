"""A config as a file of its own: one text for every life of a run, whatever becomes of the file it came from."""

from pathlib import Path

from ml_collections import ConfigDict


def write(config: ConfigDict, path: Path) -> Path:
    """Writes a file that launch.train takes as --config."""
    lines = ["from ml_collections import ConfigDict", f"CONFIG = {config.to_dict()!r}"]
    lines += ["def get_config():", "    return ConfigDict(CONFIG)"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def train(config: ConfigDict, steps: int, data: str, batch_size: int, checkpoint_steps: int) -> ConfigDict:
    """The config on other data and for other lengths, every step reported, nothing drawn."""
    config.steps = steps
    config.data = {**config.data.to_dict(), "folder": data, "batch_size": batch_size}
    config.loop.update(log_steps=1, checkpoint_steps=checkpoint_steps, sample_steps=0)
    return config
