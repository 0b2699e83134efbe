"""Which pictures an evaluation asks for: models, samplers, steps, guidance, seeds and splits."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from lcm_jax.assess.evaluation_set import SPLITS
from lcm_jax.pipeline import Pipeline


@dataclass(frozen=True)
class Setting:
    """One way to draw the pictures of a split; w is LCM's (others' guidance scale is w + 1)."""

    who: str  # "student" or "teacher"
    sampler: str
    steps: int
    w: float
    split: str


@dataclass(frozen=True)
class Plan:
    """What to draw and to score; `w[0]` is the teacher's too unless `teacher_w` says otherwise."""

    steps: tuple[int, ...] = (1, 2, 4, 8)
    w: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0, 1, 2)
    samplers: tuple[str, ...] = ("ddim", "ddim_leading", "dpm_solver", "dpm_solver_pp", "dpmpp_2m")
    teacher_steps: tuple[int, ...] = (2, 4, 8, 50)
    teacher_w: tuple[float, ...] = ()
    splits: tuple[str, ...] = SPLITS
    limit: int | None = None  # images a split
    resamples: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "w", "seeds", "samplers", "teacher_steps", "splits"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} is {list(values)}: give at least one value and none twice")
        if self.resamples < 2:
            raise ValueError(f"resamples is {self.resamples}: an interval needs at least 2, and 200 to be steady")


# Two minutes on two cores: the promised ratios on held-out captions alone, with one seed.
QUICK = Plan(
    steps=(1, 2, 4), w=(1.0,), seeds=(0,), samplers=("ddim", "ddim_leading"), teacher_steps=(2, 4, 50),
    splits=SPLITS[:1], limit=160,
)  # fmt: skip


def quick(model: Pipeline) -> Plan:
    """QUICK, of a consistency model that was not trained at its w at the model's usual one."""
    g = model.spec.guidance
    trained = model.spec.role == "diffusion" or (g is not None and g.w_min <= QUICK.w[0] <= g.w_max)
    return QUICK if trained else dataclasses.replace(QUICK, w=(model.default_w,))


def settings(plan: Plan, student: Pipeline | None, teacher: Pipeline | None) -> list[Setting]:
    """Every setting in the order of its worth, the cheap ones of a split first.

    Steps beyond the student's largest are the teacher's full quality and are drawn with its first sampler
    alone; so are the training captions. Raises ValueError for samplers and steps that the models cannot do.
    """
    chosen = []
    teacher_w = plan.teacher_w or plan.w[:1]
    for split in plan.splits:
        if student is not None:
            chosen += [Setting("student", "lcm", steps, w, split) for w in plan.w for steps in plan.steps]
        for sampler in (plan.samplers if split == plan.splits[0] else plan.samplers[:1]) if teacher else ():
            few = [n for n in plan.teacher_steps if n <= max(plan.steps) or sampler == plan.samplers[0]]
            chosen += [Setting("teacher", sampler, steps, w, split) for w in teacher_w for steps in few]
    for setting in chosen:
        check(setting, student if setting.who == "student" else teacher)
    return chosen


def check(setting: Setting, pipe: Pipeline) -> None:
    """Raises ValueError if the model cannot be sampled so; warns when w lies outside its range."""
    pipe.check_guidance(setting.w)
    pipe.setting(setting.sampler, setting.steps)


def roles(model: Pipeline, teacher: Pipeline | None) -> tuple[Pipeline | None, Pipeline | None]:
    """(student, teacher) of a model and the teacher beside it; a diffusion model alone is a teacher.

    Raises ValueError if the teacher is none or both are teachers.
    """
    if teacher is not None and teacher.spec.role != "diffusion":
        raise ValueError(f"--teacher is a {teacher.spec.role} model; give the diffusion model that was distilled")
    if model.spec.role == "consistency":
        return model, teacher
    if teacher is not None:
        raise ValueError("the model and --teacher are both diffusion models: leave --teacher out, or give a student")
    return None, model


def with_flags(plan: Plan, **given: Sequence | int | None) -> Plan:
    """The plan with every setting replaced that is not None."""
    return dataclasses.replace(plan, **{k: v for k, v in given.items() if v is not None})
