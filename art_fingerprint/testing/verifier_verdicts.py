"""Checks of scores and verdicts: extremes, order, batches, queries, access, decisions, and hostile suspects."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from art.defences.postprocessor import ReverseSigmoid
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.core.copies import clone_classifier
from art_fingerprint.exceptions import FingerprintError, IncompatibleSuspectError
from art_fingerprint.testing.checks import expect, refused
from art_fingerprint.testing.state import changes, everything, first_layer, marked
from art_fingerprint.testing.suspects import HOSTILE, ODD, HostileSuspect, black_box, label_box
from art_fingerprint.testing.verifier_case import VerifierCase
from art_fingerprint.testing.verifier_extraction import failing


def _close(found: float, wanted: float, tolerance: float) -> bool:
    return abs(found - wanted) <= tolerance * max(1.0, abs(wanted))


# ---------------------------------------------------------------------- scores
def the_victim_is_its_own_copy(case: VerifierCase) -> None:
    """The victim scores similarity 1 or distance 0; where there is no such end, it is nearer than another model."""
    for batch_size in (1, 7, 1000):
        verifier = case.ready(batch_size=batch_size)
        scores, other = verifier.score(case.victim()), verifier.score(case.independent(1))
        for metric in verifier.metrics:
            found, far = scores[metric.name], other[metric.name]
            text = f"The victim's own {metric.name} is {found:.6g} at batch_size={batch_size}"
            if not case.extremes:
                nearer = found > far if metric.direction == "similarity" else found < far
                expect(nearer, f"{text}, that of an independent model {far:.6g}.")
            elif metric.direction == "similarity":
                expect(1 - case.extreme_tolerance < found <= 1, f"{text}; 1 was expected of a similarity.")
            else:
                expect(0 <= found < case.extreme_tolerance * max(1.0, far), f"{text}; 0 was expected of a distance.")


def defences_leave_the_victim_its_own_copy(case: VerifierCase) -> None:
    """A victim whose answers pass a postprocessing defence has similarity 1 or distance 0, too."""
    if not case.extremes:
        return
    victim, copy = case.victim(), case.victim()
    for model in (victim, copy):
        model.set_params(postprocessing_defences=[ReverseSigmoid()])
    verifier = case.make(victim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ART divides by zero
        verifier.extract(case.x, case.y, **case.more)
        scores = verifier.score(copy)
    for metric in verifier.metrics:
        far = abs(scores[metric.name] - (metric.direction == "similarity"))
        text = f"With a postprocessing defence the victim's own {metric.name} is {scores[metric.name]:.6g}."
        expect(far < max(case.extreme_tolerance, 1e-6), text)


def batch_sizes_do_not_matter(case: VerifierCase) -> None:
    """Scores are the same for any batch size of extraction and scoring, but for rounding."""
    suspect = case.independent(1)
    wanted = case.extracted(batch_size=1000).score(suspect)
    for extraction, scoring in ((1, 7), (7, 1), (7, 1000)):
        verifier = case.extracted(batch_size=extraction)
        verifier.set_params(batch_size=scoring)
        for name, value in verifier.score(suspect).items():
            expect(
                _close(value, wanted[name], case.batch_tolerance),
                f"{name} is {wanted[name]:.9g} at batch_size=1000, {value:.9g} at {extraction} and {scoring}.",
            )


def the_order_of_suspects_does_not_matter(case: VerifierCase) -> None:
    """A verdict does not depend on who was judged before."""
    suspects: list[Any] = [case.independent(1), case.victim(), case.independent(2)]
    if case.asks:
        suspects.append(black_box(case.independent(2)))
    verifier = case.ready()
    forward = [verifier.verify(suspect) for suspect in suspects]
    backward = [verifier.verify(suspect) for suspect in reversed(suspects)][::-1]
    alone = [case.ready().verify(suspect) for suspect in suspects]
    for one, two, three in zip(forward, backward, alone, strict=True):
        expect(one == two == three, f"Verdicts on one suspect differ: {one}, {two}, {three}")


def training_mode_does_not_matter(case: VerifierCase) -> None:
    """A suspect in training mode, with hooks and gradients of its own, scores as in evaluation mode."""
    verifier = case.ready(batch_size=7)
    plain, odd = verifier.score(case.independent(1)), verifier.score(marked(case.independent(1)))
    expect(plain == odd, f"A suspect in training mode scores {odd}, in evaluation mode {plain}.")


# ---------------------------------------------------------------------- what is left alone
def suspects_keep_everything(case: VerifierCase) -> None:
    """Weights, flags, hooks and gradients of a suspect are as before ``verify``."""
    found = [name for part in ("weights", "modules") for name in changes(*case.observed("verify")[part])]
    expect(not found, f"verify has changed the suspect's {', '.join(found)}.")


def verifying_keeps_random_state_and_settings(case: VerifierCase) -> None:
    """Global random states and torch's settings are as before ``verify``."""
    found = [name for part in ("random", "settings") for name in changes(*case.observed("verify")[part])]
    expect(not found, f"verify has changed {', '.join(found)}.")


