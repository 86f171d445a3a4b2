"""What the feed-forward kinds take, without numbers (`nn.feed_forward`, `nn.moe`). Torch-free."""

from __future__ import annotations

from shoestring.core.filled import FILLED
from shoestring.nn.feed_forward_config import MoEConfig
from shoestring.plan.adapters import bundled
from shoestring.plan.parts import Linear, Part, activate, add, cat, recomputing, split
from shoestring.plan.tape import FLOAT, HALF, INDEX, Tape, Tensor

_FUSED = 1 << 14  # numbers from which on `kernels.swiglu` computes


class SwiGLU:
    def __init__(self, gate: Part, up: Part, down: Part):
        self.gate, self.up, self.down = gate, up, down

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        gate, up = bundled(tape, (self.gate, self.up), x)
        product = _silu_product(tape, gate, up)
        with recomputing(tape, product, _silu_again, gate, up):
            return self.down(tape, product)


def _silu_product(tape: Tape, gate: Tensor, up: Tensor) -> Tensor:
    y = _silu_again(tape, gate, up)
    if not tape.wants(gate, up):
        return y
    saved = tape.save(gate), tape.save(up)

    def backward(gradient: Tensor) -> list[Tensor | None]:
        gate, up = (take() for take in saved)
        if (gate.size == FLOAT or tape.bfloat) and gate.numbers >= _FUSED and not tape.gpu:
            return [tape.like(gate), tape.like(up)]
        up_gradient = tape.like(up)
        product = tape.like(gate)  # noqa: F841
        return [tape.like(gate), up_gradient]

    tape.record([y], [gate, up], backward)
    return y


def _silu_again(tape: Tape, gate: Tensor, up: Tensor) -> Tensor:
    return tape.like(gate)


class Activated:
    """GELU or squared ReLU between two matrices."""

    def __init__(self, up: Part, down: Part):
        self.up, self.down = up, down

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        inner = self.up(tape, x)
        active = activate(tape, inner)
        with recomputing(tape, active, lambda tape, inner: tape.like(inner), inner):
            return self.down(tape, active)


def expert_rows(config: MoEConfig, tokens: float) -> float:
    """Of an expert, where tokens spread evenly, filled up as in half precision on a CPU."""
    rows = tokens * config.active / config.experts
    return rows + (max(FILLED, rows / 12) / 2 if rows >= FILLED else 0)


class MixtureOfExperts:
    """Tokens are taken to spread evenly over the experts."""

    def __init__(self, config: MoEConfig, width: int, router: Linear, experts: list[SwiGLU], shared: SwiGLU | None):
        self.config, self.width, self.router, self.experts, self.shared = config, width, router, experts, shared

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        config, count = self.config, x.numbers / self.width
        probabilities, places, weights = self._route(tape, x, count)
        chosen = count * config.active
        numbers = tape.empty(chosen, INDEX)
        order = tape.empty(chosen, INDEX)
        del numbers
        inverse = tape.empty(chosen, INDEX)
        numbers = tape.empty(chosen, INDEX)
        del numbers
        each = chosen / config.experts
        if not tape.gpu and min(tape.compute, x.size) == HALF and each >= FILLED:
            each = expert_rows(config, count)
            order, inverse = (tape.empty(rows, INDEX) for rows in (each * config.experts, chosen))
        together = self._to_experts(tape, x, order, inverse)
        parts = split(tape, together, [each * self.width] * config.experts)
        del together
        outputs = [expert(tape, part) for expert, part in zip(self.experts, parts, strict=True)]
        together = cat(tape, outputs)
        taken = _take(tape, together, order, chosen * self.width)
        del together
        y = self._weigh(tape, weights, taken, count)
        if self.shared is not None:
            y = add(tape, y, self.shared(tape, x))
        if config.balance != "none" and tape.wants(y):
            load = tape.empty(config.experts)
            tape.save(load)  # by the loss that balances them: a second run goes as far as here
        return y

    def _route(self, tape: Tape, x: Tensor, count: float) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        with tape.autocast(FLOAT):
            logits = self.router(tape, x)
        probabilities = activate(tape, logits, keeps_input=False)
        biased = tape.like(probabilities)
        values = tape.empty(count * config.active)
        places = tape.empty(count * config.active, INDEX)
        del values, biased
        weights = _gather(tape, probabilities, places, count * config.active)
        if config.normalize:
            weights = _normalize(tape, weights, count)
        return probabilities, places, weights

    def _to_experts(self, tape: Tape, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        rows = tape.like(order)
        y = tape.empty(order.numbers * self.width, x.size)
        del rows
        saved = tape.save(inverse)
        numbers, size, active = x.numbers, x.size, self.config.active

        def backward(gradient: Tensor) -> list[Tensor | None]:
            held = saved()  # noqa: F841
            ordered = tape.empty(numbers * active, size)  # noqa: F841
            return [tape.empty(numbers, size)]

        tape.record([y], [x], backward)
        return y

    def _weigh(self, tape: Tape, weights: Tensor, y: Tensor, count: float) -> Tensor:
        total = tape.empty(count * self.width, y.size)
        saved = tape.save(weights), tape.save(y)

        def backward(gradient: Tensor) -> list[Tensor | None]:
            weights, y = (take() for take in saved)
            return [tape.like(weights), tape.like(y)]

        tape.record([total], [weights, y], backward)
        return total


def _take(tape: Tape, x: Tensor, order: Tensor, numbers: float) -> Tensor:
    y = tape.empty(numbers, x.size)
    saved, whole = tape.save(order), x.numbers

    def backward(gradient: Tensor) -> list[Tensor | None]:
        held = saved()  # noqa: F841
        return [tape.empty(whole, gradient.size)]

    tape.record([y], [x], backward)
    return y


def _gather(tape: Tape, x: Tensor, places: Tensor, numbers: float) -> Tensor:
    y = tape.empty(numbers)
    saved, whole = tape.save(places), x.numbers

    def backward(gradient: Tensor) -> list[Tensor | None]:
        held = saved()  # noqa: F841
        return [tape.empty(whole)]

    tape.record([y], [x], backward)
    return y


def _normalize(tape: Tape, weights: Tensor, count: float) -> Tensor:
    sums = tape.empty(count)
    y = tape.like(weights)
    saved = tape.save(weights), tape.save(sums)

    def backward(gradient: Tensor) -> list[Tensor | None]:
        held = [take() for take in saved]  # noqa: F841
        return [tape.like(gradient)]

    tape.record([y], [weights], backward)
    return y
