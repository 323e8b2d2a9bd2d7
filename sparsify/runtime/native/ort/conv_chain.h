// Several sparse convolutions as one node of domain ai.sparsify, version 1.
#ifndef SPARSIFY_ORT_CONV_CHAIN_H_
#define SPARSIFY_ORT_CONV_CHAIN_H_

#include <memory>
#include <string>
#include <vector>

#include "../kernels/chain/chain.h"
#include "custom_op.h"
#include "node.h"

namespace sparsify::ort {

// Inputs: `maps` outer maps [N, C, H, W], then for every step its bias [out] where it has one and its packed
// tensors. Attributes hold one entry (or 2, or 4) a step, names and kinds one a line. Output: what the last
// step gives.
class SparseConvChain {
 public:
  static constexpr const char* kName = "SparseConvChain";
  static constexpr int64_t kMostSteps = 4096;
  static void InferShape(ShapeInference& shapes);
  explicit SparseConvChain(const NodeInfo& node);
  void Compute(Context& context, const Settings& settings) const;

 private:
  std::string label_;
  Copies copies_;
  std::unique_ptr<chain::ConvChain> chain_;
};

class SparseConvChainOp : public CustomOp<SparseConvChain> {
 public:
  SparseConvChainOp(const OrtApi& api, const Settings& settings) : CustomOp<SparseConvChain>(api, settings) {
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return index == kX ? kFloat : kUndefined; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
      return index == kX ? kRequired : kVariadic;
    };
  }
};

}  // namespace sparsify::ort

#endif  // SPARSIFY_ORT_CONV_CHAIN_H_
