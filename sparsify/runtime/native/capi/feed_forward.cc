#include "feed_forward.h"

#include <memory>
#include <string>
#include <vector>

#include "../kernels/api.h"
#include "convert.h"
#include "error.h"

using sparsify::Epilogue;
using sparsify::FeedForwardKernel;
using sparsify::ParallelFor;
using sparsify::capi::Convert;
using sparsify::capi::Fail;
using sparsify::capi::Guard;

struct sparsify_feed_forward {
  std::unique_ptr<FeedForwardKernel> kernel;
};

extern "C" {

int32_t sparsify_feed_forward_create(const char* kernel, const int64_t* sizes, const char* first_layout,
                                     const sparsify_tensor* first, int32_t first_count,
                                     const char* second_layout, const sparsify_tensor* second,
                                     int32_t second_count, sparsify_feed_forward** result) {
  return Guard([&] {
    const auto a = Convert(first, first_count), b = Convert(second, second_count);
    auto made = std::make_unique<sparsify_feed_forward>();
    std::string error;
    made->kernel =
        sparsify::CreateFeedForward(kernel, {first_layout, {sizes[1], sizes[0]}, a.data(), a.size()},
                                    {second_layout, {sizes[2], sizes[1]}, b.data(), b.size()}, &error);
    if (made->kernel == nullptr) return Fail(error);
    *result = made.release();
    return 0;
  });
}

int32_t sparsify_feed_forward_run(const sparsify_feed_forward* layers, const float* x, int64_t rows,
                                  const sparsify_run_options* first, const sparsify_run_options* second,
                                  float* y) {
  return Guard([&] {
    Epilogue endings[2];
    ParallelFor parallel;
    if (!Convert(first, &endings[0], &parallel) || !Convert(second, &endings[1], &parallel) || rows < 0 ||
        first->residual != nullptr) {
      return Fail("bad run options");
    }
    const std::unique_ptr<unsigned char[]> scratch(
        new unsigned char[layers->kernel->ScratchBytes(rows, parallel.threads)]);
    layers->kernel->Run(x, rows, endings[0], endings[1], y, parallel, scratch.get());
    return 0;
  });
}

void sparsify_feed_forward_free(sparsify_feed_forward* layers) { delete layers; }

}  // extern "C"
