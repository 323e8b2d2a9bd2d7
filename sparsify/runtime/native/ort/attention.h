// Attention of domain ai.sparsify, version 1.
#ifndef SPARSIFY_ORT_ATTENTION_H_
#define SPARSIFY_ORT_ATTENTION_H_

#include <memory>
#include <string>

#include "../kernels/attention/attention.h"
#include "custom_op.h"
#include "node.h"

namespace sparsify::ort {

// Q [B, S, heads * D], K [B, T, kv_heads * D], V [B, T, kv_heads * E], bias? broadcasting to [B, heads, S, T]
// -> Y [B, S, heads * E]
class Attention {
 public:
  static constexpr const char* kName = "Attention";
  static constexpr size_t kQ = 0, kK = 1, kV = 2, kAddedBias = 3;
  static void InferShape(ShapeInference& shapes);
  explicit Attention(const NodeInfo& node);
  void Compute(Context& context, const Settings& settings) const;

 private:
  attention::Sizes ReadSizes(const Tensor& q, const Tensor& k, const Tensor& v) const;
  void ReadBias(const Tensor& bias, const attention::Sizes& sizes, attention::Operands* operands) const;

  std::string label_;
  std::unique_ptr<attention::Kernel> kernel_;
};

class AttentionOp : public CustomOp<Attention> {
 public:
  AttentionOp(const OrtApi& api, const Settings& settings) : CustomOp<Attention>(api, settings) {
    GetInputTypeCount = [](const OrtCustomOp*) { return Attention::kAddedBias + 1; };
    GetInputType = [](const OrtCustomOp*, size_t) { return kFloat; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
      return index < Attention::kAddedBias ? kRequired : kOptional;
    };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  }
};

}  // namespace sparsify::ort

#endif  // SPARSIFY_ORT_ATTENTION_H_
