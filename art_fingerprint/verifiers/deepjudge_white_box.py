"""DeepJudge's white-box family: inputs that push single neurons of one layer, and what they do in a suspect."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from art_fingerprint.core.classifier import LogitsNetwork, check_classifier, clip_bounds
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.layers import resolve_layer
from art_fingerprint.core.outputs import nonfinite_rows
from art_fingerprint.core.perturbation import unit_length
from art_fingerprint.core.queries import Suspect
from art_fingerprint.core.taps import tap
from art_fingerprint.exceptions import (
    AccessError,
    EmptyFingerprintError,
    IncompatibleArchitectureError,
    InvalidInputError,
    LayerNotFoundError,
    NonFiniteOutputError,
)
from art_fingerprint.verifiers import deepjudge_metrics as formulas
from art_fingerprint.verifiers.deepjudge_generation import first_per_neuron, live_neurons, neuron_tests
from art_fingerprint.verifiers.fingerprint import Fingerprint, warn_if_few

if TYPE_CHECKING:
    from art_fingerprint.verifiers.deepjudge import DeepJudgeVerifier

METRICS = ("LOD", "LAD", "NOD", "NAD")
NB_QUERIES = "nb_tests"  # the fact that says how many samples a suspect is sent
_LARGEST_REFERENCE = 20_000


def extract(
    verifier: DeepJudgeVerifier, victim: LogitsNetwork, seeds: Tensor, data: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return arrays and facts of the fingerprint: tests of single neurons and the victim's pooled activations on them.

    :param verifier: Holds the parameters.
    :param victim: As in ``Verifier._extract``.
    :param seeds: Certain right answers ``(n, ...)`` on the host; the first ``nb_seeds_whitebox`` are starting points.
    :param data: All images given, on the host; the neurons' largest activations with ``reference="data"``.
    :raises EmptyFingerprintError: no chosen neuron is ever positive, or none reaches its target.
    :raises LayerNotFoundError: no such layer.
    :raises InvalidInputError: ``neurons`` names one that the layer does not have.
    """
    network, device = victim.network, victim.device
    seeds = seeds[: verifier.nb_seeds_whitebox]
    example = victim.preprocess(seeds[:2].to(device))
    layer = resolve_layer(network, None if verifier.layer == "auto" else verifier.layer, example)

    def activations_of(x: Tensor) -> Tensor:
        return formulas.pool_activations(tap(network, layer, victim.preprocess(x)), verifier.pooling)

    pool = data[:_LARGEST_REFERENCE] if verifier.reference == "data" else seeds
    with torch.no_grad():
        parts = [activations_of(part.to(device)).amax(0) for part in pool.split(verifier.batch_size)]
    maxima = torch.stack(parts).amax(0).cpu()
    nb_neurons = len(maxima)
    if nb_neurons < 8:
        warnings.warn(
            f"Layer {layer!r} has {nb_neurons} neurons; LAD and NAD say little with fewer than 8 (nothing with 1).",
            stacklevel=4,
        )
    live = live_neurons(maxima)
    chosen = _chosen_neurons(verifier.neurons, nb_neurons, layer)
    neurons = chosen[live[chosen]]
    if len(neurons) == 0:
        raise EmptyFingerprintError(
            f"None of the {len(chosen)} neurons of layer {layer!r} is ever positive on the reference images: take "
            "another `layer`."
        )
    low, high = clip_bounds(verifier.estimator) if verifier.clip else (None, None)
    with tqdm(desc="DeepJudge neurons", disable=not verifier.verbose) as bar:
        found = neuron_tests(
            activations_of,
            seeds,
            neurons,
            verifier.multiplier * maxima[neurons] + verifier.margin,
            learning_rate=verifier.learning_rate * unit_length(victim, verifier.units, seeds.ndim),
            max_iter=verifier.max_iter,
            max_tests_per_neuron=verifier.max_tests_per_neuron,
            low=low,
            high=high,
            keep_best=verifier.keep_best,
            stored_iterate=verifier.stored_iterate,
            batch_size=verifier.batch_size,
            device=device,
            progress=bar.update,
        )
    if len(found.x) == 0:
        raise EmptyFingerprintError(
            f"No input drives a neuron of layer {layer!r} to its target: lower `multiplier`, raise `max_iter` or "
            "`learning_rate`, or take another `layer`."
        )
    rows = torch.arange(len(found.x))
    counts = found.neuron.unique(return_counts=True)[1]
    if verifier.equalise_counts:
        rows = first_per_neuron(found.neuron, int(counts.min()))
    tests, neuron = found.x[rows], found.neuron[rows]
    warn_if_few(len(tests), "white-box tests", stacklevel=5)
    # Through the suspect's own path, so that the victim as a suspect gives the same activations to the last bit.
    client = Suspect(verifier.estimator, verifier.batch_size)
    activations = client.activations(tests, layer, lambda z: formulas.pool_activations(z, verifier.pooling)).float()
    return {
        "tests": tests,
        "tests_neuron": neuron,
        "tests_seed": found.seed[rows],
        "tests_activations": activations,
    }, {
        "layer": layer,
        "nb_neurons": nb_neurons,
        "dead_neurons": chosen[~live[chosen]].tolist(),
        "nb_tests": len(tests),
        "nb_pairs": found.nb_tasks,
        "nb_updates": found.nb_updates,
        "nb_neurons_with_tests": len(counts),
    }


