"""Attention heads that run only where an input needs them."""

import torch  # noqa: F401  (its libraries must be loaded before ours)

from headkit import _C  # noqa: F401
