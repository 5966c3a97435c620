"""The command line: `reslib reproduce | train | evaluate | status | list | data | bench | verify ...`, see COMMANDS.

Exit codes: 0 done, 1 something failed (one line each), 2 bad arguments, 75 interrupted by a signal or the time limit:
the same command continues (75 is EX_TEMPFAIL of sysexits.h, "try again later").
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import importlib.util
import os
import re
import sys
import traceback

from . import __version__
from .errors import UserError, choose, shown
from .files import folder_of
from .stopping import Interrupted, sigterm_raises

COMMANDS = {  # name: (module with add_arguments(parser) and main(arguments) -> exit code, help)
    "reproduce": ("commands.reproduce", "run the notebooks with papermill, training what is missing"),
    "train": ("commands.train", "train one network"),
    "evaluate": ("commands.evaluate", "test ImageNet networks by ten crops, at five scales, together (Tables 2 to 5)"),
    "status": ("commands.status", "which runs of a preset are done, running, missing; what is left"),
    "list": ("commands.listing", "models, studies, presets, data sets"),
    "data": ("commands.data", "what data is found where; download; verify"),
    "bench": ("bench", "measure speed against the usual loop"),
    "equivalence": ("equivalence", "train the fast path and fp32 side by side and compare their errors"),
    "verify": ("verify", "check a results folder: records, hashes, figures, tables"),
    "report": ("report", "one HTML page from the records"),
}


STOPPED = 75  # exit code
SYNONYMS = {  # what others call our options, beside the recipe's fields (recipe.SYNONYMS)
    "data": "data_root", "data_dir": "data_root", "data_path": "data_root", "dataset_dir": "data_root",
    "root": "data_root", "out": "results", "output": "results", "out_dir": "results", "output_dir": "results",
    "save_dir": "results", "log_dir": "results", "logdir": "results", "gpu": "device", "cuda": "device",
    "num_gpus": "gpus", "devices": "gpus", "num_workers": "workers", "jobs": "workers", "max_time": "time_limit",
    "timeout": "time_limit", "save_every": "checkpoint_every", "save_freq": "checkpoint_every",
    "config": "preset", "recompute": "activation_checkpointing",
}  # fmt: skip


class ArgumentError(UserError):
    """A mistake in the arguments: exit code 2."""


@contextlib.contextmanager
def checking_arguments():
    """Within the block a UserError is a mistake in the arguments."""
    try:
        yield
    except UserError as error:
        raise ArgumentError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """Mistakes in one line, without the list of all options."""

    def error(self, message):
        """Raise ArgumentError where argparse would print its usage and exit."""
        raise ArgumentError(f"{message} (see `{self.prog} --help`)")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as numerics.py says; torch is not imported here
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # where the terminal has no plus-minus sign, "?" stands for it
    try:
        with sigterm_raises(KeyboardInterrupt):  # before and after training; during it StopSignal saves first
            return _run(argv)
    except (Exception, KeyboardInterrupt) as error:
        if "--traceback" in argv and not isinstance(error, ArgumentError):
            raise
        if isinstance(error, BrokenPipeError):  # the reader of a pipe went away
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"reslib: {_line(error)}", file=sys.stderr)
        if isinstance(error, Interrupted) and "TORCHELASTIC_RUN_ID" in os.environ:
            return 0  # torchrun takes any other code for a crash and, with --max-restarts, begins the time limit anew
        if isinstance(error, (Interrupted, KeyboardInterrupt)):
            return STOPPED
        return 2 if isinstance(error, ArgumentError) else 1


def _run(argv: list[str]) -> int:
    parser = Parser(
        prog="reslib",
        description="A reproduction study of Deep Residual Learning for Image Recognition (He et al., 2015). "
        "`reslib COMMAND --help` lists a command's options.",
        epilog=f"Exit codes: 0 done, 1 something failed, 2 bad arguments, {STOPPED} interrupted by a signal or the "
        "time limit: the same command continues.",
    )
    parser.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
    parser.add_argument("--version", action="version", version=f"reslib {__version__}")
    first = next((a for a in argv if not a.startswith("-")), None)
    if first is not None:
        with checking_arguments():
            choose("command", first, COMMANDS)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    modules = {}
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == first:  # the others are not imported: `reslib --help` answers at once
            modules[name] = importlib.import_module(f"reslib.{module}")
            modules[name].add_arguments(sub)
    arguments, left = parser.parse_known_args([a for a in argv if a != "--traceback"])
    if left:
        sub = commands.choices[arguments.command]
        sub.error(f"unrecognized arguments: {' '.join(left)}{did_you_mean(left, sub)}")
    arguments.traceback = "--traceback" in argv
    return modules[arguments.command].main(arguments) or 0


def did_you_mean(left: list[str], parser: argparse.ArgumentParser) -> str:
    """A hint for the first of the unknown options, when an option of the parser is called alike or means the same; or
    for a network named where the parser has an option for it."""
    from .recipe import NOTES
    from .recipe import SYNONYMS as FIELDS

    known = {o.strip("-").replace("-", "_"): o for action in parser._actions for o in action.option_strings}
    option = known.get("model") or known.get("models")
    if not left[0].startswith("-") and option and all(action.option_strings for action in parser._actions):
        return f"; did you mean {option} {left[0]}?"
    wrong = next((a.partition("=")[0] for a in left if a.startswith("--")), "").strip("-").lower().replace("-", "_")
    synonym = (FIELDS | SYNONYMS).get(wrong)
    near = [wrong, synonym, *difflib.get_close_matches(wrong, known, n=1)]
    meant = next((name for name in near if name in known), None)
    note = f" ({NOTES[wrong]})" if meant == synonym and wrong in NOTES else ""
    return f"; did you mean {known[meant]}?{note}" if meant else ""


def _line(error: BaseException) -> str:
    """The error in one line; one that nobody foresaw says what it is and where it came from."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (UserError, OSError, Interrupted)):
        return text or type(error).__name__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text[:300]} ({os.path.basename(frame.filename)}:{frame.lineno}; see --traceback)"


