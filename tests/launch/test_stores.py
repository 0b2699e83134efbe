"""Runs and latents on object stores, against emulators of Google's and Amazon's on this machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from asyncio import sleep
from pathlib import Path
from types import SimpleNamespace

import fsspec
import jax
import numpy as np
import pytest
import tiny
from store_emulators import Faults, amazon, google

from launch import entry
from lcm_jax import build, captions, exporting, joining, run_copy, run_folder
from lcm_jax.assess import watching
from lcm_jax.checkpoint_copy import SENT_STEPS, CheckpointCopies, whole_steps
from lcm_jax.data import latent_copy, manifest
from lcm_jax.data.loader import make_loader
from lcm_jax.data.store import Store, StoreError
from lcm_jax.parallel import rules
from lcm_jax.source import open_model

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # the port of "discard", where nobody listens
STEPS = 3


@pytest.fixture(scope="module", params=[google, amazon], ids=["gs", "s3"])
def store(request):
    """The URL of a bucket, the faults of its server, and the variable that says where the server is."""
    faults = Faults()
    with pytest.MonkeyPatch.context() as patch:
        stop, variable = request.param(patch, faults)
        scheme = {"google": "gs", "amazon": "s3"}[request.param.__name__]
        yield SimpleNamespace(url=f"{scheme}://bucket", scheme=scheme, faults=faults, variable=variable)
        stop()


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """An empty disk: machine("b") is another one."""
    use = lambda name: monkeypatch.setenv("LCM_JAX_CACHE", str(tmp_path / name))
    use("a")
    return use


def copied(folder, url):
    target = Store(url)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        target.put(path, path.relative_to(folder).as_posix())
    return url


def content(url, name):
    return [json.loads(line) for line in Store(url).read(name).decode().splitlines()]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def diffusion(first, latents, steps, **loop):
    loop = {"log_steps": 1, "checkpoint_steps": 1, **loop}
    return tiny.config({"name": "diffusion"}, {"start": str(first.teacher)}, latents, steps=steps, loop=loop)


@pytest.fixture(scope="module")
def undisturbed(data, first, tmp_path_factory):
    """A run of this machine's own disk: folder and last state."""
    where = tmp_path_factory.mktemp("local") / "run"
    return where, run_folder.train(build.run(diffusion(first, data.latents, STEPS)), where, progress=False)


def test_a_run_goes_on_from_the_store_alone_while_it_fails_at_times(store, data, first, undisturbed, machine, tmp_path):
    latents, where = copied(data.latents, f"{store.url}/latents"), f"{store.url}/runs/one"
    train = lambda config: run_folder.train(build.run(config), where, progress=False)
    train(diffusion(first, latents, 1))

    machine("b")
    store.faults.every = {"gs": 70, "s3": 20}[store.scheme]
    try:
        state = train(diffusion(first, latents, STEPS))
    finally:
        store.faults.every = 0
    assert store.faults.struck >= 3
    same(state, undisturbed[1])
    assert [row["step"] for row in content(where, "metrics.jsonl")] == [1, 2, 3]
    assert [life["step"] for life in content(where, "lives.jsonl")] == [0, 1]
    there = Store(where).list()
    assert any("tfevents" in name for name in there)
    assert not [name for name in there if name.startswith("checkpoints/1")]  # the newest two are kept

    machine("c")
    assert watching.steps_of(run_copy.located(where)) == [2, 3]
    assert list(watching.landed(where, 0.01)) == [2, 3]
    pipe = run_folder.pipeline(where)
    same(pipe.params["unet"], undisturbed[1].ema)
    assert pipe.origin["model"] == where and pipe.origin["step"] == STEPS
    assert pipe("a red disc", steps=1, n=2).shape == (2, tiny.SIZE, tiny.SIZE, 3)
    there = copied(run_folder.export(where, tmp_path / "exported"), f"{store.url}/exported")
    assert run_folder.is_run(where) and run_folder.takes_captions(there) and not run_folder.is_run(there)
    same(open_model(there).load("unet"), undisturbed[1].ema)

    other = diffusion(first, latents, STEPS) | {"seed": 1}
    with pytest.raises(ValueError, match="holds a run whose config differs in seed"):
        run_folder.train(build.run(other), where, progress=False)


