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
  void add_keys(const KeyRow* rows, int64_t count, int64_t ckv_bytes, int64_t kpe_bytes) {
    this->clear();
    const bool joined = count > 0 && rows[0].kpe == rows[0].ckv + ckv_bytes;
    this->add(count, joined ? ckv_bytes + kpe_bytes : ckv_bytes, [rows](int64_t j) { return rows[j].ckv; });
    if (!joined && kpe_bytes > 0) this->add(count, kpe_bytes, [rows](int64_t j) { return rows[j].kpe; });
  }
};

}  // namespace attile::ATTILE_ISA