def errors_leave_the_suspect_alone(case: VerifierCase) -> None:
    """Suspect, random states and settings are as before after a suspect that fails half-way."""
    if not case.counts:
        return
    verifier, suspect = case.ready(batch_size=7), marked(case.independent(1))
    before = everything(suspect)
    with failing(suspect, 2):
        refused(lambda: verifier.score(suspect), (RuntimeError, FingerprintError), "A suspect that fails", "half-way")
    found = changes(before, everything(suspect))
    expect(not found, f"After an error these have changed: {', '.join(found)}.")


# ---------------------------------------------------------------------- queries and access
def queries_are_those_declared(case: VerifierCase) -> None:
    """The verdict's queries are the samples that reached the suspect, as many as the fingerprint's facts announce."""
    for batch_size in (1, 7, 1000):
        verifier, suspect = case.ready(batch_size=batch_size), case.independent(1)
        sent: list[int] = []
        first_layer(suspect).register_forward_pre_hook(lambda _, x, sent=sent: sent.append(len(x[0])))  # type: ignore[misc]
        found, declared = verifier.verify(suspect).queries, case.queries(verifier.fingerprint)
        if not case.counts:
            expect(found == 0, f"It says that it sends no sample, the verdict counts {found}.")
            continue
        expect(found == sum(sent), f"{sum(sent)} samples reached the suspect, the verdict counts {found} queries.")
        expect(max(sent) <= batch_size, f"A batch of {max(sent)} was sent at batch_size={batch_size}.")
        fits = 0 < found <= declared if case.adaptive else found == declared
        expect(fits, f"The fingerprint announces {declared} queries ({', '.join(case.counts)}), {found} were sent.")
        expected = verifier.expected_queries()
        expect(expected is None or found <= expected, f"expected_queries() says {expected}, {found} were sent.")


def budgets_are_kept(case: VerifierCase) -> None:
    """A budget that is too small ends in an undecided verdict and is never exceeded; an exact one changes nothing."""
    if not case.counts:
        return
    verifier, suspect = case.ready(batch_size=7), case.independent(1)
    whole = verifier.verify(suspect)
    for budget in (1, whole.queries - 1):
        verdict = verifier.verify(suspect, budget=budget)
        expect(verdict.queries <= budget, f"{verdict.queries} queries were sent on a budget of {budget}.")
        expect(verdict.derived is None and "budget" in verdict.reason, f"A budget of {budget} gave: {verdict}")
    expect(verifier.verify(suspect, budget=whole.queries) == whole, "A budget that suffices changed the verdict.")


def services_get_the_same_scores(case: VerifierCase) -> None:
    """A suspect that only answers queries has the scores of its network, and the other metrics are skipped."""
    if not case.asks:
        return
    verifier = case.ready()
    whole, asked = verifier.verify(case.independent(1)), verifier.verify(black_box(case.independent(1)))
    allowed = case.metrics("labels", "scores")
    expect(
        list(asked.metrics) == allowed, f"A query-only suspect has the metrics {list(asked.metrics)}, not {allowed}."
    )
    for name in allowed:
        pair = whole[name].value, asked[name].value
        expect(_close(*pair, 1e-5), f"{name} is {pair[0]:.9g} on the network, {pair[1]:.9g} on its answers.")
        expect(whole[name].derived == asked[name].derived, f"{name} decides otherwise on a query-only suspect.")
    rest = {metric.name for metric in verifier.metrics} - set(allowed)
    expect(set(asked.skipped) == rest and all(asked.skipped.values()), f"{rest} must be skipped with a reason.")


