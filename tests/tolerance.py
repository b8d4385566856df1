"""How wrong may an answer be? As wrong as the same computation done plainly, twice, and one rounding more.

Each element has its own unit of error: what one rounding of every intermediate would cost there, worked out from the float64 reference,

    unit = u_in  * (|out| + sqrt(sum_j p_j^2 v_j^2))                          p and out rounded to the input dtype
         + u_acc * (sum_j p_j (1 + S_j) |v_j| + |out| sum_j p_j (1 + S_j))    scores and sums in the accumulator's dtype
         + what may underflow,          S_j = sum_d |scale q_d k_jd| + |bias_j| + |s_j - m|,   u the unit roundoff

(roundings of p are independent, hence the root: in a long row they average out, and one key too many is seen). A plain computation, loops
over d and j in the working precision with only the permitted roundings, tells how many units are normal: r = max error / unit. An answer
passes when every element's error is at most

    limit = (2 r + 1) unit.

NaN and infinities are compared first and must agree element by element. A small call has few rows to take a maximum over, so the plain
computation is repeated with dims and keys in other orders. Where scores are rounded (logits_dtype), one that lies within
float32 error of the midpoint between two representable values may go either way; what that costs is added to the limit.
"""

from dataclasses import dataclass, field

import numpy as np
import reference

ENOUGH_ROWS = 2048  # for a maximum; the elements of a row share the errors of its scores
MOST_ROUNDS = 8
MOST_WORK = 4e7  # multiplications; a big call is judged by its longest pieces


@dataclass
class Unit:
    """One piece's unit of error and what rounded scores may cost, [group, n, Dv] and [group, n]."""

    out: np.ndarray
    lse: np.ndarray
    flips_out: np.ndarray | float = 0.0
    flips_lse: np.ndarray | float = 0.0


@dataclass
class Judge:
    """The expected result of one call and how far an answer may be from it. `arguments` are the call's, as NumPy arrays."""

    arguments: dict
    dtype: np.dtype = field(init=False)
    out: np.ndarray = field(init=False)
    lse: np.ndarray = field(init=False)
    units_out: float = field(init=False)  # r, the plain computation's error in units
    units_lse: float = field(init=False)

    def __post_init__(self):
        self.dtype = self.arguments["query"].dtype
        self.accumulator = np.dtype(np.float64 if self.dtype == np.float64 else np.float32)
        logits_dtype = self.arguments.get("logits_dtype")
        if logits_dtype is not None and np.dtype(logits_dtype) == self.accumulator:
            self.arguments = self.arguments | {"logits_dtype": None}  # no rounding beyond the accumulator's own
        self.out, self.lse = reference.flash_attention(**{**self.arguments, "return_lse": True})
        score = reference.score_options(**{"head_dim": self.arguments["query"].shape[-1], **self.arguments})
        pieces = list(reference.sequences(**self.arguments))
        limits = [np.zeros_like(x) for x in (self.out, self.lse, self.out, self.lse)]
        units = []
        for piece in pieces:
            unit = unit_of_error(piece, self.dtype, self.accumulator, **score)
            units.append(unit)
            for limit, index, part in zip(
                limits,
                (piece.out_index, piece.lse_index) * 2,
                (unit.out, unit.lse, unit.flips_out, unit.flips_lse),
                strict=True,
            ):
                limit[index] = np.moveaxis(part, 0, 1) if np.ndim(part) == 3 else part
        self.units_out, self.units_lse = plain_units(pieces, units, self.out, self.lse, self.dtype, self.accumulator, score)
        self.limit_out = (2 * self.units_out + 1) * limits[0] + limits[2]
        self.limit_lse = (2 * self.units_lse + 1) * limits[1] + limits[3]

    def check(self, out, lse=None):
        """Raise AssertionError unless out (and lse) are right. Both are NumPy arrays."""
        compare("out", np.asarray(out), self.out, self.limit_out, self.dtype)
        if lse is not None:
            compare("lse", np.asarray(lse), self.lse, self.limit_lse, self.accumulator)


def compare(name, got, expected, limit, dtype):
    assert got.dtype == dtype, f"{name}: expected dtype {dtype}, got {got.dtype}"
    assert got.shape == expected.shape, f"{name}: expected shape {expected.shape}, got {got.shape}"
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = expected.astype(dtype)
        got, rounded = got.astype(expected.dtype), rounded.astype(expected.dtype)
        for pattern in (np.isnan, np.isposinf, np.isneginf):
            wrong = pattern(got) != pattern(rounded)
            if wrong.any():
                raise AssertionError(describe(name, f"{pattern.__name__} differs", wrong, got, expected, limit))
        finite = np.isfinite(rounded)
        wrong = finite & ~(np.abs(np.where(finite, got - expected, 0)) <= limit)
    if wrong.any():
        raise AssertionError(describe(name, "too far from the reference", wrong, got, expected, limit))


