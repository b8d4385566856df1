// flash_attention_with_kvcache as an operation.
#include "capi/attention_op.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

attile_config with_splits(attile_config config, int64_t num_splits) {
  if (num_splits) config.num_splits = num_splits;
  return config;
}

struct KvCacheOp final : AttentionOp {
  explicit KvCacheOp(const attile_flash_attention_with_kvcache_params& p) : AttentionOp(validate(p), with_splits(p.config, p.num_splits)) {
    const struct { const char* name; const attile_tensor* t; } given[] = {
        {"q", p.q}, {"k_cache", p.k_cache}, {"v_cache", p.v_cache}, {"softmax_aux", p.softmax_aux}};
    for (const auto& [name, t] : given) add_input(name, t);
    add_index("cache_seqlens", p.cache_seqlens, problem.k_seqs.lens);
    add_index("page_table", p.page_table, problem.page_table);
    add_outputs(*p.q);
  }
};

}  // namespace

attile_op* create_flash_attention_with_kvcache(const attile_flash_attention_with_kvcache_params& params) { return new KvCacheOp(params); }

}  // namespace attile
