"""Faster variants of the functions of this wing, each of which a test holds equal to its definition."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tinydet.labels import IGNORE
from tinydet.ops.anchors import LEVELS, anchors, feature_sizes
from tinydet.ops.assign import Targets, adaptive_candidates, match_anchors, nearest_cells
from tinydet.ops.assign import assign_batch as _assign_batch
from tinydet.ops.boxes import area, at_least_float32, intersection, iou, xyxy_to_cxcywh
from tinydet.ops.losses import check_labels

# The widest depthwise kernel for whose gradient oneDNN 3.12 has a routine; wider ones go as dense groups.
FAST_WIDTH = 3
CHUNK = 1 << 17  # elements of a float32 tensor that stays in the cache while `_negatives` goes over it


def depthwise_conv(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """Convolve depthwise. float[B C H W], float[C 1 k k] -> float[B C H' W'].

    On CPU the gradient of a kernel wider than 3 takes a third of the time of `F.conv2d(..., groups=C)`.
    """
    slow = not _on_cpu(x) or torch.is_autocast_enabled("cpu")
    if weight.shape[-1] <= FAST_WIDTH or slow or _traced():
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))
    return _DepthwiseConv.apply(x, weight, stride, padding)


class _DepthwiseConv(torch.autograd.Function):
    """Depthwise convolution, the gradient of its kernel taken three columns at a time, each over the moved image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.stride, ctx.padding = stride, padding
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        x_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = _gradient(grad, x, weight, stride, (padding, padding), by=0)
        if ctx.needs_input_grad[1]:
            columns = []
            for first in range(0, weight.shape[-1], FAST_WIDTH):
                part = weight[..., first : first + FAST_WIDTH]
                left, width = padding - first, (grad.shape[-1] - 1) * stride + part.shape[-1]
                moved = F.pad(x, (left, width - left - x.shape[-1]))
                columns.append(_gradient(grad, moved, part, stride, (padding, 0), by=1))
            weight_grad = torch.cat(columns, -1)
        return x_grad, weight_grad, None, None


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve pointwise. float[B C H W], float[C' C 1 1], float[C'] -> float[B C' H W].

    On CPU the bias's gradient is a sum: oneDNN takes as long for it as for the other two.
    """
    if bias is None or not _on_cpu(x) or torch.is_autocast_enabled("cpu") or _traced():
        return F.conv2d(x, weight, bias)
    return _PointwiseConv.apply(x, weight, bias)


class _PointwiseConv(torch.autograd.Function):
    """Pointwise convolution with a bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        grad = grad.contiguous(memory_format=torch.channels_last)  # or the sum would take many times as long
        settings = None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [*ctx.needs_input_grad[:2], False]
        x_grad, weight_grad, _ = torch.ops.aten.convolution_backward(grad, *ctx.saved_tensors, *settings)
        return x_grad, weight_grad, grad.permute(0, 2, 3, 1).flatten(0, 2).sum(0)


def gated_conv(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve x * gate pointwise. float[B C H W], float[B C], float[C' C 1 1], float[C'] -> float[B C' H W].

    It is the kernel that is multiplied, one an image: neither x * gate nor its gradient is ever written out.
    """
    if _traced():
        return F.conv2d(x * gate[..., None, None], weight, bias)
    rows, kernels = x.permute(0, 2, 3, 1).flatten(1, 2), (weight.flatten(1) * gate[:, None]).mT  # [B HW C], [B C C']
    y = rows @ kernels if bias is None else torch.baddbmm(bias, rows, kernels)
    return y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def pointwise_conv_norm(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, *, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise a pointwise convolution by its batch's statistics: those follow from the mean and covariance of x.

    mean(W x) = W mean(x) and var(W x) = diag(W cov(x) W^T). The wider the output is than x, the more is saved: it is
    written once, normalised, and its gradient needs nothing of it. A channel whose kernel is orthogonal to what varies
    most in x has a less exact variance. float[B C H W], float[C' C 1 1], float[C'] ->
    float[B C' H W], and its mean and variance before, float[C'].
    """
    kernel, mean = weight.flatten(1), x.mean((0, 2, 3))
    centred = x - mean[:, None, None]
    rows = centred.permute(0, 2, 3, 1).flatten(0, 2)
    var = ((kernel @ (rows.mT @ rows / len(rows))) * kernel).sum(1).clamp(min=0)  # what cancels may fall below
    scale = scale * (var + eps).rsqrt()
    return pointwise_conv(centred, scale[:, None, None, None] * weight, shift), kernel @ mean, var


def relu6(x: Tensor) -> Tensor:
    """Clamp to 0 .. 6. float[...] -> the same, which is overwritten: the gradient needs only the result.

    `F.relu6(x, inplace=True)` keeps a copy of x for it.
    """
    return F.relu6(x) if _traced() else _Relu6.apply(x)


class _Relu6(torch.autograd.Function):
    """relu6 in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x.clamp_(0, 6))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.aten.hardtanh_backward(grad, *ctx.saved_tensors, 0, 6)


def pad(x: Tensor, left: int, right: int, top: int, bottom: int, *, value: float = 0.0) -> Tensor:
    """Pad the border, as `F.pad` does; only the border is filled, and the gradient is a view. -> float[B C H' W']."""
    border = left, right, top, bottom
    return F.pad(x, border, value=value) if _traced() else _Pad.apply(x, *border, value)


class _Pad(torch.autograd.Function):
    """The border padded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: int, right: int, top: int, bottom: int, value: float) -> Tensor:
        height, width = x.shape[2:]
        ctx.inside = ..., slice(top, top + height), slice(left, left + width)
        shape = *x.shape[:2], top + height + bottom, left + width + right
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        y[ctx.inside] = x
        for edge in (y[:, :, :top], y[:, :, top + height :], y[..., :left], y[..., left + width :]):
            edge.fill_(value)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return grad[ctx.inside], None, None, None, None, None


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], *, by: int) -> Tensor:
    """The gradient of a depthwise convolution by its image (0) or its kernels (1)."""
    settings = [stride, stride], padding, [1, 1], False, [0, 0], len(weight), [by == 0, by == 1, False]
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *settings)[by]


