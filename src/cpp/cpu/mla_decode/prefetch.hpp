// What the next keys of MLA decoding will need of the cache, asked for while these are computed.
#pragma once

#include "cpu/decode/ahead.hpp"
#include "cpu/mla_decode/keys.hpp"

namespace attile::ATTILE_ISA {

using PrefetchRun = AheadRun;

template <int kStreams>
class Prefetcher : public Ahead<kStreams> {
 public:
  using Ahead<kStreams>::Ahead;  // room for a run of each row of ckv and of kpe

  // The rows of a block; start() follows.
  void add_keys(const MlaDecodeUnit& m, const KeyRow* rows, int64_t count, int64_t ckv_bytes, int64_t kpe_bytes) {
    this->clear();
    const bool joined = count > 0 && rows[0].kpe == rows[0].ckv + ckv_bytes;
    add_rows(count, joined ? ckv_bytes + kpe_bytes : ckv_bytes, m.base.k_stride, in_order(m), [rows](int64_t j) { return rows[j].ckv; });
    if (!joined && kpe_bytes > 0) add_rows(count, kpe_bytes, m.kpe_stride, in_order(m), [rows](int64_t j) { return rows[j].kpe; });
  }

 private:
  template <class At>
  void add_rows(int64_t count, int64_t bytes, int64_t stride, bool in_order, At at) {
    if (in_order && stride == bytes && count > 0) return this->add(1, count * bytes, at);
    this->add(count, bytes, at);
  }
};

}  // namespace attile::ATTILE_ISA
