"""Wrong input: one line that names the file or the key and the remedy, before anything compiles."""

import copy
import json
import shutil

import pytest
import tiny

from lcm_jax import assembly, build, encoding, exporting, planning, run_folder, source
from lcm_jax.export import flax_folder
from lcm_jax.models import flax_file
from lcm_jax.pipeline import Pipeline
from lcm_jax.source import open_model
from lcm_jax.weights import folder

LCD = {"name": "lcd", "w_min": 0.0, "w_max": 4.0, "w_width": tiny.W_WIDTH}


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    """A step that is jitted here is never called; calling it would fail."""

    def refuse(*args, **kwargs):
        raise AssertionError("a step ran before the error")

    monkeypatch.setattr(assembly, "train_step", lambda *args, **kwargs: refuse)


@pytest.fixture
def good(data, first):
    """A distillation that is right; tests spoil one thing."""
    config = tiny.config(LCD, {"teacher": str(first.teacher), "w_width": tiny.W_WIDTH}, data.latents)
    return copy.deepcopy(config)


def fails(config, *parts, error=(ValueError, KeyError, FileNotFoundError)):
    with pytest.raises(error) as raised:
        build.run(config)
    message = str(raised.value.args[0])
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_good_config_builds(good):
    assert build.run(good).spec.guidance.w_max == 4.0
    for none in ("none", "", None):
        assert build.run({**good, "model": {**good["model"], "family": none}}).spec.guidance.w_max == 4.0


def test_a_model_of_another_family_is_told_by_what_differs(good, first):
    with pytest.raises(ValueError) as raised:
        build.run({**good, "model": {**good["model"], "family": "sd15"}})
    said = str(raised.value)
    assert "is not of config.model.family 'sd15': unet has channels (16,), attention (True,)" in said
    assert "there channels (320, 640, 1280, 1280)" in said and "dtype" not in said


def test_a_student_is_told_w_in_the_numbers_that_it_has_learned(good, first):
    lcf = {"name": "lcf", "w_min": 1.0, "w_max": 4.0, "w_width": 16}
    config = {**good, "objective": lcf, "model": {"start": str(first.student), "w_width": 16}}
    fails(config, f"config.model.w_width is 16, {first.student} is told w in 8 numbers: set it and config.objective.w_")
    lcf["w_width"] = 8
    assert build.run({**config, "model": {"start": str(first.student)}}).spec.unet.w_width == 8


