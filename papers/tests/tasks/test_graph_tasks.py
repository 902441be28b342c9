"""Node classification: the files are read right, one seed decides a trial."""

import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from citation_networks import MadeUp, dense, pickled
from torch.nn import functional as F

import flatwise
from flatwise.study.arms import Arm
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.registry import get_task
from flatwise.study.task import SettingsError
from flatwise.study.tasks.classification import DataError
from flatwise.study.tasks.training import percent_wrong
from flatwise.study.trial import Trial
from flatwise_papers.data import graphs as planetoid
from flatwise_papers.data.graphs import NodeClassification, SparseMatrix
from flatwise_papers.tasks import graphs
from flatwise_papers.tasks.graphs import (
    GRAPH_SETTINGS,
    GRAPH_TASKS,
    Dropout,
    GraphSettings,
    build_graph_network,
    propagation,
    train_graph_network,
)

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
NAMES = ("Cora", "CiteSeer", "PubMed")
KINDS = ("gcn", "gat", "gin", "sage")
QUICK = GRAPH_SETTINGS.updated({"epochs": 3})

needs_planetoid = pytest.mark.skipif(
    not (SHARED / "planetoid").is_dir(), reason="no planetoid in ../shared/data beside the checkout"
)


# A made-up citation network, read from files


@pytest.fixture(scope="module")
def made_up():
    return MadeUp()


@pytest.fixture(scope="module")
def papers(made_up, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as monkeypatch:
        made_up.write(folder / "Cora" / "raw", monkeypatch)
        return planetoid.load_cora(folder)


def test_papers_words_and_citations_are_read(made_up, papers):
    sums = made_up.words.sum(axis=1, keepdims=True)
    expected = np.divide(made_up.words, sums, out=np.zeros_like(made_up.words), where=sums > 0)
    assert torch.allclose(dense(papers.features), torch.from_numpy(expected))
    assert papers.labels.tolist() == made_up.labels.tolist()
    assert (papers.train.tolist(), papers.val.tolist()) == (list(range(12)), list(range(12, 62)))
    assert papers.test.tolist() == sorted(made_up.test)
    assert papers.classes == 3
    source, target = papers.edges
    assert papers.edges.shape[1] == made_up.adjacency.sum()
    assert made_up.adjacency[source, target].all()
    assert (target.diff() >= 0).all()


@pytest.mark.parametrize("folder", ["planetoid/Cora/raw", "Cora/raw", "planetoid/Cora", "Cora", "raw", "."])
def test_layouts(folder, made_up, tmp_path, monkeypatch):
    made_up.write(tmp_path / "data" / folder, monkeypatch)
    monkeypatch.setenv("FLATWISE_DATA", str(tmp_path / "data"))
    assert planetoid.load_cora().classes == 3


def test_missing_and_corrupt_files(made_up, tmp_path, monkeypatch):
    folder = tmp_path / "Cora" / "raw"
    made_up.write(folder, monkeypatch)
    content = bytearray((folder / "ind.cora.tx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "ind.cora.tx").write_bytes(content)
    with pytest.raises(DataError, match=r"ind\.cora\.tx' is corrupt: expected SHA-256 "):
        planetoid.load_cora(tmp_path)
    (folder / "ind.cora.tx").unlink()
    with pytest.raises(DataError, match=r"'ind\.cora\.tx' is not in the data folder .*looked for .*planetoid/Cora/raw"):
        planetoid.load_cora(tmp_path)


class Harmful:
    def __reduce__(self):
        return print, ("not while reading data",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled(Harmful()), r"it names __builtin__\.print"),
        (pickled([1, 2])[:-2], "ran out of input|truncated|EOF"),
        (b"", "ran out of input"),
        (b"<html>", "unpickl|load key|opcode|unsupported"),
    ],
)
def test_pickles_that_hold_something_else(content, message, capsys):
    with pytest.raises(DataError, match=rf"(?is)'ind\.cora\.x' cannot be read as a planetoid file \(.*({message})"):
        planetoid.parse_pickle("ind.cora.x", content)
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def real():
    return {name: planetoid.load_planetoid(name, SHARED) for name in NAMES}


@needs_planetoid
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "classes", "train"),
    [
        ("Cora", 2708, 10556, 1433, 7, 140),
        ("CiteSeer", 3327, 9104, 3703, 6, 120),
        ("PubMed", 19717, 88648, 500, 3, 60),
    ],
)
def test_published_figures(name, nodes, edges, features, classes, train, real):
    data = real[name]
    assert (data.features.shape, data.edges.shape) == ((nodes, features), (2, edges))
    assert (data.classes, data.labels.unique().tolist()) == (classes, list(range(classes)))
    assert (len(data.train), len(data.val), len(data.test)) == (train, 500, 1000)
    assert data.labels[data.train].bincount().tolist() == [20] * classes
    assert len(torch.cat([data.train, data.val, data.test]).unique()) == train + 1500
    source, target = data.edges
    assert not (source == target).any()
    assert torch.equal((source * nodes + target).sort()[0], (target * nodes + source).sort()[0])


