"""ZEST: masked images against one Python loop per mask and segment; scoring against bare forward passes.

(a) Drawing masks and making all masked images, against the loop of the published codes, which copies the image for each
mask and blanks one segment after the other. The loop makes every repeated mask again; the ratio for equal numbers of
images is printed too.
(b) Scoring one suspect, against its forward passes on the same masked images, already made.

Times are processor times, the least of several runs, so that other work on the machine counts little. Run as
``python benchmarks/bench_zest.py``; ``--images 16`` for a quick look. Photos are scikit-learn's two sample images.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from digits_cnn import digits, trained_classifier
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.verifiers.zest import ZestVerifier
from art_fingerprint.verifiers.zest_probes import ProbePlan, draw_masks

CPU = torch.device("cpu")


def loop(images: np.ndarray, segments: np.ndarray, fill: np.ndarray, nb_masks: int, seed: int) -> int:
    """Straightforward masking: one copy per mask, one assignment per blanked segment. Returns the number of images."""
    rng = np.random.default_rng(seed)
    made = 0
    for image, regions in zip(images, segments, strict=True):
        nb_segments = int(regions.max()) + 1
        masks = rng.integers(0, 2, (nb_masks, nb_segments))
        masks[0] = 1
        batch = []
        for mask in masks:
            masked = image.copy()
            for label in np.where(mask == 0)[0]:
                masked[:, regions == label] = fill[:, 0]
            batch.append(masked)
        made += len(np.stack(batch))
    return made


def batched(arrays: dict[str, np.ndarray], nb_masks: int, seed: int) -> int:
    """The same through this package: draw, drop repetitions, then one gather and one select for each batch."""
    counts = torch.from_numpy(arrays["segments"].reshape(len(arrays["segments"]), -1).max(1).astype(np.int64)) + 1
    packed = np.packbits(draw_masks(counts, nb_masks, torch_generator(seed, "bench")).numpy(), axis=-1)
    plan = ProbePlan.build({**arrays, "masks": packed}, 10)
    return sum(len(batch) for batch in plan.batches(128, CPU))


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def forward(network: nn.Module, batches: list[Tensor]) -> None:
    """Run a network on batches that are there already."""
    with torch.no_grad():
        for batch in batches:
            network(batch)


def photos(n: int, size: int = 32) -> np.ndarray:
    """Return random square crops of two photos, ``(n, 3, size, size)`` float32 in [0, 1]."""
    rng = np.random.default_rng(0)
    sources = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in load_sample_images().images]
    crops = []
    for _ in range(n):
        side = int(rng.integers(2 * size, 400))
        top, left = int(rng.integers(427 - side)), int(rng.integers(640 - side))
        crop = sources[int(rng.integers(2))][..., top : top + side, left : left + side]
        crops.append(nn.functional.interpolate(crop, (size, size), mode="bilinear", antialias=True))
    return torch.cat(crops).clamp(0, 1).numpy()


def small_vgg() -> PyTorchClassifier:
    """Return an untrained VGG with six convolutions for 32 x 32 photos, ten classes."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10)).eval()
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0, 1), device_type="cpu")


def compare(title: str, classifier: PyTorchClassifier, x: np.ndarray, repeats: int, **options: Any) -> None:
    """Print both ratios for one setting."""
    verifier = ZestVerifier(classifier, nb_images=len(x), **options)
    extraction = seconds(lambda: verifier.extract(x))
    fingerprint = verifier.fingerprint
    assert fingerprint is not None
    arrays, nb_masks = fingerprint.arrays, verifier.nb_masks
    segments, probes = fingerprint.facts["segments"], fingerprint.facts["nb_probes"]
    print(
        f"{title}: {len(x)} images, {nb_masks} masks, {segments['min']} to {segments['max']} segments, "
        f"{probes} of {len(x) * nb_masks} masked images are distinct; extraction {extraction:.2f} s"
    )

    pairs = [
        (
            seconds(lambda: loop(arrays["images"], arrays["segments"], arrays["fill"], nb_masks, 0)),
            seconds(lambda: batched(arrays, nb_masks, 0)),
        )
        for _ in range(min(3, repeats))
    ]
    slow, fast = (min(column) for column in zip(*pairs, strict=True))
    equal = slow / fast * probes / (len(x) * nb_masks)
    print(f"  (a) loop {slow:.2f} s, batched {fast:.3f} s: {slow / fast:.1f} x ({equal:.1f} x per masked image)")

    plan = ProbePlan.build(arrays, 10)
    batches = list(plan.batches(verifier.batch_size, CPU))
    verifier.score(classifier)
    pairs = [
        (seconds(lambda: verifier.score(classifier)), seconds(lambda: forward(classifier.model, batches)))
        for _ in range(repeats)
    ]
    scoring, bare = (min(column) for column in zip(*pairs, strict=True))
    print(f"  (b) scoring {scoring:.2f} s, bare forward passes {bare:.2f} s: {scoring / bare:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="reference images of the digits settings")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", UserWarning)
    x, few = digits()[0][: arguments.images], max(1, arguments.images // 32)
    classifier = trained_classifier()
    # one call of this network takes 1.5 ms at 128 samples: larger batches keep the fixed cost of a call small
    compare("digits, quickshift", classifier, x, 3 * arguments.repeats, batch_size=512)
    compare("digits, grid 8 x 8", classifier, x[: 8 * few], 3 * arguments.repeats, segmenter="grid", batch_size=512)
    compare("photos 32 x 32, quickshift", small_vgg(), photos(few), arguments.repeats)


if __name__ == "__main__":
    main()