SPOILED = [
    ({"stepz": 1}, {}, "config has no key 'stepz'; did you mean 'steps'?"),
    ({}, {"data": {"batchsize": 4}}, "config.data has no key 'batchsize'; did you mean 'batch_size'?"),
    ({}, {"data": {"bach_size": 4}}, "config.data has no key 'bach_size'; did you mean 'batch_size'?"),
    ({}, {"model": {"w_with": 4}}, "config.model has no key 'w_with'; did you mean 'w_width'?"),
    ({}, {"model": {"unet": {"heads": [4, 4]}}}, "config.model.unet is {'heads': [4, 4]}: name a preset"),
    ({}, {"model": {"unet": "emogi"}}, "unknown preset 'emogi'; choose one of emoji"),
    ({}, {"model": {"kind": "epsilon"}}, "kind is 'epsilon'; choose one of 'eps', 'v', 'x0'"),
    ({}, {"model": {"kind": "eps", "path": {"zero_terminal_snr": True}}}, "zero terminal SNR"),
    ({}, {"model": {"path": {"T": "many"}}}, "T is 'many', not of type int"),
    ({}, {"model": {"teacher": "emoji-techer"}}, "no model folder 'emoji-techer'"),
    ({}, {"model": {"w_width": None}}, "config.model.w_width is None: objective 'lcd' needs a width"),
    ({}, {"model": {"w_width": 16}}, "config.objective.w_width 8, config.model.w_width 16: make them equal"),
    ({}, {"model": {"start": None, "teacher": None}}, "config.model.start is missing"),
    ({"model": "tiny"}, {}, "config.model is 'tiny': give a dict of start, teacher"),
    ({}, {"objective": {"name": "lcdd"}}, "unknown objective 'lcdd'"),
    ({}, {"objective": {"solver_name": "dppm"}}, "dppm"),
    ({}, {"objective": {"skp": 3}}, "config.objective has no key 'skp'; did you mean 'skip'?"),
    ({}, {"objective": {"kind": "eps"}}, "config.objective has 'kind', which is given to it from elsewhere: leave it"),
    ({}, {"data": {"seed": 1}}, "config.data has 'seed', which is given to it from elsewhere: leave it out"),
    ({}, {"data": {"own": 1}}, "config.data has 'own'"),
    ({"steps": 0}, {}, "config.steps must be at least 1, not 0"),
    ({}, {"loop": {"log_step": 5}}, "config.loop has no key 'log_step'; did you mean 'log_steps'?"),
    ({}, {"loop": {"folder": "x"}}, "config.loop has no key 'folder'; it takes: log_steps, checkpoint_steps, sample"),
    ({}, {"loop": {"log_steps": 0}}, "config.loop.log_steps must be at least 1, not 0"),
    ({}, {"loop": {"sample_steps": -1}}, "config.loop.sample_steps must be at least 0, not -1"),
    ({}, {"checkpoint": {"kep": 5}}, "config.checkpoint has no key 'kep'; did you mean 'keep'?"),
    ({}, {"checkpoint": {"read_only": True}}, "config.checkpoint has no key 'read_only'; it takes: keep, best_metric"),
    ({}, {"checkpoint": {"keep": 0}}, "config.checkpoint.keep must be at least 1 checkpoint, not 0"),
    ({}, {"checkpoint": {"best_mode": "least"}}, "config.checkpoint.best_mode must be 'min' or 'max', not 'least'"),
    ({"objective": {"name": "lcf", "w_width": 8}}, {}, "has no use for config.model.teacher"),
    ({"objective": {"name": "diffusion"}}, {}, "config.model.w_width is 8: objective 'diffusion' has none"),
    ({"objective": {"name": "ict"}}, {}, "config.model has no key 'w_width'; it takes: start"),
    ({"objective": {}}, {}, "config.objective lacks name"),
    ({}, {"optimizer": {"name": "adam"}}, "unknown optimizer 'adam'"),
    ({}, {"optimizer": {"learning_rate": 1}}, "config.optimizer has no key 'learning_rate'"),
    ({"seed": -1}, {}, "config.seed is -1: give a whole number of at least 0 and below 2^32"),
    ({}, {"data": {"batch_size": 0}}, "config.data.batch_size is 0: give a whole number of at least 1 and"),
    ({}, {"optimizer": {"rate": -1.0}}, "config.optimizer.rate is -1.0: give a number of at least 0 and below inf"),
    ({}, {"optimizer": {"b2": 2.0}}, "config.optimizer.b2 is 2.0: give a number of at least 0 and below 1"),
    ({}, {"optimizer": {"warmup": -5}}, "config.optimizer.warmup is -5: give a whole number of at least 0"),
    ({}, {"objective": {"drop": 10.0}}, "drop is 10.0: give the share of captions to leave out, 0 to 1"),
    ({}, {"objective": {"mu": 1.5}}, "mu is 1.5: give the target's decay, at least 0 and below 1"),
    ({}, {"objective": {"w_max": float("nan")}}, "a range goes from low to high"),
    ({}, {"optimizer": {"accumulate": 3}}, "config.optimizer.accumulate 3 does not divide batch size 8"),
    ({}, {"average": {"ema": 1}}, "config.average has no key 'ema'"),
    ({}, {"mesh": {"rules": "fsdpp"}}, "fsdpp"),
    ({}, {"data": {"batch_size": 64}}, "config.data.batch_size 64 is larger than the set of 21 examples: lower it"),
    ({}, {"data": {"tag": "flag"}}, "the data set is empty"),
]


@pytest.mark.parametrize("sections, keys, message", [pytest.param(*case, id=case[2][:40]) for case in SPOILED])
def test_a_wrong_config_is_named(good, sections, keys, message):
    good |= sections
    for section, changes in keys.items():
        good[section] |= changes
    if "has none" in message or "no use" in message:
        good["objective"] = sections["objective"]
    if "has none" in message:
        good["model"] = {"start": good["model"]["teacher"], "w_width": 8}
    fails(good, message)


def test_a_setting_without_effect_is_said(good, caplog):
    good["optimizer"] |= {"b2": 0.9}
    build.run(good)
    assert not caplog.records
    build.run({**good, "optimizer": {**good["optimizer"], "name": "adafactor"}})  # as the command line may change it
    (said,) = caplog.records
    assert said.getMessage() == "config.optimizer.b2 has no effect: adafactor does not take it"


def test_a_plan_is_of_a_right_config(good):
    good["checkpoint"] |= {"kep": 5}
    with pytest.raises(ValueError, match="config.checkpoint has no key 'kep'"):
        planning.plan(good)


def test_a_missing_section_is_named(good):
    del good["mesh"], good["loop"]
    fails(good, "config lacks mesh, loop")


