// The operators of domain ai.sparsify, version 1: y = activation(W x + bias + residual).
#ifndef SPARSIFY_ORT_OPERATORS_H_
#define SPARSIFY_ORT_OPERATORS_H_

#include <memory>
#include <string>
#include <vector>

#include "../kernels/api.h"
#include "custom_op.h"
#include "node.h"

namespace sparsify::ort {

// X [..., in_features] -> Y [..., out_features]
class SparseLinear {
 public:
  static constexpr const char* kName = "SparseLinear";
  static void InferShape(ShapeInference& shapes);
  explicit SparseLinear(const NodeInfo& node);
  void Compute(Context& context, const Settings& settings) const;

 private:
  std::string label_;
  Copies copies_;
  Epilogue ending_;              // the activation
  const float* bias_ = nullptr;  // where it is an initializer
  std::unique_ptr<LinearKernel> kernel_;
};

// X [N, in_channels, H, W] -> Y [N, out_channels, H', W']
class SparseConv {
 public:
  static constexpr const char* kName = "SparseConv";
  static void InferShape(ShapeInference& shapes);
  explicit SparseConv(const NodeInfo& node);
  void Compute(Context& context, const Settings& settings) const;

 private:
  std::string label_;
  Copies copies_;
  Epilogue ending_;              // the activation
  const float* bias_ = nullptr;  // where it is an initializer
  std::unique_ptr<ConvKernel> kernel_;
};

// The attributes of a SparseConv node; CreateConv checks them.
ConvAttributes ReadConvAttributes(const NodeInfo& node);

// Shape of a convolution's output during inference. Throws where X does not fit; `op` is for messages.
Dims InferConv(const std::string& op, const ConvAttributes& attributes, Dims dims);

// Shape of a linear node's output. Throws where X does not fit.
std::vector<int64_t> LinearOutput(const std::string& label, const std::vector<int64_t>& x_dims,
                                  const LinearAttributes& attributes);

// Throws where X is not [N, in_channels, H, W].
void CheckConvInput(const std::string& label, const std::vector<int64_t>& x_dims,
                    const ConvAttributes& attributes);

// Says that X is too small for a convolution's kernel, or too large.
[[noreturn]] void FailConvSize(const std::string& label, int64_t height, int64_t width);

// What is fused into one call: bias [out], the constant one or else the input, and residual (y's shape).
// Throws where a shape does not fit.
Epilogue ReadEpilogue(const Context& context, const std::string& label, const Epilogue& ending,
                      const float* constant_bias, int64_t out, const std::vector<int64_t>& y_dims);

}  // namespace sparsify::ort

#endif  // SPARSIFY_ORT_OPERATORS_H_
