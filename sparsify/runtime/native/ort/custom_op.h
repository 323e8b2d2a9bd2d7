// Fills OrtCustomOp's table of functions for an operator class Node, which has
//   static constexpr const char* kName;
//   static void InferShape(ShapeInference& shapes);
//   Node(const NodeInfo& node);                          one kernel; throws for a bad node
//   void Compute(Context& context, const Settings& settings) const;   safe from several threads at once
#ifndef SPARSIFY_ORT_CUSTOM_OP_H_
#define SPARSIFY_ORT_CUSTOM_OP_H_

#include <memory>
#include <string>

#include "../cuda/precision.h"
#include "abi.h"
#include "node.h"

namespace sparsify::ort {

struct Settings {
  int threads = 1;                        // of the session, as far as known
  const OrtMemoryInfo* memory = nullptr;  // CPU memory from the session's arena
  bool infers_shapes = false;             // whether this ONNX Runtime survives absent inputs in inference
  cuda::Precision precision = cuda::Precision::kFloat32;  // of products on tensor cores
  std::string precision_problem;                          // why that is not what was asked for, or empty
};

template <typename Node>
class CustomOp : public OrtCustomOp {
 public:
  CustomOp(const OrtApi& api, const Settings& settings) : OrtCustomOp{}, api_(api), settings_(settings) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Node::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
    GetInputTypeCount = [](const OrtCustomOp*) { return kPacked + 1; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return index < kPacked ? kFloat : kUndefined; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
      return index == kX ? kRequired : index < kPacked ? kOptional : kVariadic;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return kMemTypeDefault; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return kFloat; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return kRequired; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = &CustomOp::Create;
    KernelComputeV2 = &CustomOp::Compute;
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    if (settings.infers_shapes) InferOutputShapeFn = &CustomOp::InferShape;
  }

 protected:
  static OrtStatus* SPARSIFY_ORT_CALL Create(const OrtCustomOp* self, const OrtApi* api,
                                             const OrtKernelInfo* info, void** kernel) {
    const auto& op = *static_cast<const CustomOp*>(self);
    return Guard(*api, [&] { *kernel = new Kernel{op, Node(NodeInfo(*api, info, Node::kName))}; });
  }
  const Settings& settings() const { return settings_; }

 private:
  struct Kernel {
    const CustomOp& op;
    Node node;
  };

  static OrtStatus* SPARSIFY_ORT_CALL Compute(void* self, OrtKernelContext* raw) {
    const auto& kernel = *static_cast<const Kernel*>(self);
    return Guard(kernel.op.api_, [&] {
      Context context(kernel.op.api_, raw);
      kernel.node.Compute(context, kernel.op.settings_);
      context.Finish();
    });
  }

  static OrtStatus* SPARSIFY_ORT_CALL InferShape(const OrtCustomOp* self, OrtShapeInferContext* raw) {
    const OrtApi& api = static_cast<const CustomOp*>(self)->api_;
    return Guard(api, [&] {
      ShapeInference shapes(api, raw);
      Node::InferShape(shapes);
    });
  }

  const OrtApi& api_;
  const Settings settings_;
};

}  // namespace sparsify::ort

#endif  // SPARSIFY_ORT_CUSTOM_OP_H_
