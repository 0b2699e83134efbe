"""Whole training steps of latent consistency distillation against Algorithm 1 written in PyTorch."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch  # noqa: E402
from algorithm1 import Distillation, Told  # noqa: E402
from both_sides import (  # noqa: E402  # noqa: E402
    POOLED,
    QUICK,
    W_WIDTH,
    arrays,
    as_student,
    named,
    nchw,
    nhwc,
    ours,
    relative,
    relative_over,
    theirs,
)

from lcm_jax.diffusion.grid import PairSampler  # noqa: E402
from lcm_jax.diffusion.guidance import guidance_embedding  # noqa: E402
from lcm_jax.diffusion.path import vp_path  # noqa: E402
from lcm_jax.objectives import lcd  # noqa: E402
from lcm_jax.train.optimizer import optimizer  # noqa: E402
from lcm_jax.train.step import init_state, train_step  # noqa: E402

B, TOKENS, SCALE = 4, 5, 0.18215
T, S = np.array([999, 519, 39, 19]), np.array([979, 499, 19, 0])
RATE, MU, CLIP, DELTA = 1e-3, 0.95, 1.0, 1e-3
LIMITS = {  # relative to PyTorch's: of the loss, each tensor's gradient, all that parameters moved, the target
    "float64": {"loss": 1e-6, "gradient": 1e-4, "update": 1e-3, "target": 1e-6},
    # Wider by rounding alone; the first step of AdamW is nearly one of signs, so gradients near zero may turn it.
    "float32": {"loss": 1e-5, "gradient": 1e-3, "update": 1e-2, "target": 1e-5},
}
ADAMW = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}


class Given(PairSampler):
    """The times of this file, whatever the key."""

    def __call__(self, key, b, step):
        return jnp.asarray(T), jnp.asarray(S)


def keep_gradient():
    """Leaves gradients as they are and in its state."""
    zeros = lambda params: jax.tree.map(jnp.zeros_like, params)
    return optax.GradientTransformation(zeros, lambda gradient, state, params=None: (gradient, gradient))


TX = optax.chain(keep_gradient(), optimizer("adamw", RATE, clip=CLIP, **ADAMW))


def data(family, seed=0):
    """Latents before scaling, noise and what is told, as numpy."""
    rng = np.random.default_rng(seed)
    batch = {"mean": rng.standard_normal((B, 8, 8, 4)) / SCALE, "context": rng.standard_normal((B, TOKENS, 24))}
    uncond = {"context": rng.standard_normal((TOKENS, 24))}
    if family == "sdxl":
        batch |= {"pooled": rng.standard_normal((B, POOLED)), "time_ids": rng.integers(0, 100, (B, 6)).astype(float)}
        uncond |= {"pooled": rng.standard_normal(POOLED)}
    return batch, uncond, rng.standard_normal((B, 8, 8, 4))


def networks(family, dtype, start):
    """(teacher, student, target): three different ones, or as a distillation starts, all with the teacher's weights."""
    teacher = theirs(family, dtype, 1)
    if start:
        student = as_student(teacher)
        return teacher, student, copy.deepcopy(student)
    return teacher, theirs(family, dtype, 2, W_WIDTH), theirs(family, dtype, 3, W_WIDTH)


def ours_steps(modules, kind, solver, distance, dtype, family, steps):
    """What lcm_jax makes of it: for every step loss, gradient, drawn w, and parameters and target after it."""
    (teacher_apply, teacher), (apply, student), (_, target) = (ours(module) for module in modules)
    batch, uncond, noise = jax.tree.map(lambda x: jnp.asarray(x, dtype), data(family))
    batch["std"] = jnp.zeros_like(batch["mean"])
    objective = lcd.build(
        vp_path(), kind, solver_name=solver, distance_name=distance, delta=DELTA, w_width=W_WIDTH, mu=MU
    )
    objective = dataclasses.replace(objective, pair=Given(), couple=lambda z0, drawn: (noise, {}))
    state = dataclasses.replace(init_state(student, TX, objective), target=target)
    frozen = {"teacher": teacher, "batch": {"scale": jnp.asarray(SCALE, dtype), "uncond": uncond}}
    step = jax.jit(train_step(objective, apply, teacher_apply, TX), compiler_options=QUICK)
    key, done = jax.random.key(3), []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch, key)
        np.testing.assert_array_equal(metrics["sample/t"], T)
        done.append(
            {
                "loss": float(metrics["loss/mean"]),
                "w": np.asarray(metrics["sample/w"]),
                "w_features": np.asarray(guidance_embedding(metrics["sample/w"], W_WIDTH)),
                "gradient": named(state.opt_state[0]),
                "student": named(state.params),
                "target": named(state.target),
            }
        )
    return done


