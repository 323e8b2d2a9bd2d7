// Two sparse linear layers as one node of domain ai.sparsify, version 1.
#ifndef SPARSIFY_ORT_FEED_FORWARD_H_
#define SPARSIFY_ORT_FEED_FORWARD_H_

#include <memory>
#include <string>

#include "custom_op.h"
#include "node.h"

namespace sparsify::ort {

// X [..., in_features], residual? [..., out_features] -> Y [..., out_features]:
//   Y = activation(W2 hidden_activation(W1 X + b1) + b2 + residual)
// Behind X and the residual come, for each layer, its bias where it has one and its packed tensors.
class SparseFeedForward {
 public:
  static constexpr const char* kName = "SparseFeedForward";
  static constexpr size_t kResidualInput = 1;
  static constexpr size_t kConstants = 2;
  static void InferShape(ShapeInference& shapes);
  explicit SparseFeedForward(const NodeInfo& node);
  void Compute(Context& context, const Settings& settings) const;

 private:
  std::string label_;
  Copies copies_;
  Epilogue first_, second_;  // without the residual
  std::unique_ptr<FeedForwardKernel> kernel_;
};

class SparseFeedForwardOp : public CustomOp<SparseFeedForward> {
 public:
  SparseFeedForwardOp(const OrtApi& api, const Settings& settings)
      : CustomOp<SparseFeedForward>(api, settings) {
    GetInputTypeCount = [](const OrtCustomOp*) { return SparseFeedForward::kConstants + 1; };
    GetInputType = [](const OrtCustomOp*, size_t index) {
      return index < SparseFeedForward::kConstants ? kFloat : kUndefined;
    };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
      return index == kX ? kRequired : index < SparseFeedForward::kConstants ? kOptional : kVariadic;
    };
  }
};

}  // namespace sparsify::ort

#endif  // SPARSIFY_ORT_FEED_FORWARD_H_
