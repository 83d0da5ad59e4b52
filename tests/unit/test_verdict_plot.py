"""The figure of a verdict: every number of the verdict is where it should be, and nothing else is touched."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from art_fingerprint.exceptions import FingerprintError, InvalidInputError, MissingDependencyError
from art_fingerprint.reporting.verdict_plot import plot_verdict
from art_fingerprint.verifiers import MetricResult, Verdict


def verdict(**changes: Any) -> Verdict:
    parts: dict[str, Any] = {
        "verifier": "SomeVerifier",
        "metrics": {
            "NEAR": MetricResult(0.5, "distance", 2.0, True, 1 / 4),
            "LIKE": MetricResult(0.2, "similarity", 0.9, False, 3 / 4),
        },
        "derived": False,
        "vote": "majority",
        "queries": 123,
        "nb_references": 3,
        "seed": 0,
        "fingerprint_digest": "0",
        "skipped": {"DEEP": "the suspect shows no layers"},
        "references": {"NEAR": (2.0, 3.0, 4.0), "LIKE": (0.9, 0.1, 0.3)},
    }
    return Verdict(**{**parts, **changes})


def part(axes: Any, name: str) -> Any:
    found = [child for child in axes.get_children() if child.get_gid() == name]
    assert len(found) <= 1
    return found[0] if found else None


def texts(axes: Any) -> str:
    return "\n".join([axes.get_ylabel(), axes.get_title(loc="right"), *(text.get_text() for text in axes.texts)])


@pytest.fixture
def draw() -> Callable[..., Any]:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    return plot_verdict


def test_values_thresholds_and_references_are_drawn(draw: Callable[..., Any]) -> None:
    figure = draw(verdict())
    near, like, deep = figure.axes
    for axes, value, tau, references in ((near, 0.5, 2.0, [2, 3, 4]), (like, 0.2, 0.9, [0.9, 0.1, 0.3])):
        assert part(axes, "suspect").get_offsets()[:, 0].tolist() == [value]
        assert part(axes, "references").get_offsets()[:, 0].tolist() == references
        assert list(part(axes, "threshold").get_xdata()) == [tau, tau]
        low, high = axes.get_xlim()
        assert low < min(value, *references) <= max(value, *references) < high
    low, high = near.get_xlim()
    assert part(near, "derived").get_extents().transformed(near.transData.inverted()).x1 == pytest.approx(2.0)
    low, high = like.get_xlim()
    box = part(like, "derived").get_extents().transformed(like.transData.inverted())
    assert (box.x0, box.x1) == (pytest.approx(0.9), pytest.approx(high))
    assert "0.5: derived, p = 0.25" in texts(near)
    assert "0.2: not derived, p = 0.75" in texts(like)
    assert "distance" in texts(near)
    assert "similarity" in texts(like)
    assert "the suspect shows no layers" in texts(deep)
    title = figure.get_suptitle()
    for fact in ("SomeVerifier", "not derived", "3 reference models", "123 queries"):
        assert fact in title


def test_points_of_references_stay_apart(draw: Callable[..., Any]) -> None:
    same = verdict(references={"NEAR": (2.0,) * 50}, metrics={"NEAR": MetricResult(2.0, "distance", 2.0, False, 1.0)})
    heights = part(draw(same).axes[0], "references").get_offsets()[:, 1]
    assert len(set(heights.round(3))) == 50
    assert abs(heights).max() < 1


def test_undecided_verdicts(draw: Callable[..., Any]) -> None:
    uncalibrated = verdict(
        metrics={
            "NEAR": MetricResult(0.5, "distance", reason="not calibrated"),
            "LIKE": MetricResult(math.nan, "similarity", 0.9, reason="undefined on this suspect"),
        },
        derived=None,
        reason="NEAR not calibrated; LIKE undefined on this suspect",
        nb_references=0,
        references={},
    )
    figure = draw(uncalibrated)
    near, like, _ = figure.axes
    assert part(near, "threshold") is part(near, "derived") is None
    assert len(part(near, "references").get_offsets()) == 0
    assert "undecided" in texts(near)
    assert "undefined on this suspect" in texts(like)
    assert part(like, "suspect") is None
    assert "undefined on this suspect" in figure.get_suptitle()
    assert "no reference models" in figure.get_suptitle()


def test_nothing_measured_at_all(draw: Callable[..., Any], tmp_path: Path) -> None:
    empty = verdict(metrics={}, skipped={}, references={}, derived=None, complete=False, reason="the service is gone")
    assert "the service is gone" in draw(empty, tmp_path / "a.png").get_suptitle()


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_files(draw: Callable[..., Any], tmp_path: Path, suffix: str, start: bytes) -> None:
    for path in (tmp_path / f"a.{suffix}", str(tmp_path / f"b.{suffix}")):
        draw(verdict(), path)
        assert Path(path).read_bytes().startswith(start)


def test_bad_input(draw: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"a\.docx"):
        draw(verdict(), tmp_path / "a.docx")
    wrongs: list[Any] = [None, {}, "verdict"]
    for wrong in wrongs:
        with pytest.raises(InvalidInputError, match="verdict"):
            draw(wrong)


def test_pyplot_is_left_alone(draw: Callable[..., Any]) -> None:
    before = sys.modules.get("matplotlib.pyplot")
    draw(verdict())
    assert sys.modules.get("matplotlib.pyplot") is before


def test_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"art-fingerprint\[plots\]"):
        plot_verdict(verdict())
    assert issubclass(MissingDependencyError, FingerprintError)
    assert issubclass(MissingDependencyError, ImportError)
