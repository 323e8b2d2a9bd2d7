#include "conv_chain.h"

#include <algorithm>
#include <utility>

#include "operators.h"

namespace sparsify::ort {
namespace {

// The attributes that are lists of numbers: the same for a node and for shape inference.
struct Numbers {
  template <class Node>
  Numbers(const Node& node, size_t steps)
      : sources(node.Ints("sources", steps)),
        in_channels(node.Ints("in_channels", steps)),
        out_channels(node.Ints("out_channels", steps)),
        kernels(node.Ints("kernel_shapes", 2 * steps)),
        strides(node.Ints("strides", 2 * steps)),
        pads(node.Ints("pads", 4 * steps)),
        dilations(node.Ints("dilations", 2 * steps)) {}

  ConvAttributes Geometry(size_t step) const {
    ConvAttributes attributes;
    attributes.out_channels = out_channels[step];
    attributes.in_channels = in_channels[step];
    std::copy_n(&kernels[2 * step], 2, attributes.kernel);
    std::copy_n(&strides[2 * step], 2, attributes.strides);
    std::copy_n(&pads[4 * step], 4, attributes.pads);
    std::copy_n(&dilations[2 * step], 2, attributes.dilations);
    return attributes;
  }

  std::vector<int64_t> sources, in_channels, out_channels, kernels, strides, pads, dilations;
};

// The number of steps and of outer maps, each within what can be meant.
size_t CountOf(int64_t value, const char* name) {
  if (value < 1 || value > SparseConvChain::kMostSteps) {
    throw Error(std::string("attribute '") + name + "' must be between 1 and " +
                std::to_string(SparseConvChain::kMostSteps) + ", not " + std::to_string(value));
  }
  return static_cast<size_t>(value);
}

std::vector<std::string> Lines(const NodeInfo& node, const char* name, size_t count) {
  const std::string text = node.String(name);
  std::vector<std::string> lines;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  if (lines.size() != count) {
    node.Fail(std::string("attribute '") + name + "' has " + std::to_string(lines.size()) +
              " lines instead of one for each of " + std::to_string(count) + " steps");
  }
  return lines;
}

size_t CountOf(const NodeInfo& node, const char* name) {
  try {
    return CountOf(node.Int(name), name);
  } catch (const Error& error) {
    node.Fail(error.what());
  }
}

// Reads a node's steps one after another.
class StepReader {
 public:
  StepReader(const NodeInfo& node, size_t maps, size_t steps, Copies* copies)
      : node_(node),
        copies_(copies),
        numbers_(node, steps),
        residuals_(node.Ints("residuals", steps)),
        biases_(node.Ints("biases", steps)),
        tensors_(node.Ints("tensors", steps)),
        names_(Lines(node, "steps", steps)),
        layouts_(Lines(node, "layouts", steps)),
        activations_(Lines(node, "activations", steps)),
        next_(maps),
        inputs_(node.InputCount()) {
    const std::string clip = "clip";
    if (std::find(activations_.begin(), activations_.end(), clip) != activations_.end()) {
      lows_ = node.Floats("clip_min", steps);
      highs_ = node.Floats("clip_max", steps);
    }
  }

  chain::Step Read(size_t i) {
    chain::Step step;
    step.name = names_[i];
    step.input = numbers_.sources[i];
    step.residual = residuals_[i];
    const std::string where = "step " + std::to_string(i) + " ('" + step.name + "')";
    step.ending = ReadEnding(i, where);
    const ConvAttributes attributes = numbers_.Geometry(i);
    if (biases_[i] != 0) step.ending.bias = ReadBias(attributes.out_channels, where);
    std::vector<PackedTensor> packed;
    for (int64_t t = 0; t < tensors_[i]; ++t) packed.push_back(Next(where + ": a packed weight"));
    std::string error;
    step.kernel = CreateConv(layouts_[i].c_str(), nullptr, attributes, packed.data(), packed.size(), &error);
    if (step.kernel == nullptr) node_.Fail(where + ": " + error);
    return step;
  }

  void Finish() const {
    if (next_ == inputs_) return;
    node_.Fail("it has " + std::to_string(inputs_) + " inputs, but its steps take " + std::to_string(next_));
  }

 private:
  PackedTensor Next(const std::string& what) {
    if (next_ >= inputs_) node_.Fail(what + " is missing");
    return node_.Initializer(next_++, what, copies_);
  }

