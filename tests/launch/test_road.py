"""From pictures to exported weights and back, with every part in its place."""

import json
import logging
import re

import jax
import numpy as np
import pytest
import tiny
from flax import serialization
from PIL import Image

from lcm_jax import assembly, build, drawing, encoding, planning, run_folder
from lcm_jax.assess import run_report
from lcm_jax.data import manifest
from lcm_jax.evaluate import grid
from lcm_jax.parallel.chips import CHIPS
from lcm_jax.pipeline import Pipeline
from lcm_jax.sampling.few_step import lcm_times
from lcm_jax.train import lives, metrics
from lcm_jax.weights import folder


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_latents_know_their_encoders_and_size(data):
    made = data.manifest
    assert made.latent_shape == (2, 2, 4) and made.image_size == tiny.SIZE and sum(made.counts.values()) == 24
    assert made.encoders["text"]["name"] == "fake" and len(made.encoders["autoencoder"]) == 64
    assert data.encode() == made  # again: nothing to do
    assert not encoding.check(data.autoencoder, "image_folder", {"folder": str(data.pictures)}, data.latents, False)


def test_token_ids_can_be_stored_beside_the_states(data, tmp_path):
    options = {"folder": str(data.pictures)}
    made = encoding.encode(data.autoencoder, "image_folder", options, tmp_path, tokens=True, progress=False)
    assert made.tokens_length == 20 and made.context_shape == (20, tiny.WIDTH)
    assert manifest.unconditional(tmp_path, "tokens").tolist() == [0] * 20


def test_training_moves_the_weights_and_the_student_starts_as_its_teacher(road, first):
    assert int(road.teacher.state.step) == int(road.lcd.state.step) == 3
    before = tiny.tree(first.teacher, "unet")["conv_in"]["kernel"]
    after = np.asarray(road.teacher.state.params["conv_in"]["kernel"])
    assert 0 < np.abs(after - before).max() < 0.1
    distance = np.abs(np.asarray(road.lcd.state.params["conv_in"]["kernel"]) - after).max()
    assert 0 < distance < 0.1
    assert road.lcd.state.target is not None and road.teacher.state.target is None


@pytest.mark.parametrize("name, role", [("teacher", "diffusion"), ("lcd", "consistency"), ("lcf", "consistency")])
def test_an_export_holds_the_ema_bit_for_bit_in_both_formats(road, name, role):
    made = getattr(road, name)
    pipe = Pipeline.load(made.exported)
    assert pipe.spec.role == role
    assert_same(pipe.params["unet"], made.state.ema)
    by_flax = lambda name: serialization.msgpack_restore((made.exported / f"{name}.msgpack").read_bytes())  # noqa: E731
    assert_same(by_flax("unet"), jax.device_get(made.state.ema))
    assert_same(by_flax("autoencoder"), tiny.tree(made.exported, "autoencoder"))
    record = pipe.spec.about["training"]
    assert record["step"] == int(made.state.step) and record["config"] == json.loads(json.dumps(made.config))
    card = (made.exported / "README.md").read_text()
    assert f"Pipeline.load({made.exported.name!r})" in card and "python -m launch.sample --model" in card
    assert str(made.exported) not in card  # it travels
    assert ("[0, 4], as cond + w (cond - uncond)" in card) == (role == "consistency")


def test_a_run_and_its_export_draw_the_same_and_files_remember_how(road, tmp_path):
    path, made = drawing.draw(
        run_folder.pipeline(road.lcd.run), ["a red disc", "a blue bar"], tmp_path / "run", n=2, progress=False
    )
    drawing.draw(
        Pipeline.load(road.lcd.exported), ["a red disc", "a blue bar"], tmp_path / "export", n=2, progress=False
    )
    files = [sorted((tmp_path / part).iterdir()) for part in ("run", "export")]
    run_names, export_names = ([re.sub("-[0-9a-f]{6}", "", p.name) for p in some] for some in files)
    assert run_names == export_names and len(run_names) == 5  # but for what tells models apart
    for pair in zip(*files, strict=True):
        a, b = (np.asarray(Image.open(path)) for path in pair)
        np.testing.assert_array_equal(a, b)
    stored = grid.settings(next((tmp_path / "run").glob("001-a-blue-bar-lcm4-w2-seed0-*-01.png")))
    assert stored["prompt"] == "a blue bar" and stored["number"] == 1 and stored["steps"] == 4
    assert (stored["w"], stored["guidance"], stored["seed"], stored["sampler"]) == (2.0, 3.0, 0, "lcm")
    assert stored["step"] == 3 and stored["weights"] == "ema" and stored["model"] == str(road.lcd.run)
    assert {"lcm_jax", "jax"} <= stored["versions"].keys() and stored["evaluations"] == 4
    assert grid.settings(path)["prompts"] == ["a red disc", "a blue bar"] and made["w"] == 2.0


