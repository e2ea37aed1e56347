"""Tests of the stream of training samples and of the training loop."""

import collections
import dataclasses
import itertools
import sys

import cases
import jax
import numpy as np
import pytest
from pyscf.scf import hf
from scipy.spatial.distance import pdist

import qptlab as ql
from qptlab.dft import scf as engine
from qptlab.evaluation import reference
from qptlab.models.systems import System
from qptlab.sampling import register
from qptlab.training import stream as stream_module
from qptlab.training.config import TrainConfig
from qptlab.training.label_free import LabelFree
from qptlab.training.loop import MAX_SKIPPED, NotFiniteError, Watch, initial_state, train
from qptlab.training.stream import Stream

METHOD = ql.Method("lda", "sto-3g", grid_level=0)
QUICK = TrainConfig(
    minutes=None, steps=6, batch=4, reuse=2, warmup_steps=2, sampling=ql.Sampling("perturb"), validation=2
)


def stream(names=("water",), *, seed=0, batch=4, reuse=2, step=0, sampler="perturb", process=(0, 1)):
    systems, _ = ql.make_systems([ql.Molecule.from_name(name) for name in names], METHOD, cases.QUICK_MODEL)
    return Stream(systems, ql.Sampling(sampler), batch=batch, reuse=reuse, seed=seed, step=step, process=process)


def same(ours, theirs):
    for one, two in zip(ours, theirs, strict=True):
        assert one.system.molecule.formula == two.system.molecule.formula
        for a, b in zip(jax.tree.leaves(one.sample), jax.tree.leaves(two.sample), strict=True):
            np.testing.assert_array_equal(a, b)


def test_batches_are_the_same_for_a_seed_whatever_the_threads_do():
    with stream() as one, stream() as two:
        for ours, theirs in itertools.islice(zip(one, two, strict=True), 5):
            same(ours, theirs)


@pytest.mark.parametrize(("names", "sampler"), [(("water", "ethanol"), "perturb"), cases.slow(("water",), "md")])
def test_a_stream_entered_later_goes_on_as_it_would_have_done(names, sampler, monkeypatch):
    """The replay buffer has already dropped its first samples, and the chains are in their second segment."""
    monkeypatch.setattr(stream_module, "REPLAY_MAX", 8)
    monkeypatch.setattr(register, "SEGMENT", 3)
    with stream(names, sampler=sampler) as whole, stream(names, sampler=sampler, step=9) as late:
        taken = list(itertools.islice(whole, 12))
        for ours, theirs in zip(taken[9:], late, strict=False):
            same(ours, theirs)
        assert late.drawn >= whole.drawn


@pytest.mark.parametrize("sampler", ["perturb", "md"])
def test_a_stream_of_many_molecules_keeps_few_trajectories(sampler, monkeypatch):
    """A trajectory that is dropped starts again at the place where it was left."""
    names = ("water", "ammonia")
    with stream(names, sampler=sampler) as whole:
        expected = list(itertools.islice(whole, 6))
    monkeypatch.setattr(stream_module, "MAX_SOURCES", 1)
    with stream(names, sampler=sampler) as bounded:
        for ours, theirs in zip(expected, bounded, strict=False):
            same(ours, theirs)
        assert all(len(bucket._sources) == 1 for bucket in bounded._buckets)


@dataclasses.dataclass(frozen=True)
class NoWater(ql.Sampler):
    """Sampler that fails for water after its first geometry."""

    def draw(self, mol, rng):
        yield mol.positions + 0.01 * rng.normal(size=mol.positions.shape)
        if mol.formula == "H2O":
            raise ql.InputError("Expected another molecule, got water; use ammonia.")
        while True:
            yield mol.positions + 0.01 * rng.normal(size=mol.positions.shape)


