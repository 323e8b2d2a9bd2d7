// Chains of convolutions against the same convolutions one by one in double precision, and damaged chains.
//
//   chain_test [chains] [seed]
#include "capi/chain.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>

#include "reference.h"
#include "weights.h"

namespace sparsify_tests {
namespace {

constexpr float kSentinel = 12345.0f;
constexpr size_t kGuard = 64;

struct Map {
  int64_t channels, height, width;
  bool operator==(const Map& other) const {
    return channels == other.channels && height == other.height && width == other.width;
  }
};

// A chain as its user holds it: everything that the steps refer to, in memory of exactly its size.
struct Chain {
  std::vector<Map> values;  // outer maps, then what each step gives
  int64_t maps = 1;
  std::vector<sparsify_conv_attributes> attributes;
  std::vector<std::vector<float>> weights, biases;
  std::vector<PackedWeight> packed;
  std::vector<int64_t> inputs, residuals;
  std::vector<int32_t> activations;

  size_t count() const { return attributes.size(); }
  std::vector<int64_t> Sizes() const {
    std::vector<int64_t> sizes;
    for (size_t i = 0; i < static_cast<size_t>(maps); ++i) {
      sizes.insert(sizes.end(), {values[i].height, values[i].width});
    }
    return sizes;
  }
  std::vector<sparsify_chain_step> Steps() const {
    std::vector<sparsify_chain_step> steps;
    for (size_t i = 0; i < count(); ++i) {
      steps.push_back({packed[i].layout.c_str(), &attributes[i], packed[i].tensors.data(),
                       biases[i].empty() ? nullptr : biases[i].data(), inputs[i], residuals[i],
                       packed[i].count(), activations[i], -0.4f, 0.9f});
    }
    return steps;
  }

