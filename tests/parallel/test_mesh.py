from dataclasses import dataclass

import jax
import pytest
from jax.sharding import AxisType

from lcm_jax.parallel.mesh import arrange, make_mesh, most_within_a_slice


def test_the_rest_of_the_devices_go_to_the_axis_left_open():
    mesh = make_mesh(data=-1, fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize("most, tensor, fsdp", [(64, 1, 8), (4, 1, 4), (3, 1, 2), (8, 2, 4)])
def test_weights_are_split_over_so_many_devices_at_most(most, tensor, fsdp):
    mesh = make_mesh(data=-1, fsdp=-1, tensor=tensor, fsdp_most=most)
    assert dict(mesh.shape) == {"data": 8 // fsdp // tensor, "fsdp": fsdp, "tensor": tensor}
    assert make_mesh(data=-1, fsdp=1, fsdp_most=most).shape["fsdp"] == 1  # a size that is given stays
    with pytest.raises(ValueError, match="config.mesh.fsdp_most must be at least 1"):
        make_mesh(data=-1, fsdp=-1, fsdp_most=0)


def test_a_mesh_over_one_device():
    assert make_mesh(devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (2, 2, 1), (16, 1, 1)])
def test_sizes_that_do_not_multiply_are_named(sizes):
    with pytest.raises(ValueError, match="do not multiply to the 8 devices"):
        make_mesh(*sizes)


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (8, -2, 1)])
def test_sizes_that_mean_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match="must be positive, with at most one"):
        make_mesh(*sizes)


@dataclass(frozen=True)
class Chip:
    """What arranging a mesh looks at."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def slices(number, each=4, processes=None):
    chips = range(number * each)
    return [Chip(i, i // each, i // each if processes is None else i * processes // len(chips)) for i in chips]


def test_the_data_axis_alone_crosses_slices():
    found = arrange(slices(2)[::-1], (4, 2, 1), None)
    assert found.shape == (4, 2, 1)
    assert [[chip.slice_index for chip in row.flat] for row in found] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert len({chip.id for chip in found.flat}) == 8


def test_no_weight_is_split_across_slices():
    assert [most_within_a_slice(slices(2), most, 1, None) for most in (64, 4, 2)] == [4, 4, 2]
    assert most_within_a_slice(slices(1, 8), 64, 2, 2) == 2


def test_processes_are_slices_where_the_config_says_so():
    chips = slices(1, 8, processes=2)
    found = arrange(chips, (2, 2, 2), 2)
    assert [{chip.process_index for chip in row.flat} for row in found] == [{0}, {1}]
    with pytest.raises(ValueError, match="slices is 4, but the devices belong to 1 slices and 2 processes"):
        arrange(chips, (4, 2, 1), 4)


def test_an_inner_axis_that_crosses_slices_is_said_and_refused_where_slices_were_asked_for(caplog):
    found = arrange(slices(2), (1, 8, 1), None)
    assert "data=1 does not divide over 2 slices" in caplog.text
    assert [chip.id for chip in found.flat] == list(range(8))
    with pytest.raises(ValueError, match="slices 2 does not divide the data axis of 1"):
        arrange(slices(2), (1, 8, 1), 2)
    assert make_mesh(slices=1).size == 8
