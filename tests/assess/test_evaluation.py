"""Whole evaluations of planted models: one that draws the real images, one that draws noise at few steps."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from lcm_jax.assess import comparison, evaluation, evaluation_plan, evaluation_set, generation, guidance_sweep
from lcm_jax.assess.evaluation_plan import Plan, settings
from lcm_jax.assess.evaluation_set import Captioned, choose
from lcm_jax.assess.feature_networks import feature_network
from lcm_jax.data.encode import encode
from lcm_jax.data.image_folder import examples
from lcm_jax.drawers import Drawers
from lcm_jax.evaluate import grid
from lcm_jax.evaluate.features import FeatureNet
from lcm_jax.machine import machine
from lcm_jax.models import presets
from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.spec import GuidanceSpec, ModelSpec
from lcm_jax.pipeline import Pipeline

SIZE = 16
PLAN = Plan(
    steps=(2, 4), w=(2.0, 1.0), seeds=(0, 1), samplers=("ddim", "dpmpp_2m"), teacher_steps=(2, 50),
    limit=10, resamples=20,
)  # fmt: skip


def pictures(n, seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)


def rows(n, seed, name):
    context = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None] + 1000 * seed, (n, 2, 3))
    words = [f"{name} {i}" for i in range(n)]
    told = {"context": context.copy()}
    return Captioned(words, words, [f"{name} {i // 2}" for i in range(n)], pictures(n, seed), told)


@pytest.fixture(scope="module")
def found():
    return {"heldout": rows(12, 0, "held"), "train": rows(40, 1, "train")}


class Planted(Pipeline):
    """Draws the real image of a context, with an amount of noise that steps, sampler and w decide."""

    def __init__(self, role, found, noise):
        guidance = GuidanceSpec(0.0, 4.0) if role == "consistency" else None
        config = replace(presets.UNETS["tiny"], w_width=8 if guidance else None)
        spec = ModelSpec(role, "v", SIZE, config, presets.AUTOENCODERS["tiny"], guidance=guidance)
        super().__init__(spec, {"unet": {"a": jnp.ones(2)}}, {"model": role})
        asked = ((c, x) for s in found.values() for c, x in zip(s.condition["context"], s.images, strict=True))
        self.images = {float(c[0, 0]): x for c, x in asked}
        self.noise, self.calls, self.batches = noise, [], set()

    def sampler(self, name, steps, w=None):
        def draw(params, told, uncond, w, keys):
            context = told["context"]
            self.calls.append((name, steps, float(w[0])))
            self.batches.add(len(context))
            real = np.stack([self.images[float(c[0, 0])] for c in context]).astype(np.float32)
            noise = jax.vmap(lambda k: jax.random.uniform(k, real.shape[1:], minval=128.0, maxval=255.0))(keys)
            amount = self.noise(steps, float(w[0]))
            return np.asarray((1 - amount) * real + amount * np.asarray(noise)).round().astype(np.uint8)

        return draw

    def from_tokens(self, setting):
        draw = self.sampler(setting.sampler, setting.steps)
        return lambda params, text, tokens, empty, *rest: draw(params, {"context": tokens}, None, *rest)


@pytest.fixture
def student(found):
    return Planted("consistency", found, lambda steps, w: 0.0)


@pytest.fixture
def teacher(found):
    return Planted("diffusion", found, lambda steps, w: 0.9 if steps < 50 else 0.02)


@pytest.fixture
def net():
    return FeatureNet("Pooled", "1", lambda x: x.reshape(-1, 4, 4, 4, 4, 3).mean((2, 4)).reshape(len(x), 48) / 255)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LCM_JAX_CACHE", str(tmp_path / "cache"))


UNCOND = {"context": np.zeros((2, 3), np.float32)}


@pytest.fixture(autouse=True)
def planted_autoencoder(monkeypatch):
    """Adds a little noise, in no time."""
    noise = np.random.default_rng(0).integers(-9, 10, (1, SIZE, SIZE, 3))
    rebuilt = lambda pipe, images: np.clip(images + noise, 0, 255).astype(np.uint8)
    monkeypatch.setattr(evaluation, "reconstruct", rebuilt)


@pytest.fixture
def no_figure(monkeypatch):
    """Drawing takes longer than everything else together."""
    monkeypatch.setattr(evaluation.figure, "figure", lambda result, path: path)


def run(student, teacher, found, net, out, plan=PLAN):
    return evaluation.evaluate(student, teacher, found, UNCOND, net, plan, out, {"machine": "here"}, progress=False)


def one(result, **wanted):
    (entry,) = [e for e in result["entries"] if all(e.get(k) == v for k, v in wanted.items())]
    return entry


def mean(entry, name):
    return entry["scores"][name]["mean"]


def test_a_planted_student_beats_a_planted_teacher_and_everything_is_written(student, teacher, found, net, tmp_path):
    result = run(student, teacher, found, net, tmp_path / "out")
    perfect = one(result, who="student", steps=4, w=2.0, split="heldout")
    assert mean(perfect, "top1") == mean(perfect, "precision") == 1
    assert mean(perfect, "kid") == pytest.approx(0, abs=1e-9) and mean(perfect, "fd") == pytest.approx(0, abs=1e-5)
    assert perfect["nfe"] == 4 and perfect["guidance"] == 3.0 and perfect["seeds"] == [0, 1]
    poor = one(result, who="teacher", sampler="ddim", steps=2, split="heldout")
    assert poor["nfe"] == 4 and mean(poor, "kid") > mean(one(result, name="floor", split="heldout"), "kid")
    assert poor["scores"]["kid"]["spread"] > 0
    copied = one(result, who="student", steps=4, w=2.0, split="train")
    assert mean(copied, "copies") == 1 and mean(perfect, "copies") < 1

    about = result["references"]["heldout"]
    assert (about["n"], about["gallery"], about["train"]) == (10, 12, 40)
    assert about["chance"]["top1"] == pytest.approx(1 / 12)
    protocol = result["protocol"]
    assert protocol["features"] == {"name": "Pooled", "hash": "1", "resize": ""} and protocol["seeds"] == [0, 1]
    assert protocol["student"]["hash"] != protocol["teacher"]["hash"]
    origins = {"student": {"model": "consistency"}, "teacher": {"model": "diffusion"}}
    assert result["about"] == {**origins, "machine": "here"}
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == result
    assert {r["statistic"] for r in result["ratios"]} >= {"kid", "fd - floor", "top5"}
    assert "student 4 steps, w 2" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "scores.png").stat().st_size > 10_000
    assert student.batches == teacher.batches == {10}


def test_every_split_and_control_is_of_equal_number(student, found, net, tmp_path, no_figure):
    result = run(student, None, found, net, tmp_path)
    for split in ("heldout", "train"):
        assert result["references"][split]["n"] == 10
        assert {e["name"] for e in result["entries"] if e["split"] == split} == {*evaluation.CONTROLS, "generated"}
        assert mean(one(result, name="blur", split=split), "fd") > 1e-3
        blurred = one(result, name="blurred_floor", split=split)
        assert "top1" not in blurred["scores"]
        assert mean(blurred, "fd") != mean(one(result, name="floor", split=split), "fd")
        assert mean(one(result, name="blur", split=split), "top1") == 1
    assert result["ratios"] == []


def test_a_second_run_draws_nothing_and_a_longer_plan_draws_the_rest(student, teacher, found, net, tmp_path, no_figure):
    first = run(student, teacher, found, net, tmp_path)
    student.calls.clear(), teacher.calls.clear()
    assert run(student, teacher, found, net, tmp_path) == first
    assert student.calls == teacher.calls == []
    longer = Plan(**{**vars(PLAN), "steps": (2, 4, 8)})
    result = run(student, teacher, found, net, tmp_path, longer)
    assert {call[1] for call in student.calls} == {8} and teacher.calls == []
    assert len(result["entries"]) == len(first["entries"]) + 4


def test_an_interruption_loses_one_setting(student, found, net, tmp_path, no_figure):
    draw, left = student.noise, [5]

    def stop_later(steps, w):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return draw(steps, w)

    student.noise = stop_later
    with pytest.raises(KeyboardInterrupt):
        run(student, None, found, net, tmp_path)
    kept = json.loads((tmp_path / "scores.json").read_text())["entries"]
    done = [(e["steps"], e["w"]) for e in kept if e["who"] == "student"]
    assert done == [(2, 2.0), (4, 2.0)]  # of two seeds each; the third was at its second
    student.noise = draw
    student.calls.clear()
    result = run(student, None, found, net, tmp_path)
    assert ("lcm", 2, 2.0) not in student.calls[:4] and len(result["entries"]) == 2 * (len(evaluation.CONTROLS) + 4)


def test_scores_of_other_weights_are_laid_aside(student, found, net, tmp_path, caplog, no_figure):
    before = run(student, None, found, net, tmp_path)
    student.params = {**student.params, "unet": {"a": jnp.zeros(2)}}
    after = run(student, None, found, net, tmp_path)
    assert after["protocol"]["hash"] != before["protocol"]["hash"]
    aside = tmp_path / f"scores-{before['protocol']['hash']}.json"
    assert json.loads(aside.read_text()) == before and aside.name in caplog.text


def test_a_file_of_someone_else_is_not_touched(student, found, net, tmp_path):
    (tmp_path / "scores.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=r"scores\.json holds no scores of this project"):
        run(student, None, found, net, tmp_path)
    assert (tmp_path / "scores.json").read_text() == '{"mine": 1}'


def test_the_sweep_finds_the_planted_best(found, net):
    teacher = Planted("diffusion", found, lambda steps, w: 0.3 * abs(w - 3))
    args = (teacher, found, UNCOND, net, [5.0, 0.0, 3.0, 1.0])
    best, made = guidance_sweep.sweep(*args, steps=10, limit=10, resamples=20, progress=False)
    assert best == 3.0 and [row["w"] for row in made] == [0.0, 1.0, 3.0, 5.0]
    lines = guidance_sweep.markdown(made).splitlines()
    assert [line for line in lines if "best" in line] == [lines[4]] and lines[4].startswith("| 3 (best)")
    with pytest.raises(ValueError, match="none twice"):
        guidance_sweep.sweep(*args[:4], [1.0, 1.0], steps=10)


def test_long_trajectories_and_training_captions_are_for_the_first_sampler(student, teacher):
    made = settings(PLAN, student, teacher)
    by_teacher = {(s.sampler, s.steps, s.split) for s in made if s.who == "teacher"}
    assert by_teacher == {
        ("ddim", 2, "heldout"), ("ddim", 50, "heldout"), ("dpmpp_2m", 2, "heldout"), ("ddim", 2, "train"),
        ("ddim", 50, "train"),
    }  # fmt: skip
    assert {s.w for s in made if s.who == "teacher"} == {2.0}
    assert sum(s.who == "student" for s in made) == 2 * 2 * 2


def test_impossible_settings_are_errors_before_anything_is_drawn(student, teacher, found, net, tmp_path):
    with pytest.raises(ValueError, match="1 to 50 steps, got 51"):
        run(student, None, found, net, tmp_path, Plan(steps=(2, 51)))
    with pytest.raises(ValueError, match="a diffusion model is not sampled with 'dd'; choose ddim"):
        run(None, teacher, found, net, tmp_path, Plan(samplers=("dd",)))
    with pytest.raises(ValueError, match="unknown split 'test'"):
        run(student, None, found, net, tmp_path, Plan(splits=("test",)))
    with pytest.raises(ValueError, match="none twice"):
        Plan(w=(1.0, 1.0))
    with pytest.raises(ValueError, match="at least 2"):
        Plan(resamples=1)
    with pytest.warns(UserWarning, match="outside the trained range"):
        settings(Plan(w=(9.0,)), student, None)
    assert student.calls == teacher.calls == []


def test_roles_are_told_apart(student, teacher):
    assert evaluation_plan.roles(student, teacher) == (student, teacher)
    assert evaluation_plan.roles(student, None) == (student, None)
    assert evaluation_plan.roles(teacher, None) == (None, teacher)
    with pytest.raises(ValueError, match="--teacher is a consistency model"):
        evaluation_plan.roles(teacher, student)
    with pytest.raises(ValueError, match="both diffusion models"):
        evaluation_plan.roles(teacher, teacher)


def test_a_plan_takes_what_is_given(student):
    for role, w_min, w in (("consistency", 0.0, 1.0), ("consistency", 2.0, 8.0), ("diffusion", None, 1.0)):
        model = Planted(role, {}, None)
        if w_min is not None:
            model.spec = replace(model.spec, guidance=GuidanceSpec(w_min, 14.0))
        assert evaluation_plan.quick(model) == replace(evaluation_plan.QUICK, w=(w,))
    plan = evaluation_plan.with_flags(evaluation_plan.QUICK, limit=None, seeds=(3,))
    assert plan.seeds == (3,) and plan.limit == evaluation_plan.QUICK.limit


def test_chosen_images_are_the_same_every_time_and_share_no_group(found):
    made, again = (choose(found, ["heldout", "train"], 9) for _ in range(2))
    for split in made:
        np.testing.assert_array_equal(made[split].chosen, again[split].chosen)
        assert len(made[split].chosen) == len(made[split].other) == 9
    train = found["train"].groups
    assert not {train[i] for i in made["train"].chosen} & {train[i] for i in made["train"].other}
    assert len(choose(found, ["heldout"])["heldout"].chosen) == 12


def test_too_few_images_are_an_error(found):
    with pytest.raises(ValueError, match="only 5 images to score"):
        choose(found, ["train"], 5)
    few = {"heldout": found["heldout"].take(np.arange(0)), "train": found["train"]}
    with pytest.raises(ValueError, match="no rows in split 'heldout'"):
        choose(few, ["heldout"])
    assert len(choose(few, ["train"])["train"].chosen) == 20
    alike = {"heldout": found["heldout"], "train": Captioned(**{**vars(found["train"]), "groups": ["one"] * 40})}
    with pytest.raises(ValueError, match="in different groups"):
        choose(alike, ["heldout"])


def test_batches_are_of_equal_size_and_fill_up_with_the_last_row():
    sizes, used, rows = [], [], (np.arange(130),)
    drawers = Drawers(None)
    size = drawers.even_size(64, 130)
    got = drawers.map(lambda each: sizes.append(len(each)) or each, rows, size, used.append)
    np.testing.assert_array_equal(got, rows[0])
    assert sizes == [44, 44, 44] and used == [44, 44, 42]
    assert Drawers(None, jax.devices()[:8]).even_size(64, 130) == 136


def test_devices_share_the_pictures_of_an_evaluation(monkeypatch):
    monkeypatch.setattr(generation, "BATCH", 1)
    spec = tiny.spec()
    alone, many = (Pipeline(spec, tiny.weights(spec)) for _ in range(2))
    many.drawers = Drawers(many.params, jax.devices()[:4])
    context = np.random.default_rng(0).normal(size=(6, 3, tiny.WIDTH)).astype(np.float32)
    words = [f"a {i}" for i in range(6)]
    asked = Captioned(words, words, words, pictures(6, 0), {"context": context})
    counts = {alone: [], many: []}
    of = lambda pipe: generation.generate(pipe, "lcm", 2, 1.0, 0, asked, {"context": context[0]}, counts[pipe].append)
    drawn = of(alone), of(many)
    assert list(counts.values()) == [[1] * 6, [4, 2]]
    rebuilt = [generation.reconstruct(pipe, asked.images) for pipe in (alone, many)]
    for one, other in (drawn, rebuilt):
        assert one.shape == (6, SIZE, SIZE, 3) and np.abs(one.astype(int) - other).max() <= 1
    (draw,) = many._compiled.values()
    assert draw._cache_size() == 1


def test_reconstructions_are_decoded_means(teacher):
    net = autoencoder(presets.AUTOENCODERS["tiny"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.1, x.dtype), net.abstract())
    teacher.autoencoder, teacher.params["autoencoder"] = net, params
    images = pictures(3, 0)
    moments = net.apply(params, jnp.asarray(images, jnp.float32) / 127.5 - 1, method="encode")
    want = net.apply(params, moments[..., :4], method="decode")
    got = generation.reconstruct(teacher, images).astype(float)
    np.testing.assert_allclose(got, np.clip((want + 1) * 127.5, 0, 255), atol=0.6)


def test_a_folder_gives_rows_with_their_own_images(tmp_path, teacher):
    for i in range(6):
        Image.fromarray(pictures(1, i)[0]).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"caption {i}")
    moments = lambda x: np.zeros((len(x), 2, 2, 8), np.float32)
    text = lambda captions: np.stack([np.full((3, 16), len(c), np.float32) for c in captions])
    given = {"dataset": {"reader": "image_folder", "options": {"folder": str(tmp_path), "heldout": 0.4}}}
    encode(examples(tmp_path, heldout=0.4), moments, text, tmp_path / "latents", SIZE, progress=False, **given)
    found, uncond = evaluation_set.open_folder(tmp_path / "latents", None, {}, teacher.spec, progress=False)
    assert uncond["context"].shape == (3, 16) and sum(map(len, found.values())) == 6
    for split in found.values():
        for caption, image in zip(split.captions, split.images, strict=True):
            np.testing.assert_array_equal(image, pictures(1, int(caption[-1]))[0])
    (tmp_path / "3.png").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of the images .* first '3\.png'"):
        evaluation_set.open_folder(tmp_path / "latents", None, {}, teacher.spec, progress=False)


def test_the_comparison_grid_has_a_prompt_a_row_and_seven_columns(found, tmp_path):
    found = {"heldout": Captioned(["k"], ["k"], ["k"], pictures(1, 0), {"context": np.zeros((1, 2, 3), np.float32)})}
    student = Planted("consistency", found, lambda steps, w: 0.0)
    teacher = Planted("diffusion", found, lambda steps, w: 0.9)
    words = SimpleNamespace(params=None, tokens=lambda some: np.zeros((len(some), 2, 3), np.float32))
    student.__dict__["captions"] = teacher.__dict__["captions"] = words
    rows = ["a cat", "a dog"]
    path = comparison.compare(student, teacher, rows, tmp_path / "grid.png", teacher_w=3.0, progress=False)
    about = grid.settings(path)
    assert about["prompts"] == ["a cat", "a dog"] and about["evaluations"] == [100, 4, 8, 1, 2, 4, 8]
    assert [c["w"] for c in about["columns"]] == [3.0] * 3 + [2.0] * 4
    with Image.open(path) as image:
        assert image.size[0] > 7 * 96 and image.size[1] > 2 * 96
    with pytest.raises(ValueError, match="give a student and a teacher"):
        comparison.compare(teacher, teacher, ["a"], tmp_path / "x.png")


def test_default_prompts_are_held_out_captions_and_free_text(tmp_path, monkeypatch):
    for i in range(24):
        Image.fromarray(pictures(1, i)[0]).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"caption {i}")
    rows = examples(tmp_path, heldout=0.5)
    monkeypatch.setattr(comparison.data, "reader", lambda name: rows)
    prompts = comparison.default_prompts("mine")
    assert len(set(prompts)) == 7 + len(comparison.FREE)
    assert set(prompts[:7]) <= {e.caption for e in rows if e.split == "heldout"} and prompts[7:] == [*comparison.FREE]


def test_unknown_feature_networks_are_listed():
    with pytest.raises(ValueError, match="unknown feature network 'dino'; choose one of inception, mobilenetv2"):
        feature_network("dino")


def test_the_machine_is_described_in_json():
    about = machine()
    assert json.loads(json.dumps(about)) == about
    assert about["cores"] >= 1 and about["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize("module", ["launch.evaluate", "launch.compare"])
def test_a_command_without_its_flags_says_which(module):
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "--out" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_warning_inside_the_range(student):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settings(PLAN, student, None)
