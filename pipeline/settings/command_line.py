"""The command line that all commands share: settings from a file and from options, error messages and exit codes.

`parse` turns a command line into a `Config`. `command` wraps the entry point of a command.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from pipeline.settings.errors import UserError
from pipeline.settings.mistakes import explain, suggest
from pipeline.settings.overrides import merge
from pipeline.settings.places import resolve
from pipeline.settings.schema import Config
from pipeline.storage import one_line


def parse(argv: Sequence[str], module: str, purpose: str) -> Config:
    """Read the command line of a command that has no flags besides the settings; see `parse_with`."""
    return parse_with({}, argv, module, purpose)[0]


def parse_with(
    flags: dict[str, str],
    argv: Sequence[str],
    module: str,
    purpose: str,
    fetch: Callable[[Config, str], str] | None = None,
) -> tuple[Config, set[str]]:
    """Read `--config FILE` and options with dotted keys, such as `--train.lr 2e-4` or `train.lr=2e-4`.

    Args:
        flags: help text of each switch that is not a setting, such as {"--dry-run": "print the plan"}.
        argv: the command line without the program's name.
        module: name of the command's module in `pipeline`.
        purpose: a sentence for --help that says what the command does.
        fetch: returns the YAML settings of an MLflow run, given the settings of the command line and the run's id. If
            it is given, the command accepts `--from-run RUN_ID`.

    Returns:
        The configuration, resolved (`pipeline.settings.resolve`), and the flags that were given.

    Raises:
        UserError: for an unknown key or an invalid value, in the file or on the command line.
        SystemExit: after --help.
    """
    parser = _Parser(
        prog=f"python -m pipeline.{module}",
        usage="%(prog)s [--config FILE] [--KEY VALUE | KEY=VALUE ...]",
        description=f"{purpose} Options override the settings of the file. Pass null to unset an optional setting.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, such as configs/demo.yaml")
    for flag, effect in flags.items():
        parser.add_argument(flag, action="store_true", dest=flag, help=effect)
    if fetch:
        parser.add_argument("--from-run", metavar="RUN_ID", help="reproduce a run: use its settings, stored in MLflow")
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        Config, root_parser=parser, cli_exit_on_error=False
    )
    given = vars(parser.parse_args(_with_dashes(argv, flags)))
    file, run = given.pop("config"), given.pop("from_run", None)
    if file and run:
        raise UserError(f"--config {file} and --from-run {run} are both given, expected one of them")
    given_flags = {flag for flag in flags if given.pop(flag)}
    try:
        options = source(parsed_args=given)()
    except SettingsError as error:
        raise UserError(one_line(error)) from None
    try:
        origin = f"run {run}" if run else file
        text = fetch(resolve(Config(**options)), run) if run and fetch else _read_file(file) if file else "{}"
        config = Config(**merge(_parse_yaml(text, str(origin)), options))
    except ValidationError as error:
        raise UserError(explain(error, origin)) from None
    return resolve(config), given_flags


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
            print(f"error: {error}", file=sys.stderr, flush=True)
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


def _with_dashes(argv: Sequence[str], flags: Iterable[str]) -> list[str]:
    """Turn a bare `key=value` into `--key=value`, unless it is the value of the option before it."""
    dashed: list[str] = []
    for argument in argv:
        option = dashed[-1] if dashed else ""
        is_value = option.startswith("--") and "=" not in option and option not in flags
        dashed.append(argument if argument.startswith("-") or is_value or "=" not in argument else f"--{argument}")
    return dashed


def _read_file(file: str) -> str:
    try:
        return Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read the configuration {file}: {reason}") from None


def _parse_yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{origin} is not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{origin} holds {type(content).__name__}, expected a mapping of settings")
    return {str(key): value for key, value in content.items()}


class _HelpFormatter(argparse.HelpFormatter):
    """Omits a default of null: the description of such a setting says what it means."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help and action.help.replace(" (default: null)", "").replace(" (default: None)", "")


class _Parser(argparse.ArgumentParser):
    """Raises its errors as `UserError`."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if not message.startswith("unrecognized arguments"):
            raise UserError(message)
        if not unknown.startswith("--"):
            raise UserError(f"cannot read {unknown!r}, expected --KEY VALUE or KEY=VALUE")
        key = unknown.removeprefix("--").split("=")[0]
        raise UserError(f"unknown key {key}{suggest(key)}; --help lists all")
