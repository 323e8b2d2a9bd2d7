#include "node.h"

#include <cstring>
#include <memory>

namespace sparsify::ort {
namespace {

// Releases a shape record however its scope ends.
class ShapeInfo {
 public:
  ShapeInfo(const OrtApi& api, OrtTensorTypeAndShapeInfo* info) : api_(api), info_(info) {}
  ShapeInfo(const ShapeInfo&) = delete;
  ShapeInfo& operator=(const ShapeInfo&) = delete;
  ~ShapeInfo() { api_.ReleaseTensorTypeAndShapeInfo(info_); }
  OrtTensorTypeAndShapeInfo* get() const { return info_; }

  std::vector<int64_t> Dims() const {
    size_t rank = 0;
    Check(api_, api_.GetDimensionsCount(info_, &rank));
    std::vector<int64_t> dims(rank);
    if (rank > 0) Check(api_, api_.GetDimensions(info_, dims.data(), rank));
    return dims;
  }

  OrtElementType Type() const {
    OrtElementType type = kUndefined;
    Check(api_, api_.GetTensorElementType(info_, &type));
    return type;
  }

 private:
  const OrtApi& api_;
  OrtTensorTypeAndShapeInfo* info_;
};

OrtTensorTypeAndShapeInfo* ShapeOf(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(api, api.GetTensorTypeAndShape(value, &info));
  return info;
}

const void* DataOf(const OrtApi& api, const OrtValue* value) {
  void* data = nullptr;
  Check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return data;
}

const void* Aligned(const void* data, ElementType type, int64_t size, Copies* copies) {
  if (reinterpret_cast<uintptr_t>(data) % ElementBytes(type) == 0) return data;
  const size_t bytes = static_cast<size_t>(size) * ElementBytes(type);
  copies->push_back(std::make_unique<unsigned char[]>(bytes));
  std::memcpy(copies->back().get(), data, bytes);
  return copies->back().get();
}

// The session's allocator costs as much as a small layer, so each thread keeps a little memory of its own.
struct OwnScratch {
  std::unique_ptr<char[]> memory;
  bool lent = false;
};
constexpr size_t kOwnScratchBytes = size_t{256} << 10;
thread_local OwnScratch this_threads_scratch;

}  // namespace

void Check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw Error(message);
}

std::string ToString(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

int64_t Product(const std::vector<int64_t>& values, size_t begin, size_t end) {
  int64_t product = 1;
  for (size_t i = begin; i < end; ++i) product *= values[i];
  return product;
}

size_t ElementBytes(ElementType type) {
  switch (type) {
    case ElementType::kUint16:
      return 2;
    case ElementType::kFloat:
    case ElementType::kInt32:
      return 4;
    default:
      return 1;
  }
}

NodeInfo::NodeInfo(const OrtApi& api, const OrtKernelInfo* info, const char* op) : api_(api), info_(info) {
  size_t size = 0;
  Check(api_, api_.KernelInfo_GetNodeName(info_, nullptr, &size));
  std::string name(size, '\0');
  if (size > 0) {
    Check(api_, api_.KernelInfo_GetNodeName(info_, name.data(), &size));
    name.resize(std::strlen(name.c_str()));
  }
  label_ = std::string(op) + " node '" + name + "'";
}

void NodeInfo::Fail(const std::string& why) const { throw Error(label_ + ": " + why); }

int64_t NodeInfo::Int(const char* name) const {
  int64_t value = 0;
  if (OrtStatus* status = api_.KernelInfoGetAttribute_int64(info_, name, &value)) {
    api_.ReleaseStatus(status);
    Fail(std::string("integer attribute '") + name + "' is missing");
  }
  return value;
}

std::vector<int64_t> NodeInfo::Ints(const char* name, size_t count) const {
  std::vector<int64_t> values(count);
  size_t size = 0;
  OrtStatus* status = api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size);
  if (status == nullptr && size == count) {
    status = api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size);
    if (status == nullptr) return values;
  }
  if (status != nullptr) api_.ReleaseStatus(status);
  Fail(std::string("attribute '") + name + "' must be a list of " + std::to_string(count) + " integers");
}

std::string NodeInfo::String(const char* name) const {
  size_t size = 0;
  OrtStatus* status = api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size);
  std::string value(size, '\0');
  if (status == nullptr && size > 0) {
    status = api_.KernelInfoGetAttribute_string(info_, name, value.data(), &size);
  }
  if (status != nullptr) {
    api_.ReleaseStatus(status);
    Fail(std::string("string attribute '") + name + "' is missing");
  }
  value.resize(std::strlen(value.c_str()));
  return value;
}

