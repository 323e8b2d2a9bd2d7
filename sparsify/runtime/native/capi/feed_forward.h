/* C ABI of two linear layers in one, for tests. See capi.h for what status values mean. */
#ifndef SPARSIFY_CAPI_FEED_FORWARD_H_
#define SPARSIFY_CAPI_FEED_FORWARD_H_

#include "capi.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sparsify_feed_forward sparsify_feed_forward;

/* sizes: inputs of the first layer, its outputs, outputs of the second. kernel: a name of the kernel table,
   or null for SPARSIFY_KERNEL or else the best. The tensors must stay in place. */
SPARSIFY_API int32_t sparsify_feed_forward_create(const char* kernel, const int64_t* sizes,
                                                  const char* first_layout, const sparsify_tensor* first,
                                                  int32_t first_count, const char* second_layout,
                                                  const sparsify_tensor* second, int32_t second_count,
                                                  sparsify_feed_forward** result);
/* The first layer's options have no residual; the second's number of threads counts. */
SPARSIFY_API int32_t sparsify_feed_forward_run(const sparsify_feed_forward* layers, const float* x,
                                               int64_t rows, const sparsify_run_options* first,
                                               const sparsify_run_options* second, float* y);
SPARSIFY_API void sparsify_feed_forward_free(sparsify_feed_forward* layers);

#ifdef __cplusplus
}
#endif

#endif /* SPARSIFY_CAPI_FEED_FORWARD_H_ */
