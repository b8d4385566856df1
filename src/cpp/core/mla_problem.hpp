// MLA's part of an AttentionProblem: keys and values are not given but made, head by head, of one latent a token,
//
//   k[j, h] = (latent[j] @ w_kc[:, h], k_rope[j] or k_rope[j, query head])      head_dim   = nope_dim + rope_dim
//   v[j, h] =  latent[j] @ w_vc[:, h]                                            head_dim_v
//
// and queries may lie in two arrays likewise. The problem's q then holds the first nope_dim elements alone.
#pragma once

#include "core/view.hpp"

namespace attile {

struct Latents {
  View latent;      // [B, Tk, 1, rank]; B = 1 where packed
  View w_kc, w_vc;  // [1, rank, Hk, nope_dim], [1, rank, Hk, head_dim_v]
  View q_rope;      // [B, Tq, Hq, rope_dim], stride 0 over heads that share it; absent: the end of a query, if rope_dim > 0
  View k_rope;      // [B, Tk, Hq, rope_dim], likewise; absent: rope_dim is 0
  int64_t rank = 0, nope_dim = 0, rope_dim = 0;
  bool rope_by_head = false;  // k_rope differs between heads
};

}  // namespace attile
