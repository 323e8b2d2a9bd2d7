/* Runs a lowered model with ONNX Runtime's C API and nothing else.
 *
 *   run_model LIBRARY MODEL [BATCH [THREADS]]
 *
 * LIBRARY is what `python -c "import sparsify; print(sparsify.runtime.library_path())"` prints. Inputs are
 * float32, element i is (i mod 17) / 8 - 1; the first dimension is BATCH and other open ones are 1. Each
 * output is printed as its name, its shape, and its values. README.md in this folder says how to build it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

/* The operators need ONNX Runtime 1.17, whose API this is; newer ones serve it too. */
#define API_VERSION 17
#define MAX_RANK 8
#define MAX_VALUES 16 /* inputs or outputs */

static const OrtApi* ort;

static void fail(const char* message) {
  fprintf(stderr, "run_model: %s\n", message);
  exit(1);
}

static void check(OrtStatus* status) {
  if (status != NULL) fail(ort->GetErrorMessage(status));
}

/* A session in which ONNX Runtime finds the sparse operators in `library`. */
static OrtSession* open_session(OrtEnv* env, const char* library, const char* model, int threads) {
  OrtSessionOptions* options = NULL;
  OrtSession* session = NULL;
  char text[16];
  check(ort->CreateSessionOptions(&options));
  check(ort->SetIntraOpNumThreads(options, threads));
  /* No function tells an operator how many threads its session has, so the session's configuration does. */
  snprintf(text, sizeof(text), "%d", threads);
  check(ort->AddSessionConfigEntry(options, "ai.sparsify.threads", text));
  check(ort->RegisterCustomOpsLibrary_V2(options, library));
  check(ort->CreateSession(env, model, options, &session));
  ort->ReleaseSessionOptions(options);
  return session;
}

/* The tensor for input `index`; its memory is *data and must outlive it. */
static OrtValue* make_input(const OrtSession* session, size_t index, int64_t batch, float** data) {
  OrtTypeInfo* type = NULL;
  const OrtTensorTypeAndShapeInfo* tensor = NULL;
  OrtMemoryInfo* memory = NULL;
  OrtValue* value = NULL;
  enum ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  int64_t shape[MAX_RANK];
  size_t rank = 0, size = 1;
  check(ort->SessionGetInputTypeInfo(session, index, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &tensor));
  if (tensor == NULL) fail("an input is no tensor");
  check(ort->GetTensorElementType(tensor, &element));
  check(ort->GetDimensionsCount(tensor, &rank));
  if (element != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || rank > MAX_RANK)
    fail("an input is no float32 tensor");
  check(ort->GetDimensions(tensor, shape, rank));
  for (size_t i = 0; i < rank; ++i) {
    if (shape[i] < 0) shape[i] = i == 0 ? batch : 1;
    size *= (size_t)shape[i];
  }
  ort->ReleaseTypeInfo(type);
  *data = malloc(size * sizeof(float) + 1);
  if (*data == NULL) fail("out of memory");
  for (size_t i = 0; i < size; ++i) (*data)[i] = (float)(i % 17) / 8.0f - 1.0f;
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  check(ort->CreateTensorWithDataAsOrtValue(memory, *data, size * sizeof(float), shape, rank,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
  ort->ReleaseMemoryInfo(memory);
  return value;
}

static void print_output(const char* name, OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = NULL;
  void* data = NULL;
  int64_t shape[MAX_RANK];
  size_t rank = 0, size = 0;
  check(ort->GetTensorTypeAndShape(value, &info));
  check(ort->GetDimensionsCount(info, &rank));
  if (rank > MAX_RANK) fail("an output has too many dimensions");
  check(ort->GetDimensions(info, shape, rank));
  check(ort->GetTensorShapeElementCount(info, &size));
  check(ort->GetTensorMutableData(value, &data));
  printf("%s", name);
  for (size_t i = 0; i < rank; ++i) printf("%s%lld", i == 0 ? " " : "x", (long long)shape[i]);
  printf("\n");
  for (size_t i = 0; i < size; ++i) printf("%.9g%c", ((const float*)data)[i], i + 1 == size ? '\n' : ' ');
  ort->ReleaseTensorTypeAndShapeInfo(info);
}

static void run(OrtSession* session, int64_t batch) {
  OrtAllocator* allocator = NULL;
  char *inputs[MAX_VALUES], *outputs[MAX_VALUES];
  OrtValue *feeds[MAX_VALUES], *results[MAX_VALUES] = {NULL};
  float* data[MAX_VALUES];
  size_t input_count = 0, output_count = 0;
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  check(ort->SessionGetInputCount(session, &input_count));
  check(ort->SessionGetOutputCount(session, &output_count));
  if (input_count > MAX_VALUES || output_count > MAX_VALUES) fail("too many inputs or outputs");
  for (size_t i = 0; i < input_count; ++i) {
    check(ort->SessionGetInputName(session, i, allocator, &inputs[i]));
    feeds[i] = make_input(session, i, batch, &data[i]);
  }
  for (size_t i = 0; i < output_count; ++i) {
    check(ort->SessionGetOutputName(session, i, allocator, &outputs[i]));
  }
  check(ort->Run(session, NULL, (const char* const*)inputs, (const OrtValue* const*)feeds, input_count,
                 (const char* const*)outputs, output_count, results));
  for (size_t i = 0; i < output_count; ++i) {
    print_output(outputs[i], results[i]);
    ort->ReleaseValue(results[i]);
    check(ort->AllocatorFree(allocator, outputs[i]));
  }
  for (size_t i = 0; i < input_count; ++i) {
    ort->ReleaseValue(feeds[i]);
    free(data[i]);
    check(ort->AllocatorFree(allocator, inputs[i]));
  }
}

int main(int argc, char** argv) {
  OrtEnv* env = NULL;
  OrtSession* session = NULL;
  const int64_t batch = argc > 3 ? strtoll(argv[3], NULL, 10) : 1;
  const int threads = argc > 4 ? atoi(argv[4]) : 1;
  if (argc < 3 || batch < 1 || threads < 1) fail("usage: run_model LIBRARY MODEL [BATCH [THREADS]]");
  ort = OrtGetApiBase()->GetApi(API_VERSION);
  if (ort == NULL) fail("ONNX Runtime 1.17 or newer is needed");
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "run_model", &env));
  session = open_session(env, argv[1], argv[2], threads);
  run(session, batch);
  ort->ReleaseSession(session);
  ort->ReleaseEnv(env);
  return 0;
}
