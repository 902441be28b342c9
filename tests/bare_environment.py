"""The library without any extra: run by `make bare` in an environment that holds torch, numpy and flatter alone.

A program, not a pytest module: pytest is not there either.
"""

import importlib.util
import subprocess
import sys

import torch

import flatter


def train(perturbation: flatter.Perturbation) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = flatter.perturb(optimizer, perturbation, seed=1, steps_per_epoch=5, epochs=4)
    scheduler = flatter.lr_scheduler.GaussianPeakLR(optimizer, max_lr=0.3, total_steps=20, start_lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(32, 8)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert handle.step == 20
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def main() -> None:
    for package in ("scipy", "sklearn", "rich", "typer", "plotly", "pydantic", "pooch"):
        assert importlib.util.find_spec(package) is None, f"this environment is not bare: it has {package}"
    methods = [flatter.leap(), flatter.lr_dropout(), flatter.random_lr(), flatter.ralr(), flatter.alrao()]
    for perturbation in methods:
        weights = train(perturbation)
        assert torch.isfinite(weights).all()
        assert torch.equal(weights, train(perturbation))
    assert not torch.equal(train(flatter.leap()), train(flatter.lr_dropout()))
    try:
        flatter.compare
    except ImportError as error:
        assert "flatter[compare]" in str(error)
    else:
        raise AssertionError("flatter.compare worked without its extra")
    names: dict[str, object] = {}
    exec("from flatter import *", names)
    assert {"leap", "perturb", "optim"} < names.keys(), names.keys()
    assert "compare" not in names, "its extra is not installed"
    assert {"compare", "Arm", "leap"} < set(dir(flatter)), "what the extras give is listed too"
    version = subprocess.run([sys.executable, "-m", "flatter", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"flatter {flatter.__version__}\n", version
    command = subprocess.run([sys.executable, "-m", "flatter.cli"], capture_output=True, text=True, check=False)
    assert command.returncode == 2, command
    assert "flatter[compare]" in command.stderr, command.stderr
    assert "Traceback" not in command.stderr, command.stderr
    print("the library alone works")


if __name__ == "__main__":
    main()
