// What the operators mean, in double precision, and how far rounding may take a float kernel from it.
#ifndef SPARSIFY_TESTS_NATIVE_REFERENCE_H_
#define SPARSIFY_TESTS_NATIVE_REFERENCE_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "capi/capi.h"

namespace sparsify_tests {

// What follows the product; null pointers mean absent.
struct Ends {
  const float* bias = nullptr;
  const float* residual = nullptr;
  int32_t activation = 0;
  float low = -0.4f, high = 0.9f;  // of clip

  sparsify_run_options Options(int threads) const { return {bias, residual, activation, threads, low, high}; }
};

struct Expected {
  std::vector<double> values, bounds;
};

constexpr int32_t kActivations = 6;

inline double Activate(double x, const Ends& ends) {
  switch (ends.activation) {
    case 1:
      return x < 0.0 ? 0.0 : x;
    case 2:
      return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case 3:
      return 0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case 4:
      return x / (1.0 + std::exp(-x));
    case 5:
      return std::fmin(std::fmax(x, ends.low), ends.high);
    default:
      return x;
  }
}

// A sum of `terms` products whose magnitudes add up to `size`: whatever the order, its error is a random walk
// well inside 4 eps sqrt(terms) size. An activation has a slope below 1.2 and 4 eps of its own.
inline void Finish(double sum, double size, int64_t terms, int64_t row, int64_t target, const Ends& ends,
                   Expected* expected) {
  if (ends.bias != nullptr) {
    sum += ends.bias[row];
    size += std::fabs(ends.bias[row]);
  }
  if (ends.residual != nullptr) {
    sum += ends.residual[target];
    size += std::fabs(ends.residual[target]);
  }
  const double eps = std::numeric_limits<float>::epsilon();
  const size_t at = static_cast<size_t>(target);
  expected->values[at] = Activate(sum, ends);
  expected->bounds[at] =
      4 * eps * std::sqrt(static_cast<double>(terms + 4)) * size + 4 * eps * std::fmax(1.0, std::fabs(sum));
}

inline Expected ExpectLinear(const std::vector<float>& weight, int64_t out, int64_t in,
                             const std::vector<float>& x, int64_t batch, const Ends& ends) {
  Expected expected;
  expected.values.resize(static_cast<size_t>(batch * out));
  expected.bounds.resize(static_cast<size_t>(batch * out));
  std::vector<int64_t> used;
  for (int64_t row = 0; row < out; ++row) {
    const float* w = weight.data() + row * in;
    used.clear();
    for (int64_t i = 0; i < in; ++i) {
      if (w[i] != 0.0f) used.push_back(i);
    }
    for (int64_t b = 0; b < batch; ++b) {
      double sum = 0.0, size = 0.0;
      for (const int64_t i : used) {
        const double term = static_cast<double>(w[i]) * x[static_cast<size_t>(b * in + i)];
        sum += term;
        size += std::fabs(term);
      }
      Finish(sum, size, static_cast<int64_t>(used.size()), row, b * out + row, ends, &expected);
    }
  }
  return expected;
}

struct ConvCase {
  int64_t batch, height, width;
  sparsify_conv_attributes attributes;

  int64_t OutHeight() const { return Extent(height, 0); }
  int64_t OutWidth() const { return Extent(width, 1); }
  std::string Label() const {
    return "convolution " + std::to_string(attributes.kernel[0]) + "x" +
           std::to_string(attributes.kernel[1]) + " of " + std::to_string(batch) + "x" +
           std::to_string(attributes.in_channels) + "x" + std::to_string(height) + "x" +
           std::to_string(width);
  }

 private:
  int64_t Extent(int64_t size, int axis) const {
    const int64_t reach = (attributes.kernel[axis] - 1) * attributes.dilations[axis];
    return (size + attributes.pads[axis] + attributes.pads[axis + 2] - reach - 1) / attributes.strides[axis] +
           1;
  }
};

// One output of a convolution. `used`: the columns of its row of weights that are not zero.
inline void ExpectPixel(const ConvCase& c, const float* weight, const std::vector<int64_t>& used,
                        const std::vector<float>& x, const Ends& ends, int64_t image, int64_t row, int64_t oy,
                        int64_t ox, Expected* expected) {
  const sparsify_conv_attributes& a = c.attributes;
  const int64_t taps = a.kernel[0] * a.kernel[1];
  double sum = 0.0, size = 0.0;
  int64_t terms = 0;
  for (const int64_t i : used) {
    const int64_t channel = i / taps, ky = i % taps / a.kernel[1], kx = i % a.kernel[1];
    const int64_t y = oy * a.strides[0] + ky * a.dilations[0] - a.pads[0];
    const int64_t at = ox * a.strides[1] + kx * a.dilations[1] - a.pads[1];
    if (y < 0 || y >= c.height || at < 0 || at >= c.width) continue;
    const int64_t source = ((image * a.in_channels + channel) * c.height + y) * c.width + at;
    const double term = static_cast<double>(weight[i]) * x[static_cast<size_t>(source)];
    sum += term;
    size += std::fabs(term);
    ++terms;
  }
  const int64_t target = ((image * a.out_channels + row) * c.OutHeight() + oy) * c.OutWidth() + ox;
  Finish(sum, size, terms, row, target, ends, expected);
}

inline Expected ExpectConv(const ConvCase& c, const std::vector<float>& weight, const std::vector<float>& x,
                           const Ends& ends) {
  Expected expected;
  const sparsify_conv_attributes& a = c.attributes;
  const int64_t size = c.batch * a.out_channels * c.OutHeight() * c.OutWidth();
  const int64_t columns = a.in_channels * a.kernel[0] * a.kernel[1];
  expected.values.resize(static_cast<size_t>(size));
  expected.bounds.resize(static_cast<size_t>(size));
  std::vector<int64_t> used;
  for (int64_t row = 0; row < a.out_channels; ++row) {
    const float* w = weight.data() + row * columns;
    used.clear();
    for (int64_t i = 0; i < columns; ++i) {
      if (w[i] != 0.0f) used.push_back(i);
    }
    for (int64_t image = 0; image < c.batch; ++image) {
      for (int64_t y = 0; y < c.OutHeight(); ++y) {
        for (int64_t at = 0; at < c.OutWidth(); ++at) {
          ExpectPixel(c, w, used, x, ends, image, row, y, at, &expected);
        }
      }
    }
  }
  return expected;
}

}  // namespace sparsify_tests

#endif  // SPARSIFY_TESTS_NATIVE_REFERENCE_H_
