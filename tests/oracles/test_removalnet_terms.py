"""RemovalNet's formulas: worked examples, slow loops in float64, whole iterations against a plain second version."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from art_fingerprint.attacks import RemovalNetAttack, removalnet
from art_fingerprint.attacks import removalnet_terms as terms
from art_fingerprint.core.training import Batch, Batches
from tests.conftest import TinyCNN
from tests.victims import several_classes

GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows if len(rows) > 1 else rows[0], dtype=torch.float64)


def close(found: Tensor | float, wanted: Tensor | float, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64),
        torch.as_tensor(wanted, dtype=torch.float64),
        atol=tolerance,
        rtol=0,
    )


# ---------------------------------------------------------------------- slow second versions
def slow_partner(p: Tensor, i: int) -> int:
    best, found = -1.0, 0
    for k in range(len(p)):
        distance = math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(p[i], p[k], strict=True)))
        if distance > best:
            best, found = distance, k
    return found


def slow_ilbs(p: Tensor, y: Tensor, grid: tuple[float, ...]) -> Tensor:
    """Sample after sample, weight after weight, as the published procedure reads."""
    out = p.clone()
    for i in range(len(p)):
        partner = p[slow_partner(p, i)]
        for w in grid:
            candidate = w * p[i] + (1 - w) * partner
            if int(candidate.argmax()) == int(y[i]):
                out[i] = candidate
                break
    return out


def slow_shuffle(z: Tensor, source: Tensor, target: Tensor) -> Tensor:
    out = z.clone()
    for i in range(len(z)):
        for r, s in zip(source[i].tolist(), target[i].tolist(), strict=True):
            out[i, s] = z[i, r]
    return out


def slow_kl(q: Tensor, s: Tensor, temperature: float) -> float:
    total = 0.0
    for row_q, row_s in zip(q.tolist(), s.tolist(), strict=True):
        norm = math.log(sum(math.exp(v / temperature) for v in row_s))
        total += sum(a * (math.log(a) - (b / temperature - norm)) for a, b in zip(row_q, row_s, strict=True) if a > 0)
    return temperature**2 * total / len(q)


# ---------------------------------------------------------------------- G1, ILBS
P = f64((0.70, 0.20, 0.10), (0.15, 0.60, 0.25), (0.05, 0.15, 0.80))


def test_ilbs_first_table() -> None:
    y = torch.tensor([0, 1, 2])
    assert terms.farthest_partners(P).tolist() == [2, 2, 0]
    distances = torch.cdist(P, P)
    close(distances[0, 1], 0.696419)
    close(distances[0, 2], 0.956556)
    close(distances[1, 2], 0.717635)
    close(terms.smallest_weight(P, P[[2, 2, 0]], y), f64(0.555556, 0.65, 0.444444))
    mixed, kept = terms.ilbs(P, y, GRID)
    close(mixed, f64((0.44, 0.18, 0.38), (0.12, 0.465, 0.415), (0.375, 0.175, 0.45)))
    assert kept.all()
    top = mixed.topk(2).values
    close((top[:, 0] - top[:, 1]).min(), 0.05)


def test_ilbs_without_an_admissible_weight_keeps_the_row() -> None:
    mixed, kept = terms.ilbs(P, torch.tensor([0, 1, 1]), GRID)
    close(mixed, f64((0.44, 0.18, 0.38), (0.12, 0.465, 0.415), (0.05, 0.15, 0.80)))
    assert kept.tolist() == [True, True, False]
    exact, kept = terms.ilbs_exact(P, torch.tensor([0, 1, 1]))
    assert torch.equal(exact[2], P[2])
    assert kept.tolist() == [True, True, False]


def test_ilbs_second_table() -> None:
    p, y = f64((0.8, 0.15, 0.05), (0.2, 0.5, 0.3), (0.6, 0.1, 0.3)), torch.tensor([0, 1, 0])
    assert terms.farthest_partners(p).tolist() == [1, 0, 1]
    mixed, kept = terms.ilbs(p, y, GRID)
    close(mixed, f64((0.44, 0.36, 0.20), (0.38, 0.395, 0.225), (0.36, 0.34, 0.30)))
    assert kept.all()


@pytest.mark.parametrize("search", [lambda p, y: terms.ilbs(p, y, GRID), terms.ilbs_exact])
def test_ilbs_of_one_row_is_the_row(search: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    mixed, kept = search(P[:1], torch.tensor([0]))
    close(mixed, P[:1], 1e-15)
    assert kept.all()


def test_ilbs_exact_first_table() -> None:
    mixed, kept = terms.ilbs_exact(P, torch.tensor([0, 1, 2]))
    w = f64(0.5655556, 0.66, 0.4544444)[:, None]
    close(mixed, w * P + (1 - w) * P[[2, 2, 0]])
    assert kept.all()


@pytest.mark.parametrize("logits", [False, True])
def test_ilbs_equals_the_sequential_procedure_on_200_batches(logits: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    unmet = 0
    for trial in range(200):
        batch, classes = 2 + trial % 11, 2 + trial % 7
        s = 3 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
        p = s if logits else s.softmax(1)
        y = p.argmax(1)
        wrong = torch.rand(batch, generator=generator) < 0.2  # the surrogate disagrees with the victim
        y = torch.where(wrong, torch.randint(classes, (batch,), generator=generator), y)
        mixed, kept = terms.ilbs(p, y, GRID)
        assert torch.equal(mixed, slow_ilbs(p, y, GRID)), trial
        assert (mixed[kept].argmax(1) == y[kept]).all()
        unmet += int((~kept).sum())
    assert unmet > 20  # the case was there


@pytest.mark.parametrize("logits", [False, True])
def test_smallest_weight_is_the_border(logits: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    s = 2 * torch.randn(400, 6, generator=generator, dtype=torch.float64)
    p = s if logits else s.softmax(1)
    y, partner = p.argmax(1), p[torch.randperm(400, generator=generator)]
    w = terms.smallest_weight(p, partner, y)[:, None]

    def keeps(weight: Tensor) -> Tensor:
        return (weight * p + (1 - weight) * partner).argmax(1) == y

    assert keeps((w + 1e-9).clamp_max(1.0)).all()
    bounded = w[:, 0] > 1e-6
    assert bounded.any()
    assert not keeps(w - 1e-9)[bounded].any()


def test_ilbs_exact_never_takes_less_than_the_grid_allows() -> None:
    generator = torch.Generator().manual_seed(3)
    p = (2 * torch.randn(64, 5, generator=generator, dtype=torch.float64)).softmax(1)
    y = p.argmax(1)
    exact, kept = terms.ilbs_exact(p, y)
    partner = p[terms.farthest_partners(p)]
    w = (terms.smallest_weight(p, partner, y) + 0.01).clamp(0.3, 0.99)[:, None]
    close(exact[kept], (w * p + (1 - w) * partner)[kept], 1e-12)
    assert (exact[kept].argmax(1) == y[kept]).all()
    assert torch.equal(exact[~kept], p[~kept])


# ---------------------------------------------------------------------- G2, shuffle
@pytest.mark.parametrize(
    ("ratio", "channels", "size"),
    [(0.02, 64, 2), (0.02, 128, 3), (0.02, 50, 1), (0.07, 100, 7), (0.5, 4, 2), (0.75, 4, 3), (0, 8, 0), (1, 8, 8)],
)
def test_shuffle_size(ratio: float, channels: int, size: int) -> None:
    assert terms.shuffle_size(ratio, channels) == size


@pytest.mark.parametrize(
    ("size", "rows"),
    [(2, [(4, 5), (2, 3), (0, 1), (6, 7)]), (3, [(6, 7), (2, 3), (0, 1), (4, 5)])],
)
def test_shuffle_tables(size: int, rows: list[tuple[int, int]]) -> None:
    permutation = [2, 0, 3, 1] if size == 2 else [3, 0, 2, 1]
    z = torch.arange(8.0).view(1, 4, 2)
    source = torch.tensor([permutation[:size]])
    out = terms.shuffle_features(z, source, source.sort(1).values)
    assert out[0].tolist() == [list(map(float, row)) for row in rows]
    assert torch.equal(z, torch.arange(8.0).view(1, 4, 2))  # the input is left alone


@pytest.mark.parametrize("shape", [(5, 12), (3, 7, 4), (4, 9, 3, 2)])
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.55, 1.0])
def test_shuffle_equals_the_loop(shape: tuple[int, ...], ratio: float) -> None:
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    size = terms.shuffle_size(ratio, shape[1])
    source, target = terms.draw_shuffles(6, shape[0], shape[1], size, generator)
    assert source.shape == target.shape == (6, shape[0], size)
    for r, s in zip(source, target, strict=True):
        out = terms.shuffle_features(z, r, s)
        assert torch.equal(out, slow_shuffle(z, r, s))
        # Per sample the channels are the same ones, whole, and at most m of them have moved.
        for i in range(shape[0]):
            before = sorted(tuple(channel.flatten().tolist()) for channel in z[i])
            assert before == sorted(tuple(channel.flatten().tolist()) for channel in out[i])
        moved = (out != z).flatten(2).any(2) if z.ndim > 2 else out != z
        assert (moved.sum(1) <= size).all()


def test_shuffle_along_the_last_axis_and_behind_a_prefix() -> None:
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(4, 6, 5, generator=generator)
    source, target = (draw[0] for draw in terms.draw_shuffles(1, 4, 5, 3, generator))
    wanted = slow_shuffle(z.transpose(1, 2), source, target).transpose(1, 2)
    assert torch.equal(terms.shuffle_features(z, source, target, dim=-1), wanted)
    out = terms.shuffle_features(z, source, target, skip=1)
    assert torch.equal(out[:, 0], z[:, 0])
    assert torch.equal(out[:, 1:], slow_shuffle(z[:, 1:], source, target))


def test_shuffles_are_uniform_subsets_and_uniform_permutations() -> None:
    draws, channels, size = 20_000, 6, 3
    source, target = terms.draw_shuffles(1, draws, channels, size, torch.Generator().manual_seed(6))
    assert torch.equal(source.sort(2).values, target)
    assert (target.diff(dim=2) > 0).all()  # m different channels
    counts = torch.bincount(source.flatten(), minlength=channels) / draws
    close(counts, torch.full((channels,), size / channels), 0.015)
    patterns = source.argsort(2)[0] @ torch.tensor([9, 3, 1])
    shares = torch.unique(patterns, return_counts=True)[1] / draws
    close(shares, torch.full((6,), 1 / 6), 0.012)
    moved = (source != target).sum(2).double().mean()
    close(moved, size - 1, 0.03)


# ---------------------------------------------------------------------- G7, noise
def test_noise_moments() -> None:
    noise = terms.latent_noise(torch.zeros(1_000_000), torch.Generator().manual_seed(7)).double()
    assert noise.min() >= 0
    assert noise.max() < 1.5575
    close(noise.mean(), -math.log(math.cos(1)), 0.002)
    close(noise.square().mean(), math.tan(1) - 1, 0.003)


# ---------------------------------------------------------------------- G5, latent step
def test_latent_step_by_hand() -> None:
    z, u, y = f64([[1.0, 0.0]]), f64([[1.5, 0.5]]), torch.tensor([0])
    close(F.cross_entropy(u, y), 0.313262)
    close(0.1 * terms.log_distance(u, z), -0.034657)
    new, gradient = terms.latent_step(lambda v: v, u, z, y, 0.01, 0.1)
    close(gradient, f64([[-0.368941, 0.168941]]))
    close(new, f64([[1.51, 0.49]]), 1e-12)
    assert u.tolist() == [[1.5, 0.5]]
    assert not new.requires_grad


def test_latent_step_without_gradient_stays() -> None:
    z = torch.rand(3, 4, 2, 2)
    new, gradient = terms.latent_step(lambda v: v.flatten(1) * 0, z, z, torch.tensor([0, 1, 2]), 0.01, 0.1)
    assert torch.equal(new, z)
    assert not gradient.any()


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_log_distance_equals_the_loop(distance: Any, scope: Any) -> None:
    generator = torch.Generator().manual_seed(8)
    u, z = torch.randn(2, 5, 3, 2, 2, generator=generator, dtype=torch.float64)
    if distance == "l2":
        squares = [
            sum((a - b) ** 2 for a, b in zip(i.flatten().tolist(), k.flatten().tolist(), strict=True))
            for i, k in zip(u, z, strict=True)
        ]
        wanted = math.log(math.sqrt(sum(squares)))
        if scope == "sample":
            wanted = sum(math.log(math.sqrt(s)) for s in squares) / 5
    else:
        gaps = []
        for i, k in zip(u, z, strict=True):
            dot = float((i * k).sum())
            gaps.append(1 - dot / math.sqrt(float((i * i).sum()) * float((k * k).sum())))
        wanted = math.log(sum(gaps) / 5) if scope == "batch" else sum(math.log(g) for g in gaps) / 5
    close(terms.log_distance(u, z, distance, scope), wanted, 1e-9)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 7), (3, 4, 2, 5)])
def test_gradient_of_the_log_distance(distance: Any, scope: Any, shape: tuple[int, ...]) -> None:
    u, z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    leaf = u.clone().requires_grad_(True)
    (wanted,) = torch.autograd.grad(terms.log_distance(leaf, z, distance, scope), leaf)
    found = terms.log_distance_gradient(u, z, distance, scope)
    assert not found.requires_grad
    close(found, wanted, 1e-14)
    ce, total = (
        terms.latent_step(
            lambda v: v.flatten(1), u, z, torch.zeros(len(u), dtype=torch.long), 0.01, w, distance, scope
        )[1]
        for w in (0.0, 0.7)
    )
    close(total, ce - 0.7 * wanted, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("kind", ["random", "zeros", "one zero row"])
def test_log_distance_of_equal_tensors_is_finite_with_zero_gradient(
    distance: Any, scope: Any, dtype: torch.dtype, kind: str
) -> None:
    z = torch.randn(64, 6, 3, 3, generator=torch.Generator().manual_seed(9)).to(dtype)
    if kind != "random":
        z[: 1 if kind == "one zero row" else None] = 0
    u = z.clone().requires_grad_(True)
    value = terms.log_distance(u, z, distance, scope)
    (gradient,) = torch.autograd.grad(value, u)
    assert torch.isfinite(value)
    assert not gradient.any()  # NaN would count as true
    assert not terms.log_distance_gradient(z, z, distance, scope).any()


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_log_distance_of_near_and_far_tensors_has_finite_gradients(distance: Any, scope: Any) -> None:
    z = torch.randn(8, 20, generator=torch.Generator().manual_seed(10))
    for u in (z + 1e-6, 2 * z, -z, z + 100, torch.zeros_like(z)):
        leaf = u.clone().requires_grad_(True)
        value = terms.log_distance(leaf, z, distance, scope)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


# ---------------------------------------------------------------------- G3, G4, upper loss
S, PRIME = f64([[2.0, 0.0, -1.0]]), f64([[0.5, 0.3, 0.2]])


@pytest.mark.parametrize(
    ("temperature", "double_softmax", "log_prob", "prob"),
    [(1, 0.587256, 0.340193, 0.340193), (2, 0.646997, 0.397299, 0.138863), (20, 0.635615, 0.389011, 19.033940)],
)
def test_temperature_kl_table(temperature: float, double_softmax: float, log_prob: float, prob: float) -> None:
    kinds: dict[Any, float] = {"double_softmax": double_softmax, "log_prob": log_prob, "prob": prob}
    for kind, wanted in kinds.items():
        q = terms.kl_target(PRIME, temperature, kind)
        close(terms.temperature_kl(q, S, temperature), wanted)
        close(slow_kl(q, S, temperature), wanted)


def test_tempered_distributions_and_the_limit_of_large_temperatures() -> None:
    close((S / 2).softmax(1), f64([[0.628532, 0.231224, 0.140244]]))
    close(terms.kl_target(PRIME, 2.0), f64([[0.361592, 0.327182, 0.311225]]))
    gap = (S - S.mean()) - (PRIME - PRIME.mean())
    close(gap.square().sum() / 6, 0.63)
    close(terms.temperature_kl(terms.kl_target(PRIME, 1e4), S, 1e4), 0.63, 1e-4)


def test_kl_of_hard_targets_is_finite() -> None:
    hard = f64([[1.0, 0.0, 0.0]])
    for kind in ("double_softmax", "log_prob", "prob"):
        q = terms.kl_target(hard, 2.0, kind)  # type: ignore[arg-type]
        close(q.sum(), 1.0)
        close(terms.temperature_kl(q, S, 2.0), slow_kl(q, S, 2.0))


def test_upper_loss_by_hand() -> None:
    kl = terms.temperature_kl(terms.kl_target(PRIME, 20.0), S, 20.0)
    mse = F.mse_loss(f64([[1.0, 2.0]]), f64([[1.5, 1.0]]))
    ce = F.cross_entropy(S, torch.tensor([0]))
    close(ce, 0.169846)
    close(mse, 0.625)
    close(0.2 * kl + 2 * mse + 0.6 * ce, 1.479031)


@pytest.mark.parametrize(("classes", "gamma", "confidence"), [(10, 0.6, 0.88), (10, 0.8, 0.905), (2, 0.8, 0.888)])
def test_where_the_logit_terms_balance(classes: int, gamma: float, confidence: float) -> None:
    mixed = torch.zeros(1, classes, dtype=torch.float64)
    mixed[0, :2] = f64(0.65, 0.35)
    s = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([s], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = 0.2 * terms.temperature_kl(terms.kl_target(mixed, 20.0), s, 20.0)
        value = value + gamma * F.cross_entropy(s, torch.tensor([0]))
        value.backward()
        return value

    optimizer.step(loss)
    close(s.softmax(1).max().detach(), confidence, 0.005)


# ---------------------------------------------------------------------- G4, G6 through the attack
class Recorder:
    """Records the random draws of a run and its batches, so that a second version can use the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noise: list[Tensor] = []
        self.shuffles: list[tuple[Tensor, Tensor]] = []
        self.batches: list[Batch] = []
        noise, shuffles, batch = terms.latent_noise, terms.draw_shuffles, Batches._batch
        monkeypatch.setattr(terms, "latent_noise", lambda *a: self._keep(self.noise, noise(*a)))
        monkeypatch.setattr(terms, "draw_shuffles", lambda *a: self._keep(self.shuffles, shuffles(*a)))
        monkeypatch.setattr(Batches, "_batch", lambda *a: self._keep(self.batches, batch(*a)))

    @staticmethod
    def _keep(kept: list[Any], value: Any) -> Any:
        kept.append(value)
        return value


