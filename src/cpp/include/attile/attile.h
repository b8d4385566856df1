/* attile: the C interface of lib/libattile.so.
 *
 * A call is an operation: `create` checks every argument, chooses a kernel and plans; `output` says what the caller has to
 * allocate; `bind` takes the outputs; `run` computes (no allocation but the cached scratch, no synchronisation); `destroy` frees.
 * Parameter structs begin with their size, so that they can grow. Functions that can fail return a status; the text is
 * `attile_last_error()`, one a thread. No array is copied or kept beyond `destroy`. */
#ifndef ATTILE_ATTILE_H_
#define ATTILE_ATTILE_H_

#include <stddef.h>
#include <stdint.h>

#define ATTILE_VERSION_MAJOR 0
#define ATTILE_VERSION_MINOR 1
#define ATTILE_VERSION_PATCH 0
#define ATTILE_ABI_VERSION 1

#if defined(_WIN32)
#define ATTILE_API
#else
#define ATTILE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum attile_status {
  ATTILE_OK = 0,
  ATTILE_VALUE_ERROR = 1,     /* shape, range, device, length */
  ATTILE_TYPE_ERROR = 2,      /* dtype */
  ATTILE_NOT_IMPLEMENTED = 3, /* well formed, but no kernel takes it */
  ATTILE_OUT_OF_MEMORY = 4,
  ATTILE_RUNTIME_ERROR = 5
} attile_status;

/* A data type in DLPack's terms: code (0 int, 1 uint, 2 float, 4 bfloat, 6 bool, 10 float8_e4m3fn), bits, lanes (1). */
typedef struct attile_dtype {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} attile_dtype;

#define ATTILE_MAX_RANK 8

/* A strided view of an array. device_type and device_id are DLPack's (1 CPU, 2 CUDA, 3 CUDA host). A null pointer to an
 * attile_tensor in a parameter struct means: argument not given. */
typedef struct attile_tensor {
  void* data;
  attile_dtype dtype;
  int32_t device_type;
  int32_t device_id;
  int32_t rank;
  int64_t shape[ATTILE_MAX_RANK];
  int64_t strides[ATTILE_MAX_RANK]; /* in elements */
} attile_tensor;

/* Where CPU work runs. schedule() hands over a task that runs at some later time on some thread, or never waits: the
 * library's caller does all the work itself when no task is ever started. A null executor is the library's own pool. */
typedef struct attile_executor {
  size_t struct_size;
  void* context;
  int32_t (*num_threads)(void* context);
  void (*schedule)(void* context, void (*task)(void* data), void* data);
} attile_executor;

typedef enum attile_platform { ATTILE_PLATFORM_AUTO = 0, ATTILE_PLATFORM_CPU = 1, ATTILE_PLATFORM_CUDA = 2 } attile_platform;
typedef enum attile_alignment { ATTILE_TOP_LEFT = 0, ATTILE_BOTTOM_RIGHT = 1 } attile_alignment;
typedef enum attile_precision {
  ATTILE_PRECISION_HIGHEST = 0, /* float32-accurate */
  ATTILE_PRECISION_HIGH = 1,    /* three reduced products */
  ATTILE_PRECISION_DEFAULT = 2  /* one reduced product */
} attile_precision;

/* What the caller forces; zeros and null: the heuristic decides. */
typedef struct attile_config {
  int64_t block_q;
  int64_t block_k;
  int64_t num_splits;
  const char* kernel;
} attile_config;

typedef struct attile_flash_attention_params {
  size_t struct_size;
  const attile_tensor* query;
  const attile_tensor* key;
  const attile_tensor* value;
  const attile_tensor* bias;
  const attile_tensor* cum_seqlens_q;
  const attile_tensor* cum_seqlens_k;
  const attile_tensor* softmax_aux;
  const attile_tensor* attention_mask;
  const attile_tensor* q_segment_ids;
  const attile_tensor* kv_segment_ids;
  const attile_tensor* q_scale; /* float8 only; a scalar is a tensor of rank 0 */
  const attile_tensor* k_scale;
  const attile_tensor* v_scale;
  double softmax_scale;
  double logits_soft_cap;
  double dropout_prob;
  uint64_t dropout_seed;
  int64_t window_left; /* -1: unlimited */
  int64_t window_right;
  attile_dtype logits_dtype; /* bits 0: not given */
  int32_t has_softmax_scale; /* 0: 1 / sqrt(head_dim) */
  int32_t has_logits_soft_cap;
  int32_t has_dropout_seed;
  int32_t has_sliding_window;
  int32_t causal;
  int32_t causal_alignment; /* attile_alignment */
  int32_t normalize_output;
  int32_t precision; /* attile_precision */
  int32_t return_lse;
  int32_t platform; /* attile_platform */
  attile_config config;
} attile_flash_attention_params;

