// What the stub driver tells the tests about itself, beside the driver's own functions.
#ifndef SPARSIFY_TESTS_NATIVE_CUDA_STUB_H_
#define SPARSIFY_TESTS_NATIVE_CUDA_STUB_H_

#include <cstddef>
#include <cstdint>

#include "cuda/arguments.h"

namespace cuda_stub {

struct Launch {
  const char* kernel;
  unsigned grid[3], block[3], shared_bytes;
  const void* stream;
  bool convolution;
  sparsify::cuda::LinearArguments linear;  // or
  sparsify::cuda::ConvArguments conv;
};

struct Counts {
  int64_t allocations, frees, to_device, to_host, contexts;  // contexts: entered and not left
};

}  // namespace cuda_stub

extern "C" {
// The launches since the last call of stub_forget.
size_t stub_launches();
const cuda_stub::Launch* stub_launch(size_t index);
void stub_forget();
cuda_stub::Counts stub_counts();
// The named function returns this result from now on; 0 makes it work again.
void stub_fail(const char* function, int result);
// Nothing has been written beside any allocation.
bool stub_guards_intact();
}

#endif  // SPARSIFY_TESTS_NATIVE_CUDA_STUB_H_
