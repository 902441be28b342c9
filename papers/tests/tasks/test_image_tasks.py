"""Image tasks: augmentation does what it says, one seed decides a trial, every setting is used or refused."""

import io
import math
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flatwise_papers.tasks.augmentation as augmentation_module
import flatwise_papers.tasks.images as images_module
from fake_trial import FakeTrial, equal
from flatwise import methods
from flatwise.study.arms import Arm
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.registry import get_task
from flatwise.study.task import SettingsError
from flatwise.study.tasks import training as running
from flatwise.study.trial import Trial
from flatwise_papers.data.files import DataFile, read_file
from flatwise_papers.data.images import SHA256, decode_jpegs, images_of
from flatwise_papers.tasks.augmentation import (
    Augmentation,
    Batch,
    Box,
    Crops,
    DropoutImageSettings,
    FlatnessBatches,
    ImageSettings,
    Mixture,
    TrainingBatches,
    clipped_box,
    crop_windows,
    cropped,
    cut_out,
    mix,
)
from flatwise_papers.tasks.image_models import IMAGE_MODELS, ImageModel, build_image_model
from flatwise_papers.tasks.images import IMAGE_TASKS, error_percent, train_images
from flatwise_papers.tasks.residual_networks import GlobalAverage

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
BY_NAME = {task.name: task for task in IMAGE_TASKS}
QUICK = ImageSettings(epochs=2, batch_size=16, learning_rate=0.05)


