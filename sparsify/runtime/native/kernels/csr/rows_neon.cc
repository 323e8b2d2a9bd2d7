// NEON of 64-bit ARM.
#include <arm_neon.h>
#include <string.h>

#include "compiler.h"
#include "rows_isa.h"

namespace sparsify {
namespace csr {
namespace {

#include "vector_neon.h"
// All of these are written in terms of V.
#include "panel_body.h"
#include "panel_ends.h"
#include "rows_body.h"

}  // namespace

const RowsIsa rows_neon = {&MultiplyRowGroups<V>, &MoveRowSums<V>, &ActivateBy<V>};

}  // namespace csr
}  // namespace sparsify
