"""A run that is told classes and keeps several averages: one compilation, resumed exactly, drawn, scored, exported."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from lcm_jax import assembly, build, build_edm, drawing, encoding, exporting, planning, run_folder
from lcm_jax.assess import evaluation_set, noise_evaluation
from lcm_jax.data import manifest
from lcm_jax.data.latent_rows import LatentRows
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate import grid
from lcm_jax.evaluate.features import FeatureNet
from lcm_jax.source import open_model
from lcm_jax.start_edm import EDMStart, agree
from lcm_jax.train import metrics
from lcm_jax.train.checkpoint import Checkpointer, flatten

ROOT = Path(__file__).parents[2]
CLASSES = tuple(sorted(tiny.COLOURS))
STEPS, STOP = 8, 5  # four stages of two steps; it stops in the middle of the third
STAGES = [10, 10, 20, 20, 40, 40, 80, 80]
AVERAGES = ["0.3", "0.1", "power0.1"]


def same(a, b):
    for (name, x), y in zip(flatten(a).items(), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, name)


@pytest.fixture(scope="module")
def train(data, latents32):
    """train(name, objective, steps, ...) -> a run, with how often its step was traced."""

    def go(name, objective, steps=STEPS, model=None, samples=False, **changes):
        model = {"start": str(data.autoencoder), "network": "dit_tiny", **(model or {})}
        loop = {"log_steps": 1, "checkpoint_steps": 100, "sample_steps": 100 if samples else 0}
        config = tiny.config(objective, model, latents32, steps=steps, loop=loop, **changes)
        traces, make = [], assembly.step_of

        def counted(*arguments):
            step = make(*arguments)
            return lambda *given: traces.append(1) or step(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assembly, "step_of", counted)
            state = run_folder.train(build.run(config), data.root / name, progress=False)
        return SimpleNamespace(run=data.root / name, config=config, state=state, traces=len(traces))

    return go


@pytest.fixture(scope="module")
def labelled(train):
    """slct over a whole curriculum: once in one go, once stopped and gone on with."""
    objective = {"name": "slct", "s1": 80, "steps": STEPS, "label_drop": 0.25}
    more = {"model": {"classes": len(CLASSES)}, "average": {"ema_decay": (0.3, 0.1), "ema_power": 0.1}}
    whole = train("labelled", objective, samples=True, **more)
    stopped = train("labelled_twice", objective, STOP, **more)
    again = train("labelled_twice", objective, **more)
    return SimpleNamespace(**vars(whole), stopped=stopped, again=again)


@pytest.fixture(scope="module")
def exported(labelled, data):
    return exporting.export(labelled.run, data.root / "labelled_exported", msgpack=False)


def losses(run):
    return [(line["step"], line["loss/mean"], line["grad_norm"]) for line in metrics.read(run / metrics.FILE)]


def test_a_whole_curriculum_is_one_compilation(labelled, train):
    ict = train("plain_ict", {"name": "ict", "s1": 80, "steps": STEPS})
    for run in (labelled, ict):
        intervals = build_edm.edm_parts(run.config)[0].pair.intervals
        assert [int(intervals(step)) for step in range(STEPS)] == STAGES
        assert run.traces == 1 and int(run.state.step) == STEPS
    assert labelled.stopped.traces == labelled.again.traces == 1
    assert set(ict.state.ema) == set(ict.state.params)  # of one average nothing but itself is kept


def test_a_run_stopped_within_a_stage_goes_on_bit_for_bit(labelled):
    assert int(labelled.stopped.state.step) == STOP and STAGES[STOP - 1] == STAGES[STOP] != STAGES[STOP - 2]
    same(labelled.again.state, labelled.state)
    assert losses(labelled.again.run) == losses(labelled.run) and len(losses(labelled.run)) == STEPS
    longer = {**labelled.config, "objective": {"name": "slct", "s1": 80, "label_drop": 0.25}, "steps": STEPS + 1}
    curriculum = rf"differs in objective.steps .was {STEPS}, is {STEPS + 1}.: .* .--config.objective.steps={STEPS}."
    with pytest.raises(ValueError, match=curriculum):  # its first steps would have been others
        run_folder.train(build.run(longer), labelled.run, progress=False)


def test_every_average_is_kept_and_told_apart(labelled, data):
    state = labelled.state
    assert set(state.ema) == set(AVERAGES)
    whole = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    away = {name: np.abs(whole(tree) - whole(state.params)).max() for name, tree in state.ema.items()}
    assert 0 < away["0.1"] < away["0.3"] and away["power0.1"] > 0, away
    for weights, name in (("ema", "0.3"), ("ema/0.3", "0.3"), ("ema/0.10", "0.1"), ("ema/power0.1", "power0.1")):
        spec, networks, step = run_folder.load(labelled.run, weights=weights)
        same(networks["network"], state.ema[name])
        assert run_folder.recorded(spec, labelled.run, step, weights).about["training"]["weights"] == f"ema/{name}"
        assert run_folder.pipeline(labelled.run, weights=weights).origin["weights"] == f"ema/{name}"
    same(run_folder.load(labelled.run, weights="params")[1]["network"], state.params)
    with pytest.raises(ValueError, match="keeps no average '0.99'; choose one of 0.3, 0.1, power0.1"):
        run_folder.load(labelled.run, weights="ema/0.99")
    with pytest.raises(ValueError, match="unknown weights 'params/0.3'"):
        run_folder.load(labelled.run, weights="params/0.3")
    out = exporting.export(labelled.run, data.root / "labelled_half", weights="ema/0.1", msgpack=False)
    same(tiny.tree(out, "network"), state.ema["0.1"])
    assert EDMPipeline.load(out).origin["weights"] == "ema/0.1"
    assert "The ema/0.1 weights of step 8" in (out / "README.md").read_text()


def test_one_average_is_stored_as_it_always_was(train, data, labelled):
    keep = Checkpointer(data.root / "plain_ict" / "checkpoints", read_only=True)
    saved = keep._about(STEPS)["leaves"]
    keep.close()
    assert {name.split("/")[0] for name in saved} == {"step", "params", "ema", "opt_state"}
    assert {name.removeprefix("ema/") for name in saved if name.startswith("ema/")} == {
        name.removeprefix("params/") for name in saved if name.startswith("params/")
    }


def test_labels_reach_the_step(labelled, latents32):
    assert manifest.read(latents32).classes == CLASSES
    run = build.run(labelled.config)
    batch = next(run.loader)
    run.loader.close()
    assert set(run.place(batch)) == {"mean", "std", "label"} and int(run.frozen["batch"]["no_label"]) == 4
    said = [run.loader.row(i).caption.split()[1] for i in batch["index"]]
    assert [CLASSES[label] for label in batch["label"]] == said and batch["label"].dtype == np.int32
    moved = np.abs(labelled.state.params["map_label"]["embedding"] - run.init().params["map_label"]["embedding"])
    assert (moved.max(1) > 0).all()  # that of no label, too


def test_pictures_are_drawn_by_class(labelled, exported, tmp_path):
    pipe = EDMPipeline.load(exported)
    assert pipe.spec.classes == CLASSES
    card = (exported / "README.md").read_text()
    assert "4: blue, green, red, white" in card and "label='blue'" in card and "--label blue" in card
    by_name, by_number = pipe(6, label="green", batch=4), pipe(6, label=1, batch=4)
    np.testing.assert_array_equal(by_name, by_number)
    in_turn = pipe(6, batch=4)
    np.testing.assert_array_equal(in_turn[[1, 5]], by_name[[1, 5]])  # 0 1 2 3 0 1
    assert (in_turn[0] != by_name[0]).any() and (pipe(1, label=4) != in_turn[:1]).any()
    np.testing.assert_array_equal(pipe(3, label=[1, 1, 2])[:2], by_name[:2])
    for label, message in (
        ("gren", "unknown label 'gren'; choose a number up to 3, or one of blue, green, red, white"),
        (5, r"outside 0..3 \(4: none of the classes\)"),
        ([0, 1], "2 labels were given for 3 pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(3, label=label)
    _, chosen = drawing.draw_from_noise(pipe, tmp_path, n=3, progress=False)
    assert chosen["label"] == ["blue", "green", "red"] and chosen["weights"] == "ema/0.3"
    assert grid.settings(next(tmp_path.glob("consistency2-seed0-*-002.png")))["label"] == "red"
    (sheet,) = (labelled.run / "samples").iterdir()
    assert grid.settings(sheet)["label"] == [*CLASSES] * 4


def test_the_command_draws_one_class_of_one_average(labelled, tmp_path):
    command = [sys.executable, "-m", "launch.sample", "--checkpoint", str(labelled.run), "--out", str(tmp_path)]
    told = ["--n", "2", "--label", "red", "--ema", "0.1"]
    done = subprocess.run([*command, *told], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = grid.settings(next(tmp_path.glob("grid-consistency2-red-seed0-*.png")))
    assert settings["label"] == "red" and settings["weights"] == "ema/0.1"


def test_scores_are_of_the_classes_of_the_real_pictures(exported, latents32, data, tmp_path):
    pipe = EDMPipeline.load(exported)
    looks = FeatureNet("means", "0", lambda x: x.astype(np.float32).mean((1, 2)) / 255)
    found, _ = evaluation_set.open_folder(latents32, None, {}, pipe.spec, progress=False)
    judge = noise_evaluation.Judge(found, looks, 8)
    chosen = evaluation_set.choose(found, ["train"], 8)["train"]
    wanted = [chosen.whole.captions[i].split()[1] for i in chosen.chosen]
    assert [CLASSES[label] for label in judge.labels(pipe)] == wanted
    result = noise_evaluation.evaluate(pipe, judge, noise_evaluation.Plan((1,), (0,), 8), tmp_path, progress=False)
    assert result["protocol"]["labels"]["pictures"] == Counter(wanted)
    assert json.loads((tmp_path / "scores.json").read_text())["about"]["weights"] == "ema/0.3"
    drawn = judge.score(pipe(8, steps=1, label=judge.labels(pipe)))
    assert result["entries"][0]["scores"] == pytest.approx(drawn)


def test_a_plan_counts_every_average_and_the_labels(labelled):
    plan = planning.plan(labelled.config)
    assert "ema" not in plan.bytes
    assert {plan.bytes[f"ema {name}"] for name in AVERAGES} == {plan.bytes["params"]}
    latent = 8 * 4 * 4 * 4 * 4
    assert plan.bytes["batch"] == 2 * latent + 8 * 4


@pytest.mark.parametrize(
    "objective, model, message",
    [
        ({}, {"classes": 3}, "the data set has 4 classes, the network 3: make them equal"),
        ({}, {"classes": -1}, "classes is -1: give how many there are"),
        ({"label_drop": 0.1}, {}, "config.objective.label_drop drops labels, but config.model.classes is 0"),
        ({"label_drop": 1.0}, {"classes": 4}, "label_drop is 1.0: give a share"),
        ({}, {"start": "LABELLED", "classes": 5}, "config.model.classes is 5, the weights of .* are of 4"),
    ],
)
def test_classes_that_do_not_fit_are_named_before_anything_compiles(
    exported, data, latents32, objective, model, message
):
    model = {"start": str(data.autoencoder), "network": "dit_tiny", **model}
    if model["start"] == "LABELLED":
        model = {**model, "start": str(exported), "network": None}
    with pytest.raises(ValueError, match=message):
        build.run(tiny.config({"name": "ct", "steps": 3, **objective}, model, latents32))


def test_a_teacher_must_know_the_same_classes(exported):
    spec = open_model(exported).spec
    agree("teacher", spec, spec)
    fewer = replace(spec, network=replace(spec.network, classes=3), classes=())
    with pytest.raises(ValueError, match="teacher has 3 classes, the network 4: set config.model.classes to 3"):
        agree("teacher", fewer, spec)
    with pytest.raises(ValueError, match="teacher has classes of other names"):
        agree("teacher", replace(spec, classes=("a", "b", "c", "d")), spec)


def test_no_label_is_drawn_and_distilled_where_it_was_learned(exported, latents32, data):
    pipe = EDMPipeline.load(exported)
    assert pipe.spec.no_label
    always = EDMPipeline(replace(pipe.spec, no_label=False), pipe.params)
    with pytest.raises(ValueError, match="label 4 is none of the classes, but this model learned all pictures with th"):
        always(1, label=4)
    with pytest.raises(ValueError, match=r"outside 0..3$"):
        always(1, label=5)
    rows = LatentRows([latents32], split="train")
    assert not rows.unlabelled
    teacher = open_model(exported)
    teacher.spec = always.spec
    start = EDMStart(always.spec, None, False, teacher)
    told = build_edm.learns_no_label
    assert not told(start, 0.0, rows)
    with pytest.raises(ValueError, match="never learned pictures without a label: set config.objective.label_drop"):
        told(start, 0.1, rows)
    rows._labels[rows.chosen[0]] = 4
    assert rows.unlabelled
    with pytest.raises(ValueError, match="never learned .*: choose pictures that all have a label"):
        told(start, 0.0, rows)
    assert told(EDMStart(always.spec, None, False, None), 0.0, rows)
    assert told(EDMStart(pipe.spec, None, False, open_model(exported)), 0.1, rows)
    fresh = {"start": str(data.autoencoder), "network": "dit_tiny", "classes": 4}
    for model, drop, wanted in ((fresh, 0.0, False), (fresh, 0.1, True), ({"start": str(exported)}, 0.0, True)):
        run = build.run(tiny.config({"name": "ct", "steps": 3, "label_drop": drop}, model, latents32))
        run.loader.close()
        assert run.spec.no_label is wanted


def test_data_of_other_classes_or_none_are_refused(exported, labelled, data, tmp_path):
    bare = tmp_path / "bare"
    tiny.pictures(bare)
    rows = [json.loads(line) for line in (bare / "metadata.jsonl").read_text().splitlines()]
    for folder, label, message in (
        ("none", None, "the data set has no labels, the network takes 4 classes"),
        ("other", lambda name: name.replace("blue", "azure"), "label 0 is 'azure' in the data set and 'blue' of the"),
    ):
        own = [{**row, "label": label(row["label"]) if label else ""} for row in rows]
        (bare / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        out = tmp_path / folder
        encoding.encode(data.autoencoder, "image_folder", {"folder": str(bare)}, out, size=32, progress=False)
        config = {"name": "ct", "steps": 3}, {"start": str(exported)}
        with pytest.raises(ValueError, match=message):
            build.run(tiny.config(*config, out))
        with pytest.raises(ValueError, match=message):
            evaluation_set.open_folder(out, None, {}, open_model(exported).spec, progress=False)
    run = build.run(tiny.config({"name": "ct", "steps": 3}, {"start": str(exported)}, data.root / "latents32"))
    run.loader.close()
    assert run.spec.classes == CLASSES and run.spec.network.classes == 4