def test_a_run_gives_an_account_of_itself(road, tmp_path):
    text = run_report.report(road.lcd.run, out=tmp_path / "page.html").read_text()
    where = f"{jax.device_count()} x"
    for said in ("lcd, step 3 of 3", "goodput", "the host at work", where, "objective.w_max", "loss/mean"):
        assert said in text, said
    assert text.count("data:image/png") == 1 and "<svg" in text  # the grid of the last step
    (life,) = lives.read(road.lcd.run)
    assert life["step"] == 0 and life["processes"] == 1 and life["machine"]["versions"]["jax"] == jax.__version__


def test_the_best_checkpoint_is_the_one_of_the_lowest_loss(road):
    losses = {row["step"]: row["loss/mean"] for row in metrics.read(road.lcd.run / metrics.FILE) if "loss/mean" in row}
    best = min(losses, key=losses.get)
    assert len(losses) == 3 and run_folder.best_step(road.lcd.run) == best
    assert run_folder.pipeline(road.lcd.run, best).origin["step"] == best
    with pytest.raises(ValueError, match="keeps no best checkpoint: train with config.checkpoint.best_metric="):
        run_folder.best_step(road.teacher.run)


def test_what_counted_of_a_run_is_written_as_it_goes(road):
    rows = [row for row in metrics.read(road.lcd.run / metrics.FILE) if row.get("images/s")]
    shares = [row[name] for row in rows for name in ("data/wait_share", "device/wait_share", "host/share")]
    assert len(rows) == 2 and sum(shares) == pytest.approx(len(rows)) and min(shares) >= 0
    assert 0 < rows[0]["goodput"] and all(row["goodput"] < 1 and "mfu" not in row for row in rows)


def test_where_a_rate_is_stated_steps_are_held_against_it(road, tmp_path, monkeypatch):
    """Operations are counted once a run; the mesh does not change them."""
    monkeypatch.setattr(run_folder, "of_kind", lambda kind: CHIPS["v5e"])
    run, kept = build.run(road.lcd.config), tmp_path / "operations.json"
    least = run_folder.least_seconds(run, kept)
    assert least == pytest.approx(planning.plan(road.lcd.config, jax.devices()[:1]).flops / CHIPS["v5e"].flops)
    kept.write_text(json.dumps({"step": 197e12}))
    assert run_folder.least_seconds(run, kept) == 1.0
    run.loader.close()


def test_weights_and_steps_of_a_run_can_be_chosen(road):
    _, params, step = run_folder.load(road.lcd.run, weights="params")
    assert step == 3
    assert_same(params["unet"], road.lcd.state.params)
    assert_same(run_folder.load(road.lcd.run, weights="target")[1]["unet"], road.lcd.state.target)
    assert run_folder.load(road.lcd.run, step=2)[2] == 2
    with pytest.raises(RuntimeError, match="holds no 'target'"):
        run_folder.load(road.teacher.run, weights="target")
    with pytest.raises(RuntimeError, match=r"no checkpoint of step 99 in .*it has \[1, 2, 3\]"):
        run_folder.load(road.lcd.run, step=99)
    with pytest.raises(ValueError, match="unknown weights 'best'; choose one of ema, params, target"):
        run_folder.load(road.lcd.run, weights="best")


