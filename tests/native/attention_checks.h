// Attention, every instruction set against sums in double precision. What is not finite, and what is refused.
#ifndef SPARSIFY_TESTS_NATIVE_ATTENTION_CHECKS_H_
#define SPARSIFY_TESTS_NATIVE_ATTENTION_CHECKS_H_

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "capi/attention.h"
#include "weights.h"

namespace sparsify_tests {

struct AttentionCase {
  sparsify_attention_call call;
  std::vector<float> q, k, v, bias;

  std::string Label() const {
    std::string text = "attention";
    for (const int64_t size : {call.batch, call.queries, call.keys, call.heads, call.kv_heads, call.key_size,
                               call.value_size, call.bias_shape[2], call.bias_shape[3]}) {
      text += " " + std::to_string(size);
    }
    return text + (call.causal != 0 ? " causal" : "");
  }
  double Bias(int64_t b, int64_t h, int64_t i, int64_t j) const {
    if (bias.empty()) return 0.0;
    const int64_t at[4] = {b, h, i, j};
    int64_t offset = 0;
    for (int axis = 0; axis < 4; ++axis) {
      offset = offset * call.bias_shape[axis] + (call.bias_shape[axis] == 1 ? 0 : at[axis]);
    }
    return bias[static_cast<size_t>(offset)];
  }
  size_t Outputs() const {
    return static_cast<size_t>(call.batch * call.queries * call.heads * call.value_size);
  }
};

inline AttentionCase MakeAttention(const sparsify_attention_call& call, bool biased, Random* random) {
  AttentionCase c = {call, {}, {}, {}, {}};
  c.q = random->Normals(call.batch * call.queries * call.heads * call.key_size);
  c.k = random->Normals(call.batch * call.keys * call.kv_heads * call.key_size);
  c.v = random->Normals(call.batch * call.keys * call.kv_heads * call.value_size);
  const int64_t* shape = call.bias_shape;
  if (biased) c.bias = random->Normals(shape[0] * shape[1] * shape[2] * shape[3]);
  return c;
}

// One row of the result: of query i of head h.
inline void ExpectQuery(const AttentionCase& c, int64_t b, int64_t h, int64_t i, double* row) {
  const sparsify_attention_call& a = c.call;
  const int64_t shared = h / (a.heads / a.kv_heads);
  const float* q = c.q.data() + ((b * a.queries + i) * a.heads + h) * a.key_size;
  const int64_t end = a.causal != 0 ? std::min(a.keys, i + 1) : a.keys;
  std::vector<double> weights(static_cast<size_t>(end));
  double most = -std::numeric_limits<double>::infinity(), sum = 0.0;
  for (int64_t j = 0; j < end; ++j) {
    const float* k = c.k.data() + ((b * a.keys + j) * a.kv_heads + shared) * a.key_size;
    double product = 0.0;
    for (int64_t d = 0; d < a.key_size; ++d) product += static_cast<double>(q[d]) * k[d];
    weights[static_cast<size_t>(j)] = a.scale * product + c.Bias(b, h, i, j);
    most = std::max(most, weights[static_cast<size_t>(j)]);
  }
  for (double& weight : weights) sum += weight = std::exp(weight - most);
  for (int64_t d = 0; d < a.value_size; ++d) row[d] = 0.0;
  for (int64_t j = 0; j < end; ++j) {
    const float* v = c.v.data() + ((b * a.keys + j) * a.kv_heads + shared) * a.value_size;
    for (int64_t d = 0; d < a.value_size; ++d) row[d] += weights[static_cast<size_t>(j)] / sum * v[d];
  }
}

inline std::vector<double> ExpectAttention(const AttentionCase& c) {
  std::vector<double> want(c.Outputs());
  double* row = want.data();
  for (int64_t b = 0; b < c.call.batch; ++b) {
    for (int64_t i = 0; i < c.call.queries; ++i) {
      for (int64_t h = 0; h < c.call.heads; ++h, row += c.call.value_size) ExpectQuery(c, b, h, i, row);
    }
  }
  return want;
}

inline std::vector<float> RunAttention(const std::string& kernel, const AttentionCase& c) {
  constexpr float kMark = 4321.0f;
  std::vector<float> y(c.Outputs() + 32, kMark);
  const float* bias = c.bias.empty() ? nullptr : c.bias.data();
  if (sparsify_attention_run(kernel.c_str(), &c.call, c.q.data(), c.k.data(), c.v.data(), bias,
                             y.data() + 16) != 0) {
    Die(kernel + " " + c.Label() + ": " + sparsify_last_error());
  }
  for (size_t i = 0; i < 16; ++i) {
    if (y[i] != kMark || y[y.size() - 1 - i] != kMark) Die(c.Label() + " wrote outside its output");
  }
  return {y.begin() + 16, y.end() - 16};
}

// A result is a mean of values, most of which are below 4.
inline bool IsNear(const std::vector<float>& got, const std::vector<double>& want) {
  const double bound = 64 * std::numeric_limits<float>::epsilon();
  for (size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(got[i] - want[i]) <= bound)) return false;
  }
  return true;
}

