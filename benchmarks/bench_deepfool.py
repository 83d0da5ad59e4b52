"""DeepFool: one batch with per-sample stopping against torchattacks' loop over images and classes.

Fashion-MNIST test images (the package's loader; upscaled digits where its files are not installed) on a small VGG that
is trained for a moment. torchattacks runs as its users run it, and once more with frozen parameters, which spares it
the gradients of the weights. All three take the same steps; the last lines compare what they return. Where two classes
score alike to 1e-4, rounding decides, and the comparison of classes leaves the sample out and says how many there are.

Run as ``python benchmarks/bench_deepfool.py``; ``--images 20`` for a quick look.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchattacks
from digits_cnn import digits
from torch import Tensor, nn

from art_fingerprint.core.deepfool import deepfool
from art_fingerprint.exceptions import FingerprintError
from art_fingerprint.zoo.architectures import SmallVGG
from art_fingerprint.zoo.datasets import load_dataset


def images() -> tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a name, training images and labels, test images and labels."""
    try:
        data = load_dataset("fashion-mnist")
        return "Fashion-MNIST", data.x_train[:6400], data.y_train[:6400], data.x_test, data.y_test
    except FingerprintError:
        x, y = digits()
        large = F.interpolate(torch.from_numpy(x), size=28, mode="bilinear").numpy()
        return "digits, 28 x 28", large[:1200], y[:1200], large[1200:], y[1200:]


def trained(x: np.ndarray, y: np.ndarray) -> nn.Module:
    torch.manual_seed(0)
    network = SmallVGG()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(4):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return network.eval()


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return a result and the processor time it took."""
    begin = time.process_time()
    found = call()
    return found, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name, x_train, y_train, x_test, y_test = images()
    network = trained(x_train, y_train)
    x, y = torch.from_numpy(x_test[: arguments.images]), torch.from_numpy(y_test[: arguments.images])
    print(f"{name}, {len(x)} images, {arguments.steps} steps, {arguments.threads} thread(s)")

    theirs, plain = timed(lambda: torchattacks.DeepFool(network, steps=arguments.steps)(x, y))
    network.requires_grad_(False)
    _, frozen = timed(lambda: torchattacks.DeepFool(network, steps=arguments.steps)(x, y))
    deepfool(network, x[:8], y[:8], max_iter=2)
    ours, batched = timed(lambda: deepfool(network, x, y, max_iter=arguments.steps))
    print(f"  batched                  {batched:7.2f} s CPU")
    print(f"  torchattacks             {plain:7.2f} s CPU   {plain / batched:5.1f} x")
    print(f"  the same, frozen weights {frozen:7.2f} s CPU   {frozen / batched:5.1f} x")

    top = network(theirs).topk(2).values
    sure = top[:, 0] - top[:, 1] > 1e-4
    same = (network(ours).argmax(1) == network(theirs).argmax(1))[sure].float().mean()
    norms = [float((found - x).flatten(1).norm(dim=1).median()) for found in (ours, theirs)]
    print(f"  largest difference of a pixel {float((ours - theirs).abs().max()):.1e}")
    print(f"  classes agree on {100 * float(same):.1f} % of the {int(sure.sum())} images that are off the boundary")
    print(f"  median L2 norm {norms[0]:.4f} and {norms[1]:.4f}")


if __name__ == "__main__":
    main()
