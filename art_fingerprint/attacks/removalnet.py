"""RemovalNet: remove a model's fingerprint by bilevel optimisation, keeping its accuracy.

H. Yao et al., "RemovalNet: DNN Fingerprint Removal Attacks", IEEE Transactions on Dependable and Secure Computing, 2023
(arXiv 2308.12319).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks import removalnet_terms as terms
from art_fingerprint.attacks.base import RemovalAttack, SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.removalnet_adaptive import check_adaptive_data
from art_fingerprint.attacks.removalnet_checks import check_parameters
from art_fingerprint.attacks.removalnet_cost import passes_of_a_sample, passes_of_judgements
from art_fingerprint.attacks.removalnet_keep_best import BestIterate, held_back_rows
from art_fingerprint.attacks.removalnet_presets import preset_row
from art_fingerprint.attacks.removalnet_run import RemovalNetRun
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.outputs import OutputKind
from art_fingerprint.core.seeding import derive_seed, numpy_generator
from art_fingerprint.core.training import Batches, EpochBatches, check_batches, fit, recalibrate_batch_norm
from art_fingerprint.core.weight_format import channels_last, weights_in
from art_fingerprint.exceptions import InvalidInputError


class RemovalNetAttack(RemovalAttack):
    r"""Derive a surrogate that behaves like the victim and does not look derived from it.

    Each iteration makes two targets and takes one SGD step towards them. With head h and tail g at layer l,
    f = g(h(x)), and the victim's labels y:

    - latent target: from z' = shuffle(z + tan U), ``inner_steps`` times: shuffle, then
      z' <- z' - ``inner_lr`` sign grad [CE(g(z'), y) - mu log ||z' - z||]  (paper section 3.2, Algorithm 1);
    - logit target: p' = ILBS(p, y), each sample mixed with the batch's farthest one while its class holds (section 3.3,
      Algorithm 2);
    - step on alpha T^2 KL(q || softmax(f(x)/T)) + beta MSE(h(x), z') + gamma CE(f(x), y)  (equation 15).

    Deviations from the paper's text, which the authors' code makes too (each has a switch): the latent and logits that
    are perturbed are the *surrogate's* (``latent_source``, ``logit_source``); ILBS works on probabilities
    (``ilbs_space``) and the KL target is soft-maxed again (``kl_target``); the learning rate is that of the code's
    CIFAR10 rule. Deviations from the code: exactly ``max_iter`` steps (not two more); the victim is always in
    evaluation mode; one head pass in training mode, not two (``reference_double_pass``); a remainder batch of one is
    dropped.

    Two further terms of the step, both off, are ours (:mod:`.removalnet_adaptive`): + ``weight_repulsion``
    mean max(0, cos(w_i, v_i)) over filters w_i and the victim's v_i; + ``error_repair`` CE(f(x), true label) where the
    victim is wrong.

    Shape: ``generate(x)`` with x ``(n, C, H, W)`` float32 in ``clip_values``; y is used by ``error_repair`` alone.

    Cost of an iteration, head h and tail t in forward samples: 2(h+t) + ``inner_steps`` t forward, (h+t) full backward
    and ``inner_steps`` t backward to z, 4h + (4 + 2 ``inner_steps``) t in all; once: n victim queries (2n with flips).
    Convolution weights are kept in channels-last order while they are trained, and the tail's BatchNorm is folded into
    them for the inner steps; both change values by rounding alone. ``keep_best``: one pass of both networks over the
    held-back samples for each judgement, and ``bn_recalibrate`` batches; memory for one more copy of the weights.
    ``expected_passes`` traces the network and runs it on a few samples, to know t.

    :param classifier: The victim.
    :param layer: Where to cut: dotted name, stage number (1 = first), or ``None`` for the last stage that keeps a
        quarter of the input height.
    :param alpha: Weight of the KL term, >= 0; 0 skips it and ILBS.
    :param beta: Weight of the latent term, >= 0; 0 skips it and the inner loop.
    :param gamma: Weight of the cross-entropy term, >= 0.
    :param temperature: T > 0 of the KL term.
    :param inner_steps: Steps J of the latent problem.
    :param inner_lr: Step size eta of the latent problem, in latent units.
    :param log_weight: Weight mu of the log-distance.
    :param shuffle_ratio: Share rho of channels shuffled each time, [0, 1]; 0 disables.
    :param shuffle_dim: Axis that is shuffled: 1 (channels, or tokens) or -1 (embedding features of tokens).
    :param shuffle_skip_prefix: Leave class and register tokens in their places: as many as timm's
        ``num_prefix_tokens`` says, else the first. Only for tokens and ``shuffle_dim=1``.
    :param distance: ``"l2"`` or ``"cosine"``.
    :param distance_scope: ``"batch"``: one norm over the whole batch (code); ``"sample"``: mean over samples.
    :param latent_source: Whose latent and tail: ``"surrogate"`` (code) or ``"victim"`` (text).
    :param logit_source: Whose logits ILBS perturbs: ``"surrogate"`` or ``"victim"``.
    :param ilbs_space: ``"prob"`` (code) or ``"logit"`` (text; ``kl_target`` is then softmax(s'/T)).
    :param kl_target: ``"double_softmax"`` (code), ``"log_prob"`` or ``"prob"`` (sensible with T = 1 only).
    :param line_search: ``"grid"`` over ``grid`` or ``"exact"``.
    :param grid: Weights tried by ILBS, ascending in (0, 1].
    :param learning_rate: SGD learning rate, before ``subset_ratio``.
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param lr_horizon: Cosine schedule length over ``max_iter``: 1.5 ends at a quarter of the rate.
    :param max_iter: Number of SGD steps.
    :param batch_size: Samples in a batch.
    :param hflip: Random horizontal flips. Switch off where mirroring changes the class (digits, text).
    :param subset_ratio: Share r of the training set that the attacker holds; the learning rate becomes lr (1 - r), or
        lr (0.9 + 0.2 u) for r >= 0.9, u uniform on [0, 1).
    :param bn_recalibrate: Batches for re-estimating BatchNorm statistics at the end; 0 keeps the paper's setting.
    :param keep_best: Share of the substitute set, (0, 0.5], that is held back from training to choose the iterate that
        is returned: of those that agree with the victim on at least ``min_agreement`` of the held-back samples, the
        farthest from it (relative distance of the latents plus half the mean L1 distance of the probabilities; see
        :class:`.Judgement`). If none does, the one that agrees most, with a warning. Iterates are judged every
        ``callback_interval`` steps, recalibrated as they would be returned. ``None`` returns the last one.
    :param min_agreement: Agreement with the victim's classes that ``keep_best`` asks for, [0, 1].
    :param patience: End after so many judgements of ``keep_best`` without a better iterate. ``None``: all steps.
    :param reference_double_pass: Run the head twice in training mode, as the code does: its BatchNorm statistics move
        twice.
    :param surrogate: Start from this classifier's weights instead of the victim's (same input and classes; the layer
        must exist in it).
    :param output: What the models return: ``"auto"``, ``"logits"`` or ``"probabilities"``.
    :param autocast: ``"float32"``, or ``"bf16"``: passes of the networks in bfloat16 autocast, latents and losses in
        float32. Faster where the processor has bfloat16 instructions.
    :param compile: Run the tail of the inner steps through ``torch.compile``. Takes seconds to minutes at the start;
        one warning where it is impossible. Measured without gain on a CPU.
    :param require_single_tensor: Refuse layers inside a branch, whose tail needs more than z.
    :param allow_degenerate: Accept a substitute set that the victim puts into one class.
    :param weight_repulsion: Weight of the similarity between the surrogate's filters and the victim's, >= 0; against
        verifiers that compare weights. No passes. 0 skips it.
    :param error_repair: Weight of the cross-entropy to y on the samples that the victim gets wrong, >= 0; against
        verifiers that compare errors. Larger than ``gamma``, or the victim's label wins. Needs y. 0 skips it.
    :param callback: ``callback(step, surrogate, losses)``.
    :param callback_interval: Steps between two calls.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Show a progress bar.
    """

    reads_streams = True
    attack_params = [
        *RemovalAttack.attack_params,
        "layer",
        "alpha",
        "beta",
        "gamma",
        "temperature",
        "inner_steps",
        "inner_lr",
        "log_weight",
        "shuffle_ratio",
        "shuffle_dim",
        "shuffle_skip_prefix",
        "distance",
        "distance_scope",
        "latent_source",
        "logit_source",
        "ilbs_space",
        "kl_target",
        "line_search",
        "grid",
        "learning_rate",
        "momentum",
        "weight_decay",
        "lr_horizon",
        "max_iter",
        "subset_ratio",
        "bn_recalibrate",
        "keep_best",
        "min_agreement",
        "patience",
        "reference_double_pass",
        "surrogate",
        "output",
        "autocast",
        "compile",
        "require_single_tensor",
        "allow_degenerate",
        "weight_repulsion",
        "error_repair",
    ]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        layer: str | int | None = None,
        *,
        alpha: float = 0.2,
        beta: float = 2.0,
        gamma: float = 0.6,
        temperature: float = 20.0,
        inner_steps: int = 20,
        inner_lr: float = 0.01,
        log_weight: float = 0.1,
        shuffle_ratio: float = 0.02,
        shuffle_dim: int = 1,
        shuffle_skip_prefix: bool = False,
        distance: terms.Distance = "l2",
        distance_scope: terms.Scope = "batch",
        latent_source: str = "surrogate",
        logit_source: str = "surrogate",
        ilbs_space: str = "prob",
        kl_target: terms.KLTarget = "double_softmax",
        line_search: str = "grid",
        grid: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        learning_rate: float = 8e-3,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        lr_horizon: float = 1.5,
        max_iter: int = 1000,
        batch_size: int = 128,
        hflip: bool = True,
        subset_ratio: float | None = None,
        bn_recalibrate: int = 0,
        keep_best: float | None = None,
        min_agreement: float = 0.95,
        patience: int | None = None,
        reference_double_pass: bool = False,
        surrogate: PyTorchClassifier | None = None,
        output: OutputKind = "auto",
        autocast: str = "float32",
        compile: bool = False,
        require_single_tensor: bool = False,
        allow_degenerate: bool = False,
        weight_repulsion: float = 0.0,
        error_repair: float = 0.0,
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
        self.layer = layer
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.inner_steps = inner_steps
        self.inner_lr = inner_lr
        self.log_weight = log_weight
        self.shuffle_ratio = shuffle_ratio
        self.shuffle_dim = shuffle_dim
        self.shuffle_skip_prefix = shuffle_skip_prefix
        self.distance = distance
        self.distance_scope = distance_scope
        self.latent_source = latent_source
        self.logit_source = logit_source
        self.ilbs_space = ilbs_space
        self.kl_target = kl_target
        self.line_search = line_search
        self.grid = grid
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.lr_horizon = lr_horizon
        self.max_iter = max_iter
        self.subset_ratio = subset_ratio
        self.bn_recalibrate = bn_recalibrate
        self.keep_best = keep_best
        self.min_agreement = min_agreement
        self.patience = patience
        self.reference_double_pass = reference_double_pass
        self.surrogate = surrogate
        self.output = output
        self.autocast = autocast
        self.compile = compile
        self.require_single_tensor = require_single_tensor
        self.allow_degenerate = allow_degenerate
        self.weight_repulsion = weight_repulsion
        self.error_repair = error_repair
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_parameters(self)

    @classmethod
    def from_preset(cls, classifier: PyTorchClassifier, name: str, **overrides: Any) -> RemovalNetAttack:
        """Return an attack with the authors' settings for a data set; keyword arguments win over them.

        :param classifier: The victim.
        :param name: A row of :data:`.PRESETS`: victim's data set, and the substitute set where that has settings of its
            own.
        :param overrides: Further parameters, e.g. ``subset_ratio=0.1``.
        :raises InvalidInputError: unknown name; near names are listed.
        """
        return cls(classifier, **{**preset_row(name), **overrides})

    def params(self) -> dict[str, Any]:
        """Return the parameters as JSON values; callables and the starting surrogate are left out."""
        return {name: value for name, value in super().params().items() if name != "surrogate"}

    def scaled_learning_rate(self) -> float:
        """Return the learning rate after the rule for small substitute sets (see ``subset_ratio``)."""
        if self.subset_ratio is None:
            return self.learning_rate
        if self.subset_ratio < 0.9:
            return self.learning_rate * (1 - self.subset_ratio)
        return self.learning_rate * (0.9 + 0.2 * float(numpy_generator(self.seed, "learning rate").random()))

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        if self.keep_best is not None:
            data.needs_array("keep_best")
            trained, held = self._rows(len(data.x))
            if len(trained) < 2:
                raise InvalidInputError(
                    f"keep_best={self.keep_best} holds back {len(held)} of {len(data.x)} samples; two or more must be "
                    "left to train on."
                )
            if len(data.x) >= self.batch_size:
                check_batches(len(trained), self.batch_size, network)
        check_adaptive_data(self, data)
        data.victim.kind = self.output
        data.check_classes(self.estimator.nb_classes, self.allow_degenerate)

    def _start(self) -> PyTorchClassifier:
        return self.estimator if self.surrogate is None else self.surrogate

    def _rows(self, n: int) -> tuple[Tensor, Tensor]:
        """Return which of n samples are trained on and which are held back."""
        return held_back_rows(n, self.keep_best or 0.0, self.seed)

    def _expected_queries(self, n: int, labelled: bool) -> int:
        return n * (1 + self.hflip)

    def _expected_work(self, n: int) -> float:
        pool = self._nb_pooled(n)
        return super()._expected_work(n) + passes_of_judgements(self, pool, n - pool)

    def _nb_pooled(self, n: int) -> int:
        return len(self._rows(n)[0])

    def _passes_of_a_sample(self) -> float:
        return passes_of_a_sample(self)

    def _batches(self, data: SubstituteSet, *purpose: str) -> EpochBatches:
        if self.keep_best is None:
            return super()._batches(data, *purpose)
        rows, _ = self._rows(len(data.x))
        seed = derive_seed(self.seed, type(self).__name__, *purpose)
        preprocess, device = data.victim.preprocess, data.victim.device
        return Batches(data.x[rows], preprocess, self.batch_size, device, seed, self.hflip, origin=rows)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        network = network_of(surrogate)
        with channels_last(network, data.example(8).x):
            return self._run(surrogate, network, data)

    def _run(self, surrogate: PyTorchClassifier, network: nn.Module, data: SubstituteSet) -> dict[str, Any]:
        nb_trained = data.batch_size if self.keep_best is None else len(self._rows(len(data.x))[0])
        run = RemovalNetRun(self, surrogate, data, min(data.batch_size, nb_trained))
        rate = self.scaled_learning_rate()
        optimizer = torch.optim.SGD(network.parameters(), rate, self.momentum, weight_decay=self.weight_decay)
        horizon = max(1, int(self.lr_horizon * self.max_iter))
        watch = self._watch(surrogate)

        def recalibrate() -> None:
            if self.bn_recalibrate:
                recalibrate_batch_norm(network, self._batches(data, "recalibration"), self.bn_recalibrate)

        best = None
        if self.keep_best is not None:
            held = data.x[self._rows(len(data.x))[1]]
            facts = (held, self.batch_size, self.min_agreement, self.patience)
            best = BestIterate(network, run.view, data.victim, run.layer, *facts, recalibrate)

        def reading(step: int, losses: Mapping[str, float]) -> bool:
            with weights_in(network, torch.contiguous_format):  # as the caller gets them
                watch(step, losses)
            return best is not None and best.judge(step)

        losses = fit(
            batches=self._batches(data),
            loss=run.losses,
            optimizer=optimizer,
            max_iter=self.max_iter,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=horizon),
            callback=reading,
            callback_interval=self.callback_interval,
            description="RemovalNet",
            verbose=self.verbose,
        )
        if best is None:
            recalibrate()
            return run.report(losses)
        best.restore()
        return {**run.report(losses), "keep_best": best.report()}
