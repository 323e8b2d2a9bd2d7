// Corrupt packed weights: each is refused with a message, or means the weight that it unpacks to.
//
//   fuzz_test [cases] [seed]
//
// Tensors lie in memory of exactly their size, so AddressSanitizer sees any read beyond them.
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>

#include "reference.h"
#include "weights.h"

namespace sparsify_tests {
namespace {

constexpr int64_t kMostRun = int64_t{1} << 18;  // outputs and weights of what is run

struct Tally {
  int64_t refused = 0, accepted = 0, compared = 0, convolutions = 0;
};
Tally tally;

// A packed weight that can be damaged, and the shape and layout that its user claims.
struct Case {
  PackedWeight packed;
  std::string layout;
  int64_t out = 0, in = 0;

  std::vector<unsigned char>& bytes(size_t i) { return packed.memory[i]; }
  sparsify_tensor& tensor(size_t i) { return packed.tensors[i]; }
  void Resize(size_t i, int64_t elements) {
    std::vector<unsigned char> exact(static_cast<size_t>(elements * ElementBytes(tensor(i).type)));
    std::copy_n(bytes(i).begin(), std::min(exact.size(), bytes(i).size()), exact.begin());
    bytes(i) = std::move(exact);
    tensor(i).data = bytes(i).data();
    tensor(i).size = elements;
  }
  int32_t Int(size_t i, size_t at) const {
    int32_t value = 0;
    std::memcpy(&value, packed.memory[i].data() + 4 * at, 4);
    return value;
  }
  void SetInt(size_t i, size_t at, int32_t value) { std::memcpy(bytes(i).data() + 4 * at, &value, 4); }
};

int32_t Extreme(Random* random, int64_t near) {
  const int64_t values[] = {-1,      0,       1,           2,     near,  near + 1, near - 1,
                            INT_MIN, INT_MAX, INT_MAX - 1, 65535, 65536, 65537,    -near};
  if (random->Below(4) == 0) return static_cast<int32_t>(random->Bits());
  return static_cast<int32_t>(
      values[random->Below(static_cast<int64_t>(sizeof(values) / sizeof(values[0])))]);
}

int64_t ExtremeExtent(Random* random, int64_t near) {
  near = std::clamp<int64_t>(near, 1, 1 << 20);
  const int64_t values[] = {0,
                            -1,
                            1,
                            2,
                            near - 1,
                            near + 1,
                            2 * near,
                            INT_MAX,
                            int64_t{1} << 31,
                            int64_t{1} << 32,
                            INT64_MAX,
                            INT64_MIN,
                            INT64_MAX / near,
                            65536,
                            65537};
  return values[random->Below(static_cast<int64_t>(sizeof(values) / sizeof(values[0])))];
}

void FlipBit(Case* c, Random* random) {
  std::vector<unsigned char>& bytes = c->bytes(static_cast<size_t>(random->Below(c->packed.count())));
  if (bytes.empty()) return;
  const auto at = static_cast<size_t>(random->Below(static_cast<int64_t>(bytes.size())));
  bytes[at] = static_cast<unsigned char>(bytes[at] ^ 1u << random->Below(8));
}

// An element of any tensor becomes an extreme one.
void SetElement(Case* c, Random* random) {
  const auto i = static_cast<size_t>(random->Below(c->packed.count()));
  const sparsify_tensor& tensor = c->tensor(i);
  const auto width = static_cast<size_t>(ElementBytes(tensor.type));
  if (tensor.size < 1 || tensor.data == nullptr) return;
  const auto at = static_cast<size_t>(random->Below(tensor.size));
  const int32_t value = Extreme(random, tensor.size);
  std::memcpy(c->bytes(i).data() + width * at, &value, width);
}

void SwapElements(Case* c, Random* random) {
  const auto i = static_cast<size_t>(random->Below(c->packed.count()));
  const auto width = static_cast<size_t>(ElementBytes(c->tensor(i).type));
  if (c->tensor(i).size < 2 || c->tensor(i).data == nullptr) return;
  unsigned char* first = c->bytes(i).data() + width * static_cast<size_t>(random->Below(c->tensor(i).size));
  unsigned char* second = c->bytes(i).data() + width * static_cast<size_t>(random->Below(c->tensor(i).size));
  std::swap_ranges(first, first + width, second == first ? first : second);
}

void ChangeSize(Case* c, Random* random) {
  const auto i = static_cast<size_t>(random->Below(c->packed.count()));
  if (c->tensor(i).data == nullptr) return;
  const int64_t sizes[] = {0, 1, c->tensor(i).size - 1, c->tensor(i).size + 1, 2 * c->tensor(i).size};
  c->Resize(i, std::max<int64_t>(0, sizes[random->Below(5)]));
}

// No memory at all, whatever the size says.
void RemoveData(Case* c, Random* random) {
  const auto i = static_cast<size_t>(random->Below(c->packed.count()));
  c->tensor(i).data = nullptr;
  if (random->Below(2) == 0) c->tensor(i).size = ExtremeExtent(random, c->tensor(i).size);
}

void ChangeType(Case* c, Random* random) {
  const auto i = static_cast<size_t>(random->Below(c->packed.count()));
  c->tensor(i).type = static_cast<int32_t>(random->Below(20));
  if (c->tensor(i).data != nullptr) c->Resize(i, c->tensor(i).size);
}

void ChangeCount(Case* c, Random* random) {
  const auto i = static_cast<size_t>(random->Below(c->packed.count()));
  const auto j = static_cast<size_t>(random->Below(c->packed.count()));
  switch (random->Below(3)) {
    case 0:
      std::swap(c->packed.tensors[i], c->packed.tensors[j]);
      std::swap(c->packed.memory[i], c->packed.memory[j]);
      return;
    case 1:
      c->packed.tensors.pop_back();
      c->packed.memory.pop_back();
      if (c->packed.tensors.empty()) c->packed.tensors.push_back({nullptr, 1, 0, 0});
      c->packed.memory.resize(c->packed.tensors.size());
      return;
    default:
      c->packed.memory.push_back(c->bytes(i));
      c->packed.tensors.push_back(c->tensor(i));
      c->packed.tensors.back().data = c->packed.memory.back().data();
  }
}

// The claimed shape, or shape and header together, so that the check of one against the other passes.
void ChangeShape(Case* c, Random* random) {
  int64_t& extent = random->Below(2) == 0 ? c->out : c->in;
  extent = ExtremeExtent(random, extent);
  if (random->Below(2) == 0 && c->bytes(0).size() >= 32) {
    c->SetInt(0, 2, static_cast<int32_t>(c->out));
    c->SetInt(0, 3, static_cast<int32_t>(c->in));
    if (random->Below(2) == 0) c->SetInt(0, 5, c->in <= 65536 ? 2 : 4);
  }
}

// Number of blocks in the header, last pointer and sizes together.
void ChangeBlocks(Case* c, Random* random) {
  if (c->packed.count() != 4 || c->bytes(0).size() < 32 || c->bytes(1).size() < 8) return;
  const auto blocks = static_cast<int32_t>(c->Int(0, 4) + random->Below(5) - 2);
  c->SetInt(0, 4, random->Below(8) == 0 ? Extreme(random, blocks) : blocks);
  c->SetInt(1, c->bytes(1).size() / 4 - 1, c->Int(0, 4));
  if (blocks > 0 && blocks < 10000 && c->tensor(2).data != nullptr && c->tensor(3).data != nullptr) {
    c->Resize(2, blocks);
    c->Resize(3, c->tensor(3).size / std::max<int64_t>(1, c->tensor(2).size) * blocks);
  }
}

void ChangeLayout(Case* c, Random* random) {
  const char* const names[] = {"csr",       "blocks-2", "blocks-4", "blocks-8",
                               "blocks-16", "blocks-3", "blocks-",  ""};
  c->layout = names[random->Below(8)];
}

void Damage(Case* c, Random* random) {
  using Change = void (*)(Case*, Random*);
  static constexpr Change kChanges[] = {FlipBit,     SetElement,   SetElement,  SwapElements,
                                        ChangeSize,  RemoveData,   ChangeType,  ChangeCount,
                                        ChangeShape, ChangeBlocks, ChangeLayout};
  for (int64_t i = random->Below(3); i >= 0; --i) {
    kChanges[random->Below(static_cast<int64_t>(sizeof(kChanges) / sizeof(kChanges[0])))](c, random);
  }
}

void CheckRefusal() {
  if (std::strlen(sparsify_last_error()) < 8) Die("a refusal without a message");
  ++tally.refused;
}

bool Tame(const std::vector<float>& weight) {
  return std::all_of(weight.begin(), weight.end(), [](float w) { return std::fabs(w) < 1e6f; });
}

void RunLinear(const Case& c, const sparsify_linear* linear, const std::vector<float>& weight,
               const std::string& kernel, Random* random) {
  const int64_t batches[] = {0, 1, 2, 3, 7, 20, 70};
  const int64_t batch = batches[random->Below(7)];
  if (batch * std::max(c.out, c.in) > kMostRun) return;
  const std::vector<float> x = random->Normals(batch * c.in);
  std::vector<float> y(static_cast<size_t>(batch * c.out));
  Ends ends;
  ends.activation = static_cast<int32_t>(random->Below(kActivations));
  const sparsify_run_options options = ends.Options(1 + static_cast<int>(random->Below(3)));
  if (sparsify_linear_run(linear, x.data(), batch, &options, y.data()) != 0)
    Die("an accepted weight does not run");
  if (!Tame(weight)) return;
  const Expected want = ExpectLinear(weight, c.out, c.in, x, batch, ends);
  for (size_t i = 0; i < y.size(); ++i) {
    // Stored zeros and tiny values count as terms for the kernel only.
    if (!(std::fabs(y[i] - want.values[i]) <= 4 * want.bounds[i])) {
      Die(kernel + " " + c.layout + " computes something else than the weight that it unpacks to");
    }
  }
  ++tally.compared;
}

void TryLinear(const Case& c, const std::string& kernel, Random* random) {
  const char* layout = c.layout.c_str();
  const sparsify_tensor* tensors = c.packed.tensors.data();
  const int32_t count = c.packed.count();
  const bool accepted = sparsify_unpack(layout, tensors, count, c.out, c.in, nullptr) == 0;
  if (!accepted) CheckRefusal();
  sparsify_linear* linear = nullptr;
  if ((sparsify_linear_create(layout, kernel.c_str(), c.out, c.in, tensors, count, &linear) == 0) !=
      accepted) {
    Die("the check and the kernel disagree about a packed weight");
  }
  if (!accepted) return CheckRefusal();
  ++tally.accepted;
  if (c.out <= kMostRun / c.in) {
    std::vector<float> weight(static_cast<size_t>(c.out * c.in), NAN);
    if (sparsify_unpack(layout, tensors, count, c.out, c.in, weight.data()) != 0)
      Die("it does not unpack twice");
    RunLinear(c, linear, weight, kernel, random);
  }
  sparsify_linear_free(linear);
}

void ChangeGeometry(sparsify_conv_attributes* a, Random* random) {
  int64_t* const members[] = {&a->out_channels, &a->in_channels, &a->kernel[0],    &a->kernel[1],
                              &a->strides[0],   &a->strides[1],  &a->pads[0],      &a->pads[1],
                              &a->pads[2],      &a->pads[3],     &a->dilations[0], &a->dilations[1]};
  for (int64_t i = random->Below(3); i > 0; --i) {
    int64_t& member = *members[random->Below(12)];
    member = random->Below(3) == 0 ? ExtremeExtent(random, member) : random->Below(5);
  }
}

void TryConv(const Case& c, const sparsify_conv_attributes& a, const std::string& kernel, Random* random) {
  sparsify_conv* conv = nullptr;
  if (sparsify_conv_create(c.layout.c_str(), kernel.c_str(), &a, c.packed.tensors.data(), c.packed.count(),
                           &conv)) {
    return CheckRefusal();
  }
  ++tally.accepted;
  const int64_t extents[] = {1, 2, 5, 9, 0, -1, INT64_MAX, int64_t{1} << 40};
  const int64_t height = extents[random->Below(random->Below(4) == 0 ? 8 : 4)];
  const int64_t width = extents[random->Below(random->Below(4) == 0 ? 8 : 4)];
  int64_t out_height = 0, out_width = 0;
  if (sparsify_conv_output_size(conv, height, width, &out_height, &out_width) != 0) {
    CheckRefusal();
  } else if (height < 10 && width < 10 && a.in_channels < 100 && a.out_channels < 1000 &&
             a.kernel[0] * a.kernel[1] < 100 && out_height < 64 && out_width < 64) {
    const std::vector<float> x = random->Normals(2 * a.in_channels * height * width);
    std::vector<float> y(static_cast<size_t>(2 * a.out_channels * out_height * out_width));
    const sparsify_run_options options = Ends().Options(1 + static_cast<int>(random->Below(3)));
    if (sparsify_conv_run(conv, x.data(), 2, height, width, &options, y.data()) != 0) {
      Die("an accepted convolution does not run");
    }
    ++tally.convolutions;
  }
  sparsify_conv_free(conv);
}

Case MakeCase(int64_t rows, int64_t columns, double density, Random* random) {
  Case c;
  c.layout = kLayouts[random->Below(5)];
  c.out = rows;
  c.in = columns;
  c.packed = Pack(c.layout.c_str(), SparseWeight(random, rows, columns, density), rows, columns,
                  static_cast<int32_t>(random->Below(kValueTypes)));
  return c;
}

void TryOne(const std::vector<std::string>& kernels, Random* random) {
  const std::string& kernel =
      kernels[static_cast<size_t>(random->Below(static_cast<int64_t>(kernels.size())))];
  const double densities[] = {0.0, 0.1, 0.4, 1.0};
  const double density = densities[random->Below(4)];
  if (random->Below(4) == 0) {
    sparsify_conv_attributes a = {1 + random->Below(20), 1 + random->Below(4), {1, 1}, {1, 1}, {}, {1, 1}};
    a.kernel[0] = 1 + random->Below(3);
    a.kernel[1] = 1 + random->Below(3);
    Case c = MakeCase(a.out_channels, a.in_channels * a.kernel[0] * a.kernel[1], density, random);
    if (random->Below(2) == 0) Damage(&c, random);
    ChangeGeometry(&a, random);
    return TryConv(c, a, kernel, random);
  }
  const bool wide = random->Below(100) == 0;  // columns of 32 bits
  const int64_t columns = wide ? 65536 + random->Below(10) : 1 + random->Below(70);
  Case c =
      MakeCase(wide ? 1 + random->Below(3) : 1 + random->Below(40), columns, wide ? 0.001 : density, random);
  Damage(&c, random);
  TryLinear(c, kernel, random);
}

void TestArgumentsThatAreNotThere() {
  sparsify_packed* packed = nullptr;
  sparsify_linear* linear = nullptr;
  sparsify_conv* conv = nullptr;
  const float weight[4] = {1.0f, 0.0f, 2.0f, 3.0f};
  const sparsify_tensor none[4] = {};
  const sparsify_conv_attributes a = {2, 2, {1, 1}, {1, 1}, {}, {1, 1}};
  const bool refused = sparsify_pack(nullptr, weight, 2, 2, 0, &packed) != 0 &&
                       sparsify_pack("csr", nullptr, 2, 2, 0, &packed) != 0 &&
                       sparsify_pack("csr", weight, 0, 2, 0, &packed) != 0 &&
                       sparsify_pack("csr", weight, 2, INT64_MAX, 0, &packed) != 0 &&
                       sparsify_pack("csr", weight, -1, -1, 0, &packed) != 0 &&
                       sparsify_pack("csr", weight, 2, 2, kValueTypes, &packed) != 0 &&
                       sparsify_unpack("csr", none, 4, 2, 2, nullptr) != 0 &&
                       sparsify_unpack("csr", nullptr, 4, 2, 2, nullptr) != 0 &&
                       sparsify_unpack("csr", nullptr, -1, 2, 2, nullptr) != 0 &&
                       sparsify_linear_create(nullptr, nullptr, 2, 2, none, 4, &linear) != 0 &&
                       sparsify_linear_create("csr", "nonsense", 2, 2, none, 4, &linear) != 0 &&
                       sparsify_conv_create("csr", nullptr, nullptr, none, 4, &conv) != 0 &&
                       sparsify_conv_create("csr", nullptr, &a, nullptr, 0, &conv) != 0;
  if (!refused) Die("an argument that is not there was accepted");
}

}  // namespace
}  // namespace sparsify_tests

int main(int argc, char** argv) {
  using namespace sparsify_tests;
  const long cases = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 20000;
  const long seed = argc > 2 ? std::strtol(argv[2], nullptr, 10) : 1;
  TestArgumentsThatAreNotThere();
  Random random(static_cast<uint32_t>(seed));
  const std::vector<std::string> kernels = SupportedKernels();
  for (long i = 0; i < cases; ++i) TryOne(kernels, &random);
  std::printf(
      "%ld cases of seed %ld: %lld refusals, %lld weights accepted, %lld linear results compared, %lld "
      "convolutions run\n",
      cases, seed, static_cast<long long>(tally.refused), static_cast<long long>(tally.accepted),
      static_cast<long long>(tally.compared), static_cast<long long>(tally.convolutions));
  if (tally.refused < cases / 4 || tally.compared < cases / 50) Die("too few cases of one kind");
  return 0;
}
