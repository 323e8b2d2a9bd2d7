#include "attention.h"

namespace sparsify::ort {
namespace {

constexpr size_t kRank = 3;

std::string Sizes(const Tensor& tensor) { return ToString(tensor.dims); }

}  // namespace

void Attention::InferShape(ShapeInference& shapes) {
  Dims dims = shapes.Input(kQ);
  const Dims v = shapes.Input(kV);
  if (dims.values.size() != kRank || v.values.size() != kRank) return;
  const int64_t heads = shapes.Int("num_heads"), kv_heads = shapes.Int("kv_num_heads");
  if (kv_heads < 1) return;
  dims.values[2] = v.values[2] < 0 ? -1 : v.values[2] / kv_heads * heads;
  dims.symbols[2].clear();
  shapes.SetOutput(dims);
}

Attention::Attention(const NodeInfo& node) : label_(node.label()) {
  attention::Attributes attributes;
  attributes.heads = node.Int("num_heads");
  attributes.kv_heads = node.Int("kv_num_heads");
  attributes.scale = node.Float("scale");
  attributes.causal = node.Int("causal") != 0;
  attributes.nan_guard = node.Int("nan_guard") != 0;
  std::string error;
  kernel_ = attention::Create(nullptr, attributes, &error);
  if (kernel_ == nullptr) node.Fail(error);
}

void Attention::Compute(Context& context, const Settings& settings) const {
  const Tensor q = context.Input(kQ), k = context.Input(kK), v = context.Input(kV);
  const attention::Sizes sizes = ReadSizes(q, k, v);
  attention::Operands operands;
  operands.q = q.data;
  operands.k = k.data;
  operands.v = v.data;
  ReadBias(context.Input(kAddedBias), sizes, &operands);
  operands.y = context.Output({sizes.batch, sizes.queries, kernel_->attributes().heads * sizes.value_size});
  void* scratch = context.Scratch(settings.memory, kernel_->ScratchBytes(sizes, settings.threads));
  kernel_->Run(sizes, operands, context.Parallel(settings.threads), scratch);
}

attention::Sizes Attention::ReadSizes(const Tensor& q, const Tensor& k, const Tensor& v) const {
  const int64_t heads = kernel_->attributes().heads, kv_heads = kernel_->attributes().kv_heads;
  const bool ranks = q.dims.size() == kRank && k.dims.size() == kRank && v.dims.size() == kRank;
  const bool fits = ranks && k.dims[0] == q.dims[0] && v.dims[0] == q.dims[0] && k.dims[1] == v.dims[1] &&
                    q.dims[2] % heads == 0 && k.dims[2] % kv_heads == 0 && v.dims[2] % kv_heads == 0 &&
                    q.dims[2] / heads == k.dims[2] / kv_heads;
  if (!fits) {
    throw Error(label_ + ": Q, K and V have shapes " + Sizes(q) + ", " + Sizes(k) + " and " + Sizes(v) +
                ", but must be [batch, queries, " + std::to_string(heads) + " * size], [batch, keys, " +
                std::to_string(kv_heads) + " * size] and [batch, keys, " + std::to_string(kv_heads) +
                " * value size]");
  }
  return {q.dims[0], q.dims[1], k.dims[1], q.dims[2] / heads, v.dims[2] / kv_heads};
}

void Attention::ReadBias(const Tensor& bias, const attention::Sizes& sizes,
                         attention::Operands* operands) const {
  if (bias.data == nullptr) return;
  const attention::Attributes& attributes = kernel_->attributes();
  int64_t shape[4] = {1, 1, 1, 1};
  const size_t rank = bias.dims.size();
  for (size_t i = 0; i < rank && rank <= 4; ++i) shape[4 - rank + i] = bias.dims[i];
  if (rank > 4 || !attention::BiasStrides(shape, attributes, sizes, operands->bias_strides)) {
    throw Error(label_ + ": the bias has shape " + Sizes(bias) + ", which does not broadcast to " +
                ToString({sizes.batch, attributes.heads, sizes.queries, sizes.keys}));
  }
  operands->bias = bias.data;
}

}  // namespace sparsify::ort