def describe(name, what, wrong, got, expected, limit):
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.where(wrong, np.nan_to_num(np.abs(got - expected) / limit, nan=np.inf), -1)
    at = np.unravel_index(np.argmax(excess), wrong.shape)
    return (
        f"{name}: {what} at {np.count_nonzero(wrong)} of {wrong.size} elements; worst at {tuple(map(int, at))}: "
        f"expected {float(expected[at])!r}, got {float(got[at])!r}, error {float(abs(got[at] - expected[at])):.3g}, limit {float(limit[at]):.3g}"
    )


def unit_of_error(piece, dtype, accumulator, *, normalize_output, dropout_prob, **score):
    """What one rounding of every intermediate costs, element by element; formula in the head of this file."""
    u_in, u_acc = epsilon(dtype) / 2, epsilon(accumulator) / 2
    work = np.float64
    with np.errstate(all="ignore"):
        s = reference.scores(piece, work, **score)
        sinks = piece.sinks.astype(work)
        m, p, denominator = reference.softmax(s, sinks)
        size = abs(score["softmax_scale"]) * (np.abs(piece.q.astype(work)) @ np.abs(piece.k.astype(work)).T)
        if piece.bias is not None:
            size = size + np.where(np.isinf(piece.bias.astype(work)), 0, np.abs(piece.bias.astype(work)))  # infinity is exact
        if score["logits_soft_cap"] is not None:
            slope = 1 - (s / score["logits_soft_cap"]) ** 2
            size = np.where(slope == 0, 0, size * slope) + np.abs(s)
        exponent = size + np.abs(s - m[..., None])
        v = piece.v.astype(work)

        def weigh(weights):
            return np.where(weights == 0, 0, weights * (1 + exponent))

        if normalize_output:
            p = reference.divide_rows(p, denominator)
        survivors = p if piece.kept is None else np.where(piece.kept, p / (1 - dropout_prob), 0)
        out = survivors @ v
        shares = p if normalize_output else reference.divide_rows(p, denominator)
        aux_shares = reference.divide_rows(np.exp(sinks[:, None, :] - m[..., None]), denominator)
        row = weigh(shares).sum(-1) + np.where(aux_shares == 0, 0, aux_shares * (1 + np.abs(sinks[:, None, :]))).sum(-1)
        if normalize_output:
            scores_cost = weigh(survivors) @ np.abs(v) + np.abs(out) * row[..., None]
        else:  # an error of the maximum does not cancel
            most = np.where(p == 0, 0, exponent).max(-1, initial=0) + np.where(np.isinf(sinks), 0, np.abs(sinks)).max(-1, initial=0)[:, None]
            scores_cost = weigh(survivors) @ np.abs(v) + (survivors @ np.abs(v)) * most[..., None]
        # exp(s - m) below this is lost; so is an output below the smallest number of its dtype
        lost = tiny(dtype) / np.where(denominator == 0, 1, denominator if normalize_output else 1)[..., None] / (1 - dropout_prob)
        unit = Unit(
            out=u_in * (np.abs(out) + np.sqrt(survivors**2 @ v**2))
            + u_acc * scores_cost
            + lost * np.sqrt((s > -np.inf).astype(work) @ v**2)
            + tiny(dtype),
            lse=u_acc * (row + np.abs(np.where(row > 0, m + np.log(denominator), 0))) + tiny(accumulator),
        )
        if score["logits_dtype"] is not None:
            cost = shares * np.expm1(flip_size(piece, size, **score))
            dropped = cost if piece.kept is None else np.where(piece.kept, cost / (1 - dropout_prob), 0)
            scale = 1 if normalize_output else denominator[..., None]
            unit.flips_out = (dropped * scale) @ np.abs(v) + np.abs(out) * cost.sum(-1, keepdims=True)
            unit.flips_lse = cost.sum(-1)
    return unit


def flip_size(piece, size, *, logits_dtype, **score):
    """The distance to the other neighbour for scores so near a midpoint that float32 cannot tell; 0 for the rest."""
    s = reference.scores(piece, np.float64, logits_dtype=None, **score)
    s = np.where(np.isfinite(s), s, 0)
    _, exponent = np.frexp(s)
    spacing = np.maximum(np.ldexp(epsilon(logits_dtype), exponent - 1), tiny(logits_dtype))
    to_midpoint = spacing / 2 - np.abs(s - s.astype(logits_dtype).astype(np.float64))
    return np.where(to_midpoint <= 8 * epsilon(np.float32) * (size + np.abs(s)), spacing, 0)


