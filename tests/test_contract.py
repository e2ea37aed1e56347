"""The contract of models: one trainer, run folder and evaluation for every kind, also for a user's own network."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import time

import cases
import h5py
import jax
import numpy as np
import own_network
import pytest

import qptlab as ql
from qptlab.evaluation import labels, reference
from qptlab.gui.session import Session
from qptlab.models import contract, files
from qptlab.sampling import ModelWalk
from qptlab.training import checksums

WATER = ql.Molecule.from_name("water")
DATA = pathlib.Path(__file__).parent / "data"
OWN = own_network.PairConfig(iterations=1, width=8)
GNN = ql.GNNConfig(width=8, layers=1, heads=2, radial=2)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A finished training of the user's own network, without labels."""
    out = tmp_path_factory.mktemp("runs") / "own"
    return ql.Trainer(WATER, cases.QUICK_METHOD, OWN, cases.quick(40), out=out).run()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Geometries of water with labels by PySCF."""
    rng = np.random.default_rng(0)
    mols = [WATER.with_positions(WATER.positions + 0.05 * rng.normal(size=(3, 3))) for _ in range(10)]
    maker = functools.partial(labels.from_pyscf, method=cases.QUICK_METHOD)
    path = tmp_path_factory.mktemp("labels") / "labels.xyz"
    labels.label(mols, maker, path, theory="LDA/sto-3g")
    return ql.read_labels(path)


def supervised(steps):
    return ql.TrainConfig.supervised(steps=steps, batch=4, validation=2, tasks=ql.TaskWeights(forces=0.0))


@pytest.fixture(scope="module")
def gnn(labelled, tmp_path_factory):
    """A finished training of an OrbitalGNN."""
    out = tmp_path_factory.mktemp("runs") / "gnn"
    return ql.Trainer(labelled, model=GNN, train=supervised(30), out=out).run()


@pytest.mark.slow
def test_the_file_of_the_how_to_guide_is_short():
    lines = pathlib.Path(own_network.__file__).read_text().splitlines()
    network = lines[: lines.index('if __name__ == "__main__":')]
    assert len(network) < 40


def test_a_users_own_network_learns_without_labels(own):
    """In the screened scheme the energy lies so near to the solution that batches differ by their geometries only."""
    last = own.rows[-1]
    assert last["validation_mae_mev"] < 0.9 * last["no_network_mae_mev"]
    trained, plain = own.predictor, own.predictor.without_network()
    for mol in own.objective.validation_molecules(own.validation):
        assert float(trained(mol).energy) < float(plain(mol).energy)


def test_a_users_own_network_learns_in_the_papers_scheme(tmp_path):
    network = dataclasses.replace(OWN, scheme="mixing")
    run = ql.Trainer(WATER, cases.QUICK_METHOD, network, cases.quick(40), out=tmp_path / "own").run()
    first, last = run.rows[0], run.rows[-1]
    assert last["energy_ha"] < first["energy_ha"]
    assert last["validation_mae_mev"] < 0.9 * last["no_network_mae_mev"]


def test_a_users_own_network_is_saved_loaded_and_evaluated(own, tmp_path):
    model = ql.load(own.out)
    assert isinstance(model, ql.Model)
    assert (model.kind, model.config, model.label) == ("pair-mlp", OWN, "LDA/sto-3g")
    energy = float(own.predictor(WATER).energy)
    assert float(model(WATER).energy) == energy
    model.save(tmp_path / "own.h5")
    assert float(ql.load(tmp_path / "own.h5")(WATER).energy) == energy
    evaluation = ql.evaluate(model, [WATER])
    assert "pair-mlp" in str(evaluation)
    assert evaluation.errors.energy_mae_mev < evaluation.baselines["no_network"].energy_mae_mev
    assert json.loads((own.out / "config.json").read_text())["kind"] == "pair-mlp"


def test_a_users_own_network_is_watched_in_the_workbench(own):
    session = Session("water")
    session.training.open_run(str(own.out))
    session.training.wait()
    assert session.trainer.step == 40
    assert session.trainer.model_config == OWN
    assert len(session.trainer.rows) == 40


def test_a_users_own_network_has_forces(own):
    rng = np.random.default_rng(1)
    mol = WATER.with_positions(WATER.positions + 0.02 * rng.normal(size=(3, 3)))
    direction, step = rng.normal(size=(3, 3)), 1e-3
    model = own.predictor
    forward, backward = (
        float(model(mol.with_positions(mol.positions + sign * step * direction)).energy) for sign in (1, -1)
    )
    slope = -np.sum(model.forces(mol) * direction)
    assert slope == pytest.approx((forward - backward) / (2 * step), abs=2e-5)


@pytest.mark.parametrize("network", [OWN, cases.SMALL], ids=["own", "equivariant"])
def test_a_training_of_a_users_own_or_an_equivariant_network_continues_bit_for_bit(tmp_path, network):
    whole = ql.Trainer(WATER, cases.QUICK_METHOD, network, cases.quick(6), out=tmp_path / "whole").run()
    half = ql.Trainer(WATER, cases.QUICK_METHOD, network, cases.quick(6), out=tmp_path / "half").start()
    while half.step < 2 and half.is_alive:
        time.sleep(0.01)
    half.stop()
    rest = ql.Trainer.open(tmp_path / "half").run()
    assert [row["loss"] for row in rest.rows] == [row["loss"] for row in whole.rows]
    for one, two in zip(*(jax.tree.leaves(trainer.predictor.params) for trainer in (whole, rest)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_unregistered_network_is_refused_and_nothing_is_imported(own, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(own.out, copy)
    record = json.loads((copy / "config.json").read_text())
    record["kind"] = "antigravity"
    (copy / "config.json").write_text(checksums.sealed(record))
    with pytest.raises(ql.InputError, match=r"Expected a registered kind of model \(.*qpt.*\), got 'antigravity'"):
        ql.load(copy)
    assert "antigravity" not in sys.modules
    path = tmp_path / "own.h5"
    own.predictor.save(path)
    with h5py.File(path, "a") as file:
        file.attrs["description"] = json.dumps(record)
    files.seal(path)
    with pytest.raises(ql.InputError, match="got 'antigravity'"):
        ql.load(path)


def test_a_fresh_process_needs_the_module_that_registers_the_network(own):
    code = f"import qptlab as ql; print(ql.load({str(own.out)!r}).kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Expected a registered kind of model" in done.stderr


def test_settings_of_the_wrong_network_are_refused(labelled, tmp_path):
    for data, model, message in (
        (WATER, GNN, "learns without labels, got GNNConfig"),
        (labelled, ql.QPTConfig(), "learns from labels, got QPTConfig"),
        (WATER, "micro", "learns without labels, got str"),
    ):
        with pytest.raises(ql.InputError, match=message):
            ql.Trainer(data, model=model, out=tmp_path / "run")
    with pytest.raises(ql.InputError, match=r"'qpt', which is taken by QPTConfig"):
        ql.register_network("qpt", own_network.PairConfig, own_network.pair_network)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_without_a_schema_version_loads_predicts_is_repeated_and_continues(tmp_path):
    """An OrbitalGNN of 5 geometries, by the code before folders had versions and checksums."""
    expected = json.loads((DATA / "run-schema-1.json").read_text())
    shutil.copytree(DATA / "run-schema-1", tmp_path / "run")
    prediction = ql.load(tmp_path / "run")(WATER)
    assert float(prediction.energy) == pytest.approx(expected["energy"], abs=1e-6)
    np.testing.assert_allclose(prediction.dipole, expected["dipole"], atol=1e-5)
    found = ql.reproduce(tmp_path / "run")
    assert (found.steps, found.difference) == (3, None)
    assert "qptlab_source_sha256" in found.elsewhere
    run = ql.Run.open(tmp_path / "run")
    assert [event["text"] for event in run.events() if event["kind"] == "note"] == ["a remark"]
    trainer = ql.Trainer.open(tmp_path / "run", dataclasses.replace(run.train_config, steps=5)).run()
    assert [row["step"] for row in trainer.rows] == [1, 2, 3, 4, 5]


def test_a_run_folder_of_version_010_loads_predicts_and_continues(tmp_path):
    expected = json.loads((DATA / "run-0.1.0.json").read_text())
    shutil.copytree(DATA / "run-0.1.0", tmp_path / "run")
    model = ql.load(tmp_path / "run")
    prediction = model(WATER)
    assert (model.kind, model.config.scheme) == ("qpt", "mixing")
    assert float(prediction.energy) == pytest.approx(expected["energy"], abs=1e-9)
    assert float(prediction.residual) == pytest.approx(expected["residual"], abs=1e-7)
    np.testing.assert_allclose(prediction.mo_energy, expected["mo_energy"], atol=1e-7)
    plain = float(model.without_network()(WATER).energy)
    assert plain == pytest.approx(expected["energy_without_network"], abs=1e-9)
    run = ql.Run.open(tmp_path / "run")
    assert (run.kind, run.model_config.preset) == ("qpt", "micro")
    assert run.method == ql.Method("pbe", "sto-3g", grid_level=0)
    assert [event["text"] for event in run.events() if event["kind"] == "note"] == ["a remark"]
    longer = dataclasses.replace(run.train_config, steps=6)
    trainer = ql.Trainer.open(tmp_path / "run", longer).run()
    assert [row["step"] for row in trainer.rows] == [1, 2, 3, 4, 5, 6]


def test_an_orbital_gnn_has_a_run_folder_like_every_model(gnn, labelled):
    assert {path.name for path in gnn.out.iterdir()} >= {
        "config.json", "metrics.csv", "events.jsonl", "checkpoints", "validation.xyz", "model-card.md", "labels.xyz",
        "statistics.json",
    }
    model = ql.load(gnn.out)
    assert isinstance(model, ql.Model)
    assert (model.kind, model.label) == ("orbital-gnn", "LDA/sto-3g")
    assert float(model(WATER).energy) == float(gnn.predictor(WATER).energy)
    assert "fock" not in model.provides
    assert model(WATER).fock is None
    row = gnn.rows[-1]
    assert row["validation_mae_mev"] > 0
    assert row["no_network_mae_mev"] > 0
    assert "OrbitalGNN" in (gnn.out / "model-card.md").read_text()
    evaluation = ql.evaluate(model, labelled)
    assert set(evaluation.to_dict()) >= {"n", "kind", "energy_mae_mev", "dipole_mae_debye", "baselines"}
    assert "OrbitalGNN" in str(evaluation)
    assert evaluation.to_csv().count("\n") == 1 + len(labelled.molecules)


def test_a_training_on_labels_pauses_and_continues_bit_for_bit(gnn, labelled, tmp_path):
    half = ql.Trainer(labelled, model=GNN, train=supervised(30), out=tmp_path / "half").start()
    while half.step < 5 and half.is_alive:
        time.sleep(0.001)
    half.pause()
    while half.status == "running":
        time.sleep(0.001)
    paused = half.step
    half.stop()
    assert ql.Run.open(half.out).restore().step == paused
    rest = ql.Trainer.open(half.out).run()
    assert [row["loss"] for row in rest.rows] == [row["loss"] for row in gnn.rows]
    assert float(rest.predictor(WATER).energy) == float(gnn.predictor(WATER).energy)


def test_a_training_does_not_continue_with_different_labels(gnn, labelled):
    fewer = labelled.take(range(8))
    with pytest.raises(ql.InputError, match="Expected labels 10 geometries"):
        ql.Trainer(fewer, model=GNN, train=supervised(40), out=gnn.out, resume=True)


def test_damaged_labels_are_noticed(gnn, tmp_path):
    shutil.copytree(gnn.out, tmp_path / "run")
    path = tmp_path / "run" / "labels.xyz"
    path.write_text(path.read_text().replace("energy=-2", "energy=-1"))
    with pytest.raises(ql.InputError, match=r"Expected labels\.xyz of .* as it was written, got a changed file"):
        ql.load(tmp_path / "run")


def test_a_property_that_a_model_does_not_predict_is_refused_in_a_sentence(gnn):
    model = gnn.predictor
    for action in (
        lambda: ql.guess(WATER, model),
        lambda: labels.from_model(WATER, model),
        lambda: ql.require(model, "fock"),
    ):
        with pytest.raises(ql.InputError, match=r"Expected a model that predicts .*, got one of kind 'orbital-gnn'"):
            action()
    with pytest.raises(ql.InputError, match="Expected a model, got str"):
        ql.require("runs/water")
    with pytest.raises(ql.InputError, match="Expected labelled geometries"):
        ql.evaluate(model, [WATER])


def test_kinds_are_listed():
    assert {"equivariant", "qpt", "orbital-gnn", "pair-mlp"} <= set(contract.kinds())
    assert contract.title_of("qpt") == "QPT"
    assert contract.kind_of(OWN) == "pair-mlp"


def test_every_kind_has_a_class_of_settings_of_its_own():
    with pytest.raises(ql.InputError, match=r"for 'pair-mlp-2' and 'pair-mlp'; derive a new class"):
        ql.register_network("pair-mlp-2", own_network.PairConfig, own_network.pair_network)
    assert "pair-mlp-2" not in contract.kinds()


def test_a_model_without_its_network_is_saved_and_loaded(own, tmp_path):
    plain = own.predictor.without_network()
    plain.save(tmp_path / "plain.h5")
    assert float(ql.load(tmp_path / "plain.h5")(WATER).energy) == float(plain(WATER).energy)


@pytest.mark.parametrize("kind", ["own", "gnn"])
def test_arrays_of_other_shapes_are_refused(request, tmp_path, kind):
    path = tmp_path / "model.h5"
    request.getfixturevalue(kind).predictor.save(path)
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = next(name for name in names if getattr(file[name], "ndim", 0) == 2 and "scales" not in name)
        del file[name]
        file[name] = np.zeros((1, 1))
    files.seal(path)
    with pytest.raises(ql.InputError, match="different shapes"):
        ql.load(path)


def test_the_sampler_model_walks_on_the_model_that_is_trained(tmp_path, monkeypatch):
    models = []
    monkeypatch.setattr(
        ModelWalk, "source",
        lambda self, system, model, seed, start: models.append(model) or (lambda params: system.molecule.positions),
    )
    config = dataclasses.replace(cases.quick(1), sampling=ql.Sampling("model"), iterations=0)
    ql.Trainer(WATER, cases.QUICK_METHOD, ql.QPTConfig(iterations=2), config, out=tmp_path / "w").run()
    assert {model.config.iterations for model in models} == {0}


def test_validation_geometries_are_written_before_their_references(tmp_path, monkeypatch):
    trainer = ql.Trainer(WATER, cases.QUICK_METHOD, OWN, cases.quick(3), out=tmp_path / "w")

    def stop(*arguments, **options):
        raise RuntimeError("no reference")

    monkeypatch.setattr(reference, "make_test_set", stop)
    with pytest.raises(RuntimeError, match="no reference"):
        trainer.run()
    assert len(ql.read_xyz(trainer.out / "validation.xyz")) == cases.quick(3).validation
