// The operators of domain ai.sparsify for CUDAExecutionProvider: the same schema, shapes, attributes and
// checks as on the CPU; products on the device.
#ifndef SPARSIFY_ORT_CUDA_OPERATORS_H_
#define SPARSIFY_ORT_CUDA_OPERATORS_H_

#include <memory>
#include <string>
#include <vector>

#include "../cuda/products.h"
#include "custom_op.h"
#include "node.h"
#include "operators.h"

namespace sparsify::ort {

template <typename Node>
class CudaOp : public CustomOp<Node> {
 public:
  CudaOp(const OrtApi& api, const Settings& settings) : CustomOp<Node>(api, settings) {
    this->GetExecutionProviderType = [](const OrtCustomOp*) { return "CUDAExecutionProvider"; };
    // Counts for the first packed tensor, the header, alone: ONNX Runtime copies the others to the device,
    // which is where the kernels read them.
    this->GetInputMemoryType = [](const OrtCustomOp*, size_t index) {
      return index < kPacked ? kMemTypeDefault : kMemTypeCpuInput;
    };
    this->CreateKernelV2 = &CudaOp::Create;
  }

 private:
  // Precision is of no interest to a session without such nodes, so a wrong one is said here.
  static OrtStatus* SPARSIFY_ORT_CALL Create(const OrtCustomOp* self, const OrtApi* api,
                                             const OrtKernelInfo* info, void** kernel) {
    const std::string& problem = static_cast<const CudaOp*>(self)->settings().precision_problem;
    if (problem.empty()) return CustomOp<Node>::Create(self, api, info, kernel);
    return Guard(*api, [&] { NodeInfo(*api, info, Node::kName).Fail(problem); });
  }
};

// A node's constants for a device: checked on the host, left in place where ONNX Runtime has brought them to
// the device, else copied there.
class CudaWeights {
 public:
  CudaWeights(const NodeInfo& node, const std::string& layout, int64_t rows, int64_t columns);

  const cuda::Device& device() const { return *device_; }
  const csr::Matrix& matrix() const { return matrix_; }  // its pointers are only good for checking
  const cuda::WeightAddresses& addresses() const { return addresses_; }
  // The constant bias, [rows], on the device; null where it is absent or computed.
  const float* bias() const { return bias_; }

 private:
  const void* OnDevice(const NodeInfo& node, size_t input, const void* data, size_t bytes);

  const cuda::Device* device_ = nullptr;
  csr::Matrix matrix_;
  cuda::WeightAddresses addresses_;
  const float* bias_ = nullptr;
  std::vector<std::unique_ptr<cuda::Buffer>> buffers_;
};

class CudaSparseLinear {
 public:
  static constexpr const char* kName = SparseLinear::kName;
  static void InferShape(ShapeInference& shapes) { SparseLinear::InferShape(shapes); }
  explicit CudaSparseLinear(const NodeInfo& node);
  void Compute(Context& context, const Settings& settings) const;

 private:
  std::string label_;
  LinearAttributes attributes_;
  Epilogue ending_;  // the activation
  std::unique_ptr<CudaWeights> weights_;
  std::unique_ptr<cuda::Linear> product_;
};

class CudaSparseConv {
 public:
  static constexpr const char* kName = SparseConv::kName;
  static void InferShape(ShapeInference& shapes) { SparseConv::InferShape(shapes); }
  explicit CudaSparseConv(const NodeInfo& node);
  void Compute(Context& context, const Settings& settings) const;

 private:
  std::string label_;
  ConvAttributes attributes_;
  Epilogue ending_;  // the activation
  std::unique_ptr<CudaWeights> weights_;
  std::unique_ptr<cuda::Conv> product_;
};

}  // namespace sparsify::ort

#endif  // SPARSIFY_ORT_CUDA_OPERATORS_H_