def plain_removalnet(
    victim: TinyCNN, run: Recorder, steps: int, temperature: float, double_pass: bool, source: str
) -> TinyCNN:
    """RemovalNet on a TinyCNN cut behind block2, written down from the algorithm with loops; CIFAR10 weights."""
    network = TinyCNN()
    network.load_state_dict(victim.state_dict())
    victim = victim.eval()

    def head(model: TinyCNN, x: Tensor) -> Tensor:
        return model.block2(model.block1(x))

    def tail(model: TinyCNN, z: Tensor) -> Tensor:
        return model.head(model.pool(model.block3(z)).flatten(1))

    optimizer = torch.optim.SGD(network.parameters(), 8e-3, 0.9, weight_decay=1e-4)
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = 8e-3 / 2 * (1 + math.cos(math.pi * t / int(1.5 * steps)))
        x = run.batches[t].x
        y = victim(x).detach().argmax(1)
        model = network.eval() if source == "surrogate" else victim
        z = head(model, x).detach()
        u = z + run.noise[t]
        moved_from, moved_to = run.shuffles[t]
        u = slow_shuffle(u, moved_from[0], moved_to[0])
        for j in range(1, len(moved_from)):
            u = slow_shuffle(u, moved_from[j], moved_to[j]).detach().requires_grad_(True)
            inner = F.cross_entropy(tail(model, u), y) - 0.1 * (u - z).norm().log()
            u = (u - 0.01 * torch.autograd.grad(inner, u)[0].sign()).detach()
        p = model(x).detach().softmax(1)
        q = (slow_ilbs(p, y, GRID) / temperature).softmax(1)
        network.train()
        if double_pass:
            head(network, x)
        latent = head(network, x)
        logits = tail(network, latent)
        kl = temperature**2 * (q * (q.log() - (logits / temperature).log_softmax(1))).sum() / len(x)
        loss = 0.2 * kl + 2.0 * (latent - u).square().mean() + 0.6 * F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("source", ["surrogate", "victim"])
