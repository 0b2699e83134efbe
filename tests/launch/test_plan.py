"""Plans on topologies: against the run itself, against the compilers that are here, and by hand."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import tiny

from lcm_jax import build, plan_composed, plan_memory, plan_report, planning, sections
from lcm_jax.models.unet import UNetConfig
from lcm_jax.models.unet_blocks import blocks
from lcm_jax.parallel import rules
from lcm_jax.parallel.chips import CHIPS, Topology, compiles_for_tpu, topology
from lcm_jax.parallel.collectives import Traffic
from lcm_jax.parallel.mesh import make_mesh

ROOT = Path(__file__).parents[2]
LCD = {"name": "lcd", "w_min": 0.0, "w_max": 4.0, "w_width": tiny.W_WIDTH}
SHARDED = {"data": 4, "fsdp": 2, "rules": "fsdp"}


@pytest.fixture
def config(data, first, monkeypatch):
    """A run that has all its data, on as many devices as a test says; its tensors count as large enough to split."""
    monkeypatch.setattr(sections, "make_mesh", make_mesh)
    monkeypatch.setattr(rules, "SMALL", 2**8)
    model = {"start": str(first.teacher)}
    return lambda o={"name": "diffusion"}, m=model, **changes: tiny.config(o, m, data.latents, **changes)  # noqa: B006


def test_the_memory_foretold_is_what_the_compiler_says_of_the_run(config, tmp_path):
    cfg = config(mesh=SHARDED)
    found = plan_report.forecast(cfg, topology("cpu:8"), cache=tmp_path)
    run = build.run(cfg)
    state = run.init()
    program = run.step.lower(state, run.frozen, run.place(next(run.loader)), run.key).compile()
    stats, step = program.memory_analysis(), found.memory.programs["step"]
    assert step.memory["arguments"] == stats.argument_size_in_bytes
    assert step.memory["outputs"] == stats.output_size_in_bytes
    assert step.memory["temporaries"] == stats.temp_size_in_bytes
    assert found.memory.method == "whole" and found.memory.peak == step.total > found.plan.held
    held = sum(shard.data.nbytes for x in jax.tree.leaves(state) for shard in x.addressable_shards[:1])
    assert sum(found.plan.bytes.get(name, 0) for name in planning.STATE) == held - 4  # apart from the step's number
    assert {"all-gather", "all-reduce"} <= set(found.traffic) and found.measured
    estimate = plan_memory.estimated(found.plan).peak
    assert 0.5 < estimate / found.memory.peak < 2
    again = plan_report.forecast(cfg, topology("cpu:8"), cache=tmp_path)
    assert again.memory.programs["step"] == dataclasses.replace(step, cached=True)
    assert again.memory.peak == found.memory.peak and "kept from before" in "\n".join(again.lines())


def test_the_devices_that_are_here_have_a_topology(monkeypatch):
    assert plan_report.here() == topology(f"cpu:{jax.device_count()}")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for kind, name in (("NVIDIA H100 80GB HBM3", "gpu:8xH100"), ("NVIDIA L4", None)):
        monkeypatch.setattr(jax, "devices", lambda kind=kind: [SimpleNamespace(device_kind=kind)] * 8)
        if name:
            assert plan_report.here() == topology(name)
    with pytest.raises(ValueError, match="the topology of 8 NVIDIA L4 is not known here: name it to launch.plan"):
        plan_report.here()


def test_blocks_make_up_a_u_net():
    cfg = UNetConfig(channels=(32, 64, 96), attention=(True, True, False), depth=(1, 2, 1), heads=(2, 2, 2), layers=2)
    chain = blocks(cfg, (8, 12))
    assert [b.kind for b in chain] == [
        *("layer", "layer", "down"), *("layer", "layer", "down"), *("layer", "layer"), "mid",
        *("layer", "layer", "layer", "up"), *("layer", "layer", "layer", "up"), *("layer", "layer", "layer"),
    ]  # fmt: skip
    for before, block in zip(chain, chain[1:], strict=False):
        assert block.sides == before.out_sides and block.inputs == before.outputs + block.skipped
    made = lambda i: (chain[i].outputs if i >= 0 else 32, chain[i].out_sides if i >= 0 else (8, 12))
    joined = [b for b in chain if b.source is not None]
    assert [b.source for b in joined] == [7, 6, 5, 4, 3, 2, 1, 0, -1]  # the last made is the first read
    assert all(made(b.source) == (b.skipped, b.sides) for b in joined)
    assert [b.depth for b in chain if b.kind == "mid"] == [1] and {b.depth for b in chain if b.level == 2} == {0}


def test_what_is_alive_at_a_block_is_what_is_kept_and_what_waits():
    cfg = UNetConfig(channels=(8, 16), attention=(False, False), depth=(1, 1), heads=(1, 1), layers=1, norm_groups=8)
    chain = blocks(cfg, (4, 4))
    program = lambda size: plan_memory.Compiled(1.0, {"temporaries": size, "code": 1}, None, 1.0, 1.0, {})
    found = {name: program(7) for block in chain for name in (block.name, f"{block.name}, backward")}
    size = lambda side, channels: 2 * side**2 * channels * 4  # two samples of float32
    maps = ((4, 8), (4, 8), (2, 8), (2, 16), (2, 32), (2, 24), (2, 16), (4, 24), (4, 16))
    inputs = [size(*of) for of in maps]
    of_map = lambda sides, channels: size(sides[0], channels)
    alive = lambda backward: plan_composed.alive(chain, found, of_map, backward)
    forward = alive(False)
    assert len(forward) == len(inputs) == 9
    assert forward[0] == size(4, 8) + size(4, 8) + 7 + 9  # the code of all blocks
    # Its input and output, the first convolution's and the first block's, which go over skip connections.
    assert forward[2] == size(2, 8) + size(2, 16) + 2 * size(4, 8) + 7 + 9
    both = alive(True)
    assert both[8] == sum(inputs) + size(4, 8) + 7 + 18  # all inputs are kept
    assert both[9 + 8] == sum(inputs) + size(4, 8) + size(4, 16) + 7 + 18  # and gradients come and go
    # Of the last block's input a half waits for the first convolution, and of the one before for the first block.
    assert both[9 + 6] == sum(inputs[:7]) + 2 * size(4, 8) + size(4, 16) + size(2, 16) + 7 + 18
    assert both[9] == inputs[0] + size(4, 8) + size(4, 8) + size(4, 8) + 7 + 18


def test_parts_are_compiled_apart_whole_or_composed_of_blocks(config, first, tmp_path):
    model = {"teacher": str(first.teacher), "w_width": tiny.W_WIDTH, "remat": "block"}
    cfg = config(LCD, model, mesh={"data": 1, "fsdp": 8, "rules": "fsdp"})
    cfg["data"]["batch_size"] = 2**12  # activations, not weights, are what takes memory
    found = {m: plan_report.forecast(cfg, topology("cpu:8"), m, tmp_path) for m in ("parts", "composed")}
    apart, whole = found["composed"].memory, found["parts"].memory
    assert set(whole.extra) == {"teacher forward", "target forward", "student gradient", "optimiser update"}
    assert whole.runs == dict.fromkeys(whole.extra, 1)
    plan = found["parts"].plan
    assert whole.peak == plan.held + max(whole.extra.values())
    assert whole.extra["student gradient"] > whole.extra["optimiser update"] >= plan.bytes["params"]  # gradients
    assert "part by part" in "\n".join(found["parts"].lines())
    assert apart.method == "composed" and set(apart.extra) == set(whole.extra)
    assert apart.extra["optimiser update"] == whole.extra["optimiser update"]
    for name in ("teacher forward", "target forward", "student gradient"):
        # A CPU's compiler computes side by side what it can, and keeps what it was told to recompute.
        assert 0.25 < apart.extra[name] / whole.extra[name] < 1.1, name
    counted = lambda memory: sum(memory.runs[name] * p.flops for name, p in memory.programs.items())
    assert counted(apart) == pytest.approx(counted(whole), rel=0.1)
    assert set(apart.traffic) == set(whole.traffic)
    for kind, traffic in whole.traffic.items():
        assert apart.traffic[kind].sent == pytest.approx(traffic.sent, rel=0.05), kind
    assert "composed of one block of each kind" in "\n".join(found["composed"].lines())
    assert found["parts"].needed == whole.peak
    assert found["composed"].needed == math.ceil(apart.peak / plan_report.COMPOSED_SHARE)


def test_a_deep_transformer_is_taken_from_two_shallow_ones():
    program = lambda *n: plan_memory.Compiled(
        1.0, {"temporaries": n[0]}, None, float(n[1]), 1.0, {"all-gather": Traffic(n[2], n[2], n[2])}
    )
    deep = plan_composed._extended(program(10, 20, 3), program(14, 30, 5), 10)
    assert deep.memory == {"temporaries": 46} and deep.flops == 110 and deep.traffic["all-gather"].count == 21
    shared = plan_composed._extended(program(10, 20, 3), program(9, 30, 3), 10)  # memory the pieces take in turn
    assert shared.memory == {"temporaries": 10}


@pytest.mark.parametrize("changes, words", [({"remat": "none"}, "set that, or take parts")])
def test_what_cannot_be_composed_says_so(changes, words, config, first):
    model = {"teacher": str(first.teacher), "w_width": tiny.W_WIDTH, **changes}
    with pytest.raises(ValueError, match=words):
        plan_report.forecast(config(LCD, model), topology("cpu:1"), "composed")


def test_operations_of_accumulated_passes_are_all_counted(config):
    one = planning.plan(config(), jax.devices()[:1])
    four = planning.plan(config(optimizer={"name": "adamw", "rate": 1e-3, "accumulate": 4}), jax.devices()[:1])
    assert four.flops == pytest.approx(one.flops, rel=1e-3)
    # ... and they need less memory.
    assert plan_memory.estimated(four).peak < plan_memory.estimated(one).peak


def test_what_does_not_fit_says_what_helps(config):
    cfg = config()
    plan = planning.plan(cfg, jax.devices())
    peak = plan_memory.estimated(plan).peak
    small = dataclasses.replace(CHIPS["H100"], memory=int(0.7 * peak))
    found = plan_report.forecast(cfg, Topology("gpu:8xsmall", small, (8,)))
    assert found.fits is False and found.memory.method == "none"
    zero = found.others["config.mesh.rules=zero"]
    assert zero == (plan.held_under(rules.by_tree("zero", {})), zero[1]) and zero[0] < plan.held and zero[1] < peak
    assert found.others["all of these"][1] < zero[1]
    assert list(found.others)[1] == "config.mesh.rules=fsdp, data=1, fsdp=-1"
    text = "\n".join(found.lines())
    assert "does not fit: needs" in text and "with config.mesh.rules=zero" in text and "estimated" in text
    roomy = plan_report.forecast(cfg, topology("gpu:8xH100"))
    assert roomy.fits and roomy.verdict()[0].startswith("fits: ") and roomy.others == {}
    assert roomy.times.step == max(dataclasses.asdict(roomy.times).values())


def test_a_plan_is_kept_with_versions_and_date(config):
    found = plan_report.forecast(config(mesh=SHARDED), topology("gpu:8xA100"))
    record = json.loads(json.dumps(found.record()))
    assert record["made_on"]["versions"]["jax"] == jax.__version__ and record["made_on"]["date"].startswith("20")
    assert record["chip"]["source"] and record["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    assert record["peak"] == found.memory.peak > record["held"] > 0
    # Weights in two halves: each is gathered on the way forward and back, gradients are scattered.
    halves = 4 * sum(leaf.size for leaf in jax.tree.leaves(found.plan.state.params) if len(leaf.sharding.spec))
    assert found.traffic["reduce-scatter"].bytes == halves and found.traffic["reduce-scatter"].sent == halves // 2
    assert found.traffic["all-gather"].bytes == 2 * halves


def test_the_roofline_is_the_slowest_of_three():
    times = plan_report.roofline(CHIPS["v5e"], 197e12, 819e9 / 2, 200e9 / 4)
    assert (times.compute, times.memory, times.links) == (1.0, 0.5, 0.25)
    assert (times.step, times.bound) == (1.0, "compute")
    times = plan_report.roofline(CHIPS["H100"], 989e12, 3350e9 * 3, 450e9 * 2)
    assert (times.step, times.bound) == (pytest.approx(3.0), "memory")
    assert plan_report.roofline(CHIPS["cpu"], 1e12, 1e9, 0.0).step is None


def test_the_traffic_of_parts_counts_every_run():
    gathers = {"all-gather": Traffic(1, 2, 3)}
    part = plan_memory.Compiled(1.0, {"temporaries": 5, "aliased": 0}, None, 1.0, 10.0, gathers)
    memory = plan_memory.Memory("parts", 5, None, {"a": part, "b": part}, {"a": 2, "b": 1})
    assert memory.traffic == {"all-gather": Traffic(3, 6, 9)} and memory.accessed == 30.0


@pytest.mark.skipif(not compiles_for_tpu(), reason="libtpu, the compiler of TPUs, is not installed")
def test_a_step_is_compiled_for_tpus_where_there_are_none(config, monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    cfg = config(mesh={"data": 1, "fsdp": -1, "rules": "fsdp"})
    found = plan_report.forecast(cfg, topology("v5e:2x2"), "whole")
    assert found.plan.mesh.devices.flat[0].platform == "tpu" and found.on.count == 4
    assert found.memory.peak > found.plan.held and found.fits and found.measured
    assert {"all-gather"} <= set(found.traffic) and found.times.step > 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--topology=v7:2x2",), "--topology 'v7:2x2' is not known; write one like v5e:16x16"),
        (("--topology=gpu:8xH100", "--compile=whole"), "--compile whole: no compiler for gpu:8xH100 is here"),
        (("--topology=gpu:3xH100",), "batch_size 32 does not divide over 3 devices"),
    ],
)
def test_wrong_flags_of_a_plan_are_one_line(flags, message):
    done = command("--config=configs/emoji_lcd.py", *flags)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_plans_a_config_without_its_data(tmp_path):
    kept = tmp_path / "plan.json"
    done = command("--config=configs/emoji_edm.py", "--topology=gpu:8xH100", f"--json={kept}", "--tensors")
    assert done.returncode == 0, done.stderr
    assert "fits: " in done.stdout and "GFLOP a sample" in done.stdout
    assert re.search(r"\| conv_in/bias +\| \(64,\) +\| float32 \| 64 ", done.stdout)
    assert "Total: 4,599,180 " in done.stdout
    assert json.loads(kept.read_text())["topology"]["name"] == "gpu:8xH100"


def command(*flags):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    call = [sys.executable, "-m", "launch.plan", *flags]
    return subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("has, said", [(None, False), ("0.0.42", False), ("0.0.42.1", False), ("0.0.420", True)])
def test_another_libtpu_than_jax_asks_for_is_told(monkeypatch, has, said):
    monkeypatch.setattr(plan_report, "version", lambda name: has)
    monkeypatch.setattr(plan_report.metadata, "requires", lambda name: ["numpy>=2", 'libtpu==0.0.42.*; extra == "tpu"'])
    told = plan_report.other_libtpu()
    assert (told is not None) == said
    assert not said or ("libtpu 0.0.420 is here" in told and "pip install 'libtpu==0.0.42.*'" in told)
