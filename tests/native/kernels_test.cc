// Every kernel of this CPU, in every layout, against a plain product in double precision.
//
// The test of the kernels for people without Python: it also runs in an emulator and under sanitizers.
#include <cmath>
#include <limits>
#include <thread>

#include "attention_checks.h"
#include "feed_forward_checks.h"
#include "reference.h"
#include "weights.h"

namespace sparsify_tests {
namespace {

constexpr float kSentinel = 12345.0f;
constexpr size_t kGuard = 64;

struct Counts {
  int64_t linear = 0, conv = 0, outputs = 0;
};
Counts counts;

// Memory for y between sentinels.
class Output {
 public:
  explicit Output(size_t size) : memory_(size + 2 * kGuard, kSentinel), size_(size) {
    for (size_t i = 0; i < size; ++i) data()[i] = std::numeric_limits<float>::quiet_NaN();
  }
  float* data() { return memory_.data() + kGuard; }
  void CheckGuards(const std::string& where) const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (memory_[i] != kSentinel || memory_[kGuard + size_ + i] != kSentinel) {
        Die(where + " wrote outside its output");
      }
    }
  }

 private:
  std::vector<float> memory_;
  size_t size_;
};

// First output that differs by more than rounding explains, or -1.
int64_t FirstWrong(const float* got, const Expected& want) {
  for (size_t i = 0; i < want.values.size(); ++i) {
    if (!(std::fabs(got[i] - want.values[i]) <= want.bounds[i])) return static_cast<int64_t>(i);
  }
  return -1;
}

void Compare(Output* y, const Expected& want, const std::string& where) {
  y->CheckGuards(where);
  const int64_t wrong = FirstWrong(y->data(), want);
  if (wrong >= 0) {
    Die(where + ": output " + std::to_string(wrong) + " is " + std::to_string(y->data()[wrong]) +
        " instead of " + std::to_string(want.values[static_cast<size_t>(wrong)]));
  }
  counts.outputs += static_cast<int64_t>(want.values.size());
}

class Linear {
 public:
  Linear(const PackedWeight& packed, const std::string& kernel) : label_(kernel + " " + packed.layout) {
    if (sparsify_linear_create(packed.layout.c_str(), kernel.c_str(), packed.rows, packed.columns,
                               packed.tensors.data(), packed.count(), &linear_) != 0) {
      Die(label_ + ": " + sparsify_last_error());
    }
  }
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;
  ~Linear() { sparsify_linear_free(linear_); }

  void Run(const float* x, int64_t rows, const Ends& ends, int threads, float* y) const {
    const sparsify_run_options options = ends.Options(threads);
    if (sparsify_linear_run(linear_, x, rows, &options, y) != 0) Die(label_ + ": " + sparsify_last_error());
  }
  const std::string& label() const { return label_; }

 private:
  std::string label_;
  sparsify_linear* linear_ = nullptr;
};

// A weight in every layout and kernel against one expected result for each batch.
void CheckLinear(const std::vector<float>& weight, int64_t out, int64_t in,
                 const std::vector<int64_t>& batches, bool all_ends, Random* random) {
  const std::vector<float> bias = random->Normals(out);
  std::vector<PackedWeight> packed;
  for (const char* layout : kLayouts) packed.push_back(Pack(layout, weight, out, in));
  for (const int64_t batch : batches) {
    const std::vector<float> x = random->Normals(batch * in), residual = random->Normals(batch * out);
    for (int32_t activation = 0; activation < (all_ends ? kActivations : 1); ++activation) {
      Ends ends;
      ends.activation = activation;
      if (all_ends) ends.bias = bias.data();
      if (all_ends) ends.residual = residual.data();
      const Expected want = ExpectLinear(weight, out, in, x, batch, ends);
      int threads = static_cast<int>(batch + activation) % 4;
      for (const PackedWeight& form : packed) {
        for (const std::string& kernel : SupportedKernels()) {
          threads = threads % 4 + 1;
          const Linear linear(form, kernel);
          Output y(static_cast<size_t>(batch * out));
          linear.Run(x.data(), batch, ends, threads, y.data());
          Compare(&y, want,
                  linear.label() + " " + std::to_string(out) + "x" + std::to_string(in) + " batch " +
                      std::to_string(batch) + " threads " + std::to_string(threads) + " activation " +
                      std::to_string(activation));
          ++counts.linear;
        }
      }
    }
  }
}

