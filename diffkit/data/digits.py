"""The handwritten digits of scikit-learn, without a file.

1,797 images of 8 x 8 pixels with 17 grey levels (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998). Small enough to train on in minutes without an accelerator.
"""

import numpy as np

from diffkit.data.arrays import ArraySource
from diffkit.data.base import AbstractDataset
from diffkit.data.conditions import LabelledSource
from diffkit.lazy import needed
from diffkit.registry import register


@register("data", "digits")
class Digits(AbstractDataset):
    """The digits of scikit-learn: the first 1,500 images to train on, the last 297 to test on.

    The images keep the stored order. The shape is `(1, 8, 8)`, and there are 17 levels.
    """

    def __init__(self, labels: bool = False):
        """**Arguments:** `labels`: whether an image comes with its digit, as one of 10 classes.

        **Raises:** `ImportError` without scikit-learn.
        """
        digits = needed("sklearn.datasets", "data 'digits' needs scikit-learn").load_digits()
        images = digits.images.astype(np.uint8)[:, None]
        self.train, self.test = ArraySource(images[:1500]), ArraySource(images[1500:])
        if labels:
            target = digits.target.astype(np.uint8)
            self.train = LabelledSource(self.train, target[:1500], 10)
            self.test = LabelledSource(self.test, target[1500:], 10)
        self.levels, self.shape = 17, (1, 8, 8)
