"""The operations that learning from a rollout batch takes at least."""

from __future__ import annotations

from collections.abc import Sequence

from nsr.memory.estimate import ModelShape

PASSES = 3
"""A product of activations and weights is three in training: forward, for the activations' gradient, for the weights'.
So is one of two activations, as in attention."""


def learning_operations(
    shape: ModelShape, prompt_lengths: Sequence[int], group_size: int, response_length: int, *, vocabulary: int
) -> int:
    """Floating-point operations, two for each multiplied pair, of one gradient.

    Useful work alone. Of a group with a prompt of P tokens and G responses of R tokens:

        positions    P + G (R - 1)       through the layers: the prompt once, and all of a response but its last token,
                                         which predicts nothing
        predictions  1 + G (R - 1)       through the output layer: the prompt's last position predicts every response's
                                         first token
        pairs        P (P + 1) / 2 + G ((R - 1) (P + 1) + (R - 1) (R - 2) / 2)
                                         of a query and a key that it may see: the position t of a prompt sees t + 1,
                                         that of a response P + t + 1

    A layer multiplies each position by 2 h q + 2 h k + 3 h i weights (h hidden, q and k widths of all query and all
    key-value heads, i intermediate), and each pair by 2 q: queries with keys, and attention weights with values.
    The output layer multiplies each prediction by h V weights. So, with L layers,

        3 x 2 x (positions L (2 h q + 2 h k + 3 h i) + predictions h V + pairs L 2 q)

    Not counted: padding, what is computed again, norms, softmax, embedding, optimizer.
    """
    responses = group_size * (response_length - 1)
    layer = shape.hidden * (2 * shape.q_width + 2 * shape.kv_width + 3 * shape.intermediate)
    products = 0
    for prompt in prompt_lengths:
        later = (response_length - 1) * (prompt + 1) + (response_length - 1) * (response_length - 2) // 2
        pairs = prompt * (prompt + 1) // 2 + group_size * later
        products += (prompt + responses) * shape.layers * layer
        products += (1 + responses) * shape.hidden * vocabulary
        products += pairs * shape.layers * 2 * shape.q_width
    return PASSES * 2 * products
