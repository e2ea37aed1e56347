"""Parts of both networks switched off, one at a time: short trainings in one run, with the same time and seeds.

    python benchmarks/ablations.py [--minutes 1] [--seeds 2] [--only equivariant]

The networks are trained on ten small molecules in PBE/STO-3G and tested on these and on four molecules that they are
not trained on. No DFT iteration follows the network by default, so that an error of the network shows. The parts are
switched off in this file only; the package has no option for it. Writes `results/ablations.json`, `.md` and `.png`.

What is switched off in the QPT (arXiv:2402.04030), whose attention is biased by the Kohn–Sham matrices of the guess:

- the biases of attention;
- their mixing: each matrix biases one head, with a coefficient of 1, instead of all heads with learned coefficients;
- the matrices in the last layer, which multiplies them element by element;
- mixing of densities: the iterations are screened instead, as those of the equivariant network.

In the equivariant network: the pair features in the logits of attention; attention between shells of different
atoms; screening; the statistics that standardise the features; each of the matrices, or all but two.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import typer

from qptlab.benchmarking import studies
from qptlab.benchmarking.studies import Setting, Study, TestGroup, small_molecules
from qptlab.models import equivariant, networks, qpt
from qptlab.models.equivariant import MATRICES, EquivariantConfig
from qptlab.models.networks import CorrectionConfig
from qptlab.models.qpt import QPTConfig
from qptlab.system.method import Method

Patch = tuple[Any, str, Callable[[Any], Any]]
"""Module, name in it, and function from the present value to the value of the ablation."""


class Ablation(NamedTuple):
    """Network with a part switched off.

    Attributes:
      label: name in the table.
      model: settings of the network.
      patches: changes of the package during the training.
    """

    label: str
    model: CorrectionConfig
    patches: tuple[Patch, ...] = ()


def _with_biases_off(attention: Callable) -> Callable:
    return lambda x, biases, masked, shape: attention(x, jnp.zeros_like(biases), masked, shape)


def _with_mixing_off(attention: Callable) -> Callable:
    def getter(next_getter, value, context):
        if context.name != "bias":
            return next_getter(value)
        nbias, heads = value.shape
        return jnp.asarray(np.arange(nbias)[:, None] % heads == np.arange(heads), value.dtype)

    def replaced(*arguments):
        with hk.custom_getter(getter):
            return attention(*arguments)

    return replaced


def _with_head_off(head: Callable) -> Callable:
    return lambda x, biases: head(x, jnp.zeros_like(biases))


def _with_pairs_off(attention: Callable) -> Callable:
    def getter(next_getter, value, context):
        # The layer "bias" is the only way of the pair features into the logits.
        is_weight = context.module.name == "bias" and context.name == "w"
        return jnp.zeros_like(value) if is_weight else next_getter(value)

    def replaced(*arguments):
        with hk.custom_getter(getter):
            return attention(*arguments)

    return replaced


def _within_atoms(attention: Callable) -> Callable:
    # The factor of attention is 1 for shells of the same atom, and smaller for all others.
    return lambda x, z, reach, shape: attention(x, z, jnp.where(reach == 1, reach, 0.0), shape)


def _without_statistics(registered: dict) -> dict:
    return {**registered, "equivariant": registered["equivariant"]._replace(fit=None)}


def _keeping(*names: str) -> Patch:
    kept = np.isin(MATRICES, names).astype(float)[:, None, None]
    return equivariant, "_matrices", lambda matrices: lambda ints, guess: kept * matrices(ints, guess)


def ablations(iterations: int) -> list[Ablation]:
    """Return both networks, whole and with each part switched off."""
    ours, paper = EquivariantConfig(iterations=iterations), QPTConfig("micro", iterations=iterations)
    left_out = {f"equivariant, without {name}": set(MATRICES) - {name} for name in MATRICES}
    return [
        Ablation("equivariant, complete", ours),
        Ablation("equivariant, no pair features in logits", ours, ((equivariant, "_attention", _with_pairs_off),)),
        Ablation("equivariant, attention only within atoms", ours, ((equivariant, "_attention", _within_atoms),)),
        Ablation("equivariant, no screening", EquivariantConfig(iterations=iterations, scheme="mixing")),
        Ablation("equivariant, no statistics", ours, ((networks, "_NETWORKS", _without_statistics),)),
        Ablation("equivariant, only fock and dm", ours, (_keeping("fock", "dm"),)),
        *(Ablation(label, ours, (_keeping(*kept),)) for label, kept in left_out.items()),
        Ablation("QPT, complete", paper),
        Ablation("QPT, no biases in attention", paper, ((qpt, "_attention", _with_biases_off),)),
        Ablation("QPT, biases not mixed", paper, ((qpt, "_attention", _with_mixing_off),)),
        Ablation("QPT, no matrices in the last layer", paper, ((qpt, "_symmetric_head", _with_head_off),)),
        Ablation("QPT, screened iterations", QPTConfig("micro", iterations=iterations, scheme="screened")),
    ]


@contextlib.contextmanager
def patched(patches: tuple[Patch, ...]) -> Iterator[None]:
    """Change the package; functions that were compiled before are compiled again."""
    earlier = [(module, name, getattr(module, name)) for module, name, _ in patches]
    jax.clear_caches()
    try:
        for module, name, change in patches:
            setattr(module, name, change(getattr(module, name)))
        yield
    finally:
        for module, name, value in earlier:
            setattr(module, name, value)
        jax.clear_caches()


def main(
    minutes: Annotated[float, typer.Option(help="Time of each training.")] = 1.0,
    seeds: int = 2,
    molecules: Annotated[str, typer.Option(help="Names or SMILES, with commas; default: ten small ones.")] = "",
    basis: str = "sto-3g",
    iterations: Annotated[int, typer.Option(help="DFT iterations after the network in a prediction.")] = 0,
    only: Annotated[str, typer.Option(help="Beginnings of the names of ablations, separated by ;.")] = "",
) -> None:
    """Measure, and write the table and the plot."""
    chosen = [ablation for ablation in ablations(iterations) if ablation.label.startswith(tuple(only.split(";")))]
    name = "ablations-some" if only else "ablations"
    folder, method = pathlib.Path(__file__).parent / "results", Method("pbe", basis)
    study = Study(
        f"Parts of the networks switched off, {iterations} DFT iterations",
        [Setting(ablation.label, ablation.model) for ablation in chosen],
        tuple(molecules.split(",")) if molecules else small_molecules()[:10],
        {} if molecules else {"molecules not trained on": TestGroup(small_molecules()[-4:])},
    )
    options = {"molecules": molecules, "only": only}
    command = (f"python benchmarks/ablations.py --minutes {minutes:g} --seeds {seeds} --basis {basis} "
               f"--iterations {iterations}"
               + "".join(f" --{option} '{value}'" for option, value in options.items() if value))
    rows = []
    for ablation, setting in zip(chosen, study.settings, strict=True):
        with patched(ablation.patches):
            for row in studies.measure(study._replace(settings=[setting]), method, minutes, seeds):
                rows.append(row)
                studies.write(name, study, rows, method, folder, command)
                typer.echo(f"{row['setting']}, seed {row['seed']}: {row['energy_mae_mev']:.3g} meV")


if __name__ == "__main__":
    typer.run(main)
