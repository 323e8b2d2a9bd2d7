// An OrtApi without ONNX Runtime: as much of its table as the operators call, over plain structures. A slot
// that is not filled is null, so that calling it ends the program.
#ifndef SPARSIFY_TESTS_NATIVE_FAKE_ORT_H_
#define SPARSIFY_TESTS_NATIVE_FAKE_ORT_H_

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "ort/abi.h"

namespace sparsify::ort {

struct OrtStatus {
  OrtErrorCode code;
  std::string message;
};

struct OrtMemoryInfo {
  OrtDeviceType type = kDeviceCpu;
  int id = 0;
};

struct OrtTensorTypeAndShapeInfo {
  int32_t type = kFloat;
  std::vector<int64_t> dims;
  std::vector<std::string> symbols;
};

struct OrtValue {
  OrtTensorTypeAndShapeInfo shape;
  void* data = nullptr;
  OrtMemoryInfo memory;
  bool constant = true;
};

struct OrtOpAttr {
  std::vector<int64_t> numbers;
};

// A node: attributes, and the inputs that are initializers.
struct OrtKernelInfo {
  std::string name = "node";
  std::map<std::string, std::vector<int64_t>> numbers;
  std::map<std::string, std::string> strings;
  std::map<std::string, float> floats;
  std::vector<OrtValue> inputs;
};

struct OrtKernelContext {
  std::vector<const OrtValue*> inputs;  // null where absent
  OrtValue output;
  std::function<void*(size_t floats)> allocate;
  void* stream = nullptr;
};

struct OrtShapeInferContext {
  std::vector<OrtTensorTypeAndShapeInfo> inputs;
  std::map<std::string, OrtOpAttr> attributes;
  OrtTensorTypeAndShapeInfo output;
};

struct OrtCustomOpDomain {
  std::string name;
  std::vector<const OrtCustomOp*> operators;
};

struct OrtSessionOptions {
  std::map<std::string, std::string> entries;
  std::vector<OrtCustomOpDomain*> domains;
};

}  // namespace sparsify::ort

namespace fake_ort {

using namespace sparsify::ort;

inline OrtStatus* Fail(const std::string& message) { return new OrtStatus{kFail, message}; }

inline OrtStatus* CopyText(const std::string& text, char* out, size_t* size) {
  if (out != nullptr && *size >= text.size() + 1) std::memcpy(out, text.c_str(), text.size() + 1);
  *size = text.size() + 1;
  return nullptr;
}

template <typename Map>
OrtStatus* Lookup(const Map& map, const char* name, const typename Map::mapped_type** found) {
  const auto entry = map.find(name);
  if (entry == map.end()) return Fail(std::string("no attribute ") + name);
  *found = &entry->second;
  return nullptr;
}

inline void FillTensors(OrtApi* api) {
  api->GetTensorMutableData = [](OrtValue* value, void** out) -> OrtStatus* {
    return *out = value->data, nullptr;
  };
  api->GetTensorTypeAndShape = [](const OrtValue* value, OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
    return *out = new OrtTensorTypeAndShapeInfo(value->shape), nullptr;
  };
  api->ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) { delete info; };
  api->CreateTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
    return *out = new OrtTensorTypeAndShapeInfo, nullptr;
  };
  api->SetTensorElementType = [](OrtTensorTypeAndShapeInfo* info, OrtElementType type) -> OrtStatus* {
    return info->type = type, nullptr;
  };
  api->SetDimensions = [](OrtTensorTypeAndShapeInfo* info, const int64_t* dims, size_t count) -> OrtStatus* {
    return info->dims.assign(dims, dims + count), nullptr;
  };
  api->SetSymbolicDimensions = [](OrtTensorTypeAndShapeInfo* info, const char** names,
                                  size_t count) -> OrtStatus* {
    return info->symbols.assign(names, names + count), nullptr;
  };
  api->GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info, OrtElementType* out) -> OrtStatus* {
    return *out = static_cast<OrtElementType>(info->type), nullptr;
  };
  api->GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info, size_t* out) -> OrtStatus* {
    return *out = info->dims.size(), nullptr;
  };
  api->GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count) -> OrtStatus* {
    return std::memcpy(out, info->dims.data(), count * sizeof(int64_t)), nullptr;
  };
  api->GetSymbolicDimensions = [](const OrtTensorTypeAndShapeInfo* info, const char** out,
                                  size_t count) -> OrtStatus* {
    for (size_t i = 0; i < count; ++i) out[i] = i < info->symbols.size() ? info->symbols[i].c_str() : "";
    return nullptr;
  };
  api->GetTensorMemoryInfo = [](const OrtValue* value, const OrtMemoryInfo** out) -> OrtStatus* {
    return *out = &value->memory, nullptr;
  };
  api->MemoryInfoGetDeviceType = [](const OrtMemoryInfo* info, OrtDeviceType* out) { *out = info->type; };
  api->MemoryInfoGetId = [](const OrtMemoryInfo* info, int* out) -> OrtStatus* {
    return *out = info->id, nullptr;
  };
}

