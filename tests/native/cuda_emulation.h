// As much of CUDA as the kernels use, on a CPU: the blocks of a grid one after the other, the threads of a
// block as fibers that change at barriers.
//
// Stricter than a GPU: a barrier that a thread of the block (or a lane of the warp) never reaches ends the
// program, as do lanes of one warp that meet at different barriers.
#ifndef SPARSIFY_TESTS_NATIVE_CUDA_EMULATION_H_
#define SPARSIFY_TESTS_NATIVE_CUDA_EMULATION_H_

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))

namespace cuda_emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024;

enum class Wait { kNothing, kBlock, kSyncWarp, kBallot, kShuffle, kMultiply, kEnded };

// What a lane brings to an instruction of the tensor cores.
struct Operands {
  uint32_t a[4], b[2];
};

// Begun with a context, which costs system calls, and kept for the blocks that follow; changed to and fro by
// jumps, which cost none.
struct Thread {
  ucontext_t context;
  jmp_buf place;
  bool begun = false;
  std::unique_ptr<char[]> stack;
  Wait wait = Wait::kEnded;
};

[[noreturn]] inline void Stop(const char* why) {
  std::fprintf(stderr, "FAILED: the emulated kernel: %s\n", why);
  std::exit(1);
}

class Block {
 public:
  explicit Block(unsigned threads) : threads_(threads), exchanged_(threads), operands_(threads) {
    if (threads % kWarp != 0) Stop("a block is not made of whole warps");
    for (Thread& thread : threads_) {
      thread.stack = std::make_unique<char[]>(kStack);
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = kStack;
      makecontext(&thread.context, &Block::Begin, 0);
    }
  }

  // One for each number of threads, for the whole process.
  static Block& Of(unsigned threads) {
    static auto* blocks = new std::map<unsigned, std::unique_ptr<Block>>;
    std::unique_ptr<Block>& block = (*blocks)[threads];
    if (block == nullptr) block = std::make_unique<Block>(threads);
    return *block;
  }

  // Runs the body once on every thread.
  void Run(const std::function<void()>& body) {
    body_ = &body;
    for (Thread& thread : threads_) thread.wait = Wait::kNothing;
    while (Advance()) {
    }
  }

  void Barrier(Wait kind) {
    Thread& thread = threads_[current_];
    thread.wait = kind;
    if (_setjmp(thread.place) == 0) _longjmp(scheduler_, 1);
  }

  // What the lanes of this warp gave at the barrier; a second one keeps it until all have read.
  const uint64_t* Exchange(uint64_t value, Wait kind) {
    exchanged_[current_] = value;
    Barrier(kind);
    return exchanged_.data() + current_ / kWarp * kWarp;
  }

  // The operands of this warp's lanes; the next barrier keeps them until all have read.
  const Operands* Gather(const Operands& own) {
    operands_[current_] = own;
    Barrier(Wait::kMultiply);
    return operands_.data() + current_ / kWarp * kWarp;
  }

  unsigned current() const { return static_cast<unsigned>(current_); }

  static Block*& Running() {
    static Block* block = nullptr;
    return block;
  }

 private:
  static void Begin() {
    while (true) {
      Block& block = *Running();
      (*block.body_)();
      block.Barrier(Wait::kEnded);
    }
  }

  void Resume(Thread& thread) {
    if (_setjmp(scheduler_) != 0) return;
    if (thread.begun) _longjmp(thread.place, 1);
    thread.begun = true;
    setcontext(&thread.context);
  }

  // Runs every thread that may run, and opens the barriers that all have reached. False at the end.
  bool Advance();
  bool OpenWarp(size_t first);

  std::vector<Thread> threads_;
  std::vector<uint64_t> exchanged_;
  std::vector<Operands> operands_;
  jmp_buf scheduler_;
  const std::function<void()>* body_ = nullptr;
  size_t current_ = 0;
};

inline Index& ThreadIndex() {
  static Index index;
  return index;
}
inline Index& BlockIndex() {
  static Index index;
  return index;
}
inline Index& BlockSize() {
  static Index size;
  return size;
}
inline Index& GridSize() {
  static Index size;
  return size;
}

inline bool Block::OpenWarp(size_t first) {
  const Wait kind = threads_[first].wait;
  for (size_t i = first; i < first + kWarp; ++i) {
    if (threads_[i].wait != kind) Stop("lanes of one warp wait at different barriers, or one has ended");
  }
  if (kind == Wait::kBlock || kind == Wait::kEnded) return false;
  for (size_t i = first; i < first + kWarp; ++i) threads_[i].wait = Wait::kNothing;
  return true;
}

inline bool Block::Advance() {
  bool opened = false;
  for (size_t first = 0; first < threads_.size(); first += kWarp) {
    do {
      for (current_ = first; current_ < first + kWarp; ++current_) {
        if (threads_[current_].wait != Wait::kNothing) continue;
        ThreadIndex().x = static_cast<unsigned>(current_);
        Resume(threads_[current_]);
      }
    } while (OpenWarp(first));
  }
  const Wait kind = threads_[0].wait;
  for (Thread& thread : threads_) {
    if (thread.wait != kind) Stop("threads of a block wait at a barrier that others never reach");
    if (kind == Wait::kBlock) opened = true;
  }
  for (Thread& thread : threads_) thread.wait = opened ? Wait::kNothing : thread.wait;
  return opened;
}

inline void RunGrid(const Index& grid, unsigned threads, const std::function<void()>& body) {
  Block& block = Block::Of(threads);
  Block::Running() = &block;
  GridSize() = grid;
  BlockSize() = {threads, 1, 1};
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      BlockIndex() = {x, y, 0};
      block.Run(body);
    }
  }
  Block::Running() = nullptr;
}

}  // namespace cuda_emulation

#define threadIdx (cuda_emulation::ThreadIndex())
#define blockIdx (cuda_emulation::BlockIndex())
#define blockDim (cuda_emulation::BlockSize())
#define gridDim (cuda_emulation::GridSize())

inline void __syncthreads() { cuda_emulation::Block::Running()->Barrier(cuda_emulation::Wait::kBlock); }
inline void __syncwarp() { cuda_emulation::Block::Running()->Barrier(cuda_emulation::Wait::kSyncWarp); }

inline unsigned __ballot_sync(unsigned, bool here) {
  const uint64_t* lanes = cuda_emulation::Block::Running()->Exchange(here, cuda_emulation::Wait::kBallot);
  unsigned taken = 0;
  for (int lane = 0; lane < cuda_emulation::kWarp; ++lane)
    taken |= static_cast<unsigned>(lanes[lane]) << lane;
  cuda_emulation::Block::Running()->Barrier(cuda_emulation::Wait::kBallot);
  return taken;
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  cuda_emulation::Block& block = *cuda_emulation::Block::Running();
  const int lane = static_cast<int>(block.current()) % cuda_emulation::kWarp;
  bits = block.Exchange(bits, cuda_emulation::Wait::kShuffle)[lane ^ mask];
  block.Barrier(cuda_emulation::Wait::kShuffle);
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

#endif  // SPARSIFY_TESTS_NATIVE_CUDA_EMULATION_H_
