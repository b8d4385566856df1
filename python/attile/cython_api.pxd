"""attile's C interface for Cython: `from attile.cython_api cimport ...`.

The functions are those of attile/attile.h under the same names; they come through this module, so the user's extension is not linked
against libattile. Compile with `attile.get_include()` on the include path.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t

cdef extern from "attile/attile.h" nogil:
    int ATTILE_ABI_VERSION
    int ATTILE_MAX_RANK

    ctypedef enum attile_status:
        ATTILE_OK
        ATTILE_VALUE_ERROR
        ATTILE_TYPE_ERROR
        ATTILE_NOT_IMPLEMENTED
        ATTILE_OUT_OF_MEMORY
        ATTILE_RUNTIME_ERROR

    ctypedef enum attile_alignment:
        ATTILE_TOP_LEFT
        ATTILE_BOTTOM_RIGHT

    ctypedef enum attile_precision:
        ATTILE_PRECISION_HIGHEST
        ATTILE_PRECISION_HIGH
        ATTILE_PRECISION_DEFAULT

    ctypedef enum attile_platform:
        ATTILE_PLATFORM_AUTO
        ATTILE_PLATFORM_CPU
        ATTILE_PLATFORM_CUDA

    ctypedef enum attile_mla_strategy:
        ATTILE_MLA_AUTO
        ATTILE_MLA_REBUILD
        ATTILE_MLA_ABSORB

    ctypedef struct attile_dtype:
        uint8_t code
        uint8_t bits
        uint16_t lanes

    ctypedef struct attile_tensor:
        void* data
        attile_dtype dtype
        int32_t device_type
        int32_t device_id
        int32_t rank
        int64_t* shape
        int64_t* strides

    ctypedef struct attile_executor:
        size_t struct_size
        void* context
        int32_t (*num_threads)(void* context)
        void (*schedule)(void* context, void (*task)(void* data), void* data)

    ctypedef struct attile_config:
        int64_t block_q
        int64_t block_k
        int64_t num_splits
        const char* kernel

    ctypedef struct attile_flash_attention_params:
        size_t struct_size
        const attile_tensor* query
        const attile_tensor* key
        const attile_tensor* value
        const attile_tensor* bias
        const attile_tensor* cum_seqlens_q
        const attile_tensor* cum_seqlens_k
        const attile_tensor* softmax_aux
        const attile_tensor* attention_mask
        const attile_tensor* q_segment_ids
        const attile_tensor* kv_segment_ids
        const attile_tensor* q_scale
        const attile_tensor* k_scale
        const attile_tensor* v_scale
        double softmax_scale
        double logits_soft_cap
        double dropout_prob
        uint64_t dropout_seed
        int64_t window_left
        int64_t window_right
        attile_dtype logits_dtype
        int32_t has_softmax_scale
        int32_t has_logits_soft_cap
        int32_t has_dropout_seed
        int32_t has_sliding_window
        int32_t causal
        int32_t causal_alignment
        int32_t normalize_output
        int32_t precision
        int32_t return_lse
        int32_t platform
        attile_config config

    ctypedef struct attile_merge_states_params:
        size_t struct_size
        const attile_tensor* out_a
        const attile_tensor* lse_a
        const attile_tensor* out_b
        const attile_tensor* lse_b

    ctypedef struct attile_flash_attention_backward_params:
        size_t struct_size
        const attile_tensor* dout
        const attile_tensor* query
        const attile_tensor* key
        const attile_tensor* value
        const attile_tensor* out
        const attile_tensor* lse
        const attile_tensor* bias
        const attile_tensor* cum_seqlens_q
        const attile_tensor* cum_seqlens_k
        const attile_tensor* softmax_aux
        const attile_tensor* dlse
        const attile_tensor* attention_mask
        const attile_tensor* q_segment_ids
        const attile_tensor* kv_segment_ids
        double softmax_scale
        double logits_soft_cap
        double dropout_prob
        uint64_t dropout_seed
        int64_t window_left
        int64_t window_right
        attile_dtype logits_dtype
        int32_t has_softmax_scale
        int32_t has_logits_soft_cap
        int32_t has_dropout_seed
        int32_t has_sliding_window
        int32_t causal
        int32_t causal_alignment
        int32_t precision
        int32_t deterministic
        int32_t platform
        attile_config config

    ctypedef struct attile_flash_attention_with_kvcache_params:
        size_t struct_size
        const attile_tensor* q
        const attile_tensor* k_cache
        const attile_tensor* v_cache
        const attile_tensor* cache_seqlens
        const attile_tensor* page_table
        const attile_tensor* softmax_aux
        double softmax_scale
        double logits_soft_cap
        int64_t window_left
        int64_t window_right
        int64_t num_splits
        int32_t has_softmax_scale
        int32_t has_logits_soft_cap
        int32_t has_sliding_window
        int32_t causal
        int32_t return_lse
        int32_t platform
        attile_config config

    ctypedef struct attile_mla_attention_params:
        size_t struct_size
        const attile_tensor* query
        const attile_tensor* key_value
        const attile_tensor* w_kc
        const attile_tensor* w_vc
        const attile_tensor* b_q
        const attile_tensor* b_k
        const attile_tensor* cu_seqlens
        const attile_tensor* bias
        const attile_tensor* softmax_aux
        const attile_tensor* attention_mask
        double softmax_scale
        double logits_soft_cap
        double dropout_prob
        uint64_t dropout_seed
        int64_t window_left
        int64_t window_right
        int32_t has_softmax_scale
        int32_t has_logits_soft_cap
        int32_t has_dropout_seed
        int32_t has_sliding_window
        int32_t causal
        int32_t causal_alignment
        int32_t return_lse
        int32_t platform
        int32_t strategy
        attile_config config

    ctypedef struct attile_mla_attention_backward_params:
        size_t struct_size
        const attile_tensor* dout
        const attile_tensor* query
        const attile_tensor* key_value
        const attile_tensor* w_kc
        const attile_tensor* w_vc
        const attile_tensor* out
        const attile_tensor* lse
        const attile_tensor* b_q
        const attile_tensor* b_k
        const attile_tensor* cu_seqlens
        const attile_tensor* dlse
        const attile_tensor* bias
        const attile_tensor* softmax_aux
        const attile_tensor* attention_mask
        double softmax_scale
        double logits_soft_cap
        double dropout_prob
        uint64_t dropout_seed
        int64_t window_left
        int64_t window_right
        int32_t has_softmax_scale
        int32_t has_logits_soft_cap
        int32_t has_dropout_seed
        int32_t has_sliding_window
        int32_t causal
        int32_t causal_alignment
        int32_t deterministic
        int32_t platform
        int32_t strategy
        attile_config config

    ctypedef struct attile_mla_plan:
        pass

    ctypedef struct attile_mla_plan_params:
        size_t struct_size
        const attile_tensor* qo_indptr
        const attile_tensor* kv_indptr
        const attile_tensor* kv_indices
        const attile_tensor* kv_len_arr
        int64_t num_heads
        int64_t head_dim_ckv
        int64_t head_dim_kpe
        int64_t page_size
        double softmax_scale
        attile_dtype q_dtype
        attile_dtype kv_dtype
        int32_t causal

    ctypedef struct attile_mla_decode_params:
        size_t struct_size
        const attile_tensor* q_nope
        const attile_tensor* q_pe
        const attile_tensor* ckv
        const attile_tensor* kpe
        const attile_tensor* kv_lens
        const attile_tensor* page_table
        const attile_tensor* ckv_scale
        const attile_tensor* softmax_aux
        double softmax_scale
        double logits_soft_cap
        int32_t has_logits_soft_cap
        int32_t causal
        int32_t return_lse
        int32_t lse_base_2
        int32_t platform
        attile_config config
        const attile_mla_plan* plan

    ctypedef struct attile_append_paged_mla_kv_cache_params:
        size_t struct_size
        const attile_tensor* append_ckv
        const attile_tensor* append_kpe
        const attile_tensor* batch_indices
        const attile_tensor* positions
        const attile_tensor* ckv_cache
        const attile_tensor* kpe_cache
        const attile_tensor* kv_indices
        const attile_tensor* kv_indptr
        const attile_tensor* kv_last_page_len

    ctypedef struct attile_op:
        pass

cdef attile_status flash_attention_create(const attile_flash_attention_params* params, attile_op** op) noexcept nogil
cdef attile_status flash_attention_backward_create(const attile_flash_attention_backward_params* params, attile_op** op) noexcept nogil
cdef attile_status merge_states_create(const attile_merge_states_params* params, attile_op** op) noexcept nogil
cdef attile_status flash_attention_with_kvcache_create(const attile_flash_attention_with_kvcache_params* params, attile_op** op) noexcept nogil
cdef attile_status mla_attention_create(const attile_mla_attention_params* params, attile_op** op) noexcept nogil
cdef attile_status mla_attention_backward_create(const attile_mla_attention_backward_params* params, attile_op** op) noexcept nogil
cdef attile_status mla_plan_create(const attile_mla_plan_params* params, attile_mla_plan** plan) noexcept nogil
cdef size_t mla_plan_device_bytes(const attile_mla_plan* plan) noexcept nogil
cdef attile_status mla_plan_to_device(attile_mla_plan* plan, int32_t device_id, void* memory, void* stream) noexcept nogil
cdef void mla_plan_destroy(attile_mla_plan* plan) noexcept nogil
cdef attile_status mla_decode_create(const attile_mla_decode_params* params, attile_op** op) noexcept nogil
cdef attile_status append_paged_mla_kv_cache(const attile_append_paged_mla_kv_cache_params* params, void* stream) noexcept nogil
cdef const char* op_explain(const attile_op* op) noexcept nogil
cdef attile_status cuda_synchronize(int32_t device_id, void* stream) noexcept nogil
cdef const char* show_config() noexcept nogil
cdef attile_status set_num_threads(int32_t n) noexcept nogil
cdef int32_t get_num_threads() noexcept nogil
cdef int32_t op_num_outputs(const attile_op* op) noexcept nogil
cdef attile_status op_output(const attile_op* op, int32_t index, attile_tensor* output) noexcept nogil
cdef attile_status op_bind(attile_op* op, const attile_tensor** outputs, int32_t count) noexcept nogil
cdef size_t op_workspace_bytes(const attile_op* op) noexcept nogil
cdef attile_status op_run(attile_op* op, void* workspace, void* stream, const attile_executor* executor) noexcept nogil
cdef void op_destroy(attile_op* op) noexcept nogil
cdef const char* last_error() noexcept nogil
cdef int32_t abi_version() noexcept nogil
