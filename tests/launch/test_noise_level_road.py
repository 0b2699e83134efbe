"""Networks of noise levels through the house: trained, drawn from, exported, distilled, tuned, planned."""

import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
import tiny_sd
from PIL import Image

from configs import slct_latent32
from lcm_jax import build, build_edm, drawing, encoding, exporting, objectives, planning, run_folder, sections
from lcm_jax.assess import evaluation_set, noise_evaluation, telemetry
from lcm_jax.data import manifest
from lcm_jax.data.latent_rows import LatentRows
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate import grid
from lcm_jax.evaluate.features import FeatureNet
from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.pipeline import Pipeline
from lcm_jax.source import open_model
from lcm_jax.weights.diffusers_config import autoencoder_config

ROOT = Path(__file__).parents[2]
SIDE = 32  # pixels; 4 x 4 x 4 latents, those of the preset "tiny"
OFTEN = {"log_steps": 1, "checkpoint_steps": 2, "sample_steps": 3}


@pytest.fixture(scope="module")
def made(data, latents32):
    """A denoiser and what becomes of it, and a model trained from nothing."""

    def go(name, objective, model, **changes):
        config = tiny.config(objective, model, latents32, steps=3, **changes)
        state = run_folder.train(build.run(config), data.root / f"edm_{name}", progress=False)
        run = data.root / f"edm_{name}"
        exported = exporting.export(run, data.root / f"edm_{name}_exported")
        return SimpleNamespace(run=run, state=state, exported=exported, config=config)

    start = {"start": str(data.autoencoder)}
    edm = go("edm", {"name": "edm", "time_scale": 250.0}, {**start, "network": "dit_tiny"}, loop=OFTEN)
    return SimpleNamespace(
        edm=edm,
        cd=go("cd", {"name": "cd", "intervals": 5}, {"teacher": str(edm.exported)}),
        ct=go("ct", {"name": "ct"}, {**start, "network": "dit_tiny"}),
        ect=go("ect", {"name": "ect", "stage_steps": 2}, {"start": str(edm.exported)}),
        slct=go("slct", {"name": "slct", "s1": 20}, {**start, "network": "tiny", "norm": "ns_layer"}, loop=OFTEN),
    )


def test_every_method_makes_a_model_that_says_what_it_is(made):
    roles = {name: open_model(run.exported).spec.role for name, run in vars(made).items()}
    assert roles == {"edm": "diffusion", **dict.fromkeys(("cd", "ct", "ect", "slct"), "consistency")}
    spec = open_model(made.slct.exported).spec
    assert isinstance(spec, EDMSpec) and spec.image_size == SIDE and spec.latent_shape == (4, 4, 4)
    assert (spec.network.norm, spec.sigma_min, spec.sigma_data) == ("ns_layer", 0.002, 0.5)
    assert open_model(made.ect.exported).spec.sigma_min == 0  # its f is the identity at the data
    assert EDMSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    training = spec.about["training"]
    assert training["step"] == 3 and training["config"]["objective"] == {"name": "slct", "s1": 20, "steps": 3}
    card = (made.slct.exported / "README.md").read_text()
    assert "EDMPipeline.load" in card and "noise levels of 2 steps | 80, 0.5286" in card and "--n 16 --steps 2" in card
    assert "draws from noise alone: pictures in one to a few steps" in card
    assert "guid" not in card.split("## Training")[0]
    denoiser = (made.edm.exported / "README.md").read_text()
    assert "--n 16 --steps 18" in denoiser and "guid" not in denoiser.split("## Training")[0]


def test_weights_move_and_go_on_from_where_they_were(made):
    leaves = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    edm = leaves(made.edm.state.ema)
    for run in (made.cd, made.ect):
        moved = np.abs(leaves(run.state.params) - edm)
        assert 0 < moved.max() < 0.05  # three updates at 1e-3, not new weights
    assert made.cd.state.target is not None and made.ect.state.target is None
    for run in (made.ct, made.slct):
        fresh = build.run(run.config)
        fresh.loader.close()
        first = leaves(fresh.init().params)
        moved = np.abs(leaves(run.state.params) - first).max()
        assert 0 < moved < 0.05
        if run is made.ct:  # its target follows behind
            assert 0 < np.abs(leaves(run.state.target) - first).max() < moved
        else:
            assert run.state.target is None


