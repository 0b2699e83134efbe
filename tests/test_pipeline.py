import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from lcm_jax import captions, drawing, pipeline
from lcm_jax.drawers import Drawers
from lcm_jax.evaluate import grid
from lcm_jax.image_keys import image_keys, root_key
from lcm_jax.pipeline import Pipeline, to_pixels


@pytest.fixture(scope="module", autouse=True)
def captions_without_download():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(captions.ENCODERS, "minilm", tiny.FakeCaptions)
        yield


@pytest.fixture(scope="module")
def student():
    spec = tiny.spec()
    return Pipeline(spec, tiny.weights(spec))


@pytest.fixture(scope="module")
def teacher():
    spec = tiny.spec("diffusion")
    return Pipeline(spec, tiny.weights(spec))


def close(a, b):
    """Equal but for a rounding: programs of different batch sizes sum in different orders."""
    assert a.shape == b.shape
    assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_a_picture_depends_on_its_own_prompt_and_seed_alone(which, request):
    pipe = request.getfixturevalue(which)
    alone = pipe("a red disc", steps=2, n=1)
    among = pipe(["a blue bar", "a red disc"], steps=2, n=3)
    assert among.shape == (6, tiny.SIZE, tiny.SIZE, 3) and among.dtype == np.uint8
    close(alone[0], among[3])
    flat = among.reshape(6, -1).astype(int)
    assert all(np.abs(flat[i] - flat[j]).max() > 1 for i in range(6) for j in range(i))
    assert np.abs(pipe("a red disc", steps=2, seed=1).astype(int) - alone).max() > 1


def test_many_pictures_come_in_batches_of_one_shape(student, monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH", 4)
    sizes = []
    draw = student.from_tokens(student.setting("lcm", 1))

    def spy(params, text, tokens, *rest):
        sizes.append(len(tokens))
        return draw(params, text, tokens, *rest)

    monkeypatch.setattr(student, "from_tokens", lambda setting: spy)
    images = student("a red disc", steps=1, n=10)
    assert sizes == [4, 4, 4] and len(images) == 10
    close(images[9], student("a red disc", steps=1, n=16)[9])


def test_another_number_of_steps_compiles_nothing(student, teacher):
    for model, counts in ((student, (4, 1)), (teacher, (6, 3))):
        pipe = Pipeline(model.spec, model.params)
        drawn = [pipe("a red disc", steps=steps, n=2) for steps in counts]
        assert np.abs(drawn[0].astype(int) - drawn[1]).max() > 1
        (draw,) = pipe._compiled.values()
        assert draw._cache_size() == 1


def test_devices_share_the_pictures_of_a_call(student):
    many = Pipeline(student.spec, student.params)
    many.drawers = Drawers(many.params, jax.devices()[:4])
    assert (many.drawers.size(4, 10), many.drawers.size(4, 30), student.drawers.size(4, 3)) == (12, 16, 3)
    close(many("a red disc", steps=1, n=10), student("a red disc", steps=1, n=10))
    (draw,) = many._compiled.values()
    assert draw._cache_size() == 1


def test_processes_draw_their_own_prompts_and_the_first_the_grid(student, tmp_path, monkeypatch):
    prompts, settings = ["a red disc", "a blue bar", "a green dot"], {"steps": 1, "n": 1, "batch": 1, "progress": False}
    sheet, _ = drawing.draw(student, prompts, tmp_path / "one", **settings)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(drawing, "on_all", lambda mine: mine)
    asked, call = [], Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda self, some, **kw: asked.append(some) or call(self, some, **kw))
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(ValueError, match="is not the same folder for every process"):
        drawing.draw(student, prompts, tmp_path / "alone", **settings)
    for index in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        drawing.draw(student, prompts, tmp_path / "two", **settings)
        assert (tmp_path / "two" / sheet.name).exists() == (index == 0)
    assert asked[2:] == [["a blue bar"], ["a red disc"], ["a green dot"]]
    for path in (tmp_path / "one").iterdir():
        with Image.open(path) as a, Image.open(tmp_path / "two" / path.name) as b:
            close(np.asarray(a), np.asarray(b))