def plain_units(pieces, units, out, lse, dtype, accumulator, score):
    """r of out and of lse: the plain computation's largest error in units."""
    rng = np.random.default_rng(0)
    rows = sum(piece.seen[..., 0:1].size for piece in pieces)
    work = sum(piece.seen.size * (piece.q.shape[-1] + piece.v.shape[-1]) for piece in pieces)
    rounds = int(np.clip(min(ENOUGH_ROWS // max(rows, 1), MOST_WORK // max(work, 1)), 1, MOST_ROUNDS))
    units_out = units_lse = 0.0
    work = 0
    for i in sorted(range(len(pieces)), key=lambda i: -pieces[i].q.shape[1] * pieces[i].k.shape[0]):
        piece, unit = pieces[i], units[i]
        plain_out, plain_lse = plain_attend(piece, dtype, accumulator, rng, rounds, **score)
        expected_out = np.moveaxis(out[piece.out_index], 1, 0)
        units_out = max(units_out, in_units(plain_out, expected_out, unit.out, unit.flips_out))
        units_lse = max(units_lse, in_units(plain_lse, lse[piece.lse_index], unit.lse, unit.flips_lse))
        work += rounds * piece.seen.size * (piece.q.shape[-1] + piece.v.shape[-1])
        if work > MOST_WORK:
            break
    return units_out, units_lse


def in_units(got, expected, unit, flips):
    with np.errstate(invalid="ignore"):
        errors = (np.abs(got.astype(np.float64) - expected) - flips) / unit
    return float(errors[np.isfinite(errors)].max(initial=0))


def plain_attend(piece, dtype, work, rng, rounds, *, softmax_scale, logits_soft_cap, logits_dtype, normalize_output, dropout_prob):
    """out [rounds, group, n, Dv] and lse [rounds, group, n] of one piece as a textbook would: one loop over dims, one over keys, every
    operation rounded to `work`, p rounded to `dtype` before it meets v, the denominator from p unrounded, out rounded once. Each round
    takes dims and keys in another order."""
    dims, keys = (np.stack([rng.permutation(n) for _ in range(rounds)]) for n in (piece.q.shape[-1], piece.k.shape[0]))

    def by_round(scores):  # [group, n, m] -> [rounds, group, n, m] with the keys of each round
        return np.moveaxis(np.broadcast_to(scores, piece.seen.shape)[..., keys], -2, 0)

    q = np.moveaxis(piece.q.astype(work)[..., dims], -2, 0)  # [rounds, group, n, D]
    k = piece.k.astype(work)[keys[:, :, None], dims[:, None, :]][:, None, None]  # [rounds, 1, 1, m, D]
    v = piece.v.astype(work)[keys][:, None, None]  # [rounds, 1, 1, m, Dv]
    with np.errstate(all="ignore"):
        s = np.zeros((rounds, *piece.seen.shape), work)
        for d in range(q.shape[-1]):
            s += q[..., d, None] * k[..., d]
        s *= work.type(softmax_scale)
        if piece.bias is not None:
            s = s + by_round(piece.bias).astype(work)
        if logits_soft_cap is not None:
            s = work.type(logits_soft_cap) * np.tanh(s / work.type(logits_soft_cap))
        if logits_dtype is not None:
            s = s.astype(logits_dtype).astype(work)
        s = np.where(by_round(reference.unseen(piece, logits_soft_cap)), work.type(-np.inf), s)
        sinks = piece.sinks.astype(work)
        m = np.maximum(s.max(-1, initial=-np.inf), sinks.max(-1, initial=-np.inf)[:, None])
        m = np.where(m == -np.inf, work.type(0), m)
        p = np.exp(s - m[..., None])
        rounded = p.astype(dtype).astype(work)
        if piece.kept is not None:
            rounded = np.where(by_round(piece.kept), rounded, work.type(0))
        denominator = np.zeros(m.shape, work)
        out = np.zeros((*m.shape, v.shape[-1]), work)
        for j in range(keys.shape[1]):
            denominator += p[..., j]
            out += rounded[..., j, None] * v[..., j, :]
        for n in range(sinks.shape[-1]):
            denominator += np.exp(sinks[:, n, None] - m)
        if normalize_output:
            out = reference.divide_rows(out, denominator)
        if piece.kept is not None:
            out = out * work.type(1 / (1 - dropout_prob))
        return out.astype(dtype), m + np.log(denominator)


def epsilon(dtype):
    return float(finfo(dtype).eps)


def tiny(dtype):
    """What may be taken for zero: below the subnormals of float16; elsewhere subnormals may be flushed, of exp's result a little earlier."""
    return float(finfo(dtype).smallest_subnormal) if np.dtype(dtype) == np.float16 else 64 * float(finfo(dtype).tiny)


def finfo(dtype):
    if np.dtype(dtype).kind == "f":
        return np.finfo(dtype)
    import ml_dtypes

    return ml_dtypes.finfo(dtype)
