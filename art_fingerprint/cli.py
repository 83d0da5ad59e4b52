"""Command line: parses, calls the Python API, writes files. ``--help`` answers without importing torch."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from art_fingerprint._version import __version__
from art_fingerprint.cli_signals import terminated_as_interrupted
from art_fingerprint.exceptions import FingerprintError

OK, DERIVED, BAD_INPUT, SOME_FAILED, DEFECT, STOPPED, BROKEN_PIPE = 0, 1, 2, 3, 70, 130, 141
_RESUMED = ("bench", "experiment")  # what they finished is kept


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="art-fingerprint",
        description="Fingerprint verifiers and fingerprint removal attacks for image classifiers.",
    )
    parser.add_argument("--version", action="version", version=f"art-fingerprint {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    show = verbs.add_parser("list", help="list attacks, verifiers, presets or experiments")
    show.add_argument(
        "what", choices=("attacks", "verifiers", "presets", "experiments"), help="names and a line on each"
    )

    runs = _Parser(add_help=False)
    runs.add_argument("--out", required=True, type=_path, metavar="DIR", help="folder for rows, models and tables")
    runs.add_argument(
        "--scale",
        choices=("full", "smoke"),
        default="full",
        help="smoke: the whole pipeline with a handful of iterations on few images, to see that it runs; no results",
    )
    runs.add_argument(
        "--seeds",
        type=_seeds,
        metavar="N|A,B,C",
        help="how many seeds, or which (7, is the one seed 7; default: 3; at smoke scale 1; of a plan its own)",
    )
    runs.add_argument(
        "--executor",
        choices=("serial", "process", "ray"),
        default="serial",
        help="where work is done (default: serial)",
    )
    runs.add_argument("--workers", type=int, metavar="N", help="default: one for each GPU, or for each few cores")
    runs.add_argument("--ray-address", metavar="ADDRESS", help="a Ray cluster, e.g. auto (default: this machine)")
    runs.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="gpu: CUDA where there is one (default)")
    runs.add_argument("--quiet", action="store_true", help="no progress bar")
    runs.add_argument(
        "--dry-run", action="store_true", help="check the settings, print the cells and their cost, and stop"
    )

    bench = verbs.add_parser(
        "bench", parents=[runs], help="run a grid and print the table; continues where a former run stopped"
    )
    what = bench.add_mutually_exclusive_group()
    what.add_argument("--preset", help="name of a preset; see list presets (default: digits)")
    what.add_argument(
        "--plan", type=_path, metavar="FILE", help="YAML, TOML or JSON: victims, attacks, verifiers, seeds"
    )
    bench.add_argument("--attacks", metavar="A,B", help="row labels to run, e.g. 'FT(0.5),RemovalNet(train)'")
    bench.add_argument("--verifiers", metavar="V,W", help="verifiers to run, e.g. IPGuardVerifier,ZestVerifier")

    experiment = verbs.add_parser("experiment", parents=[runs], help="run one table or figure of the paper by name")
    experiment.add_argument("name", metavar="NAME", help="e.g. fig4; see list experiments")
    experiment.add_argument("--preset", default="digits", help="name of a preset; see list presets (default: digits)")

    data = _Parser(add_help=False)
    data.add_argument("--data", required=True, type=_path, metavar="D.npz", help="arrays x (n, C, H, W) and, if any, y")
    data.add_argument("--out", required=True, type=_path, metavar="FILE", help="safetensors file to write")
    data.add_argument("--seed", type=int, default=0, help="seed of all random draws (default: 0)")
    data.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="a parameter, e.g. max_iter=300"
    )
    data.add_argument("--quiet", action="store_true", help="no progress bar")
    model = _Parser(add_help=False)
    model.add_argument("--model", required=True, metavar="FACTORY", help="package.module:function, or timm:NAME")
    model.add_argument("--weights", type=_path, metavar="W", help="safetensors, or a state dict saved by torch")
    model.add_argument("--nb-classes", type=int, help="for timm: number of classes (verify: the fingerprint's)")
    model.add_argument(
        "--clip",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="range of the images (default: 0 1; verify: the fingerprint's)",
    )
    model.add_argument("--mean", type=float, nargs="+", help="standardisation in front of the network")
    model.add_argument("--std", type=float, nargs="+", help="as --mean")
    model.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="gpu: CUDA where there is one (default)")

    attack = verbs.add_parser("attack", parents=[model, data], help="derive a surrogate from a model in files")
    attack.add_argument("--attack", required=True, metavar="NAME", help="e.g. RemovalNetAttack; see list attacks")
    attack.add_argument("--no-labels", action="store_true", help="use the victim's predictions instead of y")

    extract = verbs.add_parser("extract", parents=[model, data], help="extract a model's fingerprint into a file")
    extract.add_argument("--verifier", required=True, metavar="NAME", help="e.g. ZestVerifier; see list verifiers")
    extract.add_argument(
        "--profile", default="paper", help="paper (default), removalnet, removalnet-legacy, or one of its own"
    )
    extract.add_argument(
        "--references", type=_path, nargs="+", default=[], metavar="W", help="weights of independent models"
    )
    extract.add_argument("--rule", help="how references set thresholds (default: extreme)")
    extract.add_argument("--thresholds", type=_path, metavar="T.json", help="write the thresholds here, too")

    verify = verbs.add_parser("verify", parents=[model], help="check a suspect against a fingerprint file")
    verify.add_argument(
        "--fingerprint", required=True, type=_path, metavar="FILE", help="what `extract` wrote, calibrated or not"
    )
    verify.add_argument("--verifier", metavar="NAME", help="default: as the file says; your own: package.module:Class")
    verify.add_argument("--thresholds", type=_path, metavar="T.json", help="use these instead of the file's own")
    verify.add_argument("--outputs", default="auto", help="auto (default), logits, probabilities or labels")
    verify.add_argument("--budget", type=int, help="most images that are sent to the suspect")
    verify.add_argument("--max-seconds", type=float, metavar="S", help="time after which no more images are sent")
    verify.add_argument(
        "--repeats", type=int, default=0, metavar="N", help="images sent twice, to see whether answers are random"
    )
    verify.add_argument("--json", action="store_true", help="print the verdict as JSON")
    verify.add_argument(
        "--fail-if-derived",
        action="store_true",
        help="exit status 1 for a derived model; 0 for any other, an undecided one included",
    )

    verbs.add_parser("doctor", help="versions, devices, import problems, one tiny verifier run")

    report = verbs.add_parser("report", help="write tables, figures and report.html from rows alone")
    report.add_argument("folder", type=_path, help="folder of a bench run")
    report.add_argument(
        "--published",
        nargs="?",
        const="",
        metavar="DATASET",
        help="print the paper's numbers beside ours, e.g. CIFAR10 (default: the rows' data set, or the nearest)",
    )
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"a parameter is given as NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, {"None": None, "True": True, "False": False}.get(value, value)


def _seeds(text: str) -> int | list[int]:
    try:
        return [int(part) for part in text.removesuffix(",").split(",")] if "," in text else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a number, or seeds with commas between them, got {text!r}") from error


def _single(parsed: argparse.Namespace) -> int:
    """Run one of the verbs on single models."""
    from art_fingerprint import cli_models

    if parsed.verb == "doctor":
        return OK if cli_models.doctor() else SOME_FAILED
    parsed.clip = None if parsed.clip is None else tuple(parsed.clip)
    if parsed.verb == "verify":
        derived = cli_models.verify(parsed)
        return DERIVED if derived and parsed.fail_if_derived else OK
    parsed.set = dict(parsed.set)
    cli_models.attack(parsed) if parsed.verb == "attack" else cli_models.extract(parsed)
    return OK


def _list(what: str) -> int:
    """Print names, each with a line on what it is."""
    if what == "presets":
        from art_fingerprint.zoo.presets import PRESETS, load_preset

        found = {name: f"data set {load_preset(name).dataset}" for name in PRESETS}
    elif what == "experiments":
        from art_fingerprint.experiments.catalogue import EXPERIMENTS

        found = {name: known.title for name, known in EXPERIMENTS.items()}
    else:
        import art_fingerprint.attacks as attacks
        import art_fingerprint.verifiers as verifiers

        module, end = (attacks, "Attack") if what == "attacks" else (verifiers, "Verifier")
        names = [name for name in module.__all__ if name.endswith(end) and name not in ("RemovalAttack", "Verifier")]
        found = {name: _summary(getattr(module, name)) for name in names}
    width = max(map(len, found))
    print("\n".join(f"{name:{width}}  {line}".rstrip() for name, line in found.items()))
    return OK


def _summary(kind: type) -> str:
    """Return the first sentence of a class's docstring, which ``python -OO`` takes away."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).replace("``", "").rstrip(".")


