"""Turns published weights into a folder of safetensors that says what it holds and where it came from.

    python -m launch.convert --inception pt_inception-2015-12-05-6726825d.pth --out exported/inception
    python -m launch.convert --inception published --out exported/inception

FID's Inception is taken as TorchScript, as the .pth of the PyTorch ports, or fetched ("published", 81 MB). Scores use
it with `launch.evaluate --features inception=exported/inception`; `--features inception` alone fetches it, too.
"""

from absl import flags

from launch import entry

INCEPTION = flags.DEFINE_string("inception", None, 'File of FID\'s Inception, or "published" to fetch it.')
OUT = flags.DEFINE_string("out", None, "Folder to make.")
flags.mark_flags_as_required(["inception", "out"])


def main() -> None:
    from lcm_jax.assess import inception_weights

    source = None if INCEPTION.value == "published" else INCEPTION.value
    out = inception_weights.convert(source, OUT.value)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


if __name__ == "__main__":
    entry.run(main)
