#include "feed_forward.h"

#include <utility>
#include <vector>

#include "operators.h"

namespace sparsify::ort {
namespace {

constexpr size_t kTensors = 4;  // of a packed weight

// One of the two layers, as the node's attributes and constants describe it.
struct Layer {
  std::string layout;
  LinearAttributes attributes;
  Epilogue ending;
  std::vector<PackedTensor> tensors;

  PackedLayer packed() const { return {layout.c_str(), attributes, tensors.data(), tensors.size()}; }
};

class LayerReader {
 public:
  LayerReader(const NodeInfo& node, Copies* copies)
      : node_(node), copies_(copies), inputs_(node.InputCount()) {}

  // `prefix` tells the first layer's attributes from the second's.
  Layer Read(const std::string& prefix, int64_t in, int64_t out) {
    Layer layer;
    layer.layout = node_.String((prefix + "layout").c_str());
    layer.attributes.out_features = out;
    layer.attributes.in_features = in;
    layer.ending = node_.ReadActivation(prefix);
    if (node_.Int((prefix + "bias").c_str()) != 0) {
      const PackedTensor bias = Next(prefix + "bias");
      if (bias.type != ElementType::kFloat || bias.size != out) {
        node_.Fail("the " + prefix + "bias must be " + std::to_string(out) + " floats");
      }
      layer.ending.bias = static_cast<const float*>(bias.data);
    }
    for (size_t i = 0; i < kTensors; ++i) layer.tensors.push_back(Next(prefix + "packed weight"));
    return layer;
  }

  void Finish() const {
    if (next_ == inputs_) return;
    node_.Fail("it has " + std::to_string(inputs_) + " inputs, but its layers take " + std::to_string(next_));
  }

 private:
  PackedTensor Next(const std::string& what) {
    if (next_ >= inputs_) node_.Fail("the " + what + " is missing");
    return node_.Initializer(next_++, "the " + what, copies_);
  }

  const NodeInfo& node_;
  Copies* copies_;
  size_t next_ = SparseFeedForward::kConstants;
  size_t inputs_;
};

}  // namespace

void SparseFeedForward::InferShape(ShapeInference& shapes) {
  Dims dims = shapes.Input(kX);
  if (dims.values.empty()) return;
  const int64_t in = shapes.Int("in_features"), last = dims.values.back();
  if (last >= 0 && last != in) {
    throw Error(std::string(kName) + ": the last dimension of X is " + std::to_string(last) +
                ", but in_features is " + std::to_string(in));
  }
  dims.values.back() = shapes.Int("out_features");
  dims.symbols.back().clear();
  shapes.SetOutput(dims);
}

SparseFeedForward::SparseFeedForward(const NodeInfo& node) : label_(node.label()) {
  const int64_t in = node.Int("in_features"), hidden = node.Int("hidden_features"),
                out = node.Int("out_features");
  LayerReader reader(node, &copies_);
  const Layer first = reader.Read("hidden_", in, hidden), second = reader.Read("", hidden, out);
  reader.Finish();
  std::string error;
  kernel_ = CreateFeedForward(nullptr, first.packed(), second.packed(), &error);
  if (kernel_ == nullptr) node.Fail(error);
  first_ = first.ending;
  second_ = second.ending;
}

void SparseFeedForward::Compute(Context& context, const Settings& settings) const {
  const Tensor x = context.Input(kX);
  LinearAttributes ends = kernel_->first();
  ends.out_features = kernel_->second().out_features;
  const std::vector<int64_t> y_dims = LinearOutput(label_, x.dims, ends);
  Epilogue ending = second_;
  const Tensor residual = context.Input(kResidualInput);
  if (residual.data != nullptr && residual.dims != y_dims) {
    throw Error(label_ + ": residual has shape " + ToString(residual.dims) + " instead of " +
                ToString(y_dims));
  }
  ending.residual = residual.data;
  float* y = context.Output(y_dims);
  const int64_t rows = Product(x.dims, 0, x.dims.size() - 1);
  if (rows == 0) return;
  void* scratch = context.Scratch(settings.memory, kernel_->ScratchBytes(rows, settings.threads));
  kernel_->Run(x.data, rows, first_, ending, y, context.Parallel(settings.threads), scratch);
}

}  // namespace sparsify::ort
