// The training kernels of this CPU against plain products in double precision: forward, and all gradients.
#include "capi/train.h"

#include <cmath>
#include <limits>
#include <thread>

#include "reference.h"
#include "train_conv_checks.h"
#include "weights.h"

namespace sparsify_tests {
namespace {

int64_t compared = 0;

void Check(int32_t status, const std::string& where) {
  if (status != 0) Die(where + ": " + sparsify_last_error());
}

std::vector<float> Transpose(const std::vector<float>& matrix, int64_t rows, int64_t columns) {
  std::vector<float> result(matrix.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      result[static_cast<size_t>(j * rows + i)] = matrix[static_cast<size_t>(i * columns + j)];
    }
  }
  return result;
}

std::vector<int64_t> Positions(const std::vector<float>& weight) {
  std::vector<int64_t> positions;
  for (size_t i = 0; i < weight.size(); ++i) {
    if (weight[i] != 0.0f) positions.push_back(static_cast<int64_t>(i));
  }
  return positions;
}

// A layer, with outputs in memory of exactly their size.
class Layer {
 public:
  Layer(const std::string& kernel, const std::vector<float>& weight, int64_t out, int64_t in, int threads)
      : out_(out),
        in_(in),
        threads_(threads),
        label_(kernel + " " + std::to_string(out) + "x" + std::to_string(in)) {
    const std::vector<int64_t> positions = Positions(weight);
    Check(sparsify_train_linear_create(kernel.c_str(), out, in, positions.data(),
                                       static_cast<int64_t>(positions.size()), threads, &layer_),
          label_);
    values_.resize(positions.size());
    Check(sparsify_train_linear_gather(layer_, weight.data(), values_.data(), threads), label_);
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  ~Layer() { sparsify_train_linear_free(layer_); }

  std::vector<float> Forward(const std::vector<float>& x, int64_t batch, const float* bias) const {
    std::vector<float> y = Unset(batch * out_);
    Check(sparsify_train_linear_forward(layer_, x.data(), batch, values_.data(), bias, y.data(), threads_),
          label_);
    return y;
  }

  struct Gradients {
    std::vector<float> x, weight, bias;
  };
  Gradients Backward(const std::vector<float>& x, const std::vector<float>& dy, int64_t batch) const {
    Gradients g = {Unset(batch * in_), Unset(out_ * in_), Unset(out_)};
    Check(sparsify_train_linear_backward(layer_, x.data(), batch, dy.data(), values_.data(), g.x.data(),
                                         g.weight.data(), g.bias.data(), threads_, 0),
          label_);
    return g;
  }
  // Only the active positions of a gradient whose others hold `rest`.
  std::vector<float> WeightGradientInto(const std::vector<float>& x, const std::vector<float>& dy,
                                        int64_t batch, float rest) const {
    std::vector<float> weight(static_cast<size_t>(out_ * in_), rest);
    Check(sparsify_train_linear_backward(layer_, x.data(), batch, dy.data(), values_.data(), nullptr,
                                         weight.data(), nullptr, threads_, 1),
          label_);
    return weight;
  }

  const std::string& label() const { return label_; }
  const sparsify_train_linear* get() const { return layer_; }

 private:
  static std::vector<float> Unset(int64_t size) {
    return std::vector<float>(static_cast<size_t>(size), std::numeric_limits<float>::quiet_NaN());
  }

  int64_t out_, in_;
  int threads_;
  std::string label_;
  sparsify_train_linear* layer_ = nullptr;
  std::vector<float> values_;
};

// First element that differs by more than rounding explains, or -1.
int64_t FirstWrong(const std::vector<float>& got, const Expected& want) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(got[i] - want.values[i]) <= want.bounds[i])) return static_cast<int64_t>(i);
  }
  compared += static_cast<int64_t>(got.size());
  return -1;
}

void Compare(const std::vector<float>& got, const Expected& want, const std::string& where) {
  const int64_t wrong = FirstWrong(got, want);
  if (wrong < 0) return;
  Die(where + ": element " + std::to_string(wrong) + " is " +
      std::to_string(got[static_cast<size_t>(wrong)]) + " instead of " +
      std::to_string(want.values[static_cast<size_t>(wrong)]));
}