inline int64_t TestAttentionResults() {
  Random random(6);
  int64_t runs = 0;
  const int64_t sizes[][7] = {{1, 128, 128, 2, 2, 64, 64}, {2, 1, 5, 2, 1, 3, 9},
                              {1, 17, 33, 1, 1, 16, 1},    {2, 49, 70, 4, 2, 10, 13},
                              {1, 80, 1, 2, 2, 1, 20},     {1, 33, 1100, 1, 1, 8, 6}};
  for (const auto& s : sizes) {
    const int64_t biases[][4] = {
        {1, 1, 1, 1}, {1, 1, 1, s[2]}, {s[0], s[3], s[1], s[2]}, {s[0], 1, s[1], s[2]}, {1, s[3], s[1], 1}};
    int threads = 0;
    for (const auto& shape : biases) {
      for (const int32_t causal : {0, 1}) {
        threads = threads % 3 + 1;
        const sparsify_attention_call call = {s[0], s[1],   s[2], s[3],
                                              s[4], s[5],   s[6], {shape[0], shape[1], shape[2], shape[3]},
                                              0.3f, causal, 0,    threads};
        const bool biased = shape[0] * shape[1] * shape[2] * shape[3] > 1;
        const AttentionCase c = MakeAttention(call, biased, &random);
        const std::vector<double> want = ExpectAttention(c);
        for (const std::string& kernel : SupportedKernels()) {
          if (!IsNear(RunAttention(kernel, c), want)) Die(kernel + " " + c.Label() + ": a wrong result");
          ++runs;
        }
        AttentionCase other = c;
        for (float& x : other.v) x += 0.001f;
        if (IsNear(RunAttention("scalar", other), want)) Die(c.Label() + ": another value is not seen");
      }
    }
  }
  return runs;
}

inline void TestAttentionOfNothingVisible() {
  Random random(7);
  for (const std::string& kernel : SupportedKernels()) {
    for (const int32_t guard : {0, 1}) {
      AttentionCase c =
          MakeAttention({1, 20, 600, 1, 1, 4, 4, {1, 1, 20, 600}, 1.0f, 0, guard, 1}, true, &random);
      std::fill(c.bias.begin(), c.bias.begin() + 600, -std::numeric_limits<float>::infinity());
      c.q[4] = std::numeric_limits<float>::quiet_NaN();  // of query 1
      const std::vector<float> y = RunAttention(kernel, c);
      for (size_t i = 0; i < y.size(); ++i) {
        const bool expected = i >= 8 ? std::isfinite(y[i]) : guard != 0 ? y[i] == 0.0f : std::isnan(y[i]);
        if (!expected) Die(kernel + " " + c.Label() + ": output " + std::to_string(i));
      }
    }
  }
}

inline void TestAttentionRefusals() {
  const std::vector<float> x(64, 1.0f);
  std::vector<float> y(64);
  const sparsify_attention_call good = {1, 2, 2, 2, 2, 4, 4, {1, 1, 2, 2}, 1.0f, 0, 0, 1};
  const auto refused = [&](const sparsify_attention_call& call) {
    return sparsify_attention_run(nullptr, &call, x.data(), x.data(), x.data(), x.data(), y.data()) != 0;
  };
  sparsify_attention_call heads = good, shared = good, scale = good, bias = good, threads = good, size = good;
  heads.heads = 0;
  shared.kv_heads = 3;
  scale.scale = std::numeric_limits<float>::infinity();
  bias.bias_shape[3] = 3;
  threads.threads = 0;
  size.keys = -1;
  if (refused(good) || !refused(heads) || !refused(shared) || !refused(scale) || !refused(bias) ||
      !refused(threads) || !refused(size) ||
      sparsify_attention_run("nonsense", &good, x.data(), x.data(), x.data(), nullptr, y.data()) == 0) {
    Die("attention accepts arguments that make no sense, or refuses good ones");
  }
}

// Number of results that were compared.
inline int64_t TestAttention() {
  TestAttentionOfNothingVisible();
  TestAttentionRefusals();
  return TestAttentionResults();
}

}  // namespace sparsify_tests

#endif  // SPARSIFY_TESTS_NATIVE_ATTENTION_CHECKS_H_
