"""The command that trains a model of any kind."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import time
import types
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import qptlab as ql
from qptlab.cli.console import (
    METHOD,
    Frames,
    Json,
    Sampler,
    SamplerOptions,
    Sigma,
    SkipBad,
    Temperature,
    print_json,
    sampling,
    stderr,
)
from qptlab.cli.settings import Options, refuse, takes
from qptlab.errors import InputError, shown
from qptlab.evaluation.errors import error_table
from qptlab.models.contract import config_class, kinds
from qptlab.training.config import TASKS

DEFAULT_KIND, DEFAULT_LABELLED_KIND = "equivariant", "orbital-gnn"
"""Kinds of models that are trained on molecules and on labels, unless a different one is chosen."""

GRACE_S = 3.0
"""Time that a training has to finish its step when it is interrupted, s."""


def _networks() -> dict[str, Options]:
    """Return the options of the network of each registered kind; a shared option states what differs."""
    base = Options(ql.CorrectionConfig)
    shared = {name: text for name in base.fields if (text := base.description(name)[0])}
    options: dict[str, Options] = {}
    for kind in sorted(kinds(), key=lambda kind: kind != DEFAULT_KIND):
        cls = config_class(kind)
        texts = shared if issubclass(cls, ql.CorrectionConfig) else {}
        added = Options(cls, panel=f"Network {kind}", flags={"iterations": "-n"}, help=texts)
        for name in added.fields:
            first = next((other for other, group in options.items() if name in group.fields), None)
            if first is not None and (remark := _difference(kind, name, options[first], added)):
                remarks = options[first].remarks
                together = " ".join(filter(None, [remarks.get(name), remark]))
                options[first] = dataclasses.replace(options[first], remarks={**remarks, name: together})
        options[kind] = added
    return options


def _difference(kind: str, option: str, first: Options, other: Options) -> str | None:
    """Return a sentence on what differs for an option of a second kind of model; None if nothing does."""
    (text, default), (other_text, other_default) = first.description(option), other.description(option)
    if text != other_text and other_text:
        return f"With --model {kind}: {other_text[0].lower()}{other_text[1:]} Default: {other_default}."
    return None if default == other_default else f"With --model {kind}: {other_default}."


NETWORKS = _networks()
"""Options of the network of each registered kind."""

_DEFAULT, _SUPERVISED = ql.TrainConfig(), ql.TrainConfig.supervised()
_CHANGED = {name: value for name, value in vars(_SUPERVISED).items() if value != getattr(_DEFAULT, name)}

TRAINING = Options(
    ql.TrainConfig,
    panel="Training",
    renamed={"iterations": "train_iterations", "grid_level": "train_grid_level"},
    help={
        "iterations": "DFT iterations after the network during training; -1 for as many as in prediction.",
        "grid_level": "Level of the integration grid during training; -1 for the method's.",
    },
    remarks={name: f"With --labels: {'none' if value is None else value}." for name, value in _CHANGED.items()},
)
"""Options of the training."""

WITHOUT_LABELS = (
    *METHOD.fields, "sampler", "temperature", "sigma", "frames", "sampler_option", "loss", "train_iterations",
    "train_grid_level", "reuse",
)
"""Options of a training without labels."""


@takes(METHOD, *NETWORKS.values(), TRAINING)
def train(
    out: Annotated[pathlib.Path, typer.Option("--out", help="The run's folder, new or empty.")],
    molecules: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MOLECULE",
            help="Built-in names, SMILES, XYZ files (ångström), .smi files, or a part of QM9 such as "
                 "qm9:max_heavy=4,split=random-train,count=100; not with --labels.",
        ),
    ] = None,
    labels: Annotated[
        pathlib.Path | None, typer.Option("--labels", help="Train on the labels of this extended XYZ file.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help=f"Kind of model, one of {', '.join(kinds())}. Default: "
                     f"{DEFAULT_KIND}. With --labels: {DEFAULT_LABELLED_KIND}."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help=f"Properties to learn from labels, with commas, among {', '.join(TASKS)}."),
    ] = None,
    theory: Annotated[
        str | None, typer.Option("--theory", help="Level of theory of the labels, if the file does not state it.")
    ] = None,
    start: Annotated[
        pathlib.Path | None,
        typer.Option("--start", help="Start from this model: a run's folder, a model file, or a name that `qptlab "
                     "models` lists. Method and network are its own by default."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    sampler: Sampler = None,
    temperature: Temperature = None,
    sigma: Sigma = None,
    frames: Frames = None,
    sampler_option: SamplerOptions = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train a model: on molecules, without labels, or an OrbitalGNN on labels.

    On molecules, an equivariant Transformer over shells is trained; with --model qpt, the QPT of arXiv:2402.04030.
    """
    if (not molecules) == (labels is None):
        raise InputError(
            "Expected molecules or --labels FILE, got "
            f"{'both' if molecules else 'neither'}; use qptlab train water --out runs/water, for example."
        )
    settings |= {"sampler": sampler, "temperature": temperature, "sigma": sigma, "frames": frames}
    settings |= {"sampler_option": sampler_option}
    first = None if start is None else ql.load(start)
    kind = model or (first.kind if first else DEFAULT_KIND if molecules else DEFAULT_LABELLED_KIND)
    config = _network(kind, settings, first.config if first else None)
    if labels is None:
        refuse({"tasks": tasks, "theory": theory}, ("tasks", "theory"), "for a training without --labels")
        data = ql.read_molecules(molecules or [], skip_bad=skip_bad)
        known = first.method if first else None
        changes = METHOD.values(settings)
        method = dataclasses.replace(known, **changes) if known else ql.Method(**changes)
        samples = sampling(sampler, temperature, sigma, frames, sampler_option)
        train_config = ql.TrainConfig(**_training(settings), sampling=samples)
    else:
        refuse(settings, WITHOUT_LABELS, "for a training on --labels")
        data, method = ql.read_labels(labels), None
        data = data._replace(theory=theory or data.theory)
        weights = ql.TaskWeights.only(*(task.strip() for task in tasks.split(","))) if tasks else ql.TaskWeights()
        train_config = ql.TrainConfig.supervised(**_training(settings), tasks=weights)
    trainer = ql.Trainer(data, method, config, train_config, out, resume=resume, start=first)
    with _signals(out) as received:
        _follow(trainer, received)
        if received:
            _end(trainer)
    trainer.run()  # has ended: raises the error of the training, if there is one
    record = _summary(trainer)
    if as_json:
        print_json(record)
    else:
        _print_summary(trainer, record)


