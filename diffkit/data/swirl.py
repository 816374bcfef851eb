r"""The swirl: two-dimensional 8-bit points along a spiral.

The toy data of the notebook that accompanies Variational Diffusion Models (arXiv 2107.00630). With $u$
uniform on $[0, 1]$ and $n$ standard normal in the plane,

$$\theta = 3\pi\sqrt{u}, \qquad r = 2\theta + \pi, \qquad
  x = \big\lfloor 4\,\big(r\,(\cos\theta, \sin\theta) + n/4 + 30\big) \big\rfloor .$$

On the training points themselves, no model can do better than their empirical entropy: 4.7353 bits per
dimension for the default 1,024 points.
"""

import numpy as np
from jaxtyping import UInt8

from diffkit.data.arrays import ArraySource
from diffkit.data.base import AbstractDataset
from diffkit.data.reading import check_seed
from diffkit.registry import register
from diffkit.typing import check_at_least


@register("data", "swirl")
class Swirl(AbstractDataset):
    """Points of a spiral with 256 levels in each of two dimensions; the shape is `(2,)`.

    The training points are those of the reference notebook, number for number. The test points are
    another draw of the same size, with `seed + 1`.
    """

    def __init__(self, points: int = 1024, seed: int = 0):
        """**Arguments:** `points`: how many to train on, and to test on; `seed`: of the training points,
        from 0 to 2^32 - 2.

        **Raises:** `ValueError` for fewer than one point, or a seed out of range.
        """
        check_at_least("Swirl: points", points, 1)
        check_seed(seed, "Swirl", below=2**32 - 1)
        self.train = ArraySource(_draw(points, seed))
        self.test = ArraySource(_draw(points, seed + 1))
        self.levels, self.shape = 256, (2,)


def _draw(points: int, seed: int) -> UInt8[np.ndarray, "{points} 2"]:
    # The legacy generator, in the notebook's order of calls.
    state = np.random.RandomState(seed=seed)
    theta = np.sqrt(state.rand(points)) * 3 * np.pi
    radius = 2 * theta + np.pi
    spiral = np.array([np.cos(theta) * radius, np.sin(theta) * radius]).T
    return (4 * (spiral + 0.25 * state.randn(points, 2) + 30)).astype(np.uint8)
