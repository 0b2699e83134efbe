"""The road of Stable Diffusion in miniature: cached and fresh captions, LCD and LCM-LoRA, text and image to image."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_sd

from lcm_jax import build, drawing, encoding, exporting, pipeline, planning, run_folder, sections, synthesizing
from lcm_jax.evaluate import grid
from lcm_jax.models.spec import ModelSpec
from lcm_jax.models.tiling import tiled
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.pipeline import Pipeline
from lcm_jax.setting import SizeIds
from lcm_jax.source import open_model

LCD = {"name": "lcd", "w_min": 2.0, "w_max": 4.0, "w_width": 8}
LORA = {"rank": 2, "alpha": 2}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny.pictures(tmp_path_factory.mktemp("sd") / "pictures")


def encoded(teacher, pictures, name="latents", **more):
    options, out = {"folder": str(pictures)}, teacher.parent / name
    encoding.encode(teacher, "image_folder", options, out, 8, 10, progress=False, **more)
    return out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """SDXL's kind, which has everything SD's has and more."""
    return tiny_sd.model_folder(tmp_path_factory.mktemp("sdxl") / "teacher", tiny_sd.spec("sdxl"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """One text encoder, its last states, no size ids."""
    return tiny_sd.model_folder(tmp_path_factory.mktemp("sd") / "teacher", tiny_sd.spec("sd"))


@pytest.fixture(scope="module")
def data(teacher, pictures):
    return encoded(teacher, pictures)


@pytest.fixture(scope="module")
def sd_data(sd, pictures):
    return encoded(sd, pictures)


def trained(where, objective, model, data, **changes):
    """A short run; its folder, run and last state."""
    config = tiny.config(objective, model, data, steps=2, loop={"log_steps": 1, "checkpoint_steps": 1}, **changes)
    run = build.run(config)
    return where, run, run_folder.train(run, where, progress=False)


@pytest.fixture(scope="module")
def student(teacher, data):
    return trained(teacher.parent / "lcd", LCD, {"teacher": str(teacher), "w_width": 8}, data)


def first_loss(where):
    return json.loads((where / "metrics.jsonl").read_text().splitlines()[0])["loss/mean"]


def test_captions_encoded_while_training_teach_the_same(student, teacher, pictures):
    tokens = encoded(teacher, pictures, "tokens", tokens=True, states=False)
    where, _, state = trained(teacher.parent / "fresh", LCD, {"teacher": str(teacher), "w_width": 8}, tokens)
    np.testing.assert_allclose(first_loss(where), first_loss(student[0]), rtol=1e-3)  # cached states are float16
    assert jax.tree.structure(state.params) == jax.tree.structure(student[2].params)


def test_a_run_is_whole_and_exports_whole(student, teacher):
    out = run_folder.export(student[0], teacher.parent / "exported")
    model, was = open_model(out), open_model(teacher)
    assert model.spec.role == "consistency" and model.spec.text == was.spec.text
    assert model.captions.identity == was.captions.identity
    pipe = Pipeline.load(out)
    images = pipe(["a red disc", "a blue bar"], steps=2, w=3.0, n=2)
    assert images.shape == (4, 16, 16, 3)
    again = run_folder.pipeline(student[0])(["a red disc", "a blue bar"], steps=2, w=3.0, n=2)
    np.testing.assert_array_equal(images, again)


def test_adapters_alone_are_trained_and_make_a_model(sd, sd_data):
    model = {"teacher": str(sd), "lora": LORA}
    where, run, state = trained(sd.parent / "lora", {**LCD, "w_width": None, "mu": None}, model, sd_data)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert 0 < size(state.params) < size(run.frozen["base"]) / 2
    assert run.frozen["base"] is run.frozen["teacher"]
    spec, adapters, step = run_folder.adapters(where)
    assert step == 2 and spec.about["lora"]["base"] == str(sd)
    assert jax.tree.structure(adapters) == jax.tree.structure(state.params)
    exported = Pipeline.load(run_folder.export(where, sd.parent / "lora_exported"))
    base = Pipeline.load(sd)
    assert exported.spec.role == "consistency" and exported.spec.unet.w_width is None and exported.default_w == 0
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), exported.params, base.params)
    assert max(jax.tree.leaves(moved["unet"])) > 0 and max(jax.tree.leaves(moved["autoencoder"])) == 0
    assert exported("a red disc", steps=2).shape == (1, 16, 16, 3)


def test_a_student_begins_as_its_teacher(sd, sd_data):
    run = build.run(tiny.config(LCD, {"teacher": str(sd), "w_width": 8}, sd_data))
    first, theirs = run.init().params, run.frozen["teacher"]
    projection = first["time_embedding"].pop("cond_proj")
    assert not np.asarray(projection["kernel"]).any()
    jax.tree.map(np.testing.assert_array_equal, first, theirs)


def test_sizes_negative_prompts_images_and_tiles(sd):
    pipe = Pipeline.load(sd)
    wide = pipe("a red disc", steps=2, size=(16, 32))
    assert wide.shape == (1, 16, 32, 3)
    plain, other = (pipe("a red disc", steps=2, negative_prompt=text)[0].astype(int) for text in (None, "a blue bar"))
    assert np.abs(plain - other).max() > 1
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    little, much = (pipe("a red disc", steps=10, image=image, strength=s)[0].astype(float) for s in (0.1, 1.0))
    through = pipe("a red disc", steps=10, image=image, strength=0.1, w=0.0)[0].astype(float)
    assert np.abs(little - through).mean() < np.abs(much - through).mean()
    with pytest.raises(ValueError, match="pictures of 12 x 16 are no multiple of 8"):
        pipe("a", size=(12, 16))
    with pytest.raises(ValueError, match=r"the image is \(16, 16\), size \(16, 32\)"):
        pipe("a", image=image, size=(16, 32))
    with pytest.raises(ValueError, match="2 steps at strength 0.1 are none"):
        pipe("a", steps=2, image=image, strength=0.1)
    with pytest.raises(ValueError, match="tiles of 16 pixels are too small: give 136 or more"):
        pipe("a", tile=16)
    big, tiles = (pipe("a red disc", steps=1, size=(16, 160), tile=t)[0].astype(float) for t in (None, 136))
    assert 0 < np.abs(big - tiles).mean() < 30


def test_a_folder_of_one_variant_alone_is_a_teacher(sd, pictures, tmp_path):
    half = exporting.export(sd, tmp_path / "half", "diffusers", "float16")
    for path in half.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.raises(FileNotFoundError, match="--variant fp16 reads what is there"):
        open_model(half).load("unet")
    latents = encoded(half, pictures, variant="fp16")
    model = {"teacher": str(half), "variant": "fp16", "w_width": 8}
    assert build.run(tiny.config(LCD, model, latents)).frozen["teacher"] is not None
    drawn = synthesizing.synthesize(
        half, ["a red disc"], tmp_path / "drawn", steps=1, w=0.0, batch_size=1, progress=False, variant="fp16"
    )
    assert drawn.encoders["autoencoder"] == open_model(half, "fp16").fingerprint("autoencoder")
    assert run_folder.pipeline(half, variant="fp16")("a red disc", steps=1, w=0.0).shape == (1, 16, 16, 3)
    # Beside other files it is still the variant alone that a data set was made with.
    (half / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"others")
    assert drawn.encoders["autoencoder"] == open_model(half, "fp16").fingerprint("autoencoder")


def test_sdxl_is_told_other_sizes_where_they_are_given(teacher, sd, tmp_path):
    pipe = Pipeline.load(teacher)
    of = lambda **told: pipe.sized({"context": np.zeros((1, 2, 3))}, pipe.setting(size=(16, 32), ids=SizeIds(**told)))  # noqa: E731
    np.testing.assert_array_equal(of()["time_ids"], [[16, 32, 0, 0, 16, 32]])
    told = of(original=(64, 96), crop=(2, 5), target=(48, 40))["time_ids"]
    np.testing.assert_array_equal(told, [[64, 96, 2, 5, 48, 40]])  # as diffusers puts them
    plain, own, other = (
        pipe("a red disc", steps=1, w=0.0, ids=ids)[0].astype(int)
        for ids in (SizeIds(), SizeIds((16, 16)), SizeIds((512, 512)))
    )
    np.testing.assert_array_equal(plain, own)
    assert (plain != other).any()
    with pytest.raises(ValueError, match="are told to SDXL's networks, this one takes none"):
        Pipeline.load(sd).setting(ids=SizeIds((512, 512)))
    drawing.draw(pipe, ["a red disc"], tmp_path, steps=1, w=0.0, n=1, ids=SizeIds((512, 512)), progress=False)
    (file,) = (path for path in tmp_path.iterdir() if not path.name.startswith("grid"))
    assert grid.settings(file)["size_ids"] == [512, 512, 0, 0, 16, 16]


def test_what_has_no_effect_is_said(student, teacher):
    pipe = run_folder.pipeline(student[0])
    with pytest.warns(UserWarning, match="negative prompt has no effect: guidance was distilled"):
        pipe.check_guidance(3.0, "ugly")
    with pytest.warns(UserWarning, match="negative prompt has no effect: w is 0"):
        Pipeline.load(teacher).check_guidance(0.0, "ugly")


def test_the_empty_caption_of_sdxl_is_zeros(teacher, sd):
    for where, zeros, names in ((teacher, True, {"context", "pooled"}), (sd, False, {"context"})):
        pipe = Pipeline.load(where)
        assert pipe.spec.text.zero_empty == zeros and set(pipe.uncond) == names
        assert all(np.asarray(value).any() != zeros for value in pipe.uncond.values())


def test_the_other_empty_caption_by_choice(teacher, data, pictures, student):
    """From the latents over the run to what it draws and leaves behind; the model's own stays as it was."""
    choice = {"empty_caption": "encoded"}
    pipe, own = Pipeline.load(teacher, **choice), Pipeline.load(teacher)
    assert all(np.asarray(value).any() for value in pipe.uncond.values())
    assert not all(np.asarray(value).any() for value in own.uncond.values())
    draw = lambda pipe, prompt: pipe(prompt, steps=2, w=3.0, sampler="ddim")
    assert (draw(pipe, "a red disc") != draw(own, "a red disc")).any()  # guidance starts elsewhere

    model = {"teacher": str(teacher), "w_width": 8, **choice}
    with pytest.raises(ValueError, match="encoded with .*'empty_caption': 'zeros'.*: encode the data set again"):
        build.run(tiny.config(LCD, model, data))
    stored = encoded(teacher, pictures, "latents_encoded", **choice)
    tokens = encoded(teacher, pictures, "tokens_encoded", tokens=True, states=False, **choice)
    where, _, _ = trained(teacher.parent / "lcd_encoded", LCD, model, stored)
    fresh, _, _ = trained(teacher.parent / "fresh_encoded", LCD, model, tokens)
    np.testing.assert_allclose(first_loss(where), first_loss(fresh), rtol=1e-3)
    assert not np.isclose(first_loss(where), first_loss(student[0]), rtol=1e-3)
    assert not run_folder.pipeline(where).spec.text.zero_empty
    out = exporting.export(teacher, teacher.parent / "exported_encoded", "diffusers", **choice)
    assert not open_model(out).spec.text.zero_empty and open_model(out, **choice).spec == open_model(out).spec


