/* C ABI of the attention kernel, for tests. See capi.h for what status values mean. */
#ifndef SPARSIFY_CAPI_ATTENTION_H_
#define SPARSIFY_CAPI_ATTENTION_H_

#include "capi.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int64_t batch, queries, keys;
  int64_t heads, kv_heads; /* of q; of k and v */
  int64_t key_size, value_size;
  int64_t bias_shape[4]; /* broadcasts to [batch, heads, queries, keys] */
  float scale;
  int32_t causal, nan_guard, threads;
} sparsify_attention_call;

/* y [batch, queries, heads * value_size] of q [batch, queries, heads * key_size], k [batch, keys,
   kv_heads * key_size] and v [batch, keys, kv_heads * value_size]; bias may be null. kernel: a name of the
   kernel table, or null for SPARSIFY_KERNEL or else the best. */
SPARSIFY_API int32_t sparsify_attention_run(const char* kernel, const sparsify_attention_call* call,
                                            const float* q, const float* k, const float* v, const float* bias,
                                            float* y);

#ifdef __cplusplus
}
#endif

#endif /* SPARSIFY_CAPI_ATTENTION_H_ */
