"""Inner channels that go with the least loss, and the weights that make up for them: by Gram matrices of inputs.

Shapes: `weight` [B, out, n] are matrices that read n channels, `gram` [B, n, n] the sums of x xᵀ of what each is given.
All is computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference_pio.kernels.low_rank import square_root

DAMPING = 1e-3
"""What is added to the diagonal of a Gram matrix, in parts of its mean, before it is inverted."""
STEPS = 128
"""Rounds in which channels go at most; those of one round are chosen together."""


def naive_removal_order(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """`removal_order` from its definition: of one matrix [out, n], one channel at a time, each loss by solving anew."""
    exact, inner = weight.double(), damped(gram[None])[0]
    left, order, losses = list(range(weight.shape[1])), [], []

    def loss_with(kept: list[int]) -> Tensor:
        cross = exact @ inner[:, kept]
        made_up = cross @ torch.linalg.solve(inner[kept][:, kept], cross.T) if kept else exact.new_zeros(1, 1)
        return torch.trace(exact @ inner @ exact.T) - torch.trace(made_up)

    before = exact.new_zeros(())
    while left:
        tried = [loss_with([one for one in left if one != channel]) for channel in left]
        place = int(torch.stack(tried).argmin())
        order.append(left.pop(place))
        losses.append(tried[place] - before)
        before = tried[place]
    return torch.tensor(order), torch.stack(losses)


@torch.no_grad()
def removal_order(weight: Tensor, gram: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Channels [B, n] in the order in which they go, and what each adds to the squared error of the outputs, where
    those that stay make up for it as well as they can (Optimal Brain Surgeon, Hassibi and Stork 1993, for columns).

    Both of two equal channels are not called superfluous: once one has gone, the other's loss is its own.

    >>> gram = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 4.0]]])
    >>> order, losses = removal_order(torch.ones(1, 1, 3), gram)
    >>> order.tolist(), losses.round(decimals=1).tolist()
    ([[0, 1, 2]], [[0.0, 4.0, 4.0]])
    """
    left, inverse = weight.double().clone(), torch.cholesky_inverse(torch.linalg.cholesky(damped(gram)))
    batch, _, width = left.shape
    gone = torch.zeros(batch, width, dtype=torch.bool, device=left.device)
    order, losses = [], []
    together = -(-width // steps)
    for start in range(0, width, together):
        loss = left.square().sum(1) / inverse.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(torch.float64).tiny)
        chosen = loss.masked_fill(gone, float("inf")).topk(min(together, width - start), largest=False).indices
        columns = left.gather(2, chosen[:, None].expand(-1, left.shape[1], -1))
        rows = inverse.gather(1, chosen[..., None].expand(-1, -1, width))
        corner = torch.linalg.inv(rows.gather(2, chosen[:, None].expand(-1, chosen.shape[1], -1)))
        solved = columns @ corner
        order.append(chosen)
        losses.append((solved * columns).sum(1))
        left -= solved @ rows
        inverse -= rows.mT @ (corner @ rows)
        gone.scatter_(1, chosen, True)
        left.masked_fill_(gone[:, None], 0.0)
    return torch.cat(order, 1), torch.cat(losses, 1).clamp_(min=0)


