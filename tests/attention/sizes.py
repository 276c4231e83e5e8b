"""Sizes of the attentions that tests spell, and what masks are filled with."""

from __future__ import annotations

import math

import torch

B, H, G, Q, K, D = 2, 4, 2, 6, 17, 8
INF, MIN = math.inf, torch.finfo(torch.float32).min
