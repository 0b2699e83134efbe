"""A run as one page to look at: course, curves, samples, scores, settings and machine."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lcm_jax import planning
from lcm_jax.assess import evaluation
from lcm_jax.assess.run_record import RunRecord, run_record
from lcm_jax.evaluate import page
from lcm_jax.evaluate.curves import curves
from lcm_jax.parallel.chips import of_kind

FILE = "report.html"
EARLIER = 6  # grids that are shown beside the newest


def report(
    where: str | Path,
    evaluations: Sequence[str | Path] = (),
    out: str | Path | None = None,
    operations: bool = False,
) -> Path:
    """Writes the page of a run, with the scores in the folders `evaluations`; the run's report.html by default.

    With `operations` those of a step are counted, which traces it, and set against the time it took and, where the
    device's rate is published, against that (MFU). Raises FileNotFoundError where there is no run, or an evaluation
    without a table.
    """
    record = run_record(where)
    counted = arithmetic(record, planning.operations(record.config)) if operations else {}
    scores = "".join(map(scored, map(Path, evaluations)))
    planned = record.config["steps"]
    below = f"{record.config['objective']['name']}, step {record.step:,} of {planned:,}"
    if record.rows:
        below += f", written {when(record.rows[-1]['time'])}"
    starts = [life["step"] for life in record.lives[1:]]
    drawn = curves(record.rows, starts) if record.rows else "<p>Nothing was written yet.</p>"
    sections = {
        "Course": page.facts(course(record) | counted),
        "Samples": samples(record),
        "Scores": scores,
        "Curves": drawn,
        "Lives": lives_table(record),
        "Settings": settings(record.config),
    }
    path = Path(out) if out is not None else Path(where) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(page.page(record.name, below, sections), encoding="utf-8")
    scratch.replace(path)
    return path


def course(record: RunRecord) -> dict[str, str]:
    """How far and how fast; what a run does not know of itself is left out."""
    last = record.rows[-1] if record.rows else {}
    found = {"steps": f"{record.step:,} of {record.config['steps']:,}"}
    if last.get("loss/mean") is not None:
        found["loss, mean"] = f"{last['loss/mean']:.4g}"
    if (rate := record.median("images/s")) is not None:
        found["images a second, median"] = f"{rate:.4g}"
        found["seconds a step"] = f"{record.config['data']['batch_size'] / rate:.3g}"
    if (wait := record.median("data/wait_share")) is not None:
        found["waiting for data"] = f"{100 * wait:.2f} %"
    if (wait := record.median("device/wait_share")) is not None:
        found["waiting for the device"] = f"{100 * wait:.1f} %"
    if (share := record.median("host/share")) is not None:
        found["the host at work"] = f"{100 * share:.1f} %"
    if (share := record.median("mfu")) is not None:
        found["MFU, median"] = f"{100 * share:.1f} %"
    if (peak := record.median("device/peak_gib")) is not None:
        found["memory of a device, peak"] = f"{peak:.2f} GiB"
    if record.wall is not None:
        found |= {"wall time": spent(record.wall), "of steps that count": spent(record.counted)}
        found["goodput"] = f"{100 * record.goodput:.1f} %"
        found["first steps, compilation"] = spent(record.total("first_step/seconds"))
    for name, what in (("save", "waiting for checkpoints"), ("hooks", "drawing samples")):
        if seconds := record.total(f"{name}/seconds"):
            found[what] = spent(seconds)
    if record.lives:
        found["lives"] = str(len(record.lives))
    return found


def arithmetic(record: RunRecord, flops: float) -> dict[str, str]:
    """Operations of a step, as many as were made a second and, of a known chip, their share of its rate (bfloat16)."""
    found = {"operations a step": f"{flops / 1e12:.4g} TFLOP"}
    rate = record.median("images/s")
    if rate is None:
        return found
    achieved = flops * rate / record.config["data"]["batch_size"]
    found["operations a second"] = f"{achieved / 1e12:.3g} TFLOP/s"
    device = record.lives[-1].get("machine", {}).get("device") if record.lives else None
    chip = of_kind(device["kind"]) if device else None
    if chip is not None:
        found[f"MFU, {device['count']} x {chip.name}"] = f"{100 * achieved / (chip.flops * device['count']):.1f} %"
    return found


def samples(record: RunRecord) -> str:
    """The newest grid, and some earlier ones."""
    if not record.samples:
        return ""
    *before, newest = record.samples
    spread = before[:: -(-len(before) // EARLIER)] if before else []
    earlier = "".join(page.picture(path, path.stem) for path in spread)
    return page.picture(newest, newest.stem) + (page.folded(f"{len(spread)} earlier", earlier) if earlier else "")


def scored(folder: Path) -> str:
    """Figure and tables that launch.evaluate left in a folder."""
    table = folder / evaluation.TABLE
    if not table.exists():
        raise FileNotFoundError(f"{folder} holds no {evaluation.TABLE}: give an --out folder of launch.evaluate")
    drawn = folder / evaluation.FIGURE
    shown = page.picture(drawn, f"{folder.name}: scores") if drawn.exists() else ""
    return shown + page.markdown_tables(table.read_text(encoding="utf-8"))


def lives_table(record: RunRecord) -> str:
    """When, from which step and where the run was started."""
    if not record.lives:
        return ""
    rows = [[when(life["time"]), f"{life['step']:,}", place(life.get("machine", {}))] for life in record.lives]
    versions = record.lives[-1].get("machine", {}).get("versions", {})
    pinned = [[name, str(version)] for name, version in versions.items()]
    return page.table(["started", "from step", "on"], rows) + page.folded(
        "versions", page.table(["package", "version"], pinned)
    )


def place(machine: dict[str, Any]) -> str:
    """A machine in a few words."""
    device = machine.get("device")
    if not device:
        return ""
    return f"{device['count']} x {device['kind']}, {machine['cores']} cores, Python {machine['python']}"


def settings(config: dict[str, Any]) -> str:
    """The config, a row a key."""
    rows = []
    for section, value in config.items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        rows += [[".".join(filter(None, (section, key))), json.dumps(entry)] for key, entry in entries]
    return page.table(["config", "value"], rows)


def when(time: float) -> str:
    """A time of day, UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def spent(seconds: float) -> str:
    """A duration, as 1:02:03."""
    return str(timedelta(seconds=round(seconds)))
