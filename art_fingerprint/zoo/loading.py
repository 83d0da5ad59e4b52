"""Models and data from files and names, for those who do not write Python: the command line's way in."""

from __future__ import annotations

import importlib
import io
import json
import math
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import art_fingerprint.attacks as attacks
import art_fingerprint.verifiers as verifiers
from art_fingerprint.core.checks import shown
from art_fingerprint.core.classifier import check_output, network_of
from art_fingerprint.core.files import regular_file, write_whole
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.seeding import forked_random_state
from art_fingerprint.core.taps import near_names
from art_fingerprint.exceptions import InvalidInputError

# Photographs shrink by a few times in an archive, drawings by ten or twenty; what goes beyond is made to fill memory.
_MOST_UNPACKED = 100
_FREE_BYTES = 100_000_000


def attack_class(name: str) -> type[attacks.RemovalAttack]:
    """Return the attack class that a name stands for.

    :param name: A class of ``art_fingerprint.attacks``, with or without ``Attack`` at its end, or
        ``package.module:Class`` for one of your own, looked for in the current folder, too.
    :raises InvalidInputError: there is none; the message lists near names.
    """
    known = [key for key in attacks.__all__ if key.endswith("Attack") and key != "RemovalAttack"]
    return _named("attack", attacks, known, "Attack", attacks.RemovalAttack, name)


def verifier_class(name: str, own: bool = True, committee: bool = False) -> type[verifiers.Verifier]:
    """Return the verifier class that a name stands for; as :func:`attack_class`.

    :param own: Whether ``package.module:Class`` is taken, which imports that module. Not for names from a file that
        somebody else may have made.
    :param committee: Whether a committee will do, which judges suspects, but has no fingerprint of its own to extract.
    """
    if not own and ":" in name:
        raise InvalidInputError(f"A file names the verifier {name!r}: say yourself which class is meant.")
    known = [key for key in verifiers.__all__ if key.endswith("Verifier") and key != "Verifier"]
    found = _named("verifier", verifiers, known, "Verifier", verifiers.Verifier, name)
    if found is verifiers.CommitteeVerifier and not committee:
        raise InvalidInputError("A committee has no fingerprint of its own to extract: name its members, one by one.")
    return found


def _named(what: str, package: Any, known: Sequence[str], ending: str, base: type, name: object) -> Any:
    if not isinstance(name, str):
        raise InvalidInputError(f"`{what}` must be the name of a class, got {shown(name)}.")
    if ":" in name:
        found = load_object(name, what)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise InvalidInputError(f"The {what} {name!r} is no subclass of {base.__name__}.")
        return found
    for candidate in (name, name + ending):
        if candidate in known:
            return getattr(package, candidate)
    near = near_names(known, name)
    hint = f" Near names: {', '.join(near)}." if near else f" There are {', '.join(known)}."
    raise InvalidInputError(f"There is no {what} {name!r}.{hint}")


def check_parameters(kind: type[attacks.RemovalAttack] | type[verifiers.Verifier], parameters: Iterable[str]) -> None:
    """Raise unless an attack or a verifier has parameters of these names; near names are listed."""
    known = kind.verifier_params if issubclass(kind, verifiers.Verifier) else kind.attack_params
    unknown = [name for name in parameters if name not in known]
    if unknown:
        near = near_names(known, unknown[0])
        hint = f" Near names: {', '.join(near)}." if near else ""
        raise InvalidInputError(f"{kind.__name__} has no parameter {', '.join(map(repr, unknown))}.{hint}")


