"""Gradients of attention in NumPy float64, by the formulas, and how far from them a kernel may be.

    delta = sum_d dout out - dlse        dp = dropout(dout v^T)
    ds = p (dp - delta), through the cap;  dq = scale ds k,  dk = scale ds^T q,  dv = dropout(p)^T dout,  dbias = ds,
    dsinks = -sum exp(sink - lse) delta

As in tolerance.py an element's unit of error is what one rounding of every intermediate costs there: p and ds rounded to the inputs'
dtype, out as well (delta is made of it), scores and lse to float32.

    unit = sum over pairs of (u_in + u_acc (1 + max_j S_j)) |ds|' |the other factor| + u |gradient|,
    |ds|' = p (|dout| |v| + sum_d |dout out| + |dlse|)

and what may underflow; S_j = |score_j| with the terms of q.k without signs, and |lse|, of a sink also |sink|.
"""

import numpy as np
import reference
from tolerance import epsilon, tiny


def gradients(call, dout, dlse=None):
    """{argument: (gradient, unit)} of sum(dout * out) + sum(dlse * lse); not for normalize_output=False nor logits_dtype."""
    arrays = {name: call[name] for name in ("query", "key", "value", "bias", "softmax_aux") if call.get(name) is not None}
    result = {name: (np.zeros(x.shape), np.zeros(x.shape)) for name, x in arrays.items()}
    for piece, b, heads, k_index in pieces(call):
        dlse_part = np.zeros(piece.q.shape[:2]) if dlse is None else dlse[piece.lse_index].astype(np.float64)
        parts, units = piece_gradients(piece, call, np.moveaxis(dout[piece.out_index].astype(np.float64), 0, 1), dlse_part)
        for part, which in ((parts, 0), (units, 1)):
            result["query"][which][piece.out_index] = np.moveaxis(part["query"], 0, 1)
            result["key"][which][k_index] += part["key"]
            result["value"][which][k_index] += part["value"]
            if "bias" in result:
                add_where_it_was_broadcast(result["bias"][which], part["bias"], b, heads)
            if "softmax_aux" in result:
                sinks = result["softmax_aux"][which]
                rows = sinks if sinks.ndim == 2 else sinks[None]
                rows[heads if len(rows) > 1 else slice(None)] += part["sinks"] if len(rows) > 1 else part["sinks"].sum(0)
    for name, x in arrays.items():
        result[name][1][...] += epsilon(x.dtype) / 2 * np.abs(result[name][0]) + tiny(x.dtype)
    return result


def judged(case):
    """Whether the unit below says what a kernel may err: with scores in the thousands every weight is 0 or 1."""
    unfit = ("normalize_output", "logits_dtype")
    return case.dtype != "float64" and not set(unfit) & set(case.options) and case.options.get("softmax_scale", 1) < 1000


def gradients_of_results(case, call, seed=7, dtype=None):
    """dout (of the dtype of query, if none is given) and, for some cases, dlse: NaN in rows that no sequence has; dout of some cases with the
    heads before the rows in memory."""
    rng = np.random.default_rng(seed)
    shape = call["query"].shape[:-1] + call["value"].shape[-1:]
    dout = rng.standard_normal(shape).astype(dtype or call["query"].dtype)
    dlse = rng.standard_normal((*shape[:-3], shape[-2], shape[-3])).astype(np.float32) if len(case.id) % 2 else None
    seen, seen_lse = np.zeros(dout.shape, bool), np.zeros((*shape[:-3], shape[-2], shape[-3]), bool)
    for piece in reference.sequences(**call):
        seen[piece.out_index] = True
        seen_lse[piece.lse_index] = True
    dout[~seen] = np.nan
    if dlse is not None:
        dlse[~seen_lse] = np.nan
    if len(case.id) % 3 == 0:
        dout = np.ascontiguousarray(dout.swapaxes(-3, -2)).swapaxes(-3, -2)
    return dout, dlse


def check(call, dout, dlse, *answers):
    """Compare each `attile.Gradients` of NumPy arrays with the formulas: at most two units."""
    expected = gradients(call, dout, dlse)
    for got in answers:
        compare(call, got, expected)


def compare(call, got, expected):
    assert {name for name, x in got._asdict().items() if x is not None} == set(expected)
    for name, (gradient, unit) in expected.items():
        x = getattr(got, name)
        assert x.shape == call[name].shape, name
        assert x.dtype == call[name].dtype, name
        error = np.abs(x.astype(np.float64) - gradient)
        wrong = ~(error <= 2 * unit)
        assert not wrong.any(), (
            f"gradient of {name}: {np.count_nonzero(wrong)} of {wrong.size} elements, {np.count_nonzero(np.isnan(error))} NaN, "
            f"error up to {np.nanmax(error, initial=0):.3g}, {np.nanmax(error[wrong] / unit[wrong], initial=0):.3g} units"
        )


