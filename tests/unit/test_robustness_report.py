"""Table IV, and robustness beside removal, from hand-written rows."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from art_fingerprint.evaluation.removal import distance_gained
from art_fingerprint.exceptions import InvalidInputError, MissingDependencyError
from art_fingerprint.reporting.html import report
from art_fingerprint.reporting.robustness import table_four, tradeoff, tradeoff_cells
from art_fingerprint.reporting.tradeoff_plot import plot_tradeoff
from tests.unit.test_reporting import FAR, NEAR, make_rows

Row = dict[str, Any]
ZERO = {"LOD": 0.0, "LAD": 0.0, "ZEST-L2": 0.0, "ZEST-cosine": 0.0, "DDV": 1.0, "MR": 1.0}
REFERENCE = {"LOD": 4.0, "LAD": 10.0, "ZEST-L2": 40.0, "ZEST-cosine": 0.2, "DDV": 0.5, "MR": 0.2}


def with_rob(rows: list[Row], **attacks: float) -> list[Row]:
    return [
        {**row, "robustness": {name: {"accuracy": rob, "undecided": 0.25} for name, rob in attacks.items()}}
        for row in rows
    ]


def example() -> list[Row]:
    return [
        *with_rob(make_rows("Victim", 1000, ZERO, "victim", 0.97), FGSM=0.7, PGD=0.5),
        *with_rob(make_rows("Reference", 0, {**REFERENCE, "LOD": 3.0}, "reference"), FGSM=0.6, PGD=0.4),
        *with_rob(make_rows("Reference", 1, {**REFERENCE, "LOD": 5.0}, "reference"), FGSM=0.6, PGD=0.4),
        *with_rob(make_rows("Negative", 0, REFERENCE, "negative", 0.93), FGSM=0.6, PGD=0.4),
        *with_rob(make_rows("FT(0.5)", 0, NEAR, accuracy=0.96), FGSM=0.7, PGD=0.5),
        *with_rob(make_rows("RemovalNet(train)", 0, FAR, accuracy=0.95), FGSM=0.55, PGD=0.3),
        *with_rob(make_rows("RemovalNet(train)", 1, FAR, accuracy=0.93), FGSM=0.75, PGD=0.5),
    ]


@pytest.mark.parametrize(
    ("value", "victim", "references", "gained"),
    [
        (0, 0, [4], 0),
        (4, 0, [3, 5], 1),
        (1, 0, [4], 0.25),
        (0.8, 1, [0.2, 0.2], 0.25),
        (-2, 0, [4], -0.5),
        (8, 0, [4], 2),
    ],
)
def test_distance_gained(value: float, victim: float, references: list[float], gained: float) -> None:
    assert distance_gained(value, victim, references) == pytest.approx(gained)


def test_distance_gained_where_there_is_none() -> None:
    assert math.isnan(distance_gained(1.0, 2.0, [1.0, 3.0]))
    for wrong in ((1.0, 2.0, []), (math.nan, 2.0, [1.0]), (1.0, math.inf, [1.0]), (1.0, 2.0, [math.nan])):
        with pytest.raises(InvalidInputError, match="finite|must be a number"):
            distance_gained(*wrong)


def test_table_four_by_hand() -> None:
    head, fgsm, pgd = table_four(example())
    assert head[2] == "Rob(RemovalNet(train))"
    assert fgsm[:2] == ["FGSM", "0.700"]
    # Rob 0.55 and 0.75 against 0.7: RobD is the mean of 0.15 and 0.05, not the difference of the means
    assert fgsm[2:6] == ["0.650±0.141", "0.600", "0.100±0.071", "0.100"]
    assert pgd[4] == "0.100±0.141"
    assert fgsm[6:] == ["25%", "-, -, -", "0.694, 0.553, 0.599, 0.141, 0.095"]
    assert table_four(example(), "FT(0.5)")[1][2:5] == ["0.700", "0.600", "0.000"]


def test_table_four_has_the_size_of_perturbations() -> None:
    """Means over models of what the paper's protocol asks for beside DeepFool: the median L2 norm."""
    rows = example()
    for row in rows:
        for name, result in row["robustness"].items():
            result["median_l2"] = {"FGSM": 1.0, "PGD": 2.0}[name] + row["seed"] % 1000
    head, fgsm, pgd = table_four(rows)
    assert head[-2] == "median L2 v, s, n"
    assert (fgsm[-2], pgd[-2]) == ("1.00, 1.50, 1.00", "2.00, 2.50, 2.00")


