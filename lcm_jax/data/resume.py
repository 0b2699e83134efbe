"""How far an encoding came: the shards that are finished, and whether the folder was made the same way."""

import hashlib
import json
from pathlib import Path

from lcm_jax.data import manifest, shards

PROGRESS = "encoding.json"  # the plan and the finished shards while an encoding is under way


def fingerprint(plan: dict) -> dict:
    """Hashes of the plan's parts: small enough for the manifest, enough to tell what differs."""
    return {
        k: hashlib.sha256(json.dumps(v, sort_keys=True).encode()).hexdigest()[:16] for k, v in plan.items()
    }


def save(out: Path, plan: dict, finished: dict) -> None:
    """Note the finished shards (file -> bytes and sha256) of `plan`, in one move."""
    text = json.dumps({"plan": fingerprint(plan), "finished": finished}, indent=1)
    manifest.write_text(out / PROGRESS, text + "\n")


def finished_shards(out: Path, plan: dict) -> dict[str, dict]:
    """Finished shards of an earlier run that are still whole: file -> bytes and sha256.

    Raises ValueError, naming what differs, when the folder was made by another plan.
    """
    if (out / manifest.FILE).exists():
        earlier = manifest.read(out)
        made = earlier.plan
        finished = {s["file"]: {k: s[k] for k in ("bytes", "sha256")} for s in earlier.shards}
    elif (out / PROGRESS).exists():
        content = json.loads((out / PROGRESS).read_text(encoding="utf-8"))
        made, finished = content["plan"], content["finished"]
    else:
        return {}
    wanted = fingerprint(plan)
    different = [name for name in (wanted | made) if made.get(name) != wanted.get(name)]
    if different:
        differs = ", ".join(different)
        raise ValueError(
            f"{out} was made with other {differs}; choose another folder or encode with overwrite"
        )
    whole = {}
    for file, known in finished.items():
        path = out / file
        if path.exists() and path.stat().st_size == known["bytes"] and shards.sha256(path) == known["sha256"]:
            whole[file] = known
    return whole


def clear(out: Path) -> None:
    """Remove every file of a latent data set from `out`, and nothing else."""
    for pattern in ("*.array_record", "*.partial", manifest.UNCONDITIONAL.format("*")):
        for path in out.glob(pattern):
            path.unlink()
    for name in (manifest.FILE, PROGRESS, manifest.ROWS, manifest.ELEMENTS, manifest.SKIPPED):
        (out / name).unlink(missing_ok=True)
