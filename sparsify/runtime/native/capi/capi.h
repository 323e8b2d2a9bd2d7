/* C ABI of the native library for Python (ctypes): packing, unpacking, validation, and runs for tests.
 *
 * Functions that can fail return 0 on success; sparsify_last_error then describes the failure of the calling
 * thread's latest call. Element types are ONNX's numbers (1 float, 2 uint8, 4 uint16, 6 int32). */
#ifndef SPARSIFY_CAPI_CAPI_H_
#define SPARSIFY_CAPI_CAPI_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define SPARSIFY_API __declspec(dllexport)
#else
#define SPARSIFY_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sparsify_packed sparsify_packed; /* the packed tensors of one weight */
typedef struct sparsify_linear sparsify_linear; /* a linear kernel */
typedef struct sparsify_conv sparsify_conv;     /* a convolution kernel */

typedef struct {
  const void* data;
  int32_t type;
  int32_t reserved;
  int64_t size; /* elements */
} sparsify_tensor;

typedef struct {
  int64_t out_channels, in_channels;
  int64_t kernel[2], strides[2], pads[4], dilations[2];
} sparsify_conv_attributes;

typedef struct {
  const float* bias;
  const float* residual;
  int32_t activation; /* 0 none, 1 relu, 2 gelu, 3 gelu_tanh, 4 silu, 5 clip */
  int32_t threads;
  float low, high; /* of clip */
} sparsify_run_options;

SPARSIFY_API int32_t sparsify_abi_version(void);
SPARSIFY_API const char* sparsify_last_error(void);
SPARSIFY_API const char* sparsify_cpu_flags(void); /* space-separated */
/* What kernels suit themselves to: SPARSIFY_TUNE_FOR or this CPU; bytes of a core's data cache of level 1 or
   2; whether it looks far ahead by itself. */
SPARSIFY_API const char* sparsify_tuning(void);
SPARSIFY_API int64_t sparsify_tuned_cache(int32_t level);
SPARSIFY_API int32_t sparsify_tuned_deep(void);
/* Cores among logical processors, told apart by what a folder like /sys/devices/system/cpu says, 0 where it
   does not; and those that this process may run on, which a session is taken to have threads for. */
SPARSIFY_API int32_t sparsify_count_cores(const char* folder, const int32_t* processors, int32_t count);
SPARSIFY_API int32_t sparsify_available_cores(void);
SPARSIFY_API int32_t sparsify_kernel_count(void);
SPARSIFY_API const char* sparsify_kernel_name(int32_t index);
SPARSIFY_API int32_t sparsify_kernel_supported(int32_t index);

/* weight [out, in], row-major; zeros are dropped. A convolution packs as [out, in * kh * kw]. Values are
   stored as float32 (0), bfloat16 (1) or float16 (2). */
SPARSIFY_API int32_t sparsify_pack(const char* layout, const float* weight, int64_t out, int64_t in,
                                   int32_t value_type, sparsify_packed** packed);
SPARSIFY_API int32_t sparsify_packed_count(const sparsify_packed* packed);
SPARSIFY_API sparsify_tensor sparsify_packed_tensor(const sparsify_packed* packed, int32_t index);
SPARSIFY_API void sparsify_packed_free(sparsify_packed* packed);
/* Checks the tensors and writes the dense weight [out, in]; weight may be null to check only. */
SPARSIFY_API int32_t sparsify_unpack(const char* layout, const sparsify_tensor* tensors, int32_t count,
                                     int64_t out, int64_t in, float* weight);

/* kernel: a name of the kernel table, or null for SPARSIFY_KERNEL or else the best. */
SPARSIFY_API int32_t sparsify_linear_create(const char* layout, const char* kernel, int64_t out, int64_t in,
                                            const sparsify_tensor* tensors, int32_t count,
                                            sparsify_linear** linear);
SPARSIFY_API int32_t sparsify_linear_run(const sparsify_linear* linear, const float* x, int64_t rows,
                                         const sparsify_run_options* options, float* y);
SPARSIFY_API void sparsify_linear_free(sparsify_linear* linear);

SPARSIFY_API int32_t sparsify_conv_create(const char* layout, const char* kernel,
                                          const sparsify_conv_attributes* attributes,
                                          const sparsify_tensor* tensors, int32_t count,
                                          sparsify_conv** conv);
SPARSIFY_API int32_t sparsify_conv_output_size(const sparsify_conv* conv, int64_t height, int64_t width,
                                               int64_t* out_height, int64_t* out_width);
SPARSIFY_API int32_t sparsify_conv_run(const sparsify_conv* conv, const float* x, int64_t batch,
                                       int64_t height, int64_t width, const sparsify_run_options* options,
                                       float* y);
SPARSIFY_API void sparsify_conv_free(sparsify_conv* conv);

#ifdef __cplusplus
}
#endif

#endif /* SPARSIFY_CAPI_CAPI_H_ */