float NodeInfo::Float(const char* name) const {
  float value = 0.0f;
  if (OrtStatus* status = api_.KernelInfoGetAttribute_float(info_, name, &value)) {
    api_.ReleaseStatus(status);
    Fail(std::string("float attribute '") + name + "' is missing");
  }
  return value;
}

std::vector<float> NodeInfo::Floats(const char* name, size_t count) const {
  std::vector<float> values(count);
  size_t size = 0;
  OrtStatus* status = api_.KernelInfoGetAttributeArray_float(info_, name, nullptr, &size);
  if (status == nullptr && size == count) {
    status = api_.KernelInfoGetAttributeArray_float(info_, name, values.data(), &size);
    if (status == nullptr) return values;
  }
  if (status != nullptr) api_.ReleaseStatus(status);
  Fail(std::string("attribute '") + name + "' must be a list of " + std::to_string(count) + " floats");
}

Activation NodeInfo::ActivationOf(const std::string& name) const {
  static constexpr const char* kNames[kActivations] = {"none", "relu", "gelu", "gelu_tanh", "silu", "clip"};
  std::string known;
  for (int32_t i = 0; i < kActivations; ++i) {
    known += std::string(i > 0 ? ", " : "") + kNames[i];
    if (name == kNames[i]) return static_cast<Activation>(i);
  }
  Fail("unknown activation '" + name + "'; this library knows " + known);
}

Epilogue NodeInfo::ReadActivation(const std::string& prefix) const {
  Epilogue ending;
  ending.activation = ActivationOf(String((prefix + "activation").c_str()));
  if (ending.activation == Activation::kClip) {
    ending.low = Float((prefix + "clip_min").c_str());
    ending.high = Float((prefix + "clip_max").c_str());
    if (!(ending.low <= ending.high)) Fail(prefix + "clip_min must not be above " + prefix + "clip_max");
  }
  return ending;
}

size_t NodeInfo::InputCount() const {
  size_t count = 0;
  Check(api_, api_.KernelInfo_GetInputCount(info_, &count));
  return count;
}

const OrtValue* NodeInfo::Constant(size_t index) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(api_, api_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  return is_constant != 0 ? value : nullptr;
}

const float* NodeInfo::ConstantBias(int64_t out, Copies* copies) const {
  const OrtValue* value = Constant(kBias);
  if (value == nullptr) return nullptr;
  const std::vector<int64_t> dims = ShapeInfo(api_, ShapeOf(api_, value)).Dims();
  if (dims.size() != 1 || dims[0] != out) {
    Fail("bias has shape " + ToString(dims) + " instead of [" + std::to_string(out) + "]");
  }
  return static_cast<const float*>(Aligned(DataOf(api_, value), ElementType::kFloat, out, copies));
}

std::vector<PackedTensor> NodeInfo::Packed(Copies* copies) const {
  const size_t count = InputCount();
  if (count <= kPacked) Fail("packed weights are missing");
  std::vector<PackedTensor> tensors;
  for (size_t i = kPacked; i < count; ++i) {
    tensors.push_back(Initializer(i, "packed weight " + std::to_string(i), copies));
  }
  return tensors;
}

PackedTensor NodeInfo::Initializer(size_t index, const std::string& what, Copies* copies) const {
  const OrtValue* value = Constant(index);
  if (value == nullptr) Fail(what + " must be an initializer of the graph");
  const ShapeInfo shape(api_, ShapeOf(api_, value));
  const std::vector<int64_t> dims = shape.Dims();
  PackedTensor tensor;
  tensor.type = static_cast<ElementType>(shape.Type());
  tensor.size = Product(dims, 0, dims.size());
  tensor.data = Aligned(DataOf(api_, value), tensor.type, tensor.size, copies);
  return tensor;
}

Context::~Context() {
  if (lent_ != nullptr) *lent_ = false;
  if (allocated_ != nullptr) {
    if (OrtStatus* status = api_.AllocatorFree(allocator_, allocated_)) api_.ReleaseStatus(status);
  }
  if (allocator_ != nullptr) api_.ReleaseAllocator(allocator_);
  if (failure_ != nullptr) api_.ReleaseStatus(failure_);
}

Tensor Context::Input(size_t index) const {
  const OrtValue* value = nullptr;
  Check(api_, api_.KernelContext_GetInput(context_, index, &value));
  Tensor tensor;
  if (value == nullptr) return tensor;
  const ShapeInfo shape(api_, ShapeOf(api_, value));
  tensor.dims = shape.Dims();
  tensor.type = shape.Type();
  tensor.data = static_cast<const float*>(DataOf(api_, value));
  return tensor;
}

