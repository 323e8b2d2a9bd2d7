// Chains on maps that are wide enough for their steps to run row by row.
#ifndef SPARSIFY_TESTS_NATIVE_CHAIN_ROW_CHECKS_H_
#define SPARSIFY_TESTS_NATIVE_CHAIN_ROW_CHECKS_H_

#include "chain_cases.h"

namespace sparsify_tests {

// Maps as wide as before, over the stride; any height that leaves rows.
inline sparsify_conv_attributes KeepsWidth(Random* random, int64_t out, const Map& x) {
  const int64_t kernel = 1 + random->Below(4) % 3 + random->Below(8) / 7,
                dilation = kernel == 1 ? 1 : 1 + random->Below(2);
  const int64_t reach = (kernel - 1) * dilation, left = reach / 2;
  int64_t top = random->Below(reach / 2 + 2), bottom = random->Below(reach / 2 + 2);
  while (x.height + top + bottom < reach + 6) (top < bottom ? top : bottom) += 1;
  const int64_t stride = random->Below(4) == 0 ? 2 : 1;
  return {out,
          x.channels,
          {kernel, kernel},
          {stride, stride},
          {top, left, bottom, reach - left},
          {dilation, dilation}};
}

// Any step from any value to any other: what is kept whole, what crosses to steps on planes, and rows that
// nobody reads all come up.
inline Chain RandomRows(Random* random) {
  const int64_t channels[] = {3, 4, 8, 11}, widths[] = {13, 14, 15, 28, 30, 45};
  Chain chain;
  chain.maps = 1 + random->Below(2);
  const int64_t height = 6 + random->Below(8), width = widths[random->Below(6)];
  for (int64_t i = 0; i < chain.maps; ++i) chain.values.push_back({channels[i], height, width});
  const int64_t steps = chain.maps + 1 + random->Below(7);
  for (int64_t i = 0; i < steps; ++i) {
    int64_t input = i < chain.maps ? i : chain.maps + i - 1;
    if (i >= chain.maps && random->Below(3) == 0) input = random->Below(chain.maps + i);
    const Map& x = chain.values[static_cast<size_t>(input)];
    const sparsify_conv_attributes a = KeepsWidth(random, channels[random->Below(4)], x);
    const int64_t residual = random->Below(3) != 0 ? chain.Latest(chain.Gives(input, a)) : -1;
    chain.Add(random, input, a, kLayouts[random->Below(5)], residual);
  }
  return chain;
}

// Stages as in a residual network: `blocks` blocks each, then half the size.
inline Chain Stages(Random* random, Map map, int64_t stages, int64_t blocks, int64_t inner) {
  Chain chain;
  chain.values.push_back(map);
  int64_t x = 0;
  for (int64_t stage = 0; stage < stages; ++stage) {
    const char* layout = kLayouts[random->Below(5)];
    if (stage > 0) {
      const int64_t channels = map.channels;
      sparsify_conv_attributes reduce = Square(inner, channels, 3), down = Square(channels, channels, 1);
      for (sparsify_conv_attributes* a : {&reduce, &down}) a->strides[0] = a->strides[1] = 2;
      const int64_t second = chain.Add(random, x, reduce, layout, -1);
      const int64_t residual = chain.Add(random, x, down, layout, -1);
      x = chain.Add(random, second, Square(channels, inner, 1), layout, residual);
    }
    for (int64_t block = 0; block < blocks; ++block) x = AddBottleneck(&chain, random, x, inner, layout);
  }
  return chain;
}

// Weights that do not fit into a cache together, so that the chain is cut into segments anywhere, from values
// of any age.
inline Chain HeavySteps(Random* random) {
  constexpr int64_t kChannels = 208;
  Chain chain;
  chain.values.push_back({kChannels, 12 + random->Below(3), 13});
  for (int64_t i = 0; i < 12; ++i) {
    const int64_t latest = static_cast<int64_t>(chain.values.size()) - 1;
    const int64_t input = std::max<int64_t>(0, latest - random->Below(2));
    const int64_t residual = random->Below(3) != 0 ? std::max<int64_t>(0, latest - random->Below(6)) : -1;
    chain.Add(random, input, Square(kChannels, kChannels, random->Below(4) == 0 ? 1 : 3), "csr", residual,
              0.06);
  }
  return chain;
}

inline int64_t CheckRowChains(int64_t chains, Random* random) {
  int64_t runs = 0;
  for (int64_t i = 0; i < chains; ++i) runs += CheckChain(RandomRows(random), AnyBatch(random), random);
  for (int64_t i = 0; i < (chains + 19) / 20; ++i) {
    const int64_t batch = 1 + random->Below(3), height = 16 + random->Below(9);
    runs += CheckChain(Stages(random, {12, height, 56}, 3 + random->Below(2), 1, 6), batch, random);
    runs += CheckChain(HeavySteps(random), 1, random);
  }
  return runs;
}

inline void TestRowsNoticeAPerturbedWeight() {
  Random random(15);
  Chain chain = Stages(&random, {12, 16, 28}, 2, 1, 6);
  const Maps maps = OuterMaps(chain, 3, &random);
  chain.activations.assign(chain.count(), 0);
  if (!Agrees(Run(Handle(chain, nullptr), chain, maps, 3, 2), Expect(chain, maps, 3))) {
    Die("a chain on rows differs from its steps");
  }
  for (float& value : chain.weights[1]) value *= 1.01f;
  if (Agrees(Run(Handle(chain, nullptr), chain, maps, 3, 2), Expect(chain, maps, 3))) {
    Die("weights of a step on rows that are off by a hundredth are not noticed");
  }
}

}  // namespace sparsify_tests

#endif  // SPARSIFY_TESTS_NATIVE_CHAIN_ROW_CHECKS_H_
