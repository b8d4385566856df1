// The two ways in which MLA is plain attention, each an AttentionProblem of its own and hooks of the forward driver:
//
//   rebuild  K and V tiles of a key head from the latents, then the attention of that tile for every row of the unit.
//            heads_k key heads, head_dim nope + rope;   keys * (rank * (nope + dv) + rows * (nope + rope + dv)) multiply-adds a unit
//   absorb   queries brought to the latent space before, outputs out of it after; in between all query heads share one key head,
//            whose keys are (latent, rope) and whose values are the latents;
//            keys * rows * (2 rank + rope) + rows * rank * (nope + dv)
//
// A rope key for each query head leaves its heads nothing to share: then every query head is a key head in both.
// Rounded once to the input dtype: rebuilt K and V; absorbed queries and the output in the latent space.
#pragma once

#include "cpu/forward_driver.hpp"
#include "cpu/mla/isa.hpp"

namespace attile {

// Scratch is cut at cache lines.
inline size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

AttentionProblem rebuilt_problem(const AttentionProblem& p);
AttentionProblem absorbed_problem(const AttentionProblem& p);

// What both hooks know: the problem as it was given, and the products of the instruction set.
class MlaHooks : public UnitHooks {
 protected:
  MlaHooks(const AttentionProblem& problem, const MlaIsa& isa);

  WeightSlice w_kc(int64_t head) const;  // [rank][nope_dim]
  WeightSlice w_vc(int64_t head) const;  // [rank][head_dim_v]
  WeightSlice w_kc_transposed(int64_t head) const;
  // Bytes of what pack_weight, pack_rows and project fill.
  size_t weight_bytes(int64_t depth, int64_t columns) const;
  size_t rows_bytes(int64_t rows, int64_t depth) const;
  size_t product_bytes(int64_t rows) const;
  size_t tile_bytes(int64_t rows, int64_t depth) const;
  // The first latent and rope key that a unit's sequence has, for query head h.
  ProjectionRows latents_of(const ForwardItem& item) const;
  ProjectionRows rope_keys_of(const ForwardItem& item, int64_t h) const;
  const char* rope_query(const ForwardItem& item, int64_t i, int64_t h) const;

  const AttentionProblem& p;
  const Latents& latents;
  const MlaIsa& isa;
  const int64_t size;        // of an element
  const int64_t rope_bytes;  // of a rope part
  const int accumulator;     // index of the functions
};

class RebuildHooks final : public MlaHooks {
 public:
  RebuildHooks(const AttentionProblem& problem, const MlaIsa& isa) : MlaHooks(problem, isa) {}
  size_t unit_bytes(const Plan& plan) const override;
  size_t worker_bytes(const Plan& plan) const override;
  void begin(const UnitCall& call) const override;
  void end(const UnitCall&) const override {}

 private:
  struct Tile;  // of a worker
  struct Layout;
  static void make(const Unit& unit, int64_t begin, int64_t end);
};

class AbsorbHooks final : public MlaHooks {
 public:
  AbsorbHooks(const AttentionProblem& problem, const MlaIsa& isa) : MlaHooks(problem, isa) {}
  size_t unit_bytes(const Plan& plan) const override;
  size_t worker_bytes(const Plan& plan) const override;
  void begin(const UnitCall& call) const override;
  void end(const UnitCall& call) const override;

 private:
  struct Tile;
  struct Layout;
  static void make(const Unit& unit, int64_t begin, int64_t end);
  void keys(const UnitCall& call, Tile& tile) const;
  void queries(const UnitCall& call) const;
  // The query heads that share a unit's keys, and those of the weights.
  int64_t group() const { return latents.rope_by_head ? 1 : p.heads_q; }
  int64_t query_head(const UnitCall& call, int64_t g) const { return latents.rope_by_head ? call.head : g; }
};

}  // namespace attile
