// Two layers in one, every instruction set and pair of layouts, against the same layers one after the other.
#ifndef SPARSIFY_TESTS_NATIVE_FEED_FORWARD_CHECKS_H_
#define SPARSIFY_TESTS_NATIVE_FEED_FORWARD_CHECKS_H_

#include <cmath>
#include <string>
#include <vector>

#include "capi/feed_forward.h"
#include "reference.h"
#include "weights.h"

namespace sparsify_tests {

// A network x -> first -> second, and the options of both layers.
struct FeedForwardCase {
  int64_t sizes[3];  // in, hidden, out
  PackedWeight first, second;
  std::vector<float> hidden_bias, bias;

  // y as two runs of linear layers give it.
  std::vector<float> Separately(const char* kernel, const std::vector<float>& x, int64_t rows,
                                const sparsify_run_options& a, const sparsify_run_options& b) const {
    std::vector<float> hidden(static_cast<size_t>(rows * sizes[1])), y(static_cast<size_t>(rows * sizes[2]));
    RunLayer(kernel, first, sizes[1], sizes[0], x, rows, a, &hidden);
    RunLayer(kernel, second, sizes[2], sizes[1], hidden, rows, b, &y);
    return y;
  }

 private:
  static void RunLayer(const char* kernel, const PackedWeight& weight, int64_t out, int64_t in,
                       const std::vector<float>& x, int64_t rows, const sparsify_run_options& options,
                       std::vector<float>* y) {
    sparsify_linear* linear = nullptr;
    if (sparsify_linear_create(weight.layout.c_str(), kernel, out, in, weight.tensors.data(), weight.count(),
                               &linear) != 0 ||
        sparsify_linear_run(linear, x.data(), rows, &options, y->data()) != 0) {
      Die(sparsify_last_error());
    }
    sparsify_linear_free(linear);
  }
};

inline FeedForwardCase MakeFeedForward(const char* first, const char* second, int64_t in, int64_t hidden,
                                       int64_t out, Random* random) {
  FeedForwardCase c = {{in, hidden, out},
                       Pack(first, SparseWeight(random, hidden, in, 0.15), hidden, in),
                       Pack(second, SparseWeight(random, out, hidden, 0.1), out, hidden),
                       random->Normals(hidden),
                       random->Normals(out)};
  return c;
}

inline void CheckFeedForward(const char* kernel, const FeedForwardCase& c, int64_t rows, int threads,
                             int32_t activation, Random* random) {
  const std::vector<float> x = random->Normals(rows * c.sizes[0]), more = random->Normals(rows * c.sizes[2]);
  const sparsify_run_options a = {c.hidden_bias.data(), nullptr, activation, threads, -0.4f, 0.9f};
  const sparsify_run_options b = {c.bias.data(), more.data(), 1, threads, 0.0f, 0.0f};
  const std::vector<float> want = c.Separately(kernel, x, rows, a, b);
  std::vector<float> y(want.size() + 1, 12345.0f);
  sparsify_feed_forward* layers = nullptr;
  if (sparsify_feed_forward_create(kernel, c.sizes, c.first.layout.c_str(), c.first.tensors.data(),
                                   c.first.count(), c.second.layout.c_str(), c.second.tensors.data(),
                                   c.second.count(), &layers) != 0 ||
      sparsify_feed_forward_run(layers, x.data(), rows, &a, &b, y.data()) != 0) {
    Die(sparsify_last_error());
  }
  sparsify_feed_forward_free(layers);
  for (size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(y[i] - want[i]) <= 1e-4 * (1.0 + std::fabs(want[i])))) {
      Die("two layers in one, " + std::string(kernel) + " " + c.first.layout + " " + c.second.layout + ", " +
          std::to_string(rows) + " rows, output " + std::to_string(i) + ": " + std::to_string(y[i]) +
          " instead of " + std::to_string(want[i]));
    }
  }
  if (y.back() != 12345.0f) Die("two layers in one wrote beyond their output");
}

// Returns the number of runs.
inline int64_t TestFeedForward(const std::vector<std::string>& kernels) {
  Random random(77);
  int64_t runs = 0;
  for (const char* first : kLayouts) {
    for (const char* second : kLayouts) {
      // Hidden units of several parts and tiles with a remainder; a hidden layer of one tile.
      const FeedForwardCase cases[] = {MakeFeedForward(first, second, 650, 1003, 530, &random),
                                       MakeFeedForward(first, second, 37, 83, 21, &random)};
      for (const std::string& kernel : kernels) {
        for (const int64_t rows : {1, 6, 7, 17, 40, 64, 77, 90, 130, 200}) {
          const int threads = 1 + static_cast<int>(rows % 3);
          const int32_t activation = static_cast<int32_t>(runs % kActivations);
          CheckFeedForward(kernel.c_str(), cases[runs % 5 % 2], rows, threads, activation, &random);
          ++runs;
        }
      }
    }
  }
  const FeedForwardCase c = MakeFeedForward("csr", "blocks-4", 20, 30, 10, &random);
  const int64_t wrong[] = {20, 31, 10};
  sparsify_feed_forward* layers = nullptr;
  if (sparsify_feed_forward_create(nullptr, wrong, "csr", c.first.tensors.data(), c.first.count(), "blocks-4",
                                   c.second.tensors.data(), c.second.count(), &layers) == 0) {
    Die("layers that do not fit together were taken");
  }
  return runs;
}

}  // namespace sparsify_tests

#endif  // SPARSIFY_TESTS_NATIVE_FEED_FORWARD_CHECKS_H_