def test_several_processes_write_their_parts_to_gs_and_pass_over_a_checkpoint_that_was_not_finished(
    store, data, first, tmp_path, monkeypatch
):
    url = f"{store.url}/runs/two"
    if store.scheme == "s3":
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="several processes write their checkpoints to gs:// or to a folder"):
            run_copy.opened(url)
        return
    plain = diffusion(first, data.latents, STEPS) | {"optimizer": {"name": "sgd", "rate": 0.01}}
    alone = run_folder.train(build.run(plain), tmp_path / "alone", progress=False)
    split = plain | {"mesh": {"data": 1, "fsdp": 8, "rules": "fsdp"}}
    together(tmp_path, url, split | {"steps": 2})
    parts = [name for name in Store(url).list() if name.startswith("checkpoints/2/") and "process_1/" in name]
    assert parts  # the second process wrote its own
    Store(url).remove("checkpoints/2/commit_success.txt")  # as if they had been killed before
    together(tmp_path, url, split)
    assert [row["step"] for row in content(url, "metrics.jsonl")] == [1, 2, 3]
    assert [life["step"] for life in content(url, "lives.jsonl")] == [0, 1]
    for ours, theirs in zip(jax.tree.leaves(run_folder.load(url)[1]["unet"]), jax.tree.leaves(alone.ema), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def together(where, url, config):
    """Trains as two processes of four devices; what they said."""
    file = where / "config.json"
    file.write_text(json.dumps(config))
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    cluster = [sys.executable, "-m", "launch.local_cluster", "--processes=2", "--devices=4", "--"]
    command = [*cluster, sys.executable, __file__, str(file), url]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def work(config, url):
    """What each of the two does."""
    captions.ENCODERS["minilm"] = tiny.FakeCaptions
    rules.SMALL = 2**8  # so that networks as small as these are split, too
    with joining.joined(timeout=60):
        run_folder.train(build.run(config), url, progress=False)


def test_what_changes_is_sent_by_and_by(store, machine, monkeypatch, caplog):
    monkeypatch.setattr(run_copy, "SEND_SECONDS", 0.02)
    url = f"{store.url}/runs/sent"
    with run_copy.opened(url) as place:
        (place.here / "samples").mkdir()
        for name in ("config.json", "samples/step_1.png", "metrics.jsonl.tmp", ".config.json.x"):
            (place.here / name).write_bytes(b"{}")
        within(20, lambda: len(Store(url).list()) == 2)
        assert Store(url).list().keys() == {"config.json", "samples/step_1.png"}
        monkeypatch.setattr(Store, "put", failing_once(Store.put))
        (place.here / "config.json").write_bytes(b"{} ")
        within(20, lambda: Store(url).read("config.json") == b"{} ")
        (place.here / "lives.jsonl").write_bytes(b"{}\n")
    assert "the store is tired; tried again" in caplog.text
    assert Store(url).read("lives.jsonl") == b"{}\n"
    machine("b")
    again = run_copy.opened(url).here
    assert {path.name for path in again.iterdir()} - {SENT_STEPS} == {run_copy.ORIGIN, "config.json", "lives.jsonl"}


def test_checkpoints_that_could_not_be_sent_are_gone_on_with(store, monkeypatch, caplog):
    """What a life leaves whose credentials ran out: the store has less than the disk."""
    if store.scheme == "gs":
        pytest.skip("checkpoints are written to gs:// itself")
    url, config = f"{store.url}/runs/unsent", {"seed": 0, "steps": 2}
    kept = lambda copy: sorted(path.name for path in (copy / "checkpoints").glob("*"))

    def life(steps, config):
        place = run_copy.opened(url)
        (place.here / "config.json").write_text(json.dumps(config))
        for step in steps:
            (place.here / "checkpoints" / str(step)).mkdir(parents=True)
            (place.here / "checkpoints" / str(step) / "state").write_text(str(step))
        return place

    with life([1], config):
        pass
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="no more"):

        def refused(*given):
            raise StoreError("no more")

        patch.setattr(Store, "put", refused)
        with life([2, 3], config | {"steps": 4}) as place:  # a longer run is the same
            (place.here / "metrics.jsonl").write_text("{}\n")
    assert whole_steps(Store(url).list()) == {1}
    with run_copy.opened(url) as place:
        assert kept(place.here) == ["1", "2", "3"] and "going on with checkpoints 2, 3" in caplog.text
    assert whole_steps(Store(url).list()) == {1, 2, 3} and Store(url).read("checkpoints/3/state") == b"3"
    assert Store(url).read("metrics.jsonl") == b"{}\n"
    (place.here / "checkpoints" / "4").mkdir()
    (place.here / "config.json").write_text(json.dumps(config | {"seed": 1}))  # another run's
    again = run_copy.opened(url).here
    assert kept(again) == ["1", "2", "3"] and "checkpoints 4, which could not be sent before, of another" in caplog.text
    assert kept(again.with_name(f"{again.name}, not sent 1")) == ["1", "2", "3", "4"]


