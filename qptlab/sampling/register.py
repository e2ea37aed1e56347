"""Register of samplers: the base class, the list of names, and the streams of geometries that samplers draw.

A stream is endless and follows from its seed. It is cut into segments with random numbers of their own, so that a
resumed training can start in the middle and draws what it would have drawn. Streams for training, for validation and
for tests have different random numbers.
"""

import dataclasses
import functools
import itertools
import json
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from qptlab.errors import InputError, shown
from qptlab.models.contract import Params
from qptlab.models.correction import CorrectionModel
from qptlab.models.systems import System
from qptlab.random_streams import Purpose, generator
from qptlab.system.molecule import Molecule

SEGMENT = 200
"""Number of geometries in a segment. A segment of `md` is a trajectory of 1 ps after its equilibration."""

_SAMPLERS: dict[str, "type[Sampler]"] = {}

_PARAMETERS_0_1_0 = frozenset({"sampler", "temperature", "sigma_bohr", "path"})
"""Keys of every sampler's record in run folders of version 0.1.0."""


class Segments(NamedTuple):
    """Segments of a stream of geometries.

    Attributes:
      length: number of geometries that the stream takes from a segment.
      draw: function from a segment's random generator to its geometries [natm, 3], bohr.
    """

    length: int
    draw: Callable[[np.random.Generator], Iterator[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Base class of samplers. A sampler draws geometries of a molecule; its fields are its parameters.

    A sampler of your own derives from this class, overrides `draw` and is registered by `register_sampler`. Its
    parameters are numbers, texts or truth values: a run folder stores them as JSON. The first line of its docstring
    is the description in lists of samplers.

    Attributes:
      sampler: name in the register.
      chains: number of independent streams per molecule that a training draws from in turn. With several, cores work
        in parallel, and geometries that follow one another differ more.

    >>> import qptlab as ql
    >>> @ql.register_sampler("stretch")  # doctest: +SKIP
    ... @dataclasses.dataclass(frozen=True)
    ... class Stretch(ql.Sampler):
    ...     amplitude_bohr: float = 0.1
    ...
    ...     def draw(self, mol, rng):
    ...         while True:
    ...             yield mol.positions * (1 + self.amplitude_bohr * rng.normal())
    """

    sampler: str = dataclasses.field(init=False, default="")
    chains: ClassVar[int] = 1

    def draw(self, mol: Molecule, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "natm 3"]]:
        """Draw the geometries of a segment, endlessly.

        Args:
          mol: the molecule at its reference geometry.
          rng: source of all random numbers of the segment. A sampler that uses a different source cannot be resumed.

        Yields:
          Positions in the order of the molecule's atoms, bohr.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method draw(mol, rng).")

    def segments(self, mol: Molecule, *, training: bool) -> Segments:
        """Return the segments of a stream; by default segments of `SEGMENT` geometries from `draw`.

        Args:
          mol: the molecule at its reference geometry.
          training: if true, geometries to train on; else geometries for validation and tests, which must not be
            trained on. By default both kinds differ in their random numbers only.
        """
        return Segments(SEGMENT, functools.partial(self.draw, mol))

    def source(
        self, system: System, model: CorrectionModel | None, seed: Sequence[int], start: int
    ) -> Callable[[Params | None], Float[np.ndarray, "natm 3"]]:
        """Return a function from the present parameters of the model to the next geometry to train on, bohr.

        Args:
          system: the molecule.
          model: the model in training, or None.
          seed: seed of the stream.
          start: number of the first geometry.
        """
        stream = sample(system.molecule, self, seed, purpose=Purpose.TRAINING_GEOMETRIES, start=start)
        return lambda params: next(stream)

    def check(self, systems: Sequence[System]) -> None:
        """Check that the molecules can be sampled; by default, draw one geometry of each.

        A training calls this before it creates its folder.

        Raises:
          InputError: if a molecule cannot be sampled.
        """
        for system in systems:
            next(sample(system.molecule, self, 0))

    def summary(self) -> str:
        """Return the sampler with its parameters for people, such as "perturb (sigma_bohr 0.05)"."""
        values = (f"{name} {getattr(self, name)}" for name in parameters(type(self)))
        return f"{self.sampler} ({', '.join(values)})" if parameters(type(self)) else self.sampler

    def check_number(self, name: str, largest: float, unit: str, advice: float) -> None:
        """Check that a parameter is a positive number up to a largest value.

        Args:
          name: the parameter.
          largest: the largest accepted value.
          unit: unit of the parameter.
          advice: a usual value, for the message.

        Raises:
          InputError: if the parameter is not such a number.
        """
        value = getattr(self, name)
        if not (isinstance(value, int | float) and 0 < value <= largest):
            raise InputError(
                f"Expected {name} above 0, up to {largest:g} {unit}, for the sampler {self.sampler}, got "
                f"{shown(value)}; use {advice:g}."
            )


_SamplerClass = TypeVar("_SamplerClass", bound=type[Sampler])


def register_sampler(name: str) -> Callable[[_SamplerClass], _SamplerClass]:
    """Return a decorator that adds a class of samplers to the register.

    Afterwards `Sampling(name)`, the command line and the workbench know the sampler. A class may be registered again
    when its definition is executed again, as in a notebook.

    Args:
      name: name of the sampler, without spaces.

    Raises:
      InputError: if the name cannot be used, or the class is not a frozen dataclass derived from `Sampler`.
    """

    def register(cls: _SamplerClass) -> _SamplerClass:
        if not (isinstance(name, str) and name and not any(c.isspace() for c in name)):
            raise InputError(f"Expected a sampler's name without spaces, got {shown(name)}; use, e.g., 'stretch'.")
        # A class without the decorator inherits the fields of its base class, and its own are ignored.
        if not (isinstance(cls, type) and issubclass(cls, Sampler) and "__dataclass_fields__" in vars(cls)):
            raise InputError(
                f"Expected a dataclass derived from Sampler for {name!r}, got {cls!r}; use "
                "@dataclasses.dataclass(frozen=True) below @register_sampler."
            )
        registered = _SAMPLERS.get(name)
        if registered and (registered.__module__, registered.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(
                f"Expected a new name for the sampler {cls.__qualname__}, got {name!r}, which is the name of "
                f"{registered.__module__}.{registered.__qualname__}; use a different name."
            )
        cls.sampler = name
        _SAMPLERS[name] = cls
        return cls

    return register


def samplers() -> dict[str, str]:
    """Return the names of all samplers with their descriptions.

    >>> list(samplers())[:3]
    ['md', 'modes', 'torsions']
    """
    return {name: (cls.__doc__ or "").strip().split("\n")[0] for name, cls in _SAMPLERS.items()}


def find_sampler(name: str) -> type[Sampler]:
    """Return the class of a sampler.

    Raises:
      InputError: if the register does not have the name.
    """
    if name not in _SAMPLERS:
        raise InputError(
            f"Expected one of the samplers {', '.join(_SAMPLERS)}, got {shown(name)}; use one of these, or register "
            "your sampler with ql.register_sampler first."
        )
    return _SAMPLERS[name]


def parameters(sampler: str | type[Sampler]) -> dict[str, Any]:
    """Return the parameters of a sampler with their defaults; `dataclasses.MISSING` marks a required parameter.

    >>> parameters("md")
    {'temperature': 500.0}
    """
    cls = find_sampler(sampler) if isinstance(sampler, str) else sampler
    fields = (field for field in dataclasses.fields(cls) if field.init)
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in fields
    }


def samplers_without_required() -> tuple[str, ...]:
    """Return the names of samplers that have a default for every parameter, in the order of the register.

    >>> "file" in samplers_without_required()
    False
    """
    return tuple(name for name in _SAMPLERS if dataclasses.MISSING not in parameters(name).values())


def Sampling(sampler: str = "md", **values: Any) -> Sampler:
    """Return a sampler by its name, with values of its parameters.

    Args:
      sampler: a name of the register, see `samplers`.
      **values: parameters of this sampler, see `parameters`. The others keep their defaults.

    Raises:
      InputError: if the name is unknown, or a parameter is unknown, missing or out of range.

    >>> Sampling("md", temperature=300.0)
    MolecularDynamics(sampler='md', temperature=300.0)
    """
    cls = find_sampler(sampler)
    accepted = parameters(cls)
    required = [name for name, default in accepted.items() if default is dataclasses.MISSING]
    if set(values) <= set(accepted) and set(required) <= set(values):
        return cls(**values)
    examples = ", ".join(
        f"{name}=…" if default is dataclasses.MISSING else f"{name}={default}" for name, default in accepted.items()
    )
    got = ", ".join(shown(name).strip("'") for name in values)
    raise InputError(
        f"Expected {', '.join(accepted) or 'no parameter'} for the sampler {sampler}, got {got or 'no parameter'}; "
        f"use {examples or 'the sampler without parameters'}."
    )


def parameters_from_text(sampler: str, options: Sequence[str]) -> dict[str, Any]:
    """Return parameters from options of the form NAME=VALUE, as they are given on the command line.

    Args:
      sampler: a name of the register. The types of its parameters decide how values are read.
      options: parameters, such as "temperature=300".

    Raises:
      InputError: if the sampler is unknown, or an option does not have this form.

    >>> parameters_from_text("md", ["temperature=300"])
    {'temperature': 300.0}
    """
    types = typing.get_type_hints(find_sampler(sampler))
    values = {}
    for option in options:
        name, separator, text = map(str.strip, option.partition("="))
        if not (name and separator):
            raise InputError(
                f"Expected NAME=VALUE for a parameter of the sampler {sampler}, got {shown(option)}; use one such as "
                "temperature=300."
            )
        values[name] = _value(text, types.get(name))
    return values


def _value(text: str, kind: Any) -> Any:
    """Return the value of a parameter of type `kind`; a text that is not a value of it stays a text."""
    if kind is str:
        return text
    try:
        value = json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text
    return float(value) if kind is float and isinstance(value, int) and not isinstance(value, bool) else value


def sampling_from_json(record: Mapping[str, Any]) -> Sampler:
    """Return the sampler that a run folder's `config.json` describes.

    Run folders of version 0.1.0 hold the parameters of all samplers; those of other samplers are ignored.

    Args:
      record: name as "sampler", and the parameters, as `dataclasses.asdict` returns them.

    Raises:
      InputError: if `Sampling` refuses the name or a parameter.
      KeyError: if the record has no name.
    """
    values = dict(record)
    name = values.pop("sampler")
    if set(record) == _PARAMETERS_0_1_0:
        values = {key: value for key, value in values.items() if key in parameters(name)}
    return Sampling(name, **values)


def check_sampling(sampling: Sampler, systems: Sequence[System]) -> None:
    """Check a sampler before a training.

    Raises:
      InputError: if its class is not registered, or it cannot sample one of the molecules.
    """
    cls = type(sampling)
    if _SAMPLERS.get(sampling.sampler) is not cls:
        raise InputError(
            f"Expected a registered sampler, got {cls.__name__}; use @ql.register_sampler(\"name\") on the class, so "
            "that the run folder can be opened again."
        )
    sampling.check(systems)


def sample(
    mol: Molecule,
    sampling: Sampler,
    seed: int | Sequence[int],
    *,
    purpose: Purpose = Purpose.TEST_GEOMETRIES,
    start: int = 0,
) -> Iterator[Float[np.ndarray, "natm 3"]]:
    """Draw an endless stream of geometries; by default one that no training uses, whatever its seed is.

    Args:
      mol: the molecule at its reference geometry.
      sampling: the sampler.
      seed: a non-negative integer or several.
      purpose: `TRAINING_GEOMETRIES`, `VALIDATION_GEOMETRIES` or `TEST_GEOMETRIES`; the streams are independent.
      start: number of the first geometry. The stream continues as if the earlier geometries had been drawn.

    Yields:
      Positions in the order of the molecule's atoms, bohr.

    Raises:
      InputError: with the first geometry, if the molecule cannot be sampled in this way.
    """
    segments = sampling.segments(mol, training=purpose == Purpose.TRAINING_GEOMETRIES)
    first, skipped = divmod(start, segments.length)
    for number in itertools.count(first):
        geometries = segments.draw(generator(purpose, seed, number))
        yield from itertools.islice(geometries, skipped if number == first else 0, segments.length)
