"""How wrong may mla_attention be? The error model of tolerance.py, with the roundings that MLA permits besides: rebuilt keys and values, or
the absorbed query and the output among latents, each once to the input dtype. An element's unit of error becomes

    unit = u_in  * (|out| + sqrt(sum_j p_j^2 v_j^2) + V + sum_j p_j S_j (|v_j| + |out|))
         + u_acc * (sum_j p_j (1 + E_j) w_j + |out| sum_j p_j (1 + E_j))     + what may underflow

    rebuild   S_j = scale sqrt(sum_d q_d^2 k_jd^2)                  V = sqrt(sum_j p_j^2 v_j^2)
    absorb    S_j = scale sqrt(sum_l q'_l^2 latent_jl^2)            V = sqrt(sum_l o_l^2 w_vc_l^2)
    both      w_j^2 = latent_j^2 @ w_vc^2,   E_j = scale sqrt(sum_d q_d^2 (latent_j^2 @ w_kc^2)_d) + |bias_j| + |s_j - m|

(q' the query and o the output among latents; roundings are independent, hence the roots), and an answer passes within (2 r + 1) unit, r
being the largest error in units of a plain computation of the same strategy.
"""

import dataclasses

import numpy as np
import reference
import reference_mla
from tolerance import compare, epsilon, in_units, plain_attend, tiny

ARRAYS = ("query", "key_value", "w_kc", "w_vc", "b_q", "b_k")


