#include "cuda_operators.h"

#include "../kernels/csr/packed.h"

namespace sparsify::ort {
namespace {

// The GPU whose memory a constant is in; -1 for the host's.
int GpuOf(const OrtApi& api, const OrtValue* value) {
  const OrtMemoryInfo* memory = nullptr;
  Check(api, api.GetTensorMemoryInfo(value, &memory));
  OrtDeviceType type = kDeviceCpu;
  api.MemoryInfoGetDeviceType(memory, &type);
  if (type != kDeviceGpu) return -1;
  int ordinal = 0;
  Check(api, api.MemoryInfoGetId(memory, &ordinal));
  return ordinal;
}

int GpuOf(const NodeInfo& node, size_t input) {
  const OrtValue* value = node.Constant(input);
  return value == nullptr ? -1 : GpuOf(node.api(), value);
}

// The device that holds the node's packed weights, or else the one of this thread.
const cuda::Device& DeviceOf(const NodeInfo& node, size_t tensors) {
  for (size_t i = 0; i < tensors; ++i) {
    const int gpu = GpuOf(node, kPacked + i);
    if (gpu >= 0) return cuda::Device::At(gpu);
  }
  return cuda::Device::Current();
}

size_t Bytes(const PackedTensor& tensor) {
  return static_cast<size_t>(tensor.size) * ElementBytes(tensor.type);
}

// The tensors where the host can read them.
std::vector<PackedTensor> OnHost(const NodeInfo& node, const cuda::Device& device,
                                 const std::vector<PackedTensor>& tensors, Copies* copies) {
  std::vector<PackedTensor> found = tensors;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (Bytes(tensors[i]) == 0 || GpuOf(node, kPacked + i) < 0) continue;
    copies->push_back(std::make_unique<unsigned char[]>(Bytes(tensors[i])));
    cuda::CopyToHost(device, tensors[i].data, Bytes(tensors[i]), copies->back().get());
    found[i].data = copies->back().get();
  }
  return found;
}

// Runs a body; what fails in the driver is said with the node.
template <typename Body>
auto AtNode(const std::string& label, Body&& body) {
  try {
    return body();
  } catch (const cuda::Failure& failure) {
    throw Error(label + ": " + failure.what());
  }
}

}  // namespace

CudaWeights::CudaWeights(const NodeInfo& node, const std::string& layout, int64_t rows, int64_t columns) {
  Copies misaligned, read;
  const std::vector<PackedTensor> packed = node.Packed(&misaligned);
  std::string error;
  const int block_rows = csr::BlockRows(layout.c_str(), &error);
  if (block_rows == 0) node.Fail(error);
  device_ = &DeviceOf(node, packed.size());
  const std::vector<PackedTensor> host = OnHost(node, *device_, packed, &read);
  if (!csr::Parse(host.data(), host.size(), rows, columns, block_rows, &matrix_, &error)) node.Fail(error);
  const auto place = [&](size_t i) { return OnDevice(node, kPacked + i, packed[i].data, Bytes(packed[i])); };
  addresses_ = {place(1), place(2), place(3)};
  const float* bias = node.ConstantBias(rows, &misaligned);
  if (bias != nullptr) {
    bias_ = static_cast<const float*>(OnDevice(node, kBias, bias, static_cast<size_t>(rows) * sizeof(float)));
  }
}

const void* CudaWeights::OnDevice(const NodeInfo& node, size_t input, const void* data, size_t bytes) {
  if (GpuOf(node, input) >= 0) return data;
  buffers_.push_back(std::make_unique<cuda::Buffer>(*device_, data, bytes));
  return buffers_.back()->data();
}

CudaSparseLinear::CudaSparseLinear(const NodeInfo& node)
    : label_(node.label()), ending_(node.ReadActivation()) {
  attributes_.out_features = node.Int("out_features");
  attributes_.in_features = node.Int("in_features");
  const std::string layout = node.String("layout");
  AtNode(label_, [&] {
    weights_ = std::make_unique<CudaWeights>(node, layout, attributes_.out_features, attributes_.in_features);
    product_ = std::make_unique<cuda::Linear>(weights_->device(), attributes_, weights_->matrix(),
                                              weights_->addresses());
  });
}

void CudaSparseLinear::Compute(Context& context, const Settings& settings) const {
  const Tensor x = context.Input(kX);
  const std::vector<int64_t> y_dims = LinearOutput(label_, x.dims, attributes_);
  const Epilogue epilogue =
      ReadEpilogue(context, label_, ending_, weights_->bias(), attributes_.out_features, y_dims);
  float* y = context.Output(y_dims);
  const int64_t rows = Product(x.dims, 0, x.dims.size() - 1);
  AtNode(label_, [&] { product_->Run(x.data, rows, epilogue, settings.precision, y, context.GpuStream()); });
}

CudaSparseConv::CudaSparseConv(const NodeInfo& node)
    : label_(node.label()), attributes_(ReadConvAttributes(node)), ending_(node.ReadActivation()) {
  const std::string layout = node.String("layout");
  std::string error;
  if (!CheckConv(attributes_, &error)) node.Fail(error);
  const int64_t taps = attributes_.kernel[0] * attributes_.kernel[1];
  AtNode(label_, [&] {
    weights_ =
        std::make_unique<CudaWeights>(node, layout, attributes_.out_channels, attributes_.in_channels * taps);
    product_ = std::make_unique<cuda::Conv>(weights_->device(), attributes_, weights_->matrix(),
                                            weights_->addresses());
  });
}

void CudaSparseConv::Compute(Context& context, const Settings&) const {
  const Tensor x = context.Input(kX);
  CheckConvInput(label_, x.dims, attributes_);
  const int64_t batch = x.dims[0], height = x.dims[2], width = x.dims[3];
  int64_t out_height = 0, out_width = 0;
  if (!product_->OutputSize(height, width, &out_height, &out_width)) FailConvSize(label_, height, width);
  const std::vector<int64_t> y_dims = {batch, attributes_.out_channels, out_height, out_width};
  const Epilogue epilogue =
      ReadEpilogue(context, label_, ending_, weights_->bias(), attributes_.out_channels, y_dims);
  float* y = context.Output(y_dims);
  AtNode(label_, [&] { product_->Run(x.data, batch, height, width, epilogue, y, context.GpuStream()); });
}

}  // namespace sparsify::ort