// The gradient of a weight [out, in] inside its topology, and zero outside.
Expected ExpectWeightGradient(const std::vector<float>& weight, int64_t out, int64_t in,
                              const std::vector<float>& x, const std::vector<float>& dy, int64_t batch) {
  const Expected all =
      ExpectLinear(Transpose(dy, batch, out), out, batch, Transpose(x, batch, in), in, Ends());
  Expected inside;
  inside.values.assign(weight.size(), 0.0);
  inside.bounds.assign(weight.size(), 0.0);
  for (int64_t row = 0; row < out; ++row) {
    for (int64_t column = 0; column < in; ++column) {
      const size_t at = static_cast<size_t>(row * in + column);
      if (weight[at] == 0.0f) continue;
      inside.values[at] = all.values[static_cast<size_t>(column * out + row)];
      inside.bounds[at] = all.bounds[static_cast<size_t>(column * out + row)];
    }
  }
  return inside;
}

void CheckLayer(const std::vector<float>& weight, int64_t out, int64_t in, int64_t batch, Random* random) {
  const std::vector<float> x = random->Normals(batch * in), dy = random->Normals(batch * out);
  const std::vector<float> bias = random->Normals(out), ones(static_cast<size_t>(batch), 1.0f);
  Ends ends;
  ends.bias = bias.data();
  const Expected y = ExpectLinear(weight, out, in, x, batch, ends);
  const Expected dx = ExpectLinear(Transpose(weight, out, in), in, out, dy, batch, Ends());
  const Expected dweight = ExpectWeightGradient(weight, out, in, x, dy, batch);
  const Expected dbias = ExpectLinear(Transpose(dy, batch, out), out, batch, ones, 1, Ends());
  int threads = static_cast<int>(batch) % 4;
  for (const std::string& kernel : SupportedKernels()) {
    threads = threads % 4 + 1;
    const Layer layer(kernel, weight, out, in, threads);
    const std::string where =
        layer.label() + " batch " + std::to_string(batch) + " threads " + std::to_string(threads);
    Compare(layer.Forward(x, batch, bias.data()), y, where + ", forward");
    const Layer::Gradients gradients = layer.Backward(x, dy, batch);
    Compare(gradients.x, dx, where + ", input gradient");
    Compare(gradients.weight, dweight, where + ", weight gradient");
    Compare(gradients.bias, dbias, where + ", bias gradient");
    const std::vector<float> into = layer.WeightGradientInto(x, dy, batch, 7.0f);
    for (size_t i = 0; i < into.size(); ++i) {
      if (into[i] != (weight[i] == 0.0f ? 7.0f : gradients.weight[i])) {
        Die(where + ", weight gradient at active positions only: element " + std::to_string(i));
      }
    }
  }
}

void TestEveryProduct() {
  Random random(1);
  const int64_t shapes[][2] = {{1, 1}, {15, 31}, {33, 150}, {3, 1100}, {300, 40}};
  for (const auto& shape : shapes) {
    for (const double density : {0.0, 0.02, 0.1, 0.6, 1.0}) {
      const std::vector<float> weight = SparseWeight(&random, shape[0], shape[1], density);
      for (const int64_t batch : {1, 16, 50, 130}) CheckLayer(weight, shape[0], shape[1], batch, &random);
    }
  }
  const std::vector<float> remainders = SparseWeight(&random, 37, 83, 0.2);
  for (int64_t batch = 1; batch < 70; batch += 3) CheckLayer(remainders, 37, 83, batch, &random);
}

void TestEmptyAndUnevenRows() {
  Random random(2);
  std::vector<float> weight = SparseWeight(&random, 40, 300, 0.1);
  for (size_t i = 0; i < 16 * 300; ++i) weight[i] = 0.0f;
  for (size_t i = 20 * 300; i < 21 * 300; ++i) weight[i] = random.Normal();
  for (const int64_t batch : {2, 40}) CheckLayer(weight, 40, 300, batch, &random);
}

void TestAPerturbedWeightIsSeen() {
  Random random(3);
  const std::vector<float> weight = SparseWeight(&random, 32, 96, 0.3), x = random.Normals(20 * 96);
  std::vector<float> changed = weight;
  for (float& value : changed) value *= 1.001f;
  for (const std::string& kernel : SupportedKernels()) {
    const Layer layer(kernel, changed, 32, 96, 1);
    if (FirstWrong(layer.Forward(x, 20, nullptr), ExpectLinear(weight, 32, 96, x, 20, Ends())) < 0) {
      Die(kernel + ": a weight that is off by a thousandth is not noticed");
    }
  }
}