def test_distilling_needs_a_diffusion_teacher_that_matches(good, first, data, tmp_path):
    fails({**good, "model": {"start": str(first.student)}}, "set config.model.teacher to a model folder")
    fails({**good, "model": {"teacher": str(first.student)}}, "is a consistency model")
    other = tiny.model_folder(tmp_path / "eps", tiny.spec("diffusion", image_size=32))
    fails({**good, "model": {**good["model"], "start": str(other)}}, "latent_shape (2, 2, 4)", "make them equal")


@pytest.mark.parametrize("wrong", ["width", "size", "channels", "captions"])
def test_latents_that_do_not_fit_the_model_are_named(good, tmp_path, wrong, data, monkeypatch):
    import dataclasses

    from lcm_jax import captions

    spec = tiny.spec("diffusion")
    if wrong == "width":
        spec = dataclasses.replace(spec, unet=dataclasses.replace(spec.unet, context_width=8))
    if wrong == "size":
        spec = dataclasses.replace(spec, image_size=32)
    if wrong == "channels":
        spec = dataclasses.replace(spec, autoencoder=dataclasses.replace(spec.autoencoder, latent_channels=8))
        spec = dataclasses.replace(spec, unet=dataclasses.replace(spec.unet, latent_channels=8))
    if wrong == "captions":
        monkeypatch.setitem(captions.ENCODERS, "minilm", captions.MiniLM)
    good["model"]["teacher"] = str(tiny.model_folder(tmp_path / "model", spec))
    messages = {
        "width": "text context is 16 wide, the model takes 8",
        "size": "latents are 2x2x4, the model takes 4x4x4",
        "channels": "latents have 4 channels, the model takes 8",
        "captions": "captions were encoded with {'name': 'fake'",
    }
    fails(good, messages[wrong])


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_shard_is_named(good, data, tmp_path, damage):
    shutil.copytree(data.latents, tmp_path / "latents")
    shard = sorted((tmp_path / "latents").glob("train*.array_record"))[1]
    shard.unlink() if damage == "missing" else shard.write_bytes(shard.read_bytes()[:-100])
    good["data"]["folder"] = str(tmp_path / "latents")
    fails(good, shard.name, damage, "restore it or encode again")
    problems = encoding.check(
        data.autoencoder, "image_folder", {"folder": str(data.pictures)}, tmp_path / "latents", False
    )
    assert len(problems) == 1 and shard.name in str(problems[0])


def test_a_folder_without_latents_is_named(good, data, tmp_path):
    good["data"]["folder"] = str(tmp_path / "nowhere")
    fails(good, "nowhere does not exist; make it with launch.encode", error=FileNotFoundError)
    good["data"]["folder"] = str(data.pictures)
    wanted = "pictures has no manifest.json", "or this is a folder of pictures: encode it first"
    fails(good, *wanted, error=FileNotFoundError)


def test_a_corrupt_picture_and_a_missing_caption_are_listed(data, tmp_path):
    shutil.copytree(data.pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "03.png").write_bytes(b"\x89PNG no more")
    shutil.copy(data.pictures / "01.png", tmp_path / "pictures" / "new.png")
    options = {"folder": str(tmp_path / "pictures")}
    listed = encoding.report(
        encoding.check(data.autoencoder, "image_folder", options, progress=False)
    ).splitlines()
    assert len(listed) == 3 and listed[-1] == "2 problems"
    assert listed[0].startswith("03.png: image") and "replace or remove it" in listed[0]
    assert listed[1].startswith("new.png: no caption")
    with pytest.raises(ValueError, match="new.png"):
        encoding.encode(data.autoencoder, "image_folder", options, tmp_path / "out", progress=False)


def test_wrong_encode_settings_are_named(data, tmp_path):
    with pytest.raises(KeyError, match="unknown data reader 'twemojis'"):
        encoding.encode(data.autoencoder, "twemojis", {}, tmp_path)
    with pytest.raises(ValueError, match="batch_size 0"):
        encoding.encode(data.autoencoder, "image_folder", {"folder": str(data.pictures)}, tmp_path, batch_size=0)
    with pytest.raises(FileNotFoundError, match="no model folder 'emoji'; give a path, a hub name, or one of"):
        encoding.encode("emoji", "image_folder", {}, tmp_path)


