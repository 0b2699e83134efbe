"""Plans of runs: of models that are there against the run itself, of published ones against what is known of them."""

import importlib
from functools import partial

import jax
import pytest
import tiny
import tiny_sd

from configs import slct_latent32
from lcm_jax import assembly, build_captioned, families, planning, sections
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.source import network, text_networks
from lcm_jax.train.state import State

LCD = {"name": "lcd", "w_min": 2.0, "w_max": 4.0, "w_width": 8}


@pytest.fixture(autouse=True)
def all_devices(monkeypatch):
    """Whatever other tests of this session plan with."""
    monkeypatch.setattr(sections, "make_mesh", make_mesh)


CONFIGS = [f"{kind}_{family}" for kind, of in (("lcd", ("sd15", "sd21_base", "sd21_768", "sdxl")), ("lora", ("sd15", "sdxl"))) for family in of]  # noqa: E501


def settings(name, preset):
    return importlib.import_module(f"configs.{name}").get_config(preset)


@pytest.mark.parametrize("family,rules", [("sd", "replicate"), ("sdxl", "fsdp")])
def test_a_plan_counts_what_a_run_holds(family, rules, tmp_path):
    teacher = tiny_sd.model_folder(tmp_path / "teacher", tiny_sd.spec(family))
    config = tiny.config(LCD, {"teacher": str(teacher), "w_width": 8}, tmp_path, mesh={"fsdp": 4, "rules": rules})
    plan = planning.plan(config)
    assert plan.devices == 8 and plan.flops > 0
    parts = build_captioned.latent_parts(config)
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(parts.trained.abstract()))
    least = whole / 4 if rules == "fsdp" else whole
    for name in ("params", "target", "ema"):
        assert least <= plan.bytes[name] <= whole  # what is small stays whole
    assert plan.bytes["opt_state"] == pytest.approx(2 * plan.bytes["params"], abs=16)
    assert plan.parameters["U-Net"] * 4 == whole and "text_encoder" in plan.parameters
    assert plan.record()["flops"] == plan.flops and plan.record()["held"] == sum(plan.bytes.values())


def test_adapters_are_planned_beside_the_one_network_they_share(tmp_path):
    teacher = tiny_sd.model_folder(tmp_path / "teacher")
    model = {"teacher": str(teacher), "lora": {"rank": 2, "alpha": 2}, "teacher_dtype": "bfloat16"}
    plan = planning.plan(tiny.config({**LCD, "w_width": None, "mu": None}, model, tmp_path))
    assert plan.bytes["teacher"] == 2 * plan.parameters["U-Net"]
    assert plan.bytes["params"] == 4 * plan.parameters["adapters"] and "target" not in plan.bytes


