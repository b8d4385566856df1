// What mla_attention and its gradients read alike from Python: the arrays of the forward call and the options that are no arrays.
#pragma once

#include "bindings/operation.hpp"
#include "bindings/options.hpp"

namespace attile::python {

inline constexpr Choice kStrategies[] = {{"rebuild", ATTILE_MLA_REBUILD}, {"absorb", ATTILE_MLA_ABSORB}};

template <class Params>
struct MlaAttentionArguments {
  struct Arrays {
    PyObject *query, *key_value, *w_kc, *w_vc, *b_q, *b_k, *cu_seqlens, *attention_mask, *bias, *softmax_aux;
  };
  struct Options {
    PyObject *softmax_scale, *causal, *causal_alignment, *logits_soft_cap, *sliding_window, *dropout_prob, *dropout_seed, *platform, *cfg;
  };

  Call call;
  Params params{};
  py::object kernel;  // owns params.config.kernel

  MlaAttentionArguments(const char* function, bool in_place, bool deferrable) : call(function, in_place, deferrable) {
    params.struct_size = sizeof params;
  }

  Where where(const char* argument) const { return {call.function(), argument}; }

  void arrays(const Arrays& given) {
    params.query = call.required(given.query, "query");
    params.key_value = call.required(given.key_value, "key_value");
    params.w_kc = call.required(given.w_kc, "w_kc");
    params.w_vc = call.required(given.w_vc, "w_vc");
    params.b_q = call.array(given.b_q, "b_q");
    params.b_k = call.array(given.b_k, "b_k");
    params.cu_seqlens = call.index_array(given.cu_seqlens, "cu_seqlens");
    params.attention_mask = call.array(given.attention_mask, "attention_mask");
    params.bias = call.array(given.bias, "bias");
    params.softmax_aux = call.array(given.softmax_aux, "softmax_aux");
  }

  void options(const Options& given) {
    const OptionalNumber scale = optional_number(given.softmax_scale, where("softmax_scale"));
    params.has_softmax_scale = scale.given;
    params.softmax_scale = scale.value;
    params.causal = boolean(given.causal, where("causal"));
    params.causal_alignment = choice(given.causal_alignment, where("causal_alignment"), kAlignments);
    const OptionalNumber cap = optional_number(given.logits_soft_cap, where("logits_soft_cap"));
    params.has_logits_soft_cap = cap.given;
    params.logits_soft_cap = cap.value;
    const Window sliding = window(given.sliding_window, where("sliding_window"));
    params.has_sliding_window = sliding.given;
    params.window_left = sliding.left;
    params.window_right = sliding.right;
    params.dropout_prob = number(given.dropout_prob, where("dropout_prob"));
    params.has_dropout_seed = given.dropout_seed != Py_None;
    if (params.has_dropout_seed) params.dropout_seed = unsigned_integer(given.dropout_seed, where("dropout_seed"));
    params.platform = choice(given.platform, where("platform"), kPlatforms);
    params.config = flash_mla_config(given.cfg, call.function(), kernel);
    if (given.cfg != Py_None) {
      const py::object strategy = py::handle(given.cfg).attr("strategy");
      if (!strategy.is_none()) params.strategy = choice(strategy.ptr(), where("cfg.strategy"), kStrategies);
    }
  }
};

}  // namespace attile::python
