// One task is one head of one sequence and up to 64 queries: their scores against a range of keys stay in the
// second-level cache, and become probabilities and then sums of values a few keys at a time.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "../../base/aligned.h"
#include "../csr/family.h"
#include "../csr/panel_product.h"
#include "block.h"

namespace sparsify {
namespace attention {
namespace {

using csr::kGroup;
using csr::kSpacing;

constexpr int64_t kRange = 512;  // keys whose scores are kept: 128 KB at 64 queries
constexpr int64_t kStrip = 32;   // keys whose probabilities pass on to the values: 8 KB
constexpr double kFlopsPerThread = 1 << 18;
constexpr float kLowest = std::numeric_limits<float>::lowest();

#define SPARSIFY_BLOCK_ROW(name, condition) &block_##name,
const Block* const kBlocks[] = {SPARSIFY_CSR_ISAS(SPARSIFY_BLOCK_ROW)};
#undef SPARSIFY_BLOCK_ROW

const Block& BlockOf(const csr::Isa& isa) {
  for (const Block* block : kBlocks) {
    if (std::strcmp(block->name, isa.name) == 0) return *block;
  }
  return block_scalar;
}

// Queries in blocks of up to four groups of 16, as even as they can be.
struct Cut {
  explicit Cut(int64_t queries)
      : groups((queries + kGroup - 1) / kGroup), blocks((groups + csr::kMaxGroups - 1) / csr::kMaxGroups) {}
  int64_t FirstGroup(int64_t block) const { return groups * block / blocks; }
  int64_t groups, blocks;
};

// Memory of one worker, in floats.
struct Layout {
  explicit Layout(const Sizes& sizes) {
    const int64_t spacing = kSpacing[std::min<int64_t>(csr::kMaxGroups, Cut(sizes.queries).groups)];
    scores = sizes.key_size * spacing;
    out = scores + std::min(sizes.keys, kRange) * spacing;
    most = out + sizes.value_size * spacing;
    copy = most + 3 * csr::kPanelColumns;
    const int64_t end = copy + std::min(sizes.keys, kStrip) * sizes.value_size;
    total = (end + kGroup - 1) / kGroup * kGroup;
  }
  int64_t scores, out, most, copy, total;
};

// One head and up to 64 of its queries.
struct Task {
  const float* q;
  Rows keys, values;
  const float* bias;
  float* y;
  int64_t first, count;  // queries
  int64_t end;           // of the keys that any of them sees
  int groups;
};

class HeadKernel final : public Kernel {
 public:
  HeadKernel(const csr::Isa& isa, const Attributes& attributes)
      : isa_(isa), block_(BlockOf(isa)), attributes_(attributes) {}

  const Attributes& attributes() const override { return attributes_; }

  size_t ScratchBytes(const Sizes& sizes, int threads) const override {
    return static_cast<size_t>(Workers(sizes, threads) * Layout(sizes).total) * sizeof(float) + kCacheLine;
  }

  void Run(const Sizes& sizes, const Operands& operands, const ParallelFor& parallel,
           void* scratch) const override {
    const Cut cut(sizes.queries);
    const Layout layout(sizes);
    float* memory = AlignUp<float>(scratch);
    csr::RunTasks(parallel, Workers(sizes, parallel.threads), sizes.batch * attributes_.heads * cut.blocks,
                  [&](int64_t worker, int64_t index) {
                    const Task task = TaskAt(sizes, operands, cut, index);
                    RunTask(task, operands, layout, memory + worker * layout.total);
                  });
  }

 private:
  int64_t Workers(const Sizes& sizes, int threads) const {
    const double pairs = static_cast<double>(sizes.batch * attributes_.heads) *
                         static_cast<double>(sizes.queries) * static_cast<double>(sizes.keys);
    const double flops = 2 * pairs * static_cast<double>(sizes.key_size + sizes.value_size);
    const double most = std::min(flops / kFlopsPerThread, static_cast<double>(threads));
    return std::max<int64_t>(1, static_cast<int64_t>(most));
  }

  // Tasks of one head follow one another, since they read the same keys; those that see most keys come first.
  Task TaskAt(const Sizes& sizes, const Operands& operands, const Cut& cut, int64_t index) const {
    const int64_t block = cut.blocks - 1 - index % cut.blocks, head = index / cut.blocks % attributes_.heads;
    const int64_t sequence = index / cut.blocks / attributes_.heads;
    const int64_t kv_head = head / (attributes_.heads / attributes_.kv_heads);
    const int64_t q_stride = attributes_.heads * sizes.key_size;
    const int64_t k_stride = attributes_.kv_heads * sizes.key_size;
    const int64_t v_stride = attributes_.kv_heads * sizes.value_size;
    Task task;
    task.groups = static_cast<int>(cut.FirstGroup(block + 1) - cut.FirstGroup(block));
    task.first = cut.FirstGroup(block) * kGroup;
    task.count = std::min<int64_t>(task.groups * kGroup, sizes.queries - task.first);
    const int64_t row = sequence * sizes.queries + task.first;
    task.q = operands.q + row * q_stride + head * sizes.key_size;
    task.y = operands.y + (row * attributes_.heads + head) * sizes.value_size;
    const float* k = operands.k + sequence * sizes.keys * k_stride + kv_head * sizes.key_size;
    const float* v = operands.v + sequence * sizes.keys * v_stride + kv_head * sizes.value_size;
    task.keys = {k, k_stride, sizes.keys, sizes.key_size};
    task.values = {v, v_stride, sizes.keys, sizes.value_size};
    task.end = attributes_.causal ? std::min(sizes.keys, task.first + task.count) : sizes.keys;
    const int64_t* strides = operands.bias_strides;
    task.bias = operands.bias == nullptr
                    ? nullptr
                    : operands.bias + sequence * strides[0] + head * strides[1] + task.first * strides[2];
    return task;
  }

