// Nodes for CUDAExecutionProvider on the stub driver, called through OrtCustomOp as ONNX Runtime does.
#ifndef SPARSIFY_TESTS_NATIVE_CUDA_NODES_H_
#define SPARSIFY_TESTS_NATIVE_CUDA_NODES_H_

#include <dlfcn.h>

#include <memory>
#include <string>
#include <vector>

#include "cuda_stub.h"
#include "fake_ort.h"
#include "reference.h"
#include "weights.h"

extern "C" sparsify::ort::OrtStatus* RegisterCustomOps(sparsify::ort::OrtSessionOptions*,
                                                       const sparsify::ort::OrtApiBase*);

namespace sparsify_tests {

using namespace sparsify::ort;

// The stub driver, which the library opens by the same file name.
class Stub {
 public:
  static Stub& The() {
    static Stub* stub = new Stub;
    return *stub;
  }

  template <typename Pointer>
  Pointer Find(const char* name) const {
    void* symbol = dlsym(library_, name);
    if (symbol == nullptr) Die(std::string("the stub driver lacks ") + name);
    return reinterpret_cast<Pointer>(symbol);
  }

  size_t Launches() const { return Find<decltype(&stub_launches)>("stub_launches")(); }
  const cuda_stub::Launch& Last() const {
    return *Find<decltype(&stub_launch)>("stub_launch")(Launches() - 1);
  }
  cuda_stub::Counts Counts() const { return Find<decltype(&stub_counts)>("stub_counts")(); }
  void Fail(const char* function, int result) const {
    Find<decltype(&stub_fail)>("stub_fail")(function, result);
  }
  bool GuardsIntact() const { return Find<decltype(&stub_guards_intact)>("stub_guards_intact")(); }

  // Memory of the device, as ONNX Runtime would get it.
  void* Allocate(size_t bytes) const {
    uint64_t address = 0;
    push_(nullptr);
    if (allocate_(&address, bytes) != 0) Die("the stub driver has no memory");
    void* context = nullptr;
    pop_(&context);
    return reinterpret_cast<void*>(address);
  }
  void Free(void* memory) const { free_(reinterpret_cast<uint64_t>(memory)); }

 private:
  Stub() {
    const char* file = std::getenv("SPARSIFY_CUDA_DRIVER");
    library_ = file == nullptr ? nullptr : dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) Die("SPARSIFY_CUDA_DRIVER must name the stub driver");
    push_ = Find<int (*)(void*)>("cuCtxPushCurrent_v2");
    pop_ = Find<int (*)(void**)>("cuCtxPopCurrent_v2");
    allocate_ = Find<int (*)(uint64_t*, size_t)>("cuMemAlloc_v2");
    free_ = Find<int (*)(uint64_t)>("cuMemFree_v2");
  }

  void* library_;
  int (*push_)(void*);
  int (*pop_)(void**);
  int (*allocate_)(uint64_t*, size_t);
  int (*free_)(uint64_t);
};

// A copy of an array in the device's memory; freed with the object.
class OnDevice {
 public:
  OnDevice(const void* data, size_t bytes) : memory_(Stub::The().Allocate(bytes)) {
    std::memcpy(memory_, data, bytes);
  }
  explicit OnDevice(const std::vector<float>& values)
      : OnDevice(values.data(), values.size() * sizeof(float)) {}
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { Stub::The().Free(memory_); }
  void* data() const { return memory_; }

  OrtValue Value(const std::vector<int64_t>& dims, int32_t type = kFloat) const {
    OrtValue value;
    value.shape.type = type;
    value.shape.dims = dims;
    value.data = memory_;
    value.memory = {kDeviceGpu, 0};
    return value;
  }

 private:
  void* memory_;
};

enum class Place { kHost, kDevice };

// A node's attributes and constants; packed tensors behind the header are where `place` says.
struct Node {
  std::string op;
  OrtKernelInfo info;
  std::vector<std::unique_ptr<OnDevice>> memory;

  Node(const std::string& kind, const PackedWeight& packed, Place place) : op(kind) {
    info.inputs.resize(3);
    info.strings = {{"layout", packed.layout}, {"activation", "none"}};
    for (size_t i = 0; i < packed.tensors.size(); ++i)
      AddConstant(packed.tensors[i], i > 0 ? place : Place::kHost);
  }