class _Backwards(PyTorchClassifier):  # type: ignore[misc]
    """A classifier that shows its clients something else than its network answers."""

    def predict(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return super().predict(*args, **kwargs)[:, ::-1].copy()


def what_clients_see_is_judged(case: VerifierCase) -> None:
    """A ``predict`` of its own, and a network that only runs (TorchScript), are judged by what they answer."""
    own = case.independent(1)
    own.__class__ = _Backwards
    network = case.independent(1).model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is on its way out of torch, not out of use
        traced = torch.jit.trace(network, torch.zeros(2, *own.input_shape))
    scripted = clone_classifier(case.independent(1), traced)
    verifier = case.ready()
    if not case.asks:
        refused(lambda: verifier.verify(scripted), IncompatibleSuspectError, "A TorchScript suspect", "TorchScript")
        return
    for what, suspect in (("a predict of its own", own), ("a TorchScript network", scripted)):
        asked = verifier.verify(black_box(suspect))
        found = {name: verifier.verify(suspect)[name] for name in asked.metrics}
        expect(found == dict(asked.metrics), f"A suspect with {what} scores {found}, its clients see {asked}.")


def label_metrics_need_labels_only(case: VerifierCase) -> None:
    """Metrics that say they need labels work with scores, layers and gradients blocked, and give the same verdict."""
    names = case.metrics("labels")
    if not names:
        return
    verifier = case.ready(metric_names=names)
    for suspect in (case.independent(1), case.victim()):
        wanted, verdict = verifier.verify(suspect), verifier.verify(label_box(suspect))
        expect(
            dict(verdict.metrics) == dict(wanted.metrics) and verdict.derived == wanted.derived,
            f"With labels alone the verdict is another: {verdict} and not {wanted}",
        )


# ---------------------------------------------------------------------- decisions
def decisions_follow_direction_and_threshold(case: VerifierCase) -> None:
    """Each metric decides by its direction and threshold, the verdict by majority; the victim is derived."""
    for rule in ("extreme", "t-mean"):
        verifier = case.ready()
        verifier.calibrate(case.references(3), rule=rule)
        for name, suspect in (
            ("victim", case.victim()),
            ("other", case.independent(1)),
            ("third", case.independent(2)),
        ):
            verdict = verifier.verify(suspect)
            expect(verdict.nb_references == 3, f"nb_references is {verdict.nb_references} after calibrating with 3.")
            for metric in verifier.metrics:
                result = verdict[metric.name]
                expect(result.direction == metric.direction, f"{metric.name} has the direction {result.direction}.")
                expect(result.threshold is not None, f"{metric.name} has no threshold.")
                p = result.p_value
                expect(p is not None and 1 / 4 <= p <= 1, f"{metric.name} has p = {p} with three references.")
                gap = (result.threshold or 0.0) - result.value
                gap = gap if metric.direction == "distance" else -gap
                wanted = gap > 0 or (rule != "extreme" and gap == 0)
                expect(
                    result.derived is wanted,
                    f"{metric.name} is {result.value:.6g}, a {metric.direction} with threshold {result.threshold:.6g}, "
                    f"and decides {result.derived}.",
                )
            votes = [result.derived for result in verdict.metrics.values()]
            wanted = 2 * sum(map(bool, votes)) > len(votes)
            expect(verdict.derived is wanted, f"The metrics vote {votes}, the verdict is {verdict.derived}.")
            if name == "victim" and rule == "extreme":  # other rules may set a threshold that nothing reaches
                expect(verdict.derived is True, f"The victim is not called derived: {verdict}")


def uncalibrated_verifiers_do_not_guess(case: VerifierCase) -> None:
    """Without references a metric with no p-value of its own decides nothing, and the verdict says why."""
    verifier = case.ready()
    verifier.fingerprint.calibration = None
    verdict = verifier.verify(case.victim())
    own = [name for name, result in verdict.metrics.items() if result.p_value is not None]
    rest = [name for name, result in verdict.metrics.items() if name not in own and result.derived is not None]
    expect(not rest, f"{rest} decide without reference models and without a p-value.")
    expect(own or (verdict.derived is None and verdict.reason), f"Without reference models: {verdict}")


# ---------------------------------------------------------------------- hostile suspects
def _intact(case: VerifierCase, verifier: Any, digest: str, wanted: Any) -> None:
    arrays = case.ready().fingerprint.arrays
    same = all(np.array_equal(array, arrays[name]) for name, array in verifier.fingerprint.arrays.items())
    expect(same and verifier.fingerprint.digest == digest, "The suspect has changed the fingerprint.")
    expect(verifier.verify(case.independent(1)) == wanted, "After this suspect another one gets another verdict.")


def hostile_suspect(case: VerifierCase, hostile: HostileSuspect) -> None:
    """A suspect that answers badly is undecided with the reason; its queries are counted, and nothing is lost."""
    verifier, honest = case.ready(batch_size=5), case.independent(1)
    digest, wanted = verifier.fingerprint.digest, verifier.verify(honest)
    sent: list[int] = []
    bad = hostile.answer(honest.predict)

    def answer(x: np.ndarray) -> Any:
        sent.append(len(x))
        return bad(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        verdict = verifier.verify(black_box(honest, answer), **hostile.options)
    expect(verdict.derived is None, f"The verdict decides: {verdict}")
    expect(re.search(hostile.reason, verdict.reason), f"The reason is {verdict.reason!r}, not {hostile.reason!r}.")
    expect(verdict.queries == sum(sent) > 0, f"{sum(sent)} samples were sent, the verdict counts {verdict.queries}.")
    named = {*verdict.metrics, *verdict.skipped}
    expect(named == {m.name for m in verifier.metrics}, f"The verdict knows only of {named}.")
    expect(verdict.reason in repr(verdict), "repr does not show the reason.")
    json.dumps(verdict.to_dict())
    _intact(case, verifier, digest, wanted)


def interrupts_pass(case: VerifierCase) -> None:
    """Ctrl-C while a suspect answers is not swallowed, and loses nothing."""
    verifier, honest = case.ready(batch_size=5), case.independent(1)
    digest, wanted = verifier.fingerprint.digest, verifier.verify(honest)

    def interrupt(_x: np.ndarray) -> Any:
        raise KeyboardInterrupt

    refused(lambda: verifier.verify(black_box(honest, interrupt)), KeyboardInterrupt, "Ctrl-C")
    _intact(case, verifier, digest, wanted)


def odd_suspects_are_scored_alike(case: VerifierCase) -> None:
    """A service that writes to its input, or answers read-only arrays, lists or float64, scores like its model."""
    verifier, honest = case.ready(batch_size=5), case.independent(1)
    digest, own = verifier.fingerprint.digest, verifier.verify(honest)
    wanted = verifier.verify(black_box(honest))
    for name, make in ODD.items():
        verdict = verifier.verify(black_box(honest, make(honest.predict)))
        expect(verdict == wanted, f"A suspect that {name}: {verdict} and not {wanted}")
    _intact(case, verifier, digest, own)


CHECKS = (
    the_victim_is_its_own_copy,
    defences_leave_the_victim_its_own_copy,
    batch_sizes_do_not_matter,
    the_order_of_suspects_does_not_matter,
    training_mode_does_not_matter,
    suspects_keep_everything,
    verifying_keeps_random_state_and_settings,
    errors_leave_the_suspect_alone,
    queries_are_those_declared,
    budgets_are_kept,
    services_get_the_same_scores,
    what_clients_see_is_judged,
    label_metrics_need_labels_only,
    decisions_follow_direction_and_threshold,
    uncalibrated_verifiers_do_not_guess,
)


def hostile_checks(case: VerifierCase) -> dict[str, Callable[[VerifierCase], None]]:
    """Return the checks of suspects that only answer queries, and answer badly, by name.

    Labels are no bad answer to a verifier that needs scores: it refuses them.
    """
    found: dict[str, Callable[[VerifierCase], None]] = {
        f"undecided_on_{hostile.name}": partial(hostile_suspect, hostile=hostile)
        for hostile in HOSTILE
        if case.metrics("labels") or not hostile.labels
    }
    return {**found, "interrupts_pass": interrupts_pass, "odd_suspects_are_scored_alike": odd_suspects_are_scored_alike}