def _on_cpu(x: Tensor) -> bool:
    """Whether shapes may depend on values, for which a GPU would have to be waited for."""
    return x.device.type == "cpu"


def _traced() -> bool:
    """Whether a function is compiled or transformed by torch.func, which follow torch's own functions alone."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def focal_loss_sum(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 1.5) -> Tensor:
    """Sum the focal loss and compute its gradient in one pass, four times as fast.

    Only autograd can differentiate it, and only once: torch.func and second derivatives need the definition.
    """
    check_labels(labels, classes=logits.shape[-1])
    return _FocalLossSum.apply(logits, labels, alpha, gamma)


class _FocalLossSum(torch.autograd.Function):
    """The sum of the focal loss and its gradient.

    Of a negative, with p = sigmoid(x) and s = softplus(x) = -log(1 - p):
    L = (1 - alpha) p^gamma s,  dL/dx = (1 - alpha) p^gamma (gamma (1 - p) s + p).
    A positive is the same of -x with alpha for 1 - alpha. All are taken for negatives first, ignored anchors for sure
    ones, which have no loss; the few positives are corrected afterwards.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        x, labels = logits.detach().reshape(-1, logits.shape[-1]), labels.reshape(-1)
        gradient = torch.empty_like(x)
        rows = max(1, CHUNK // x.shape[-1] if _on_cpu(x) else len(x))
        ignored = (labels == IGNORE)[:, None]
        chunks = zip(*(tensor.split(rows) for tensor in (x, ignored, gradient)), strict=True)
        sums = []
        for part, out, into in chunks:
            sums.append(
                _negatives(part if _on_cpu(x) and not out.any() else part.masked_fill(out, -torch.inf), into, gamma)
            )
        negatives = torch.stack(sums).sum()

        positive = labels >= 0
        row = positive.nonzero()[:, 0] if _on_cpu(x) else torch.arange(len(labels), device=labels.device)
        place, positive = (row, labels[row].clamp(0, x.shape[-1] - 1)), positive[row]
        logit, positive_gradient = x[place], torch.empty_like(x[place])
        negatives -= _negatives(logit.where(positive, -torch.inf), positive_gradient, gamma)
        positives = _negatives((-logit).where(positive, -torch.inf), positive_gradient, gamma)
        gradient[place] = torch.where(positive, positive_gradient * (alpha / (alpha - 1)), gradient[place])
        ctx.save_for_backward(gradient.view_as(logits))
        ctx.scale = 1 - alpha
        return ((1 - alpha) * negatives + alpha * positives).to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * (grad * ctx.scale), None, None, None


def _negatives(x: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    """The sum of p^gamma s over x, float64; its derivative by each goes into `gradient`, a tensor like x."""
    s, p = F.softplus(x), torch.sigmoid(x, out=gradient)
    weight = p.sqrt().mul_(p) if gamma == 1.5 else p.pow(gamma)  # the paper's 1.5 is several times as fast this way
    rest = torch.addcmul(s, s, p, value=-1)
    torch.add(p, rest, alpha=gamma, out=gradient).mul_(weight)
    return torch.dot(s.flatten(), weight.flatten()).double()


def max_anchor_iou(
    boxes: Tensor, image_size: tuple[int, int], *, levels: Sequence[int] = LEVELS, **settings: Any
) -> Tensor:
    """Compute the largest IoU of each box with any of `anchors(image_size, ...)`. float[N 4] -> float[N].

    Of the anchors of one shape none overlaps a box more than the one whose centre is nearest.
    """
    sizes, boxes = feature_sizes(image_size, levels=levels), at_least_float32(boxes)
    cells = anchors(image_size, levels=levels, dtype=boxes.dtype, device=boxes.device, **settings)
    cells = cells.unflatten(0, (sum(rows * columns for rows, columns in sizes), -1))  # [cells S 4]
    x, y = (xyxy_to_cxcywh(boxes)[:, :2] / boxes.new_tensor(image_size[::-1])).T  # as shares of the image
    best, first = boxes.new_zeros(len(boxes)), 0
    for rows, columns in sizes:
        column, row = (x * columns).long().clamp(0, columns - 1), (y * rows).long().clamp(0, rows - 1)
        overlap = iou(boxes[:, None], cells[first + row * columns + column])  # [N 1 S]
        best, first = torch.maximum(best, overlap.amax((1, 2))), first + rows * columns
    return best


def assign_batch(
    boxes: Tensor,
    labels: Tensor,
    anchors: Tensor,
    *,
    image_size: tuple[int, int] | None = None,
    levels: Sequence[int] = LEVELS,
    **settings: Any,
) -> Targets:
    """Assign a batch, computing IoUs in the nearest cells alone: on CPU, with `image_size`, in half the time.

    Shapes depend on values, which torch.func cannot follow, and a GPU would have to wait.
    """
    if image_size is None or not _on_cpu(boxes) or not boxes.numel():
        return _assign_batch(boxes, labels, anchors, image_size=image_size, levels=levels, **settings)
    result = []
    for box, label in zip(boxes, labels, strict=True):
        objects = at_least_float32(box.where((label >= 0)[:, None], 0))
        near, inside = nearest_cells(objects, anchors, image_size=image_size, levels=levels)
        row, cell = near.nonzero().unbind(1)
        cells = at_least_float32(anchors).unflatten(0, (near.shape[1], -1))
        overlap = cells.new_zeros(len(objects), *cells.shape[:2])
        overlap[row, cell] = iou(objects[row, None], cells[cell])[:, 0]
        candidates = adaptive_candidates(overlap, near, inside).flatten(1)
        ignored = (intersection(box[label == IGNORE], anchors) > 0.5 * area(anchors)).any(0)
        result.append(match_anchors(overlap.flatten(1), candidates, ignored, objects, label, anchors))
    return Targets(*map(torch.stack, zip(*result, strict=True)))
