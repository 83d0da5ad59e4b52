"""What RemovalNet's parameters may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from art_fingerprint.attacks import removalnet_terms as terms
from art_fingerprint.attacks.removalnet_run import check_start
from art_fingerprint.core.checks import check_choice, check_flag, check_number, check_sequence, shown
from art_fingerprint.exceptions import InvalidInputError

if TYPE_CHECKING:
    from art_fingerprint.attacks.removalnet import RemovalNetAttack


def check_parameters(attack: RemovalNetAttack) -> None:
    """Refuse parameters that make no sense; ``grid`` becomes a tuple.

    :raises InvalidInputError: a bad value.
    """
    if attack.layer is not None and (isinstance(attack.layer, bool) or not isinstance(attack.layer, str | int)):
        raise InvalidInputError(f"`layer` must be a layer name, a stage number or None, got {shown(attack.layer)}.")
    weights = ("alpha", "beta", "gamma", "log_weight", "weight_repulsion", "error_repair")
    for name in (*weights, "inner_lr", "learning_rate", "momentum", "weight_decay"):
        check_number(name, getattr(attack, name), 0)
    if attack.alpha == attack.beta == attack.gamma == 0:
        raise InvalidInputError("`alpha`, `beta` and `gamma` are all 0: nothing would be optimised.")
    check_number("temperature", attack.temperature, 0, open_low=True)
    check_number("inner_steps", attack.inner_steps, 0, integer=True)
    check_number("shuffle_ratio", attack.shuffle_ratio, 0, 1)
    for name, options in terms.CHOICES.items():
        check_choice(name, getattr(attack, name), options)
    attack.grid = check_sequence("grid", attack.grid)
    for weight in attack.grid:
        check_number("grid", weight, 0, 1, open_low=True)
    if not attack.grid or list(attack.grid) != sorted(set(attack.grid)):
        raise InvalidInputError(f"`grid` must hold ascending weights in (0, 1], got {shown(attack.grid)}.")
    check_number("lr_horizon", attack.lr_horizon, 1)
    check_number("max_iter", attack.max_iter, 1, integer=True)
    if attack.subset_ratio is not None:
        check_number("subset_ratio", attack.subset_ratio, 0, 1, open_low=True)
    check_number("bn_recalibrate", attack.bn_recalibrate, 0, integer=True)
    if attack.keep_best is not None:
        check_number("keep_best", attack.keep_best, 0, 0.5, open_low=True)
    check_number("min_agreement", attack.min_agreement, 0, 1)
    if attack.patience is not None:
        check_number("patience", attack.patience, 1, integer=True)
        if attack.keep_best is None:
            raise InvalidInputError("`patience` counts the judgements of `keep_best`; set that too.")
    flags = ("shuffle_skip_prefix", "reference_double_pass", "compile", "require_single_tensor", "allow_degenerate")
    for name in flags:
        check_flag(name, getattr(attack, name))
    if attack.surrogate is not None:
        check_start(attack.surrogate, attack.estimator)
