"""FID of tens of thousands of pictures, with CLIP score or precision and recall, as published tables have them.

    python -m launch.score --config configs/evaluation_paper.py --model LCM --teacher TEACHER \\
        --prompts prompts.txt --real PICTURES --config.clip=CLIP --out scores
    python -m launch.score --config configs/evaluation_unconditional.py --model exported/slct --data data/mine \\
        --out scores                                       # a model of noise levels, without captions

--real is a folder of pictures (below it, too); --data, in its place, latents whose training pictures are read again.
--prompts is a text file with a prompt a line. Interrupted, it goes on with the row of the table it stopped in.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from launch import entry, opening, several

CONFIG = config_flags.DEFINE_config_file("config", None, "Protocol.", lock_config=True)
MODEL = flags.DEFINE_string("model", None, "Student: a run, or any model that launch.sample takes.")
TEACHER = flags.DEFINE_string("teacher", None, "Teacher to set beside it.")
DTYPE = flags.DEFINE_string("dtype", None, "What U-Nets compute in: float32, bfloat16 or float16.")
PROMPTS = flags.DEFINE_string("prompts", None, "Text file with a prompt a line, for a model that takes captions.")
REAL = flags.DEFINE_string("real", None, "Folder of real pictures.")
DATA = flags.DEFINE_string("data", None, "Latent folder; the real pictures are all that its training set was made of.")
TAG = flags.DEFINE_string("tag", None, "Of --data only the pictures that carry this tag, such as face.")
FOLDER = flags.DEFINE_string("folder", None, "Where --data's pictures are now, if not where they were encoded from.")
OUT = flags.DEFINE_string("out", None, "Folder for the scores.")
flags.mark_flags_as_required(["config", "model", "out"])
flags.mark_flags_as_mutual_exclusive(["real", "data"], required=True)


def main() -> None:
    entry.folder(OUT)
    for flag in (FOLDER, TAG):
        if flag.value is not None and DATA.value is None:
            entry.stop(f"--{flag.name} says which pictures of --data are meant: give both, or --real alone")
    with several.joined():
        score()


def score() -> None:
    """The table; of several processes each draws and looks at its share of the pictures."""
    import jax

    from lcm_jax import run_folder
    from lcm_jax.machine import machine

    told = run_folder.takes_captions(MODEL.value, **opening.how())
    (captioned if told else from_noise)({"machine": machine()})
    if jax.process_index() == 0:
        print((Path(OUT.value) / "table.md").read_text())


def captioned(about: dict[str, Any]) -> None:
    """Scores of a model that draws by captions."""
    if PROMPTS.value is None:
        entry.stop("this model draws by captions: give --prompts FILE")
    from lcm_jax import captions, run_folder
    from lcm_jax.assess import protocol

    prompts = captions.read(PROMPTS.value)
    how = {"dtype": DTYPE.value, **opening.how()}
    pipes = {"student": run_folder.pipeline(MODEL.value, **how)}
    if TEACHER.value is not None:
        pipes["teacher"] = run_folder.captioned(TEACHER.value, **how)
    protocol.run(CONFIG.value.to_dict(), pipes, prompts, real_pictures(pipes["student"].spec), OUT.value, about)


def from_noise(about: dict[str, Any]) -> None:
    """Scores of a model of noise levels."""
    told = ("teacher", "dtype", "prompts", "variant", "kind", "empty_caption")
    if needless := [name for name in told if flags.FLAGS[name].present]:
        entry.stop(f"this model draws from noise alone: leave --{needless[0]} out")
    from lcm_jax import run_folder
    from lcm_jax.assess import noise_protocol

    pipe = run_folder.pipeline(MODEL.value)
    noise_protocol.run(CONFIG.value.to_dict(), pipe, real_pictures(pipe.spec), OUT.value, about)


def real_pictures(spec: Any) -> Any:
    """What a model is held against, at its size."""
    from lcm_jax.assess import evaluation_set, protocol

    if REAL.value is not None:
        return protocol.real_pictures(REAL.value, spec.image_size)
    moved = {} if FOLDER.value is None else {"folder": FOLDER.value}
    return evaluation_set.training_pictures(DATA.value, moved, spec, TAG.value)


if __name__ == "__main__":
    entry.run(main)
