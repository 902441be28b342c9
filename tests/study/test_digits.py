"""The built-in data: normalised by the training images alone, split the same way always."""

import hashlib

import numpy as np
import pytest
import torch

from flatwise.study.tasks.classification import load_digits, normalised, stratified_indices


def test_normalisation_uses_the_training_images_alone():
    random = np.random.RandomState(1)
    images = [random.randint(0, 256, size=(n, 3, 2), dtype=np.uint8) for n in (7, 4, 5)]
    labels = [np.arange(n, dtype=np.uint8) for n in (7, 4, 5)]
    data = normalised(*zip(images, labels, strict=True), classes=7)
    mean, std = images[0].mean(), images[0].std()
    for x, pixels in zip((data.train_x, data.val_x, data.test_x), images, strict=True):
        assert np.allclose(x.numpy(), (pixels.reshape(-1, 6) - mean) / std, atol=1e-6)
    assert data.val_y.tolist() == [0, 1, 2, 3]
    assert data.classes == 7


def test_digits_shapes_and_normalisation():
    data = load_digits()
    for x, y, size in (
        (data.train_x, data.train_y, 899),
        (data.val_x, data.val_y, 359),
        (data.test_x, data.test_y, 539),
    ):
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((size, 64), torch.float32, (size,), torch.int64)
    assert data.train_x.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert data.train_x.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_digits_split_is_disjoint_complete_stratified_and_pinned():
    from sklearn.datasets import load_digits as published

    labels = published().target
    splits = stratified_indices(labels)
    assert np.array_equal(np.sort(np.concatenate(splits)), np.arange(1797))
    for split, share in zip(splits, (0.5, 0.2, 0.3), strict=True):
        counts, everywhere = np.bincount(labels[split]), np.bincount(labels)
        assert np.abs(counts - share * everywhere).max() <= 1
    assert hashlib.sha256(splits[2].astype("<i8").tobytes()).hexdigest().startswith("b6de1b7ca5d0c220")


def test_digits_images_and_labels_stay_together():
    from sklearn.datasets import load_digits as published

    images, labels = published(return_X_y=True)
    data = load_digits()
    _, _, test = stratified_indices(labels)
    assert np.array_equal(data.test_y.numpy(), labels[test])
    # Normalising is one straight line for all pixels: undone, the published pixels come back.
    x = data.test_x.double().numpy()
    restored = (x - x.min()) / (x.max() - x.min()) * 16
    assert np.allclose(restored, images[test], atol=1e-5)


def test_loading_leaves_the_global_random_state_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_digits()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_data_move_to_a_device_whole():
    data = load_digits()
    moved = data.to("meta")
    for name in ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(data, name).shape
    assert moved.classes == 10