@contextlib.contextmanager
def _signals(out: pathlib.Path) -> Iterator[list[int]]:
    """Yield a list of the signals that are received inside the block: Ctrl-C, kill, a closed terminal.

    They raise nothing, because the code that they would interrupt may be halfway through an import or a file. A
    second signal ends the process at once; checkpoints are complete at any time.
    """
    received: list[int] = []

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            said = f"qptlab: ended at once; the last checkpoint is in {out}; use --resume to continue.\n"
            with contextlib.suppress(OSError):  # not by Rich, whose lock the interrupted code may hold
                os.write(2, said.encode())
            os._exit(1)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    earlier = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield received
    finally:
        if not received:  # else the process ends, and a second signal may come until it has
            for number, handler in earlier.items():
                signal.signal(number, handler)


def _end(trainer: ql.Trainer) -> NoReturn:
    """Save a training that is interrupted, say where it is, and end the process."""
    trainer.stop(timeout=GRACE_S)
    if trainer.is_alive:  # inside a compilation, which cannot be interrupted
        trainer.save()
    with contextlib.suppress(OSError):  # the terminal may be gone
        if isinstance(trainer.error, InputError):  # the folder cannot be written
            stderr.print(f"qptlab: {trainer.error}")
        else:
            stderr.print(f"qptlab: stopped at step {trainer.step}, kept in {trainer.out}; use --resume to continue.")
    if trainer.is_alive:
        os._exit(1)  # the end of the interpreter would wait for the thread
    raise typer.Exit(1)


def _network(kind: str, settings: dict[str, Any], first: Any = None) -> Any:
    """Return the settings of a network of a kind. Options of other kinds are refused.

    Args:
      kind: kind of model.
      settings: options of the command.
      first: settings of the model that the training starts from, which options change.
    """
    cls = config_class(kind)
    if kind not in NETWORKS:
        raise InputError(
            f"Expected one of {', '.join(NETWORKS)} as --model, got {shown(kind)}, which was registered after the "
            "command line was loaded; register it before you import qptlab.cli."
        )
    options = NETWORKS[kind]
    foreign = {name for group in NETWORKS.values() for name in group.fields} - set(options.fields)
    refuse(settings, sorted(foreign), f"for a model of kind {kind}, which has {', '.join(options.fields)}")
    _check_preset(kind, settings.get("preset"))
    values = options.values(settings)
    return dataclasses.replace(first, **values) if isinstance(first, cls) else cls(**values)


