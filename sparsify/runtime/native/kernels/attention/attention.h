// Scaled dot-product attention between projections: softmax(scale * q k^T + bias) v, head by head, without
// moving q, k, v or the result out of the form [batch, length, heads * size] that projections have.
#ifndef SPARSIFY_KERNELS_ATTENTION_ATTENTION_H_
#define SPARSIFY_KERNELS_ATTENTION_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "../api.h"

namespace sparsify {
namespace attention {

struct Attributes {
  int64_t heads = 0;
  int64_t kv_heads = 0;  // of k and v: a divisor of heads, each serving as many neighbours
  float scale = 1.0f;
  bool causal = false;     // query i sees the keys up to i
  bool nan_guard = false;  // a query without a valid probability gives zeros instead of NaN
};

struct Sizes {
  int64_t batch = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t key_size = 0;    // of a head of q and k
  int64_t value_size = 0;  // of a head of v
};

struct Operands {
  const float* q = nullptr;  // [batch, queries, heads * key_size]
  const float* k = nullptr;  // [batch, keys, kv_heads * key_size]
  const float* v = nullptr;  // [batch, keys, kv_heads * value_size]
  // Element (b, h, i, j) of what is added to the scores is bias[b * strides[0] + ... + j * strides[3]]; a
  // stride of 0 repeats it, the last is 0 or 1. Null where nothing is added.
  const float* bias = nullptr;
  int64_t bias_strides[4] = {0, 0, 0, 0};
  float* y = nullptr;  // [batch, queries, heads * value_size]; overlaps nothing
};

// Strides of a bias of this shape, which broadcasts to [batch, heads, queries, keys]; false where it does
// not.
bool BiasStrides(const int64_t shape[4], const Attributes& attributes, const Sizes& sizes,
                 int64_t strides[4]);

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual const Attributes& attributes() const = 0;
  virtual size_t ScratchBytes(const Sizes& sizes, int threads) const = 0;
  // `scratch` holds ScratchBytes(sizes, parallel.threads) bytes at any alignment. Safe from several threads,
  // each with scratch memory of its own.
  virtual void Run(const Sizes& sizes, const Operands& operands, const ParallelFor& parallel,
                   void* scratch) const = 0;
};

// `kernel` names an instruction set or is null, as for CreateLinear. Null and a sentence in *error for an
// unknown one, or attributes that make no sense.
std::unique_ptr<Kernel> Create(const char* kernel, const Attributes& attributes, std::string* error);

}  // namespace attention
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_ATTENTION_ATTENTION_H_
