"""A committee: several calibrated verifiers, one verdict with a stated false-positive rate."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from art_fingerprint.core.checks import check_choice, check_flag, check_number, check_sequence, check_suspect, shown
from art_fingerprint.core.outputs import AnswerKind
from art_fingerprint.exceptions import (
    CalibrationError,
    FingerprintError,
    FingerprintFileError,
    IncompatibleSuspectError,
    InvalidInputError,
    NotExtractedError,
)
from art_fingerprint.verifiers.base import Verifier
from art_fingerprint.verifiers.calibration import Calibration, empirical_p_value
from art_fingerprint.verifiers.committee_rates import floor_p_value, member_p_value, worst_case_rate
from art_fingerprint.verifiers.committee_verdict import CommitteeVerdict
from art_fingerprint.verifiers.fingerprint import Fingerprint, check_facts
from art_fingerprint.verifiers.measurement import in_groups
from art_fingerprint.verifiers.p_values import COMBINATIONS, Combination, combine_p_values, holm_adjusted, votes_p_value
from art_fingerprint.verifiers.references import check_unknown
from art_fingerprint.verifiers.verdict import VOTES, Verdict, Vote, votes_needed

NULLS = ("formula", "references")
_MOST_REFERENCES = 100_000


class CommitteeVerifier:
    """Combine the p-values of several calibrated verifiers into one verdict with a stated false-positive rate.

    Every member scores the suspect by itself; its metrics give one p-value by :func:`.votes_p_value`; the members'
    p-values are combined, and the suspect is called derived if the result is at most ``false_positive_rate``. What is
    tested is that the suspect is one more model like the reference models. What each method assumes of the members:

    - ``"holm"``: nothing. Also says which members are convinced. The combined p-value is k times the smallest.
    - ``"fisher"``: independent p-values. Members that look at the same thing, as AKH and FBI do, or that were
      calibrated with the same few references, are not: the true rate is then higher than stated.
    - ``"cauchy"``: nothing in the limit of small rates; it is close for members that go together. A member that finds
      the suspect farther than all references (p = 1) overrules the others, which a removal attack can bring about.

    ``null="references"`` assumes nothing with any of them: the references are put through the committee as the suspect
    is, and the p-value is the suspect's rank among their combined ones. It needs members with the same references.

    p-values from R references are never below 1 / (R + 1), so too few of them can never convict. The committee refuses
    to begin then, and says how many it takes: 8 references and three members of one metric reach 0.33 by Holm, 0.11 by
    Cauchy and 0.04 by Fisher. The verdict also has the bound that holds whatever the members have in common.

    Members that are undecided (NaN, a suspect that fails or lacks access, the end of the budget) are left out and
    named.

    A committee is kept as one file, ``committee.fingerprint.save(path)``, which holds the fingerprints and calibrations
    of all members; ``CommitteeVerifier.from_fingerprint(Fingerprint.load(path))`` reads it. Members from files of their
    own are read by their own ``from_fingerprint``.

    Example, ``members`` being verifiers that have extracted: ``CommitteeVerifier(members).calibrate(references)
    .verify(suspect)``.

    Cost: that of the members.
    """

    verifier_params = ("method", "null", "false_positive_rate", "vote")

    def __init__(
        self,
        members: Sequence[Verifier],
        *,
        method: Combination = "holm",
        null: str = "formula",
        false_positive_rate: float = 0.05,
        vote: Vote = "majority",
    ) -> None:
        """
        :param members: Two or more verifiers, of different kinds or with different settings, with fingerprints of one
            victim by the time of :meth:`calibrate` or :meth:`verify`.
        :param method: ``"holm"``, ``"fisher"`` or ``"cauchy"``.
        :param null: Where the combined p-value comes from: the method's ``"formula"``, or the suspect's rank among the
            ``"references"``.
        :param false_positive_rate: Rate that is aimed at, (0, 1).
        :param vote: How the metrics of one member combine: ``"majority"``, ``"any"``, ``"all"``.
        :raises InvalidInputError: a bad parameter, or a member that is no verifier.
        """
        found = check_sequence("members", members)
        if len(found) < 2 or not all(isinstance(member, Verifier) for member in found):
            raise InvalidInputError(f"`members` must hold two or more verifiers, got {shown(members)}.")
        if len({id(member) for member in found}) < len(found):
            raise InvalidInputError("`members` holds one verifier twice, whose evidence would count twice.")
        check_choice("method", method, COMBINATIONS)
        check_choice("null", null, NULLS)
        check_number("false_positive_rate", false_positive_rate, 0, 1, open_low=True, open_high=True)
        check_choice("vote", vote, VOTES)
        self.members: dict[str, Verifier] = {}
        for member in found:
            name, number = type(member).__name__, 2
            while name in self.members:
                name, number = f"{type(member).__name__}-{number}", number + 1
            self.members[name] = member
        self.method: Combination = method
        self.null = null
        self.false_positive_rate = float(false_positive_rate)
        self.vote: Vote = vote

    def calibrate(self, references: Sequence[Any], outputs: AnswerKind = "auto") -> CommitteeVerifier:
        """Calibrate every member with the same reference models. Members may also be calibrated one by one.

        :param references: As in :meth:`Verifier.calibrate`.
        :param outputs: As in :meth:`Verifier.calibrate`.
        :raises CalibrationError: as in :meth:`Verifier.calibrate`; all members keep the calibrations that they had.
        :raises IncompatibleSuspectError: so, too.
        """
        models = check_sequence("references", references)
        before = {name: found.calibration for name, found in self._fingerprints().items()}
        try:
            for member in self.members.values():
                member.calibrate(models, outputs=outputs)
        except BaseException:  # members with different references have no joint p-value
            for name, found in self._fingerprints().items():
                found.calibration = before[name]
            raise
        return self

    def verify(
        self,
        suspect: Any,
        budget: int | None = None,
        allow_reference: bool = False,
        outputs: AnswerKind = "auto",
        max_seconds: float | None = None,
        repeats: int = 0,
    ) -> CommitteeVerdict:
        """Let every member score a suspect, and combine.

        :param suspect: As in :meth:`Verifier.verify`.
        :param budget: Most samples that all members together may send; they are asked in their order.
        :param allow_reference: As in :meth:`Verifier.verify`.
        :param outputs: As in :meth:`Verifier.verify`.
        :param max_seconds: As in :meth:`Verifier.verify`, for all members together.
        :param repeats: As in :meth:`Verifier.verify`, for each member.
        :raises NotExtractedError: a member has no fingerprint.
        :raises CalibrationError: no member is calibrated, the references are too few for any verdict, or the suspect is
            one of them.
        :raises IncompatibleSuspectError: no member can score the suspect.
        """
        check_flag("allow_reference", allow_reference)
        if budget is not None:
            check_number("budget", budget, 1, integer=True)
        if max_seconds is not None:
            check_number("max_seconds", max_seconds, 0, open_low=True)
        check_number("repeats", repeats, 0, integer=True)
        check_suspect(self, suspect)
        self._check_reach()
        if not allow_reference:
            for name, fingerprint in self._fingerprints().items():
                check_unknown(suspect, fingerprint, f" of {name}")
        verdicts: dict[str, Verdict] = {}
        left_out: dict[str, str] = {}
        queries = 0
        end = None if max_seconds is None else time.monotonic() + max_seconds
        for name, member in self.members.items():
            left = None if budget is None else budget - queries
            if left == 0:
                left_out[name] = f"the budget of {budget} queries was spent before it"
                continue
            seconds = None if end is None else end - time.monotonic()
            if seconds is not None and seconds <= 0:
                left_out[name] = f"the {max_seconds:g} s were over before it"
                continue
            try:
                verdict = member.verify(suspect, self.vote, left, allow_reference, outputs, seconds, repeats)
            except IncompatibleSuspectError as error:
                left_out[name] = str(error)
                queries += error.queries
                continue
            queries += verdict.queries
            verdicts[name] = verdict
            if member_p_value(verdict, self.vote) is None:
                left_out[name] = verdict.reason or "not calibrated with reference models"
        if not verdicts:
            raise IncompatibleSuspectError(
                "No member can score this suspect: " + "; ".join(f"{name}: {why}" for name, why in left_out.items())
            )
        return self._conclude(verdicts, left_out, queries)

    # ------------------------------------------------------------------ files
    @property
    def fingerprint(self) -> Fingerprint:
        """All members' fingerprints and calibrations as one, a snapshot.

        :raises NotExtractedError: a member has no fingerprint.
        """
        prints = self._fingerprints()
        first = next(iter(prints.values()))
        return Fingerprint(
            verifier=type(self).__name__,
            params={name: getattr(self, name) for name in self.verifier_params},
            facts={
                **{name: first.facts[name] for name in ("input_shape", "nb_classes", "clip_values", "victim")},
                "members": [
                    {
                        "verifier": found.verifier,
                        "params": found.params,
                        "facts": found.facts,
                        "calibration": None if found.calibration is None else found.calibration.to_dict(),
                        "digest": found.digest,
                    }
                    for found in prints.values()
                ],
            },
            arrays={
                f"{index}/{name}": array
                for index, found in enumerate(prints.values())
                for name, array in found.arrays.items()
            },
        )

    @classmethod
    def from_fingerprint(cls, fingerprint: Fingerprint) -> CommitteeVerifier:
        """Return a committee that scores suspects with existing fingerprints; no victim is needed.

        :raises FingerprintFileError: the fingerprint is that of a single verifier, or of members that are not known.
        """
        if fingerprint.verifier != cls.__name__:
            raise FingerprintFileError(f"This fingerprint is for {fingerprint.verifier}, not for {cls.__name__}.")
        if fingerprint.calibration is not None:
            raise FingerprintFileError("A committee has no thresholds of its own: calibrate its members.")
        check_facts(fingerprint, cls.verifier_params)
        import art_fingerprint.verifiers as verifiers  # which imports this module

        members = []
        try:
            for index, kept in enumerate(fingerprint.facts["members"]):
                start = f"{index}/"
                calibration = kept["calibration"]
                own = Fingerprint(
                    kept["verifier"],
                    kept["params"],
                    kept["facts"],
                    {k.removeprefix(start): a for k, a in fingerprint.arrays.items() if k.startswith(start)},
                    None if calibration is None else Calibration.from_dict(calibration),
                )
                kind = getattr(verifiers, own.verifier, None) if own.verifier in verifiers.__all__ else None
                if not (isinstance(kind, type) and issubclass(kind, Verifier)) or own.digest != kept["digest"]:
                    raise FingerprintFileError(f"Member {index}, {own.verifier!r}, is not known or was changed.")
                members.append(kind.from_fingerprint(own))
            return cls(members, **fingerprint.params)
        except FingerprintFileError:
            raise
        except (FingerprintError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FingerprintFileError(f"The committee's fingerprint is damaged: {error}") from error

    def __repr__(self) -> str:
        inner = "".join(f", {name}={getattr(self, name)!r}" for name in self.verifier_params)
        return f"CommitteeVerifier([{', '.join(self.members)}]{inner})"

    # ------------------------------------------------------------------ inside
    def _fingerprints(self) -> dict[str, Fingerprint]:
        prints = {}
        for name, member in self.members.items():
            if member.fingerprint is None:
                raise NotExtractedError(f"{name} has no fingerprint yet: call its extract() first.")
            prints[name] = member.fingerprint
        if len({found.facts["victim"] for found in prints.values()}) > 1:
            raise InvalidInputError("The members' fingerprints are of different victims.")
        return prints

    def _check_reach(self) -> None:
        """Raise if no suspect whatever could be called derived."""
        sizes = []
        for name, found in self._fingerprints().items():
            known = found.calibration
            k = 0 if known is None else sum(self.members[name].wants(metric) for metric in known.references)
            if known is not None and known.nb_references and k:
                sizes.append((known.nb_references, k))
        if not sizes:
            raise CalibrationError("No member is calibrated with reference models, so none has a p-value.")
        trouble = self._out_of_reach(sizes)
        if trouble:
            raise CalibrationError(trouble)

    def _out_of_reach(self, sizes: Sequence[tuple[int, int]]) -> str:
        """Return why members of these numbers of references and metrics can never convict, or empty."""

        def least(more: int | None = None) -> float:
            floors = [floor_p_value(r if more is None else more, k, self.vote) for r, k in sizes]
            floor = combine_p_values(floors, self.method)
            if self.null == "references":
                floor = 1 / ((min(r for r, _ in sizes) if more is None else more) + 1)
            return floor

        if least() <= self.false_positive_rate * (1 + 1e-9):
            return ""
        needed = 1
        while least(needed) > self.false_positive_rate * (1 + 1e-9) and needed < _MOST_REFERENCES:
            needed += 1
        return (
            f"With these references the combined p-value ({self.method}, {self.null}) is never below {least():.3g}, so "
            f"no suspect could be called derived at a rate of {self.false_positive_rate:g}: calibrate every member "
            f"with {needed} references or more, raise `false_positive_rate`, or take another `method`."
        )

    def _conclude(self, verdicts: dict[str, Verdict], left_out: dict[str, str], queries: int) -> CommitteeVerdict:
        values = {name: member_p_value(verdict, self.vote) for name, verdict in verdicts.items()}
        p_values = {name: value for name, value in values.items() if value is not None}
        sizes = [
            (verdicts[name].nb_references, sum(r.p_value is not None for r in verdicts[name].metrics.values()))
            for name in p_values
        ]
        combined = joint = rate = worst = derived = None
        reason = ""
        if not p_values:
            reason = f"every member is undecided: {in_groups(left_out)}"
        else:
            combined = combine_p_values(list(p_values.values()), self.method)
            joint = self._joint({name: verdicts[name] for name in p_values})
            worst = worst_case_rate(sizes, self.method, self.vote, self.false_positive_rate)
            rate = worst if self.method == "holm" else self.false_positive_rate
            p_value: float | None = combined
            if self.null == "references":
                p_value, n = joint, sizes[0][0] + 1
                rate = worst = math.floor(self.false_positive_rate * n + 1e-9) / n
                if joint is None:
                    reason = 'null="references" needs members that were calibrated with the same PyTorch references'
            reason = reason or self._out_of_reach(sizes)
            if not reason and p_value is not None:
                derived = p_value <= self.false_positive_rate * (1 + 1e-9)
        return CommitteeVerdict(
            derived=derived,
            p_value=combined if self.null == "formula" else joint,
            joint_p_value=joint,
            method=self.method,
            null=self.null,
            level=self.false_positive_rate,
            false_positive_rate=None if derived is None else rate,
            worst_case_rate=None if derived is None else worst,
            members=verdicts,
            p_values=p_values,
            adjusted=dict(zip(p_values, holm_adjusted(list(p_values.values())), strict=True))
            if p_values and self.method == "holm"
            else {},
            left_out=left_out,
            queries=queries,
            nb_references=min((r for r, _ in sizes), default=0),
            reason=reason,
        )

    def _joint(self, verdicts: Mapping[str, Verdict]) -> float | None:
        """Return the suspect's rank among the references by combined p-value, over their number + 1.

        Every model's p-values are its ranks among the references and the suspect, so that all of them are treated
        alike: a suspect that is one more such model has any rank with the same chance, whatever members have in common.
        ``None`` if the members have different references, or such as cannot be told apart.
        """
        orders = {name: self._fingerprints()[name].calibration.order for name in verdicts}  # type: ignore[union-attr]
        known = sorted(next(iter(orders.values())))
        n = len(known)
        if n != len({*known} - {""}) or any(sorted(order) != known for order in orders.values()):
            return None
        if any(verdict.nb_references != n for verdict in verdicts.values()):
            return None
        places = {name: [order.index(digest) for digest in known] for name, order in orders.items()}
        combined = []
        for index in range(n + 1):  # the last one is the suspect
            values = []
            for member, verdict in verdicts.items():
                ranks = []
                for name, result in verdict.metrics.items():
                    if result.p_value is None:
                        continue
                    scores = [*(verdict.references[name][place] for place in places[member]), result.value]
                    own = scores.pop(index)
                    ranks.append(empirical_p_value(own, scores, result.direction))
                values.append(votes_p_value(ranks, votes_needed(len(ranks), self.vote)))
            combined.append(combine_p_values(values, self.method))
        return float(sum(value <= combined[-1] * (1 + 1e-12) for value in combined) / (n + 1))
