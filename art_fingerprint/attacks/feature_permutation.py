"""Feature permutation: reorder, and rescale, the channels inside the network; its function stays the same."""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import nn

from art_fingerprint.attacks.base import RemovalAttack, SubstituteSet, SurrogateCallback
from art_fingerprint.core.chains import ChannelChain, find_chains, permute_chain
from art_fingerprint.core.checks import check_number
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.precision import full_precision
from art_fingerprint.core.rescaling import can_rescale, log_uniform, rescale_chain
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import InvalidInputError

_TOLERANCE = 1e-4  # of the largest output; rounding alone moves it by some 1e-6


class FeaturePermutationAttack(RemovalAttack):
    """Permute the channels between a copy's layers; nothing is trained and every answer stays the same up to rounding.

    For consecutive maps W1, (normalisation,) W2 and a random permutation P: W1 becomes P W1, its bias and all vectors
    of the normalisation are permuted by P, W2 becomes W2 P^T on its input channels. A verifier that sees answers alone
    cannot tell the surrogate from the victim; one that compares neurons by position can be misled.

    Permuted is every layer whose output goes, through channelwise operations, into convolutions and Linear layers
    alone, see :func:`.find_chains`: VGG chains, the inside of bottlenecks, dense layers, Inception branches and
    transformer MLPs; not what a skip connection or a concatenation reads. Idea: the toolbox behind "SoK: How Robust is
    Image Classification Deep Neural Network Watermarking?", whose code for it does not run.

    With ``rescale``, each of these channels is also multiplied by a positive factor of its own, which the next map
    takes back, see :func:`.rescale_chain`: BatchNorm, ReLU, leaky ReLU, PReLU and pooling let factors through. Layers
    whose output passes anything else (GELU, sigmoid, LayerNorm, BatchNorm without factors or without statistics) are
    permuted alone, with a warning if that is all of them. Ours.

    Shape: ``generate(x)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, one sample or more; y is not used.

    Cost: one forward pass of one sample, and two of at most ``batch_size`` samples, which check the result. No victim
    queries.

    :param classifier: The victim.
    :param rescale: Factors of channels are log-uniform between 1 / rescale and rescale, [1, 10000]; 1 rescales nothing.
    :param batch_size: Most samples of the check.
    :param hflip: Without effect, as nothing is trained.
    :param callback: ``callback(step, surrogate, losses)``, at step 0 before the permutations and at step 1 after them.
    :param callback_interval: Without effect.
    :param seed: Seed of the permutations and factors.
    :param summary_writer: As in ART.
    :param verbose: Without effect.
    """

    reads_streams = True
    attack_params = [*RemovalAttack.attack_params, "rescale"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        rescale: float = 1.0,
        batch_size: int = 64,
        hflip: bool = False,
        callback: SurrogateCallback | None = None,
        callback_interval: int = 1,
        seed: int = 0,
        summary_writer: str | bool | SummaryWriter = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            batch_size=batch_size,
            hflip=hflip,
            callback=callback,
            callback_interval=callback_interval,
            seed=seed,
            summary_writer=summary_writer,
            verbose=verbose,
        )
        self.rescale = rescale
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("rescale", self.rescale, 1, 10_000)

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        """Any sample will do: nothing is trained."""

    def _expected_work(self, n: int) -> float:
        return 1.0 + 2 * min(n, self.batch_size)  # how channels run, and the check of the result

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        network = network_of(surrogate)
        example = data.example(self.batch_size).x
        chains = find_chains(network, example)
        if not chains:
            raise InvalidInputError(
                "No layer of this network can be permuted: none has an output that goes into convolutions and Linear "
                "layers alone, without a sum, a concatenation or an operation that is not channelwise in between."
            )
        scaled = self._rescalable(network, chains)
        watch = self._watch(surrogate)
        watch(0, {})
        with torch.no_grad(), evaluating(network), full_precision():
            before = network(example)
            for number, chain in enumerate(chains):
                generator = torch_generator(self.seed, type(self).__name__, number)
                permute_chain(network, chain, torch.randperm(chain.channels, generator=generator))
            for number, chain in enumerate(scaled):
                generator = torch_generator(self.seed, type(self).__name__, "factors", number)
                rescale_chain(network, chain, log_uniform(chain.channels, self.rescale, generator))
            gap = (network(example) - before).abs().max()
            scale = before.abs().max().clamp_min(1.0)
        if not bool(gap <= _TOLERANCE * scale):
            raise InvalidInputError(
                f"Permuting {'and rescaling ' if scaled else ''}channels moves this "
                f"network's outputs by up to {float(gap):.3g}: it computes on them "
                "outside of torch's functions (compiled or scripted code), where channels cannot be followed."
            )
        watch(1, {})
        layers = _names(chains)
        found = {"permuted_layers": len(layers), "layers": layers, "largest_output_gap": float(gap)}
        return {**found, "rescaled_layers": _names(scaled)} if self.rescale > 1 else found

    def _rescalable(self, network: nn.Module, chains: list[ChannelChain]) -> list[ChannelChain]:
        """Return the chains that factors are drawn for."""
        scaled = [chain for chain in chains if self.rescale > 1 and can_rescale(network, chain)]
        if self.rescale > 1 and not scaled:
            passed = sorted({operation for chain in chains for operation in chain.operations})
            warn_caller(
                f"`rescale`={self.rescale}, but no layer can be rescaled: between those that can be permuted, the "
                f"network computes {', '.join(passed)}; factors pass through ReLU, leaky ReLU, PReLU, pooling, and "
                "BatchNorm with factors and statistics. Channels are permuted alone."
            )
        return scaled


def _names(chains: list[ChannelChain]) -> list[str]:
    return [chain.source.removesuffix(".weight") for chain in chains]