  void Add(Random* random, int64_t input, const sparsify_conv_attributes& a, const char* layout,
           bool residual) {
    const Map& x = values[static_cast<size_t>(input)];
    const ConvCase c = {1, x.height, x.width, a};
    const Map y = {a.out_channels, c.OutHeight(), c.OutWidth()};
    int64_t found = -1;
    for (size_t i = 0; i < values.size() && residual; ++i) {
      if (values[i] == y) found = static_cast<int64_t>(i);
    }
    const int64_t columns = a.in_channels * a.kernel[0] * a.kernel[1];
    attributes.push_back(a);
    weights.push_back(SparseWeight(random, a.out_channels, columns, 0.3));
    for (float& value : weights.back()) value *= 0.5f;
    packed.push_back(Pack(layout, weights.back(), a.out_channels, columns));
    biases.push_back(random->Below(3) == 0 ? std::vector<float>() : random->Normals(a.out_channels));
    inputs.push_back(input);
    residuals.push_back(found);
    activations.push_back(static_cast<int32_t>(random->Below(kActivations)));
    values.push_back(y);
  }
};

class Handle {
 public:
  Handle(const Chain& chain, const char* kernel) {
    const auto steps = chain.Steps();
    if (sparsify_conv_chain_create(kernel, chain.maps, steps.data(), static_cast<int32_t>(steps.size()),
                                   &chain_) != 0) {
      Die(std::string("a good chain is refused: ") + sparsify_last_error());
    }
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { sparsify_conv_chain_free(chain_); }
  const sparsify_conv_chain* get() const { return chain_; }

  int64_t Bytes(const Chain& chain) const {
    int64_t size[2] = {}, bytes = 0;
    if (sparsify_conv_chain_output_size(chain_, chain.Sizes().data(), size, &bytes) != 0) {
      Die(sparsify_last_error());
    }
    if (size[0] != chain.values.back().height || size[1] != chain.values.back().width) Die("wrong size");
    return bytes;
  }

 private:
  sparsify_conv_chain* chain_ = nullptr;
};

using Maps = std::vector<std::vector<float>>;

Maps OuterMaps(const Chain& chain, int64_t batch, Random* random) {
  Maps maps;
  for (size_t i = 0; i < static_cast<size_t>(chain.maps); ++i) {
    const Map& map = chain.values[i];
    maps.push_back(random->Normals(batch * map.channels * map.height * map.width));
  }
  return maps;
}

// Every step in double precision, rounded once.
std::vector<float> Expect(const Chain& chain, const Maps& maps, int64_t batch) {
  Maps values = maps;
  for (size_t i = 0; i < chain.count(); ++i) {
    const Map& x = chain.values[static_cast<size_t>(chain.inputs[i])];
    Ends ends;
    ends.bias = chain.biases[i].empty() ? nullptr : chain.biases[i].data();
    ends.activation = chain.activations[i];
    if (chain.residuals[i] >= 0) ends.residual = values[static_cast<size_t>(chain.residuals[i])].data();
    const Expected step = ExpectConv({batch, x.height, x.width, chain.attributes[i]}, chain.weights[i],
                                     values[static_cast<size_t>(chain.inputs[i])], ends);
    values.emplace_back(step.values.begin(), step.values.end());
  }
  return values.back();
}

std::vector<float> Run(const Handle& handle, const Chain& chain, const Maps& maps, int64_t batch,
                       int32_t threads) {
  const Map& y = chain.values.back();
  const size_t size = static_cast<size_t>(batch * y.channels * y.height * y.width);
  std::vector<float> memory(size + 2 * kGuard, kSentinel);
  std::fill_n(memory.begin() + kGuard, size, std::numeric_limits<float>::quiet_NaN());
  std::vector<const float*> pointers;
  for (const auto& map : maps) pointers.push_back(map.data());
  if (sparsify_conv_chain_run(handle.get(), pointers.data(), chain.Sizes().data(), batch, threads,
                              memory.data() + kGuard) != 0) {
    Die(sparsify_last_error());
  }
  for (size_t i = 0; i < kGuard; ++i) {
    if (memory[i] != kSentinel || memory[kGuard + size + i] != kSentinel) Die("wrote outside the output");
  }
  return {memory.begin() + kGuard, memory.end() - kGuard};
}

// Rounding of a few dozen terms, carried on from step to step.
bool Agrees(const std::vector<float>& got, const std::vector<float>& want) {
  double scale = 1.0;
  for (const float value : want) scale = std::max(scale, std::fabs(static_cast<double>(value)));
  for (size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(static_cast<double>(got[i]) - want[i]) <= 5e-5 * scale)) return false;
  }
  return got.size() == want.size();
}

Chain RandomChain(Random* random) {
  Chain chain;
  const int64_t channels[] = {3, 4, 8, 17};
  chain.maps = 1 + random->Below(2);
  const int64_t height = 5 + random->Below(9), width = 5 + random->Below(12);
  for (int64_t i = 0; i < chain.maps; ++i) chain.values.push_back({channels[i], height, width});
  const int64_t steps = chain.maps + random->Below(7);
  for (int64_t i = 0; i < steps; ++i) {
    // Each outer map is read; further steps read the latest value, or an older one.
    int64_t input = i < chain.maps ? i : chain.maps + i - 1;
    if (i >= chain.maps && random->Below(3) == 0) input = random->Below(chain.maps + i);
    const int64_t tap = random->Below(2), stride = random->Below(4) == 0 ? 2 : 1;
    const sparsify_conv_attributes a = {
        channels[random->Below(4)], chain.values[static_cast<size_t>(input)].channels,
        {2 * tap + 1, 2 * tap + 1}, {stride, stride},
        {tap, tap, tap, tap},       {1, 1}};
    chain.Add(random, input, a, kLayouts[random->Below(5)], random->Below(3) != 0);
  }
  return chain;
}

int64_t TestRandomChains(int64_t chains, Random* random) {
  int64_t runs = 0;
  for (int64_t i = 0; i < chains; ++i) {
    const Chain chain = RandomChain(random);
    const int64_t batch = random->Below(3) == 0 ? 8 + 8 * random->Below(2) : 1 + random->Below(5);
    const Maps maps = OuterMaps(chain, batch, random);
    const std::vector<float> want = Expect(chain, maps, batch);
    for (const std::string& kernel : SupportedKernels()) {
      const Handle handle(chain, kernel.c_str());
      handle.Bytes(chain);
      for (int32_t threads = 1; threads <= 3; ++threads, ++runs) {
        if (!Agrees(Run(handle, chain, maps, batch, threads), want)) {
          Die(kernel + ": chain " + std::to_string(i) + " of " + std::to_string(chain.count()) +
              " steps, batch " + std::to_string(batch) + ", threads " + std::to_string(threads) +
              " differs from its steps");
        }
      }
    }
  }
  return runs;
}

sparsify_conv_attributes Square(int64_t out, int64_t in, int64_t kernel) {
  const int64_t pad = kernel / 2;
  return {out, in, {kernel, kernel}, {1, 1}, {pad, pad, pad, pad}, {1, 1}};
}

// Residual blocks one after another: x stays, a sum takes the place of its residual.
Chain Blocks(int64_t blocks, Random* random) {
  Chain chain;
  chain.values.push_back({16, 9, 9});
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t x = static_cast<int64_t>(chain.values.size()) - 1;
    chain.Add(random, x, Square(4, 16, 1), "csr", false);
    chain.Add(random, x + 1, Square(4, 4, 3), "csr", false);
    chain.Add(random, x + 2, Square(16, 4, 1), "csr", true);
  }
  return chain;
}

void TestMemoryDoesNotGrowWithTheChain() {
  Random random(11);
  const Chain three = Blocks(3, &random), nine = Blocks(9, &random);
  const int64_t bytes = Handle(three, nullptr).Bytes(three);
  if (Handle(nine, nullptr).Bytes(nine) != bytes) Die("a longer chain of equal blocks needs more memory");
  const int64_t line = 16, map = 81;
  const int64_t most = (16 * map + 2 * 4 * map + 3 * line) * static_cast<int64_t>(sizeof(float));
  if (bytes > most) Die("a block needs more than its residual and two maps inside");
}

