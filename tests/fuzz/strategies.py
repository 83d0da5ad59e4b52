"""What hostile input looks like: values of any kind, arrays of any kind, names, damaged bytes."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

Strategy = st.SearchStrategy[Any]


class Sulky:
    """An object that cannot be compared, counted, called true or false, or copied."""

    def _refuse(self, *_: object) -> Any:
        raise TypeError("this object does nothing")

    __eq__ = __bool__ = __len__ = __iter__ = __float__ = __int__ = __index__ = __deepcopy__ = _refuse
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Sulky()"


NUMBERS: list[Any] = [
    *(0, 1, 2, 3, -1, -(2**31), 2**31, 2**63 - 1, 2**63, 2**64, 10**400, 10**5000),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 5e-324, 1e-12, 1e300, math.nan, math.inf, -math.inf),
]
SCALARS: list[Any] = [
    *(np.int8(-1), np.int64(2), np.uint64(2**64 - 1), np.float16(0.5), np.float32("nan"), np.float64("inf")),
    *(np.bool_(True), np.str_("auto"), np.bytes_(b"x"), np.datetime64("2020-01-01"), np.complex64(1 + 2j)),
    *(np.longdouble(0.5), np.array(1), np.array([1, 2]), np.array([]), np.array([None], object)),
]
TEXTS: list[Any] = [
    "",
    " ",
    "auto",
    "paper",
    "none",
    "1",
    "0.5",
    "nan",
    "..",
    "\0",
    "block1",
    "\ud800",
    "ü" * 300,
    b"x",
]
OBJECTS: list[Any] = [
    *(None, True, False, object(), Sulky(), int, print, lambda: None, NotImplemented, ..., 1j, range(3)),
    *([], [1], [1, 2.0], [None], ["block1"], (), (0.5, 0.5), ("a", {}), {}, {"a": 1}, {1: 2}, {1, 2}, [[1], [2]]),
    *(torch.tensor(1), torch.zeros(2), torch.tensor(math.nan), slice(1)),
]

numbers: Strategy = st.sampled_from(NUMBERS) | st.integers() | st.floats()
#: Any value for any parameter.
values: Strategy = st.one_of(
    # mapped, because hypothesis would print what it drew, which fails for a number of thousands of digits
    st.sampled_from([*NUMBERS, *SCALARS, *TEXTS, *OBJECTS]).map(lambda value: value),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.sampled_from([*NUMBERS, *TEXTS[:6], None, True]), max_size=4),
    st.dictionaries(st.text(max_size=5), st.sampled_from(NUMBERS), max_size=3),
)


def near(default: Any) -> Strategy:
    """Values of the default's own kind, which pass the first check and meet the next."""
    if isinstance(default, bool) or default is None:
        return st.sampled_from([True, False, None, 0, 1])
    if isinstance(default, int):
        return st.integers(-3, 300)
    if isinstance(default, float):
        return st.floats(-2, 2) | st.sampled_from([default, -default, 0.0])
    if isinstance(default, str):
        return st.sampled_from([default, default.upper(), default + " ", default[:-1]])
    if isinstance(default, tuple | list):
        return st.lists(st.sampled_from([*default, None, -1, 0.5, "x"]), max_size=4).map(type(default))
    return st.just(default)


# ---------------------------------------------------------------------- arrays
DTYPES = ["float32", "float64", "float16", "uint8", "int64", "bool", "complex64", "object", "U3", "S3", "M8[s]", "V4"]


def _odd(x: np.ndarray) -> list[Callable[[], Any]]:
    """Arrays made of good ones: the same numbers in another form, and others."""
    n = len(x)
    return [
        lambda: np.asfortranarray(x),
        lambda: x.astype(np.float64),
        lambda: x.astype(np.float16),
        lambda: x[::-1],
        lambda: np.repeat(x, 2, -1)[..., ::2],
        lambda: frozen(x),
        lambda: np.ma.masked_array(x, mask=x > 0.9),
        lambda: x.astype(x.dtype.newbyteorder(">")),
        lambda: x[:1],
        lambda: x[:2],
        lambda: x[:0],
        lambda: x[0],
        lambda: x[..., :0],
        lambda: x[..., :-1],
        lambda: x[..., None],
        lambda: x.reshape(n, -1),
        lambda: x.reshape(-1),
        lambda: x.tolist(),
        lambda: torch.from_numpy(x.copy()),
        lambda: x.astype(object),
        lambda: x.astype(complex),
        lambda: x.astype("M8[s]") if x.dtype.kind == "i" else (x * 255).astype(np.uint8),
        lambda: np.where(x == x.max(), np.nan, x),
        lambda: np.where(x == x.max(), np.inf, x),
        lambda: x * 1e30,
        lambda: x * 0,
        lambda: x * -1,
        lambda: x + 10,
        lambda: np.lib.stride_tricks.as_strided(x, (n, *x.shape[1:]), (0,) * x.ndim),
        lambda: np.void(b"1234"),
    ]


