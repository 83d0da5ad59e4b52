"""ZEST as a verifier: parameters, bad input, files, batch sizes, suspects of any kind."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.postprocessor import Rounded
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier, SklearnClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import (
    EmptyFingerprintError,
    FingerprintFileError,
    IncompatibleSuspectError,
    InvalidInputError,
    NonFiniteOutputError,
)
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.segmentation import quickshift
from art_fingerprint.verifiers.zest import NORMS, ZestVerifier
from art_fingerprint.verifiers.zest_probes import ProbePlan
from tests.conftest import TinyCNN, wrap

Maker = Callable[..., PyTorchClassifier]
SMALL: dict[str, Any] = {"nb_images": 12, "nb_masks": 40, "kernel_size": 2.0}
NAMES = {f"ZEST-{norm}" for norm in NORMS}


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z.astype(np.float64))
    return (p / p.sum(1, keepdims=True)).astype(np.float32)


def box(predict: Callable[[np.ndarray], np.ndarray], nb_classes: int = 4) -> BlackBoxClassifierNeuralNetwork:
    return BlackBoxClassifierNeuralNetwork(predict, (1, 8, 8), nb_classes, clip_values=(0, 1))


def test_design_example(make_classifier: Maker, images: np.ndarray) -> None:
    victim = make_classifier(0)
    before = network_digest(network_of(victim))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier = ZestVerifier(victim, **SMALL)
        fingerprint = verifier.extract(images)
        verifier.calibrate([make_classifier(seed) for seed in (1, 2, 3, 4, 5)])
        assert verifier.verify(victim).derived is True
        verdict = verifier.verify(make_classifier(6))
    assert set(verdict.metrics) == NAMES
    assert all(result.direction == "distance" for result in verdict.metrics.values())
    assert network_digest(network_of(victim)) == before
    facts, arrays = fingerprint.facts, fingerprint.arrays
    assert verdict.queries == facts["nb_probes"] == len(ProbePlan.build(arrays, 4)) <= 12 * 40
    assert (facts["nb_images"], facts["requested_images"], facts["outputs"]) == (12, 12, "logits")
    assert (facts["single_segment_share"], facts["grid_share"]) == (0, 0)
    assert arrays["segments"].dtype == np.uint8
    assert arrays["masks"].shape == (12, 40, -(-facts["segments"]["max"] // 8))
    counts = arrays["segments"].reshape(12, -1).max(1).astype(int) + 1
    assert facts["segments"] == {"min": counts.min(), "median": np.median(counts), "max": counts.max()}
    assert arrays["signature_logits"].shape == arrays["signature_probabilities"].shape == (counts.sum(), 4)


@pytest.mark.parametrize("batch_size", [1, 7, 5000])
def test_results_do_not_depend_on_the_batch_size(make_classifier: Maker, images: np.ndarray, batch_size: int) -> None:
    whole = ZestVerifier(make_classifier(0), **SMALL)
    parts = ZestVerifier(make_classifier(0), batch_size=batch_size, **SMALL)
    a, b = whole.extract(images).arrays, parts.extract(images).arrays
    for name in ("images", "segments", "masks", "fill"):
        np.testing.assert_array_equal(a[name], b[name])
    np.testing.assert_allclose(a["signature_logits"], b["signature_logits"], atol=1e-5)
    assert whole.score(make_classifier(1)) == pytest.approx(parts.score(make_classifier(1)), rel=1e-4)


def test_no_batch_is_larger_than_asked(make_classifier: Maker, images: np.ndarray) -> None:
    sizes = []

    def predict(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return make_classifier(1).predict(x)

    verifier = ZestVerifier(make_classifier(0), batch_size=64, **SMALL)
    fingerprint = verifier.extract(images)
    verifier.score(box(predict))
    assert max(sizes) == 64
    assert sum(sizes) == fingerprint.facts["nb_probes"]


class Live(TorchDispatchMode):
    """Counts samples in tensors of four axes: the most in one tensor, the most of a shape at any one time."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.live: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
        self.largest = self.most = self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.ndim == 4:
            self.largest = max(self.largest, len(out))
            if out.shape[1:] == self.shape:
                self.live[id(out)] = out
                self.made += len(out)
                self.most = max(self.most, sum(map(len, self.live.values())))
        return out


