"""The LSTM language model and its regularisation, as AWD-LSTM has it."""

from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_lookahead.tasks.task import Memory


class LstmLanguageModel(nn.Module):
    """Predict the next token by layers of LSTM, whose hidden state goes on from batch to batch. `Remembering`.

    The matrix of the embedding is that of the output too. With D_p a mask of dropout at rate p, drawn once for a
    window (locked over its time steps) and for each of its rows,

        x_0 = D_input(E[token]),   E's rows, whole words, dropped at `dropout_embedding`
        h_l = LSTM_l(D_between(h_(l-1))),   hidden-to-hidden weights dropped at `dropout_weights`
        logits = E D_output(h_L) + b

    Args:
        types: number of tokens V.
        embedding: width of embedding and last layer.
        hidden: width of the other layers.
        layers: number of layers, >= 1.
        dropout_embedding: probability of dropping a word from the embedding for a window, in [0, 1).
        dropout_input: of zeroing a coordinate of the embedded words.
        dropout_between: of zeroing a coordinate between two layers.
        dropout_output: of zeroing a coordinate of the last layer.
        dropout_weights: of zeroing a hidden-to-hidden weight.
        activation: weight of the mean square of D_output(h_L) in the penalty, AR.
        slowness: weight of the mean square of h_L's change from token to token in the penalty, TAR.

    Example:
        >>> model = LstmLanguageModel(10, embedding=4, hidden=8, layers=2)
        >>> logits, penalty = model(torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, dtype=torch.bool))
        >>> logits.shape, [tuple(part.shape) for part in model.memory]
        (torch.Size([3, 5, 10]), [(3, 8), (3, 8), (3, 4), (3, 4)])

    Reference: arXiv 1708.02182.
    """

    def __init__(
        self,
        types: int,
        *,
        embedding: int = 400,
        hidden: int = 1150,
        layers: int = 3,
        dropout_embedding: float = 0.0,
        dropout_input: float = 0.0,
        dropout_between: float = 0.0,
        dropout_output: float = 0.0,
        dropout_weights: float = 0.0,
        activation: float = 0.0,
        slowness: float = 0.0,
    ) -> None:
        super().__init__()
        self.widths = [embedding, *[hidden] * (layers - 1), embedding]
        # A parameter of the model itself: FSDP2 gathers a module's weights for its forward alone, and the output has
        # these too.
        self.embedding = nn.Parameter(torch.empty(types, embedding).uniform_(-0.1, 0.1))
        self.bias = nn.Parameter(torch.zeros(types))
        self.layers = nn.ModuleList(nn.LSTM(*shape, batch_first=True) for shape in pairwise(self.widths))
        self.dropout_embedding, self.dropout_weights = dropout_embedding, dropout_weights
        self.dropout_input, self.dropout_between, self.dropout_output = dropout_input, dropout_between, dropout_output
        self.activation, self.slowness = activation, slowness
        self.memory: Memory = ()

    def forward(self, tokens: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, T, V) of the tokens that follow, and the penalty, a scalar.

        Args:
            tokens: (B, T), int64.
            first: (B,), whether a row begins a text, before which there is nothing to remember.
        """
        memory = self._recalled(first)
        x = self._locked(self._embedded(tokens), self.dropout_input)
        left: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if index:
                x = self._locked(x, self.dropout_between)
            x, *state = self._run(layer, x, memory[2 * index : 2 * index + 2])
            left += [part[0].detach() for part in state]
        self.memory = tuple(left)
        dropped = self._locked(x, self.dropout_output)
        return functional.linear(dropped, self.embedding, self.bias), self._penalty(x, dropped)

    def _recalled(self, first: Tensor) -> Memory:
        """Return the memory of each row, zeros where a text begins."""
        if self.memory and len(self.memory[0]) == len(first):
            return tuple(part.masked_fill(first[:, None], 0.0) for part in self.memory)
        if self.memory and not bool(first.all()):
            raise ValueError(
                f"{len(first)} rows in the middle of their texts, but the model remembers {len(self.memory[0])} rows: "
                "go on with as many, or set its memory to ()"
            )
        return tuple(self.bias.new_zeros(len(first), width) for width in self.widths[1:] for _ in range(2))

    def _embedded(self, tokens: Tensor) -> Tensor:
        embedded = functional.embedding(tokens, self.embedding)
        if not (self.training and self.dropout_embedding):
            return embedded
        words = functional.dropout(self.bias.new_ones(len(self.bias)), self.dropout_embedding)
        return embedded * words[tokens].unsqueeze(2)

    def _locked(self, x: Tensor, rate: float) -> Tensor:
        if not (self.training and rate):
            return x
        return x * functional.dropout(x.new_ones(len(x), 1, x.shape[2]), rate)

    def _run(self, layer: nn.Module, x: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        inputs, hidden, *biases = layer.parameters()
        # The function behind nn.LSTM: parameters stay parameters, and what it multiplies with is their dropped copy.
        hidden = functional.dropout(hidden, self.dropout_weights, self.training)
        # On a CPU in the parameters' precision: oneDNN refuses an LSTM in half precision on many processors.
        narrow = nullcontext() if x.is_cuda else torch.autocast(x.device.type, enabled=False)
        x = x if x.is_cuda else x.to(inputs.dtype)
        before = [part[None].to(x.dtype) for part in memory]
        with narrow:
            return torch.lstm(x, before, [inputs, hidden, *biases], True, 1, 0.0, self.training, False, True)

    def _penalty(self, x: Tensor, dropped: Tensor) -> Tensor:
        if not (self.training and (self.activation or self.slowness)):
            return x.new_zeros(())
        changes = x[:, 1:] - x[:, :-1]
        return self.activation * dropped.square().mean() + self.slowness * changes.square().mean()
