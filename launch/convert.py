"""Turns published weights into a folder of safetensors that says what it holds and where it came from.

    python -m launch.convert --inception pt_inception-2015-12-05-6726825d.pth --out exported/inception
    python -m launch.convert --inception published --out exported/inception
    python -m launch.convert --taesd_encoder taesd_encoder.safetensors --taesd_decoder taesd_decoder.safetensors \\
        --size 128 --out exported/taesd

FID's Inception is taken as TorchScript, as the .pth of the PyTorch ports, or fetched ("published", 81 MB). Scores use
it with `launch.evaluate --features inception=exported/inception`; `--features inception` alone fetches it, too.
TAESD becomes an autoencoder to encode with and to start teachers from; --size is that of the pictures.
"""

from absl import flags

from launch import entry

INCEPTION = flags.DEFINE_string("inception", None, 'File of FID\'s Inception, or "published" to fetch it.')
TAESD = [flags.DEFINE_string(f"taesd_{side}", None, f"TAESD's {side}, safetensors.") for side in ("encoder", "decoder")]
SIZE = flags.DEFINE_integer("size", 512, "Pixels a side of the pictures TAESD is for.", lower_bound=8)
OUT = flags.DEFINE_string("out", None, "Folder to make.")
flags.mark_flag_as_required("out")


def main() -> None:
    entry.folder(OUT)
    taesd = [flag.value for flag in TAESD]
    if (INCEPTION.value is None) != all(taesd) or any(taesd) != all(taesd):
        entry.stop("give --inception FILE, or both --taesd_encoder and --taesd_decoder")
    if all(taesd):
        from lcm_jax import converting

        out = converting.tiny_autoencoder(*taesd, OUT.value, SIZE.value)
        print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
        return
    from lcm_jax.assess import inception_weights

    source = None if INCEPTION.value == "published" else INCEPTION.value
    out = inception_weights.convert(source, OUT.value)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


if __name__ == "__main__":
    entry.run(main)