def test_an_empty_caption_there_is_none_of_is_refused(sd, pictures, tmp_path):
    with pytest.raises(ValueError, match="empty_caption is 'nought'; choose one of zeros, encoded"):
        open_model(sd, empty_caption="nought")
    with pytest.raises(ValueError, match="emoji-teacher reads no captions by CLIP: leave it out"):
        open_model("emoji-teacher", empty_caption="zeros")


def test_latents_of_another_text_encoder_are_refused(teacher, data, tmp_path):
    spec = open_model(teacher).spec
    other = tiny_sd.model_folder(tmp_path / "other", ModelSpec.from_json(spec.to_json()), seed=9)
    with pytest.raises(ValueError, match="captions were encoded with .*: encode the data set again"):
        build.run(tiny.config(LCD, {"teacher": str(other), "w_width": 8}, data))


def test_impossible_adapters_are_refused(teacher, data):
    bare = {**LCD, "w_width": None}
    for model, objective, message in (
        ({"teacher": str(teacher), "lora": {**LORA, "rnak": 3}}, bare, "lora has no key 'rnak'; did you mean 'rank'"),
        ({"teacher": str(teacher), "lora": LORA, "w_width": 8}, LCD, "w_width cannot be set beside config.model.lora"),
        ({"teacher": str(teacher), "lora": {**LORA, "targets": ["nothing"]}}, bare, "which matches no kernel"),
        ({"teacher": str(teacher), "family": "sd21"}, LCD, "choose one of sd15, sd21_base, sd21_768, sdxl"),
        ({"teacher": str(teacher), "family": "sd15"}, LCD, "is not of config.model.family 'sd15': unet has"),
    ):
        with pytest.raises(ValueError, match=message):
            build.run(tiny.config(objective, model, data))


