"""Variational Diffusion Models (arXiv 2107.00630v6) as parts of diffkit."""

from diffkit.typing import check_types

check_types("diffkit_vdm")

from diffkit_vdm.presets import VDM as VDM
from diffkit_vdm.presets import VDM_CIFAR10 as VDM_CIFAR10
from diffkit_vdm.reference import import_reference as import_reference
from diffkit_vdm.schedules import Endpoints as Endpoints
from diffkit_vdm.schedules import LearnedLinear as LearnedLinear
from diffkit_vdm.schedules import LearnedMonotone as LearnedMonotone
from diffkit_vdm.schedules import MonotoneNetwork as MonotoneNetwork
from diffkit_vdm.unet import VDMUNet as VDMUNet
from diffkit_vdm.unet import vdm_unet_from_reference as vdm_unet_from_reference
