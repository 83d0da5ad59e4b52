"""Checks of what an attack makes, of what it leaves alone, of its randomness, and of the data it takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.core.seeding import forked_random_state
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.testing.attack_case import AttackCase
from art_fingerprint.testing.checks import expect, refused
from art_fingerprint.testing.state import (
    changes,
    disturb_random_state,
    equal,
    everything,
    marked,
    parameters_equal,
    weights,
)


# ---------------------------------------------------------------------- the surrogate
def surrogate_is_new(case: AttackCase) -> None:
    """The surrogate is another ``PyTorchClassifier``, and shares neither storage nor objects with the victim."""
    victim, surrogate = case.surrogate()
    expect(isinstance(surrogate, PyTorchClassifier), f"generate returned a {type(surrogate).__name__}.")
    expect(surrogate is not victim, "generate returned the victim itself.")
    own = {tensor.untyped_storage().data_ptr() for tensor in victim.model.state_dict().values()}
    shared = [n for n, t in surrogate.model.state_dict().items() if t.untyped_storage().data_ptr() in own]
    expect(not shared, f"Surrogate and victim share the storage of {shared}.")
    modules = {id(module) for module in victim.model.modules()}
    twice = [name for name, module in surrogate.model.named_modules() if id(module) in modules]
    expect(not twice, f"Surrogate and victim share the modules {twice}.")
    for name in ("loss", "preprocessing", "optimizer"):
        mine = getattr(surrogate, name)
        expect(mine is None or mine is not getattr(victim, name), f"Surrogate and victim share their {name}.")


def surrogate_keeps_the_metadata(case: AttackCase) -> None:
    """Shapes, classes, clip values, channel order, device, loss, optimiser type and preprocessing are the victim's."""
    victim = case.victim()
    victim._optimizer = torch.optim.Adam(victim.model.parameters(), lr=0.0123)
    surrogate = case.make(victim).generate(*case.data())
    for name in ("input_shape", "nb_classes", "clip_values", "channels_first", "device"):
        mine, wanted = getattr(surrogate, name), getattr(victim, name)
        expect(str(mine) == str(wanted), f"The surrogate's {name} is {mine}, the victim's {wanted}.")
    for name in ("loss", "optimizer", "preprocessing"):
        kind, wanted = type(getattr(surrogate, name)), type(getattr(victim, name))
        expect(kind is wanted, f"The surrogate's {name} is a {kind.__name__}, the victim's a {wanted.__name__}.")
    group = surrogate.optimizer.param_groups[0]
    expect(group["lr"] == 0.0123, f"The optimiser's learning rate is {group['lr']}, the victim's 0.0123.")
    owned = {id(p) for group in surrogate.optimizer.param_groups for p in group["params"]}
    expect(
        owned == {id(p) for p in surrogate.model.parameters()}, "The optimiser is not on the surrogate's parameters."
    )
    kinds = [[type(d) for d in c.preprocessing_defences or []] for c in (surrogate, victim)]
    expect(kinds[0] == kinds[1], f"The surrogate's preprocessing defences are {kinds[0]}, the victim's {kinds[1]}.")


