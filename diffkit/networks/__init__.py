"""Networks, which compute the prediction: `network(z, logsnr, condition=None, key=None)` on one example.

`MLP` is for points, `UNet` for images; plugins bring more. Their layers are in `diffkit.networks.layers`
and `diffkit.networks.embeddings`, for networks of your own.
"""

from diffkit.networks.base import AbstractNetwork as AbstractNetwork
from diffkit.networks.mlp import MLP as MLP
from diffkit.networks.unet import UNet as UNet
