"""Attention of whose weights, or scores, something is made that leads to no result, as models make
what their callers do not ask for."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.attention.catalogue import Spelling, square
from tests.attention.sizes import B, H, K, Q


def prophet_net(q, k, v):
    """Weights, and scores, as nobody reads them."""
    s = q @ k.mT
    w = s.softmax(-1)
    out = w @ v
    s.to(torch.bfloat16).view(-1, *s.shape[1:]).mean(1)
    w.detach().unsqueeze(0).transpose(1, 2)
    return out


def read_of_each_other(q, k, v):
    """Of two that nobody reads, one reads the other as well."""
    w = (q @ k.mT).softmax(-1)
    out = w @ v
    w.reshape_as(w.transpose(1, 2))
    return out


def sums_given_elsewhere(q, k, v):
    """A call does more than give a tensor."""
    w = (q @ k.mT).softmax(-1)
    given = torch.zeros(H, Q, K, dtype=w.dtype)
    torch.sum(w.detach(), 0, out=given)
    return w @ v + given.sum()


def drawn_from(q, k, v):
    """Nobody reads what is drawn, but numbers are."""
    w = (q @ k.mT).softmax(-1)
    F.dropout(w.view(-1), 0.5, True)
    return w @ v


def read_after_a_view(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return w @ v + w.view(B, -1).mean(-1)[:, None, None, None]


def turned_in_place(q, k, v):
    """Nobody reads what a call gives that turns the weights themselves."""
    w = (q @ k.mT).softmax(-1)
    w.transpose_(-2, -1)
    return w @ v


def weights_written_through_a_view(q, k, v):
    """What nobody reads is written."""
    w = (q @ k.mT).softmax(-1)
    w.view(-1).mul_(2)
    return w @ v


UNREAD = {
    "prophet_net": Spelling(prophet_net),
    "read_of_each_other": Spelling(read_of_each_other),
    "sums_given_elsewhere": Spelling(sums_given_elsewhere, "!weights_read"),
    "drawn_from": Spelling(drawn_from, "!weights_read"),
    "read_after_a_view": Spelling(read_after_a_view, "!weights_read"),
    "turned_in_place": Spelling(turned_in_place, "!weights_changed", operands=square),
    "weights_written_through_a_view": Spelling(weights_written_through_a_view, "!weights_read"),
}