def add_common(parser: argparse.ArgumentParser, preset: str | None = "quick") -> None:
    """The options that most commands share."""
    if preset:
        parser.add_argument(
            "--preset",
            default=os.environ.get("RESLIB_PRESET", preset),
            help="smoke, quick, medium or paper, also with changes: quick+iterations=500,lr=0.05",
        )
    parser.add_argument(
        "--data-root", type=existing_folder, default=None, help="folder with the data sets (default: $RESLIB_DATA)"
    )
    add_results(parser)


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """How many runs a network has."""
    text = "seeds per network (default: the preset's)"
    parser.add_argument("--seeds", type=number(int, 0, MAX_SEEDS), default=0, help=text)


def add_results(parser: argparse.ArgumentParser) -> None:
    """Where the results are."""
    parser.add_argument(
        "--results", type=name_given, default=None, help="results folder (default: $RESLIB_RESULTS or results/)"
    )


def results_of(arguments):
    """The results folder that --results or $RESLIB_RESULTS name. Raises ArgumentError for what cannot be one."""
    from .runs import results_root

    with checking_arguments():
        return results_root(arguments.results)


def name_given(text: str) -> str:
    """The text, if it can be a folder's name. It is not empty: a shell's unset variable does not mean the default."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names nothing: allowed is a path")
    try:
        folder_of("folder", text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def existing_folder(text: str) -> str:
    """The text, if it is that of a folder; or empty, as where none is given."""
    if text and not folder_of("folder", name_given(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return text


def add_execution(parser: argparse.ArgumentParser) -> None:
    """How runs execute; none of it changes results."""
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    parser.add_argument("--deterministic", action="store_true", help="the same bits every time on this machine")
    parser.add_argument(
        "--time-limit", type=duration, default=None, metavar="25m", help="stop at a checkpoint after this"
    )
    parser.add_argument(
        "--checkpoint-every", type=duration, default=60.0, metavar="60s", help="at most this much is lost"
    )
    parser.add_argument("--activation-checkpointing", action="store_true", help="less memory, more time, same numbers")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard logs into each run trained here")


def execution_of(arguments):
    """What the options say.

    Raises ArgumentError for a device that is not here or a wrong RESLIB_TUNE or RESLIB_CACHE, UserError without
    TensorBoard.
    """
    from . import tune
    from .job import Execution
    from .numerics import resolve_device
    from .outcome import NO_TENSORBOARD

    with checking_arguments():
        resolve_device(arguments.device)
        tune.check_environment()
    if arguments.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(f"{NO_TENSORBOARD}, or leave --tensorboard away")
    return Execution(
        device=arguments.device,
        deterministic=arguments.deterministic,
        time_limit=arguments.time_limit,
        checkpoint_seconds=arguments.checkpoint_every,
        activation_checkpointing=arguments.activation_checkpointing,
        tensorboard=arguments.tensorboard,
    )


MAX_SEEDS = 1000  # runs per network


def number(kind: type, low, high):
    """A function that reads an option's text as an int or a float from `low` to `high`, both included."""

    def read(text: str):
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:  # which NaN is not
                return value
        words = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{shown(text)}: allowed is {words} from {low} to {high}")

    return read


def duration(text: str) -> float:
    """ "90", "90s", "25m" or "2h" in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a duration: allowed is such as 90s, 25m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
