// What attention needs of an instruction set: the steps for one head and up to 64 queries, which are the
// lanes. One source for each instruction set; see csr/isa.h for what these may include, and for the form of a
// panel, here [key or component][queries].
#ifndef SPARSIFY_KERNELS_ATTENTION_BLOCK_H_
#define SPARSIFY_KERNELS_ATTENTION_BLOCK_H_

#include "../csr/isa.h"

namespace sparsify {
namespace attention {

// Row-major keys or values of one head.
struct Rows {
  const float* data;
  int64_t stride;
  int64_t count;
  int64_t size;
};

struct ScoreTerms {
  float scale;
  const float* key_bias;  // [keys], one for all queries; null where there is none
  bool panel_bias;        // the panel of scores holds what is to be added
  int64_t diagonal;       // query i does not see the keys after i + diagonal
};

struct Block {
  const char* name;
  // scores[key] = scale * (queries, a panel of keys.size rows) . keys + bias, -infinity where hidden;
  // most = the largest of it and of what it was. NaN may be left out of most.
  void (*scores)(const float* queries, const Rows& keys, const ScoreTerms& terms, float* scores, float* most,
                 int groups);
  // scores = exp(scores - most), one row for each of the values, and added to sums. Below exp(-87) is 0.
  // Beside it the values move to copy [count][size].
  void (*exponents)(float* scores, const float* most, float* sums, const Rows& values, float* copy,
                    int groups);
  // out, a panel of values.size rows, += weights * values.
  void (*weigh)(const float* weights, const Rows& values, float* out, int groups);
  // out and sums *= exp(before - most), for `rows` rows of out.
  void (*rescale)(const float* before, const float* most, float* sums, float* out, int64_t rows, int groups);
  // out /= sums; with the guard 0 where sums is not a positive number.
  void (*finish)(const float* sums, bool guard, float* out, int64_t rows, int groups);
};

#define SPARSIFY_DECLARE_BLOCK(name, condition) extern const Block block_##name;
SPARSIFY_CSR_ISAS(SPARSIFY_DECLARE_BLOCK)
#undef SPARSIFY_DECLARE_BLOCK

}  // namespace attention
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_ATTENTION_BLOCK_H_
