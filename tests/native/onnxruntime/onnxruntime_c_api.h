/* As much of ONNX Runtime's C API as examples/c uses, for building the example where its header is missing.
 *
 * OrtApi is a table of function pointers that only ever grows at its end; the asserts below fix the slots.
 * docs/design/ort-abi.md says more. */
#ifndef SPARSIFY_TESTS_ONNXRUNTIME_C_API_H_
#define SPARSIFY_TESTS_ONNXRUNTIME_C_API_H_

#include <stddef.h>
#include <stdint.h>

typedef struct OrtAllocator OrtAllocator;
typedef struct OrtEnv OrtEnv;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtStatus OrtStatus;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtValue OrtValue;

typedef enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1
} ONNXTensorElementDataType;
typedef enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 } OrtLoggingLevel;
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

#define SKIP(first, count) void* skipped_##first[count]

typedef struct OrtApi {
  SKIP(0, 2);
  const char* (*GetErrorMessage)(const OrtStatus* status);
  OrtStatus* (*CreateEnv)(OrtLoggingLevel level, const char* name, OrtEnv** out);
  SKIP(4, 3);
  OrtStatus* (*CreateSession)(const OrtEnv* env, const char* path, const OrtSessionOptions* options,
                              OrtSession** out);
  SKIP(8, 1);
  OrtStatus* (*Run)(OrtSession* session, const OrtRunOptions* options, const char* const* input_names,
                    const OrtValue* const* inputs, size_t input_count, const char* const* output_names,
                    size_t output_count, OrtValue** outputs);
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** out);
  SKIP(11, 13);
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions* options, int threads);
  SKIP(25, 5);
  OrtStatus* (*SessionGetInputCount)(const OrtSession* session, size_t* out);
  OrtStatus* (*SessionGetOutputCount)(const OrtSession* session, size_t* out);
  SKIP(32, 1);
  OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession* session, size_t index, OrtTypeInfo** out);
  SKIP(34, 2);
  OrtStatus* (*SessionGetInputName)(const OrtSession* session, size_t index, OrtAllocator* allocator,
                                    char** out);
  OrtStatus* (*SessionGetOutputName)(const OrtSession* session, size_t index, OrtAllocator* allocator,
                                     char** out);
  SKIP(38, 11);
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo* memory, void* data, size_t bytes,
                                               const int64_t* shape, size_t rank,
                                               ONNXTensorElementDataType type, OrtValue** out);
  SKIP(50, 1);
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** out);
  SKIP(52, 3);
  OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo* type, const OrtTensorTypeAndShapeInfo** out);
  SKIP(56, 4);
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info,
                                     enum ONNXTensorElementDataType* out);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* values, size_t count);
  SKIP(63, 1);
  OrtStatus* (*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  SKIP(66, 3);
  OrtStatus* (*CreateCpuMemoryInfo)(enum OrtAllocatorType allocator, enum OrtMemType type,
                                    OrtMemoryInfo** out);
  SKIP(70, 6);
  OrtStatus* (*AllocatorFree)(OrtAllocator* allocator, void* memory);
  SKIP(77, 1);
  OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator** out);
  SKIP(79, 13);
  void (*ReleaseEnv)(OrtEnv* env);
  void (*ReleaseStatus)(OrtStatus* status);
  void (*ReleaseMemoryInfo)(OrtMemoryInfo* memory);
  void (*ReleaseSession)(OrtSession* session);
  void (*ReleaseValue)(OrtValue* value);
  SKIP(97, 1);
  void (*ReleaseTypeInfo)(OrtTypeInfo* type);
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  void (*ReleaseSessionOptions)(OrtSessionOptions* options);
  SKIP(101, 29);
  OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions* options, const char* key, const char* value);
  SKIP(131, 97);
  OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions* options, const char* library);
} OrtApi;

#undef SKIP
#define SLOT(slot, name) _Static_assert(offsetof(OrtApi, name) == 8 * slot, #name " is not in its slot")
SLOT(2, GetErrorMessage);
SLOT(7, CreateSession);
SLOT(9, Run);
SLOT(24, SetIntraOpNumThreads);
SLOT(30, SessionGetInputCount);
SLOT(33, SessionGetInputTypeInfo);
SLOT(36, SessionGetInputName);
SLOT(49, CreateTensorWithDataAsOrtValue);
SLOT(51, GetTensorMutableData);
SLOT(55, CastTypeInfoToTensorInfo);
SLOT(60, GetTensorElementType);
SLOT(64, GetTensorShapeElementCount);
SLOT(69, CreateCpuMemoryInfo);
SLOT(76, AllocatorFree);
SLOT(78, GetAllocatorWithDefaultOptions);
SLOT(92, ReleaseEnv);
SLOT(98, ReleaseTypeInfo);
SLOT(100, ReleaseSessionOptions);
SLOT(130, AddSessionConfigEntry);
SLOT(228, RegisterCustomOpsLibrary_V2);
#undef SLOT

typedef struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase* OrtGetApiBase(void);

#endif /* SPARSIFY_TESTS_ONNXRUNTIME_C_API_H_ */