def test_an_attention_that_is_not_here_is_refused_at_the_start(sd, sd_data, monkeypatch):
    config = tiny.config(LCD, {"teacher": str(sd), "w_width": 8, "dtype": "bfloat16", "attention": "cudnn"}, sd_data)
    read, kind = [], type(open_model(sd))
    load = kind.load
    monkeypatch.setattr(kind, "load", lambda self, name, *place: read.append(name) or load(self, name, *place))
    for start in (lambda: build.run(config), lambda: Pipeline.load(sd, "bfloat16", attention="cudnn")):
        with pytest.raises(ValueError, match="attention 'cudnn' takes .* on an NVIDIA GPU, .* on cpu: choose auto"):
            start()
    assert "unet" not in read
    assert planning.operations(config) > 0  # a plan may be of another machine


def test_a_list_of_prompts_goes_on_where_it_stopped(sd, tmp_path, monkeypatch):
    pipe = Pipeline.load(sd)
    prompts, settings = ["a red disc", "a blue bar", "a green dot"], {"steps": 1, "n": 2, "progress": False}
    sheet, made = drawing.draw(pipe, prompts, tmp_path, **settings)
    assert made["guidance"] == made["w"] + 1
    files = sorted(path for path in tmp_path.iterdir() if not path.name.startswith("grid"))
    assert len(files) == 6
    was = [path.read_bytes() for path in files]
    files[2].unlink()  # of the second prompt
    asked = []
    call = Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda self, some, **kw: asked.extend(some) or call(self, some, **kw))
    drawing.draw(pipe, prompts, tmp_path, **settings)
    assert asked == ["a blue bar"] and [path.read_bytes() for path in files] == was
    drawing.draw(pipe, prompts, tmp_path, **settings | {"negative_prompt": "ugly"})  # other settings: drawn anew
    assert asked[1:] == [prompt for prompt in prompts for _ in range(2)]


