import pytest

from lcm_jax.parallel import chips
from lcm_jax.parallel.chips import CHIPS, Topology, compiles_for_tpu, topology


@pytest.mark.parametrize(
    "name, chip, shape, count",
    [
        ("v5e:16x16", "v5e", (16, 16), 256),
        ("v5e:2x4x1", "v5e", (2, 4, 1), 8),
        ("v5p:4x4x4", "v5p", (4, 4, 4), 64),
        ("v6e:4x4", "v6e", (4, 4), 16),
        ("gpu:8xH100", "H100", (8,), 8),
        ("gpu:1xA100", "A100", (1,), 1),
        ("cpu:8", "cpu", (8,), 8),
    ],
)
def test_names_of_topologies(name, chip, shape, count):
    assert topology(name) == Topology(name, CHIPS[chip], shape) and topology(name).count == count
    assert topology(name, slices=2).count == 2 * count


WRONG = (
    "v5e", "v5e:", "v5e:16", "v5p:4x4", "v9:4x4", "H100:8", "gpu:8", "gpu:0xH100", "gpu:8xB300", "gpu:8xcpu", "cpu:0",
    "cpu:2x2", "v5e:4x-4", "v5e:4X4", "",
)  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_others_are_refused_in_one_line_with_the_known(name):
    with pytest.raises(ValueError, match="is not known; write one like v5e:16x16") as error:
        topology(name)
    assert "v5p, v6e, gpu:H100" in str(error.value) and "\n" not in str(error.value)


def test_rates_are_stated_for_all_that_can_be_rented():
    for chip in CHIPS.values():
        assert chip.platform == "cpu" or (chip.flops > 1e14 and chip.memory > 15e9 and chip.links < chip.bandwidth)
        assert chip.platform == "cpu" or chip.source


def test_devices_of_others_than_tpus_are_the_hosts(monkeypatch):
    assert topology("gpu:8xH100").devices() is None and topology("cpu:8").devices() is None
    monkeypatch.setattr(chips, "compiles_for_tpu", lambda: False)
    assert topology("v5e:2x2").devices() is None


@pytest.mark.skipif(not compiles_for_tpu(), reason="libtpu, the compiler of TPUs, is not installed")
def test_a_shape_that_no_pod_has_is_one_line(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    with pytest.raises(ValueError, match="no topology 'v5e:3x5': Topology layout"):
        topology("v5e:3x5").devices()
