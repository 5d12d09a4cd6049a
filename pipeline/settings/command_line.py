"""The command line that all commands share: settings from a file and from options, error messages and exit codes.

`parse` turns a command line into a `Config`. `command` wraps the entry point of a command. This module imports neither
torch, Ray nor MLflow, which take seconds, so a command reports a mistake at once. Each command imports its work after
it has parsed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from pipeline.settings.errors import UserError
from pipeline.settings.help import settings_help
from pipeline.settings.mistakes import explain, known_settings, refuse_form, suggest
from pipeline.settings.overrides import merge
from pipeline.settings.places import resolve
from pipeline.settings.schema import Config
from pipeline.settings.yaml_text import MOST_BYTES, parse_yaml
from pipeline.storage import one_line, printable, redact


class Parser(argparse.ArgumentParser):
    """A parser of a command's arguments that raises its errors as `UserError`.

    Args:
        module: name of the command's module in `pipeline`; "" if `prog` is given, as for the parsers of subcommands.
        description: a sentence for --help that says what the command does.
    """

    def __init__(self, module: str = "", description: str = "", **arguments: Any) -> None:
        name = Path(sys.argv[0]).stem
        called = name if name == f"sr-{module}" else f"python -m pipeline.{module}"
        super().__init__(**{"prog": called, "description": description, "allow_abbrev": False, **arguments})

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found as a sentence."""
        raise UserError(f"{one_line(message)}; {self.prog} --help lists the arguments")


def parse(argv: Sequence[str], module: str, purpose: str) -> Config:
    """Read the command line of a command that has no flags besides the settings; see `parse_with`."""
    return parse_with({}, argv, module, purpose)[0]


def parse_with(
    flags: dict[str, str],
    argv: Sequence[str],
    module: str,
    purpose: str,
    fetch: Callable[[Config, str], str] | None = None,
    described: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[Config, set[str]]:
    """Read `--config FILE` and options with dotted keys, such as `--train.lr 2e-4` or `train.lr=2e-4`.

    Args:
        flags: help text of each switch that is not a setting, such as {"--dry-run": "print the plan"}.
        argv: the command line without the program's name.
        module: name of the command's module in `pipeline`.
        purpose: a sentence for --help that says what the command does.
        fetch: returns the YAML settings of an MLflow run, given the settings of the command line and the run's id. If
            it is given, the command accepts `--from-run RUN_ID` and `--register NAME`.
        described: word for the value and help text of further options, which the command has read from `argv` itself.

    Returns:
        The configuration, resolved (`pipeline.settings.resolve`), and the flags that were given.

    Raises:
        UserError: for an unknown key or an invalid value, in the file or on the command line.
        SystemExit: after --help.
    """
    parser = _SettingsParser(module)
    own = {"--config": ("FILE", "YAML file of settings, such as configs/demo.yaml")}
    if fetch:
        own["--from-run"] = ("RUN_ID", "reproduce a run: use its settings, stored in MLflow")
        own["--register"] = ("NAME", "make the best network a version of the registered model NAME in MLflow")
    own |= {flag: ("", effect) for flag, effect in flags.items()}
    if asked := _asked_for_help(argv):
        listed = {**own, **(described or {})}
        print(settings_help(parser.prog, module, purpose, listed, everything=asked == "all"))
        raise SystemExit(0)
    for option, (value, _) in own.items():
        parser.add_argument(option, action="store" if value else "store_true", dest=option)
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        Config, root_parser=parser, cli_exit_on_error=False
    )
    known, unknown = parser.parse_known_args(_with_dashes(argv, flags))
    if unknown:
        raise UserError(_refuse_argument(unknown, module))
    given = vars(known)
    file, run, model = given.pop("--config"), given.pop("--from-run", None), given.pop("--register", None)
    if file and run:
        raise UserError(f"--config {file} and --from-run {run} are both given, expected one of them")
    given_flags = {flag for flag in flags if given.pop(flag)}
    options = _read_options(source, given | ({"tracking.register_as": model} if model is not None else {}))
    origin = f"run {run}" if run else file
    try:
        text = fetch(resolve(Config(**options)), run) if run and fetch else _read_file(file) if file else "{}"
        config = Config(**merge(parse_yaml(text, str(origin)), options))
    except ValidationError as error:
        raise UserError(explain(error, origin)) from None
    config = resolve(config)
    if config.log_format == "json":
        from pipeline.terminal import LogContext, print_json, stage_name  # here, because it takes time to import

        print_json(LogContext(stage=module), stage_name)
    return config, given_flags


