"""The convolution over the embedding without numbers (`nn.convolution`). Torch-free."""

from __future__ import annotations

from shoestring.plan.parts import wide
from shoestring.plan.tape import BYTE, Tape, Tensor


class Convolution:
    """weight: a row of the model's width for each token before the own one."""

    def __init__(self, weight: Tensor, width: int):
        self.weight, self.width = weight, width

    def __call__(self, tape: Tape, x: Tensor, length: int) -> Tensor:
        y = tape.like(x)
        if length > 1:
            self._part(tape, x, length)
        if not tape.wants(x, self.weight):
            return y
        saved = tape.save(x)

        def backward(gradient: Tensor) -> list[Tensor | None]:
            x, weight_gradient, x_gradient = saved(), tape.empty(self.weight.numbers), tape.like(gradient)
            if length > 1:
                self._part(tape, x, length)
            return [x_gradient, weight_gradient]

        tape.record([y], [x, self.weight], backward)
        return y

    def _part(self, tape: Tape, x: Tensor, length: int) -> None:
        """All but a row's first token, times its factor; and whether each has one before it, as a number too."""
        part = tape.empty(x.numbers * (length - 1) / length)
        rows = part.numbers / self.width
        inside = tape.empty(rows, BYTE)
        as_numbers = wide(tape, inside)
        del part, inside, as_numbers