# Sparse matrices


@pytest.fixture
def matrix():
    entries = torch.tensor([[3, 0, 3, 1, 0, 3], [0, 2, 4, 2, 0, 1]])  # row 2 and column 3 are empty
    return SparseMatrix.of(*entries, torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0, -5.0]), (4, 5))


def test_sparse_products_and_their_derivatives(matrix):
    expected = torch.zeros(4, 5)
    expected[[3, 0, 3, 1, 0, 3], [0, 2, 4, 2, 0, 1]] = torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0, -5.0])
    assert torch.equal(dense(matrix), expected)
    assert torch.equal(matrix.transposed_times(torch.eye(4)), expected.t())
    assert torch.equal(dense(matrix.select_rows(torch.tensor([0, 2, 3]))), expected[[0, 2, 3]])
    assert torch.equal(dense(matrix.with_values(2 * matrix.rows.values)), 2 * expected)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    for function in (matrix.__matmul__, lambda x: matrix.with_values(matrix.rows.values + 1) @ x):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x).tanh(), x)
        assert torch.autograd.gradgradcheck(lambda x, f=function: f(x).tanh(), x)
    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradgradcheck(lambda y: matrix.transposed_times(y).tanh(), y)


# Networks


@pytest.mark.parametrize("kind", KINDS)
def test_training_nodes_need_only_what_is_two_edges_away(kind, papers):
    few = papers.train[:2]
    reach = papers.within_hops(few, 2)
    assert len(few) < len(reach) < len(papers.labels) - 20
    assert set(papers.within_hops(few, 1).tolist()) == {*few.tolist(), *papers.edges[0, papers.edges[1] < 2].tolist()}
    network = build_graph_network(kind, 30, 3, Dropout(0.5, 0)).eval()
    whole = network(papers.features, propagation(kind, papers.edges, len(papers.labels)))
    part = network(papers.features.select_rows(reach), propagation(kind, papers.edges, len(papers.labels), reach))
    assert torch.allclose(part[torch.searchsorted(reach, few)], whole[few], atol=1e-6)
    assert not torch.allclose(part, whole[reach], atol=1e-6)  # the rim is cut off: the test can fail


@pytest.mark.parametrize(
    ("task", "parameters"),
    [
        # Words w, classes c, hidden 16. GCN: 16w + 16 + 16c + c.
        ("cora-gcn", 23_063),
        ("citeseer-gcn", 59_366),
        ("pubmed-gcn", 8_067),
        # GAT: 16w + 16c, and of each layer's outputs 3 vectors: two of attention, a bias.
        ("cora-gat", 16 * 1433 + 16 * 7 + 3 * (16 + 7)),
        ("citeseer-gat", 16 * 3703 + 16 * 6 + 3 * (16 + 6)),
        ("pubmed-gat", 16 * 500 + 16 * 3 + 3 * (16 + 3)),
        # GIN: linear layers w-16-16 and 16-16-c.
        ("cora-gin", 16 * 1433 + 16 + 2 * (16 * 16 + 16) + 16 * 7 + 7),
        ("citeseer-gin", 16 * 3703 + 16 + 2 * (16 * 16 + 16) + 16 * 6 + 6),
        ("pubmed-gin", 16 * 500 + 16 + 2 * (16 * 16 + 16) + 16 * 3 + 3),
        # GraphSAGE: two matrices a layer, one bias.
        ("cora-sage", 2 * 16 * 1433 + 16 + 2 * 16 * 7 + 7),
        ("citeseer-sage", 2 * 16 * 3703 + 16 + 2 * 16 * 6 + 6),
        ("pubmed-sage", 2 * 16 * 500 + 16 + 2 * 16 * 3 + 3),
    ],
)
def test_parameter_counts(task, parameters):
    words, classes = {"cora": (1433, 7), "citeseer": (3703, 6), "pubmed": (500, 3)}[task.split("-")[0]]
    nodes = torch.arange(2)
    features = SparseMatrix.of(nodes, nodes, torch.ones(2), (2, words))
    data = NodeClassification(features, torch.tensor([[0, 1], [1, 0]]), nodes, nodes, nodes, None, classes)
    trial = Recorded(Arm("vanilla"))
    get_task(task).train(trial, QUICK, data)
    assert sum(p.numel() for p in trial.initial) == parameters