def test_w_and_context_matter_and_one_key_is_split(student):
    draw = student.sampler("lcm", 2)
    context = jnp.asarray(student.encode(["a", "b"])["context"])
    key = jax.random.key(3)

    def one(w, context, key):
        return np.asarray(draw(student.params, {"context": context}, student.uncond, w, key)).astype(int)

    base = one(jnp.zeros(2), context, key)
    np.testing.assert_array_equal(base, one(jnp.zeros(2), context, jax.random.split(key, 2)))
    assert np.abs(base - one(jnp.full(2, 4.0), context, key)).max() > 1
    assert np.abs(base - one(jnp.zeros(2), context[::-1], key)).max() > 1


def test_defaults_follow_the_model(student, teacher):
    assert (student.default_sampler, student.default_steps, student.default_w) == ("lcm", 4, 2.0)
    assert (teacher.default_sampler, teacher.default_steps, teacher.default_w) == ("ddim", 50, 2.0)
    nfe = lambda pipe, *setting, **more: pipe.nfe(pipe.setting(*setting, **more))
    assert nfe(student, "lcm", 4) == 4 and nfe(teacher, "ddim", 4) == 8 and nfe(teacher, "heun", 4) == 14
    assert nfe(student, "lcm", 4, w=2.0) == 4 and nfe(teacher, "ddim", 4, w=0.0) == 4
    assert nfe(teacher, "ddim", 10, strength=0.55) == 10 and nfe(teacher, "heun", 10, strength=0.55, w=0.0) == 9
    assert nfe(student, "lcm", 4, strength=0.5) == 4  # a student's steps are all walked


@pytest.mark.parametrize("role", ["consistency", "diffusion"])
def test_guidance_is_evaluated_where_it_is_asked_for_and_counted(role, monkeypatch):
    """Of a network without an input for w, an LCM-LoRA or a teacher: twice the rows, unless w is 0."""
    spec = tiny.spec(role, unet=tiny.UNET, guidance=None)
    pipe, rows = Pipeline(spec, tiny.weights(spec)), []
    spy = lambda params, z, *rest, **told: rows.append(len(z)) or apply(params, z, *rest, **told)
    apply, pipe.unet = pipe.unet.apply, replace(pipe.unet, apply=lambda *a, **k: spy(*a, **k))
    drawn = {}
    for w, times in ((0.0, 1), (1.0, 2), (2.0, 2), (1e-30, 2)):
        rows.clear()
        drawn[w] = pipe("a red disc", steps=2, n=3, w=w)
        assert set(rows) == (set() if w in (2.0, 1e-30) else {3 * times})  # nothing compiles for another w
        assert pipe.nfe(pipe.setting(steps=2, w=w)) == 2 * times
    assert len(pipe._compiled) == 2
    close(drawn[0.0], drawn[1e-30])  # guided by nothing
    assert np.abs(drawn[0.0].astype(int) - drawn[2.0]).max() > 1


def test_pictures_say_how_many_evaluations_made_them(teacher, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((tiny.SIZE, tiny.SIZE, 3), np.uint8)).save(photo)
    more = {"steps": 4, "n": 1, "sampler": "ddim", "progress": False}
    for name, told, count in (
        ("guided", {"w": 2.0}, 8),
        ("plain", {"w": 0.0}, 4),
        ("changed", {"w": 2.0, "image": photo, "strength": 0.5}, 4),
    ):
        sheet, chosen = drawing.draw(teacher, ["a red disc"], tmp_path / name, **told, **more)
        assert chosen["evaluations"] == grid.settings(sheet)["evaluations"] == count


def test_keys_are_decided_by_seed_prompt_and_number():
    keys = jax.random.key_data(image_keys(["a", "b"], 3, 0))
    np.testing.assert_array_equal(keys[3:5], jax.random.key_data(image_keys(["b"], 2, 0)))
    assert len({tuple(k) for k in keys.tolist()}) == 6


def test_pictures_of_a_model_trained_on_are_drawn_anew(student, tmp_path):
    told = {"n": 1, "steps": 1, "progress": False}
    first, _ = drawing.draw(student, ["a red disc"], tmp_path, **told)
    params = jax.tree.map(lambda p: 1.01 * p, student.params)
    trained = Pipeline(student.spec, params, student.origin, captions=student.captions)  # under the same name
    second, _ = drawing.draw(trained, ["a red disc"], tmp_path, **told)
    again, _ = drawing.draw(student, ["a red disc"], tmp_path, **told)
    assert first == again != second and len(list(tmp_path.glob("000-*.png"))) == 2