@pytest.mark.parametrize("double_pass", [False, True])
def test_whole_iterations_equal_a_plain_second_version(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray, double_pass: bool, source: str
) -> None:
    victim = several_classes(images)
    run = Recorder(monkeypatch)
    attack = RemovalNetAttack(
        victim,
        "block2",
        shuffle_ratio=0.3,
        inner_steps=4,
        max_iter=3,
        batch_size=16,
        latent_source=source,
        logit_source=source,
        reference_double_pass=double_pass,
    )
    found = attack.generate(images).model
    assert len(run.batches) == 3
    assert all(len(shuffles[0]) == 5 for shuffles in run.shuffles)  # J + 1
    assert any(batch.flipped.any() for batch in run.batches)
    wanted = plain_removalnet(victim.model, run, 3, 20.0, double_pass, source)
    for (name, a), b in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
        if "num_batches" not in name:
            assert torch.allclose(a, b, atol=1e-6, rtol=1e-5), name
    for before, after in zip(victim.model.parameters(), found.parameters(), strict=True):
        assert before.ndim == 1 or (after - before).abs().max() > 1e-4  # it did train everything


def rates_of(monkeypatch: pytest.MonkeyPatch, attack: RemovalNetAttack, x: np.ndarray, steps: int) -> list[float]:
    """Return the learning rate before each step of the attack's own optimiser and scheduler."""
    rates: list[float] = []

    def fake_fit(*, optimizer: torch.optim.Optimizer, scheduler: Any, **_: object) -> dict[str, float]:
        group = optimizer.param_groups[0]
        assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, False)
        for _step in range(steps + 1):
            rates.append(float(group["lr"]))
            optimizer.step()
            scheduler.step()
        return {}

    monkeypatch.setattr(removalnet, "fit", fake_fit)
    attack.generate(x)
    return rates