@pytest.mark.parametrize("batch_size", [16, 50])
def test_masked_images_are_never_all_in_memory(make_classifier: Maker, images: np.ndarray, batch_size: int) -> None:
    verifier = ZestVerifier(make_classifier(0), batch_size=batch_size, **SMALL)
    probes = verifier.extract(images).facts["nb_probes"]
    suspect = make_classifier(1)
    verifier.score(suspect)
    with Live((1, 8, 8)) as live:
        verifier.score(suspect)
    assert live.made >= probes > 6 * batch_size
    assert live.largest == batch_size
    # the batch being masked, its originals and the network's copy, while the batch before is still there
    assert live.most <= 5 * batch_size


def test_seed_decides_masks_and_shuffled_images(make_classifier: Maker, images: np.ndarray) -> None:
    def extract(seed: int, shuffle: bool = False) -> Fingerprint:
        return ZestVerifier(make_classifier(0), seed=seed, shuffle=shuffle, **SMALL).extract(images)

    assert extract(3).digest == extract(3).digest
    assert np.array_equal(extract(3).arrays["images"], images[:12])
    assert not np.array_equal(extract(3).arrays["masks"], extract(4).arrays["masks"])
    a, b = extract(3, True).arrays["images"], extract(4, True).arrays["images"]
    assert not np.array_equal(a, b)
    assert all(any(np.array_equal(one, image) for image in images) for one in a)


def test_file_round_trip_gives_the_same_verdict(make_classifier: Maker, images: np.ndarray, tmp_path: Path) -> None:
    verifier = ZestVerifier(make_classifier(0), fill=np.array([0.5]), **SMALL)
    fingerprint = verifier.extract(images)
    verifier.calibrate([make_classifier(1), make_classifier(2)])
    loaded = ZestVerifier.from_fingerprint(Fingerprint.load(fingerprint.save(tmp_path / "f.safetensors")))
    assert loaded.fill == [0.5]
    assert loaded.verify(make_classifier(3)) == verifier.verify(make_classifier(3))


def test_a_new_fingerprint_replaces_the_cached_plan(make_classifier: Maker, images: np.ndarray) -> None:
    verifier = ZestVerifier(make_classifier(0), **SMALL)
    first = verifier.extract(images)
    expected = verifier.score(make_classifier(1))
    verifier.extract(images[20:])
    assert verifier.score(make_classifier(1)) != expected
    verifier.fingerprint = first
    assert verifier.score(make_classifier(1)) == expected


def test_damaged_arrays_are_refused(make_classifier: Maker, images: np.ndarray) -> None:
    fingerprint = ZestVerifier(make_classifier(0), **SMALL).extract(images)
    good = fingerprint.arrays
    changes: dict[str, dict[str, np.ndarray]] = {
        "segments": {"segments": good["segments"][:5]},
        "masks": {"masks": good["masks"][..., :1], "segments": good["segments"] + np.uint8(8)},
        "fill": {"fill": np.zeros((2, 1, 1), np.float32)},
        "images": {"images": good["images"][0]},
        "signature": {"signature_logits": good["signature_logits"][:-1]},
    }
    for name, change in changes.items():
        damaged = ({**good, **change}, {key: array for key, array in good.items() if key not in change})
        for arrays in damaged:
            wrong = Fingerprint(fingerprint.verifier, fingerprint.params, fingerprint.facts, arrays)
            with pytest.raises(FingerprintFileError, match=name):
                ZestVerifier.from_fingerprint(wrong).score(make_classifier(1))


# ---------------------------------------------------------------------- segments
def smooth(n: int, channels: int = 1, size: int = 8) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    x = nn.functional.interpolate(torch.rand(n, channels, 4, 4, generator=generator), size, mode="bilinear")
    return np.ascontiguousarray(x.clamp(0, 1).numpy())


