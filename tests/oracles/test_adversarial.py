"""The adapter around torchattacks: equal to ART's attacks, blind to clip values and preprocessing, and clean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.preprocessor import JpegCompression
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError
from torch import Tensor, nn

from art_fingerprint.core.adversarial import Evasion, adversarial_examples
from art_fingerprint.exceptions import InvalidInputError
from tests.conftest import TinyCNN, wrap
from tests.states import black_box, mark, random_states, state_of
from tests.victims import several_classes

X = np.random.default_rng(3).random((24, 1, 8, 8), dtype=np.float32)
Y = np.arange(24) % 4
PGD = {"eps": 0.06, "alpha": 0.02, "steps": 5, "random_start": False}


def victim(**options: Any) -> PyTorchClassifier:
    return several_classes(X, **options)


def scaled(low: float, high: float, mean: float, std: float) -> PyTorchClassifier:
    """A classifier of inputs in [low, high] with standardisation in front; its network is the victim's."""
    return several_classes(X, clip_values=(low, high), preprocessing=(mean, std))


@pytest.mark.parametrize(
    ("low", "high", "mean", "std"), [(0, 1, 0, 1), (0, 1, 0.4, 0.3), (0, 255, 127, 60), (-1, 1, 0, 0.5)]
)
def test_fgsm_and_pgd_equal_art(low: float, high: float, mean: float, std: float) -> None:
    classifier = scaled(low, high, mean, std)
    x = (low + (high - low) * X).astype(np.float32)
    span = high - low
    fgsm = adversarial_examples(classifier, Evasion("FGSM", {"eps": 0.05}), x, Y)
    expected = FastGradientMethod(classifier, eps=0.05 * span).generate(x, Y)
    assert np.abs(fgsm - expected).max() <= 1e-5 * span
    assert np.abs(fgsm - x).max() == pytest.approx(0.05 * span, rel=1e-4)
    pgd = adversarial_examples(classifier, Evasion("PGD", PGD), x, Y)
    art = ProjectedGradientDescent(classifier, eps=0.06 * span, eps_step=0.02 * span, max_iter=5, verbose=False)
    # Where a gradient is next to zero its sign, and so a whole step, is a matter of rounding: one image may go its way.
    differs = np.abs(pgd - art.generate(x, Y)) > 1e-5 * span
    assert differs.any((1, 2, 3)).sum() <= 1
    # ART's attack given to us is the same call
    assert np.array_equal(adversarial_examples(classifier, art, x, Y), art.generate(x, Y))


def test_an_art_attack_of_another_classifier_is_made_anew() -> None:
    ours, theirs = victim(), victim(seed=4)
    attack = FastGradientMethod(theirs, eps=0.07)
    expected = FastGradientMethod(ours, eps=0.07).generate(X, Y)
    assert np.array_equal(adversarial_examples(ours, attack, X, Y), expected)
    assert attack.estimator is theirs
    made = adversarial_examples(ours, lambda classifier: FastGradientMethod(classifier, eps=0.07), X, Y)
    assert np.array_equal(made, expected)


@pytest.mark.parametrize("name", ["FGSM", "PGD"])
def test_normalised_space_is_pixel_space_times_the_standard_deviation(name: str) -> None:
    classifier = scaled(0, 1, 0.4, 0.25)
    params = {"eps": 0.2} if name == "FGSM" else {"eps": 0.2, "alpha": 0.08, "steps": 5, "random_start": False}
    pixel = {key: value * 0.25 if key in ("eps", "alpha") else value for key, value in params.items()}
    found = adversarial_examples(classifier, Evasion(name, params, eps_space="normalised"), X, Y)
    assert np.abs(found - adversarial_examples(classifier, Evasion(name, pixel), X, Y)).max() <= 1e-5


@pytest.mark.parametrize("attack", ["FGSM", "PGD", "DeepFool", "BIM", "CW", "FAB", "Square", "Jitter"])
def test_any_attack_leaves_no_trace_and_repeats_itself(attack: str) -> None:
    params = {"steps": 3} if attack in ("PGD", "DeepFool", "BIM", "CW", "FAB", "Jitter") else {}
    params |= {"n_queries": 20} if attack == "Square" else {}
    classifier = victim()
    mark(classifier)  # mixed train/eval flags, gradients, frozen weights, hooks
    before, drawn, x = state_of(classifier), random_states(), X.copy()
    first = adversarial_examples(classifier, Evasion(attack, params), x, Y, seed=3)
    assert (state_of(classifier), random_states()) == (before, drawn)
    assert np.array_equal(x, X)
    assert first.shape == X.shape
    assert first.dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 1
    torch.rand(3)
    assert np.array_equal(adversarial_examples(classifier, Evasion(attack, params), x, Y, seed=3), first)


def test_pgd_from_random_starts_does_not_depend_on_the_batch_size() -> None:
    whole = adversarial_examples(victim(), "PGD", X, Y, batch_size=128, seed=1)
    assert np.abs(adversarial_examples(victim(), "PGD", X, Y, batch_size=5, seed=1) - whole).max() < 1e-5
    assert not np.array_equal(adversarial_examples(victim(), "PGD", X, Y, seed=2), whole)


