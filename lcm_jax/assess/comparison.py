"""A picture of what distillation bought: the teacher's many and few steps beside the student's few."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lcm_jax import data
from lcm_jax.assess.evaluation_set import shuffled
from lcm_jax.data.example import HELDOUT
from lcm_jax.evaluate import grid
from lcm_jax.pipeline import Pipeline

TEACHER_STEPS, STUDENT_STEPS = (50, 2, 4), (1, 2, 4, 8)
FREE = ("a blue cat", "a red apple with a face", "a green heart", "a yellow car", "a happy robot")
HELD = 7  # held-out captions before them
TILE = 96  # pixels a picture should at least have along a side


def compare(
    student: Pipeline,
    teacher: Pipeline,
    prompts: Sequence[str],
    out: str | Path,
    w: float | None = None,
    teacher_w: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Writes a grid, a prompt a row: the teacher's DDIM at 50, 2, 4 steps, the student at 1, 2, 4, 8.

    All pictures of a row start from one key. `w` is the student's, `teacher_w` the teacher's (by default the
    same). Raises ValueError for no prompt or models whose roles are wrong.
    """
    if (student.spec.role, teacher.spec.role) != ("consistency", "diffusion"):
        raise ValueError(f"a {student.spec.role} model beside a {teacher.spec.role} one: give a student and a teacher")
    w = student.default_w if w is None else w
    teacher_w = w if teacher_w is None else teacher_w
    columns = [(teacher, "teacher", n, teacher_w) for n in TEACHER_STEPS]
    columns += [(student, "student", n, w) for n in STUDENT_STEPS]
    drawn = [pipe(prompts, steps=n, w=own_w, seed=seed, progress=progress) for pipe, _, n, own_w in columns]
    images = np.stack(drawn, axis=1).reshape(-1, *drawn[0].shape[1:])
    labels = [f"{who}\n{n} step{'s' if n > 1 else ''}" for _, who, n, _ in columns]
    zoom = max(1, TILE // student.spec.image_size)
    sheet = grid.grid(images, len(columns), list(prompts), labels, zoom)
    about = {
        "prompts": list(prompts),
        "columns": [{"who": who, "steps": n, "w": w, "guidance": w + 1} for _, who, n, w in columns],
        "evaluations": [pipe.nfe(pipe.setting(steps=n, w=own_w)) for pipe, _, n, own_w in columns],
        "seed": seed,
        "student": student.origin,
        "teacher": teacher.origin,
    }
    return grid.save(out, sheet, about)


def default_prompts(reader: str) -> list[str]:
    """Some held-out captions of a reader, each of another group, and some free text."""
    rows = [e for e in data.reader(reader) if e.split == HELDOUT]
    captions: dict[str, str] = {}
    for i in shuffled([e.group for e in rows]):
        captions.setdefault(rows[i].group, rows[i].caption)
    return [*list(captions.values())[:HELD], *FREE]