@pytest.mark.parametrize("preset", ["paper", "diffusers"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_the_family_describes_a_run(name, preset):
    cfg = sections.plain(settings(name, preset))
    cfg["mesh"] = {"data": 1, "fsdp": 8, "rules": cfg["mesh"]["rules"]}
    parts = build_captioned.latent_parts(cfg, planning=True)
    sections.optimizer_of(cfg)
    assert parts.spec.role == "consistency" and parts.objective.needs_teacher
    told = name.startswith("lcd")
    assert (parts.spec.unet.w_width, parts.weights is None) == ((256, True) if told else (None, False))
    if told and preset == "paper":
        assert (parts.spec.guidance.w_min, parts.spec.guidance.w_max) == (2.0, 14.0)


def test_fine_tuning_takes_a_published_lcm_and_no_teacher():
    cfg = sections.plain(settings("lcf_sd", "paper"))
    parts = build_captioned.latent_parts(cfg, planning=True)
    assert parts.teacher is None and not parts.objective.needs_teacher


@pytest.mark.parametrize("name, updates", [("celeba", 294_000), ("church", 842_400), ("ffhq", 764_400)])
def test_latent_consistency_is_planned_at_the_size_of_its_paper(name, updates):
    """arXiv 2502.01441: epochs and batch of its table, seven stages of equal length, 158 M parameters."""
    cfg = slct_latent32.get_config(name)
    plan = planning.plan(cfg)
    assert cfg.steps == updates and plan.batch_size == {"church": 256}.get(name, 128)
    assert plan.parameters == {"network": 158_355_972, "autoencoder": 83_653_863}
    assert plan.batch["mean"].shape == (plan.batch_size, 32, 32, 4) and set(plan.batch) == {"mean", "std"}
    assert {"ema 0.99993", "ema 0.9999", "ema 0.999"} < set(plan.bytes) and "target" not in plan.bytes
    intervals, stage = plan.work.objective.pair.intervals, updates // 7
    assert [int(intervals(n * stage)) for n in range(7)] == [10, 20, 40, 80, 160, 320, 640]
    assert [int(intervals(n)) for n in (stage - 1, updates - 1)] == [10, 640]


def test_latent_consistency_decays_weights_as_its_authors_do():
    cfg = sections.plain(slct_latent32.get_config())
    assert cfg["optimizer"] == {"name": "radam", "rate": 1e-4, "weight_decay": 1e-4, "accumulate": 1}
    with pytest.raises(ValueError, match="unknown data set 'celebs'; write slct_latent32.py:celeba or :church or :f"):
        slct_latent32.get_config("celebs")


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="unknown preset 'papre'; write CONFIG:paper or CONFIG:diffusers"):
        settings("lcd_sd15", "papre")


@pytest.mark.parametrize(
    "name,unet,text,latent",
    [
        ("sd15", 859_520_964, [123_060_480], (64, 64, 4)),
        ("sd21_base", 865_910_724, [340_387_840], (64, 64, 4)),
        ("sd21_768", 865_910_724, [340_387_840], (96, 96, 4)),
        ("sdxl", 2_567_463_684, [123_060_480, 694_659_840], (128, 128, 4)),
    ],
)
def test_families_are_as_published(name, unet, text, latent):
    spec = families.FAMILIES[name]
    count = lambda part: sum(leaf.size for leaf in jax.tree.leaves(network(spec, part).abstract()))  # noqa: E731
    assert (count("unet"), [count(part) for part in text_networks(spec)]) == (unet, text)
    assert spec.latent_shape == latent


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path):
    teacher = tiny_sd.model_folder(tmp_path / "teacher")
    config = tiny.config(LCD, {"teacher": str(teacher), "w_width": 8}, tmp_path)
    config["data"]["batch_size"] = 12
    with pytest.raises(ValueError, match="batch_size 12 does not divide over 8 devices"):
        planning.plan(config)


def test_what_is_not_there_can_only_be_planned_as_a_family(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    config = tiny.config(LCD, {"teacher": "./nowhere", "w_width": 8}, tmp_path)
    with pytest.raises(FileNotFoundError, match="no model folder './nowhere'"):
        planning.plan(config)


def test_every_tree_has_its_own_rules(tmp_path):
    teacher = tiny_sd.model_folder(tmp_path / "teacher")
    mesh = {"fsdp": 4, "rules": {"default": "fsdp", "ema": "replicate"}}
    config = tiny.config(LCD, {"teacher": str(teacher), "w_width": 8}, tmp_path, mesh=mesh)
    _, rule_set = sections.mesh_of(config)
    assert (rule_set["ema"], rule_set["opt_state"], rule_set["teacher"]) == ("replicate", "fsdp", "fsdp")
    config["mesh"] = {"rules": {"default": "fsdp", "techer": "zero"}}
    with pytest.raises(ValueError, match="config.mesh.rules has no key 'techer'; did you mean 'teacher'"):
        sections.mesh_of(config)


def test_large_tensors_left_whole_are_warned_of_at_the_start(caplog):
    state = State(*[{"a": {"kernel": jax.ShapeDtypeStruct((1025, 1025), "float32")}}] * 5)
    assembly.warn_of_whole((state,), {"params": "fsdp", "ema": "zero"}, make_mesh(data=1, fsdp=8))
    assert "leave 0.01 GiB whole on each of 8 devices" in caplog.text
    assert "params/a/kernel (4 MiB), ema/a/kernel (4 MiB)" in caplog.text and "target" not in caplog.text
