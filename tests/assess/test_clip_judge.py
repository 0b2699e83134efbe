"""CLIP scores end to end, from a folder as transformers saves it to one number, against transformers."""

import json

import numpy as np
import pytest

from lcm_jax.assess.clip_judge import check_preprocessing, open_clip
from lcm_jax.assess.picture_scores import score_pictures
from lcm_jax.evaluate.clip_score import clip_scores
from lcm_jax.evaluate.feature_statistics import FeatureStatistics
from lcm_jax.evaluate.features import FeatureNet, extract

START, END = "<|startoftext|>", "<|endoftext|>"
CAPTIONS = ["a cat", "the dog", "a cat", "", "cats and dogs, " * 3]


def pictures(count=5, h=40, w=31):
    return np.random.default_rng(0).integers(0, 256, (count, h, w, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A tiny random CLIP and its processor, and the folder both were saved in."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(c + "</w>" for c in letters), "ca", "cat</w>", START, END]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    ends = dict(bos_token=START, eos_token=END, unk_token=END, pad_token=END)
    settings = dict(ends, model_max_length=77, tokenizer_class="CLIPTokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    common = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    ids = dict(bos_token_id=len(pieces) - 2, eos_token_id=len(pieces) - 1, pad_token_id=len(pieces) - 1)
    config = transformers.CLIPConfig(
        text_config=dict(common, hidden_size=16, vocab_size=len(pieces), max_position_embeddings=77, **ids),
        vision_config=dict(common, hidden_size=20, image_size=24, patch_size=6),
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():  # random, but large enough that pictures and captions differ
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    model.save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor.save_pretrained(folder)
    return torch, model, tokenizer, processor, folder


@pytest.fixture(scope="module")
def judge(theirs):
    return open_clip(theirs[-1])


def scores(judge, images):
    return clip_scores(extract(judge.vision, images), judge.of_captions(CAPTIONS))


def test_scores_are_those_of_transformers(theirs, judge):
    torch, model, tokenizer, processor, _ = theirs
    tokens = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    pixels = torch.tensor(np.asarray(processor(list(pictures()), return_tensors="np")["pixel_values"]))
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    want = 100 * (out.image_embeds * out.text_embeds).sum(-1).clamp(min=0).numpy()
    got = scores(judge, pictures())
    assert want.max() > 1 and want.std() > 0.1  # there is something to be seen
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_each_caption_is_read_once(judge):
    vectors = judge.of_captions(CAPTIONS)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_pictures_that_stream_by_get_both_scores(judge):
    net = FeatureNet("means", "hash", lambda x: x.mean((1, 2)))
    real = FeatureStatistics.none(3)
    real.add(pictures(9)[1:].mean((1, 2)).astype(np.float32))
    found = score_pictures([pictures()[:2], pictures()[2:]], CAPTIONS, net, real, judge)
    each = scores(judge, pictures())
    assert found["clip_score"]["mean"] == pytest.approx(each.mean(), rel=1e-6)
    assert found["clip_score"]["standard_error"] == pytest.approx(each.std(ddof=1) / 5**0.5, rel=1e-5)
    assert found["clip_score"]["clip"] == judge.hash
    with pytest.raises(ValueError, match="5 pictures and 4 captions"):
        score_pictures([pictures()], CAPTIONS[:4], net, real, judge)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"size": 24, "crop_size": 24},  # as older files say it
        {"resample": 3, "do_convert_rgb": True, "feature_extractor_type": "CLIPFeatureExtractor"},
        {"rescale_factor": 0.00392156862745098},
    ],
)
def test_usual_preprocessing_is_taken(change, tmp_path):
    usual = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    check_preprocessing(usual | change, 24, tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"resample": 2}, "resample 2; supported is 3"),
        ({"size": {"height": 24, "width": 24}}, "size {'height': 24, 'width': 24}; supported is 24"),
        ({"size": {"shortest_edge": 30}}, "size 30; supported is 24"),
        ({"crop_size": 20}, "crop_size height 20"),
        ({"do_center_crop": False}, "do_center_crop False"),
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean \[0.5, 0.5, 0.5\]; supported is \[0.48"),
        ({"image_std": None}, "image_std None"),
    ],
)
def test_other_preprocessing_is_refused_by_name(change, message, tmp_path):
    usual = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json has {message}") as error:
        check_preprocessing(usual | change, 24, tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_whole_clip_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json: give a whole CLIP"):
        open_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(ValueError, match="'clip_vision_model' model, no whole CLIP"):
        open_clip(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        open_clip(tmp_path)
