"""Lightning's Trainer: perturbing in ``configure_optimizers`` is all, and a resumed run is the unbroken one."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flatwise

STEPS_PER_EPOCH = 3
METHODS = [flatwise.leap(0.3), flatwise.lr_dropout(0.5), flatwise.ralr(p=1.0)]

pytestmark = [
    # Lightning's advice about data loading, logging and folders in use; and what torch says of Lightning.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(12, 4, generator=generator), torch.randn(12, 2, generator=generator))


def optimizer_and_scheduler(
    model: nn.Module,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.inside: list[tuple[bool, float]] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        inputs, targets = batch
        return (self.model(inputs) - targets).square().mean()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, scheduler = optimizer_and_scheduler(self.model)
        self.handle = flatwise.perturb(optimizer, METHODS, seed=8, steps_per_epoch=STEPS_PER_EPOCH)
        optimizer.register_step_pre_hook(self.look)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def look(self, optimizer: torch.optim.Optimizer, _: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes whether a step is given a closure, and its rate; it is called after flatwise's own hook."""
        self.inside.append((callable(kwargs.get("closure")), optimizer.param_groups[0]["lr"]))


def fit(folder: Path, epochs: int, checkpoint: Path | None = None) -> tuple[Module, lightning.Trainer, list[float]]:
    module = Module()
    monitor = LearningRateMonitor("step")
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        default_root_dir=folder,
        logger=DummyLogger(),
        log_every_n_steps=1,
        callbacks=[monitor],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data(), batch_size=4), ckpt_path=checkpoint)
    return module, trainer, monitor.lrs["lr-AdamW"]


def plain_loop(epochs: int) -> nn.Module:
    model = network()
    optimizer, scheduler = optimizer_and_scheduler(model)
    flatwise.perturb(optimizer, METHODS, seed=8, steps_per_epoch=STEPS_PER_EPOCH)
    for _ in range(epochs):
        for inputs, targets in DataLoader(data(), batch_size=4):
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
            scheduler.step()
    return model


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_a_resumed_run_is_the_unbroken_one_and_that_of_a_plain_loop(tmp_path: Path) -> None:
    half, trainer, early = fit(tmp_path, epochs=2)
    checkpoint = tmp_path / "half.ckpt"
    trainer.save_checkpoint(checkpoint)
    assert equal(half.model, plain_loop(2))

    resumed, _, late = fit(tmp_path, epochs=4, checkpoint=checkpoint)
    unbroken, _, rates = fit(tmp_path, epochs=4)
    assert resumed.handle.step == unbroken.handle.step == 4 * STEPS_PER_EPOCH
    assert equal(resumed.model, unbroken.model)
    assert equal(unbroken.model, plain_loop(4))

    # The monitor and the scheduler see the scheduled rate, though RALR multiplied it at every step.
    clean = [0.05 * 0.9**step for step in range(4 * STEPS_PER_EPOCH)]
    assert rates == pytest.approx(clean, rel=1e-12)
    assert early + late == pytest.approx(clean, rel=1e-12)
    assert [inside for _, inside in unbroken.inside] == pytest.approx(clean, rel=1e-12)

    # Automatic optimization runs the backward pass inside step: no gradient is there when the noise goes in.
    assert all(has_closure for has_closure, _ in unbroken.inside)


def test_a_resumed_run_without_the_state_would_differ(tmp_path: Path) -> None:
    """The test above could not pass if the state were lost."""
    _, trainer, _ = fit(tmp_path, epochs=2)
    checkpoint = tmp_path / "half.ckpt"
    trainer.save_checkpoint(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)
    for group in saved["optimizer_states"][0]["param_groups"]:
        assert group.pop("flatwise_step") == 2 * STEPS_PER_EPOCH
    torch.save(saved, checkpoint)
    resumed, _, _ = fit(tmp_path, epochs=4, checkpoint=checkpoint)
    assert not equal(resumed.model, plain_loop(4))