def split_settings(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the values of an option from the settings of the form KEY=VALUE that follow them."""
    settings = [value for value in values if value.partition("=")[0] in known_settings() and "=" in value]
    return [value for value in values if value not in settings], settings


def command(main: Callable[[Sequence[str]], None]) -> Callable[[], None]:
    """Turn `main(argv)` into an entry point that reports errors as one sentence.

    The exit code is 2 after a `UserError` or `OSError`, and 130 after an interruption.
    """

    @functools.wraps(main)
    def run() -> None:
        stop_like_interrupt()
        try:
            main(sys.argv[1:])
        except (UserError, OSError) as error:  # an OSError, such as missing permission, names its file
            print(f"error: {printable(redact(_as_sentence(error)))}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted: rerun the same command to resume", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(130)  # a thread may still wait in Ray, whose shutdown would change the exit code

    return run


def stop_like_interrupt() -> None:
    """Make SIGTERM, which `ray job stop` sends, end this process as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def positive_number(text: str) -> float:
    """Read an option's value that is a finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _as_sentence(error: Exception) -> str:
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename} cannot be used: {error.strerror}"
    return str(error)


def _asked_for_help(argv: Sequence[str]) -> str:
    """Return "all" or "own" for a request for help about all settings or those of the command, else ""."""
    for argument, following in itertools.pairwise([*argv, ""]):
        if argument == "--help-all" or (argument in ("--help", "-h") and following == "all"):
            return "all"
        if argument in ("--help", "-h"):
            return "own"
    return ""


def _with_dashes(argv: Sequence[str], flags: Iterable[str]) -> list[str]:
    """Turn a bare `key=value` into `--key=value`, unless it is the value of the option before it."""
    dashed: list[str] = []
    for argument in argv:
        option = dashed[-1] if dashed else ""
        is_value = option.startswith("--") and "=" not in option and option not in flags
        dashed.append(argument if argument.startswith("-") or is_value or "=" not in argument else f"--{argument}")
    return dashed


def _read_options(source: CliSettingsSource[argparse.ArgumentParser], given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the texts of the options into nested settings.

    Raises:
        UserError: if a text is not of the form of its setting.
    """

    def read(some: Mapping[str, Any]) -> dict[str, Any]:
        try:
            nested: dict[str, Any] = source(parsed_args=dict(some))()
        except SettingsError:
            if len(some) > 1:  # find the option, which the error does not name in all cases
                for key, value in some.items():
                    read({key: value})
            for key, value in some.items():
                text = " ".join(value) if isinstance(value, list) else value
                raise UserError(refuse_form(key, text)) from None
            raise
        return nested

    # The name of an existing file is taken as it is, even if it has commas, brackets or quotes.
    rest = dict(given)
    sources, sets = rest.get("source"), rest.get("evaluate.benchmarks")
    places: list[str] | None = None
    if isinstance(sources, list) and any(map(_exists, sources)):
        del rest["source"]
        each = [[text] if _exists(text) else read({"source": [text]})["source"] for text in sources]
        places = [place for some in each for place in some]
    folders: dict[str, str] = {}
    if isinstance(sets, list):
        folders = {name: path for name, _, path in (text.partition("=") for text in sets) if path and _exists(path)}
        others = [text for text in sets if text.partition("=")[0] not in folders]
        rest = {key: value for key, value in rest.items() if key != "evaluate.benchmarks"}
        rest |= {"evaluate.benchmarks": others} if others else {}
    options = read(rest)
    if places is not None:
        options["source"] = places
    if folders:
        evaluate = options.setdefault("evaluate", {})
        evaluate["benchmarks"] = {**evaluate.get("benchmarks", {}), **folders}
    return options


def _exists(path: str) -> bool:
    return os.path.lexists(Path(path).expanduser())


def _read_file(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"{file} has more than {MOST_BYTES} bytes, expected a file of settings")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        shipped = _shipped(file)
        meant = f"; did you mean {shipped}?" if shipped != file else ""
        raise UserError(f"cannot read the configuration {file}: {reason}{meant}") from None


def _shipped(file: str) -> str:
    """Return the path of a configuration in configs/ if only its name was given, else the path as it is."""
    path = f"configs/{file}"
    return path if not _exists(file) and _exists(path) else file


class _SettingsParser(Parser):
    """The parser of a command that takes settings."""

    def __init__(self, module: str) -> None:
        super().__init__(module, add_help=False)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found about a known option as a sentence."""
        option, _, problem = message.removeprefix("argument ").partition(": ")
        field = known_settings().get(option.removeprefix("--"))
        if problem.startswith("expected") and "argument" in problem:
            raise UserError(_refuse_missing_value(option, field is not None))
        super().error(message)


def _refuse_missing_value(option: str, is_setting: bool) -> str:
    if not is_setting:
        return f"{option} has no value, expected one, such as --config configs/demo.yaml"
    expected = refuse_form(option.removeprefix("--"), "").partition(", ")[2]
    return f"{option} has no value, {expected}; write {option}=VALUE for a value that begins with a dash"


def _refuse_argument(unknown: Sequence[str], module: str) -> str:
    """Explain the first argument that is neither an option nor an option's value."""
    first = unknown[0]
    if first.startswith("-"):
        key = first.lstrip("-").partition("=")[0]
        return f"unknown key {key}{suggest(key)}; --help-all lists all settings"
    if first.endswith((".yaml", ".yml")):
        return f"cannot read {first!r} by itself, expected --config {shlex.quote(_shipped(first))}"
    if first in known_settings():
        return f"{first} has no value, expected --{first} VALUE or {first}=VALUE"
    if first in ("help", "all"):
        return f"cannot read {first!r}, expected --help or --help-all"
    if _exists(first):
        option = "--model" if module == "evaluate" else "--source"
        return f"cannot read {first!r} by itself, expected {option} {shlex.quote(first)}"
    return f"cannot read {first!r}, expected --KEY VALUE or KEY=VALUE"
