// The operators for CUDAExecutionProvider without a GPU: registration, results, launches and errors, on the
// stub driver.
//
//   cuda_test results | tensor | convolutions | launches | registration | errors | creation TEXT
//
// "creation" expects that no kernel can be made, with TEXT in the message; SPARSIFY_STUB_FAIL and
// SPARSIFY_CUDA_DRIVER say why.
#include <cmath>
#include <limits>

#include "cuda_checks.h"

namespace sparsify_tests {
namespace {

void CheckLinear(const PackedWeight& packed, const std::vector<int64_t>& batches, bool all_ends,
                 Random* random) {
  const std::vector<float> weight = Stored(packed), bias = random->Normals(packed.rows);
  int turn = 0;
  for (const int64_t batch : batches) {
    const std::vector<float> x = random->Normals(batch * packed.columns),
                             residual = random->Normals(batch * packed.rows);
    const OnDevice on_x(x), on_bias(bias), on_residual(residual);
    const OrtValue x_value = on_x.Value({batch, packed.columns}), bias_value = on_bias.Value({packed.rows}),
                   residual_value = on_residual.Value({batch, packed.rows});
    Ends ends;
    ends.activation = all_ends ? turn % kActivations : 0;
    const bool constant = turn % 2 == 0;
    if (all_ends) ends.bias = bias.data();
    if (all_ends && turn % 3 != 0) ends.residual = residual.data();
    Node node = Node::Linear(packed, turn % 4 < 2 ? Place::kDevice : Place::kHost);
    node.SetEnding(ends);
    if (all_ends && constant) node.info.inputs[1] = bias_value;
    NodeKernel kernel(node);
    Expect(kernel.failure.empty(), kernel.failure);
    const std::string label = packed.layout + " " + std::to_string(packed.rows) + "x" +
                              std::to_string(packed.columns) + " batch " + std::to_string(batch);
    const std::string problem = kernel.Run({&x_value, all_ends && !constant ? &bias_value : nullptr,
                                            ends.residual != nullptr ? &residual_value : nullptr},
                                           kStream);
    Expect(problem.empty(), label + ": " + problem);
    Compare(kernel, ExpectLinear(weight, packed.rows, packed.columns, x, batch, ends), label);
    ++turn;
  }
}

void TestResults() {
  Random random(1);
  const int64_t shapes[][2] = {{1, 1}, {70, 300}, {3, 600}};
  for (const auto& shape : shapes) {
    for (const double density : {0.0, 0.15, 1.0}) {
      if (density == 1.0 && shape[0] == 70) continue;
      const std::vector<float> weight = SparseWeight(&random, shape[0], shape[1], density);
      for (const char* layout : kLayouts)
        CheckLinear(Pack(layout, weight, shape[0], shape[1]), {1, 5, 40}, false, &random);
    }
  }
  const std::vector<float> weight = SparseWeight(&random, 37, 283, 0.2);
  for (const char* layout : kLayouts) {
    CheckLinear(Pack(layout, weight, 37, 283), {1, 2, 3, 4, 16, 17, 31, 33, 65, 100}, true, &random);
    for (int32_t type = 1; type < kValueTypes; ++type) {
      CheckLinear(Pack(layout, weight, 37, 283, type), {1, 3, 40}, false, &random);
    }
  }
  const std::vector<float> wide = SparseWeight(&random, 5, 70001, 0.002);
  for (const char* layout : {"csr", "blocks-4"})
    CheckLinear(Pack(layout, wide, 5, 70001), {1, 18}, false, &random);
  std::vector<float> uneven = SparseWeight(&random, 40, 300, 0.1);
  for (size_t i = 0; i < 16 * 300; ++i) uneven[i] = 0.0f;
  for (size_t i = 20 * 300; i < 21 * 300; ++i) uneven[i] = random.Normal();
  for (const char* layout : kLayouts) CheckLinear(Pack(layout, uneven, 40, 300), {1, 6, 40}, false, &random);
}

void TestAPerturbedWeightIsSeen() {
  Random random(4);
  const std::vector<float> weight = SparseWeight(&random, 32, 96, 0.3);
  std::vector<float> changed = weight;
  for (float& value : changed) value *= 1.001f;
  for (const char* layout : kLayouts) {
    for (const int64_t batch : {1, 20}) {
      const std::vector<float> x = random.Normals(batch * 96);
      const OnDevice on_x(x);
      const OrtValue value = on_x.Value({batch, 96});
      const PackedWeight packed = Pack(layout, changed, 32, 96);
      NodeKernel kernel(Node::Linear(packed, Place::kDevice));
      Expect(kernel.Run({&value, nullptr, nullptr}, kStream).empty(), "the run failed");
      Expect(FirstWrong(kernel.y(), ExpectLinear(weight, 32, 96, x, batch, Ends())) >= 0,
             std::string(layout) + ": a weight that is off by a thousandth is not noticed");
    }
  }
}

void TestNonFiniteInputsReachTheRowsThatUseThem() {
  Random random(3);
  const std::vector<float> weight = SparseWeight(&random, 50, 100, 0.2);
  for (const int64_t batch : {2, 20}) {
    std::vector<float> x = random.Normals(batch * 100);
    x[3] = std::numeric_limits<float>::quiet_NaN();
    const OnDevice on_x(x);
    const OrtValue value = on_x.Value({batch, 100});
    const PackedWeight packed = Pack("csr", weight, 50, 100);
    Node node = Node::Linear(packed, Place::kDevice);
    node.info.strings["activation"] = "relu";
    NodeKernel kernel(node);
    Expect(kernel.Run({&value, nullptr, nullptr}, kStream).empty(), "the run failed");
    for (int64_t i = 0; i < batch * 50; ++i) {
      const bool nan = i < 50 && weight[static_cast<size_t>(i * 100 + 3)] != 0.0f;
      Expect(std::isnan(kernel.y()[i]) == nan, "NaN in X is wrong in output " + std::to_string(i));
    }
  }
}

void CheckConv(const ConvCase& c, Random* random) {
  const sparsify_conv_attributes& a = c.attributes;
  const int64_t columns = a.in_channels * a.kernel[0] * a.kernel[1];
  const std::vector<float> weight = SparseWeight(random, a.out_channels, columns, 0.3);
  const std::vector<float> x = random->Normals(c.batch * a.in_channels * c.height * c.width);
  const std::vector<float> bias = random->Normals(a.out_channels);
  const std::vector<int64_t> y_dims = {c.batch, a.out_channels, c.OutHeight(), c.OutWidth()};
  const std::vector<float> residual = random->Normals(y_dims[0] * y_dims[1] * y_dims[2] * y_dims[3]);
  const OnDevice on_x(x), on_bias(bias), on_residual(residual);
  const OrtValue x_value = on_x.Value({c.batch, a.in_channels, c.height, c.width});
  const OrtValue residual_value = on_residual.Value(y_dims);
  for (const char* layout : kLayouts) {
    Ends ends;
    ends.activation = static_cast<int32_t>(Runs() % kActivations);
    ends.bias = bias.data();
    if (Runs() % 2 == 0) ends.residual = residual.data();
    const PackedWeight packed = Pack(layout, weight, a.out_channels, columns);
    Node node = Node::Conv(packed, a, Runs() % 3 == 0 ? Place::kHost : Place::kDevice);
    node.info.inputs[1] = on_bias.Value({a.out_channels});
    node.SetEnding(ends);
    NodeKernel kernel(node);
    const std::string label = std::string(layout) + " " + c.Label();
    Expect(kernel.failure.empty(), label + ": " + kernel.failure);
    const std::string problem =
        kernel.Run({&x_value, nullptr, ends.residual != nullptr ? &residual_value : nullptr}, kStream);
    Expect(problem.empty() && kernel.shape == y_dims, label + ": " + problem);
    Compare(kernel, ExpectConv(c, weight, x, ends), label);
  }
}

void TestConvolutions() {
  // batch, height, width; out, in channels, kernel, strides, pads, dilations
  const ConvCase cases[] = {
      {2, 5, 7, {3, 4, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}}},
      {5, 8, 8, {8, 9, {1, 1}, {2, 2}, {0, 0, 0, 0}, {1, 1}}},
      {3, 9, 11, {17, 5, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}}},
      {1, 20, 23, {70, 4, {7, 5}, {3, 2}, {2, 0, 1, 3}, {1, 2}}},
      {4, 4, 4, {5, 3, {3, 3}, {4, 4}, {2, 2, 0, 0}, {1, 1}}},
      {2, 1, 40, {6, 3, {1, 5}, {1, 3}, {0, 2, 0, 2}, {1, 3}}},
      {2, 3, 3, {4, 3, {2, 2}, {2, 2}, {5, 5, 5, 5}, {1, 1}}},
      {2, 8, 8, {7, 5, {3, 3}, {1, 1}, {2, 2, 2, 2}, {2, 2}}},
  };
  Random random(6);
  for (const ConvCase& c : cases) CheckConv(c, &random);
}

}  // namespace

void TestTensorCores();
void TestLaunches();
void TestRegistration();
void TestErrors();
void TestCreationFails(const std::string& text);

}  // namespace sparsify_tests

int main(int count, char** arguments) {
  using namespace sparsify_tests;
  const std::string what = count > 1 ? arguments[1] : "";
  if (what == "results") {
    TestResults();
    TestAPerturbedWeightIsSeen();
    TestNonFiniteInputsReachTheRowsThatUseThem();
  } else if (what == "tensor") {
    TestTensorCores();
  } else if (what == "convolutions") {
    TestConvolutions();
  } else if (what == "launches") {
    TestLaunches();
  } else if (what == "registration") {
    TestRegistration();
  } else if (what == "errors") {
    TestErrors();
  } else if (what == "creation" && count > 2) {
    TestCreationFails(arguments[2]);
  } else {
    Die("say what to test: results, tensor, convolutions, launches, registration, errors, or creation TEXT");
  }
  if (what != "creation") Expect(Stub::The().Counts().contexts == 0, "a context was entered and not left");
  std::printf("%s: %lld runs as expected\n", what.c_str(), static_cast<long long>(Runs()));
  return 0;
}
