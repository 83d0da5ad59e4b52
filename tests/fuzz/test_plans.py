"""Plans of any structure, from data and from YAML, TOML and JSON files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from art_fingerprint.benchmark.plan import Plan, plan_from
from art_fingerprint.benchmark.plan_files import load_plan
from art_fingerprint.benchmark.runner import Bench
from tests.fuzz.generated import generated
from tests.fuzz.outcomes import Refused, memory_limit, outcome_is_allowed
from tests.fuzz.strategies import damaged, json_values, mutated, values

VALID: dict[str, Any] = {
    "seeds": [0, 3],
    "victims": {
        "digits": None,
        "mine": {
            "dataset": "digits",
            "dataset_options": {},
            "architecture": "tests.tiny_preset:small",
            "victim_recipe": {"learning_rate": 0.05, "max_iter": 60, "batch_size": 32, "stage_divisors": [1, 10, 100]},
            "subset_ratio": 0.1,
            "nb_references": 2,
            "threads": 1,
            "robustness": {"FGSM": {"eps": 0.1}},
            "calibration": {"rule": "t-pred", "alpha": 0.9},
            "attacks": {
                "FT": {
                    "attack": "FineTuningAttack",
                    "params": {"ratio": 0.5, "max_iter": 2},
                    "source": "subset",
                    "true_labels": True,
                    "ratio": 0.1,
                    "step": 1,
                }
            },
            "verifiers": {"ZestVerifier": {"nb_images": 10, "nb_masks": 24, "profile": "paper"}},
        },
    },
}
KEYS = ["seeds", "victims", "attacks", "verifiers", "preset", "params", "source", "digits", "FT(0.5)", "ZestVerifier"]


@st.composite
def anything(draw: st.DrawFn) -> Any:
    """Any value; a strategy of its own, because hypothesis shows those that it builds on, huge numbers and all."""
    return draw(values)


structures = st.recursive(
    anything(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner),
    max_leaves=8,
)
#: What every message about a plan names: a part of it.
PARTS = ("plan", "victim", "seed", "attack", "verifier", "preset", "recipe", "rule", "reference", "data set", "model")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@generated(30, 800, data=structures | mutated(VALID, structures))
def test_structures(data: Any) -> None:
    found = outcome_is_allowed(lambda: plan_from(data), *PARTS)
    if not isinstance(found, Refused):
        assert isinstance(found, Plan)
        described = outcome_is_allowed(found.to_dict, "victim")  # some numbers are too long for JSON
        if not isinstance(described, Refused):
            assert json.dumps(plan_from(described).to_dict()) == json.dumps(described)


@generated(4, 150, data=mutated(VALID))
def test_benches(data: Any, folder: Path) -> None:
    """What ``plan_from`` lets pass is checked in earnest before anything runs."""
    plan = outcome_is_allowed(lambda: plan_from(data), *PARTS)
    if not isinstance(plan, Refused):
        bench = outcome_is_allowed(lambda: Bench(plan, folder / "run", device_type="cpu"), *PARTS)
        if not isinstance(bench, Refused):
            outcome_is_allowed(bench.outline, *PARTS)
    assert not (folder / "run").exists()


def is_loaded_or_refused(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    with memory_limit(20 * len(content)):  # a node of PyYAML's takes a hundred times its text
        return outcome_is_allowed(lambda: load_plan(path), path.name)


def in_toml(data: dict[str, Any]) -> bytes:
    """A plan in TOML, which has no null."""
    victim = json.loads(json.dumps(data["victims"]["mine"]))
    lines = [f"seeds = {data['seeds']}"]

    def table(name: str, found: dict[str, Any]) -> None:
        lines.append(f"[{name}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in found.items() if not isinstance(value, dict))
        for key, value in found.items():
            if isinstance(value, dict):
                table(f"{name}.{key}", value)

    table("victims.mine", victim)
    return "\n".join(lines).encode()


FORMS = {
    "plan.yaml": yaml.safe_dump(VALID).encode(),
    "plan.json": json.dumps(VALID, indent=1).encode(),
    "plan.toml": in_toml(VALID),
}


@pytest.mark.parametrize("name", FORMS)
@generated(8, 300, data=st.data())
def test_damaged_files(name: str, data: st.DataObject, folder: Path) -> None:
    assert not isinstance(is_loaded_or_refused(folder / name, FORMS[name]), Refused)
    is_loaded_or_refused(folder / name, data.draw(damaged(FORMS[name]), label="content"))


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 30))
BOMBS = [
    LAUGHS,
    LAUGHS + "victims: *a29\n",
    LAUGHS.replace("a29:", "seeds:"),
    "victims: digits\nseeds: &a [*a]\n",
    "victims: &a {digits: *a}\n",
    "&a [*a, *a]",
    MERGES,
    "[" * 600,
    "{a: " * 600,
    "- " * 600,
    "? " * 600,
    "!!python/object/apply:os.system ['touch /tmp/owned']",
    "victims: !!python/name:os.system",
    "victims: !!python/object/new:os.system [id]",
    "seeds: !!binary aGVsbG8=\nvictims: digits",
    "seeds: !!set {1, 2}\nvictims: digits",
    "seeds: 2020-01-01\nvictims: digits",
    "seeds: 1:30:00\nvictims: digits",
    "seeds: " + "9" * 5000 + "\nvictims: digits",
    "seeds: 0x" + "f" * 5000 + "\nvictims: digits",
    "seeds: 1e999\nvictims: digits",
    "seeds: .nan\nvictims: digits",
    "victims: digits\nvictims: digits",
    "victims: digits\n---\nvictims: digits\n",
    "? [1, 2]\n: 3\n",
    "? {a: 1}\n: 3\n",
    "%YAML 9.9\n---\nvictims: digits",
    "\ufeffvictims: digits",
    "victims: \0",
    "victims: *nowhere",
    "victims: " + "x" * 100_000,
    "x" * 600_000,
    "victims: {" + ", ".join(f"v{i}: {{preset: digits}}" for i in range(40)) + "}",
    "",
    "# nothing\n",
    "...",
]


@pytest.mark.parametrize("ending", ["yaml", "toml"])
def test_bombs(ending: str, folder: Path) -> None:
    for content in BOMBS:
        found = is_loaded_or_refused(folder / f"bomb.{ending}", content.encode())
        assert isinstance(found, Refused) or ending != "toml"
    assert not Path("/tmp/owned").exists()


@generated(10, 200, tree=json_values | mutated(VALID))
def test_json_is_yaml(tree: Any, folder: Path) -> None:
    is_loaded_or_refused(folder / "p.json", json.dumps(tree).encode())
