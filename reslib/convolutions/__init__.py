"""Convolutions by faster algorithms than the direct sum, where a trial on the machine at hand finds them faster."""

from .choose import ALGORITHMS, Convolutions, OtherLoss, choose_layers, layers_met, wins
from .layers import Layer, layer_of

__all__ = ["ALGORITHMS", "Convolutions", "Layer", "OtherLoss", "choose_layers", "layer_of", "layers_met", "wins"]
