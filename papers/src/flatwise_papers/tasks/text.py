"""Sentiment of film reviews with an LSTM: Table 2 of the RN paper."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from flatwise.study.task import ClassificationSettings, Task
from flatwise.study.tasks.classification import Classification, train_classifier
from flatwise.study.tasks.training import Dropout
from flatwise_papers.data.imdb import VOCABULARY_SIZE, load_imdb

if TYPE_CHECKING:
    from flatwise.study.trial import Trial

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