def surrogate_is_ready(case: AttackCase) -> None:
    """The surrogate is finite, in evaluation mode, trainable, without gradients and hooks, and says how it was made."""
    _, surrogate = case.surrogate()
    network = surrogate.model
    broken = [name for name, tensor in weights(surrogate).items() if not tensor.isfinite().all()]
    expect(not broken, f"The surrogate's {broken} are not finite.")
    expect(not any(module.training for module in network.modules()), "A module of the surrogate is in training mode.")
    expect(
        all(p.requires_grad and p.grad is None for p in network.parameters()), "A parameter is frozen or has a grad."
    )
    hooks = [n for n, m in network.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    expect(not hooks, f"There are hooks on the surrogate's modules {hooks}.")
    info = getattr(surrogate, "surrogate_info", {})
    expect(info.get("attack") == case.attack.__name__, "surrogate_info does not name the attack.")
    expect(isinstance(info.get("params"), Mapping), "surrogate_info does not hold the parameters.")


def surrogate_differs_from_the_victim(case: AttackCase) -> None:
    """An attack of non-zero strength changes a parameter."""
    victim, surrogate = case.surrogate()
    expect(not parameters_equal(surrogate, victim), "The surrogate has the victim's parameters: nothing was done.")


def zero_strength_gives_the_victim(case: AttackCase) -> None:
    """Under the options of zero strength the surrogate has the victim's parameters."""
    if case.zero is None:
        return
    surrogate = case.make(**case.zero).generate(*case.data())
    expect(parameters_equal(surrogate, case.victim()), f"With {dict(case.zero)} the surrogate differs from the victim.")


# ---------------------------------------------------------------------- what is left alone
def _unchanged(case: AttackCase, part: str, whose: str) -> None:
    found = changes(*case.observed()[part])
    expect(not found, f"generate has changed {whose}: {', '.join(found)}.")


def victim_keeps_its_weights(case: AttackCase) -> None:
    """All weights and buffers are bit-identical after a run, and where they were."""
    _unchanged(case, "weights", "the victim")


def victim_keeps_flags_hooks_and_gradients(case: AttackCase) -> None:
    """Train/eval flags, ``requires_grad``, ``.grad``, hooks and attributes of the victim are as before."""
    _unchanged(case, "modules", "the victim")


def arrays_are_only_read(case: AttackCase) -> None:
    """The caller's x and y are as before."""
    _unchanged(case, "arrays", "the caller's arrays")


def random_state_is_kept(case: AttackCase) -> None:
    """The global random states of Python, NumPy and torch are as before."""
    _unchanged(case, "random", "the process")


def torch_settings_are_kept(case: AttackCase) -> None:
    """torch's global settings (grad mode, precision, determinism, default dtype, threads) are as before."""
    _unchanged(case, "settings", "the process")


def errors_leave_everything_alone(case: AttackCase) -> None:
    """Victim, random states and settings are as before after an error half-way, and the error passes."""
    for error in (ArithmeticError, KeyboardInterrupt):
        victim = marked(case.victim())

        def stop(
            _step: int,
            _surrogate: object,
            _losses: object,
            victim: PyTorchClassifier = victim,
            error: type[BaseException] = error,
        ) -> None:
            disturb_random_state(5)
            victim.model.train()
            raise error

        attack = case.make(victim, callback=stop, callback_interval=1)
        before = everything(victim)
        refused(lambda a=attack: a.generate(*case.data()), error, "A run whose callback raises")  # type: ignore[misc]
        found = changes(before, everything(victim))
        expect(not found, f"After {error.__name__} in a callback these have changed: {', '.join(found)}.")


# ---------------------------------------------------------------------- randomness
def the_seed_decides(case: AttackCase) -> None:
    """One seed gives one surrogate, bit for bit, whatever the global random state; another seed gives another."""
    first = case.make(seed=5).generate(*case.data())
    with forked_random_state():
        disturb_random_state(99)
        again = case.make(seed=5).generate(*case.data())
    expect(equal(first, again), "Two runs with one seed gave different surrogates.")
    other = case.make(seed=6).generate(*case.data())
    if case.stochastic:
        expect(not parameters_equal(first, other), "Another seed gave the same surrogate: is it used?")
    else:
        expect(equal(first, other), "The attack is said not to be stochastic, but its seed makes a difference.")


def one_object_runs_twice(case: AttackCase) -> None:
    """A second run of one object, on the same victim, gives the surrogate of the first."""
    victim = case.victim()
    kept = weights(victim)
    attack = case.make(victim)
    first = attack.generate(*case.data())
    victim.model.load_state_dict(kept)
    expect(equal(first, attack.generate(*case.data())), "The second run of one object gave another surrogate.")


# ---------------------------------------------------------------------- data
def labels_may_have_any_form(case: AttackCase) -> None:
    """Indices, a column of floats and one-hot rows give one surrogate; without labels the victim's are used."""
    _, wanted = case.surrogate()
    classes = case.victim().nb_classes
    for name, form in (("one-hot rows", np.eye(classes)[case.y]), ("a column", case.y[:, None].astype(np.float64))):
        found = case.make().generate(case.x.copy(), form)
        expect(equal(found, wanted), f"Labels as {name} gave another surrogate than indices.")
    if case.needs_labels:
        refused(lambda: case.make().generate(case.x.copy()), InvalidInputError, "A run without labels")
    else:
        found = case.make().generate(case.x.copy())
        expect(all(t.isfinite().all() for t in weights(found).values()), "Without labels the surrogate is not finite.")


def batch_sizes_may_be_odd(case: AttackCase) -> None:
    """Batches that do not divide the data, leave one sample over, or are larger than the data."""
    for batch_size in (7, 13, len(case.x) + 3):
        victim = case.victim()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the batch was reduced
            surrogate = case.make(victim, batch_size=batch_size).generate(*case.data())
        finite = all(tensor.isfinite().all() for tensor in weights(surrogate).values())
        expect(finite, f"batch_size={batch_size} gave a surrogate that is not finite.")
        expect(not parameters_equal(surrogate, victim), f"batch_size={batch_size} gave the victim.")


def float64_and_float16_are_converted(case: AttackCase) -> None:
    """Images in other float types give what they give as float32."""
    _, wanted = case.surrogate()
    expect(equal(case.make().generate(case.x.astype(np.float64), case.y), wanted), "float64 images: another surrogate.")
    half = case.x.astype(np.float16)
    pair = [case.make().generate(x, case.y) for x in (half, half.astype(np.float32))]
    expect(equal(*pair), "float16 images gave another surrogate than the same numbers as float32.")


def bad_data_are_refused(case: AttackCase) -> None:
    """Data that are empty, of another shape or type, or not finite, and labels that do not fit, are refused."""
    attack = case.make()
    few = case.x[:4]
    classes = case.victim().nb_classes
    wrong: list[tuple[str, Any, Any]] = [
        ("empty images", few[:0], None),
        ("one image without a sample axis", few[0], None),
        ("images with an axis more", few[:, None], None),
        ("NaN", np.full_like(few, np.nan), None),
        ("integers", few.astype(np.uint8), None),
        ("a list", few.tolist(), None),
        ("too few labels", few, np.zeros(3, int)),
        ("fractions as labels", few, np.full(4, 0.5)),
        ("labels out of range", few, np.full(4, classes)),
        ("soft labels", few, np.full((4, classes), 1 / classes)),
    ]
    for what, x, y in wrong:
        refused(lambda x=x, y=y: attack.generate(x, y), InvalidInputError, f"generate with {what}")  # type: ignore[misc]
    refused(lambda: attack.generate(case.x.copy(), epochs=3), InvalidInputError, "generate(x, epochs=3)", "epochs")


CHECKS = (
    surrogate_is_new,
    surrogate_keeps_the_metadata,
    surrogate_is_ready,
    surrogate_differs_from_the_victim,
    zero_strength_gives_the_victim,
    victim_keeps_its_weights,
    victim_keeps_flags_hooks_and_gradients,
    arrays_are_only_read,
    random_state_is_kept,
    torch_settings_are_kept,
    errors_leave_everything_alone,
    the_seed_decides,
    one_object_runs_twice,
    labels_may_have_any_form,
    batch_sizes_may_be_odd,
    float64_and_float16_are_converted,
    bad_data_are_refused,
)
