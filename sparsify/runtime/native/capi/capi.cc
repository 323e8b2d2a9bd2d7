#include "capi.h"

#include <memory>
#include <string>
#include <vector>

#include "../base/cores.h"
#include "../base/cpu.h"
#include "../base/tuning.h"
#include "../kernels/api.h"
#include "../kernels/csr/packed.h"
#include "convert.h"
#include "error.h"

using sparsify::ConvKernel;
using sparsify::Epilogue;
using sparsify::LinearKernel;
using sparsify::PackedTensor;
using sparsify::ParallelFor;
using sparsify::capi::Convert;
using sparsify::capi::Fail;
using sparsify::capi::Guard;
using sparsify::capi::RunThreads;

struct sparsify_packed {
  sparsify::csr::Packed csr;
};
struct sparsify_linear {
  std::unique_ptr<LinearKernel> kernel;
};
struct sparsify_conv {
  std::unique_ptr<ConvKernel> kernel;
};

namespace {

constexpr int32_t kAbiVersion = 5;

}  // namespace

extern "C" {

int32_t sparsify_abi_version(void) { return kAbiVersion; }
const char* sparsify_last_error(void) { return sparsify::capi::LastError().c_str(); }
const char* sparsify_cpu_flags(void) { return sparsify::CpuFlagNames(); }
const char* sparsify_tuning(void) { return sparsify::Tuned().name; }

int64_t sparsify_tuned_cache(int32_t level) {
  return level == 1 ? sparsify::Tuned().l1_bytes : sparsify::Tuned().l2_bytes;
}

int32_t sparsify_tuned_deep(void) { return sparsify::Tuned().deep ? 1 : 0; }

int32_t sparsify_count_cores(const char* folder, const int32_t* processors, int32_t count) {
  if (folder == nullptr || processors == nullptr || count < 1) return 0;
  return sparsify::CountCores(folder, std::vector<int>(processors, processors + count));
}

int32_t sparsify_available_cores(void) { return sparsify::AvailableCores(); }

int32_t sparsify_kernel_count(void) { return static_cast<int32_t>(sparsify::KernelCount()); }

const char* sparsify_kernel_name(int32_t index) {
  return index >= 0 && index < sparsify_kernel_count() ? sparsify::KernelName(static_cast<size_t>(index))
                                                       : "";
}

int32_t sparsify_kernel_supported(int32_t index) {
  return index >= 0 && index < sparsify_kernel_count() &&
         sparsify::KernelSupported(static_cast<size_t>(index));
}

int32_t sparsify_pack(const char* layout, const float* weight, int64_t out, int64_t in, int32_t value_type,
                      sparsify_packed** packed) {
  return Guard([&] {
    std::string error;
    if (value_type < 0 || value_type > 2) return Fail("unknown type of values");
    const int block_rows = sparsify::csr::BlockRows(layout, &error);
    if (block_rows == 0) return Fail(error);
    if (weight == nullptr) return Fail("there is no weight to pack");
    auto result = std::make_unique<sparsify_packed>();
    if (!sparsify::csr::Pack(weight, out, in, block_rows, static_cast<sparsify::csr::ValueType>(value_type),
                             &result->csr, &error))
      return Fail(error);
    *packed = result.release();
    return 0;
  });
}

int32_t sparsify_packed_count(const sparsify_packed*) {
  return static_cast<int32_t>(sparsify::csr::kPackedTensors);
}

sparsify_tensor sparsify_packed_tensor(const sparsify_packed* packed, int32_t index) {
  const PackedTensor tensor = packed->csr.Tensor(index);
  return {tensor.data, static_cast<int32_t>(tensor.type), 0, tensor.size};
}

void sparsify_packed_free(sparsify_packed* packed) { delete packed; }

int32_t sparsify_unpack(const char* layout, const sparsify_tensor* tensors, int32_t count, int64_t out,
                        int64_t in, float* weight) {
  return Guard([&] {
    std::string error;
    const int block_rows = sparsify::csr::BlockRows(layout, &error);
    if (block_rows == 0) return Fail(error);
    const std::vector<PackedTensor> converted = Convert(tensors, count);
    sparsify::csr::Matrix matrix;
    if (!sparsify::csr::Parse(converted.data(), converted.size(), out, in, block_rows, &matrix, &error)) {
      return Fail(error);
    }
    if (weight != nullptr) sparsify::csr::Unpack(matrix, weight);
    return 0;
  });
}

int32_t sparsify_linear_create(const char* layout, const char* kernel, int64_t out, int64_t in,
                               const sparsify_tensor* tensors, int32_t count, sparsify_linear** linear) {
  return Guard([&] {
    const std::vector<PackedTensor> converted = Convert(tensors, count);
    auto result = std::make_unique<sparsify_linear>();
    std::string error;
    result->kernel =
        sparsify::CreateLinear(layout, kernel, {out, in}, converted.data(), converted.size(), &error);
    if (result->kernel == nullptr) return Fail(error);
    *linear = result.release();
    return 0;
  });
}

int32_t sparsify_linear_run(const sparsify_linear* linear, const float* x, int64_t rows,
                            const sparsify_run_options* options, float* y) {
  return Guard([&] {
    Epilogue epilogue;
    ParallelFor parallel;
    if (!Convert(options, &epilogue, &parallel) || rows < 0) return Fail("bad run options");
    const std::unique_ptr<unsigned char[]> scratch(
        new unsigned char[linear->kernel->ScratchBytes(rows, parallel.threads)]);
    linear->kernel->Run(x, rows, epilogue, y, parallel, scratch.get());
    return 0;
  });
}

void sparsify_linear_free(sparsify_linear* linear) { delete linear; }

int32_t sparsify_conv_create(const char* layout, const char* kernel,
                             const sparsify_conv_attributes* attributes, const sparsify_tensor* tensors,
                             int32_t count, sparsify_conv** conv) {
  return Guard([&] {
    if (attributes == nullptr) return Fail("a convolution needs attributes");
    const std::vector<PackedTensor> converted = Convert(tensors, count);
    auto result = std::make_unique<sparsify_conv>();
    std::string error;
    result->kernel = sparsify::CreateConv(layout, kernel, Convert(*attributes), converted.data(),
                                          converted.size(), &error);
    if (result->kernel == nullptr) return Fail(error);
    *conv = result.release();
    return 0;
  });
}

int32_t sparsify_conv_output_size(const sparsify_conv* conv, int64_t height, int64_t width,
                                  int64_t* out_height, int64_t* out_width) {
  if (conv->kernel->OutputSize(height, width, out_height, out_width)) return 0;
  return Fail("the input is smaller than the dilated kernel");
}

int32_t sparsify_conv_run(const sparsify_conv* conv, const float* x, int64_t batch, int64_t height,
                          int64_t width, const sparsify_run_options* options, float* y) {
  return Guard([&] {
    Epilogue epilogue;
    ParallelFor parallel;
    int64_t out_height = 0, out_width = 0;
    if (!Convert(options, &epilogue, &parallel) || batch < 0) return Fail("bad run options");
    if (!conv->kernel->OutputSize(height, width, &out_height, &out_width)) {
      return Fail("the input is smaller than the dilated kernel");
    }
    const std::unique_ptr<unsigned char[]> scratch(
        new unsigned char[conv->kernel->ScratchBytes(batch, height, width, parallel.threads)]);
    conv->kernel->Run(x, batch, height, width, epilogue, y, parallel, scratch.get());
    return 0;
  });
}

void sparsify_conv_free(sparsify_conv* conv) { delete conv; }

}  // extern "C"
