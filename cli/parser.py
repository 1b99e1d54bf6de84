"""The arguments of all commands, read without importing what they run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from .exit_codes import UsageError
from .outcome import Outcome
from .standard_out import printed

JSON = "--json"


class Command(Protocol):
    """A command: a module with what it does in a line, its arguments, and what runs it."""

    @property
    def HELP(self) -> str: ...

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None: ...

    @staticmethod
    def run(args: argparse.Namespace) -> Outcome: ...


class Parser(argparse.ArgumentParser):
    """Wrong arguments raise ``UsageError``, on one line, rather than ending the process.

    An option that has one value stands once, before the command's name or behind it. A parser reads
    one command line.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Options that stood already; a command's parser has that of all commands.
        self.seen: set[str] = set()
        for action in (None, "store"):
            self.register("action", action, Once)

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        if self._subparsers is None and args is not None:  # else they are another parser's
            self.refuse_unknown(args)
        return super().parse_known_args(args, namespace)

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """A wrong name is told before what is missing, which it may have been meant for."""
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                return
            if not word.startswith("--") or " " in word:
                continue
            if not any(option.startswith(name) for option in self._option_string_actions):
                self.error(f"unrecognized arguments: {word}")

    def print_help(self, file: Any = None) -> None:
        """The help of ``--help``, which then ends the process; argparse would not say that it
        cannot be written."""
        status = printed(self.format_help().rstrip(), 0)
        if status:
            self.exit(status)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help says what there is)")


class Once(argparse.Action):
    """Keeps a value, and refuses a second one, which would take the place of the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        if self.option_strings and isinstance(parser, Parser):
            if self.dest in parser.seen:
                raise argparse.ArgumentError(self, "is given twice, expected once")
            parser.seen.add(self.dest)
        setattr(namespace, self.dest, values)


class Version(argparse.Action):
    """Says the version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import flux_core

        parser.exit(printed(f"fluxfit {flux_core.__version__}", 0))


def make_parser(commands: Mapping[str, Command]) -> Parser:
    """The parser of all commands, by name."""
    parser = Parser(prog="fluxfit", description="FLUX in the memory you have.")
    parser.add_argument("--version", action=Version, nargs=0, help="say the version and exit")
    parser.set_defaults(json=False, quiet=False, models=None)
    add_common(parser)
    names = parser.add_subparsers(dest="command", required=True)
    for name, command in commands.items():
        inner = names.add_parser(name, help=command.HELP, description=command.HELP)
        inner.seen = parser.seen
        command.add_arguments(inner)
        add_common(inner)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command takes, before its name or behind it."""
    common = parser.add_argument_group("of every command")
    unset = argparse.SUPPRESS  # so that what stands before the name is not forgotten behind it
    common.add_argument(
        "--models", type=Path, default=unset, help="a folder laid out as ComfyUI's models"
    )
    common.add_argument(
        JSON,
        action="store_true",
        default=unset,
        help="print one JSON object; all else goes to stderr",
    )
    common.add_argument("--quiet", action="store_true", default=unset, help="show no progress")
