"""Options of commands that are generated from dataclasses and functions of the package.

A dataclass or function states the name, type, default and description of each of its parameters. A command takes
these parameters as options: an option that is not used is None and is left out, so that the default applies.
"""

import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from qptlab.errors import InputError

SIMPLE = (int, float, str, bool)


def _number(text: str) -> int | float:
    """Return the number that a text states, an integer if it has no decimal point."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a command for the parameters of a dataclass or function.

    Attributes:
      source: dataclass or function whose docstring describes the parameters.
      names: parameters to offer; by default all of a simple type.
      panel: heading in the command's help.
      flags: additional flags of a parameter, such as `{"iterations": "-n"}`.
      renamed: option of a parameter that is not named like it, such as `{"iterations": "train_iterations"}`.
      defaults: defaults that differ from those of the source.
      help: descriptions that differ from those of the source.
      remarks: sentences at the end of a description.
    """

    source: Callable
    names: tuple[str, ...] = ()
    panel: str | None = None
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    help: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remarks: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def fields(self) -> dict[str, inspect.Parameter]:
        """Parameters of the source by the name of their option."""
        parameters = inspect.signature(self.source).parameters
        names = self.names or [name for name, field in parameters.items() if _simple_type(field.annotation)]
        return {self.renamed.get(name, name): parameters[name] for name in names}

    def parameters(self) -> Iterable[inspect.Parameter]:
        """Return the parameters that typer makes options of."""
        for option, field in self.fields.items():
            kind: Any = _simple_type(field.annotation)
            description, default = self.description(option)
            flags = [f"--{option.replace('_', '-')}", *filter(None, [self.flags.get(field.name)])]
            number = kind is float and int in typing.get_args(field.annotation)
            sentences = [
                description, None if default is None else f"Default: {default}.",
                self.remarks.get(field.name),
            ]
            info = typer.Option(
                *flags,
                help=" ".join(filter(None, sentences)),
                rich_help_panel=self.panel,
                parser=_number if number else None,
                metavar="NUMBER" if number else None,
            )
            yield inspect.Parameter(
                option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
            )

    def description(self, option: str) -> tuple[str | None, Any]:
        """Return what an option is, as a sentence, and its default."""
        field = self.fields[option]
        descriptions = _descriptions(self.source) | dict(self.help)
        return descriptions.get(field.name), self.defaults.get(field.name, field.default)

    def values(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the source for the options that were used."""
        used = {field.name: settings.get(option) for option, field in self.fields.items()}
        return dict(self.defaults) | {name: value for name, value in used.items() if value is not None}


def takes(*groups: Options) -> Callable[[Callable], Callable]:
    """Return a decorator that adds options to a command with an argument ``**settings``.

    Of options of the same name, such as one that several kinds of models have, the first is added.
    """

    def decorate(command: Callable) -> Callable:
        explicit = inspect.signature(command).parameters.values()
        named = [parameter for parameter in explicit if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        added: dict[str, inspect.Parameter] = {}
        for group in groups:
            for parameter in group.parameters():
                added.setdefault(parameter.name, parameter)
        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in named]
        command.__signature__ = inspect.Signature([*keyword, *added.values()])  # pyright: ignore
        command.__annotations__ |= {name: parameter.annotation for name, parameter in added.items()}
        return command

    return decorate


def refuse(settings: Mapping[str, Any], names: Iterable[str], reason: str) -> None:
    """Raise an `InputError` that names the first of some options that was used.

    Args:
      settings: options of the command.
      names: options that cannot be used here.
      reason: phrase that follows the option in the message, such as "for a training on --labels".
    """
    for name in names:
        if settings.get(name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"Expected no {option} {reason}, got {option} {settings[name]}; leave it out.")


def _simple_type(annotation: Any) -> type | None:
    """Return the type of an option for a parameter; None if the parameter is not an option."""
    union = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if int in union and float in union:
        return float
    return next((kind for kind in union if kind in SIMPLE), None)


def _descriptions(source: Callable) -> dict[str, str]:
    """Return the first sentence that a docstring has for each parameter, with the values that it refers to.

    A class also has the descriptions of its base classes, for the fields that it inherits.
    """
    inherited: dict[str, str] = {}
    for base in getattr(source, "__bases__", ()):
        if dataclasses.is_dataclass(base):
            inherited |= _descriptions(typing.cast(Callable, base))
    documentation = (source.__doc__ and inspect.getdoc(source)) or ""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:(?:  .*)?\n?)+)", documentation, re.MULTILINE)
    entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", "".join(sections), re.MULTILINE)
    texts = {name: re.split(r"\.(?= [A-Z`]|$)", " ".join(text.split()))[0] for name, text in entries}
    return inherited | {name: _sentence(text, source) for name, text in texts.items()}


def _sentence(text: str, source: Callable) -> str:
    """Return a description as a sentence; the name of a constant becomes its values."""
    text = re.sub(r"`([\w.]*\b[A-Z_]{3,})`", lambda match: _spelled(match[1], source), text)
    text = re.sub(r"; None for [^;.]*", "", text)  # an option that is not used
    first = text if text.startswith("`") else text[:1].upper() + text[1:]
    return first.replace("`", "") + "."


def _spelled(name: str, source: Callable) -> str:
    """Return the values of a constant that a docstring names, or its name if it is not a collection of texts."""
    *module, constant = name.split(".")
    for owner in inspect.getmro(source) if isinstance(source, type) else (source,):
        scope = vars(sys.modules[owner.__module__])
        value = scope.get(constant, getattr(scope.get("".join(module)), constant, None))
        if isinstance(value, tuple | list | dict):
            return ", ".join(map(str, value))
    return name
