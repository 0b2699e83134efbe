"""Draws a latent data set with a teacher, of captions alone: to distil where there are no pictures, or too few.

    python -m launch.synthesize --model FOLDER --prompts prompts.txt --n 2 --guidance 7.5 --steps 25 --out data/drawn
    python -m launch.synthesize --model emoji-teacher --reader twemoji --recombined 2048 --steps 8 --w 0 --out data/new

--recombined N makes up N captions of the words of a reader's training captions. Interrupted, it goes on where it
stopped; started as several processes, as launch.train is, each draws a share of the shards.

--w is LCM's guidance, cond + w (cond - uncond); --guidance is the usual scale, w + 1.
"""

from collections import Counter

from absl import flags

from launch import entry, opening, several

MODEL = flags.DEFINE_string("model", "emoji-teacher", "The teacher: a shipped, exported or diffusers model.")
PROMPTS = flags.DEFINE_string("prompts", None, "Text file with a caption a line.")
READER = flags.DEFINE_string("reader", None, "Captions of what a reader of launch.encode finds, in place of --prompts.")
FOLDER = flags.DEFINE_string("folder", None, "What --reader reads.")
OPTIONS = flags.DEFINE_multi_string("options", [], "KEY=VALUE for the reader, such as tag=flag; repeatable.")
RECOMBINED = flags.DEFINE_integer(
    "recombined", None, "Draw this many new captions of the words of --reader's training captions.", lower_bound=1
)
OUT = flags.DEFINE_string("out", None, "Folder of the latent data set.")
N = flags.DEFINE_integer("n", 1, "Pictures of each caption.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 15, "Steps of the sampler.", lower_bound=1)
SAMPLER = flags.DEFINE_string("sampler", "dpmpp_2m", "ddim, ddim_leading, dpm_solver, dpm_solver_pp, dpmpp_2m, heun.")
W = flags.DEFINE_float("w", None, "Guidance w; the model's own by default.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale, w + 1; instead of --w.")
SEED = flags.DEFINE_integer("seed", 0, "Another seed, other pictures (and other recombined captions).")
SIZE = flags.DEFINE_integer("size", None, "Pixels a side; the model's own by default.", lower_bound=1)
DTYPE = flags.DEFINE_string("dtype", None, "What the U-Net computes in: float32, bfloat16 or float16.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures a call.", lower_bound=1)
SHARD_SIZE = flags.DEFINE_integer("shard_size", 1024, "Pictures a shard.", lower_bound=1)
TOKENS = flags.DEFINE_bool("tokens", False, "Store token ids beside the captions' states.")
TEXT = flags.DEFINE_enum(
    "text", "states", ["states", "none"], "What is stored of captions: the encoder's states, or none but token ids."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set that was made otherwise.")


def main() -> None:
    if (PROMPTS.value is None) == (READER.value is None):
        entry.stop("give either --prompts FILE or --reader NAME, whose captions are to be drawn")
    if READER.value is None and (RECOMBINED.present or FOLDER.present or OPTIONS.value):
        entry.stop("--recombined, --folder and --options are for --reader")
    if OUT.value is None:
        entry.stop("give --out, the folder of the latent data set")
    entry.folder(OUT)
    if W.value is not None and GUIDANCE.value is not None:
        entry.stop("--w and --guidance exclude each other: guidance is w + 1")
    with several.joined():
        synthesize()


def synthesize() -> None:
    """Draws, and says what was made; of several processes the first says it."""
    import jax

    from lcm_jax import captions as texts
    from lcm_jax import encoding, synthesizing

    if PROMPTS.value is not None:
        captions = texts.read(PROMPTS.value)
    else:
        options = entry.options(OPTIONS.value) | ({} if FOLDER.value is None else {"folder": FOLDER.value})
        encoding.check_out(OUT.value, options)
        captions = synthesizing.captions_of(READER.value, options, RECOMBINED.value, SEED.value)
    made = synthesizing.synthesize(
        MODEL.value,
        captions,
        OUT.value,
        N.value,
        SAMPLER.value,
        STEPS.value,
        W.value if GUIDANCE.value is None else GUIDANCE.value - 1,
        SEED.value,
        SIZE.value,
        DTYPE.value,
        BATCH_SIZE.value,
        SHARD_SIZE.value,
        TOKENS.value,
        TEXT.value == "states",
        OVERWRITE.value,
        **opening.how(),
    )
    if jax.process_index():
        return
    counts = Counter(captions)
    told = synthesizing.counted
    pictures = f"{told(sum(made.counts.values()), 'picture')} of {told(len(counts), 'caption')}"
    print(f"{OUT.value}: {pictures}, latents {'x'.join(map(str, made.latent_shape))}")
    if repeated := sum(count > 1 for count in counts.values()):
        print(f"repeated captions, each drawn as one: {repeated}")
    print(f"such as: {', '.join(map(repr, [*counts][:5]))}")


if __name__ == "__main__":
    entry.run(main)