def test_latents_lie_beside_the_pictures(data, tmp_path, monkeypatch):
    pictures = tmp_path / "all" / "pictures"
    shutil.copytree(data.pictures, pictures)
    options = {"folder": str(pictures)}
    before = sorted(tmp_path.rglob("*"))
    for out, message in (
        (pictures, "pictures holds '.*', which is of no latent data set: choose an empty folder"),
        (tmp_path / "all", "all holds 'pictures', which is of no latent data set"),
        (pictures / "latents", "latents and the pictures' folder .*: one lies in the other; choose another --out"),
        (pictures / "01.png", "01.png is a file"),
    ):
        with pytest.raises(ValueError, match=message):
            encoding.encode(data.autoencoder, "image_folder", options, out, progress=False)
        with pytest.raises(ValueError, match=message):
            encoding.check_out(out, options)
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.chdir(pictures)
    with pytest.raises(ValueError, match="latents and the pictures' folder .: one lies in the other"):
        encoding.check_out("latents", {"folder": ["01.png", "."]})
    with pytest.raises(ValueError, match="and the pictures' folder"):
        encoding.check_out(tmp_path / "new", {"folder": str(tmp_path)})
    encoding.check_out("latents", {"folder": "*.png"})
    encoding.check_out(tmp_path / "latents", options)
    encoding.check_out("latents", {})


def test_weights_of_another_network_are_named(first, tmp_path):
    where = tmp_path / "model"
    shutil.copytree(first.student, where)
    description = folder.describe(where)
    folder.write_text(where / "model.json", "{")
    with pytest.raises(ValueError, match="model.json is not valid JSON"):
        Pipeline.load(where)
    description["unet"]["channels"] = [32]
    folder.write(where, description, {}, "float32")
    with pytest.raises(ValueError, match=r"unet.safetensors: .* is \(.*\), the network wants"):
        Pipeline.load(where)
    (where / "unet.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks unet.safetensors: give a whole folder"):
        Pipeline.load(where)
    (where / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds neither model.json nor model_index.json"):
        Pipeline.load(where)


def test_a_folder_that_is_no_run_is_named(first, tmp_path):
    with pytest.raises(FileNotFoundError, match="student holds no run: give a --run folder of launch.train"):
        run_folder.load(first.student)
    with pytest.raises(ValueError, match="student is a model, no run: leave --step, --weights and --ema out"):
        run_folder.pipeline(first.student, 3)
    shutil.copytree(first.student, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"average": {}}))
    with pytest.raises(RuntimeError, match=r"no checkpoint in .*; it has \[\]"):
        run_folder.load(tmp_path / "run")


def test_a_run_spoils_no_model_and_no_data(good, first, data, tmp_path):
    run, exported = build.run(good), exporting.export(first.student, tmp_path / "exported", msgpack=False)
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "README.md").write_text("tags: lcm_jax")
    (lora / "adapters.safetensors").write_bytes(b"")
    for made, file in ((lora, "README.md"), (exported, "model.json"), (data.latents, "manifest.json")):
        shutil.copytree(made, tmp_path / file)
        was = {path: path.read_bytes() for path in (tmp_path / file).iterdir() if path.is_file()}
        with pytest.raises(ValueError, match=f"{file} has a {file}, as models and data sets have: give another --run"):
            run_folder.train(run, tmp_path / file, progress=False)
        assert was == {path: path.read_bytes() for path in (tmp_path / file).iterdir() if path.is_file()}


def test_an_export_replaces_nothing_but_an_export(tmp_path, monkeypatch):
    spec = tiny.spec()
    weights = tiny.weights(spec)
    write = lambda out, **kw: flax_folder.write(out, spec.to_json(), weights, flax_file.to_bytes, **kw)  # noqa: E731
    out = write(tmp_path / "model")
    with pytest.raises(FileExistsError, match="give --overwrite"):
        write(out)
    write(out, dtype="float16", overwrite=True)
    assert tiny.tree(out, "unet")["conv_in"]["kernel"].dtype == "float16"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="is no exported model: choose another --out"):
        exporting.export("no such model", mine)  # said before it is opened
    with pytest.raises(FileExistsError, match="is no exported model: choose another --out"):
        write(mine, overwrite=True)
    assert (mine / "thesis.tex").read_text() == "years"
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        write(tmp_path / "other", dtype="int8")

    def full(tree):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        flax_folder.write(out, spec.to_json(), weights, full, overwrite=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match="disk full: the export takes .* MB .* make room or export elsewhere"):
        write(tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "model"]
    assert (out / "model.json").exists()


def test_shipped_models_are_listed(tmp_path, monkeypatch):
    tiny.model_folder(tmp_path / "emoji-teacher")
    monkeypatch.setattr(source, "ASSETS", tmp_path)
    assert open_model("emoji-teacher").where == tmp_path / "emoji-teacher"
    with pytest.raises(FileNotFoundError, match="no model folder '/emoji'; .* one of: emoji-teacher"):
        open_model("/emoji")
    with pytest.raises(FileNotFoundError, match="holds neither model.json nor model_index.json"):
        open_model(tmp_path)