void TestOneLayerServesSeveralThreads() {
  Random random(4);
  const std::vector<float> weight = SparseWeight(&random, 64, 200, 0.2), dy = random.Normals(70 * 64);
  const std::vector<float> x = random.Normals(70 * 200);
  const Expected want = ExpectLinear(Transpose(weight, 64, 200), 200, 64, dy, 70, Ends());
  const Layer layer(SupportedKernels().back(), weight, 64, 200, 2);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      const std::vector<float> got = layer.Backward(x, dy, 70).x;
      for (size_t j = 0; j < got.size(); ++j) {
        if (!(std::fabs(got[j] - want.values[j]) <= want.bounds[j])) Die("calls disturb each other");
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// Odd and even sizes under strides, kernels without a centre, padding that widens the output, taps far apart;
// groups of sixteen pixels that are full, partial, and of several images.
void TestConvolutions() {
  Random random(5);
  const ConvCase cases[] = {
      {1, 1, 1, {1, 1, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}}},
      {3, 8, 8, {16, 8, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {5, 4, 4, {5, 7, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {2, 9, 7, {20, 6, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}}},
      {3, 8, 10, {12, 6, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}}},
      {2, 7, 8, {10, 20, {1, 1}, {2, 2}, {0, 0, 0, 0}, {1, 1}}},
      {2, 11, 9, {4, 3, {5, 5}, {1, 1}, {0, 0, 0, 0}, {1, 1}}},
      {2, 6, 6, {4, 3, {3, 3}, {1, 1}, {3, 2, 1, 0}, {1, 1}}},
      {2, 9, 12, {4, 3, {2, 3}, {1, 2}, {0, 1, 0, 1}, {1, 1}}},
      {2, 13, 11, {6, 4, {3, 3}, {3, 2}, {1, 2, 1, 2}, {2, 1}}},
      {2, 5, 5, {140, 130, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
  };
  int threads = 0;
  for (const ConvCase& c : cases) {
    for (const double density : {0.0, 0.1, 1.0}) {
      for (const std::string& kernel : SupportedKernels()) {
        threads = threads % 4 + 1;
        CheckTrainedConv(c, kernel, threads, density, &random, Compare);
      }
    }
  }
}

void TestBadArgumentsAreRefused() {
  const std::vector<std::vector<int64_t>> bad = {{1, 1}, {2, 1}, {-1}, {12}, {int64_t{1} << 62}};
  for (const std::vector<int64_t>& positions : bad) {
    sparsify_train_linear* layer = nullptr;
    if (sparsify_train_linear_create(nullptr, 3, 4, positions.data(), static_cast<int64_t>(positions.size()),
                                     1, &layer) == 0) {
      Die("positions that do not ascend inside the weight are accepted");
    }
  }
  const int64_t shapes[][2] = {{0, 4}, {3, 0}, {-3, 4}, {int64_t{1} << 31, 4}};
  for (const auto& shape : shapes) {
    sparsify_train_linear* layer = nullptr;
    if (sparsify_train_linear_create(nullptr, shape[0], shape[1], nullptr, 0, 1, &layer) == 0) {
      Die("an impossible shape is accepted");
    }
  }
  const Layer layer("scalar", {1.0f, 0.0f, 0.0f, 2.0f}, 2, 2, 1);
  const float x[2] = {}, values[2] = {};
  float y[2] = {};
  if (sparsify_train_linear_forward(layer.get(), x, 1, values, nullptr, y, 0) == 0 ||
      sparsify_train_linear_forward(layer.get(), x, -1, values, nullptr, y, 1) == 0 ||
      sparsify_train_linear_backward(layer.get(), x, 1, y, values, nullptr, nullptr, y, 1, 0) == 0) {
    Die("bad run arguments are accepted");
  }
}

}  // namespace
}  // namespace sparsify_tests

int main() {
  using namespace sparsify_tests;
  TestEveryProduct();
  TestEmptyAndUnevenRows();
  TestAPerturbedWeightIsSeen();
  TestOneLayerServesSeveralThreads();
  TestConvolutions();
  TestBadArgumentsAreRefused();
  std::printf("train_test: %lld elements compared\n", static_cast<long long>(compared));
  return compared > 0 ? 0 : 1;
}