void TestLinear() {
  Random random(1);
  const int64_t shapes[][2] = {{1, 1}, {16, 32}, {15, 31}, {17, 33}, {33, 150}, {3, 1100}};
  for (const auto& shape : shapes) {
    for (const double density : {0.0, 0.01, 0.1, 0.25, 0.6, 1.0}) {
      const std::vector<float> weight = SparseWeight(&random, shape[0], shape[1], density);
      CheckLinear(weight, shape[0], shape[1], {1, 2, 5, 12, 50, 71}, false, &random);
    }
  }
  const std::vector<float> remainders = SparseWeight(&random, 37, 83, 0.2);
  CheckLinear(remainders, 37, 83,
              {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 65, 81, 130}, true,
              &random);
  const std::vector<float> tiles = SparseWeight(&random, 37, 450, 0.2);
  CheckLinear(tiles, 37, 450, {17, 33, 49, 65}, false, &random);  // one column in the last group
  const std::vector<float> wide = SparseWeight(&random, 5, 70001, 0.002);
  CheckLinear(wide, 5, 70001, {1, 3, 18}, false, &random);
}

void TestEmptyAndUnevenRows() {
  Random random(2);
  std::vector<float> weight = SparseWeight(&random, 40, 300, 0.1);
  for (size_t i = 0; i < 16 * 300; ++i) weight[i] = 0.0f;
  for (size_t i = 20 * 300; i < 21 * 300; ++i) weight[i] = random.Normal();
  for (size_t i = 25 * 300; i < 30 * 300; ++i) weight[i] = 0.0f;
  CheckLinear(weight, 40, 300, {1, 2, 6, 40}, false, &random);
}

void TestNonFiniteInputsReachTheRowsThatUseThem() {
  Random random(3);
  const int64_t out = 50, in = 100;
  const std::vector<float> weight = SparseWeight(&random, out, in, 0.2);
  const PackedWeight packed = Pack("csr", weight, out, in);
  for (const std::string& kernel : SupportedKernels()) {
    for (const int64_t batch : {1, 2, 4, 20}) {
      std::vector<float> x = random.Normals(batch * in);
      x[3] = std::numeric_limits<float>::quiet_NaN();
      x[70] = std::numeric_limits<float>::infinity();  // in the last two blocks of 32 inputs
      Output y(static_cast<size_t>(batch * out));
      Linear(packed, kernel).Run(x.data(), batch, Ends(), 1, y.data());
      for (int64_t i = 0; i < batch * out; ++i) {
        const float* row = weight.data() + i % out * in;
        const bool nan = i < out && row[3] != 0.0f;
        const bool finite = i >= out || (row[3] == 0.0f && row[70] == 0.0f);
        if (std::isnan(y.data()[i]) != nan || std::isfinite(y.data()[i]) != finite) {
          Die(kernel + ": output " + std::to_string(i) + " of non-finite inputs is wrong");
        }
      }
    }
  }
}

// Values of 16 bits are float32 in every kernel: what they unpack to is what is computed with.
void TestValuesOfSixteenBits() {
  Random random(7);
  const int64_t out = 37, in = 83;
  const std::vector<float> weight = SparseWeight(&random, out, in, 0.2);
  const float precision[kValueTypes] = {0.0f, 0.00390625f, 0.00048828125f};
  for (int32_t type = 1; type < kValueTypes; ++type) {
    for (const char* layout : kLayouts) {
      const PackedWeight packed = Pack(layout, weight, out, in, type);
      std::vector<float> stored(weight.size());
      if (sparsify_unpack(layout, packed.tensors.data(), packed.count(), out, in, stored.data()) != 0) {
        Die(sparsify_last_error());
      }
      for (size_t i = 0; i < weight.size(); ++i) {
        if (!(std::fabs(stored[i] - weight[i]) <= precision[type] * std::fabs(weight[i]) + 1e-7f)) {
          Die(std::string(layout) + ": a value of 16 bits is not the nearest");
        }
      }
      for (const int64_t batch : {1, 2, 3, 6, 20, 70}) {
        const std::vector<float> x = random.Normals(batch * in);
        const Expected want = ExpectLinear(stored, out, in, x, batch, Ends());
        for (const std::string& kernel : SupportedKernels()) {
          Output y(static_cast<size_t>(batch * out));
          Linear(packed, kernel).Run(x.data(), batch, Ends(), 2, y.data());
          Compare(&y, want,
                  kernel + " " + layout + " values of type " + std::to_string(type) + " batch " +
                      std::to_string(batch));
          ++counts.linear;
        }
      }
    }
  }
}