def naive_block_order(weight: Tensor, gram: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """`block_order` from its definition: of one matrix [out, n], each loss by solving anew for what stays."""
    exact, inner = weight.double(), damped(gram[None])[0]
    columns = torch.arange(weight.shape[1]).view(-1, block)
    left, order, losses = list(range(len(columns))), [], []

    def loss_with(blocks: list[int]) -> float:
        kept = columns[blocks].flatten()
        cross = exact @ inner[:, kept]
        made_up = torch.trace(cross @ torch.linalg.solve(inner[kept][:, kept], cross.T)) if blocks else 0.0
        return float(torch.trace(exact @ inner @ exact.T) - made_up)

    before = 0.0
    while left:
        tried = [loss_with([one for one in left if one != gone]) for gone in left]
        place = min(range(len(left)), key=lambda place: tried[place])
        order.append(left.pop(place))
        losses.append(tried[place] - before)
        before = tried[place]
    return torch.tensor(order), torch.tensor(losses, dtype=torch.float64)


@torch.no_grad()
def block_order(weight: Tensor, gram: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """As `removal_order`, of `block` neighbouring channels that go together: numbers of blocks and losses [B, n /
    block].

    >>> order, losses = block_order(torch.ones(1, 1, 4), torch.diag(torch.tensor([4.0, 1.0, 1.0, 1.0]))[None], 2)
    >>> order.tolist(), losses.round(decimals=1).tolist()
    ([[1, 0]], [[2.0, 5.0]])
    """
    left, inverse = weight.double().clone(), torch.cholesky_inverse(torch.linalg.cholesky(damped(gram)))
    batch, rows, width = left.shape
    count, every = width // block, torch.arange(batch, device=left.device)
    gone = torch.zeros(batch, count, dtype=torch.bool, device=left.device)
    order, losses = [], []
    unit = torch.eye(block, dtype=left.dtype, device=left.device)
    for _ in range(count):
        blocks = left.view(batch, rows, count, block).movedim(2, 1)
        corners = inverse.view(batch, count, block, count, block).diagonal(dim1=1, dim2=3).movedim(3, 1)
        corners = torch.where(gone[..., None, None], unit, corners)
        solved = torch.linalg.solve(corners, blocks, left=False)
        loss = (solved * blocks).sum((2, 3)).masked_fill(gone, float("inf"))
        chosen = loss.argmin(1)
        order.append(chosen)
        losses.append(loss[every, chosen])
        across = inverse.view(batch, count, block, width)[every, chosen]
        left = left - solved[every, chosen] @ across
        inverse = inverse - across.mT @ torch.linalg.solve(corners[every, chosen], across)
        gone[every, chosen] = True
        left.view(batch, rows, count, block).movedim(2, 1)[gone] = 0.0
    return torch.stack(order, 1), torch.stack(losses, 1).clamp_(min=0)


def naive_weighed(weight: Tensor, outputs: Tensor) -> Tensor:
    """`weighed` by the symmetric root of `outputs` [out, out]: other rows, of the same products."""
    values, vectors = torch.linalg.eigh(outputs.double())
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T @ weight.double()


def weighed(weight: Tensor, outputs: Tensor) -> Tensor:
    """Weights [B, out, n] whose outputs' squared errors are those of `weight` as `outputs` weighs them: a matrix [out,
    out] for all pairs of outputs, or [out] for each by itself.

    >>> weighed(torch.tensor([[[1.0], [1.0]]]), torch.tensor([4.0, 9.0])).tolist()
    [[[2.0], [3.0]]]
    """
    if outputs.dim() == 1:
        return outputs.double().clamp(min=0).sqrt()[:, None] * weight.double()
    return square_root(outputs).mT @ weight.double()


def refitted(weight: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """The weights [B, out, k] that give, from the channels `kept` [B, k] alone, the closest to what all of them gave.

    Least squares, W G[:, K] (G[K, K] + damping)⁻¹, rounded once to the dtype of `weight`.

    >>> gram = torch.tensor([[[1.0, 2.0], [2.0, 4.0]]])  # the second channel is always twice the first
    >>> refitted(torch.tensor([[[1.0, 1.0]]]), gram, torch.tensor([[0]])).round(decimals=1)
    tensor([[[3.]]])
    """
    rows = gram.double().gather(1, kept[..., None].expand(-1, -1, gram.shape[2]))
    inner = damped(rows.gather(2, kept[:, None].expand(-1, kept.shape[1], -1)))
    return torch.cholesky_solve(rows @ weight.double().mT, torch.linalg.cholesky(inner)).mT.to(weight.dtype)


def damped(gram: Tensor) -> Tensor:
    """Gram matrices [B, n, n] in float64 that can be inverted."""
    exact = gram.double()
    size = exact.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float32).tiny)
    unit = torch.eye(exact.shape[-1], dtype=exact.dtype, device=exact.device)
    return exact + DAMPING * size[:, None, None] * unit