def _bench(arguments: argparse.Namespace) -> int:
    from art_fingerprint import cli_bench
    from art_fingerprint.benchmark.store import is_done

    bench = cli_bench.run(arguments)
    if bench is None:
        return OK
    _report(arguments.out)  # of all rows in the folder; those of experiments may have failed, too
    return OK if all(map(is_done, bench.rows())) else SOME_FAILED


def _report(folder: Path, published: str | None = None) -> int:
    from art_fingerprint.cli_report import write_report

    return OK if write_report(folder, published) else SOME_FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    0: done; 1: derived, under ``verify --fail-if-derived``; 2: bad input; 3: some cells, or the doctor, failed; 70: a
    defect of this package; 130: stopped; 141: nobody read the output.
    """
    _prepare_streams()
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    try:
        with terminated_as_interrupted(), warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            status = _run(parsed)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # nobody reads on, as behind `| head`; Python is not to try again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (FingerprintError, OSError) as error:
        print(f"art-fingerprint: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        resumed = "; run the same command again to go on" if parsed.verb in _RESUMED else ""
        print(f"art-fingerprint: stopped{resumed}.", file=sys.stderr)
        return STOPPED
    except Exception:  # never a status that says something about a model
        traceback.print_exc()
        print(
            "art-fingerprint: this is a defect of art-fingerprint; please report it with the lines above.",
            file=sys.stderr,
        )
        return DEFECT


def _prepare_streams() -> None:
    """Let output neither fail nor flood where streams are closed, lack characters, or go into a log."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")


def _show_warning(message: Warning | str, *_details: object) -> None:
    print(f"art-fingerprint: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _run(parsed: argparse.Namespace) -> int:
    if parsed.verb == "list":
        return _list(parsed.what)
    if parsed.verb == "bench":
        return _bench(parsed)
    if parsed.verb == "experiment":
        from art_fingerprint import cli_experiment

        return OK if cli_experiment.run(parsed) else SOME_FAILED
    return _report(parsed.folder, parsed.published) if parsed.verb == "report" else _single(parsed)


if __name__ == "__main__":
    sys.exit(main())