  void AddConstant(const sparsify_tensor& tensor, Place place) {
    OrtValue value;
    value.shape.type = tensor.type;
    value.shape.dims = {tensor.size};
    value.data = const_cast<void*>(tensor.data);
    if (place == Place::kDevice) {
      const auto bytes = static_cast<size_t>(tensor.size * ElementBytes(tensor.type));
      memory.push_back(std::make_unique<OnDevice>(tensor.data, bytes));
      value = memory.back()->Value({tensor.size}, tensor.type);
    }
    info.inputs.push_back(value);
  }

  void SetEnding(const Ends& ends) {
    static const char* const names[] = {"none", "relu", "gelu", "gelu_tanh", "silu", "clip"};
    info.strings["activation"] = names[ends.activation];
    info.floats = {{"clip_min", ends.low}, {"clip_max", ends.high}};
  }

  static Node Linear(const PackedWeight& packed, Place place) {
    Node node("SparseLinear", packed, place);
    node.info.numbers = {{"out_features", {packed.rows}}, {"in_features", {packed.columns}}};
    return node;
  }

  static Node Conv(const PackedWeight& packed, const sparsify_conv_attributes& a, Place place) {
    Node node("SparseConv", packed, place);
    node.info.numbers = {{"out_channels", {a.out_channels}},
                         {"in_channels", {a.in_channels}},
                         {"kernel_shape", {a.kernel[0], a.kernel[1]}},
                         {"strides", {a.strides[0], a.strides[1]}},
                         {"pads", {a.pads[0], a.pads[1], a.pads[2], a.pads[3]}},
                         {"dilations", {a.dilations[0], a.dilations[1]}}};
    return node;
  }
};

// The message of a status, which is released; empty for success.
inline std::string Message(OrtStatus* status) {
  const std::string text = status == nullptr ? "" : status->message;
  delete status;
  return text;
}

// The operators of a session with these entries in its configuration.
using Entries = std::map<std::string, std::string>;
inline const std::vector<const OrtCustomOp*>& Operators(const Entries& entries = {}) {
  OrtSessionOptions options;
  options.entries = entries;
  const std::string failure = Message(RegisterCustomOps(&options, fake_ort::Base()));
  if (!failure.empty()) Die(failure);
  return options.domains.at(0)->operators;
}

inline const OrtCustomOp* CudaOperator(const std::string& name, const Entries& entries = {}) {
  for (const OrtCustomOp* op : Operators(entries)) {
    if (op->GetName(op) == name && std::string(op->GetExecutionProviderType(op)) == "CUDAExecutionProvider")
      return op;
  }
  Die("there is no CUDA operator " + name);
}

// A kernel of a node, made as ONNX Runtime does. `failure` says why there is none.
class NodeKernel {
 public:
  // The node's constants must outlive the kernel, as a session's do: a temporary node is kept.
  explicit NodeKernel(const Node& node, const Entries& entries = {}) : op_(CudaOperator(node.op, entries)) {
    failure = Message(op_->CreateKernelV2(op_, fake_ort::Api(), &node.info, &kernel_));
  }
  explicit NodeKernel(Node&& node)
      : kept_(std::make_unique<Node>(std::move(node))), op_(CudaOperator(kept_->op)) {
    failure = Message(op_->CreateKernelV2(op_, fake_ort::Api(), &kept_->info, &kernel_));
  }
  NodeKernel(const NodeKernel&) = delete;
  NodeKernel& operator=(const NodeKernel&) = delete;
  ~NodeKernel() {
    if (kernel_ != nullptr) op_->KernelDestroy(kernel_);
  }

  // X, bias and residual as the run's inputs; what went wrong, or nothing.
  std::string Run(const std::vector<const OrtValue*>& inputs, void* stream) {
    output.reset();
    OrtKernelContext context;
    context.inputs = inputs;
    context.stream = stream;
    context.allocate = [this](size_t floats) {
      output = std::make_unique<OnDevice>(std::vector<float>(floats, NAN));
      return output->data();
    };
    const std::string problem = Message(op_->KernelComputeV2(kernel_, &context));
    shape = context.output.shape.dims;
    return problem;
  }

  const float* y() const { return static_cast<const float*>(output->data()); }

  std::string failure;
  std::vector<int64_t> shape;
  std::unique_ptr<OnDevice> output;

 private:
  std::unique_ptr<Node> kept_;
  const OrtCustomOp* op_;
  void* kernel_ = nullptr;
};

}  // namespace sparsify_tests

#endif  // SPARSIFY_TESTS_NATIVE_CUDA_NODES_H_