def pieces(call):
    """The pieces of a call, with sequence, query heads and the index of their keys."""
    heads_k = call["key"].shape[-2]
    group = call["query"].shape[-2] // heads_k if heads_k else 0
    for n, piece in enumerate(reference.sequences(**call)):
        b, h_k = divmod(n, heads_k)
        rows = reference.index_tuple(reference.sequence_rows(call["key"], call.get("cum_seqlens_k"), b))
        yield piece, b, slice(h_k * group, (h_k + 1) * group), (*rows, h_k)


def piece_gradients(piece, call, dout, dlse, made=None):
    """Of one piece: the parts of its gradients, and their units of error but for their own rounding, with those of ds ("pair") and of p as it
    meets dout ("weight"). dout: [group, n, Dv].

    made: (dtype, size of k, size of v) where keys and values are products that were rounded to dtype, with terms of that size; then
    S_j among the roundings to dtype too is |scale| sqrt(sum_d q_d^2 k_jd^2), and dout v^T, out and ds k have those roundings besides.
    """
    options = reference.score_options(call["query"].shape[-1], **call)
    scale, cap, dropout = options["softmax_scale"], options["logits_soft_cap"], options["dropout_prob"]
    dtype = made[0] if made else call["query"].dtype
    u_in, u_acc = epsilon(dtype) / 2, epsilon(np.float32) / 2
    q, k, v, sinks = (x.astype(np.float64) for x in (piece.q, piece.k, piece.v, piece.sinks))
    score = {name: options[name] for name in ("softmax_scale", "logits_soft_cap", "logits_dtype")}
    s = reference.scores(piece, np.float64, **score)
    hidden = reference.unseen(piece, cap)
    m, p, denominator = reference.softmax(s, sinks)
    p = reference.divide_rows(p, denominator)
    slope = 1.0 if cap is None else 1 - (np.where(hidden, 0, s) / cap) ** 2
    kept = 1.0 if piece.kept is None else piece.kept / (1 - dropout)
    with np.errstate(divide="ignore"):
        lse = m + np.log(denominator)
        p_sinks = reference.divide_rows(np.exp(sinks[:, None] - m[..., None]), denominator)
    out = (p * kept) @ v
    delta = (dout * out).sum(-1) - dlse
    ds = np.where(hidden, 0, p * ((dout @ v.T) * kept - delta[..., None]) * slope)

    k_size, v_size = made[1:] if made else (np.abs(k), np.abs(v))
    size = np.where(hidden, 0, abs(scale) * (np.abs(q) @ k_size.T) + np.abs(np.where(np.isfinite(s), s, 0)))
    if piece.bias is not None:
        size = size + np.where(hidden, 0, np.abs(piece.bias.astype(np.float64)))
    rounding = u_in + u_acc * (1 + size.max(-1, initial=0) + np.abs(np.where(np.isfinite(lse), lse, 0)))  # [group, n]
    lost = np.where(hidden, 0, tiny(dtype))
    delta_size = np.abs(dout * out).sum(-1) + np.abs(dlse)
    if made:
        rounding = rounding + u_in * np.where(hidden, 0, abs(scale) * np.sqrt(q**2 @ k.T**2)).max(-1, initial=0)
        delta_size = delta_size + np.sqrt(((p * kept) ** 2 * (dout**2 @ v.T**2)).sum(-1))
    pair = rounding[..., None] * p * ((np.abs(dout) @ np.abs(v).T) * kept + delta_size[..., None]) + lost
    q, k, k_size = (np.where(np.isfinite(x), x, 0) for x in (q, k, k_size))  # what nobody sees may be NaN
    parts = {
        "query": scale * (ds @ k),
        "key": scale * np.einsum("gnm,gnd->md", ds, q),
        "value": np.einsum("gnm,gnd->md", p * kept, dout),
        "bias": ds,
        "sinks": -(p_sinks * delta[..., None]).sum(1),
    }
    units = {
        "query": abs(scale) * (pair @ np.abs(k)),
        "key": abs(scale) * np.einsum("gnm,gnd->md", pair, np.abs(q)),
        "value": np.einsum("gnm,gnd->md", (rounding[..., None] * p + lost) * kept, np.abs(dout)),
        "bias": pair,
        "pair": pair,
        "weight": (rounding[..., None] * p + lost) * kept,
        "sinks": (p_sinks * (rounding[..., None] + u_acc * np.abs(sinks)[:, None]) * delta_size[..., None]).sum(1),
    }
    if made:
        pair += u_acc * p * (np.abs(dout) @ v_size.T) * kept
        units["query"] += abs(scale) * (u_in * np.sqrt(ds**2 @ k**2) + u_acc * np.abs(ds) @ k_size)
    return parts, units


def add_where_it_was_broadcast(total, part, b, heads):
    """Add [group, n, m] of a sequence's heads to the gradient of a bias in its own shape."""
    total = total.reshape((1,) * (4 - total.ndim) + total.shape)
    part = part[None]
    index = []
    for axis, own in enumerate((slice(b, b + 1), heads, slice(part.shape[2]), slice(part.shape[3]))):
        if total.shape[axis] == 1:
            part = part.sum(axis, keepdims=True)
        index.append(slice(None) if total.shape[axis] == 1 else own)
    total[tuple(index)] += part
