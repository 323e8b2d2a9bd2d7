/* C ABI of the training kernels, for the operators in PyTorch. See capi.h for what status values mean. */
#ifndef SPARSIFY_CAPI_TRAIN_H_
#define SPARSIFY_CAPI_TRAIN_H_

#include "capi.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sparsify_train_linear sparsify_train_linear; /* a topology, and how its products run */
typedef struct sparsify_train_conv sparsify_train_conv;

/* Runs the tasks of every later call on the OpenMP pool that this function of it starts: GOMP_parallel, which
   GCC's, LLVM's and Intel's libraries have. Null goes back to threads of this library's own. The pool of the
   calling thread is the one that the rest of the process uses, so nobody waits for a core that another pool
   keeps busy. */
SPARSIFY_API void sparsify_train_use_openmp(void* gomp_parallel);

/* positions [count]: active ones of a weight [out, in], row * in + column, ascending. kernel: a name of the
   kernel table, or null for SPARSIFY_KERNEL or else the best. threads: as many as will mostly run it. */
SPARSIFY_API int32_t sparsify_train_linear_create(const char* kernel, int64_t out, int64_t in,
                                                  const int64_t* positions, int64_t count, int32_t threads,
                                                  sparsify_train_linear** linear);
SPARSIFY_API void sparsify_train_linear_free(sparsify_train_linear* linear);

/* values [count], in the layer's own order, from weight [out, in]. */
SPARSIFY_API int32_t sparsify_train_linear_gather(const sparsify_train_linear* linear, const float* weight,
                                                  float* values, int32_t threads);
/* y [batch, out] = x [batch, in] times the transposed weight, plus bias [out], which may be null. */
SPARSIFY_API int32_t sparsify_train_linear_forward(const sparsify_train_linear* linear, const float* x,
                                                   int64_t batch, const float* values, const float* bias,
                                                   float* y, int32_t threads);
/* dx [batch, in], dweight [out, in] (zero outside the active positions) and dbias [out], each null where it
   is not wanted; dbias only beside dweight. zeroed: dweight is zero outside the active positions already, so
   that only these are written. */
SPARSIFY_API int32_t sparsify_train_linear_backward(const sparsify_train_linear* linear, const float* x,
                                                    int64_t batch, const float* dy, const float* values,
                                                    float* dx, float* dweight, float* dbias, int32_t threads,
                                                    int32_t zeroed);

/* The same for convolutions of images [images, in_channels, height, width]. positions: of a weight
   [out_channels, in_channels * kernel height * kernel width]. */
SPARSIFY_API int32_t sparsify_train_conv_create(const char* kernel,
                                                const sparsify_conv_attributes* attributes,
                                                const int64_t* positions, int64_t count, int32_t threads,
                                                sparsify_train_conv** conv);
SPARSIFY_API void sparsify_train_conv_free(sparsify_train_conv* conv);
SPARSIFY_API int32_t sparsify_train_conv_gather(const sparsify_train_conv* conv, const float* weight,
                                                float* values, int32_t threads);
SPARSIFY_API int32_t sparsify_train_conv_forward(const sparsify_train_conv* conv, const float* x,
                                                 int64_t images, int64_t height, int64_t width,
                                                 const float* values, const float* bias, float* y,
                                                 int32_t threads);
SPARSIFY_API int32_t sparsify_train_conv_backward(const sparsify_train_conv* conv, const float* x,
                                                  int64_t images, int64_t height, int64_t width,
                                                  const float* dy, const float* values, float* dx,
                                                  float* dweight, float* dbias, int32_t threads,
                                                  int32_t zeroed);

#ifdef __cplusplus
}
#endif

#endif /* SPARSIFY_CAPI_TRAIN_H_ */