def test_pictures_of_other_settings_are_drawn_anew(sd, pictures, tmp_path, monkeypatch):
    """And lie beside those that are there: precision, tiles, what the changed image showed."""
    drawn = []
    call = Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda self, some, **kw: drawn.extend(some) or call(self, some, **kw))
    image, moved = shutil.copy(pictures / "00.png", tmp_path / "a.png"), tmp_path / "b.png"

    def draws(dtype=None, **settings):
        """Whether a picture is drawn, and its settings."""
        drawn.clear()
        settings = {"steps": 2, "n": 1, "progress": False, **settings}
        sheet, _ = drawing.draw(Pipeline.load(sd, dtype), ["a red disc"], tmp_path / "out", **settings)
        (file,) = (tmp_path / "out").glob(f"000-*-{sheet.stem.split('-')[-1]}-00.png")
        return len(drawn) == 1, grid.settings(file)

    assert draws()[0] and not draws()[0]
    again, made = draws("bfloat16")
    assert again and made["dtype"] == "bfloat16" and not draws("bfloat16")[0]
    again, made = draws(tile=136)
    assert again and made["tile"] == 136 and "dtype" not in made and not draws(tile=136)[0]
    assert draws(image=image)[0]
    image.rename(moved)
    again, made = draws(image=moved)  # the same picture elsewhere
    assert not again and made["image"] == str(image)
    shutil.copy(pictures / "01.png", moved)
    again, made = draws(image=moved)
    assert again and made["image"] == str(moved)
    assert not draws()[0] and len(list((tmp_path / "out").glob("000-*.png"))) == 5


def test_large_images_are_encoded_in_tiles(sd, monkeypatch):
    pipe, tiles = Pipeline.load(sd), []
    seen = lambda apply, x, *sides: tiles.append((x.shape, *sides)) or tiled(apply, x, *sides)
    monkeypatch.setattr(pipeline, "tiled", seen)
    image = np.random.default_rng(0).integers(0, 256, (16, 160, 3), dtype=np.uint8)
    whole, parts = (np.asarray(pipe.encode_image(pipe.params, jnp.asarray(image)[None], tile)) for tile in (None, 137))
    assert parts.shape == whole.shape == (1, 2, 20, 4) and 0 < np.abs(whole - parts).mean() < 0.5 * np.abs(whole).mean()
    assert tiles == [((1, 16, 160, 3), 136, 64)]
    pipe("a red disc", steps=2, image=image, tile=136)
    assert tiles[1:] == [((1, 16, 160, 3), 136, 64), ((1, 2, 20, 4), 17, 8)]


def test_a_picture_is_changed_at_its_own_size(sd, pictures, tmp_path):
    pipe = Pipeline.load(sd)
    image = pictures / "00.png"  # 24 x 20 pixels
    drawing.draw(pipe, ["a red disc"], tmp_path, steps=4, n=1, image=image, strength=0.5, progress=False)
    (file,) = (path for path in tmp_path.iterdir() if not path.name.startswith("grid"))
    assert grid.settings(file)["strength"] == 0.5 and grid.settings(file)["size"] == [16, 24]
