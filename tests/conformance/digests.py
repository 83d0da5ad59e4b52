"""Digests of all that attacks and verifiers make; ``python -m tests.conformance.digests`` prints them as JSON."""

from __future__ import annotations

import json
import warnings

import torch

from art_fingerprint.core.digests import network_digest
from art_fingerprint.testing.state import changes, disturb_random_state, random_state, torch_settings
from tests.conformance.attack_cases import CASES as ATTACKS
from tests.conformance.attack_cases import conformance
from tests.conformance.verifier_cases import CASES as VERIFIERS


def digests() -> dict[str, str]:
    """Return case to the digest of its surrogate, or of its fingerprint, thresholds and verdicts."""
    found = {}
    for row in ATTACKS:
        case = conformance(row)
        found[case.label] = network_digest(case.make(seed=3).generate(*case.data()).model)
    for verifier in VERIFIERS:
        judge = verifier.extracted(seed=3)
        judge.calibrate(verifier.references(2))
        verdicts = [judge.verify(suspect).to_dict() for suspect in (verifier.victim(), verifier.independent(1))]
        found[verifier.label] = json.dumps([judge.fingerprint.digest, verdicts])
    return found


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    disturb_random_state(123)  # what a caller did before
    before = {**random_state(), **torch_settings()}
    found = digests()
    print(json.dumps({"digests": found, "changed": changes(before, {**random_state(), **torch_settings()})}))


if __name__ == "__main__":
    main()
