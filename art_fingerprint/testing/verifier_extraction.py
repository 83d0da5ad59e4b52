"""Checks of extraction: what it leaves alone, its randomness, the data it takes, and the file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.core.digests import array_digest
from art_fingerprint.core.seeding import forked_random_state
from art_fingerprint.exceptions import FingerprintError, InvalidInputError, NotExtractedError
from art_fingerprint.testing.checks import expect, refused
from art_fingerprint.testing.state import changes, disturb_random_state, everything, first_layer, marked
from art_fingerprint.testing.verifier_case import VerifierCase
from art_fingerprint.verifiers.fingerprint import Fingerprint


@contextmanager
def failing(classifier: PyTorchClassifier, after: int) -> Iterator[list[int]]:
    """Make a network raise ``RuntimeError("half-way")`` at one of its forward passes, the first being 1.

    Yields the numbers of its passes so far.
    """
    passes: list[int] = []

    def count(*_: object) -> None:
        passes.append(len(passes) + 1)
        if len(passes) == after:
            raise RuntimeError("half-way")

    hook = first_layer(classifier).register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        hook.remove()


def nothing_works_before_extraction(case: VerifierCase) -> None:
    """``verify``, ``score`` and ``calibrate`` raise ``NotExtractedError`` while there is no fingerprint."""
    verifier, suspect = case.make(), case.independent(1)
    refused(lambda: verifier.verify(suspect), NotExtractedError, "verify before extract")
    refused(lambda: verifier.score(suspect), NotExtractedError, "score before extract")
    refused(lambda: verifier.calibrate([suspect]), NotExtractedError, "calibrate before extract")


# ---------------------------------------------------------------------- what is left alone
def _unchanged(case: VerifierCase, part: str) -> None:
    found = changes(*case.observed("extract")[part])
    expect(not found, f"extract has changed {', '.join(found)}.")


def victim_keeps_its_weights(case: VerifierCase) -> None:
    """All weights and buffers are bit-identical after extraction, and where they were."""
    _unchanged(case, "weights")


def victim_keeps_flags_hooks_and_gradients(case: VerifierCase) -> None:
    """Train/eval flags, ``requires_grad``, ``.grad``, hooks and attributes of the victim are as before."""
    _unchanged(case, "modules")


def images_are_only_read(case: VerifierCase) -> None:
    """The caller's images are as before extraction."""
    _unchanged(case, "arrays")


def extraction_keeps_the_random_state(case: VerifierCase) -> None:
    """The global random states of Python, NumPy and torch are as before extraction."""
    _unchanged(case, "random")


def extraction_keeps_torch_settings(case: VerifierCase) -> None:
    """torch's global settings (grad mode, precision, determinism, default dtype, threads) are as before."""
    _unchanged(case, "settings")


def errors_leave_the_victim_alone(case: VerifierCase) -> None:
    """Victim, random states and settings are as before after an error half-way; there is no fingerprint then."""
    for after in (1, 2, 5):
        victim = marked(case.victim())
        verifier = case.make(victim, batch_size=7)
        before = everything(victim)
        with failing(victim, after) as passes, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                verifier.extract(case.x, case.y, **case.more)
            except (RuntimeError, FingerprintError) as error:
                expect("half-way" in str(error), f"A network failed with 'half-way', extraction says: {error}")
        if len(passes) < after:  # extraction takes no more passes
            break
        found = changes(before, everything(victim))
        expect(not found, f"After an error at pass {after} these have changed: {', '.join(found)}.")
        expect(verifier.fingerprint is None, f"There is a fingerprint after an error at pass {after}.")


# ---------------------------------------------------------------------- randomness and data
def _arrays(fingerprint: Fingerprint) -> str:
    return array_digest(*(fingerprint.arrays[name] for name in sorted(fingerprint.arrays)))


def the_seed_decides(case: VerifierCase) -> None:
    """One seed gives one fingerprint, bit for bit, whatever the global random state; another seed gives another."""
    first = case.extracted().fingerprint
    with forked_random_state():
        disturb_random_state(99)
        again = case.extracted().fingerprint
    expect(first.digest == again.digest, "Two extractions with one seed gave different fingerprints.")
    other = case.extracted(seed=first.params["seed"] + 1).fingerprint
    if case.stochastic:
        expect(_arrays(other) != _arrays(first), "Another seed gave the same arrays: is it used?")
    else:
        expect(_arrays(other) == _arrays(first), "It is said not to be stochastic, but the seed makes a difference.")


