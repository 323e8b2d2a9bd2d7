// Hints that differ between compilers.
#ifndef SPARSIFY_KERNELS_CSR_COMPILER_H_
#define SPARSIFY_KERNELS_CSR_COMPILER_H_

#if defined(__clang__)
#define SPARSIFY_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define SPARSIFY_UNROLL _Pragma("GCC unroll 64")
#else
#define SPARSIFY_UNROLL
#endif

// For functions that compilers find too large: a call would clear the upper halves of registers again and
// again.
#if defined(__GNUC__)
#define SPARSIFY_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define SPARSIFY_INLINE __forceinline
#else
#define SPARSIFY_INLINE inline
#endif

// Hides where a value came from, so that the compiler keeps it in one register.
#if defined(__GNUC__)
#define SPARSIFY_OPAQUE(value) __asm__("" : "+r"(value))
#else
#define SPARSIFY_OPAQUE(value) (void)(value)
#endif

#if defined(__GNUC__)
#define SPARSIFY_PREFETCH(pointer) __builtin_prefetch((pointer), 0, 3)
#define SPARSIFY_PREFETCH_TO_WRITE(pointer) __builtin_prefetch((pointer), 1, 3)
#else
#define SPARSIFY_PREFETCH(pointer) (void)(pointer)
#define SPARSIFY_PREFETCH_TO_WRITE(pointer) (void)(pointer)
#endif

#endif  // SPARSIFY_KERNELS_CSR_COMPILER_H_
