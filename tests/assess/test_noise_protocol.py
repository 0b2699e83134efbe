"""Tables of models without captions, in miniature: what is drawn, kept, taken up again and refused."""

import json

import numpy as np
import pytest
import tiny
from real_images import in_memory

from configs import evaluation_unconditional
from lcm_jax.assess import feature_networks, noise_protocol
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate.features import FeatureNet
from lcm_jax.evaluate.frechet import frechet_distance, moments
from lcm_jax.evaluate.precision_recall import precision_recall

REAL = np.random.default_rng(0).integers(0, 256, (14, 32, 32, 3), dtype=np.uint8)


def pooled(x):
    return np.asarray(x, np.float32).mean((1, 2)) / 255


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setitem(feature_networks.NETWORKS, "pooled", lambda weights: FeatureNet("Pooled", "1", pooled))
    monkeypatch.setenv("LCM_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pipe():
    spec = tiny.noise_spec(classes=("cat", "dog", "owl"))
    return EDMPipeline(spec, tiny.noise_weights(spec), {"model": "tiny"})


def config(**changes):
    c = evaluation_unconditional.get_config().to_dict()
    return {**c, "samples": 11, "batch": 4, "features": "pooled", "manifold": 9, **changes}


def run(pipe, out, images=REAL, **changes):
    return noise_protocol.run(config(**changes), pipe, in_memory(images), out, progress=False)["rows"]


def test_rows_are_the_scores_of_a_call_kept_and_taken_up_again(pipe, tmp_path, monkeypatch):
    first, second = run(pipe, tmp_path / "out")
    drawn = pooled(pipe(11, steps=2, batch=4))
    want = frechet_distance(moments(drawn), moments(pooled(REAL)))
    assert second["frechet"]["value"] == pytest.approx(want, rel=1e-4)
    assert (first["n"], first["frechet"]["real"], first["frechet"]["name"]) == (11, 14, "FD-Pooled")
    assert [(row["steps"], row["evaluations"], len(row["times"])) for row in (first, second)] == [(1, 1, 1), (2, 2, 2)]
    assert second["classes"] == "each has its turn" and second["origin"] == {"model": "tiny"}
    (kept,) = [path for path in (tmp_path / "cache" / "statistics").iterdir() if "features" in np.load(path)]
    precision, recall = precision_recall(np.load(kept)["features"], drawn[:9], 3)
    assert second["manifold"] == {"precision": precision, "recall": recall, "n": 9, "k": 3}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "recall, 9 a side" in table and "FD-Pooled" in table and "11 generated pictures, 14 real ones." in table

    asked = []
    stream = lambda self, n, rows, **told: asked.append(told["steps"]) or iter([REAL[:11]])
    monkeypatch.setattr(EDMPipeline, "stream", stream)
    assert run(pipe, tmp_path / "out") == [first, second] and not asked
    (tmp_path / "out" / "consistency-2.json").write_text(json.dumps({**second, "seed": 9}))
    run(pipe, tmp_path / "out")
    assert asked == [2]
    run(pipe, tmp_path / "out", REAL[:13])  # other real pictures, other scores
    assert asked == [2, 1, 2]


def test_every_class_has_its_turn_and_processes_share(pipe):
    whole = pipe(7, steps=1, batch=4)
    np.testing.assert_array_equal(whole[:4], pipe(4, steps=1, label=[0, 1, 2, 0], batch=4))
    shares = [np.concatenate(list(pipe.stream(7, np.arange(7)[i::2], steps=1, batch=4))) for i in range(2)]
    for i, share in enumerate(shares):
        assert np.abs(share.astype(int) - whole[i::2]).max() <= 1  # the last set is padded otherwise


def test_a_denoiser_is_scored_too_and_recall_may_be_left_out(tmp_path):
    spec = tiny.noise_spec("diffusion")
    (row,) = run(EDMPipeline(spec, tiny.noise_weights(spec)), tmp_path, steps=(3,), manifold=0)
    assert (row["sampler"], row["evaluations"], row["classes"]) == ("heun", 5, 0) and "manifold" not in row
    assert "recall" not in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": (1, 3)}, "noise levels for 1 to 2 steps, not 3"),
        ({"steps": ()}, "config.steps is .*: give at least one number"),
        ({"samples": 1}, "config.samples is 1: give 2 or more"),
        ({"batch": 0}, "config.batch is 0"),
        ({"manifold": -1}, "config.manifold is -1"),
        ({"manifold": 3}, "need 4 pictures a side, not 3: set config.manifold=0"),
        ({"features": "dino"}, "unknown feature network 'dino'"),
        ({"smaples": 3}, "config has no key 'smaples'; did you mean 'samples'"),
    ],
)
def test_bad_input_is_named_before_anything_is_drawn(pipe, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(EDMPipeline, "stream", None)
    with pytest.raises(ValueError, match=message):
        run(pipe, tmp_path, **changes)
