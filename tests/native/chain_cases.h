// Chains of convolutions as their user holds them, and what they should give.
#ifndef SPARSIFY_TESTS_NATIVE_CHAIN_CASES_H_
#define SPARSIFY_TESTS_NATIVE_CHAIN_CASES_H_

#include <algorithm>
#include <cmath>
#include <limits>

#include "capi/chain.h"
#include "reference.h"
#include "weights.h"

namespace sparsify_tests {

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

  Map Gives(int64_t input, const sparsify_conv_attributes& a) const {
    const Map& x = values[static_cast<size_t>(input)];
    const ConvCase c = {1, x.height, x.width, a};
    return {a.out_channels, c.OutHeight(), c.OutWidth()};
  }

  // The latest value of this form; -1 where there is none.
  int64_t Latest(const Map& map) const {
    int64_t found = -1;
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i] == map) found = static_cast<int64_t>(i);
    }
    return found;
  }

  // Returns the value that the new step gives.
  int64_t Add(Random* random, int64_t input, const sparsify_conv_attributes& a, const char* layout,
              int64_t residual, double density = 0.3) {
    const int64_t columns = a.in_channels * a.kernel[0] * a.kernel[1];
    attributes.push_back(a);
    weights.push_back(SparseWeight(random, a.out_channels, columns, density));
    for (float& value : weights.back())
      value /= std::sqrt(static_cast<float>(density * static_cast<double>(columns)));
    packed.push_back(Pack(layout, weights.back(), a.out_channels, columns));
    biases.push_back(random->Below(3) == 0 ? std::vector<float>() : random->Normals(a.out_channels));
    inputs.push_back(input);
    residuals.push_back(residual);
    activations.push_back(static_cast<int32_t>(random->Below(kActivations)));
    values.push_back(Gives(input, a));
    return static_cast<int64_t>(values.size()) - 1;
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

inline Maps OuterMaps(const Chain& chain, int64_t batch, Random* random) {
  Maps maps;
  for (size_t i = 0; i < static_cast<size_t>(chain.maps); ++i) {
    const Map& map = chain.values[i];
    maps.push_back(random->Normals(batch * map.channels * map.height * map.width));
  }
  return maps;
}

// Every step in double precision, rounded once.
inline std::vector<float> Expect(const Chain& chain, const Maps& maps, int64_t batch) {
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

inline std::vector<float> Run(const Handle& handle, const Chain& chain, const Maps& maps, int64_t batch,
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
inline bool Agrees(const std::vector<float>& got, const std::vector<float>& want) {
  double scale = 1.0;
  for (const float value : want) scale = std::max(scale, std::fabs(static_cast<double>(value)));
  for (size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(static_cast<double>(got[i]) - want[i]) <= 5e-5 * scale)) return false;
  }
  return got.size() == want.size();
}

// Blocks of several images, or a few images and what remains of them.
inline int64_t AnyBatch(Random* random) {
  return random->Below(3) == 0 ? 8 + 8 * random->Below(2) : 1 + random->Below(5);
}

// Runs with every instruction set and one to three threads; returns how often.
inline int64_t CheckChain(const Chain& chain, int64_t batch, Random* random) {
  const Maps maps = OuterMaps(chain, batch, random);
  const std::vector<float> want = Expect(chain, maps, batch);
  int64_t runs = 0;
  for (const std::string& kernel : SupportedKernels()) {
    const Handle handle(chain, kernel.c_str());
    handle.Bytes(chain);
    for (int32_t threads = 1; threads <= 3; ++threads, ++runs) {
      if (!Agrees(Run(handle, chain, maps, batch, threads), want)) {
        Die(kernel + ": a chain of " + std::to_string(chain.count()) + " steps to " +
            std::to_string(chain.values.back().height) + "x" + std::to_string(chain.values.back().width) +
            ", batch " + std::to_string(batch) + ", threads " + std::to_string(threads) +
            " differs from its steps");
      }
    }
  }
  return runs;
}

inline sparsify_conv_attributes Square(int64_t out, int64_t in, int64_t kernel) {
  const int64_t pad = kernel / 2;
  return {out, in, {kernel, kernel}, {1, 1}, {pad, pad, pad, pad}, {1, 1}};
}

// A residual block: y = x + third(second(first(x))).
inline int64_t AddBottleneck(Chain* chain, Random* random, int64_t x, int64_t inner, const char* layout) {
  const int64_t channels = chain->values[static_cast<size_t>(x)].channels;
  const int64_t first = chain->Add(random, x, Square(inner, channels, 1), layout, -1);
  const int64_t second = chain->Add(random, first, Square(inner, inner, 3), layout, -1);
  return chain->Add(random, second, Square(channels, inner, 1), layout, x);
}

// Residual blocks one after another: x stays, a sum takes the place of its residual.
inline Chain Blocks(int64_t blocks, Random* random) {
  Chain chain;
  chain.values.push_back({16, 9, 9});
  for (int64_t i = 0; i < blocks; ++i) {
    AddBottleneck(&chain, random, static_cast<int64_t>(chain.values.size()) - 1, 4, "csr");
  }
  return chain;
}

}  // namespace sparsify_tests

#endif  // SPARSIFY_TESTS_NATIVE_CHAIN_CASES_H_