def tiny(classes, drop=nn.Identity):
    """A network with all that matters, for images of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        drop(),
        GlobalAverage(),
        nn.Linear(8, classes),
    )


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    monkeypatch.setitem(IMAGE_MODELS, "tiny", ImageModel("tiny", tiny))


@pytest.fixture(scope="module")
def data():
    """Made-up images of 8×8 pixels in four classes: a little red, green or blue, and grey."""
    made = np.random.RandomState(0)

    def split(n):
        y = np.arange(n) % 4
        x = made.randint(0, 200, size=(n, 3, 8, 8))
        for image, label in zip(x, y, strict=True):
            image[label:][:1] += 50  # there is no fourth channel
        return x.astype(np.uint8), y

    return images_of(split(72), split(40), split(40), classes=4)


def run(data, settings=QUICK, seed=0, model="tiny", trial=None, **changes):
    trial = trial or FakeTrial(seed)
    train_images(trial, settings.updated(changes), data, model=model)
    return trial


# Augmentation, against slow references

IMAGES = torch.from_numpy(np.random.RandomState(3).randint(0, 256, size=(6, 3, 5, 7), dtype=np.uint8))


def test_crops_and_mirrors():
    crops = Crops(
        torch.tensor([0, 4, 8, 3, 5, 4]),
        torch.tensor([8, 4, 0, 6, 1, 4]),
        torch.tensor([False, False, True, True, False, True]),
    )
    order = torch.tensor([5, 0, 1, 3, 2, 4])
    found = cropped(crop_windows(IMAGES), order, crops)
    expected = torch.zeros(6, 3, 5, 7, dtype=torch.uint8)
    for i in range(6):
        for row in range(5):
            for column in range(7):
                from_row, from_column = row + int(crops.top[i]) - 4, column + int(crops.left[i]) - 4
                to_column = 6 - column if crops.mirrored[i] else column
                if 0 <= from_row < 5 and 0 <= from_column < 7:
                    expected[i, :, row, to_column] = IMAGES[order[i], :, from_row, from_column]
    assert torch.equal(found, expected)
    assert torch.equal(found[1], IMAGES[0])  # 4, 4 moves nothing


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
def test_cutout(size):
    x = IMAGES.float() + 1
    centres = torch.tensor([[0, 4, 2, 1, 3, 0], [0, 6, 3, 0, 5, 6]])
    expected = x.clone()
    for i in range(6):
        for row in range(5):
            for column in range(7):
                top, left = int(centres[0, i]) - size // 2, int(centres[1, i]) - size // 2
                if top <= row < top + size and left <= column < left + size:
                    expected[i, :, row, column] = 0
    assert torch.equal(cut_out(x.clone(), centres, size), expected)
    assert (expected[2] == 0).sum() == 3 * min(size, 5) * min(size, 7)  # in the middle all of it is inside


PARTNER = torch.tensor([3, 0, 5, 1, 2, 4])


def test_mixup():
    x = IMAGES.float()
    expected = torch.stack([0.3 * x[i] + 0.7 * x[PARTNER[i]] for i in range(6)])
    assert torch.allclose(mix(x, Mixture(PARTNER, 0.3, None)), expected, atol=1e-4)


def test_cutmix():
    x = IMAGES.float()
    expected = x.clone()
    for i in range(6):
        for row in range(1, 4):
            for column in range(2, 7):
                expected[i, :, row, column] = x[PARTNER[i], :, row, column]
    assert torch.equal(mix(x.clone(), Mixture(PARTNER, 0.5, Box(1, 4, 2, 7))), expected)


def test_boxes_are_clipped_at_the_edges():
    assert clipped_box(2, 3, 2, 4, 8, 9) == Box(1, 3, 1, 5)
    assert clipped_box(0, 8, 4, 3, 8, 9) == Box(0, 2, 7, 9)
    assert clipped_box(5, 5, 0, 0, 8, 9) == Box(5, 5, 5, 5)  # nothing


def test_mixed_loss_weighs_both_targets():
    outputs, y, partner_y = torch.randn(6, 4), torch.arange(6) % 4, torch.tensor([1, 1, 0, 2, 3, 0])
    one, other = (F.cross_entropy(outputs, t, label_smoothing=0.1) for t in (y, partner_y))
    x = torch.empty(0)
    assert torch.allclose(Batch(x, y, partner_y, 0.3).loss(outputs, 0.1), 0.3 * one + 0.7 * other)
    assert torch.equal(Batch(x, y, None, 1.0).loss(outputs, 0.1), one)
    # The same as soft targets.
    soft = 0.3 * F.one_hot(y, 4) + 0.7 * F.one_hot(partner_y, 4)
    assert torch.allclose(Batch(x, y, partner_y, 0.3).loss(outputs, 0.0), F.cross_entropy(outputs, soft))


# What is drawn


def augmentation(seed=0, mirror=True, **settings):
    return Augmentation(QUICK.updated(settings), seed, mirror=mirror)


def test_crops_are_uniform_and_half_are_mirrored():
    crops = augmentation().crops(9000)
    for offsets in (crops.top, crops.left):
        assert offsets.bincount(minlength=9).tolist() == pytest.approx([1000] * 9, abs=150)
    assert crops.mirrored.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.corrcoef(torch.stack([crops.top, crops.left, crops.mirrored]).float()).triu(1).abs().max() < 0.04
    assert not augmentation(mirror=False).crops(9000).mirrored.any()
    assert torch.equal(augmentation(mirror=False).crops(9000).top, crops.top)


def test_holes_are_uniform_over_the_image():
    rows, columns = augmentation().holes(8000, 5, 8)
    assert rows.bincount().tolist() == pytest.approx([1600] * 5, abs=150)
    assert columns.bincount().tolist() == pytest.approx([1000] * 8, abs=150)
    same_range = augmentation()
    assert not torch.equal(same_range.holes(50, 9, 9)[0], same_range.crops(50).top)  # other numbers than the crops'


@pytest.mark.parametrize(("name", "alpha"), [("mixup", 1.0), ("mixup", 0.2), ("cutmix", 1.0)])
def test_mixtures_have_the_right_weights(name, alpha):
    drawn = augmentation(**{name: alpha, **({"cutmix_probability": 1} if name == "cutmix" else {})})
    mixtures = [drawn.mixture(7, 32, 32) for _ in range(2000)]
    weights = np.array([m.weight for m in mixtures])
    assert all(sorted(m.partner.tolist()) == list(range(7)) for m in mixtures)
    assert mixtures[0].partner.tolist() != mixtures[1].partner.tolist()
    if name == "mixup":
        assert weights.mean() == pytest.approx(0.5, abs=0.03)
        assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)  # of Beta(α, α)
        assert all(m.box is None for m in mixtures)
    else:
        left = [1 - (m.box.bottom - m.box.top) * (m.box.right - m.box.left) / 1024 for m in mixtures]
        assert weights.tolist() == pytest.approx(left)
        assert 0.6 < weights.mean() < 0.7  # more than half is left: boxes reach over the edge


def test_cutmix_probability():
    drawn = augmentation(cutmix=1.0, cutmix_probability=0.25)
    mixed = [drawn.mixture(3, 8, 8) is not None for _ in range(2000)]
    assert np.mean(mixed) == pytest.approx(0.25, abs=0.04)
    assert augmentation().mixture(3, 8, 8) is None


def test_crops_are_the_same_with_and_without_other_augmentation():
    one, other = augmentation(), augmentation(cutout=4, mixup=1.0)
    for _ in range(2):
        other.holes(20, 8, 8)
        other.mixture(20, 8, 8)
        for a, b in zip(one.crops(20), other.crops(20), strict=True):
            assert torch.equal(a, b)


# Batches of an epoch


def epoch_of(data, seed=0, **settings):
    settings = QUICK.updated(settings)
    order = torch.Generator().manual_seed(seed)
    return TrainingBatches(
        data, settings, order, Augmentation(settings, seed, mirror=True), torch.Generator().manual_seed(seed)
    )


def test_every_image_is_used_once_per_epoch_in_a_new_order(data):
    batches = epoch_of(data, augment=False)
    orders = []
    for _ in range(2):
        epoch = list(batches.epoch())
        assert [len(batch.y) for batch in epoch] == [16, 16, 16, 16, 8]
        x, y = torch.cat([batch.x for batch in epoch]), torch.cat([batch.y for batch in epoch])
        same = (x[:, None] == data.normalised(data.train_x)[None]).flatten(2).all(2)
        assert torch.equal(same.sum(0), torch.ones(72, dtype=torch.int64))
        orders.append(same.int().argmax(1))
        assert torch.equal(y, data.train_y[orders[-1]])
    assert not torch.equal(*orders)


def test_augmented_batches_are_what_the_functions_make_of_the_draws(data):
    settings = QUICK.updated({"cutout": 3, "mixup": 1.0})
    found = epoch_of(data, seed=5, cutout=3, mixup=1.0).epoch()
    order = torch.randperm(72, generator=torch.Generator().manual_seed(5))
    draws = Augmentation(settings, 5, mirror=True)
    crops, holes = draws.crops(72), draws.holes(72, 8, 8)
    windows = crop_windows(data.train_x)
    for number, batch in enumerate(found):
        here = slice(16 * number, 16 * number + 16)
        x = cropped(windows, order[here], Crops(*(part[here] for part in crops)))
        x = cut_out(data.normalised(x), holes[:, here], 3)
        mixture = draws.mixture(len(x), 8, 8)
        assert torch.equal(batch.x, mix(x, mixture))
        assert torch.equal(batch.y, data.train_y[order[here]])
        assert torch.equal(batch.partner_y, batch.y[mixture.partner])
        assert batch.weight == mixture.weight
    assert number == 4


def test_data_are_left_as_they_are(data):
    before = data.train_x.clone()
    run(data, cutout=3, cutmix=1.0)
    assert torch.equal(data.train_x, before)


def test_flatness_batches_are_the_first_images_and_can_be_read_again(data, monkeypatch):
    monkeypatch.setattr(augmentation_module, "FLATNESS_BATCH", 30)
    batches = FlatnessBatches(data)
    for _ in range(2):
        x, y = zip(*batches, strict=True)
        assert [len(part) for part in y] == [30, 30, 12]
        assert torch.equal(torch.cat(x), data.normalised(data.train_x))
        assert torch.equal(torch.cat(y), data.train_y)


# One seed decides a trial, and nothing else


class SeeingTrial(FakeTrial):
    """Notes the images of every step."""

    def __init__(self, seed, monkeypatch):
        super().__init__(seed)
        self.batches = []
        loss = Batch.loss
        monkeypatch.setattr(Batch, "loss", lambda batch, *args: (self.batches.append(batch), loss(batch, *args))[1])


ALL = {"cutout": 3, "mixup": 0.4, "label_smoothing": 0.1, "dropout": 0.3}
DROPOUT = DropoutImageSettings(**QUICK.model_dump())


def test_one_seed_one_result_whatever_the_global_state(data):
    first = run(data, DROPOUT, seed=5, **ALL)
    torch.rand(3)
    np.random.rand(2)
    second = run(data, DROPOUT, seed=5, **ALL)
    assert first.metrics == second.metrics
    assert equal(first.initial, second.initial)
    assert equal(first.last, second.last)


def test_global_random_state_does_not_move(data):
    before = torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate()
    run(data, DROPOUT, **ALL)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert pickle.dumps(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]


def test_arms_of_a_seed_see_the_same_images_and_masks(data, monkeypatch):
    seen, masks = [], []
    for perturbation in (None, methods.leap(0.5)):
        trial = Trial(Arm("arm", *([perturbation] if perturbation else [])), 3)
        with monkeypatch.context() as patched:
            batches = SeeingTrial(3, patched).batches
            patched.setattr(images_module, "build_image_model", keeping_masks(masks))
            train_images(trial, DROPOUT.updated(ALL), data, model="tiny")
        seen.append((trial, batches))
    (vanilla, plain), (leap, noisy) = seen
    assert len(plain) == len(noisy) == 10
    for one, other in zip(plain, noisy, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
        assert torch.equal(one.partner_y, other.partner_y)
        assert one.weight == other.weight
    assert len(masks) == 20
    assert all(torch.equal(a, b) for a, b in zip(masks[:10], masks[10:], strict=True))
    assert leap.epochs[0]["train_loss"] != vanilla.epochs[0]["train_loss"]
    assert leap.epochs[0]["train_loss"] == pytest.approx(vanilla.epochs[0]["train_loss"], rel=0.3)


def keeping_masks(masks):
    """A builder of the tiny model that notes the state of the masks' generator at every training step."""

    def build(name, classes, *, dropout, generator):
        model = build_image_model(name, classes, dropout=dropout, generator=generator)
        model.register_forward_pre_hook(lambda m, args: masks.append(generator.get_state()) if m.training else None)
        return model

    return build