/* Gradients of flash_attention: its arguments, its results, and their gradients in; those of query, key, value and, where they are
 * given, bias and softmax_aux out, in this order. */
typedef struct attile_flash_attention_backward_params {
  size_t struct_size;
  const attile_tensor* dout; /* as out */
  const attile_tensor* query;
  const attile_tensor* key;
  const attile_tensor* value;
  const attile_tensor* out;
  const attile_tensor* lse;
  const attile_tensor* bias;
  const attile_tensor* cum_seqlens_q;
  const attile_tensor* cum_seqlens_k;
  const attile_tensor* softmax_aux;
  const attile_tensor* dlse; /* as lse */
  const attile_tensor* attention_mask;
  const attile_tensor* q_segment_ids;
  const attile_tensor* kv_segment_ids;
  double softmax_scale;
  double logits_soft_cap;
  double dropout_prob;
  uint64_t dropout_seed;
  int64_t window_left; /* -1: unlimited */
  int64_t window_right;
  attile_dtype logits_dtype; /* bits 0: not given */
  int32_t has_softmax_scale; /* 0: 1 / sqrt(head_dim) */
  int32_t has_logits_soft_cap;
  int32_t has_dropout_seed;
  int32_t has_sliding_window;
  int32_t causal;
  int32_t causal_alignment; /* attile_alignment */
  int32_t precision; /* attile_precision */
  int32_t deterministic; /* the same inputs give the same bits */
  int32_t platform; /* attile_platform */
  attile_config config;
} attile_flash_attention_backward_params;

typedef struct attile_flash_attention_with_kvcache_params {
  size_t struct_size;
  const attile_tensor* q;             /* [B,Sq,Hq,D] */
  const attile_tensor* k_cache;       /* [B,Tmax,Hk,D], with page_table [pages,page_size,Hk,D] */
  const attile_tensor* v_cache;       /* [B,Tmax,Hk,Dv], [pages,page_size,Hk,Dv] */
  const attile_tensor* cache_seqlens; /* [B] */
  const attile_tensor* page_table;    /* [B,max_pages] */
  const attile_tensor* softmax_aux;
  double softmax_scale;
  double logits_soft_cap;
  int64_t window_left; /* -1: unlimited */
  int64_t window_right;
  int64_t num_splits; /* 0: the heuristic, or config.num_splits */
  int32_t has_softmax_scale;
  int32_t has_logits_soft_cap;
  int32_t has_sliding_window;
  int32_t causal; /* bottom right */
  int32_t return_lse;
  int32_t platform; /* attile_platform */
  attile_config config;
} attile_flash_attention_with_kvcache_params;

/* How mla_attention meets its keys: rebuilt from the latents tile by tile, or with its queries absorbed into the latent space. */
typedef enum attile_mla_strategy { ATTILE_MLA_AUTO = 0, ATTILE_MLA_REBUILD = 1, ATTILE_MLA_ABSORB = 2 } attile_mla_strategy;

typedef struct attile_mla_attention_params {
  size_t struct_size;
  const attile_tensor* query;     /* [B,Tq,Hq,Dn], with b_k alone [B,Tq,Hq,Dn+R]; packed [total,Hq,..] */
  const attile_tensor* key_value; /* [B,Tk,L], packed [total,L] */
  const attile_tensor* w_kc;      /* [L,Hk,Dn] */
  const attile_tensor* w_vc;      /* [L,Hk,Dv] */
  const attile_tensor* b_q;       /* [B,Tq,R] or [B,Tq,Hq,R] */
  const attile_tensor* b_k;       /* [B,Tk,R] or [B,Tk,Hq,R] */
  const attile_tensor* cu_seqlens;
  const attile_tensor* bias;
  const attile_tensor* softmax_aux;
  const attile_tensor* attention_mask;
  double softmax_scale;
  double logits_soft_cap;
  double dropout_prob;
  uint64_t dropout_seed;
  int64_t window_left; /* -1: unlimited */
  int64_t window_right;
  int32_t has_softmax_scale; /* 0: 1 / sqrt(Dn + R) */
  int32_t has_logits_soft_cap;
  int32_t has_dropout_seed;
  int32_t has_sliding_window;
  int32_t causal;
  int32_t causal_alignment; /* attile_alignment */
  int32_t return_lse;
  int32_t platform; /* attile_platform */
  int32_t strategy; /* attile_mla_strategy */
  attile_config config;
} attile_mla_attention_params;

