// Convolutions under training against plain sums in double precision.
#ifndef SPARSIFY_TESTS_NATIVE_TRAIN_CONV_CHECKS_H_
#define SPARSIFY_TESTS_NATIVE_TRAIN_CONV_CHECKS_H_

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "capi/train.h"
#include "reference.h"
#include "weights.h"

namespace sparsify_tests {

// Sums of products, and of their magnitudes.
struct Sums {
  explicit Sums(int64_t count) : sum(static_cast<size_t>(count)), size(sum.size()), terms(sum.size()) {}
  void Add(int64_t at, double term) {
    sum[static_cast<size_t>(at)] += term;
    size[static_cast<size_t>(at)] += std::fabs(term);
    ++terms[static_cast<size_t>(at)];
  }
  Expected Finished() const {
    Expected expected;
    expected.values.resize(sum.size());
    expected.bounds.resize(sum.size());
    for (size_t i = 0; i < sum.size(); ++i) {
      Finish(sum[i], size[i], terms[i], 0, static_cast<int64_t>(i), Ends(), &expected);
    }
    return expected;
  }

  std::vector<double> sum, size;
  std::vector<int64_t> terms;
};

struct ConvGradients {
  Expected input, weight, bias;
};

// Of one output pixel: what it adds to every gradient.
inline void AddPixel(const ConvCase& c, const std::vector<float>& weight, const std::vector<float>& x,
                     int64_t image, int64_t row, int64_t oy, int64_t ox, double dy, Sums* dx, Sums* dw) {
  const sparsify_conv_attributes& a = c.attributes;
  const int64_t taps = a.kernel[0] * a.kernel[1], columns = a.in_channels * taps;
  for (int64_t i = 0; i < columns; ++i) {
    const int64_t at = row * columns + i;
    const double w = weight[static_cast<size_t>(at)];
    const int64_t y = oy * a.strides[0] + i % taps / a.kernel[1] * a.dilations[0] - a.pads[0];
    const int64_t left = ox * a.strides[1] + i % a.kernel[1] * a.dilations[1] - a.pads[1];
    if (w == 0.0 || y < 0 || y >= c.height || left < 0 || left >= c.width) continue;
    const int64_t source = ((image * a.in_channels + i / taps) * c.height + y) * c.width + left;
    dx->Add(source, w * dy);
    dw->Add(at, x[static_cast<size_t>(source)] * dy);
  }
}

inline ConvGradients ExpectConvGradients(const ConvCase& c, const std::vector<float>& weight,
                                         const std::vector<float>& x, const std::vector<float>& dy) {
  const sparsify_conv_attributes& a = c.attributes;
  Sums dx(static_cast<int64_t>(x.size())), dw(static_cast<int64_t>(weight.size())), db(a.out_channels);
  const int64_t width = c.OutWidth(), pixels = c.OutHeight() * width;
  for (int64_t at = 0; at < static_cast<int64_t>(dy.size()); ++at) {
    const int64_t row = at / pixels % a.out_channels, image = at / pixels / a.out_channels;
    const double slope = dy[static_cast<size_t>(at)];
    db.Add(row, slope);
    AddPixel(c, weight, x, image, row, at % pixels / width, at % width, slope, &dx, &dw);
  }
  return {dx.Finished(), dw.Finished(), db.Finished()};
}

// Compares what one kernel computes through `compare(got, want, what)`.
template <class Compare>
void CheckTrainedConv(const ConvCase& c, const std::string& kernel, int threads, double density,
                      Random* random, Compare compare) {
  const sparsify_conv_attributes& a = c.attributes;
  const std::string label = kernel + ", " + c.Label() + ", threads " + std::to_string(threads);
  const auto check = [&](int32_t status) {
    if (status != 0) Die(label + ": " + sparsify_last_error());
  };
  const auto unset = [](size_t size) {
    return std::vector<float>(size, std::numeric_limits<float>::quiet_NaN());
  };
  const std::vector<float> weight =
      SparseWeight(random, a.out_channels, a.in_channels * a.kernel[0] * a.kernel[1], density);
  std::vector<int64_t> positions;
  for (size_t i = 0; i < weight.size(); ++i) {
    if (weight[i] != 0.0f) positions.push_back(static_cast<int64_t>(i));
  }
  const std::vector<float> x = random->Normals(c.batch * a.in_channels * c.height * c.width);
  const std::vector<float> bias = random->Normals(a.out_channels);
  const std::vector<float> dy = random->Normals(c.batch * a.out_channels * c.OutHeight() * c.OutWidth());
  sparsify_train_conv* conv = nullptr;
  check(sparsify_train_conv_create(kernel.c_str(), &a, positions.data(),
                                   static_cast<int64_t>(positions.size()), threads, &conv));
  std::vector<float> values(positions.size()), y = unset(dy.size()), dx = unset(x.size());
  std::vector<float> dw = unset(weight.size()), db = unset(bias.size());
  check(sparsify_train_conv_gather(conv, weight.data(), values.data(), threads));
  check(sparsify_train_conv_forward(conv, x.data(), c.batch, c.height, c.width, values.data(), bias.data(),
                                    y.data(), threads));
  check(sparsify_train_conv_backward(conv, x.data(), c.batch, c.height, c.width, dy.data(), values.data(),
                                     dx.data(), dw.data(), db.data(), threads, 0));
  if (sparsify_train_conv_forward(conv, x.data(), c.batch, 0, c.width, values.data(), nullptr, y.data(), 1) ==
      0) {
    Die(label + ": an image without rows is accepted");
  }
  sparsify_train_conv_free(conv);
  Ends ends;
  ends.bias = bias.data();
  const ConvGradients want = ExpectConvGradients(c, weight, x, dy);
  compare(y, ExpectConv(c, weight, x, ends), label + ", forward");
  compare(dx, want.input, label + ", input gradient");
  compare(dw, want.weight, label + ", weight gradient");
  compare(db, want.bias, label + ", bias gradient");
}

}  // namespace sparsify_tests

#endif  // SPARSIFY_TESTS_NATIVE_TRAIN_CONV_CHECKS_H_
