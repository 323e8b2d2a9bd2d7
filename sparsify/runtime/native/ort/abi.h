// The facts of ONNX Runtime's C ABI that the operators need, declared by ourselves.
//
// OrtApi is a table of function pointers that only ever grows at its end, so a slot number is stable for
// good. Only slots of API version 17 (the last is 275) may appear here: a newer slot is beyond the table of
// an older ONNX Runtime, and calling it crashes. docs/design/ort-abi.md says why no header of ONNX Runtime is
// used.
#ifndef SPARSIFY_ORT_ABI_H_
#define SPARSIFY_ORT_ABI_H_

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define SPARSIFY_ORT_CALL __stdcall
#else
#define SPARSIFY_ORT_CALL
#endif

namespace sparsify::ort {

static_assert(sizeof(void*) == 8, "the offsets below are those of 64-bit systems");

inline constexpr uint32_t kApiVersion = 17;
inline constexpr size_t kLastSlot = 275;

struct OrtAllocator;
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtMemoryInfo;
struct OrtOpAttr;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;
struct OrtCustomOp;

enum OrtErrorCode : int32_t { kFail = 1, kInvalidArgument = 2, kInvalidGraph = 10 };
enum OrtElementType : int32_t { kUndefined = 0, kFloat = 1 };
enum OrtOpAttrType : int32_t { kAttrInt = 1, kAttrInts = 2 };
enum OrtCharacteristic : int32_t { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum OrtAllocatorType : int32_t { kArenaAllocator = 1 };
enum OrtMemType : int32_t { kMemTypeCpuInput = -2, kMemTypeDefault = 0 };
enum OrtDeviceType : int32_t { kDeviceCpu = 0, kDeviceGpu = 1 };

// A member that stands for `count` slots which we never call.
#define SPARSIFY_ORT_SKIP(first, count) void* skipped_##first[count]
// A member of OrtApi: a function that returns a status (null is success) and must not throw.
#define SPARSIFY_ORT_FN(name, ...) OrtStatus*(SPARSIFY_ORT_CALL * name)(__VA_ARGS__)

// clang-format off
struct OrtApi {
  SPARSIFY_ORT_FN(CreateStatus, OrtErrorCode code, const char* message);
  SPARSIFY_ORT_SKIP(1, 1);
  const char*(SPARSIFY_ORT_CALL* GetErrorMessage)(const OrtStatus* status);
  SPARSIFY_ORT_SKIP(3, 23);
  SPARSIFY_ORT_FN(CreateCustomOpDomain, const char* domain, OrtCustomOpDomain** out);
  SPARSIFY_ORT_FN(CustomOpDomain_Add, OrtCustomOpDomain* domain, const OrtCustomOp* op);
  SPARSIFY_ORT_FN(AddCustomOpDomain, OrtSessionOptions* options, OrtCustomOpDomain* domain);
  SPARSIFY_ORT_SKIP(29, 22);
  SPARSIFY_ORT_FN(GetTensorMutableData, OrtValue* value, void** out);
  SPARSIFY_ORT_SKIP(52, 5);
  SPARSIFY_ORT_FN(CreateTensorTypeAndShapeInfo, OrtTensorTypeAndShapeInfo** out);
  SPARSIFY_ORT_FN(SetTensorElementType, OrtTensorTypeAndShapeInfo* info, OrtElementType type);
  SPARSIFY_ORT_FN(SetDimensions, OrtTensorTypeAndShapeInfo* info, const int64_t* values, size_t count);
  SPARSIFY_ORT_FN(GetTensorElementType, const OrtTensorTypeAndShapeInfo* info, OrtElementType* out);
  SPARSIFY_ORT_FN(GetDimensionsCount, const OrtTensorTypeAndShapeInfo* info, size_t* out);
  SPARSIFY_ORT_FN(GetDimensions, const OrtTensorTypeAndShapeInfo* info, int64_t* values, size_t count);
  SPARSIFY_ORT_FN(GetSymbolicDimensions, const OrtTensorTypeAndShapeInfo* info, const char** names, size_t count);
  SPARSIFY_ORT_SKIP(64, 1);
  SPARSIFY_ORT_FN(GetTensorTypeAndShape, const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  SPARSIFY_ORT_SKIP(66, 3);
  SPARSIFY_ORT_FN(CreateCpuMemoryInfo, OrtAllocatorType allocator, OrtMemType memory, OrtMemoryInfo** out);
  SPARSIFY_ORT_SKIP(70, 2);
  SPARSIFY_ORT_FN(MemoryInfoGetId, const OrtMemoryInfo* info, int* out);
  SPARSIFY_ORT_SKIP(73, 2);
  SPARSIFY_ORT_FN(AllocatorAlloc, OrtAllocator* allocator, size_t bytes, void** out);
  SPARSIFY_ORT_FN(AllocatorFree, OrtAllocator* allocator, void* memory);
  SPARSIFY_ORT_SKIP(77, 8);
  SPARSIFY_ORT_FN(KernelInfoGetAttribute_float, const OrtKernelInfo* info, const char* name, float* out);
  SPARSIFY_ORT_FN(KernelInfoGetAttribute_int64, const OrtKernelInfo* info, const char* name, int64_t* out);
  SPARSIFY_ORT_FN(KernelInfoGetAttribute_string, const OrtKernelInfo* info, const char* name, char* out, size_t* size);
  SPARSIFY_ORT_SKIP(88, 2);
  SPARSIFY_ORT_FN(KernelContext_GetInput, const OrtKernelContext* context, size_t index, const OrtValue** out);
  SPARSIFY_ORT_FN(KernelContext_GetOutput, OrtKernelContext* context, size_t index, const int64_t* dims, size_t count, OrtValue** out);
  SPARSIFY_ORT_SKIP(92, 1);
  void(SPARSIFY_ORT_CALL* ReleaseStatus)(OrtStatus* status);
  SPARSIFY_ORT_SKIP(94, 5);
  void(SPARSIFY_ORT_CALL* ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  SPARSIFY_ORT_SKIP(100, 32);
  void(SPARSIFY_ORT_CALL* ReleaseAllocator)(OrtAllocator* allocator);
  SPARSIFY_ORT_SKIP(133, 29);
  SPARSIFY_ORT_FN(KernelInfoGetAttributeArray_float, const OrtKernelInfo* info, const char* name, float* out, size_t* size);
  SPARSIFY_ORT_FN(KernelInfoGetAttributeArray_int64, const OrtKernelInfo* info, const char* name, int64_t* out, size_t* size);
  SPARSIFY_ORT_SKIP(164, 29);
  SPARSIFY_ORT_FN(KernelContext_GetGPUComputeStream, const OrtKernelContext* context, void** out);
  SPARSIFY_ORT_FN(GetTensorMemoryInfo, const OrtValue* value, const OrtMemoryInfo** out);
  SPARSIFY_ORT_SKIP(195, 30);
  void(SPARSIFY_ORT_CALL* MemoryInfoGetDeviceType)(const OrtMemoryInfo* info, OrtDeviceType* out);
  SPARSIFY_ORT_SKIP(226, 4);
  SPARSIFY_ORT_FN(KernelInfo_GetInputCount, const OrtKernelInfo* info, size_t* out);
  SPARSIFY_ORT_SKIP(231, 6);
  SPARSIFY_ORT_FN(HasSessionConfigEntry, const OrtSessionOptions* options, const char* key, int* out);
  SPARSIFY_ORT_FN(GetSessionConfigEntry, const OrtSessionOptions* options, const char* key, char* out, size_t* size);
  SPARSIFY_ORT_SKIP(239, 5);
  SPARSIFY_ORT_FN(KernelInfo_GetNodeName, const OrtKernelInfo* info, char* out, size_t* size);
  SPARSIFY_ORT_SKIP(245, 4);
  SPARSIFY_ORT_FN(KernelInfoGetConstantInput_tensor, const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** out);
  SPARSIFY_ORT_SKIP(250, 3);
  SPARSIFY_ORT_FN(KernelContext_GetAllocator, const OrtKernelContext* context, const OrtMemoryInfo* memory, OrtAllocator** out);
  SPARSIFY_ORT_SKIP(254, 14);
  SPARSIFY_ORT_FN(ShapeInferContext_GetInputTypeShape, const OrtShapeInferContext* context, size_t index, OrtTensorTypeAndShapeInfo** out);
  SPARSIFY_ORT_FN(ShapeInferContext_GetAttribute, const OrtShapeInferContext* context, const char* name, const OrtOpAttr** out);
  SPARSIFY_ORT_FN(ShapeInferContext_SetOutputTypeShape, const OrtShapeInferContext* context, size_t index, const OrtTensorTypeAndShapeInfo* info);
  SPARSIFY_ORT_FN(SetSymbolicDimensions, OrtTensorTypeAndShapeInfo* info, const char** names, size_t count);
  SPARSIFY_ORT_FN(ReadOpAttr, const OrtOpAttr* attribute, OrtOpAttrType type, void* data, size_t bytes, size_t* out);
  SPARSIFY_ORT_SKIP(273, 1);
  SPARSIFY_ORT_FN(KernelContext_ParallelFor, const OrtKernelContext* context, void (*task)(void*, size_t), size_t total, size_t batches, void* argument);
};
// clang-format on

#undef SPARSIFY_ORT_FN
#undef SPARSIFY_ORT_SKIP

#define SPARSIFY_ORT_SLOT(slot, name)                                    \
  static_assert(slot <= kLastSlot && offsetof(OrtApi, name) == 8 * slot, \
                #name " is not at slot " #slot " of OrtApi")
SPARSIFY_ORT_SLOT(0, CreateStatus);
SPARSIFY_ORT_SLOT(2, GetErrorMessage);
SPARSIFY_ORT_SLOT(26, CreateCustomOpDomain);
SPARSIFY_ORT_SLOT(27, CustomOpDomain_Add);
SPARSIFY_ORT_SLOT(28, AddCustomOpDomain);
SPARSIFY_ORT_SLOT(51, GetTensorMutableData);
SPARSIFY_ORT_SLOT(57, CreateTensorTypeAndShapeInfo);
SPARSIFY_ORT_SLOT(58, SetTensorElementType);
SPARSIFY_ORT_SLOT(59, SetDimensions);
SPARSIFY_ORT_SLOT(60, GetTensorElementType);
SPARSIFY_ORT_SLOT(61, GetDimensionsCount);
SPARSIFY_ORT_SLOT(62, GetDimensions);
SPARSIFY_ORT_SLOT(63, GetSymbolicDimensions);
SPARSIFY_ORT_SLOT(65, GetTensorTypeAndShape);
SPARSIFY_ORT_SLOT(69, CreateCpuMemoryInfo);
SPARSIFY_ORT_SLOT(72, MemoryInfoGetId);
SPARSIFY_ORT_SLOT(75, AllocatorAlloc);
SPARSIFY_ORT_SLOT(76, AllocatorFree);
SPARSIFY_ORT_SLOT(85, KernelInfoGetAttribute_float);
SPARSIFY_ORT_SLOT(86, KernelInfoGetAttribute_int64);
SPARSIFY_ORT_SLOT(87, KernelInfoGetAttribute_string);
SPARSIFY_ORT_SLOT(90, KernelContext_GetInput);
SPARSIFY_ORT_SLOT(91, KernelContext_GetOutput);
SPARSIFY_ORT_SLOT(93, ReleaseStatus);
SPARSIFY_ORT_SLOT(99, ReleaseTensorTypeAndShapeInfo);
SPARSIFY_ORT_SLOT(132, ReleaseAllocator);
SPARSIFY_ORT_SLOT(162, KernelInfoGetAttributeArray_float);
SPARSIFY_ORT_SLOT(163, KernelInfoGetAttributeArray_int64);
SPARSIFY_ORT_SLOT(193, KernelContext_GetGPUComputeStream);
SPARSIFY_ORT_SLOT(194, GetTensorMemoryInfo);
SPARSIFY_ORT_SLOT(225, MemoryInfoGetDeviceType);
SPARSIFY_ORT_SLOT(230, KernelInfo_GetInputCount);
SPARSIFY_ORT_SLOT(237, HasSessionConfigEntry);
SPARSIFY_ORT_SLOT(238, GetSessionConfigEntry);
SPARSIFY_ORT_SLOT(244, KernelInfo_GetNodeName);
SPARSIFY_ORT_SLOT(249, KernelInfoGetConstantInput_tensor);
SPARSIFY_ORT_SLOT(253, KernelContext_GetAllocator);
SPARSIFY_ORT_SLOT(268, ShapeInferContext_GetInputTypeShape);
SPARSIFY_ORT_SLOT(269, ShapeInferContext_GetAttribute);
SPARSIFY_ORT_SLOT(270, ShapeInferContext_SetOutputTypeShape);
SPARSIFY_ORT_SLOT(271, SetSymbolicDimensions);
SPARSIFY_ORT_SLOT(272, ReadOpAttr);
SPARSIFY_ORT_SLOT(274, KernelContext_ParallelFor);
#undef SPARSIFY_ORT_SLOT
static_assert(sizeof(OrtApi) <= 8 * (kLastSlot + 1), "OrtApi declares slots beyond API version 17");

struct OrtApiBase {
  const OrtApi*(SPARSIFY_ORT_CALL* GetApi)(uint32_t version);
  const char*(SPARSIFY_ORT_CALL* GetVersionString)();
};

// What an operator tells about itself; ONNX Runtime keeps the pointer and calls through it.
struct OrtCustomOp {
  uint32_t version;
  void*(SPARSIFY_ORT_CALL* CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char*(SPARSIFY_ORT_CALL* GetName)(const OrtCustomOp*);
  const char*(SPARSIFY_ORT_CALL* GetExecutionProviderType)(const OrtCustomOp*);
  OrtElementType(SPARSIFY_ORT_CALL* GetInputType)(const OrtCustomOp*, size_t index);
  size_t(SPARSIFY_ORT_CALL* GetInputTypeCount)(const OrtCustomOp*);
  OrtElementType(SPARSIFY_ORT_CALL* GetOutputType)(const OrtCustomOp*, size_t index);
  size_t(SPARSIFY_ORT_CALL* GetOutputTypeCount)(const OrtCustomOp*);
  void(SPARSIFY_ORT_CALL* KernelCompute)(void* kernel, OrtKernelContext*);
  void(SPARSIFY_ORT_CALL* KernelDestroy)(void* kernel);
  OrtCharacteristic(SPARSIFY_ORT_CALL* GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtCharacteristic(SPARSIFY_ORT_CALL* GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtMemType(SPARSIFY_ORT_CALL* GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int(SPARSIFY_ORT_CALL* GetVariadicInputMinArity)(const OrtCustomOp*);
  int(SPARSIFY_ORT_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int(SPARSIFY_ORT_CALL* GetVariadicOutputMinArity)(const OrtCustomOp*);
  int(SPARSIFY_ORT_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus*(SPARSIFY_ORT_CALL* CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                                                void** kernel);
  OrtStatus*(SPARSIFY_ORT_CALL* KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus*(SPARSIFY_ORT_CALL* InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int(SPARSIFY_ORT_CALL* GetStartVersion)(const OrtCustomOp*);
  int(SPARSIFY_ORT_CALL* GetEndVersion)(const OrtCustomOp*);
  size_t(SPARSIFY_ORT_CALL* GetMayInplace)(int** inputs, int** outputs);
  void(SPARSIFY_ORT_CALL* ReleaseMayInplace)(int* inputs, int* outputs);
  size_t(SPARSIFY_ORT_CALL* GetAliasMap)(int** inputs, int** outputs);
  void(SPARSIFY_ORT_CALL* ReleaseAliasMap)(int* inputs, int* outputs);
};

static_assert(sizeof(OrtApiBase) == 16, "OrtApiBase has two members");
static_assert(sizeof(OrtCustomOp) == 208, "OrtCustomOp of API version 17 has 208 bytes");
static_assert(offsetof(OrtCustomOp, CreateKernel) == 8 && offsetof(OrtCustomOp, GetInputType) == 32 &&
                  offsetof(OrtCustomOp, KernelCompute) == 64 && offsetof(OrtCustomOp, KernelDestroy) == 72 &&
                  offsetof(OrtCustomOp, GetInputCharacteristic) == 80 &&
                  offsetof(OrtCustomOp, GetInputMemoryType) == 96 &&
                  offsetof(OrtCustomOp, GetVariadicInputMinArity) == 104 &&
                  offsetof(OrtCustomOp, CreateKernelV2) == 136 &&
                  offsetof(OrtCustomOp, KernelComputeV2) == 144 &&
                  offsetof(OrtCustomOp, InferOutputShapeFn) == 152 &&
                  offsetof(OrtCustomOp, GetStartVersion) == 160 &&
                  offsetof(OrtCustomOp, GetEndVersion) == 168 &&
                  offsetof(OrtCustomOp, GetMayInplace) == 176 &&
                  offsetof(OrtCustomOp, ReleaseAliasMap) == 200,
              "OrtCustomOp differs from the one of API version 17");

}  // namespace sparsify::ort

#endif  // SPARSIFY_ORT_ABI_H_