inline void FillNodes(OrtApi* api) {
  api->KernelInfo_GetNodeName = [](const OrtKernelInfo* info, char* out, size_t* size) {
    return CopyText(info->name, out, size);
  };
  api->KernelInfo_GetInputCount = [](const OrtKernelInfo* info, size_t* out) -> OrtStatus* {
    return *out = info->inputs.size(), nullptr;
  };
  api->KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name, int64_t* out) {
    const std::vector<int64_t>* found = nullptr;
    OrtStatus* status = Lookup(info->numbers, name, &found);
    if (status == nullptr) *out = found->at(0);
    return status;
  };
  api->KernelInfoGetAttribute_float = [](const OrtKernelInfo* info, const char* name, float* out) {
    const float* found = nullptr;
    OrtStatus* status = Lookup(info->floats, name, &found);
    if (status == nullptr) *out = *found;
    return status;
  };
  api->KernelInfoGetAttribute_string = [](const OrtKernelInfo* info, const char* name, char* out,
                                          size_t* size) {
    const std::string* found = nullptr;
    OrtStatus* status = Lookup(info->strings, name, &found);
    return status != nullptr ? status : CopyText(*found, out, size);
  };
  api->KernelInfoGetAttributeArray_int64 = [](const OrtKernelInfo* info, const char* name, int64_t* out,
                                              size_t* size) {
    const std::vector<int64_t>* found = nullptr;
    OrtStatus* status = Lookup(info->numbers, name, &found);
    if (status != nullptr) return status;
    if (out != nullptr) std::memcpy(out, found->data(), found->size() * sizeof(int64_t));
    *size = found->size();
    return status;
  };
  api->KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo* info, size_t index, int* is_constant,
                                              const OrtValue** out) -> OrtStatus* {
    const OrtValue& value = info->inputs.at(index);
    *is_constant = value.constant && !value.shape.dims.empty() ? 1 : 0;
    return *out = &value, nullptr;
  };
  api->KernelContext_GetInput = [](const OrtKernelContext* context, size_t index,
                                   const OrtValue** out) -> OrtStatus* {
    return *out = context->inputs.at(index), nullptr;
  };
  api->KernelContext_GetOutput = [](OrtKernelContext* context, size_t, const int64_t* dims, size_t count,
                                    OrtValue** out) -> OrtStatus* {
    size_t size = 1;
    for (size_t i = 0; i < count; ++i) size *= static_cast<size_t>(dims[i]);
    context->output.shape.dims.assign(dims, dims + count);
    context->output.data = size == 0 ? nullptr : context->allocate(size);
    return *out = &context->output, nullptr;
  };
  api->KernelContext_GetGPUComputeStream = [](const OrtKernelContext* context, void** out) -> OrtStatus* {
    return *out = context->stream, nullptr;
  };
}

inline void FillShapeInference(OrtApi* api) {
  api->ShapeInferContext_GetInputTypeShape = [](const OrtShapeInferContext* context, size_t index,
                                                OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
    return *out = const_cast<OrtTensorTypeAndShapeInfo*>(&context->inputs.at(index)), nullptr;
  };
  api->ShapeInferContext_GetAttribute = [](const OrtShapeInferContext* context, const char* name,
                                           const OrtOpAttr** out) -> OrtStatus* {
    return *out = &context->attributes.at(name), nullptr;
  };
  api->ReadOpAttr = [](const OrtOpAttr* attribute, OrtOpAttrType, void* data, size_t bytes,
                       size_t* out) -> OrtStatus* {
    *out = attribute->numbers.size() * sizeof(int64_t);
    if (*out <= bytes) std::memcpy(data, attribute->numbers.data(), *out);
    return nullptr;
  };
  api->ShapeInferContext_SetOutputTypeShape = [](const OrtShapeInferContext* context, size_t,
                                                 const OrtTensorTypeAndShapeInfo* info) -> OrtStatus* {
    return const_cast<OrtShapeInferContext*>(context)->output = *info, nullptr;
  };
}

inline const OrtApi* Api() {
  static OrtApi* filled = [] {
    auto* api = new OrtApi{};
    api->CreateStatus = [](OrtErrorCode code, const char* message) { return new OrtStatus{code, message}; };
    api->GetErrorMessage = [](const OrtStatus* status) { return status->message.c_str(); };
    api->ReleaseStatus = [](OrtStatus* status) { delete status; };
    api->CreateCustomOpDomain = [](const char* name, OrtCustomOpDomain** out) -> OrtStatus* {
      return *out = new OrtCustomOpDomain{name, {}}, nullptr;
    };
    api->CustomOpDomain_Add = [](OrtCustomOpDomain* domain, const OrtCustomOp* op) -> OrtStatus* {
      return domain->operators.push_back(op), nullptr;
    };
    api->AddCustomOpDomain = [](OrtSessionOptions* options, OrtCustomOpDomain* domain) -> OrtStatus* {
      return options->domains.push_back(domain), nullptr;
    };
    api->HasSessionConfigEntry = [](const OrtSessionOptions* options, const char* key,
                                    int* out) -> OrtStatus* {
      return *out = static_cast<int>(options->entries.count(key)), nullptr;
    };
    api->GetSessionConfigEntry = [](const OrtSessionOptions* options, const char* key, char* out,
                                    size_t* size) { return CopyText(options->entries.at(key), out, size); };
    api->CreateCpuMemoryInfo = [](OrtAllocatorType, OrtMemType, OrtMemoryInfo** out) -> OrtStatus* {
      return *out = new OrtMemoryInfo, nullptr;
    };
    FillTensors(api);
    FillNodes(api);
    FillShapeInference(api);
    return api;
  }();
  return filled;
}

inline const OrtApiBase* Base() {
  static const OrtApiBase base = {[](uint32_t) { return Api(); }, [] { return "1.30.0"; }};
  return &base;
}

}  // namespace fake_ort

#endif  // SPARSIFY_TESTS_NATIVE_FAKE_ORT_H_