  void RunTask(const Task& task, const Operands& operands, const Layout& layout, float* memory) const {
    float *scores = memory + layout.scores, *out = memory + layout.out, *copy = memory + layout.copy;
    float *most = memory + layout.most, *sums = most + csr::kPanelColumns,
          *before = sums + csr::kPanelColumns;
    const int64_t spacing = kSpacing[task.groups], size = task.values.size;
    isa_.pack_rows(task.q, attributes_.heads * task.keys.size, task.count, task.keys.size, memory,
                   task.groups);
    std::memset(out, 0, static_cast<size_t>(size * spacing) * sizeof(float));
    std::fill(most, most + csr::kPanelColumns, kLowest);
    std::fill(sums, sums + csr::kPanelColumns, 0.0f);
    for (int64_t first = 0; first < task.end; first += kRange) {
      const int64_t count = std::min(kRange, task.end - first);
      const Rows keys = {task.keys.data + first * task.keys.stride, task.keys.stride, count, task.keys.size};
      const ScoreTerms terms = Terms(task, operands.bias_strides, first, count, scores);
      if (first > 0) std::copy(most, most + csr::kPanelColumns, before);
      block_.scores(memory, keys, terms, scores, most, task.groups);
      if (first > 0) block_.rescale(before, most, sums, out, size, task.groups);
      for (int64_t strip = 0; strip < count; strip += kStrip) {
        const int64_t part = std::min(kStrip, count - strip);
        float* at = scores + strip * spacing;
        const float* v = task.values.data + (first + strip) * task.values.stride;
        block_.exponents(at, most, sums, {v, task.values.stride, part, size}, copy, task.groups);
        block_.weigh(at, {copy, size, part, size}, out, task.groups);
      }
    }
    if (task.end > 0) block_.finish(sums, attributes_.nan_guard, out, size, task.groups);
    isa_.store_rows(out, 0, size, task.count, Epilogue(), task.y, attributes_.heads * size, task.groups);
  }

  // What is added to the scores of keys [first, first + count); a bias that differs between queries is
  // brought into the panel of scores.
  ScoreTerms Terms(const Task& task, const int64_t* strides, int64_t first, int64_t count,
                   float* scores) const {
    ScoreTerms terms = {attributes_.scale, nullptr, false, count};
    if (attributes_.causal) terms.diagonal = task.first - first;
    if (task.bias == nullptr) return terms;
    if (strides[2] == 0 && strides[3] == 1) {
      terms.key_bias = task.bias + first;
      return terms;
    }
    terms.panel_bias = true;
    const float* bias = task.bias + first * strides[3];
    const int64_t different = strides[3] == 0 ? 1 : count, spacing = kSpacing[task.groups];
    isa_.pack_rows(bias, strides[2], task.count, different, scores, task.groups);
    for (int64_t key = different; key < count; ++key) {
      std::copy(scores, scores + spacing, scores + key * spacing);
    }
    return terms;
  }

  const csr::Isa& isa_;
  const Block& block_;
  const Attributes attributes_;
};

}  // namespace

bool BiasStrides(const int64_t shape[4], const Attributes& attributes, const Sizes& sizes,
                 int64_t strides[4]) {
  const int64_t whole[4] = {sizes.batch, attributes.heads, sizes.queries, sizes.keys};
  int64_t stride = 1;
  for (int axis = 3; axis >= 0; --axis) {
    if (shape[axis] != whole[axis] && shape[axis] != 1) return false;
    strides[axis] = shape[axis] == 1 ? 0 : stride;
    stride *= shape[axis];
  }
  return true;
}

std::unique_ptr<Kernel> Create(const char* kernel, const Attributes& attributes, std::string* error) {
  const csr::Isa* isa = csr::FindIsa(kernel != nullptr ? kernel : std::getenv("SPARSIFY_KERNEL"), error);
  if (isa == nullptr) return nullptr;
  if (attributes.heads < 1 || attributes.kv_heads < 1 || attributes.heads % attributes.kv_heads != 0) {
    *error =
        "num_heads and kv_num_heads must be at least 1, and the first a multiple of the second; they are " +
        std::to_string(attributes.heads) + " and " + std::to_string(attributes.kv_heads);
    return nullptr;
  }
  if (!std::isfinite(attributes.scale)) {
    *error = "scale must be a finite number";
    return nullptr;
  }
  return std::make_unique<HeadKernel>(*isa, attributes);
}

}  // namespace attention
}  // namespace sparsify
