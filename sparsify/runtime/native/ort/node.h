// What an operator sees of ONNX Runtime: its node when a kernel is created, its tensors when it runs, and the
// shapes around it during shape inference. Everything here throws Error; Guard turns that into a status, so
// that no exception crosses the ABI.
#ifndef SPARSIFY_ORT_NODE_H_
#define SPARSIFY_ORT_NODE_H_

#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/api.h"
#include "abi.h"

namespace sparsify::ort {

// Inputs of both operators: X, bias?, residual?, packed tensors...
inline constexpr size_t kX = 0;
inline constexpr size_t kBias = 1;
inline constexpr size_t kResidual = 2;
inline constexpr size_t kPacked = 3;

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws the status' message, if there is one, and releases it.
void Check(const OrtApi& api, OrtStatus* status);

template <typename Body>
OrtStatus* Guard(const OrtApi& api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return api.CreateStatus(kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(kFail, error.what());
  } catch (...) {
    return api.CreateStatus(kFail, "unknown exception in the sparse operators");
  }
}

// A shape during inference: every dimension has a value, a symbol, or (unknown) neither: -1 and "".
struct Dims {
  std::vector<int64_t> values;
  std::vector<std::string> symbols;
};

std::string ToString(const std::vector<int64_t>& dims);
int64_t Product(const std::vector<int64_t>& values, size_t begin, size_t end);

// Bytes of an element of a type that kernels take; 1 for any other.
size_t ElementBytes(ElementType type);

// Copies of constants that lie where their type must not: external data is mapped at any offset of its file.
using Copies = std::vector<std::unique_ptr<unsigned char[]>>;

// The node of a kernel that is being created.
class NodeInfo {
 public:
  NodeInfo(const OrtApi& api, const OrtKernelInfo* info, const char* op);

  const std::string& label() const { return label_; }  // "SparseLinear node 'name'", for messages
  int64_t Int(const char* name) const;
  std::vector<int64_t> Ints(const char* name, size_t count) const;
  std::string String(const char* name) const;
  float Float(const char* name) const;
  std::vector<float> Floats(const char* name, size_t count) const;
  // The activation and its bounds, from attributes of these names after `prefix`; no bias and no residual.
  Epilogue ReadActivation(const std::string& prefix = "") const;
  // The activation of a name; throws for one that is unknown.
  Activation ActivationOf(const std::string& name) const;
  size_t InputCount() const;
  // The packed tensors; they must be initializers. Valid while the session and the copies live.
  std::vector<PackedTensor> Packed(Copies* copies) const;
  // The initializer at an input; `what` is for the message where there is none.
  PackedTensor Initializer(size_t index, const std::string& what, Copies* copies) const;
  // The bias, checked to be [out], where it is an initializer; null where it is absent or computed.
  const float* ConstantBias(int64_t out, Copies* copies) const;
  [[noreturn]] void Fail(const std::string& why) const;
  const OrtValue* Constant(size_t index) const;  // null where the input is no initializer
  const OrtApi& api() const { return api_; }

 private:
  const OrtApi& api_;
  const OrtKernelInfo* info_;
  std::string label_;
};

struct Tensor {
  const float* data = nullptr;  // null when the optional input is absent
  OrtElementType type = kUndefined;
  std::vector<int64_t> dims;
};

// One call of a kernel.
class Context {
 public:
  Context(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context();

  Tensor Input(size_t index) const;
  float* Output(const std::vector<int64_t>& dims);
  // Memory that is free again when this object dies: this thread's own where little is needed, else from the
  // session's allocator.
  void* Scratch(const OrtMemoryInfo* memory, size_t bytes);
  // Runs tasks on the session's threads. Valid while this object lives.
  ParallelFor Parallel(int threads);
  // The stream that a node on a GPU launches its kernels on.
  void* GpuStream() const;
  // Throws what went wrong inside Parallel's tasks.
  void Finish();

 private:
  static void RunTasks(void* self, size_t count, void (*task)(void*, size_t), void* argument);

  const OrtApi& api_;
  OrtKernelContext* context_;
  OrtAllocator* allocator_ = nullptr;
  void* allocated_ = nullptr;
  bool* lent_ = nullptr;  // set while this call has this thread's own scratch memory
  OrtStatus* failure_ = nullptr;
};

// One call of a shape inference function.
class ShapeInference {
 public:
  ShapeInference(const OrtApi& api, OrtShapeInferContext* context) : api_(api), context_(context) {}
  Dims Input(size_t index) const;  // no values when the shape is unknown
  int64_t Int(const char* name) const;
  std::vector<int64_t> Ints(const char* name, size_t count) const;
  // Leaves the output's shape open when a dimension has neither a value nor a symbol.
  void SetOutput(const Dims& dims);

 private:
  const OrtApi& api_;
  OrtShapeInferContext* context_;
};

}  // namespace sparsify::ort

#endif  // SPARSIFY_ORT_NODE_H_
