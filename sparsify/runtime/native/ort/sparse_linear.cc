#include "operators.h"

namespace sparsify::ort {

void SparseLinear::InferShape(ShapeInference& shapes) {
  Dims dims = shapes.Input(kX);
  if (dims.values.empty()) return;
  const int64_t in = shapes.Int("in_features");
  const int64_t last = dims.values.back();
  if (last >= 0 && last != in) {
    throw Error("SparseLinear: the last dimension of X is " + std::to_string(last) + ", but in_features is " +
                std::to_string(in));
  }
  dims.values.back() = shapes.Int("out_features");
  dims.symbols.back().clear();
  shapes.SetOutput(dims);
}

SparseLinear::SparseLinear(const NodeInfo& node) : label_(node.label()), ending_(node.ReadActivation()) {
  LinearAttributes attributes;
  attributes.out_features = node.Int("out_features");
  attributes.in_features = node.Int("in_features");
  bias_ = node.ConstantBias(attributes.out_features, &copies_);
  const std::string layout = node.String("layout");
  const std::vector<PackedTensor> packed = node.Packed(&copies_);
  std::string error;
  kernel_ = CreateLinear(layout.c_str(), nullptr, attributes, packed.data(), packed.size(), &error);
  if (kernel_ == nullptr) node.Fail(error);
}

void SparseLinear::Compute(Context& context, const Settings& settings) const {
  const LinearAttributes& attributes = kernel_->attributes();
  const Tensor x = context.Input(kX);
  const std::vector<int64_t> y_dims = LinearOutput(label_, x.dims, attributes);
  const Epilogue epilogue = ReadEpilogue(context, label_, ending_, bias_, attributes.out_features, y_dims);
  float* y = context.Output(y_dims);
  const int64_t rows = Product(x.dims, 0, x.dims.size() - 1);
  if (rows == 0) return;
  void* scratch = context.Scratch(settings.memory, kernel_->ScratchBytes(rows, settings.threads));
  kernel_->Run(x.data, rows, epilogue, y, context.Parallel(settings.threads), scratch);
}

std::vector<int64_t> LinearOutput(const std::string& label, const std::vector<int64_t>& x_dims,
                                  const LinearAttributes& attributes) {
  if (x_dims.empty() || x_dims.back() != attributes.in_features) {
    throw Error(label + ": X has shape " + ToString(x_dims) + ", but its last dimension must be " +
                std::to_string(attributes.in_features));
  }
  std::vector<int64_t> y_dims = x_dims;
  y_dims.back() = attributes.out_features;
  return y_dims;
}

Epilogue ReadEpilogue(const Context& context, const std::string& label, const Epilogue& ending,
                      const float* constant_bias, int64_t out, const std::vector<int64_t>& y_dims) {
  Epilogue epilogue = ending;
  epilogue.bias = constant_bias;
  if (constant_bias == nullptr) {
    const Tensor bias = context.Input(kBias);
    if (bias.data != nullptr && (bias.dims.size() != 1 || bias.dims[0] != out)) {
      throw Error(label + ": bias has shape " + ToString(bias.dims) + " instead of [" + std::to_string(out) +
                  "]");
    }
    epilogue.bias = bias.data;
  }
  const Tensor residual = context.Input(kResidual);
  if (residual.data != nullptr && residual.dims != y_dims) {
    throw Error(label + ": residual has shape " + ToString(residual.dims) + " instead of " +
                ToString(y_dims));
  }
  epilogue.residual = residual.data;
  return epilogue;
}

}  // namespace sparsify::ort
