"""Knockoff Nets: a fresh network learns the victim's answers on samples drawn at random or by a gradient bandit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.knockoff_bandit import Bandit, Rewards, occurrences
from art_fingerprint.attacks.stealing import StealingAttack, SurrogateFactory
from art_fingerprint.core.checks import check_choice, check_flag, check_labels, check_number
from art_fingerprint.core.classifier import LogitsNetwork, has_batch_norm, network_of
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.seeding import numpy_generator, torch_generator
from art_fingerprint.core.training import Batch, Losses, check_batches, fit
from art_fingerprint.exceptions import InvalidInputError, TrainingDivergedError


class Exploration:
    """The bandit's turn: draw classes, ask the victim, train the thief one step, take the reward.

    Iterated over, it draws; each draw goes through :meth:`losses` and :meth:`learn` before the next. A class is gone
    through in random order, and again once it is used up; known answers are not asked for again.

    :param attack: Holds the parameters.
    :param data: The transfer set, with its classes.
    :param surrogate: The thief.
    :param nb_draws: How many samples will be drawn.
    """

    def __init__(
        self, attack: KnockoffNetsAttack, data: SubstituteSet, surrogate: PyTorchClassifier, nb_draws: int
    ) -> None:
        assert data.y is not None
        nb_classes = surrogate.nb_classes
        self._attack, self._data, self._view = attack, data, LogitsNetwork(surrogate)
        self._generator = numpy_generator(attack.seed, type(attack).__name__, "draws")
        self.classes, actions = np.unique(data.y.numpy(), return_inverse=True)
        self.bandit = Bandit.start(len(self.classes))
        self._sizes = np.bincount(actions)
        self._starts = np.cumsum(self._sizes) - self._sizes
        shuffled = self._generator.permutation(len(actions))
        self._members = shuffled[np.argsort(actions[shuffled], kind="stable")]
        self._rewards = Rewards(attack.reward, nb_classes)
        self._row = np.full(len(actions), -1)
        self._answers = torch.empty(min(nb_draws, len(actions)), nb_classes)
        self._asked = 0
        self._actions = self._index = np.empty(0, dtype=np.int64)
        self._prepared = torch.empty(0)
        self._parts: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Batch]:
        victim, k = self._data.victim, self._attack.draws
        while True:
            self._actions = self._generator.choice(len(self.classes), k, p=self.bandit.policy)
            turn = self.bandit.counts[self._actions] + occurrences(self._actions) - 1
            self._index = self._members[self._starts[self._actions] + turn % self._sizes[self._actions]]
            self._ask()
            self._parts.append(self._index)
            self._prepared = victim.preprocess(self._data.x[self._index].to(victim.device))
            position = torch.from_numpy(self._index).to(victim.device)
            yield Batch(self._prepared, position, torch.zeros_like(position))

    @property
    def drawn(self) -> np.ndarray:
        """Positions of the samples drawn so far, ``(t,)``."""
        return np.concatenate(self._parts)

    def _ask(self) -> None:
        new = np.unique(self._index[self._row[self._index] < 0])
        if len(new):
            end = self._asked + len(new)
            self._row[new] = np.arange(self._asked, end)
            self._answers[self._asked : end] = self._data.ask(self._data.x[new])
            self._asked = end

    def answers(self, index: np.ndarray) -> Tensor:
        """Return the victim's logits for drawn samples, ``(len(index), K)`` on the host."""
        return self._answers[self._row[index]]

    def losses(self, batch: Batch) -> Losses:
        """Return the thief's loss on the latest draw."""
        wanted = self._attack.targets(self.answers(self._index).to(batch.x.device))
        self._view.network.train()
        return {"ce": F.cross_entropy(self._view.logits(self._view.network(batch.x)), wanted)}

    @torch.no_grad()
    def learn(self) -> None:
        """Take the latest draw's rewards, after the thief's step."""
        log_q = None
        if self._rewards.needs_thief:
            with evaluating(self._view.network):
                logits = self._view.logits(self._view.network(self._prepared))
            log_q = logits.double().log_softmax(1).cpu().numpy()
        p = self.answers(self._index).double().softmax(1).numpy()
        rewards = self._rewards(p, log_q)
        if not np.isfinite(rewards).all():
            raise TrainingDivergedError(
                f"The bandit's reward became NaN or infinite after {len(self._parts)} steps. Lower the learning rate. "
                "The victim is unchanged."
            )
        self.bandit = self.bandit.after(self._actions, rewards)