void TestAPerturbedWeightIsSeen() {
  Random random(12);
  Chain chain = Blocks(1, &random);
  const Maps maps = OuterMaps(chain, 2, &random);
  chain.activations.assign(chain.count(), 0);
  for (float& value : chain.weights[1]) value *= 1.01f;
  if (Agrees(Run(Handle(chain, nullptr), chain, maps, 2, 2), Expect(chain, maps, 2))) {
    Die("weights of a step that are off by a hundredth are not noticed");
  }
}

void TestOneChainServesSeveralThreadsAndSizes() {
  const auto make = [](int64_t width) {
    Random random(13);
    Chain chain = Blocks(2, &random);
    for (Map& map : chain.values) map.width = width;
    return chain;
  };
  const Chain sized[] = {make(9), make(12), make(7)};
  const Handle handle(sized[0], nullptr);
  std::vector<std::thread> callers;
  for (const Chain& own : sized) {
    callers.emplace_back([&own, &handle] {
      Random numbers(14);
      for (const int64_t batch : {3, 1, 4, 2}) {
        const Maps maps = OuterMaps(own, batch, &numbers);
        if (!Agrees(Run(handle, own, maps, batch, 2), Expect(own, maps, batch))) {
          Die("calls from several threads disturb each other");
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// Damage to a chain's own numbers and to its packed bytes.
void Damage(Chain* chain, Random* random) {
  const size_t step = static_cast<size_t>(random->Below(static_cast<int64_t>(chain->count())));
  const int64_t extremes[] = {-2, -1, 0, 1, 2, 7, 1 << 20, INT64_MAX, INT64_MIN};
  const int64_t value = extremes[random->Below(9)];
  sparsify_conv_attributes& a = chain->attributes[step];
  switch (random->Below(8)) {
    case 0:
      chain->inputs[step] = value;
      break;
    case 1:
      chain->residuals[step] = value;
      break;
    case 2:
      (random->Below(2) != 0 ? a.in_channels : a.out_channels) = value;
      break;
    case 3:
      a.kernel[random->Below(2)] = value;
      break;
    case 4:
      a.strides[random->Below(2)] = value;
      break;
    case 5:
      a.pads[random->Below(4)] = value;
      break;
    case 6:
      chain->activations[step] = static_cast<int32_t>(value);
      break;
    default: {
      auto& bytes = chain->packed[step].memory[static_cast<size_t>(random->Below(4))];
      bytes[static_cast<size_t>(random->Below(static_cast<int64_t>(bytes.size())))] =
          static_cast<unsigned char>(random->Bits());
    }
  }
}

// Each is refused with a message or runs within its memory, whatever it then computes.
int64_t TestDamagedChains(int64_t chains, Random* random) {
  constexpr int64_t kMostFloats = 1 << 16;
  int64_t refused = 0;
  for (int64_t i = 0; i < chains; ++i) {
    Chain chain = RandomChain(random);
    Damage(&chain, random);
    const auto steps = chain.Steps();
    const std::vector<int64_t> sizes = chain.Sizes();
    sparsify_conv_chain* handle = nullptr;
    int64_t size[2] = {}, bytes = 0;
    const bool made = sparsify_conv_chain_create(nullptr, chain.maps, steps.data(),
                                                 static_cast<int32_t>(steps.size()), &handle) == 0;
    const bool fits = made && sparsify_conv_chain_output_size(handle, sizes.data(), size, &bytes) == 0;
    if (!fits && std::string(sparsify_last_error()).empty()) Die("a chain is refused without a reason");
    const int64_t out = chain.attributes.back().out_channels;
    if (fits && bytes < 4 * kMostFloats && size[0] < kMostFloats && size[1] < kMostFloats &&
        out * size[0] * size[1] < kMostFloats) {
      const Maps maps = OuterMaps(chain, 2, random);
      std::vector<const float*> pointers;
      for (const auto& map : maps) pointers.push_back(map.data());
      std::vector<float> y(static_cast<size_t>(2 * out * size[0] * size[1]));
      if (sparsify_conv_chain_run(handle, pointers.data(), sizes.data(), 2, 1, y.data()) != 0) {
        Die(sparsify_last_error());
      }
    }
    refused += fits ? 0 : 1;
    sparsify_conv_chain_free(handle);
  }
  return refused;
}

}  // namespace
}  // namespace sparsify_tests

int main(int argc, char** argv) {
  using namespace sparsify_tests;
  const int64_t chains = argc > 1 ? std::atoll(argv[1]) : 150;
  Random random(static_cast<uint32_t>(argc > 2 ? std::atoll(argv[2]) : 10));
  const int64_t runs = TestRandomChains(chains, &random);
  TestMemoryDoesNotGrowWithTheChain();
  TestAPerturbedWeightIsSeen();
  TestOneChainServesSeveralThreadsAndSizes();
  const int64_t refused = TestDamagedChains(20 * chains, &random);
  if (chains > 0 && (refused == 0 || refused == 20 * chains)) Die("damage is always seen, or never");
  std::printf("%lld runs of %lld chains as expected; of %lld damaged chains %lld refused\n",
              static_cast<long long>(runs), static_cast<long long>(chains),
              static_cast<long long>(20 * chains), static_cast<long long>(refused));
  return 0;
}