def load_object(name: str, what: str = "object") -> Any:
    """Return what ``package.module:name`` stands for; modules of the current folder are found, too.

    :raises InvalidInputError: there is no such thing, or its module fails.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InvalidInputError(f"The {what} is named package.module:name, got {shown(name)}.")
    try:
        with forked_random_state(), _current_folder():
            return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the user's own code raises
        raise InvalidInputError(f"The {what} {name!r} cannot be found: {type(error).__name__}: {error}") from error


def load_network(
    factory: str, nb_classes: int | None = None, channels: int | None = None, seed: int | None = None
) -> nn.Module:
    """Return the network that a name stands for, with whatever weights its maker gives it.

    :param factory: ``package.module:function``, a function without arguments that returns the network, looked for in
        the current folder, too; or ``timm:NAME``.
    :param nb_classes: Only for timm: number of classes.
    :param channels: Only for timm: image channels.
    :param seed: Seed of the global random state while it is made; ``None``: as it is, which the caller may have seeded.
    :raises InvalidInputError: there is no such thing, it fails, or it returns something else.
    """
    if not isinstance(factory, str):
        raise InvalidInputError(f"A model is named package.module:function or timm:NAME, got {shown(factory)}.")
    module_name, colon, name = factory.partition(":")
    if not (module_name and colon and name):
        raise InvalidInputError(f"A model is named package.module:function or timm:NAME, got {shown(factory)}.")
    try:
        with forked_random_state(seed, "load_network"), _current_folder():
            if module_name == "timm":
                import timm

                options = {"num_classes": nb_classes, "in_chans": channels}
                made = timm.create_model(name, **{key: value for key, value in options.items() if value is not None})
            else:
                made = getattr(importlib.import_module(module_name), name)()
    except Exception as error:  # whatever the user's own code raises
        raise InvalidInputError(f"The model {factory!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise InvalidInputError(f"The model {factory!r} is a {type(made).__name__}; an nn.Module is needed.")
    return made


@contextmanager
def _current_folder() -> Iterator[None]:
    """Let imports find what lies in the current folder, as `python -m` does."""
    before = list(sys.path)
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path[:] = before


def load_weights(network: nn.Module, path: Path) -> None:
    """Put weights from a safetensors file, or a state dict saved by torch, into a network. No code in them is run.

    :raises InvalidInputError: the file cannot be read, or its names or shapes are not the network's.
    """
    path = regular_file(path, "weights file")
    try:
        if _is_safetensors(path):
            state = load_file(path)
        else:
            # the unpickler would make room for as much as a damaged file promises, but for the content of an old one
            source = path if zipfile.is_zipfile(path) else io.BytesIO(path.read_bytes())
            state = torch.load(source, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, ImportError, KeyError) as error:
        raise InvalidInputError(f"The weights in {path} cannot be read: {error}") from error
    except Exception as error:  # torch's unpickler raises an error of pickle's, with advice to trust the file
        raise InvalidInputError(f"{path} holds something else than plain tensors; it is not loaded.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InvalidInputError(f"{path} is no state dict, tensors by name.")
    own = network.state_dict()
    wrong = {
        "missing": [name for name in own if name not in state],
        "unknown to the model": [name for name in state if name not in own],
        "of another shape": [name for name in own if name in state and own[name].shape != state[name].shape],
    }
    if any(wrong.values()):
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
            for what, names in wrong.items()
            if names
        ]
        raise InvalidInputError(f"The weights in {path} do not fit the model: {'; '.join(parts)}.")
    network.load_state_dict(state)


def _is_safetensors(path: Path) -> bool:
    """Tell by a file's beginning, the length of a JSON object and its brace; a damaged one by its name."""
    with open(path, "rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (start[8:] == b"{" and start[4:8] == bytes(4))


def save_weights(classifier: PyTorchClassifier, path: Path, notes: dict[str, Any]) -> None:
    """Write a classifier's weights as safetensors, with notes as JSON in the header."""
    state = {
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in network_of(classifier).state_dict().items()
    }
    write_whole(path, save(state, metadata={"art_fingerprint": json.dumps(notes, default=str)}))


def load_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return images ``x`` and, where there are any, labels ``y`` from a NumPy ``.npz`` file.

    :raises InvalidInputError: the file cannot be read or has no ``x``.
    """
    path = regular_file(path, "data file")
    try:
        with zipfile.ZipFile(path) as archive:
            found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if "x" not in found:
                raise InvalidInputError(
                    f"{path} has no array 'x'; it has {', '.join(found) or 'none'}. Save images and labels with "
                    "numpy.savez(path, x=images, y=labels)."
                )
            wanted = [found[name] for name in ("x", "y") if name in found]
            size = sum(info.file_size for info in wanted)
            if size > _MOST_UNPACKED * path.stat().st_size + _FREE_BYTES:
                raise ValueError(f"it would unpack to {size:,} bytes, more than {_MOST_UNPACKED} times its size")
            arrays = [_array_in(archive, info) for info in wanted]
            return arrays[0], arrays[1] if len(arrays) > 1 else None
    except InvalidInputError:
        raise
    except Exception as error:  # whatever a damaged archive makes zipfile, zlib and NumPy raise
        raise InvalidInputError(f"{path} is no .npz file of plain arrays: {error}") from error


def _array_in(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return one array of an archive, which must hold as much as its header promises."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in header:
            raise ValueError(f"{info.filename} has the format {version} of structured arrays")
        shape, _, dtype = header[version](file)
        if math.prod(shape) * dtype.itemsize > info.file_size:
            raise ValueError(f"{info.filename} is shorter than its header says: shape {shape} of {dtype}")
    with archive.open(info) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def classifier_of(
    network: nn.Module,
    input_shape: Sequence[int],
    clip_values: tuple[float, float] = (0.0, 1.0),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device_type: str = "gpu",
) -> PyTorchClassifier:
    """Return an ART classifier around a network in evaluation mode; the number of classes is that of its output.

    :param network: The network.
    :param input_shape: Shape of one image, ``(C, H, W)``.
    :param clip_values: Range of the images.
    :param mean: Standardisation in front of the network, one value or one for each channel; ``None``: 0.
    :param std: As ``mean``; ``None``: 1.
    :param device_type: ``"gpu"`` means CUDA where there is one.
    :raises InvalidInputError: the network does not run on such images or returns no class scores.
    """
    network.eval()
    try:
        with evaluating(network), torch.no_grad(), forked_random_state():
            nb_classes = check_output(network(torch.full((2, *input_shape), float(sum(clip_values)) / 2))).shape[1]
    except InvalidInputError:
        raise
    except Exception as error:  # whatever the user's own code raises
        shape, kind = tuple(input_shape), type(error).__name__
        raise InvalidInputError(f"The model fails on two images of shape {shape}: {kind}: {error}") from error
    parts = []
    for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
        given = [default] if values is None else list(values)
        if len(given) not in (1, input_shape[0]):
            raise InvalidInputError(f"`{name}` has {len(given)} values for {input_shape[0]} channels.")
        parts.append(np.asarray(given, dtype=np.float32).reshape(-1, 1, 1))
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        tuple(input_shape),
        nb_classes,
        clip_values=clip_values,
        preprocessing=None if mean is None and std is None else (parts[0], parts[1]),
        device_type=device_type,
    )