class Judge:
    """The expected result of one call of mla_attention, and how far an answer may be from it with either strategy."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.dtype = arguments["query"].dtype
        self.accumulator = np.dtype(np.float64 if self.dtype == np.float64 else np.float32)
        self.work = np.longdouble if self.dtype == np.float64 else np.float64
        self.out, self.lse = reference_mla.mla_attention(**arguments, return_lse=True)
        self.limits = {}

    def check(self, strategy, out, lse=None):
        """Raise AssertionError unless out (and lse), NumPy arrays, are right for the strategy."""
        if strategy not in self.limits:
            self.limits[strategy] = self.limits_of(strategy)
        limit_out, limit_lse = self.limits[strategy]
        compare("out", np.asarray(out), self.out, limit_out, self.dtype)
        if lse is not None:
            compare("lse", np.asarray(lse), self.lse, limit_lse, self.accumulator)

    def limits_of(self, strategy):
        exact = reference_mla.expand(**self.arguments, work=self.work)
        squares = {k: x.astype(self.work) ** 2 if k in ARRAYS and x is not None else x for k, x in self.arguments.items()}
        sizes = reference_mla.expand(**squares, work=self.work)
        rounded = self.rebuilt(exact) if strategy == "rebuild" else self.absorbed(exact)
        score = reference.score_options(exact["query"].shape[-1], **self.arguments)
        limit_out, limit_lse = np.zeros_like(self.out), np.zeros_like(self.lse)
        units_out = units_lse = 0.0
        rng = np.random.default_rng(0)
        heads = [{place(piece): piece for piece in by_query_head(call)} for call in (exact, sizes, rounded)]
        for at, piece in heads[0].items():
            other = heads[2][at]
            w_vc = self.weights(piece) if strategy == "absorb" else None
            unit_out, unit_lse = self.unit(piece, heads[1][at], other, w_vc, score)
            plain_out, plain_lse = plain_attend(other, self.dtype, self.accumulator, rng, 1, **score)
            if strategy == "absorb":
                plain_out = matmul(plain_out, w_vc, self.accumulator).astype(self.dtype)
            units_out = max(units_out, in_units(plain_out[0], np.moveaxis(self.out[piece.out_index], 1, 0), unit_out, 0.0))
            units_lse = max(units_lse, in_units(plain_lse[0], self.lse[piece.lse_index], unit_lse, 0.0))
            limit_out[piece.out_index] = np.moveaxis(unit_out, 0, 1)
            limit_lse[piece.lse_index] = unit_lse
        return (2 * units_out + 1) * limit_out, (2 * units_lse + 1) * limit_lse

    def weights(self, piece):
        """w_vc of the key head that serves the piece's query head."""
        w_vc = self.arguments["w_vc"]
        return w_vc[:, piece.out_index[-1].start * w_vc.shape[1] // self.out.shape[-2]]

    def rebuilt(self, exact):
        """The call with keys and values summed plainly and rounded to the input dtype."""
        plain = reference_mla.expand(**self.arguments, work=self.accumulator)
        return exact | {name: plain[name].astype(self.dtype) for name in ("query", "key", "value")}

    def absorbed(self, exact):
        """The call among latents, with absorbed queries summed plainly and rounded: one key head, or one for each rope key."""
        given = {"b_q": None, "b_k": None} | self.arguments
        w_kc, b_k = given["w_kc"], given["b_k"]
        n, heads_q = w_kc.shape[-1], given["query"].shape[-2]
        w_kc = np.repeat(w_kc, heads_q // max(w_kc.shape[1], 1), 1)
        query = np.empty((*given["query"].shape[:-1], w_kc.shape[0]), self.dtype)
        for h in range(heads_q):
            query[..., h, :] = matmul(given["query"][..., h, :n], w_kc[:, h].T, self.accumulator).astype(self.dtype)
        key = value = given["key_value"][..., None, :]
        if b_k is not None and b_k.ndim == key.ndim:
            key = value = np.broadcast_to(key, (*b_k.shape[:-1], key.shape[-1]))
        query = np.concatenate([query, reference_mla.with_rope(given["query"], given["b_q"])[..., n:]], -1)
        return exact | {"query": query, "key": reference_mla.with_rope(key, b_k), "value": value}

    def unit(self, piece, size, other, w_vc, score):
        """What one rounding of every intermediate costs, [1, n, Dv] and [1, n]; `other` is the piece as the strategy computes it."""
        u_in, u_acc, work = epsilon(self.dtype) / 2, epsilon(self.accumulator) / 2, self.work
        softmax_scale, cap, dropout_prob = abs(score["softmax_scale"]), score["logits_soft_cap"], score["dropout_prob"]
        with np.errstate(all="ignore"):
            s = reference.scores(piece, work, **{k: score[k] for k in ("softmax_scale", "logits_soft_cap", "logits_dtype")})
            sinks = piece.sinks.astype(work)
            m, p, denominator = reference.softmax(s, sinks)
            p = reference.divide_rows(p, denominator)
            terms = softmax_scale * np.sqrt(size.q @ size.k.T)
            if piece.bias is not None:
                terms = terms + np.where(np.isinf(piece.bias.astype(work)), 0, np.abs(piece.bias.astype(work)))
            rounded = softmax_scale * np.sqrt(other.q.astype(work) ** 2 @ other.k.astype(work).T ** 2)
            if cap is not None:
                slope = 1 - (s / cap) ** 2
                terms, rounded = (np.where(slope == 0, 0, x * slope) for x in (terms, rounded))
                terms = terms + np.abs(s)
            seen = p != 0
            exact_terms, rounded = np.where(seen, p * (1 + terms + np.abs(s - m[..., None])), 0), np.where(seen, p * rounded, 0)
            kept = np.ones(1) if piece.kept is None else piece.kept / (1 - dropout_prob)
            v, survivors = piece.v.astype(work), np.where(seen, p * kept, 0)
            out, spread = survivors @ v, np.sqrt(survivors**2 @ v**2)
            value_cost = spread if w_vc is None else np.sqrt((survivors @ other.v.astype(work)) ** 2 @ w_vc.astype(work) ** 2)
            aux = reference.divide_rows(np.exp(sinks[:, None, :] - m[..., None]), denominator)
            row = exact_terms.sum(-1) + np.where(aux == 0, 0, aux * (1 + np.abs(sinks[:, None, :]))).sum(-1)
            lost = tiny(self.dtype) * (1 + np.sqrt((s > -np.inf).astype(work) @ v**2) / np.where(denominator == 0, 1, denominator)[..., None] / (1 - dropout_prob))
            unit_out = (
                u_in * (np.abs(out) + spread + value_cost + (rounded * kept) @ np.abs(v) + np.abs(out) * rounded.sum(-1, keepdims=True))
                + u_acc * ((exact_terms * kept) @ np.sqrt(size.v) + np.abs(out) * row[..., None])
                + lost
            )
            unit_lse = u_in * rounded.sum(-1) + u_acc * (row + np.abs(np.where(row > 0, m + np.log(denominator), 0))) + tiny(self.accumulator)
        return unit_out, unit_lse


def by_query_head(call):
    """The pieces of a call of flash_attention, cut further into query heads."""
    for piece in reference.sequences(**call):
        first = piece.out_index[-1].start
        for g in range(piece.q.shape[0]):
            head = slice(first + g, first + g + 1)
            cut = {name: None if x is None else x[g : g + 1] for name, x in (("q", piece.q), ("seen", piece.seen), ("sinks", piece.sinks), ("kept", piece.kept))}
            bias = piece.bias if piece.bias is None or piece.bias.ndim < 3 or piece.bias.shape[0] == 1 else piece.bias[g : g + 1]
            lse_index = tuple(head if i == len(piece.lse_index) - 2 else x for i, x in enumerate(piece.lse_index))
            yield dataclasses.replace(piece, **cut, bias=bias, out_index=(*piece.out_index[:-1], head), lse_index=lse_index)


def place(piece):
    return str(piece.out_index)


def matmul(a, b, work):
    with np.errstate(all="ignore"):
        return a.astype(work) @ b.astype(work)
