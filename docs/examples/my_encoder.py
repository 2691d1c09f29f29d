"""Example of a new encoder, in one file.

python docs/examples/my_encoder.py fit --config configs/cartpole.yaml --model.network.encoder two_layers
"""

from __future__ import annotations

import math

from torch import nn

from bayes_rl.networks import Encoder, LayerFactory, PlainEncoder, register_encoder


@register_encoder("two_layers", needs_images=False)
def two_layers(shape: tuple[int, ...], hidden_dim: int, layers: LayerFactory) -> Encoder:
    """Return an encoder of two linear layers, half as wide below; the factory makes them Bayesian where asked to."""
    width = hidden_dim // 2
    stack = nn.Sequential(nn.Flatten(), layers.linear(math.prod(shape), width), layers.rectifier())
    return PlainEncoder(stack, width, hidden_dim, layers)


if __name__ == "__main__":
    from bayes_rl.cli import main

    main()