def test_other_seeds_have_other_weights_order_and_augmentation(data, monkeypatch):
    first, second = SeeingTrial(0, monkeypatch), SeeingTrial(1, monkeypatch)
    run(data, trial=first)
    second.batches.clear()
    run(data, trial=second)
    assert not equal(first.initial, second.initial)
    assert not torch.equal(first.batches[0].x, second.batches[0].x)
    assert not torch.equal(first.batches[0].y, second.batches[0].y)


@pytest.mark.parametrize("change", [{"cutout": 3}, {"augment": False}, {"dropout": 0.5}, {"label_smoothing": 0.1}])
def test_settings_leave_weights_and_order_as_they_are(data, monkeypatch, change):
    plain, changed = SeeingTrial(0, monkeypatch), SeeingTrial(0, monkeypatch)
    run(data, DROPOUT, trial=plain)
    labels = [batch.y for batch in plain.batches]
    changed.batches.clear()
    run(data, DROPOUT, trial=changed, **change)
    assert equal(plain.initial, changed.initial)
    assert equal(labels, [batch.y for batch in changed.batches])
    assert plain.epochs[0]["train_loss"] != changed.epochs[0]["train_loss"]  # but it is used


# Metrics


def test_made_up_images_are_learnt(data):
    trial = run(data, epochs=15, augment=False)
    assert trial.epochs[-1]["train_loss"] < trial.epochs[0]["train_loss"] / 2
    assert trial.epochs[-1]["val_error"] < 50  # of 75 at random
    assert (trial.steps_per_epoch, trial.planned_epochs, trial.interval) == (5, 15, "epoch")
    assert trial.steps == 75


