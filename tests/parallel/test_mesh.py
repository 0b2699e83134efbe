import jax
import pytest
from jax.sharding import AxisType

from lcm_jax.parallel.mesh import make_mesh


def test_the_rest_of_the_devices_go_to_the_axis_left_open():
    mesh = make_mesh(data=-1, fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 3


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