def test_flat_images(make_classifier: Maker, images: np.ndarray) -> None:
    options: dict[str, Any] = {"nb_masks": 20, "kernel_size": 2.0}
    flat = np.full((12, 1, 8, 8), 0.5, np.float32)
    with pytest.raises(EmptyFingerprintError, match="segmenter='grid'"):
        ZestVerifier(make_classifier(0), **options).extract(flat)
    mixed = np.concatenate([flat[:4], images[:8]])
    with pytest.warns(UserWarning, match="33% of the images have a single segment"):
        fingerprint = ZestVerifier(make_classifier(0), **options).extract(mixed)
    assert fingerprint.facts["single_segment_share"] == pytest.approx(1 / 3)
    # one segment: the weights are the plain output
    plain = make_classifier(0).predict(flat[:1])[0]
    np.testing.assert_allclose(fingerprint.arrays["signature_logits"][:4], np.tile(plain, (4, 1)), atol=1e-6)
    few = np.concatenate([flat[:2], images[:10]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZestVerifier(make_classifier(0), **options).extract(few)
        auto = ZestVerifier(make_classifier(0), segmenter="auto", grid_cells=3, **options).extract(mixed)
    counts = auto.arrays["segments"].reshape(12, -1).max(1) + 1
    assert counts[:4].tolist() == [9] * 4
    assert auto.facts["single_segment_share"] == 0
    assert 4 / 12 <= auto.facts["grid_share"] < 1


def test_grid_segments(make_classifier: Maker, images: np.ndarray) -> None:
    fingerprint = ZestVerifier(make_classifier(0), segmenter="grid", nb_masks=20, nb_images=10).extract(images)
    assert fingerprint.facts["segments"] == {"min": 64, "median": 64.0, "max": 64}
    assert fingerprint.facts["grid_share"] == 1
    with pytest.raises(EmptyFingerprintError, match="grid_cells"):
        ZestVerifier(make_classifier(0), segmenter="grid", grid_cells=1).extract(images)


def test_many_segments_need_a_wider_type() -> None:
    victim = wrap(nn.Sequential(nn.Flatten(), nn.Linear(400, 3)), (1, 20, 20), 3)
    x = np.random.default_rng(0).random((10, 1, 20, 20), dtype=np.float32)
    verifier = ZestVerifier(victim, segmenter="grid", grid_cells=20, nb_masks=10)
    fingerprint = verifier.extract(x)
    assert fingerprint.arrays["segments"].max() == 399
    assert verifier.score(victim) == pytest.approx(dict.fromkeys(NAMES, 0), abs=1e-9)


def test_clip_values_are_mapped_to_0_255(make_classifier: Maker) -> None:
    x = smooth(12)
    expected = ZestVerifier(make_classifier(0), nb_masks=20).extract(x).arrays["segments"]
    np.testing.assert_array_equal(expected, quickshift(torch.from_numpy(x).double() * 255).numpy())
    wide = make_classifier(0, clip_values=(-1.0, 3.0))
    segments = ZestVerifier(wide, nb_masks=20).extract((4 * x - 1).astype(np.float32)).arrays["segments"]
    assert (segments == expected).mean() > 0.95  # rounding of the inputs may move a pixel


def test_legacy_segmentation_mixes_images_and_channels(make_classifier: Maker) -> None:
    mean, std = np.array([0.5, 0.4, 0.6], np.float32), np.array([0.2, 0.3, 0.25], np.float32)
    victim = make_classifier(0, 3, preprocessing=(mean.reshape(3, 1, 1), std.reshape(3, 1, 1)))
    x = smooth(12, 3)
    options = {"nb_masks": 20, "nb_images": 12, "shuffle": False}
    legacy = ZestVerifier.from_profile(victim, "removalnet-legacy", **options)
    colours = (x.astype(np.float64) - mean[:, None, None]) / std[:, None, None]
    for i in range(3):
        colours[i] = colours[i] * std[i] + mean[i]
    expected = quickshift(torch.from_numpy(colours.clip(0, 1) * 255)).numpy()
    np.testing.assert_array_equal(legacy.extract(x).arrays["segments"], expected)
    assert not np.array_equal(ZestVerifier(victim, nb_masks=20).extract(x).arrays["segments"], expected)


def test_profiles() -> None:
    assert ZestVerifier.from_profile(None, "paper").params() == ZestVerifier(None).params()
    paper, removalnet = ZestVerifier(None), ZestVerifier.from_profile(None, "removalnet", nb_images=7)
    assert (paper.nb_images, paper.nb_masks, paper.segmenter, paper.align) == (128, 1000, "quickshift", "greedy")
    assert (removalnet.nb_images, removalnet.nb_masks, removalnet.shuffle) == (7, 500, True)


# ---------------------------------------------------------------------- fill
def test_fill_of_every_form(make_classifier: Maker, images: np.ndarray) -> None:
    def fill_of(value: object, **options: Any) -> list[float]:
        fingerprint = ZestVerifier(make_classifier(0, **options), fill=value, **SMALL).extract(images)
        fill = fingerprint.arrays["fill"]
        assert fill.dtype == np.float32
        assert fill.shape in ((1, 1, 1), (1, 8, 8))
        return [round(float(v), 5) for v in fill.flatten()]

    assert fill_of(None) == [0]
    assert fill_of(None, preprocessing=(0.3, 0.5)) == [0.3]
    assert fill_of(0.25) == fill_of([0.25]) == fill_of(np.float32(0.25)) == [0.25]
    assert fill_of(np.full((1, 8, 8), 0.5)) == [0.5] * 64
    for wrong in ([0.1, 0.2], np.zeros((1, 4, 4))):
        with pytest.raises(InvalidInputError, match="fill"):
            fill_of(wrong)


def test_masked_images_show_the_fill(make_classifier: Maker, images: np.ndarray) -> None:
    background = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    arrays = ZestVerifier(make_classifier(0), fill=background, **SMALL).extract(images).arrays
    plan = ProbePlan.build(arrays, 4)
    batch = torch.cat(list(plan.batches(50, torch.device("cpu")))).numpy()
    assert len(batch) == len(plan)
    for masked, owner in zip(batch, plan.owner, strict=True):
        kept = masked == arrays["images"][owner]
        assert (kept | (masked == background)).all()
        segments = arrays["segments"][owner]
        for label in np.unique(segments):
            assert len(np.unique(kept[0][segments == label])) == 1
    assert len(np.unique(batch.reshape(len(batch), -1), axis=0)) == len(batch)


# ---------------------------------------------------------------------- suspects
def test_black_box_suspects(make_classifier: Maker, images: np.ndarray) -> None:
    verifier = ZestVerifier(make_classifier(0), **SMALL)
    verifier.extract(images)
    other = make_classifier(1)
    assert verifier.score(box(other.predict)) == pytest.approx(verifier.score(other), rel=1e-5)
    with pytest.warns(UserWarning, match="compared as probabilities"):
        scores = verifier.score(box(lambda x: softmax(make_classifier(0).predict(x))))
    assert scores == pytest.approx(dict.fromkeys(NAMES, 0), abs=1e-3)
    with pytest.warns(UserWarning, match="compared as probabilities"):
        mixed = verifier.score(box(lambda x: softmax(other.predict(x))))
    verifier.set_params(space="probabilities")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verifier.score(other) == pytest.approx(mixed, rel=1e-4)
        assert verifier.score(box(lambda x: softmax(other.predict(x)))) == pytest.approx(mixed, rel=1e-4)


def test_flat_suspect_of_another_library(make_classifier: Maker, images: np.ndarray) -> None:
    verifier = ZestVerifier(make_classifier(0), space="probabilities", **SMALL)
    verifier.extract(images)
    model = LogisticRegression().fit(images.reshape(40, -1), np.arange(40) % 3)
    scores = verifier.score(SklearnClassifier(model, clip_values=(0, 1)))
    assert set(scores) == NAMES
    assert all(value > 0 for value in scores.values())


def test_victim_of_probabilities(make_classifier: Maker, images: np.ndarray) -> None:
    victim = wrap(nn.Sequential(network_of(make_classifier(0)), nn.Softmax(1)).eval())
    verifier = ZestVerifier(victim, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verifier.extract(images).facts["outputs"] == "probabilities"
        assert verifier.score(victim) == pytest.approx(dict.fromkeys(NAMES, 0), abs=1e-12)
    with pytest.warns(UserWarning, match="compared as probabilities"):
        assert verifier.score(make_classifier(0)) == pytest.approx(dict.fromkeys(NAMES, 0), abs=1e-3)


def test_victim_that_rounds_its_answers(make_classifier: Maker, images: np.ndarray) -> None:
    victim = make_classifier(0, postprocessing_defences=Rounded(decimals=1))
    verifier = ZestVerifier(victim, **SMALL)
    verifier.extract(images)
    assert verifier.score(victim) == pytest.approx(dict.fromkeys(NAMES, 0), abs=1e-9)


def test_another_number_of_classes(make_classifier: Maker, images: np.ndarray) -> None:
    verifier = ZestVerifier(make_classifier(0), metric_names=["ZEST-cosine"], **SMALL)
    verifier.extract(images)
    for nb_classes in (2, 7):
        assert 0 <= verifier.score(make_classifier(1, nb_classes=nb_classes))["ZEST-cosine"] <= 2
    verifier.set_params(align="hungarian")
    assert set(verifier.score(make_classifier(1, nb_classes=7))) == {"ZEST-cosine"}
    verifier.set_params(align="identity")
    with pytest.raises(IncompatibleSuspectError, match="greedy"):
        verifier.score(make_classifier(1, nb_classes=7))


def test_broken_suspects_and_victims(make_classifier: Maker, images: np.ndarray) -> None:
    verifier = ZestVerifier(make_classifier(0), **SMALL)
    verifier.extract(images)
    with pytest.raises(NonFiniteOutputError, match="suspect"):
        verifier.score(box(lambda x: np.full((len(x), 4), np.nan, np.float32)))
    with pytest.raises(IncompatibleSuspectError, match="shape"):
        verifier.score(make_classifier(1, channels=3))
    victim = make_classifier(0)
    with torch.no_grad():
        next(network_of(victim).parameters()).fill_(np.nan)
    with pytest.raises(NonFiniteOutputError, match="victim"):
        ZestVerifier(victim, **SMALL).extract(images)


def test_train_mode_does_not_matter(make_classifier: Maker, images: np.ndarray) -> None:
    verifier = ZestVerifier(make_classifier(0), **SMALL)
    verifier.extract(images)
    suspect = make_classifier(1)
    expected = verifier.score(suspect)
    suspect.model.train()
    assert verifier.score(suspect) == expected
    assert suspect.model.training


# ---------------------------------------------------------------------- input
def test_bad_data(make_classifier: Maker, images: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="only 3 images"):
        fingerprint = ZestVerifier(make_classifier(0), nb_masks=20).extract(images[:3])
    assert (fingerprint.facts["nb_images"], fingerprint.facts["requested_images"]) == (3, 128)
    flat = wrap(nn.Linear(64, 4), (64,))
    with pytest.raises(InvalidInputError, match="images"):
        ZestVerifier(flat, **SMALL).extract(images.reshape(40, 64))


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_any_number_of_channels(channels: int) -> None:
    victim = wrap(TinyCNN(channels).eval(), (channels, 8, 8))
    verifier = ZestVerifier(victim, nb_masks=20, segmenter="auto", grid_cells=2)
    verifier.extract(smooth(10, channels))
    assert verifier.score(victim) == pytest.approx(dict.fromkeys(NAMES, 0), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nb_images", 0),
        ("nb_masks", 1),
        ("segmenter", "slic"),
        ("kernel_size", 0.5),
        ("max_dist", 0),
        ("ratio", -0.1),
        ("grid_cells", 2.5),
        ("segmentation_input", "raw"),
        ("fill", "black"),
        ("fill", [[0.0]]),
        ("fill", [0.0, [1.0]]),
        ("fill", np.inf),
        ("align", "best"),
        ("space", "logits"),
        ("shuffle", 1),
        ("metric_names", ["L2"]),
    ],
)
def test_bad_parameters_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name):
        ZestVerifier(None, **{name: value})  # type: ignore[arg-type]
    verifier = ZestVerifier(None)
    before = verifier.params()
    with pytest.raises(InvalidInputError, match=name):
        verifier.set_params(**{name: value})
    assert verifier.params() == before
