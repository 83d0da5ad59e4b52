"""Several attacks in a row: each starts from the surrogate of the one before."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import nn

from art_fingerprint.attacks.base import RemovalAttack, SubstituteSet, SurrogateCallback
from art_fingerprint.core.checks import check_sequence, shown
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.seeding import derive_seed, forked_random_state
from art_fingerprint.exceptions import InvalidInputError

Step = RemovalAttack | tuple[str, Mapping[str, Any]]


class CompositeAttack(RemovalAttack):
    """Run attacks in a row, each on the weights that the one before left.

    An attack of the row is an attack object made for the same victim, which keeps all its own settings, or a pair
    ``(class name, parameters)``, which is data and fits into a preset. A pair takes what its parameters do not say from
    this attack: ``batch_size``, ``hflip``, ``callback``, ``callback_interval``, ``summary_writer``, ``verbose``, and a
    seed derived from ``seed`` (the first takes ``seed`` itself, so that a row of one is that attack).

    The victim stays the victim throughout: it is asked about the data once for all attacks, and it is what distillation
    keeps close to and RemovalNet keeps away from. To make each surrogate the victim of the next attack, call them one
    by one: ``B(A(victim).generate(x)).generate(x)``.

    ``surrogate_info["steps"]`` holds the attacks' own reports; ``victim_queries`` and ``cost`` are those of the row,
    ``losses`` those of its last attack.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None`` for
    the victim's labels.

    Cost: the sum of the attacks', but for the victim's answers about the data, which are asked for once.

    :param classifier: The victim.
    :param attacks: Attack objects, or pairs of a class name and a mapping of its constructor's parameters (default
        ours: half of the weights are pruned, then everything is fine-tuned), also in the form that :meth:`params` gives
        them. Only the first may start from other weights than the victim's.
    :param batch_size: Samples in a batch.
    :param hflip: Random horizontal flips.
    :param callback: ``callback(step, surrogate, losses)``; steps count on from attack to attack.
    :param callback_interval: Steps between two calls.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Show a progress bar.
    """

    reads_streams = True  # if all of the row do
    attack_params = [*RemovalAttack.attack_params, "attacks"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        attacks: Sequence[Step] = (("WeightPruningAttack", {"ratio": 0.5}), ("FineTuningAttack", {"ratio": 1.0})),
        *,
        batch_size: int = 100,
        hflip: bool = True,
        callback: SurrogateCallback | None = None,
        callback_interval: int = 100,
        seed: int = 0,
        summary_writer: str | bool | SummaryWriter = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            batch_size=batch_size,
            hflip=hflip,
            callback=callback,
            callback_interval=callback_interval,
            seed=seed,
            summary_writer=summary_writer,
            verbose=verbose,
        )
        self.attacks = attacks
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        self.attacks = check_sequence("attacks", self.attacks)
        if not self.attacks:
            raise InvalidInputError("`attacks` is empty; give attack objects or pairs (class name, parameters).")
        self._steps()

    def params(self) -> dict[str, Any]:
        """Return the parameters as JSON values, those of the row's attacks included; callables are left out."""
        steps = [{"attack": type(step).__name__, "params": step.params()} for step in self._steps()]
        return {**super().params(), "attacks": steps}

    def _steps(self, callback: SurrogateCallback | None = None) -> list[RemovalAttack]:
        """Return the attacks of the row.

        :param callback: For pairs, in place of this attack's.
        """
        shared = {
            "batch_size": self.batch_size,
            "hflip": self.hflip,
            "callback": self.callback if callback is None else callback,
            "callback_interval": self.callback_interval,
            "summary_writer": self.summary_writer or False,
            "verbose": self.verbose,
        }
        steps: list[RemovalAttack] = []
        for k, entry in enumerate(self.attacks):
            if isinstance(entry, RemovalAttack):
                if entry.estimator is not self.estimator:
                    raise InvalidInputError(
                        f"`attacks`: the {type(entry).__name__} is made for another classifier; the victim of all must "
                        "be the same."
                    )
                entry._check_params()
                steps.append(entry)
            else:
                kind, params = _named(entry)
                seed = derive_seed(self.seed, "step", k) if k else self.seed
                steps.append(kind(self.estimator, **{**shared, "seed": seed, **params}))
        return steps

    # ------------------------------------------------------------------ the template's checks, for every attack
    def _check_flips(self) -> None:
        for step in self._steps():
            step._check_flips()

    def _check_stream(self, y: object) -> None:
        for step in self._steps():
            step._check_stream(y)

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        for k, step in enumerate(self._steps()):
            if k and step._start() is not step.estimator:
                raise InvalidInputError(
                    f"`attacks`: the {type(step).__name__} in place {k + 1} starts from weights of its own and would "
                    "throw away what came before; it can only be the first."
                )
            _lend(data, step)
            step._check_data(data, network)

    def _expected_queries(self, n: int, labelled: bool) -> int:
        # Steps share one set of answers about the substitute set.
        own = [step._own_queries(n) for step in self._steps()]
        shared = [step._expected_queries(n, labelled) for step in self._steps()]
        return sum(own) + max(whole - part for whole, part in zip(shared, own, strict=True))

    def _expected_work(self, n: int) -> float:
        return sum(step._expected_work(n) for step in self._steps())

    def _start(self) -> PyTorchClassifier:
        return self._steps()[0]._start()

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        network = network_of(surrogate)
        count = None if self.callback is None else _StepCount(self.callback)
        reports = []
        for step in self._steps(count):
            started = time.perf_counter()
            network.eval()
            for parameter in network.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            _lend(data, step)
            if count is not None:
                count.start_anew()
            with forked_random_state(step.seed, type(step).__name__):
                report = step._derive(surrogate, data)
            reports.append(
                {
                    "attack": type(step).__name__,
                    "params": step.params(),
                    "seconds": time.perf_counter() - started,
                    **report,
                }
            )
        return {"steps": reports, "losses": reports[-1].get("losses", {})}


