"""The verdict of a committee: what every member found, how it was combined, and what the rate of errors rests on."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from art_fingerprint.verifiers.p_values import Combination
from art_fingerprint.verifiers.verdict import Verdict

_ASSUMPTIONS = {
    "holm": "whatever the members have in common",
    "fisher": "if the members' p-values are independent",
    "cauchy": "in the limit of small rates, or if the members' p-values are independent",
}


@dataclass(frozen=True)
class CommitteeVerdict:
    """Immutable result of ``CommitteeVerifier.verify``. ``verdict["AKHVerifier"]`` is a member's own verdict.

    :ivar derived: ``True`` derived from the victim, ``False`` not, ``None`` undecided (see :attr:`reason`).
    :ivar p_value: The p-value that decided; ``None`` if there is none.
    :ivar joint_p_value: Rank of the suspect among the references by combined p-value, over their number + 1; ``None``
        if the members do not share their references.
    :ivar method: How p-values were combined.
    :ivar null: ``"formula"`` or ``"references"``.
    :ivar level: Largest p-value that is called derived.
    :ivar false_positive_rate: Bound of the rate at which a model like the references is called derived, under the
        assumption of :attr:`assumption`; ``None`` if undecided.
    :ivar worst_case_rate: Bound of the same rate whatever the members have in common.
    :ivar members: Member to its own verdict, of those that could score the suspect.
    :ivar p_values: Member to p-value, of those that were combined.
    :ivar adjusted: Member to Holm's adjusted p-value, for ``method="holm"``: at most the level says that this member by
        itself is convinced.
    :ivar left_out: Member to the reason why it was left out.
    :ivar queries: Samples that were sent to the suspect by all members.
    :ivar nb_references: Fewest reference models behind a member.
    :ivar reason: Why the verdict is undecided, else empty.
    """

    derived: bool | None
    p_value: float | None
    joint_p_value: float | None
    method: Combination
    null: str
    level: float
    false_positive_rate: float | None
    worst_case_rate: float | None
    members: Mapping[str, Verdict]
    p_values: Mapping[str, float]
    adjusted: Mapping[str, float]
    left_out: Mapping[str, str]
    queries: int
    nb_references: int
    reason: str = ""

    def __getitem__(self, name: str) -> Verdict:
        if name not in self.members:
            why = f" ({self.left_out[name]})" if name in self.left_out else ""
            raise KeyError(f"The committee's verdict has no member {name!r}{why}; it has {', '.join(self.members)}.")
        return self.members[name]

    @property
    def assumption(self) -> str:
        """What the false-positive rate assumes of the members."""
        return _ASSUMPTIONS["holm" if self.null == "references" else self.method]

    @property
    def meaning(self) -> str:
        """What the rates say, in words."""
        if self.false_positive_rate is None or self.worst_case_rate is None:
            return f"Undecided: {self.reason}."
        words = (
            f"False positives: of models trained independently, like the {self.nb_references} references, at most "
            f"{self.false_positive_rate:.1%} are expected to be called derived, {self.assumption}"
        )
        if self.worst_case_rate > self.false_positive_rate:
            words += f"; at most {self.worst_case_rate:.1%} whatever they have in common"
        return words + "."

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        names = (
            *("derived", "p_value", "joint_p_value", "method", "null", "level", "false_positive_rate"),
            *("worst_case_rate", "assumption", "meaning", "queries", "nb_references", "reason"),
        )
        return {
            "verifier": "CommitteeVerifier",
            **{name: getattr(self, name) for name in names},
            "p_values": dict(self.p_values),
            "adjusted": dict(self.adjusted),
            "left_out": dict(self.left_out),
            "members": {name: verdict.to_dict() for name, verdict in self.members.items()},
        }

    def __repr__(self) -> str:
        words = {True: "DERIVED from the victim", False: "not derived", None: f"undecided: {self.reason}"}
        p_value = "" if self.p_value is None else f", p = {self.p_value:.3g}"
        lines = [
            f"CommitteeVerifier: {words[self.derived]} ({self.method} of {len(self.p_values)} members{p_value}, "
            f"{self.queries} queries)"
        ]
        for name, value in self.p_values.items():
            extra = f", adjusted {self.adjusted[name]:.3g}" if name in self.adjusted else ""
            lines.append(f"  {name:<26} p = {value:.3g}{extra}")
        lines += [f"  {name:<26} left out: {why}" for name, why in self.left_out.items()]
        lines.append(textwrap.fill(self.meaning, 110, initial_indent="  ", subsequent_indent="    "))
        return "\n".join(lines)
