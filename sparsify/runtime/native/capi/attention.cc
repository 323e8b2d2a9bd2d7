#include "attention.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/attention/attention.h"
#include "error.h"

using sparsify::ParallelFor;
using sparsify::capi::Fail;
using sparsify::capi::Guard;

namespace {

void RunThreads(void*, size_t count, void (*task)(void*, size_t), void* argument) {
  std::vector<std::thread> threads;
  for (size_t i = 1; i < count; ++i) threads.emplace_back(task, argument, i);
  task(argument, 0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

extern "C" int32_t sparsify_attention_run(const char* kernel, const sparsify_attention_call* call,
                                          const float* q, const float* k, const float* v, const float* bias,
                                          float* y) {
  return Guard([&] {
    if (call == nullptr || call->threads < 1) return Fail("attention needs at least one thread");
    const int64_t sizes_given[5] = {call->batch, call->queries, call->keys, call->key_size, call->value_size};
    for (const int64_t size : sizes_given) {
      if (size < 0) return Fail("attention has no negative sizes");
    }
    const sparsify::attention::Attributes attributes = {call->heads, call->kv_heads, call->scale,
                                                        call->causal != 0, call->nan_guard != 0};
    const sparsify::attention::Sizes sizes = {call->batch, call->queries, call->keys, call->key_size,
                                              call->value_size};
    std::string error;
    const auto made = sparsify::attention::Create(kernel, attributes, &error);
    if (made == nullptr) return Fail(error);
    sparsify::attention::Operands operands = {q, k, v, bias, {}, y};
    if (bias != nullptr &&
        !sparsify::attention::BiasStrides(call->bias_shape, attributes, sizes, operands.bias_strides)) {
      return Fail("the bias does not broadcast to [batch, heads, queries, keys]");
    }
    const std::unique_ptr<unsigned char[]> scratch(
        new unsigned char[made->ScratchBytes(sizes, call->threads)]);
    ParallelFor parallel;
    parallel.run = &RunThreads;
    parallel.threads = call->threads;
    made->Run(sizes, operands, parallel, scratch.get());
    return 0;
  });
}