float* Context::Output(const std::vector<int64_t>& dims) {
  OrtValue* value = nullptr;
  Check(api_, api_.KernelContext_GetOutput(context_, 0, dims.data(), dims.size(), &value));
  return static_cast<float*>(const_cast<void*>(DataOf(api_, value)));
}

void* Context::Scratch(const OrtMemoryInfo* memory, size_t bytes) {
  if (bytes == 0) return nullptr;
  OwnScratch& own = this_threads_scratch;
  if (bytes <= kOwnScratchBytes && !own.lent) {
    if (own.memory == nullptr) own.memory = std::make_unique<char[]>(kOwnScratchBytes);
    own.lent = true;
    lent_ = &own.lent;
    return own.memory.get();
  }
  Check(api_, api_.KernelContext_GetAllocator(context_, memory, &allocator_));
  Check(api_, api_.AllocatorAlloc(allocator_, bytes, &allocated_));
  return allocated_;
}

ParallelFor Context::Parallel(int threads) {
  ParallelFor parallel;
  parallel.run = &Context::RunTasks;
  parallel.context = this;
  parallel.threads = threads;
  return parallel;
}

void Context::RunTasks(void* self, size_t count, void (*task)(void*, size_t), void* argument) {
  auto* context = static_cast<Context*>(self);
  OrtStatus* status = context->api_.KernelContext_ParallelFor(context->context_, task, count, 0, argument);
  if (status == nullptr) return;
  if (context->failure_ == nullptr) {
    context->failure_ = status;
  } else {
    context->api_.ReleaseStatus(status);
  }
}

void* Context::GpuStream() const {
  void* stream = nullptr;
  Check(api_, api_.KernelContext_GetGPUComputeStream(context_, &stream));
  return stream;
}

void Context::Finish() {
  OrtStatus* status = failure_;
  failure_ = nullptr;
  Check(api_, status);
}

Dims ShapeInference::Input(size_t index) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own: not to be released
  Check(api_, api_.ShapeInferContext_GetInputTypeShape(context_, index, &info));
  size_t rank = 0;
  Check(api_, api_.GetDimensionsCount(info, &rank));
  Dims dims;
  if (rank == 0) return dims;
  std::vector<const char*> names(rank, "");
  dims.values.resize(rank);
  Check(api_, api_.GetDimensions(info, dims.values.data(), rank));
  Check(api_, api_.GetSymbolicDimensions(info, names.data(), rank));
  dims.symbols.assign(names.begin(), names.end());
  return dims;
}

int64_t ShapeInference::Int(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  Check(api_, api_.ShapeInferContext_GetAttribute(context_, name, &attribute));
  int64_t value = 0;
  size_t bytes = 0;
  Check(api_, api_.ReadOpAttr(attribute, kAttrInt, &value, sizeof(value), &bytes));
  return value;
}

std::vector<int64_t> ShapeInference::Ints(const char* name, size_t count) const {
  const OrtOpAttr* attribute = nullptr;
  Check(api_, api_.ShapeInferContext_GetAttribute(context_, name, &attribute));
  std::vector<int64_t> values(count);
  size_t bytes = 0;
  Check(api_, api_.ReadOpAttr(attribute, kAttrInts, values.data(), count * sizeof(int64_t), &bytes));
  if (bytes != count * sizeof(int64_t)) {
    throw Error(std::string("attribute '") + name + "' must be a list of " + std::to_string(count) +
                " integers");
  }
  return values;
}

void ShapeInference::SetOutput(const Dims& dims) {
  std::vector<const char*> names;
  for (size_t i = 0; i < dims.values.size(); ++i) {
    if (dims.values[i] < 0 && dims.symbols[i].empty()) return;
    names.push_back(dims.symbols[i].c_str());
  }
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(api_, api_.CreateTensorTypeAndShapeInfo(&raw));
  const ShapeInfo info(api_, raw);
  Check(api_, api_.SetTensorElementType(info.get(), kFloat));
  Check(api_, api_.SetDimensions(info.get(), dims.values.data(), dims.values.size()));
  Check(api_, api_.SetSymbolicDimensions(info.get(), names.data(), names.size()));
  Check(api_, api_.ShapeInferContext_SetOutputTypeShape(context_, 0, info.get()));
}

}  // namespace sparsify::ort
