"""How far our components are from PyTorch's with the same weights: what the tests that bound it measured.

    python -m benchmarks.parity

Needs the extra `test`. Networks are small and random (tests/golden, tests/parity); of each component the largest
difference of all its cases is kept. TAESD's reconstructions need its weights and Noto's emoji (tests/models/
test_autoencoder_tiny.py) and are left out where those are absent. Exits with 1 where a difference is above its limit.
"""

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/models/test_unet.py::test_diffusers_itself",
    "tests/models/test_unet.py::test_stored_answers_in_double_precision",
    "tests/models/test_autoencoder.py::test_diffusers_itself",
    "tests/models/test_autoencoder.py::test_stored_answers_of_diffusers",
    "tests/models/test_autoencoder_tiny.py::test_diffusers",
    "tests/models/test_autoencoder_tiny.py::test_published_weights_reconstruct_a_photograph",
    "tests/models/test_autoencoder_tiny.py::test_published_weights_reconstruct_emoji",
    "tests/models/test_clip_text.py::test_transformers_in_single_precision",
    "tests/models/test_clip_text.py::test_transformers_in_double_precision",
    "tests/parity/test_samplers.py",
    "tests/parity/test_lcm_pipeline.py",
    "tests/parity/test_lcd_step.py",
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    done, found = measure(TESTS)
    if not found:
        sys.exit("nothing was measured: pip install -e '.[test]'")
    results.save("parity", found)
    sys.exit(done)


def measure(tests: tuple[str, ...]) -> tuple[int, dict[str, Any]]:
    """pytest's exit status, and what `tests` measured."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        done = subprocess.run(command, cwd=ROOT).returncode
        return done, read(report)


def read(report: Path) -> dict[str, Any]:
    """"differences", each the largest of what tests measured under that name, and what else they recorded."""
    differences: dict[str, dict[str, float]] = {}
    other = {}
    for said in ElementTree.parse(report).iter("property"):
        name, numbers = said.attrib["name"], [float(number) for number in said.attrib["value"].split()]
        if len(numbers) == 1:
            other[name] = numbers[0]
        elif numbers[0] >= differences.get(name, {"largest": 0.0})["largest"]:
            differences[name] = dict(zip(("largest", "limit"), numbers, strict=True))
    return {"differences": differences, "reconstruction": other} if differences or other else {}


if __name__ == "__main__":
    main()