def test_kinds_of_models_are_kept_apart_in_any_order() -> None:
    more = [
        *with_rob(make_rows("Negative (other architecture)", 0, REFERENCE, "negative"), FGSM=0.05, PGD=0.05),
        *with_rob(make_rows("Known", 0, {**REFERENCE, "LOD": 1.0}, "reference"), FGSM=0.6, PGD=0.4),
    ]
    wanted = table_four(example()), tradeoff(example())[:3]
    for rows in ([*example(), *more], [*more, *example()]):
        assert table_four(rows) == wanted[0]
        assert {p.label: p for p in tradeoff(rows)}["RemovalNet(train)"] == wanted[1][2]
    only = [*(row for row in example() if row["role"] != "negative"), *more]
    head, fgsm, _ = table_four(only)
    assert (head[3], head[5]) == ("Rob(Negative (other architecture))", "RobD(Negative (other architecture))")
    assert fgsm[3] == "0.050"
    known = [row for row in only if row["suspect"] != "Reference"]
    assert {p.label: p for p in tradeoff(known)}["RemovalNet(train)"] != wanted[1][2]


def test_tables_do_not_depend_on_who_finished_first() -> None:
    rows = [
        *example(),
        *with_rob(make_rows("RemovalNet(apart)", 0, FAR, accuracy=0.9), PGD=0.2, FGSM=0.3),
        *with_rob(make_rows("RemovalNet(apart)", 1, NEAR, accuracy=0.91), PGD=0.25, FGSM=0.35),
        *(row for step in (1000, 900) for row in with_rob(make_rows(f"FT@{step}", 0, NEAR), FGSM=0.6, PGD=0.4)),
        *with_rob(make_rows("Negative (other data)", 0, NEAR, "negative"), FGSM=0.1, PGD=0.1),
        *with_rob(make_rows("Known", 0, NEAR, "reference"), FGSM=0.1, PGD=0.1),
        *with_rob(make_rows("Reference (other data)", 0, NEAR, "reference"), FGSM=0.1, PGD=0.1),
    ]
    four, points = table_four(rows), tradeoff(rows)
    assert (four[0][2], [line[0] for line in four[1:]]) == ("Rob(RemovalNet(apart))", ["FGSM", "PGD"])
    assert [point.label for point in points] == [
        *("Victim", "FT(0.5)", "RemovalNet(train)", "RemovalNet(apart)", "FT@900", "FT@1000"),
        *("Negative", "Negative (other data)"),
    ]
    for seed in range(5):
        mixed = random.Random(seed).sample(rows, len(rows))
        assert table_four(mixed) == four
        assert tradeoff(mixed) == points
        assert tradeoff_cells(tradeoff(mixed)) == tradeoff_cells(points)


def test_independent_models_are_of_the_nearest_kind() -> None:
    """The reference that a distance is gained towards: of the victim's data, else of other data, else a known one."""
    far = {"Reference": 4.0, "Reference (other data)": 8.0, "Known": 16.0}
    others = [row for row in example() if row["role"] != "reference"]
    kinds = {label: make_rows(label, 0, {"LOD": lod}, "reference") for label, lod in far.items()}
    for _ in range(len(far)):
        rows = [*others, *(row for own in reversed(kinds.values()) for row in own)]
        found = next(point for point in tradeoff(rows) if point.label == "RemovalNet(train)")
        nearest = next(iter(kinds))
        assert found.gained == {"DeepJudgeVerifier": pytest.approx(FAR["LOD"] / far[nearest])}
        del kinds[nearest]