def test_without_test_set_no_test_metric(data):
    trial = run(data.without_test())
    assert {name for epoch in trial.epochs for name in epoch} == {"seconds", "train_loss", "val_error"}
    assert "test_error" in run(data).epochs[0]


def test_train_loss_is_the_mean_over_images(data, monkeypatch):
    trial = SeeingTrial(0, monkeypatch)
    run(data, trial=trial, learning_rate=1e-30, epochs=1, label_smoothing=0.2)
    model = tiny(4)
    with torch.no_grad():
        for p, initial in zip(model.parameters(), trial.initial, strict=True):
            p.copy_(initial)
        batches = list(trial.batches)
        losses = [F.cross_entropy(model(b.x), b.y, label_smoothing=0.2).item() * len(b.y) for b in batches]
    assert trial.epochs[0]["train_loss"] == pytest.approx(sum(losses) / 72, rel=1e-5)


def test_error_counts_all_batches_with_running_statistics(data, monkeypatch):
    monkeypatch.setattr(images_module, "EVALUATION_BATCH", 7)
    model = tiny(4).eval()
    expected = 100 * (model(data.normalised(data.val_x)).argmax(1) != data.val_y).double().mean().item()
    assert error_percent(model, data, data.val_x, data.val_y) == pytest.approx(expected)
    modes = []
    monkeypatch.setattr(images_module, "error_percent", lambda network, *a: modes.append(network.training) or 1.0)
    run(data)
    assert modes == [False] * 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_have_no_error_rate(data, monkeypatch, value):
    monkeypatch.setattr(images_module, "EVALUATION_BATCH", 7)
    broken = data.train_x[3]

    def network(x):
        same = (x == data.normalised(broken[None])).flatten(1).all(1)
        return torch.where(same[:, None], value, torch.eye(4)[torch.zeros(len(x), dtype=torch.int64)])

    assert math.isnan(error_percent(network, data, data.train_x, data.train_y))
    assert error_percent(network, data, data.val_x, data.val_y) == 75.0


