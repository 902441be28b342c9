"""MLPs on MNIST, and an LSTM on film reviews."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from flatwise.study.task import ClassificationSettings, Task
from flatwise.study.tasks.classification import Classification, MlpSettings, train_classifier, train_mlp
from flatwise.study.tasks.training import Dropout
from flatwise_papers.data.imdb import VOCABULARY_SIZE, load_imdb
from flatwise_papers.data.mnist import load_mnist

if TYPE_CHECKING:
    from flatwise.study.trial import Trial


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


def _on_mnist(name: str, summary: str, settings: MlpSettings, widths: tuple[int, ...]) -> Task:
    return Task(name=name, summary=summary, settings=settings, load=load_mnist, train=partial(train_mlp, widths=widths))


MLP_TASKS: tuple[Task, ...] = (
    *(
        _on_mnist(
            f"mnist-mlp-{layers}",
            f"the LEAP paper's MLP-{layers} on MNIST: {layers} layers, that of inputs included",
            MNIST_SETTINGS.updated({"learning_rate": MNIST_RATES[layers]}),
            widths,
        )
        for layers, widths in MNIST_WIDTHS.items()
    ),
    _on_mnist("mnist-fcnet", "the LRD paper's FCNet on MNIST: two hidden layers of 1000", FCNET_SETTINGS, FCNET_WIDTHS),
)

WIDTH = 128
EVALUATION_BATCH = 1000


class TextSettings(ClassificationSettings):
    """Settings of the text tasks.

    Attributes:
        dropout: in [0, 1): the probability that a feature of the embedded words is dropped in training, for all words
            of a review alike; default 0.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)


# RN names the model, the data and Adam; its Keras gave us the rest, from the example imdb_lstm. From RN are Adam's rate
# ("the default: 1e-3") and step decay, which Table 2 has throughout; its epochs for this row are not given.
IMDB_SETTINGS = TextSettings(
    epochs=15, batch_size=32, learning_rate=1e-3, optimizer="adam", schedule="rn-step", dropout=0.2
)


class SentimentLstm(nn.Module):
    """An embedding of words, an LSTM over them, and a linear output of its last state.

    As in Keras's example, with Keras's initialization: embeddings uniform in ±0.05, Xavier and orthogonal matrices,
    biases 0 but the forget gates' 1. Two things differ. torch's LSTM has two bias vectors where Keras's has one. And of
    Keras's two dropouts only that of the inputs is here: torch's LSTM has none of the recurrent connections.

    Args:
        vocabulary: number of word numbers.
        width: of the embedding and of the LSTM's state.
        dropout: probability that a feature of the embedding is dropped in training, one mask for all words of a review.
        masks: generator of the masks, on the model's device.
    """

    def __init__(self, vocabulary: int, width: int, dropout: float, masks: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = Dropout(dropout, masks) if dropout else None
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.output = nn.Linear(width, 1)
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):  # the gates' order is input, forget, cell, output
                nn.init.ones_(parameter[width : 2 * width])
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, words: Tensor) -> Tensor:
        """Return two logits per review, shape ``(n, 2)``, of word numbers of shape ``(n, length)``.

        The logit of the negative class is always 0: cross-entropy is then that of one sigmoid, as in Keras.
        """
        embedded = self.embedding(words)
        if self.training and self.dropout is not None:
            embedded = embedded * self.dropout(embedded.new_ones(len(words), 1, embedded.shape[2]))
        logit = self.output(self._last_state(embedded))
        return torch.cat([torch.zeros_like(logit), logit], dim=1)

    def _last_state(self, embedded: Tensor) -> Tensor:
        # Gradients in evaluation mode: flatness is measured. cuDNN's LSTM has them in training mode alone, and has no
        # second derivative.
        is_measured = torch.is_grad_enabled() and not self.training
        with torch.backends.cudnn.flags(enabled=False) if is_measured else contextlib.nullcontext():
            _, (last, _) = self.lstm(embedded)
        state: Tensor = last[0]
        return state


def train_lstm(trial: Trial, settings: TextSettings, data: Classification) -> None:
    """Train the LSTM: see :func:`~flatwise.study.tasks.classification.train_classifier`."""
    train_classifier(
        trial,
        settings,
        data,
        lambda masks: SentimentLstm(VOCABULARY_SIZE, WIDTH, settings.dropout, masks),
        evaluation_batch=EVALUATION_BATCH,
    )


TEXT_TASKS: tuple[Task, ...] = (
    Task(
        name="imdb-lstm",
        summary="the RN paper's LSTM on IMDb film reviews: positive or negative",
        settings=IMDB_SETTINGS,
        load=load_imdb,
        train=train_lstm,
    ),
)
