"""The gradient bandit of Knockoff Nets: which class to draw from next, and what an answer is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_SMALLEST_DEVIATION = 1e-8


@dataclass(frozen=True)
class Bandit:
    """State of a gradient bandit over A actions.

    :ivar preferences: H, ``(A,)`` float64.
    :ivar counts: N, how often each action was drawn, ``(A,)``.
    :ivar mean_reward: Running mean of the rewards.
    """

    preferences: np.ndarray
    counts: np.ndarray
    mean_reward: float = 0.0

    @classmethod
    def start(cls, nb_actions: int) -> Bandit:
        return cls(np.zeros(nb_actions), np.zeros(nb_actions, dtype=np.int64))

    @property
    def policy(self) -> np.ndarray:
        """pi = softmax(H), ``(A,)``."""
        weights = np.exp(self.preferences - self.preferences.max())
        return weights / weights.sum()

    def after(self, actions: np.ndarray, rewards: np.ndarray) -> Bandit:
        """Return the state after some draws of one policy, one after the other.

        For each draw of an action a with reward r: r_mean takes up r, N_a += 1, then H_a += (r - r_mean)(1 - pi_a) /
        N_a and H_b -= (r - r_mean) pi_b / N_a for all other b.

        :param actions: ``(k,)`` indices; k = 1 is the published algorithm.
        :param rewards: ``(k,)``.
        """
        means = running_means(rewards, self.mean_reward, int(self.counts.sum()))
        weights = (rewards - means) / (self.counts[actions] + occurrences(actions))
        preferences = self.preferences - weights.sum() * self.policy
        np.add.at(preferences, actions, weights)
        counts = self.counts + np.bincount(actions, minlength=len(self.counts))
        return Bandit(preferences, counts, float(means[-1]))


def occurrences(actions: np.ndarray) -> np.ndarray:
    """Return for each of k actions how often it was drawn up to there, itself included, ``(k,)``."""
    return np.tril(actions[:, None] == actions[None, :]).sum(1)


def running_means(values: np.ndarray, mean: Any, count: int) -> np.ndarray:
    """Return the mean of everything up to each row of ``(k, ...)``, after ``count`` earlier rows of mean ``mean``."""
    seen = count + np.arange(1, len(values) + 1)
    return (count * mean + values.cumsum(0)) / seen.reshape(-1, *[1] * (values.ndim - 1))


def certainty(p: np.ndarray) -> np.ndarray:
    """Return the gap between the two largest probabilities of each row, ``(k,)``."""
    two = np.partition(p, -2)[:, -2:]
    return two[:, 1] - two[:, 0]


def diversity(p: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return sum over classes of max(0, p - mean answer so far) of each row, ``(k,)``."""
    return np.maximum(0.0, p - means).sum(1)


def disagreement(p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of the thief's log-probabilities under the victim's probabilities, ``(k,)``."""
    return -(p * log_q).sum(1)


class Rewards:
    """The reward of each answer, with the running means it needs.

    ``"cert"``: :func:`certainty`; ``"div"``: :func:`diversity` from the mean of all answers so far, this one included;
    ``"loss"``: :func:`disagreement`; ``"all"``: the mean of the three, each less its running mean and over its running
    standard deviation (this answer included, deviation at least 1e-8).

    :param kind: One of these.
    :param nb_classes: K.
    """

    def __init__(self, kind: str, nb_classes: int) -> None:
        self.kind = kind
        self.needs_thief = kind in ("loss", "all")
        self._seen = 0
        self._answer = np.zeros(nb_classes)
        self._means = np.zeros(3)
        self._squares = np.zeros(3)

    def __call__(self, p: np.ndarray, log_q: np.ndarray | None) -> np.ndarray:
        """Return the rewards of k answers, ``(k,)``, one after the other.

        :param p: The victim's probabilities ``(k, K)``.
        :param log_q: The thief's log-probabilities ``(k, K)``; not needed for ``"cert"`` and ``"div"``.
        """
        answers = running_means(p, self._answer, self._seen)
        if self.kind == "cert":
            found = certainty(p)
        elif self.kind == "div":
            found = diversity(p, answers)
        else:
            assert log_q is not None
            found = disagreement(p, log_q)
            if self.kind == "all":
                found = self._standardised(np.stack([certainty(p), diversity(p, answers), found], 1)).mean(1)
        self._answer, self._seen = answers[-1], self._seen + len(p)
        return found

    def _standardised(self, rewards: np.ndarray) -> np.ndarray:
        means = running_means(rewards, self._means, self._seen)
        squares = self._squares + ((rewards - means) ** 2).cumsum(0)
        seen = self._seen + np.arange(1, len(rewards) + 1)
        deviations = np.sqrt(squares / seen[:, None])
        self._means, self._squares = means[-1], squares[-1]
        return (rewards - means) / np.maximum(deviations, _SMALLEST_DEVIATION)