  Epilogue ReadEnding(size_t i, const std::string& where) const {
    Epilogue ending;
    ending.activation = node_.ActivationOf(activations_[i]);
    if (ending.activation == Activation::kClip) {
      ending.low = lows_[i];
      ending.high = highs_[i];
      if (!(ending.low <= ending.high)) node_.Fail(where + ": clip_min must not be above clip_max");
    }
    return ending;
  }

  const float* ReadBias(int64_t out, const std::string& where) {
    const PackedTensor bias = Next(where + ": its bias");
    if (bias.type != ElementType::kFloat || bias.size != out) {
      node_.Fail(where + ": its bias must be " + std::to_string(out) + " floats");
    }
    return static_cast<const float*>(bias.data);
  }

  const NodeInfo& node_;
  Copies* copies_;
  Numbers numbers_;
  std::vector<int64_t> residuals_, biases_, tensors_;
  std::vector<std::string> names_, layouts_, activations_;
  std::vector<float> lows_, highs_;
  size_t next_, inputs_;
};

}  // namespace

void SparseConvChain::InferShape(ShapeInference& shapes) {
  const size_t steps = CountOf(shapes.Int("count"), "count");
  const size_t maps = CountOf(shapes.Int("maps"), "maps");
  const Numbers numbers(shapes, steps);
  // Only the steps between an outer map and the result matter.
  std::vector<size_t> path;
  int64_t value = static_cast<int64_t>(maps + steps - 1);
  while (value >= static_cast<int64_t>(maps)) {
    path.push_back(static_cast<size_t>(value) - maps);
    const int64_t before = numbers.sources[path.back()];
    if (before < 0 || before >= value) throw Error("SparseConvChain: a step reads what is not there yet");
    value = before;
  }
  Dims dims = shapes.Input(static_cast<size_t>(value));
  if (dims.values.empty()) return;
  for (auto step = path.rbegin(); step != path.rend(); ++step) {
    dims = InferConv(std::string(kName) + " step " + std::to_string(*step), numbers.Geometry(*step), dims);
  }
  shapes.SetOutput(dims);
}

SparseConvChain::SparseConvChain(const NodeInfo& node) : label_(node.label()) {
  const size_t count = CountOf(node, "count"), maps = CountOf(node, "maps");
  StepReader reader(node, maps, count, &copies_);
  std::vector<chain::Step> steps;
  for (size_t i = 0; i < count; ++i) steps.push_back(reader.Read(i));
  reader.Finish();
  std::string error;
  chain_ = chain::ConvChain::Create(static_cast<int64_t>(maps), std::move(steps), &error);
  if (chain_ == nullptr) node.Fail(error);
}

void SparseConvChain::Compute(Context& context, const Settings& settings) const {
  std::vector<chain::Size> sizes;
  std::vector<const float*> maps;
  int64_t batch = 0;
  for (int64_t i = 0; i < chain_->maps(); ++i) {
    const Tensor map = context.Input(static_cast<size_t>(i));
    const bool fits = map.type == kFloat && map.dims.size() == 4 && map.dims[1] == chain_->map_channels(i) &&
                      (i == 0 || map.dims[0] == batch);
    if (!fits) {
      const std::string images = i == 0 ? "N" : std::to_string(batch);
      throw Error(label_ + ": map " + std::to_string(i) + " has shape " + ToString(map.dims) +
                  " instead of floats [" + images + ", " + std::to_string(chain_->map_channels(i)) +
                  ", H, W]");
    }
    batch = map.dims[0];
    sizes.push_back({map.dims[2], map.dims[3]});
    maps.push_back(map.data);
  }
  std::string error;
  const std::shared_ptr<const chain::Plan> plan = chain_->PlanFor(sizes, batch, settings.threads, &error);
  if (plan == nullptr) throw Error(label_ + ": " + error);
  const chain::Size& out = plan->sizes.back();
  float* y = context.Output({batch, chain_->out_channels(), out.height, out.width});
  if (batch == 0) return;
  void* scratch = context.Scratch(settings.memory, chain_->ScratchBytes(*plan));
  chain_->Run(*plan, maps.data(), y, context.Parallel(settings.threads), scratch);
}

}  // namespace sparsify::ort