def test_divergence_is_reported_as_it_is(data):
    trial = run(data, learning_rate=1e30)
    assert len(trial.epochs) == 2
    for metric in ("train_loss", "val_error", "test_error"):
        assert math.isnan(trial.epochs[-1][metric])


def test_seconds_are_those_of_training_alone(data, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(running.time, "perf_counter", lambda: clock[0])

    def slow_evaluation(*args):
        clock[0] += 1000
        return 1.0

    loss = Batch.loss

    def slow_loss(*args):
        clock[0] += 1
        return loss(*args)

    monkeypatch.setattr(images_module, "error_percent", slow_evaluation)
    monkeypatch.setattr(Batch, "loss", slow_loss)
    assert [epoch["seconds"] for epoch in run(data).epochs] == [5, 5]


def test_flatness_is_measured_on_the_final_model(data):
    asked = FlatnessSettings(max_batches=1)
    trial = Trial(Arm("vanilla"), 0, flatness=asked)
    train_images(trial, QUICK, data, model="tiny")
    assert trial.flatness is not None
    assert not trial.flatness.missing
    model = tiny(4)  # the record's loss is that of the first 72 images as they are, of the final model
    assert 0 < trial.flatness.values["loss"] < F.cross_entropy(model(data.normalised(data.train_x)), data.train_y)


# Precision and memory layout


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_is_close_to_float32_with_float32_parameters(data, monkeypatch, precision):
    dtypes = set()
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: (out := linear(*args), dtypes.add(out.dtype))[0])
    plain = run(data)
    assert dtypes == {torch.float32}
    dtypes.clear()
    mixed = run(data, precision=precision)
    assert dtypes == {getattr(torch, precision)}  # training and evaluation
    assert {p.dtype for p in mixed.last} == {torch.float32}
    assert equal(mixed.initial, plain.initial)
    for one, other in zip(mixed.metrics, plain.metrics, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
        assert one["train_loss"] != other["train_loss"]


def test_float16_leaves_out_steps_whose_gradients_are_not_finite(data, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, 2.0**20, enabled=enabled))
    trial = run(data, precision="float16", epochs=3)
    assert 10 < trial.steps < 15  # the scale is halved until the gradients are finite
    assert all(p.isfinite().all() for p in trial.last)
    assert all(math.isfinite(epoch["train_loss"]) for epoch in trial.epochs)