def test_statistics_are_those_of_the_data_and_travel_with_the_weights(made, latents32):
    mean, std = manifest.element_stats(latents32)
    for run in (made.edm, made.cd):
        kept = tiny.tree(run.exported, "statistics")
        np.testing.assert_array_equal(kept["mean"], mean)
        np.testing.assert_array_equal(kept["std"], std)
    channel_mean, channel_std = manifest.statistics([latents32], "channel")
    assert channel_mean.shape == mean.shape and np.ptp(channel_mean, axis=(0, 1)).max() == 0
    np.testing.assert_allclose(channel_mean[0, 0], mean.mean((0, 1)), atol=1e-4)
    assert (channel_std > 0).all()
    with pytest.raises(ValueError, match="data.statistics is 'pixel'; choose 'element' or 'channel'"):
        manifest.statistics([latents32], "pixel")


@pytest.mark.parametrize("per", ["element", "channel"])
def test_a_subset_has_statistics_of_its_own(made, latents32, per):
    whole = LatentRows([latents32], split="train")
    groups = [whole.names[i].group for i in whole.chosen[:9]]
    config = {**made.slct.config, "data": {**made.slct.config["data"], "groups": groups, "statistics": per}}
    run = build.run(config)
    run.loader.close()
    seen = LatentRows([latents32], split="train", groups=groups).batch(np.arange(9))
    axes = 0 if per == "element" else (0, 1, 2)
    mean = seen["mean"].astype(float).mean(axes)
    std = np.sqrt((seen["mean"].astype(float) ** 2 + seen["std"].astype(float) ** 2).mean(axes) - mean**2)
    kept = run.networks["statistics"]
    assert kept["mean"].shape == kept["std"].shape == (4, 4, 4)
    np.testing.assert_allclose(kept["mean"], np.broadcast_to(mean, (4, 4, 4)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kept["std"], np.broadcast_to(std, (4, 4, 4)), rtol=1e-4)
    assert np.abs(kept["mean"] - whole.statistics(per)[0]).max() > 1e-3


def test_what_the_step_sees_has_the_spread_of_sigma_data(made):
    run = build.run(made.slct.config)
    batch = next(run.loader)
    run.loader.close()
    assert set(run.place(batch)) == {"mean", "std"}
    shift, scale = (np.asarray(run.frozen["batch"][name]) for name in ("shift", "scale"))
    seen = (batch["mean"] - shift) * scale
    spread = np.sqrt(seen.var() + np.square(batch["std"] * scale).mean())  # of samples: means and posteriors
    assert 0.4 < spread < 0.6 and abs(seen.mean()) < 0.1
    back = run.networks["statistics"]
    again = seen * (back["std"] / 0.5) + back["mean"]
    np.testing.assert_allclose(again, batch["mean"], atol=1e-4)


def test_a_model_is_drawn_from_the_noise_that_it_was_trained_at(made):
    def spec(config, **objective):
        return build_edm.edm_parts({**config, "objective": {**config["objective"], **objective}})[1].spec

    for run in (made.ct, made.slct, made.cd):
        told = spec(run.config, sigma_min=0.01, sigma_max=40.0, rho=5.0)
        assert (told.sigma_min, told.sigma_max, told.rho) == (0.01, 40.0, 5.0)
        level = (40 ** (1 / 5) + 420 / 640 * (0.01 ** (1 / 5) - 40 ** (1 / 5))) ** 5
        assert told.sigmas[0] == (40.0,) and told.sigmas[1] == (40.0, pytest.approx(level, rel=1e-3))
        assert spec(run.config).sigmas == ((80.0,), (80.0, 0.5286))
    assert spec(made.edm.config).sigma_max == spec(made.ect.config).sigma_max == 80  # their times lie on no grid


@pytest.mark.parametrize("name, steps", [("edm", 3), ("slct", 2)])
def test_a_run_and_its_export_draw_the_same(made, name, steps, tmp_path):
    run = getattr(made, name)
    here, there = run_folder.pipeline(run.run), run_folder.pipeline(run.exported)
    assert isinstance(here, EDMPipeline) and isinstance(there, EDMPipeline)
    a, b = here(5, steps=steps, batch=2), there(5, steps=steps, batch=2)
    assert a.shape == (5, SIDE, SIDE, 3) and a.dtype == np.uint8
    np.testing.assert_array_equal(a, b)
    alike = lambda x, y: np.abs(x.astype(int) - y).max() <= 1  # other batches round otherwise
    assert alike(there(5, steps=steps, batch=4), a) and alike(here(2, steps=steps), a[:2])  # whatever else is drawn
    assert (here(2, steps=steps, seed=1) != a[:2]).any()
    path, chosen = drawing.draw_from_noise(there, tmp_path, n=4, steps=steps, progress=False)
    assert len(list(tmp_path.iterdir())) == 5 and grid.settings(path)["steps"] == steps
    assert chosen["evaluations"] == there.nfe(steps) == {"edm": 5, "slct": 2}[name]


def test_pictures_drawn_before_an_interruption_are_kept(made, tmp_path, monkeypatch):
    pipe = run_folder.pipeline(made.slct.exported)
    told = {"n": 5, "steps": 1, "batch": 2, "progress": False}
    stream = EDMPipeline.stream

    def stops(self, *given, **more):
        yield next(stream(self, *given, **more))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EDMPipeline, "stream", stops)
        drawing.draw_from_noise(pipe, tmp_path, **told)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 2
    drawing.draw_from_noise(pipe, tmp_path, **told)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and len(list(tmp_path.iterdir())) == 6
    whole = pipe(5, steps=1, batch=2)
    for number, picture in enumerate(whole):
        (path,) = tmp_path.glob(f"consistency1-*-{number:03d}.png")
        assert np.abs(np.asarray(Image.open(path)).astype(int) - picture).max() <= 1