class _StepCount:
    """A callback whose steps count on from attack to attack."""

    def __init__(self, callback: SurrogateCallback) -> None:
        self._callback = callback
        self._before = self._now = 0

    def start_anew(self) -> None:
        self._before = self._now

    def __call__(self, step: int, surrogate: PyTorchClassifier, losses: Mapping[str, float]) -> None:
        self._now = self._before + step
        if step or not self._before:  # the next attack's step 0 is the last one's end
            self._callback(self._now, surrogate, losses)


def _named(entry: Any) -> tuple[type[RemovalAttack], Mapping[str, Any]]:
    """Return the class and the parameters of a pair, or of what ``params()`` makes of one."""
    if isinstance(entry, Mapping) and set(entry) == {"attack", "params"}:
        entry = (entry["attack"], entry["params"])
    pair = tuple(entry) if isinstance(entry, tuple | list) else ()
    if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
        raise InvalidInputError(
            f"`attacks` must hold attack objects or pairs (class name, mapping of parameters), got {shown(entry)}."
        )
    name, params = pair
    known: dict[str, type[RemovalAttack]] = {}
    queue = RemovalAttack.__subclasses__()
    for kind in queue:
        queue += kind.__subclasses__()
        if not inspect.isabstract(kind):
            known.setdefault(kind.__name__, kind)
    if name not in known:
        raise InvalidInputError(f"`attacks`: there is no attack {shown(name)}; known are {', '.join(sorted(known))}.")
    accepted = [*known[name].attack_params, "summary_writer"]
    unknown = sorted(set(map(str, params)) - set(accepted))
    if unknown:
        raise InvalidInputError(
            f"`attacks`: {name} has no parameter {', '.join(unknown)}; it has {', '.join(accepted)}."
        )
    return known[name], params


def _lend(data: SubstituteSet, step: RemovalAttack) -> None:
    """Let the data come in an attack's batches."""
    data.batch_size = min(step.batch_size, data.size or step.batch_size)
    data.hflip = step.hflip