def their_steps(modules, kind, solver, distance, dtype, family, drawn):
    """What the paper's algorithm makes of it, for the same w and their embedding (whose float32 differs by library)."""
    teacher, student, target = modules
    run = Distillation(teacher, student, target, kind, solver, distance, DELTA)
    batch, uncond, noise = data(family)
    tensor = lambda x: torch.tensor(x, dtype=teacher.dtype)
    many = lambda x: tensor(np.broadcast_to(x, (B, *x.shape)).copy())
    told, empty = Told(tensor(batch["context"])), Told(many(uncond["context"]))
    if family == "sdxl":
        ids = tensor(batch["time_ids"])
        told.added = {"text_embeds": tensor(batch["pooled"]), "time_ids": ids}
        empty.added = {"text_embeds": many(uncond["pooled"]), "time_ids": ids}
    adamw = torch.optim.AdamW(
        student.parameters(), RATE, (ADAMW["b1"], ADAMW["b2"]), ADAMW["eps"], ADAMW["weight_decay"]
    )
    done = []
    z0, times = nchw(batch["mean"], dtype) * SCALE, (torch.tensor(T), torch.tensor(S))
    for w, features in drawn:
        adamw.zero_grad()
        loss = run.loss(z0, nchw(noise, dtype), *times, tensor(w), tensor(features), told, empty)
        loss.backward()
        gradient = arrays({name: p.grad for name, p in student.named_parameters()})
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        adamw.step()
        run.average(MU)
        kept = {"student": arrays(student.state_dict()), "target": arrays(target.state_dict())}
        done.append({"loss": float(loss), "gradient": gradient, **kept})
    return done


CASES = [  # kind, solver, distance, family, whether all start as the teacher, precision
    ("eps", "ddim", "l2", "sd", False, "float64"),
    ("v", "ddim", "huber", "sd", False, "float64"),
    ("eps", "dpm_solver_pp", "huber", "sd", False, "float64"),
    ("eps", "ddim", "huber", "sdxl", True, "float64"),
    ("v", "ddim", "l2", "sd", False, "float32"),
]


@pytest.mark.parametrize("kind, solver, distance, family, start, dtype", CASES)
def test_steps_are_those_of_algorithm_1(kind, solver, distance, family, start, dtype, agree):
    modules = networks(family, dtype, start)
    before = arrays(modules[1].state_dict())
    case = kind, solver, distance, dtype, family
    with jax.enable_x64(dtype == "float64"):
        mine = ours_steps(modules, *case, steps=3)
    paper = their_steps(modules, *case, [(step["w"], step["w_features"]) for step in mine])

    first, theirs_first = mine[0], paper[0]
    wide = LIMITS[dtype]
    agree(f"LCD step, loss, {dtype}", abs(first["loss"] / theirs_first["loss"] - 1), wide["loss"])
    apart = {name: relative(first["gradient"][name], g) for name, g in theirs_first["gradient"].items()}
    assert max(apart.values()) < wide["gradient"], max(apart, key=apart.get)
    agree(f"LCD step, gradient of every tensor, {dtype}", max(apart.values()), wide["gradient"])
    moved = lambda step: {name: value - before[name] for name, value in step["student"].items()}
    for a, b in zip(mine, paper, strict=True):  # on the way the averages of AdamW and of the target fill up
        agree(f"LCD step, update, {dtype}", relative_over(moved(a), moved(b)), wide["update"])
        agree(f"LCD step, target, {dtype}", relative_over(a["target"], b["target"]), wide["target"])


def test_a_student_starts_as_its_teacher_on_both_sides():
    """A map of zeros for w: whatever w is, the student says what the teacher says."""
    teacher = theirs("sd", "float64", 1)
    student, rng = as_student(teacher), np.random.default_rng(6)
    z, context = rng.standard_normal((B, 8, 8, 4)), rng.standard_normal((B, TOKENS, 24))
    features = rng.uniform(-1, 1, (B, W_WIDTH))
    tensor = lambda x: torch.tensor(x, dtype=torch.float64)
    with torch.no_grad():
        said = [
            nhwc(net(nchw(z, "float64"), torch.tensor(T), tensor(context), **more).sample)
            for net, more in ((teacher, {}), (student, {"timestep_cond": tensor(features)}))
        ]
    np.testing.assert_array_equal(*said)
    with jax.enable_x64(True):
        (teacher_apply, teacher), (apply, student) = ours(teacher), ours(student)
        z, t, context, features = (jnp.asarray(x) for x in (z, T, context, features))
        ask = lambda net, *given: jax.jit(net, compiler_options=QUICK)(*given)
        np.testing.assert_allclose(ask(teacher_apply, teacher, z, t, context), said[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ask(apply, student, z, t, context, features), said[1], rtol=1e-6, atol=1e-6)
