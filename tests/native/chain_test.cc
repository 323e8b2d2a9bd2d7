// Chains of convolutions against the same convolutions one by one in double precision, and damaged chains.
//
//   chain_test [chains] [seed]
#include <thread>

#include "chain_cases.h"
#include "chain_row_checks.h"

namespace sparsify_tests {
namespace {

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
    const int64_t residual = random->Below(3) != 0 ? chain.Latest(chain.Gives(input, a)) : -1;
    chain.Add(random, input, a, kLayouts[random->Below(5)], residual);
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
  int64_t runs = 0;
  for (int64_t i = 0; i < chains; ++i) runs += CheckChain(RandomChain(&random), AnyBatch(&random), &random);
  runs += CheckRowChains(chains / 5, &random);
  TestMemoryDoesNotGrowWithTheChain();
  TestAPerturbedWeightIsSeen();
  TestRowsNoticeAPerturbedWeight();
  TestOneChainServesSeveralThreadsAndSizes();
  const int64_t refused = TestDamagedChains(20 * chains, &random);
  if (chains > 0 && (refused == 0 || refused == 20 * chains)) Die("damage is always seen, or never");
  std::printf("%lld runs of chains as expected; of %lld damaged chains %lld refused\n",
              static_cast<long long>(runs), static_cast<long long>(20 * chains),
              static_cast<long long>(refused));
  return 0;
}
