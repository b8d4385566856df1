# cython: language_level=3, freethreading_compatible=True
"""attile's C interface for Cython: see cython_api.pxd."""

cdef extern from "attile/attile.h" nogil:
    attile_status attile_flash_attention_create(const attile_flash_attention_params* params, attile_op** op)
    attile_status attile_flash_attention_backward_create(const attile_flash_attention_backward_params* params, attile_op** op)
    attile_status attile_merge_states_create(const attile_merge_states_params* params, attile_op** op)
    attile_status attile_flash_attention_with_kvcache_create(const attile_flash_attention_with_kvcache_params* params, attile_op** op)
    attile_status attile_mla_attention_create(const attile_mla_attention_params* params, attile_op** op)
    attile_status attile_mla_attention_backward_create(const attile_mla_attention_backward_params* params, attile_op** op)
    attile_status attile_mla_plan_create(const attile_mla_plan_params* params, attile_mla_plan** plan)
    size_t attile_mla_plan_device_bytes(const attile_mla_plan* plan)
    attile_status attile_mla_plan_to_device(attile_mla_plan* plan, int32_t device_id, void* memory, void* stream)
    void attile_mla_plan_destroy(attile_mla_plan* plan)
    attile_status attile_mla_decode_create(const attile_mla_decode_params* params, attile_op** op)
    attile_status attile_append_paged_mla_kv_cache(const attile_append_paged_mla_kv_cache_params* params, void* stream)
    const char* attile_op_explain(const attile_op* op)
    attile_status attile_cuda_synchronize(int32_t device_id, void* stream)
    const char* attile_show_config()
    attile_status attile_set_num_threads(int32_t n)
    int32_t attile_get_num_threads()
    int32_t attile_op_num_outputs(const attile_op* op)
    attile_status attile_op_output(const attile_op* op, int32_t index, attile_tensor* output)
    attile_status attile_op_bind(attile_op* op, const attile_tensor** outputs, int32_t count)
    size_t attile_op_workspace_bytes(const attile_op* op)
    attile_status attile_op_run(attile_op* op, void* workspace, void* stream, const attile_executor* executor)
    void attile_op_destroy(attile_op* op)
    const char* attile_last_error()
    int32_t attile_abi_version()


cdef attile_status flash_attention_create(const attile_flash_attention_params* params, attile_op** op) noexcept nogil:
    return attile_flash_attention_create(params, op)


cdef attile_status flash_attention_backward_create(const attile_flash_attention_backward_params* params, attile_op** op) noexcept nogil:
    return attile_flash_attention_backward_create(params, op)


cdef attile_status merge_states_create(const attile_merge_states_params* params, attile_op** op) noexcept nogil:
    return attile_merge_states_create(params, op)


cdef attile_status flash_attention_with_kvcache_create(const attile_flash_attention_with_kvcache_params* params, attile_op** op) noexcept nogil:
    return attile_flash_attention_with_kvcache_create(params, op)


cdef attile_status mla_attention_create(const attile_mla_attention_params* params, attile_op** op) noexcept nogil:
    return attile_mla_attention_create(params, op)


cdef attile_status mla_attention_backward_create(const attile_mla_attention_backward_params* params, attile_op** op) noexcept nogil:
    return attile_mla_attention_backward_create(params, op)


cdef attile_status mla_plan_create(const attile_mla_plan_params* params, attile_mla_plan** plan) noexcept nogil:
    return attile_mla_plan_create(params, plan)


cdef size_t mla_plan_device_bytes(const attile_mla_plan* plan) noexcept nogil:
    return attile_mla_plan_device_bytes(plan)


cdef attile_status mla_plan_to_device(attile_mla_plan* plan, int32_t device_id, void* memory, void* stream) noexcept nogil:
    return attile_mla_plan_to_device(plan, device_id, memory, stream)


cdef void mla_plan_destroy(attile_mla_plan* plan) noexcept nogil:
    attile_mla_plan_destroy(plan)


cdef attile_status mla_decode_create(const attile_mla_decode_params* params, attile_op** op) noexcept nogil:
    return attile_mla_decode_create(params, op)


cdef attile_status append_paged_mla_kv_cache(const attile_append_paged_mla_kv_cache_params* params, void* stream) noexcept nogil:
    return attile_append_paged_mla_kv_cache(params, stream)


cdef const char* op_explain(const attile_op* op) noexcept nogil:
    return attile_op_explain(op)


cdef attile_status cuda_synchronize(int32_t device_id, void* stream) noexcept nogil:
    return attile_cuda_synchronize(device_id, stream)


cdef const char* show_config() noexcept nogil:
    return attile_show_config()


cdef attile_status set_num_threads(int32_t n) noexcept nogil:
    return attile_set_num_threads(n)


cdef int32_t get_num_threads() noexcept nogil:
    return attile_get_num_threads()


cdef int32_t op_num_outputs(const attile_op* op) noexcept nogil:
    return attile_op_num_outputs(op)


cdef attile_status op_output(const attile_op* op, int32_t index, attile_tensor* output) noexcept nogil:
    return attile_op_output(op, index, output)


cdef attile_status op_bind(attile_op* op, const attile_tensor** outputs, int32_t count) noexcept nogil:
    return attile_op_bind(op, outputs, count)


cdef size_t op_workspace_bytes(const attile_op* op) noexcept nogil:
    return attile_op_workspace_bytes(op)


cdef attile_status op_run(attile_op* op, void* workspace, void* stream, const attile_executor* executor) noexcept nogil:
    return attile_op_run(op, workspace, stream, executor)


cdef void op_destroy(attile_op* op) noexcept nogil:
    attile_op_destroy(op)


cdef const char* last_error() noexcept nogil:
    return attile_last_error()


cdef int32_t abi_version() noexcept nogil:
    return attile_abi_version()
