/* C ABI of chains of convolutions, for tests. See capi.h for what status values mean. */
#ifndef SPARSIFY_CAPI_CHAIN_H_
#define SPARSIFY_CAPI_CHAIN_H_

#include "capi.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sparsify_conv_chain sparsify_conv_chain;

/* One convolution. Values are numbered: the chain's outer maps first, then what the steps give. */
typedef struct {
  const char* layout;
  const sparsify_conv_attributes* attributes;
  const sparsify_tensor* tensors;
  const float* bias; /* or null; must stay in place, like the tensors */
  int64_t input;     /* a value from before this step */
  int64_t residual;  /* the same, or -1 */
  int32_t tensor_count;
  int32_t activation; /* as in sparsify_run_options */
  float low, high;
} sparsify_chain_step;

/* kernel: a name of the kernel table, or null for SPARSIFY_KERNEL or else the best. */
SPARSIFY_API int32_t sparsify_conv_chain_create(const char* kernel, int64_t maps,
                                                const sparsify_chain_step* steps, int32_t count,
                                                sparsify_conv_chain** chain);
/* sizes [maps][2]: height and width of every outer map. out_size: of the result. bytes: what lies between the
   steps of one image. */
SPARSIFY_API int32_t sparsify_conv_chain_output_size(const sparsify_conv_chain* chain, const int64_t* sizes,
                                                     int64_t* out_size, int64_t* bytes);
SPARSIFY_API int32_t sparsify_conv_chain_run(const sparsify_conv_chain* chain, const float* const* maps,
                                             const int64_t* sizes, int64_t batch, int32_t threads, float* y);
SPARSIFY_API void sparsify_conv_chain_free(sparsify_conv_chain* chain);

#ifdef __cplusplus
}
#endif

#endif /* SPARSIFY_CAPI_CHAIN_H_ */