def test_what_was_taken_off_a_store_does_not_come_back(store):
    if store.scheme == "gs":
        pytest.skip("checkpoints are written to gs:// itself")
    url = f"{store.url}/runs/taken"
    with run_copy.opened(url) as place:
        (place.here / "config.json").write_text("{}")
        for step in ("1", "2"):
            (place.here / "checkpoints" / step).mkdir(parents=True)
            (place.here / "checkpoints" / step / "state").write_text(step)
    for name in Store(url).list():
        if name.startswith("checkpoints/2"):
            Store(url).remove(name)
    with run_copy.opened(url) as place:
        assert [path.name for path in (place.here / "checkpoints").iterdir()] == ["1"]
    assert whole_steps(Store(url).list()) == {1}


def test_a_run_is_not_begun_in_a_model_on_a_store(store, data, first):
    url = copied(exporting.export(first.teacher, data.root / store.scheme, msgpack=False), f"{store.url}/models/whole")
    with pytest.raises(ValueError, match="has a model.json, as models and data sets have"):
        run_folder.train(build.run(diffusion(first, data.latents, 1)), url, progress=False)


def failing_once(put):
    """Store.put that fails when it is first called."""
    left = [StoreError("the store is tired")]

    def flaky(*given):
        if left:
            raise left.pop()
        return put(*given)

    return flaky


def within(seconds, reached):
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_checkpoints_are_sent_whole_and_half_ones_count_for_nothing(store, tmp_path):
    there, folder = Store(f"{store.url}/runs/copies"), tmp_path / "checkpoints"
    folder.mkdir()

    def finished(*steps):
        for step in steps:
            (folder / str(step) / "state").mkdir(parents=True)
            (folder / str(step) / "state" / "manifest").write_text(str(step))

    steps = lambda: sorted({name.split("/")[1] for name in there.list()})
    copies = CheckpointCopies(there, folder, there.list())
    finished(1, 2, "3.orbax-checkpoint-tmp")
    copies.send()
    assert whole_steps(there.list()) == {1, 2} and steps() == ["1", "1.sent", "2", "2.sent"]
    shutil.rmtree(folder / "1")
    finished(3)
    copies.send()
    assert steps() == ["2", "2.sent", "3", "3.sent"] and there.read("checkpoints/3/state/manifest") == b"3"
    (folder / "3").rename(folder / "3.unreadable")
    finished(3)
    (folder / "3" / "state" / "manifest").write_text("written again")
    copies.send()
    assert there.read("checkpoints/3/state/manifest") == b"written again" and whole_steps(there.list()) == {2, 3}
    there.remove("checkpoints/3.sent")  # as if the process had been killed before
    assert whole_steps(there.list()) == {2}
    CheckpointCopies(there, folder, there.list())
    assert steps() == ["2", "2.sent"]


def test_latents_are_copied_once_by_split_and_checked(store, data, machine, monkeypatch):
    url = copied(data.latents, f"{store.url}/more/latents")
    batch = lambda folder: next(make_loader(folder, "train", 8))
    same(batch(url), batch(data.latents))
    copy = latent_copy.here(url, "train")
    held = {path.name for path in copy.glob("*.array_record")}
    assert held == {shard["file"] for shard in data.manifest.shards if shard["split"] == "train"}
    whole = latent_copy.here(url)
    assert whole == copy and len(list(copy.glob("*.array_record"))) == len(data.manifest.shards) > len(held)
    before = store.faults.seen
    latent_copy.here(url)
    assert store.faults.seen - before <= 6  # the list and the manifest

    machine("b")
    monkeypatch.setattr(latent_copy, "PAUSES", (0.01,))
    shard = data.manifest.shards[0]["file"]
    damaged = bytearray(Store(url).read(shard))
    damaged[-1] ^= 1
    Store(url).write(shard, bytes(damaged))
    with pytest.raises(ValueError, match=f"{url}/{shard} is not the manifest's"):
        batch(url)
    Store(url).remove(shard)
    with pytest.raises(FileNotFoundError, match=f"{url}/{shard} is missing"):
        batch(url)
    Store(url).remove(manifest.FILE)
    with pytest.raises(FileNotFoundError, match=f"{url} has no manifest.json"):
        batch(url)


