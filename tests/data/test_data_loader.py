"""Loader: order independent of processes and of memory, exact positions, subsets, and errors at the start."""

import itertools
import json

import numpy as np
import pytest

from lcm_jax.data import manifest, shards
from lcm_jax.data.loader import make_loader


def take(loader, n):
    return list(itertools.islice(loader, n))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_batch_holds_what_was_stored(make):
    folder, _ = make(40)
    loader = make_loader(folder, "train", 8)
    records = {
        h["row"]: a for s in loader.manifest.shards for h, a in shards.Shard(folder / s["file"]).read_all()
    }
    batch = next(loader)
    assert set(batch) == {"mean", "std", "context", "index"}
    assert all(batch[k].dtype == np.float32 for k in ("mean", "std", "context"))
    assert batch["index"].dtype == np.int32
    for i, index in enumerate(batch["index"]):
        arrays = records[int(index)]
        np.testing.assert_array_equal(batch["mean"][i], arrays["mean"])
        np.testing.assert_allclose(batch["std"][i], np.exp(-2.0), rtol=1e-6)
        assert (batch["context"][i] == len(loader.row(index).caption)).all()
        assert loader.row(index).split == "train"
    loader.close()


def test_epochs_visit_everything_once_in_new_order(make):
    folder, made = make(40)
    n = made.counts["train"]
    batches = take(make_loader(folder, "train", 4, num_epochs=4), 10**6)
    assert len(batches) == 4 * n // 4
    index = np.concatenate([b["index"] for b in batches])[: 4 * n].reshape(4, n)
    assert all(len(set(epoch)) == n for epoch in index)
    assert not (index[0] == index[1]).all()
    plain = take(make_loader(folder, "train", n, shuffle=False), 2)
    assert plain[0]["index"].tolist() == plain[1]["index"].tolist() == list(range(n))
    other = next(make_loader(folder, "train", 4, seed=1))["index"].tolist()
    assert other != batches[0]["index"].tolist()


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_any_number_of_processes_gives_the_same_global_batches(make, memory_limit):
    folder, _ = make(40)
    one = take(make_loader(folder, "train", 8, seed=3), 12)
    rows = np.array([[0, 1], [2, 3], [4, 6], [5, 7]])  # devices may lie in any order
    options = {"seed": 3, "memory_limit": memory_limit}
    parts = [take(make_loader(folder, "train", 8, own=own, **options), 12) for own in rows]
    for batch, *part in zip(one, *parts, strict=True):
        same(batch, {k: np.concatenate([p[k] for p in part])[np.argsort(rows.ravel())] for k in batch})


def test_an_epoch_may_visit_every_group_once_by_a_random_member(make):
    folder, _ = make(40)
    loader = make_loader(folder, "train", 4, each="groups", num_epochs=60)
    groups = {row.group for row in loader.rows.names if row.split == "train"}
    assert loader.size == len(groups) < len(loader.rows)
    index = np.concatenate([b["index"] for b in loader])
    epochs = index[: len(index) // len(groups) * len(groups)].reshape(-1, len(groups))
    assert all({loader.row(i).group for i in epoch} == groups for epoch in epochs)
    # Each member of a group of two is missed 55 times in a row less often than once in 10^16 runs.
    assert set(index.tolist()) == set(loader.rows.chosen.tolist())
    parts = [take(make_loader(folder, "train", 4, each="groups", own=own), 5) for own in np.arange(4).reshape(2, 2)]
    assert np.concatenate([b["index"] for pair in zip(*parts, strict=True) for b in pair]).tolist() == (
        index[:20].tolist()
    )


@pytest.mark.parametrize("memory_limit", [2**30, 0])
@pytest.mark.parametrize("each", ["examples", "groups"])
@pytest.mark.parametrize("stop", [0, 1, 7, 11])
def test_position_survives_json_exactly(make, memory_limit, stop, each):
    folder, _ = make(40)
    loader = make_loader(folder, "train", 8, memory_limit=memory_limit, each=each)
    take(loader, stop)
    state = json.loads(json.dumps(loader.get_state()))
    expected = take(loader, 6)
    fresh = make_loader(folder, "train", 8, memory_limit=memory_limit, each=each)
    take(fresh, 3)
    fresh.set_state(state)
    for a, b in zip(expected, take(fresh, 6), strict=True):
        same(a, b)


def test_position_of_another_order_is_refused(make):
    folder, _ = make(40)
    state = make_loader(folder, "train", 8, seed=1).get_state()
    with pytest.raises(ValueError, match="seed 1, now 0; batch_size 8, now 4"):
        make_loader(folder, "train", 4).set_state(state)
    with pytest.raises(ValueError, match="each 'examples', now 'groups'"):
        make_loader(folder, "train", 8, seed=1, each="groups").set_state(state)


def test_subset_by_tag_and_group_and_split(make):
    folder, made = make(40)
    odd = make_loader(folder, None, 4, tag="odd")
    assert odd.size == 20
    assert {odd.row(i).tags for b in take(odd, 5) for i in b["index"]} == {("odd",)}
    assert make_loader(folder, None, 2, groups=["g0", "g3"]).size == 4
    assert make_loader(folder, "heldout", 2).size == made.counts["heldout"]


def test_two_folders_count_as_one(make):
    a, _ = make(40, name="a")
    b, _ = make(20, name="b")
    loader = make_loader([a, b], None, 60, shuffle=False)
    batch = next(loader)
    assert batch["index"].tolist() == list(range(60))
    assert [loader.row(i).key for i in batch["index"][40:]] == [r.key for r in manifest.rows(b)]
    second = next(make_loader(b, None, 20, shuffle=False))
    np.testing.assert_array_equal(batch["mean"][40:], second["mean"])
    c, _ = make(20, name="c", identity={"vae": "other"})
    with pytest.raises(ValueError, match="encoders is .* encode both with the same encoders"):
        make_loader([a, c], "train", 4)


def test_errors_before_the_first_batch(make, tmp_path):
    folder, made = make(40)
    n = made.counts["train"]
    for options, error, message in [
        ({"folder": tmp_path / "none"}, FileNotFoundError, "none does not exist"),
        ({"folder": []}, ValueError, "no latent folder given"),
        ({"batch_size": 64}, ValueError, f"64 is larger than the set of {n}"),
        ({"each": "groups", "batch_size": 24}, ValueError, "24 is larger than the set of [0-9]+ groups"),
        ({"each": "group"}, ValueError, "each of the 'group'; choose from examples, groups"),
        ({"own": np.array([7, 8])}, ValueError, r"positions \[7, 8\] are not all within a batch of 8"),
        ({"own": np.array([])}, ValueError, r"positions \[\] are not all within"),
        ({"tag": "blue"}, ValueError, "empty.*'blue'.*tags: even, odd"),
        ({"split": "test"}, ValueError, "empty.*'test'.*heldout"),
    ]:
        with pytest.raises(error, match=message):
            make_loader(**{"folder": folder, "split": "train", "batch_size": 8, **options})


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_damaged_shards_are_named(make, memory_limit):
    folder, made = make(40)
    path = folder / made.shards[1]["file"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match=f"{path.name} is truncated or changed .*{len(whole)}"):
        make_loader(folder, "train", 8, memory_limit=memory_limit)
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(ValueError, match=f"{path.name} cannot be read"):
        take(make_loader(folder, "train", 8, memory_limit=memory_limit), 10)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing"):
        make_loader(folder, "train", 8, memory_limit=memory_limit)
