import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.transfer import own_rows, place_batch, replicate


@pytest.mark.parametrize("sizes, rows", [((8, 1, 1), 2), ((2, 4, 1), 2), ((2, 2, 2), 4)])
def test_every_device_holds_its_own_samples(sizes, rows):
    mean = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    placed = place_batch({"mean": mean}, make_mesh(*sizes))["mean"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(rows, 3)}
    assert placed.sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(placed, mean)


def test_a_process_alone_reads_every_row():
    assert own_rows(make_mesh(2, 2, 2), 8).tolist() == list(range(8))
    with pytest.raises(ValueError, match="12 samples, which 8 devices .* cannot share.*multiple of 8"):
        own_rows(make_mesh(), 12)


def test_names_and_captions_stay_on_the_host():
    batch = {"mean": np.ones((8, 2), np.float32), "key": ["a"] * 8, "caption": np.array(["x"] * 8)}
    assert set(place_batch(batch, make_mesh())) == {"mean"}


def test_a_batch_that_cannot_be_shared_is_named():
    with pytest.raises(ValueError, match="'mean' has 12 samples.*multiple of 8"):
        place_batch({"mean": np.ones((12, 2), np.float32)}, make_mesh())


def test_replicate_puts_a_whole_copy_everywhere():
    w = replicate({"w": np.ones((4, 4), np.float32)}, make_mesh())["w"]
    assert len(w.addressable_shards) == jax.device_count()
    assert all(shard.data.shape == (4, 4) for shard in w.addressable_shards)