/* Gradients of mla_attention: its arguments, its results, and their gradients in; those of query, key_value, w_kc, w_vc and, where they
 * are given, b_q, b_k, bias and softmax_aux out, in this order. */
typedef struct attile_mla_attention_backward_params {
  size_t struct_size;
  const attile_tensor* dout; /* as out */
  const attile_tensor* query;
  const attile_tensor* key_value;
  const attile_tensor* w_kc;
  const attile_tensor* w_vc;
  const attile_tensor* out;
  const attile_tensor* lse;
  const attile_tensor* b_q;
  const attile_tensor* b_k;
  const attile_tensor* cu_seqlens;
  const attile_tensor* dlse; /* as lse */
  const attile_tensor* bias;
  const attile_tensor* softmax_aux;
  const attile_tensor* attention_mask;
  double softmax_scale;
  double logits_soft_cap;
  double dropout_prob;
  uint64_t dropout_seed;
  int64_t window_left; /* -1: unlimited */
  int64_t window_right;
  int32_t has_softmax_scale; /* 0: 1 / sqrt(Dn + R) */
  int32_t has_logits_soft_cap;
  int32_t has_dropout_seed;
  int32_t has_sliding_window;
  int32_t causal;
  int32_t causal_alignment; /* attile_alignment */
  int32_t deterministic; /* the same inputs give the same bits */
  int32_t platform; /* attile_platform */
  int32_t strategy; /* attile_mla_strategy */
  attile_config config;
} attile_mla_attention_backward_params;

typedef struct attile_merge_states_params {
  size_t struct_size;
  const attile_tensor* out_a; /* [B,T,H,Dv] */
  const attile_tensor* lse_a; /* [B,H,T] */
  const attile_tensor* out_b;
  const attile_tensor* lse_b;
} attile_merge_states_params;

/* A batch of sequences of any lengths over a paged cache, apart from its arrays: used by any number of attile_mla_decode_create, and to be
 * kept until their operations are destroyed. Index arrays on the host are checked and copied by `create`; for calls on CUDA arrays the copy
 * is brought to the device by attile_mla_plan_to_device. Index arrays on a CUDA device are for calls on that device: they are neither
 * copied nor checked, their numbers may change between calls, and the caller keeps them as long as the plan. */
typedef struct attile_mla_plan attile_mla_plan;

typedef struct attile_mla_plan_params {
  size_t struct_size;
  const attile_tensor* qo_indptr;  /* [B+1]; index arrays are all on the host, or all on one CUDA device */
  const attile_tensor* kv_indptr;  /* [B+1] */
  const attile_tensor* kv_indices; /* at least kv_indptr[B] page numbers */
  const attile_tensor* kv_len_arr; /* [B] */
  int64_t num_heads;
  int64_t head_dim_ckv;
  int64_t head_dim_kpe;
  int64_t page_size;
  double softmax_scale;
  attile_dtype q_dtype;
  attile_dtype kv_dtype;
  int32_t causal; /* bottom-right */
} attile_mla_plan_params;

typedef struct attile_mla_decode_params {
  size_t struct_size;
  const attile_tensor* q_nope;     /* [B,Sq,H,L]; with a plan [total,H,L] */
  const attile_tensor* q_pe;       /* [B,Sq,H,R] */
  const attile_tensor* ckv;        /* [B,Tk,L], or [pages,page_size,L] */
  const attile_tensor* kpe;        /* [B,Tk,R] or [pages,page_size,R], or with a head axis before R */
  const attile_tensor* kv_lens;    /* [B] */
  const attile_tensor* page_table; /* [B,max_pages] */
  const attile_tensor* ckv_scale;  /* float8 only */
  const attile_tensor* softmax_aux;
  double softmax_scale;
  double logits_soft_cap;
  int32_t has_logits_soft_cap;
  int32_t causal; /* bottom-right */
  int32_t return_lse;
  int32_t lse_base_2; /* lse in base 2 */
  int32_t platform;   /* attile_platform */
  attile_config config;
  const attile_mla_plan* plan; /* null: a batch of equal query lengths. Else it gives lengths, pages, causal and the scale, and lse is [total,H] */
} attile_mla_decode_params;