def _huge(x: np.ndarray) -> list[Callable[[], Any]]:
    """Views whose shapes promise terabytes."""
    return [
        lambda: np.broadcast_to(x[:1], (10**12, *x.shape[1:])),
        lambda: np.broadcast_to(x[:1, ..., :1], (1, *x.shape[1:-1], 10**12)) if x.ndim > 1 else x,
        lambda: np.broadcast_to(x.flat[0], (10**15,)),
        lambda: torch.zeros(1).expand(10**15),
    ]


def frozen(x: np.ndarray) -> np.ndarray:
    """A copy that cannot be written to."""
    found = x.copy()
    found.setflags(write=False)
    return found


@st.composite
def arrays(draw: st.DrawFn, good: np.ndarray, huge: bool = True) -> Any:
    """Anything where an array like ``good`` is expected.

    :param huge: Also views of terabytes; not where every element has to be looked at.
    """
    kind = draw(st.integers(0, 9))
    if kind < 6:
        return draw(st.sampled_from([*_odd(good), *(_huge(good) if huge else ())]))()
    if kind == 6:
        return draw(values)
    if kind == 7:
        return good
    shape = draw(npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
    if kind == 8:
        return np.zeros(shape, draw(st.sampled_from(DTYPES)))
    elements = st.sampled_from([0.0, 0.25, 1.0, 255.0, -1.0, math.nan, math.inf, -math.inf, 1e38, 1e-45])
    matching = (draw(st.integers(0, 6)), *good.shape[1:])
    return draw(npst.arrays(np.float32, st.sampled_from([shape, matching]), elements=elements))


# ---------------------------------------------------------------------- names and bytes
def names(known: Sequence[str]) -> Strategy:
    """Dotted names: known ones, damaged ones, and any text."""
    parts = st.sampled_from([*known, "", "..", ".", "block1", "0", "-1", "weight", "__class__", "forward", "ü", "\0"])
    return st.one_of(
        st.sampled_from(list(known)),
        st.text(max_size=30),
        st.lists(parts, max_size=5).map(".".join),
        st.sampled_from(list(known)).flatmap(lambda name: st.integers(0, len(name)).map(lambda cut: name[:cut])),
        st.sampled_from(["a" * 100_000, "." * 1000, "block1." * 500, "\ud800", "block1.0\n"]),
    )


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with flipped bits, a piece cut out, doubled, or replaced, or its end gone."""
    kind = draw(st.sampled_from(["flip", "cut", "remove", "repeat", "replace", "append", "junk"]))
    if kind == "junk":
        return draw(st.binary(max_size=200))
    # damage at the start is the most interesting: headers
    position = draw(st.one_of(st.integers(0, min(63, len(whole) - 1)), st.integers(0, len(whole) - 1)))
    length = draw(st.integers(1, 40))
    found = bytearray(whole)
    if kind == "flip":
        for offset in draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
            found[offset] ^= 1 << draw(st.integers(0, 7))
        found[position] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del found[position:]
    elif kind == "remove":
        del found[position : position + length]
    elif kind == "repeat":
        found[position:position] = found[position : position + length]
    elif kind == "append":
        found += draw(st.binary(min_size=1, max_size=40))
    else:
        found[position : position + length] = draw(st.binary(min_size=length, max_size=length))
    return bytes(found)


json_values: Strategy = st.recursive(
    st.none() | st.booleans() | st.sampled_from([*NUMBERS[:11], *NUMBERS[12:]]) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(node: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path of keys into nested dicts and lists."""
    if not isinstance(node, dict | list):
        return []
    keys = list(node) if isinstance(node, dict) else range(len(node))
    return [found for key in keys for found in ((*above, key), *_places(node[key], (*above, key)))]


@st.composite
def mutated(draw: st.DrawFn, tree: Any, replacement: Strategy = json_values) -> Any:
    """A copy of nested dicts and lists with one to three values replaced, removed, renamed or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(tree)
        if not places:
            return tree
        *above, key = draw(st.sampled_from(places))
        node = functools.reduce(lambda found, name: found[name], above, tree)
        kind = draw(st.sampled_from(["number", "other", "remove", "rename", "add", "wrap"]))
        if kind == "number":
            node[key] = draw(st.sampled_from([*NUMBERS[:11], *NUMBERS[12:]]))
        elif kind == "other":
            node[key] = draw(replacement)
        elif kind == "wrap":
            node[key] = draw(st.sampled_from([[node[key]], {"a": node[key]}, str(node[key])]))
        elif kind == "remove":
            del node[key]
        elif isinstance(node, dict):
            name = draw(st.text(max_size=8))
            node[name] = node.pop(key) if kind == "rename" else draw(replacement)
        else:
            node.insert(0, draw(replacement))
    return tree