@pytest.mark.parametrize("attack", ["FGSM", "DeepFool", "PGD"])
def test_everything_comes_back_after_an_exception(attack: str) -> None:
    class Fails(TinyCNN):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Fails.calls += 1
            if Fails.calls > 3:
                raise RuntimeError("half-way")
            return super().forward(x)

    torch.manual_seed(0)
    classifier = wrap(Fails(nb_classes=4).eval(), (1, 8, 8), 4)
    mark(classifier)
    before, drawn = state_of(classifier), random_states()
    with pytest.raises(InvalidInputError, match=f"{attack} failed on images .*half-way"):
        adversarial_examples(classifier, attack, X, Y, batch_size=4)
    assert (state_of(classifier), random_states()) == (before, drawn)


def test_the_batched_engine_and_torchattacks_agree_through_the_adapter() -> None:
    classifier = scaled(-1, 1, 0.1, 0.5)
    x = 2 * X - 1
    ours = adversarial_examples(classifier, Evasion("DeepFool", {"steps": 8}), x, Y)
    theirs = adversarial_examples(classifier, Evasion("DeepFool", {"steps": 8}, engine="torchattacks"), x, Y)
    assert np.abs(ours - theirs).max() < 1e-5


def test_attacks_on_all_classes_are_told_how_many_there_are() -> None:
    # torchattacks' FAB takes ten classes for granted and would fail on four
    assert np.isfinite(adversarial_examples(victim(), Evasion("FAB", {"steps": 2}), X, Y)).all()


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("PDG", {}, r"no attack 'PDG'.*PGD"),
        ("fgsm", {}, r"no attack 'fgsm'.*FGSM"),
        ("Attack", {}, "no attack"),
        ("MultiAttack", {}, "no attack"),
        (3, {}, "no attack"),
        ("FGSM", {"epsilon": 0.1}, "no parameter 'epsilon'; it has eps"),
        ("FGSM", {"eps": 0}, "`eps`"),
        ("FGSM", {"eps": -1 / 255}, "`eps`"),
        ("PGD", {"eps": float("nan")}, "`eps`"),
        ("PGD", {"alpha": 0}, "`alpha`"),
        ("PGD", {"steps": 0}, "`steps`"),
        ("PGD", {"random_start": 1}, "`random_start`"),
    ],
)
def test_bad_attacks(name: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Evasion(name, params)


@pytest.mark.parametrize(
    "options", [{"eps_space": "raw"}, {"engine": "ours"}, {"eps_space": "normalised", "engine": "torchattacks"}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Evasion("FGSM", **options)
    with pytest.raises(InvalidInputError):
        Evasion("CW", eps_space="normalised")


@pytest.mark.parametrize("attack", [None, 3, TinyCNN, FastGradientMethod])
def test_what_is_no_attack(attack: Any) -> None:
    with pytest.raises(InvalidInputError, match="must be the name"):
        adversarial_examples(victim(), attack, X, Y)


def test_bad_data_changes_nothing() -> None:
    classifier = victim()
    mark(classifier)
    before = state_of(classifier)
    for x, y, message in (
        (255 * X, Y, r"outside the classifier's clip_values \(0, 1\)"),
        (X - 0.5, Y, "outside the classifier's clip_values"),
        (X, Y + 1, "`y`"),
        (X, Y[:3], "one label for each"),
        (X[:, 0], Y, "`x`"),
        (np.full_like(X, np.nan), Y, "NaN"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            adversarial_examples(classifier, "FGSM", x, y)
    with pytest.raises(EstimatorError):
        adversarial_examples(black_box(classifier), "FGSM", X, Y)  # type: ignore[arg-type]
    assert state_of(classifier) == before


class Softmaxed(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1)


def test_models_of_probabilities_are_refused_or_declared() -> None:
    plain = victim()
    soft = wrap(Softmaxed(plain.model).eval(), (1, 8, 8), 4)
    with pytest.raises(InvalidInputError, match="returns probabilities"):
        adversarial_examples(soft, "FGSM", X, Y)
    declared = adversarial_examples(soft, "FGSM", X, Y, outputs="probabilities")
    # log-probabilities have the cross-entropy of the logits, so nearly every sign is the same
    assert (np.abs(declared - adversarial_examples(plain, "FGSM", X, Y)) < 1e-6).mean() > 0.99


def test_preprocessing_without_a_gradient_is_refused() -> None:
    defended = victim(preprocessing_defences=[JpegCompression(clip_values=(0, 1), channels_first=True)])
    with pytest.raises(InvalidInputError, match="no torch gradient"):
        adversarial_examples(defended, "FGSM", X, Y)


def test_targeted_and_broken_art_attacks_are_refused() -> None:
    classifier = victim()
    with pytest.raises(InvalidInputError, match="targeted"):
        adversarial_examples(classifier, ProjectedGradientDescent(classifier, targeted=True, verbose=False), X, Y)
    with pytest.raises(InvalidInputError, match="must return an ART EvasionAttack"):
        adversarial_examples(classifier, lambda _: None, X, Y)  # type: ignore[arg-type, return-value]
