"""Several processes encode one folder: the bytes of one process, whoever is ended when, and news of a failure."""

import dataclasses
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_set import SIZE, Encoders, make_examples

from lcm_jax.data import manifest, processes, resume
from lcm_jax.data.encode import encode
from lcm_jax.data.processes import ALONE, OtherFailed, Processes

BROKEN = (3, 4, 17, 39)
OPTIONS = {"batch_size": 4, "shard_size": 4, "identity": {"vae": "patches"}, "progress": False, "threads": 2}


def unreadable():
    raise ValueError("image cannot be read")


def damaged(n=40, broken=BROKEN):
    found = make_examples(n)
    return [dataclasses.replace(e, load=unreadable) if i in broken else e for i, e in enumerate(found)]


def write(out, examples=None, part=ALONE, encoders=None, **options):
    encoders = encoders or Encoders()
    found = make_examples(40) if examples is None else examples
    return encode(found, encoders.images, encoders.text, out, SIZE, processes=part, **{**OPTIONS, **options})


def together(count, work):
    """What work(part) returns or raises in each of `count` processes, which here are threads."""
    barrier, said = threading.Barrier(count, timeout=20), [None] * count

    def agreement(index, agree):
        def call(mine):
            said[index] = mine
            barrier.wait()
            answer = agree(said)
            barrier.wait()
            return answer

        return call

    def one(index):
        same = agreement(index, lambda all_: len(set(all_)) == 1)
        try:
            return work(Processes(index, count, agreement(index, all), same))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(processes, "POLL", 0.01)
    monkeypatch.setattr(processes, "SEEN", 0.1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of one process, with and without what cannot be read."""
    root = tmp_path_factory.mktemp("alone")
    write(root / "whole")
    made = write(root / "skipped", damaged(), broken="skip")
    assert made.skipped == len(BROKEN) and len(made.shards) > 9
    return root


@pytest.mark.parametrize("count", [2, 3, 20])
def test_any_number_of_processes_writes_the_same_folder(tmp_path, alone, count):
    encoders = [Encoders() for _ in range(count)]
    work = lambda part: write(tmp_path, damaged(), part, encoders[part.index], broken="skip")
    assert together(count, work) == [manifest.read(alone / "skipped")] * count
    assert content(tmp_path) == content(alone / "skipped")
    calls = [len(each.batches) for each in encoders]
    assert sum(calls) == len(manifest.read(tmp_path).shards) and max(calls) - min(calls) <= 1


@pytest.mark.parametrize("before, after", [(2, 1), (2, 3), (1, 2)])
def test_where_one_fails_all_stop_and_any_number_goes_on(tmp_path, alone, before, after):
    def fails(part):
        encoders = Encoders()
        if part.index == before - 1:
            count = encoders.images
            encoders.images = lambda x: count(x) if len(encoders.batches) < 2 else unreadable()
        return write(tmp_path, None, part, encoders)

    *others, failed = together(before, fails)
    assert isinstance(failed, ValueError) and all(isinstance(other, OtherFailed) for other in others)
    assert all(str(e) == f"process {before - 1} of {before} failed: image cannot be read" for e in others)
    with pytest.raises(FileNotFoundError, match="has not finished"):
        manifest.read(tmp_path)
    done = len(list(tmp_path.glob(resume.NOTE.format("*"))))
    encoders = [Encoders() for _ in range(after)]
    together(after, lambda part: write(tmp_path, None, part, encoders[part.index]))
    assert content(tmp_path) == content(alone / "whole")
    assert 2 <= done == len(manifest.read(tmp_path).shards) - sum(len(each.batches) for each in encoders)


def test_processes_mend_a_finished_folder_and_leave_a_whole_one_alone(tmp_path, alone):
    made = write(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert together(2, lambda part: write(tmp_path, None, part)) == [made] * 2
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / made.shards[1]["file"]).unlink()
    encoders = [Encoders(), Encoders()]
    assert together(2, lambda part: write(tmp_path, None, part, encoders[part.index])) == [made] * 2
    assert content(tmp_path) == content(alone / "whole") and sum(len(each.batches) for each in encoders) == 1


def test_overwriting_is_done_once(tmp_path, alone):
    write(tmp_path, moment_dtype="float32")
    refused = together(2, lambda part: write(tmp_path, None, part))
    assert all("was made with other moment_dtype" in str(error) for error in refused)
    together(2, lambda part: write(tmp_path, None, part, overwrite=True))
    assert content(tmp_path) == content(alone / "whole")


def test_processes_that_differ_are_refused(tmp_path):
    for error in together(2, lambda part: write(tmp_path / "a", make_examples(20 + part.index), part)):
        assert isinstance(error, ValueError) and "differ in their settings or in the pictures they find" in str(error)
    assert not (tmp_path / "a").exists()
    for error in together(2, lambda part: write(tmp_path / f"b{part.index}", None, part)):
        assert isinstance(error, ValueError) and "is not the same folder for every process" in str(error)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("start", ["nothing", "skipped"])
def test_a_process_killed_at_any_moment_leaves_what_can_be_gone_on_with(tmp_path, monkeypatch, start):
    """Before each change of the folder in turn; what is begun with `skip` is a finished folder that lacks pictures."""
    few, whole = make_examples(12), tmp_path / "whole"
    write(whole, few)
    moments, real = [], {name: getattr(os, name) for name in ("replace", "unlink")}
    for moment in range(100):
        out, changes = tmp_path / str(moment), []
        if start == "skipped":
            write(out, damaged(12), broken="skip")

        def change(name, *arguments, changes=changes, moment=moment):
            if len(changes) == moment:
                raise Killed
            changes.append(name)
            return real[name](*arguments)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, lambda *arguments, name=name, **_: change(name, *arguments))
            try:
                write(out, few)
            except Killed:
                moments.append(changes)
        write(out, few)
        assert content(out) == content(whole)
        if len(changes) < moment:
            break
    kept = len(json.loads((whole / manifest.FILE).read_text())["shards"])
    assert len(moments) > 3 * kept and {"replace", "unlink"} == set(moments[-1])
