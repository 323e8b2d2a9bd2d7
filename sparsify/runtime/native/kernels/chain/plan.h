// How many images each step of a chain takes at once, and where the maps between steps lie in memory.
#ifndef SPARSIFY_KERNELS_CHAIN_PLAN_H_
#define SPARSIFY_KERNELS_CHAIN_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace sparsify {
namespace chain {

struct Size {
  int64_t height = 0, width = 0;

  int64_t pixels() const { return height * width; }
  bool operator==(const Size& other) const { return height == other.height && width == other.width; }
};

// What a step reads and gives. Values are numbered: outer maps first, then what the steps give.
struct Flow {
  int64_t input, residual;  // values; -1 for no residual
  int64_t floats;           // of what it gives, for one image
};

struct RowPlan;

// A block of images on its way through all steps. The first of them may run row by row, image by image. Any
// later step s runs once for every groups[s] images; groups grow along the chain, each a multiple of the one
// before.
struct Schedule {
  int64_t images = 0;           // of the block; 0: there is no such block
  std::vector<int64_t> groups;  // of each step
  std::vector<int64_t> held;    // images for which there is room in what each step gives
  // Of what each step gives, in floats; -1 for the last, which is the output, and for what only rows hold.
  std::vector<int64_t> offsets;
  std::shared_ptr<const RowPlan> rows;  // null: all steps take whole maps
  int64_t rows_offset = 0;
  int64_t floats = 0;

  int64_t row_steps() const;
  size_t kernel_bytes = 0;  // what the neediest kernel wants
};

struct Plan {
  std::vector<Size> maps;  // outer ones
  int64_t batch = 0;
  int threads = 1;
  std::vector<Size> sizes;  // of what each step gives
  // Whole rounds of images: each thread has blocks of its own. The rest is too few for that and is one block,
  // which all threads run together.
  int64_t workers = 0, blocks = 0;
  Schedule alone, together;
};

// Groups for steps on maps of these sizes, in blocks of `images`, a power of two.
std::vector<int64_t> Groups(const std::vector<Size>& sizes, int64_t images);

// Fills held, offsets and floats from groups and rows. Maps that are never needed at once share memory, and a
// sum takes the place of its residual where nothing else reads that any more.
void Place(int64_t maps, const std::vector<Flow>& flows, Schedule* schedule);

}  // namespace chain
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CHAIN_PLAN_H_
