"""The table of parity holds what tests measured, the largest of each name."""

import re

from benchmarks import parity


def test_the_largest_difference_of_a_name_is_kept(tmp_path):
    rows = [("VAE", "1e-7 1e-5"), ("VAE", "3e-7 1e-5"), ("VAE", "2e-7 1e-5"), ("same", "0.0 1e-9"), ("dB", "23.5")]
    cases = "".join(
        f'<testcase><properties><property name="{name}" value="{value}"/></properties></testcase>'
        for name, value in rows
    )
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert parity.read(tmp_path / "report.xml") == {
        "differences": {"VAE": {"largest": 3e-7, "limit": 1e-5}, "same": {"largest": 0.0, "limit": 1e-9}},
        "reconstruction": {"dB": 23.5},
    }


def test_a_test_is_measured():
    done, found = parity.measure(("tests/models/test_autoencoder.py::test_stored_answers_of_diffusers",))
    assert done == 0 and set(found["differences"]) == {
        f"VAE, {side}, {dtype}" for side in ("encoder", "decoder") for dtype in ("float32", "float64")
    }
    assert all(0 < row["largest"] < row["limit"] for row in found["differences"].values())


def test_what_is_measured_is_there():
    for place in parity.TESTS:
        file, _, name = place.partition("::")
        assert re.search(f"def {name or 'test_'}", (parity.ROOT / file).read_text()), place
