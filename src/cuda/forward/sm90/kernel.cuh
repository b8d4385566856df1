// out = softmax(scale * Q K^T) V and its log-sum-exp, 16-bit floats in and out, float32 inside, grouped heads. Hopper.
//
// A block owns kTileM = 64 * kConsumers query rows of one head; warpgroup 0 loads (one thread, TMA), each other warpgroup owns 64
// rows and walks the keys right to left in tiles of kTileN. Per tile and warpgroup: S = Q K^T (both from shared memory),
// softmax in registers, O += P V (P from registers).
// Three overlaps keep the tensor cores busy: S of the next tile is issued before P V of this one, so softmax runs under P V;
// named barriers make the warpgroups issue in turn (ping-pong), so one's softmax also runs under the other's products; and the
// first S of the next output tile is issued behind the last P V of this one, so the epilogue runs under it.
// Cost: 2 (D + Dv) operations and one exp2 a (query, key) pair: per 128 x N tile 16 N cycles of tensor core at D = 128, 8 N of exp2.
#pragma once

#include "cuda/forward/sm90/epilogue.cuh"
#include "cuda/forward/sm90/producer.cuh"
#include "cuda/forward/sm90/products.cuh"
#include "cuda/forward/sm90/softmax.cuh"

namespace attile::cuda::sm90 {

// The warpgroups take turns at issuing products.
template <class T>
struct Turn {
  int me;
  static constexpr int kFirstId = 1;  // 0 is __syncthreads
  __device__ void begin() const {
    if (me == T::kConsumers - 1) ptx::named_barrier_arrive(kFirstId, 256);
  }
  __device__ void wait() const { ptx::named_barrier_sync(kFirstId + me, 256); }
  __device__ void pass() const { ptx::named_barrier_arrive(kFirstId + (me + 1 == T::kConsumers ? 0 : me + 1), 256); }
};

template <class T>
__device__ inline void consume(const Params& p, SharedStorage<T>& smem, int me) {
  using Element = typename T::Element;
  using Out = typename T::Out;
  constexpr int N = T::kTileN, kRegs = N / 2;  // scores a thread has of a key tile
  const Addresses<T> at{ptx::opaque_shared_address(&smem)};
  auto q_ring = at.q_ring();
  auto k_ring = at.k_ring(), v_ring = at.v_ring();
  auto work_ring = at.work_ring();
  auto bias_ring = at.bias_ring();
  const Turn<T> turn{me};
  turn.begin();
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x % 128 / 32 * 16 + lane / 4;  // and row + 8, of the warpgroup's 64
  const uint32_t q_desc = ptx::descriptor_k_major(at.q() + me * 64 * 128);
  const uint32_t k_desc = ptx::descriptor_k_major(at.k());
  const uint32_t v_desc = T::kFp8 ? ptx::descriptor_k_major(at.v()) : ptx::descriptor_mn_major(at.v(), N * 128);

  constexpr bool kSplit = T::kTune.wait_after > 0;
  constexpr int kBefore = kSplit ? T::kTune.wait_after : 8;  // eighths of a tile's exp2 before the wait for P V
  SoftmaxState<T::kRaise> state;
  float alpha[2];
  float o[T::Dv / 2];
  uint32_t prob[N * Element::kBytes / 32][4];

  // E4m3: the inputs' scales, of scores (with log2(e) and softmax_scale) and of the output.
  struct Scales {
    float scores, out;
  };
  auto scales_of = [&](const Work& w) {
    Scales x{T::kScores ? p.scores.scale : p.scale_log2, p.v_factor};
    if constexpr (T::kFp8) {
      const int64_t b = min(w.batch, p.sequences - 1), h = w.head / p.group;
      if (p.q_scale) x.scores *= __ldg(p.q_scale + b * p.q_scale_batch + h * p.q_scale_head);
      if (p.k_scale) x.scores *= __ldg(p.k_scale + b * p.k_scale_batch + h * p.k_scale_head);
      if (p.v_scale) x.out *= __ldg(p.v_scale + b * p.v_scale_batch + h * p.v_scale_head);
    }
    return x;
  };
  Scales scales{};
  auto scale_log2 = [&] { return T::kFp8 && !T::kScores ? scales.scores : p.scale_log2; };

  auto take_work = [&] {
    work_ring.wait_full();
    const Work w = smem.work[work_ring.stage];
    __syncwarp();
    work_ring.release();
    work_ring.advance();
    return w;
  };
  // Where row `i` of the warpgroup's 64 lies: its position in the sequence and its head.
  auto query_at = [&](const Work& w, int i) { return T::kPacks ? query_of(p.packing, w.m, me * 64 + i) : w.m * T::kTileM + me * 64 + i; };
  auto head_at = [&](const Work& w, int i) {
    return T::kPacks ? w.head * p.packing.heads + me * 64 + i - p.packing.position(me * 64 + i) * p.packing.heads : w.head;
  };
  auto packs = [&] { return T::kPacks && p.packing.heads > 1; };
  // Of the tile whose Q K^T has been issued.
  bool some_unseen = false;
  uint32_t bias[T::kBias ? N / 16 : 1][4], bits[2][T::kMask ? N / 32 : 1];
  const uint32_t* mask_rows[2];
  std::conditional_t<T::kScores, Scores<Out, N, T::D != 256 && !T::kFp8>, NoScores> scores(p.scores);
  auto begin_scores = [&](const Work& w) {
    const int batch = min(w.batch, p.sequences - 1);
    if constexpr (T::kMask)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        mask_rows[r] = p.mask.bits + batch * p.mask.batch + w.head * p.mask.head + max(0, min(query_at(w, row + 8 * r), p.mask.rows - 1)) * p.mask.row;
    if constexpr (T::kScores) {
      const int last = w.seqlen_q - 1;
      scores.begin(batch, {head_at(w, row), head_at(w, row + 8)}, {min(query_at(w, row), last), min(query_at(w, row + 8), last)});
      scores.prefetch(w.j_end - 1);
    }
  };
  auto mask_documents = [&](float (&s)[kRegs], const Work& w, int j) {
    const bool packed = p.q_lengths.packed;
    mask_segments<N>(s, p.segments, packed ? 0 : w.batch, w.row0_q, {query_at(w, row), query_at(w, row + 8)}, w.seqlen_q, w.row0_k, w.seqlen_k, j);
  };
  auto clean = [&](const Work& w, int j) { return j >= w.clean_begin && j < w.clean_end; };
  auto mask = [&](float (&s)[kRegs], const Work& w, int j) {
    const Band seen = band<T>(p, w.seqlen_q, w.seqlen_k);
    if (packs()) mask_packed_scores<N>(s, seen, {query_at(w, row), query_at(w, row + 8)}, j * N);
    else mask_scores<N, T::kKind != Kind::kCausal, T::kCausal, T::kBand>(s, seen, w.m * T::kTileM + me * 64 + row, j * N);
    if constexpr (T::kKind == Kind::kSegments)
      if (!clean(w, j)) mask_documents(s, w, j);
  };
  // Key tiles that are seen by every row of this warpgroup.
  auto full = [&](const Work& w) {
    int first = w.m * T::kTileM + me * 64, last = first + 63;
    if constexpr (T::kPacks) {
      const int positions = p.packing.positions, before = w.m * positions;
      first = before + p.packing.position(me * 64), last = before + min(p.packing.position(me * 64 + 63), positions - 1);
    }
    TileRange r = band<T>(p, w.seqlen_q, w.seqlen_k).template full<N>(first, last + 1);
    if (T::kKind == Kind::kSegments) r = {max(r.begin, w.clean_begin), min(r.end, w.clean_end)};
    return r;
  };
  // While Q K^T of key tile j runs.
  auto load_bias = [&](int j) {
    if constexpr (T::kMask)
      if (T::kKind == Kind::kMask || p.mask.bits) load_mask_bits<N>(bits, mask_rows, j);
    if constexpr (T::kBias) {
      bias_ring.wait_full();
      load_bias_tile<T::kTileM, T::kBiasColumns>(bias, at.bias() + bias_ring.stage * T::kBiasBytes, me * 64 + threadIdx.x % 128 / 32 * 16);
      bias_ring.release(), bias_ring.advance();
      some_unseen = has_minus_infinity<Element>(bias);
    }
  };
  // What happens to scores before the band.
  auto change = [&](float (&s)[kRegs], const Work& w, int j) {
    if constexpr (T::kBias) add_bias<Element>(s, bias, p.scores.scale, some_unseen);
    if constexpr (T::kKind == Kind::kCap) cap_scores(s, p.cap);
    if constexpr (T::kScores) {
      scores.apply(s, T::kFp8 ? scales.scores : p.scores.scale, p.cap, j);
      if (p.segments.q && !clean(w, j)) mask_documents(s, w, j);
    }
    if constexpr (T::kMask)
      if (T::kKind == Kind::kMask ? !clean(w, j) : p.mask.bits != nullptr) apply_mask_bits<N>(s, bits);
  };
  auto issue_qk = [&](float (&s)[kRegs]) {
    ptx::wgmma_fence();
    matmul_qk<Element, T::D, T::kTileM, N>(s, q_desc + q_ring.stage * (T::kQBytes / 16), k_desc + k_ring.stage * (T::kKBytes / 16));
    ptx::wgmma_commit();
  };
  auto issue_pv = [&] {
    ptx::wgmma_fence();
    matmul_pv<Element>(o, prob, v_desc + v_ring.stage * (T::kVBytes / 16));
    ptx::wgmma_commit();
  };
  // After S of a key tile is complete.
  auto release_k = [&] { k_ring.release(), k_ring.advance(); };
  auto release_v = [&] { v_ring.release(), v_ring.advance(); };
  auto pack = [&](const float (&s)[kRegs]) { pack_p<Element>(s, prob); };

  // P of an output tile's first key tile; S has been issued.
  auto first_softmax = [&](float (&s)[kRegs], const Work& w) {
    load_bias(w.j_end - 1);
    ptx::wgmma_wait<0>();
    ptx::pin(s);
    const int j = w.j_end - 1;
    release_k();
    if (!T::kStoreByQ) q_ring.release(j == w.j_begin);
#pragma unroll
    for (int i = 0; i < T::Dv / 2; ++i) o[i] = 0.f;
    state.reset();
    change(s, w, j);
    if (const TileRange f = full(w); j >= f.end || (T::kBand && j < f.begin)) mask(s, w, j);
    float offset[2];
    state.template find_max<true>(s, scale_log2(), alpha, offset, 0);
    state.template exponentiate<0, 8>(s, scale_log2(), alpha, offset);
    pack(s);
    alpha[0] = alpha[1] = 1.f;
  };

  Work w = take_work();
  if (w.j_end == 0) return;
  scales = scales_of(w);
  {
    float s[kRegs];
    begin_scores(w);
    q_ring.wait_full();
    k_ring.wait_full();
    issue_qk(s);
    first_softmax(s, w);
  }
  for (;;) {
    int j = w.j_end - 1;

    // S of tile j - 1 is issued, then P V of tile j; softmax of tile j - 1 runs under the latter.
    auto step = [&](auto masked) {
      float s[kRegs];
      if constexpr (T::kScores) scores.prefetch(j - 1);
      k_ring.wait_full();
      turn.wait();
      issue_qk(s);
      if (T::kTune.early_rescale) scale_rows(o, alpha);
      v_ring.wait_full();
      issue_pv();
      if (!T::kTune.late_turn) turn.pass();
      load_bias(j - 1);
      ptx::wgmma_wait<1>();
      ptx::pin(s);
      --j;
      release_k();
      if (!T::kStoreByQ) q_ring.release(j == w.j_begin);
      change(s, w, j);
      if constexpr (decltype(masked)::value) mask(s, w, j);
      float offset[2];
      state.template find_max<T::kCausal>(s, scale_log2(), alpha, offset, T::kTune.row_order ? p.zero : 0);
      if (T::kTune.late_turn) ptx::pin(offset), turn.pass();
      state.template exponentiate<0, kBefore>(s, scale_log2(), alpha, offset);
      if constexpr (kSplit) {
        ptx::pin(s), ptx::pin(state.sum), ptx::pin(offset);
        v_ring.wait_next_full();  // it has long come, and ends the basic block
      }
      ptx::wgmma_wait<0>();
      ptx::pin(o);
      release_v();
      state.template exponentiate<kBefore, 8>(s, scale_log2(), alpha, offset);
      pack(s);  // not earlier: ptxas serialises wgmmas if a register that feeds one is written while another runs
      if (!T::kTune.early_rescale) scale_rows(o, alpha);
    };
    const TileRange unmasked = full(w);
    const int right = max(w.j_begin, unmasked.end), left = T::kBand ? max(w.j_begin, unmasked.begin) : w.j_begin;
    while (j > right) step(std::true_type{});
    while (j > left) step(std::false_type{});
    if (T::kBand)
      while (j > w.j_begin) step(std::true_type{});

    const uint32_t own_rows = at.q() + q_ring.stage * T::kQBytes + me * 64 * 128, q_empty = q_ring.empty();
    q_ring.advance();

    // The last P V of this output tile, then S of the next one; the epilogue runs under the latter.
    float factor[2], lse[2];
    const bool packed = T::kBand && p.q_lengths.packed;
    const int64_t batch = packed ? 0 : w.batch;
    // Positions that are written; those past the sequence's own are padding.
    const int written = packed ? w.seqlen_q : p.seqlen_q;
    auto line_of = [&](int i) -> char* {
      const int query = query_at(w, i);
      if (query >= written) return nullptr;
      return p.out + batch * p.out_batch + head_at(w, i) * p.out_head + int64_t(w.row0_q + query) * p.out_row;
    };
    auto finish = [&] {
      const bool nobody = packed && w.batch == p.sequences;
      float sink[2] = {-INFINITY, -INFINITY};
      if (T::kBand && p.sinks && !nobody)
#pragma unroll
        for (int r = 0; r < 2; ++r) sink[r] = __ldg(p.sinks + head_at(w, row + 8 * r) * p.sink_step) * 1.4426950408889634f;
      state.finish(scale_log2(), sink, factor, lse);
      if constexpr (T::kFp8) factor[0] *= scales.out, factor[1] *= scales.out;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int query = query_at(w, row + 8 * r);
        if (T::kBand && query >= w.seqlen_q) factor[r] = 0.f, lse[r] = -INFINITY;
        if (p.lse && lane % 4 == 0 && query < written)
          p.lse[batch * p.lse_batch + head_at(w, row + 8 * r) * p.lse_head + int64_t(w.row0_q + query) * p.lse_row] = lse[r];
      }
    };
    auto store = [&] {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (T::kBand && query_at(w, row + 8 * r) >= w.seqlen_q)  // its bias may be anything
#pragma unroll
          for (int i = 0; i < T::Dv / 8; ++i) o[4 * i + 2 * r] = o[4 * i + 2 * r + 1] = 0.f;
      if constexpr (T::kStoreByQ)
        store_out_by_q<T>(o, factor, own_rows, p, w, query_at(w, 0), line_of, 1 + T::kConsumers + me);
      else
        store_out<Out>(o, factor, p, line_of);
    };
    if (T::kTune.early_rescale) scale_rows(o, alpha);
    const Work next = take_work();
    if (next.j_end == 0) {
      v_ring.wait_full();
      issue_pv();
      finish();
      ptx::wgmma_wait<0>();
      ptx::pin(o);
      release_v();
      store();
      if (T::kStoreByQ) ptx::tma_store_wait_read();
      return;
    }
    const Scales next_scales = scales_of(next);
    float s[kRegs];
    v_ring.wait_full();
    turn.wait();
    issue_pv();
    q_ring.wait_full();
    k_ring.wait_full();
    issue_qk(s);
    turn.pass();
    finish();
    ptx::wgmma_wait<1>();
    ptx::pin(o);
    release_v();
    store();
    begin_scores(next);
    w = next, scales = next_scales;
    first_softmax(s, w);
    if (T::kStoreByQ) {  // the copy has long read the rows
      ptx::tma_store_wait_read();
      ptx::mbarrier_arrive_if(q_empty, threadIdx.x % 128 == 0);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1) forward_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) char shared[];
  auto& smem = *reinterpret_cast<SharedStorage<T>*>(shared);
  // Idle rows: the soft cap looks at all that a warp has.
  if (T::kPacks && (T::kScores || T::kKind == Kind::kCap) && p.packing.rows() < T::kTileM) {
    for (uint32_t i = threadIdx.x * 16; i < sizeof smem.q; i += T::kThreads * 16) ptx::store_shared(ptx::shared_address(&smem.q) + i, make_uint4(0, 0, 0, 0));
    ptx::fence_async_proxy();
  }
  if (threadIdx.x == 0) {
    ptx::tma_prefetch_descriptor(&p.q);
    ptx::tma_prefetch_descriptor(&p.k);
    ptx::tma_prefetch_descriptor(&p.v);
    if (T::kBias) ptx::tma_prefetch_descriptor(&p.bias);
    const Addresses<T> at{ptx::opaque_shared_address(&smem)};
    at.q_ring().init(T::kStoreByQ ? T::kConsumers : 4 * T::kConsumers);
    at.k_ring().init(4 * T::kConsumers);
    at.v_ring().init(4 * T::kConsumers);
    at.work_ring().init(4 * T::kConsumers);
    at.bias_ring().init(4 * T::kConsumers);
    ptx::fence_barrier_init();
  }
  __syncthreads();

  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    ptx::registers_lower<T::kProducerRegisters>();
    if (threadIdx.x < 32 && ptx::elect_one()) produce<T>(p, smem);
  } else {
    ptx::registers_raise<T::kConsumerRegisters>();
    consume<T>(p, smem, warpgroup - 1);
  }
}

}  // namespace attile::cuda::sm90
