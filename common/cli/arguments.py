"""Command-line options from frozen dataclasses: each field is one option with its type, default, help and range.

This module knows no option by name. ``--config file.yaml`` is expanded into arguments before those of the command line.
So values from a file pass the same checks as flags, and a flag overrides the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common.cli.choices import is_dotted_path, own_file
from common.errors import UsageError, nearest

ConfigT = TypeVar("ConfigT")

LISTED_CHOICES = 12  # a longer list would hide the suggestion after it
CONFIG_FLAG = "config"
NONE_WORDS = ("none", "null", "~", "")
BOOLEAN_WORDS = {"0": False, "1": True, "false": False, "true": True}
REQUIRED: Any = dataclasses.MISSING
EXAMPLES = 3
LARGEST = 2**31 - 1  # whole number that an option takes unless its field says otherwise


class Shown(typing.NamedTuple):
    """One option for people to read: field, flag, form of its values, default and meaning."""

    name: str
    flag: str
    values: str
    default: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Option:
    """What the command line needs to know about a field besides its type and default."""

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    parse: Callable[[str], Any] | None = None
    form: Callable[[Any], str] = str
    positional: bool = False
    metavar: str = ""
    changeable: bool = False
    own_rows: bool = False
    needs: str = ""


def option(
    default: Any,
    meaning: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    parse: Callable[[str], Any] | None = None,
    form: Callable[[Any], str] = str,
    positional: bool = False,
    metavar: str = "",
    changeable: bool = False,
    own_rows: bool = False,
    needs: str = "",
) -> Any:
    """Declare a field of a configuration dataclass.

    - ``default`` may be :data:`REQUIRED`; ``minimum`` and ``maximum`` are inclusive.
    - ``parse`` turns text into a value (it raises ValueError with a sentence), ``form`` turns the value back into text.
    - ``positional``: the option has no flag and takes one or more values; its type is a tuple.
    - ``metavar``: what ``--help`` shows instead of the choices or the type.
    - ``changeable``: a resumed run may change it, since it doesn't change the result.
    - ``own_rows``: it also takes the path of a row of the user's own, see :func:`common.cli.choices.choose`.
    - ``needs``: what to give with it, for the error message where its mode isn't chosen; none: the mode's option.
    """
    limits = (tuple(choices), minimum, maximum)
    spec = Option(meaning, *limits, parse, form, positional, metavar, changeable, own_rows, needs)
    return dataclasses.field(default=default, metadata={"option": spec})


def parse_args(
    config_class: type[ConfigT], argv: Sequence[str] | None = None, saved: Mapping[str, Any] | None = None
) -> ConfigT:
    """Build a ``config_class`` from a command line: default < ``saved`` < ``--config file.yaml`` < flag.

    ``saved`` are options in the form of :func:`to_dict`. ``--help`` prints and exits with 0.

    Raises :class:`UsageError` with one line for an unknown flag (naming the nearest), a wrong type, choice or range, a
    missing required option, or a YAML file that can't be used.
    """
    return _build(config_class, _named_values(config_class, argv, saved))


def parse_mode(command: type, argv: Sequence[str] | None = None) -> Any:
    """Build the configuration of the mode of ``command`` that the options choose; see :func:`parse_args`.

    ``command`` inherits from the classes of its modes, and ``command.modes`` lists them. A mode's ``chosen_by`` is the
    option that chooses it; the last mode has none and is the default. With the modes ``AuditConfig`` (chosen by
    ``audit``) and ``SplitConfig``, ``--audit=a.csv`` gives an ``AuditConfig``, and no flag a ``SplitConfig``.

    Raises UsageError for an option that only other modes have.
    """
    named = _named_values(command, argv)
    fields = command.__dataclass_fields__  # type: ignore[attr-defined]
    given = [name for name in fields if name in named and named[name] != fields[name].default]
    modes: tuple[Any, ...] = command.modes  # type: ignore[attr-defined]
    mode = next(mode for mode in modes if not mode.chosen_by or mode.chosen_by in given)
    for name in given:
        if name not in mode.__dataclass_fields__:
            homes = [other for other in modes if name in other.__dataclass_fields__]
            raise UsageError(_describe_foreign(name, mode, homes))
    return _build(mode, {name: value for name, value in named.items() if name in mode.__dataclass_fields__})


def _describe_foreign(name: str, mode: Any, homes: Sequence[Any]) -> str:
    """Return the error message for an option that belongs only to the modes ``homes``."""
    if mode.chosen_by:
        titles = " and ".join(f"'{_title(home)}'" for home in homes)
        return f"--{name} doesn't go with {_chooser(mode)}, leave it out; it belongs to {titles}"
    spec: Option = homes[0].__dataclass_fields__[name].metadata["option"]
    return f"--{name} needs {spec.needs or ' or '.join(map(_chooser, homes))}"


def _chooser(mode: Any) -> str:
    """Return the option that chooses a mode, as it is typed: ``--features=1``, ``--source``."""
    hint, _ = _fields(mode)[mode.chosen_by]
    return f"--{mode.chosen_by}" + "=1" * (_unwrap_optional(hint)[0] is bool)


def _named_values(
    config_class: type, argv: Sequence[str] | None, saved: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the options given on the command line, in files or in ``saved``; errors as :func:`parse_args`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _build_parser(config_class)
    config_file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_file.add_argument(f"--{CONFIG_FLAG}", action="append", default=[])
    config_file.error = parser.error  # type: ignore[method-assign]
    files, flags = config_file.parse_known_args(arguments)
    from_saved = _expand(config_class, saved or {}, "configuration")
    if saved:
        _check_values(parser, from_saved, "configuration")
    from_files = []
    for file in files.config:
        source = f"--{CONFIG_FLAG}={file}"
        arguments = _expand(config_class, _read_yaml(Path(file), source), source)
        _check_values(parser, arguments, source)
        from_files += arguments
    values, unknown = parser.parse_known_args(from_saved + from_files + flags)
    if unknown:
        raise UsageError(_describe_unknown(config_class, unknown[0]))
    named = vars(values)
    for name, value in named.items():
        # Before Python 3.13 argparse drops a value of two dashes.
        if value == "--" or (value == [] and not _fields(config_class)[name][1].positional):
            raise UsageError(f"--{name}=--: is no value")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in named.items()}


def _build(config_class: type[ConfigT], named: Mapping[str, Any]) -> ConfigT:
    """Build a configuration from the given options; UsageError if a required one is missing."""
    missing = [
        name for name, (_, spec) in _fields(config_class).items() if name not in named and _required(config_class, name)
    ]
    if missing:
        spec = _fields(config_class)[missing[0]][1]
        raise UsageError(f"--{missing[0]} is missing: {spec.help}")
    return config_class(**named)


def to_dict(config: Any) -> dict[str, Any]:
    """Return the options as plain values (text, numbers, booleans, None, lists), for YAML, JSON and checkpoints."""
    return {name: _plain(getattr(config, name), spec) for name, (_, spec) in _fields(type(config)).items()}


def from_dict(config_class: type[ConfigT], values: Mapping[str, Any], source: str = "configuration") -> ConfigT:
    """Build a ``config_class`` from the form of :func:`to_dict`, with all checks; errors name ``source``."""
    arguments = _expand(config_class, values, source)
    _check_values(_build_parser(config_class), arguments, source)
    return parse_args(config_class, arguments)


def given_options(config: Any, prefix: str, *without: str) -> dict[str, Any]:
    """Return the options whose names start with ``prefix``, except ``without``; those not given are None."""
    names = [field.name for field in dataclasses.fields(config) if field.name.startswith(prefix)]
    return {name: getattr(config, name) for name in names if name not in without}


def changeable_options(config_class: type) -> set[str]:
    """Return the names of the options that a resumed run may change."""
    return {name for name, (_, spec) in _fields(config_class).items() if spec.changeable}


def refuse_given(config: Any, names: Iterable[str], why: str) -> None:
    """Raise UsageError "--name ``why``" for the first of ``names`` whose value is not its default."""
    for name in names:
        if getattr(config, name) != config.__dataclass_fields__[name].default:
            raise UsageError(f"--{name} {why}")


def option_groups(config_class: type) -> dict[str, list[Shown]]:
    """Return the options by the title of their group, in the order of ``--help``; the command's own have no title."""
    hints = typing.get_type_hints(config_class)
    groups: dict[str, list[Shown]] = {}
    for owner in reversed(config_class.__mro__):
        names = [name for name in inspect.get_annotations(owner) if name in config_class.__dataclass_fields__]
        if names:
            groups["" if owner is config_class else _title(owner)] = [
                _shown(config_class, name, hints[name]) for name in names
            ]
    return groups


