/* What one core can do at most: multiply-adds on registers, and reading memory with loads as wide as registers.
 *
 * Compiled for the machine that it runs on (-O3 -march=native) and called from one thread a core. */
#include <stdint.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define CHAINS 12 /* more than latency times units, and few enough for 16 registers */

typedef float floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t words __attribute__((vector_size(VECTOR_BYTES)));

int32_t vector_bytes(void) { return VECTOR_BYTES; }

/* CHAINS multiply-adds of whole vectors for each round. */
float multiply_add(int64_t rounds) {
  floats sums[CHAINS], factor, term, total;
  for (int lane = 0; lane < VECTOR_BYTES / 4; ++lane) factor[lane] = 0.999f, term[lane] = 0.001f;
  for (int i = 0; i < CHAINS; ++i) sums[i] = term * (float)i;
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < CHAINS; ++i) sums[i] = sums[i] * factor + term;
  }
  total = sums[0];
  for (int i = 1; i < CHAINS; ++i) total += sums[i];
  return total[0];
}

/* Reads `bytes` bytes (a multiple of eight vectors, aligned) `passes` times. */
int64_t read_all(const void* data, int64_t bytes, int64_t passes) {
  const words* at = data;
  const int64_t count = bytes / VECTOR_BYTES;
  words seen[8];
  int64_t result = 0;
  for (int i = 0; i < 8; ++i) seen[i] = at[i];
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t next = 0; next < count; next += 8) {
      for (int i = 0; i < 8; ++i) seen[i] |= at[next + i];
    }
    __asm__ volatile("" ::: "memory"); /* the next pass reads again */
  }
  for (int i = 0; i < 8; ++i) result |= seen[i][0];
  return result;
}