# Dropout


def test_dropout_of_dense_and_sparse_features(matrix):
    x = torch.ones(1000, 300)
    dropped = Dropout(0.3, seed=0)(x)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7], rel=1e-4)
    assert (dropped == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)
    assert dropped.double().mean().item() == pytest.approx(1, abs=0.005)
    assert not torch.equal(dropped[:500], dropped[500:])
    sparse = Dropout(0.5, seed=2)(matrix)
    values = sparse.rows.values
    assert torch.equal(values, torch.where(values == 0, 0, 2 * matrix.rows.values))
    assert 0 < (values == 0).sum() < len(values)
    assert torch.equal(sparse.transposed_times(torch.eye(4)), dense(sparse).t())


def test_dropout_of_nothing():
    x = torch.ones(100)
    assert Dropout(0.0, seed=0)(x) is x
    module = Dropout(0.5, seed=0)
    assert module.eval()(x) is x
    module.train()
    assert torch.equal(module(x), Dropout(0.5, seed=0)(x))  # evaluation has drawn nothing
    assert not torch.equal(module(x), Dropout(0.5, seed=0)(x))  # the next step has other masks
    assert Dropout(0.999999, seed=0)(x).isfinite().all()


# One seed decides a trial, and nothing else


class Recorded(Trial):
    """A trial that keeps the weights it began with."""

    def __init__(self, arm, seed=0, **options):
        super().__init__(arm, seed, **options)

    def attach(self, optimizer, **options):
        self.optimizer, self.options = optimizer, options
        self.initial = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
        return super().attach(optimizer, **options)

    @property
    def metrics(self):
        return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in self.epochs]


def run(data, settings=QUICK, seed=0, kind="gcn", arm=Arm("vanilla"), **options):
    trial = Recorded(arm, seed, **options)
    train_graph_network(trial, settings, data, kind=kind)
    return trial


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_one_result_and_the_global_state_stays(kind, papers):
    first = run(papers, kind=kind, seed=5)
    torch.rand(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].copy()
    second = run(papers, kind=kind, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before[2])
    assert first.metrics == second.metrics
    assert equal(first.initial, second.initial)
    assert not equal(first.initial, run(papers, kind=kind, seed=6).initial)


@pytest.mark.parametrize("kind", KINDS)
def test_arms_of_a_seed_share_weights_and_dropout(kind, papers):
    # A rate too small to change a bit: the losses differ by their dropout masks alone.
    still = QUICK.updated({"learning_rate": 1e-30, "epochs": 4})
    vanilla, leap = run(papers, still, kind=kind), run(papers, still, kind=kind, arm=Arm("leap", flatwise.leap(0.5)))
    losses = [epoch["train_loss"] for epoch in vanilla.epochs]
    assert len(set(losses)) == 4
    assert losses == [epoch["train_loss"] for epoch in leap.epochs]
    assert equal(vanilla.initial, leap.initial)
    # And the arms are not the same thing.
    moving = QUICK.updated({"learning_rate": 0.1})
    assert run(papers, moving, kind=kind).metrics != run(papers, moving, kind=kind, arm=leap.arm).metrics


def test_seeds_have_masks_of_their_own(papers, monkeypatch):
    still = QUICK.updated({"learning_rate": 1e-30})
    initialized = graphs.initialized
    monkeypatch.setattr(graphs, "initialized", lambda build, seed: initialized(build, 0))
    first, second = run(papers, still, seed=0), run(papers, still, seed=1)
    assert equal(first.initial, second.initial)
    assert first.metrics[0]["train_loss"] != second.metrics[0]["train_loss"]
    none = still.updated({"dropout": 0})
    assert len({epoch["train_loss"] for seed in (0, 1) for epoch in run(papers, none, seed=seed).epochs}) == 1


# Training and metrics


def test_one_step_an_epoch(papers):
    trial = run(papers, QUICK.updated({"schedule": "cosine"}))
    assert {k: trial.options[k] for k in ("steps_per_epoch", "epochs", "interval")} == {
        "steps_per_epoch": 1,
        "epochs": 3,
        "interval": "epoch",
    }
    assert [epoch["scheduled_lr"] for epoch in trial.epochs] == pytest.approx([0.01, 0.0075, 0.0025])
    assert all(0 < epoch["seconds"] < 5 for epoch in trial.epochs)