def _shown(config_class: type, name: str, hint: Any) -> Shown:
    field = config_class.__dataclass_fields__[name]  # type: ignore[attr-defined]
    spec: Option = field.metadata["option"]
    flag = name.upper().removesuffix("S") if spec.positional else f"--{name}"
    default = "required" if field.default is REQUIRED else _text(field.default, spec) or "empty"
    return Shown(name, flag, _Converter(*_unwrap_optional(hint), spec).metavar, default, spec.help)


def _fields(config_class: type) -> dict[str, tuple[Any, Option]]:
    hints = typing.get_type_hints(config_class)
    return {field.name: (hints[field.name], field.metadata["option"]) for field in dataclasses.fields(config_class)}


def _required(config_class: type, name: str) -> bool:
    field = config_class.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return field.default is REQUIRED


def _title(group: type) -> str:
    return (group.__doc__ or group.__name__).strip().splitlines()[0].rstrip(".")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(message.removeprefix("argument "))


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        """Leave out the list of all flags, since the groups below explain them."""
        positional = [action for action in actions if not action.option_strings]
        names = "".join(f" {action.metavar} [{action.metavar} ...]" for action in positional)
        super().add_usage(f"python {self._prog}{names} [--flag=value ...]", [], [], prefix)


def _program() -> str:
    """Return what follows ``python`` where this program was started: ``train.py``, or ``-m examples.command``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return Path(sys.argv[0]).name if spec is None else f"-m {spec.name.removesuffix('.__main__')}"


def _build_parser(config_class: type) -> _Parser:
    description = (config_class.__doc__ or "").strip()
    parser = _Parser(
        prog=_program(),
        description=description,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        f"--{CONFIG_FLAG}", metavar="FILE", help="YAML file of defaults (option: value); flags override it"
    )
    fields = _fields(config_class)
    for title, options in option_groups(config_class).items():
        group = parser.add_argument_group(title) if title else parser
        for shown in options:
            _add_option(group, shown, *fields[shown.name])
    return parser


def _add_option(group: Any, shown: Shown, hint: Any, spec: Option) -> None:
    default = " (required)" if shown.default == "required" else f" (default: {shown.default})"
    text = (shown.meaning + default).replace("%", "%%")
    converter = _Converter(*_unwrap_optional(hint), spec)
    if spec.positional:
        group.add_argument(shown.name, nargs="+", type=converter, metavar=shown.flag, help=text)
    else:
        group.add_argument(shown.flag, type=converter, metavar=shown.values, help=text)


class _Converter:
    """Converts text to a value with all checks; argparse shows the message of its errors."""

    def __init__(self, kind: Any, optional: bool, spec: Option) -> None:
        self.kind = typing.get_args(kind)[0] if spec.positional else kind
        self.optional = optional
        self.spec = spec

    @property
    def metavar(self) -> str:
        if self.spec.metavar:
            return self.spec.metavar
        if self.spec.choices:
            return "|".join((*self.spec.choices, *["MODULE.ROW"] * self.spec.own_rows))
        if self.spec.parse:
            return "VALUE"
        return {bool: "0|1", int: "N", float: "X", str: "TEXT", Path: "PATH"}[self.kind]

    def __call__(self, text: str) -> Any:
        try:
            return self._convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    def _convert(self, text: str) -> Any:
        if self.optional and text.lower() in NONE_WORDS:
            return None
        if self.spec.parse:
            return self.spec.parse(text)
        if self.kind is bool:
            return self._boolean(text)
        if self.kind in (int, float):
            return self._number(text)
        own = self.spec.own_rows and is_dotted_path(text)
        if self.spec.choices and text not in self.spec.choices and not own:
            hint = nearest(text, self.spec.choices)
            if hint and len(self.spec.choices) > LISTED_CHOICES:
                raise ValueError(f"{text!r} is none of the choices{hint}")
            raise ValueError(f"{text!r} is not one of {', '.join(self.spec.choices)}{hint}")
        if own and text not in self.spec.choices:
            file = own_file(text.rpartition(".")[0])
            if not file.is_file():
                raise ValueError(f"there is no {file}; a row of your own is named <module>.<name>")
        if text == "":
            raise ValueError("is empty")
        return self.kind(text)

    @staticmethod
    def _boolean(text: str) -> bool:
        if text.lower() not in BOOLEAN_WORDS:
            raise ValueError(f"{text!r} is not 0 or 1")
        return BOOLEAN_WORDS[text.lower()]

    def _number(self, text: str) -> int | float:
        word = "a whole number" if self.kind is int else "a number"
        try:
            value = self.kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {word}") from None
        if not math.isfinite(value):
            raise ValueError(f"{text!r} is not a finite number")
        if self.spec.minimum is not None and value < self.spec.minimum:
            raise ValueError(f"{text} is below the smallest allowed value {self.spec.minimum}")
        maximum = LARGEST if self.spec.maximum is None and self.kind is int else self.spec.maximum
        if maximum is not None and value > maximum:
            raise ValueError(f"{text} is above the largest allowed value {maximum}")
        return value


def _unwrap_optional(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0], len(kinds) < len(typing.get_args(hint))
    return hint, False


def _plain(value: Any, spec: Option) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if spec.positional:
        return [spec.form(item) for item in value]
    return spec.form(value)


def _text(value: Any, spec: Option) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:g}"
    return spec.form(value)


def _describe_unknown(config_class: type, argument: str) -> str:
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        return f"{argument!r} is not expected here: options are written --name=value"
    known = [f"--{known}" for known, (_, spec) in _fields(config_class).items() if not spec.positional]
    longer = [flag for flag in known if flag.startswith(name)] if len(name) > len("--") else []
    if longer:
        return f"unknown option {name}: names are written in full, as in {', '.join(longer[:EXAMPLES])}"
    return f"unknown option {name}{nearest(name, [*known, f'--{CONFIG_FLAG}', '--help']) or '; --help lists all'}"


def _check_values(parser: argparse.ArgumentParser, arguments: list[str], source: str) -> None:
    """Parse the arguments of a file separately, so that an error names the file."""
    flags = [argument for argument in arguments if argument.startswith("--")]
    try:
        parser.parse_known_args([*flags, "anything"])  # positional values may be on the command line
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def _read_yaml(path: Path, source: str) -> dict[str, Any]:
    import yaml  # here: parsing a plain command line does not need it

    from common.foreign import parse_yaml, read_text

    try:
        text = read_text(path)
        # Keep every scalar as text: "1e-3", "007" and "yes" then mean the same as on the command line.
        document = parse_yaml(text, texts=True)
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None
    if document in (None, ""):
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{source}: must hold lines of the form 'option: value'")
    names = [str(key.value) for key, _ in yaml.compose(text, Loader=yaml.BaseLoader).value]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:  # YAML forbids this, but its reader silently takes the last one
        raise UsageError(f"{source}: option {repeated[0]!r} stands there twice")
    return document


def _expand(config_class: type, values: Mapping[str, Any], source: str) -> list[str]:
    fields = _fields(config_class)
    arguments: list[str] = []
    for name, value in values.items():
        if name not in fields:
            raise UsageError(f"{source}: unknown option {name!r}{nearest(name, fields)}")
        spec = fields[name][1]
        if isinstance(value, dict):
            raise UsageError(f"{source}: option {name!r} holds nested lines; a single value is expected")
        if spec.positional:
            arguments += [str(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
        elif isinstance(value, (list, tuple)):
            arguments.append(f"--{name}={','.join(str(item) for item in value)}")
        else:
            arguments.append(f"--{name}={'none' if value is None else _exact(value)}")
    return arguments


def _exact(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
