"""Gradients of mla_attention in NumPy float64: those of attention on stored keys and values (reference_gradients.py), taken on to what keys and
values are made of, and how far from them a kernel may be.

    dlatent = sum_h dK w_kc^T + dV w_vc^T        dw_kc = latent^T dK        dw_vc = latent^T dV        db = the rope dims, summed where shared

The unit of error counts the roundings of reference_gradients.py, those of K and V to the inputs' dtype, and the same of dK and dV. Roundings of
different rows of queries are independent, hence the roots; those of a row are not, for they share lse and delta. With e the unit of ds, f of p:

    dlatent   sqrt(sum_i (e_ij scale q_i w_kc^T)^2 + (f_ij dout_i w_vc^T)^2 + u_in^2 sum_d dK^2 w_kc^2 + dV^2 w_vc^2) + u_acc sum |terms|
    dw        sqrt(sum_i (sum_j e_ij |latent_j|)^2 (scale q_i)^2 + u_in^2 sum_j latent^2 dK^2) + u_acc sum |terms|
"""

import numpy as np
import reference
import reference_gradients
import reference_mla
from reference_gradients import add_where_it_was_broadcast, piece_gradients, pieces
from tolerance import epsilon, tiny

NAMES = ("query", "key_value", "w_kc", "w_vc", "b_q", "b_k", "bias", "softmax_aux")


def judged(case):
    return reference_gradients.judged(case)


def gradients_of_results(case, call, seed=7):
    """dout and, for some cases, dlse."""
    return reference_gradients.gradients_of_results(case, reference_mla.expand(**call), seed, call["query"].dtype)


def gradients(call, dout, dlse=None):
    """{argument: (gradient, unit)} of sum(dout * out) + sum(dlse * lse)."""
    arrays = {name: call[name] for name in NAMES if call.get(name) is not None}
    dtype = call["query"].dtype
    exact = reference_mla.expand(**call)
    sizes = reference_mla.expand(**{name: np.abs(x) if name in factors(call) else x for name, x in call.items()})
    total = {name: np.zeros(x.shape) for name, x in arrays.items()}
    units = {name: np.zeros(x.shape) for name, x in arrays.items()}
    squares = {name: np.zeros(arrays[name].shape) for name in ("key_value", "w_kc", "w_vc")}
    heads_q, heads_k, n = call["query"].shape[-2], call["w_kc"].shape[1], call["w_kc"].shape[2]
    scale = abs(reference.score_options(exact["query"].shape[-1], **call)["softmax_scale"])
    u_in, u_acc = epsilon(dtype) / 2, epsilon(np.float32) / 2
    for piece, b, heads, k_index in pieces(exact):
        rows, rows_q = k_index[:-1], piece.out_index[:-1]
        own = heads.start * heads_k // max(heads_q, 1)
        made = (dtype, sizes["key"][k_index], sizes["value"][k_index])
        dlse_part = np.zeros(piece.q.shape[:2]) if dlse is None else dlse[piece.lse_index].astype(np.float64)
        d = np.moveaxis(dout[piece.out_index].astype(np.float64), 0, 1)
        parts, unit = piece_gradients(piece, exact, d, dlse_part, made)
        latent, w_kc, w_vc = (x.astype(np.float64) for x in (call["key_value"][rows], call["w_kc"][:, own], call["w_vc"][:, own]))
        q, dk, dv = piece.q[..., :n].astype(np.float64), parts["key"][:, :n], parts["value"]
        for given, gradient, w, error, factor, name in (
            (q * scale, dk, w_kc, unit["pair"], dk, "w_kc"),
            (d, dv, w_vc, unit["weight"], dv, "w_vc"),
        ):
            total["key_value"][rows] += gradient @ w.T
            squares["key_value"][rows] += np.einsum("gnm,gnl->ml", error**2, (given @ w.T) ** 2) + u_in**2 * (factor**2 @ w.T**2)
            units["key_value"][rows] += u_acc * np.abs(factor) @ np.abs(w).T
            total[name][:, own] += latent.T @ gradient
            squares[name][:, own] += np.einsum("gnl,gnd->ld", (error @ np.abs(latent)) ** 2, given**2) + u_in**2 * (latent.T**2 @ factor**2)
            units[name][:, own] += u_acc * np.abs(latent).T @ np.abs(factor)
        for of, index, at in (("query", rows_q, "b_q"), ("key", rows, "b_k")):
            part, error = (np.moveaxis(x[of], 0, 1) if of == "query" else x[of][:, None] for x in (parts, unit))
            if of == "query":
                own_dims = n if at in total else part.shape[-1]
                total["query"][(*index, heads)] += part[..., :own_dims]
                units["query"][(*index, heads)] += error[..., :own_dims]
            if at in total:
                rope, error = part[..., n:], error[..., n:] + u_in * np.abs(part[..., n:])
                by_head = total[at].ndim == call["key_value"].ndim + 1
                where = (*index, heads) if by_head else index
                total[at][where] += rope if by_head else rope.sum(-2)
                units[at][where] += error if by_head else error.sum(-2)
        if "bias" in total:
            for which, x in ((total, parts), (units, unit)):
                add_where_it_was_broadcast(which["bias"], x["bias"], b, heads)
        if "softmax_aux" in total:
            for which, x in ((total, parts), (units, unit)):
                sinks = which["softmax_aux"] if which["softmax_aux"].ndim == 2 else which["softmax_aux"][None]
                sinks[heads if len(sinks) > 1 else slice(None)] += x["sinks"] if len(sinks) > 1 else x["sinks"].sum(0)
    for name, x in squares.items():
        units[name] += np.sqrt(x)
    return {name: (total[name], units[name] + epsilon(x.dtype) / 2 * np.abs(total[name]) + tiny(x.dtype)) for name, x in arrays.items()}


def factors(call):
    """The arrays that keys, values and queries are made of."""
    return [name for name in ("query", "key_value", "w_kc", "w_vc", "b_q", "b_k") if call.get(name) is not None]


def check(call, dout, dlse, *answers):
    """Compare each `attile.MLAGradients` of NumPy arrays with the formulas: at most two units."""
    expected = gradients(call, dout, dlse)
    for got in answers:
        reference_gradients.compare(call, got, expected)