def test_a_molecule_that_cannot_be_sampled_does_not_end_the_training_of_others():
    def drawn(*names):
        systems, _ = ql.make_systems([ql.Molecule.from_name(name) for name in names], METHOD, cases.QUICK_MODEL)
        with Stream(systems, NoWater(), batch=2, reuse=1, seed=0) as batches:
            return [one for batch in itertools.islice(batches, 8) for one in batch]

    with pytest.warns(UserWarning, match="The given geometry of water is trained on: Expected another molecule"):
        samples = drawn("water", "ammonia")
    water = [one for one in samples if one.system.molecule.formula == "H2O"]
    assert len(water) > 2
    expected = np.sort(pdist(ql.Molecule.from_name("water").positions))  # positions are in the molecule's frame
    at_reference = [np.allclose(np.sort(pdist(one.sample.ints.positions[:3])), expected) for one in water]
    assert not at_reference[0]
    assert all(at_reference[1:])
    with pytest.raises(ql.InputError, match="got water"):
        drawn("water")


def test_processes_that_share_a_stream_have_the_batches_of_one(monkeypatch):
    """Each process creates only its own samples. This also holds for a stream that starts at a later step."""
    made = []
    make = System.host_integrals
    monkeypatch.setattr(System, "host_integrals", lambda *given: made.append(1) or make(*given))

    def energies(drawn):
        return sorted(float(each.sample.ints.e_nuc) for each in drawn)

    with stream() as whole:
        expected = [energies(next(whole)) for _ in range(8)]
    alone = len(made)
    made.clear()
    with stream(process=(1, 2)) as second:
        for _ in range(8):
            next(second)
    assert len(made) < 0.7 * alone
    with stream(process=(0, 2)) as first, stream(process=(1, 2)) as second, stream(process=(1, 2), step=5) as late:
        both = [(next(first), next(second)) for _ in range(8)]
        assert {len(each) for pair in both for each in pair} == {2}
        assert [energies(one + two) for one, two in both] == expected
        for _, two in both[5:]:
            same(two, next(late))


def test_every_geometry_is_used_as_often_as_asked_on_average():
    with stream(batch=4, reuse=4) as batches:
        uses = collections.Counter()
        for _ in range(40):
            energies = [float(drawn.sample.ints.e_nuc) for drawn in next(batches)]
            assert len(set(energies)) == 4, "no geometry twice in a batch"
            uses.update(energies)
        # Four geometries at the start, then one new geometry per batch, and none is lost.
        # So each is used four times on average.
        assert batches.drawn == len(uses) == 4 + 39
        assert batches.waited >= 0


def test_a_geometry_may_be_used_more_often_than_a_batch_is_large():
    with stream(batch=4, reuse=16) as batches:
        drawn = []
        for _ in range(17):
            assert len(next(batches)) == 4
            drawn.append(batches.drawn)
    assert drawn[0] == 4
    assert drawn[-1] == 4 + 4, "one new geometry every fourth step"


def test_molecules_have_their_turn_as_often_as_there_are_of_them():
    """Water and ammonia share a shape, ethanol has a larger one. A batch has one shape, at first the smaller."""
    with stream(("ethanol", "water", "ammonia"), batch=6, reuse=6) as batches:
        shapes = []
        for drawn in itertools.islice(batches, 80):
            formulas = {each.system.molecule.formula for each in drawn}
            assert formulas in ({"H2O", "H3N"}, {"C2H6O"})
            shapes.append(len(formulas))
    assert set(shapes[:20]) == {2}
    assert shapes[20:].count(2) / 60 == pytest.approx(2 / 3, abs=0.15)


def test_the_functions_of_a_larger_shape_are_compiled_while_smaller_molecules_are_trained_on(monkeypatch):
    """The order of the batches does not depend on it: trainings with the same seed are equal."""
    monkeypatch.setattr(stream_module, "CURRICULUM_STEPS", 2)

    class Names(Watch):
        def compiled(self, name, executable, seconds):
            names.append(name)

    mols = [ql.Molecule.from_name(name) for name in ("ethanol", "water")]
    objective = LabelFree.of(mols, METHOD, cases.QUICK_MODEL)
    names, losses = [], []
    for _ in range(2):
        names.clear()
        losses.append([metrics.loss for _, metrics in train(objective, cases.quick(6), watch=Names())])
        assert sorted(names) == ["correct", "correct", "judge", "judge", "pull", "pull", "update"]
    assert losses[0] == losses[1]


