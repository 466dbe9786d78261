"""Scaled dot-product attention in all its fused forms."""

from __future__ import annotations

from rebasin_cli.symmetry.algebra import combine, elementwise, rows_matter
from rebasin_cli.symmetry.arrange import split_dim, view
from rebasin_cli.symmetry.positions import AxisLayout, fixed_layout
from rebasin_cli.symmetry.registry import Op, rule


@rule(
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "aten._scaled_dot_product_attention_math",
    "aten.scaled_dot_product_attention",
)
def attention(op: Op) -> list[AxisLayout]:
    """`softmax(q @ k.T + mask) @ v`, head by head; where keys have fewer heads, query heads are (key head, repeat)."""
    query, key, value = (op.layout(name) for name in ("query", "key", "value"))
    lead = len(query.dims) - 2
    repeat = query.shape[lead - 1] // key.shape[lead - 1] if lead else 1
    labels: list[object] = [("lead", place) for place in range(lead)]
    query_labels, score_shape = list(labels), [*query.shape[:-1], key.shape[-2]]
    if repeat > 1:
        query = split_dim(op.relations, query, lead - 1, key.shape[lead - 1])
        query_labels = [*labels, "repeat"]
    scores = combine(
        op.relations,
        [(query, [*query_labels, "t", "d"]), (key, [*labels, "s", "d"])],
        [*query_labels, "t", "s"],
    )
    mask = next((name for name in ("attn_mask", "attn_bias") if op.has(name)), None)
    if mask is not None:
        flat = view(op.relations, scores, score_shape)
        flat = elementwise(op.relations, [flat, op.layout(mask)], score_shape)
        scores = view(op.relations, flat, scores.shape)
    scores = rows_matter(op.relations, scores, [len(scores.dims) - 1])
    result = combine(
        op.relations,
        [(scores, [*query_labels, "t", "s"]), (value, [*labels, "s", "e"])],
        [*query_labels, "t", "e"],
    )
    result = view(op.relations, result, op.result_shape)
    rest = [fixed_layout(shape, "auxiliary result of attention") for shape in op.result_shapes[1:]]
    return [result, *rest]
