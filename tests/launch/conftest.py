"""The whole road once, in miniature: pictures, latents, a teacher, its distillation, fine-tuning, exports."""

from functools import partial
from types import SimpleNamespace

import jax
import pytest
import tiny

from lcm_jax import build, captions, encoding, run_folder, sections
from lcm_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="session")
def captions_without_download():
    """One device and captions without a download, for every test of this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(captions.ENCODERS, "minilm", tiny.FakeCaptions)
        patch.setattr(sections, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory, captions_without_download):
    """Pictures, an autoencoder and the latents it made of them."""
    root = tmp_path_factory.mktemp("data")
    pictures = tiny.pictures(root / "pictures")
    autoencoder = tiny.model_folder(root / "autoencoder", tiny.spec("autoencoder"))
    options = {"folder": str(pictures)}
    latents = root / "latents"
    encode = partial(encoding.encode, autoencoder, "image_folder", options, latents, 8, 10, progress=False)
    return SimpleNamespace(
        root=root, pictures=pictures, autoencoder=autoencoder, latents=latents, manifest=encode(), encode=encode
    )


@pytest.fixture(scope="session")
def latents32(data):
    """Latents of 4 x 4 x 4, of pictures of 32 pixels: those of the presets "tiny" and "dit_tiny"."""
    where = data.root / "latents32"
    options = {"folder": str(data.pictures)}
    encoding.encode(data.autoencoder, "image_folder", options, where, 8, 10, size=32, progress=False)
    return where


@pytest.fixture(scope="session")
def first(data):
    """Untrained models in folders: a teacher and a student."""
    teacher = tiny.model_folder(data.root / "teacher", tiny.spec("diffusion"), seed=1)
    return SimpleNamespace(teacher=teacher, student=tiny.model_folder(data.root / "student", seed=2))


@pytest.fixture(scope="session")
def road(data, first):
    """Runs and exports, each from the one before."""
    root = data.root

    def go(name: str, objective: dict, model: dict, **changes) -> SimpleNamespace:
        config = tiny.config(objective, model, data.latents, **changes)
        state = run_folder.train(build.run(config), root / name, progress=False)
        exported = run_folder.export(root / name, root / f"{name}_exported")
        return SimpleNamespace(run=root / name, config=config, state=state, exported=exported)

    lcd = {"name": "lcd", "w_min": 0.0, "w_max": 4.0, "w_width": tiny.W_WIDTH}
    teacher = go("diffusion", {"name": "diffusion"}, {"start": str(first.teacher)}, steps=3)
    model = {"teacher": str(teacher.exported), "w_width": tiny.W_WIDTH}
    often = {"log_steps": 1, "checkpoint_steps": 1, "sample_steps": 3}
    best = {"keep": 2, "best_metric": "loss/mean"}
    student = go("lcd", lcd, model, steps=3, loop=often, checkpoint=best)
    tuned = go("lcf", {**lcd, "name": "lcf"}, {"start": str(student.exported)})
    return SimpleNamespace(teacher=teacher, lcd=student, lcf=tuned)
