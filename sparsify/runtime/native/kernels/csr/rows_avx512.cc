// AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>
#include <string.h>

#include "compiler.h"
#include "rows_isa.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header reads a variable that it leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace sparsify {
namespace csr {
namespace {

#include "vector_avx512.h"
// All of these are written in terms of V.
#include "panel_body.h"
#include "panel_ends.h"
#include "rows_body.h"

}  // namespace

const RowsIsa rows_avx512 = {&MultiplyRowGroups<V>, &MoveRowSums<V>, &ActivateBy<V>};

}  // namespace csr
}  // namespace sparsify
