"""The quick start's clock and scale: phases are timed, memory is that of all processes, a failure is none of them."""

import sys

import pytest

from benchmarks import quickstart_run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
HOLD = "import time; held = bytearray({} * 2**20); time.sleep(1.5)"


def script(folder, text):
    (folder / "launch").mkdir()
    (folder / "launch" / "quickstart.sh").write_text(text)


def test_phases_and_the_memory_of_children(tmp_path):
    hold = f"'{sys.executable}' -c '{HOLD.format(150)}'"
    script(tmp_path, f"echo; echo '== one'; {hold} & {hold}; wait; echo '== two'; sleep 1\n")
    got = quickstart_run.run(tmp_path, tmp_path / "log")
    assert list(got["phases_seconds"]) == ["start", "one", "two"]
    assert got["phases_seconds"]["one"] > 1
    assert sum(got["phases_seconds"].values()) == pytest.approx(got["seconds"], abs=0.2)
    assert 300 < got["peak_memory_mb"] < 600  # two of 157 MB and what Python takes


def test_a_script_that_fails_is_not_measured(tmp_path):
    script(tmp_path, "echo '== one'; exit 3\n")
    with pytest.raises(SystemExit, match="the script ended with 3: see .*log"):
        quickstart_run.run(tmp_path, tmp_path / "log")
