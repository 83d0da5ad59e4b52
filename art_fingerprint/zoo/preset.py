"""What a preset is: everything an experiment needs, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from art_fingerprint.zoo.recipes import Recipe

Source = Literal["train", "subset", "apart"]
#: Kinds of independent models that are judged, and the labels of their rows.
NEGATIVES: Mapping[str, str] = {
    "same-data": "Negative",
    "other-data": "Negative (other data)",
    "other-architecture": "Negative (other architecture)",
}
#: Labels of the rows of models that verifiers are given: to calibrate, and to choose queries by.
VICTIM, REFERENCE, OTHER_DATA_REFERENCE, KNOWN = "Victim", "Reference", "Reference (other data)", "Known"
Scale = Literal["full", "smoke"]


@dataclass(frozen=True)
class AttackSetting:
    """One suspect row of a table: which attack, with which parameters, on which data.

    :ivar attack: Class name in ``art_fingerprint.attacks``.
    :ivar params: Constructor arguments other than the seed.
    :ivar source: The attacker's data: the victim's whole training set, a subset of it, or data held apart.
    :ivar true_labels: Whether the attacker has true labels.
    :ivar ratio: Share of the source that the attacker holds; ``None``: of a subset the preset's ``subset_ratio``, else
        all there is.
    :ivar step: A checkpoint: the surrogate as it is after so many steps. ``None``: at the end. Checkpoints of settings
        that differ in nothing else come from one run.
    """

    attack: str
    params: Mapping[str, Any]
    source: Source
    true_labels: bool
    ratio: float | None = None
    step: int | None = None


@dataclass(frozen=True)
class Preset:
    """A data set, a victim, its independent models, the attacks and the verifiers.

    :ivar name: Name of the preset.
    :ivar dataset: Name of the data set.
    :ivar architecture: Makes the network that the victim starts from: with random weights, ImageNet's with published
        ones.
    :ivar victim_recipe: Training of victim and references.
    :ivar negative_recipe: Training of negatives.
    :ivar subset_ratio: Share of the training set in the limited-data scenario.
    :ivar attacks: Row label to attack.
    :ivar verifiers: Class name in ``art_fingerprint.verifiers`` to constructor arguments.
    :ivar nb_references: Reference models behind the thresholds.
    :ivar victim_seed: Seed of the victim; references and negatives have seeds derived from other names.
    :ivar threads: CPU threads of torch; one is fastest for tiny networks and gives the same numbers on any machine
        size.
    :ivar reason: Why settings differ from the paper's.
    :ivar robustness: torchattacks class name to parameters, for the robust accuracy of every model; empty for none.
    :ivar nb_robustness: Test images that are attacked, the first ones.
    :ivar nb_negatives: Independent models that are judged; ``None``: one for each seed. AUC and rates want twenty.
    :ivar negatives: In place of ``nb_negatives``, how many of each kind: ``"same-data"`` are trained on the victim's
        training images; ``"other-data"`` on images of the same set that the victim never saw; ``"other-architecture"``
        on the victim's images, from ``other_architecture``. A kind that is not named has none. See :attr:`halved`.
    :ivar other_architecture: ``package.module:function`` or ``timm:NAME``, the network of ``"other-architecture"``.
    :ivar nb_other_data_references: References of other data. They calibrate the verifiers that ask whether the victim's
        training images were used, since references of the same data used them, too; see :attr:`halved`.
    :ivar nb_known: Further independent models of the same data, by whose answers AKH, SAC and FBI choose their queries
        (``negatives`` of their ``extract``). They calibrate nothing.
    :ivar held_out_noise: ``{"copies": 5, "std": 0.2}``: AKH, SAC and FBI look for the victim's errors among the test
        images and, for each, so many copies with Gaussian noise of this standard deviation, clipped to [0, 1]. For a
        victim that errs on too few test images. Empty: the test images.
    :ivar calibration: Arguments of ``Verifier.calibrate``, ``{"rule": "fpr", "false_positive_rate": 0.05}`` say.
    :ivar dataset_options: Keyword arguments of :func:`.load_dataset`.
    :ivar independent_architecture: ``package.module:function`` that makes the network from which negatives and
        references start; ``None``: as the victim. Set where the victim starts from published weights: models with one
        start are not independent.
    :ivar scale: ``"smoke"`` in what :func:`.at_scale` makes: its numbers are no results, and rows and tables say so.
    """

    name: str
    dataset: str
    architecture: Callable[[], nn.Module]
    victim_recipe: Recipe
    negative_recipe: Recipe
    subset_ratio: float
    attacks: Mapping[str, AttackSetting]
    verifiers: Mapping[str, Mapping[str, Any]]
    nb_references: int
    victim_seed: int = 1000
    threads: int | None = None
    reason: str = ""
    robustness: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"FGSM": {}, "PGD": {}, "DeepFool": {}}  # Table IV's, see core.adversarial.DEFAULTS
    )
    nb_robustness: int = 200
    nb_negatives: int | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    independent_architecture: str | None = None
    negatives: Mapping[str, int] | None = None
    other_architecture: str | None = None
    nb_other_data_references: int = 0
    nb_known: int = 0
    held_out_noise: Mapping[str, Any] = field(default_factory=dict)
    scale: Scale = "full"

    @property
    def halved(self) -> bool:
        """Whether the training images are halved: one half is the victim's, and that of everything but the models of
        other data, which are trained on the other half.
        """
        return bool((self.negatives or {}).get("other-data") or self.nb_other_data_references)