class KnockoffNetsAttack(StealingAttack):
    """Knockoff Nets (Orekondy et al., CVPR 2019): copy the victim's function with queries alone.

    Random strategy: CE against the victim's answers on the transfer set, or on ``nb_stolen`` queries' worth of it.
    Settings: RemovalNet's code, which multiplies the rate by 0.8 + 0.5 u; 10,000 steps are the paper's (the code's
    cosine is 10 longer than 20,000).

    Adaptive strategy: a gradient bandit over the classes y of the transfer set (any label space) chooses what to ask,
    see :meth:`.Bandit.after` and :class:`.Rewards`. Each draw trains the thief one step at ``learning_rate * draws /
    batch_size`` (ours: the rate of a batch, in proportion). Then the thief is trained on all collected pairs like in
    the random strategy; mirror images have the labels of their samples there.

    Deviations: the thief is in training mode at every step (the code leaves it in evaluation mode after its first
    test); a victim's answer is asked for once; rewards are computed from probabilities.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``. Adaptive: y ``(n,)`` integers or
    one-hot rows, the classes of the transfer set. Random: y is not used.

    Cost: ``max_iter`` batches forward and backward. Random: one victim query for each sample, two with flips. Adaptive:
    at most one query, one step of ``draws`` samples and one forward pass (``"loss"``, ``"all"``) for each draw.

    :param classifier: The victim.
    :param sampling_strategy: ``"random"`` or ``"adaptive"``.
    :param reward: ``"cert"``, ``"div"``, ``"loss"`` or ``"all"``, for the adaptive strategy.
    :param use_probability: Learn the victim's probabilities instead of its labels.
    :param nb_stolen: Most victim queries; ``None``: as many as the transfer set has samples (random: and mirror
        images). Adaptive: the number of draws, rounded down to a multiple of ``draws``.
    :param draws: Samples drawn between two updates of the policy. 1 is published; more are faster, and needed with
        BatchNorm. Their rewards come from the same step.
    :param surrogate_factory: Makes the thief's network, any architecture with the victim's inputs and classes;
        ``None``: the victim's architecture with fresh weights.
    :param learning_rate: SGD learning rate.
    :param lr_jitter: The rate is multiplied by ``1 + lr_jitter u``, u uniform on [0, 1).
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param max_iter: SGD steps on the queried samples.
    :param allow_degenerate: Accept a transfer set that the victim, or y, puts into one class.
    :param batch_size: Samples in a batch.
    :param hflip: Random horizontal flips.
    :param callback: ``callback(step, surrogate, losses)``; steps of the exploration come first.
    :param callback_interval: Steps between two calls.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Show a progress bar.
    """

    reads_streams = True
    attack_params = [
        *StealingAttack.attack_params,
        "sampling_strategy",
        "reward",
        "use_probability",
        "nb_stolen",
        "draws",
        "max_iter",
    ]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        sampling_strategy: str = "random",
        *,
        reward: str = "all",
        use_probability: bool = False,
        nb_stolen: int | None = None,
        draws: int = 1,
        surrogate_factory: SurrogateFactory | None = None,
        learning_rate: float = 0.08,
        lr_jitter: float = 0.625,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        max_iter: int = 10_000,
        allow_degenerate: bool = False,
        batch_size: int = 128,
        hflip: bool = True,
        callback: SurrogateCallback | None = None,
        callback_interval: int = 100,
        seed: int = 0,
        summary_writer: str | bool | SummaryWriter = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            surrogate_factory=surrogate_factory,
            learning_rate=learning_rate,
            lr_jitter=lr_jitter,
            momentum=momentum,
            weight_decay=weight_decay,
            allow_degenerate=allow_degenerate,
            batch_size=batch_size,
            hflip=hflip,
            callback=callback,
            callback_interval=callback_interval,
            seed=seed,
            summary_writer=summary_writer,
            verbose=verbose,
        )
        self.sampling_strategy = sampling_strategy
        self.reward = reward
        self.use_probability = use_probability
        self.nb_stolen = nb_stolen
        self.draws = draws
        self.max_iter = max_iter
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_choice("sampling_strategy", self.sampling_strategy, ("random", "adaptive"))
        check_choice("reward", self.reward, ("cert", "div", "loss", "all"))
        check_flag("use_probability", self.use_probability)
        if self.nb_stolen is not None:
            check_number("nb_stolen", self.nb_stolen, 1, integer=True)
        check_number("draws", self.draws, 1, integer=True)
        check_number("max_iter", self.max_iter, 1, integer=True)

    def _check_labels(self, y: object, n: int) -> np.ndarray:
        if self.sampling_strategy == "random":
            return super()._check_labels(y, n)
        try:
            shape: tuple[int, ...] = np.shape(cast(Any, y))
        except ValueError:  # a ragged list, which the check names
            shape = ()
        return check_labels(y, n, shape[1] if len(shape) == 2 and shape[1] > 1 else 2**31)

    def _nb_samples(self, n: int) -> int:
        """Return how many of n samples will be asked about, or drawn by the bandit."""
        if self.sampling_strategy == "adaptive":
            return (n if self.nb_stolen is None else self.nb_stolen) // self.draws * self.draws
        return n if self.nb_stolen is None else min(n, self.nb_stolen // (1 + self.hflip))

    def _nb_pooled(self, n: int) -> int:
        return self._nb_samples(n)

    def _own_queries(self, n: int) -> int:
        whole = self.sampling_strategy == "random" and self.nb_stolen is None
        return 0 if whole else self._expected_queries(n, False)

    def _expected_queries(self, n: int, labelled: bool) -> int:
        if self.sampling_strategy == "random":
            return super()._expected_queries(self._nb_samples(n), labelled)
        return min(self._nb_samples(n), n)  # at most: classes that are used up give known answers again

    def _expected_work(self, n: int) -> float:
        work = super()._expected_work(n)
        if self.sampling_strategy == "random":
            return work
        return work + self._nb_samples(n) * (self._passes_of_a_sample() + (self.reward in ("loss", "all")))

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        if self.sampling_strategy == "random" and self.nb_stolen is None:
            super()._check_data(data, network)
            data.check_classes(self.estimator.nb_classes, self.allow_degenerate)
            return
        data.needs_array("nb_stolen" if self.sampling_strategy == "random" else "sampling_strategy")
        count = self._nb_samples(len(data.x))
        if count == 0:
            budget = f"{len(data.x)} samples" if self.nb_stolen is None else f"`nb_stolen`={self.nb_stolen} queries"
            needed = (
                f"`draws`={self.draws}" if self.sampling_strategy == "adaptive" else "a sample and its mirror image"
            )
            raise InvalidInputError(f"{budget} are fewer than {needed}.")
        check_batches(count, self.batch_size, network)
        if self.sampling_strategy == "random":
            return
        if data.y is None:
            raise InvalidInputError("The adaptive strategy draws by class: pass y, the classes of the transfer set.")
        if self.draws == 1 and has_batch_norm(network):
            raise InvalidInputError(
                "The thief has BatchNorm layers, which cannot learn from one sample at a time: set `draws` above 1."
            )
        if len(data.y.unique()) == 1 and not self.allow_degenerate:
            raise InvalidInputError(
                "y puts the whole transfer set into one class, which leaves the bandit no choice; use "
                "sampling_strategy='random' (allow_degenerate=True lifts this check)."
            )

    def targets(self, answers: Tensor) -> Tensor:
        """Return what is learned from the victim's logits ``(..., K)``: its probabilities, or its labels ``(...)``."""
        return answers.softmax(-1) if self.use_probability else answers.argmax(-1)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        return self._random(surrogate, data) if self.sampling_strategy == "random" else self._adaptive(surrogate, data)

    def _random(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        pool = data
        if self.nb_stolen is not None:
            n = len(data.x)
            order = torch.randperm(n, generator=torch_generator(self.seed, type(self).__name__, "pool"))
            pool = _part(data, order[: self._nb_samples(n)])
            pool.check_classes(self.estimator.nb_classes, self.allow_degenerate)

        def wanted(batch: Batch) -> Tensor:
            return self.targets(pool.victim_logits_of(batch)) if self.use_probability else pool.victim_labels_of(batch)

        report = self._learn(surrogate, pool, wanted, self._watch(surrogate))
        if pool is not data:
            data.queries += pool.queries
        return report

    def _adaptive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        count, watch = self._nb_samples(len(data.x)), self._watch(surrogate)
        explored = self._explore(surrogate, data, count)
        answers = explored.answers(explored.drawn)
        data.check_classes(self.estimator.nb_classes, self.allow_degenerate, answers.argmax(1))
        table = self.targets(answers).to(data.victim.device)
        pool = _part(data, torch.from_numpy(explored.drawn))
        steps = count // self.draws

        def watch_on(step: int, losses: Mapping[str, float]) -> None:
            if step:
                watch(steps + step, losses)

        report = self._learn(surrogate, pool, lambda batch: table[batch.index], watch_on)
        policy = zip(map(str, explored.classes.tolist()), explored.bandit.policy.tolist(), strict=True)
        return {**report, "draws": count, "policy": dict(policy)}

    def _explore(self, surrogate: PyTorchClassifier, data: SubstituteSet, nb_draws: int) -> Exploration:
        explored = Exploration(self, data, surrogate, nb_draws)
        rate = self._rate() * self.draws / self.batch_size
        fit(
            batches=explored,
            loss=explored.losses,
            optimizer=torch.optim.SGD(
                network_of(surrogate).parameters(), rate, self.momentum, weight_decay=self.weight_decay
            ),
            max_iter=nb_draws // self.draws,
            after_step=explored.learn,
            callback=self._watch(surrogate),
            callback_interval=self.callback_interval,
            description="Exploration",
            verbose=self.verbose,
        )
        return explored

    def _learn(
        self,
        surrogate: PyTorchClassifier,
        pool: SubstituteSet,
        wanted: Callable[[Batch], Tensor],
        watch: Callable[[int, Mapping[str, float]], None],
    ) -> dict[str, Any]:
        def losses(batch: Batch, logits: Tensor) -> Losses:
            return {"ce": F.cross_entropy(logits, wanted(batch))}

        return self._train(surrogate, self._batches(pool), losses, self.max_iter, watch)


def _part(data: SubstituteSet, index: Tensor) -> SubstituteSet:
    return SubstituteSet(data.x[index], None, data.victim, data.batch_size, data.hflip, data.cost)