def test_a_row_without_an_attack_is_missed_not_guessed() -> None:
    rows = [*example(), *with_rob(make_rows("RemovalNet(train)", 2, FAR), FGSM=0.7)]
    rows += make_rows("RemovalNet(train)", 3, FAR)
    assert table_four(rows)[2][2] == "0.400±0.141"


def test_rows_of_earlier_versions_say_so() -> None:
    rows = make_rows("Victim", 1000, ZERO, "victim", 0.97)
    for call in (table_four, tradeoff):
        with pytest.raises(InvalidInputError, match="no robust accuracy"):
            call(rows)
    with pytest.raises(InvalidInputError, match="no surrogate 'X'"):
        table_four(example(), "X")
    with pytest.raises(InvalidInputError, match="have FGSM, PGD, not 'CW'"):
        tradeoff(example(), "CW")
    with pytest.raises(InvalidInputError, match="victim and of reference"):
        tradeoff([row for row in example() if row["role"] != "reference"])
    with pytest.raises(InvalidInputError, match="no victim"):
        table_four([row for row in example() if row["role"] != "victim"])


def test_tradeoff_by_hand() -> None:
    points = {point.label: point for point in tradeoff(example())}
    assert list(points) == ["Victim", "FT(0.5)", "RemovalNet(train)", "Negative"]
    assert set(points["Victim"].gained.values()) == {0.0}
    assert points["Negative"].gained["IPGuardVerifier"] == pytest.approx(1.0)
    # FAR: LOD 3 of 4, LAD 9 of 10; DDV 0.5 of 0.5
    found = points["RemovalNet(train)"]
    assert found.gained["DeepJudgeVerifier"] == pytest.approx((3 / 4 + 9 / 10) / 2)
    assert found.gained["ModelDiffVerifier"] == pytest.approx(1.0)
    assert (found.seeds, found.accuracy, found.robust_accuracy) == (2, pytest.approx(0.94), pytest.approx(0.4))
    cells = tradeoff_cells(tradeoff(example(), "FGSM"), "FGSM")
    assert cells[0][3] == "under FGSM %"
    assert cells[3][:5] == ["RemovalNet(train)", "2", "94.00", "65.0", "0.82"]


def test_failed_cells_leave_gaps() -> None:
    rows = [row for row in example() if (row["suspect"], row["verifier"]) != ("FT(0.5)", "ZestVerifier")]
    point = next(point for point in tradeoff(rows) if point.label == "FT(0.5)")
    assert set(point.gained) == {"DeepJudgeVerifier", "ModelDiffVerifier", "IPGuardVerifier"}
    assert tradeoff_cells(tradeoff(rows))[2][5] == "-"


def test_the_report_has_both() -> None:
    text = report(example())
    assert "Robustness against evasion" in text
    assert "Robustness and removal" in text
    assert "Robustness" not in report(make_rows("FT(0.5)", 0, NEAR))
    unmade = [{**row, "accuracy": None} if row["role"] == "victim" else row for row in example()]
    assert "Robustness against evasion" not in report(unmade)
    alone = [row for row in example() if row["role"] != "reference"]
    assert "Robustness against evasion" in report(alone)
    assert "Robustness and removal" not in report(alone)


def test_the_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = tradeoff(example())
    figure = plot_tradeoff(points, tmp_path / "a.png")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["DeepJudge", "Zest", "ModelDiff", "IPGuard"]
    for axes, verifier in zip(panels, points[0].gained, strict=True):
        drawn = [tuple(dots.get_offsets()[0]) for dots in axes.collections]
        assert drawn == [(pytest.approx(p.gained[verifier]), pytest.approx(100 * p.robust_accuracy)) for p in points]
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(InvalidInputError, match="cannot be written"):
        plot_tradeoff(points, tmp_path / "a.nonsense")
    with pytest.raises(InvalidInputError, match="no points"):
        plot_tradeoff([])


def test_the_figure_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        plot_tradeoff(tradeoff(example()))
