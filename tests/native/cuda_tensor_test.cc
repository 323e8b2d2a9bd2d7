// Products on tensor cores: results at every precision, what may be rounded, and what must not spread.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda_checks.h"

namespace sparsify_tests {
namespace {

constexpr const char* kPrecisionKey = "ai.sparsify.cuda_precision";
constexpr const char* kWide[] = {"blocks-8", "blocks-16"};

// A type that products take: significant bits, the smallest step, and how ties are rounded.
struct Format {
  int bits;
  double least;
  bool ties_away;

  float Round(float x) const {
    if (x == 0.0f) return x;
    const double unit = std::fmax(std::ldexp(1.0, std::ilogb(x) + 1 - bits), least), scaled = x / unit;
    return static_cast<float>((ties_away ? std::round(scaled) : std::nearbyint(scaled)) * unit);
  }
};

constexpr Format kTf32 = {11, 0.0, true}, kBfloat16 = {8, 0.0, false}, kFloat16 = {11, 0x1p-24, false};

// What the inputs become at a precision, for weights of a type; null where they stay as they are.
const Format* Taken(const std::string& precision, int32_t type) {
  if (precision == "float32") return nullptr;
  if (precision == "tf32" || type == 0) return &kTf32;
  return type == 1 ? &kBfloat16 : &kFloat16;
}

std::vector<float> Rounded(const std::vector<float>& values, const Format* format) {
  std::vector<float> rounded = values;
  for (float& value : rounded) value = format == nullptr ? value : format->Round(value);
  return rounded;
}

void CheckPrecision(const PackedWeight& packed, int32_t type, int64_t batch, const std::string& precision,
                    Random* random) {
  const Format* format = Taken(precision, type);
  const std::vector<float> weight = Stored(packed), x = random->Normals(batch * packed.columns);
  const OnDevice on_x(x);
  const OrtValue value = on_x.Value({batch, packed.columns});
  const Node node = Node::Linear(packed, Place::kDevice);
  NodeKernel kernel(node, {{kPrecisionKey, precision}});
  Expect(kernel.failure.empty(), kernel.failure);
  const std::string label = packed.layout + " of type " + std::to_string(type) + " batch " +
                            std::to_string(batch) + " in " + precision;
  const std::string problem = kernel.Run({&value, nullptr, nullptr}, kStream);
  Expect(problem.empty(), label + ": " + problem);
  const auto expect = [&](const std::vector<float>& w, const std::vector<float>& inputs) {
    return ExpectLinear(w, packed.rows, packed.columns, inputs, batch, Ends());
  };
  Compare(kernel, expect(Rounded(weight, format), Rounded(x, format)), label);
  Expect(format == nullptr || FirstWrong(kernel.y(), expect(weight, x)) >= 0, label + " rounds nothing");
}

void TestPrecisions() {
  Random random(21);
  const std::vector<float> weight = SparseWeight(&random, 37, 283, 0.2);
  for (const char* layout : kWide) {
    for (int32_t type = 0; type < kValueTypes; ++type) {
      const PackedWeight packed = Pack(layout, weight, 37, 283, type);
      for (const char* precision : {"float32", "tf32", "half"}) {
        for (const int64_t batch : {16, 40}) CheckPrecision(packed, type, batch, precision, &random);
      }
    }
  }
  // Inputs in tiles, and lines in groups, that end unevenly; whole loads of four inputs.
  const std::vector<float> large = SparseWeight(&random, 300, 520, 0.02);
  for (const char* layout : kWide) {
    for (const int64_t batch : {20, 40, 70}) {  // 16, 32 and 64 rows of W a warp
      CheckPrecision(Pack(layout, large, 300, 520), 0, batch, "float32", &random);
      CheckPrecision(Pack(layout, large, 300, 520, 1), 1, batch, "half", &random);
    }
  }
  const PackedWeight none = Pack("blocks-8", std::vector<float>(24 * 40, 0.0f), 24, 40);
  CheckPrecision(none, 0, 33, "float32", &random);
}

// Each of these must come out as if it were the only number: their rests, and sizes of all kinds.
void TestNumbersOfAllSizes() {
  Random random(22);
  for (const char* layout : kWide) {
    std::vector<float> weight(16 * 64, 0.0f), x(32 * 64);
    for (int64_t i = 0; i < 16; ++i) weight[static_cast<size_t>(i * 64 + 4 * i)] = random.Normal();
    for (float& value : x)
      value = random.Normal() * std::ldexp(1.0f, static_cast<int>(random.Below(100)) - 60);
    const PackedWeight packed = Pack(layout, weight, 16, 64);
    const OnDevice on_x(x);
    const OrtValue value = on_x.Value({32, 64});
    NodeKernel kernel(Node::Linear(packed, Place::kDevice));
    Expect(kernel.Run({&value, nullptr, nullptr}, kStream).empty(), "the run failed");
    for (size_t i = 0; i < 32 * 16; ++i) {
      const size_t row = i % 16, input = 4 * row;
      const double want = static_cast<double>(weight[row * 64 + input]) * x[i / 16 * 64 + input];
      const double off = std::fabs(kernel.y()[i] - want);
      Expect(off <= 0x1p-20 * std::fabs(want), std::string(layout) + ": a single product is off");
    }
    ++Runs();
  }
}

// An input reaches the rows of the blocks that store its column, and no other.
void TestNonFiniteInputsStayInTheirBlocks() {
  Random random(23);
  const std::vector<float> weight = SparseWeight(&random, 64, 100, 0.04);
  for (const char* precision : {"float32", "tf32", "half"}) {
    for (const char* layout : kWide) {
      const int64_t rows = layout == kWide[0] ? 8 : 16;
      const PackedWeight packed = Pack(layout, weight, 64, 100, 1);
      for (const float odd :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        std::vector<float> x = random.Normals(20 * 100);
        x[2 * 100] = odd;
        const OnDevice on_x(x);
        const OrtValue value = on_x.Value({20, 100});
        const Node node = Node::Linear(packed, Place::kDevice);
        NodeKernel kernel(node, {{kPrecisionKey, precision}});
        Expect(kernel.Run({&value, nullptr, nullptr}, kStream).empty(), "the run failed");
        for (int64_t i = 0; i < 20 * 64; ++i) {
          bool stored = false;
          for (int64_t r = i % 64 / rows * rows; r < i % 64 / rows * rows + rows; ++r)
            stored = stored || weight[static_cast<size_t>(r * 100)] != 0.0f;
          Expect(std::isfinite(kernel.y()[i]) != (i / 64 == 2 && stored),
                 "what is not finite in X is wrong in output " + std::to_string(i));
        }
        ++Runs();
      }
    }
  }
}

void ExpectKernel(const char* layout, int32_t type, const Entries& entries, const std::string& name) {
  Random random(24);
  const PackedWeight packed = Pack(layout, SparseWeight(&random, 16, 24, 0.3), 16, 24, type);
  const OnDevice x(random.Normals(16 * 24));
  const OrtValue value = x.Value({16, 24});
  const Node node = Node::Linear(packed, Place::kDevice);
  NodeKernel kernel(node, entries);
  Expect(kernel.Run({&value, nullptr, nullptr}, kStream).empty(), "the run failed");
  Expect(Stub::The().Last().kernel == name, "launched " + std::string(Stub::The().Last().kernel));
}

void TestTheOptionDecides() {
  ExpectKernel("blocks-16", 0, {}, "split_16_1");
  ExpectKernel("blocks-8", 0, {{kPrecisionKey, "tf32"}}, "tf32_8_1");
  ExpectKernel("blocks-8", 0, {{kPrecisionKey, "half"}}, "tf32_8_1");
  ExpectKernel("blocks-8", 2, {{kPrecisionKey, "half"}}, "half_8_1");
  ExpectKernel("blocks-4", 0, {{kPrecisionKey, "tf32"}}, "tile_4_1");
  setenv("SPARSIFY_CUDA_PRECISION", "half", 1);
  ExpectKernel("blocks-16", 1, {}, "half_16_1");
  ExpectKernel("blocks-16", 1, {{kPrecisionKey, "float32"}}, "split_16_1");
  unsetenv("SPARSIFY_CUDA_PRECISION");
}

void TestAWrongPrecisionMattersToNodesOnTheGpuOnly() {
  Random random(37);
  const PackedWeight packed = Pack("blocks-8", SparseWeight(&random, 16, 24, 0.3), 16, 24, 0);
  const Node node = Node::Linear(packed, Place::kDevice);
  setenv("SPARSIFY_CUDA_PRECISION", "double", 1);
  const std::string why =
      "environment variable SPARSIFY_CUDA_PRECISION must be float32, tf32 or half, not 'double'";
  const NodeKernel wrong(node);
  Expect(wrong.failure.find(why) != std::string::npos, wrong.failure);
  const NodeKernel overruled(node, {{kPrecisionKey, "half"}});
  Expect(overruled.failure.empty(), overruled.failure);
  unsetenv("SPARSIFY_CUDA_PRECISION");
  OrtSessionOptions options;
  options.entries = {{kPrecisionKey, "int8"}};
  const std::string refused = Message(RegisterCustomOps(&options, fake_ort::Base()));
  Expect(refused.find("must be float32, tf32 or half, not 'int8'") != std::string::npos, refused);
  const NodeKernel right(node);
  Expect(right.failure.empty(), right.failure);
}

}  // namespace

void TestTensorCores() {
  TestPrecisions();
  TestNumbersOfAllSizes();
  TestNonFiniteInputsStayInTheirBlocks();
  TestTheOptionDecides();
  TestAWrongPrecisionMattersToNodesOnTheGpuOnly();
}

}  // namespace sparsify_tests
