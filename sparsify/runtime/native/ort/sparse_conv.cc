#include <algorithm>

#include "operators.h"

namespace sparsify::ort {
namespace {

// Sums and products of these do not overflow.
constexpr int64_t kLargestExtent = int64_t{1} << 20;
constexpr int64_t kLargestInput = int64_t{1} << 40;

template <size_t kCount>
bool Within(const int64_t (&values)[kCount], int64_t least) {
  return std::all_of(values, values + kCount,
                     [&](int64_t value) { return value >= least && value <= kLargestExtent; });
}

// One spatial axis of a convolution.
struct Axis {
  int64_t kernel, stride, pads, dilation;

  int64_t Reach() const { return dilation * (kernel - 1); }
  int64_t Output(int64_t size) const { return (size + pads - Reach() - 1) / stride + 1; }

  // The output's symbol: the input's own where the size is kept, else one that is equal for equal geometry.
  std::string Output(const std::string& symbol) const {
    if (symbol.empty() || (stride == 1 && pads == Reach())) return symbol;
    return "floor((" + symbol + " + " + std::to_string(pads - Reach() - 1) + ")/" + std::to_string(stride) +
           ") + 1";
  }
};

// Of a node, at its kernel's creation or at shape inference.
template <class Node>
ConvAttributes ReadAttributes(const Node& node) {
  ConvAttributes attributes;
  attributes.out_channels = node.Int("out_channels");
  attributes.in_channels = node.Int("in_channels");
  const auto copy = [&node](const char* name, int64_t* to, size_t count) {
    const std::vector<int64_t> values = node.Ints(name, count);
    std::copy(values.begin(), values.end(), to);
  };
  copy("kernel_shape", attributes.kernel, 2);
  copy("strides", attributes.strides, 2);
  copy("pads", attributes.pads, 4);
  copy("dilations", attributes.dilations, 2);
  return attributes;
}

}  // namespace

void SparseConv::InferShape(ShapeInference& shapes) {
  const Dims dims = shapes.Input(kX);
  if (dims.values.empty()) return;
  shapes.SetOutput(InferConv(kName, ReadAttributes(shapes), dims));
}

Dims InferConv(const std::string& op, const ConvAttributes& a, Dims dims) {
  if (dims.values.size() != 4) throw Error(op + ": X must have four dimensions");
  if (dims.values[1] >= 0 && dims.values[1] != a.in_channels) {
    throw Error(op + ": X has " + std::to_string(dims.values[1]) + " channels, but in_channels is " +
                std::to_string(a.in_channels));
  }
  if (!Within(a.kernel, 1) || !Within(a.strides, 1) || !Within(a.pads, 0) || !Within(a.dilations, 1)) {
    throw Error(op + ": kernel, strides and dilations must be between 1 and 2^20, pads between 0 and 2^20");
  }
  dims.values[1] = a.out_channels;
  dims.symbols[1].clear();
  for (size_t i = 0; i < 2; ++i) {
    const Axis axis{a.kernel[i], a.strides[i], a.pads[i] + a.pads[i + 2], a.dilations[i]};
    int64_t& size = dims.values[2 + i];
    if (size > kLargestInput) throw Error(op + ": X of size " + std::to_string(size) + " is too large");
    if (size >= 0 && size + axis.pads <= axis.Reach()) {
      throw Error(op + ": X of size " + std::to_string(size) + " is smaller than the dilated kernel");
    }
    if (size >= 0) size = axis.Output(size);
    dims.symbols[2 + i] = axis.Output(dims.symbols[2 + i]);
  }
  return dims;
}

ConvAttributes ReadConvAttributes(const NodeInfo& node) { return ReadAttributes(node); }

void CheckConvInput(const std::string& label, const std::vector<int64_t>& x_dims,
                    const ConvAttributes& attributes) {
  if (x_dims.size() == 4 && x_dims[1] == attributes.in_channels) return;
  throw Error(label + ": X has shape " + ToString(x_dims) + " instead of [N, " +
              std::to_string(attributes.in_channels) + ", H, W]");
}

void FailConvSize(const std::string& label, int64_t height, int64_t width) {
  throw Error(label + ": X of height " + std::to_string(height) + " and width " + std::to_string(width) +
              " is too small for the kernel, or too large");
}

SparseConv::SparseConv(const NodeInfo& node) : label_(node.label()), ending_(node.ReadActivation()) {
  const ConvAttributes attributes = ReadConvAttributes(node);
  bias_ = node.ConstantBias(attributes.out_channels, &copies_);
  const std::string layout = node.String("layout");
  const std::vector<PackedTensor> packed = node.Packed(&copies_);
  std::string error;
  kernel_ = CreateConv(layout.c_str(), nullptr, attributes, packed.data(), packed.size(), &error);
  if (kernel_ == nullptr) node.Fail(error);
}

void SparseConv::Compute(Context& context, const Settings& settings) const {
  const ConvAttributes& attributes = kernel_->attributes();
  const Tensor x = context.Input(kX);
  CheckConvInput(label_, x.dims, attributes);
  const int64_t batch = x.dims[0], height = x.dims[2], width = x.dims[3];
  int64_t out_height = 0, out_width = 0;
  if (!kernel_->OutputSize(height, width, &out_height, &out_width)) {
    FailConvSize(label_, height, width);
  }
  const std::vector<int64_t> y_dims = {batch, attributes.out_channels, out_height, out_width};
  const Epilogue epilogue = ReadEpilogue(context, label_, ending_, bias_, attributes.out_channels, y_dims);
  float* y = context.Output(y_dims);
  if (batch == 0) return;
  void* scratch =
      context.Scratch(settings.memory, kernel_->ScratchBytes(batch, height, width, settings.threads));
  kernel_->Run(x.data, batch, height, width, epilogue, y, context.Parallel(settings.threads), scratch);
}

}  // namespace sparsify::ort