def _chosen_neurons(neurons: int | tuple[int, ...] | None, nb_neurons: int, layer: str) -> Tensor:
    if neurons is None:
        return torch.arange(nb_neurons)
    if not isinstance(neurons, tuple):
        return torch.arange(min(neurons, nb_neurons))
    chosen = torch.tensor(neurons)
    if int(chosen.max()) >= nb_neurons:
        raise InvalidInputError(
            f"`neurons` names neuron {int(chosen.max())}, but layer {layer!r} has neurons 0 to {nb_neurons - 1}."
        )
    return chosen.unique()


def _nb_chosen(verifier: DeepJudgeVerifier) -> int:
    """Return the number of neurons asked for, dead or not. Cost: four passes of two samples."""
    victim = verifier.estimator
    assert victim is not None
    with guarded(victim, weights=False), torch.no_grad():
        view = check_classifier(victim)
        view.network.eval()
        middle = sum(clip_bounds(victim)) / 2
        example = view.preprocess(torch.full((2, *victim.input_shape), middle, device=victim.device))
        layer = resolve_layer(view.network, None if verifier.layer == "auto" else verifier.layer, example)
        pooled = formulas.pool_activations(tap(view.network, layer, example), verifier.pooling)
    return len(_chosen_neurons(verifier.neurons, pooled.shape[1], layer))


def extraction_passes(verifier: DeepJudgeVerifier, nb_images: int) -> int:
    """Return the most passes of :func:`extract` from so many images, as if no pair ended early."""
    nb_seeds = min(verifier.nb_seeds_whitebox, verifier.nb_seeds, nb_images)
    nb_reference = min(nb_images, _LARGEST_REFERENCE) if verifier.reference == "data" else nb_seeds
    nb_pairs = nb_seeds * _nb_chosen(verifier)
    return nb_reference + nb_pairs * (2 * verifier.max_iter + 2)  # the last answers to tests


def most_queries(verifier: DeepJudgeVerifier) -> int:
    """Return the most samples that a suspect is sent."""
    nb_seeds = min(verifier.nb_seeds_whitebox, verifier.nb_seeds)
    return _nb_chosen(verifier) * min(nb_seeds, verifier.max_tests_per_neuron or nb_seeds)


def score(
    verifier: DeepJudgeVerifier, suspect: Suspect, fingerprint: Fingerprint
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the family's metrics with ``LAD_frac``, ``NAD_frac`` and ``NNOD``, and why this suspect has none of them.

    :raises NonFiniteOutputError: the suspect's layer is NaN or infinite on a test.
    """
    tests, nu, a = fingerprint.tensors("tests", "tests_neuron", "tests_activations")
    layer = verifier.suspect_layer or fingerprint.facts["layer"]
    width = a.shape[1]

    def pooled(z: Tensor) -> Tensor:
        values = formulas.pool_activations(z, verifier.pooling)
        if values.shape[1] != width:  # found out on the first batch, before more queries are spent
            raise IncompatibleArchitectureError(
                f"the suspect's layer {layer!r} has {values.shape[1]} neurons, the victim's "
                f"{fingerprint.facts['layer']!r} has {width}"
            )
        return values

    try:
        b = suspect.activations(tests, layer, pooled).float()
    except (LayerNotFoundError, AccessError, IncompatibleArchitectureError) as error:
        return {}, dict.fromkeys(METRICS, str(error))
    bad = nonfinite_rows(b)
    if bad:
        raise NonFiniteOutputError(f"The suspect's layer {layer!r} is NaN or infinite on {bad} of {len(b)} tests.")
    a, b = a.double(), b.double()
    flipped = formulas.flips(a, b)
    lad, nad = formulas.mean_flips(flipped), formulas.mean_flips(flipped, nu)
    return {
        "LOD": formulas.layer_output_distance(a, b, verifier.lod_order),
        "LAD": lad,
        "NOD": formulas.neuron_output_distance(a, b, nu),
        "NAD": nad * len(nu.unique()),
        "LAD_frac": lad / width,
        "NAD_frac": nad,
        "NNOD": formulas.normalised_neuron_output_distance(a, b, nu),
    }, {}