def test_a_fault_in_the_source_reaches_the_one_who_asks():
    with stream(sampler="torsions") as batches, pytest.raises(ql.InputError, match="a rotatable bond"):
        next(batches)


def test_training_needs_no_label_and_no_scf(monkeypatch):
    """Neither PySCF's SCF nor that of the engine runs, and no reference is computed, for molecules of two shapes."""
    def forbidden(*_, **__):
        raise AssertionError("Expected a training without labels, got an SCF.")

    for owner, name in (
        (hf, "kernel"), (hf.SCF, "kernel"), (hf.SCF, "scf"), (reference, "_run"), (reference, "_cached_run"),
        (engine, "solve"), (engine, "minimise"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    monkeypatch.setattr(stream_module, "CURRICULUM_STEPS", 2)
    mols = [ql.Molecule.from_name(name) for name in ("water", "methane", "ethanol")]
    objective = LabelFree.of(mols, METHOD, ql.EquivariantConfig("small"))
    states = list(train(objective, cases.quick(6)))
    assert states[-1][0].step == 6
    with pytest.raises(AssertionError, match="got an SCF"):
        reference.converged(mols[0], METHOD)


def test_training_lowers_the_energy_towards_the_solution():
    """The loss is an energy. It decreases, but never below the converged energy."""
    qpt, system = cases.model("water", METHOD, 0)
    config = TrainConfig(
        minutes=None, steps=40, batch=4, reuse=4, warmup_steps=5, sampling=ql.Sampling("perturb")
    )
    home = system.frame.reference_positions
    test = system.sample(system.host_integrals(home))
    floor = float(ql.scf(system.molecule.with_positions(home), METHOD).energy)
    before = float(qpt.compiled_predict(None, test).energy) - floor
    *_, (state, _) = train(LabelFree(qpt, [system]), config)
    after = float(qpt.compiled_predict(state.params, test).energy) - floor
    assert before > 1e-2
    assert -1e-9 < after < 0.02 * before


@pytest.mark.slow
def test_the_self_consistency_loss_leads_to_the_solution_too():
    qpt, system = cases.model("water", METHOD, 0)
    config = dataclasses.replace(QUICK, steps=60, loss="self-consistency", reuse=4)
    rows = [metrics for _, metrics in train(LabelFree(qpt, [system]), config)]
    assert rows[-1].loss < 0.05 * rows[0].loss
    assert rows[-1].energy_ha < rows[0].energy_ha


def test_a_model_may_learn_from_labels_for_comparison():
    qpt, system = cases.model("water", METHOD, 0)
    config = dataclasses.replace(QUICK, steps=40, loss="labels", reuse=4)
    rows = [metrics for _, metrics in train(LabelFree(qpt, [system]), config)]
    assert rows[-1].loss < 0.2 * rows[0].loss
    assert np.isnan(rows[0].energy_ha)
    assert not rows[-1].skipped


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    qpt, system = cases.model("water", METHOD, 0)
    whole, parts = (
        list(train(LabelFree(qpt, [system]), dataclasses.replace(QUICK, microbatch=size))) for size in (None, 2)
    )
    for (_, one), (_, two) in zip(whole, parts, strict=True):
        assert one.energy_ha == pytest.approx(two.energy_ha, abs=1e-7)
        assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-3)


@pytest.mark.parametrize(
    ("names", "network"),
    [
        (("water",), cases.QUICK_MODEL), (("water",), cases.SMALL),
        cases.slow(("water", "methane", "ethanol"), cases.QUICK_MODEL),
        cases.slow(("water", "methane", "ethanol"), cases.SMALL),
    ],
)
def test_a_training_that_goes_on_does_what_it_would_have_done(names, network):
    """Every step gives the same digits as without the interruption. So does a second training with the same seed."""
    systems, kinds = ql.make_systems([ql.Molecule.from_name(name) for name in names], METHOD, network)
    model = ql.CorrectionModel(network, kinds)
    whole = list(train(LabelFree(model, systems), QUICK))
    late = list(train(LabelFree(model, systems), QUICK, whole[2][0]))
    again = list(train(LabelFree(model, systems), QUICK))
    for (_, one), (_, two) in [*zip(whole[3:], late, strict=True), *zip(whole, again, strict=True)]:
        assert one[2:7] == two[2:7]
        assert (one.step, one.geometries) == (two.step, two.geometries)
    for one, two in zip(jax.tree.leaves(whole[-1][0].average), jax.tree.leaves(late[-1][0].average), strict=True):
        np.testing.assert_array_equal(one, two)
    assert [metrics.step for _, metrics in whole] == [1, 2, 3, 4, 5, 6]
    assert whole[0][1].compile_s > 0
    assert not any(metrics.skipped for _, metrics in whole)


def test_statistics_of_features_are_fitted_before_training_and_do_not_change_in_it():
    """Neither gradients nor weight decay change them; a resumed training would fit the same ones again."""
    systems, kinds = ql.make_systems([ql.Molecule.from_name("water")], METHOD, cases.SMALL)
    objective = LabelFree(ql.CorrectionModel(cases.SMALL, kinds), systems)
    start = initial_state(objective, QUICK)
    other = initial_state(objective, dataclasses.replace(QUICK, seed=1))
    assert not np.array_equal(other.params["statistics"]["pair_mean"], start.params["statistics"]["pair_mean"])
    assert start.seconds > 0, "the time of the statistics counts as training time"
    *_, (end, _) = train(objective, dataclasses.replace(QUICK, weight_decay=0.1, learning_rate=1e-2))
    for name, fitted in start.params["statistics"].items():
        assert np.ptp(fitted) > 0
        for params in (end.params, end.average):
            np.testing.assert_array_equal(params["statistics"][name], fitted)
    moved = [
        module for module in end.params if module != "statistics" and not all(
            np.array_equal(*pair) for pair in zip(
                end.params[module].values(), start.params[module].values(), strict=True
            )
        )
    ]
    assert len(moved) > 5


def test_the_default_network_of_molecules_is_equivariant():
    objective = ql.make_objective(ql.Molecule.from_name("water"), METHOD)
    assert (objective.kind, objective.model_config) == ("equivariant", ql.EquivariantConfig())
    assert objective.model_config.scheme == "screened"


def test_updates_that_are_not_finite_are_skipped_then_reported(monkeypatch):
    """A closed gap gives a gradient of NaN. The parameters do not change, and the error says why training ends."""
    qpt, system = cases.model("water", METHOD, 0)
    # With this limit, every gap counts as closed.
    monkeypatch.setattr(sys.modules["qptlab.dft.energy"], "MIN_GAP_HARTREE", 1e6)
    start = initial_state(LabelFree(qpt, [system]), QUICK)
    seen = []

    def until_it_gives_up():
        for state, metrics in train(LabelFree(qpt, [system]), dataclasses.replace(QUICK, steps=50)):
            seen.append(metrics.skipped)
            for trees in ((start.params, state.params), (start.average, state.average)):
                for old, new in zip(*map(jax.tree.leaves, trees), strict=True):
                    np.testing.assert_array_equal(old, new)

    with pytest.raises(NotFiniteError, match=f"{MAX_SKIPPED} updates in a row") as caught:
        until_it_gives_up()
    assert seen == [True] * (MAX_SKIPPED - 1)
    assert [mol.formula for mol in caught.value.geometries] == ["H2O"] * QUICK.batch


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"minutes": 0.0}, "number of minutes, got 0.0"),
        ({"minutes": float("nan")}, "number of minutes, got nan"),
        ({"minutes": None}, "minutes or steps of training, got neither"),
        ({"steps": 0}, "as steps, got 0"),
        ({"batch": 0}, "as batch, got 0"),
        ({"seed": -1}, "as seed, got -1"),
        ({"learning_rate": 3.0}, "as learning rate, got 3.0"),
        ({"averaging": 1.0}, "as averaging, got 1.0"),
        ({"loss": "truth"}, "Expected one of energy, self-consistency, labels as loss, got 'truth'"),
        ({"iterations": 17}, "0 to 16 DFT iterations, got 17"),
        ({"batch": 16, "microbatch": 5}, "divisor of the batch of 16 as microbatch, got 5"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(choice, said):
    with pytest.raises(ql.InputError, match=said):
        TrainConfig(**choice)