def labels_may_be_indices_or_one_hot(case: VerifierCase) -> None:
    """Indices, a column of floats and one-hot rows give one fingerprint."""
    wanted = case.ready().fingerprint.digest
    classes = case.victim().nb_classes
    for name, form in (("one-hot rows", np.eye(classes)[case.y]), ("a column", case.y[:, None].astype(np.float64))):
        found = case.make().extract(case.x, form, **case.more).digest
        expect(found == wanted, f"Labels as {name} gave another fingerprint than indices.")


def float64_and_float16_are_converted(case: VerifierCase) -> None:
    """Images in other float types give what they give as float32."""
    found = case.make().extract(case.x.astype(np.float64), case.y, **case.more)
    expect(found.digest == case.ready().fingerprint.digest, "float64 images gave another fingerprint.")
    half = case.x.astype(np.float16)
    pair = [case.make().extract(x, case.y, **case.more).digest for x in (half, half.astype(np.float32))]
    expect(pair[0] == pair[1], "float16 images gave another fingerprint than the same numbers as float32.")


def numpy_numbers_are_numbers(case: VerifierCase) -> None:
    """NumPy scalars, as parameters and as the victim's shape and classes, give the same fingerprint, fit to be kept."""
    plain = case.make(batch_size=16)
    victim = case.victim()
    victim._input_shape = tuple(np.int64(size) for size in victim.input_shape)
    victim._nb_classes = np.int64(victim.nb_classes)
    kinds = {int: np.int64, float: np.float64}
    numbers = {n: kinds[type(value)](value) for n, value in plain.params().items() if type(value) in kinds}
    verifier = case.make(victim, **numbers)
    found, wanted = (v.extract(case.x, case.y, **case.more) for v in (verifier, plain))
    expect(found.digest == wanted.digest, f"With NumPy scalars the fingerprint is another: {found} and not {wanted}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of three references
        verifier.calibrate(case.references(3), confidence=np.float32(0.9), rule="t-mean")
    verifier.verify(case.independent(1))
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / "print")


def bad_data_are_refused(case: VerifierCase) -> None:
    """Images that are empty, of another shape or type, or not finite, and labels that do not fit, are refused."""
    verifier = case.make()
    few, y = case.x[:4], case.y[:4]
    wrong = [
        ("empty images", few[:0], y[:0]),
        ("one image without a sample axis", few[0], y[:1]),
        ("NaN", np.full_like(few, np.nan), y),
        ("integers", few.astype(np.uint8), y),
        ("a list", few.tolist(), y),
        ("too few labels", few, y[:3]),
        ("labels out of range", few, np.full(4, case.victim().nb_classes)),
    ]
    for what, x, labels in wrong:
        refused(
            lambda x=x, labels=labels: verifier.extract(x, labels, **case.more),  # type: ignore[misc]
            InvalidInputError,
            f"extract with {what}",
        )
    expect(verifier.fingerprint is None, "There is a fingerprint although all data were refused.")


# ---------------------------------------------------------------------- the file
def files_give_the_identical_verdict(case: VerifierCase) -> None:
    """A fingerprint from a file has the same digest, parameters, scores and verdicts, and needs no victim."""
    verifier = case.extracted()
    verifier.calibrate(case.references(2), rule="t-pred", alpha=0.9, confidence=0.95)
    with tempfile.TemporaryDirectory() as folder:
        loaded = Fingerprint.load(verifier.fingerprint.save(Path(folder) / "fingerprint"))
    expect(loaded.digest == verifier.fingerprint.digest, "The loaded fingerprint has another digest.")
    other = case.verifier.from_fingerprint(loaded)
    expect(
        other.params() == verifier.params(), f"Parameters before {verifier.params()}, from the file {other.params()}."
    )
    for suspect in (case.victim(), case.independent(1)):
        expect(other.score(suspect) == verifier.score(suspect), "The verifier from the file gives other scores.")
        pair = [v.verify(suspect).to_dict() for v in (other, verifier)]
        expect(pair[0] == pair[1], f"The verifier from the file gives another verdict: {pair[0]} and not {pair[1]}")
    refused(lambda: other.extract(case.x, case.y, **case.more), NotExtractedError, "extract without a victim")


CHECKS = (
    nothing_works_before_extraction,
    victim_keeps_its_weights,
    victim_keeps_flags_hooks_and_gradients,
    images_are_only_read,
    extraction_keeps_the_random_state,
    extraction_keeps_torch_settings,
    errors_leave_the_victim_alone,
    the_seed_decides,
    labels_may_be_indices_or_one_hot,
    float64_and_float16_are_converted,
    numpy_numbers_are_numbers,
    bad_data_are_refused,
    files_give_the_identical_verdict,
)
