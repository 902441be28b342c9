"""The graph networks and the planetoid files are what torch_geometric makes of them."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from citation_networks import MadeUp, dense
from torch.nn import functional as F

from flatwise_papers.data import graphs as planetoid
from flatwise_papers.tasks.graphs import Dropout, build_graph_network, propagation

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NAMES = ("Cora", "CiteSeer", "PubMed")
KINDS = ("gcn", "gat", "gin", "sage")


@pytest.fixture(scope="module")
def geometric():
    """torch_geometric's modules, whose import uses what torch has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        import torch_geometric.io
        import torch_geometric.nn
    return torch_geometric


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as monkeypatch:
        MadeUp().write(folder / "Cora" / "raw", monkeypatch)
        return planetoid.load_cora(folder)


@pytest.mark.skipif(not (SHARED / "planetoid").is_dir(), reason="no planetoid in ../shared/data beside the checkout")
@pytest.mark.parametrize("name", NAMES)
def test_files_are_read_as_torch_geometric_reads_them(name, geometric):
    data = planetoid.load_planetoid(name, SHARED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*scipy.sparse.csr", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*align", category=np.exceptions.VisibleDeprecationWarning)
        other = geometric.io.read_planetoid_data(str(SHARED / "planetoid" / name / "raw"), name)
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(data, split), other[f"{split}_mask"].nonzero()[:, 0])
    assert torch.equal(data.labels, other.y)
    assert {*zip(*data.edges.tolist(), strict=True)} == {*zip(*other.edge_index.tolist(), strict=True)}
    words = other.x / other.x.sum(dim=1, keepdim=True).where(other.x.sum(dim=1, keepdim=True) > 0, 1)
    rows = torch.arange(0, len(words), 7)
    assert torch.allclose(dense(data.features.select_rows(rows)), words[rows], atol=1e-7)


def geometric_network(geometric, kind, features, classes):
    conv = geometric.nn
    if kind == "gat":
        return conv.GATConv(features, 2, heads=8), conv.GATConv(16, classes, heads=1)
    if kind == "gin":

        def mlp(inputs, outputs):
            return torch.nn.Sequential(torch.nn.Linear(inputs, 16), torch.nn.ReLU(), torch.nn.Linear(16, outputs))

        return conv.GINConv(mlp(features, 16)), conv.GINConv(mlp(16, classes))
    make = {"gcn": conv.GCNConv, "sage": conv.SAGEConv}[kind]
    return make(features, 16), make(16, classes)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_torch_geometrics(kind, papers, geometric):
    layers = geometric_network(geometric, kind, 30, 3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build_graph_network(kind, 30, 3, Dropout(0.5, 0)).eval()
        torch.manual_seed(1)
        for layer in layers:
            layer.reset_parameters()
    theirs = [p for layer in layers for p in layer.parameters()]
    ours = dict(network.named_parameters())
    assert sum(p.numel() for p in theirs) == sum(p.numel() for p in ours.values())
    if kind == "gat":  # they register the bias in another place
        order = [f"{layer}.{name}" for layer in ("first", "second") for name in geometric_gat_order(layers[0])]
        ours = {name: ours[name] for name in order}
    elif kind == "gcn":
        ours = {name: ours[name] for name in ("first.bias", "first.weight", "second.bias", "second.weight")}
    for mine, other in zip(ours.values(), theirs, strict=True):
        assert torch.equal(mine.flatten(), other.flatten())

    with torch.no_grad():  # biases that begin at 0 would hide a mistake
        for mine, other in zip(ours.values(), theirs, strict=True):
            if mine.ndim == 1:
                mine.add_(torch.linspace(-0.2, 0.3, len(mine)))
                other.copy_(mine)
    activation = F.elu if kind == "gat" else F.relu
    words, edges, nodes = dense(papers.features), papers.edges, len(papers.labels)
    expected = layers[1](activation(layers[0](words, edges)), edges)
    outputs = network(papers.features, propagation(kind, edges, nodes))
    assert torch.allclose(outputs, expected, atol=1e-5)
    F.cross_entropy(expected, papers.labels).backward()
    F.cross_entropy(outputs, papers.labels).backward()
    for mine, other in zip(ours.values(), theirs, strict=True):
        assert torch.allclose(mine.grad.flatten(), other.grad.flatten(), atol=1e-6)


def geometric_gat_order(layer):
    names = {"att_src": "source_attention", "att_dst": "target_attention", "bias": "bias", "lin.weight": "weight"}
    return [names[name] for name, _ in layer.named_parameters()]