def test_a_model_trained_at_few_times_is_sampled_at_those(road, data):
    objective = {"name": "lcd", "grid": "fixed", "skip": 250, "w_width": tiny.W_WIDTH}
    model = {"teacher": str(road.teacher.exported), "w_width": tiny.W_WIDTH}
    made = build.run(tiny.config(objective, model, data.latents))
    made.loader.close()
    assert made.spec.original_steps == 4 and made.spec.steps == (1, 2, 4)
    np.testing.assert_array_equal(lcm_times(4, 1000, made.spec.original_steps), [999, 749, 499, 249])
    assert run_folder.load(road.lcd.run)[0].original_steps == 50  # trained at any time


def test_samples_during_training_are_kept_with_their_settings(road):
    (path,) = (road.lcd.run / "samples").iterdir()
    stored = grid.settings(path)
    assert stored["step"] == 3 and stored["guidance"] == stored["w"] + 1 == 3.0 and len(stored["prompts"]) == 16


def test_an_autoencoder_trains_shows_reconstructions_and_encodes(data, tmp_path):
    config = tiny.config({"name": "autoencoder", "shift": 1}, "tiny", data.latents, steps=1)
    config["data"] = {
        "reader_name": "image_folder",
        "options": {"folder": str(data.pictures)},
        "image_size": tiny.SIZE,
        "batch_size": 8,
    }
    config["loop"]["sample_steps"] = 1
    run_folder.train(build.run(config), tmp_path / "run", progress=False)
    assert [p.name for p in (tmp_path / "run" / "samples").iterdir()] == ["step_0000001.png"]
    out = run_folder.export(tmp_path / "run", tmp_path / "out", dtype="bfloat16")
    assert sorted(folder.describe(out)) and folder.describe(out)["role"] == "autoencoder"
    made = encoding.encode(
        out, "image_folder", {"folder": str(data.pictures)}, tmp_path / "latents", progress=False
    )
    assert made.latent_shape == (2, 2, 4)
    np.testing.assert_allclose(made.channel_std, 1, rtol=0.05)  # the export folds the statistics in
    np.testing.assert_allclose(made.channel_mean, 0, atol=0.05)
    with pytest.raises(ValueError, match="an autoencoder only"):
        Pipeline.load(out)
    with pytest.raises(ValueError, match="holds an autoencoder only: name a preset in config.model.unet"):
        build.run(tiny.config({"name": "diffusion"}, {"start": str(out)}, data.latents))


def test_a_run_goes_on_and_refuses_another_config(road, data, caplog):
    config = {**road.teacher.config, "steps": 3}
    for steps in (3, 2):
        again = run_folder.train(build.run({**config, "steps": steps}), road.teacher.run, progress=False)
        assert_same(again.params, road.teacher.state.params)
        told = f"{road.teacher.run} is at step 3 of {steps}: nothing left to train; give more --config.steps to go on"
        assert [record.getMessage() for record in caplog.records] == [told]
        caplog.clear()
    run_folder.train(build.run(config), road.teacher.run, progress=False)  # the folder is as the others expect it
    changed = {**config, "optimizer": {"name": "sgd", "rate": 0.1}, "seed": 1}
    with pytest.raises(ValueError, match="differs in seed .was 0, is 1., optimizer.name .*: choose another --run"):
        run_folder.train(build.run(changed), road.teacher.run, progress=False)


def test_a_half_written_checkpoint_is_passed_over(road, tmp_path, caplog):
    import shutil

    broken = tmp_path / "run"
    shutil.copytree(road.lcd.run, broken)
    for path in (broken / "checkpoints" / "3").rglob("*"):
        if path.is_file() and path.name != "_CHECKPOINT_METADATA":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        _, _, step = run_folder.load(broken)
    assert step == 2 and "cannot be read" in caplog.text and "trying the one before" in caplog.text


def test_attribution_of_the_pictures_reaches_the_card(data):
    spec = assembly.owing(assembly.owing(tiny.spec(), ["Twemoji, CC-BY 4.0", None]), ["Twemoji, CC-BY 4.0", "Noto"])
    assert spec.about["attribution"] == ["Twemoji, CC-BY 4.0", "Noto"]
    from lcm_jax.export.model_card import model_card

    card = model_card(data.root / "x", spec.to_json(), tiny.weights(spec), "float16")
    assert "- Trained on Twemoji, CC-BY 4.0" in card and "| weights | float16" in card
