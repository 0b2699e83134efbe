"""Time and memory of launch/quickstart.sh from a fresh clone, and of running it again.

    python -m benchmarks.quickstart_run --folder /tmp/fresh                # 2 cores: a quarter of an hour

Clones the last commit into a new folder and starts the script there; half a second apart, the resident memory of all
its processes is added up, pages that they share once for each. What they print goes to quickstart-1.log and -2.log.
"""

import argparse
import os
import subprocess
import time
from pathlib import Path

from benchmarks import results

ROOT = Path(__file__).resolve().parent.parent
PHASE = "== "  # begins the lines by which the script names what it does
EVERY = 0.5  # seconds between two looks at the memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="to clone into; must not be there")
    args = parser.parse_args()
    if not Path("/proc/self/stat").exists():
        parser.error("memory is read from /proc: run this on Linux")
    folder = Path(args.folder)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    runs = [run(folder, folder / f"quickstart-{n}.log") for n in (1, 2)]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    results.save("quickstart_run", {"commit": commit.stdout.strip(), "first": runs[0], "second": runs[1]})


def run(folder: Path, log: Path) -> dict:
    """Seconds in all and of every phase, and the peak of memory, of the script run to its end."""
    # As a newcomer's shell: nothing of this process's own environment decides where packages come from.
    env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env["LCM_JAX_CACHE"] = str(folder / ".cache/lcm_jax")  # nor has it fetched weights or measured features before
    peak, begun = 0, time.perf_counter()
    with log.open("w") as out:
        script = subprocess.Popen(
            ["bash", "launch/quickstart.sh"], cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True
        )
        phases = [("start", 0.0)]
        while script.poll() is None:
            peak = max(peak, memory(script.pid))
            lines = log.read_text(errors="replace").splitlines()
            told = [line.removeprefix(PHASE) for line in lines if line.startswith(PHASE)]
            phases += [(name, time.perf_counter() - begun) for name in told[len(phases) - 1 :]]
            time.sleep(EVERY)
    seconds = time.perf_counter() - begun
    if script.returncode:
        raise SystemExit(f"the script ended with {script.returncode}: see {log}")
    ends = [start for _, start in phases[1:]] + [seconds]
    lasted = {name: round(end - start, 1) for (name, start), end in zip(phases, ends, strict=True)}
    return {"seconds": round(seconds, 1), "phases_seconds": lasted, "peak_memory_mb": round(peak / 1e6)}


def memory(session: int) -> int:
    """Bytes resident in the processes of a session."""
    total, page = 0, os.sysconf("SC_PAGE_SIZE")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
        if int(fields[3]) == session:
            total += int(fields[21]) * page
    return total


if __name__ == "__main__":
    main()