def test_a_copy_follows_what_changes_on_the_store(store, first, tmp_path):
    url = copied(first.student, f"{store.url}/model")
    assert open_model(url).load("autoencoder")
    copy = run_copy.located(url)
    before = store.faults.seen
    run_copy.located(url)
    assert store.faults.seen - before <= 3
    Store(url).write("model.json", (first.student / "model.json").read_bytes() + b"\n")
    Store(url).remove("autoencoder.safetensors")
    run_copy.located(url)
    assert (copy / "model.json").read_bytes() == Store(url).read("model.json")
    with pytest.raises(FileNotFoundError, match="lacks autoencoder.safetensors"):
        open_model(url).load("autoencoder")
    with pytest.raises(FileNotFoundError, match=f"{store.url}/nothing holds nothing"):
        run_folder.pipeline(f"{store.url}/nothing")
    with pytest.raises(FileNotFoundError, match=f"{url} holds no run"):
        run_folder.load(url)
    with pytest.raises(ValueError, match="copy the folder to this machine"):
        run_folder.keep_sigmas(url, [[1.0]])


def test_a_store_out_of_reach_ends_the_start_in_one_line(store, monkeypatch, first, data):
    impatient(monkeypatch, store)
    monkeypatch.setenv(store.variable, NOWHERE)
    config = diffusion(first, f"{store.url}/latents", 2)
    for start in (
        lambda: build.run(config),
        lambda: run_copy.opened(f"{store.url}/runs/one"),
        lambda: run_folder.pipeline(f"{store.url}/runs/one"),
    ):
        with pytest.raises(StoreError, match=f"{store.url}/.* cannot be used .*: check the name of the bucket") as told:
            start()
        assert "\n" not in str(told.value)


def test_a_bucket_that_is_not_there_is_said_to_be_missing(store, data, first, tmp_path):
    url = f"{store.scheme}://no-such-bucket/run"
    run = build.run(diffusion(first, data.latents, 2))
    with pytest.raises(StoreError, match=f"{url} cannot be used .no such bucket.: check the name of the bucket"):
        run_folder.train(run, url, progress=False)
    run.loader.close()


def impatient(monkeypatch, store):
    """Libraries that do not wait between their tries, and begin anew."""
    at_once = SimpleNamespace(sleep=lambda seconds: sleep(0))
    if store.scheme == "gs":
        import gcsfs.retry

        monkeypatch.setattr(gcsfs.retry, "asyncio", at_once)
        monkeypatch.setattr(fsspec.get_filesystem_class("gs"), "cachable", False)
    else:
        monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "cachable", False)
        monkeypatch.setattr("lcm_jax.data.store.OPTIONS", {"s3": {"config_kwargs": {"retries": {"max_attempts": 1}}}})


@pytest.mark.parametrize("url, library, extra", [("gs://a/b", "gcsfs", "gcs"), ("s3://a/b", "s3fs", "s3")])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, url, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url[:2], raising=False)
    with pytest.raises(ImportError, match=rf"{url} needs {library}: pip install -e '.\[{extra}\]'"):
        Store(url)


def test_other_stores_are_refused():
    with pytest.raises(ValueError, match="s3:// names no bucket"):
        Store("s3://")
    with pytest.raises(ValueError, match="az://a/b: of object stores gs:// and s3:// are known"):
        Store("az://a/b")


def test_results_are_written_to_this_machine():
    assert entry.on_this_machine("out") == "out"
    with pytest.raises(SystemExit, match="gs://bucket/out: results are written to this machine; give a path as --out"):
        entry.on_this_machine("gs://bucket/out")


if __name__ == "__main__":
    work(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2])
