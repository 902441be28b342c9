"""MLPs on MNIST: LEAP's Table 2 and LRD's FCNet."""

from __future__ import annotations

from functools import partial

from flatwise.study.task import Task
from flatwise.study.tasks.classification import MlpSettings, train_mlp
from flatwise_papers.data import load_mnist

# Table 6 of the LEAP paper; the number counts the layer of inputs too.
MNIST_WIDTHS = {
    3: (784, 100, 10),
    4: (784, 256, 100, 10),
    6: (784, 256, 128, 64, 32, 10),
    8: (784, 256, 128, 64, 64, 32, 32, 10),
    10: (784, 256, 128, 64, 64, 32, 32, 16, 16, 10),
}
# Section IV-A of LRD's paper: two hidden layers of 1000.
FCNET_WIDTHS = (784, 1000, 1000, 10)

# A constant rate, as in LEAP's Table 2. Tried on MLP-3, 6 and 10: MLP-4 and 8 have the settings of their neighbours.
# The deep ones spend their first epochs on a plateau, which they leave the later the smaller the rate.
MNIST_RATES = {3: 0.05, 4: 0.05, 6: 0.01, 8: 0.05, 10: 0.05}
MNIST_SETTINGS = MlpSettings(epochs=20, batch_size=128, learning_rate=0.05, weight_decay=1e-4)
# As in LRD's paper, Table I, whose rates for its other optimizers are 0.001 for RMSprop, Adam and AMSGrad and 0.03 for
# RAdam. It names no weight decay for MNIST.
FCNET_SETTINGS = MlpSettings(epochs=100, batch_size=128, learning_rate=0.1)


def _mnist_mlp(layers: int) -> Task:
    return Task(
        name=f"mnist-mlp-{layers}",
        summary=f"the LEAP paper's MLP-{layers} on MNIST: {layers} layers, that of inputs included",
        settings=MNIST_SETTINGS.updated({"learning_rate": MNIST_RATES[layers]}),
        load=load_mnist,
        train=partial(train_mlp, widths=MNIST_WIDTHS[layers]),
    )


def _mnist_fcnet() -> Task:
    return Task(
        name="mnist-fcnet",
        summary="the LRD paper's FCNet on MNIST: two hidden layers of 1000",
        settings=FCNET_SETTINGS,
        load=load_mnist,
        train=partial(train_mlp, widths=FCNET_WIDTHS),
    )


MLP_TASKS: tuple[Task, ...] = (*(_mnist_mlp(layers) for layers in MNIST_WIDTHS), _mnist_fcnet())
