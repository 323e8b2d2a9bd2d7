// From the C ABI's structures to the kernels' own.
#ifndef SPARSIFY_CAPI_CONVERT_H_
#define SPARSIFY_CAPI_CONVERT_H_

#include <thread>
#include <vector>

#include "../kernels/api.h"
#include "capi.h"

namespace sparsify {
namespace capi {

inline std::vector<PackedTensor> Convert(const sparsify_tensor* tensors, int32_t count) {
  std::vector<PackedTensor> converted;
  if (tensors == nullptr) return converted;
  for (int32_t i = 0; i < count; ++i) {
    converted.push_back({tensors[i].data, static_cast<ElementType>(tensors[i].type), tensors[i].size});
  }
  return converted;
}

inline ConvAttributes Convert(const sparsify_conv_attributes& attributes) {
  ConvAttributes a;
  a.out_channels = attributes.out_channels;
  a.in_channels = attributes.in_channels;
  for (int i = 0; i < 2; ++i) {
    a.kernel[i] = attributes.kernel[i];
    a.strides[i] = attributes.strides[i];
    a.dilations[i] = attributes.dilations[i];
  }
  for (int i = 0; i < 4; ++i) a.pads[i] = attributes.pads[i];
  return a;
}

// Plain threads: good enough for tests and tuning, where no session's pool exists.
inline void RunThreads(void*, size_t count, void (*task)(void*, size_t), void* argument) {
  std::vector<std::thread> threads;
  for (size_t i = 1; i < count; ++i) threads.emplace_back(task, argument, i);
  task(argument, 0);
  for (std::thread& thread : threads) thread.join();
}

inline bool Convert(const sparsify_run_options* options, Epilogue* epilogue, ParallelFor* parallel) {
  if (options->activation < 0 || options->activation >= kActivations || options->threads < 1) return false;
  epilogue->bias = options->bias;
  epilogue->residual = options->residual;
  epilogue->activation = static_cast<Activation>(options->activation);
  epilogue->low = options->low;
  epilogue->high = options->high;
  parallel->run = &RunThreads;
  parallel->threads = options->threads;
  return true;
}

}  // namespace capi
}  // namespace sparsify

#endif  // SPARSIFY_CAPI_CONVERT_H_
