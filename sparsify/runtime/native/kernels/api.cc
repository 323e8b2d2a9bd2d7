#include "api.h"

#include <cstdlib>

#include "csr/family.h"

namespace sparsify {
namespace {

constexpr const char* kKernelVariable = "SPARSIFY_KERNEL";
constexpr int64_t kLargestExtent = int64_t{1} << 20;  // of a kernel, stride, pad or dilation
constexpr int64_t kMostTaps = int64_t{1} << 16;       // memory is taken for each

const csr::Isa* Select(const char* kernel, std::string* error) {
  return csr::FindIsa(kernel != nullptr ? kernel : std::getenv(kKernelVariable), error);
}

bool Within(const int64_t* values, int count, int64_t least) {
  for (int i = 0; i < count; ++i) {
    if (values[i] < least || values[i] > kLargestExtent) return false;
  }
  return true;
}

}  // namespace

bool CheckConv(const ConvAttributes& a, std::string* error) {
  if (Within(a.kernel, 2, 1) && Within(a.strides, 2, 1) && Within(a.dilations, 2, 1) &&
      Within(a.pads, 4, 0) && a.in_channels >= 1 && a.in_channels < (int64_t{1} << 31)) {
    if (a.kernel[0] * a.kernel[1] <= kMostTaps) return true;
    *error = "impossible convolution: the kernel is too large";
    return false;
  }
  *error =
      "impossible convolution: kernel, strides, dilations and channels must be at least 1, pads at least 0";
  return false;
}

namespace {

bool ParseLayer(const PackedLayer& layer, csr::Matrix* matrix, std::string* error) {
  const int block_rows = csr::BlockRows(layer.layout, error);
  return block_rows != 0 && csr::Parse(layer.tensors, layer.count, layer.attributes.out_features,
                                       layer.attributes.in_features, block_rows, matrix, error);
}

}  // namespace

std::unique_ptr<LinearKernel> CreateLinear(const char* layout, const char* kernel,
                                           const LinearAttributes& attributes, const PackedTensor* tensors,
                                           size_t count, std::string* error) {
  csr::Matrix matrix;
  if (!ParseLayer({layout, attributes, tensors, count}, &matrix, error)) return nullptr;
  const csr::Isa* isa = Select(kernel, error);
  if (isa == nullptr) return nullptr;
  return csr::MakeLinear(*isa, attributes, matrix);
}

std::unique_ptr<FeedForwardKernel> CreateFeedForward(const char* kernel, const PackedLayer& first,
                                                     const PackedLayer& second, std::string* error) {
  csr::Matrix a, b;
  if (!ParseLayer(first, &a, error) || !ParseLayer(second, &b, error)) return nullptr;
  if (a.rows != b.columns) {
    *error = "the second layer takes " + std::to_string(b.columns) + " inputs, the first one has " +
             std::to_string(a.rows) + " outputs";
    return nullptr;
  }
  const csr::Isa* isa = Select(kernel, error);
  return isa == nullptr ? nullptr : csr::MakeFeedForward(*isa, a, b);
}

std::unique_ptr<ConvKernel> CreateConv(const char* layout, const char* kernel,
                                       const ConvAttributes& attributes, const PackedTensor* tensors,
                                       size_t count, std::string* error) {
  const int block_rows = csr::BlockRows(layout, error);
  if (block_rows == 0 || !CheckConv(attributes, error)) return nullptr;
  const csr::Isa* isa = Select(kernel, error);
  csr::Matrix matrix;
  const int64_t taps = attributes.kernel[0] * attributes.kernel[1];
  if (isa == nullptr || !csr::Parse(tensors, count, attributes.out_channels, attributes.in_channels * taps,
                                    block_rows, &matrix, error)) {
    return nullptr;
  }
  return csr::MakeConv(*isa, attributes, matrix);
}

size_t KernelCount() { return csr::IsaCount(); }
const char* KernelName(size_t index) { return csr::IsaAt(index).name; }
bool KernelSupported(size_t index) { return csr::IsaSupported(index); }

}  // namespace sparsify