def test_pictures_while_training_show_every_number_of_steps(made):
    (path,) = (made.slct.run / "samples").iterdir()
    assert grid.settings(path) == {"step": 3, "steps": [1, 2], "seed": 0}
    (path,) = (made.edm.run / "samples").iterdir()
    assert grid.settings(path)["steps"] == [18]


def test_noise_levels_can_be_chosen_and_are_checked(made):
    pipe = EDMPipeline.load(made.slct.exported)
    assert pipe(2, sigmas=(80.0, 1.5, 0.3)).shape == (2, SIDE, SIDE, 3)
    np.testing.assert_array_equal(pipe(2, sigmas=(80.0, 0.5286)), pipe(2, steps=2))
    for call, message in (
        ({"steps": 3}, "noise levels for 1 to 2 steps, not 3"),
        ({"sigmas": (1.0, 2.0)}, "noise levels must fall"),
        ({"sigmas": (80.0, 0.001)}, "not above 0.002"),
        ({"sigmas": (81.0, 0.5)}, "81 is above 80, the highest that was trained"),
        ({"sigmas": (float("inf"), 0.5)}, "inf is above 80"),
        ({"sigmas": (float("nan"),)}, "nan is not above 0.002"),
        ({"sigmas": (80.0,), "steps": 2}, "leave steps out"),
        ({"n": 0}, "nothing to draw"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**call)
    denoiser = EDMPipeline.load(made.edm.exported)
    with pytest.raises(ValueError, match="a denoiser takes steps"):
        denoiser(1, sigmas=(80.0,))
    with pytest.raises(ValueError, match="takes at least 2 steps, got 0"):
        denoiser(1, steps=0)


def test_the_command_draws_and_says_what_has_no_meaning(made, tmp_path):
    def sample(*flags):
        command = [sys.executable, "-m", "launch.sample", "--out", str(tmp_path / "out"), *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = sample("--checkpoint", str(made.slct.run), "--n", "3", "--sigmas", "80,0.4")
    assert done.returncode == 0, done.stderr
    assert "consistency, 2 steps (2 network evaluations), seed 0" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 4
    done = sample("--model", str(made.slct.exported), "--prompt", "a cat")
    assert done.returncode == 1 and "this model draws from noise alone: leave --prompt out" in done.stderr


def test_plans_are_made_from_shapes_alone(made, latents32):
    plan = planning.plan(made.cd.config)
    assert plan.parameters["network"] == sum(leaf.size for leaf in jax.tree.leaves(made.cd.state.params))
    assert {"params", "target", "ema", "teacher", "batch"} <= set(plan.bytes) and plan.flops > 0
    paper = tiny.config(
        {"name": "slct"},
        {"start": "models/absent", "family": "sd15", "network": "latent32"},
        latents32,
        steps=100,
    )
    _, start = build_edm.edm_parts(paper, planning=True)
    assert start.spec.image_size == 256 and start.spec.latent_shape == (32, 32, 4) and start.model is None


def test_the_autoencoder_may_be_one_that_diffusers_saved_alone(data, tmp_path):
    whole = exporting.export(tiny_sd.model_folder(tmp_path / "sd", tiny_sd.spec()), tmp_path / "whole", "diffusers")
    alone, latents = str(whole / "vae"), tmp_path / "latents"
    options = {"folder": str(data.pictures)}
    settings = {"tokens": True, "states": False, "size": SIDE, "progress": False}
    encoding.encode(alone, "image_folder", options, latents, 8, 10, **settings)
    objective, model = {"name": "edm", "time_scale": 250.0}, {"start": alone, "network": "dit_tiny"}
    config = tiny.config(objective, model, latents, steps=1)
    run_folder.train(build.run(config), tmp_path / "run", progress=False)
    made = exporting.export(tmp_path / "run", tmp_path / "exported", msgpack=False)
    first = open_model(alone).load("autoencoder")
    jax.tree.map(np.testing.assert_array_equal, open_model(made).load("autoencoder"), first)
    with pytest.raises(ValueError, match="vae is not of config.model.family 'sd15': autoencoder has .* name its"):
        build.run({**config, "model": {**model, "family": "sd15"}})
    with pytest.raises(ValueError, match="vae holds an autoencoder only: name a preset in config.model.unet"):
        build.run({**config, "model": {"start": alone}, "objective": {"name": "diffusion"}})


def test_a_published_autoencoder_alone_is_of_its_family(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(autoencoder_config(asdict(AutoencoderConfig()), 256)))
    cfg = sections.plain(slct_latent32.get_config())
    cfg["model"]["start"] = str(tmp_path)
    _, start = build_edm.edm_parts(cfg)
    assert start.spec.image_size == 256 and start.spec.autoencoder == AutoencoderConfig() and start.fresh


@pytest.mark.parametrize(
    "objective, model, message",
    [
        ({"name": "slct"}, {"start": "AUTOENCODER"}, "of noise levels: name a preset in config.model.network"),
        ({"name": "slct"}, {"network": "tiny"}, "config.model.start is missing"),
        ({"name": "slct"}, {"start": "AUTOENCODER", "network": "tiny", "nrom": "group"}, "did you mean 'norm'"),
        ({"name": "slct"}, {"start": "AUTOENCODER", "network": "emoji"}, "takes latents of 8 x 8 x 12"),
        ({"name": "ect", "stage_steps": 2}, {"start": "EDM", "network": "tiny"}, "leave config.model.network out"),
        ({"name": "ect", "stage_steps": 2}, {"start": "EDM", "norm": "layer"}, "the weights of .* are of 'rms'"),
        ({"name": "ect", "stage_steps": 2, "sigma_data": 1.0}, {"start": "EDM"}, "sigma_data 0.5, the objective 1.0"),
        ({"name": "cd"}, {"start": "EDM"}, "distils: set config.model.teacher"),
        ({"name": "ct", "steps": 3}, {"teacher": "EDM"}, "has no use for config.model.teacher"),
        ({"name": "cd"}, {"teacher": "SLCT"}, "is no denoiser"),
        ({"name": "diffusion"}, {"start": "EDM"}, "a network of noise levels, without captions"),
    ],
)
def test_bad_settings_are_named_before_anything_compiles(made, data, latents32, objective, model, message):
    places = {"AUTOENCODER": data.autoencoder, "EDM": made.edm.exported, "SLCT": made.slct.exported}
    model = {key: str(places.get(value, value)) for key, value in model.items()}
    with pytest.raises(ValueError, match=message):
        build.run(tiny.config(objective, model, latents32))


@pytest.mark.parametrize("name", ["cd", "ect"])
def test_statistics_of_a_start_are_not_chosen_again(made, name):
    config = getattr(made, name).config
    with pytest.raises(ValueError, match="statistics is 'channel', but .*exported has statistics of its own: leave it"):
        build.run({**config, "data": {**config["data"], "statistics": "channel"}})


def test_a_batch_that_cannot_be_coupled_leaves_no_run_behind(made):
    config = {**made.slct.config, "objective": {"name": "slct", "s1": 20, "transport_parts": 3}}
    with pytest.raises(ValueError, match="a batch of 8 does not split into 3 equal parts to couple: change either"):
        build.run(config)
    config = {**config, "objective": {"name": "slct", "s1": 20, "transport_parts": 4}}
    build.run(config).loader.close()
    config = {**config, "optimizer": {**config["optimizer"], "accumulate": 4}}
    with pytest.raises(ValueError, match="a batch of 2 does not split into 4 equal parts"):
        build.run(config)


def test_a_run_of_other_devices_is_looked_at_by_those_that_are_here(made, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "make_mesh", make_mesh)  # all eight devices
    away = tmp_path / "away"
    shutil.copytree(made.slct.run, away)
    told = json.loads((away / "config.json").read_text())
    config = {**told, "mesh": {"data": -1, "fsdp": 16, "rules": "fsdp"}}
    (away / "config.json").write_text(json.dumps(config))
    run, state = run_folder.reopen(away)
    run.loader.close()
    assert run.mesh.size == jax.device_count() == run.mesh.shape["data"] and "do not multiply to the 8" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, state.ema, made.slct.state.ema)
    (away / "config.json").write_text(json.dumps({**told, "mesh": {"fsdp": 2, "rules": "fsdp"}}))
    run, _ = run_folder.reopen(away)
    run.loader.close()
    assert run.mesh.shape["fsdp"] == 2  # its own, which fits


def test_other_formats_and_other_pipelines_refuse_it(made, data, tmp_path):
    with pytest.raises(ValueError, match="a network of noise levels, which diffusers has no place for"):
        exporting.export(made.slct.exported, tmp_path / "out", "diffusers")
    with pytest.raises(ValueError, match="network of noise levels"):
        Pipeline.load(made.slct.exported)
    with pytest.raises(ValueError, match="is no network of noise levels"):
        EDMPipeline.load(data.autoencoder)
    with pytest.raises(ValueError, match="edm_slct_exported draws from noise alone: give a model that takes captions"):
        run_folder.captioned(made.slct.exported)


def test_specs_say_what_does_not_fit(made):
    spec = open_model(made.slct.exported).spec.to_json()
    for change, message in (
        ({"sigmas": [[80.0], [0.5, 80.0]]}, r"sigmas\[1\] is \[0.5, 80.0\]: give 2 noise levels that fall"),
        ({"sigmas": [[81.0]]}, "from at most 80"),
        ({"sigma_data": 0.0}, "sigma_data is 0.0: give a positive number"),
        ({"rho": -7.0}, "rho is -7.0"),
        ({"time_scale": 0.0}, "time_scale is 0.0"),
        ({"sigma_min": 90.0}, "sigma_min is 90.0, sigma_max 80.0: give noise levels that rise from 0 or more"),
        ({"image_size": 64}, "the autoencoder makes 8 x 8 x 4 of pictures of 64 pixels"),
        ({"format": 7}, "has format 7"),
    ):
        with pytest.raises(ValueError, match=message):
            EDMSpec.from_json({**spec, **change})


@pytest.fixture(scope="module")
def judge(made, latents32):
    looks = FeatureNet("means", "0", lambda x: x.astype(np.float32).mean((1, 2)) / 255)
    found, _ = evaluation_set.open_folder(latents32, None, {}, open_model(made.slct.exported).spec, progress=False)
    return noise_evaluation.Judge(found, looks, 8)


def test_scores_know_real_pictures_from_noise_and_are_made_once(made, judge, tmp_path):
    pipe = EDMPipeline.load(made.slct.exported)
    plan = noise_evaluation.Plan((1, 2), (0, 1), 8)
    result = noise_evaluation.evaluate(pipe, judge, plan, tmp_path, progress=False)
    drawn = [(e["steps"], e["seed"], len(e["times"])) for e in result["entries"]]
    assert drawn == [(1, 0, 1), (2, 0, 2), (1, 1, 1), (2, 1, 2)]
    assert result["references"]["real"]["fd - floor"] == 0 < result["references"]["real"]["fd"]
    assert min(e["scores"]["fd"] for e in result["entries"]) > result["references"]["real"]["fd"]  # untrained
    table = (tmp_path / "table.md").read_text()
    assert "consistency, 2" in table and "+-" in table and "blurred" in table and "KID-means x 1000" in table
    assert "FD-means - floor" in table
    large = {**result, "protocol": {"features": {"name": "Inception"}, "n": 10_000}}
    assert "| FID " in noise_evaluation.markdown(large) and "FD-" not in noise_evaluation.markdown(large)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["entries"] == result["entries"] and written["protocol"]["n"] == judge.n == 8
    more = noise_evaluation.Plan((1, 2), (0, 1, 2), 8)
    again = noise_evaluation.evaluate(pipe, judge, more, tmp_path, progress=False)
    assert again["entries"][:4] == result["entries"] and len(again["entries"]) == 6
    with pytest.raises(ValueError, match="noise levels for 1 to 2 steps, not 3"):
        noise_evaluation.evaluate(pipe, judge, noise_evaluation.Plan((3,), (0,)), tmp_path, progress=False)


def test_the_best_noise_levels_are_found_and_kept_with_the_weights(made, judge, tmp_path):
    out = exporting.export(made.slct.run, tmp_path / "out", msgpack=False)
    pipe = EDMPipeline.load(out)
    found = noise_evaluation.best_sigmas(pipe, judge, 2, progress=False)
    assert found.best[0] == (80.0,) and len(found.best[1]) == 2 and len(found.tried) > 4
    assert found.scores[1] == min(score for sigmas, score in found.tried.items() if len(sigmas) == 2)
    pictures = pipe(8, sigmas=found.best[1])
    assert judge.score(pictures)["kid"] == found.scores[1]
    run_folder.keep_sigmas(out, [[80.0]])
    assert "--n 16 --steps 1" in (out / "README.md").read_text()
    run_folder.keep_sigmas(out, found.best, {"score": "kid"})
    kept = EDMPipeline.load(out)
    assert kept.spec.about["noise levels sought by"] == {"score": "kid"}
    assert kept.spec.sigmas == tuple(found.best)
    np.testing.assert_array_equal(kept(8, steps=2), pictures)
    card = (out / "README.md").read_text()
    assert f"| noise levels of 2 steps | 80, {found.best[1][1]:g} |\n| noise levels sought by | score kid |" in card
    assert "0.5286" not in card and "--n 16 --steps 2" in card
    with pytest.raises(ValueError, match="export it first"):
        run_folder.keep_sigmas(made.slct.run, found.best)
    with pytest.raises(ValueError, match="this one is a denoiser"):
        noise_evaluation.best_sigmas(EDMPipeline.load(made.edm.exported), judge, 2)


class Planted(noise_evaluation.Judge):
    """Likes a second noise level the better, the nearer it is to 1."""

    def __init__(self):
        self.n = 4

    def score(self, images):
        away = float(np.abs(np.log(images[-1])))
        return {"kid": away, "fd": away, "precision": 10 - away, "recall": 10 - away}


@pytest.mark.parametrize("by", noise_evaluation.SOUGHT)
def test_noise_levels_are_sought_by_any_score(made, by, monkeypatch):
    monkeypatch.setattr(EDMPipeline, "__call__", lambda self, n, sigmas, **more: np.array(sigmas))
    pipe = EDMPipeline.load(made.slct.exported)
    found = noise_evaluation.best_sigmas(pipe, Planted(), 2, by=by, progress=False)
    assert found.best[1][1] == pytest.approx(1, rel=0.2) and found.tried[found.best[1]] == found.scores[1]
    best = max if by in ("precision", "recall") else min
    assert found.scores[1] == best(score for sigmas, score in found.tried.items() if len(sigmas) == 2)
    with pytest.raises(ValueError, match="sought by kid, fd, precision, recall, not by 'fid'"):
        noise_evaluation.best_sigmas(pipe, Planted(), 2, by="fid")


NEW = """
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lcm_jax.diffusion.path import VE, diffuse
from lcm_jax.objectives.base import draw_latent
from lcm_jax.objectives.reading import Preconditioned


@dataclass(frozen=True)
class OneLevel:
    sigma: float
    reading: Any = Preconditioned()
    mu: None = None
    needs_teacher: bool = False

    def loss(self, nets, batch, key, step):
        z0 = draw_latent(batch, key)
        t = jnp.full(len(z0), self.sigma)
        z_t = diffuse(VE(), z0, jax.random.normal(key, z0.shape), t)
        loss = jnp.abs(self.reading(VE(), nets, batch, key, len(z0)).student(z_t, t).x0 - z0).mean()
        return loss, {"loss/mean": loss}


def build(sigma: float = 1.0) -> OneLevel:
    return OneLevel(sigma)
"""


def test_a_method_is_added_by_a_file(data, latents32, tmp_path, monkeypatch):
    (tmp_path / "one_level.py").write_text(NEW)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    model = {"start": str(data.autoencoder), "network": "dit_tiny"}
    config = tiny.config({"name": "one_level", "sigma": 0.5}, model, latents32, steps=1)
    state = run_folder.train(build.run(config), tmp_path / "run", progress=False)
    assert state.step == 1 and open_model(exporting.export(tmp_path / "run", tmp_path / "out")).spec.role == "diffusion"
    with pytest.raises(ValueError, match="config.objective has no key 'sigmaa'; did you mean 'sigma'"):
        build.run(tiny.config({"name": "one_level", "sigmaa": 0.5}, model, latents32))


@pytest.mark.parametrize("name, levels", [("slct", 4), ("cd", 5)])
def test_telemetry_takes_the_loss_apart(made, name, levels, tmp_path):
    assert telemetry.show(getattr(made, name).run, tmp_path, batches=1, levels=levels).stat().st_size > 10_000
    seen = json.loads((tmp_path / "telemetry.json").read_text())
    assert seen["step"] == 3 and len(seen["levels"]) == levels
    assert all(0 <= level["s"] < level["t"] <= 80.01 for level in seen["levels"])
    assert [level["t"] for level in seen["levels"]] == sorted(level["t"] for level in seen["levels"])
    for level in seen["levels"]:
        assert level["loss"] > 0 and level["grad_norm"] > 0
        for residual in (level["latent"], level["pixel"]):
            assert residual == sorted(residual) and len(residual) == len(telemetry.QUANTILES)
    assert set(seen["distance"]) == {"0", "2"}
    curve = seen["distance"]["0"]
    assert curve["value"] == sorted(curve["value"])  # never less for a larger residual
    slopes = np.gradient(curve["value"], curve["residual"])
    np.testing.assert_allclose(curve["slope"][5:-5], slopes[5:-5], rtol=0.1)
    assert (seen["coupling"] is not None) == (name == "slct")
    if name == "slct":
        drawn, coupled = (np.square(seen["coupling"][key]).sum() for key in ("drawn", "coupled"))
        assert coupled < drawn
        assert seen["intervals"]["N"] == [10, 20, 20]
        np.testing.assert_allclose(seen["scale"]["delta"], [0.03456, 0.013635, 0.013635], rtol=1e-4)
        assert seen["scale"]["step"] == seen["intervals"]["step"] == [0, 1, 2]
        values, slopes = (np.array([c[what] for c in seen["compared"].values()]) for what in ("value", "slope"))
        assert list(seen["compared"]) == ["l2", "pseudo_huber", "cauchy", "geman_mcclure"]  # from the least robust
        np.testing.assert_allclose(values[:, :5] / values[0, :5], 1, rtol=1e-3)  # alike where residuals are small
        assert (np.diff(values[:, -20:], axis=0) < 0).all() and (np.diff(slopes[:, -20:], axis=0) < 0).all()
        own = seen["distance"]["2"]  # the scale has not changed since
        np.testing.assert_allclose(seen["compared"]["cauchy"]["value"], own["value"], rtol=1e-4)
    else:
        assert seen["scale"] is seen["compared"] is None  # the squared distance has no scale


def test_a_gap_that_closes_is_shown_as_it_is_at_a_step(made):
    objective, _ = build_edm.edm_parts(made.ect.config)
    t, s = telemetry.chosen_levels(objective.pair, 1, 5)
    later = telemetry.chosen_levels(objective.pair, 2, 5)[1]
    assert len(t) == 5 and (np.diff(t) > 0).all() and (s <= later).all() and (later < t).all() and (s < later).any()


def test_a_denoiser_has_no_pairs_to_show(made, tmp_path):
    run, state = run_folder.reopen(made.edm.run)
    run.loader.close()
    jax.tree.map(np.testing.assert_array_equal, state.params, made.edm.state.params)
    with pytest.raises(ValueError, match="objective 'edm' compares no two noise levels"):
        telemetry.measure(run, state)
    captioned = dataclasses.replace(run, config={**run.config, "objective": {"name": "lcd"}})
    with pytest.raises(ValueError, match="objective 'lcd' compares no two noise levels"):
        telemetry.measure(captioned, state)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        run_folder.reopen(tmp_path)