def test_what_is_drawn_when_it_is_interrupted_is_kept(student, tmp_path, monkeypatch):
    prompts, told = ["a red disc", "a blue bar"], {"n": 3, "steps": 1, "batch": 2, "progress": False}
    calls, call = [], Pipeline.__call__

    def third_time_stops(self, some, **kw):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(list(some))
        return call(self, some, **kw)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pipeline, "__call__", third_time_stops)
        drawing.draw(student, prompts, tmp_path / "twice", **told)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "twice").iterdir()}
    assert calls == [["a red disc"] * 2, ["a red disc", "a blue bar"]] and len(kept) == 4
    drawing.draw(student, prompts, tmp_path / "twice", **told)
    drawing.draw(student, prompts, tmp_path / "once", **told)
    assert {name: (tmp_path / "twice" / name).stat().st_mtime_ns for name in kept} == kept
    for path in (tmp_path / "once").iterdir():
        with Image.open(path) as a, Image.open(tmp_path / "twice" / path.name) as b:
            close(np.asarray(a), np.asarray(b))


def test_pictures_of_another_text_encoder_are_drawn_anew(student):
    class Other(type(student.captions)):
        params = jnp.ones(3)

    captions = Other(student.captions.length)
    assert drawing.mark(student) != drawing.mark(Pipeline(student.spec, student.params, captions=captions))


def test_a_size_may_be_a_side(student):
    square, side = (student("a red disc", steps=1, size=size) for size in ((32, 32), 32))
    assert side.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(side, square)


def test_a_seed_has_64_bits():
    data = [tuple(jax.random.key_data(root_key(seed)).tolist()) for seed in (0, 5, 2**32, 2**32 + 5, 2**64 - 1, -1)]
    assert data[0] == tuple(jax.random.key_data(jax.random.key(0)).tolist())
    assert len(set(data)) == 5 and data[-1] == data[-2]
    with pytest.raises(ValueError, match="at most 64 bits"):
        root_key(2**64)


def test_a_prompt_named_again_gets_its_next_pictures(student, tmp_path):
    keys = np.asarray(jax.random.key_data(image_keys(["a", "b", "a"], 2, 0)))
    np.testing.assert_array_equal(keys[[0, 1, 4, 5]], jax.random.key_data(image_keys(["a"], 4, 0)))
    np.testing.assert_array_equal(keys[4:], jax.random.key_data(image_keys(["a"], 2, 0, first=[2])))
    once = student("a red disc", n=2, steps=1)
    np.testing.assert_array_equal(student(["a red disc"] * 2, n=1, steps=1), once)
    assert (once[0] != once[1]).any()
    drawing.draw(student, ["a red disc"] * 2, tmp_path, n=1, steps=1)
    numbers = [grid.settings(path)["number"] for path in sorted(tmp_path.glob("00*.png"))]
    assert numbers == [0, 1]


def test_w_outside_the_trained_range_warns(student, teacher):
    with pytest.warns(UserWarning, match=r"w = 9 is outside the trained range \[0, 4\]"):
        student.check_guidance(9.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.check_guidance(4.0)
        teacher.check_guidance(9.0)
    with pytest.raises(ValueError, match="w must be a finite number"):
        teacher.check_guidance(float("nan"))


def test_what_cannot_be_drawn_is_refused_before_any_compile(student, teacher):
    for pipe, name, message in (
        (student, "ddim", "a consistency model is not sampled with 'ddim'; choose lcm"),
        (teacher, "lcm", "a diffusion model is not sampled with 'lcm'; choose ddim, ddim_leading, dpmpp_2m"),
        (teacher, "ddmi", "not sampled with 'ddmi'"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.sampler(name, 4)
    with pytest.raises(ValueError, match="LCM sampling takes 1 to 50 steps, got 0"):
        student.sampler("lcm", 0)
    with pytest.raises(ValueError, match="allows 1 to 500 steps, got 501"):
        teacher.sampler("ddim", 501)
    with pytest.raises(ValueError, match="nothing to draw: 0 prompts"):
        student([])
    with pytest.raises(ValueError, match="0 images of each"):
        student("a", n=0)


def test_pixels_are_rounded_and_clipped():
    image = jnp.array([-2.0, -1.0, 0.0, 1.0, 3.0])[None, None, :, None] * jnp.ones((1, 1, 5, 3))
    assert to_pixels(image)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_three_lines_load_a_folder(tmp_path, student):
    where = tiny.model_folder(tmp_path / "model", student.spec)
    pipe = Pipeline.load(where)
    jax.tree.map(np.testing.assert_array_equal, pipe.params, student.params)
    assert pipe.spec == student.spec and pipe.origin == {"model": str(where)}