/* New tokens into the pages of a cache, in place. The caches may be two views of one array. */
typedef struct attile_append_paged_mla_kv_cache_params {
  size_t struct_size;
  const attile_tensor* append_ckv;       /* [n,L] */
  const attile_tensor* append_kpe;       /* [n,R] */
  const attile_tensor* batch_indices;    /* [n]; index arrays are all on the host, or all on the device of the caches */
  const attile_tensor* positions;        /* [n] */
  const attile_tensor* ckv_cache;        /* [pages,page_size,L] */
  const attile_tensor* kpe_cache;        /* [pages,page_size,R] */
  const attile_tensor* kv_indices;       /* at least kv_indptr[B] page numbers */
  const attile_tensor* kv_indptr;        /* [B+1] */
  const attile_tensor* kv_last_page_len; /* [B] */
} attile_append_paged_mla_kv_cache_params;

typedef struct attile_op attile_op;

ATTILE_API attile_status attile_flash_attention_create(const attile_flash_attention_params* params, attile_op** op);
ATTILE_API attile_status attile_flash_attention_backward_create(const attile_flash_attention_backward_params* params, attile_op** op);
ATTILE_API attile_status attile_flash_attention_with_kvcache_create(const attile_flash_attention_with_kvcache_params* params, attile_op** op);
ATTILE_API attile_status attile_mla_attention_create(const attile_mla_attention_params* params, attile_op** op);
ATTILE_API attile_status attile_mla_attention_backward_create(const attile_mla_attention_backward_params* params, attile_op** op);
ATTILE_API attile_status attile_merge_states_create(const attile_merge_states_params* params, attile_op** op);
ATTILE_API attile_status attile_mla_plan_create(const attile_mla_plan_params* params, attile_mla_plan** plan);
/* Queues the copy of a plan made on the host into memory of the device, which it uses from then on; 0 bytes: made on a device. */
ATTILE_API size_t attile_mla_plan_device_bytes(const attile_mla_plan* plan);
ATTILE_API attile_status attile_mla_plan_to_device(attile_mla_plan* plan, int32_t device_id, void* memory, void* stream);
ATTILE_API void attile_mla_plan_destroy(attile_mla_plan* plan);
ATTILE_API attile_status attile_mla_decode_create(const attile_mla_decode_params* params, attile_op** op);
ATTILE_API attile_status attile_append_paged_mla_kv_cache(const attile_append_paged_mla_kv_cache_params* params, void* stream);

/* How many outputs an operation has (out, lse), and the shape, dtype and device of one; data is null, strides are those of a
 * C-contiguous array. */
ATTILE_API int32_t attile_op_num_outputs(const attile_op* op);
ATTILE_API attile_status attile_op_output(const attile_op* op, int32_t index, attile_tensor* output);

/* Takes the outputs, in the order of attile_op_output. Checks shape, dtype, device, contiguous last dimension, overlap with
 * the inputs and with each other. `count` may be smaller than num_outputs only for outputs that the caller does not want. */
ATTILE_API attile_status attile_op_bind(attile_op* op, const attile_tensor* const* outputs, int32_t count);

/* Bytes of scratch that run() needs. On the CPU a null workspace makes it use a buffer that the library keeps for the calling
 * thread; on CUDA it is memory of the device, aligned to 256 bytes, and `stream` is a cudaStream_t of that device, on which work is
 * queued without synchronisation. */
ATTILE_API size_t attile_op_workspace_bytes(const attile_op* op);
ATTILE_API attile_status attile_op_run(attile_op* op, void* workspace, void* stream, const attile_executor* executor);

/* JSON: kernel, plan, workspace, and each other kernel with the reason it was refused. Valid until the next call of this
 * function on the same thread. */
ATTILE_API const char* attile_op_explain(const attile_op* op);
ATTILE_API void attile_op_destroy(attile_op* op);

/* Waits for all work on the stream. */
ATTILE_API attile_status attile_cuda_synchronize(int32_t device_id, void* stream);

ATTILE_API const char* attile_last_error(void);
ATTILE_API int32_t attile_abi_version(void);
/* JSON: version, ABI, compiler, CPU features, kernels with their ISA and whether this machine runs them, CUDA and GPUs, threads. */
ATTILE_API const char* attile_show_config(void);
ATTILE_API attile_status attile_set_num_threads(int32_t n); /* 0: the default */
ATTILE_API int32_t attile_get_num_threads(void);

#ifdef __cplusplus
}
#endif
#endif