def test_training_without_the_test_split(papers):
    blind = papers.without_test()
    assert blind.test is None
    assert not blind.labels[papers.test].any()
    assert torch.equal(blind.labels[:62], papers.labels[:62])
    assert papers.labels[papers.test].any()
    assert blind.without_test() is blind
    assert blind.to("cpu").test is None
    with_test, without = run(papers).metrics, run(blind).metrics
    assert all("test_error" in epoch for epoch in with_test)
    assert without == [{k: v for k, v in epoch.items() if k != "test_error"} for epoch in with_test]


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_the_initial_network(kind, papers):
    trial = run(papers, QUICK.updated({"learning_rate": 1e-30, "dropout": 0}), kind=kind)
    network = build_graph_network(kind, 30, 3, Dropout(0, 0))
    with torch.no_grad():
        for p, initial in zip(network.parameters(), trial.initial, strict=True):
            p.copy_(initial)
        outputs = network(papers.features, propagation(kind, papers.edges, len(papers.labels)))
    expected = F.cross_entropy(outputs[papers.train], papers.labels[papers.train]).item()
    assert trial.epochs[0]["train_loss"] == pytest.approx(expected, rel=1e-5)
    for split, nodes in (("val", papers.val), ("test", papers.test)):
        wrong = (outputs[nodes].argmax(1) != papers.labels[nodes]).sum().item()
        assert trial.epochs[0][f"{split}_error"] == pytest.approx(100 * wrong / len(nodes), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_papers_are_learned(kind, papers):
    trial = run(papers, QUICK.updated({"epochs": 150}), kind=kind)
    assert trial.epochs[-1]["train_loss"] < 0.8 < trial.epochs[0]["train_loss"]
    assert trial.epochs[-1]["test_error"] < 25  # 67 by chance
    assert trial.epochs[-1]["val_error"] < 25


@needs_planetoid
def test_gcn_on_cora_is_as_good_as_published():
    task = get_task("cora-gcn")
    trial = Trial(Arm("vanilla"), 0)
    task.train(trial, task.settings, task.load(SHARED))
    assert len(trial.epochs) == 200
    assert 16.5 < trial.epochs[-1]["test_error"] < 21  # 18.5 in the paper


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_have_no_error_rate(value):
    assert math.isnan(percent_wrong(torch.tensor([[1.0, 0.0], [value, 0.0]]), torch.tensor([0, 0])))
    assert percent_wrong(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])) == pytest.approx(
        100 / 3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_is_reported_as_it_is(kind, papers):
    trial = run(papers, QUICK.updated({"optimizer": "sgd", "learning_rate": 1e30}), kind=kind)
    assert len(trial.epochs) == 3
    for metric in ("train_loss", "val_error", "test_error"):
        assert math.isnan(trial.epochs[-1][metric])


@pytest.mark.parametrize("kind", KINDS)
def test_flatness_is_that_of_all_training_nodes(kind, papers):
    trial = run(papers, kind=kind, flatness=FlatnessSettings(max_iter=5, directions=2))
    assert trial.flatness.missing == {}
    assert trial.flatness.values["gradient_norm"] > 0
    still = QUICK.updated({"learning_rate": 1e-30, "dropout": 0})
    trial = run(papers, still, kind=kind, flatness=FlatnessSettings(max_iter=5, directions=2))
    assert trial.flatness.values["loss"] == pytest.approx(trial.epochs[-1]["train_loss"], rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_starts_from_the_same_weights_with_the_same_masks(kind, papers):
    cpu, cuda = run(papers, kind=kind), run(papers, QUICK.updated({"device": "cuda"}), kind=kind)
    again = run(papers, QUICK.updated({"device": "cuda"}), kind=kind)
    assert equal(cpu.initial, [p.cpu() for p in cuda.initial])
    assert cuda.metrics == again.metrics
    for here, there in zip(cpu.metrics, cuda.metrics, strict=True):
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-3)


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 128}, "batch_size = 128: input should be 'full'"),
        ({"dropout": 1}, "dropout = 1: input should be less than 1"),
        ({"dropout": -0.1}, r"dropout = -0\.1: input should be greater than or equal to 0"),
        ({"drop_out": 0.1}, "no setting 'drop_out', did you mean 'dropout'"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(SettingsError, match=message):
        QUICK.updated(changes)


def test_defaults_are_kipf_and_wellings():
    assert [task.name for task in GRAPH_TASKS] == [f"{data.lower()}-{kind}" for data in NAMES for kind in KINDS]
    for task in GRAPH_TASKS:
        assert task.settings == GraphSettings(
            epochs=200,
            batch_size="full",
            learning_rate=0.01,
            weight_decay=5e-4,
            optimizer="adam",
            schedule="constant",
            dropout=0.5,
        )
        assert isinstance(task.train, partial)
