"""The library without any extra: run by `make bare` in an environment that holds torch, numpy and flatwise alone.

A program, not a pytest module: pytest is not there either.
"""

import importlib.util
import subprocess
import sys

import torch

import flatwise


def train(perturbation: flatwise.Perturbation) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = flatwise.perturb(optimizer, perturbation, seed=1, steps_per_epoch=5, epochs=4)
    scheduler = flatwise.lr_scheduler.GaussianPeakLR(optimizer, max_lr=0.3, total_steps=20, start_lr=0.1)
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
    methods = [flatwise.leap(), flatwise.lr_dropout(), flatwise.random_lr(), flatwise.ralr(), flatwise.alrao()]
    for perturbation in methods:
        weights = train(perturbation)
        assert torch.isfinite(weights).all()
        assert torch.equal(weights, train(perturbation))
    assert not torch.equal(train(flatwise.leap()), train(flatwise.lr_dropout()))
    try:
        flatwise.compare
    except ImportError as error:
        assert "flatwise[compare]" in str(error)
    else:
        raise AssertionError("flatwise.compare worked without its extra")
    names: dict[str, object] = {}
    exec("from flatwise import *", names)
    assert {"leap", "perturb", "optim"} < names.keys(), names.keys()
    assert "compare" not in names, "its extra is not installed"
    assert {"compare", "Arm", "leap"} < set(dir(flatwise)), "what the extras give is listed too"
    version = subprocess.run(
        [sys.executable, "-m", "flatwise", "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout == f"flatwise {flatwise.__version__}\n", version
    command = subprocess.run([sys.executable, "-m", "flatwise.cli"], capture_output=True, text=True, check=False)
    assert command.returncode == 2, command
    assert "flatwise[compare]" in command.stderr, command.stderr
    assert "Traceback" not in command.stderr, command.stderr
    print("the library alone works")


if __name__ == "__main__":
    main()