void TestAPerturbedWeightIsSeen() {
  Random random(4);
  const std::vector<float> weight = SparseWeight(&random, 32, 96, 0.3), x = random.Normals(20 * 96);
  std::vector<float> changed = weight;
  for (float& value : changed) value *= 1.001f;
  for (const char* layout : kLayouts) {
    const PackedWeight packed = Pack(layout, changed, 32, 96);
    for (const std::string& kernel : SupportedKernels()) {
      for (const int64_t batch : {1, 20}) {
        Output y(static_cast<size_t>(batch * 32));
        Linear(packed, kernel).Run(x.data(), batch, Ends(), 1, y.data());
        if (FirstWrong(y.data(), ExpectLinear(weight, 32, 96, x, batch, Ends())) < 0) {
          Die(kernel + " " + layout + ": a weight that is off by a thousandth is not noticed");
        }
      }
    }
  }
}

void TestOneKernelServesSeveralThreads() {
  Random random(5);
  const std::vector<float> weight = SparseWeight(&random, 64, 200, 0.2), x = random.Normals(70 * 200);
  const std::string kernel = SupportedKernels().back();
  for (const char* layout : {"csr", "blocks-4"}) {
    const PackedWeight packed = Pack(layout, weight, 64, 200);
    const Linear linear(packed, kernel);
    std::vector<std::thread> callers;
    for (const int64_t batch : {1, 3, 20, 70}) {
      callers.emplace_back([&, batch] {
        Output y(static_cast<size_t>(batch * 64));
        linear.Run(x.data(), batch, Ends(), 2, y.data());
        const int64_t wrong = FirstWrong(y.data(), ExpectLinear(weight, 64, 200, x, batch, Ends()));
        if (wrong >= 0) Die(linear.label() + ": calls from several threads disturb each other");
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
}

void CheckConv(const ConvCase& c, Random* random) {
  const sparsify_conv_attributes& a = c.attributes;
  const int64_t columns = a.in_channels * a.kernel[0] * a.kernel[1];
  const std::vector<float> weight = SparseWeight(random, a.out_channels, columns, 0.3);
  const std::vector<float> x = random->Normals(c.batch * a.in_channels * c.height * c.width);
  const std::vector<float> bias = random->Normals(a.out_channels);
  const int64_t size = c.batch * a.out_channels * c.OutHeight() * c.OutWidth();
  const std::vector<float> residual = random->Normals(size);
  int threads = 0;
  for (int32_t activation = 0; activation < 2; ++activation) {
    Ends ends;
    ends.activation = activation;
    ends.bias = bias.data();
    if (activation != 0) ends.residual = residual.data();
    const Expected want = ExpectConv(c, weight, x, ends);
    for (const char* layout : kLayouts) {
      const PackedWeight packed = Pack(layout, weight, a.out_channels, columns);
      for (const std::string& kernel : SupportedKernels()) {
        const std::string label = kernel + " " + layout + " " + c.Label();
        sparsify_conv* conv = nullptr;
        int64_t height = 0, width = 0;
        Output y(static_cast<size_t>(size));
        threads = threads % 4 + 1;
        const sparsify_run_options options = ends.Options(threads);
        if (sparsify_conv_create(layout, kernel.c_str(), &a, packed.tensors.data(), packed.count(), &conv) ||
            sparsify_conv_output_size(conv, c.height, c.width, &height, &width) ||
            sparsify_conv_run(conv, x.data(), c.batch, c.height, c.width, &options, y.data())) {
          Die(label + ": " + sparsify_last_error());
        }
        if (height != c.OutHeight() || width != c.OutWidth()) Die(label + ": wrong output size");
        Compare(&y, want, label + " threads " + std::to_string(threads));
        sparsify_conv_free(conv);
        ++counts.conv;
      }
    }
  }
}

void TestConv() {
  // batch, height, width; out, in channels, kernel, strides, pads, dilations
  const ConvCase cases[] = {
      {2, 5, 7, {3, 4, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}}},
      {5, 8, 8, {8, 9, {1, 1}, {2, 2}, {0, 0, 0, 0}, {1, 1}}},
      {3, 9, 11, {17, 5, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {2, 9, 11, {17, 5, {3, 3}, {1, 1}, {0, 0, 0, 0}, {1, 1}}},
      {2, 13, 15, {8, 4, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}}},
      {1, 20, 23, {8, 4, {7, 5}, {3, 2}, {2, 0, 1, 3}, {1, 2}}},
      {9, 8, 9, {8, 6, {2, 3}, {1, 1}, {0, 0, 0, 0}, {2, 1}}},
      {4, 4, 4, {5, 3, {3, 3}, {4, 4}, {2, 2, 0, 0}, {1, 1}}},
      {2, 1, 40, {6, 3, {1, 5}, {1, 3}, {0, 2, 0, 2}, {1, 3}}},
      {2, 3, 3, {4, 3, {2, 2}, {2, 2}, {5, 5, 5, 5}, {1, 1}}},
      {9, 4, 4, {9, 20, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {11, 2, 2, {5, 6, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {40, 1, 1, {7, 5, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {2, 8, 8, {7, 5, {3, 3}, {1, 1}, {2, 2, 2, 2}, {2, 2}}},
      {1, 6, 70, {8, 4, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}}},
      {1, 5, 67, {8, 4, {3, 5}, {1, 2}, {1, 2, 1, 2}, {1, 1}}},
      {1, 5, 24, {8, 4, {3, 3}, {1, 1}, {0, 0, 2, 2}, {1, 1}}},
      {3, 14, 14, {20, 160, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {1, 8, 9, {20, 160, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {1, 7, 7, {20, 60, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {1, 7, 7, {22, 230, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}}},
      {1, 8, 9, {40, 80, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}}},
      {2, 27, 30, {9, 70, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}}},
      {1, 31, 26, {16, 40, {5, 5}, {1, 1}, {4, 2, 4, 2}, {2, 1}}},
      {3, 39, 37, {20, 6, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}}},
      {45, 7, 11, {8, 6, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}}},
      {29, 9, 9, {8, 6, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}}},
      {2, 41, 43, {11, 4, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
  };
  Random random(6);
  for (const ConvCase& c : cases) CheckConv(c, &random);
}

// What a kernel derives from an image's size is kept for some sizes only.
void TestOneConvolutionServesManySizes() {
  Random random(7);
  ConvCase c = {1, 0, 0, {8, 6, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}};
  const std::vector<float> weight = SparseWeight(&random, 8, 54, 0.4);
  const PackedWeight packed = Pack("blocks-4", weight, 8, 54);
  for (const std::string& kernel : SupportedKernels()) {
    sparsify_conv* conv = nullptr;
    if (sparsify_conv_create("blocks-4", kernel.c_str(), &c.attributes, packed.tensors.data(), packed.count(),
                             &conv)) {
      Die(kernel + ": " + sparsify_last_error());
    }
    for (const int64_t width : {10, 12, 17, 25, 33, 48, 10, 25}) {
      c.height = 40 - width / 2;
      c.width = width;
      const std::vector<float> x = random.Normals(6 * c.height * c.width);
      Output y(static_cast<size_t>(8 * c.height * c.width));
      const sparsify_run_options options = Ends().Options(2);
      if (sparsify_conv_run(conv, x.data(), 1, c.height, c.width, &options, y.data())) {
        Die(kernel + ": " + sparsify_last_error());
      }
      Compare(&y, ExpectConv(c, weight, x, Ends()), kernel + " " + c.Label());
      ++counts.conv;
    }
    sparsify_conv_free(conv);
  }
}

}  // namespace
}  // namespace sparsify_tests

int main() {
  using namespace sparsify_tests;
  TestLinear();
  TestEmptyAndUnevenRows();
  TestNonFiniteInputsReachTheRowsThatUseThem();
  TestValuesOfSixteenBits();
  TestAPerturbedWeightIsSeen();
  TestOneKernelServesSeveralThreads();
  TestConv();
  TestOneConvolutionServesManySizes();
  const int64_t attentions = TestAttention();
  const int64_t pairs = TestFeedForward(SupportedKernels());
  std::string kernels, layouts;
  for (const std::string& kernel : SupportedKernels()) kernels += " " + kernel;
  for (const char* layout : kLayouts) layouts += std::string(" ") + layout;
  std::printf(
      "kernels%s; layouts%s: %lld linear, %lld convolution, %lld attention and %lld feed-forward "
      "runs, %lld outputs as expected\n",
      kernels.c_str(), layouts.c_str(), static_cast<long long>(counts.linear),
      static_cast<long long>(counts.conv), static_cast<long long>(attentions), static_cast<long long>(pairs),
      static_cast<long long>(counts.outputs));
  return 0;
}
