"""Data: sources of examples, datasets to train and test on, and batches of them.

A dataset is registered under the kind `"data"`, and the arguments of its class are its options on
the command line (`data=swirl data.points=4096`).
"""

from diffkit.data.arrays import ArrayData as ArrayData
from diffkit.data.arrays import ArraySource as ArraySource
from diffkit.data.base import AbstractConditionalSource as AbstractConditionalSource
from diffkit.data.base import AbstractDataset as AbstractDataset
from diffkit.data.base import AbstractSource as AbstractSource
from diffkit.data.base import SubsetSource as SubsetSource
from diffkit.data.base import condition_size as condition_size
from diffkit.data.baselines import baselines as baselines
from diffkit.data.cifar import Cifar10 as Cifar10
from diffkit.data.conditions import LabelledSource as LabelledSource
from diffkit.data.conditions import VectorSource as VectorSource
from diffkit.data.conditions import conditions_in_turn as conditions_in_turn
from diffkit.data.conditions import encode_condition as encode_condition
from diffkit.data.conditions import one_hot as one_hot
from diffkit.data.conditions import with_flag as with_flag
from diffkit.data.digits import Digits as Digits
from diffkit.data.idx import Idx as Idx
from diffkit.data.idx import read_idx as read_idx
from diffkit.data.image_files import ImageHeader as ImageHeader
from diffkit.data.image_files import image_header as image_header
from diffkit.data.image_files import image_pixels as image_pixels
from diffkit.data.images import ImageFolder as ImageFolder
from diffkit.data.images import ImageFolderSource as ImageFolderSource
from diffkit.data.npy import read_npy as read_npy
from diffkit.data.pipeline import BatchIterator as BatchIterator
from diffkit.data.pipeline import batches as batches
from diffkit.data.record import DATA_FILE as DATA_FILE
from diffkit.data.record import DataChanged as DataChanged
from diffkit.data.record import DataChangedWarning as DataChangedWarning
from diffkit.data.record import check_examples as check_examples
from diffkit.data.record import check_identity as check_identity
from diffkit.data.record import check_policy as check_policy
from diffkit.data.record import data_changes as data_changes
from diffkit.data.record import identity as identity
from diffkit.data.swirl import Swirl as Swirl
