"""Feature distillation: train a copy on labels while its late features stay close to the victim's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.stealing import SurrogateFactory, check_factory, fresh_classifier
from art_fingerprint.attacks.supervised import SupervisedAttack
from art_fingerprint.core.checks import check_choice, check_flag, check_number, check_sequence
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.layers import LayerTrace, levels, recorded, resolve_layer, stages
from art_fingerprint.core.seeding import forked_random_state
from art_fingerprint.core.training import Losses
from art_fingerprint.exceptions import InvalidInputError


@torch.no_grad()
def distillation_layers(network: nn.Module, example: Tensor) -> list[str]:
    """Return the layers whose features are distilled: the last two stages; the whole block stack for a ViT.

    The classifier, where it counts as a stage, is left out. Cost: one forward pass of ``example``.

    :raises InvalidInputError: no stage returns one tensor; name layers then.
    """
    for prefix, inner in levels(network):
        names = dict(inner.named_modules())
        if "features.denseblock4" in names:
            return [f"{prefix}features.denseblock3", f"{prefix}features.denseblock4"]
        for blocks, token_model in (("blocks", "norm_pre"), ("encoder.layers", "encoder.ln")):
            if blocks in names and token_model in names:
                return [prefix + blocks]
    with recorded(network, stages(network)) as traces:
        output = network(example)
    outputs = {name: trace.single_tensor for name, trace in traces.items()}
    found = [name for name, z in outputs.items() if z is not None and z.shape != output.shape]
    if not found:
        raise InvalidInputError("No features can be chosen automatically for this network; pass `layers`.")
    return found[-2:]


class Projection(nn.Module):
    """Brings a student's features to the shape of the victim's, by a learned linear map over channels.

    Feature maps ``(n, C, H, W)`` are averaged or repeated to the victim's height and width, token sequences
    ``(n, N, D)`` to its number of tokens. Features of another rank are compared as means over positions.

    :param student: Shape of the student's features, with the sample axis.
    :param teacher: Shape of the victim's.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size) -> None:
        super().__init__()
        self._size: tuple[int, ...] = ()
        self._pooled = len(student) != len(teacher)
        inner, outer = _channel_axis(student), _channel_axis(teacher)
        if not self._pooled and len(teacher) > 2:
            self._size = tuple(size for axis, size in enumerate(teacher) if axis not in (0, outer))
        self.map = nn.Linear(student[inner], teacher[outer])

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one shape, channels last."""
        student, teacher = (z.movedim(_channel_axis(z.shape), 1) for z in (student, teacher))
        if self._pooled:
            student, teacher = (z.flatten(2).mean(2) if z.ndim > 2 else z for z in (student, teacher))
        elif self._size:
            pool = F.adaptive_avg_pool1d if len(self._size) == 1 else F.adaptive_avg_pool2d
            student = pool(student, self._size)  # type: ignore[arg-type]
        return self.map(student.movedim(1, -1)), teacher.movedim(1, -1)


def _channel_axis(shape: torch.Size) -> int:
    return 2 if len(shape) == 3 else 1  # tokens have their features last


class DistillationAttack(SupervisedAttack):
    """Feature distillation from the victim, the row "Distill" of the RemovalNet paper.

    The student starts from the victim's weights. Loss: CE + ``feature_weight`` * sum over late layers of the mean
    squared difference to the victim's features + ``linear_l2`` * 0.5 * sum of squares over Linear layers. Teacher in
    evaluation, student in training mode. Settings: the authors' code.

    Ours: ``init="random"`` distils into fresh weights, ``surrogate_factory`` into another architecture. Where the
    student's features have another shape than the victim's, they go through a :class:`Projection`, which is
    trained along and thrown away.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None`` for
    the victim's labels.

    Cost: ``max_iter`` batches, forward through both networks and backward through one.

    :param classifier: The victim.
    :param layers: Names or stage numbers of the layers; ``None``: see :func:`distillation_layers`.
    :param init: Weights of a student of the victim's architecture: ``"victim"``'s, or ``"random"``.
    :param surrogate_factory: Makes the student's network instead, any architecture with the victim's inputs and
        classes, with weights of its own; ``None``: the victim's architecture.
    :param student_layers: Names or stage numbers of the student's layers, one for each of ``layers``; ``None``: those
        of ``layers`` in the victim's architecture, see :func:`distillation_layers` in another.
    :param feature_weight: Weight of each layer's squared difference.
    :param learning_rate: SGD learning rate.
    :param lr_jitter: The rate is multiplied by ``1 + lr_jitter u``, u uniform on [0, 1).
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param linear_l2: Weight of 0.5 * sum of squares over Linear layers.
    :param max_iter: SGD steps.
    :param use_victim_labels: Train on the victim's labels although y is given.
    :param allow_degenerate: Accept a substitute set that the victim puts into one class.
    :param batch_size: Samples in a batch.
    :param hflip: Random horizontal flips.
    :param callback: ``callback(step, surrogate, losses)``.
    :param callback_interval: Steps between two calls.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Show a progress bar.
    """

    reads_streams = True
    attack_params = [
        *SupervisedAttack.attack_params,
        "layers",
        "init",
        "surrogate_factory",
        "student_layers",
        "feature_weight",
        "allow_degenerate",
    ]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        layers: Sequence[str | int] | None = None,
        *,
        init: str = "victim",
        surrogate_factory: SurrogateFactory | None = None,
        student_layers: Sequence[str | int] | None = None,
        feature_weight: float = 0.1,
        learning_rate: float = 1e-3,
        lr_jitter: float = 1.0,
        momentum: float = 0.8,
        weight_decay: float = 1e-4,
        linear_l2: float = 1e-2,
        max_iter: int = 1000,
        use_victim_labels: bool = False,
        allow_degenerate: bool = False,
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
            learning_rate=learning_rate,
            lr_jitter=lr_jitter,
            momentum=momentum,
            weight_decay=weight_decay,
            linear_l2=linear_l2,
            max_iter=max_iter,
            use_victim_labels=use_victim_labels,
            batch_size=batch_size,
            hflip=hflip,
            callback=callback,
            callback_interval=callback_interval,
            seed=seed,
            summary_writer=summary_writer,
            verbose=verbose,
        )
        self.layers = layers
        self.init = init
        self.surrogate_factory = surrogate_factory
        self.student_layers = student_layers
        self.feature_weight = feature_weight
        self.allow_degenerate = allow_degenerate
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("feature_weight", self.feature_weight, 0)
        check_flag("allow_degenerate", self.allow_degenerate)
        for name in ("layers", "student_layers"):
            if getattr(self, name) is not None:
                setattr(self, name, check_sequence(name, getattr(self, name)))
                if not getattr(self, name):
                    raise InvalidInputError(f"`{name}` is empty; give names or stage numbers, or None.")
        check_choice("init", self.init, ("victim", "random"))
        check_factory(self.surrogate_factory)

    def _start(self) -> PyTorchClassifier:
        if self.surrogate_factory is None and self.init == "victim":
            return self.estimator
        return fresh_classifier(self.estimator, self.surrogate_factory, self.seed, type(self).__name__)

    def _expected_queries(self, n: int, labelled: bool) -> int:
        return max(n, super()._expected_queries(n, labelled))  # the classes are checked in any case

    def _passes_of_a_sample(self) -> float:
        return super()._passes_of_a_sample() + 1  # the teacher's

    def _pairs(self, teacher: nn.Module, student: nn.Module, example: Tensor) -> list[_Pair]:
        """Return the layers that are compared, with the shapes of their features. Cost: a forward pass through both."""
        names = self._layers(self.layers, teacher, example)
        if self.student_layers is None and self.surrogate_factory is None:
            twins = names
        else:
            twins = self._layers(self.student_layers, student, example)
        if len(twins) != len(names):
            raise InvalidInputError(
                f"The victim's features come from {len(names)} layer(s) ({', '.join(names)}), the student's from "
                f"{len(twins)} ({', '.join(twins)}): name as many in `layers` and `student_layers`."
            )
        with (
            torch.no_grad(),
            evaluating(student),
            recorded(teacher, names) as wanted,
            recorded(student, twins) as found,
        ):
            teacher(example)
            student(example)
        return [
            _Pair(name, twin, _features(name, wanted[name]).shape, _features(twin, found[twin]).shape)
            for name, twin in zip(names, twins, strict=True)
        ]

    @staticmethod
    def _layers(chosen: Sequence[str | int] | None, network: nn.Module, example: Tensor) -> list[str]:
        if chosen is None:
            return distillation_layers(network, example)
        return [resolve_layer(network, layer, example) for layer in chosen]

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        data.check_classes(self.estimator.nb_classes, self.allow_degenerate)
        self._pairs(data.victim.network, network, data.example(2).x)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        teacher, network = data.victim.network, network_of(surrogate)
        pairs = self._pairs(teacher, network, data.example(2).x)
        names, twins = [pair.teacher for pair in pairs], [pair.student for pair in pairs]
        with forked_random_state(self.seed, type(self).__name__, "projections"):
            bridges = nn.ModuleDict(
                {str(k): Projection(p.student_shape, p.teacher_shape) for k, p in enumerate(pairs) if not p.alike}
            ).to(data.victim.device)

        def features(student: nn.Module, prepared: Tensor) -> tuple[Tensor, Losses]:
            with torch.no_grad(), recorded(teacher, names) as wanted:
                teacher(prepared)
            with recorded(student, twins) as found:
                output = student(prepared)
            gaps = []
            for k, (name, twin) in enumerate(zip(names, twins, strict=True)):
                z, target = _features(twin, found[twin]), _features(name, wanted[name])
                if str(k) in bridges:
                    z, target = bridges[str(k)](z, target)
                gaps.append(F.mse_loss(z, target))
            return output, {"features": self.feature_weight * torch.stack(gaps).sum()}

        trained = [*network.parameters(), *bridges.parameters()]
        report = self._train(surrogate, data, trained, more_losses=features)
        return {**report, "layers": names, "student_layers": twins}


@dataclass(frozen=True)
class _Pair:
    """Two layers that are compared, and the shapes of their features with the sample axis."""

    teacher: str
    student: str
    teacher_shape: torch.Size
    student_shape: torch.Size

    @property
    def alike(self) -> bool:
        return self.teacher_shape == self.student_shape


def _features(name: str, trace: LayerTrace) -> Tensor:
    output = trace.single_tensor
    if output is None:
        raise InvalidInputError(
            f"Layer {name!r} does not return one tensor in one call ({trace.calls} calls); name others in `layers`."
        )
    return output