def _check_preset(kind: str, preset: str | None) -> None:
    """Raise an `InputError` for a preset of a different kind of model, which the message names."""
    if preset is None or _has_preset(kind, preset):
        return
    others = [other for other, group in NETWORKS.items() if "preset" in group.fields and _has_preset(other, preset)]
    if others:
        raise InputError(
            f"Expected a preset of a model of kind {kind}, got {shown(preset)}, which is a preset of kind "
            f"{others[0]}; use --model {others[0]} with it, or a different --preset."
        )


def _has_preset(kind: str, preset: str) -> bool:
    try:
        config_class(kind)(preset=preset)
    except InputError:
        return False
    return True


def _training(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the training that were given; if only one limit was given, there is no other one."""
    values = TRAINING.values(settings)
    if ("minutes" in values) != ("steps" in values):
        values = {"minutes": None, "steps": None} | values
    for name in ("iterations", "grid_level"):
        if values.get(name) == -1:
            values[name] = None
    return values


def _summary(trainer: ql.Trainer) -> dict[str, Any]:
    """Return the numbers of a training that has ended, with the keys of ``--json``."""
    rows, predictor = trainer.rows, trainer.predictor
    last = next((row for row in reversed(rows) if "validation_mae_mev" in row), {})
    has_energy = bool(rows) and trainer.method is not None and trainer.train_config.loss != "labels"
    return {
        "out": str(trainer.out),
        "kind": trainer.objective.kind,
        "molecules": [mol.formula for mol in trainer.molecules],
        "eri": predictor.systems[0].template.eri if isinstance(predictor, ql.CorrectionPredictor) else None,
        "steps": trainer.step,
        "seconds": rows[-1]["seconds"] if rows else 0.0,
        "energy_ha": rows[-1]["energy_ha"] if has_energy else None,
        "validation_mae_mev": last.get("validation_mae_mev"),
        "no_network_mae_mev": last.get("no_network_mae_mev"),
        "pyscf_stopped_mae_mev": last.get("pyscf_stopped_mae_mev"),
        "validation": _validation(trainer) if trainer.errors else None,
        "data_wait_s": sum(row["data_wait_s"] for row in rows),
        "compile_s": sum(row["compile_s"] for row in rows),
    }


def _validation(trainer: ql.Trainer) -> dict[str, Any]:
    """Return the errors of the model and of its baselines at the last validation."""
    (_, errors), *baselines = trainer.errors
    return {
        "n": len(trainer.objective.validation_molecules(trainer.validation)),
        **errors.to_dict(),
        "baselines": {name: summary.to_dict() for name, summary in baselines},
    }


def _print_summary(trainer: ql.Trainer, record: dict[str, Any]) -> None:
    """Print the summary for people."""
    integrals = f", {record['eri']} integrals" if record["eri"] else ""
    typer.echo(f"{record['steps']} steps in {record['seconds']:.0f} s{integrals}, kept in {record['out']}")
    if trainer.errors:
        titles = trainer.objective.baselines
        rows = [(titles.get(name, name), errors) for name, errors in trainer.errors]
        typer.echo(error_table(rows, "text"))


def _follow(trainer: ql.Trainer, received: list[int]) -> None:
    """Show the events of a trainer on stderr until it ends, or a signal is received."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr) as bar:
        task = bar.add_task("starting", total=1.0)
        shown = len(trainer.events())  # a resumed run brings its earlier ones
        trainer.start()
        alive = True
        while alive and not received:
            alive = trainer.is_alive
            new = trainer.events(shown)
            shown += len(new)
            for event in new:
                if event.kind == "step" and event.row is not None:
                    done = trainer.train_config.progress(event.row["step"], event.row["seconds"])
                    bar.update(task, completed=done)
                elif event.kind == "validation" and event.row is not None:
                    bar.update(task, description=f"step {event.row['step']}: {event.text}")
                    if not stderr.is_terminal:
                        stderr.print(f"step {event.row['step']}: {event.text}")
                elif event.kind in ("compiling", "news"):
                    bar.update(task, description=event.text)
                elif event.kind == "problem":
                    bar.update(task, description="paused")
                    stderr.print(f"qptlab: {event.text}")
            time.sleep(0.2)