@pytest.mark.parametrize("perturbation", [None, methods.leap(0.3)])
def test_channels_last_trains_the_same(data, perturbation):
    epochs = []
    layouts = []
    for channels_last in (False, True):
        trial = Trial(Arm("arm", *([perturbation] if perturbation else [])), 3)
        attach = trial.attach

        def keep(optimizer, attach=attach, **kwargs):
            layouts.append(optimizer.param_groups[0]["params"][0].stride())
            return attach(optimizer, **kwargs)

        trial.attach = keep
        train_images(trial, QUICK.updated({"channels_last": channels_last}), data, model="tiny")
        epochs.append([epoch["train_loss"] for epoch in trial.epochs])
    assert layouts[0] != layouts[1]
    assert epochs[0] == pytest.approx(epochs[1], rel=1e-4)


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutout": -1}, "cutout = -1: input should be greater than or equal to 0"),
        ({"mixup": -0.1}, r"mixup = -0\.1: input should be greater"),
        ({"mixup": 1, "cutmix": 1}, "cutmix = 1: mixup is on too: set one of the two to 0"),
        ({"cutmix_probability": 0.3}, r"cutmix_probability = 0\.3: cutmix is off: set cutmix, as in cutmix = 1"),
        ({"cutmix": 1, "cutmix_probability": 0}, "cutmix_probability = 0: input should be greater than 0"),
        ({"label_smoothing": 1}, "label_smoothing = 1: input should be less than 1"),
        ({"precision": "float64"}, "precision = 'float64': input should be 'float32', 'bfloat16' or 'float16'"),
        ({"dropout": 0.1}, "there is no setting 'dropout'"),
        ({"cutut": 8}, "did you mean 'cutout'"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(SettingsError, match=message):
        QUICK.updated(changes)


def test_settings_of_ralr_s_comparisons():
    for changes in ({"cutout": 8}, {"mixup": "1"}, {"cutmix": 1, "cutmix_probability": 0.3}, {"label_smoothing": 0.1}):
        QUICK.updated(changes)
    with pytest.raises(SettingsError, match="dropout = 1: input should be less than 1"):
        DROPOUT.updated({"dropout": 1})


# Tasks


def test_names_summaries_and_what_is_judged():
    assert len(BY_NAME) == len(IMAGE_TASKS) == 2 + 3 * 16
    for name in ("cifar10-resnet20", "cifar10-jpeg-resnet20", "cifar100-densenet-bc-100-12", "mnist-nin"):
        assert BY_NAME[name].name == name
    for name, task in BY_NAME.items():
        assert get_task(name).train is task.train
        assert (task.metric, task.validation_metric, task.unit, task.better) == (
            "test_error",
            "val_error",
            "%",
            "lower",
        )
        # The lossy copy is called what it is wherever a person reads of it.
        assert ("CIFAR-10 (JPEG q75)" in task.summary) == name.startswith("cifar10-jpeg-")


@pytest.mark.parametrize("task", IMAGE_TASKS, ids=BY_NAME)
def test_dropout_can_be_set_where_the_model_has_it(task):
    model = task.train.keywords["model"]
    assert isinstance(task.settings, DropoutImageSettings) == IMAGE_MODELS[model].has_dropout
    assert task.train.keywords.get("mirror", True) == (not task.name.startswith("mnist"))


def test_settings_of_the_papers():
    resnet = BY_NAME["cifar100-resnet110"].settings
    assert (resnet.epochs, resnet.batch_size, resnet.learning_rate) == (300, 128, 0.1)
    assert (resnet.weight_decay, resnet.optimizer, resnet.schedule) == (1e-4, "nesterov", "step")
    assert BY_NAME["cifar100-densenet-bc-100-12"].settings.batch_size == 64
    lrd = BY_NAME["cifar10-resnet34"].settings
    assert (lrd.epochs, lrd.batch_size, lrd.weight_decay, lrd.schedule) == (200, 128, 5e-4, "step")
    assert resnet.augment
    assert not BY_NAME["mnist-nin"].settings.augment


@pytest.mark.parametrize("name", ["mnist-naive-cnn", "mnist-nin"])
def test_digits_are_never_mirrored(name, monkeypatch):
    task = BY_NAME[name]
    x = torch.from_numpy(np.random.RandomState(0).randint(0, 256, size=(8, 1, 28, 28), dtype=np.uint8)).numpy()
    y = np.arange(8)
    trial = SeeingTrial(0, monkeypatch)
    digits = images_of((x, y), (x, y), (x, y), classes=10)
    task.train(trial, task.settings.updated({"epochs": 1, "batch_size": 8, "augment": True}), digits)
    windows = digits.normalised(crop_windows(digits.train_x).permute(0, 2, 3, 1, 4, 5).reshape(-1, 1, 28, 28))
    for image in trial.batches[0].x:
        assert (windows == image).flatten(1).all(1).any()


@pytest.mark.skipif(not (SHARED / "cifar10-jpeg").is_dir(), reason="no CIFAR-10 (JPEG q75) in ../shared/data")
def test_resnet20_learns_real_images():
    splits = []
    for name, chosen in (("train.npz", slice(0, 200)), ("train.npz", slice(200, 250))):
        file = DataFile(name=name, sha256=SHA256[name], folders=("cifar10-jpeg",), mirrors=())
        with np.load(io.BytesIO(read_file(file, SHARED)), allow_pickle=False) as arrays:
            offsets = arrays["offsets"][chosen.start : chosen.stop + 1]
            splits.append((decode_jpegs(arrays["jpeg"], offsets), arrays["labels"][chosen]))
    data = images_of(splits[0], splits[1], splits[1], classes=10)
    task = BY_NAME["cifar10-jpeg-resnet20"]
    trial = FakeTrial(seed=1)
    task.train(
        trial, task.settings.updated({"epochs": 4, "batch_size": 25, "learning_rate": 0.03, "augment": False}), data
    )
    assert trial.epochs[-1]["train_loss"] < 2.1 < trial.epochs[0]["train_loss"]
    assert trial.steps == 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_cuda_sees_the_same_images(data, monkeypatch, precision):
    state = torch.cuda.get_rng_state()
    changes = {"cutout": 3, "mixup": 1.0, "precision": precision, "channels_last": True}
    cpu, cuda = SeeingTrial(0, monkeypatch), SeeingTrial(0, monkeypatch)
    run(data, trial=cpu, **changes)
    seen = list(cpu.batches)
    cuda.batches.clear()
    run(data, trial=cuda, device="cuda", **changes)
    for one, other in zip(seen, cuda.batches, strict=True):
        assert torch.allclose(one.x, other.x.cpu(), atol=1e-5)
        assert torch.equal(one.y, other.y.cpu())
    assert cuda.metrics[0]["train_loss"] == pytest.approx(cpu.metrics[0]["train_loss"], rel=0.02)
    assert torch.equal(torch.cuda.get_rng_state(), state)