def test_schedule(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    attack = RemovalNetAttack(several_classes(images), "block2", learning_rate=1.0, shuffle_ratio=0.3, batch_size=40)
    rates = rates_of(monkeypatch, attack, images, 1000)
    close(rates[0], 1.0, 1e-12)
    close(rates[500], 0.75, 1e-9)
    close(rates[1000], 0.25, 1e-9)
    close(rates[250], (1 + math.cos(math.pi / 6)) / 2, 1e-9)


@pytest.mark.parametrize(
    ("share", "low", "high"),
    [(None, 8e-3, 8e-3), (0.02, 7.84e-3, 7.84e-3), (0.1, 7.2e-3, 7.2e-3), (0.2, 6.4e-3, 6.4e-3), (0.9, 7.2e-3, 8.8e-3)],
)
def test_share_scaling(
    monkeypatch: pytest.MonkeyPatch,
    images: np.ndarray,
    share: float | None,
    low: float,
    high: float,
) -> None:
    attack = RemovalNetAttack(several_classes(images), "block2", subset_ratio=share, shuffle_ratio=0.3, batch_size=40)
    (first, _) = rates_of(monkeypatch, attack, images, 1)
    assert low - 1e-12 <= first <= high + 1e-12
    assert attack.scaled_learning_rate() == first


def test_losses_reported_are_the_weighted_terms(images: np.ndarray) -> None:
    """With J = 0, no shuffle and a cut at the first layer the terms of the first step can be worked out outside."""
    victim = several_classes(images)
    network: nn.Module = victim.model
    attack = RemovalNetAttack(
        victim, "block1", alpha=0.3, beta=0, gamma=0.7, temperature=5.0, max_iter=1, batch_size=40, hflip=False
    )
    losses = attack.generate(images).surrogate_info["losses"]
    x = torch.from_numpy(images)
    with torch.no_grad():
        s = network.eval()(x)
        y = s.argmax(1)
        q = (slow_ilbs(s.softmax(1), y, GRID) / 5).softmax(1).double()
        twin = TinyCNN()
        twin.load_state_dict(network.state_dict())
        trained = twin.train()(x).double()
    close(losses["kl"], 0.3 * slow_kl(q, trained, 5.0), 1e-5)
    close(losses["ce"], 0.7 * float(F.cross_entropy(trained, y)), 1e-5)
    assert set(losses) == {"kl", "ce"}


def test_two_classes(images: np.ndarray) -> None:
    victim = several_classes(images, nb_classes=2)
    surrogate = RemovalNetAttack(victim, "block2", shuffle_ratio=0.3, max_iter=2, batch_size=20).generate(images)
    assert surrogate.model(torch.from_numpy(images)).isfinite().all()
