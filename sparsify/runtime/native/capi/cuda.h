/* C ABI: what there is of CUDA here, for `sparsify doctor`. */
#ifndef SPARSIFY_CAPI_CUDA_H_
#define SPARSIFY_CAPI_CUDA_H_

#include "capi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How far the way to a kernel on the first device goes. */
enum {
  SPARSIFY_CUDA_READY = 0,
  SPARSIFY_CUDA_NO_DRIVER = 1,
  SPARSIFY_CUDA_NO_DEVICE = 2,
  SPARSIFY_CUDA_NO_KERNELS = 3 /* there are none, or they do not load */
};

typedef struct {
  int32_t stage;
  int32_t driver_version; /* 1000 * major + 10 * minor; 0 without a driver */
  int32_t devices;
  int32_t multiprocessors; /* of the first device */
  char device[128];        /* "NAME (sm_90)" */
  char kernels[512];       /* the file that is looked for */
  char message[1024];      /* why the way ends, or empty */
} sparsify_cuda_state;

SPARSIFY_API void sparsify_cuda_probe(sparsify_cuda_state* state);

#ifdef __cplusplus
}
#endif

#endif /* SPARSIFY_CAPI_CUDA_H_ */
