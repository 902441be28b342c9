"""scikit-learn's handwritten digits: 1797 images of 8×8 pixels that come with the package, so no download."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flatter.study.data.classification import Classification, Labels, normalised

SPLIT_SEED = 0
VALIDATION_SHARE = 0.2
TEST_SHARE = 0.3

Indices = npt.NDArray[np.int64]


def load_digits() -> Classification:
    """Return the digits in a fixed, stratified split: 899 training, 359 validation and 539 test images.

    Half of the images train, a fifth validate, the rest test: a small training set leaves room for improvement, and a
    test set of 539 makes one image worth 0.19 % of test error (with the usual 20 % it would be 0.28 %). Inputs have 64
    features, ``(pixel - mean) / std`` with two numbers over all pixels of the training images. A writer's digits may
    be in more than one split, since scikit-learn does not say who wrote which.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'flatter[compare]'.") from error
    digits = datasets.load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target  # the pixels are whole numbers, 0 to 16
    train, val, test = stratified_indices(labels)
    return normalised(
        (images[train], labels[train]), (images[val], labels[val]), (images[test], labels[test]), classes=10
    )


def stratified_indices(labels: Labels) -> tuple[Indices, Indices, Indices]:
    """Split class by class: 20 % validation, 30 % test (rounded to whole images), the rest training.

    The same for the same labels, always: the images of a class are shuffled by ``numpy.random.RandomState(0)``, whose
    numbers numpy has frozen for good.

    Args:
        labels: class of each image, shape ``(n,)``.

    Returns:
        Indices of the training, validation and test images, each ascending.
    """
    random = np.random.RandomState(SPLIT_SEED)
    train, val, test = [], [], []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        first, second = round(VALIDATION_SHARE * len(members)), round((VALIDATION_SHARE + TEST_SHARE) * len(members))
        val.append(members[:first])
        test.append(members[first:second])
        train.append(members[second:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val)), np.sort(np.concatenate(test))
