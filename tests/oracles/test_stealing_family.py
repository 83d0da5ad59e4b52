"""Model stealing and distillation: the bandit by hand, plain second versions, fresh weights, counted queries, ART."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from art.attacks.extraction import KnockoffNets
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import (
    DistillationAttack,
    KnockoffNetsAttack,
    LogitDistillationAttack,
    RetrainingAttack,
)
from art_fingerprint.attacks.distillation import Projection
from art_fingerprint.attacks.knockoff_bandit import (
    Bandit,
    Rewards,
    certainty,
    disagreement,
    diversity,
    occurrences,
    running_means,
)
from art_fingerprint.attacks.logit_distillation import distillation_terms
from art_fingerprint.attacks.retraining import augmented
from art_fingerprint.attacks.stealing import fresh_classifier, reinitialised
from art_fingerprint.core.seeding import forked_random_state, numpy_generator
from art_fingerprint.core.training import Batch, Batches
from art_fingerprint.exceptions import InvalidInputError, NonFiniteOutputError, TrainingDivergedError
from tests.conftest import TinyCNN, wrap
from tests.victims import TinyTokens, several_classes, token_classifier

Options = dict[str, Any]
QUICK: Options = {"max_iter": 4, "batch_size": 16}
Y = np.arange(40) % 4
ADAPTIVE: Options = {"sampling_strategy": "adaptive", "draws": 4}
THIEVES: list[tuple[type[Any], Options]] = [
    (KnockoffNetsAttack, {}),
    (KnockoffNetsAttack, ADAPTIVE),
    (LogitDistillationAttack, {}),
    (RetrainingAttack, {}),
    (RetrainingAttack, {"label_queries": 2}),
    (DistillationAttack, {"init": "random"}),
]
every_thief = pytest.mark.parametrize(
    ("attack", "options"), THIEVES, ids=[f"{a.__name__} {' '.join(o)}".strip() for a, o in THIEVES]
)


class Perceptron(nn.Module):
    """Two layers, nothing random, nothing that depends on the batch."""

    def __init__(self, width: int = 12, nb_classes: int = 4) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, width)
        self.head = nn.Linear(width, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x.flatten(1)).relu())


def perceptron(seed: int) -> Perceptron:
    with forked_random_state(seed, "perceptron"):
        return Perceptron()


def equal(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


def assert_close(a: nn.Module, b: nn.Module, tolerance: float = 1e-6) -> None:
    other = b.state_dict()
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=10 * tolerance, msg=name)


# ---------------------------------------------------------------------- G11, the gradient bandit
def test_bandit_table() -> None:
    bandit = Bandit.start(2)
    table = [
        ((0, 1.0), 1.0, (0.0, 0.0), (0.5, 0.5)),
        ((1, 0.0), 0.5, (0.25, -0.25), (0.622459, 0.377541)),
        ((0, 1.0), 0.666667, (0.312923, -0.312923), (0.651547, 0.348453)),
    ]
    for (action, reward), mean, preferences, policy in table:
        bandit = bandit.after(np.array([action]), np.array([reward]))
        assert bandit.mean_reward == pytest.approx(mean, abs=1e-6)
        assert bandit.preferences == pytest.approx(preferences, abs=1e-6)
        assert bandit.policy == pytest.approx(policy, abs=1e-6)
    assert bandit.counts.tolist() == [2, 1]


def slow_bandit(nb_actions: int, draws: list[tuple[list[int], list[float]]]) -> tuple[list[float], list[int]]:
    """Draw by draw, action by action; the policy is that of the start of each group."""
    h, counts, mean, t = [0.0] * nb_actions, [0] * nb_actions, 0.0, 0
    for actions, rewards in draws:
        total = sum(math.exp(v) for v in h)
        pi = [math.exp(v) / total for v in h]
        for a, r in zip(actions, rewards, strict=True):
            t += 1
            mean += (r - mean) / t
            counts[a] += 1
            for b in range(nb_actions):
                h[b] += (r - mean) / counts[a] * ((1 if a == b else 0) - pi[b])
    return h, counts


@pytest.mark.parametrize("k", [1, 3, 8])
def test_bandit_equals_a_slow_loop(k: int) -> None:
    generator = np.random.default_rng(k)
    draws = [(generator.integers(0, 5, k), generator.normal(size=k)) for _ in range(30)]
    bandit = Bandit.start(5)
    for actions, rewards in draws:
        bandit = bandit.after(actions, rewards)
    h, counts = slow_bandit(5, [(a.tolist(), r.tolist()) for a, r in draws])
    assert bandit.preferences == pytest.approx(h, abs=1e-12)
    assert bandit.counts.tolist() == counts
    assert bandit.policy.sum() == pytest.approx(1)


def test_bandit_prefers_what_pays() -> None:
    generator, bandit = np.random.default_rng(0), Bandit.start(3)
    for _ in range(300):
        action = generator.choice(3, 1, p=bandit.policy)
        bandit = bandit.after(action, np.array([3.0, 0.0, 0.0])[action])
    assert bandit.policy.argmax() == 0
    assert bandit.policy[0] > 0.8


def test_large_preferences_do_not_overflow() -> None:
    bandit = Bandit(np.array([0.0, 5000.0]), np.array([1, 1]))
    assert bandit.policy.tolist() == [0.0, 1.0]


def test_occurrences_and_means() -> None:
    assert occurrences(np.array([2, 0, 2, 2, 0])).tolist() == [1, 1, 2, 3, 2]
    values = np.random.default_rng(0).normal(size=(7, 3))
    seen = running_means(values[4:], values[:4].mean(0), 4)
    for i, row in enumerate(seen):
        assert row == pytest.approx(values[: 5 + i].mean(0))


# ---------------------------------------------------------------------- rewards
P = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
Q = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.1, 0.8]])


def test_rewards_by_hand() -> None:
    assert certainty(P) == pytest.approx([0.5, 0.1, 0.3, 0.4])
    assert diversity(P[:1], np.array([[0.4, 0.35, 0.25]])) == pytest.approx([0.3])
    assert diversity(P[1:2], np.array([[0.0, 0.2, 0.2]])) == pytest.approx([0.1 + 0.3 + 0.2])
    wanted = -(0.7 * math.log(0.5) + 0.3 * math.log(0.25))
    assert disagreement(P[:1], np.log(Q[:1])) == pytest.approx([wanted])


def slow_rewards(kind: str) -> list[float]:
    """One answer after the other, with means and squares taken over all answers so far."""
    found: list[list[float]] = []
    rewards = []
    for t in range(len(P)):
        mean = P[: t + 1].mean(0)
        top = sorted(P[t])
        three = [
            top[-1] - top[-2],
            sum(max(0.0, P[t][k] - mean[k]) for k in range(3)),
            -sum(P[t][k] * math.log(Q[t][k]) for k in range(3)),
        ]
        found.append(three)
        if kind != "all":
            rewards.append(three[("cert", "div", "loss").index(kind)])
            continue
        standardised = []
        for i in range(3):
            means = [sum(row[i] for row in found[: s + 1]) / (s + 1) for s in range(t + 1)]
            variance = sum((row[i] - m) ** 2 for row, m in zip(found, means, strict=True)) / (t + 1)
            standardised.append((three[i] - means[-1]) / max(math.sqrt(variance), 1e-8))
        rewards.append(sum(standardised) / 3)
    return rewards


@pytest.mark.parametrize("kind", ["cert", "div", "loss", "all"])
@pytest.mark.parametrize("groups", [[1, 1, 1, 1], [4], [1, 3], [2, 2]], ids=str)
def test_rewards_equal_a_slow_loop(kind: str, groups: list[int]) -> None:
    rewards, found, start = Rewards(kind, 3), [], 0
    for k in groups:
        part = slice(start, start + k)
        found += rewards(P[part], np.log(Q[part]) if rewards.needs_thief else None).tolist()
        start += k
    assert found == pytest.approx(slow_rewards(kind), abs=1e-10)


def test_rewards_without_variance_are_zero() -> None:
    rewards = Rewards("all", 3)
    same = np.tile(P[:1], (5, 1))
    for _ in range(3):
        assert np.abs(rewards(same, np.log(np.tile(Q[:1], (5, 1))))).max() < 1e-6


# ---------------------------------------------------------------------- fresh weights
def test_no_weight_of_the_victim_survives(images: np.ndarray) -> None:
    victim = several_classes(images).model
    with torch.no_grad():
        for parameter in victim.parameters():
            parameter.add_(7.0)  # far from any initial weight
        for name, buffer in victim.named_buffers():
            buffer.fill_(50) if "num" in name else buffer.add_(3.0)
    before = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    with forked_random_state(1, "a"):
        twin = reinitialised(victim)
    for name, tensor in twin.state_dict().items():
        assert torch.equal(victim.state_dict()[name], before[name])
        if name.endswith(("running_mean", "num_batches_tracked")):
            assert not tensor.any()
        elif name.endswith("running_var"):
            assert (tensor == 1).all()
        else:
            assert (tensor.abs() < 2).all(), name
    bound = 1 / math.sqrt(6 * 9)  # torch's initial weights of a convolution with six 3x3 inputs
    weight = twin.get_parameter("block2.0.weight")
    assert 0.8 * bound < weight.abs().max() <= bound
    with forked_random_state(1, "a"):
        assert equal(twin, reinitialised(victim))
    with forked_random_state(2, "a"):
        assert not equal(twin, reinitialised(victim))


class Partly(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


def tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    return network


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (TinyTokens(), "covers token. Pass `surrogate_factory`"),
        (Partly(4, 2), "covers bias"),
        (nn.MultiheadAttention(4, 2), "covers in_proj_weight, in_proj_bias"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), "parametrizations.weight.original0"),
        (nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(7)]), "covers 0, 1, 2, 3, 4 and 2 more"),
    ],
    ids=["token", "partly", "attention", "weight norm", "many"],
)
def test_weights_that_nothing_resets_are_named(network: nn.Module, left: str) -> None:
    with pytest.raises(InvalidInputError, match=left):
        reinitialised(network)


def test_tied_and_frozen_weights_are_reset() -> None:
    network = tied().requires_grad_(False)
    with torch.no_grad():
        network[0].weight.fill_(9.0)
    twin = reinitialised(network)
    assert twin.get_submodule("0").weight is twin.get_submodule("1").weight
    assert twin.get_parameter("0.weight").abs().max() < 1


@every_thief
def test_thieves_start_fresh_and_by_seed(attack: Any, options: Options, images: np.ndarray) -> None:
    victim = several_classes(images)
    starts: list[dict[str, Tensor]] = []

    def keep(step: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        if step == 0:
            starts.append({name: tensor.clone() for name, tensor in surrogate.model.named_parameters()})

    for seed in (1, 1, 2):
        attack(victim, **options, **QUICK, seed=seed, callback=keep).generate(images, Y)
    for name, parameter in victim.model.named_parameters():
        assert torch.equal(starts[0][name], starts[1][name])
        assert not torch.equal(starts[0][name], parameter), name
    assert not torch.equal(starts[0]["head.weight"], starts[2]["head.weight"])


@every_thief
def test_another_architecture(attack: Any, options: Options, images: np.ndarray) -> None:
    victim = several_classes(images, preprocessing=(0.1, 0.9))
    made: list[nn.Module] = []

    def factory() -> nn.Module:
        made.append(TinyTokens())
        return made[-1].train()

    surrogate = attack(victim, **options, **QUICK, surrogate_factory=factory).generate(images, Y)
    assert len(made) == 1
    assert type(surrogate.model) is TinyTokens
    assert not {t.data_ptr() for t in surrogate.model.state_dict().values()} & {
        t.data_ptr() for t in made[0].state_dict().values()
    }
    assert surrogate.preprocessing.mean == victim.preprocessing.mean
    assert surrogate.nb_classes == 4
    assert not any(module.training for module in surrogate.model.modules())
    assert all(module.training for module in made[0].modules())  # the caller's network is left alone
    info = surrogate.surrogate_info
    assert "surrogate_factory" not in info["params"]
    assert surrogate.predict(images).shape == (40, 4)


def test_factory_s_weights_are_the_start(images: np.ndarray) -> None:
    network = perceptron(5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for attack, options in THIEVES[2:4]:
        found = attack(
            several_classes(images), **options, **QUICK, learning_rate=0.0, surrogate_factory=lambda: network
        ).generate(images)
        assert equal(found.model, network)
    attack = RetrainingAttack(several_classes(images), **QUICK, surrogate_factory=lambda: network)
    assert not equal(attack.generate(images).model, network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Pair(TinyCNN):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


@every_thief
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: TinyCNN(nb_classes=5), "does not fit the victim.*nb_classes=4, but its model returns 5"),
        (lambda: TinyCNN(channels=3), r"does not fit the victim.*fails on two samples of input_shape=\(1, 8, 8\)"),
        (Pair, "does not fit the victim.*returns tuple"),
        (lambda: TinyCNN(nb_classes=1), "does not fit the victim.*single-logit head"),
        (lambda: "network", "must return an nn.Module, got str"),
        (TinyCNN().state_dict, "must return an nn.Module, got OrderedDict"),
    ],
    ids=["classes", "channels", "tuple", "one logit", "text", "weights"],
)
def test_networks_that_do_not_fit(
    attack: Any, options: Options, factory: Callable[[], Any], message: str, images: np.ndarray
) -> None:
    victim = several_classes(images)
    trained: list[int] = []
    with pytest.raises(InvalidInputError, match=message):
        attack(
            victim, **options, **QUICK, surrogate_factory=factory, callback=lambda step, *_: trained.append(step)
        ).generate(images, Y)
    assert trained == []


@every_thief
def test_factories_must_be_callable(attack: Any, options: Options, images: np.ndarray) -> None:
    for wrong, named in ((TinyCNN(), "a TinyCNN itself"), ("timm:resnet18", "'timm:resnet18'")):
        with pytest.raises(InvalidInputError, match=f"`surrogate_factory` must be a function .* got {named}"):
            attack(several_classes(images), **options, surrogate_factory=wrong)
    with pytest.raises(InvalidInputError, match="no reset_parameters.. covers token"):
        attack(token_classifier(images), **options, **QUICK).generate(images, Y)


def test_batch_norm_of_the_thief_counts(images: np.ndarray) -> None:
    """The victim has none, so batches of one would be fine for it."""
    with pytest.raises(InvalidInputError, match="BatchNorm"):
        RetrainingAttack(token_classifier(images), batch_size=1, max_iter=2, surrogate_factory=TinyCNN).generate(images)


# ---------------------------------------------------------------------- plain second versions
def recorded_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    batches: list[Batch] = []
    original = Batches._batch

    def keep(self: Batches, index: Tensor, flipped: Tensor) -> Batch:
        batches.append(original(self, index, flipped))
        return batches[-1]

    monkeypatch.setattr(Batches, "_batch", keep)
    return batches


def plain_thief(
    start: nn.Module,
    batches: list[Batch],
    loss: Callable[[Tensor, Batch], Tensor],
    rate: Callable[[int], float],
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> nn.Module:
    """SGD written out, one tensor after the other."""
    network = start.train()
    velocity = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for t, batch in enumerate(batches):
        network.zero_grad()
        loss(network(batch.x), batch).backward()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None
                gradient = parameter.grad + weight_decay * parameter
                velocity[name] = gradient if t == 0 else momentum * velocity[name] + gradient
                step = gradient + momentum * velocity[name] if nesterov else velocity[name]
                parameter -= rate(t) * step
    return network.eval()


def start_of(attack: Any) -> nn.Module:
    return fresh_classifier(attack.estimator, None, attack.seed, type(attack).__name__).model


def answers(victim: PyTorchClassifier, images: np.ndarray) -> Callable[[Batch], Tensor]:
    rows = [torch.from_numpy(victim.predict(x)) for x in (images, images[..., ::-1].copy())]
    return lambda batch: torch.stack([rows[f][i] for i, f in zip(batch.index, batch.flipped, strict=True)])


def cosine(rate: float, steps: int) -> Callable[[int], float]:
    return lambda t: rate / 2 * (1 + math.cos(math.pi * t / steps))


def u(seed: int) -> float:
    return float(numpy_generator(seed, "learning rate").random())


@pytest.mark.parametrize("soft", [False, True])
def test_random_knockoff_equals_a_plain_second_version(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray, soft: bool
) -> None:
    victim = several_classes(images)
    batches = recorded_batches(monkeypatch)
    attack = KnockoffNetsAttack(victim, use_probability=soft, max_iter=5, batch_size=16, seed=3)
    surrogate = attack.generate(images, 3 - Y)  # y is not used
    said = answers(victim, images)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        q = said(batch).softmax(1) if soft else F.one_hot(said(batch).argmax(1), 4)
        return -(q * logits.log_softmax(1)).sum(1).mean()

    rate = 0.1 * (0.8 + 0.5 * u(3))  # the code's words
    assert surrogate.surrogate_info["learning_rate"] == pytest.approx(rate)
    assert len(batches) == 5
    assert_close(surrogate.model, plain_thief(start_of(attack), batches, loss, cosine(rate, 5), 0.9, 1e-4), 1e-5)


def test_logit_distillation_equals_a_plain_second_version(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    victim = several_classes(images)
    batches = recorded_batches(monkeypatch)
    attack = LogitDistillationAttack(victim, 0.3, temperature=2.0, max_iter=5, batch_size=16, seed=3)
    surrogate = attack.generate(images)
    said = answers(victim, images)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        p, q = (said(batch) / 2).softmax(1), (logits / 2).softmax(1)
        kl = (p * (p.log() - q.log())).mean()  # over samples and classes, as in the code
        return 0.3 * 4 * kl + 0.7 * F.cross_entropy(logits, said(batch).argmax(1))

    wanted = plain_thief(start_of(attack), batches, loss, cosine(1e-2 * (1 + u(3)), 5), 0.9, 5e-3)
    assert_close(surrogate.model, wanted, 1e-5)


def test_retraining_equals_a_plain_second_version(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    victim = several_classes(images)
    batches = recorded_batches(monkeypatch)
    attack = RetrainingAttack(victim, nb_epochs=4, batch_size=16, seed=3)
    surrogate = attack.generate(images)
    assert len(batches) == surrogate.surrogate_info["max_iter"] == 12  # 16, 16 and 8 in an epoch
    said = answers(victim, images)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return -(said(batch).softmax(1) * logits.log_softmax(1)).sum(1).mean()

    def rate(t: int) -> float:  # of 60 epochs after 20, 35, 50: of 12 steps after 4, 7, 10
        return 0.1 * 0.2 ** sum(t >= border for border in (4, 7, 10))

    assert_close(surrogate.model, plain_thief(start_of(attack), batches, loss, rate, 0.9, 5e-4, nesterov=True), 1e-5)


@pytest.mark.parametrize(
    ("n", "batch_size", "steps"), [(40, 16, 3), (33, 16, 2), (34, 16, 3), (32, 16, 2), (40, 64, 1)]
)
def test_epochs_of_retraining(n: int, batch_size: int, steps: int, images: np.ndarray) -> None:
    attack = RetrainingAttack(several_classes(images), nb_epochs=2, batch_size=batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert attack.generate(images[:n]).surrogate_info["max_iter"] == 2 * steps


# ---------------------------------------------------------------------- losses
@pytest.mark.parametrize(("temperature", "value"), [(1.0, 0.340193), (2.0, 0.397299), (20.0, 0.389011)])
def test_distillation_table(temperature: float, value: float) -> None:  # G3, the column of tempered probabilities
    s = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    t = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log() + 5
    usual = distillation_terms(s, t, 1.0, temperature, "batchmean")
    assert set(usual) == {"kl"}
    assert usual["kl"].item() == pytest.approx(value, abs=1e-6)
    assert distillation_terms(s, t, 1.0, temperature, "mean")["kl"].item() == pytest.approx(value / 3, abs=1e-6)
    half = distillation_terms(s, t, 0.25, temperature, "batchmean")
    assert half["kl"].item() == pytest.approx(value / 4, abs=1e-6)
    assert half["ce"].item() == pytest.approx(0.75 * 0.169846, abs=1e-6)
    assert set(distillation_terms(s, t, 0.0, temperature, "mean")) == {"ce"}


def test_extreme_logits_stay_finite() -> None:
    s = torch.tensor([[300.0, 0.0], [0.0, 300.0]])
    terms = distillation_terms(s, s.flip(1), 0.5, 1.0, "batchmean")
    assert terms["kl"].item() == pytest.approx(0.5 * 300)
    assert distillation_terms(s, s, 0.5, 1.0, "batchmean")["kl"].item() == 0.0


# ---------------------------------------------------------------------- smooth retraining
def test_smooth_labels_are_means_of_answers(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    """With flips alone each label lies between two answers, k fifths of the way."""
    victim = several_classes(images)
    seen: list[Tensor] = []
    monkeypatch.setattr(
        "art_fingerprint.attacks.retraining.F.cross_entropy",
        lambda logits, wanted: (seen.append(wanted), F.log_softmax(logits, 1).mul(-wanted).sum(1).mean())[1],
    )
    batches = recorded_batches(monkeypatch)
    attack = RetrainingAttack(victim, 5, max_shift=0, max_iter=6, batch_size=20)
    info = attack.generate(images).surrogate_info
    assert info["victim_queries"] == 5 * 40
    p, q = (torch.from_numpy(victim.predict(x)).double().softmax(1) for x in (images, images[..., ::-1].copy()))
    found = set()
    labels: dict[int, Tensor] = {}
    for wanted, batch in zip(seen, batches, strict=True):
        for row, index in zip(wanted.double(), batch.index.tolist(), strict=True):
            share = float(((row - q[index]) @ (p[index] - q[index])) / (p[index] - q[index]).square().sum())
            torch.testing.assert_close(row, share * p[index] + (1 - share) * q[index], atol=1e-5, rtol=1e-4)
            assert 5 * share == pytest.approx(round(5 * share), abs=1e-3)
            found.add(round(5 * share))
            assert torch.equal(labels.setdefault(index, row), row)  # mirrored or not
    assert {1, 2, 3, 4} <= found <= {0, 1, 2, 3, 4, 5}


def test_altered_copies() -> None:
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3).expand(400, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    copies = augmented(x, True, 1, generator)
    padded = [F.pad(image, (1, 1, 1, 1)) for image in (x[0], x[0].flip(-1))]
    wanted = {tuple(p[0, i : i + 3, j : j + 3].flatten().tolist()) for p in padded for i in range(3) for j in range(3)}
    assert {tuple(copy.flatten().tolist()) for copy in copies} == wanted
    assert len(wanted) == 18
    assert torch.equal(augmented(x, False, 0, generator), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_queries": 3, "hflip": False, "max_shift": 0}, "same question"),
        ({"label_queries": 0}, "`label_queries`"),
        ({"max_shift": -1}, "`max_shift`"),
        ({"max_shift": 0.5}, "`max_shift`"),
        ({"nb_epochs": 0}, "`nb_epochs`"),
        ({"max_iter": 0}, "`max_iter`"),
    ],
    ids=str,
)
def test_bad_options_of_retraining(options: Options, message: str, images: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match=message):
        RetrainingAttack(several_classes(images), **{"batch_size": 16, **options}).generate(images)


def test_smooth_labels_need_images(images: np.ndarray) -> None:
    flat = wrap(nn.Sequential(nn.Linear(64, 4)), (64,))
    with pytest.raises(InvalidInputError, match=r"asks about altered images.*input_shape=\(64,\)"):
        RetrainingAttack(flat, 3, hflip=False, batch_size=16).generate(images.reshape(40, 64))


# ---------------------------------------------------------------------- queries
@pytest.mark.parametrize(
    ("attack", "options", "queries"),
    [
        (KnockoffNetsAttack, {}, 80),
        (KnockoffNetsAttack, {"hflip": False}, 40),
        (KnockoffNetsAttack, {"use_probability": True}, 80),
        (KnockoffNetsAttack, {"nb_stolen": 37}, 36),  # 18 samples and their mirror images
        (KnockoffNetsAttack, {"nb_stolen": 37, "hflip": False}, 37),
        (KnockoffNetsAttack, {"nb_stolen": 37, "hflip": False, "use_probability": True}, 37),
        (KnockoffNetsAttack, {"nb_stolen": 1000}, 80),
        (KnockoffNetsAttack, {**ADAPTIVE, "nb_stolen": 19}, 16),
        (KnockoffNetsAttack, {**ADAPTIVE, "nb_stolen": 19, "reward": "cert"}, 16),
        (KnockoffNetsAttack, {**ADAPTIVE, "nb_stolen": 400}, 40),  # more draws than samples: none is asked twice
        (LogitDistillationAttack, {}, 80),
        (LogitDistillationAttack, {"hflip": False, "alpha": 1.0}, 40),
        (RetrainingAttack, {}, 80),
        (RetrainingAttack, {"label_queries": 3}, 120),
        (DistillationAttack, {"init": "random"}, 40),  # for the check of classes; the labels are given
    ],
    ids=str,
)
def test_queries_are_counted_exactly(attack: Any, options: Options, queries: int, images: np.ndarray) -> None:
    victim = several_classes(images)
    rows: list[np.ndarray] = []
    victim.model.block1.register_forward_hook(lambda _m, inputs, _out: rows.append(inputs[0].numpy().copy()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer samples than a batch
        info = attack(victim, **options, **QUICK).generate(images, Y).surrogate_info
    assert info["victim_queries"] == queries
    if attack is DistillationAttack:  # features need passes, which are no queries
        return
    asked = np.concatenate(rows)[2:]  # without two grey images to see what the model answers
    assert len(asked) == queries
    if not options.get("label_queries"):
        assert len(np.unique(asked.reshape(len(asked), -1), axis=0)) == queries


# ---------------------------------------------------------------------- the adaptive strategy
def test_exploration_equals_a_slow_version(images: np.ndarray) -> None:
    """Class by class, sample by sample, weight by weight; y has gaps."""
    y = np.array([3, 7, 7, 1000])[Y]
    for reward in ("cert", "div", "loss", "all"):
        victim = wrap(perceptron(0).eval())
        with torch.no_grad():
            victim.model.head.weight.mul_(8)  # an opinion
        attack = KnockoffNetsAttack(
            victim,
            "adaptive",
            reward=reward,
            nb_stolen=30,
            hflip=False,
            max_iter=1,
            batch_size=10,
            learning_rate=0.5,
            seed=4,
            allow_degenerate=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few classes
            found = attack.generate(images, y).surrogate_info["policy"]
        wanted = slow_exploration(attack, images, y, reward)
        assert list(found) == ["3", "7", "1000"]
        assert list(found.values()) == pytest.approx(wanted, abs=1e-4)
        assert max(abs(value - 1 / 3) for value in wanted) > 1e-3


def slow_exploration(attack: KnockoffNetsAttack, images: np.ndarray, y: np.ndarray, reward: str) -> list[float]:
    victim, thief = attack.estimator.model, start_of(attack)
    classes = sorted(set(y.tolist()))
    generator = numpy_generator(attack.seed, "KnockoffNetsAttack", "draws")
    order = generator.permutation(len(y))
    members = [[i for i in order if y[i] == label] for label in classes]
    optimizer = torch.optim.SGD(thief.parameters(), 0.5 * (1 + 0.625 * u(4)) / 10, 0.9, weight_decay=1e-4)
    h, turns, mean, seen_p, seen_r = np.zeros(3), [0, 0, 0], 0.0, [], []
    for t in range(1, 31):
        pi = np.exp(h) / np.exp(h).sum()
        a = int(generator.choice(3, 1, p=pi)[0])
        x = torch.from_numpy(images[members[a][turns[a] % len(members[a])]])[None]
        turns[a] += 1
        with torch.no_grad():
            p = victim(x).double().softmax(1)[0]
        optimizer.zero_grad()
        F.cross_entropy(thief(x), p.argmax()[None]).backward()
        optimizer.step()
        with torch.no_grad():
            q = thief(x).double().log_softmax(1)[0]
        seen_p.append(p)
        top = p.sort().values
        apart = (p - torch.stack(seen_p).mean(0)).clamp_min(0).sum()
        seen_r.append([float(top[-1] - top[-2]), float(apart), float(-(p * q).sum())])
        if reward == "all":
            table = np.array(seen_r)
            means = table.cumsum(0) / np.arange(1, t + 1)[:, None]
            deviation = np.sqrt(((table - means) ** 2).mean(0))
            r = float(((table[-1] - means[-1]) / np.maximum(deviation, 1e-8)).mean())
        else:
            r = seen_r[-1][("cert", "div", "loss").index(reward)]
        mean += (r - mean) / t
        h += (r - mean) / turns[a] * (np.eye(3)[a] - pi)
    return (np.exp(h) / np.exp(h).sum()).tolist()


@pytest.mark.parametrize("reward", ["cert", "div", "loss", "all"])
def test_classes_with_gaps_and_all_rewards(reward: str, images: np.ndarray) -> None:
    victim = several_classes(images)
    y = np.array([3, 7, 90, 1000])[Y]
    one = KnockoffNetsAttack(victim, **ADAPTIVE, **QUICK, reward=reward)
    info = one.generate(images, y).surrogate_info
    assert list(info["policy"]) == ["3", "7", "90", "1000"]
    assert sum(info["policy"].values()) == pytest.approx(1)
    assert info["draws"] == 40
    wide = np.zeros((40, 1001))
    wide[np.arange(40), y] = 1
    assert one.generate(images, wide).surrogate_info["policy"] == info["policy"]


def test_one_draw_at_a_time_without_batch_norm(images: np.ndarray) -> None:
    attack = KnockoffNetsAttack(several_classes(images), "adaptive", **QUICK, surrogate_factory=lambda: perceptron(1))
    info = attack.generate(images, Y).surrogate_info
    assert info["draws"] == 40
    assert 4 < info["victim_queries"] <= 40  # a class that is used up is drawn from again, and not asked about


def test_thief_is_in_training_mode_at_every_step(images: np.ndarray) -> None:
    """Also after the callback has looked at it; rewards are taken in evaluation mode."""
    modes: list[tuple[bool, int]] = []

    def look(step: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        if step == 0:
            surrogate.model.block1.register_forward_hook(
                lambda module, inputs, _out: modes.append((module.training, len(inputs[0])))
            )
        else:
            kept = list(modes)
            surrogate.predict(images)
            modes[:] = kept

    settings: Options = {**QUICK, "nb_stolen": 8, "callback": look, "callback_interval": 1, "hflip": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        KnockoffNetsAttack(several_classes(images), **ADAPTIVE, **settings).generate(images, Y)
    assert modes == [(True, 4), (False, 4)] * 2 + [(True, 8)] * 4
    modes.clear()
    KnockoffNetsAttack(several_classes(images), **{**settings, "nb_stolen": None}).generate(images)
    assert modes == [(True, 16), (True, 16), (True, 8), (True, 16)]


def test_steps_of_exploration_come_first(images: np.ndarray) -> None:
    steps: list[int] = []
    attack = KnockoffNetsAttack(
        several_classes(images), **ADAPTIVE, **QUICK, callback=lambda step, *_: steps.append(step), callback_interval=2
    )
    attack.generate(images, Y)
    assert steps == [0, 2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        (ADAPTIVE, None, "pass y, the classes of the transfer set"),
        (ADAPTIVE, np.full(40, 7), "whole transfer set into one class.*allow_degenerate"),
        ({"sampling_strategy": "adaptive"}, Y, "BatchNorm layers, which cannot learn from one sample.*`draws` above 1"),
        ({**ADAPTIVE, "nb_stolen": 3}, Y, "`nb_stolen`=3 queries are fewer than `draws`=4"),
        ({**ADAPTIVE, "draws": 41}, Y, "40 samples are fewer than `draws`=41"),
        ({"nb_stolen": 1}, None, "`nb_stolen`=1 queries are fewer than a sample and its mirror image"),
        ({"nb_stolen": 1, "hflip": False}, None, r"BatchNorm.*got 1 sample\(s\)"),
        (ADAPTIVE, np.array([-1, 0] * 20), "labels from -1 to 0"),
        (ADAPTIVE, np.full((40, 9), 0.5), "one-hot"),
        ({}, np.full(40, 7), "labels from 7 to 7; 0 to 3"),
        ({"sampling_strategy": "greedy"}, None, "`sampling_strategy`"),
        ({"reward": "entropy"}, None, "`reward`"),
        ({"draws": 0}, None, "`draws`"),
        ({"nb_stolen": 0}, None, "`nb_stolen`"),
        ({"use_probability": 1}, None, "`use_probability`"),
    ],
    ids=str,
)
def test_bad_options_of_knockoff(options: Options, y: np.ndarray | None, message: str, images: np.ndarray) -> None:
    steps: list[int] = []
    victim = several_classes(images)
    asked: list[int] = []
    victim.model.register_forward_hook(lambda _m, inputs, _out: asked.append(len(inputs[0])))
    with pytest.raises(InvalidInputError, match=message):
        KnockoffNetsAttack(victim, **options, **QUICK, callback=lambda step, *_: steps.append(step)).generate(images, y)
    assert steps == []
    assert sum(asked) <= 2


def test_rewards_that_are_no_numbers_stop_the_exploration(images: np.ndarray) -> None:
    attack = KnockoffNetsAttack(several_classes(images), **ADAPTIVE, **QUICK, learning_rate=1e30, callback_interval=50)
    with pytest.raises(TrainingDivergedError, match="bandit's reward became NaN or infinite"):
        attack.generate(images, Y)


@every_thief
def test_victim_that_answers_nan(attack: Any, options: Options, images: np.ndarray) -> None:
    victim = several_classes(images)
    with torch.no_grad():
        victim.model.head.bias[1] = math.nan
    with pytest.raises(NonFiniteOutputError, match=r"answered \d+ of \d+ samples with NaN"):
        attack(victim, **options, **QUICK).generate(images, Y)


@every_thief
def test_sets_of_one_class(attack: Any, options: Options, images: np.ndarray) -> None:
    victim = several_classes(images)
    x = np.concatenate([images[victim.predict(images).argmax(1) == 1]] * 2)
    settings: Options = {**options, "hflip": False, "batch_size": 8, "max_iter": 2}
    if "label_queries" in options:
        x = x * 0  # the same wherever it is moved
    y = np.arange(len(x)) % 2
    steps: list[int] = []
    with pytest.raises(InvalidInputError, match="into class .*allow_degenerate"):
        attack(victim, **settings, callback=lambda step, *_: steps.append(step), callback_interval=50).generate(x, y)
    assert steps == [] or "draws" in options  # the bandit trains while it asks
    with pytest.warns(UserWarning, match="sees 1 of 4 classes in it and puts 100% into one") as record:
        attack(victim, **settings, allow_degenerate=True).generate(x, y)
    assert record[0].filename == __file__


# ---------------------------------------------------------------------- ART's Knockoff Nets
def blobs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes: which quarter of the image is bright."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 4, n)
    x = generator.random((n, 1, 8, 8), dtype=np.float32) * 0.6
    for i, label in enumerate(y):
        row, column = divmod(int(label), 2)
        x[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.25
    return x, y


def art_thief(victim: PyTorchClassifier, x: np.ndarray, network: nn.Module, rate: float, **options: Any) -> nn.Module:
    thief = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        (1, 8, 8),
        4,
        optimizer=torch.optim.SGD(network.parameters(), rate, 0.9, weight_decay=1e-4),
        device_type="cpu",
    )
    with forked_random_state(0, "ART"):
        KnockoffNets(victim, nb_stolen=len(x), verbose=False, **options).extract(x, thieved_classifier=thief)
    return network.eval()


def test_first_step_is_that_of_art(images: np.ndarray) -> None:
    """One step on the whole transfer set: order does not matter, and no schedule has begun."""
    victim = several_classes(images)
    asked: list[int] = []
    victim.model.head.register_forward_hook(lambda _m, inputs, _out: asked.append(len(inputs[0])))
    network = art_thief(victim, images, perceptron(2), 0.1, batch_size_fit=40, nb_epochs=1, batch_size_query=40)
    assert asked == [40]
    attack = KnockoffNetsAttack(
        victim,
        max_iter=1,
        batch_size=40,
        hflip=False,
        learning_rate=0.1,
        lr_jitter=0.0,
        surrogate_factory=lambda: perceptron(2),
    )
    surrogate = attack.generate(images)
    assert surrogate.surrogate_info["victim_queries"] == 40
    assert not equal(surrogate.model, perceptron(2))
    assert_close(surrogate.model, network)


def test_thieves_are_as_good_as_art_s() -> None:
    x, y = blobs(200, 0)
    network = perceptron(0)
    optimizer = torch.optim.SGD(network.parameters(), 0.3, 0.9)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    victim = wrap(network.eval(), preprocessing=None)
    transfer, _ = blobs(160, 1)
    test = torch.from_numpy(blobs(400, 2)[0])
    said = network(test).argmax(1)

    def agreement(thief: nn.Module) -> float:
        return float((thief(test).argmax(1) == said).float().mean())

    theirs = agreement(art_thief(victim, transfer, perceptron(3), 0.1, batch_size_fit=32, nb_epochs=30))
    ours = {}
    for name, options in (
        ("random", {}),
        ("soft", {"use_probability": True}),
        ("adaptive", {"sampling_strategy": "adaptive", "nb_stolen": 160}),
    ):
        attack = KnockoffNetsAttack(
            victim, max_iter=150, batch_size=32, hflip=False, surrogate_factory=lambda: perceptron(3), **options
        )
        ours[name] = agreement(attack.generate(transfer, blobs(160, 1)[1]).model)
    assert theirs > 0.9
    assert all(abs(value - theirs) < 0.06 for value in ours.values()), (theirs, ours)


# ---------------------------------------------------------------------- feature distillation
def test_projection_by_hand() -> None:
    student, teacher = torch.rand(3, 2, 4, 4), torch.rand(3, 5, 2, 2)
    bridge = Projection(student.shape, teacher.shape)
    z, target = bridge(student, teacher)
    assert z.shape == target.shape == (3, 2, 2, 5)
    weight, bias = bridge.map.weight, bridge.map.bias
    for row, column in ((0, 0), (1, 0), (0, 1)):
        mean = student[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3))
        torch.testing.assert_close(z[:, row, column], mean @ weight.T + bias)
        assert torch.equal(target[:, row, column], teacher[:, :, row, column])
    assert {name for name, _ in bridge.named_parameters()} == {"map.weight", "map.bias"}


@pytest.mark.parametrize(
    ("student", "teacher", "shape"),
    [
        ((3, 6, 2, 2), (3, 4, 8, 8), (3, 8, 8, 4)),  # maps are repeated
        ((3, 10, 6), (3, 5, 4), (3, 5, 4)),  # tokens: features last
        ((3, 6), (3, 4), (3, 4)),
        ((3, 6, 4, 4), (3, 10, 5), (3, 5)),  # maps against tokens: means over positions
        ((3, 10, 5), (3, 6, 4, 4), (3, 6)),
        ((3, 10), (3, 6, 4, 4), (3, 6)),
    ],
)
def test_projection_shapes(student: tuple[int, ...], teacher: tuple[int, ...], shape: tuple[int, ...]) -> None:
    bridge = Projection(torch.Size(student), torch.Size(teacher))
    z, target = bridge(torch.rand(student), torch.rand(teacher))
    assert z.shape == target.shape == shape
    if len(student) != len(teacher):
        wide = torch.rand(teacher)
        axes = {2: (), 3: (1,), 4: (2, 3)}[len(teacher)]
        torch.testing.assert_close(bridge(torch.rand(student), wide)[1], wide.mean(axes) if axes else wide)


def test_students_of_another_width_are_brought_to_the_victim_s_features(images: np.ndarray) -> None:
    victim = several_classes(images)
    losses: list[float] = []

    def keep(step: int, _surrogate: object, terms: Any) -> None:
        if step:
            losses.append(terms["features"])

    settings: Options = {"max_iter": 60, "batch_size": 20, "linear_l2": 0.0, "feature_weight": 1.0, "momentum": 0.9}
    with torch.random.fork_rng():
        attack = DistillationAttack(
            victim,
            surrogate_factory=lambda: TinyCNN(width=9),
            learning_rate=0.05,
            callback=keep,
            callback_interval=10,
            **settings,
        )
        surrogate = attack.generate(images)
    assert losses[-1] < 0.5 * losses[0]
    assert type(surrogate.model) is TinyCNN
    assert surrogate.model.head.in_features == 18
    assert surrogate.surrogate_info["layers"] == surrogate.surrogate_info["student_layers"] == ["block2", "block3"]


def test_layers_of_the_student(images: np.ndarray) -> None:
    victim = several_classes(images)
    made = DistillationAttack(victim, surrogate_factory=TinyTokens, **QUICK).generate(images).surrogate_info
    assert (made["layers"], made["student_layers"]) == (["block2", "block3"], ["block2", "norm"])
    named = DistillationAttack(
        victim, ("block1",), surrogate_factory=TinyTokens, student_layers=("mix",), **QUICK
    ).generate(images)
    assert named.surrogate_info["student_layers"] == ["mix"]
    with pytest.raises(InvalidInputError, match=r"from 1 layer\(s\) \(block1\), the student's from 2 \(block2, norm\)"):
        DistillationAttack(victim, ("block1",), surrogate_factory=TinyTokens, **QUICK).generate(images)
    with pytest.raises(InvalidInputError, match="no layer 'block3'"):
        DistillationAttack(victim, surrogate_factory=TinyTokens, student_layers=("block3", "mix"), **QUICK).generate(
            images
        )
    for bad in ({"student_layers": ()}, {"student_layers": "mix"}, {"init": "fresh"}):
        with pytest.raises(InvalidInputError, match=f"`{next(iter(bad))}`"):
            DistillationAttack(victim, **bad)


def test_distillation_into_fresh_weights_equals_a_plain_second_version(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    victim = several_classes(images)
    batches = recorded_batches(monkeypatch)
    attack = DistillationAttack(victim, ("block2",), init="random", max_iter=5, batch_size=16, seed=3, linear_l2=0.0)
    surrogate = attack.generate(images, Y)
    start = start_of(attack)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        z = start.block2(start.block1(batch.x))  # type: ignore[operator]
        with torch.no_grad():
            wanted = victim.model.block2(victim.model.block1(batch.x))
        return F.cross_entropy(logits, torch.from_numpy(Y)[batch.index]) + 0.1 * (z - wanted).square().mean()

    found = plain_thief(start, batches, loss, cosine(1e-3 * (1 + u(3)), 5), 0.8, 1e-4)
    parameters = dict(found.named_parameters())
    for name, parameter in surrogate.model.named_parameters():
        torch.testing.assert_close(parameter, parameters[name], atol=1e-6, rtol=1e-5, msg=name)
